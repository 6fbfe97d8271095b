//! The gateway's side of `weir:stream/infer`: items of texts, and outputs in core's types.

use weir_codec::inference::models::Model;
use weir_core::{
    failure::Failure,
    process::{Answer, Span, Step},
};

use crate::{
    bindings::weir::stream::{
        infer,
        types::{
            Aggregation, ClassifyOptions, Entity, Failure as WireFailure, Item, ModelKind, Output, Overflow,
            SummaryOptions, Task, TokenOptions, WhenFull,
        },
    },
    settings::Settings,
};

/// The bounds of a summary, in tokens.
pub(crate) const SUMMARY_TOKENS: (u32, u32) = (30, 130);
/// Most outcomes taken at once.
pub(crate) const OUTCOMES_MAX: usize = 32;

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

/// The item of a step: its task, model and text.
pub(crate) fn item(id: u64, step: Step, text: &str, settings: &Settings) -> Item {
    let (model, overflow, task) = match step {
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
        id,
        model: model.clone(),
        text: text.to_owned(),
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
