//! Texts as items of `weir:stream/infer`, and the answers that come whole.

use std::pin::pin;

use futures::future::{Either, select};
use weir_codec::{
    http::problem::Problem,
    inference::{
        output::{Entity, ItemError, Label, Output},
        request::Input,
        task::{Activation, Aggregation, Parameters, Side, Task},
    },
};
use weir_core::{failure::Failure, process::Now};
use wit_bindgen::rt::async_support::StreamResult;

use crate::{
    bindings::{
        weir::stream::{
            infer,
            types::{self as wire, Item, Outcome, WhenFull},
        },
        wit_stream,
    },
    clock::{self, Deadline},
    infer::{OUTCOMES_MAX, failure},
    settings::Settings,
};

/// What is done with every text of a request.
pub(crate) struct Plan {
    pub(crate) task: Task,
    pub(crate) model: String,
    pub(crate) parameters: Parameters,
    pub(crate) when_full: WhenFull,
    /// Time that an item has; none: as long as it must.
    pub(crate) deadline_ms: Option<u32>,
}

impl Plan {
    /// A plan with the model that the request names, or the one that is configured. An item of it waits for room as
    /// long as it must.
    pub(crate) fn new(task: Task, model: Option<String>, parameters: Parameters, settings: &Settings) -> Self {
        let model = model.unwrap_or_else(|| match task {
            Task::Classify => settings.sentiment_model.clone(),
            Task::Tokens => settings.entities_model.clone(),
            Task::Embed => settings.summary_model.clone(),
        });
        let deadline_ms = parameters.timeout_ms;
        Self { task, model, parameters, when_full: WhenFull::Wait, deadline_ms }
    }

    /// No item may take longer than what is left of the request's time.
    pub(crate) fn within(self, settings: &Settings, began: Now) -> Self {
        let passed_ms = clock::now().monotonic_ns.saturating_sub(began.monotonic_ns) / 1_000_000;
        let left_ms = settings.request_timeout_ms.saturating_sub(passed_ms).max(1);
        let left_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
        Self { deadline_ms: Some(self.deadline_ms.map_or(left_ms, |ms| ms.min(left_ms))), ..self }
    }

    /// An item that there is no room for fails at once.
    pub(crate) fn or_fail(self) -> Self {
        Self { when_full: WhenFull::Fail, ..self }
    }

    /// The item of a text.
    pub(crate) fn item(&self, id: u64, input: Input) -> Item {
        let parameters = &self.parameters;
        let task = match self.task {
            Task::Classify => {
                let activation = parameters.activation.map(|activation| match activation {
                    Activation::Softmax => wire::Activation::Softmax,
                    Activation::Sigmoid => wire::Activation::Sigmoid,
                    Activation::None => wire::Activation::Identity,
                });
                wire::Task::Classify(wire::ClassifyOptions { top_k: parameters.top_k, activation })
            }
            Task::Tokens => {
                let aggregation = match parameters.aggregation.unwrap_or(Aggregation::None) {
                    Aggregation::None => wire::Aggregation::None,
                    Aggregation::Simple => wire::Aggregation::Simple,
                    Aggregation::First => wire::Aggregation::First,
                    Aggregation::Average => wire::Aggregation::Average,
                    Aggregation::Max => wire::Aggregation::Max,
                };
                let ignore_labels = parameters.ignore_labels.clone().unwrap_or_else(|| vec!["O".to_owned()]);
                wire::Task::Tokens(wire::TokenOptions { aggregation, ignore_labels, stride: parameters.stride })
            }
            Task::Embed => wire::Task::Embed(wire::EmbedOptions { normalize: parameters.normalize.unwrap_or(true) }),
        };
        let overflow = match parameters.truncation_direction {
            _ if parameters.stride.is_some() && self.task == Task::Tokens => wire::Overflow::Split,
            _ if !parameters.cuts(self.task) => wire::Overflow::Fail,
            Some(Side::Left) => wire::Overflow::TruncateLeft,
            Some(Side::Right) | None => wire::Overflow::Truncate,
        };
        Item {
            id,
            model: self.model.clone(),
            text: input.text,
            text_pair: input.text_pair,
            overflow,
            deadline_ms: self.deadline_ms,
            when_full: self.when_full,
            task,
        }
    }
}

