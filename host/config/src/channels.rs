//! The keys of channels: `events`, `sessions` and `auth`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Switch;

/// The channels of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// The store of channels: `memory` (lost with the process), `disk` (one file), or `redis` (Redis Streams, shared by
    /// all instances).
    pub store: EventsStore,
    /// Of `disk`: the file; its folder is created.
    pub path: PathBuf,
    /// Whether acknowledged events survive a crash. `disk`: they are acknowledged after an fsync, which concurrent
    /// publishers share. `redis`: declares that the server persists every write (`appendfsync always`).
    pub durable: bool,
    /// Of `redis`: its URL, `redis://[user:password@]host:port/database`.
    pub redis_url: String,
    /// Of `redis`: the prefix of every key.
    pub redis_prefix: String,
    /// Of `redis`: how long one blocking read waits, ms; also set by `STREAM_BLOCK_TIME` in the environment.
    pub redis_block_ms: u64,
    /// Of `redis`: timeout of a connection attempt or a command, ms: a publisher is answered within it.
    pub redis_timeout_ms: u64,
    /// Of `redis`: delay between connection attempts, ms.
    pub redis_retry_ms: u64,
    /// While Redis does not answer: `none` (publishers get 503 with `Retry-After`) or `memory` (this process holds
    /// events for its own subscribers until Redis answers again; `/stream/health` reports it).
    pub fallback: EventsFallback,
    /// Most events retained in each channel; also set by `STREAM_MAX_ENTRIES` in the environment.
    pub events_max: u32,
    /// Most bytes retained in each channel.
    pub bytes_max: u64,
    /// How long an event is retained, ms.
    pub age_ms_max: u64,
    /// Most channels; beyond it channels of the user that has the most are removed: finished ones first, then the least
    /// recently used; channels with subscribers stay.
    pub channels_max: u32,
    /// Subscribers at once; further ones are answered 503 with `Retry-After`. Each counts as a connection
    /// (`http.connections_max`), not as a request (`http.requests_max`).
    pub subscribers_max: u32,
    /// Most bytes that wait for one subscriber; beyond it progress events are dropped if a later one replaces them,
    /// then the subscriber is closed, and can resume.
    pub outbox_bytes_max: u64,
    /// Most bytes of stored values, such as checkpoints of executions; in Redis those of all servers that share it. A
    /// value that does not fit is answered 503 with `Retry-After`; no other value is removed to make room.
    pub state_bytes_max: u64,
    /// Most of `channels_max` and of `state_bytes_max` for one user, percent; 1 to 100. State beyond it is answered 429
    /// with `Retry-After`; a channel beyond it replaces the least recently used one of the same user, and is answered
    /// 429 if all of them have subscribers. A user may always have two channels. A channel belongs to the user that its
    /// first event names, otherwise to its publisher. Without authentication there are no shares.
    pub user_percent_max: u32,
    /// Time after which another instance takes over the executions and stored sessions of a failed one, ms; 1000 to
    /// 3600000. An instance that is suspended for longer than three quarters of it loses them to others that share the
    /// store.
    pub lease_ms: u64,
    /// A file to which every event published here is written as a line of JSON; none when empty. Its folder must exist.
    pub file: PathBuf,
    /// Size at which the file is rotated to `FILE.1`, `FILE.2` and so on, bytes.
    pub file_bytes_max: u64,
    /// Most files retained, the newest included.
    pub file_count_max: u32,
    /// A stream of server-sent events or NDJSON gets a heartbeat when nothing was written for this time, ms.
    pub heartbeat_ms: u64,
    /// Reconnection delay that is sent to an `EventSource`, ms.
    pub retry_ms: u32,
    /// Whether server-sent events are compressed for clients that accept gzip: `on` or `off`. Each event is compressed
    /// once for all subscribers; a connection needs 12 bytes of state for it.
    pub gzip: Switch,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            store: EventsStore::Memory,
            path: "weir-events.redb".into(),
            durable: false,
            redis_url: "redis://127.0.0.1:6379/0".into(),
            redis_prefix: "pip-ai:".into(),
            redis_block_ms: 1000,
            redis_timeout_ms: 2000,
            redis_retry_ms: 250,
            fallback: EventsFallback::None,
            events_max: 1000,
            bytes_max: 1 << 20,
            age_ms_max: 3_600_000,
            channels_max: 10_000,
            subscribers_max: 100_000,
            outbox_bytes_max: 256 << 10,
            state_bytes_max: 256 << 20,
            user_percent_max: 25,
            lease_ms: 10_000,
            file: PathBuf::new(),
            file_bytes_max: 64 << 20,
            file_count_max: 8,
            heartbeat_ms: 15_000,
            retry_ms: 3000,
            gzip: Switch::On,
        }
    }
}

