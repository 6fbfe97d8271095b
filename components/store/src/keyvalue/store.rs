//! The operations of the store.

use std::cell::RefCell;
use std::sync::Arc;

use weir_core::channels::{
    ChannelName, Cursor, Delivery, Draft, EXPIRED_MS, Entry, Fence, Log, Page, RELEASED_MS, Retention,
};

use super::{
    followed::{self, Followed},
    format::{self, Claim, Lease, Value},
    host::Host,
    lock::lock,
    names::{self, Named},
    records::{Records, WHOLE},
    sweep::{INTERVAL_MS as SWEEP_MS, Upkeep, sweep},
};
use crate::{Acquisition, Condition, Failure, PAGE_BYTES_MAX, RETRY_MS, Store};

/// Most bytes of the events of a channel. Those of one append are stored even if they have more.
pub(super) const LOG_BYTES_MAX: usize = 256 << 10;
/// The end of a value that does not expire.
const NEVER_MS: u64 = u64::MAX;

/// A store in a bucket of `wasi:keyvalue`, which other instances may share.
pub struct Keyvalue<H> {
    pub(super) records: Records<H>,
    followed: RefCell<Followed>,
    upkeep: RefCell<Upkeep>,
}

impl<H: Host> Keyvalue<H> {
    /// A store in the bucket of a host.
    pub fn new(host: H) -> Self {
        Self { records: Records::new(host), followed: RefCell::default(), upkeep: RefCell::default() }
    }

    /// Changes the lease of a fence.
    async fn change_lease(&self, fence: &Fence, change: impl FnOnce(&mut Lease, u64)) -> Result<(), Failure> {
        let key = names::lease(&fence.key);
        let locks = lock(&self.records, &key, None).await?;
        match self.records.record(&key, Lease::decode)? {
            Some(mut lease) if lease.token == fence.token => {
                change(&mut lease, self.records.host.now_ms());
                locks.set(&key, &lease.encode())
            }
            _ => Err(Failure::Fenced),
        }
    }
}

/// A log with the events of an append at its end, and their cursors.
fn appended(log: Option<Log>, drafts: Vec<Draft>, now_ms: u64) -> Result<(Log, Vec<Cursor>), Failure> {
    // An epoch of a channel is the time at which it was created, and is never 0.
    let log = log.unwrap_or_else(|| Log::new(WHOLE, Cursor::new(now_ms.max(1), 0)));
    if log.finished() {
        return Err(Failure::Finished);
    }
    let mut at = log.last();
    let entries: Vec<Entry> = drafts
        .into_iter()
        .map(|draft| {
            at = at.next();
            draft.at(at, now_ms)
        })
        .collect();
    let bytes: usize = entries.iter().map(Entry::bytes).sum();
    let mut next = Log::new(Retention { bytes_max: LOG_BYTES_MAX.max(bytes), ..WHOLE }, Cursor::START);
    for entry in log.all_after(Cursor::START) {
        next.push(Arc::clone(entry));
    }
    next.skip_to(log.last());
    let cursors = entries.iter().map(|entry| entry.cursor).collect();
    for entry in entries {
        next.push(Arc::new(entry));
    }
    Ok((next, cursors))
}

impl<H: Host> Store for Keyvalue<H> {
    async fn append(
        &self,
        channel: &ChannelName,
        drafts: Vec<Draft>,
        fence: Option<Fence>,
    ) -> Result<Vec<Cursor>, Failure> {
        sweep(&self.upkeep, &self.records, &self.followed).await;
        let key = names::channel(channel);
        let locks = lock(&self.records, &key, fence.as_ref()).await?;
        let log = self.records.log(channel)?;
        if log.is_none() && self.upkeep.borrow().is_full() {
            return Err(Failure::Full(SWEEP_MS));
        }
        let (log, cursors) = appended(log, drafts, self.records.host.now_ms())?;
        if !cursors.is_empty() {
            locks.set(&key, &format::encode_log(&log))?;
            self.followed.borrow_mut().expect_events(channel);
        }
        Ok(cursors)
    }

    fn read(&self, channel: &ChannelName, after: Cursor, limit: usize) -> Result<Page, Failure> {
        let empty = || Log::new(WHOLE, Cursor::new(self.records.host.now_ms().max(1), 0));
        let log = self.records.log(channel)?.unwrap_or_else(empty);
        Ok(log.read(after, limit, PAGE_BYTES_MAX))
    }

    fn follow(&self, channel: &ChannelName, after: Cursor) -> Result<u64, Failure> {
        let (log, now_ms) = (self.records.log(channel)?, self.records.host.clock_ms());
        let follower = self.followed.borrow_mut().follow(channel, after, log, now_ms);
        follower.ok_or(Failure::Unavailable(RETRY_MS))
    }

    fn poll(&self, channel: &ChannelName, follower: u64) -> (Vec<Delivery>, bool) {
        followed::refresh(&self.followed, &self.records, channel);
        self.followed.borrow_mut().poll(channel, follower)
    }

    fn unfollow(&self, channel: &ChannelName, follower: u64) {
        self.followed.borrow_mut().unfollow(channel, follower);
    }

