//! The configuration of a store: its kind, its location, and every bound with its unit.

use std::path::PathBuf;

use weir_core::channels::{ChannelName, EventLimits, Retention, Shares};

/// The minimum share of a user in channels: an event that names a user is appended to its channel and to the user's own
/// channel.
const USER_CHANNELS_MIN: usize = 2;

/// Where channels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// In the memory of this process; lost when it ends.
    Memory,
    /// In a file that survives the process.
    Disk,
    /// In Redis Streams, shared by all servers.
    Redis,
}

/// What happens to events while Redis is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Publishers get an error that asks them to retry.
    None,
    /// This process holds them, for its own subscribers only, until Redis is available again. They are not written to
    /// Redis then: later readers see a gap. Claims never fall back, since two servers could both be granted the same
    /// one.
    Memory,
}

/// The configuration of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsConfig {
    /// Where channels are stored (`events.store`).
    pub store: StoreKind,
    /// The file of the disk store (`events.path`); its folder is created.
    pub path: PathBuf,
    /// True when acknowledged events must survive a crash (`events.durable`). Disk: an append returns after the fsync
    /// that it shares with others. Without it the file is flushed every `flush_ms`, and a crash causes a gap in every
    /// channel and may restore the previous value of a key; claims are always on the disk. Redis: states that the
    /// server persists every write (`appendfsync always`), so that a channel's sequence continues after a restart of
    /// the server; without it a restart causes a gap. Memory: no effect.
    pub durable: bool,
    /// The connection of the Redis store.
    pub redis: RedisConfig,
    /// The retention of each channel.
    pub retention: Retention,
    /// The bounds of one append.
    pub limits: EventLimits,
    /// The most channels, in memory and on disk. Beyond it channels without subscribers are removed, of the user that
    /// has the most: finished ones first, then the least recently used. Memory is bounded by this times
    /// `retention.bytes_max`. The owner record of a channel does not count: it stays as long as the channel has events
    /// or subscribers, and is removed with it.
    pub channels_max: usize,
    /// The most channels of the disk store that are in memory as well, not counting followed ones.
    pub resident_channels_max: usize,
    /// The most subscriptions.
    pub subscribers_max: usize,
    /// The most bytes that wait for one subscriber; beyond it, progress coalesces or the subscriber is closed.
    pub outbox_bytes_max: usize,
    /// The most events in one page, even if more are requested.
    pub page_events_max: usize,
    /// The most bytes in one page, except for a single larger event.
    pub page_bytes_max: usize,
    /// The most claims (memory and disk).
    pub claims_max: usize,
    /// The longest that a claim may be held, in milliseconds.
    pub claim_ttl_ms_max: u64,
    /// The most bytes of all values (state), keys and bookkeeping included; in Redis those of all servers that share
    /// it.
    pub state_bytes_max: usize,
    /// The most that one user may have of `channels_max`, `state_bytes_max` and `claims_max`, in percent. A channel
    /// beyond it replaces one of the same user.
    pub user_percent_max: u8,
    /// The most appends and claims in the write queue of the disk store; further callers wait for room in it.
    pub writes_max: usize,
    /// The most bytes that share one fsync of the disk store.
    pub group_bytes_max: usize,
    /// How often a disk store that is not durable is flushed, in milliseconds.
    pub flush_ms: u64,
    /// How often expired events, values and claims are removed, in milliseconds.
    pub sweep_ms: u64,
}

/// The connection to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Its address, as `redis://[user:password@]host:port/database` (`events.redis_url`).
    pub url: String,
    /// The prefix of every key.
    pub prefix: String,
    /// How long one blocking read waits, in milliseconds (STREAM_BLOCK_TIME).
    pub block_ms: u64,
    /// How long a connection or a command may take, in milliseconds: the bound within which an append returns.
    pub timeout_ms: u64,
    /// How long after a failed connection the next is attempted, in milliseconds; until then callers fail at once.
    pub retry_ms: u64,
    /// What happens to events while Redis is unavailable (`events.fallback`).
    pub fallback: Fallback,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            store: StoreKind::Memory,
            path: PathBuf::from("weir-events.redb"),
            durable: false,
            redis: RedisConfig::default(),
            retention: Retention::default(),
            limits: EventLimits::default(),
            channels_max: 10_000,
            resident_channels_max: 1_000,
            subscribers_max: 100_000,
            outbox_bytes_max: 256 << 10,
            page_events_max: 1_000,
            page_bytes_max: 1 << 20,
            claims_max: 100_000,
            claim_ttl_ms_max: 86_400_000,
            state_bytes_max: 256 << 20,
            user_percent_max: 25,
            writes_max: 1_024,
            group_bytes_max: 4 << 20,
            flush_ms: 1_000,
            sweep_ms: 1_000,
        }
    }
}

impl EventsConfig {
    /// The bounds of the number of channels: `channels_max` in total, and the share of one user.
    pub(crate) fn channel_shares(&self, channels_max: usize) -> Shares {
        Shares::new(channels_max.max(1), self.user_percent_max).with_user_min(USER_CHANNELS_MIN)
    }

    /// The retention of a channel. An owner record does not age: it is removed with its channel.
    pub(crate) fn retention_of(&self, name: &ChannelName) -> Retention {
        let age_ms_max = if name.is_owner_record() { u64::MAX } else { self.retention.age_ms_max };
        Retention { age_ms_max, ..self.retention }
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".to_owned(),
            prefix: "pip-ai:".to_owned(),
            block_ms: 1_000,
            timeout_ms: 2_000,
            retry_ms: 250,
            fallback: Fallback::None,
        }
    }
}
