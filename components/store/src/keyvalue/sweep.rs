//! The removal of expired keys, and the bound of their number.
//!
//! `wasi:keyvalue` has neither expiry nor a count. So a writer removes some expired keys when the last removal, of any instance, is a
//! minute ago; `weir.sweep` has its time and position. A failure of it is only reported, since the write does not depend on it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use weir_core::channels::{ChannelName, Cursor};

use super::{
    followed::Followed,
    format::{self, Claim, Lease, Sweep, Value},
    host::Host,
    lock::lock,
    names::{self, Named},
    records::{Records, WHOLE},
};
use crate::Failure;

/// The interval of removals, in milliseconds.
pub(super) const INTERVAL_MS: u32 = 60_000;
/// Most keys that are checked at once.
const CHECKED_MAX: usize = 200;
/// Most keys, besides those of locks; new ones are then refused.
pub(super) const KEYS_MAX: u64 = 10_000;
/// How long after its last event a channel is removed, in milliseconds.
pub(super) const CHANNEL_MS: u64 = 3_600_000;

/// What this instance knows of the removals.
#[derive(Default)]
pub(super) struct Upkeep {
    check_at_ms: u64,
    is_full: bool,
}

impl Upkeep {
    /// True when there is no room for another key.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }
}

/// Removes expired keys, if it is time.
pub(super) async fn sweep<H: Host>(upkeep: &RefCell<Upkeep>, records: &Records<H>, followed: &RefCell<Followed>) {
    let clock_ms = records.host.clock_ms();
    if clock_ms < upkeep.borrow().check_at_ms {
        return;
    }
    upkeep.borrow_mut().check_at_ms = clock_ms.saturating_add(INTERVAL_MS.into());
    // Failures are reported where they occur.
    let Ok(keys) = remove_expired(records, followed).await else { return };
    upkeep.borrow_mut().is_full = keys >= KEYS_MAX;
    if keys >= KEYS_MAX {
        records.report(&format!("the bucket has {keys} keys of this store, and no more than {KEYS_MAX} are written"));
    }
}

/// The number of keys, after some were removed if it is time.
async fn remove_expired<H: Host>(records: &Records<H>, followed: &RefCell<Followed>) -> Result<u64, Failure> {
    // A damaged record is replaced.
    let before = records.get(names::SWEEP)?.and_then(|bytes| Sweep::decode(&bytes).ok()).unwrap_or_default();
    let now_ms = records.host.now_ms();
    // A time that is not past is that of a clock which was wrong.
    if (before.at_ms..before.at_ms.saturating_add(INTERVAL_MS.into())).contains(&now_ms) {
        return Ok(before.keys);
    }
    // Before the work, so that other instances leave it to this one.
    records.set(names::SWEEP, &Sweep { at_ms: now_ms, ..before.clone() }.encode())?;
    let keys: BTreeSet<String> = records.keys()?.into_iter().filter(|key| names::parse(key).is_some()).collect();
    let later = keys.range(before.after.clone()..).filter(|key| **key > before.after);
    let checked: Vec<&String> = later.chain(keys.range(..=before.after.clone())).take(CHECKED_MAX).collect();
    let mut count = keys.len() as u64;
    for key in &checked {
        let is_expired = || is_expired(records, followed, key, &keys);
        if is_expired()? {
            let locks = lock(records, key, None).await?;
            // It may have been renewed before it was locked.
            if is_expired()? {
                locks.delete(key)?;
                count -= 1;
            }
        }
    }
    let after = checked.last().map_or_else(String::new, |key| (*key).clone());
    records.set(names::SWEEP, &Sweep { at_ms: now_ms, keys: count, after }.encode())?;
    Ok(count)
}

/// True for a key whose time has passed. One that is damaged stays, for people.
fn is_expired<H: Host>(
    records: &Records<H>,
    followed: &RefCell<Followed>,
    key: &str,
    keys: &BTreeSet<String>,
) -> Result<bool, Failure> {
    let Some(named) = names::parse(key) else { return Ok(false) };
    let Some(bytes) = records.get(key)? else { return Ok(false) };
    let end_ms = match named {
        Named::Channel(name) if followed.borrow().is_followed(&name) || is_owning(&name, keys) => None,
        Named::Channel(_) => format::decode_log(&bytes, WHOLE).ok().map(|log| {
            let newest = log.all_after(Cursor::START).last();
            newest.map_or(0, |entry| entry.time_ms.saturating_add(CHANNEL_MS))
        }),
        Named::Value(_) => Value::decode(&bytes).ok().map(|value| value.end_ms),
        Named::Lease(_) => Lease::decode(&bytes).ok().map(|lease| lease.remove_at_ms),
        Named::Claim => Claim::decode(&bytes).ok().map(|claim| claim.end_ms),
    };
    Ok(end_ms.is_some_and(|end_ms| end_ms <= records.host.now_ms()))
}

/// True for the record of the owner of a channel that exists.
fn is_owning(record: &ChannelName, keys: &BTreeSet<String>) -> bool {
    record.owned().is_some_and(|owned| keys.contains(&names::channel(&owned)))
}
