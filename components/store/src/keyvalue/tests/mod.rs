//! The store over a host whose calls are interrupted by other instances and fail.

mod host;

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;
use weir_core::channels::{ChannelName, Cursor, Delivery, Draft, Fence};

use self::host::{FakeHost, Plan, World};
use super::{
    HostError, Keyvalue, format::Claim, lock::LOCK_MS_MAX, names, records::EVENTS_MAX, store::LOG_BYTES_MAX, sweep,
};
use crate::{Acquisition, Failure, Store};

type Kv = Rc<Keyvalue<FakeHost>>;

fn name(text: &str) -> ChannelName {
    text.parse().unwrap()
}

fn drafts(data: &[String]) -> Vec<Draft> {
    data.iter().map(|data| Draft::new("note", data.as_str())).collect()
}

fn append(world: &World, kv: &Kv, data: &str) -> Result<Vec<Cursor>, Failure> {
    world.alone(kv.append(&name("note:x"), drafts(&[data.to_owned()]), None))
}

/// The data of all events of `note:x`, which have adjacent cursors.
fn events(kv: &Kv) -> Vec<(Cursor, String)> {
    let (mut all, mut after) = (Vec::new(), Cursor::START);
    loop {
        let page = kv.read(&name("note:x"), after, 100).unwrap();
        if page.entries.is_empty() {
            return all;
        }
        assert!(page.gap.is_none(), "{:?}", page.gap);
        after = page.next;
        all.extend(page.entries.iter().map(|entry| (entry.cursor, entry.data.to_string())));
    }
}

fn acquired(acquisition: Result<Acquisition, Failure>) -> u64 {
    match acquisition.unwrap() {
        Acquisition::Acquired(token) => token,
        held => panic!("{held:?}"),
    }
}

#[test]
fn another_instance_continues_the_channel() {
    let world = World::new(1);
    let ((one, _), (other, _)) = (world.instance(), world.instance());
    let first = append(&world, &one, "1").unwrap()[0];
    drop(one);
    let second = append(&world, &other, "2").unwrap()[0];
    assert!(first.leads_to(second), "{first} {second}");
    assert_eq!(events(&other), [(first, "1".to_owned()), (second, "2".to_owned())]);
    let last = vec![Draft::new("note", "3").finishing()];
    world.alone(other.append(&name("note:x"), last, None)).unwrap();
    let (third, _) = world.instance();
    assert!(matches!(append(&world, &third, "4"), Err(Failure::Finished)));
    assert!(third.read(&name("note:x"), second, 10).unwrap().ended);
}

#[test]
fn oldest_events_are_evicted_and_are_a_gap() {
    let world = World::new(1);
    let (kv, _) = world.instance();
    let first = append(&world, &kv, "first").unwrap()[0];
    let many: Vec<String> = (0..EVENTS_MAX).map(|at| at.to_string()).collect();
    world.alone(kv.append(&name("note:x"), drafts(&many), None)).unwrap();
    let page = kv.read(&name("note:x"), Cursor::new(first.epoch, 0), 10).unwrap();
    assert_eq!(page.gap.map(|gap| gap.missing_to), Some(first));
    assert_eq!(page.entries[0].data.as_ref(), "0");
    // An append that is larger than the bound is stored whole.
    let large: Vec<String> = (0..4).map(|_| "x".repeat(LOG_BYTES_MAX)).collect();
    let cursors = world.alone(kv.append(&name("note:x"), drafts(&large), None)).unwrap();
    let page = kv.read(&name("note:x"), cursors[0].previous(), 10).unwrap();
    assert_eq!((page.gap, page.entries[0].cursor), (None, cursors[0]));
    assert_eq!(kv.records.log(&name("note:x")).unwrap().unwrap().len(), 4);
    append(&world, &kv, "small").unwrap();
    assert_eq!(kv.records.log(&name("note:x")).unwrap().unwrap().len(), 1);
}

