//! Invariants after any fault: no reader gets events of another channel, no cursor is assigned twice, every
//! acknowledged write is in the store, and memory and the file agree.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use weir_core::channels::{ChannelName, Cursor};

use super::drive::{Drive, Fault};
use super::{History, config, contents, draft, name, open, shares, write_of};
use crate::clock::tests::TestClock;
use crate::disk::Disk;

const USERS: usize = 4;
const ROUNDS: usize = 4;

/// Requests of users, and their results.
#[derive(Debug, Default)]
struct Users {
    history: History,
    /// The cursors of acknowledged events, by channel.
    acknowledged: BTreeMap<ChannelName, Vec<Cursor>>,
    /// By key: the value that was acknowledged last, and those that were attempted since.
    values: BTreeMap<ChannelName, Vec<Option<String>>>,
    /// Claims that were granted.
    claimed: Vec<String>,
    attempts: usize,
    /// The number of events whose append failed.
    rejected: usize,
}

impl Users {
    fn channels(user: usize) -> [ChannelName; 2] {
        [name(&format!("user:u{user}")), name(&format!("owner-user:u{user}"))]
    }

    /// Each user appends to its channel and to its owner record, puts and deletes a value, and claims. The later users
    /// are new in each round.
    async fn round(&mut self, store: &Disk, round: usize) {
        let (fresh, attempts) = (USERS * (round + 1), self.attempts);
        self.attempts += 1;
        let users = (0..USERS).chain(fresh..fresh + USERS);
        let requests = users.map(|user| async move {
            let key = name(&format!("state:u{user}"));
            let value = (!(user + attempts).is_multiple_of(4)).then(|| format!("{key} {attempts}"));
            let mut appended = Vec::new();
            for channel in Self::channels(user) {
                let data = format!("{channel} {attempts}");
                let cursors = store.append(&channel, draft(&data), write_of(&channel)).await;
                appended.push((channel, data, cursors));
            }
            let put = match &value {
                Some(value) => store.put(&key, value.as_bytes(), None, write_of(&key)).await,
                None => store.delete(&key, None).await,
            };
            let claim = format!("claim:{user}:{attempts}");
            let claimed = store.claim(&claim, 60_000).await;
            (appended, (key, value, put), (claim, claimed))
        });
        for (appended, (key, value, put), (claim, claimed)) in join_all(requests).await {
            for (channel, data, cursors) in appended {
                match cursors {
                    Ok(cursors) => {
                        self.history.record(&channel, cursors[0], &data);
                        self.acknowledged.entry(channel).or_default().push(cursors[0]);
                    }
                    Err(error) => {
                        assert!(error.retryable(), "{error}");
                        self.rejected += 1;
                    }
                }
            }
            let values = self.values.entry(key).or_insert_with(|| vec![None]);
            if put.is_ok() {
                values.clear();
            }
            values.push(value);
            match claimed {
                Ok(claimed) => {
                    assert!(claimed, "{claim} was never claimed before, and is refused");
                    self.claimed.push(claim);
                }
                Err(error) => assert!(error.retryable(), "{error}"),
            }
        }
    }

    /// Reads all channels, values and claims. If `whole` is true, no acknowledged write may be missing.
    async fn read(&mut self, store: &Disk, whole: bool) -> BTreeMap<ChannelName, Vec<(Cursor, String)>> {
        let mut all = BTreeMap::new();
        for channel in (0..USERS * (ROUNDS + 4)).flat_map(Self::channels) {
            let events = contents(store, &channel, Cursor::START).await.unwrap();
            events.iter().for_each(|(cursor, data)| self.history.record(&channel, *cursor, data));
            for cursor in self.acknowledged.get(&channel).into_iter().flatten().filter(|_| whole) {
                assert!(
                    events.iter().any(|(stored, _)| stored == cursor),
                    "{channel} {cursor} was acknowledged and is missing"
                );
                // A reader that resumes from it gets all later events.
                let rest = contents(store, &channel, *cursor).await.unwrap();
                assert!(rest.iter().eq(events.iter().filter(|(stored, _)| stored > cursor)));
            }
            all.insert(channel, events);
        }
        for (key, possible) in self.values.iter().filter(|_| whole) {
            let value = store.get(key).await.unwrap().map(|value| String::from_utf8(value).unwrap());
            assert!(possible.contains(&value), "{key} has {value:?}, which is none of {possible:?}");
        }
        for claim in &self.claimed {
            assert_eq!(store.claim(claim, 60_000).await, Ok(false), "{claim} was granted twice");
        }
        all
    }
}

/// Waits until the store accepts writes again, which its sweeps and writes detect.
async fn recovered(store: &Disk, source: &Arc<TestClock>) {
    for _ in 0..100 {
        source.advance(1_000);
        store.sweep().await;
        // A job that is behind the sweep in the queue.
        if store.delete(&name("probe:p"), None).await.is_ok() && store.health().ok {
            return;
        }
    }
    panic!("the store does not recover: {:?}", store.health());
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The drive is repaired, and the store is closed.
    Close,
    /// The drive is repaired, the store continues, and the power fails.
    Crash,
    /// The drive is not repaired before the store is closed.
    CloseFailing,
}

