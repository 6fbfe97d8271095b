//! One interface over three kinds of storage.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use weir_core::channels::{ChannelName, Cursor, Draft, Fence, Page};

use crate::backend::{Health, WriteContext};
use crate::clock::Clock;
use crate::config::{EventsConfig, StoreKind};
use crate::disk::Disk;
use crate::error::{Error, OpenError};
use crate::hub::Hub;
use crate::lease::Acquisition;
use crate::memory::Memory;
use crate::redis::Redis;
use crate::subscription::Subscription;
use crate::tap::{Tap, Taps};

/// The most bytes of a value.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// The longest time to live of a value, in milliseconds: ten years.
const VALUE_TTL_MS_MAX: u64 = 315_360_000_000;
/// The most keys in one page.
const KEYS_MAX: usize = 1_000;
/// The longest duration of a lease without renewal, in milliseconds: an hour.
const LEASE_TTL_MS_MAX: u64 = 3_600_000;
/// The most bytes of an owner's name.
const OWNER_BYTES_MAX: usize = 128;
/// The most bytes of a key to claim.
const CLAIM_KEY_BYTES_MAX: usize = 256;

/// The store of channels. Clones share it; it ends with the last one, or with [`Store::close`].
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<EventsConfig>,
    clock: Arc<Clock>,
    hub: Arc<Hub>,
    kind: Kind,
    taps: Taps,
}

#[derive(Debug)]
enum Kind {
    Memory(Box<Memory>),
    Disk(Disk),
    Redis(Redis),
}

/// The counters of a store since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Channels in memory.
    pub channels: usize,
    /// Open subscriptions.
    pub subscribers: usize,
    /// Events appended through this store.
    pub appended: u64,
    /// Events delivered to subscribers.
    pub delivered: u64,
    /// Events that slow subscribers did not get because a later event replaced them.
    pub coalesced: u64,
    /// Gaps delivered to subscribers.
    pub gaps: u64,
    /// Subscribers closed for being slow.
    pub closed_slow: u64,
    /// Channels that were removed to make room for others.
    pub evicted: u64,
}

impl Store {
    /// Opens a store. Must be called in a tokio runtime. Redis need not be available yet.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or the address of Redis is invalid.
    pub async fn open(config: EventsConfig) -> Result<Self, OpenError> {
        let (config, clock) = (Arc::new(config), Arc::new(Clock::system()));
        let resident_max = match config.store {
            // Followed channels are in memory too, at most one for each subscriber.
            StoreKind::Disk => config.resident_channels_max.saturating_add(config.subscribers_max),
            StoreKind::Redis => config.channels_max.saturating_add(config.subscribers_max),
            StoreKind::Memory => config.channels_max,
        };
        let hub = Hub::new(&config, resident_max);
        let hub = Arc::new(hub);
        let kind = match config.store {
            StoreKind::Memory => {
                Kind::Memory(Box::new(Memory::new(Arc::clone(&config), Arc::clone(&clock), Arc::clone(&hub))))
            }
            StoreKind::Disk => Kind::Disk(Disk::open(Arc::clone(&config), Arc::clone(&clock), Arc::clone(&hub)).await?),
            StoreKind::Redis => Kind::Redis(Redis::open(Arc::clone(&config), Arc::clone(&clock), Arc::clone(&hub))?),
        };
        let inner = Arc::new(Inner { config, clock, hub, kind, taps: Taps::default() });
        tokio::spawn(sweep(Arc::downgrade(&inner), Duration::from_millis(inner.config.sweep_ms.max(1))));
        Ok(Self { inner })
    }

    /// Appends events to a channel, all or none, and returns their cursors. Subscribers get the same events; on a disk
    /// store with `durable` they are on the disk by then.
    ///
    /// # Errors
    ///
    /// After [`Error::Unavailable`] the events may be appended nevertheless: a retry may append them twice.
    pub async fn append(&self, channel: &ChannelName, events: Vec<Draft>) -> Result<Vec<Cursor>, Error> {
        self.append_as(channel, events, WriteContext::default()).await
    }

