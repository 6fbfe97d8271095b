//! Properties of a stream under random configurations, inputs and failures, on virtual time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// An input, or the passing of time.
#[derive(Debug, Clone)]
enum Op {
    Push { count: usize, bytes: usize },
    Wait { ms: u64 },
    Wake,
    Answer { which: Index, kind: u8 },
    AnswerAgain { id: u64 },
    PollResults(usize),
    PollErrors(usize),
    Acknowledge(usize),
    Flush(FlushReason),
    Pause,
    Resume,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        5 => (0usize..12, 0usize..40).prop_map(|(count, bytes)| Op::Push { count, bytes }),
        3 => (0u64..400).prop_map(|ms| Op::Wait { ms }),
        2 => Just(Op::Wake),
        12 => (any::<Index>(), 0u8..10).prop_map(|(which, kind)| Op::Answer { which, kind }),
        1 => (0u64..100).prop_map(|id| Op::AnswerAgain { id }),
        4 => (0usize..20).prop_map(Op::PollResults),
        2 => (0usize..20).prop_map(Op::PollErrors),
        3 => (0usize..20).prop_map(Op::Acknowledge),
        1 => prop::sample::select(&[FlushReason::Manual, FlushReason::Scheduled][..]).prop_map(Op::Flush),
        1 => Just(Op::Pause),
        2 => Just(Op::Resume),
    ];
    prop::collection::vec(op, 0..250)
}

prop_compose! {
    fn configs()(
        sizes in (1usize..8, 0usize..8, 0usize..30, 1usize..8, 1usize..16),
        window_ms in 0u32..300,
        slots in 1usize..4,
        acks in 0usize..20,
        bytes in 20usize..200,
        ordering in prop::sample::select(Ordering::ALL),
        drop_policy in prop::sample::select(DropPolicy::ALL),
        backpressure in prop::sample::select(BackpressurePolicy::ALL),
        aggregation in prop::sample::select(Aggregation::ALL),
        batching in prop::sample::select(Batching::ALL),
        policy in prop::sample::select(RetryPolicy::ALL),
        circuit_breaker_policy in prop::sample::select(CircuitBreakerPolicy::ALL),
        max_attempts in 1u32..5,
        budget in (0u32..100, 0u32..20),
    ) -> StreamingConfig {
        let (max, more, buffer, min, batch_size) = sizes;
        StreamingConfig {
            batch_size: batch_size.min(max + more.min(buffer)),
            window_ms,
            max_batch_size: max + more,
            ordering,
            buffering: BufferingConfig {
                min_batch_size: min.min(max),
                max_batch_size: max,
                max_buffer_size: max + buffer,
                drop_policy,
            },
            retry: RetryConfig { max_attempts, base_backoff_ms: 50, backoff_ms_max: 500, policy, circuit_breaker_policy },
            backpressure,
            aggregation,
            batching,
            limits: StreamLimits {
                batches_in_flight_max: slots,
                unacknowledged_max: max + acks,
                buffer_bytes_max: bytes,
                retry_budget: RetryBudgetConfig {
                    ratio_percent: budget.0, retries_per_s_min: budget.1, saved_retries_max: 50,
                },
                ..StreamLimits::default()
            },
        }
    }
}

fn outcome(kind: u8, item: u32) -> Result<u32, Failure> {
    match kind {
        0 => Err(Failure::Engine("cracked".to_owned())),
        1 => Err(Failure::InvalidInput("empty".to_owned())),
        2 => unavailable(),
        3 => Err(Failure::Overloaded { retry_after_ms: 70 }),
        _ => Ok(item * 2),
    }
}

/// A driver that checks the invariants. Items are their own sequence numbers.
struct Driver {
    stream: Stream<u32, u32>,
    now: u64,
    /// When each item was pushed, and its bytes.
    pushed: Vec<(u64, usize)>,
    /// Items that wait for their first attempt.
    fresh: BTreeSet<u64>,
    in_flight: Vec<Attempt<u32>>,
    /// The number of attempts of each item.
    attempts: BTreeMap<u64, u32>,
    /// Items with a polled outcome, and their results if they have one.
    ended: BTreeMap<u64, Option<u32>>,
    last_result_seq: Option<u64>,
    flushed: BTreeSet<FlushReason>,
    drops: u64,
    /// Items that were released or dropped, and not acknowledged.
    unacknowledged: usize,
}

