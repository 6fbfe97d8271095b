//! Running a step of each kind.

use std::{ops::ControlFlow, rc::Rc};

use weir_codec::{
    pipelines::{
        input::{self, InputError},
        output::{self, Sentiments, StepOutput},
    },
    transcripts::{config::SessionRequest, semantic::TextInput},
};
use weir_core::{
    failure::Failure,
    inference::{
        rewrite::{SummaryMode, SummaryText},
        text_step::{TextStep, unexpected},
    },
    pipelines::{Inputs, Json, Kind, RunRequest, StepFailure},
};
use weir_expression::{Bounds, Expression};

use super::{Pipelines, attempt::Attempt, component, http, running::RunningExecution};
use crate::{
    generation::rewrite::rewrite,
    inference::{
        client::{exchange, no_outcome},
        convert::text_output,
        requests::{embedding_item, text_item},
    },
    platform::{
        bindings::weir::stream::types::{Item, Output},
        clock,
        settings::Settings,
        turns,
    },
    transcripts::one_shot,
};

/// Maximum number of texts annotated in one turn.
const ANNOTATED_MAX: usize = 64;

/// Runs a step, or a compensation, once and reports its result.
pub(super) async fn run(pipelines: &'static Pipelines, running: Rc<RunningExecution>, request: RunRequest) {
    let (definition, id) = {
        let execution = running.execution.borrow();
        (execution.definition().clone(), execution.id().clone())
    };
    let Some(task) = definition.task(request.run.place) else { return };
    let attempt = Attempt { pipelines, running: &running, task, run: request.run, key: format!("{id}.{}", task.id) };
    let result = attempt.run(&request.inputs).await;
    let now = clock::now();
    let mut execution = running.execution.borrow_mut();
    match result {
        Ok(output) => execution.handle_finished(now, request.run, output),
        Err(failure) => execution.handle_failed(now, request.run, failure),
    }
    drop(execution);
    running.changed.notify();
}

