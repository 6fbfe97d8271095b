//! The two streams of an instance: what waits goes in, and outcomes come back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult, VecBuffer};

use super::Pool;
use super::instance::Running;
use crate::inference::queue::{Ask, Job, Taken};
use crate::types::{Item, Outcome};

/// The one stream of items into an instance.
pub(super) struct Merged {
    pub(super) pool: Arc<Pool>,
    pub(super) replica: usize,
    pub(super) running: Arc<Running>,
    pub(super) warm_up: Option<Job>,
}

/// Items handed over when the guest does not say how many it can take.
const HANDED_ITEMS_MAX: usize = 64;

impl<D> StreamProducer<D> for Merged {
    type Item = Item;
    type Buffer = VecBuffer<Item>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Item, VecBuffer<Item>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(HANDED_ITEMS_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        if self.running.replaced.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let taken = match self.warm_up.take() {
            Some(job) => Poll::Ready(Taken::Jobs(vec![job])),
            None => {
                let (owes, testing) = self.running.routes.watch(cx);
                let tokens_max = self.pool.config.ahead_tokens;
                let ask = Ask { replica: self.replica, items_max: room, tokens_max, owes, testing };
                self.pool.queue.poll_take(&ask, cx)
            }
        };
        match taken {
            Poll::Ready(taken) => {
                let (jobs, testing) = match taken {
                    Taken::Jobs(jobs) => (jobs, false),
                    Taken::Suspect(job) => (vec![*job], true),
                };
                self.pool.metrics.items.increment(jobs.len() as u64);
                self.pool.queue.counts.handed_over.fetch_add(jobs.len() as u64, Ordering::Relaxed);
                destination.set_buffer(self.running.routes.add(jobs, testing).into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => {
                // It computes now: a wake-up must go to a replica that waits.
                self.pool.queue.leave(self.replica);
                Poll::Ready(Ok(StreamResult::Cancelled))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// The way back: outcomes to the callers who wait for them.
pub(super) struct Back {
    pub(super) pool: Arc<Pool>,
    pub(super) running: Arc<Running>,
}

impl Back {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let pool = &self.pool;
        let (mut tokens, mut failures) = (0, 0);
        for outcome in outcomes {
            let Some((job, busy)) = self.running.routes.take(outcome.id) else {
                if !self.running.replaced.load(Ordering::SeqCst) {
                    tracing::warn!(model = pool.config.name, "an outcome for no item");
                }
                continue;
            };
            tokens += u64::from(outcome.tokens);
            pool.queue.counts.answered.fetch_add(1, Ordering::Relaxed);
            if job.ticket.call == 0 {
                failures += u64::from(outcome.result.is_err());
                pool.warmed_up(&self.running, outcome.result);
                continue;
            }
            let busy_ns = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
            pool.queue.served(job.bytes(), u64::from(outcome.tokens), busy_ns);
            let Some(job) = pool.queue.settle(job, outcome.result.as_ref().err()) else { continue };
            failures += u64::from(outcome.result.is_err());
            job.reply.send(outcome.tokens, outcome.result);
        }
        pool.metrics.tokens.increment(tokens);
        pool.metrics.failures.increment(failures);
    }
}

/// A consumer that tells when it is dropped: the stream has ended.
pub(super) struct Watched<C> {
    pub(super) inner: C,
    pub(super) _ended: Ended,
}

pub(super) struct Ended(pub(super) Arc<tokio::sync::Notify>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl<D> StreamConsumer<D> for Watched<Back> {
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
        self.inner.deliver(outcomes);
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