impl Driver {
    fn new(config: StreamingConfig, seed: u64) -> Self {
        let mut stream = Stream::new(config, 0, seed).unwrap();
        stream.start().unwrap();
        Self {
            stream,
            now: 0,
            pushed: Vec::new(),
            fresh: BTreeSet::new(),
            in_flight: Vec::new(),
            attempts: BTreeMap::new(),
            ended: BTreeMap::new(),
            last_result_seq: None,
            flushed: BTreeSet::new(),
            drops: 0,
            unacknowledged: 0,
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Push { count, bytes } => (0..count).for_each(|_| self.push(bytes)),
            Op::Wait { ms } => self.now += ms * MS,
            Op::Wake => self.now = self.now.max(self.stream.poll_timeout().unwrap_or(0)),
            Op::Answer { which, kind } => {
                if !self.in_flight.is_empty() {
                    self.answer(which.index(self.in_flight.len()), kind);
                }
            }
            Op::AnswerAgain { id } => {
                if self.in_flight.iter().all(|attempt| attempt.id != id) {
                    assert!(!self.stream.handle_outcome(self.now, id, Ok(0)));
                }
            }
            Op::PollResults(count) => _ = (0..count).all(|_| self.poll_result()),
            Op::PollErrors(count) => _ = (0..count).all(|_| self.poll_error()),
            Op::Acknowledge(count) => self.acknowledge(count),
            Op::Flush(reason) => {
                self.flushed.insert(reason);
                assert!(self.stream.flush(reason) <= self.fresh.len());
            }
            Op::Pause => _ = self.stream.pause(),
            Op::Resume => _ = self.stream.resume(),
        }
    }

    fn acknowledge(&mut self, count: usize) {
        self.stream.acknowledge(count);
        self.unacknowledged = self.unacknowledged.saturating_sub(count);
    }

    fn push(&mut self, bytes: usize) {
        let seq = self.pushed.len() as u64;
        let before = self.stream.stats();
        let policy = self.stream.config().buffering.drop_policy;
        match self.stream.push_sized(self.now, seq as u32, bytes) {
            Ok(accepted_seq) => {
                assert_eq!(accepted_seq, seq);
                self.pushed.push((self.now, bytes));
                self.fresh.insert(seq);
                let drops = self.stream.stats().dropped - before.dropped;
                assert!(drops == 0 || policy != DropPolicy::None);
                self.unacknowledged += drops as usize;
                for _ in 0..drops {
                    match policy {
                        DropPolicy::Tail => self.fresh.pop_last(),
                        _ => self.fresh.pop_first(),
                    };
                }
            }
            Err(error) => {
                assert!(matches!(error, PushError::Full(item) if u64::from(item) == seq));
                assert_eq!(self.stream.stats().pushed, before.pushed);
            }
        }
    }

    fn answer(&mut self, at: usize, kind: u8) {
        let attempt = self.in_flight.swap_remove(at);
        assert!(self.stream.handle_outcome(self.now, attempt.id, outcome(kind, attempt.item)));
    }

    fn end(&mut self, seq: u64, result: Option<u32>) {
        assert!(self.ended.insert(seq, result).is_none(), "{seq} has two outcomes");
        assert!(!self.fresh.contains(&seq) && self.in_flight.iter().all(|attempt| attempt.seq != seq));
    }

    fn poll_result(&mut self) -> bool {
        let Some(ItemResult { seq, latency_ns, result, .. }) = self.stream.poll_result() else { return false };
        assert_eq!(u64::from(result), seq * 2);
        assert!(latency_ns <= self.now - self.pushed[seq as usize].0);
        self.end(seq, Some(result));
        if self.stream.config().ordering == Ordering::Strict {
            assert!(self.last_result_seq.is_none_or(|last| last < seq), "{seq} is out of order");
        }
        self.last_result_seq = Some(seq);
        true
    }

    fn poll_error(&mut self) -> bool {
        let Some(error) = self.stream.poll_error() else { return false };
        assert_eq!(u64::from(error.item), error.seq);
        assert_eq!(error.attempts, self.attempts.get(&error.seq).copied().unwrap_or(0));
        if error.cause == Cause::Dropped {
            self.drops += 1;
            assert_eq!(error.attempts, 0);
        }
        if matches!(error.cause, Cause::Failed(Failure::CircuitOpen { .. })) {
            self.fresh.remove(&error.seq);
        }
        self.end(error.seq, None);
        true
    }

