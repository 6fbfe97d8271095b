use std::task::Waker;
use std::time::Duration;

use weir_core::inference::breaker::BreakerConfig;
use weir_core::inference::queue::{Aggregation, QueueConfig, Window};
use weir_core::inference::retry::{RetryBudgetConfig, RetryConfig};

use super::*;
use crate::inference::call::{self, Outcomes};
use crate::types::{ClassifyOptions, Overflow, Task, WhenFull};

fn settings() -> QueueSettings {
    QueueSettings {
        bounds: QueueConfig {
            items_max: 16,
            tokens_max: 100_000,
            owner_items_max: 16,
            quantum_tokens: 64,
            age_ns_max: 1_000_000_000,
            drop_policy: DropPolicy::None,
            window: None,
        },
        text_tokens_max: 512,
        retry: RetryConfig { base_backoff_ms: 0, ..RetryConfig::default() },
        budget: RetryBudgetConfig::default(),
        breaker: Some(BreakerConfig { failures_to_open: 2, ..BreakerConfig::default() }),
        check_thread: Arc::default(),
    }
}

/// A queue whose clock stands still.
fn queue_with(settings: QueueSettings, replicas: usize) -> Queue {
    Queue::with_clock(settings, replicas, Clock::manual())
}

fn item(id: u64) -> SharedItem {
    SharedItem {
        id,
        model: "m".into(),
        text: "".into(),
        text_pair: None,
        overflow: Overflow::Truncate,
        deadline_ms: None,
        when_full: WhenFull::Fail,
        traceparent: None,
        task: Task::Classify(ClassifyOptions { top_k: None, activation: None }),
    }
}

fn push(queue: &Queue, id: u64) -> Outcomes {
    let (reply, outcomes) = call::test_reply(id);
    let item = item(id);
    let ticket = queue.ticket(1, 0, &item);
    queue.push(Job::new(item, reply, ticket, None));
    outcomes
}

fn take(queue: &Queue, replica: usize, is_busy: bool) -> Option<Vec<Job>> {
    let request = TakeRequest { replica, items_max: 64, tokens_max: 10_000, is_busy, has_suspect: false };
    match queue.poll_take(&request, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Assignment::Jobs(jobs)) => Some(jobs),
        Poll::Ready(Assignment::Suspect(job)) => Some(vec![*job]),
        Poll::Pending => None,
    }
}

fn ids(jobs: Option<Vec<Job>>) -> Option<Vec<u64>> {
    jobs.map(|jobs| jobs.iter().map(|job| job.item.id).collect())
}

async fn failure(outcomes: &mut Outcomes) -> Failure {
    outcomes.recv().await.unwrap().result.unwrap_err()
}

#[test]
fn replica_gets_its_share_of_the_waiting_items() {
    let queue = queue_with(settings(), 2);
    let receivers: Vec<Outcomes> = (0..5).map(|id| push(&queue, id)).collect();
    // Half of the waiting tokens, and at least one item.
    assert_eq!(ids(take(&queue, 0, false)), Some(vec![0, 1]));
    for id in 2..5 {
        assert_eq!(ids(take(&queue, 1, false)), Some(vec![id]));
    }
    assert_eq!(ids(take(&queue, 1, false)), None);
    drop(receivers);
}

/// Offers an empty item of a call with an owner of its own; whether it is queued, and the receiver of its outcome.
fn offer(queue: &Queue, id: u64, call: u64, is_paced: bool) -> (bool, Outcomes) {
    let (reply, outcomes) = call::test_reply(id);
    let item = item(id);
    let ticket = queue.ticket(call, call, &item);
    (queue.offer(Job::new(item, reply, ticket, None), is_paced).is_ok(), outcomes)
}

