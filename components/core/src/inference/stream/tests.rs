//! Tests of a stream on virtual time.

mod properties;

use super::*;
use crate::inference::{
    breaker::BreakerState,
    retry::{RetryBudgetConfig, RetryConfig, RetryPolicy},
};

const MS: u64 = NS_PER_MS;

fn config(change: impl FnOnce(&mut StreamingConfig)) -> StreamingConfig {
    let mut config = StreamingConfig::default();
    config.retry.policy = RetryPolicy::FixedDelay;
    change(&mut config);
    config
}

fn windowed(aggregation: Aggregation) -> StreamingConfig {
    config(|config| {
        config.batching = Batching::Windowed;
        config.aggregation = aggregation;
        config.batch_size = 4;
    })
}

fn running(config: StreamingConfig) -> Stream<u32, u32> {
    let mut stream = Stream::new(config, 0, 7).unwrap();
    stream.start().unwrap();
    stream
}

fn push(stream: &mut Stream<u32, u32>, now: u64, items: std::ops::Range<u32>) {
    for item in items {
        stream.push(now, item).unwrap();
    }
}

/// The reason of the next batch, its sequence numbers and the ids of its attempts.
fn batch(stream: &mut Stream<u32, u32>, now: u64) -> Option<(FlushReason, Vec<u64>, Vec<u64>)> {
    let released = stream.poll_batch(now)?;
    let seqs = released.attempts.iter().map(|attempt| attempt.seq).collect();
    Some((released.reason, seqs, released.attempts.iter().map(|attempt| attempt.id).collect()))
}

/// Polls a batch, and reports the same outcome for all of its attempts.
fn answer(stream: &mut Stream<u32, u32>, now: u64, outcome: &Result<u32, Failure>) -> Option<(FlushReason, usize)> {
    let (reason, _, ids) = batch(stream, now)?;
    for id in &ids {
        assert!(stream.handle_outcome(now, *id, outcome.clone()));
    }
    Some((reason, ids.len()))
}

fn errors(stream: &mut Stream<u32, u32>) -> Vec<(u64, u32, String)> {
    let errors = std::iter::from_fn(|| stream.poll_error());
    errors.map(|error| (error.seq, error.attempts, error.cause.to_string())).collect()
}

fn results(stream: &mut Stream<u32, u32>) -> Vec<u64> {
    std::iter::from_fn(|| stream.poll_result()).map(|delivered| delivered.seq).collect()
}

fn unavailable() -> Result<u32, Failure> {
    Err(Failure::Unavailable("away".to_owned()))
}

#[test]
fn free_slot_releases_waiting_items() {
    let mut stream = running(config(|_| ()));
    push(&mut stream, 0, 0..1);
    assert_eq!(stream.poll_timeout(), Some(0));
    let (reason, seqs, first) = batch(&mut stream, 0).unwrap();
    assert_eq!((reason, seqs), (FlushReason::Scheduled, vec![0]));
    push(&mut stream, 1, 1..3);
    assert_eq!(batch(&mut stream, 1).unwrap().1, [1, 2]);
    // Both slots are in use: items pushed meanwhile make one batch, as large as a free slot releases.
    push(&mut stream, 2, 3..103);
    assert_eq!((batch(&mut stream, 2), stream.poll_timeout()), (None, None));
    stream.handle_outcome(3, first[0], Ok(1));
    let (reason, seqs, _) = batch(&mut stream, 3).unwrap();
    assert_eq!((reason, seqs.len()), (FlushReason::BatchSize, 64));
    assert_eq!(stream.stats().mean_batch_size(), 67.0 / 3.0);
}

