//! The items that this component passes to inference: all of them are built here.

use weir_codec::{
    http::prefer::Prefer,
    inference::{
        request::Input,
        task::{Aggregation, Parameters, Side, Task},
    },
};
use weir_core::{inference::text_step::TextStep, time::Now};

use super::convert::{activation, aggregation};
use crate::platform::{
    bindings::weir::stream::types::{self as wire, Item, Overflow, WhenFull},
    clock,
    settings::Settings,
};

/// The bounds of a summary: minimum and maximum, in tokens.
const SUMMARY_TOKENS: (u32, u32) = (30, 130);

/// An item for the configured model of a step. It waits for room in the queue.
pub(crate) fn text_item(id: u64, step: TextStep, text: String, settings: &Settings) -> Item {
    let (model, overflow, task) = match step {
        TextStep::Sentiment => {
            let options = wire::ClassifyOptions { top_k: Some(1), activation: None };
            (&settings.sentiment_model, Overflow::Truncate, wire::Task::Classify(options))
        }
        TextStep::Summarization => {
            let (tokens_min, tokens_max) = SUMMARY_TOKENS;
            let options = wire::SummaryOptions { tokens_min, tokens_max };
            (&settings.summary_model, Overflow::Split, wire::Task::Summarize(options))
        }
        TextStep::Entities => {
            // A word has the label of its first piece. With `simple` the pieces of a word may disagree and cut a name in two; `average`
            // would weigh the B- of the first piece against the I- of the others.
            let ignore_labels = vec!["O".to_owned()];
            let options = wire::TokenOptions { aggregation: wire::Aggregation::First, ignore_labels, stride: None };
            (&settings.entities_model, Overflow::Split, wire::Task::Tokens(options))
        }
    };
    item(id, model.clone(), text, overflow, task)
}

/// An item for the configured model of embeddings. It waits for room in the queue.
pub(crate) fn embedding_item(id: u64, text: String, normalize: bool, settings: &Settings) -> Item {
    let task = wire::Task::Embed(wire::EmbedOptions { normalize });
    item(id, settings.summary_model.clone(), text, Overflow::Truncate, task)
}

fn item(id: u64, model: String, text: String, overflow: Overflow, task: wire::Task) -> Item {
    // The host adds the trace of the request.
    let (text_pair, deadline_ms, traceparent) = (None, None, None);
    Item { id, model, text, text_pair, overflow, deadline_ms, when_full: WhenFull::Wait, traceparent, task }
}

/// The task, the model and the bounds of every item of a request.
pub(crate) struct Plan {
    pub(crate) task: Task,
    pub(crate) model: String,
    pub(crate) parameters: Parameters,
    pub(crate) when_full: WhenFull,
    /// The lines of results have the number of tokens.
    pub(crate) token_counts: bool,
    /// The deadline of an item, in milliseconds from its arrival; without one it waits without a bound.
    pub(crate) deadline_ms: Option<u32>,
    /// The items have no more time than the request.
    pub(crate) is_within_request: bool,
}

impl Plan {
    /// A plan with the model that the request names, or the one that is configured. Its items wait for room in the queue.
    pub(crate) fn new(task: Task, model: Option<String>, parameters: Parameters, settings: &Settings) -> Self {
        let model = model.unwrap_or_else(|| match task {
            Task::Classify => settings.sentiment_model.clone(),
            Task::Tokens => settings.entities_model.clone(),
            Task::Embed => settings.summary_model.clone(),
        });
        let deadline_ms = parameters.timeout_ms;
        Self {
            task,
            model,
            parameters,
            when_full: WhenFull::Wait,
            token_counts: false,
            deadline_ms,
            is_within_request: false,
        }
    }

    /// Limits the deadline of its items to the remaining time of the request.
    pub(crate) fn within(self, settings: &Settings, began: Now) -> Self {
        let passed_ms = clock::monotonic_ns().saturating_sub(began.monotonic_ns) / 1_000_000;
        let left_ms = settings.request_timeout_ms.saturating_sub(passed_ms).max(1);
        let left_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
        let deadline_ms = Some(self.deadline_ms.map_or(left_ms, |ms| ms.min(left_ms)));
        Self { deadline_ms, is_within_request: true, ..self }
    }

    /// Makes items fail at once if the queue is full.
    pub(crate) fn or_fail(self) -> Self {
        Self { when_full: WhenFull::Fail, ..self }
    }

    /// Applies the preferences of a stream.
    pub(crate) fn preferring(self, prefer: Prefer) -> Self {
        let plan = if prefer.fails_when_full { self.or_fail() } else { self };
        Self { token_counts: prefer.token_counts, ..plan }
    }

    /// The item of a text.
    pub(crate) fn item(&self, id: u64, input: Input) -> Item {
        let parameters = &self.parameters;
        let task = match self.task {
            Task::Classify => {
                let activation = parameters.activation.map(activation);
                wire::Task::Classify(wire::ClassifyOptions { top_k: parameters.top_k, activation })
            }
            Task::Tokens => {
                let aggregation = aggregation(parameters.aggregation.unwrap_or(Aggregation::None));
                let ignore_labels = parameters.ignore_labels.clone().unwrap_or_else(|| vec!["O".to_owned()]);
                wire::Task::Tokens(wire::TokenOptions { aggregation, ignore_labels, stride: parameters.stride })
            }
            Task::Embed => wire::Task::Embed(wire::EmbedOptions { normalize: parameters.normalize.unwrap_or(true) }),
        };
        let overflow = match parameters.truncation_direction {
            _ if parameters.stride.is_some() && self.task == Task::Tokens => Overflow::Split,
            _ if !parameters.cuts(self.task) => Overflow::Fail,
            Some(Side::Left) => Overflow::TruncateLeft,
            Some(Side::Right) | None => Overflow::Truncate,
        };
        Item {
            id,
            model: self.model.clone(),
            text: input.text,
            text_pair: input.text_pair,
            overflow,
            deadline_ms: self.deadline_ms,
            when_full: self.when_full,
            traceparent: None,
            task,
        }
    }
}
