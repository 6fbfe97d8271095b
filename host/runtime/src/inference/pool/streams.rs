//! The two streams of an instance: items from the queue in, outcomes to their callers out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult, VecBuffer};
use weir_telemetry::{Span, SpanContext, SpanKind};

use super::Pool;
use super::instance::Instance;
use super::task;
use crate::components::ended::NotifyOnDrop;
use crate::inference::item::SharedItem;
use crate::inference::queue::{Assignment, Job, TakeRequest};
use crate::inference::reply::OutcomeLists;
use crate::stages::{self, Stage, Transfer};
use crate::types::Outcome;

/// Writes the items of all callers to an instance.
pub(super) struct ItemSource {
    pub(super) pool: Arc<Pool>,
    pub(super) replica: usize,
    pub(super) instance: Arc<Instance>,
    pub(super) warm_up: Option<Job>,
}

/// Items written at once if the guest does not specify how many it reads.
const WRITE_ITEMS_MAX: usize = 64;

impl<D> StreamProducer<D> for ItemSource {
    type Item = SharedItem;
    type Buffer = VecBuffer<SharedItem>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, SharedItem, VecBuffer<SharedItem>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(WRITE_ITEMS_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        if self.instance.replaced.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let assignment = match self.warm_up.take() {
            Some(job) => {
                self.pool.config.queue.check_thread.wake();
                Poll::Ready(Assignment::Jobs(vec![job]))
            }
            None if !task::may_take(|| self.pool.queue.waiting_ns()) => {
                // Polled again on the thread of the replica.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                let (is_busy, has_suspect) = self.instance.in_flight.register(cx);
                let tokens_max = self.pool.config.ahead_tokens;
                let request = TakeRequest { replica: self.replica, items_max: room, tokens_max, is_busy, has_suspect };
                self.pool.queue.poll_take(&request, cx)
            }
        };
        match assignment {
            Poll::Ready(assignment) => {
                stages::mark(Stage::Taken);
                stages::count(Transfer::ItemsTaken);
                task::record_taken();
                let (jobs, has_suspect) = match assignment {
                    Assignment::Jobs(jobs) => (jobs, false),
                    Assignment::Suspect(job) => (vec![*job], true),
                };
                self.pool.metrics.items.increment(jobs.len() as u64);
                for job in jobs.iter().filter(|job| !job.is_warm_up()) {
                    self.pool.metrics.queue_seconds.record(job.start_time.elapsed());
                }
                self.pool.queue.counts.handed_over.fetch_add(jobs.len() as u64, Ordering::Relaxed);
                destination.set_buffer(self.instance.in_flight.add(jobs, has_suspect).into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => {
                // The guest computes now, so wake-ups must go to replicas that wait.
                self.pool.queue.remove_waiter(self.replica);
                Poll::Ready(Ok(StreamResult::Cancelled))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Sends the outcomes of an instance to their callers.
pub(super) struct OutcomeSink {
    pub(super) pool: Arc<Pool>,
    pub(super) instance: Arc<Instance>,
}

impl OutcomeSink {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        stages::mark(Stage::Delivered);
        stages::count(Transfer::OutcomesGiven);
        let pool = &self.pool;
        let (mut tokens, mut failures, mut lists) = (0, 0, OutcomeLists::default());
        let mut batch = Batch::default();
        for outcome in outcomes {
            let Some((job, busy)) = self.instance.in_flight.remove(outcome.id) else {
                if !self.instance.replaced.load(Ordering::SeqCst) {
                    tracing::warn!(model = pool.config.name, "the infer component gave an outcome for an unknown item");
                }
                continue;
            };
            tokens += u64::from(outcome.tokens);
            pool.queue.counts.answered.fetch_add(1, Ordering::Relaxed);
            if job.is_warm_up() {
                failures += u64::from(outcome.result.is_err());
                pool.handle_warm_up(&self.instance, outcome.result);
                continue;
            }
            let busy_ns = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
            pool.queue.record_answer(&job.item, u64::from(outcome.tokens), busy_ns);
            batch.add(&job, outcome.tokens, busy);
            let Some(job) = pool.queue.settle(job, outcome.result.as_ref().err()) else { continue };
            failures += u64::from(outcome.result.is_err());
            batch.items += 1;
            pool.metrics.item_seconds.record(job.start_time.elapsed());
            lists.add(job.reply, outcome.tokens, outcome.result);
        }
        batch.record(pool);
        pool.metrics.tokens.increment(tokens);
        pool.metrics.failures.increment(failures);
    }
}

/// The items whose outcomes a replica returns together.
#[derive(Default)]
struct Batch {
    /// All of them, and those that are not retried.
    outcomes: u32,
    items: u32,
    tokens: u64,
    /// The time since the outcomes before it, or since the replica was idle.
    compute_time: Duration,
    traces: Vec<SpanContext>,
}

impl Batch {
    fn add(&mut self, job: &Job, tokens: u32, busy: Duration) {
        self.outcomes += 1;
        self.tokens += u64::from(tokens);
        self.compute_time += busy;
        self.traces.extend(job.trace);
    }

    /// Records its metrics, and a span that links those of its items.
    fn record(self, pool: &Pool) {
        if self.items > 0 {
            pool.metrics.batch_items.record(self.items);
        }
        if self.outcomes > 0 {
            pool.metrics.batch_fill.record(self.tokens as f64 / f64::from(pool.config.batch_tokens_max.max(1)));
            pool.metrics.compute_seconds.record(self.compute_time);
        }
        let span = Span::linked("infer batch", SpanKind::Internal, self.traces.into_iter(), self.compute_time);
        if let Some(span) = span {
            span.set("weir.model", pool.config.name.as_str());
            span.set_number("weir.items", i64::from(self.items));
            span.set_number("weir.tokens", i64::try_from(self.tokens).unwrap_or(i64::MAX));
        }
    }
}

/// A sink that notifies when it is dropped, which happens when the stream has ended.
pub(super) struct WatchedSink {
    pub(super) sink: OutcomeSink,
    pub(super) _ended: NotifyOnDrop,
}

impl<D> StreamConsumer<D> for WatchedSink {
    type Item = Outcome;

    fn poll_consume(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, Outcome>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut outcomes = Vec::with_capacity(source.remaining(&mut store));
        source.read(&mut store, &mut outcomes)?;
        self.sink.deliver(outcomes);
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
