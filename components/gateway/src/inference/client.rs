//! The one client of `weir:stream/infer`.

use std::{cell::Cell, ops::ControlFlow, pin::pin};

use futures::future::{Either, select};
use weir_codec::{http::problem::Problem, inference::models::Model};
use weir_core::{failure::Failure, time::Now};
use wit_bindgen::rt::async_support::{StreamReader, StreamResult};

use super::convert::{failure, model};
use crate::platform::{
    bindings::{
        weir::stream::{
            infer,
            types::{Item, Outcome, Output},
        },
        wit_stream,
    },
    clock::{self, Deadline},
};

/// The timeout of the list of models, in milliseconds.
const MODELS_TIMEOUT_MS: u64 = 5000;
/// The most outcomes in one read.
const OUTCOMES_MAX: usize = 32;
/// The most items in one write.
const ITEMS_MAX: usize = 64;

/// The outcomes of one call.
pub(crate) struct Outcomes {
    outcomes: StreamReader<Outcome>,
    buffer: Vec<Outcome>,
    /// The names of the models that are served, once an outcome names a model that is not.
    served: Option<Vec<String>>,
    /// Tokens that were computed.
    tokens: u64,
}

impl Outcomes {
    /// Starts a call for a stream of items. Dropping the outcomes ends the call: items that are not computed yet are
    /// dropped.
    pub(crate) async fn begin(items: StreamReader<Item>) -> Self {
        Self { outcomes: infer::run(items).await, buffer: Vec::with_capacity(OUTCOMES_MAX), served: None, tokens: 0 }
    }

    /// Waits for outcomes and passes them to `on_outcome`, with the ids and the tokens of their items. False when there are no more.
    pub(crate) async fn next(&mut self, mut on_outcome: impl FnMut(u64, u32, Result<Output, Failure>)) -> bool {
        let (read, mut batch) = self.outcomes.read(std::mem::take(&mut self.buffer)).await;
        for Outcome { id, tokens, result } in batch.drain(..) {
            self.tokens += u64::from(tokens);
            let mut result = result.map_err(failure);
            if let Err(Failure::UnknownModel { name, served }) = &mut result
                && !name.is_empty()
            {
                served.clone_from(self.served_names().await);
            }
            on_outcome(id, tokens, result);
        }
        self.buffer = batch;
        matches!(read, StreamResult::Complete(_))
    }

    /// The names of the models that are served, read once per call; empty if they are not known in time.
    async fn served_names(&mut self) -> &Vec<String> {
        if self.served.is_none() {
            let models = served_models(clock::now()).await.unwrap_or_default();
            self.served = Some(models.into_iter().map(|model| model.name).collect());
        }
        self.served.get_or_insert_default()
    }
}

/// Passes items to inference in one call, so that they can be batched, and their outcomes to `on_outcome` until it breaks with a value;
/// none when all outcomes were passed before. Dropping the future ends the call.
pub(crate) async fn exchange<T>(
    items: Vec<Item>,
    on_outcome: impl AsyncFnMut(u64, Result<Output, Failure>) -> ControlFlow<T>,
) -> Option<T> {
    exchange_counting(items, &Cell::new(0), on_outcome).await
}

/// As [`exchange`]; sets `tokens` to the number of tokens computed so far.
pub(crate) async fn exchange_counting<T>(
    items: Vec<Item>,
    tokens: &Cell<u64>,
    mut on_outcome: impl AsyncFnMut(u64, Result<Output, Failure>) -> ControlFlow<T>,
) -> Option<T> {
    if items.is_empty() {
        return None;
    }
    let (mut writer, reader) = wit_stream::new::<Item>();
    let send = pin!(async move {
        let began_ns = if items.len() > ITEMS_MAX { clock::monotonic_ns() } else { 0 };
        let mut waited_ms = 0;
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            let part = items
                .by_ref()
                .take(ITEMS_MAX)
                .map(|item| Item { deadline_ms: item.deadline_ms.map(|ms| ms.saturating_sub(waited_ms)), ..item });
            // Unwritten items mean that the reader is gone; the outcomes, or their absence, report that.
            if !writer.write_all(part.collect()).await.is_empty() {
                break;
            }
            if items.peek().is_some() {
                // The deadline of an item counts from when it is written, and later items may wait for earlier ones.
                let passed_ms = clock::monotonic_ns().saturating_sub(began_ns) / 1_000_000;
                waited_ms = u32::try_from(passed_ms).unwrap_or(u32::MAX);
            }
        }
        drop(writer);
    });
    let receive = pin!(async {
        let mut outcomes = Outcomes::begin(reader).await;
        let mut batch = Vec::new();
        loop {
            let more = outcomes.next(|id, _, result| batch.push((id, result))).await;
            tokens.set(outcomes.tokens);
            for (id, result) in batch.drain(..) {
                if let ControlFlow::Break(wanted) = on_outcome(id, result).await {
                    return Some(wanted);
                }
            }
            if !more {
                return None;
            }
        }
    });
    match select(receive, send).await {
        Either::Left((result, _)) => result,
        Either::Right(((), receive)) => receive.await,
    }
}

/// The failure of an item without an outcome.
pub(crate) fn no_outcome() -> Failure {
    Failure::Unavailable("inference ended without an answer".to_owned())
}

/// The models that are served.
async fn models() -> Vec<Model> {
    infer::models().await.into_iter().map(model).collect()
}

/// The models that are served, within [`MODELS_TIMEOUT_MS`].
pub(crate) async fn served_models(began: Now) -> Result<Vec<Model>, Problem> {
    let models = Deadline::after(began, MODELS_TIMEOUT_MS).bound(models()).await;
    models.ok_or_else(|| Problem::not_ready(Vec::new()))
}
