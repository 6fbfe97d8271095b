//! Tests with a clock that is set, and with files of earlier versions.

use redb::TableDefinition;
use weir_core::channels::{Cursor, Delivery};

use super::drive::Drive;
use super::{History, config, contents, draft, name, open};
use crate::backend::WriteContext;
use crate::clock::tests::TestClock;
use crate::config::EventsConfig;
use crate::disk::storage::Opener;

const NOON: u64 = 1_700_000_000_000;
const YEAR_MS: u64 = 31_536_000_000;

/// The times that the clock is set to.
const SET: [u64; 5] = [0, NOON - YEAR_MS, NOON - 5_000, NOON + 3 * YEAR_MS, u64::MAX / 2];

#[tokio::test]
async fn clock_set_back_or_ahead_before_a_crash_makes_a_gap_and_reaches_followers() {
    for durable in [true, false] {
        for wall_ms in SET {
            let (drive, source) = (Drive::default(), TestClock::at(NOON));
            let mut history = History::default();
            let channel = name("user:u");
            let store = open(config(durable), &drive, &source).await;
            let mut cursor = Cursor::START;
            for number in 0..20 {
                let data = format!("user:u {number}");
                cursor = store.append(&channel, draft(&data), WriteContext::default()).await.unwrap()[0];
                history.record(&channel, cursor, &data);
            }
            source.set(wall_ms);
            let drive = drive.crash(wall_ms);
            for round in 0..3_u64 {
                let store = open(config(durable), &drive, &source).await;
                let mut follower = store.follow(&channel, cursor, None).await.unwrap();
                let data = format!("user:u after {round}");
                let newest = store.append(&channel, draft(&data), WriteContext::default()).await.unwrap()[0];
                history.record(&channel, newest, &data);
                let mut gap = false;
                loop {
                    match follower.try_next() {
                        Some(Delivery::Gap(_)) => gap = true,
                        Some(Delivery::Event { entry, .. }) if entry.cursor == newest => break,
                        other => panic!("{wall_ms}, round {round}: {other:?} instead of an event"),
                    }
                }
                assert!(gap || durable || cursor.leads_to(newest), "lost events without a gap");
                for (cursor, data) in contents(&store, &channel, Cursor::START).await.unwrap() {
                    history.record(&channel, cursor, &data);
                }
                cursor = newest;
                drop(follower);
                store.close().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn clock_change_expires_and_hides_no_events() {
    for durable in [true, false] {
        for wall_ms in SET {
            let (drive, source) = (Drive::default(), TestClock::at(NOON));
            let channel = name("user:u");
            let mut store = open(config(durable), &drive, &source).await;
            store.append(&channel, draft("user:u 1"), WriteContext::default()).await.unwrap();
            store.put(&name("state:s"), b"value", Some(600_000), WriteContext::default()).await.unwrap();
            assert_eq!(store.claim("ticket", 60_000).await, Ok(true));
            for restarts in 0..3 {
                source.set(wall_ms);
                source.advance(1_000);
                store.hub.sweep(store.clock.now_ms());
                store.sweep().await;
                let events = contents(&store, &channel, Cursor::START).await.unwrap();
                assert_eq!(events.len(), 1, "set to {wall_ms}, {restarts} restarts");
                assert_eq!(store.get(&name("state:s")).await, Ok(Some(b"value".to_vec())));
                assert_eq!(store.keys("state", "", 10), ["state:s"]);
                assert_eq!(store.claim("ticket", 60_000).await, Ok(false));
                store.close().await.unwrap();
                // The machine may have been started again, too.
                source.boot.store(restarts % 2, std::sync::atomic::Ordering::Relaxed);
                store = open(config(durable), &drive, &source).await;
            }
            // Elapsed time expires all of it, whatever the wall clock shows.
            source.set(NOON);
            source.advance(4_000_000);
            store.hub.sweep(store.clock.now_ms());
            assert_eq!(contents(&store, &channel, Cursor::START).await.unwrap(), []);
            assert_eq!(store.get(&name("state:s")).await, Ok(None));
            assert_eq!(store.claim("ticket", 60_000).await, Ok(true));
        }
    }
}

#[tokio::test]
async fn removed_channel_starts_after_its_last_cursor_despite_a_clock_set_back() {
    let (drive, source) = (Drive::default(), TestClock::at(NOON));
    let bounded = EventsConfig { channels_max: 2, ..config(false) };
    let store = open(bounded.clone(), &drive, &source).await;
    let first = store.append(&name("user:a"), draft("user:a 1"), WriteContext::default()).await.unwrap()[0];
    for other in ["user:b", "user:c", "user:d"] {
        source.advance(1);
        store.append(&name(other), draft("x"), WriteContext::default()).await.unwrap();
    }
    source.set(1_000);
    let drive = drive.crash(1);
    let store = open(bounded, &drive, &source).await;
    let again = store.append(&name("user:a"), draft("user:a 2"), WriteContext::default()).await.unwrap()[0];
    assert!(again > first, "{again} after {first}");
}

/// Writes a file in the format of version 0.1.
fn earlier_file(drive: &Drive, channels: &[(&str, u64)], next_id: u64) {
    const CHANNELS: TableDefinition<&str, (u64, u64, u64, u64, u64)> = TableDefinition::new("channels");
    const CLAIMS: TableDefinition<&str, u64> = TableDefinition::new("claims");
    const EVENTS: TableDefinition<(u64, u64, u64), &[u8]> = TableDefinition::new("events");
    const STORE: TableDefinition<&str, u64> = TableDefinition::new("store");
    let drive = drive.clone();
    let file = Opener::new(move || drive.backend()).open().unwrap();
    let transaction = file.begin_write().unwrap();
    {
        let mut rows = transaction.open_table(CHANNELS).unwrap();
        for (channel, id) in channels {
            rows.insert(*channel, (*id, 7, 1, 0, NOON - 1_000)).unwrap();
        }
        let mut events = transaction.open_table(EVENTS).unwrap();
        for (_, id) in channels {
            events
                .insert((*id, 7, 1), &crate::disk::record::tests::earlier(*id, Cursor::new(7, 1), NOON - 1_000)[..])
                .unwrap();
        }
        transaction.open_table(CLAIMS).unwrap().insert("ticket", NOON + 60_000).unwrap();
        transaction.open_table(STORE).unwrap().insert("next_id", next_id).unwrap();
    }
    transaction.commit().unwrap();
}

#[tokio::test]
async fn file_of_an_earlier_version_is_read_and_continued() {
    let (drive, source) = (Drive::default(), TestClock::at(NOON));
    earlier_file(&drive, &[("user:a", 1), ("user:b", 2)], 3);
    for _ in 0..2 {
        let store = open(config(true), &drive, &source).await;
        for channel in ["user:a", "user:b"] {
            let events = contents(&store, &name(channel), Cursor::START).await.unwrap();
            assert_eq!(events, [(Cursor::new(7, 1), "data".to_owned())]);
        }
        assert_eq!(store.claim("ticket", 1_000).await, Ok(false));
        store.close().await.unwrap();
    }
    let store = open(config(true), &drive, &source).await;
    assert_eq!(store.append(&name("user:a"), draft("2"), WriteContext::default()).await, Ok(vec![Cursor::new(7, 2)]));
    assert_eq!(contents(&store, &name("user:a"), Cursor::START).await.unwrap().len(), 2);
    assert_eq!(contents(&store, &name("user:b"), Cursor::START).await.unwrap().len(), 1);
}

#[tokio::test]
async fn channels_that_share_a_number_in_an_earlier_file_are_separated_without_their_events() {
    let (drive, source) = (Drive::default(), TestClock::at(NOON));
    earlier_file(&drive, &[("user:a", 5), ("user:b", 5), ("user:c", 6)], 2);
    let store = open(config(true), &drive, &source).await;
    for (channel, events) in [("user:a", 0), ("user:b", 0), ("user:c", 1)] {
        assert_eq!(contents(&store, &name(channel), Cursor::START).await.unwrap().len(), events);
        // A reader that has seen the event gets a gap, and then the next event of its own channel.
        let cursor = store.append(&name(channel), draft(channel), WriteContext::default()).await.unwrap()[0];
        let rest = contents(&store, &name(channel), Cursor::new(7, 1)).await.unwrap();
        assert_eq!(rest, [(cursor, channel.to_owned())]);
    }
    let new = store.append(&name("user:d"), draft("user:d"), WriteContext::default()).await.unwrap()[0];
    assert_eq!(contents(&store, &name("user:d"), Cursor::START).await.unwrap(), [(new, "user:d".to_owned())]);
    store.close().await.unwrap();
    let store = open(config(true), &drive, &source).await;
    for (channel, events) in [("user:a", 1), ("user:b", 1), ("user:c", 2), ("user:d", 1)] {
        assert_eq!(contents(&store, &name(channel), Cursor::START).await.unwrap().len(), events);
    }
}
