use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const CONFIG: QueueConfig = QueueConfig {
    items_max: 1_000_000,
    tokens_max: u64::MAX,
    owner_items_max: usize::MAX,
    quantum_tokens: 128,
    age_ns_max: 1_000_000_000,
    drop_policy: DropPolicy::None,
    window: None,
};

fn ticket(call: u64, tokens: u64) -> Ticket {
    Ticket { call, owner: 0, tokens, deadline_ns: None }
}

fn due(call: u64, tokens: u64, deadline_ns: u64) -> Ticket {
    Ticket { deadline_ns: Some(deadline_ns), ..ticket(call, tokens) }
}

#[test]
fn one_call_is_served_in_its_order() {
    let mut queue = Queue::new(CONFIG);
    for value in 0..5 {
        queue.push(value, ticket(1, 10), value);
    }
    assert_eq!(queue.take(9, 2, 1000), vec![0, 1]);
    assert_eq!(queue.take(9, 9, 25), vec![2, 3]);
    assert_eq!(queue.take(9, 9, 1), vec![4], "at least one item");
    assert!(queue.take(9, 9, 1).is_empty() && queue.is_empty() && queue.tokens() == 0 && queue.calls() == 0);
}

#[test]
fn earliest_deadline_of_a_call_is_served_first() {
    let mut queue = Queue::new(CONFIG);
    queue.push(0, ticket(1, 1), "undated");
    queue.push(0, due(1, 1, 900), "late");
    queue.push(0, due(1, 1, 100), "early");
    queue.push(0, due(1, 1, 500), "middle");
    assert_eq!(queue.take(0, 9, 99), ["early", "middle", "late", "undated"]);
}

#[test]
fn item_without_a_deadline_becomes_due() {
    let mut queue = Queue::new(CONFIG);
    queue.push(0, ticket(1, 1), "old");
    let late = CONFIG.age_ns_max;
    queue.push(late, due(1, 1, late + 5), "dated");
    assert_eq!(queue.take(late, 9, 99), ["old", "dated"]);
}

#[test]
fn expired_item_is_never_taken() {
    let mut queue = Queue::new(CONFIG);
    queue.push(0, due(1, 1, 50), "expires");
    queue.push(0, ticket(1, 1), "stays");
    assert_eq!(queue.poll_timeout(), Some(50));
    assert_eq!(queue.poll_expired(49), None);
    assert!(queue.take(50, 9, 99).is_empty(), "the expired item must be removed first");
    assert_eq!(queue.poll_expired(50), Some("expires"));
    assert_eq!(queue.poll_expired(50), None);
    assert_eq!(queue.take(50, 9, 99), ["stays"]);
}

#[test]
fn abandoned_call_is_removed() {
    let mut queue = Queue::new(CONFIG);
    for value in 0..6 {
        queue.push(0, if value % 3 == 0 { due(value % 2, 5, 1000 - value) } else { ticket(value % 2, 5) }, value);
    }
    let mut cancelled = queue.cancel(1);
    cancelled.sort_unstable();
    assert_eq!(cancelled, [1, 3, 5]);
    assert_eq!((queue.len(), queue.tokens()), (3, 15));
    assert_eq!(queue.take(0, 9, 99), [0, 2, 4]);
}

#[test]
fn full_queue_refuses_or_drops_by_its_policy() {
    let small = QueueConfig { items_max: 2, ..CONFIG };
    let mut none = Queue::new(small);
    none.push(0, ticket(1, 1), 0);
    none.push(0, ticket(1, 1), 1);
    assert_eq!(none.push(0, ticket(1, 1), 2), PushOutcome::Refused(PushRefusal::Full, 2));

    let mut head = Queue::new(QueueConfig { drop_policy: DropPolicy::Head, ..small });
    head.push(0, ticket(1, 1), 0);
    head.push(0, ticket(2, 1), 1);
    assert_eq!(head.push(0, ticket(3, 1), 2), PushOutcome::Dropped(vec![0]));
    assert_eq!(head.take(0, 9, 99), [1, 2]);

    let mut tokens = Queue::new(QueueConfig { tokens_max: 10, ..CONFIG });
    assert_eq!(tokens.push(0, ticket(1, 50), 0), PushOutcome::Waits, "a single item may exceed the bound");
    assert_eq!(tokens.push(0, ticket(1, 1), 1), PushOutcome::Refused(PushRefusal::Full, 1));

    let mut share = Queue::new(QueueConfig { owner_items_max: 1, ..CONFIG });
    assert_eq!(share.push(0, ticket(1, 1), 0), PushOutcome::Waits);
    assert_eq!(share.push(0, ticket(2, 1), 1), PushOutcome::Refused(PushRefusal::Share, 1));
    assert_eq!(share.push(0, Ticket { owner: 7, ..ticket(3, 1) }, 2), PushOutcome::Waits);
}

