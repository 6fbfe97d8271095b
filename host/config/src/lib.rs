//! Weir's configuration: one struct tree, filled from defaults, a TOML file, the environment and flags, in this order.
//!
//! The doc comments of the fields are the manual: `weir config` prints them, and [`keys`] provides them for
//! `docs/reference/configuration.md`. The key `http.body_bytes_max` is `WEIR_HTTP_BODY_BYTES_MAX` in the environment.
//!
//! # Invariants
//!
//! - A setting is defined once, here: its type, its default, its meaning and its variable.
//! - An unknown key is an error, in the file, in the environment and on the command line.

mod adapters;
mod changes;
mod channels;
mod generate;
mod load;
mod manual;
mod pipelines;
mod suggest;
mod upstreams;
mod values;
mod variables;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use adapters::{
    Adapter, AdapterSink, AdapterSource, ChannelSink, ChannelSource, FileSink, FileSource, HttpSink, HttpSource,
    KafkaSink, KafkaSource, NatsSink, NatsSource, RedisSink, RedisSource, StdoutSink, WebSocketSource,
};
pub use changes::{ChangedSetting, changed_settings};
pub use channels::{Auth, AuthMode, Events, EventsFallback, EventsStore, Sessions};
pub use generate::Generate;
pub use load::{ConfigError, load};
pub use manual::{Key, keys, table_markdown, template, template_with};
pub use pipelines::Pipelines;
pub use suggest::{suggest, suggest_key};
pub use upstreams::{Upstream, UpstreamKind};
pub use variables::variables;

/// The configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The HTTP listener and its limits.
    pub http: Http,
    /// Models in general.
    pub models: Models,
    /// Models one by one: `[model.NAME]`.
    pub model: BTreeMap<String, Model>,
    /// The models of the steps of `/process-stream` and `/process-batch`.
    pub steps: Steps,
    /// The gateway component.
    pub gateway: Gateway,
    /// The infer component.
    pub infer: Infer,
    /// Text generation.
    pub generate: Generate,
    /// The channels of events.
    pub events: Events,
    /// Stored transcript sessions.
    pub sessions: Sessions,
    /// Pipelines and their executions.
    pub pipelines: Pipelines,
    /// Authentication and authorization.
    pub auth: Auth,
    /// Adapters, one by one: `[[adapter]]`.
    pub adapter: Vec<Adapter>,
    /// Other servers that generate text, one by one: `[[upstream]]`.
    pub upstream: Vec<Upstream>,
    /// Logs.
    pub log: Log,
}

/// The HTTP listener and its limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address to listen on, `ADDRESS:PORT`; a port alone (`8081`) is one of 127.0.0.1, and port 0 takes a free one.
    pub listen: String,
    /// Host names besides `localhost` and loopback addresses that are allowed in `Host`, such as `weir.internal`; `*`
    /// allows all. If `auth.mode` is `none` and the address is a loopback one, other names are answered 403, against
    /// DNS rebinding. On other addresses names are checked only if this list is not empty.
    pub hosts: Vec<String>,
    /// Connections at once, those of subscribers included; further ones wait in the kernel's queue.
    pub connections_max: u32,
    /// Requests at once, each counted until the body of its response ends; further ones are answered 503 with
    /// `Retry-After`.
    pub requests_max: u32,
    /// The share of one client, in percent, of the connections, the requests (WebSockets and streams included), the
    /// anonymous subscriptions and the bytes of request bodies at once; a request over it is answered 429 with
    /// `Retry-After`, a connection over it is closed. A client is an address, and its user once it is identified: what
    /// a user holds no longer counts for the address. Behind a proxy all clients have one address: set `100` there, if
    /// there are no users.
    pub client_share_percent: u32,
    /// Whether requests are refused before the component reads them while it refuses requests of the same client,
    /// target and model because the model is overloaded. Otherwise refusals take the processor time of answers.
    pub shed: Switch,
    /// The time over which the outcomes of such requests are counted, ms.
    pub shed_window_ms: u64,
    /// Requests that are passed on beyond those that are accepted, in percent of them: how fast more requests are
    /// passed on when a model has more capacity.
    pub shed_probe_percent: u32,
    /// Most bytes in a request body; a longer one is answered 413.
    pub body_bytes_max: u64,
    /// Time for the head of a request to arrive, ms, from its first byte, or from the start of a new connection. HTTP/2
    /// too.
    pub header_timeout_ms: u64,
    /// How long an idle connection is kept open, ms.
    pub idle_timeout_ms: u64,
    /// Time for a request's body to arrive, ms; a slower one is answered 408.
    pub body_timeout_ms: u64,
    /// How long a write to a client may make no progress, ms; then its connection is closed, or on HTTP/2 its stream is
    /// reset.
    pub write_timeout_ms: u64,
    /// Time for a whole request, ms; a stream that takes longer ends with an error event.
    pub request_timeout_ms: u64,
    /// Time for streams to finish after SIGTERM or SIGINT, ms.
    pub drain_timeout_ms: u64,
    /// Compression of WebSocket messages (permessage-deflate), for clients that offer it.
    pub websocket_compression: WebSocketCompression,
    /// The window of this compression has at most 2 to this power bytes, 9 to 15.
    pub websocket_window_bits: u8,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            hosts: Vec::new(),
            connections_max: 16_384,
            requests_max: 1024,
            client_share_percent: 50,
            shed: Switch::On,
            shed_window_ms: 1000,
            shed_probe_percent: 10,
            body_bytes_max: 1 << 20,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            body_timeout_ms: 30_000,
            write_timeout_ms: 60_000,
            request_timeout_ms: 60_000,
            drain_timeout_ms: 10_000,
            websocket_compression: WebSocketCompression::Message,
            websocket_window_bits: 12,
        }
    }
}

