//! The keys of adapters: `[[adapter]]`, their sources and their sinks.

mod kafka;
mod nats;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::kafka::{KafkaSink, KafkaSource};
pub use self::nats::{NatsSink, NatsSource};
use crate::WebSocketCompression;

/// One adapter: `[[adapter]]`. It reads records of a source, runs a model over their texts, and writes the results to a
/// sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adapter {
    /// Its name in logs, metrics and `/stream/health`: letters, digits, `-` and `_`.
    pub name: String,
    /// A component file that decodes and encodes in place of the built-in one.
    pub component: PathBuf,
    /// What is computed: `classify`, `tokens`, `embed` or `summarize`, by a model; `annotate`, by rules; `transcript`, of records that are
    /// chunks of transcripts, as `/v1/transcript` does; or `pipeline`, by an execution of a pipeline of the server.
    pub task: String,
    /// Of `pipeline`: its name. The record is the input, the output is the result.
    pub pipeline: String,
    /// Of `pipeline`: a file with a token that may start it, where authentication is required.
    pub token_file: PathBuf,
    /// Of `transcript`: the parameters of `/v1/transcript`, such as `annotate=keywords,sentiment&max_gap_sec=0.8`. The records of one
    /// origin with the same key are one transcript.
    pub transcript: String,
    /// Of `transcript`: the model of sentiments.
    pub sentiment_model: String,
    /// Of `transcript`: the model of entities.
    pub entities_model: String,
    /// Of `transcript`: the model of summaries.
    pub summary_model: String,
    /// The model; empty: the bundled model of the task.
    pub model: String,
    /// The format of records: `json`, `ndjson`, `json_array`, `text` or `csv`; `auto` for files: by the extension.
    pub format: String,
    /// Where the text is: a JSON pointer (`/review/text`), the name of a member, or of a column of CSV.
    pub text: String,
    /// Where the second text of a pair is; empty: there is none.
    pub text_pair: String,
    /// Where the id is, which the result repeats; empty: there is none.
    pub id: String,
    /// Where the language is, which the result repeats; empty: there is none.
    pub language: String,
    /// Where the user is, which the result repeats; empty: there is none.
    pub user: String,
    /// The separator of CSV.
    pub delimiter: char,
    /// The format of results: `json`, `text` or `csv`.
    pub output_format: String,
    /// Whether results repeat the text.
    pub output_text: bool,
    /// `best_effort`: results in the order of completion. `strict`: in the order of the records of each partition.
    pub ordering: String,
    /// Of `classify`: the number of labels in a result.
    pub top_k: u32,
    /// Of `tokens`: how tokens are grouped: `none`, `simple`, `first`, `average` or `max`.
    pub aggregation: String,
    /// Whether a text that is longer than the model takes is truncated; otherwise it is an error.
    pub truncation: bool,
    /// Attempts for a text that fails temporarily, the first one included; then its record goes to the error
    /// destination.
    pub retry_max_attempts: u32,
    /// Base delay of these attempts, ms.
    pub retry_base_backoff_ms: u32,
    /// Most records that were read and are not written yet; beyond it, and from 64 MiB, the source waits. They are more than 256 only if
    /// they are written within half a second.
    pub in_flight_max: u32,
    /// Attempts to connect again after a failure before the adapter stops; 0: without end.
    pub reconnect_attempts_max: u32,
    /// Delay before the first of these attempts, ms; it doubles with each one, and a random part is subtracted.
    pub reconnect_delay_ms: u64,
    /// The longest of these delays, ms.
    pub reconnect_delay_ms_max: u64,
    /// A component that has records and gives no result for this time is ended, and its records are read again, ms; 0: it may take any time.
    pub stall_timeout_ms: u64,
    /// Where records come from.
    pub source: AdapterSource,
    /// Where results go.
    pub sink: AdapterSink,
    /// The destination of records that have no result because of an error, with their original bytes and the reason;
    /// absent: the sink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<AdapterSink>,
}

impl Default for Adapter {
    fn default() -> Self {
        Self {
            name: String::new(),
            component: PathBuf::new(),
            task: "classify".into(),
            pipeline: String::new(),
            token_file: PathBuf::new(),
            transcript: String::new(),
            sentiment_model: "sentiment".into(),
            entities_model: "entities".into(),
            summary_model: "embeddings".into(),
            model: String::new(),
            format: "json".into(),
            text: "/text".into(),
            text_pair: String::new(),
            id: "/id".into(),
            language: "/language".into(),
            user: "/user".into(),
            delimiter: ',',
            output_format: "json".into(),
            output_text: false,
            ordering: "best_effort".into(),
            top_k: 1,
            aggregation: "average".into(),
            truncation: true,
            retry_max_attempts: 3,
            retry_base_backoff_ms: 100,
            in_flight_max: 1024,
            reconnect_attempts_max: 0,
            reconnect_delay_ms: 1000,
            reconnect_delay_ms_max: 30_000,
            stall_timeout_ms: 120_000,
            source: AdapterSource::default(),
            sink: AdapterSink::default(),
            errors: None,
        }
    }
}

