//! Leases and fencing tokens, in every store.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{RedisServer, conformance, name, numbered, open, until};
use weir_core::channels::{ChannelName, Cursor};
use weir_events::{Acquisition, Error, EventsConfig, Fallback, Fence, RedisConfig, Store};

conformance!(
    lease_is_held_by_one_owner_at_a_time,
    write_with_an_earlier_token_is_refused,
    expired_lease_is_renewed_unless_another_has_acquired_it,
    released_lease_is_acquired_at_once,
    lease_arguments_out_of_bounds_are_refused,
    writes_of_racing_owners_never_go_back,
);

const LONG_MS: u64 = 60_000;

async fn acquired(store: &Store, key: &ChannelName, owner: &str, ttl_ms: u64) -> Fence {
    match store.acquire(key, owner, ttl_ms).await.unwrap() {
        Acquisition::Acquired(token) => Fence { key: key.clone(), token },
        held => panic!("{owner} does not get it: {held:?}"),
    }
}

async fn lease_is_held_by_one_owner_at_a_time(config: EventsConfig) {
    let store = open(config).await;
    let key = name("execution:x");
    let fence = acquired(&store, &key, "a", LONG_MS).await;
    match store.acquire(&key, "b", LONG_MS).await.unwrap() {
        Acquisition::Held { remaining_ms } => assert!((1..=LONG_MS).contains(&remaining_ms)),
        acquired => panic!("two owners: {acquired:?}"),
    }
    // A key that is leased has no value, and others are free.
    assert_eq!(store.get(&key).await, Ok(None));
    assert_eq!(store.keys("execution", "", 10).await.unwrap(), [""; 0]);
    acquired(&store, &name("execution:y"), "b", LONG_MS).await;
    // The same owner gets a greater token, and its earlier one is refused.
    let again = acquired(&store, &key, "a", LONG_MS).await;
    assert!(again.token > fence.token);
    assert_eq!(store.put_fenced(&key, b"1".to_vec(), None, Some(&fence)).await, Err(Error::Fenced));
    store.put_fenced(&key, b"2".to_vec(), None, Some(&again)).await.unwrap();
    assert_eq!(store.get(&key).await, Ok(Some(b"2".to_vec())));
}

async fn write_with_an_earlier_token_is_refused(config: EventsConfig) {
    let store = open(config).await;
    let (key, part, channel) = (name("execution:x"), name("checkpoint:x.a.0"), name("pipeline:x"));
    let old = acquired(&store, &key, "a", 1).await;
    store.put_fenced(&key, b"old".to_vec(), None, Some(&old)).await.unwrap();
    store.append_fenced(&channel, numbered([1]), Some(&old)).await.unwrap();
    until("the lease ends", || async {
        matches!(store.acquire(&key, "b", LONG_MS).await, Ok(Acquisition::Acquired(_)))
    })
    .await;
    let new = acquired(&store, &key, "b", LONG_MS).await;
    // Everything that the earlier owner could write, under any key, is refused and changes nothing.
    assert_eq!(store.put_fenced(&key, b"late".to_vec(), None, Some(&old)).await, Err(Error::Fenced));
    assert_eq!(store.put_fenced(&part, b"late".to_vec(), Some(1_000), Some(&old)).await, Err(Error::Fenced));
    assert_eq!(store.delete_fenced(&key, Some(&old)).await, Err(Error::Fenced));
    assert_eq!(store.append_fenced(&channel, numbered([2, 3]), Some(&old)).await, Err(Error::Fenced));
    assert_eq!(store.renew(&old, LONG_MS).await, Err(Error::Fenced));
    assert_eq!(store.release(&old).await, Err(Error::Fenced));
    assert_eq!(store.get(&key).await, Ok(Some(b"old".to_vec())));
    assert_eq!(store.get(&part).await, Ok(None));
    // The new owner's events are accepted, and the channel has no hole for the refused ones.
    let after = store.append_fenced(&channel, numbered([4]), Some(&new)).await.unwrap();
    let page = store.read(&channel, Cursor::START, 10).await.unwrap();
    let data: Vec<_> = page.entries.iter().map(|entry| entry.data.to_string()).collect();
    assert_eq!(data, ["1", "4"]);
    assert_eq!((page.entries[0].cursor.next(), page.next), (after[0], after[0]));
    store.delete_fenced(&key, Some(&new)).await.unwrap();
    assert_eq!(store.get(&key).await, Ok(None));
    // A token that was never assigned is refused like an old one.
    let made_up = Fence { key: key.clone(), token: u64::MAX };
    assert_eq!(store.put_fenced(&key, b"late".to_vec(), None, Some(&made_up)).await, Err(Error::Fenced));
    let other = Fence { key: name("execution:y"), token: new.token };
    assert_eq!(store.append_fenced(&channel, numbered([5]), Some(&other)).await, Err(Error::Fenced));
}

