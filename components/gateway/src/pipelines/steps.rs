//! What each kind of step does.

use std::{ops::ControlFlow, pin::pin, rc::Rc};

use futures::future::{Either, select};
use weir_codec::{
    pipelines::{
        input::{self, InputError},
        output::{self, Say, Sentiments},
    },
    transcripts::{config::SessionAsk, semantic::TextInput},
};
use weir_core::{
    failure::Failure,
    pipelines::{Inputs, Json, Kind, Run, StepFailure, Task, Work},
    process::{self, unexpected},
};
use weir_expression::{Bounds, Expression};
use wit_bindgen::rt::async_support::StreamResult;

use super::{Pipelines, component, http, live::Live};
use crate::{
    bindings::{
        weir::stream::{
            infer,
            types::{EmbedOptions, Item, Outcome, Output, Overflow, Task as Asked, WhenFull},
        },
        wit_stream,
    },
    clock,
    infer::{OUTCOMES_MAX, answer, failure, item},
    settings::Settings,
    transcript, turns,
};

/// Most texts that are annotated in one turn.
const ANNOTATED_MAX: usize = 64;

/// Runs a step, or a compensation, once and tells how it went.
pub(super) async fn run(pipelines: &'static Pipelines, live: Rc<Live>, work: Work) {
    let (definition, id) = {
        let execution = live.execution.borrow();
        (execution.definition().clone(), execution.id().clone())
    };
    let Some(task) = definition.task(work.run.place) else { return };
    let step = Step { pipelines, live: &live, task, run: work.run, key: format!("{id}.{}", task.id) };
    let result = step.run(&work.inputs).await;
    let now = clock::now();
    let mut execution = live.execution.borrow_mut();
    match result {
        Ok(output) => execution.handle_finished(now, work.run, output),
        Err(failure) => execution.handle_failed(now, work.run, failure),
    }
    drop(execution);
    live.changed.notify();
}

/// An attempt of a step.
pub(super) struct Step<'s> {
    pub(super) pipelines: &'static Pipelines,
    pub(super) live: &'s Live,
    pub(super) task: &'s Task,
    pub(super) run: Run,
    /// The same for every attempt of the step in this execution, and for no other.
    pub(super) key: String,
}

impl Step<'_> {
    async fn run(&self, inputs: &Inputs) -> Result<Json, StepFailure> {
        let input = match &self.task.input {
            None => inputs.default_json(),
            Some(expression) => self.evaluate(expression, || inputs.context_json()).await?,
        };
        match &self.task.kind {
            Kind::Chunk { chunk_size } => Ok(output::chunks(&input::text(&input).map_err(wrong)?, *chunk_size)),
            Kind::Map { expression } => self.evaluate(expression, || input).await,
            Kind::Annotate => annotate(&self.live.owner, &input).await,
            Kind::Sentiment { model } => self.sentiment(&input, model.as_deref()).await,
            Kind::Summary { model } => self.summary(&input, model.as_deref()).await,
            Kind::Entities { model } => self.entities(&input, model.as_deref()).await,
            Kind::Embed { model, normalize } => self.embed(&input, model.as_deref(), *normalize).await,
            Kind::Http { url, method, headers, body } => {
                let body = match body {
                    Some(expression) => Some(self.evaluate(expression, || input).await?),
                    None => (*method != weir_core::pipelines::Method::Get).then_some(input),
                };
                http::call(self, url, *method, headers, body).await
            }
            Kind::Component { path, memory_bytes_max, deadline_ms, config } => {
                let bytes_max = self.pipelines.config.output_bytes_max;
                component::run(path, &input, config, *memory_bytes_max, *deadline_ms, bytes_max).await
            }
        }
    }

    /// Evaluates an expression, a turn for each slice of it.
    async fn evaluate(&self, expression: &str, over: impl FnOnce() -> Json) -> Result<Json, StepFailure> {
        let user = &self.live.owner;
        let mut turn = Some(turns::take(user).await);
        let over = over();
        let failed = |error: String| StepFailure::last("expression_failed", error);
        // It was one when the definition was read.
        let expression = Expression::parse(expression).map_err(|error| failed(error.to_string()))?;
        let bounds = Bounds { output_bytes_max: self.pipelines.config.output_bytes_max, ..Bounds::default() };
        let next_turn = async || {
            drop(turn.take());
            turn = Some(turns::take(user).await);
        };
        let result = expression.evaluate_in_slices(&over, bounds, next_turn).await;
        result.map_err(|error| failed(error.to_string()))
    }

    async fn sentiment(&self, input: &Json, model: Option<&str>) -> Result<Json, StepFailure> {
        let texts = input::texts(input).map_err(wrong)?;
        let count = texts.len();
        let mut sentiments = Sentiments::new(count);
        let items =
            texts.iter().zip(0..).map(|(text, id)| self.item(id, process::Step::Sentiment, text, model)).collect();
        let mut told = 0;
        let mut say = async |sentiments: &mut Sentiments| {
            while let Some(say) = sentiments.poll() {
                match say {
                    Say::Part(part) => {
                        told += 1;
                        self.live.progress(self.run, told as f64 / count as f64, &format!("{told} of {count} texts"));
                        if let Err(failure) = self.live.part(self.run, part).await {
                            return Some(Err(failure));
                        }
                    }
                    Say::Finished(output) => return Some(Ok(output)),
                    Say::Failed(failure) => return Some(Err(StepFailure::from(&failure))),
                }
            }
            None
        };
        if let Some(result) = say(&mut sentiments).await {
            return result;
        }
        let result = ask(items, async |id, result: Result<Output, Failure>| {
            sentiments.handle_answer(id, result.and_then(answer));
            match say(&mut sentiments).await {
                Some(result) => ControlFlow::Break(result),
                None => ControlFlow::Continue(()),
            }
        });
        result.await.unwrap_or_else(lost)
    }

    async fn summary(&self, input: &Json, model: Option<&str>) -> Result<Json, StepFailure> {
        let text = input::text(input).map_err(wrong)?;
        let asked = self.item(0, process::Step::Summarization, &text, model);
        let result = ask(vec![asked], async |_, result: Result<Output, Failure>| ControlFlow::Break(result)).await;
        output::summary(result.unwrap_or_else(|| Err(none())).and_then(answer), &text)
            .map_err(|failure| StepFailure::from(&failure))
    }

    async fn entities(&self, input: &Json, model: Option<&str>) -> Result<Json, StepFailure> {
        let text = input::text(input).map_err(wrong)?;
        let asked = self.item(0, process::Step::Entities, &text, model);
        let result = ask(vec![asked], async |_, result: Result<Output, Failure>| ControlFlow::Break(result)).await;
        output::entities(result.unwrap_or_else(|| Err(none())).and_then(answer), &text)
            .map_err(|failure| StepFailure::from(&failure))
    }

    async fn embed(&self, input: &Json, model: Option<&str>, normalize: bool) -> Result<Json, StepFailure> {
        let texts = input::texts(input).map_err(wrong)?;
        let count = texts.len();
        let item = |(id, text): (u64, String)| Item {
            id,
            model: model.unwrap_or(&self.settings().summary_model).to_owned(),
            text,
            text_pair: None,
            overflow: Overflow::Truncate,
            deadline_ms: self.deadline_ms(),
            when_full: WhenFull::Wait,
            task: Asked::Embed(EmbedOptions { normalize }),
        };
        let items: Vec<Item> = (0..).zip(texts).map(item).collect();
        let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); count];
        let mut owed = count;
        if owed > 0 {
            let result = ask(items, async |id, result: Result<Output, Failure>| {
                let vector = match result {
                    Ok(Output::Embedding(vector)) => vector,
                    Ok(other) => return ControlFlow::Break(Err(unexpected(answer(other)))),
                    Err(failure) => return ControlFlow::Break(Err(failure)),
                };
                if let Some(place) = vectors.get_mut(id) {
                    *place = vector;
                    owed -= 1;
                }
                let done = count - owed;
                self.live.progress(self.run, done as f64 / count as f64, &format!("{done} of {count} texts"));
                if owed == 0 { ControlFlow::Break(Ok(())) } else { ControlFlow::Continue(()) }
            });
            result.await.unwrap_or_else(|| Err(none())).map_err(|failure| StepFailure::from(&failure))?;
        }
        Ok(output::embeddings(&vectors))
    }

    fn item(&self, id: u64, step: process::Step, text: &str, model: Option<&str>) -> Item {
        let item = item(id, step, text, self.settings());
        Item { model: model.map_or(item.model, str::to_owned), deadline_ms: self.deadline_ms(), ..item }
    }

    /// What is not computed when the attempt is over need not be.
    fn deadline_ms(&self) -> Option<u32> {
        u32::try_from(self.task.timeout_ms).ok()
    }

    fn settings(&self) -> &'static Settings {
        self.pipelines.settings
    }
}

