//! The streams: records in, items to inference, outcomes back, results out. The four directions run concurrently in one task.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
};

use futures::future::{Either, join3, select};
use weir_core::adapter::SourceRecord;
use weir_guest::notify::Signal;
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

use crate::{
    bindings::{
        exports::weir::stream::adapter::{Guest, ResultRecord, StartFailure},
        wasi::clocks::monotonic_clock,
        weir::stream::{
            infer,
            types::{Item, Outcome},
        },
        wit_stream,
    },
    convert::{item, result, result_record},
    transform::Transform,
};

/// Maximum number of records or outcomes of one transfer. Each transfer wakes what comes after it.
const TRANSFER_MAX: usize = 256;
/// Maximum number of items of one transfer: as many as the host reads at once.
const ITEMS_MAX: usize = 64;
/// Results from which a batch is written; the results of its last record may exceed it.
const RESULTS_BATCH: usize = 256;

struct Service;

crate::bindings::export!(Service with_types_in crate::bindings);

impl Guest for Service {
    async fn run(
        config: String,
        records: StreamReader<SourceRecord>,
    ) -> Result<StreamReader<ResultRecord>, StartFailure> {
        let transform = Transform::new(&config, monotonic_clock::now()).map_err(StartFailure::InvalidConfig)?;
        let (writer, reader) = wit_stream::new();
        wit_bindgen::spawn(serve(transform, records, writer));
        Ok(reader)
    }
}

async fn serve(transform: Transform, records: StreamReader<SourceRecord>, results: StreamWriter<ResultRecord>) {
    let (items, reader) = wit_stream::new::<Item>();
    let outcomes = infer::run(reader).await;
    let call = CallState {
        transform: RefCell::new(transform),
        has_ended: Cell::new(false),
        items: Signal::default(),
        results: Signal::default(),
    };
    let inputs = pin!(join3(call.read_records(records), call.send_items(items), call.read_outcomes(outcomes)));
    let outputs = pin!(call.write_results(results));
    // The results end last. When their reader drops the stream, or inference ends early, the remaining records are abandoned: the host
    // knows which records are not complete.
    if let Either::Right((_, outputs)) = select(outputs, inputs).await
        && call.is_done()
    {
        outputs.await;
    }
}

/// The state that the directions of a call share.
struct CallState {
    transform: RefCell<Transform>,
    /// Whether the stream of records has ended.
    has_ended: Cell<bool>,
    /// Set when there may be items to send.
    items: Signal,
    /// Set when there may be results to write.
    results: Signal,
}

impl CallState {
    async fn read_records(&self, mut records: StreamReader<SourceRecord>) {
        let mut buffer = Vec::with_capacity(TRANSFER_MAX);
        loop {
            let (status, mut read) = records.read(buffer).await;
            for record in read.drain(..) {
                self.transform.borrow_mut().handle_record(record);
            }
            buffer = read;
            let ended = !matches!(status, StreamResult::Complete(_));
            if ended {
                self.transform.borrow_mut().handle_end();
            }
            self.has_ended.set(ended);
            self.items.notify();
            self.results.notify();
            if ended {
                return;
            }
        }
    }

    fn is_done(&self) -> bool {
        self.has_ended.get() && self.transform.borrow().open() == 0
    }

    /// Returns when every record has its results, or when inference accepts no more items.
    async fn send_items(&self, mut items: StreamWriter<Item>) {
        while !self.is_done() {
            let (batch, timeout) = {
                let mut transform = self.transform.borrow_mut();
                let now = monotonic_clock::now();
                let mut batch = Vec::new();
                while batch.len() < ITEMS_MAX
                    && let Some((attempt, input)) = transform.poll_item(now)
                {
                    batch.push(item(transform.config(), attempt, input));
                }
                (batch, transform.poll_timeout())
            };
            if !batch.is_empty() {
                if !items.write_all(batch).await.is_empty() {
                    return;
                }
                continue;
            }
            let changed = pin!(self.items.wait());
            match timeout {
                Some(at) => {
                    select(changed, pin!(monotonic_clock::wait_until(at))).await;
                }
                None => changed.await,
            }
        }
    }

    async fn read_outcomes(&self, mut outcomes: StreamReader<Outcome>) {
        let mut buffer = Vec::with_capacity(TRANSFER_MAX);
        loop {
            let (status, mut read) = outcomes.read(buffer).await;
            let now = monotonic_clock::now();
            for outcome in read.drain(..) {
                self.transform.borrow_mut().handle_outcome(now, outcome.id, result(outcome.result));
            }
            buffer = read;
            self.items.notify();
            self.results.notify();
            if !matches!(status, StreamResult::Complete(_)) {
                return;
            }
        }
    }

    /// Returns when every record has its results, or when the reader of results has dropped the stream.
    async fn write_results(&self, mut results: StreamWriter<ResultRecord>) {
        loop {
            let mut batch = Vec::new();
            {
                let mut transform = self.transform.borrow_mut();
                while batch.len() < RESULTS_BATCH && transform.poll_results(&mut batch) {}
            }
            if !batch.is_empty() {
                self.items.notify();
                let batch = batch.into_iter().map(result_record).collect();
                if !results.write_all(batch).await.is_empty() {
                    return;
                }
                continue;
            }
            if self.is_done() {
                return;
            }
            self.results.wait().await;
        }
    }
}