/// Runs users against a store whose drive fails; returns false if there were too few operations for the fault to occur.
async fn run(durable: bool, after: usize, fault: Fault, end: End) -> bool {
    let (mut drive, source) = (Drive::default(), TestClock::at(1_700_000_000_000));
    let mut users = Users::default();
    let mut store = open(config(durable), &drive, &source).await;
    users.round(&store, 0).await;
    store.sweep().await;
    drive.fail(after, fault);
    for round in 1..ROUNDS {
        users.round(&store, round).await;
        source.advance(1_000);
        store.sweep().await;
    }
    let mut whole = true;
    if end == End::CloseFailing {
        let lasting = matches!(fault, Fault::Full | Fault::Lost);
        let closed = store.close().await;
        let failed = drive.heal();
        assert!(!lasting || users.rejected == 0 || closed.is_err(), "the failed store was closed without an error");
        whole = durable || closed.is_ok();
        if failed == 0 {
            return false;
        }
    } else {
        if drive.heal() == 0 {
            return false;
        }
        recovered(&store, &source).await;
        let before = users.read(&store, true).await;
        assert!(before.values().any(|events| !events.is_empty()));
        // In every other run nothing is written after the recovery, since a later write could hide an omission of the
        // recovery.
        if after.is_multiple_of(2) {
            users.round(&store, ROUNDS).await;
            users.read(&store, true).await;
        }
        if end == End::Close {
            let memory = users.read(&store, true).await;
            let in_memory = shares(&store);
            assert!(in_memory.iter().any(|(channels, bytes)| *channels > 0 && *bytes > 0));
            assert_eq!(store.close().await, Ok(()));
            drop(store);
            store = open(config(durable), &drive, &source).await;
            assert_eq!(users.read(&store, true).await, memory, "memory and the file do not agree");
            assert_eq!(shares(&store), in_memory, "the shares of memory and of the file do not agree");
        } else {
            whole = durable;
        }
    }
    if end != End::Close {
        drive = drive.crash(after as u64);
        store = open(config(durable), &drive, &source).await;
    }
    // The invariants hold in the next process, too.
    for round in 1..3 {
        users.read(&store, whole).await;
        if !whole {
            users.acknowledged.clear();
            users.values.clear();
            whole = true;
        }
        users.round(&store, ROUNDS + round).await;
    }
    assert_eq!(store.close().await, Ok(()));
    true
}

fn every_fault(durable: bool, fault: Fault, end: End) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The fault occurs at each of the first operations, and then at every few, unless all are requested.
    let step = if std::env::var_os("WEIR_TEST_EVERY_FAULT").is_some() { usize::MAX } else { 6 };
    let mut after = 0;
    while runtime.block_on(run(durable, after, fault, end)) {
        after += 1 + after / step;
    }
    assert!(after > 20, "only {after} operations");
}

macro_rules! faults {
    ($($test:ident: $durable:literal, $fault:ident, $end:ident;)+) => {$(
        #[test]
        fn $test() {
            every_fault($durable, Fault::$fault, End::$end);
        }
    )+};
}

faults!(
    durable_store_survives_one_failure_and_close: true, Once, Close;
    durable_store_survives_one_failure_and_crash: true, Once, Crash;
    durable_store_survives_half_a_write_and_close: true, OnceHalf, Close;
    durable_store_survives_half_a_write_and_crash: true, OnceHalf, Crash;
    durable_store_survives_a_full_disk_and_close: true, Full, Close;
    durable_store_survives_a_full_disk_and_crash: true, Full, Crash;
    durable_store_survives_a_lost_disk_and_close: true, Lost, Close;
    durable_store_survives_a_lost_disk_and_crash: true, Lost, Crash;
    durable_store_reports_a_full_disk_at_its_end: true, Full, CloseFailing;
    durable_store_reports_a_lost_disk_at_its_end: true, Lost, CloseFailing;
    store_survives_one_failure_and_close: false, Once, Close;
    store_survives_one_failure_and_crash: false, Once, Crash;
    store_survives_half_a_write_and_close: false, OnceHalf, Close;
    store_survives_half_a_write_and_crash: false, OnceHalf, Crash;
    store_survives_a_full_disk_and_close: false, Full, Close;
    store_survives_a_full_disk_and_crash: false, Full, Crash;
    store_survives_a_lost_disk_and_close: false, Lost, Close;
    store_survives_a_lost_disk_and_crash: false, Lost, Crash;
    store_reports_a_full_disk_at_its_end: false, Full, CloseFailing;
    store_reports_a_lost_disk_at_its_end: false, Lost, CloseFailing;
);