#[test]
fn window_ends_by_time_or_count() {
    let mut stream = running(windowed(Aggregation::TimeAndCount));
    push(&mut stream, 0, 0..1);
    push(&mut stream, 9 * MS, 1..3);
    assert_eq!((batch(&mut stream, 249 * MS), stream.poll_timeout()), (None, Some(250 * MS)));
    let (reason, seqs, _) = batch(&mut stream, 250 * MS).unwrap();
    assert_eq!((reason, seqs), (FlushReason::Timeout, vec![0, 1, 2]));
    push(&mut stream, 251 * MS, 3..8);
    let (reason, seqs, _) = batch(&mut stream, 251 * MS).unwrap();
    assert_eq!((reason, seqs), (FlushReason::BatchSize, vec![3, 4, 5, 6]));
    // No slot is free, so there is no timeout.
    assert_eq!(stream.poll_timeout(), None);
}

#[test]
fn window_by_time_does_not_count() {
    let mut stream = running(windowed(Aggregation::TimeOnly));
    push(&mut stream, 0, 0..100);
    assert_eq!((batch(&mut stream, 0), stream.poll_timeout()), (None, Some(250 * MS)));
    let (reason, seqs, _) = batch(&mut stream, 250 * MS).unwrap();
    assert_eq!((reason, seqs.len()), (FlushReason::Timeout, 64));
    assert_eq!(batch(&mut stream, 250 * MS).unwrap().1.len(), 36);
}

#[test]
fn window_by_count_waits_for_a_flush() {
    let mut stream = running(windowed(Aggregation::CountOnly));
    push(&mut stream, 0, 0..6);
    assert_eq!(batch(&mut stream, 0).unwrap().1.len(), 4);
    assert_eq!((batch(&mut stream, u64::MAX), stream.poll_timeout()), (None, None));
    assert_eq!((stream.flush(FlushReason::Manual), stream.flush(FlushReason::Scheduled)), (2, 0));
    assert_eq!(stream.poll_timeout(), Some(0));
    push(&mut stream, 1, 6..7);
    let (reason, seqs, _) = batch(&mut stream, 1).unwrap();
    assert_eq!((reason, seqs), (FlushReason::Manual, vec![4, 5]));
    assert_eq!(stream.stats().batches(FlushReason::Manual), 1);
}

#[test]
fn flushes_keep_their_reasons_and_their_bound() {
    let mut stream = running(config(|config| {
        config.batching = Batching::Windowed;
        config.aggregation = Aggregation::TimeOnly;
        config.limits.batches_in_flight_max = 9;
    }));
    push(&mut stream, 0, 0..150);
    assert_eq!(stream.flush(FlushReason::Manual), 150);
    push(&mut stream, 0, 150..160);
    assert_eq!(stream.flush(FlushReason::Scheduled), 10);
    let sizes: Vec<_> =
        std::iter::from_fn(|| batch(&mut stream, 0)).map(|(reason, seqs, _)| (reason, seqs.len())).collect();
    assert_eq!(sizes, [(FlushReason::Manual, 128), (FlushReason::Manual, 22), (FlushReason::Scheduled, 10)]);
}

#[test]
fn full_buffer_blocks_or_drops() {
    let full = |drop_policy| {
        let mut stream = running(config(|config| {
            config.batch_size = 3;
            config.buffering =
                BufferingConfig { min_batch_size: 1, max_batch_size: 3, max_buffer_size: 3, drop_policy };
        }));
        stream.pause().unwrap();
        push(&mut stream, 0, 0..3);
        stream
    };
    let dropped = "the buffer is full and the item was dropped";

    let mut stream = full(DropPolicy::None);
    assert_eq!(stream.push(0, 3), Err(PushError::Full(3)));
    assert_eq!((stream.stats().pushed_back, errors(&mut stream)), (1, vec![]));

    let mut stream = full(DropPolicy::Head);
    assert_eq!(stream.push(0, 3), Ok(3));
    stream.resume().unwrap();
    assert_eq!(batch(&mut stream, 0).unwrap().1, [1, 2, 3]);
    // No waiting item can be dropped.
    assert_eq!(stream.push(0, 4), Err(PushError::Full(4)));
    assert_eq!(errors(&mut stream), [(0, 0, dropped.to_owned())]);

    let mut stream = full(DropPolicy::Tail);
    assert_eq!([3, 4, 5].map(|item| stream.push(0, item)), [Ok(3), Ok(4), Ok(5)]);
    // Unpolled drops cause backpressure too.
    assert_eq!(stream.push(0, 6), Err(PushError::Full(6)));
    assert_eq!(errors(&mut stream).len(), 3);
    assert_eq!(stream.push(0, 6), Ok(6));
    assert_eq!((stream.stats().dropped, stream.stats().pushed), (4, 7));
}

