//! The Redis store: several stores on one server, outages, slow servers, and consumer groups.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, ReaderState, RedisServer, gap, name, next, number, numbered, open, until};
use weir_core::channels::{Cursor, Delivery, Gap, Retention};
use weir_events::{Error, EventsConfig, Fallback, RedisConfig, Store};

async fn append_again(store: &Store, channel: &str, number: u64) -> Cursor {
    let start = Instant::now();
    loop {
        match store.append(&name(channel), numbered([number])).await {
            Ok(cursors) => return cursors[0],
            Err(error) => assert!(error.retryable() && start.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_channels_and_claims() {
    let server = RedisServer::start();
    let stores = [open(server.config()).await, open(server.config()).await];
    let channel = name("user:u");
    let mut follower = stores[1].follow(&channel, Cursor::START).await.unwrap();
    let mut publishers = tokio::task::JoinSet::new();
    for store in &stores {
        let (store, channel) = (store.clone(), channel.clone());
        publishers.spawn(async move {
            for number in 0..100 {
                store.append(&channel, numbered([number])).await.unwrap();
            }
        });
    }
    while let Some(publisher) = publishers.join_next().await {
        publisher.unwrap();
    }
    let mut before: Option<Cursor> = None;
    for _ in 0..200 {
        let Some(Delivery::Event { entry, coalesced: 0 }) = next(&mut follower).await else { panic!() };
        assert!(before.is_none_or(|before| before.leads_to(entry.cursor)));
        before = Some(entry.cursor);
    }
    assert_eq!(stores[0].claim("t", 10_000).await, Ok(true));
    assert_eq!(stores[1].claim("t", 10_000).await, Ok(false));
    // The keys have the documented names.
    let mut connection = server.connection().await;
    let length: u64 = redis::cmd("XLEN").arg("pip-ai:user:u").query_async(&mut connection).await.unwrap();
    assert_eq!(length, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_get_errors_until_redis_returns() {
    let mut server = RedisServer::start();
    let store = open(server.config()).await;
    let channel = name("workflow:w");
    let cursors = store.append(&channel, numbered(0..3)).await.unwrap();
    let mut follower = store.follow(&channel, Cursor::START).await.unwrap();
    for expected in 0..3 {
        assert_eq!(number(&mut follower).await, expected);
    }
    server.kill();
    let start = Instant::now();
    let error = store.append(&channel, numbered([3])).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { retry_after_ms: 1.., .. }), "{error}");
    assert!(store.read(&channel, Cursor::START, 1).await.unwrap_err().retryable());
    assert!(store.claim("t", 1_000).await.unwrap_err().retryable());
    let health = store.health().await;
    assert!(!health.ok && !health.fallback && health.detail.is_some());
    assert!(start.elapsed() < Duration::from_secs(4), "answered after {:?}", start.elapsed());

    // The server restarts without its data.
    server.start_again();
    let cursor = append_again(&store, "workflow:w", 4).await;
    assert!(cursor.epoch > cursors[0].epoch && cursor.seq == 1);
    assert_eq!(gap(&mut follower).await, Gap { missing_from: cursors[2].next(), missing_to: cursor.previous() });
    assert_eq!(number(&mut follower).await, 4);
    let page = store.read(&channel, cursors[1], 10).await.unwrap();
    assert_eq!(page.gap, Some(Gap { missing_from: cursors[2], missing_to: cursor.previous() }));
    assert!(store.health().await.ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_server_continues_its_sequence() {
    let mut server = RedisServer::durable();
    let store = open(EventsConfig { durable: true, ..server.config() }).await;
    let volatile = open(server.config()).await;
    let cursor = store.append(&name("workflow:w"), numbered([0])).await.unwrap()[0];
    let mut follower = store.follow(&name("workflow:w"), Cursor::START).await.unwrap();
    assert_eq!(number(&mut follower).await, 0);
    server.kill();
    server.start_again();
    let second = append_again(&store, "workflow:w", 1).await;
    assert!(cursor.leads_to(second));
    assert_eq!(number(&mut follower).await, 1);
    // A store that is not configured as durable assumes that events may have been lost, and starts an epoch.
    server.kill();
    server.start_again();
    let third = append_again(&volatile, "workflow:w", 2).await;
    assert!(third.epoch > second.epoch && third.seq == 1);
    assert_eq!(gap(&mut follower).await, Gap { missing_from: second.next(), missing_to: third.previous() });
    assert_eq!(number(&mut follower).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_fallback_uses_a_new_epoch() {
    let mut server = RedisServer::durable();
    let config = server.config();
    let redis = RedisConfig { fallback: Fallback::Memory, ..config.redis };
    let store = open(EventsConfig { redis, durable: true, ..config }).await;
    let mut reader_state = ReaderState::default();
    store.append(&name("workflow:w"), numbered(0..2)).await.unwrap();
    let mut follower = store.follow(&name("workflow:w"), Cursor::START).await.unwrap();
    for _ in 0..2 {
        reader_state.record(&next(&mut follower).await.unwrap());
    }
    server.kill();
    // The append succeeds immediately, with a cursor that Redis will not assign.
    let here = store.append(&name("workflow:w"), numbered([2])).await.unwrap()[0];
    let more = store.append(&name("workflow:w"), numbered([3])).await.unwrap()[0];
    assert!(here.leads_to(more) && here.epoch > reader_state.cursor.epoch);
    let health = store.health().await;
    assert!(health.ok && health.fallback && health.detail.is_some(), "{health:?}");
    for _ in 0..3 {
        reader_state.record(&next(&mut follower).await.unwrap());
    }
    assert_eq!((reader_state.gaps.len(), reader_state.numbers.as_slice()), (1, &[0, 1, 2, 3][..]));
    assert_eq!(store.read(&name("workflow:w"), here.previous(), 9).await.unwrap().entries.len(), 2);
    // A new subscriber sees the events of this process. Claims fail.
    let mut other = store.follow(&name("user:new"), Cursor::START).await.unwrap();
    store.append(&name("user:new"), numbered([7])).await.unwrap();
    assert_eq!(number(&mut other).await, 7);
    store.append(&name("user:unseen"), numbered([8])).await.unwrap();
    assert!(store.claim("t", 1_000).await.unwrap_err().retryable());

    server.start_again();
    until("Redis is used again", || async {
        let health = store.health().await;
        health.ok && !health.fallback
    })
    .await;
    let back = store.append(&name("workflow:w"), numbered([4])).await.unwrap()[0];
    while reader_state.cursor != back {
        reader_state.record(&next(&mut follower).await.unwrap());
    }
    assert_eq!((reader_state.gaps.len(), reader_state.numbers.as_slice()), (2, &[0, 1, 2, 3, 4][..]));
    // Redis has its earlier events and the later ones; a reader at a cursor of the fallback gets a gap.
    let page = store.read(&name("workflow:w"), Cursor::START, 9).await.unwrap();
    assert_eq!(page.entries.iter().map(|entry| &*entry.data).collect::<Vec<_>>(), ["0", "1", "4"]);
    let mut resumed = store.follow(&name("workflow:w"), more).await.unwrap();
    assert_eq!(gap(&mut resumed).await.missing_from, more.next());
    store.append(&name("user:new"), numbered([9])).await.unwrap();
    loop {
        match next(&mut other).await {
            Some(Delivery::Gap(_)) => {}
            Some(Delivery::Event { entry, .. }) => break assert_eq!(&*entry.data, "9"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unresponsive_server_delays_a_publisher_within_the_bound() {
    let server = RedisServer::start();
    let config = server.config();
    let redis = RedisConfig { timeout_ms: 1000, ..config.redis };
    let store = open(EventsConfig { redis, ..config }).await;
    let channel = name("workflow:w");
    store.append(&channel, numbered([0])).await.unwrap();
    let mut follower = store.follow(&channel, Cursor::START).await.unwrap();
    assert_eq!(number(&mut follower).await, 0);
    server.signal("STOP");
    for attempt in 1..4 {
        let start = Instant::now();
        assert!(store.append(&channel, numbered([attempt])).await.unwrap_err().retryable());
        assert!(start.elapsed() < Duration::from_secs(5), "answered after {:?}", start.elapsed());
    }
    server.signal("CONT");
    let last = append_again(&store, "workflow:w", 9).await;
    // Events that were not acknowledged may be there; those that are there are a sequence.
    let mut before = Cursor::new(last.epoch, 1);
    while before != last {
        let Some(Delivery::Event { entry, coalesced: 0 }) = next(&mut follower).await else { panic!() };
        assert!(before.leads_to(entry.cursor));
        before = entry.cursor;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_survive_repeated_outages() {
    let mut server = RedisServer::start();
    let store = open(server.config()).await;
    let channel = name("pipeline:p");
    let stop = Arc::new(AtomicBool::new(false));
    let newest = Arc::new(AtomicU64::new(0));
    let publisher = tokio::spawn({
        let (store, channel, stop, newest) = (store.clone(), channel.clone(), Arc::clone(&stop), Arc::clone(&newest));
        async move {
            // A failed append may have been performed, so each attempt has a number of its own.
            let mut acknowledged = BTreeSet::new();
            for number in 1_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match store.append(&channel, numbered([number])).await {
                    Ok(_) => drop(acknowledged.insert(number)),
                    Err(error) => assert!(error.retryable(), "{error}"),
                }
                newest.store(number, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            acknowledged
        }
    });
    // One reader stays connected, the others resume after a number of events.
    let mut readers = tokio::task::JoinSet::new();
    for stays in [usize::MAX, 17, 60] {
        let (store, channel, stop) = (store.clone(), channel.clone(), Arc::clone(&stop));
        readers.spawn(async move {
            let mut reader_state = ReaderState::default();
            loop {
                let Ok(mut subscription) = store.follow(&channel, reader_state.cursor).await else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                for _ in 0..stays {
                    match tokio::time::timeout(Duration::from_millis(500), subscription.next()).await {
                        Ok(delivery) => reader_state.record(&delivery.unwrap()),
                        Err(_) if stop.load(Ordering::Relaxed) => return reader_state,
                        Err(_) => {}
                    }
                }
            }
        });
    }
    for _ in 0..4 {
        let at = newest.load(Ordering::Relaxed) + 80;
        until("events flow", || async { newest.load(Ordering::Relaxed) > at }).await;
        server.kill();
        let at = newest.load(Ordering::Relaxed) + 10;
        until("publishers retry", || async { newest.load(Ordering::Relaxed) > at }).await;
        server.start_again();
    }
    append_again(&store, "pipeline:other", 0).await;
    let at = newest.load(Ordering::Relaxed) + 50;
    until("events flow at the end", || async { newest.load(Ordering::Relaxed) > at }).await;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = publisher.await.unwrap();
    while let Some(reader_state) = readers.join_next().await {
        let reader_state = reader_state.unwrap();
        // No event was lost since the last start of the server.
        assert_eq!(reader_state.numbers.last(), acknowledged.last());
        let numbers: BTreeSet<u64> = reader_state.numbers.iter().copied().collect();
        let tail: Vec<u64> = acknowledged.range(at - 49..).copied().collect();
        assert!(tail.len() > 20 && tail.iter().all(|number| numbers.contains(number)));
        assert!(reader_state.gaps.len() >= 4, "{} gaps for 4 outages", reader_state.gaps.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_share_one_blocking_read() {
    let server = RedisServer::start();
    let config = server.config();
    let redis = RedisConfig { block_ms: 60_000, ..config.redis };
    let store = open(EventsConfig { redis, ..config }).await;
    let mut subscriptions = Vec::new();
    for number in 0..300 {
        subscriptions.push(store.follow(&name(&format!("user:{number}")), Cursor::START).await.unwrap());
    }
    let start = Instant::now();
    for turn in 0..20_usize {
        let channel = name(&format!("user:{}", turn * 15));
        store.append(&channel, numbered([turn as u64])).await.unwrap();
        assert_eq!(number(&mut subscriptions[turn * 15]).await, turn as u64);
        // A new subscriber does not wait for the blocking read.
        let mut late = store.follow(&name(&format!("file:{turn}")), Cursor::START).await.unwrap();
        store.append(&name(&format!("file:{turn}")), numbered([1])).await.unwrap();
        assert_eq!(number(&mut late).await, 1);
    }
    assert!(start.elapsed() < Duration::from_secs(15), "20 turns took {:?}", start.elapsed());
    let mut connection = server.connection().await;
    let info: String = redis::cmd("INFO").arg("clients").query_async(&mut connection).await.unwrap();
    let clients = info.lines().find_map(|line| line.strip_prefix("connected_clients:")).unwrap();
    assert!(clients.parse::<u32>().unwrap() <= 3, "{clients} connections");
    drop(subscriptions);
    until("no channel is mirrored", || async { store.stats().channels == 0 }).await;
}

#[tokio::test]
async fn refused_subscriber_leaves_no_state() {
    let server = RedisServer::start();
    for config in [server.config(), common::memory()] {
        let store = open(EventsConfig { subscribers_max: 2, ..config }).await;
        let first = store.follow(&name("user:a"), Cursor::START).await.unwrap();
        let _second = store.follow(&name("user:b"), Cursor::START).await.unwrap();
        assert!(store.follow(&name("user:a"), Cursor::START).await.unwrap_err().retryable());
        drop(first);
        let _third = store.follow(&name("user:a"), Cursor::START).await.unwrap();
        assert_eq!((store.stats().subscribers, store.stats().channels), (2, 2));
    }
    let store = open(EventsConfig { subscribers_max: 0, ..server.config() }).await;
    assert!(store.follow(&name("user:a"), Cursor::START).await.unwrap_err().retryable());
    assert_eq!(store.stats().channels, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_is_bounded_and_foreign_entries_are_holes() {
    let server = RedisServer::start();
    let retention = Retention { events_max: 1_000, bytes_max: 1 << 30, ..Retention::default() };
    let store = open(EventsConfig { retention, ..server.config() }).await;
    let channel = name("workflow:w");
    let mut connection = server.connection().await;
    let mut cursors = Vec::new();
    for chunk in 0..15 {
        cursors = store.append(&channel, numbered(chunk * 100..chunk * 100 + 100)).await.unwrap();
    }
    let length: u64 = redis::cmd("XLEN").arg("pip-ai:workflow:w").query_async(&mut connection).await.unwrap();
    assert_eq!(length, 1_000);
    // Another client deletes an entry, and one adds an entry that is not an event.
    let mut delete = redis::cmd("XDEL");
    delete.arg("pip-ai:workflow:w").arg(cursors[50].to_string());
    assert_eq!(delete.query_async::<u64>(&mut connection).await.unwrap(), 1);
    let mut follower = store.follow(&channel, cursors[48]).await.unwrap();
    assert_eq!(number(&mut follower).await, 1_449);
    assert_eq!(gap(&mut follower).await, Gap { missing_from: cursors[50], missing_to: cursors[50] });
    for expected in 1_451..1_500 {
        assert_eq!(number(&mut follower).await, expected);
    }
    let mut add = redis::cmd("XADD");
    add.arg("pip-ai:workflow:w").arg(format!("{}-{}", cursors[99].epoch, cursors[99].seq + 1)).arg("who").arg("other");
    let _: String = add.query_async(&mut connection).await.unwrap();
    // Its cursor is a hole; the sequence continues after it.
    let cursor = store.append(&channel, numbered([1_500])).await.unwrap()[0];
    assert_eq!(cursor, Cursor::new(cursors[99].epoch, cursors[99].seq + 2));
    assert_eq!(gap(&mut follower).await, Gap { missing_from: cursor.previous(), missing_to: cursor.previous() });
    assert_eq!(number(&mut follower).await, 1_500);
    let page = store.read(&channel, cursors[99], 10).await.unwrap();
    assert_eq!((page.gap.map(|gap| gap.missing_to), page.next), (Some(cursor.previous()), cursor));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn earlier_start_of_a_channel_reaches_followers_after_a_gap() {
    let mut server = RedisServer::start();
    let store = open(server.config()).await;
    let channel = name("workflow:w");
    store.append(&channel, numbered(0..3)).await.unwrap();
    let mut follower = store.follow(&channel, Cursor::START).await.unwrap();
    for expected in 0..3 {
        assert_eq!(number(&mut follower).await, expected);
    }
    assert_eq!(follower.try_next(), None);
    // The server loses all data, and an instance whose clock is behind publishes first.
    server.kill();
    server.start_again();
    let mut connection = server.connection().await;
    for (seq, data) in [(1, "7"), (2, "8")] {
        let mut add = redis::cmd("XADD");
        add.arg("pip-ai:workflow:w").arg(format!("5-{seq}")).arg("event").arg("e").arg("data").arg(data);
        add.arg("time").arg(1).arg("coalesce").arg("").arg("finish").arg("0");
        let _: String = add.query_async(&mut connection).await.unwrap();
    }
    let gap_of_loss = gap(&mut follower).await;
    assert_eq!(gap_of_loss.missing_to, Cursor::new(5, 0));
    assert_eq!((number(&mut follower).await, number(&mut follower).await), (7, 8));
    append_again(&store, "workflow:w", 9).await;
    assert!(gap(&mut follower).await.missing_from == Cursor::new(5, 3));
    assert_eq!(number(&mut follower).await, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_entry_at_the_last_sequence_starts_an_epoch() {
    let server = RedisServer::start();
    let store = open(server.config()).await;
    let channel = name("workflow:w");
    let cursor = store.append(&channel, numbered([0])).await.unwrap()[0];
    let mut follower = store.follow(&channel, cursor).await.unwrap();
    let mut add = redis::cmd("XADD");
    add.arg("pip-ai:workflow:w").arg(format!("{}-{}", cursor.epoch, u64::MAX)).arg("who").arg("other");
    let _: String = add.query_async(&mut server.connection().await).await.unwrap();
    let next = store.append(&channel, numbered([1])).await.unwrap()[0];
    assert!(next.epoch > cursor.epoch && next.seq == 1);
    assert_eq!(gap(&mut follower).await.missing_from, cursor.next());
    loop {
        match common::next(&mut follower).await {
            Some(Delivery::Gap(_)) => {}
            Some(Delivery::Event { entry, .. }) => break assert_eq!(entry.cursor, next),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.read(&channel, Cursor::new(cursor.epoch, u64::MAX), 9).await.unwrap().entries.len(), 1);
}
