//! Running a step of each kind.

use std::{ops::ControlFlow, rc::Rc};

use weir_codec::{
    pipelines::{
        input::{self, InputError},
        output::{self, Embeddings, Sentiments, StepOutput},
    },
    transcripts::{config::SessionRequest, semantic::TextInput},
};
use weir_core::{
    failure::Failure,
    inference::{
        rewrite::{SummaryMode, SummaryText},
        text_step::{TextStep, unexpected},
    },
    pipelines::{Inputs, Json, Kind, ReportError, RunRequest, StepFailure},
    wording::counted,
};
use weir_expression::{Bounds, Expression, Input};

use super::{Pipelines, attempt::Attempt, component, http, running::RunningExecution};
use crate::{
    generation::rewrite::rewrite,
    inference::{
        client::{exchange, no_outcome},
        convert::text_output,
        requests::{embedding_item, text_item},
    },
    platform::{
        bindings::weir::stream::{
            steps::Limits,
            types::{Item, Output},
        },
        clock,
        settings::Settings,
        turns,
    },
    transcripts::one_shot,
};

/// Maximum number of texts annotated in one turn.
const ANNOTATED_MAX: usize = 64;
/// Maximum number of vectors written in one turn.
const VECTORS_MAX: usize = 64;

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
            None => {
                let bytes = inputs.steps.iter().map(|(_, output)| output.bytes()).sum();
                self.compute(bytes, || inputs.default_json()).await
            }
            Some(expression) => self.evaluate(expression, inputs).await?,
        };
        match &self.task.kind {
            Kind::Chunk { chunk_size } => {
                let text = self.text(&input).await?;
                Ok(self.compute(text.len(), || output::chunks(&text, *chunk_size)).await)
            }
            Kind::Map { expression } => self.evaluate(expression, &input).await,
            Kind::Annotate => self.annotate(&input).await,
            Kind::Generate { .. } => self.generate(&input).await,
            Kind::Sentiment { model } => self.sentiment(&input, model.as_deref()).await,
            Kind::Summary { model, mode } => self.summary(&input, model.as_deref(), *mode).await,
            Kind::Entities { model } => self.entities(&input, model.as_deref()).await,
            Kind::Embed { model, normalize } => self.embed(&input, model.as_deref(), *normalize).await,
            Kind::Http { url, method, headers, body } => {
                let body = match body {
                    Some(expression) => Some(self.evaluate(expression, &input).await?),
                    None => (*method != weir_core::pipelines::Method::Get).then_some(input),
                };
                http::call(self, url, *method, headers, body).await
            }
            Kind::Component { path, memory_bytes_max, deadline_ms, config } => {
                let bytes_max = self.pipelines.config.output_bytes_max;
                let limits = Limits { memory_bytes_max: *memory_bytes_max, deadline_ms: *deadline_ms };
                component::run(path, &input, config, limits, bytes_max, &self.running.owner).await
            }
        }
    }

    /// Runs a computation over the given number of bytes, in a turn of the user if they are many.
    async fn compute<T>(&self, bytes: usize, slice: impl FnOnce() -> T) -> T {
        turns::run_over(&self.running.owner, bytes, slice).await
    }

    /// The text of the input of the step.
    async fn text(&self, input: &Json) -> Result<String, StepFailure> {
        self.compute(input.bytes(), || input::text(input)).await.map_err(invalid_input)
    }

    /// The texts of the input of the step.
    async fn texts(&self, input: &Json) -> Result<Vec<String>, StepFailure> {
        self.compute(input.bytes(), || input::texts(input)).await.map_err(invalid_input)
    }

    /// Evaluates an expression, one turn for each slice.
    pub(super) async fn evaluate<'a>(
        &self,
        expression: &str,
        input: impl Into<Input<'a>>,
    ) -> Result<Json, StepFailure> {
        let mut slices = turns::Slices::begin(&self.running.owner).await;
        let failed = |error: String| StepFailure::last("expression_failed", error);
        // The definition was checked when it was read, so this does not fail.
        let expression = Expression::parse(expression).map_err(|error| failed(error.to_string()))?;
        let bounds = Bounds { output_bytes_max: self.pipelines.config.output_bytes_max, ..Bounds::default() };
        let result = expression.evaluate_in_slices(input, bounds, async || slices.pause().await).await;
        result.map_err(|error| failed(error.to_string()))
    }

    async fn sentiment(&self, input: &Json, model: Option<&str>) -> Result<Json, StepFailure> {
        let texts = self.texts(input).await?;
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
                            &format!("{sent} of {}", counted(count, "text")),
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
        let text = self.text(input).await?;
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
        Ok(self.compute(text.len(), || output::summary(summary, &text)).await)
    }

    async fn entities(&self, input: &Json, model: Option<&str>) -> Result<Json, StepFailure> {
        let text = self.text(input).await?;
        let item = self.item(0, TextStep::Entities, &text, model);
        let result = exchange(vec![item], async |_, result: Result<Output, Failure>| ControlFlow::Break(result)).await;
        let outcome = result.unwrap_or_else(|| Err(no_outcome())).and_then(text_output);
        let entities = self.compute(text.len(), || output::entities(outcome, &text)).await;
        entities.map_err(|failure| StepFailure::from(&failure))
    }

    async fn embed(&self, input: &Json, model: Option<&str>, normalize: bool) -> Result<Json, StepFailure> {
        let texts = self.texts(input).await?;
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
                self.running.progress(
                    self.run,
                    done as f64 / count as f64,
                    &format!("{done} of {}", counted(count, "text")),
                );
                if missing == 0 { ControlFlow::Break(Ok(())) } else { ControlFlow::Continue(()) }
            });
            result.await.unwrap_or_else(|| Err(no_outcome())).map_err(|failure| StepFailure::from(&failure))?;
        }
        self.embeddings(&vectors).await
    }

    /// The output with these vectors, each of which is written in a turn of the user.
    async fn embeddings(&self, vectors: &[Vec<f32>]) -> Result<Json, StepFailure> {
        let bytes_max = self.pipelines.config.output_bytes_max;
        let mut embeddings = Embeddings::default();
        for vectors in vectors.chunks(VECTORS_MAX) {
            let values = vectors.iter().map(Vec::len).sum::<usize>();
            self.compute(values * size_of::<f32>(), || embeddings.push(vectors)).await;
            let bytes = embeddings.bytes();
            if bytes > bytes_max {
                let error = ReportError::TooLarge { bytes, bytes_max };
                return Err(StepFailure::last("output_too_large", error.to_string()));
            }
        }
        Ok(embeddings.finish())
    }

    async fn annotate(&self, input: &Json) -> Result<Json, StepFailure> {
        let texts = self.texts(input).await?;
        let request = SessionRequest::annotate_from_query("")
            .map_err(|error| StepFailure::last("internal", error.to_string()))?;
        let texts: Vec<TextInput> =
            texts.into_iter().map(|text| TextInput { text, speaker_id: None, segment_id: None }).collect();
        let config = one_shot::config(&request);
        let mut annotations = Vec::with_capacity(texts.len());
        for texts in texts.chunks(ANNOTATED_MAX) {
            // The session component computes without awaiting, so the turn covers all of it.
            let turn = turns::take(&self.running.owner).await;
            let block = one_shot::annotate(&config, texts.iter()).await;
            drop(turn);
            annotations
                .extend(block.ok_or_else(|| StepFailure::last("internal", "the session component does not annotate"))?);
        }
        Ok(self.compute(input.bytes(), || output::annotations(request.parts(), &texts, &annotations)).await)
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

fn lost<T>() -> Result<T, StepFailure> {
    Err(StepFailure::from(&no_outcome()))
}

fn invalid_input(error: InputError) -> StepFailure {
    StepFailure::last("invalid_input", error.to_string())
}
