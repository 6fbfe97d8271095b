//! Values under keys in every store, across restarts, `kill -9`, damage and outages.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, RedisServer, conformance, disk, name, numbered, open, until};
use tempfile::TempDir;
use weir_core::channels::Cursor;
use weir_events::{Error, EventsConfig, Fallback, RedisConfig, Store};

conformance!(
    get_returns_the_last_value_put,
    value_expires_after_its_time_to_live,
    keys_of_a_kind_are_paged,
    values_are_bounded,
    concurrent_puts_are_atomic,
);

async fn get_returns_the_last_value_put(config: EventsConfig) {
    let store = open(config).await;
    let key = name("pipeline:p");
    assert_eq!(store.get(&key).await, Ok(None));
    assert_eq!(store.delete(&key).await, Ok(()));
    for value in [b"one".to_vec(), Vec::new(), vec![0, 255, b'\n', 0], b"last".to_vec()] {
        store.put(&key, value.clone(), None).await.unwrap();
        assert_eq!(store.get(&key).await, Ok(Some(value)));
    }
    // A value is not a channel, and does not affect the channel of the same name.
    store.append(&key, numbered([1])).await.unwrap();
    store.append(&name("state:pipeline:p"), numbered([2])).await.unwrap();
    assert_eq!(store.read(&key, Cursor::START, 10).await.unwrap().entries.len(), 1);
    assert_eq!(store.get(&key).await, Ok(Some(b"last".to_vec())));
    store.delete(&key).await.unwrap();
    assert_eq!(store.get(&key).await, Ok(None));
    assert_eq!(store.read(&key, Cursor::START, 10).await.unwrap().entries.len(), 1);
}

async fn value_expires_after_its_time_to_live(config: EventsConfig) {
    let store = open(config).await;
    let (short, long, renewed) = (name("k:short"), name("k:long"), name("k:renewed"));
    let put = Instant::now();
    store.put(&short, b"1".to_vec(), Some(300)).await.unwrap();
    store.put(&long, b"2".to_vec(), Some(60_000)).await.unwrap();
    store.put(&renewed, b"3".to_vec(), Some(300)).await.unwrap();
    store.put(&renewed, b"4".to_vec(), None).await.unwrap();
    until("the value ends", || async { store.get(&short).await.unwrap().is_none() }).await;
    assert!(put.elapsed() >= Duration::from_millis(295));
    assert_eq!(store.keys("k", "", 10).await.unwrap(), ["k:long", "k:renewed"]);
    assert_eq!(store.get(&long).await, Ok(Some(b"2".to_vec())));
    assert_eq!(store.get(&renewed).await, Ok(Some(b"4".to_vec())));
    store.put(&short, b"5".to_vec(), None).await.unwrap();
    assert_eq!(store.get(&short).await, Ok(Some(b"5".to_vec())));
    for ttl_ms in [0, u64::MAX] {
        assert!(matches!(store.put(&short, Vec::new(), Some(ttl_ms)).await, Err(Error::Invalid(_))));
    }
}

