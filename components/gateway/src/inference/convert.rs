//! All conversions between the types of `weir:stream/types` and those of core and codec.

use weir_codec::inference::{
    models::Model,
    output::{Entity, Output},
    task::{Activation, Aggregation},
};
use weir_core::{
    failure::Failure,
    inference::text_step::{Span, TextOutput},
    wording::without_paths,
};

use crate::platform::bindings::weir::stream::types as wire;

/// A failure as core's.
pub(crate) fn failure(failure: wire::Failure) -> Failure {
    match failure {
        wire::Failure::InvalidInput(reason) => Failure::InvalidInput(reason),
        wire::Failure::UnknownModel(name) => Failure::UnknownModel { name, served: Vec::new() },
        wire::Failure::TooLong(counts) => Failure::TooLong { tokens: counts.tokens, tokens_max: counts.tokens_max },
        wire::Failure::Overloaded(retry_after_ms) => Failure::Overloaded { retry_after_ms },
        wire::Failure::Throttled(retry_after_ms) => Failure::Throttled { retry_after_ms },
        wire::Failure::CircuitOpen(retry_after_ms) => Failure::CircuitOpen { retry_after_ms },
        wire::Failure::Unavailable(reason) => Failure::Unavailable(reason),
        wire::Failure::DeadlineExceeded => Failure::DeadlineExceeded,
        wire::Failure::Engine(reason) => Failure::Engine(reason),
        wire::Failure::Other(reason) => Failure::Other(reason),
    }
}

/// An output as codec's.
pub(crate) fn output(output: wire::Output) -> Result<Output, Failure> {
    match output {
        wire::Output::Labels(labels) => Ok(Output::Labels(labels)),
        wire::Output::Entities(entities) => {
            let entity = |e: wire::Entity| Entity::new(e.label, e.score, e.index, (e.word, e.text), (e.start, e.end));
            Ok(Output::Entities(entities.into_iter().map(entity).collect()))
        }
        wire::Output::Embedding(embedding) => Ok(Output::Embedding(embedding)),
        wire::Output::Summary(_) => Err(Failure::Other("the model answered with a summary".to_owned())),
    }
}

/// The output of a step of a text as core's.
pub(crate) fn text_output(output: wire::Output) -> Result<TextOutput, Failure> {
    match output {
        wire::Output::Labels(labels) => match labels.into_iter().next() {
            Some(best) => Ok(TextOutput::Label { label: best.label, score: best.score }),
            None => Err(Failure::Other("the model gave no label".to_owned())),
        },
        wire::Output::Summary(summary) => Ok(TextOutput::Summary(summary)),
        wire::Output::Entities(entities) => {
            let span = |entity: wire::Entity| Span { label: entity.label, start: entity.start, end: entity.end };
            Ok(TextOutput::Entities(entities.into_iter().map(span).collect()))
        }
        wire::Output::Embedding(_) => Err(Failure::Other("the model answered with an embedding".to_owned())),
    }
}

/// A served model as codec's.
pub(super) fn model(info: wire::ModelInfo) -> Model {
    let kind = match info.kind {
        wire::ModelKind::TextClassification => "text-classification",
        wire::ModelKind::TokenClassification => "token-classification",
        wire::ModelKind::FeatureExtraction => "feature-extraction",
    };
    let wire::ModelInfo { name, labels, tokens_max, ready, reason, .. } = info;
    Model { name, kind, labels, tokens_max, ready, reason: reason.map(|reason| without_paths(&reason)) }
}

pub(super) fn activation(activation: Activation) -> wire::Activation {
    match activation {
        Activation::Softmax => wire::Activation::Softmax,
        Activation::Sigmoid => wire::Activation::Sigmoid,
        Activation::None => wire::Activation::Identity,
    }
}

pub(super) fn aggregation(aggregation: Aggregation) -> wire::Aggregation {
    match aggregation {
        Aggregation::None => wire::Aggregation::None,
        Aggregation::Simple => wire::Aggregation::Simple,
        Aggregation::First => wire::Aggregation::First,
        Aggregation::Average => wire::Aggregation::Average,
        Aggregation::Max => wire::Aggregation::Max,
    }
}
