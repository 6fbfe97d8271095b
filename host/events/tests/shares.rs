//! The share of one user in a store, for every kind of store: state and channels, also after a restart.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod common;

use std::collections::BTreeMap;

use common::{RedisServer, conformance, disk, memory, name, numbered, open, until};
use tempfile::TempDir;
use weir_core::channels::{Cursor, value_bytes_of};
use weir_core::random::SplitMix64;
use weir_events::{Error, EventsConfig, Store, StoreKind, WriteContext};

conformance!(
    user_with_its_share_of_state_is_refused_and_others_are_not,
    store_without_room_is_full_for_all_and_says_so,
    channels_of_one_user_evict_none_of_another,
    user_of_a_small_store_has_two_channels,
    state_of_each_user_stays_within_its_share,
);

const LARGE: usize = 100_000;

async fn put(store: &Store, key: &str, bytes: usize, user: Option<&str>) -> Result<(), Error> {
    store.put_as(&name(key), vec![7; bytes], None, WriteContext { fence: None, user }).await
}

async fn append(store: &Store, channel: &str, number: u64, user: Option<&str>) -> Result<(), Error> {
    store.append_as(&name(channel), numbered([number]), WriteContext { fence: None, user }).await.map(drop)
}

async fn events(store: &Store, channel: &str) -> usize {
    store.read(&name(channel), Cursor::START, 100).await.unwrap().entries.len()
}

fn exceeds_share<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(error @ Error::ShareExceeded { retry_after_ms: 1.., .. }) if error.retryable())
}

/// A quarter of a mebibyte holds two values of [`LARGE`].
fn quarter(config: EventsConfig) -> EventsConfig {
    EventsConfig { state_bytes_max: 1 << 20, user_percent_max: 25, ..config }
}

async fn user_with_its_share_of_state_is_refused_and_others_are_not(config: EventsConfig) {
    let store = open(quarter(config)).await;
    for key in ["session:a1", "session:a2"] {
        put(&store, key, LARGE, Some("ann")).await.unwrap();
    }
    assert!(exceeds_share(put(&store, "session:a3", LARGE, Some("ann")).await));
    assert_eq!(store.get(&name("session:a3")).await, Ok(None));
    // A value that does not grow still fits, and other users have shares of their own.
    put(&store, "session:a2", LARGE, Some("ann")).await.unwrap();
    put(&store, "session:b1", LARGE, Some("bob")).await.unwrap();
    put(&store, "label:l", LARGE, None).await.unwrap();
    assert_eq!(store.count("session").await, Ok(3));
    assert_eq!(store.exhausted().await, Ok(Vec::new()));
    // Deleted values are subtracted, and so are those that have ended.
    store.delete(&name("session:a1")).await.unwrap();
    put(&store, "session:a3", LARGE, Some("ann")).await.unwrap();
    assert!(exceeds_share(put(&store, "session:a1", LARGE, Some("ann")).await));
    let ends = WriteContext { fence: None, user: Some("ann") };
    store.put_as(&name("session:a3"), vec![7; LARGE], Some(50), ends).await.unwrap();
    until("expired values are subtracted", || async { put(&store, "session:a1", LARGE, Some("ann")).await.is_ok() })
        .await;
    // A value that goes to another user leaves the share of the first.
    put(&store, "session:a1", LARGE, Some("bob")).await.unwrap();
    put(&store, "session:a4", LARGE, Some("ann")).await.unwrap();
    assert!(exceeds_share(put(&store, "session:b2", LARGE, Some("bob")).await));
}

async fn store_without_room_is_full_for_all_and_says_so(config: EventsConfig) {
    let store = open(quarter(config)).await;
    for user in ["a", "b", "c", "d", "e"] {
        for number in 0..2 {
            put(&store, &format!("session:{user}{number}"), LARGE, Some(user)).await.unwrap();
        }
    }
    for user in [Some("f"), None] {
        assert!(matches!(put(&store, "session:f1", LARGE, user).await, Err(Error::Full { retry_after_ms: 1.., .. })));
    }
    // A user over its share gets that error.
    assert!(exceeds_share(put(&store, "session:a9", LARGE, Some("a")).await));
    assert_eq!(store.exhausted().await, Ok(vec!["events.state_bytes_max"]));
    store.delete(&name("session:a0")).await.unwrap();
    assert_eq!(store.exhausted().await, Ok(Vec::new()));
    put(&store, "session:f1", LARGE, Some("f")).await.unwrap();
}