#[test]
fn byte_bound_drops_as_many_items_as_needed() {
    let mut stream = running(config(|config| {
        config.limits.buffer_bytes_max = 10;
        config.buffering.drop_policy = DropPolicy::Head;
    }));
    stream.pause().unwrap();
    for bytes in [4, 3, 3] {
        stream.push_sized(0, 0, bytes).unwrap();
    }
    stream.push_sized(0, 0, 7).unwrap();
    assert_eq!(errors(&mut stream).iter().map(|error| error.0).collect::<Vec<_>>(), [0, 1]);
    // An item over the bound is accepted alone.
    stream.push_sized(0, 0, 99).unwrap();
    assert_eq!(errors(&mut stream).len(), 2);
}

#[test]
fn strict_stream_delivers_in_order_and_skips_errors() {
    let mut stream = running(config(|config| config.ordering = Ordering::Strict));
    push(&mut stream, 0, 0..4);
    let ids = batch(&mut stream, 0).unwrap().2;
    stream.handle_outcome(1, ids[3], Ok(3));
    stream.handle_outcome(1, ids[1], Ok(1));
    assert_eq!(results(&mut stream), []);
    stream.handle_outcome(1, ids[0], Ok(0));
    assert_eq!(results(&mut stream), [0, 1]);
    stream.handle_outcome(1, ids[2], Err(Failure::Engine("cracked".to_owned())));
    assert_eq!(results(&mut stream), [3]);
    assert_eq!(errors(&mut stream), [(2, 1, "the engine failed on this text: cracked".to_owned())]);
}

#[test]
fn late_item_blocks_a_strict_stream() {
    let mut stream = running(config(|config| {
        config.ordering = Ordering::Strict;
        config.batch_size = 2;
        config.buffering.min_batch_size = 1;
        config.buffering.max_batch_size = 2;
        config.buffering.max_buffer_size = 2;
    }));
    push(&mut stream, 0, 0..1);
    batch(&mut stream, 0).unwrap();
    for item in 1..4 {
        push(&mut stream, 0, item..item + 1);
        assert!(answer(&mut stream, 0, &Err(Failure::Other("no".to_owned()))).is_some());
        assert_eq!(errors(&mut stream).len(), 1);
    }
    assert_eq!(stream.push(0, 4), Err(PushError::Full(4)));
    stream.handle_outcome(0, 0, Ok(0));
    assert_eq!(results(&mut stream), [0]);
    assert_eq!(stream.push(0, 4), Ok(4));
}

#[test]
fn transient_failures_are_retried_and_others_are_not() {
    let mut stream = running(config(|_| ()));
    push(&mut stream, 0, 0..2);
    let (_, _, ids) = batch(&mut stream, 0).unwrap();
    stream.handle_outcome(0, ids[0], unavailable());
    assert!(!stream.handle_outcome(0, ids[0], Ok(9)), "an attempt has one outcome");
    stream.handle_outcome(0, ids[1], Err(Failure::TooLong { tokens: 9, tokens_max: 5 }));
    assert_eq!(errors(&mut stream), [(1, 1, "the text has at least 9 tokens and the model takes 5".to_owned())]);
    assert_eq!((batch(&mut stream, 99 * MS), stream.poll_timeout()), (None, Some(100 * MS)));
    assert_eq!(answer(&mut stream, 100 * MS, &unavailable()), Some((FlushReason::Timeout, 1)));
    // The delay of the policy applies to a failure without a delay of its own.
    assert_eq!(stream.poll_timeout(), Some(200 * MS));
    let overloaded = Err(Failure::Overloaded { retry_after_ms: 5000 });
    assert_eq!(answer(&mut stream, 200 * MS, &overloaded), Some((FlushReason::Timeout, 1)));
    assert_eq!(errors(&mut stream), [(0, 3, "the model's queue is full; retry in 5000 ms".to_owned())]);
    let stats = stream.stats();
    assert_eq!((stats.retried, stats.failed(ErrorCategory::System), stats.failed(ErrorCategory::Client)), (2, 1, 1));
    push(&mut stream, 300 * MS, 2..3);
    answer(&mut stream, 300 * MS, &overloaded).unwrap();
    assert_eq!(stream.poll_timeout(), Some(5300 * MS));
}

