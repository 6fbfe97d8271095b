//! The disk store across restarts, `kill -9` and damage.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{ReaderState, disk, gap, name, next, number, numbered, open, until};
use tempfile::TempDir;
use weir_core::channels::{Cursor, Delivery, Draft, Gap, Retention};
use weir_events::{EventsConfig, OpenError, Store};

/// The folder that the process to be killed writes to. Without this variable the test does nothing.
const FOLDER: &str = "WEIR_EVENTS_FOLDER";
const DURABLE: &str = "WEIR_EVENTS_DURABLE";
/// The folder of the process whose file sizes are limited.
const SMALL_FOLDER: &str = "WEIR_EVENTS_SMALL_FOLDER";
const CHANNELS: [&str; 2] = ["pipeline:a", "user:b"];

fn config(folder: &Path, durable: bool) -> EventsConfig {
    let retention = Retention { events_max: 1_000_000, bytes_max: 1 << 30, ..Retention::default() };
    EventsConfig { durable, retention, ..disk(folder) }
}

/// The process that is killed: appends and follows, and prints what was acknowledged and delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = open(config(Path::new(&folder), std::env::var_os(DURABLE).is_some())).await;
    let print = |channel: &str, cursor: Cursor, data: &str| {
        writeln!(std::io::stdout(), "\n@ {channel} {cursor} {data}").expect("standard output is read");
    };
    for channel in CHANNELS {
        let mut follower = store.follow(&name(channel), Cursor::START).await.unwrap();
        tokio::spawn(async move {
            while let Some(weir_core::channels::Delivery::Event { entry, .. }) = follower.next().await {
                print(channel, entry.cursor, &entry.data);
            }
        });
    }
    let process = std::process::id();
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..6_usize {
        let store = store.clone();
        publishers.spawn(async move {
            for turn in 0_usize.. {
                let channel = CHANNELS[(publisher + turn) % 2];
                let data: Vec<String> =
                    (0..1 + turn % 3).map(|event| format!("{process}.{publisher}.{turn}.{event}")).collect();
                let drafts = data.iter().map(|data| Draft::new("e", data.as_str())).collect();
                let cursors = store.append(&name(channel), drafts).await.unwrap();
                cursors.iter().zip(&data).for_each(|(cursor, data)| print(channel, *cursor, data));
            }
        });
    }
    publishers.join_next().await.unwrap().unwrap();
}

/// Starts that process, kills it after a number of lines, and returns the events that it printed.
fn killed(folder: &Path, durable: bool, lines: usize) -> BTreeMap<(String, Cursor), String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "appends_until_it_is_killed", "--nocapture"]).env(FOLDER, folder);
    if durable {
        command.env(DURABLE, "1");
    }
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut printed = BTreeMap::new();
    let mut count = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        // The last line may be torn.
        if let ["@", channel, cursor, data] = line.split(' ').collect::<Vec<_>>()[..]
            && data.split('.').count() == 4
            && let Ok(cursor) = cursor.parse()
        {
            let before = printed.insert((channel.to_owned(), cursor), data.to_owned());
            assert!(before.is_none_or(|before| before == data), "one cursor, two events");
            count += 1;
        }
        if count == lines {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(count >= lines, "the process ended by itself after {count} lines");
    printed
}

/// Adds the events of a later process, which may repeat earlier ones but must not differ from them.
fn merge(printed: &mut BTreeMap<(String, Cursor), String>, more: BTreeMap<(String, Cursor), String>) {
    for (key, data) in more {
        let before = printed.insert(key, data.clone());
        assert!(before.is_none_or(|before| before == data), "a cursor was assigned again");
    }
}

