//! The gateway's side of `weir:stream/infer`: work out, answers in.

use std::{cell::RefCell, ops::ControlFlow, pin::pin};

use futures::future::{Either, select};
use weir_codec::inference::models::Model;
use weir_core::{
    failure::Failure,
    process::{Answer, Process, Span, Step, Work},
};
use wit_bindgen::rt::async_support::StreamResult;

use crate::{
    bindings::{
        weir::stream::{
            infer,
            types::{
                Aggregation, ClassifyOptions, Entity, Failure as WireFailure, Item, ModelKind, Outcome, Output,
                Overflow, SummaryOptions, Task, TokenOptions, WhenFull,
            },
        },
        wit_stream,
    },
    settings::Settings,
};

/// The bounds of a summary, in tokens.
pub(crate) const SUMMARY_TOKENS: (u32, u32) = (30, 130);
/// Most outcomes taken at once.
pub(crate) const OUTCOMES_MAX: usize = 32;

/// Hands all of a process's work to inference in one stream, so that it can be batched, and brings the answers back.
/// Calls `answered` after each arrival; stops when that says so, and when inference has no more to say. Whatever was
/// left open then has failed.
///
/// Dropping the future drops both streams: inference skips what it has not computed.
pub(crate) async fn exchange(
    process: &RefCell<Process>,
    settings: &Settings,
    mut answered: impl FnMut() -> ControlFlow<()>,
) {
    let mut items = Vec::new();
    while let Some(work) = process.borrow_mut().poll_work() {
        items.push(item(work, settings));
    }
    if !items.is_empty() {
        run(items, process, &mut answered).await;
    }
    process.borrow_mut().handle_end(&Failure::Unavailable("inference ended without an answer".to_owned()));
    let _ = answered();
}

/// One call of `run`: all items in, outcomes out until there are no more or nobody wants them.
async fn run(items: Vec<Item>, process: &RefCell<Process>, answered: &mut impl FnMut() -> ControlFlow<()>) {
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
            let (result, mut batch) = outcomes.read(buffer).await;
            for Outcome { id, result, .. } in batch.drain(..) {
                process.borrow_mut().handle_answer(id, result.map_err(failure).and_then(answer));
            }
            buffer = batch;
            if answered().is_break() || !matches!(result, StreamResult::Complete(_)) {
                break;
            }
        }
    });
    if let Either::Right(((), receive)) = select(receive, send).await {
        receive.await;
    }
}

/// The models that are served.
pub(crate) async fn models() -> Vec<Model> {
    let kind = |kind| match kind {
        ModelKind::TextClassification => "text-classification",
        ModelKind::TokenClassification => "token-classification",
        ModelKind::FeatureExtraction => "feature-extraction",
    };
    let model = |info: infer::ModelInfo| Model {
        name: info.name,
        kind: kind(info.kind),
        labels: info.labels,
        tokens_max: info.tokens_max,
        ready: info.ready,
    };
    infer::models().await.into_iter().map(model).collect()
}

/// What inference is asked for a piece of work.
pub(crate) fn item(work: Work<'_>, settings: &Settings) -> Item {
    let (model, overflow, task) = match work.step {
        Step::Sentiment => {
            let options = ClassifyOptions { top_k: Some(1), activation: None };
            (&settings.sentiment_model, Overflow::Truncate, Task::Classify(options))
        }
        Step::Summarization => {
            let (tokens_min, tokens_max) = SUMMARY_TOKENS;
            let options = SummaryOptions { tokens_min, tokens_max };
            (&settings.summary_model, Overflow::Split, Task::Summarize(options))
        }
        Step::Entities => {
            // A word takes the label of its first piece. `simple` would let the pieces of a word disagree and cut a
            // name in two; `average` would weigh the B- of the first piece against the I- of the others.
            let options =
                TokenOptions { aggregation: Aggregation::First, ignore_labels: vec!["O".to_owned()], stride: None };
            (&settings.entities_model, Overflow::Split, Task::Tokens(options))
        }
    };
    Item {
        id: work.id,
        model: model.clone(),
        text: work.text.to_owned(),
        text_pair: None,
        overflow,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        task,
    }
}

/// An answer in the words of `core`.
pub(crate) fn answer(output: Output) -> Result<Answer, Failure> {
    match output {
        Output::Labels(labels) => match labels.into_iter().next() {
            Some(best) => Ok(Answer::Label { label: best.label, score: best.score }),
            None => Err(Failure::Other("the model gave no label".to_owned())),
        },
        Output::Summary(summary) => Ok(Answer::Summary(summary)),
        Output::Entities(entities) => {
            let span = |entity: Entity| Span { label: entity.label, start: entity.start, end: entity.end };
            Ok(Answer::Entities(entities.into_iter().map(span).collect()))
        }
        Output::Embedding(_) => Err(Failure::Other("the model answered with an embedding".to_owned())),
    }
}

/// A failure in the words of `core`.
pub(crate) fn failure(failure: WireFailure) -> Failure {
    match failure {
        WireFailure::InvalidInput(reason) => Failure::InvalidInput(reason),
        WireFailure::UnknownModel(name) => Failure::UnknownModel(name),
        WireFailure::TooLong(counts) => Failure::TooLong { tokens: counts.tokens, tokens_max: counts.tokens_max },
        WireFailure::Overloaded(retry_after_ms) => Failure::Overloaded { retry_after_ms },
        WireFailure::Throttled(retry_after_ms) => Failure::Throttled { retry_after_ms },
        WireFailure::CircuitOpen(retry_after_ms) => Failure::CircuitOpen { retry_after_ms },
        WireFailure::Unavailable(reason) => Failure::Unavailable(reason),
        WireFailure::DeadlineExceeded => Failure::DeadlineExceeded,
        WireFailure::Engine(reason) => Failure::Engine(reason),
        WireFailure::Other(reason) => Failure::Other(reason),
    }
}