async fn channels_of_one_user_evict_none_of_another(config: EventsConfig) {
    let store = open(EventsConfig { channels_max: 20, user_percent_max: 25, ..config }).await;
    for id in 0..3 {
        append(&store, &format!("workflow:b{id}"), id, Some("bob")).await.unwrap();
    }
    for id in 0..60 {
        append(&store, &format!("workflow:a{id:02}"), id, Some("ann")).await.unwrap();
        // The disk store and Redis evict by time, in milliseconds.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let mut retained = Vec::new();
    for id in 0..60 {
        if events(&store, &format!("workflow:a{id:02}")).await > 0 {
            retained.push(id);
        }
    }
    // The most recently used ones.
    assert_eq!(retained, [55, 56, 57, 58, 59]);
    for id in 0..3 {
        assert_eq!(events(&store, &format!("workflow:b{id}")).await, 1, "workflow:b{id}");
    }
    // A channel stays with its first publisher, and a known channel counts once.
    append(&store, "workflow:b0", 9, Some("ann")).await.unwrap();
    append(&store, "workflow:a59", 9, Some("bob")).await.unwrap();
    assert_eq!((events(&store, "workflow:b0").await, events(&store, "workflow:a55").await), (2, 1));
}

/// Random puts and deletions of three users and of the server: exactly the writes that do not fit are refused.
async fn state_of_each_user_stays_within_its_share(config: EventsConfig) {
    const TOTAL: usize = 40_000;
    // A record on the disk includes a checksum and the end of the value.
    let record_bytes = if config.store == StoreKind::Disk { 16 } else { 0 };
    let store = open(EventsConfig { state_bytes_max: TOTAL, user_percent_max: 40, ..config }).await;
    let mut random = SplitMix64::new(10);
    let mut below = |bound: u64| usize::try_from(random.next_u64() % bound).unwrap();
    let users = [Some("ann"), Some("bob"), Some("eve"), None];
    let mut model: BTreeMap<String, (usize, Option<&str>)> = BTreeMap::new();
    let (mut put_count, mut refused) = (0, 0);
    for step in 0..400 {
        let (key, bytes, user) = (format!("session:{}", below(12)), below(9_000), users[below(4)]);
        if below(5) == 0 {
            store.delete(&name(&key)).await.unwrap();
            model.remove(&key);
            continue;
        }
        let size = value_bytes_of(&name(&key), bytes + record_bytes);
        let before = model.get(&key).copied();
        let others = || model.iter().filter(|(other, _)| **other != key).map(|(_, entry)| entry);
        let own: usize = others().filter(|(_, owner)| *owner == user).map(|(size, _)| size).sum();
        let total: usize = others().map(|(size, _)| size).sum();
        let grows = before.is_none_or(|(before, owner)| owner != user || before < size);
        let fits_user = user.is_none() || own + size <= TOTAL * 40 / 100;
        match put(&store, &key, bytes, user).await {
            Ok(()) => {
                assert!(!grows || fits_user && total + size <= TOTAL, "{step}");
                put_count += 1;
                model.insert(key, (size, user));
            }
            Err(Error::ShareExceeded { .. }) => {
                assert!(grows && !fits_user, "{step}");
                refused += 1;
            }
            Err(Error::Full { .. }) => assert!(grows && total + size > TOTAL, "{step}"),
            Err(error) => panic!("{step}: {error}"),
        }
        assert_eq!(store.count("session").await, Ok(model.len()), "{step}");
    }
    assert!(put_count > 100 && refused > 10, "{put_count} {refused}");
}

#[tokio::test]
async fn shares_are_restored_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::durable();
    for config in [disk(folder.path()), redis.config()] {
        let config = EventsConfig { channels_max: 20, ..quarter(config) };
        let store = open(config.clone()).await;
        for key in ["session:a1", "session:a2"] {
            put(&store, key, LARGE, Some("ann")).await.unwrap();
        }
        for id in 0..4 {
            append(&store, &format!("workflow:a{id}"), id, Some("ann")).await.unwrap();
            append(&store, &format!("workflow:b{id}"), id, Some("bob")).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        store.close().await.unwrap();
        drop(store);
        let store = open(config).await;
        assert!(exceeds_share(put(&store, "session:a3", LARGE, Some("ann")).await));
        put(&store, "session:b1", LARGE, Some("bob")).await.unwrap();
        for id in 4..9 {
            append(&store, &format!("workflow:a{id}"), id, Some("ann")).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let mut retained = Vec::new();
        for id in 0..9 {
            retained.extend((events(&store, &format!("workflow:a{id}")).await > 0).then_some(id));
        }
        assert_eq!(retained, [4, 5, 6, 7, 8]);
        for id in 0..4 {
            assert_eq!(events(&store, &format!("workflow:b{id}")).await, 1);
        }
        store.delete(&name("session:a1")).await.unwrap();
        put(&store, "session:a3", LARGE, Some("ann")).await.unwrap();
    }
}

#[tokio::test]
async fn full_store_evicts_channels_of_the_largest_user() {
    let folder = TempDir::new().unwrap();
    for config in [memory(), disk(folder.path())] {
        let store = open(EventsConfig { channels_max: 10, user_percent_max: 60, ..config }).await;
        let publish = async |user: &str, id: u64| {
            append(&store, &format!("workflow:{user}{id}"), id, Some(user)).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        };
        // The channels of the other users are older.
        for id in 0..2 {
            publish("bob", id).await;
            publish("eve", id).await;
        }
        for id in 0..6 {
            publish("ann", id).await;
        }
        for id in 2..4 {
            publish("bob", id).await;
        }
        let mut retained = Vec::new();
        for (user, count) in [("ann", 6), ("bob", 4), ("eve", 2)] {
            for id in 0..count {
                if events(&store, &format!("workflow:{user}{id}")).await > 0 {
                    retained.push(format!("{user}{id}"));
                }
            }
        }
        assert_eq!(retained.join(" "), "ann2 ann3 ann4 ann5 bob0 bob1 bob2 bob3 eve0 eve1");
    }
}

#[tokio::test]
async fn user_that_follows_all_its_channels_is_refused_more_and_others_are_not() {
    let folder = TempDir::new().unwrap();
    for config in [memory(), disk(folder.path())] {
        let kind = config.store;
        let store = open(EventsConfig { channels_max: 8, user_percent_max: 50, ..config }).await;
        let mut followers = Vec::new();
        for id in 0..4 {
            let channel = format!("workflow:a{id}");
            append(&store, &channel, id, Some("ann")).await.unwrap();
            followers.push(store.follow_as(&name(&channel), Cursor::START, Some("ann")).await.unwrap());
        }
        assert!(exceeds_share(append(&store, "workflow:a9", 9, Some("ann")).await));
        // Channels without events that are followed exist in memory only.
        if kind == StoreKind::Memory {
            assert!(exceeds_share(store.follow_as(&name("workflow:x"), Cursor::START, Some("ann")).await));
        }
        for id in 0..20 {
            append(&store, &format!("workflow:b{id}"), id, Some("bob")).await.unwrap();
        }
        assert_eq!(store.exhausted().await, Ok(Vec::new()));
        drop(followers);
        append(&store, "workflow:a9", 9, Some("ann")).await.unwrap();
    }
}

#[tokio::test]
async fn channel_followed_before_its_first_event_counts_for_its_publisher() {
    let folder = TempDir::new().unwrap();
    for config in [memory(), disk(folder.path())] {
        let store = open(EventsConfig { channels_max: 8, user_percent_max: 25, ..config }).await;
        let early = store.follow_as(&name("workflow:b"), Cursor::START, Some("ann")).await.unwrap();
        append(&store, "workflow:b", 1, Some("bob")).await.unwrap();
        drop(early);
        for id in 0..6 {
            append(&store, &format!("workflow:a{id}"), id, Some("ann")).await.unwrap();
        }
        assert_eq!(events(&store, "workflow:b").await, 1);
    }
}

#[tokio::test]
async fn store_whose_channels_are_all_followed_is_exhausted() {
    let store = open(EventsConfig { channels_max: 2, user_percent_max: 100, ..memory() }).await;
    let mut followers = Vec::new();
    for (id, user) in ["ann", "bob"].into_iter().enumerate() {
        append(&store, &format!("workflow:{id}"), 1, Some(user)).await.unwrap();
        followers.push(store.follow(&name(&format!("workflow:{id}")), Cursor::START).await.unwrap());
    }
    assert_eq!(store.exhausted().await, Ok(Vec::new()));
    assert!(matches!(append(&store, "workflow:9", 1, Some("eve")).await, Err(Error::Full { .. })));
    assert_eq!(store.exhausted().await, Ok(vec!["events.channels_max"]));
}

/// An event that names a user is appended to its channel and to the user's own.
async fn user_of_a_small_store_has_two_channels(config: EventsConfig) {
    let store = open(EventsConfig { channels_max: 6, user_percent_max: 25, ..config }).await;
    for channel in ["workflow:w", "user:ann"] {
        append(&store, channel, 1, Some("ann")).await.unwrap();
    }
    assert_eq!((events(&store, "workflow:w").await, events(&store, "user:ann").await), (1, 1));
    append(&store, "workflow:v", 1, Some("ann")).await.unwrap();
    let retained = events(&store, "workflow:w").await + events(&store, "user:ann").await;
    assert_eq!((retained, events(&store, "workflow:v").await), (1, 1));
}

#[tokio::test]
async fn user_with_its_share_of_claims_is_refused_and_others_are_not() {
    let folder = TempDir::new().unwrap();
    for config in [memory(), disk(folder.path())] {
        let config = EventsConfig { claims_max: 8, user_percent_max: 25, ..config };
        let mut store = open(config.clone()).await;
        for key in ["ticket:ann:1", "ticket:ann:2"] {
            assert_eq!(store.claim(key, 60_000).await, Ok(true));
        }
        for _ in 0..2 {
            assert!(exceeds_share(store.claim("ticket:ann:3", 60_000).await));
            // A claim that is held is still reported as held.
            assert_eq!(store.claim("ticket:ann:1", 60_000).await, Ok(false));
            if config.store == StoreKind::Disk {
                store.close().await.unwrap();
                store = open(config.clone()).await;
            }
        }
        assert_eq!(store.claim("ticket:bob:1", 60_000).await, Ok(true));
        assert_eq!(store.claim("tickets:label", 60_000).await, Ok(true));
    }
}