impl Attempt<'_> {
    async fn run(&self, inputs: &Inputs) -> Result<Json, StepFailure> {
        let input = match &self.task.input {
            None => inputs.default_json(),
            Some(expression) => self.evaluate(expression, || inputs.context_json()).await?,
        };
        match &self.task.kind {
            Kind::Chunk { chunk_size } => Ok(output::chunks(&input::text(&input).map_err(invalid_input)?, *chunk_size)),
            Kind::Map { expression } => self.evaluate(expression, || input).await,
            Kind::Annotate => annotate(&self.running.owner, &input).await,
            Kind::Generate { .. } => self.generate(&input).await,
            Kind::Sentiment { model } => self.sentiment(&input, model.as_deref()).await,
            Kind::Summary { model, mode } => self.summary(&input, model.as_deref(), *mode).await,
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

    /// Evaluates an expression over the value of `over`, one turn for each slice.
    pub(super) async fn evaluate(&self, expression: &str, over: impl FnOnce() -> Json) -> Result<Json, StepFailure> {
        let user = &self.running.owner;
        let mut turn = Some(turns::take(user).await);
        let over = over();
        let failed = |error: String| StepFailure::last("expression_failed", error);
        // The definition was checked when it was read, so this does not fail.
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
        let texts = input::texts(input).map_err(invalid_input)?;
        let count = texts.len();
        let mut sentiments = Sentiments::new(count);
        let items = texts.iter().zip(0..).map(|(text, id)| self.item(id, TextStep::Sentiment, text, model)).collect();
        let mut sent = 0;
        let mut drain = async |sentiments: &mut Sentiments| {
            while let Some(step_output) = sentiments.poll() {
                match step_output {
                    StepOutput::Part(part) => {
                        sent += 1;
                        self.running.progress(
                            self.run,
                            sent as f64 / count as f64,
                            &format!("{sent} of {count} texts"),
                        );
                        if let Err(failure) = self.running.part(self.run, part).await {
                            return Some(Err(failure));
                        }
                    }
                    StepOutput::Finished(output) => return Some(Ok(output)),
                    StepOutput::Failed(failure) => return Some(Err(StepFailure::from(&failure))),
                }
            }
            None
        };
        if let Some(result) = drain(&mut sentiments).await {
            return result;
        }
        let result = exchange(items, async |id, result: Result<Output, Failure>| {
            let Ok(chunk) = usize::try_from(id) else { return ControlFlow::Continue(()) };
            sentiments.handle_outcome(chunk, result.and_then(text_output));
            match drain(&mut sentiments).await {
                Some(result) => ControlFlow::Break(result),
                None => ControlFlow::Continue(()),
            }
        });
        result.await.unwrap_or_else(lost)
    }

    async fn summary(&self, input: &Json, model: Option<&str>, mode: Option<SummaryMode>) -> Result<Json, StepFailure> {
        let text = input::text(input).map_err(invalid_input)?;
        let item = self.item(0, TextStep::Summarization, &text, model);
        let result = exchange(vec![item], async |_, result: Result<Output, Failure>| ControlFlow::Break(result)).await;
        let sentences = output::sentences(result.unwrap_or_else(|| Err(no_outcome())).and_then(text_output));
        let sentences = sentences.map_err(|failure| StepFailure::from(&failure))?;
        let summary = match mode {
            Some(SummaryMode::Abstractive) => {
                // The sentences are the answer where this takes too long.
                let timeout_ms = self.task.timeout_ms.min(self.settings().request_timeout_ms) / 2;
                rewrite(sentences, timeout_ms).await
            }
            mode => SummaryText { mode, ..SummaryText::new(sentences) },
        };
        Ok(output::summary(summary, &text))
    }

    async fn entities(&self, input: &Json, model: Option<&str>) -> Result<Json, StepFailure> {
        let text = input::text(input).map_err(invalid_input)?;
        let item = self.item(0, TextStep::Entities, &text, model);
        let result = exchange(vec![item], async |_, result: Result<Output, Failure>| ControlFlow::Break(result)).await;
        output::entities(result.unwrap_or_else(|| Err(no_outcome())).and_then(text_output), &text)
            .map_err(|failure| StepFailure::from(&failure))
    }

    async fn embed(&self, input: &Json, model: Option<&str>, normalize: bool) -> Result<Json, StepFailure> {
        let texts = input::texts(input).map_err(invalid_input)?;
        let count = texts.len();
        let item = |(id, text)| self.bounded(embedding_item(id, text, normalize, self.settings()), model);
        let items: Vec<Item> = (0..).zip(texts).map(item).collect();
        let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); count];
        let mut missing = count;
        if missing > 0 {
            let result = exchange(items, async |id, result: Result<Output, Failure>| {
                let vector = match result {
                    Ok(Output::Embedding(vector)) => vector,
                    Ok(other) => return ControlFlow::Break(Err(unexpected(text_output(other)))),
                    Err(failure) => return ControlFlow::Break(Err(failure)),
                };
                if let Some(slot) = usize::try_from(id).ok().and_then(|id| vectors.get_mut(id)) {
                    *slot = vector;
                    missing -= 1;
                }
                let done = count - missing;
                self.running.progress(self.run, done as f64 / count as f64, &format!("{done} of {count} texts"));
                if missing == 0 { ControlFlow::Break(Ok(())) } else { ControlFlow::Continue(()) }
            });
            result.await.unwrap_or_else(|| Err(no_outcome())).map_err(|failure| StepFailure::from(&failure))?;
        }
        Ok(output::embeddings(&vectors))
    }

    fn item(&self, id: u64, step: TextStep, text: &str, model: Option<&str>) -> Item {
        self.bounded(text_item(id, step, text.to_owned(), self.settings()), model)
    }

    /// An item with the model that the step names, if any, and the timeout of the attempt as its deadline.
    fn bounded(&self, item: Item, model: Option<&str>) -> Item {
        Item { model: model.map_or(item.model, str::to_owned), deadline_ms: self.deadline_ms(), ..item }
    }

    /// The timeout of the attempt, after which its outcomes are not needed.
    fn deadline_ms(&self) -> Option<u32> {
        u32::try_from(self.task.timeout_ms).ok()
    }

    fn settings(&self) -> &'static Settings {
        self.pipelines.settings
    }
}

async fn annotate(user: &str, input: &Json) -> Result<Json, StepFailure> {
    let texts = input::texts(input).map_err(invalid_input)?;
    let request =
        SessionRequest::annotate_from_query("").map_err(|error| StepFailure::last("internal", error.to_string()))?;
    let texts: Vec<TextInput> =
        texts.into_iter().map(|text| TextInput { text, speaker_id: None, segment_id: None }).collect();
    let config = one_shot::config(&request);
    let mut annotations = Vec::with_capacity(texts.len());
    for texts in texts.chunks(ANNOTATED_MAX) {
        // The session component computes without awaiting, so the turn covers all of it.
        let turn = turns::take(user).await;
        let block = one_shot::annotate(&config, texts.iter()).await;
        drop(turn);
        annotations
            .extend(block.ok_or_else(|| StepFailure::last("internal", "the session component does not annotate"))?);
    }
    Ok(output::annotations(request.parts(), &texts, &annotations))
}

fn lost<T>() -> Result<T, StepFailure> {
    Err(StepFailure::from(&no_outcome()))
}

fn invalid_input(error: InputError) -> StepFailure {
    StepFailure::last("invalid_input", error.to_string())
}