/// Models in general.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Models {
    /// Folder whose subfolders are models, each named after its folder; empty: the folder `models` beside the program.
    pub dir: PathBuf,
    /// Names of the models to serve from `dir`; empty: all of them.
    pub names: Vec<String>,
    /// Replicas of each model, each with a thread; 0: one for each core, or two on a GPU, of which one prepares its next
    /// batch while that of the other is computed.
    pub replicas: u32,
    /// The engine that runs a model: `builtin` (Weir's own kernels: encoders of the BERT family, with bit-identical
    /// results in every batch); `tract` (any ONNX graph); `onnxruntime` (`weir models engine onnxruntime` fetches it);
    /// or `auto`, which is `builtin` for the models that it supports and `tract` for the others (`weir models list`
    /// shows which and why), and on a GPU `onnxruntime`, or `tract` in a build with the feature `cuda` where there is no
    /// ONNX Runtime.
    pub engine: String,
    /// The device that computes a model: `cpu`; `cuda`, the first GPU of NVIDIA, or `cuda:N`, another one, where an
    /// error ends the start of the server; or `auto`, which is `cuda` if that works and else `cpu`, with a warning that
    /// says why. GPUs need the engine `onnxruntime` and the library of the package `onnxruntime-gpu`, or the engine
    /// `tract` in a build with the feature `cuda`, and libraries of CUDA.
    pub device: String,
    /// A folder for the engines that TensorRT builds from models. With it, TensorRT computes what it supports on GPUs,
    /// and CUDA the rest; the first start builds the engines, which takes minutes. Empty: CUDA alone.
    pub tensorrt: PathBuf,
    /// The precision in which the engine `builtin` multiplies weights: `f32`; `bf16`; `int8` (weights by column,
    /// activations by token); or `auto`, which is `int8` for classifiers whose weights are stored in `int8`, such as
    /// the bundled models for sentiment and entities, and for all others `bf16` if the processor has an instruction for
    /// it, otherwise `f32`. `weir models check --precision` measures the effect of each on your texts. On a GPU, `auto`
    /// multiplies numbers of 32 bits in TF32 if the GPU can, and `f32` does not.
    pub precision: String,
    /// The instruction set of the engine `builtin`: `auto`, the fastest that the processor has; or one that it has, to
    /// reproduce the results of a machine without the faster ones: `avx512bf16`, `avx512`, `avxvnni`, `avx2`,
    /// `neoni8mm`, `neondot`, `neon` or `portable`.
    pub isa: String,
    /// Most optimized plans of each model, one for each shape of its input; beyond it the least recently used is
    /// evicted.
    pub plans_max: u32,
    /// Largest tensor a component may pass, bytes.
    pub tensor_bytes_max: u64,
}