#[test]
fn follower_gets_events_of_other_instances() {
    let world = World::new(1);
    let ((one, _), (other, _)) = (world.instance(), world.instance());
    let channel = name("note:x");
    let follower = one.follow(&channel, Cursor::START).unwrap();
    assert_eq!((one.poll(&channel, follower), one.health().followers), ((Vec::new(), false), 1));
    let mut got = Vec::new();
    for data in ["1", "2"] {
        append(&world, &other, data).unwrap();
        world.pass(1000);
        got.extend(one.poll(&channel, follower).0);
    }
    // Its own events arrive at the next poll.
    append(&world, &one, "3").unwrap();
    got.extend(one.poll(&channel, follower).0);
    let data: Vec<&str> = got
        .iter()
        .map(|delivery| match delivery {
            Delivery::Event { entry, .. } => entry.data.as_ref(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(data, ["1", "2", "3"]);
    world.alone(other.append(&channel, vec![Draft::new("note", "4").finishing()], None)).unwrap();
    world.pass(1000);
    assert_eq!(one.poll(&channel, follower).0.len(), 1);
    assert_eq!(one.poll(&channel, follower), (Vec::new(), true));
    one.unfollow(&channel, follower);
    assert_eq!(one.health().followers, 0);
}

#[test]
fn follower_is_closed_when_the_channel_is_lost_damaged_or_unreadable() {
    let world = World::new(1);
    let (channel, key) = (name("note:x"), names::channel(&name("note:x")));
    let closed = |kv: &Kv, follower| {
        let (deliveries, ended) = kv.poll(&channel, follower);
        assert_eq!(deliveries, [Delivery::Closed(weir_core::channels::CloseReason::Lost)]);
        assert!(ended);
    };
    let (kv, plan) = world.instance();
    let first = append(&world, &kv, "1").unwrap()[0];
    let follower = kv.follow(&channel, first).unwrap();
    world.bucket.borrow_mut().remove(&key);
    world.pass(1000);
    closed(&kv, follower);

    append(&world, &kv, "1").unwrap();
    let follower = kv.follow(&channel, Cursor::UNKNOWN).unwrap();
    assert!(matches!(kv.poll(&channel, follower).0[0], Delivery::Gap(_)));
    world.bucket.borrow_mut().get_mut(&key).unwrap().truncate(9);
    world.pass(1000);
    closed(&kv, follower);
    assert!(plan.reports.borrow()[0].contains("is damaged"), "{:?}", plan.reports);

    world.bucket.borrow_mut().remove(&key);
    let follower = kv.follow(&channel, Cursor::START).unwrap();
    plan.failure.replace(Some(HostError::Other("no connection".to_owned())));
    for _ in 0..10 {
        world.pass(1000);
        assert_eq!(kv.poll(&channel, follower), (Vec::new(), false));
    }
    world.pass(1000);
    closed(&kv, follower);
}

#[test]
fn failure_of_the_host_fails_the_call_and_is_reported() {
    let world = World::new(1);
    let (kv, plan) = world.instance();
    append(&world, &kv, "1").unwrap();
    let before = world.bucket.borrow().clone();
    for (failure, is_temporary) in [
        (HostError::Other("no connection".to_owned()), true),
        (HostError::AccessDenied, false),
        (HostError::NoSuchStore, false),
    ] {
        plan.failure.replace(Some(failure.clone()));
        let key = name("session:x");
        let failures = [
            append(&world, &kv, "2").map(drop),
            kv.read(&name("note:x"), Cursor::START, 1).map(drop),
            kv.follow(&name("note:x"), Cursor::START).map(drop),
            world.alone(kv.claim("ticket:x", 1000)).map(drop),
            world.alone(kv.put(&key, vec![1], None, None, None)),
            kv.value(&key).map(drop),
            world.alone(kv.delete(&key, None)),
            kv.keys("session", "", 10).map(drop),
            kv.count("session").map(drop),
            world.alone(kv.acquire(&key, "me", 1000)).map(drop),
            world.alone(kv.renew(&Fence { key: key.clone(), token: 1 }, 1000)),
            world.alone(kv.release(&Fence { key: key.clone(), token: 1 })),
        ];
        for (at, result) in failures.into_iter().enumerate() {
            let is_as_expected = match result {
                Err(Failure::Unavailable(_)) => is_temporary,
                Err(Failure::Other(reason)) => !is_temporary && reason.contains(&failure.to_string()),
                _ => false,
            };
            assert!(is_as_expected, "{at} {failure}");
        }
        assert!(!kv.health().ok && kv.health().detail.is_some());
        assert!(plan.reports.borrow().iter().any(|report| report.contains(&failure.to_string())));
    }
    assert_eq!(*world.bucket.borrow(), before);
    plan.failure.replace(None);
    assert!(kv.health().ok);
    append(&world, &kv, "2").unwrap();
    assert_eq!(events(&kv).len(), 2);
}

#[test]
fn damaged_values_are_failures_with_their_keys() {
    let world = World::new(1);
    let (kv, _) = world.instance();
    let key = name("session:x");
    append(&world, &kv, "1").unwrap();
    world.alone(kv.put(&key, vec![1, 2], None, None, None)).unwrap();
    let token = acquired(world.alone(kv.acquire(&key, "me", 1000)));
    assert!(world.alone(kv.claim("ticket:x", 1000)).unwrap());
    let stored: Vec<String> = world.bucket.borrow().keys().filter(|key| names::parse(key).is_some()).cloned().collect();
    assert_eq!(stored.len(), 4);
    for key in stored {
        world.bucket.borrow_mut().insert(key, b"another program".to_vec());
    }
    let fence = Fence { key: key.clone(), token };
    let results = [
        append(&world, &kv, "2").map(drop),
        kv.read(&name("note:x"), Cursor::START, 1).map(drop),
        kv.follow(&name("note:x"), Cursor::START).map(drop),
        kv.value(&key).map(drop),
        world.alone(kv.acquire(&key, "me", 1000)).map(drop),
        world.alone(kv.renew(&fence, 1000)),
        world.alone(kv.put(&key, vec![1], None, Some(fence), None)),
        world.alone(kv.claim("ticket:x", 1000)).map(drop),
    ];
    for (at, result) in results.into_iter().enumerate() {
        let Err(Failure::Other(reason)) = result else { panic!("{at} {result:?}") };
        assert!(reason.contains("weir.") && reason.contains("is damaged, or another program wrote it"), "{reason}");
    }
    // A write without a fence replaces a value.
    world.alone(kv.put(&key, vec![3], None, None, None)).unwrap();
    assert_eq!(kv.value(&key).unwrap(), Some(vec![3]));
}

#[test]
fn values_expire_and_are_listed_in_order() {
    let world = World::new(1);
    let (kv, _) = world.instance();
    for id in ["b", "a:1", "c", "a"] {
        world.alone(kv.put(&name(&format!("session:{id}")), id.into(), None, None, None)).unwrap();
    }
    world.alone(kv.put(&name("sessions:d"), vec![], Some(100), None, None)).unwrap();
    assert_eq!(kv.keys("session", "", 10).unwrap(), ["session:a", "session:a:1", "session:b", "session:c"]);
    assert_eq!(kv.keys("session", "session:a:1", 1).unwrap(), ["session:b"]);
    assert_eq!((kv.count("session").unwrap(), kv.count("sessions").unwrap()), (4, 1));
    assert_eq!(kv.value(&name("sessions:d")).unwrap(), Some(Vec::new()));
    world.pass(100);
    assert_eq!(kv.value(&name("sessions:d")).unwrap(), None);
    world.alone(kv.delete(&name("session:b"), None)).unwrap();
    assert_eq!((kv.value(&name("session:b")).unwrap(), kv.count("session").unwrap()), (None, 3));
}

#[test]
fn write_of_an_earlier_owner_is_refused() {
    let world = World::new(1);
    let ((one, _), (other, _)) = (world.instance(), world.instance());
    let key = name("session:x");
    let stale = Fence { key: key.clone(), token: acquired(world.alone(one.acquire(&key, "one", 1000))) };
    match world.alone(other.acquire(&key, "other", 1000)).unwrap() {
        Acquisition::Held(ms) => assert!((900..=1000).contains(&ms), "{ms}"),
        acquired => panic!("{acquired:?}"),
    }
    world.alone(one.put(&key, vec![1], None, Some(stale.clone()), None)).unwrap();
    // An expired lease is still that of its owner, until another acquires it.
    world.pass(2000);
    world.alone(one.append(&key, drafts(&["1".to_owned()]), Some(stale.clone()))).unwrap();
    world.alone(one.renew(&stale, 1000)).unwrap();
    world.alone(one.release(&stale)).unwrap();
    let token = acquired(world.alone(other.acquire(&key, "other", 1000)));
    assert!(token > stale.token);
    let refused = [
        world.alone(one.put(&key, vec![2], None, Some(stale.clone()), None)),
        world.alone(one.append(&key, drafts(&["2".to_owned()]), Some(stale.clone()))).map(drop),
        world.alone(one.delete(&key, Some(stale.clone()))),
        world.alone(one.renew(&stale, 1000)),
        world.alone(one.release(&stale)),
    ];
    assert!(refused.iter().all(|result| matches!(result, Err(Failure::Fenced))), "{refused:?}");
    assert_eq!(other.value(&key).unwrap(), Some(vec![1]));
    // Tokens grow even after the lease was removed.
    world.bucket.borrow_mut().remove(&names::lease(&key));
    world.pass(1);
    assert!(acquired(world.alone(other.acquire(&key, "other", 1000))) > token);
}

#[test]
fn expired_keys_are_removed_and_owner_records_stay_with_their_channels() {
    let world = World::new(1);
    let (kv, _) = world.instance();
    let owner = name("note:x").owner_record().unwrap();
    world.alone(kv.append(&owner, drafts(&["owner".to_owned()]), None)).unwrap();
    append(&world, &kv, "1").unwrap();
    assert!(world.alone(kv.claim("ticket:x", 1000)).unwrap());
    world.alone(kv.put(&name("session:short"), vec![1], Some(1000), None, None)).unwrap();
    world.alone(kv.put(&name("session:long"), vec![1], None, None, None)).unwrap();
    world.bucket.borrow_mut().insert("weir.value.session.damaged".to_owned(), b"?".to_vec());
    world.bucket.borrow_mut().insert("foreign".to_owned(), b"?".to_vec());
    let has = |key: &str| world.bucket.borrow().contains_key(key);
    world.pass(sweep::CHANNEL_MS - 1000);
    append(&world, &kv, "2").unwrap();
    assert!(!has("weir.claim.ticket=3Ax") && !has("weir.value.session.short"));
    world.pass(60_000);
    append(&world, &kv, "3").unwrap();
    assert!(has(&names::channel(&owner)));
    world.pass(sweep::CHANNEL_MS);
    // The channel and then the record of its owner.
    for _ in 0..2 {
        world.alone(kv.put(&name("session:long"), vec![1], None, None, None)).unwrap();
        world.pass(60_000);
    }
    let left: Vec<String> = world.bucket.borrow().keys().filter(|key| names::parse(key).is_some()).cloned().collect();
    assert_eq!(left, ["weir.value.session.damaged", "weir.value.session.long"]);
    assert!(has("foreign"));
}

#[test]
fn new_keys_are_refused_when_the_bucket_is_full() {
    let world = World::new(1);
    let (kv, plan) = world.instance();
    append(&world, &kv, "1").unwrap();
    let claim = Claim { end_ms: u64::MAX }.encode();
    for at in 0..sweep::KEYS_MAX {
        world.bucket.borrow_mut().insert(format!("weir.claim.{at}"), claim.clone());
    }
    world.pass(60_000);
    append(&world, &kv, "2").unwrap();
    assert!(matches!(world.alone(kv.append(&name("note:y"), drafts(&["1".to_owned()]), None)), Err(Failure::Full(_))));
    assert!(matches!(world.alone(kv.put(&name("note:y"), vec![1], None, None, None)), Err(Failure::Full(_))));
    assert!(matches!(world.alone(kv.claim("ticket:new", 1000)), Err(Failure::Unavailable(_))));
    assert!(matches!(world.alone(kv.acquire(&name("note:y"), "me", 1000)), Err(Failure::Unavailable(_))));
    assert!(plan.reports.borrow()[0].contains("keys of this store"), "{:?}", plan.reports);
    world.bucket.borrow_mut().retain(|key, _| !key.starts_with("weir.claim."));
    world.pass(60_000);
    world.alone(kv.put(&name("note:y"), vec![1], None, None, None)).unwrap();
}

#[test]
fn slow_holder_of_a_lock_writes_nothing() {
    // It is slow after it has the lock, or before it knows that it has it, while others wait already.
    for slow in [names::channel(&name("note:x")), "weir.served.".to_owned()] {
        let world = World::new(1);
        let (kv, plan) = world.instance();
        append(&world, &kv, "1").unwrap();
        plan.slow.replace(Some((slow, LOCK_MS_MAX / 2)));
        assert!(matches!(append(&world, &kv, "2"), Err(Failure::Unavailable(_))));
        plan.slow.replace(None);
        // Its lock is taken over.
        let before = world.clock_ms.get();
        append(&world, &kv, "3").unwrap();
        assert!(world.clock_ms.get() - before <= LOCK_MS_MAX + 100);
        let data: Vec<String> = events(&kv).into_iter().map(|(_, data)| data).collect();
        assert_eq!(data, ["1", "3"]);
    }
}

/// An instance ends at any call of an append; the next one is delayed at most by the time of one lock.
#[test]
fn instance_that_ends_at_any_call_delays_others_only() {
    for calls in 0.. {
        let world = World::new(1);
        let ((ending, plan), (other, _)) = (world.instance(), world.instance());
        append(&world, &other, "1").unwrap();
        plan.calls_left.set(Some(calls));
        let ended = append(&world, &ending, "2").is_err();
        let before = world.clock_ms.get();
        append(&world, &other, "3").unwrap();
        assert!(world.clock_ms.get() - before <= LOCK_MS_MAX + 100, "{calls}");
        let data: Vec<String> = events(&other).into_iter().map(|(_, data)| data).collect();
        assert!(data == ["1", "3"] && ended || data == ["1", "2", "3"], "{calls} {data:?}");
        if plan.calls_left.get() > Some(0) {
            assert!(!ended && calls > 5);
            return;
        }
    }
}

#[test]
fn locks_continue_after_the_host_has_lost_their_keys() {
    for lost in ["weir.lock.", "weir.served."] {
        let world = World::new(1);
        let (kv, _) = world.instance();
        (0..20).for_each(|at| drop(append(&world, &kv, &at.to_string()).unwrap()));
        world.bucket.borrow_mut().retain(|key, _| !key.starts_with(lost));
        append(&world, &kv, "after").unwrap();
        let before = world.clock_ms.get();
        append(&world, &kv, "soon after").unwrap();
        assert!(world.clock_ms.get() - before < 100, "{lost}");
        assert_eq!(events(&kv).len(), 22);
    }
}

/// The results of appends of several instances at once.
struct Race {
    reader: Kv,
    /// The events of each acknowledged append, with the cursors that it returned.
    acknowledged: Vec<Vec<(Cursor, String)>>,
    /// The data of each append that failed.
    failed: Vec<Vec<String>>,
}

/// Each instance appends batches of these sizes.
fn race(seed: u64, fail_percent: u64, batches: &[Vec<usize>]) -> Race {
    let world = World::new(seed);
    world.interrupt_percent.set(30);
    let (acknowledged, failed) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(Vec::new())));
    for (instance, sizes) in batches.iter().enumerate() {
        let (kv, plan): (Kv, Rc<Plan>) = world.instance();
        plan.fail_percent.set(fail_percent);
        let (acknowledged, failed, sizes) = (acknowledged.clone(), failed.clone(), sizes.clone());
        world.spawn(async move {
            for (batch, size) in sizes.into_iter().enumerate() {
                let data: Vec<String> = (0..size).map(|at| format!("{instance}.{batch}.{at}")).collect();
                match kv.append(&name("note:x"), drafts(&data), None).await {
                    Ok(cursors) => acknowledged.borrow_mut().push(cursors.into_iter().zip(data).collect::<Vec<_>>()),
                    Err(Failure::Unavailable(_)) => failed.borrow_mut().push(data),
                    Err(other) => panic!("{other:?}"),
                }
            }
        });
    }
    world.run();
    let (reader, _) = world.instance();
    Race { reader, acknowledged: acknowledged.take(), failed: failed.take() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Several instances append at once: all events are there once, in adjacent order, with the cursors that were returned.
    #[test]
    fn concurrent_appends_are_all_stored_once(
        seed: u64,
        batches in proptest::collection::vec(proptest::collection::vec(1_usize..4, 1..5), 2..5),
    ) {
        let Race { reader, acknowledged, failed } = race(seed, 0, &batches);
        prop_assert!(failed.is_empty());
        let mut expected: Vec<(Cursor, String)> = acknowledged.into_iter().flatten().collect();
        expected.sort();
        prop_assert_eq!(events(&reader), expected);
    }

    /// With failures before and after effects: what was acknowledged is there, and what failed is there as a whole or not at all.
    #[test]
    fn acknowledged_appends_survive_failures_of_the_host(
        seed: u64,
        batches in proptest::collection::vec(proptest::collection::vec(1_usize..4, 1..5), 2..4),
    ) {
        let Race { reader, acknowledged, failed } = race(seed, 10, &batches);
        let stored = events(&reader);
        for batch in &acknowledged {
            for event in batch {
                prop_assert_eq!(stored.iter().filter(|other| other.1 == event.1).collect::<Vec<_>>(), [event]);
            }
        }
        for data in &failed {
            let count = stored.iter().filter(|(_, other)| data.contains(other)).count();
            prop_assert!(count == 0 || count == data.len(), "{:?}", stored);
        }
        prop_assert!(stored.windows(2).all(|pair| pair[0].0.leads_to(pair[1].0)), "{:?}", stored);
    }

    /// Exactly one instance obtains a claim, and one at a time a lease.
    #[test]
    fn claims_and_leases_have_one_owner(seed: u64, instances in 2_usize..6) {
        let world = World::new(seed);
        world.interrupt_percent.set(30);
        let (claimed, tokens) = (Rc::new(RefCell::new(0)), Rc::new(RefCell::new(Vec::new())));
        for instance in 0..instances {
            let (kv, _) = world.instance();
            let (claimed, tokens) = (claimed.clone(), tokens.clone());
            world.spawn(async move {
                *claimed.borrow_mut() += u32::from(kv.claim("ticket:x", 1_000_000).await.unwrap());
                let acquired = kv.acquire(&name("session:x"), &instance.to_string(), 1_000_000).await;
                if let Acquisition::Acquired(token) = acquired.unwrap() {
                    tokens.borrow_mut().push(token);
                }
            });
        }
        world.run();
        prop_assert_eq!((*claimed.borrow(), tokens.borrow().len()), (1, 1));
    }
}
