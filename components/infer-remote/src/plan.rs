//! Items as requests, and the types of `weir:stream/types` as codec's and core's.

use weir_codec::inference::{
    models::Model,
    output::{Entity, Output},
    remote,
    request::LINE_BYTES_MAX,
    task::{Activation, Aggregation, Parameters, Side, Task},
};
use weir_core::failure::Failure;

use crate::bindings::weir::stream::types as wire;

/// By how many tokens windows overlap where sentences were asked for.
const STRIDE_TOKENS: u32 = 32;

/// How an item is asked for.
pub(crate) enum Ask {
    /// A line of a stream with this path and query.
    Line(String),
    /// A request of its own with this path, query and body.
    Whole(String, Vec<u8>),
    /// A request for a summary, with this body.
    Summary(Vec<u8>),
}

/// How an item is asked for.
///
/// # Errors
/// When the HTTP interface cannot ask for it.
pub(crate) fn ask(id: u64, item: &wire::Item) -> Result<(Ask, Vec<u8>), Failure> {
    let refused = |what: &str| Failure::InvalidInput(what.to_owned());
    let mut parameters = Parameters::default();
    let task = match &item.task {
        wire::Task::Classify(options) => {
            parameters.top_k = options.top_k;
            parameters.activation = options.activation.map(activation);
            Task::Classify
        }
        wire::Task::Tokens(options) => {
            parameters.aggregation = Some(aggregation(options.aggregation));
            parameters.ignore_labels = Some(options.ignore_labels.clone());
            parameters.stride = match item.overflow {
                wire::Overflow::Split => Some(options.stride.unwrap_or(STRIDE_TOKENS)),
                _ => None,
            };
            Task::Tokens
        }
        wire::Task::Embed(options) => {
            parameters.normalize = Some(options.normalize);
            Task::Embed
        }
        wire::Task::Summarize(_) => return Ok((Ask::Summary(remote::summary_body(&item.text)), Vec::new())),
    };
    match item.overflow {
        wire::Overflow::Fail => parameters.truncation = Some(false),
        wire::Overflow::Truncate => parameters.truncation = Some(true),
        wire::Overflow::TruncateLeft => {
            parameters.truncation = Some(true);
            parameters.truncation_direction = Some(Side::Left);
        }
        wire::Overflow::Split if task == Task::Tokens => {}
        wire::Overflow::Split => return Err(refused("only `tokens` and `summarize` accept `split`")),
    }
    let target = remote::target(task, &item.model, &parameters);
    let pair = item.text_pair.as_deref();
    let line = remote::line(id, &item.text, pair);
    if line.len() > LINE_BYTES_MAX {
        return Ok((Ask::Whole(target, remote::body(id, &item.text, pair)), Vec::new()));
    }
    Ok((Ask::Line(target), line))
}

fn activation(activation: wire::Activation) -> Activation {
    match activation {
        wire::Activation::Softmax => Activation::Softmax,
        wire::Activation::Sigmoid => Activation::Sigmoid,
        wire::Activation::Identity => Activation::None,
    }
}

fn aggregation(aggregation: wire::Aggregation) -> Aggregation {
    match aggregation {
        wire::Aggregation::None => Aggregation::None,
        wire::Aggregation::Simple => Aggregation::Simple,
        wire::Aggregation::First => Aggregation::First,
        wire::Aggregation::Average => Aggregation::Average,
        wire::Aggregation::Max => Aggregation::Max,
    }
}

/// The outcome of an item. Its tokens are not known.
pub(crate) fn outcome(id: u64, result: Result<wire::Output, Failure>) -> wire::Outcome {
    wire::Outcome { id, tokens: 0, result: result.map_err(failure) }
}

/// An output as the WIT has it.
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

/// A model as the WIT has it.
pub(crate) fn model(model: Model) -> wire::ModelInfo {
    let kind = match Task::of_kind(model.kind) {
        Some(Task::Classify) => wire::ModelKind::TextClassification,
        Some(Task::Tokens) => wire::ModelKind::TokenClassification,
        Some(Task::Embed) | None => wire::ModelKind::FeatureExtraction,
    };
    wire::ModelInfo { name: model.name, kind, labels: model.labels, tokens_max: model.tokens_max, ready: model.ready }
}