#[test]
fn empty_budget_ends_the_retries() {
    let mut stream = running(config(|config| {
        config.limits.retry_budget =
            RetryBudgetConfig { ratio_percent: 10, retries_per_s_min: 0, saved_retries_max: 9 };
    }));
    push(&mut stream, 0, 0..25);
    answer(&mut stream, 0, &unavailable()).unwrap();
    let stats = stream.stats();
    assert_eq!((stats.retried, stats.retries_refused, errors(&mut stream).len()), (2, 23, 23));
}

#[test]
fn open_circuit_delays_batches_until_half_open() {
    let mut stream = running(config(|config| config.retry.policy = RetryPolicy::NoRetry));
    for item in 0..5 {
        push(&mut stream, 0, item..item + 1);
        assert!(answer(&mut stream, 0, &unavailable()).is_some());
    }
    push(&mut stream, MS, 5..105);
    assert_eq!((batch(&mut stream, MS), stream.poll_timeout()), (None, Some(30_000 * MS)));
    assert_eq!(stream.stats().breaker, Some(BreakerState::Open));
    assert_eq!(answer(&mut stream, 30_000 * MS, &Ok(0)), Some((FlushReason::BatchSize, 64)));
    assert_eq!(answer(&mut stream, 30_000 * MS, &Ok(0)), Some((FlushReason::BatchSize, 36)));
    assert_eq!(stream.stats().breaker, Some(BreakerState::Closed));
}

#[test]
fn stopping_stream_does_not_wait_for_an_open_circuit() {
    let mut stream = running(config(|_| ()));
    for at in 0..5 {
        push(&mut stream, at, 0..1);
        assert!(answer(&mut stream, at, &unavailable()).is_some());
    }
    push(&mut stream, 10, 0..1);
    stream.stop().unwrap();
    assert_eq!((batch(&mut stream, 20 * MS), stream.state()), (None, StreamState::Stopped));
    let errors = errors(&mut stream);
    assert_eq!(errors.len(), 6);
    assert_eq!(errors[5], (5, 0, "the model has failed too often and is left alone for 29981 ms".to_owned()));
    assert_eq!(errors[0].1, 1);
    assert!(stream.is_drained());
}

#[test]
fn rejected_item_does_not_count_against_the_model() {
    let mut stream = running(config(|config| config.retry.policy = RetryPolicy::NoRetry));
    for _ in 0..9 {
        push(&mut stream, 0, 0..2);
        let ids = batch(&mut stream, 0).unwrap().2;
        stream.handle_outcome(0, ids[0], Err(Failure::Engine("poison".to_owned())));
        stream.handle_outcome(0, ids[1], Ok(0));
    }
    assert_eq!(stream.stats().breaker, Some(BreakerState::Closed));

    let mut stream = running(config(|config| {
        config.retry = RetryConfig { circuit_breaker_policy: CircuitBreakerPolicy::Off, ..config.retry.clone() };
    }));
    for _ in 0..9 {
        push(&mut stream, 0, 0..1);
        assert!(answer(&mut stream, 0, &Err(Failure::Engine("down".to_owned()))).is_some());
    }
    assert_eq!(stream.stats().breaker, None);
}