impl Default for Models {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            names: Vec::new(),
            replicas: 0,
            engine: "auto".into(),
            device: "cpu".into(),
            tensorrt: PathBuf::new(),
            precision: "auto".into(),
            isa: "auto".into(),
            plans_max: 32,
            tensor_bytes_max: 64 << 20,
        }
    }
}

/// One model: `[model.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its folder, in the Hugging Face layout.
    pub path: PathBuf,
    /// Its engine; absent: `models.engine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Its device; absent: `models.device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Its precision; absent: `models.precision`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Its replicas; absent: `models.replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
}

/// The models of the steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Steps {
    /// Model of the sentiment step: text classification. Empty: the step is off. While a model named here is not
    /// served, `/readyz` is 503 and names it.
    pub sentiment: String,
    /// Model of the entities step: token classification. Empty: the step is off.
    pub entities: String,
    /// Model of the summary step: sentence embeddings. Empty: the step is off.
    pub summary: String,
}

impl Default for Steps {
    fn default() -> Self {
        Self { sentiment: "sentiment".into(), entities: "entities".into(), summary: "embeddings".into() }
    }
}

/// The gateway component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// A component file to use in place of the built-in one.
    pub component: PathBuf,
    /// Requests of one instance at once; a trap ends all of them.
    pub instance_requests_max: u32,
    /// Memory of one instance, bytes.
    pub memory_bytes_max: u64,
    /// Bytes of request bodies of one instance at once, as announced by the requests; further requests wait, and are
    /// answered 503 with `Retry-After` after 15 s. An instance needs a few times as much memory.
    pub body_bytes_max: u64,
    /// Memory of the stateful instance, the one that holds executions and stored sessions, bytes.
    pub keeper_memory_bytes_max: u64,
    /// Bytes of request bodies of the stateful instance at once; as `body_bytes_max`.
    pub keeper_body_bytes_max: u64,
    /// An instance without requests is ended after this time, ms.
    pub idle_timeout_ms: u64,
    /// Whether a browser that opens `/` gets the page: `on` or `off`. The page contains no data; it shows the responses
    /// to the requests of its user.
    pub ui: Switch,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            component: PathBuf::new(),
            instance_requests_max: 128,
            memory_bytes_max: 256 << 20,
            body_bytes_max: 32 << 20,
            keeper_memory_bytes_max: 1 << 30,
            keeper_body_bytes_max: 64 << 20,
            idle_timeout_ms: 60_000,
            ui: Switch::On,
        }
    }
}

/// The infer component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Infer {
    /// A component file to use in place of the built-in one.
    pub component: PathBuf,
    /// Memory of one instance, bytes.
    pub memory_bytes_max: u64,
    /// Items waiting for one model, from all callers. Streams wait before they fill more than half of it; a request
    /// that does not fit is answered 503 with `Retry-After`.
    pub queue_items_max: u32,
    /// Tokens waiting for one model, from all callers, as estimated from bytes; as `queue_items_max`.
    pub queue_tokens_max: u32,
    /// Items of one client (by its address) waiting for one model; its further requests are answered 429 with
    /// `Retry-After`.
    pub caller_items_max: u32,
    /// Items of one call without an outcome, or with one that is not read yet; beyond it the caller waits.
    pub call_items_max: u32,
    /// What a full queue drops: `none` (callers wait or are refused), `head` (the oldest item, answered `overloaded`),
    /// `tail` (the new item).
    pub drop_policy: DropPolicy,
    /// `adaptive`: an idle replica takes waiting items immediately. `windowed`: items wait for `batch_size` or
    /// `window_ms`, which adds up to `window_ms` to every response.
    pub batching: Batching,
    /// Windowed: the condition that closes a window: `time_and_count`, `time_only` or `count_only`.
    pub aggregation: Aggregation,
    /// Windowed: the number of items that closes a window.
    pub batch_size: u32,
    /// Windowed: the time that closes a window, from its first item, ms.
    pub window_ms: u32,
    /// Most texts in one run of a model.
    pub max_batch_size: u32,
    /// Most tokens in one run of a model, padding included; a longer text runs alone. 0: the device's own bound, 128 on
    /// a processor core and 4096 on a GPU.
    pub batch_tokens_max: u32,
    /// Longest expected time of one run, ms; batches are made smaller to meet it. 0: no bound.
    pub batch_time_ms_max: u32,
    /// A replica with items that gives no outcome for this time is replaced, ms.
    pub hang_timeout_ms: u64,
    /// Attempts for an item whose replica is lost or whose model is unavailable, the first one included.
    pub retry_max_attempts: u32,
    /// Base delay of retries, ms.
    pub retry_base_backoff_ms: u32,
    /// Delays of retries: `no_retry`, `fixed_delay`, `exponential_jitter` or `exponential_decorrelated`.
    pub retry_policy: RetryPolicy,
    /// Most retries of all items of a model together, for each hundred first attempts.
    pub retry_budget_percent: u32,
    /// Whether a model that fails repeatedly gets no items for a while: `on` or `off`.
    pub circuit_breaker: Switch,
    /// Failures that open the circuit; the first of several in a row does not count, so that single failing texts do
    /// not open it.
    pub circuit_failures: u32,
    /// The time within which failures count, ms.
    pub circuit_window_ms: u64,
    /// How long an open circuit answers `circuit_open` before it admits a first item, ms.
    pub circuit_open_ms: u64,
    /// Successes that close the circuit again.
    pub circuit_successes: u32,
}