    fn poll_batches(&mut self) {
        while let Some(released) = self.stream.poll_batch(self.now) {
            self.check_batch(&released);
            for attempt in released.attempts {
                let made = self.attempts.entry(attempt.seq).or_default();
                *made += 1;
                assert_eq!(attempt.attempt, *made);
                assert_eq!(self.fresh.remove(&attempt.seq), *made == 1);
                self.unacknowledged += usize::from(*made == 1);
                self.in_flight.push(attempt);
            }
        }
        self.check_remaining();
    }

    /// Checks that a batch obeys the rules of its reason.
    fn check_batch(&self, released: &ReleasedBatch<u32>) {
        let config = self.stream.config();
        let attempts = &released.attempts;
        let firsts: Vec<_> =
            attempts.iter().filter(|attempt| attempt.attempt == 1).map(|attempt| attempt.seq).collect();
        let stopping = matches!(self.stream.state(), StreamState::Stopping);
        let windowed = config.batching == Batching::Windowed;
        assert!(!attempts.is_empty() && attempts.len() <= config.max_batch_size);
        assert!(matches!(self.stream.state(), StreamState::Running | StreamState::Stopping));
        assert_eq!(released.reason == FlushReason::Shutdown, stopping);
        // First attempts are released in the order of their pushes, without a hole.
        assert!(firsts.iter().eq(self.fresh.iter().take(firsts.len())));
        if config.backpressure == BackpressurePolicy::AckBased && !firsts.is_empty() {
            assert!(self.stream.stats().unacknowledged <= config.limits.unacknowledged_max);
        }
        match released.reason {
            FlushReason::BatchSize if windowed => {
                assert_eq!((attempts.len(), firsts.len()), (config.batch_size, config.batch_size));
                assert!(config.aggregation != Aggregation::TimeOnly);
            }
            FlushReason::Timeout if windowed && !firsts.is_empty() => {
                assert_eq!(attempts.len(), firsts.len());
                assert!(config.aggregation != Aggregation::CountOnly);
                let oldest_ns = self.pushed[firsts[0] as usize].0;
                assert!(self.now >= oldest_ns + u64::from(config.window_ms) * MS);
                assert_eq!(firsts.len(), self.fresh.len().min(config.buffering.max_batch_size));
            }
            FlushReason::Timeout => assert!(firsts.is_empty(), "only retries have a due time"),
            FlushReason::Scheduled => assert!(!windowed || self.flushed.contains(&FlushReason::Scheduled)),
            FlushReason::Manual => assert!(self.flushed.contains(&FlushReason::Manual)),
            FlushReason::BackpressureAck => assert_eq!(config.backpressure, BackpressurePolicy::AckBased),
            FlushReason::BatchSize | FlushReason::Shutdown => {}
        }
    }

    /// Checks, after all batches were polled, that no release is delayed without a reason, and that the bounds hold.
    fn check_remaining(&self) {
        let config = self.stream.config();
        let stats = self.stream.stats();
        let held = stats.buffered + stats.in_flight + stats.unpolled;
        assert_eq!(stats.pushed, stats.delivered + stats.failed_total() + stats.dropped + held as u64);
        assert!(held <= config.buffering.max_buffer_size);
        assert!(self.stream.drops_unpolled <= config.buffering.max_buffer_size);
        assert!(self.stream.batches.len() <= config.limits.batches_in_flight_max);
        assert!(self.stream.flushes.len() <= self.fresh.len());
        assert_eq!(stats.in_flight, self.in_flight.len());
        if matches!(stats.state, StreamState::Running | StreamState::Paused) {
            assert_eq!(stats.unacknowledged, self.unacknowledged);
        }
        if config.backpressure == BackpressurePolicy::SizeBased {
            assert!(self.stream.held.items() <= 1 || self.stream.held.bytes() <= config.limits.buffer_bytes_max);
        }
        assert_eq!(self.stream.held.items(), held);
        let budget = config.limits.retry_budget;
        let allowed = u64::from(budget.ratio_percent) * self.attempts.len() as u64 / 100
            + u64::from(budget.retries_per_s_min) * (self.now / 1_000_000_000 + 2);
        assert!(stats.retried <= allowed);
        // The timeout is in the future, since everything due was polled.
        assert!(self.stream.poll_timeout().is_none_or(|wake_ns| wake_ns > self.now));

        let free = self.stream.batches.len() < config.limits.batches_in_flight_max;
        let is_closed = stats.breaker.is_none_or(|state| state == BreakerState::Closed);
        let is_size_based = config.backpressure == BackpressurePolicy::SizeBased;
        if !(free && is_closed && is_size_based && self.stream.state() == StreamState::Running) {
            return;
        }
        if config.batching == Batching::Adaptive {
            assert!(self.fresh.is_empty(), "a slot is free and items wait");
        } else {
            let counts = config.aggregation != Aggregation::TimeOnly;
            assert!(!counts || self.fresh.len() < config.batch_size);
            let times = config.aggregation != Aggregation::CountOnly;
            let oldest_ns = self.fresh.first().map(|seq| self.pushed[*seq as usize].0);
            let window_ns = u64::from(config.window_ms) * MS;
            assert!(!times || oldest_ns.is_none_or(|oldest_ns| self.now < oldest_ns + window_ns));
        }
    }