    /// [`Store::append`], refused when the lease is not held any more. Memory never replaces Redis for such an append.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`], and those of [`Store::append`].
    pub async fn append_fenced(
        &self,
        channel: &ChannelName,
        events: Vec<Draft>,
        fence: Option<&Fence>,
    ) -> Result<Vec<Cursor>, Error> {
        self.append_as(channel, events, WriteContext { fence, user: None }).await
    }

    /// [`Store::append`] with the conditions of a write. With a fence, memory never replaces Redis. The channel counts
    /// towards the share of the user that appends its first event: a channel beyond the share replaces the least
    /// recently used ones of the same user.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`]; [`Error::ShareExceeded`] where all channels of the user are followed; and those of
    /// [`Store::append`].
    pub async fn append_as(
        &self,
        channel: &ChannelName,
        events: Vec<Draft>,
        write: WriteContext<'_>,
    ) -> Result<Vec<Cursor>, Error> {
        Draft::check_all(&events, &self.inner.config.limits)?;
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let count = events.len() as u64;
        let tapped = self.inner.taps.copy_of(&events);
        let appended = match &self.inner.kind {
            Kind::Memory(memory) => memory.append(channel, events, write),
            Kind::Disk(disk) => disk.append(channel, events, write).await,
            Kind::Redis(redis) => redis.append(channel, events, write).await,
        };
        let cursors = self.record_full(appended)?;
        self.inner.hub.counters.appended.fetch_add(count, Ordering::Relaxed);
        if let Some(tapped) = tapped {
            self.inner.taps.appended(channel, tapped, &cursors, self.inner.clock.wall_ms());
        }
        Ok(cursors)
    }

    /// The events of a channel after a cursor, at most `limit`. An unknown channel is empty.
    ///
    /// # Errors
    ///
    /// The store is unavailable.
    pub async fn read(&self, channel: &ChannelName, after: Cursor, limit: usize) -> Result<Page, Error> {
        let limit = limit.clamp(1, self.inner.config.page_events_max.max(1));
        match &self.inner.kind {
            Kind::Memory(memory) => Ok(memory.read(channel, after, limit)),
            Kind::Disk(disk) => disk.read(channel, after, limit).await,
            Kind::Redis(redis) => redis.read(channel, after, limit).await,
        }
    }

    /// Follows a channel after a cursor: retained events, then live events, until the channel's last event.
    ///
    /// # Errors
    ///
    /// The store is unavailable, or the number of subscribers or followed channels is at its maximum.
    pub async fn follow(&self, channel: &ChannelName, after: Cursor) -> Result<Subscription, Error> {
        self.follow_as(channel, after, None).await
    }

    /// [`Store::follow`] for a user: a channel without events counts towards the share of the user while it is in
    /// memory.
    ///
    /// # Errors
    ///
    /// [`Error::ShareExceeded`], and those of [`Store::follow`].
    pub async fn follow_as(
        &self,
        channel: &ChannelName,
        after: Cursor,
        user: Option<&str>,
    ) -> Result<Subscription, Error> {
        let followed = match &self.inner.kind {
            Kind::Memory(memory) => memory.follow(channel, after, user),
            Kind::Disk(disk) => disk.follow(channel, after, user).await,
            Kind::Redis(redis) => redis.follow(channel, after).await,
        };
        self.record_full(followed)
    }