/// The bound is 16 items, of which the items of one call take half.
#[tokio::test]
async fn items_of_a_call_wait_for_earlier_ones_and_leave_room_for_others() {
    let queue = queue_with(settings(), 1);
    let mut receivers = Vec::new();
    for id in 0..8 {
        let (is_queued, receiver) = offer(&queue, id, 1, false);
        assert!(is_queued, "{id}");
        receivers.push(receiver);
    }
    assert!(!offer(&queue, 8, 1, false).0, "the rest is the room of others");
    let departure = queue.departure();
    assert_eq!(ids(take(&queue, 0, false)).map(|ids| ids.len()), Some(8));
    tokio::time::timeout(Duration::from_secs(30), departure).await.expect("a departure");
    for id in 8..16 {
        let (is_queued, receiver) = offer(&queue, id, 1, true);
        assert!(is_queued, "{id}");
        receivers.push(receiver);
    }
    // Items of other calls fill the rest, and are refused once there is no room.
    for id in 16..24 {
        let (is_queued, receiver) = offer(&queue, id, id, false);
        assert!(is_queued, "{id}");
        receivers.push(receiver);
    }
    let (is_queued, mut refused) = offer(&queue, 24, 24, false);
    assert!(is_queued && matches!(failure(&mut refused).await, Failure::Overloaded(_)));
    // An item of the admitted call waits, also when none of its call is queued.
    assert!(!offer(&queue, 25, 1, true).0);
    queue.cancel(1);
    receivers.extend((25..33).map(|id| offer(&queue, id, 30, false).1));
    assert!(!offer(&queue, 33, 1, true).0);
    assert_eq!(queue.depth().0, 16);
}

/// Where others take the room, an item is refused although one of its call waits.
#[tokio::test]
async fn item_is_refused_where_other_calls_fill_the_queue() {
    let queue = queue_with(settings(), 1);
    let receivers: Vec<Outcomes> = (0..16).map(|id| offer(&queue, id, id, false).1).collect();
    let (is_queued, mut refused) = offer(&queue, 16, 0, false);
    assert!(is_queued && matches!(failure(&mut refused).await, Failure::Overloaded(_)));
    drop(receivers);
}

#[test]
fn long_text_that_is_truncated_counts_with_the_tokens_that_are_computed() {
    let queue = queue_with(settings(), 1);
    let long = |overflow| SharedItem { text: "x".repeat(1_000_000).into(), overflow, ..item(0) };
    let tokens = |item: &SharedItem| queue.ticket(1, 0, item).tokens;
    for overflow in [Overflow::Truncate, Overflow::TruncateLeft, Overflow::Fail] {
        assert_eq!(tokens(&long(overflow)), 512, "{overflow:?}");
    }
    assert_eq!(tokens(&long(Overflow::Split)), 250_002);
    // A text pair has the same bound.
    let pair = SharedItem { text_pair: Some("x".repeat(1_000_000).into()), ..item(0) };
    assert_eq!(tokens(&pair), 512);
    // The ratio of tokens and bytes is that of whole texts.
    let short = SharedItem { text: "x".repeat(400).into(), ..item(0) };
    for _ in 0..1_000 {
        queue.record_answer(&long(Overflow::Truncate), 512, 1_000_000);
    }
    assert_eq!(tokens(&short), 102);
    for _ in 0..1_000 {
        queue.record_answer(&short, 202, 1_000_000);
    }
    assert!((200..=202).contains(&tokens(&short)), "{}", tokens(&short));
}

#[tokio::test]
async fn truncated_text_delays_others_only_by_the_tokens_that_are_computed() {
    let queue = queue_with(settings(), 1);
    // 1,000 tokens a second.
    for _ in 0..100 {
        queue.record_answer(&item(0), 1_000, 1_000_000_000);
    }
    let push = |id: u64, text: String, deadline_ms: Option<u32>| {
        let (reply, outcomes) = call::test_reply(id);
        let item = SharedItem { deadline_ms, text: text.into(), ..item(id) };
        let ticket = queue.ticket(1, 0, &item);
        queue.push(Job::new(item, reply, ticket, None));
        outcomes
    };
    let _long = push(0, "x".repeat(1_000_000), None);
    // 512 tokens, half a second, are before both.
    let _in_time = push(1, "x".to_owned(), Some(5_000));
    let mut late = push(2, "x".to_owned(), Some(100));
    assert!(matches!(failure(&mut late).await, Failure::Overloaded(1..1_000)));
    assert_eq!(ids(take(&queue, 0, false)), Some(vec![0, 1]));
}

