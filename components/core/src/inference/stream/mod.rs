//! A stream of items through a model: buffering, batching, retries, ordering and backpressure.
//!
//! A [`Stream`] has no socket, no clock and no model. After each input (a push, an outcome, an acknowledgement, the
//! time of [`Stream::poll_timeout`]) its driver polls batches for inference, results and errors until there are none.
//! Every accepted item has exactly one result or error. An item counts towards the bounds from its push until that is
//! polled, so a driver that does not poll gets backpressure, and memory is bounded.
//!
//! ```
//! use weir_core::inference::stream::{FlushReason, Stream, StreamingConfig};
//! let mut stream: Stream<&str, usize> = Stream::new(StreamingConfig::default(), 0, 42)?;
//! stream.start()?;
//! stream.push(0, "fine weather")?;
//! let batch = stream.poll_batch(0).expect("a slot is free");
//! assert_eq!(batch.reason, FlushReason::Scheduled);
//! for attempt in batch.attempts {
//!     stream.handle_outcome(5, attempt.id, Ok(attempt.item.len()));
//! }
//! let delivered = stream.poll_result().expect("it has an outcome");
//! assert_eq!((delivered.seq, delivered.result, delivered.latency_ns), (0, 12, 5));
//! stream.stop()?;
//! assert!(stream.is_drained());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod event;
mod release;
mod settle;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use self::{
    config::{
        Aggregation, BUFFER_ITEMS_MAX, Batching, BufferingConfig, ConfigError, DropPolicy, Ordering, StreamLimits,
        StreamingConfig,
    },
    event::{
        Attempt, Cause, ErrorCategory, FlushReason, ItemError, ItemResult, PushError, ReleasedBatch, StreamState,
        TransitionError,
    },
    stats::{Histogram, Stats},
};

use self::stats::Counters;
use crate::{
    failure::Failure,
    inference::{
        backpressure::{AckGate, BackpressurePolicy, SizeGate},
        breaker::{Breaker, Permit},
        order::Resequencer,
        retry::{CircuitBreakerPolicy, Retry, RetryBudget},
    },
    random::SplitMix64,
};

const NS_PER_MS: u64 = 1_000_000;

/// An item without an outcome.
#[derive(Debug, Clone)]
struct Pending<T> {
    seq: u64,
    item: T,
    bytes: usize,
    pushed_ns: u64,
    retry: Retry,
    attempts_made: u32,
}

/// A batch at inference.
#[derive(Debug)]
struct Batch {
    /// The number of attempts without an outcome.
    open: usize,
    /// Whether the model answered at least one attempt.
    answered: bool,
    permit: Option<Permit>,
}

/// A result or an error that was not polled yet, with the bytes of its item.
#[derive(Debug)]
struct PendingOutput<V> {
    bytes: usize,
    value: V,
}

/// A stream of items `T` with results `R`. An item is cloned for each attempt, so large items should be shared, such as
/// by `Arc`.
#[derive(Debug)]
pub struct Stream<T, R> {
    config: StreamingConfig,
    state: StreamState,
    /// The number of the next item.
    seq_next: u64,
    /// The number of the next attempt.
    id_next: u64,
    /// Items before their first attempt, by sequence number.
    waiting: VecDeque<Pending<T>>,
    /// Items before another attempt, by due time and sequence number.
    delayed: BTreeMap<(u64, u64), Pending<T>>,
    /// Items at inference, by attempt, with their batch.
    in_flight: BTreeMap<u64, (u64, Pending<T>)>,
    /// Batches at inference, by their first attempt: at most `batches_in_flight_max`.
    batches: BTreeMap<u64, Batch>,
    /// Requested flushes: the end of the sequence numbers to release, and the reason. Each covers a waiting item that
    /// no earlier flush covers.
    flushes: VecDeque<(u64, FlushReason)>,
    /// Whether a release was delayed for lack of acknowledgements.
    held_back: bool,
    /// The results, with strict ordering.
    ordered: Option<Resequencer<PendingOutput<ItemResult<R>>>>,
    /// The results, without strict ordering.
    results: VecDeque<PendingOutput<ItemResult<R>>>,
    errors: VecDeque<PendingOutput<ItemError<T>>>,
    /// The number of dropped items in `errors`: at most `max_buffer_size`; they do not count towards `held`.
    drops_unpolled: usize,
    held: SizeGate,
    acks: AckGate,
    budget: RetryBudget,
    breaker: Option<Breaker>,
    random: SplitMix64,
    counters: Counters,
}