    /// Sends outcomes, polls, acknowledges and wakes at timeouts, until the stream is idle.
    fn run_until_idle(&mut self, kinds: &[u8]) {
        let mut kinds = kinds.iter().cycle();
        for _ in 0..100_000 {
            self.poll_batches();
            let polled = [self.poll_result(), self.poll_error()];
            self.acknowledge(polled.iter().filter(|polled| **polled).count());
            if !self.in_flight.is_empty() {
                self.answer(0, *kinds.next().unwrap());
            } else if polled == [false; 2] {
                match self.stream.poll_timeout() {
                    Some(wake_ns) => self.now = self.now.max(wake_ns),
                    None if self.stream.acks.unacknowledged() > 0 => self.acknowledge(usize::MAX),
                    None => return,
                }
            }
        }
        panic!("the stream does not become idle");
    }

    fn check_all_ended(&self) {
        assert!(self.ended.keys().copied().eq(0..self.pushed.len() as u64));
        let stats = self.stream.stats();
        let results = self.ended.values().flatten().count() as u64;
        assert_eq!((stats.delivered, stats.dropped), (results, self.drops));
        assert_eq!(stats.latency.count(), results);
        assert_eq!((stats.buffered, stats.in_flight, stats.unpolled), (0, 0, 0));
        assert_eq!((self.stream.held.items(), self.stream.held.bytes()), (0, 0));
        assert!(self.stream.flushes.is_empty() && self.stream.batches.is_empty());
        let attempts_max = self.stream.config().retry.max_attempts;
        assert!(self.attempts.values().all(|made| *made <= attempts_max));
        assert_eq!(stats.attempts, self.attempts.values().map(|made| u64::from(*made)).sum::<u64>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn each_item_has_exactly_one_outcome(
        config in configs(),
        ops in ops(),
        kinds in prop::collection::vec(0u8..10, 1..30),
        seed: u64,
    ) {
        let mut driver = Driver::new(config, seed);
        for op in ops {
            driver.apply(op);
            driver.poll_batches();
        }
        driver.stream.stop().unwrap();
        driver.run_until_idle(&kinds);
        prop_assert_eq!(driver.stream.state(), StreamState::Stopped);
        prop_assert!(driver.stream.is_drained());
        driver.check_all_ended();
    }

    #[test]
    fn abort_gives_each_item_an_outcome(config in configs(), ops in ops(), seed: u64) {
        let mut driver = Driver::new(config, seed);
        for op in ops {
            driver.apply(op);
            driver.poll_batches();
        }
        driver.stream.abort(&Failure::CircuitOpen { retry_after_ms: 1 }).unwrap();
        driver.in_flight.clear();
        while driver.poll_result() || driver.poll_error() {}
        prop_assert!(driver.stream.is_drained());
        driver.check_all_ended();
    }

    #[test]
    fn driver_that_waits_for_timers_finishes_without_a_stop(
        config in configs(),
        ops in ops(),
        kinds in prop::collection::vec(0u8..10, 1..30),
        seed: u64,
    ) {
        let by_count = config.batching == Batching::Windowed && config.aggregation == Aggregation::CountOnly;
        let batch_size = config.batch_size;
        let mut driver = Driver::new(config, seed);
        for op in ops {
            driver.apply(op);
        }
        if driver.stream.state() == StreamState::Paused {
            driver.stream.resume().unwrap();
        }
        driver.run_until_idle(&kinds);
        if by_count {
            prop_assert!(driver.fresh.len() < batch_size);
            prop_assert_eq!(driver.ended.len() + driver.fresh.len(), driver.pushed.len());
        } else {
            driver.check_all_ended();
        }
    }
}
