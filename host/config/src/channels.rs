//! The keys of channels: `events`, `sessions` and `auth`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Switch;

/// The channels of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Where channels are kept: `memory` (gone with the process), `disk` (one file), or `redis` (Redis Streams, shared by all
    /// instances).
    pub store: EventsStore,
    /// Of `disk`: the file; its folder is made.
    pub path: PathBuf,
    /// Whether what a publisher was told to be in survives a crash. `disk`: it is told after an fsync, which those who publish
    /// at the same time share. `redis`: says that the server keeps every write (`appendfsync always`).
    pub durable: bool,
    /// Of `redis`: where it is, `redis://[user:password@]host:port/database`.
    pub redis_url: String,
    /// Of `redis`: what every key begins with.
    pub redis_prefix: String,
    /// Of `redis`: how long one blocking read waits, ms; `STREAM_BLOCK_TIME` in the environment means this key too.
    pub redis_block_ms: u64,
    /// Of `redis`: how long a connection or a command may take, ms: a publisher has its answer within this.
    pub redis_timeout_ms: u64,
    /// Of `redis`: how long after a failed connection the next is tried, ms.
    pub redis_retry_ms: u64,
    /// While Redis does not answer: `none` (publishers get 503 with `Retry-After`) or `memory` (this process keeps events for
    /// its own subscribers until Redis is back; `/stream/health` says so).
    pub fallback: EventsFallback,
    /// Events kept of each channel; `STREAM_MAX_ENTRIES` in the environment means this key too.
    pub events_max: u32,
    /// Bytes kept of each channel.
    pub bytes_max: u64,
    /// How long an event is kept, ms.
    pub age_ms_max: u64,
    /// Channels kept; past it finished ones go first, then those not used for longest; what is followed stays.
    pub channels_max: u32,
    /// Subscribers at once; one more is answered 503 with `Retry-After`. Each holds a connection (`http.connections_max`), and no
    /// request of `http.requests_max`.
    pub subscribers_max: u32,
    /// Bytes that wait for one subscriber; past it progress is left out where a later one replaces it, then the subscriber is
    /// closed, and can resume.
    pub outbox_bytes_max: u64,
    /// Bytes of what is kept between events, such as checkpoints of executions; of `memory` and `disk`. What does not fit is
    /// refused, nothing is let go of for it; Redis has its own `maxmemory`.
    pub state_bytes_max: u64,
    /// Within how long another instance takes over the executions and stored sessions of one that has died, ms; 1000 to 3600000. An instance that
    /// is stopped for longer than three quarters of it loses them to others that share the store.
    pub lease_ms: u64,
    /// A file that gets every event published here as a line of JSON; none when empty. Its folder must be there.
    pub file: PathBuf,
    /// When the file has so many bytes it is rotated to `FILE.1`, `FILE.2` and so on.
    pub file_bytes_max: u64,
    /// Files kept, the newest included.
    pub file_count_max: u32,
    /// A stream of server-sent events or NDJSON on which nothing was written for so long gets a heartbeat, ms.
    pub heartbeat_ms: u64,
    /// After how long an `EventSource` that lost its connection is told to try again, ms.
    pub retry_ms: u32,
    /// Whether server-sent events are compressed for who takes gzip: `on` or `off`. Each event is compressed once for all who
    /// follow; a connection keeps 12 bytes for it.
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

/// Where channels are kept.
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
    /// Publishers are told to come back.
    None,
    /// This process keeps them.
    Memory,
}

/// Transcript sessions that are stored. Each has a channel, and is kept between its events: see `events.channels_max` and
/// `events.state_bytes_max`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Sessions at once, those that have ended and can still be asked for included; one more is answered 503.
    pub live_max: u32,
    /// Memory of the checkpoints of sessions at rest, bytes; past it some are in the store alone, and are read when they are asked for.
    pub memory_bytes_max: u64,
    /// A session that is fed is put into the store this often, ms; and when nothing comes, and at the end. What came since is in its
    /// channel.
    pub checkpoint_ms: u64,
    /// A session that has ended or expired can be asked for this long, ms.
    pub ended_ttl_ms: u64,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { live_max: 100_000, memory_bytes_max: 256 << 20, checkpoint_ms: 250, ended_ttl_ms: 600_000 }
    }
}

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// `none`: nobody is asked who they are; channels are then served on a loopback address only. `required`: every request but
    /// probes, `/`, `/openapi.json` and `/stream/health` shows a token, an API key or a ticket.
    pub mode: AuthMode,
    /// Folder with the files `token_keys` (public keys: a JWKS, a JWK or PEM), `token_secrets` (shared secrets for HS256, one per
    /// line), `api_keys` (lines `NAME USER sha256:HEX SCOPE…`) and `ticket_secrets` (a line each, the first signs); each may be
    /// absent. A file that changes is read again within a second; while one cannot be understood, every request is refused, and
    /// the log and `/readyz` say why. A key of `token_keys` that cannot be used is skipped beside one that can.
    pub dir: PathBuf,
    /// Issuers whose tokens are taken (`iss`).
    pub issuers: Vec<String>,
    /// Who we are: a token is for one of these (`aud`).
    pub audiences: Vec<String>,
    /// How far an issuer's clock may be from ours, s.
    pub leeway_s: u32,
    /// How long a ticket is good, s.
    pub ticket_ttl_s: u32,
    /// Origins whose pages may ask, such as `https://example.org`; `*` for all, but not with `cors_credentials`.
    pub cors_origins: Vec<String>,
    /// Whether pages of these origins may send cookies.
    pub cors_credentials: bool,
    /// Requests of one user in a second, in the long run; one over it is answered 429 with `Retry-After`. This and the next
    /// three count in each instance of the gateway component for itself.
    pub requests_per_s: u32,
    /// Requests of one user that may come at once.
    pub requests_burst: u32,
    /// Events that one user publishes in a second, in the long run.
    pub publishes_per_s: u32,
    /// Events of one user that may come at once.
    pub publishes_burst: u32,
    /// Subscriptions of one user at once, in the whole process; one over it is answered 429 with `Retry-After`.
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

/// Whether requests show who sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// Nobody is asked.
    None,
    /// Everybody is asked.
    Required,
}
