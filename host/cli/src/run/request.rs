//! The request for every line.

use weir_runtime::types::{
    self, ClassifyOptions, EmbedOptions, Item, Overflow, SummaryOptions, TokenOptions, WhenFull,
};

use super::model::ModelTask;
use crate::arguments::{Aggregation, Run};

/// The bounds of a summary, in tokens.
const SUMMARY_TOKENS: std::ops::RangeInclusive<u32> = 30..=130;

/// What the items of all lines have in common.
pub(super) struct Request {
    model: String,
    overflow: Overflow,
    task: types::Task,
}

impl Request {
    pub(super) fn new(arguments: &Run, task: ModelTask, model: &str) -> Self {
        let overflow_policy = if arguments.no_truncation { Overflow::Fail } else { Overflow::Truncate };
        let (overflow, task) = match task {
            ModelTask::Sentiment => (
                overflow_policy,
                types::Task::Classify(ClassifyOptions { top_k: Some(arguments.top_k.unwrap_or(1)), activation: None }),
            ),
            ModelTask::Entities => {
                let aggregation = match arguments.aggregation {
                    Aggregation::None => types::Aggregation::None,
                    Aggregation::Simple => types::Aggregation::Simple,
                    Aggregation::First => types::Aggregation::First,
                    Aggregation::Average => types::Aggregation::Average,
                    Aggregation::Max => types::Aggregation::Max,
                };
                (
                    Overflow::Split,
                    types::Task::Tokens(TokenOptions { aggregation, ignore_labels: vec!["O".into()], stride: None }),
                )
            }
            ModelTask::Embed => (overflow_policy, types::Task::Embed(EmbedOptions { normalize: true })),
            ModelTask::Summary => {
                let (tokens_min, tokens_max) = SUMMARY_TOKENS.into_inner();
                (Overflow::Split, types::Task::Summarize(SummaryOptions { tokens_min, tokens_max }))
            }
        };
        Self { model: model.to_string(), overflow, task }
    }

    pub(super) fn item(&self, index: u64, text: String, text_pair: Option<String>) -> Item {
        Item {
            id: index,
            model: self.model.clone(),
            text,
            text_pair,
            overflow: self.overflow,
            deadline_ms: None,
            when_full: WhenFull::Wait,
            traceparent: None,
            task: self.task.clone(),
        }
    }
}
