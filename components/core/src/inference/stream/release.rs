//! When a stream releases a batch, why, and with which items.

use super::{Aggregation, Attempt, Batching, FlushReason, NS_PER_MS, Pending, ReleasedBatch, Stream, StreamState};
use crate::{
    failure::Failure,
    inference::breaker::{BreakerState, Permit},
};

/// A batch at inference.
#[derive(Debug)]
pub(super) struct Batch {
    /// Attempts without an outcome.
    open: usize,
    /// The model answered at least one.
    answered: bool,
    permit: Option<Permit>,
}

/// First attempts that are to be released together.
struct FirstAttempts {
    /// From when on; 0 for at once.
    due_ns: u64,
    reason: FlushReason,
    count: usize,
}

/// What goes into the next batch.
struct Plan {
    reason: FlushReason,
    retries: usize,
    fresh: usize,
}

impl<T: Clone, R> Stream<T, R> {
    /// The next batch for inference, if it is time for one and a slot is free. Poll until there is none, after every input
    /// and at the time of [`Self::poll_timeout`].
    pub fn poll_batch(&mut self, now: u64) -> Option<ReleasedBatch<T>> {
        self.give_up_if_open(now);
        if !self.may_release() {
            return None;
        }
        let plan = self.plan(now)?;
        let permit = match &mut self.breaker {
            Some(breaker) => Some(breaker.admit(now).ok()?),
            None => None,
        };
        Some(self.release(now, &plan, permit))
    }

    /// When to poll a batch although nothing else happens; 0 for at once, none when only an input can release one.
    pub fn poll_timeout(&self) -> Option<u64> {
        if !self.may_release() {
            return None;
        }
        let retry_ns = self.delayed.first_key_value().map(|((due_ns, _), _)| *due_ns);
        let fresh = self.fresh().filter(|fresh| self.has_room(fresh.count));
        let due_ns = retry_ns.into_iter().chain(fresh.map(|fresh| fresh.due_ns)).min()?;
        Some(due_ns.max(self.breaker.as_ref().map_or(0, |breaker| breaker.ready_ns())))
    }

    /// Counts an outcome of a batch; the last one frees its slot and informs the breaker. A batch with any outcome of the model is a
    /// success: one failing item does not count against the model.
    pub(super) fn count_outcome(&mut self, now: u64, id: u64, answered: bool) {
        let Some(batch) = self.batches.get_mut(&id) else { return };
        batch.open = batch.open.saturating_sub(1);
        batch.answered |= answered;
        if batch.open > 0 {
            return;
        }
        if let Some(Batch { answered, permit: Some(permit), .. }) = self.batches.remove(&id)
            && let Some(breaker) = &mut self.breaker
        {
            breaker.record(now, permit, answered);
        }
    }

    /// Forgets flushes whose items are all gone.
    pub(super) fn forget_done_flushes(&mut self) {
        let oldest_seq = self.waiting.front().map_or(u64::MAX, |pending| pending.seq);
        while self.flushes.front().is_some_and(|(end_seq, _)| *end_seq <= oldest_seq) {
            self.flushes.pop_front();
        }
    }

    fn may_release(&self) -> bool {
        matches!(self.state, StreamState::Running | StreamState::Stopping)
            && self.batches.len() < self.config.limits.batches_in_flight_max
    }

    /// A stream that stops does not wait for an open circuit.
    fn give_up_if_open(&mut self, now: u64) {
        let Some(breaker) = self.breaker.as_ref().filter(|breaker| breaker.state() == BreakerState::Open) else {
            return;
        };
        let retry_after_ns = breaker.ready_ns().saturating_sub(now);
        if retry_after_ns == 0 || self.state != StreamState::Stopping {
            return;
        }
        let retry_after_ms = u32::try_from(retry_after_ns.div_ceil(NS_PER_MS)).unwrap_or(u32::MAX);
        self.fail_buffered(&Failure::CircuitOpen { retry_after_ms });
        self.stop_if_settled();
    }

    /// True when acknowledgements leave enough room to release something of `items` items.
    fn has_room(&self, count: usize) -> bool {
        self.acks.room() >= count.min(self.config.buffering.min_batch_size)
    }

    /// True when what waits goes whatever the window: a flush was requested, or it is the end.
    fn is_forced(&self) -> bool {
        self.state == StreamState::Stopping || !self.flushes.is_empty()
    }