impl Default for Infer {
    fn default() -> Self {
        Self {
            component: PathBuf::new(),
            memory_bytes_max: 512 << 20,
            queue_items_max: 1024,
            queue_tokens_max: 131_072,
            caller_items_max: 1024,
            call_items_max: 256,
            drop_policy: DropPolicy::None,
            batching: Batching::Adaptive,
            aggregation: Aggregation::TimeAndCount,
            batch_size: 32,
            window_ms: 250,
            max_batch_size: 128,
            batch_tokens_max: 0,
            batch_time_ms_max: 0,
            hang_timeout_ms: 60_000,
            retry_max_attempts: 3,
            retry_base_backoff_ms: 100,
            retry_policy: RetryPolicy::ExponentialJitter,
            retry_budget_percent: 20,
            circuit_breaker: Switch::On,
            circuit_failures: 5,
            circuit_window_ms: 300_000,
            circuit_open_ms: 30_000,
            circuit_successes: 2,
        }
    }
}

/// What a full queue drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DropPolicy {
    /// Nothing: callers wait or are refused.
    None,
    /// The oldest item.
    Head,
    /// The new item.
    Tail,
}

/// When a batch is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// When a replica is idle.
    Adaptive,
    /// When its window ends.
    Windowed,
}

/// The condition that closes a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Time or count, whichever comes first.
    TimeAndCount,
    /// Time alone.
    TimeOnly,
    /// Count alone.
    CountOnly,
}

/// The delays of retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryPolicy {
    /// One attempt only.
    NoRetry,
    /// The same delay each time.
    FixedDelay,
    /// Up to the base delay, doubled each time.
    ExponentialJitter,
    /// Between the base delay and three times the previous delay.
    ExponentialDecorrelated,
}

/// How messages of a WebSocket are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WebSocketCompression {
    /// Not at all.
    Off,
    /// Each message alone: a connection holds no memory for the compression between two messages.
    Message,
    /// Messages refer to earlier ones of the connection, which keeps a window for each direction: up to 2 to the power of the window bits
    /// for messages of the client, and 4 to 8 times as much for those of the server until nothing is sent for 20 s.
    Connection,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Logs, on standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// Least level that is logged: `error`, `warn`, `info`, `debug`, `trace`, `off`, or directives such as
    /// `info,weir_edge=debug`.
    pub level: String,
    /// A receiver of OpenTelemetry's traces and metrics (OTLP as JSON over HTTP), such as `http://127.0.0.1:4318`; empty: none.
    pub otlp_endpoint: String,
    /// How often metrics are exported to it, ms.
    pub otlp_metrics_interval_ms: u64,
    /// The share of traces that begin here and are exported to it, in percent. The sender of a `traceparent` decides about its trace.
    pub otlp_sample_percent: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".into(),
            otlp_endpoint: String::new(),
            otlp_metrics_interval_ms: 10_000,
            otlp_sample_percent: 100,
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object for each line.
    Json,
}
