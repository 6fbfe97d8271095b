//! Owner records stay as long as their channels have events or followers, and are removed with them.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod common;

use std::time::{Duration, Instant};

use common::{conformance, disk, memory, name, numbered, open, until};
use tempfile::TempDir;
use weir_core::channels::{Cursor, Retention};
use weir_events::{EventsConfig, Store};

/// Redis removes entries past their age by its own clock: long enough that a busy machine renews a record in time.
const AGE_MS: u64 = 2_000;

conformance!(owner_record_stays_while_its_channel_has_events_or_followers_and_goes_with_it);

async fn publish(store: &Store, channel: &str) {
    store.append(&name(channel), numbered([1])).await.unwrap();
}

/// Publishes the record of a channel's owner, and then an event of the channel.
async fn publish_owned(store: &Store, channel: &str) {
    publish(store, &format!("owner-{channel}")).await;
    publish(store, channel).await;
}

async fn has(store: &Store, channel: &str) -> bool {
    !store.read(&name(channel), Cursor::START, 10).await.unwrap().entries.is_empty()
}

async fn has_owner(store: &Store, channel: &str) -> bool {
    has(store, &format!("owner-{channel}")).await
}

async fn owner_record_stays_while_its_channel_has_events_or_followers_and_goes_with_it(config: EventsConfig) {
    let retention = Retention { age_ms_max: AGE_MS, ..config.retention };
    let store = open(EventsConfig { retention, ..config }).await;
    publish_owned(&store, "workflow:w").await;
    publish_owned(&store, "workflow:quiet").await;
    let follower = store.follow(&name("workflow:quiet"), Cursor::START).await.unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2 * AGE_MS) {
        publish(&store, "workflow:w").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(has_owner(&store, "workflow:w").await, "the record of a channel that has events");
    until("events age", || async { !has(&store, "workflow:quiet").await }).await;
    assert!(has_owner(&store, "workflow:quiet").await, "the record of a channel that is followed");
    drop(follower);
    until("records are removed", || async {
        !has_owner(&store, "workflow:quiet").await && !has_owner(&store, "workflow:w").await
    })
    .await;
}

/// Stores that bound channels.
fn bounded(folder: &TempDir, channels_max: usize) -> [EventsConfig; 2] {
    [memory(), disk(folder.path())].map(|config| EventsConfig { channels_max, ..config })
}

#[tokio::test]
async fn channels_of_another_user_do_not_evict_the_owner_record_of_a_followed_channel() {
    let folder = TempDir::new().unwrap();
    for config in bounded(&folder, 4) {
        let store = open(config).await;
        publish_owned(&store, "workflow:w").await;
        let _follower = store.follow(&name("workflow:w"), Cursor::START).await.unwrap();
        for id in 0..100 {
            publish_owned(&store, &format!("session:{id}")).await;
        }
        assert!(has(&store, "workflow:w").await && has_owner(&store, "workflow:w").await);
        let (mut channels, mut records) = (0, 0);
        for id in 0..100 {
            let channel = format!("session:{id}");
            let (is_there, is_owned) = (has(&store, &channel).await, has_owner(&store, &channel).await);
            assert_eq!(is_there, is_owned, "{channel}: a channel and its owner record are removed together");
            channels += usize::from(is_there);
            records += usize::from(is_owned);
        }
        assert_eq!((channels, records), (3, 3));
    }
}

#[tokio::test]
async fn eviction_of_a_channel_removes_its_owner_record() {
    let folder = TempDir::new().unwrap();
    for config in bounded(&folder, 2) {
        let store = open(config).await;
        for id in 0..3 {
            publish_owned(&store, &format!("workflow:{id}")).await;
            // The disk store evicts by the time of the newest event.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!has(&store, "workflow:0").await && !has_owner(&store, "workflow:0").await);
        assert!(has_owner(&store, "workflow:1").await && has_owner(&store, "workflow:2").await);
    }
}

#[tokio::test]
async fn owner_records_without_channels_are_bounded_and_evict_no_others() {
    let folder = TempDir::new().unwrap();
    for config in bounded(&folder, 4) {
        let store = open(config).await;
        publish_owned(&store, "workflow:w").await;
        for id in 0..100 {
            publish(&store, &format!("owner-workflow:{id}")).await;
        }
        assert!(has(&store, "workflow:w").await && has_owner(&store, "workflow:w").await);
        let mut records = 0;
        for id in 0..100 {
            records += usize::from(has_owner(&store, &format!("workflow:{id}")).await);
        }
        assert_eq!(records, 3);
    }
}

#[tokio::test]
async fn reopened_file_keeps_and_bounds_owner_records() {
    let folder = TempDir::new().unwrap();
    let config = EventsConfig { channels_max: 4, ..disk(folder.path()) };
    for round in 0..3 {
        let store = open(config.clone()).await;
        if round == 0 {
            publish_owned(&store, "workflow:w").await;
        }
        let _follower = store.follow(&name("workflow:w"), Cursor::START).await.unwrap();
        assert!(has_owner(&store, "workflow:w").await);
        for id in 0..20 {
            publish_owned(&store, &format!("session:{round}-{id}")).await;
        }
        assert!(has(&store, "workflow:w").await && has_owner(&store, "workflow:w").await);
        store.close().await.unwrap();
    }
}