#[test]
fn windows_close_as_configured() {
    let window = |aggregation| Some(Window { aggregation, batch_size: 3, window_ns: 100 });
    let with = |aggregation| Queue::new(QueueConfig { window: window(aggregation), ..CONFIG });

    let mut both = with(Aggregation::TimeAndCount);
    both.push(0, ticket(1, 1), 0);
    both.push(10, ticket(1, 1), 1);
    assert!(both.take(99, 9, 99).is_empty());
    assert_eq!(both.poll_timeout(), Some(100));
    assert_eq!(both.take(100, 9, 99), [0, 1]);
    for value in 0..3 {
        both.push(200, ticket(1, 1), value);
    }
    both.push(200, ticket(1, 1), 3);
    assert_eq!(both.take(200, 9, 99), [0, 1, 2], "three items fill a batch, and the fourth waits");

    let mut time = with(Aggregation::TimeOnly);
    (0..5).for_each(|value| drop(time.push(0, ticket(1, 1), value)));
    assert!(time.take(99, 9, 99).is_empty());
    assert_eq!(time.take(100, 9, 99).len(), 5);

    let mut count = with(Aggregation::CountOnly);
    count.push(0, ticket(1, 1), 0);
    assert_eq!((count.poll_timeout(), count.take(1 << 40, 9, 99).len()), (None, 0));
    assert_eq!(count.flush(), 1);
    assert_eq!(count.take(1 << 40, 9, 99), [0]);
}

#[test]
fn retry_after_follows_the_drain_rate() {
    let mut rate = Rate::default();
    for _ in 0..1000 {
        rate.served(100, 10_000_000);
    }
    assert!((rate.tokens_per_second() - 10_000.0).abs() < 100.0, "{}", rate.tokens_per_second());
    assert!((990..=1010).contains(&rate.wait_ms(20_000, 2)), "{}", rate.wait_ms(20_000, 2));
    assert_eq!((rate.wait_ms(0, 1), rate.wait_ms(u64::MAX, 1)), (1, 60_000));
}

#[derive(Debug, Clone)]
enum Step {
    Push { call: u64, tokens: u64, deadline_in: Option<u64> },
    Take { items: usize, tokens: u64 },
    Cancel { call: u64 },
    Wait { ns: u64 },
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u64..6, 0u64..200, prop::option::of(0u64..400))
            .prop_map(|(call, tokens, deadline_in)| Step::Push { call, tokens, deadline_in }),
        3 => (1usize..6, 1u64..400).prop_map(|(items, tokens)| Step::Take { items, tokens }),
        1 => (0u64..6).prop_map(|call| Step::Cancel { call }),
        2 => (0u64..200).prop_map(|ns| Step::Wait { ns }),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 0..300)
}

fn configs() -> impl Strategy<Value = QueueConfig> {
    let policy = prop_oneof![Just(DropPolicy::None), Just(DropPolicy::Head), Just(DropPolicy::Tail)];
    let aggregation =
        prop_oneof![Just(Aggregation::TimeAndCount), Just(Aggregation::TimeOnly), Just(Aggregation::CountOnly)];
    let window = prop::option::of((aggregation, 1usize..10, 1u64..300)).prop_map(|window| {
        window.map(|(aggregation, batch_size, window_ns)| Window { aggregation, batch_size, window_ns })
    });
    (1usize..40, 1u64..3000, 1usize..30, 1u64..300, policy, window).prop_map(
        |(items_max, tokens_max, owner_items_max, quantum_tokens, drop_policy, window)| QueueConfig {
            items_max,
            tokens_max,
            owner_items_max,
            quantum_tokens,
            age_ns_max: 500,
            drop_policy,
            window,
        },
    )
}