/// The source of records, selected by `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum AdapterSource {
    /// Files.
    File(FileSource),
    /// A stream of Redis.
    Redis(RedisSource),
    /// A feed over HTTP.
    Http(HttpSource),
    /// A feed over a WebSocket.
    WebSocket(WebSocketSource),
    /// A channel of this server.
    Channel(ChannelSource),
    /// Topics of Kafka.
    Kafka(KafkaSource),
    /// A stream of NATS.
    Nats(NatsSource),
}

impl Default for AdapterSource {
    fn default() -> Self {
        Self::File(FileSource::default())
    }
}

/// The destination of results, selected by `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum AdapterSink {
    /// The standard output of the program.
    Stdout(StdoutSink),
    /// A file.
    File(FileSink),
    /// A stream of Redis.
    Redis(RedisSink),
    /// A webhook.
    Http(HttpSink),
    /// A channel of this server.
    Channel(ChannelSink),
    /// A topic of Kafka.
    Kafka(KafkaSink),
    /// A subject of NATS.
    Nats(NatsSink),
}

impl Default for AdapterSink {
    fn default() -> Self {
        Self::Stdout(StdoutSink::default())
    }
}

/// Files as a source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FileSource {
    /// Paths and patterns such as `logs/*.ndjson`, read one after another; `-` is the standard input. `.gz` and `.zst`
    /// are decompressed.
    pub paths: Vec<String>,
    /// Whether to wait for more at the end, as `tail -F`: files may be rotated and truncated, and new files may match a
    /// pattern.
    pub follow: bool,
    /// A file that stores the reached position: the next start continues there, with no line lost or repeated if the
    /// sink is a file. Empty: none. Results are then in the order of the lines.
    pub checkpoint: PathBuf,
}

/// The standard output as a sink.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StdoutSink {
    /// `ndjson`, `json` (one array), `csv`, `text` or `table`; empty: `ndjson`.
    pub format: String,
}

/// A file as a sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FileSink {
    /// The file; its folder must exist.
    pub path: PathBuf,
    /// `ndjson`, `json` (one array), `csv`, `text` or `table`; empty: `ndjson`.
    pub format: String,
    /// Whether results are appended to an existing file; otherwise it is replaced.
    pub append: bool,
}

impl Default for FileSink {
    fn default() -> Self {
        Self { path: PathBuf::new(), format: String::new(), append: true }
    }
}

/// A stream of Redis as a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisSource {
    /// The server, `redis://[user@]host:port/database`.
    pub url: String,
    /// A file with the password.
    pub password_file: PathBuf,
    /// The key of the stream.
    pub stream: String,
    /// The consumer group; created if it is missing.
    pub group: String,
    /// The name of this consumer; empty: the name of the host.
    pub consumer: String,
    /// The field of an entry that is the record; the other fields are its headers.
    pub field: String,
    /// The start of a new group: `0`, the first entry, or `$`, after the last one.
    pub start: String,
    /// How long one blocking read waits, ms.
    pub block_ms: u64,
    /// Timeout of a connection attempt or a command, ms.
    pub timeout_ms: u64,
    /// The time after which an entry that another consumer has not acknowledged is claimed, ms.
    pub claim_idle_ms: u64,
    /// Deliveries of an entry before it goes to the error destination without another attempt.
    pub deliveries_max: u64,
}

impl Default for RedisSource {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".into(),
            password_file: PathBuf::new(),
            stream: "text-input".into(),
            group: "weir".into(),
            consumer: String::new(),
            field: "payload".into(),
            start: "0".into(),
            block_ms: 1000,
            timeout_ms: 5000,
            claim_idle_ms: 30_000,
            deliveries_max: 5,
        }
    }
}

/// A stream of Redis as a sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisSink {
    /// The server, `redis://[user@]host:port/database`.
    pub url: String,
    /// A file with the password.
    pub password_file: PathBuf,
    /// The key of the stream.
    pub stream: String,
    /// The field of an entry that is the result; headers are further fields.
    pub field: String,
    /// Most entries retained, approximately; 0: all.
    pub entries_max: u64,
    /// Timeout of a connection attempt or a command, ms.
    pub timeout_ms: u64,
}

impl Default for RedisSink {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".into(),
            password_file: PathBuf::new(),
            stream: "sentiment-output".into(),
            field: "payload".into(),
            entries_max: 0,
            timeout_ms: 5000,
        }
    }
}

/// A feed over HTTP as a source: server-sent events, or lines of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSource {
    /// The feed. It is requested again with `Last-Event-ID` when the connection is lost.
    pub url: String,
    /// A file with a token, sent as `Authorization: Bearer`.
    pub token_file: PathBuf,
    /// Timeout of a connection attempt and of the head of a response, ms.
    pub timeout_ms: u64,
    /// Names of the server-sent events that are records; empty: all.
    pub events: Vec<String>,
    /// A feed that sends nothing for this time is requested again, ms; 0: it may be silent.
    pub idle_timeout_ms: u64,
    /// Attempts to request the feed again before the adapter connects anew; 0: without end.
    pub max_retries: u32,
    /// Requests in a second, in the long run.
    pub requests_per_second: u32,
    /// Requests at once.
    pub burst_size: u32,
}

