//! The handling of outcomes: results, retries and errors.

use super::{Cause, ItemError, ItemResult, NS_PER_MS, Pending, PendingOutput, Stream, StreamState};
use crate::failure::Failure;

impl<T: Clone, R> Stream<T, R> {
    /// Delivers the result of an item.
    pub(super) fn deliver(&mut self, now: u64, pending: &Pending<T>, result: R) {
        let latency_ns = now.saturating_sub(pending.pushed_ns);
        self.counters.latency.record(latency_ns);
        let (seq, attempts) = (pending.seq, pending.attempts_made);
        let output = PendingOutput { bytes: pending.bytes, value: ItemResult { seq, latency_ns, attempts, result } };
        match &mut self.ordered {
            Some(ordered) => {
                let inserted = ordered.insert(pending.seq, output);
                debug_assert!(inserted.is_ok(), "item {} was accepted and has one outcome", pending.seq);
            }
            None => self.results.push_back(output),
        }
    }

    /// Handles a failed attempt: schedules a retry, or fails the item.
    pub(super) fn retry_or_fail(&mut self, now: u64, mut pending: Pending<T>, failure: Failure) {
        match self.retry_ns(now, &mut pending, &failure) {
            Some(due_ns) => {
                self.counters.retried += 1;
                self.delayed.insert((due_ns, pending.seq), pending);
            }
            None => self.fail(pending, failure.into()),
        }
    }

    /// When to retry an item, if at all.
    fn retry_ns(&mut self, now: u64, pending: &mut Pending<T>, failure: &Failure) -> Option<u64> {
        if !failure.retryable() {
            return None;
        }
        let delay_ns = pending.retry.next_delay_ns(&self.config.retry, self.random.next_u64())?;
        if !self.budget.withdraw(now) {
            self.counters.retries_refused += 1;
            return None;
        }
        // A requested delay applies within the bound of the policy's delays.
        let requested_ms = match failure {
            Failure::Overloaded { retry_after_ms }
            | Failure::Throttled { retry_after_ms }
            | Failure::CircuitOpen { retry_after_ms } => *retry_after_ms,
            _ => 0,
        };
        let requested_ns = u64::from(requested_ms.min(self.config.retry.backoff_ms_max)) * NS_PER_MS;
        Some(now.saturating_add(delay_ns.max(requested_ns)))
    }

    /// Fails an item: its final outcome is an error.
    pub(super) fn fail(&mut self, pending: Pending<T>, cause: Cause) {
        if let Some(ordered) = &mut self.ordered {
            let skipped = ordered.skip(pending.seq);
            debug_assert!(skipped.is_ok(), "item {} was accepted and has one outcome", pending.seq);
        }
        if cause == Cause::Dropped {
            self.drops_unpolled += 1;
            self.counters.dropped += 1;
            // It was never released, and its error is acknowledged like any other.
            self.acks.sent(1);
        }
        let Pending { seq, item, bytes, attempts_made: attempts, .. } = pending;
        self.errors.push_back(PendingOutput { bytes, value: ItemError { seq, item, attempts, cause } });
    }

    /// Fails all items that wait for an attempt.
    pub(super) fn fail_buffered(&mut self, failure: &Failure) {
        self.flushes.clear();
        let waiting = std::mem::take(&mut self.waiting);
        for pending in std::mem::take(&mut self.delayed).into_values().chain(waiting) {
            // A released item is already counted as unacknowledged.
            self.acks.sent(usize::from(pending.attempts_made == 0));
            self.fail(pending, failure.clone().into());
        }
    }

    /// Completes a stop once every item has its outcome.
    pub(super) fn stop_if_settled(&mut self) {
        let settled = self.waiting.is_empty() && self.delayed.is_empty() && self.in_flight.is_empty();
        if settled && self.state == StreamState::Stopping {
            self.state = StreamState::Stopped;
        }
    }
}