/// The store of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventsStore {
    /// In the process.
    Memory,
    /// In a file.
    Disk,
    /// In Redis Streams.
    Redis,
}

/// What happens to events while Redis does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventsFallback {
    /// Publishers are answered 503 with `Retry-After`.
    None,
    /// This process holds them in memory.
    Memory,
}

/// Stored transcript sessions. Each has a channel and a stored checkpoint: see `events.channels_max` and
/// `events.state_bytes_max`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Sessions at once, ended ones that can still be read included; further ones are answered 503.
    pub live_max: u32,
    /// Sessions of one user; further ones are answered 429 with `Retry-After`. Without authentication `live_max` is the
    /// only bound.
    pub user_live_max: u32,
    /// The longest `idle.expire_ms` of a session, ms; 0 allows sessions that never expire (`idle.expire_ms` 0).
    pub expire_ms_max: u64,
    /// Memory of the checkpoints of idle sessions, bytes; beyond it some are only in the store, and are read from it on
    /// use.
    pub memory_bytes_max: u64,
    /// How often the checkpoint of a session that receives chunks is stored, ms; also when it becomes idle, and at the
    /// end. Its channel has the events since then.
    pub checkpoint_ms: u64,
    /// How long a session that has ended or expired can be read, ms.
    pub ended_ttl_ms: u64,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            live_max: 100_000,
            user_live_max: 25_000,
            expire_ms_max: 604_800_000,
            memory_bytes_max: 256 << 20,
            checkpoint_ms: 250,
            ended_ttl_ms: 600_000,
        }
    }
}

/// Authentication and authorization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// `none`: no authentication; channels are then served on a loopback address only. `required`: every request except
    /// probes, `/`, `/openapi.json` and `/stream/health` needs a token, an API key or a ticket.
    pub mode: AuthMode,
    /// Folder with the files `token_keys` (public keys: a JWKS, a JWK or PEM), `token_secrets` (shared secrets for
    /// HS256, one per line), `api_keys` (lines `NAME USER sha256:HEX SCOPE…`) and `ticket_secrets` (one per line, the
    /// first signs); each may be absent. A changed file is read again within a second; while one is invalid, every
    /// request is refused, and the log and `/readyz` give the reason. An unusable key of `token_keys` is skipped if
    /// another is usable.
    pub dir: PathBuf,
    /// Accepted issuers of tokens (`iss`).
    pub issuers: Vec<String>,
    /// Accepted audiences of tokens (`aud`).
    pub audiences: Vec<String>,
    /// Tolerated difference between the clocks of an issuer and this server, s.
    pub leeway_s: u32,
    /// Lifetime of a ticket, s.
    pub ticket_ttl_s: u32,
    /// Origins whose pages may send requests, such as `https://example.org`; `*` for all, but not with
    /// `cors_credentials`.
    pub cors_origins: Vec<String>,
    /// Whether pages of these origins may send cookies.
    pub cors_credentials: bool,
    /// Requests of one user in a second, in the long run; further ones are answered 429 with `Retry-After`. This and
    /// the next three are counted in each instance of the gateway component separately.
    pub requests_per_s: u32,
    /// Requests of one user at once.
    pub requests_burst: u32,
    /// Events that one user publishes in a second, in the long run.
    pub publishes_per_s: u32,
    /// Events of one user at once.
    pub publishes_burst: u32,
    /// Subscriptions of one user at once, in the whole process; further ones are answered 429 with `Retry-After`.
    pub connections_max: u32,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: AuthMode::None,
            dir: PathBuf::new(),
            issuers: Vec::new(),
            audiences: Vec::new(),
            leeway_s: 30,
            ticket_ttl_s: 30,
            cors_origins: Vec::new(),
            cors_credentials: false,
            requests_per_s: 100,
            requests_burst: 500,
            publishes_per_s: 200,
            publishes_burst: 1000,
            connections_max: 100,
        }
    }
}

/// Whether requests need credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// No request needs credentials.
    None,
    /// All but a few public routes need credentials.
    Required,
}
