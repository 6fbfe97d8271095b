//! What a store is told: which kind, where, and every bound with its unit.

use std::path::PathBuf;

use weir_core::channels::{ChannelName, EventLimits, Retention, Shares};

/// Where channels are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// In this process, gone with it.
    Memory,
    /// In a file that survives the process.
    Disk,
    /// In Redis Streams, shared by all instances.
    Redis,
}

/// What happens to events while Redis does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Publishers are told to come back.
    None,
    /// This process keeps them, for its own subscribers only, until Redis is back. They do not go to Redis then: who reads
    /// later sees a gap. Claims never fall back, for two instances would both get one.
    Memory,
}

/// What a store is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsConfig {
    /// Where channels are kept (`events.store`).
    pub store: StoreKind,
    /// Of the disk store (`events.path`): the file; its folder is made.
    pub path: PathBuf,
    /// True when what was answered must survive (`events.durable`). Disk: the publisher is answered after the fsync that it
    /// shares with others. Without it the file is flushed every `flush_ms`, and a crash is a gap in every channel and may bring
    /// back the value before under a key; claims are on the disk either way. Redis: says that the server keeps every write (`appendfsync always`), so that a channel's sequence goes on after the server's
    /// restart; without it a restart is a gap. Memory: nothing.
    pub durable: bool,
    /// Of the Redis store.
    pub redis: RedisConfig,
    /// How much of each channel is kept.
    pub retention: Retention,
    /// The bounds of one append.
    pub limits: EventLimits,
    /// The most channels, in memory and on disk. Beyond it those go that nobody follows, of the user that has the most: finished
    /// ones first, then the least recently used. Memory is bounded by this times `retention.bytes_max`. The record of a channel's owner does not count: it stays as long
    /// as the channel has events or followers, and goes with it.
    pub channels_max: usize,
    /// Of the disk store: the most channels that are in memory as well, besides those that are followed.
    pub resident_channels_max: usize,
    /// The most subscriptions.
    pub subscribers_max: usize,
    /// The most bytes that wait for one subscriber; past it, progress coalesces or the subscriber is closed.
    pub outbox_bytes_max: usize,
    /// The most events in one page, whatever is asked for.
    pub page_events_max: usize,
    /// The most bytes in one page, one larger event apart.
    pub page_bytes_max: usize,
    /// The most claims held (memory and disk).
    pub claims_max: usize,
    /// The longest that a claim may be held, in milliseconds.
    pub claim_ttl_ms_max: u64,
    /// The most bytes that values between events may take together, keys and bookkeeping included; in Redis those of all servers
    /// that share it.
    pub state_bytes_max: usize,
    /// The most that one user may have of `channels_max` and of `state_bytes_max`, in percent. A channel beyond it takes the place of
    /// the user's own.
    pub user_percent_max: u8,
    /// Of the disk store: the most appends and claims that wait to be written; more wait before they are taken.
    pub writes_max: usize,
    /// Of the disk store: the most bytes that share one fsync.
    pub group_bytes_max: usize,
    /// Of the disk store that is not durable: how often it is flushed, in milliseconds.
    pub flush_ms: u64,
    /// How often what is too old is let go of, in milliseconds.
    pub sweep_ms: u64,
}

/// How Redis is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Where it is, as `redis://[user:password@]host:port/database` (`events.redis_url`).
    pub url: String,
    /// What every key begins with.
    pub prefix: String,
    /// How long one blocking read waits, in milliseconds (STREAM_BLOCK_TIME).
    pub block_ms: u64,
    /// How long a connection or a command may take, in milliseconds: the bound within which a publisher has its answer.
    pub timeout_ms: u64,
    /// How long after a failed connection the next is tried, in milliseconds; until then callers fail at once.
    pub retry_ms: u64,
    /// What happens to events meanwhile (`events.fallback`).
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
    /// The most channels of one user.
    pub(crate) fn user_channels_max(&self) -> usize {
        Shares::new(self.channels_max.max(1), self.user_percent_max).user_max()
    }

    /// How much of a channel is kept. An owner record does not age: it goes with its channel.
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