    /// The first attempts that go next, with what waits now.
    fn fresh(&self) -> Option<FirstAttempts> {
        let oldest = self.waiting.front()?;
        let config = &self.config;
        let waiting = self.waiting.len();
        let at_once = |reason, count| Some(FirstAttempts { due_ns: 0, reason, count });
        if self.state == StreamState::Stopping {
            return at_once(FlushReason::Shutdown, waiting.min(config.max_batch_size));
        }
        if let Some(&(end_seq, reason)) = self.flushes.front() {
            let count = self.waiting.partition_point(|pending| pending.seq < end_seq);
            return at_once(reason, count.min(config.max_batch_size));
        }
        let most = waiting.min(config.buffering.max_batch_size);
        let full = waiting >= config.batch_size;
        match (config.batching, config.aggregation) {
            (Batching::Adaptive, _) => {
                at_once(if full { FlushReason::BatchSize } else { FlushReason::Scheduled }, most)
            }
            (Batching::Windowed, Aggregation::TimeAndCount | Aggregation::CountOnly) if full => {
                at_once(FlushReason::BatchSize, config.batch_size)
            }
            (Batching::Windowed, Aggregation::CountOnly) => None,
            (Batching::Windowed, Aggregation::TimeAndCount | Aggregation::TimeOnly) => Some(FirstAttempts {
                due_ns: oldest.pushed_ns.saturating_add(u64::from(config.window_ms) * NS_PER_MS),
                reason: FlushReason::Timeout,
                count: most,
            }),
        }
    }

    fn plan(&mut self, now: u64) -> Option<Plan> {
        let forced = self.is_forced();
        let most = if forced { self.config.max_batch_size } else { self.config.buffering.max_batch_size };
        let retries = self.delayed.range(..=(now, u64::MAX)).take(most).count();
        let reason = if self.state == StreamState::Stopping { FlushReason::Shutdown } else { FlushReason::Timeout };
        let retries_only = (retries > 0).then_some(Plan { reason, retries, fresh: 0 });

        // The rules of a window apply to first attempts: retries do not mix with them.
        let mixes = retries == 0 || forced || self.config.batching == Batching::Adaptive;
        let Some(fresh) = self.fresh().filter(|fresh| mixes && fresh.due_ns <= now) else { return retries_only };
        // A window's batch may be larger than that of a free slot.
        let count = if retries == 0 { fresh.count } else { fresh.count.min(most - retries) };
        if count == 0 {
            return retries_only;
        }
        if !self.has_room(count) {
            self.held_back = true;
            return retries_only;
        }
        let room = self.acks.room();
        let by_acks = !forced && (self.held_back || room < count);
        let reason = if by_acks { FlushReason::BackpressureAck } else { fresh.reason };
        Some(Plan { reason, retries, fresh: count.min(room) })
    }

    fn release(&mut self, now: u64, plan: &Plan, permit: Option<Permit>) -> ReleasedBatch<T> {
        let batch = self.id_next;
        let mut attempts = Vec::with_capacity(plan.retries + plan.fresh);
        for _ in 0..plan.retries {
            if let Some((_, pending)) = self.delayed.pop_first() {
                attempts.push(self.attempt(batch, pending));
            }
        }
        for pending in self.waiting.drain(..plan.fresh).collect::<Vec<_>>() {
            self.budget.deposit(now);
            attempts.push(self.attempt(batch, pending));
        }
        if plan.fresh > 0 {
            self.acks.sent(plan.fresh);
            self.held_back = false;
            self.forget_done_flushes();
        }
        self.batches.insert(batch, Batch { open: attempts.len(), answered: false, permit });
        self.counters.batches_by_reason[plan.reason as usize] += 1;
        self.counters.attempts += attempts.len() as u64;
        ReleasedBatch { reason: plan.reason, attempts }
    }

    fn attempt(&mut self, batch: u64, mut pending: Pending<T>) -> Attempt<T> {
        let id = self.id_next;
        self.id_next += 1;
        pending.attempts_made += 1;
        let attempt = Attempt { id, seq: pending.seq, attempt: pending.attempts_made, item: pending.item.clone() };
        self.in_flight.insert(id, (batch, pending));
        attempt
    }
}