/// An item with more time, or without a deadline, is queued.
#[tokio::test]
async fn item_that_would_miss_its_deadline_is_refused_at_once() {
    let queue = queue_with(settings(), 1);
    // 1,000 tokens a second.
    for _ in 0..100 {
        queue.record_answer(&item(0), 1_000, 1_000_000_000);
    }
    let push = |id: u64, call: u64, deadline_ms: Option<u32>| {
        let (reply, outcomes) = call::test_reply(id);
        let item = SharedItem { deadline_ms, text: "x".repeat(80).into(), ..item(id) };
        let ticket = queue.ticket(call, 0, &item);
        queue.push(Job::new(item, reply, ticket, None));
        outcomes
    };
    let mut receivers: Vec<Outcomes> = (0..10).map(|id| push(id, 1, None)).collect();
    // 22 tokens each: ten take 220 ms, so this one would be complete after 242 ms.
    let mut late = push(10, 1, Some(250));
    assert!(matches!(failure(&mut late).await, Failure::Overloaded(1..200)));
    receivers.push(push(11, 1, Some(400)));
    // An item of another call waits for the turn of its call, not for all items of the first.
    receivers.push(push(12, 2, Some(250)));
    // Items in flight count until they have an outcome.
    let in_flight = take(&queue, 0, false).unwrap();
    assert_eq!(in_flight.len(), 12);
    receivers.push(push(13, 3, None));
    assert!(matches!(failure(&mut push(14, 4, Some(200))).await, Failure::Overloaded(_)));
    drop(in_flight);
    receivers.push(push(15, 5, Some(200)));
    // An item with a deadline is due before an earlier one without.
    assert_eq!(ids(take(&queue, 0, false)), Some(vec![15, 13]));
}

#[tokio::test]
async fn unavailable_queue_answers_every_item() {
    let queue = queue_with(settings(), 1);
    let mut first = push(&queue, 0);
    queue.set_unavailable(Some("the replica is lost".into()));
    let mut second = push(&queue, 1);
    for outcomes in [&mut first, &mut second] {
        assert_eq!(failure(outcomes).await, Failure::Unavailable("the replica is lost".into()));
    }
    queue.set_unavailable(None);
    let _receiver = push(&queue, 2);
    assert_eq!(ids(take(&queue, 0, false)), Some(vec![2]));
}