impl Default for HttpSource {
    fn default() -> Self {
        Self {
            url: String::new(),
            token_file: PathBuf::new(),
            timeout_ms: 30_000,
            events: Vec::new(),
            idle_timeout_ms: 0,
            max_retries: 5,
            requests_per_second: 10,
            burst_size: 10,
        }
    }
}

/// A feed over a WebSocket as a source: each message is a record. A feed has no positions: messages that are sent while the connection is
/// lost are not delivered, and records in flight are lost when the process ends abruptly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebSocketSource {
    /// The feed, `ws://` or `wss://`.
    pub url: String,
    /// A file with a token, sent as `Authorization: Bearer`.
    pub token_file: PathBuf,
    /// A text message that is sent after each connection; empty: none.
    pub subscribe: String,
    /// Timeout of a connection attempt and its handshake, ms.
    pub timeout_ms: u64,
    /// Time between two pings, ms. A connection on which nothing has arrived for twice this time is lost.
    pub heartbeat_ms: u64,
    /// Attempts to connect again before the adapter connects anew; 0: without end.
    pub max_reconnect_attempts: u32,
    /// Delay before the first of these attempts, ms; it doubles with each one, and a random part is subtracted.
    pub reconnect_delay_ms: u64,
    /// Longest message, bytes, decompressed; at most 8 MiB.
    pub message_bytes_max: u32,
    /// The compression of messages that is offered to the server (permessage-deflate).
    pub compression: WebSocketCompression,
}

impl Default for WebSocketSource {
    fn default() -> Self {
        Self {
            url: String::new(),
            token_file: PathBuf::new(),
            subscribe: String::new(),
            timeout_ms: 30_000,
            heartbeat_ms: 30_000,
            max_reconnect_attempts: 5,
            reconnect_delay_ms: 1000,
            message_bytes_max: 1 << 20,
            compression: WebSocketCompression::Connection,
        }
    }
}

/// A webhook as a sink: a POST for each result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSink {
    /// The receiver.
    pub url: String,
    /// A file with a token, sent as `Authorization: Bearer`.
    pub token_file: PathBuf,
    /// A file with the secret that signs by Standard Webhooks: `whsec_` and base64, or a text.
    pub secret_file: PathBuf,
    /// Timeout of a connection attempt and of a response, ms.
    pub timeout_ms: u64,
    /// Attempts after the first for a result whose failure may pass; then the adapter connects anew.
    pub max_retries: u32,
    /// Base delay of these attempts, ms; it doubles with each one.
    pub retry_delay_ms: u32,
}

impl Default for HttpSink {
    fn default() -> Self {
        Self {
            url: String::new(),
            token_file: PathBuf::new(),
            secret_file: PathBuf::new(),
            timeout_ms: 30_000,
            max_retries: 5,
            retry_delay_ms: 500,
        }
    }
}

/// A channel of this server as a source: the data of each event is a record. The position is stored beside the channels, as durable as they
/// are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelSource {
    /// The channel, `kind:id`, such as `workflow:night-run`.
    pub channel: String,
    /// Names of the events that are records; empty: all.
    pub events: Vec<String>,
    /// Where the adapter begins for the first time: `start`, the first event that is retained, or `now`, after the last one.
    pub start: String,
}

impl Default for ChannelSource {
    fn default() -> Self {
        Self { channel: String::new(), events: Vec::new(), start: "start".into() }
    }
}

/// A channel of this server as a sink: each result is an event, with the result as its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelSink {
    /// The channel, `kind:id`, such as `workflow:night-run`.
    pub channel: String,
    /// The name of the event of a result.
    pub event: String,
    /// The name of the event of an error.
    pub error_event: String,
}

impl Default for ChannelSink {
    fn default() -> Self {
        Self { channel: String::new(), event: "adapter_result".into(), error_event: "adapter_error".into() }
    }
}

/// Checks the adapters of a configuration.
pub(crate) fn check(adapters: &[Adapter]) -> Result<(), String> {
    let mut names = std::collections::BTreeSet::new();
    for adapter in adapters {
        let name = &adapter.name;
        let is_name = !name.is_empty() && name.len() <= 64;
        if !is_name || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            return Err(format!("adapter.name `{name}` must be 1 to 64 letters, digits, `-` or `_`"));
        }
        if !names.insert(name) {
            return Err(format!("adapter.name `{name}` is used twice"));
        }
        let positive = [
            ("in_flight_max", u64::from(adapter.in_flight_max)),
            ("retry_max_attempts", u64::from(adapter.retry_max_attempts)),
            ("top_k", u64::from(adapter.top_k)),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("adapter.{key} of `{name}` must be at least 1"));
        }
    }
    Ok(())
}