impl<T: Clone, R> Stream<T, R> {
    /// A stream that is not started. `seed` is the seed of the retry jitter.
    ///
    /// # Errors
    ///
    /// The configuration is invalid.
    pub fn new(config: StreamingConfig, now: u64, seed: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        let (items_max, limits) = (config.buffering.max_buffer_size, &config.limits);
        let (acks_max, bytes_max) = match config.backpressure {
            BackpressurePolicy::AckBased => (limits.unacknowledged_max, usize::MAX),
            BackpressurePolicy::SizeBased => (usize::MAX, limits.buffer_bytes_max),
        };
        let guarded = config.retry.circuit_breaker_policy == CircuitBreakerPolicy::On;
        Ok(Self {
            state: StreamState::Initialized,
            seq_next: 0,
            id_next: 0,
            waiting: VecDeque::new(),
            delayed: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            batches: BTreeMap::new(),
            flushes: VecDeque::new(),
            held_back: false,
            // Twice the bound of `held`, so dropped or failed items behind a slow one do not use up the window.
            ordered: (config.ordering == Ordering::Strict).then(|| Resequencer::new(items_max * 2)),
            results: VecDeque::new(),
            errors: VecDeque::new(),
            drops_unpolled: 0,
            held: SizeGate::new(items_max, bytes_max),
            acks: AckGate::new(acks_max),
            budget: RetryBudget::new(limits.retry_budget, now),
            breaker: guarded.then(|| Breaker::new(limits.breaker)),
            random: SplitMix64::new(seed),
            counters: Counters::default(),
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &StreamingConfig {
        &self.config
    }

    /// The state of the stream.
    pub fn state(&self) -> StreamState {
        self.state
    }

    /// True when the stream has ended and all results and errors were polled.
    pub fn is_drained(&self) -> bool {
        matches!(self.state, StreamState::Stopped | StreamState::Error)
            && self.unpolled() == 0
            && self.errors.is_empty()
    }

    /// The statistics of the stream.
    pub fn stats(&self) -> Stats {
        let counters = self.counters.clone();
        Stats {
            state: self.state,
            pushed: counters.pushed,
            pushed_back: counters.pushed_back,
            delivered: counters.delivered,
            failed_by_category: counters.failed_by_category,
            dropped: counters.dropped,
            retried: counters.retried,
            retries_refused: counters.retries_refused,
            in_flight: self.in_flight.len(),
            buffered: self.waiting.len() + self.delayed.len(),
            unpolled: self.unpolled() + self.errors.len() - self.drops_unpolled,
            unacknowledged: self.acks.unacknowledged(),
            batches_by_reason: counters.batches_by_reason,
            attempts: counters.attempts,
            breaker: self.breaker.as_ref().map(Breaker::state),
            latency: counters.latency,
        }
    }

    /// Starts the stream.
    ///
    /// # Errors
    ///
    /// It was started before.
    pub fn start(&mut self) -> Result<(), TransitionError> {
        self.command("start", &[StreamState::Initialized], StreamState::Running)
    }

    /// Pauses the stream: it releases no batches until it is resumed. Items are still accepted while there is room, and
    /// outcomes are handled.
    ///
    /// # Errors
    ///
    /// It is not running.
    pub fn pause(&mut self) -> Result<(), TransitionError> {
        self.command("pause", &[StreamState::Running], StreamState::Paused)
    }

    /// Continues after a pause.
    ///
    /// # Errors
    ///
    /// It is not paused.
    pub fn resume(&mut self) -> Result<(), TransitionError> {
        self.command("resume", &[StreamState::Paused], StreamState::Running)
    }

    /// Stops the stream: it accepts no more items and finishes the remaining ones, with retries. If the circuit is
    /// open, the remaining items fail at once, so the stop does not wait for an unavailable model.
    ///
    /// # Errors
    ///
    /// It is neither new, running nor paused.
    pub fn stop(&mut self) -> Result<(), TransitionError> {
        if self.state == StreamState::Initialized {
            return self.command("stop", &[StreamState::Initialized], StreamState::Stopped);
        }
        self.command("stop", &[StreamState::Running, StreamState::Paused], StreamState::Stopping)?;
        self.stop_if_settled();
        Ok(())
    }

    /// Aborts the stream: every item without an outcome fails, and late outcomes are ignored.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn abort(&mut self, failure: &Failure) -> Result<(), TransitionError> {
        use StreamState::{Error, Initialized, Paused, Running, Stopping};
        self.command("abort", &[Initialized, Running, Paused, Stopping], Error)?;
        self.batches.clear();
        for (_, pending) in std::mem::take(&mut self.in_flight).into_values() {
            self.fail(pending, failure.clone().into());
        }
        self.fail_buffered(failure);
        Ok(())
    }

    /// Pushes an item without a size, and returns its sequence number, ascending from 0.
    ///
    /// # Errors
    ///
    /// See [`Self::push_sized`].
    pub fn push(&mut self, now: u64, item: T) -> Result<u64, PushError<T>> {
        self.push_sized(now, item, 0)
    }

    /// Pushes an item of `bytes` bytes, and returns its sequence number. With a drop policy this item, or older ones,
    /// can become errors at once.
    ///
    /// # Errors
    ///
    /// There is no room and no item can be dropped: because of the policy, because no item waits, because dropped items
    /// were not polled, or because the oldest item without an outcome is too far behind in a strict order. Or the
    /// stream accepts no items in its state.
    pub fn push_sized(&mut self, now: u64, item: T, bytes: usize) -> Result<u64, PushError<T>> {
        if !matches!(self.state, StreamState::Running | StreamState::Paused) {
            return Err(PushError::NotRunning(item));
        }
        let seq = self.seq_next;
        let in_window = self.ordered.as_ref().is_none_or(|ordered| ordered.accepts(seq));
        let fits = self.held.may_send(bytes);
        let drops = match self.config.buffering.drop_policy {
            _ if fits => Some(0),
            DropPolicy::None => None,
            DropPolicy::Head => self.oldest_to_drop(bytes),
            DropPolicy::Tail => Some(1),
        };
        let drops_max = self.config.buffering.max_buffer_size - self.drops_unpolled;
        let Some(drops) = drops.filter(|drops| in_window && *drops <= drops_max) else {
            self.counters.pushed_back += 1;
            return Err(PushError::Full(item));
        };

        self.seq_next += 1;
        self.counters.pushed += 1;
        let pending = Pending { seq, item, bytes, pushed_ns: now, retry: Retry::new(), attempts_made: 0 };
        if !fits && self.config.buffering.drop_policy == DropPolicy::Tail {
            self.fail(pending, Cause::Dropped);
            return Ok(seq);
        }
        for oldest in self.waiting.drain(..drops).collect::<Vec<_>>() {
            self.held.remove(oldest.bytes);
            self.fail(oldest, Cause::Dropped);
        }
        self.held.add(bytes);
        self.waiting.push_back(pending);
        self.remove_done_flushes();
        Ok(seq)
    }

    /// Requests that the items waiting for their first attempt are released as soon as there are batch slots; returns
    /// their number. Items of an earlier flush keep its reason, and retries keep their delay.
    pub fn flush(&mut self, reason: FlushReason) -> usize {
        let flushed_seq = self.flushes.back().map_or(0, |(end_seq, _)| *end_seq);
        let count = self.waiting.iter().rev().take_while(|pending| pending.seq >= flushed_seq).count();
        if count > 0 {
            self.flushes.push_back((self.seq_next, reason));
        }
        count
    }

    /// Handles the outcome of an attempt. False when it is not expected: it arrived before, or the stream was aborted.
    pub fn handle_outcome(&mut self, now: u64, id: u64, outcome: Result<R, Failure>) -> bool {
        let Some((batch, pending)) = self.in_flight.remove(&id) else { return false };
        // A refused item is an answer of the model.
        let answered = match &outcome {
            Ok(_) => true,
            Err(failure) => ErrorCategory::from(failure) == ErrorCategory::Client,
        };
        self.count_outcome(now, batch, answered);
        match outcome {
            Ok(result) => self.deliver(now, &pending, result),
            Err(failure) => self.retry_or_fail(now, pending, failure),
        }
        self.stop_if_settled();
        true
    }

    /// Records that the consumer has handled `count` more results and errors, dropped items included. It has an effect
    /// with `ack_based` only.
    pub fn acknowledge(&mut self, count: usize) {
        self.acks.acknowledge(count);
    }

    /// The next result; with strict ordering in the order of the pushes.
    pub fn poll_result(&mut self) -> Option<ItemResult<R>> {
        let output = match &mut self.ordered {
            Some(ordered) => ordered.pop()?.1,
            None => self.results.pop_front()?,
        };
        self.held.remove(output.bytes);
        self.counters.delivered += 1;
        Some(output.value)
    }

    /// Whether [`Self::poll_error`] returns an item.
    pub fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// The next item without a result.
    pub fn poll_error(&mut self) -> Option<ItemError<T>> {
        let output = self.errors.pop_front()?;
        match &output.value.cause {
            // A dropped item was removed from `held` when it was dropped.
            Cause::Dropped => self.drops_unpolled -= 1,
            Cause::Failed(failure) => {
                self.held.remove(output.bytes);
                self.counters.failed_by_category[ErrorCategory::from(failure) as usize] += 1;
            }
        }
        Some(output.value)
    }

    fn command(
        &mut self,
        command: &'static str,
        legal: &[StreamState],
        next: StreamState,
    ) -> Result<(), TransitionError> {
        if !legal.contains(&self.state) {
            return Err(TransitionError { state: self.state, command });
        }
        debug_assert!(self.state.may_become(next));
        self.state = next;
        Ok(())
    }

    /// The number of the oldest waiting items to drop to make room; `None` if dropping all of them is not enough.
    fn oldest_to_drop(&self, bytes: usize) -> Option<usize> {
        let mut removed_bytes = 0usize;
        self.waiting.iter().enumerate().find_map(|(at, oldest)| {
            removed_bytes = removed_bytes.saturating_add(oldest.bytes);
            self.held.may_send_after(bytes, at + 1, removed_bytes).then_some(at + 1)
        })
    }

    /// The number of results that were not polled.
    fn unpolled(&self) -> usize {
        self.results.len() + self.ordered.as_ref().map_or(0, Resequencer::len)
    }
}