async fn annotate(user: &str, input: &Json) -> Result<Json, StepFailure> {
    let texts = input::texts(input).map_err(wrong)?;
    let ask = SessionAsk::annotate_from_query("").map_err(|error| StepFailure::last("internal", error.to_string()))?;
    let texts: Vec<TextInput> =
        texts.into_iter().map(|text| TextInput { text, speaker_id: None, segment_id: None }).collect();
    let config = transcript::config(&ask);
    let mut annotations = Vec::with_capacity(texts.len());
    for texts in texts.chunks(ANNOTATED_MAX) {
        // The session component computes without waiting.
        let turn = turns::take(user).await;
        let some = transcript::annotate(&config, texts.iter()).await;
        drop(turn);
        annotations
            .extend(some.ok_or_else(|| StepFailure::last("internal", "the session component does not annotate"))?);
    }
    Ok(output::annotations(ask.parts(), &texts, &annotations))
}

/// Hands items to inference in one stream, so that they can be batched, and brings outcomes until `each` has what it wants; none
/// when there are no more before. Dropping the future drops both streams: inference skips what it has not computed.
async fn ask<T>(
    items: Vec<Item>,
    mut each: impl AsyncFnMut(usize, Result<Output, Failure>) -> ControlFlow<T>,
) -> Option<T> {
    let (mut writer, reader) = wit_stream::new::<Item>();
    let send = pin!(async move {
        // What is left over was refused by a reader that is gone; the outcomes, or their absence, say the rest.
        writer.write_all(items).await;
        drop(writer);
    });
    let receive = pin!(async {
        let mut outcomes = infer::run(reader).await;
        let mut buffer = Vec::with_capacity(OUTCOMES_MAX);
        loop {
            let (read, mut batch) = outcomes.read(buffer).await;
            for Outcome { id, result, .. } in batch.drain(..) {
                let Ok(id) = usize::try_from(id) else { continue };
                if let ControlFlow::Break(enough) = each(id, result.map_err(failure)).await {
                    return Some(enough);
                }
            }
            buffer = batch;
            if !matches!(read, StreamResult::Complete(_)) {
                return None;
            }
        }
    });
    match select(receive, send).await {
        Either::Left((result, _)) => result,
        Either::Right(((), receive)) => receive.await,
    }
}

fn none() -> Failure {
    Failure::Unavailable("inference ended without an answer".to_owned())
}

fn lost<T>() -> Result<T, StepFailure> {
    Err(StepFailure::from(&none()))
}

fn wrong(error: InputError) -> StepFailure {
    StepFailure::last("invalid_input", error.to_string())
}
