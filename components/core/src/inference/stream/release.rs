//! The release of batches: when, why, and with which items.

use super::{
    Aggregation, Attempt, Batch, Batching, FlushReason, NS_PER_MS, Pending, ReleasedBatch, Stream, StreamState,
};
use crate::{
    failure::Failure,
    inference::breaker::{BreakerState, Permit},
};

/// First attempts that are to be released together.
struct FirstAttempts {
    /// When they are due; 0 for at once.
    due_ns: u64,
    reason: FlushReason,
    count: usize,
}

/// The contents of the next batch.
struct Plan {
    reason: FlushReason,
    retries: usize,
    first_attempts: usize,
}

impl<T: Clone, R> Stream<T, R> {
    /// The next batch for inference, if one is due and a slot is free. Poll until there is none, after every input and
    /// at the time of [`Self::poll_timeout`].
    pub fn poll_batch(&mut self, now: u64) -> Option<ReleasedBatch<T>> {
        self.fail_if_open(now);
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

    /// When to poll a batch without another input; 0 for at once, `None` if only an input can release one.
    pub fn poll_timeout(&self) -> Option<u64> {
        if !self.may_release() {
            return None;
        }
        let retry_ns = self.delayed.first_key_value().map(|((due_ns, _), _)| *due_ns);
        let first_attempts = self.first_attempts().filter(|first| self.has_room(first.count));
        let due_ns = retry_ns.into_iter().chain(first_attempts.map(|first| first.due_ns)).min()?;
        Some(due_ns.max(self.breaker.as_ref().map_or(0, |breaker| breaker.ready_ns())))
    }

    /// Counts an outcome of a batch; the last one frees its slot and is recorded by the breaker. A batch with any
    /// answer of the model is a success, so one failing item does not count against the model.
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

    /// Removes flushes of which no item waits any more.
    pub(super) fn remove_done_flushes(&mut self) {
        let oldest_seq = self.waiting.front().map_or(u64::MAX, |pending| pending.seq);
        while self.flushes.front().is_some_and(|(end_seq, _)| *end_seq <= oldest_seq) {
            self.flushes.pop_front();
        }
    }

    fn may_release(&self) -> bool {
        matches!(self.state, StreamState::Running | StreamState::Stopping)
            && self.batches.len() < self.config.limits.batches_in_flight_max
    }

    /// Fails the buffered items of a stopping stream if the circuit is open.
    fn fail_if_open(&mut self, now: u64) {
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

    /// True when acknowledgements leave enough room to release a batch out of `count` items.
    fn has_room(&self, count: usize) -> bool {
        self.acks.room() >= count.min(self.config.buffering.min_batch_size)
    }

    /// True when waiting items are released regardless of the window: a flush was requested, or the stream stops.
    fn is_forced(&self) -> bool {
        self.state == StreamState::Stopping || !self.flushes.is_empty()
    }

    /// The next first attempts, given the items that wait now.
    fn first_attempts(&self) -> Option<FirstAttempts> {
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
        let count = waiting.min(config.buffering.max_batch_size);
        let full = waiting >= config.batch_size;
        match (config.batching, config.aggregation) {
            (Batching::Adaptive, _) => {
                at_once(if full { FlushReason::BatchSize } else { FlushReason::Scheduled }, count)
            }
            (Batching::Windowed, Aggregation::TimeAndCount | Aggregation::CountOnly) if full => {
                at_once(FlushReason::BatchSize, config.batch_size)
            }
            (Batching::Windowed, Aggregation::CountOnly) => None,
            (Batching::Windowed, Aggregation::TimeAndCount | Aggregation::TimeOnly) => Some(FirstAttempts {
                due_ns: oldest.pushed_ns.saturating_add(u64::from(config.window_ms) * NS_PER_MS),
                reason: FlushReason::Timeout,
                count,
            }),
        }
    }

    fn plan(&mut self, now: u64) -> Option<Plan> {
        let forced = self.is_forced();
        let items_max = if forced { self.config.max_batch_size } else { self.config.buffering.max_batch_size };
        let retries = self.delayed.range(..=(now, u64::MAX)).take(items_max).count();
        let reason = if self.state == StreamState::Stopping { FlushReason::Shutdown } else { FlushReason::Timeout };
        let retries_only = (retries > 0).then_some(Plan { reason, retries, first_attempts: 0 });

        // A window consists of first attempts only, so retries are not mixed with them.
        let mixes = retries == 0 || forced || self.config.batching == Batching::Adaptive;
        let Some(first) = self.first_attempts().filter(|first| mixes && first.due_ns <= now) else {
            return retries_only;
        };
        // The batch of a window can be larger than that of a free slot.
        let count = if retries == 0 { first.count } else { first.count.min(items_max - retries) };
        if count == 0 {
            return retries_only;
        }
        if !self.has_room(count) {
            self.held_back = true;
            return retries_only;
        }
        let room = self.acks.room();
        let by_acks = !forced && (self.held_back || room < count);
        let reason = if by_acks { FlushReason::BackpressureAck } else { first.reason };
        Some(Plan { reason, retries, first_attempts: count.min(room) })
    }

    fn release(&mut self, now: u64, plan: &Plan, permit: Option<Permit>) -> ReleasedBatch<T> {
        let batch = self.id_next;
        let mut attempts = Vec::with_capacity(plan.retries + plan.first_attempts);
        for _ in 0..plan.retries {
            if let Some((_, pending)) = self.delayed.pop_first() {
                attempts.push(self.attempt(batch, pending));
            }
        }
        for pending in self.waiting.drain(..plan.first_attempts).collect::<Vec<_>>() {
            self.budget.deposit(now);
            attempts.push(self.attempt(batch, pending));
        }
        if plan.first_attempts > 0 {
            self.acks.sent(plan.first_attempts);
            self.held_back = false;
            self.remove_done_flushes();
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