#[tokio::test]
async fn items_of_a_lost_replica_are_retried_one_by_one() {
    let queue = queue_with(settings(), 1);
    let mut outcomes: Vec<Outcomes> = (0..3).map(|id| push(&queue, id)).collect();
    let jobs = take(&queue, 0, false).unwrap();
    assert_eq!(jobs.len(), 3);
    assert!(queue.requeue_lost(jobs, false).is_empty());
    let _late = push(&queue, 3);
    assert_eq!(ids(take(&queue, 0, true)), None, "a suspect waits until the replica is idle");
    let first = take(&queue, 0, false).unwrap();
    assert_eq!(first.len(), 1);
    // The replica is lost again while it computes this item alone, so the item is the culprit.
    let culprits = queue.requeue_lost(first, true);
    assert_eq!(ids(Some(culprits)), Some(vec![0]));
    for id in 1..3 {
        let mut jobs = take(&queue, 0, false).unwrap();
        let job = queue.settle(jobs.remove(0), None).unwrap();
        assert_eq!(job.item.id, id);
        job.reply.send(1, Ok(crate::types::Output::Summary(String::new())));
        assert!(outcomes[id as usize].recv().await.unwrap().result.is_ok());
    }
    assert_eq!(ids(take(&queue, 0, false)), Some(vec![3]));
    assert_eq!(queue.counts.retried.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn transient_failure_is_retried_and_a_permanent_one_is_answered() {
    let queue = queue_with(settings(), 1);
    let _outcomes = push(&queue, 0);
    let unavailable = Failure::Unavailable("for now".into());
    for _ in 0..2 {
        let job = take(&queue, 0, false).unwrap().remove(0);
        assert!(queue.settle(job, Some(&unavailable)).is_none());
        queue.tick();
    }
    let job = take(&queue, 0, false).unwrap().remove(0);
    assert!(queue.settle(job, Some(&unavailable)).is_some(), "there are three attempts");
    let queue = queue_with(settings(), 1);
    let _outcomes = push(&queue, 0);
    let job = take(&queue, 0, false).unwrap().remove(0);
    assert!(queue.settle(job, Some(&Failure::Engine(String::new()))).is_some());
}

#[tokio::test]
async fn circuit_opens_for_failures_in_a_row_and_not_for_single_ones() {
    let queue = queue_with(settings(), 1);
    let settle_next = |ok: bool| {
        let outcomes = push(&queue, 0);
        let job = take(&queue, 0, false).expect("an admitted item").remove(0);
        let engine = Failure::Engine(String::new());
        drop(queue.settle(job, (!ok).then_some(&engine)));
        drop(outcomes);
    };
    for _ in 0..20 {
        settle_next(false);
        settle_next(true);
    }
    (0..3).for_each(|_| settle_next(false));
    assert!(!queue.depth().2, "three failures in a row, of which the first is not counted");
    let mut outcomes = push(&queue, 1);
    assert_eq!(failure(&mut outcomes).await, Failure::CircuitOpen(30_000));
    assert_eq!(queue.counts.refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn probes_of_an_unavailable_queue_return_their_permits() {
    let breaker = BreakerConfig { failures_to_open: 1, open_ns: 300_000_000, ..BreakerConfig::default() };
    let queue = queue_with(QueueSettings { breaker: Some(breaker), ..settings() }, 1);
    for _ in 0..2 {
        let _outcomes = push(&queue, 0);
        let job = take(&queue, 0, false).expect("an admitted item").remove(0);
        drop(queue.settle(job, Some(&Failure::Engine(String::new()))));
    }
    assert!(!queue.depth().2, "two failures in a row, of which the first is not counted");
    queue.clock.advance(Duration::from_millis(300));
    let mut probes = [push(&queue, 1), push(&queue, 2)];
    queue.set_unavailable(Some("the replica is lost".into()));
    for outcomes in &mut probes {
        assert!(matches!(failure(outcomes).await, Failure::Unavailable(_)));
    }
    queue.set_unavailable(None);
    let _receiver = push(&queue, 3);
    assert_eq!(ids(take(&queue, 0, false)), Some(vec![3]), "the next probe is admitted");
}

#[tokio::test]
async fn full_queue_refuses_items_with_a_retry_delay() {
    let mut small = settings();
    small.bounds.items_max = 2;
    small.bounds.owner_items_max = 1;
    let queue = queue_with(small, 1);
    let _first = push(&queue, 0);
    assert!(matches!(failure(&mut push(&queue, 1)).await, Failure::Throttled(ms) if ms >= 1));

    let mut full = settings();
    full.bounds.items_max = 1;
    let queue = queue_with(full, 1);
    let _first = push(&queue, 0);
    assert!(matches!(failure(&mut push(&queue, 1)).await, Failure::Overloaded(ms) if ms >= 1));
    assert_eq!(queue.counts.overloaded.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn expired_items_are_answered_and_windows_can_be_flushed() {
    let mut windowed = settings();
    windowed.bounds.window = Some(Window { aggregation: Aggregation::CountOnly, batch_size: 3, window_ns: 0 });
    let queue = queue_with(windowed, 1);
    let (reply, mut late) = call::test_reply(0);
    let dated = SharedItem { deadline_ms: Some(0), ..item(0) };
    let ticket = queue.ticket(1, 0, &dated);
    queue.push(Job::new(dated, reply, ticket, None));
    queue.tick();
    assert_eq!(failure(&mut late).await, Failure::DeadlineExceeded);
    let _receiver = push(&queue, 1);
    assert_eq!(ids(take(&queue, 0, false)), None);
    assert_eq!(queue.flush(), 1);
    assert_eq!(ids(take(&queue, 0, false)), Some(vec![1]));
}