/// What became of an item, in the words of the codec.
pub(crate) fn result(result: Result<wire::Output, wire::Failure>) -> Result<Output, Failure> {
    output(result.map_err(failure))
}

/// The same, of a failure in the words of core.
pub(crate) fn output(result: Result<wire::Output, Failure>) -> Result<Output, Failure> {
    match result? {
        wire::Output::Labels(labels) => {
            let label = |wire::LabelScore { label, score }| Label { label, score };
            Ok(Output::Labels(labels.into_iter().map(label).collect()))
        }
        wire::Output::Entities(entities) => {
            let entity = |e: wire::Entity| Entity::new(e.label, e.score, e.index, (e.word, e.text), (e.start, e.end));
            Ok(Output::Entities(entities.into_iter().map(entity).collect()))
        }
        wire::Output::Embedding(embedding) => Ok(Output::Embedding(embedding)),
        wire::Output::Summary(_) => Err(Failure::Other("the model answered with a summary".to_owned())),
    }
}

/// The results of all texts in their order, or the problem that stopped them.
///
/// A failure that may pass is the request's: it should come again whole. Any other belongs to its text; when there is
/// only one text, that is the request's too.
pub(crate) async fn whole(
    plan: &Plan,
    inputs: Vec<Input>,
    settings: &Settings,
    began: Now,
) -> Result<Vec<Result<Output, ItemError>>, Problem> {
    let alone = inputs.len() == 1;
    let deadline = Deadline::after(began, settings.request_timeout_ms);
    let results = deadline.bound(run(plan, inputs)).await;
    let results = results.ok_or_else(|| Problem::request_timeout(settings.request_timeout_ms))?;
    let judge = |result: Result<Output, Failure>| match result {
        Err(failure) if alone || failure.retryable() => Err(Problem::item(&failure)),
        Err(failure) => Ok(Err(ItemError::from(&failure))),
        Ok(output) => Ok(Ok(output)),
    };
    results.into_iter().map(judge).collect()
}

/// The results of all texts, or the problem of the first that failed.
pub(crate) async fn all(
    plan: &Plan,
    inputs: Vec<Input>,
    settings: &Settings,
    began: Now,
) -> Result<Vec<Output>, Problem> {
    let deadline = Deadline::after(began, settings.request_timeout_ms);
    let results = deadline.bound(run(plan, inputs)).await;
    let results = results.ok_or_else(|| Problem::request_timeout(settings.request_timeout_ms))?;
    results.into_iter().map(|result| result.map_err(|failure| Problem::item(&failure))).collect()
}

/// One call of `run` with all texts. When one fails and may succeed later, the others are given up.
async fn run(plan: &Plan, inputs: Vec<Input>) -> Vec<Result<Output, Failure>> {
    let lost = || Err(Failure::Unavailable("inference ended without an answer".to_owned()));
    let mut results: Vec<Result<Output, Failure>> = inputs.iter().map(|_| lost()).collect();
    let mut owed = inputs.len();
    if owed == 0 {
        return results;
    }
    let items: Vec<Item> = (0..).zip(inputs).map(|(id, input)| plan.item(id, input)).collect();
    {
        let (mut writer, reader) = wit_stream::new::<Item>();
        let send = pin!(async move {
            // What is left over was refused by a reader that is gone; the outcomes, or their absence, say the rest.
            writer.write_all(items).await;
            drop(writer);
        });
        let receive = pin!(async {
            let mut outcomes = infer::run(reader).await;
            let mut buffer = Vec::with_capacity(owed.min(OUTCOMES_MAX));
            while owed > 0 {
                let (read, mut batch) = outcomes.read(buffer).await;
                for Outcome { id, result: outcome, .. } in batch.drain(..) {
                    let Some(place) = usize::try_from(id).ok().and_then(|id| results.get_mut(id)) else { continue };
                    *place = result(outcome);
                    owed = owed.saturating_sub(1);
                    if place.as_ref().is_err_and(Failure::retryable) {
                        // It stands for the whole request, wherever it is.
                        let failure = std::mem::replace(place, lost());
                        results.clear();
                        results.push(failure);
                        return;
                    }
                }
                buffer = batch;
                if !matches!(read, StreamResult::Complete(_)) {
                    return;
                }
            }
        });
        if let Either::Right(((), receive)) = select(receive, send).await {
            receive.await;
        }
    }
    results
}