#[test]
fn unacknowledged_results_block_further_input() {
    let mut stream = running(config(|config| {
        config.backpressure = BackpressurePolicy::AckBased;
        config.limits.unacknowledged_max = 10;
    }));
    push(&mut stream, 0, 0..40);
    // There is room for ten of them only.
    assert_eq!(answer(&mut stream, 0, &Ok(0)), Some((FlushReason::BackpressureAck, 10)));
    assert_eq!((batch(&mut stream, 0), stream.poll_timeout()), (None, None));
    // Room for fewer items than `min_batch_size` releases no batch.
    stream.acknowledge(7);
    assert_eq!((batch(&mut stream, 0), stream.poll_timeout()), (None, None));
    stream.acknowledge(1);
    assert_eq!(stream.poll_timeout(), Some(0));
    assert_eq!(answer(&mut stream, 0, &Ok(0)), Some((FlushReason::BackpressureAck, 8)));
    assert_eq!(stream.stats().unacknowledged, 10);
}

#[test]
fn acknowledgement_releases_waiting_items() {
    let mut stream = running(config(|config| {
        config.backpressure = BackpressurePolicy::AckBased;
        config.limits.unacknowledged_max = 8;
    }));
    push(&mut stream, 0, 0..8);
    assert_eq!(answer(&mut stream, 0, &Ok(0)), Some((FlushReason::Scheduled, 8)));
    push(&mut stream, 0, 8..10);
    assert_eq!(answer(&mut stream, 0, &Ok(0)), None);
    stream.acknowledge(8);
    assert_eq!(answer(&mut stream, 0, &Ok(0)), Some((FlushReason::BackpressureAck, 2)));
    push(&mut stream, 0, 10..11);
    assert_eq!(answer(&mut stream, 0, &Ok(0)), Some((FlushReason::Scheduled, 1)));
}

#[test]
fn retries_are_first_in_the_batch() {
    let mut stream = running(config(|config| {
        config.batch_size = 2;
        config.buffering.min_batch_size = 1;
        config.buffering.max_batch_size = 2;
    }));
    push(&mut stream, 0, 0..2);
    answer(&mut stream, 0, &unavailable()).unwrap();
    push(&mut stream, 100 * MS, 2..5);
    let (reason, seqs, ids) = batch(&mut stream, 100 * MS).unwrap();
    assert_eq!((reason, seqs), (FlushReason::Timeout, vec![0, 1]));
    for id in ids {
        stream.handle_outcome(101 * MS, id, unavailable());
    }
    push(&mut stream, 101 * MS, 5..6);
    let (reason, seqs, _) = batch(&mut stream, 101 * MS).unwrap();
    assert_eq!((reason, seqs), (FlushReason::BatchSize, vec![2, 3]));
    // Adaptive batching mixes retries and first attempts; windowed batching does not.
    let adaptive = running(config(|_| ()));
    for (mut stream, want) in [(adaptive, vec![0, 1]), (running(windowed(Aggregation::TimeAndCount)), vec![0])] {
        push(&mut stream, 0, 0..1);
        answer(&mut stream, 250 * MS, &unavailable()).unwrap();
        push(&mut stream, 250 * MS, 1..2);
        assert_eq!(batch(&mut stream, 600 * MS).unwrap().1, want);
    }
}