async fn expired_lease_is_renewed_unless_another_has_acquired_it(config: EventsConfig) {
    let store = open(config).await;
    let key = name("session:x");
    let fence = acquired(&store, &key, "a", 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    // No other owner has written since, so the lease is valid as before.
    store.put_fenced(&key, b"1".to_vec(), None, Some(&fence)).await.unwrap();
    store.renew(&fence, LONG_MS).await.unwrap();
    assert!(matches!(store.acquire(&key, "b", LONG_MS).await, Ok(Acquisition::Held { .. })));
    store.renew(&fence, 1).await.unwrap();
    until("the lease ends", || async {
        matches!(store.acquire(&key, "b", LONG_MS).await, Ok(Acquisition::Acquired(_)))
    })
    .await;
    assert_eq!(store.renew(&fence, LONG_MS).await, Err(Error::Fenced));
}

async fn released_lease_is_acquired_at_once(config: EventsConfig) {
    let store = open(config).await;
    let key = name("session:x");
    let first = acquired(&store, &key, "a", LONG_MS).await;
    store.release(&first).await.unwrap();
    // Its last owner can renew it where no other owner has acquired it.
    store.renew(&first, LONG_MS).await.unwrap();
    assert!(matches!(store.acquire(&key, "b", LONG_MS).await, Ok(Acquisition::Held { .. })));
    store.release(&first).await.unwrap();
    let second = acquired(&store, &key, "b", LONG_MS).await;
    assert!(second.token > first.token);
    assert_eq!(store.renew(&first, LONG_MS).await, Err(Error::Fenced));
}

async fn lease_arguments_out_of_bounds_are_refused(config: EventsConfig) {
    let store = open(config).await;
    let key = name("session:x");
    let fence = acquired(&store, &key, "a", LONG_MS).await;
    for ttl_ms in [0, 3_600_001, u64::MAX] {
        assert!(matches!(store.acquire(&key, "b", ttl_ms).await, Err(Error::Invalid(_))));
        assert!(matches!(store.renew(&fence, ttl_ms).await, Err(Error::Invalid(_))));
    }
    for owner in ["", &"o".repeat(129)] {
        assert!(matches!(store.acquire(&key, owner, 1).await, Err(Error::Invalid(_))));
    }
}

/// Owners acquire a key in turn and write as fast as they can: an earlier owner never changes the value that a new
/// owner reads after its acquisition.
async fn writes_of_racing_owners_never_go_back(config: EventsConfig) {
    const OWNERS: usize = 4;
    const TURNS: usize = 25;
    let store = open(config).await;
    let (key, channel) = (name("execution:race"), name("pipeline:race"));
    let refused = Arc::new(AtomicU64::new(0));
    let mut owners = tokio::task::JoinSet::new();
    for owner in 0..OWNERS {
        let (store, key, channel, refused) = (store.clone(), key.clone(), channel.clone(), Arc::clone(&refused));
        owners.spawn(async move {
            let mut stale: Option<Fence> = None;
            for _ in 0..TURNS {
                let fence = loop {
                    match store.acquire(&key, &format!("o{owner}"), 2).await.unwrap() {
                        Acquisition::Acquired(token) => break Fence { key: key.clone(), token },
                        Acquisition::Held { .. } => tokio::task::yield_now().await,
                    }
                };
                let before = store.get(&key).await.unwrap().map_or(0, |value| number(&value));
                let token = fence.token.to_string().into_bytes();
                let write = store.put_fenced(&key, token, None, Some(&fence)).await;
                // A lease this short may end before the read: the value is then a later owner's, and the write must be
                // refused.
                assert_ne!(before, fence.token, "a value that was not written yet");
                if before > fence.token {
                    assert_eq!(write, Err(Error::Fenced), "a value of a later owner is replaced");
                }
                let append = store.append_fenced(&channel, numbered([fence.token]), Some(&fence)).await;
                // Another owner may have been faster, and then both are refused, or only the second.
                refused.fetch_add(u64::from(write.is_err()) + u64::from(append.is_err()), Ordering::Relaxed);
                for error in [write.err(), append.err()].into_iter().flatten() {
                    assert_eq!(error, Error::Fenced);
                }
                if let Some(stale) = stale.replace(fence) {
                    assert_eq!(store.put_fenced(&key, b"0".to_vec(), None, Some(&stale)).await, Err(Error::Fenced));
                    assert_eq!(store.append_fenced(&channel, numbered([0]), Some(&stale)).await, Err(Error::Fenced));
                }
            }
        });
    }
    while let Some(owner) = owners.join_next().await {
        owner.unwrap();
    }
    let page = store.read(&channel, Cursor::START, 1_000).await.unwrap();
    let tokens: Vec<u64> = page.entries.iter().map(|entry| entry.data.parse().unwrap()).collect();
    assert!(tokens.is_sorted_by(|a, b| a < b), "an earlier owner wrote after a later one: {tokens:?}");
    assert!(page.gap.is_none());
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

#[tokio::test]
async fn two_stores_on_one_redis_share_leases_and_close_releases_them() {
    let server = RedisServer::start();
    let (a, b) = (open(server.config()).await, open(server.config()).await);
    let key = name("execution:x");
    let fence = acquired(&a, &key, "a", LONG_MS).await;
    assert!(matches!(b.acquire(&key, "b", LONG_MS).await, Ok(Acquisition::Held { .. })));
    a.close().await.unwrap();
    let second = acquired(&b, &key, "b", LONG_MS).await;
    assert_eq!(a.append_fenced(&name("pipeline:x"), numbered([1]), Some(&fence)).await, Err(Error::Fenced));
    assert_eq!(
        b.append_fenced(&name("pipeline:x"), numbered([1]), Some(&second)).await.map(|places| places.len()),
        Ok(1)
    );
    assert!(matches!(a.acquire(&key, "a", LONG_MS).await, Err(Error::Unavailable { .. })));
}

#[tokio::test]
async fn fenced_append_never_falls_back_to_memory() {
    let mut server = RedisServer::start();
    let config = server.config();
    let redis = RedisConfig { fallback: Fallback::Memory, timeout_ms: 1000, ..config.redis.clone() };
    let store = open(EventsConfig { redis, ..config }).await;
    let (key, channel) = (name("execution:x"), name("pipeline:x"));
    let fence = acquired(&store, &key, "a", LONG_MS).await;
    server.kill();
    store.append(&channel, numbered([1])).await.unwrap();
    assert!(matches!(store.append_fenced(&channel, numbered([2]), Some(&fence)).await, Err(Error::Unavailable { .. })));
    assert!(matches!(store.renew(&fence, LONG_MS).await, Err(Error::Unavailable { .. })));
    // A server that has lost all data has no owner for the key, and assigns greater tokens.
    server.start_again();
    until("the earlier token is refused", || async {
        store.append_fenced(&channel, numbered([3]), Some(&fence)).await == Err(Error::Fenced)
    })
    .await;
    assert!(acquired(&store, &key, "b", LONG_MS).await.token > fence.token);
}

/// Simulates a server's clock that was set back: the stored end of a lease is further ahead than its duration.
#[tokio::test]
async fn lease_ends_in_time_although_the_clock_was_set_back() {
    let server = RedisServer::start();
    let store = open(server.config()).await;
    let key = name("execution:x");
    let fence = acquired(&store, &key, "a", 50).await;
    let mut connection = server.connection().await;
    let far = u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis())
        .unwrap()
        + 3_600_000;
    let lease = "pip-ai:@@lease:execution:x";
    let _: u64 = redis::cmd("HSET").arg(lease).arg("end").arg(far).query_async(&mut connection).await.unwrap();
    match store.acquire(&key, "b", LONG_MS).await.unwrap() {
        Acquisition::Held { remaining_ms } => assert!(remaining_ms <= 50, "{remaining_ms}"),
        acquired => panic!("{acquired:?}"),
    }
    until("the lease ends", || async {
        matches!(store.acquire(&key, "b", LONG_MS).await, Ok(Acquisition::Acquired(_)))
    })
    .await;
    assert_eq!(store.renew(&fence, 50).await, Err(Error::Fenced));
}

/// The server performs an acquisition after its owner has given up: that lease delays no later owner of the same store.
#[tokio::test]
async fn acquisition_without_an_answer_does_not_block_its_key() {
    let server = RedisServer::start();
    let config = server.config();
    let redis = RedisConfig { timeout_ms: 1000, ..config.redis.clone() };
    let store = open(EventsConfig { redis, ..config }).await;
    let key = name("execution:x");
    acquired(&store, &name("execution:y"), "y", LONG_MS).await;
    let mut connection = server.connection().await;
    for owner in ["timed out", "dropped"] {
        server.signal("STOP");
        match owner {
            "dropped" => {
                let waiting = std::time::Duration::from_millis(50);
                assert!(tokio::time::timeout(waiting, store.acquire(&key, owner, LONG_MS)).await.is_err());
            }
            _ => assert!(matches!(store.acquire(&key, owner, LONG_MS).await, Err(Error::Unavailable { .. }))),
        }
        server.signal("CONT");
        let mut holder = None::<String>;
        while holder.as_deref() != Some(owner) {
            holder = redis::cmd("HGET")
                .arg("pip-ai:@@lease:execution:x")
                .arg("owner")
                .query_async(&mut connection)
                .await
                .unwrap();
        }
        until("the server answers", || async { store.get(&key).await.is_ok() }).await;
        // For other processes the lease is held.
        let other = open(server.config()).await;
        assert!(matches!(other.acquire(&key, "other", LONG_MS).await, Ok(Acquisition::Held { .. })));
        let fence = acquired(&store, &key, "next", LONG_MS).await;
        store.put_fenced(&key, owner.into(), None, Some(&fence)).await.unwrap();
        // An acquisition with an answer is reported to the next owner.
        assert!(matches!(store.acquire(&key, "third", LONG_MS).await, Ok(Acquisition::Held { .. })));
        store.release(&fence).await.unwrap();
    }
}