async fn keys_of_a_kind_are_paged(config: EventsConfig) {
    let store = open(config).await;
    let mut expected: Vec<String> = (0..2_500).map(|number| format!("session:{number}")).collect();
    let mut puts = tokio::task::JoinSet::new();
    for key in expected.iter().chain(["sessions:x", "sess:x", "user:session:1"].map(String::from).iter()) {
        let (store, key) = (store.clone(), name(key));
        puts.spawn(async move { store.put(&key, b"v".to_vec(), None).await.unwrap() });
    }
    while let Some(put) = puts.join_next().await {
        put.unwrap();
    }
    expected.sort_unstable();
    let mut listed: Vec<String> = Vec::new();
    loop {
        let after = listed.last().cloned().unwrap_or_default();
        let page = store.keys("session", &after, 700).await.unwrap();
        assert!(page.len() <= 700);
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    assert_eq!(listed, expected);
    assert_eq!(store.keys("session", "", usize::MAX).await.unwrap(), expected[..1_000]);
    assert_eq!(store.keys("session", "session:24", 2).await.unwrap(), ["session:240", "session:2400"]);
    assert_eq!(store.keys("session", "zzz", 2).await.unwrap(), [""; 0]);
    assert_eq!(store.keys("session", "", 0).await.unwrap(), [""; 0]);
    assert_eq!(store.keys("nothing", "", 2).await.unwrap(), [""; 0]);
    store.delete(&name(&expected[0])).await.unwrap();
    assert_eq!(store.keys("session", "", 1).await.unwrap(), expected[1..2]);
    assert!(matches!(store.keys("no kind", "", 1).await, Err(Error::Invalid(_))));
}

async fn values_are_bounded(config: EventsConfig) {
    let store = open(EventsConfig { state_bytes_max: 3 << 20, ..config }).await;
    let large = || vec![7_u8; 1 << 20];
    let mut over = large();
    over.push(7);
    assert!(matches!(store.put(&name("k:1"), over, None).await, Err(Error::TooLarge(_))));
    assert_eq!(store.get(&name("k:1")).await, Ok(None));
    store.put(&name("k:1"), large(), Some(600_000)).await.unwrap();
    store.put(&name("k:2"), large(), None).await.unwrap();
    // A replacement is counted once.
    store.put(&name("k:2"), large(), None).await.unwrap();
    assert!(matches!(store.put(&name("k:3"), large(), None).await, Err(Error::Full { .. })));
    assert_eq!(store.get(&name("k:3")).await, Ok(None));
    assert_eq!(store.keys("k", "", 10).await.unwrap(), ["k:1", "k:2"]);
    // Expired values are removed.
    store.put(&name("k:1"), large(), Some(50)).await.unwrap();
    until("there is room again", || async { store.put(&name("k:3"), large(), None).await.is_ok() }).await;
    assert_eq!(store.get(&name("k:1")).await, Ok(None));
    assert_eq!(store.get(&name("k:2")).await, Ok(Some(large())));
}

async fn concurrent_puts_are_atomic(config: EventsConfig) {
    let store = open(config).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8_u8 {
        let store = store.clone();
        writers.spawn(async move {
            let (own, shared) = (name(&format!("k:own{writer}")), name("k:shared"));
            for turn in 0..20_u8 {
                store.put(&own, vec![turn; 1_000], None).await.unwrap();
                assert_eq!(store.get(&own).await, Ok(Some(vec![turn; 1_000])));
                store.put(&shared, vec![writer; 5_000 + usize::from(writer)], None).await.unwrap();
                let read = store.get(&shared).await.unwrap().unwrap();
                assert_eq!(read, vec![read[0]; 5_000 + usize::from(read[0])]);
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    assert_eq!(store.keys("k", "", 100).await.unwrap().len(), 9);
}

#[tokio::test]
async fn closed_file_has_its_values() {
    for durable in [true, false] {
        let folder = TempDir::new().unwrap();
        let config = EventsConfig { durable, state_bytes_max: 2 << 20, ..disk(folder.path()) };
        let store = open(config.clone()).await;
        store.put(&name("k:stays"), vec![1; 1 << 20], None).await.unwrap();
        store.put(&name("k:deleted"), vec![2], None).await.unwrap();
        store.put(&name("k:ends"), vec![3], Some(1_500)).await.unwrap();
        store.put(&name("k:lives"), vec![4], Some(60_000)).await.unwrap();
        store.delete(&name("k:deleted")).await.unwrap();
        store.close().await.unwrap();
        assert!(store.put(&name("k:late"), Vec::new(), None).await.unwrap_err().retryable());
        assert!(store.get(&name("k:stays")).await.unwrap_err().retryable());
        let store = open(config).await;
        assert_eq!(store.keys("k", "", 10).await.unwrap(), ["k:ends", "k:lives", "k:stays"]);
        assert_eq!(store.get(&name("k:stays")).await, Ok(Some(vec![1; 1 << 20])));
        assert_eq!(store.get(&name("k:deleted")).await, Ok(None));
        assert_eq!(store.get(&name("k:lives")).await, Ok(Some(vec![4])));
        // Stored values still count, and still expire.
        let over = store.put(&name("k:over"), vec![0; 1 << 20], None).await;
        assert!(matches!(over, Err(Error::Full { .. })));
        until("the value ends", || async { store.get(&name("k:ends")).await.unwrap().is_none() }).await;
    }
}

#[tokio::test]
async fn damaged_value_is_an_error() {
    let folder = TempDir::new().unwrap();
    let store = open(disk(folder.path())).await;
    let mark = b"a value to be found in the file";
    store.put(&name("k:damaged"), mark.to_vec(), None).await.unwrap();
    store.put(&name("k:good"), b"good".to_vec(), None).await.unwrap();
    store.close().await.unwrap();
    let path = folder.path().join("events.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let offsets: Vec<usize> = (0..bytes.len() - mark.len()).filter(|at| bytes[*at..].starts_with(mark)).collect();
    assert!(!offsets.is_empty());
    offsets.iter().for_each(|at| bytes[*at] ^= 1);
    std::fs::write(&path, bytes).unwrap();
    let store = open(disk(folder.path())).await;
    assert!(matches!(store.get(&name("k:damaged")).await, Err(Error::Other(_))));
    assert_eq!(store.get(&name("k:good")).await, Ok(Some(b"good".to_vec())));
    store.put(&name("k:damaged"), b"new".to_vec(), None).await.unwrap();
    assert_eq!(store.get(&name("k:damaged")).await, Ok(Some(b"new".to_vec())));
}

/// The folder that the process to be killed writes to. Without this variable the test does nothing.
const FOLDER: &str = "WEIR_STATE_FOLDER";
const DURABLE: &str = "WEIR_STATE_DURABLE";
const WRITERS: u64 = 5;

/// The value of a turn, of a length that depends on the turn; none for every seventh turn, which deletes the key.
fn value_of(turn: u64) -> Option<Vec<u8>> {
    let bytes = (turn * 7_919 % 60_000) as usize;
    (!turn.is_multiple_of(7)).then(|| turn.to_le_bytes().into_iter().cycle().take(8 + bytes).collect())
}

/// The process that is killed: prints each turn before its write and after its acknowledgement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let durable = std::env::var_os(DURABLE).is_some();
    let store = open(EventsConfig { durable, ..disk(Path::new(&folder)) }).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            let key = name(&format!("k:{writer}"));
            let first = match store.get(&key).await.unwrap() {
                Some(value) => u64::from_le_bytes(*value.first_chunk().unwrap()) + 1,
                None => 1,
            };
            for turn in first.. {
                writeln!(std::io::stdout(), "\n@ asked {writer} {turn} .").unwrap();
                match value_of(turn) {
                    Some(value) => store.put(&key, value, None).await.unwrap(),
                    None => store.delete(&key).await.unwrap(),
                }
                writeln!(std::io::stdout(), "\n@ done {writer} {turn} .").unwrap();
            }
        });
    }
    writers.join_next().await.unwrap().unwrap();
}

/// The last turn of each writer that was attempted, and that was acknowledged.
#[derive(Debug, Default)]
struct Progress {
    attempted: BTreeMap<u64, u64>,
    done: BTreeMap<u64, u64>,
}

/// Starts that process, kills it after a number of acknowledged writes, and returns the turns that it printed.
fn killed(folder: &Path, durable: bool, acknowledged_max: usize) -> Progress {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "puts_until_it_is_killed", "--nocapture"]).env(FOLDER, folder);
    if durable {
        command.env(DURABLE, "1");
    }
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let (mut progress, mut count) = (Progress::default(), 0);
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        // The last line may be torn.
        let ["@", what, writer, turn, "."] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let (writer, turn) = (writer.parse().unwrap(), turn.parse().unwrap());
        if what == "done" {
            progress.done.insert(writer, turn);
            count += 1;
            if count == acknowledged_max {
                child.kill().unwrap();
            }
        } else {
            progress.attempted.insert(writer, turn);
        }
    }
    child.wait().unwrap();
    assert!(count >= acknowledged_max, "the process ended by itself after {count} answers");
    progress
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_acknowledged_value() {
    let folder = TempDir::new().unwrap();
    for round in 0..5 {
        let progress = killed(folder.path(), true, 40 + round * 53);
        let store = open(disk(folder.path())).await;
        for (writer, done) in progress.done {
            let value = store.get(&name(&format!("k:{writer}"))).await.unwrap();
            // One more turn may have been in progress.
            let possible: Vec<_> = (done..=progress.attempted[&writer]).map(value_of).collect();
            assert!(possible.len() <= 2 && possible.contains(&value), "writer {writer} after turn {done}");
            let listed = store.keys("k", "", 10).await.unwrap().contains(&format!("k:{writer}"));
            assert_eq!(listed, value.is_some());
        }
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_fsync_kill_9_restores_a_complete_earlier_value() {
    let folder = TempDir::new().unwrap();
    for round in 0..3 {
        let progress = killed(folder.path(), false, 200 + round * 131);
        let store = open(EventsConfig { durable: false, ..disk(folder.path()) }).await;
        for (writer, attempted) in progress.attempted {
            let Some(value) = store.get(&name(&format!("k:{writer}"))).await.unwrap() else { continue };
            let turn = u64::from_le_bytes(*value.first_chunk().unwrap());
            assert!(turn <= attempted && value_of(turn) == Some(value));
        }
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_have_no_memory_fallback() {
    for fallback in [Fallback::None, Fallback::Memory] {
        let mut server = RedisServer::durable();
        let config = server.config();
        let redis = RedisConfig { fallback, timeout_ms: 1000, ..config.redis };
        let store = open(EventsConfig { redis, ..config }).await;
        let key = name("pipeline:p");
        store.put(&key, b"before".to_vec(), None).await.unwrap();
        server.kill();
        let refused = |store: Store, key| async move {
            let start = Instant::now();
            assert!(store.put(&key, b"meanwhile".to_vec(), None).await.unwrap_err().retryable());
            assert!(store.get(&key).await.unwrap_err().retryable());
            assert!(store.delete(&key).await.unwrap_err().retryable());
            assert!(store.keys("pipeline", "", 10).await.unwrap_err().retryable());
            assert!(start.elapsed() < Duration::from_secs(10), "answered after {:?}", start.elapsed());
        };
        refused(store.clone(), key.clone()).await;
        server.start_again();
        until("the server is available", || async { store.get(&key).await == Ok(Some(b"before".to_vec())) }).await;
        assert_eq!(store.keys("pipeline", "", 10).await.unwrap(), ["pipeline:p"]);
        // A server that accepts connections and does not answer.
        server.signal("STOP");
        refused(store.clone(), key.clone()).await;
        server.signal("CONT");
        let start = Instant::now();
        while store.put(&key, b"after".to_vec(), None).await.is_err() {
            assert!(start.elapsed() < PATIENCE);
        }
        assert_eq!(store.get(&key).await, Ok(Some(b"after".to_vec())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_values_and_index_entries_are_removed() {
    let server = RedisServer::start();
    let stores = [open(server.config()).await, open(server.config()).await];
    for number in 0..100 {
        stores[0].put(&name(&format!("k:{number}")), b"v".to_vec(), Some(50)).await.unwrap();
    }
    stores[0].put(&name("k:stays"), b"v".to_vec(), None).await.unwrap();
    assert_eq!(stores[1].get(&name("k:stays")).await, Ok(Some(b"v".to_vec())));
    until("the values expire", || async { stores[1].keys("k", "", 10).await.unwrap() == ["k:stays"] }).await;
    let mut connection = server.connection().await;
    let mut listed = async |list: &str| -> u64 {
        redis::cmd("ZCARD").arg(format!("pip-ai:@@state-{list}:k")).query_async(&mut connection).await.unwrap()
    };
    assert_eq!((listed("keys").await, listed("ends").await), (1, 0));
    // Puts remove them too, without a request for the keys.
    for number in 0..100 {
        stores[0].put(&name(&format!("k:{number}")), b"v".to_vec(), Some(1)).await.unwrap();
    }
    for _ in 0..20 {
        stores[0].put(&name("k:stays"), b"v".to_vec(), None).await.unwrap();
        if listed("keys").await == 1 {
            break;
        }
    }
    assert_eq!((listed("keys").await, listed("ends").await), (1, 0));
}