#[test]
fn commands_are_legal_in_their_states_only() {
    type Command = fn(&mut Stream<u32, u32>) -> Result<(), TransitionError>;
    let commands: [Command; 5] = [Stream::start, Stream::pause, Stream::resume, Stream::stop, |stream| {
        stream.abort(&Failure::Other("enough".to_owned()))
    }];
    let mut table = String::new();
    let prepare: [&[usize]; 6] = [&[], &[0], &[0, 1], &[0, 3], &[3], &[4]];
    for prepare in prepare {
        let mut prepared = running(config(|_| ()));
        prepared.state = StreamState::Initialized;
        for at in prepare {
            if *at == 3 && prepared.state() == StreamState::Running {
                prepared.push(0, 0).unwrap();
            }
            commands[*at](&mut prepared).unwrap();
        }
        table.push_str(&format!("{:<11} ", prepared.state()));
        for command in commands {
            let mut stream =
                Stream { random: prepared.random.clone(), ..Stream::new(prepared.config.clone(), 0, 0).unwrap() };
            stream.state = prepared.state;
            stream.waiting = prepared.waiting.clone();
            let next = command(&mut stream).map_or("-", |()| stream.state().name());
            table.push_str(&format!("{next:<9}"));
        }
        let accepts = prepared.push(0, 0).is_ok();
        table.push_str(if accepts { "takes\n" } else { "refuses\n" });
    }
    expect_test::expect![[r#"
        initialized running  -        -        stopped  error    refuses
        running     -        paused   -        stopped  error    takes
        paused      -        -        running  stopped  error    takes
        stopping    -        -        -        -        error    refuses
        stopped     -        -        -        -        -        refuses
        error       -        -        -        -        -        refuses
    "#]]
    .assert_eq(&table);
}

#[test]
fn pause_releases_no_batch_and_delivers_outcomes() {
    let mut stream = running(config(|_| ()));
    push(&mut stream, 0, 0..1);
    let ids = batch(&mut stream, 0).unwrap().2;
    stream.pause().unwrap();
    push(&mut stream, 0, 1..3);
    assert_eq!((batch(&mut stream, 0), stream.poll_timeout()), (None, None));
    stream.handle_outcome(7, ids[0], Ok(0));
    assert_eq!(stream.poll_result(), Some(ItemResult { seq: 0, latency_ns: 7, attempts: 1, result: 0 }));
    stream.resume().unwrap();
    assert_eq!(batch(&mut stream, 0).unwrap().1, [1, 2]);
}

#[test]
fn stop_releases_waiting_items_and_ends_after_the_last_poll() {
    let mut stream = running(windowed(Aggregation::TimeAndCount));
    push(&mut stream, 0, 0..3);
    stream.stop().unwrap();
    assert_eq!(stream.push(0, 3), Err(PushError::NotRunning(3)));
    let (reason, _, ids) = batch(&mut stream, 0).unwrap();
    assert_eq!((reason, ids.len()), (FlushReason::Shutdown, 3));
    stream.handle_outcome(0, ids[0], unavailable());
    stream.handle_outcome(0, ids[1], Ok(1));
    stream.handle_outcome(0, ids[2], Ok(2));
    assert_eq!((stream.state(), stream.poll_timeout()), (StreamState::Stopping, Some(100 * MS)));
    assert_eq!(answer(&mut stream, 100 * MS, &Ok(0)), Some((FlushReason::Shutdown, 1)));
    assert_eq!((stream.state(), stream.is_drained()), (StreamState::Stopped, false));
    assert_eq!(results(&mut stream), [1, 2, 0]);
    assert!(stream.is_drained());
    assert_eq!((stream.poll_timeout(), batch(&mut stream, u64::MAX)), (None, None));
    assert_eq!(stream.stats().latency.max_ns(), 100 * MS);
}

#[test]
fn abort_fails_all_items_at_once() {
    let mut stream = running(config(|config| config.ordering = Ordering::Strict));
    push(&mut stream, 0, 0..3);
    let ids = batch(&mut stream, 0).unwrap().2;
    stream.handle_outcome(0, ids[1], unavailable());
    stream.handle_outcome(0, ids[2], Ok(2));
    push(&mut stream, 0, 3..4);
    stream.abort(&Failure::RequestTimeout { timeout_ms: 9 }).unwrap();
    assert!(!stream.handle_outcome(0, ids[0], Ok(0)));
    let attempts: Vec<_> = errors(&mut stream).into_iter().map(|(seq, attempts, _)| (seq, attempts)).collect();
    assert_eq!(attempts, [(0, 1), (1, 1), (3, 0)]);
    assert_eq!((results(&mut stream), stream.is_drained()), (vec![2], true));
}