    async fn claim(&self, claim: &str, ttl_ms: u64) -> Result<bool, Failure> {
        sweep(&self.upkeep, &self.records, &self.followed).await;
        let key = names::claim(claim);
        let locks = lock(&self.records, &key, None).await?;
        let now_ms = self.records.host.now_ms();
        match self.records.record(&key, Claim::decode)? {
            Some(claim) if claim.end_ms > now_ms => return Ok(false),
            None if self.upkeep.borrow().is_full() => return Err(Failure::Unavailable(SWEEP_MS)),
            _ => {}
        }
        locks.set(&key, &Claim { end_ms: now_ms.saturating_add(ttl_ms) }.encode())?;
        Ok(true)
    }

    fn health(&self) -> Condition {
        let detail = self.records.get(names::PROBE).err().map(|_| "the key-value store does not answer".to_owned());
        Condition {
            store: "keyvalue".to_owned(),
            ok: detail.is_none(),
            fallback: false,
            detail,
            followers: self.followed.borrow().followers() as u32,
            exhausted: Vec::new(),
            life: None,
        }
    }

    async fn put(
        &self,
        name: &ChannelName,
        bytes: Vec<u8>,
        ttl_ms: Option<u64>,
        fence: Option<Fence>,
        _user: Option<&str>,
    ) -> Result<(), Failure> {
        sweep(&self.upkeep, &self.records, &self.followed).await;
        let key = names::value(name);
        let locks = lock(&self.records, &key, fence.as_ref()).await?;
        if self.upkeep.borrow().is_full() && self.records.get(&key)?.is_none() {
            return Err(Failure::Full(SWEEP_MS));
        }
        let end_ms = ttl_ms.map_or(NEVER_MS, |ttl_ms| self.records.host.now_ms().saturating_add(ttl_ms));
        locks.set(&key, &Value { end_ms, bytes }.encode())
    }

    fn value(&self, key: &ChannelName) -> Result<Option<Vec<u8>>, Failure> {
        let value = self.records.record(&names::value(key), Value::decode)?;
        Ok(value.filter(|value| value.end_ms > self.records.host.now_ms()).map(|value| value.bytes))
    }

    async fn delete(&self, name: &ChannelName, fence: Option<Fence>) -> Result<(), Failure> {
        let key = names::value(name);
        lock(&self.records, &key, fence.as_ref()).await?.delete(&key)
    }

    /// Keys whose values have expired are among them until they are removed.
    fn keys(&self, kind: &str, after: &str, limit: usize) -> Result<Vec<String>, Failure> {
        let mut keys = self.keys_of(kind)?;
        keys.retain(|key| key.as_str() > after);
        keys.sort_unstable();
        keys.truncate(limit);
        Ok(keys)
    }

    fn count(&self, kind: &str) -> Result<u64, Failure> {
        Ok(self.keys_of(kind)?.len() as u64)
    }

    async fn acquire(&self, name: &ChannelName, owner: &str, ttl_ms: u64) -> Result<Acquisition, Failure> {
        sweep(&self.upkeep, &self.records, &self.followed).await;
        let key = names::lease(name);
        let locks = lock(&self.records, &key, None).await?;
        let (before, now_ms) = (self.records.record(&key, Lease::decode)?, self.records.host.now_ms());
        if let Some(held) = before.as_ref().filter(|lease| lease.owner != owner && lease.end_ms > now_ms) {
            return Ok(Acquisition::Held(held.end_ms - now_ms));
        }
        if before.is_none() && self.upkeep.borrow().is_full() {
            return Err(Failure::Unavailable(SWEEP_MS));
        }
        // Greater than those of a lease that was removed, which were times of the same clock.
        let token = before.map_or(0, |lease| lease.token.saturating_add(1)).max(now_ms);
        let end_ms = now_ms.saturating_add(ttl_ms);
        let lease = Lease { token, owner: owner.to_owned(), end_ms, remove_at_ms: end_ms.saturating_add(EXPIRED_MS) };
        locks.set(&key, &lease.encode())?;
        Ok(Acquisition::Acquired(token))
    }

    async fn renew(&self, fence: &Fence, ttl_ms: u64) -> Result<(), Failure> {
        self.change_lease(fence, |lease, now_ms| {
            lease.end_ms = now_ms.saturating_add(ttl_ms);
            lease.remove_at_ms = lease.end_ms.saturating_add(EXPIRED_MS);
        })
        .await
    }

    async fn release(&self, fence: &Fence) -> Result<(), Failure> {
        self.change_lease(fence, |lease, now_ms| {
            lease.end_ms = now_ms;
            lease.remove_at_ms = now_ms.saturating_add(RELEASED_MS);
        })
        .await
    }
}

impl<H: Host> Keyvalue<H> {
    /// The keys of the values of a kind, in any order.
    fn keys_of(&self, kind: &str) -> Result<Vec<String>, Failure> {
        let prefix = names::values(kind);
        let keys = self.records.keys()?.into_iter().filter(|key| key.starts_with(&prefix));
        Ok(keys
            .filter_map(|key| match names::parse(&key) {
                Some(Named::Value(name)) => Some(name.to_string()),
                _ => None,
            })
            .collect())
    }
}
