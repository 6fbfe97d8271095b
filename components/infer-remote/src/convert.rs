//! All conversions between the types of `weir:stream/types` and those of codec and core.

use weir_codec::inference::{
    models::Model,
    output::{Entity, Output},
    task::{Activation, Aggregation, Task},
};
use weir_core::failure::Failure;

use crate::bindings::weir::stream::types as wire;

pub(crate) fn activation(activation: wire::Activation) -> Activation {
    match activation {
        wire::Activation::Softmax => Activation::Softmax,
        wire::Activation::Sigmoid => Activation::Sigmoid,
        wire::Activation::Identity => Activation::None,
    }
}

pub(crate) fn aggregation(aggregation: wire::Aggregation) -> Aggregation {
    match aggregation {
        wire::Aggregation::None => Aggregation::None,
        wire::Aggregation::Simple => Aggregation::Simple,
        wire::Aggregation::First => Aggregation::First,
        wire::Aggregation::Average => Aggregation::Average,
        wire::Aggregation::Max => Aggregation::Max,
    }
}

/// The outcome of an item.
pub(crate) fn outcome(id: u64, tokens: u32, result: Result<wire::Output, Failure>) -> wire::Outcome {
    wire::Outcome { id, tokens, result: result.map_err(failure) }
}

/// Converts an output to its WIT form.
pub(crate) fn output(output: Output) -> wire::Output {
    match output {
        Output::Labels(labels) => wire::Output::Labels(labels),
        Output::Entities(entities) => wire::Output::Entities(entities.into_iter().map(entity).collect()),
        Output::Embedding(embedding) => wire::Output::Embedding(embedding),
    }
}

fn entity(entity: Entity) -> wire::Entity {
    let Entity { entity_group, entity, score, index, word, text, start, end } = entity;
    let label = entity_group.or(entity).unwrap_or_default();
    wire::Entity { label, score, index, word, text, start, end }
}

fn failure(failure: Failure) -> wire::Failure {
    match failure {
        Failure::InvalidInput(reason) => wire::Failure::InvalidInput(reason),
        Failure::UnknownModel { name, .. } => wire::Failure::UnknownModel(name),
        Failure::TooLong { tokens, tokens_max } => wire::Failure::TooLong(wire::TooLong { tokens, tokens_max }),
        Failure::Overloaded { retry_after_ms } => wire::Failure::Overloaded(retry_after_ms),
        Failure::Throttled { retry_after_ms } => wire::Failure::Throttled(retry_after_ms),
        Failure::CircuitOpen { retry_after_ms } => wire::Failure::CircuitOpen(retry_after_ms),
        Failure::Unavailable(reason) => wire::Failure::Unavailable(reason),
        Failure::DeadlineExceeded | Failure::RequestTimeout { .. } => wire::Failure::DeadlineExceeded,
        Failure::Engine(reason) => wire::Failure::Engine(reason),
        Failure::Other(reason) => wire::Failure::Other(reason),
    }
}

/// Converts the description of a model to its WIT form.
pub(crate) fn model(model: Model) -> wire::ModelInfo {
    let kind = match Task::of_kind(model.kind) {
        Some(Task::Classify) => wire::ModelKind::TextClassification,
        Some(Task::Tokens) => wire::ModelKind::TokenClassification,
        Some(Task::Embed) | None => wire::ModelKind::FeatureExtraction,
    };
    let Model { name, labels, tokens_max, ready, reason, .. } = model;
    wire::ModelInfo { name, kind, labels, tokens_max, ready, reason }
}
