//! Locks of a bucket, by the one operation that hosts do atomically: `increment`.
//!
//! A lock is a counter of numbers and the last number that was served, as in a bakery (Lamport, "A New Solution of Dijkstra's Concurrent
//! Programming Problem", 1974). An instance that wants the lock draws the next number, and waits until the one before it is served. Keys
//! share [`SHARDS`] locks, so that the keys of locks need not be removed.
//!
//! An instance may end while it holds a lock. If the last served number stays the same for [`LOCK_MS_MAX`], the holder of the next number
//! takes over; after twice that time the one behind it, and so on. So that a slow holder does not write after that, it writes nothing when
//! half of the time has passed. What remains is a single call of the host that takes more than [`LOCK_MS_MAX`] / 2: its write may then
//! replace another one.

use weir_core::channels::Fence;

use super::{
    format::{self, Lease, Served},
    host::Host,
    names,
    records::Records,
};
use crate::{Failure, RETRY_MS};

const SHARDS: u64 = 32;
/// After which time without progress a lock is taken over, in milliseconds.
pub(super) const LOCK_MS_MAX: u64 = 4000;
/// How many of those who wait take a lock over at different times, each later than the one before it.
const ORDERED_MAX: u64 = 16;
const POLL_MS_MIN: u64 = 2;
const POLL_MS_MAX: u64 = 64;

/// A lock that is held until it is dropped.
struct Lock<'a, H: Host> {
    records: &'a Records<H>,
    shard: u64,
    number: u64,
    /// From when on others wait for this instance.
    since_ms: u64,
}

/// The locks of a write.
pub(super) struct Locks<'a, H: Host> {
    records: &'a Records<H>,
    locks: Vec<Lock<'a, H>>,
}

/// Locks a key, and the lease of a fence, whose token is then checked: no other instance writes to either meanwhile.
pub(super) async fn lock<'a, H: Host>(
    records: &'a Records<H>,
    key: &str,
    fence: Option<&Fence>,
) -> Result<Locks<'a, H>, Failure> {
    let lease = fence.map(|fence| names::lease(&fence.key));
    let mut shards: Vec<u64> = [Some(key), lease.as_deref()].into_iter().flatten().map(shard_of).collect();
    // One order for all, so that no two wait for each other.
    shards.sort_unstable();
    shards.dedup();
    let mut locks = Vec::new();
    for shard in shards {
        locks.push(lock_shard(records, shard).await?);
    }
    if let (Some(fence), Some(key)) = (fence, lease) {
        let lease = records.record(&key, Lease::decode)?;
        if lease.is_none_or(|lease| lease.token != fence.token) {
            return Err(Failure::Fenced);
        }
    }
    Ok(Locks { records, locks })
}

async fn lock_shard<H: Host>(records: &Records<H>, shard: u64) -> Result<Lock<'_, H>, Failure> {
    let (numbers, host) = (names::numbers(shard), &records.host);
    // When the last call began that did not see the current state. Others may have waited since then, and take over accordingly.
    let mut earlier_ms = host.clock_ms();
    let mut number = records.increment(&numbers, 1)?;
    let (mut seen, mut since_ms, mut poll_ms) = (None, earlier_ms, POLL_MS_MIN);
    loop {
        let began_ms = host.clock_ms();
        let served = records.record(&names::served(shard), Served::decode)?.map_or(0, |served| served.number);
        // Others took this instance for ended, or the host has lost the counter of numbers.
        if served >= number {
            (earlier_ms, seen) = (host.clock_ms(), None);
            number = records.increment(&numbers, (served - number).saturating_add(1))?;
            continue;
        }
        if seen != Some(served) {
            (seen, since_ms, poll_ms) = (Some(served), earlier_ms, POLL_MS_MIN);
        }
        earlier_ms = began_ms;
        let ahead = number - served - 1;
        let turn_ms = since_ms.saturating_add(LOCK_MS_MAX * ahead.min(ORDERED_MAX));
        if host.clock_ms() >= turn_ms {
            return Ok(Lock { records, shard, number, since_ms: turn_ms });
        }
        host.wait_ms(poll_ms).await;
        poll_ms = (poll_ms * 2).min(POLL_MS_MAX);
    }
}

impl<H: Host> Locks<'_, H> {
    /// Sets a key.
    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<(), Failure> {
        self.check()?;
        self.records.set(key, value)
    }

    /// Deletes a key.
    pub(super) fn delete(&self, key: &str) -> Result<(), Failure> {
        self.check()?;
        self.records.delete(key)
    }

    /// Fails if another instance may soon take a lock over.
    fn check(&self) -> Result<(), Failure> {
        if self.locks.iter().all(Lock::is_fresh) { Ok(()) } else { Err(Failure::Unavailable(RETRY_MS)) }
    }
}

impl<H: Host> Lock<'_, H> {
    fn is_fresh(&self) -> bool {
        self.records.host.clock_ms().saturating_sub(self.since_ms) < LOCK_MS_MAX / 2
    }
}

impl<H: Host> Drop for Lock<'_, H> {
    fn drop(&mut self) {
        // A later number may have been served meanwhile: the key must not go back.
        if self.is_fresh() {
            // If this fails, the lock is taken over after its time.
            let _ = self.records.set(&names::served(self.shard), &Served { number: self.number }.encode());
        }
    }
}

fn shard_of(key: &str) -> u64 {
    format::checksum(key.as_bytes()) % SHARDS
}
