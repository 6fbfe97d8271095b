//! All conversions between the types of core and codec and the records of `weir:stream/types` and `weir:stream/adapter`.

use weir_codec::{
    adapter::{
        config::{AdapterConfig, TaskKind},
        encode::Output,
    },
    inference::{output::Entity, task::Aggregation},
};
use weir_core::{
    adapter::{Destination, ResultRecord},
    failure::Failure,
    inference::text_step::TextStep,
};

use crate::{
    bindings::{exports::weir::stream::adapter as records, weir::stream::types as wire},
    transform::{ItemContent, ItemInput},
};

/// Minimum and maximum length of a summary, in tokens.
const SUMMARY_TOKENS: (u32, u32) = (30, 130);

/// Builds the item of an attempt. It waits for room when the queue is full.
pub fn item(config: &AdapterConfig, attempt: u64, input: ItemInput) -> wire::Item {
    let ItemInput { content, traceparent } = input;
    let traceparent = traceparent.map(|traceparent| (*traceparent).to_owned());
    let input = match content {
        ItemContent::Text(input) => input,
        ItemContent::Step(step, text) => return wire::Item { traceparent, ..step_item(config, attempt, step, text) },
    };
    let when_too_long = if config.truncation { wire::Overflow::Truncate } else { wire::Overflow::Fail };
    let (overflow, task) = match config.task {
        TaskKind::Classify => {
            (when_too_long, wire::Task::Classify(wire::ClassifyOptions { top_k: Some(config.top_k), activation: None }))
        }
        TaskKind::Tokens => {
            let aggregation = match config.aggregation {
                Aggregation::None => wire::Aggregation::None,
                Aggregation::Simple => wire::Aggregation::Simple,
                Aggregation::First => wire::Aggregation::First,
                Aggregation::Average => wire::Aggregation::Average,
                Aggregation::Max => wire::Aggregation::Max,
            };
            let options = wire::TokenOptions { aggregation, ignore_labels: vec!["O".to_owned()], stride: None };
            (wire::Overflow::Split, wire::Task::Tokens(options))
        }
        TaskKind::Embed => (when_too_long, wire::Task::Embed(wire::EmbedOptions { normalize: true })),
        // `annotate` is computed without a model, and the items of `transcript` are steps.
        TaskKind::Summarize | TaskKind::Annotate | TaskKind::Transcript => (wire::Overflow::Split, summarize()),
    };
    wire::Item {
        id: attempt,
        model: config.model.clone(),
        text: input.text,
        text_pair: input.text_pair,
        overflow,
        deadline_ms: None,
        when_full: wire::WhenFull::Wait,
        traceparent,
        task,
    }
}

/// Builds the item of a step of a transcript, as `/v1/transcript` does.
fn step_item(config: &AdapterConfig, attempt: u64, step: TextStep, text: String) -> wire::Item {
    let models = &config.transcript;
    let (model, overflow, task) = match step {
        TextStep::Sentiment => {
            let options = wire::ClassifyOptions { top_k: Some(1), activation: None };
            (&models.sentiment_model, wire::Overflow::Truncate, wire::Task::Classify(options))
        }
        TextStep::Entities => {
            let ignore_labels = vec!["O".to_owned()];
            let options = wire::TokenOptions { aggregation: wire::Aggregation::First, ignore_labels, stride: None };
            (&models.entities_model, wire::Overflow::Split, wire::Task::Tokens(options))
        }
        TextStep::Summarization => (&models.summary_model, wire::Overflow::Split, summarize()),
    };
    wire::Item {
        id: attempt,
        model: model.clone(),
        text,
        text_pair: None,
        overflow,
        deadline_ms: None,
        when_full: wire::WhenFull::Wait,
        traceparent: None,
        task,
    }
}

fn summarize() -> wire::Task {
    let (tokens_min, tokens_max) = SUMMARY_TOKENS;
    wire::Task::Summarize(wire::SummaryOptions { tokens_min, tokens_max })
}

/// Converts the result of an outcome.
pub fn result(result: Result<wire::Output, wire::Failure>) -> Result<Output, Failure> {
    let entity = |e: wire::Entity| Entity::new(e.label, e.score, e.index, (e.word, e.text), (e.start, e.end));
    match result {
        Ok(wire::Output::Labels(labels)) => Ok(Output::Labels(labels)),
        Ok(wire::Output::Entities(entities)) => Ok(Output::Entities(entities.into_iter().map(entity).collect())),
        Ok(wire::Output::Embedding(embedding)) => Ok(Output::Embedding(embedding)),
        Ok(wire::Output::Summary(summary)) => Ok(Output::Summary(summary)),
        Err(failure) => Err(core_failure(failure)),
    }
}

fn core_failure(failure: wire::Failure) -> Failure {
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

/// Converts a result record to its WIT form.
pub fn result_record(record: ResultRecord) -> records::ResultRecord {
    let ResultRecord { payload, key, headers, destination, origin, completes } = record;
    let destination = match destination {
        Destination::Output => records::Destination::Output,
        Destination::Error => records::Destination::Error,
        Destination::None => records::Destination::None,
    };
    records::ResultRecord { payload, key, headers, destination, origin, completes }
}
