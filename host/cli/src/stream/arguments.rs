//! The command line of `weir stream`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use weir_config::{Adapter, AdapterSink, AdapterSource, FileSource, RedisSink, RedisSource, StdoutSink};

use super::common::{LineOutput, StreamCommon, milliseconds};
use super::feeds::{StreamHttp, StreamWebSocket};
use super::kafka::StreamKafka;
use super::nats::StreamNats;
use crate::numbers::seconds;

/// `weir stream`.
#[derive(Debug, Args)]
pub(crate) struct Stream {
    #[command(subcommand)]
    pub(crate) source: StreamSource,
}

/// The sources.
#[derive(Debug, Subcommand)]
pub(crate) enum StreamSource {
    /// Read files, compressed or not, or follow them as they grow
    #[command(visible_alias = "batch")]
    File(StreamFile),
    /// Read a stream of Redis as a consumer of a group
    Redis(StreamRedis),
    /// Read topics of Kafka as a consumer of a group
    Kafka(Box<StreamKafka>),
    /// Read a stream of NATS JetStream with a durable pull consumer
    Nats(Box<StreamNats>),
    /// Read a feed over HTTP: server-sent events, or lines of JSON
    Http(StreamHttp),
    /// Read the messages of a WebSocket
    #[command(name = "websocket")]
    WebSocket(StreamWebSocket),
}

/// `weir stream file`.
#[derive(Debug, Args)]
pub(crate) struct StreamFile {
    /// Files, or patterns such as `logs/*.ndjson`; `-` is standard input; `.gz` and `.zst` are decompressed
    #[arg(value_name = "FILE", required_unless_present = "input_file")]
    files: Vec<String>,
    /// A file, like the argument FILE
    #[arg(long, value_name = "FILE")]
    input_file: Vec<String>,
    /// Wait for more at the end, as `tail -F`
    #[arg(long)]
    follow: bool,
    /// File that stores the reached position: the next start continues there, with no line lost or repeated in the
    /// output file
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    output: LineOutput,
    #[command(flatten)]
    pub(crate) common: StreamCommon,
}

/// `weir stream redis`.
#[derive(Debug, Args)]
pub(crate) struct StreamRedis {
    /// Server, `redis://[user@]host:port/database`
    #[arg(long, value_name = "URL", default_value = "redis://127.0.0.1:6379/0")]
    url: String,
    /// File with the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Stream to read
    #[arg(long, value_name = "KEY", default_value = "text-input")]
    stream: String,
    /// Consumer group; created if it is missing
    #[arg(long, value_name = "NAME", default_value = "weir")]
    group: String,
    /// Name of this consumer [default: the name of the host]
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Stream for the results
    #[arg(long, value_name = "KEY", default_value = "sentiment-output")]
    output_stream: String,
    /// Stream for records that have no result because of an error
    #[arg(long, value_name = "KEY", default_value = "sentiment-errors")]
    errors_stream: String,
    /// Write results to the standard output instead of the stream
    #[arg(long)]
    stdout: bool,
    /// Timeout of a connection attempt or a command, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    timeout: f64,
    #[command(flatten)]
    pub(crate) common: StreamCommon,
}

impl StreamSource {
    /// The flags of every source.
    pub(crate) fn common(&self) -> &StreamCommon {
        match self {
            Self::File(file) => &file.common,
            Self::Redis(redis) => &redis.common,
            Self::Kafka(kafka) => &kafka.common,
            Self::Nats(nats) => &nats.common,
            Self::Http(http) => &http.common,
            Self::WebSocket(websocket) => &websocket.common,
        }
    }

    /// The adapter that the flags describe.
    pub(crate) fn adapter(&self) -> Adapter {
        match self {
            Self::File(file) => {
                let paths = file.files.iter().chain(&file.input_file).cloned().collect();
                let checkpoint = file.checkpoint.clone().unwrap_or_default();
                Adapter {
                    // A file is read in order, so its results are written in the same order.
                    ordering: "strict".to_owned(),
                    source: AdapterSource::File(FileSource { paths, follow: file.follow, checkpoint }),
                    sink: file.output.sink(),
                    ..file.common.adapter("file", "auto")
                }
            }
            Self::Redis(redis) => {
                let password_file = redis.password_file.clone().unwrap_or_default();
                let timeout_ms = milliseconds(redis.timeout);
                let sink = |stream: &str| {
                    AdapterSink::Redis(RedisSink {
                        url: redis.url.clone(),
                        password_file: password_file.clone(),
                        stream: stream.to_owned(),
                        timeout_ms,
                        ..RedisSink::default()
                    })
                };
                let adapter = redis.common.adapter("redis", "json");
                Adapter {
                    source: AdapterSource::Redis(RedisSource {
                        url: redis.url.clone(),
                        password_file: password_file.clone(),
                        stream: redis.stream.clone(),
                        group: redis.group.clone(),
                        consumer: redis.consumer.clone().unwrap_or_default(),
                        timeout_ms,
                        ..RedisSource::default()
                    }),
                    sink: match redis.stdout {
                        true => AdapterSink::Stdout(StdoutSink::default()),
                        false => sink(&redis.output_stream),
                    },
                    errors: adapter.errors.clone().or_else(|| Some(sink(&redis.errors_stream))),
                    ..adapter
                }
            }
            Self::Kafka(kafka) => kafka.adapter(),
            Self::Nats(nats) => nats.adapter(),
            Self::Http(http) => http.adapter(),
            Self::WebSocket(websocket) => websocket.adapter(),
        }
    }
}