async fn contents(store: &Store, channel: &str) -> (Vec<Gap>, Vec<(Cursor, String)>) {
    let (mut cursor, mut gaps, mut events) = (Cursor::START, Vec::new(), Vec::new());
    loop {
        let page = store.read(&name(channel), cursor, 1_000).await.unwrap();
        gaps.extend(page.gap);
        events.extend(page.entries.iter().map(|entry| (entry.cursor, entry.data.to_string())));
        if page.next == cursor {
            return (gaps, events);
        }
        cursor = page.next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_acknowledged_or_delivered_event() {
    let folder = TempDir::new().unwrap();
    let mut printed = BTreeMap::new();
    for round in 0..6 {
        merge(&mut printed, killed(folder.path(), true, 60 + round * 97));
        let store = open(config(folder.path(), true)).await;
        for channel in CHANNELS {
            let (gaps, events) = contents(&store, channel).await;
            assert_eq!(gaps, []);
            assert!(events.windows(2).all(|pair| pair[0].0.leads_to(pair[1].0)), "the sequence has a hole");
            assert_eq!(events[0].0.seq, 1);
            let mut data: Vec<_> = events.iter().map(|(_, data)| data).collect();
            data.sort_unstable();
            data.dedup();
            assert_eq!(data.len(), events.len(), "an event is there twice");
            let stored: BTreeMap<_, _> = events.into_iter().collect();
            for ((of, cursor), data) in printed.iter().filter(|((of, _), _)| of == channel) {
                assert_eq!(stored.get(cursor), Some(data), "{of} {cursor} was acknowledged and is missing");
            }
            printed.extend(stored.into_iter().map(|(cursor, data)| ((channel.to_owned(), cursor), data)));
        }
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_fsync_kill_9_is_a_gap_and_no_cursor_is_reused() {
    let folder = TempDir::new().unwrap();
    let mut printed = BTreeMap::new();
    for round in 0..3 {
        let more = killed(folder.path(), false, 300 + round * 150);
        let newest =
            more.iter().filter(|((channel, _), _)| channel == CHANNELS[0]).map(|((_, cursor), _)| *cursor).max();
        merge(&mut printed, more);
        let store = open(config(folder.path(), false)).await;
        // A reader resumes after events that may have been lost.
        let mut reader_state = ReaderState { cursor: newest.unwrap(), ..ReaderState::default() };
        let cursor = store.append(&name(CHANNELS[0]), numbered([round as u64])).await.unwrap()[0];
        assert!(cursor.epoch > reader_state.cursor.epoch && cursor.seq == 1);
        printed.insert((CHANNELS[0].to_owned(), cursor), round.to_string());
        let mut follower = store.follow(&name(CHANNELS[0]), reader_state.cursor).await.unwrap();
        while reader_state.cursor != cursor {
            let delivery = next(&mut follower).await.unwrap();
            match &delivery {
                // The process may have stored its last events and been killed before it printed them.
                Delivery::Event { entry, .. }
                    if entry.cursor.epoch == reader_state.cursor.epoch && entry.cursor != cursor =>
                {
                    assert_eq!(entry.cursor, reader_state.cursor.next(), "a silent hole");
                    reader_state.cursor = entry.cursor;
                }
                _ => reader_state.record(&delivery),
            }
        }
        assert_eq!((reader_state.gaps.len(), reader_state.numbers), (1, vec![round as u64]));
        drop(follower);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn closed_file_continues_its_epoch() {
    for durable in [true, false] {
        let folder = TempDir::new().unwrap();
        let config = EventsConfig { durable, ..disk(folder.path()) };
        let channel = name("session:s");
        let mut last = Cursor::START;
        for round in 0..3_u64 {
            let store = open(config.clone()).await;
            let mut follower = store.follow(&channel, Cursor::START).await.unwrap();
            for expected in 0..round * 2 {
                assert_eq!(number(&mut follower).await, expected);
            }
            let cursors = store.append(&channel, numbered([round * 2, round * 2 + 1])).await.unwrap();
            assert!(last == Cursor::START || last.leads_to(cursors[0]));
            last = cursors[1];
            assert_eq!(store.claim("once", 60_000).await, Ok(round == 0));
            store.close().await.unwrap();
            assert!(store.append(&channel, numbered([9])).await.unwrap_err().retryable());
        }
    }
}

#[tokio::test]
async fn finished_channel_stays_finished() {
    let folder = TempDir::new().unwrap();
    let store = open(disk(folder.path())).await;
    let cursor = store.append(&name("pipeline:p"), vec![Draft::new("done", "1").finishing()]).await.unwrap()[0];
    store.close().await.unwrap();
    let store = open(disk(folder.path())).await;
    assert_eq!(store.append(&name("pipeline:p"), numbered([2])).await, Err(weir_events::Error::Finished));
    assert!(store.read(&name("pipeline:p"), cursor, 1).await.unwrap().ended);
}

#[tokio::test]
async fn damaged_event_is_a_gap() {
    let folder = TempDir::new().unwrap();
    let store = open(disk(folder.path())).await;
    let channel = name("file:f");
    let data = |number: u64| format!("\"marker-{number}-{}\"", "x".repeat(50));
    let drafts = (0..5).map(|number| Draft::new("e", data(number))).collect();
    let cursors = store.append(&channel, drafts).await.unwrap();
    store.close().await.unwrap();
    let file = folder.path().join("events.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    let marker = b"marker-2-x";
    let offsets: Vec<usize> =
        bytes.windows(marker.len()).enumerate().filter(|(_, window)| window == marker).map(|(at, _)| at).collect();
    assert!(!offsets.is_empty());
    offsets.into_iter().for_each(|at| bytes[at + 9] ^= 1);
    std::fs::write(&file, bytes).unwrap();
    let store = open(disk(folder.path())).await;
    let page = store.read(&channel, Cursor::START, 10).await.unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.cursor).collect::<Vec<_>>(), cursors[..2]);
    let page = store.read(&channel, page.next, 10).await.unwrap();
    assert_eq!(page.gap, Some(Gap { missing_from: cursors[2], missing_to: cursors[2] }));
    assert_eq!(page.entries.iter().map(|entry| entry.cursor).collect::<Vec<_>>(), cursors[3..]);
    assert!(cursors[4].leads_to(store.append(&channel, numbered([1])).await.unwrap()[0]));
}

/// The process whose file sizes are limited until it has reported an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_recovers_when_the_disk_has_room() {
    let Some(folder) = std::env::var_os(SMALL_FOLDER) else { return };
    let store = open(config(Path::new(&folder), true)).await;
    let channel = name("user:u");
    let mut follower = store.follow(&channel, Cursor::START).await.unwrap();
    let mut acknowledged = Vec::new();
    let large = || vec![Draft::new("e", "x".repeat(100_000))];
    let error = loop {
        match store.append(&channel, large()).await {
            Ok(cursors) => acknowledged.extend(cursors),
            Err(error) => break error,
        }
        let Some(weir_core::channels::Delivery::Event { entry, .. }) = next(&mut follower).await else { panic!() };
        assert_eq!(Some(&entry.cursor), acknowledged.last());
    };
    assert!(error.retryable() && !acknowledged.is_empty(), "{error}");
    // No reader gets an event that was not stored.
    assert_eq!(follower.try_next(), None);
    let health = store.health().await;
    assert!(!health.ok && health.detail.is_some());
    writeln!(std::io::stdout(), "\n@ full").unwrap();
    until("there is room again", || async { store.append(&channel, numbered([7])).await.is_ok() }).await;
    assert!(store.health().await.ok);
    // The cursors of failed writes are not used again, and the follower gets a gap.
    let gap_of_failed = gap(&mut follower).await;
    assert_eq!(Some(gap_of_failed.missing_from), acknowledged.last().map(|last| last.next()));
    assert_eq!(number(&mut follower).await, 7);
    store.close().await.unwrap();
    let store = open(config(Path::new(&folder), true)).await;
    let (_, events) = contents(&store, "user:u").await;
    assert!(acknowledged.iter().all(|cursor| events.iter().any(|(stored, _)| stored == cursor)));
    assert!(events.last().is_some_and(|(cursor, data)| gap_of_failed.missing_to.leads_to(*cursor) && data == "7"));
    writeln!(std::io::stdout(), "\n@ done").unwrap();
}

#[test]
fn full_disk_is_reported_and_writes_succeed_after_it_has_room() {
    let folder = TempDir::new().unwrap();
    // A write past the limit fails like one to a full disk, if the signal SIGXFSZ is ignored.
    let script =
        "trap '' XFSZ; ulimit -S -f 16384; exec \"$0\" --exact store_recovers_when_the_disk_has_room --nocapture";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(std::env::current_exe().unwrap()).env(SMALL_FOLDER, folder.path());
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut printed = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        if line == "@ full" {
            let pid = child.id().to_string();
            assert!(Command::new("prlimit").args(["--fsize=unlimited", "--pid", &pid]).status().unwrap().success());
        }
        printed.extend(line.strip_prefix("@ ").map(str::to_owned));
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(printed, ["full", "done"]);
}

#[tokio::test]
async fn file_in_use_and_other_files_are_refused() {
    let folder = TempDir::new().unwrap();
    let config = disk(&folder.path().join("deep/er"));
    let store = open(config.clone()).await;
    assert!(matches!(Store::open(config.clone()).await, Err(OpenError::Database { .. })));
    store.close().await.unwrap();
    std::fs::write(&config.path, "no database at all, but long enough to be looked at".repeat(200)).unwrap();
    assert!(matches!(Store::open(config).await, Err(OpenError::Database { .. })));
}

#[tokio::test]
async fn evicted_channels_lose_no_events() {
    let folder = TempDir::new().unwrap();
    let store = open(EventsConfig { resident_channels_max: 2, ..disk(folder.path()) }).await;
    let channels: Vec<_> = (0..12).map(|channel| name(&format!("user:u{channel}"))).collect();
    let mut firsts = Vec::new();
    for round in 0..3 {
        for channel in &channels {
            let cursor = store.append(channel, numbered([round])).await.unwrap()[0];
            if round == 0 {
                firsts.push(cursor);
            }
            assert_eq!(cursor.seq, round + 1);
        }
        until("idle channels leave memory", || async { store.stats().channels <= 2 }).await;
    }
    for (channel, first) in channels.iter().zip(firsts) {
        let page = store.read(channel, Cursor::new(first.epoch, 0), 10).await.unwrap();
        assert_eq!((page.gap, page.entries.len()), (None, 3));
    }
}

#[tokio::test]
async fn channel_over_the_bound_evicts_finished_ones_first() {
    let folder = TempDir::new().unwrap();
    for config in [common::memory(), disk(folder.path())] {
        let store = open(EventsConfig { channels_max: 4, ..config }).await;
        let mut cursors = Vec::new();
        for channel in ["user:followed", "user:old", "pipeline:done", "user:new"] {
            let mut draft = Draft::new("e", "1");
            draft.finishes = channel == "pipeline:done";
            cursors.extend(store.append(&name(channel), vec![draft]).await.unwrap());
            // The disk store evicts by time, in milliseconds.
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
        let mut follower = store.follow(&name("user:followed"), cursors[0]).await.unwrap();
        let has = async |channel: &str, cursor: Cursor| {
            store.read(&name(channel), cursor.previous(), 1).await.unwrap().entries.len() == 1
        };
        store.append(&name("user:5"), numbered([1])).await.unwrap();
        assert!(!has("pipeline:done", cursors[2]).await && has("user:old", cursors[1]).await);
        store.append(&name("user:6"), numbered([1])).await.unwrap();
        store.append(&name("user:7"), numbered([1])).await.unwrap();
        store.append(&name("user:8"), numbered([1])).await.unwrap();
        assert!(!has("user:new", cursors[3]).await);
        assert!(has("user:followed", cursors[0]).await && has("user:8", cursors[0]).await);
        assert_eq!(store.stats().evicted, 4);
        // A removed channel that starts again has another epoch: old cursors get a gap, and no cursor is reused.
        let again = store.append(&name("user:old"), numbered([2])).await.unwrap()[0];
        assert!(again.epoch > cursors[1].epoch);
        let mut resumed = store.follow(&name("user:old"), cursors[1]).await.unwrap();
        assert_eq!(gap(&mut resumed).await, Gap { missing_from: cursors[1].next(), missing_to: again.previous() });
        assert_eq!(number(&mut resumed).await, 2);
        store.append(&name("user:followed"), numbered([3])).await.unwrap();
        assert_eq!(number(&mut follower).await, 3);
    }
}