    /// Records in the hub that a channel was refused, for [`Store::exhausted`].
    fn record_full<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Full { .. }) = &result {
            self.inner.hub.record_full(self.inner.clock.now_ms());
        }
        result
    }

    /// Claims a key for the given number of milliseconds: true for exactly one caller, false for all others until the
    /// time has passed. In memory and on disk a key `KIND:USER:ID` counts towards the share of the user that it names.
    ///
    /// # Errors
    ///
    /// A key that is empty or longer than 256 bytes, a time of 0 or beyond the bound, or the store is unavailable.
    /// After [`Error::Unavailable`] this caller does not have the claim. Disk: the next caller may get it. Redis, and
    /// disk after a crash: it may be held until its time has passed.
    pub async fn claim(&self, key: &str, ttl_ms: u64) -> Result<bool, Error> {
        if key.is_empty() || key.len() > CLAIM_KEY_BYTES_MAX {
            return Err(Error::Invalid(format!("a key to claim has 1 to {CLAIM_KEY_BYTES_MAX} bytes")));
        }
        let ttl_ms_max = self.inner.config.claim_ttl_ms_max;
        if ttl_ms == 0 || ttl_ms > ttl_ms_max {
            return Err(Error::Invalid(format!("a claim is held for 1 to {ttl_ms_max} ms")));
        }
        match &self.inner.kind {
            Kind::Memory(memory) => memory.claim(key, ttl_ms),
            Kind::Disk(disk) => disk.claim(key, ttl_ms).await,
            Kind::Redis(redis) => redis.claim(key, ttl_ms).await,
        }
    }

    /// Puts a value of at most 1 MiB under a key, replacing the previous one; with a time to live in milliseconds it is
    /// removed after that time. When this resolves, every later [`Store::get`] returns it; on a disk store with
    /// `durable` it is on the disk by then.
    ///
    /// # Errors
    ///
    /// A value over its bound, a time of 0 or over ten years, [`Error::Full`], or the store is unavailable: memory does
    /// not replace it. After [`Error::Unavailable`] the value may be stored nevertheless; retrying is safe.
    pub async fn put(&self, key: &ChannelName, value: Vec<u8>, ttl_ms: Option<u64>) -> Result<(), Error> {
        self.put_as(key, value, ttl_ms, WriteContext::default()).await
    }

    /// [`Store::put`], refused when the lease is not held any more.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`], and those of [`Store::put`].
    pub async fn put_fenced(
        &self,
        key: &ChannelName,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        fence: Option<&Fence>,
    ) -> Result<(), Error> {
        self.put_as(key, value, ttl_ms, WriteContext { fence, user: None }).await
    }

    /// [`Store::put`] with the conditions of a write. The value counts towards the share of the user.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`], [`Error::ShareExceeded`], and those of [`Store::put`].
    pub async fn put_as(
        &self,
        key: &ChannelName,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        write: WriteContext<'_>,
    ) -> Result<(), Error> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(Error::TooLarge(format!("a value has at most {VALUE_BYTES_MAX} bytes")));
        }
        if ttl_ms.is_some_and(|ttl_ms| ttl_ms == 0 || ttl_ms > VALUE_TTL_MS_MAX) {
            return Err(Error::Invalid(format!("a value lives for 1 to {VALUE_TTL_MS_MAX} ms")));
        }
        match &self.inner.kind {
            Kind::Memory(memory) => memory.put(key, value, ttl_ms, write),
            Kind::Disk(disk) => disk.put(key, &value, ttl_ms, write).await,
            Kind::Redis(redis) => redis.put(key, &value, ttl_ms, write).await,
        }
    }

    /// The value under a key, if there is one.
    ///
    /// # Errors
    ///
    /// The store is unavailable, or the value on the disk is damaged ([`Error::Other`]).
    pub async fn get(&self, key: &ChannelName) -> Result<Option<Vec<u8>>, Error> {
        match &self.inner.kind {
            Kind::Memory(memory) => Ok(memory.get(key)),
            Kind::Disk(disk) => disk.get(key).await,
            Kind::Redis(redis) => redis.get(key).await,
        }
    }

    /// Deletes a key and its value, if there is one.
    ///
    /// # Errors
    ///
    /// The store is unavailable; retrying is safe.
    pub async fn delete(&self, key: &ChannelName) -> Result<(), Error> {
        self.delete_fenced(key, None).await
    }

    /// [`Store::delete`], refused when the lease is not held any more.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`], and those of [`Store::delete`].
    pub async fn delete_fenced(&self, key: &ChannelName, fence: Option<&Fence>) -> Result<(), Error> {
        match &self.inner.kind {
            Kind::Memory(memory) => memory.delete(key, fence),
            Kind::Disk(disk) => disk.delete(key, fence).await,
            Kind::Redis(redis) => redis.delete(key, fence).await,
        }
    }

    /// Acquires the lease of a key for an owner, for the given number of milliseconds. The key needs no value. Later
    /// writes that carry its token are refused once another owner has acquired it, and every later [`Store::get`] and
    /// [`Store::read`] of its owner sees all earlier writes. The same owner gets a new token, and its earlier one is
    /// refused then.
    ///
    /// Time is the store's own: a monotonic clock of this process, or the clock of the Redis server.
    ///
    /// # Errors
    ///
    /// A time of 0 or beyond one hour, an empty owner or one of more than 128 bytes, or the store is unavailable:
    /// memory does not replace it. After [`Error::Unavailable`] the lease may be held; acquiring it again as the same
    /// owner is safe.
    pub async fn acquire(&self, key: &ChannelName, owner: &str, ttl_ms: u64) -> Result<Acquisition, Error> {
        if owner.is_empty() || owner.len() > OWNER_BYTES_MAX {
            let bytes = owner.len();
            return Err(Error::Invalid(format!("an owner has 1 to {OWNER_BYTES_MAX} bytes, and this one has {bytes}")));
        }
        check_lease_ttl(ttl_ms)?;
        match &self.inner.kind {
            Kind::Memory(memory) => memory.leases.acquire(key, owner, ttl_ms, || ()),
            Kind::Disk(disk) => disk.acquire(key, owner, ttl_ms).await,
            Kind::Redis(redis) => redis.acquire(key, owner, ttl_ms).await,
        }
    }

    /// Extends a lease to the given number of milliseconds from now. It succeeds after its end too, unless another
    /// owner has acquired it.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`] where it is lost, a time of 0 or beyond the bound, or the store is unavailable.
    pub async fn renew(&self, fence: &Fence, ttl_ms: u64) -> Result<(), Error> {
        check_lease_ttl(ttl_ms)?;
        match &self.inner.kind {
            Kind::Memory(memory) => memory.leases.renew(fence, ttl_ms),
            Kind::Disk(disk) => disk.leases.renew(fence, ttl_ms),
            Kind::Redis(redis) => redis.renew(fence, ttl_ms).await,
        }
    }

    /// Ends a lease now, so that other owners need not wait. Until another owner acquires it, its last owner can renew
    /// it for a minute.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`] where it was not held any more, or the store is unavailable: then it ends by itself.
    pub async fn release(&self, fence: &Fence) -> Result<(), Error> {
        match &self.inner.kind {
            Kind::Memory(memory) => memory.leases.release(fence),
            Kind::Disk(disk) => disk.leases.release(fence),
            Kind::Redis(redis) => redis.release(fence).await,
        }
    }

    /// The keys of a kind after a key that need not exist (empty: from the first), in the order of their bytes, at most
    /// `limit` and at most 1,000.
    ///
    /// # Errors
    ///
    /// The kind is invalid, or the store is unavailable.
    pub async fn keys(&self, kind: &str, after: &str, limit: usize) -> Result<Vec<String>, Error> {
        // A kind is valid if it makes a valid name.
        ChannelName::new(kind, "x").map_err(|error| Error::Invalid(error.to_string()))?;
        let limit = limit.min(KEYS_MAX);
        match &self.inner.kind {
            Kind::Memory(memory) => Ok(memory.keys(kind, after, limit)),
            Kind::Disk(disk) => Ok(disk.keys(kind, after, limit)),
            Kind::Redis(redis) => redis.keys(kind, after, limit).await,
        }
    }

    /// The number of values of a kind, including some that have just expired.
    ///
    /// # Errors
    ///
    /// The kind is invalid, or the store is unavailable.
    pub async fn count(&self, kind: &str) -> Result<usize, Error> {
        ChannelName::new(kind, "x").map_err(|error| Error::Invalid(error.to_string()))?;
        match &self.inner.kind {
            Kind::Memory(memory) => Ok(memory.count(kind)),
            Kind::Disk(disk) => Ok(disk.count(kind)),
            Kind::Redis(redis) => redis.count(kind).await,
        }
    }

    /// The names of the configuration bounds that all users together have reached: large values, new channels, new
    /// subscribers or new claims are refused.
    ///
    /// # Errors
    ///
    /// The store is unavailable.
    pub async fn exhausted(&self) -> Result<Vec<&'static str>, Error> {
        let Inner { config, clock, hub, kind, .. } = &*self.inner;
        let usage = match kind {
            Kind::Memory(memory) => memory.usage(),
            Kind::Disk(disk) => disk.usage(),
            Kind::Redis(redis) => redis.usage().await?,
        };
        let state_free = config.state_bytes_max.saturating_sub(usage.state_bytes);
        let bounds = [
            ("events.state_bytes_max", state_free < VALUE_BYTES_MAX.min(config.state_bytes_max / 16)),
            ("events.channels_max", hub.is_full(clock.now_ms())),
            ("events.subscribers_max", hub.has_all_subscribers()),
            ("events.claims_max", usage.claims >= config.claims_max),
        ];
        Ok(bounds.into_iter().filter(|(_, is_reached)| *is_reached).map(|(name, _)| name).collect())
    }

    /// The health of the store: Redis is pinged, within `redis.timeout_ms`.
    pub async fn health(&self) -> Health {
        match &self.inner.kind {
            Kind::Memory(_) => Health { store: StoreKind::Memory, ok: true, fallback: false, detail: None, life: None },
            Kind::Disk(disk) => disk.health(),
            Kind::Redis(redis) => redis.health().await,
        }
    }

    /// The counters of this store.
    pub fn stats(&self) -> Stats {
        let counters = &self.inner.hub.counters;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            channels: self.inner.hub.len(),
            subscribers: counters.subscribers.load(Ordering::Relaxed),
            appended: read(&counters.appended),
            delivered: read(&counters.delivered),
            coalesced: read(&counters.coalesced),
            gaps: read(&counters.gaps),
            closed_slow: read(&counters.closed_slow),
            evicted: read(&counters.evicted),
        }
    }

    /// A tap that observes all events that are appended through this store from now on.
    pub fn tap(&self) -> Tap {
        self.inner.taps.tap()
    }

    /// Closes every subscription with [`weir_core::channels::CloseReason::Lost`]: subscribers resume at another server,
    /// or here later.
    pub fn disconnect(&self) {
        self.inner.hub.close_all();
    }

    /// Closes every subscription and writes pending changes. Appends fail afterwards (disk).
    ///
    /// # Errors
    ///
    /// The last commit failed: without `durable`, acknowledged events may be lost.
    pub async fn close(&self) -> Result<(), Error> {
        self.inner.hub.close_all();
        match &self.inner.kind {
            Kind::Disk(disk) => disk.close().await,
            Kind::Redis(redis) => {
                redis.close().await;
                Ok(())
            }
            Kind::Memory(_) => Ok(()),
        }
    }
}

fn check_lease_ttl(ttl_ms: u64) -> Result<(), Error> {
    if ttl_ms == 0 || ttl_ms > LEASE_TTL_MS_MAX {
        return Err(Error::Invalid(format!("a lease lasts 1 to {LEASE_TTL_MS_MAX} ms, and not {ttl_ms}")));
    }
    Ok(())
}

/// A memory store without data is swept once in this number of intervals, so that an idle process sleeps. Reads do not
/// depend on sweeps.
const EMPTY_INTERVALS: u32 = 5;

/// Removes expired data periodically, until the store is dropped.
async fn sweep(store: Weak<Inner>, every: Duration) {
    let mut pause = every;
    loop {
        tokio::time::sleep(pause).await;
        let Some(inner) = store.upgrade() else { return };
        inner.hub.sweep(inner.clock.now_ms());
        match &inner.kind {
            Kind::Memory(memory) => memory.sweep(),
            Kind::Disk(disk) => disk.sweep().await,
            Kind::Redis(redis) => redis.sweep().await,
        }
        let is_empty = matches!(&inner.kind, Kind::Memory(memory) if memory.is_empty());
        pause = if is_empty { every * EMPTY_INTERVALS } else { every };
    }
}