#[test]
fn items_served_before_an_item_are_bounded_by_turns() {
    let mut queue = Queue::new(CONFIG);
    assert_eq!(queue.until_served(1, 20), 20);
    for value in 0..1000 {
        queue.push(0, ticket(0, 10), value);
    }
    // The call with many items waits for all of them; another one waits for a turn of each.
    assert_eq!(queue.until_served(0, 10), 10_010 + 128);
    assert_eq!(queue.until_served(1, 20), 2 * (20 + 128));
    for call in 1..=500 {
        queue.push(0, ticket(call, 10), 0);
    }
    assert_eq!(queue.until_served(501, 20), 15_020);
    // A call that needs several turns shares them with later calls.
    for _ in 0..30 {
        queue.push(0, ticket(501, 20), 0);
    }
    assert!(queue.until_served(501, 20) > 501 * 200);
}

proptest! {
    /// No item is lost or duplicated, bounds hold, expired items are not taken, and items of a window are released in
    /// time.
    #[test]
    fn each_item_leaves_exactly_once(config in configs(), steps in steps()) {
        let mut queue = Queue::new(config);
        let (mut now, mut next) = (0u64, 0usize);
        let mut pushed: Vec<(u64, Option<u64>)> = Vec::new();
        let mut removed: HashSet<usize> = HashSet::new();
        let remove = |value: usize, removed: &mut HashSet<usize>| {
            prop_assert!(removed.insert(value), "{value} was removed twice");
            Ok(())
        };
        for step in steps {
            match step {
                Step::Push { call, tokens, deadline_in } => {
                    let deadline_ns = deadline_in.map(|ns| now + ns);
                    let ticket = Ticket { call, owner: call % 2, tokens, deadline_ns };
                    pushed.push((call, deadline_ns));
                    match queue.push(now, ticket, next) {
                        PushOutcome::Waits => {}
                        PushOutcome::Dropped(values) => {
                            prop_assert_eq!(config.drop_policy, DropPolicy::Head);
                            for value in values { remove(value, &mut removed)?; }
                        }
                        PushOutcome::Refused(_, value) => {
                            prop_assert_eq!(value, next);
                            remove(value, &mut removed)?;
                        }
                    }
                    next += 1;
                }
                Step::Take { items, tokens } => {
                    while let Some(value) = queue.poll_expired(now) {
                        prop_assert!(pushed[value].1.is_some_and(|deadline| deadline <= now));
                        remove(value, &mut removed)?;
                    }
                    let takeable = queue.takeable();
                    let taken = queue.take(now, items, tokens);
                    prop_assert!(taken.len() <= items);
                    prop_assert!(takeable == 0 || !taken.is_empty());
                    for value in taken {
                        prop_assert!(pushed[value].1.is_none_or(|deadline| deadline > now));
                        remove(value, &mut removed)?;
                    }
                }
                Step::Cancel { call } => {
                    for value in queue.cancel(call) {
                        prop_assert_eq!(pushed[value].0, call);
                        remove(value, &mut removed)?;
                    }
                }
                Step::Wait { ns } => now += ns,
                Step::Flush => { queue.flush(); prop_assert_eq!(queue.takeable(), queue.len()); }
            }
            prop_assert_eq!(queue.len(), next - removed.len());
            prop_assert!(queue.len() <= config.items_max);
            prop_assert!(queue.len() <= 1 || queue.tokens() <= config.tokens_max);
            prop_assert!(queue.owned(0) <= config.owner_items_max && queue.owned(1) <= config.owner_items_max);
            prop_assert!(queue.order.len() <= 2 * queue.calls.len() + 65 + next.min(65));
            prop_assert!(queue.deadlines.len() <= 2 * queue.items + 66);
        }
        // A caller that wakes at the timeouts gets every item, unless only a flush can release it.
        while let Some(at) = queue.poll_timeout() {
            now = now.max(at);
            while let Some(value) = queue.poll_expired(now) { remove(value, &mut removed)?; }
            for value in queue.take(now, usize::MAX, u64::MAX) { remove(value, &mut removed)?; }
        }
        if config.window.is_some_and(|window| window.aggregation == Aggregation::CountOnly) { queue.flush(); }
        for value in queue.take(now, usize::MAX, u64::MAX) { remove(value, &mut removed)?; }
        prop_assert_eq!(removed.len(), next);
        prop_assert!(queue.is_empty() && queue.tokens() == 0 && queue.calls() == 0);
    }

    /// An item of another call is served within one or two quanta, whatever the backlog of a call.
    #[test]
    fn call_with_many_items_delays_no_other(
        line in 1usize..2000, length in 1u64..128, taken in 0usize..50, mine in 1u64..128, others in 1u64..4,
    ) {
        let mut queue = Queue::new(CONFIG);
        for call in 0..others {
            for value in 0..line { queue.push(0, ticket(call, length), value); }
        }
        for _ in 0..taken { queue.take(1, 32, 128); }
        queue.push(2, ticket(99, mine), usize::MAX);
        let mut before = 0;
        while !queue.take(3, 1, 128).contains(&usize::MAX) { before += length; }
        // Each other call can finish its current round.
        prop_assert!(before <= others * (128 + length), "{before} tokens went first");
    }

    /// Calls with a backlog are served the same number of tokens, up to a quantum and an item.
    #[test]
    fn calls_share_the_model_by_tokens(lengths in prop::collection::vec(1u64..200, 2..6)) {
        let mut queue = Queue::new(CONFIG);
        for (call, &length) in lengths.iter().enumerate() {
            for _ in 0..4000 / length + 1 { queue.push(0, ticket(call as u64, length), call); }
        }
        let mut served = vec![0u64; lengths.len()];
        while served.iter().max().copied().unwrap_or(0) < 3000 {
            for call in queue.take(1, 1, 128) { served[call] += lengths[call]; }
        }
        let spread = served.iter().max().unwrap() - served.iter().min().unwrap();
        prop_assert!(spread <= 2 * (128 + 200), "{served:?}");
    }

    /// New items with deadlines do not starve an item without one.
    #[test]
    fn waiting_items_do_not_starve(calls in 1u64..5, patience in 1u64..1000) {
        let mut queue = Queue::new(QueueConfig { age_ns_max: 1000, ..CONFIG });
        queue.push(0, ticket(0, 10), true);
        let mut rounds = 0u64;
        for now in 1.. {
            for call in 0..calls { queue.push(now, due(call, 10, now + patience), false); }
            while queue.poll_expired(now).is_some() {}
            if queue.take(now, 1, 10).contains(&true) { break; }
            rounds = now;
            prop_assert!(now < 20_000, "the item still waits");
        }
        prop_assert!(rounds < 20_000);
    }

    /// New calls do not starve a call that was served more than its share before.
    #[test]
    fn new_calls_do_not_starve_earlier_ones(rate in 1u64..8, lead in 0usize..100, length in 1u64..64) {
        let mut queue = Queue::new(CONFIG);
        for _ in 0..lead + 1 { queue.push(0, ticket(0, length), true); }
        queue.take(1, lead, u64::MAX);
        for now in 2.. {
            for call in 0..rate { queue.push(now, ticket(now * 8 + call + 1, length), false); }
            if queue.take(now, rate as usize, u64::MAX).contains(&true) { break; }
            prop_assert!(now < 2_000, "the item still waits");
            prop_assert!(queue.ended.len() <= 2_000);
        }
    }

    /// Deadlines do not give a call more than a quantum before the turn of the others.
    #[test]
    fn deadlines_give_no_additional_turns(deadlines in prop::collection::vec(0u64..1_000_000, 20..60)) {
        let mut queue = Queue::new(CONFIG);
        for _ in 0..100 { queue.push(0, ticket(1, 32), 1); }
        for due in deadlines { queue.push(1, Ticket { deadline_ns: Some(2_000_000_000 - due), ..ticket(0, 32) }, 0); }
        let mut served = [0u64; 2];
        for _ in 0..30 {
            for value in queue.take(2, 1, 128) { served[value] += 32; }
            if queue.calls() == 2 { prop_assert!(served[0].abs_diff(served[1]) <= 2 * (128 + 32), "{served:?}"); }
        }
    }

    /// A call with one item at a time is served no more than one with a backlog.
    #[test]
    fn short_calls_gain_no_priority(length in 1u64..128) {
        let mut queue = Queue::new(CONFIG);
        for _ in 0..2000 { queue.push(0, ticket(1, length), 1); }
        let mut served = [0u64; 2];
        for _ in 0..1000 {
            if queue.calls() == 1 { queue.push(1, ticket(0, length), 0); }
            for value in queue.take(1, 1, 128) { served[value] += length; }
        }
        prop_assert!(served[0] <= served[1] + 2 * (128 + length), "{served:?}");
    }
}
