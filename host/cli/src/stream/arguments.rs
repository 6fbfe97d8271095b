//! The command line of `weir stream`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use weir_config::{Adapter, AdapterSink, AdapterSource, FileSink, FileSource, RedisSink, RedisSource, StdoutSink};

use super::feeds::{StreamHttp, StreamWebSocket};
use super::kafka::StreamKafka;
use super::nats::StreamNats;
use crate::arguments::Setup;
use crate::numbers::{seconds, whole};

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

/// The flags of every source.
#[derive(Debug, Args)]
pub(crate) struct StreamCommon {
    /// Task to run on each text
    #[arg(long, value_enum, default_value = "classify")]
    task: StreamTask,
    /// Name of a model [default: the bundled model of the task]
    #[arg(long, value_name = "NAME", env = "STREAMING_MODEL")]
    model: Option<String>,
    /// Transcript: the parameters of `/v1/transcript`, as in `annotate=keywords,sentiment&max_gap_sec=0.8`
    #[arg(long, value_name = "PARAMETERS", default_value = "")]
    transcript: String,
    /// Format of records [default: for files by the extension, otherwise json]
    #[arg(long, visible_alias = "message-format", value_enum)]
    format: Option<RecordFormat>,
    /// Where the text is: a JSON pointer (`/review/text`), or the name of a member or a column
    #[arg(long, value_name = "FIELD", default_value = "/text")]
    text: String,
    /// Where the id is, which the result repeats
    #[arg(long, value_name = "FIELD", default_value = "/id")]
    id: String,
    /// Repeat the text in results
    #[arg(long)]
    with_text: bool,
    /// Classify: the number of labels in a result
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<1, u32>)]
    top_k: u32,
    /// Write results in the order of the records
    #[arg(long)]
    strict: bool,
    /// Most texts in one run of the model
    #[arg(long, value_name = "N", value_parser = whole::<1, u32>)]
    pub(crate) batch_size: Option<u32>,
    /// Most records that were read and not written yet
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = whole::<1, u32>)]
    in_flight: u32,
    /// Time without a first connection after which the command fails, seconds; 0 for no limit
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    pub(crate) connect_timeout: f64,
    /// Attempts to reconnect before the command fails; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole::<0, u32>)]
    max_reconnect_attempts: u32,
    /// Delay before the first of these attempts, seconds; it doubles with each one
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    reconnect_delay: f64,
    /// A component file that decodes and encodes in place of the built-in one
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// File for records that have no result because of an error [default: with the results]
    #[arg(long, value_name = "FILE")]
    errors_file: Option<PathBuf>,
    /// Do not show progress on standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Show progress and totals as JSON objects, one a line on standard error
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) setup: Setup,
}

/// The flags of sources whose results are written to a file or the standard output.
#[derive(Debug, Args)]
pub(super) struct LineOutput {
    /// Format of results
    #[arg(long, value_enum, default_value = "ndjson")]
    output_format: LineFormat,
    /// File for the results [default: the standard output]
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Append to the file instead of replacing it
    #[arg(long, requires = "output_file")]
    append: bool,
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

/// The tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamTask {
    /// Labels with scores
    #[value(alias = "sentiment")]
    Classify,
    /// Named entities
    #[value(alias = "entities")]
    Tokens,
    /// An embedding
    Embed,
    /// The most central sentences
    #[value(alias = "summary")]
    Summarize,
    /// Keywords, risks, actions and the intent, by rules and without a model
    Annotate,
    /// Partial and final segments of transcripts whose chunks are the records
    Transcript,
}

/// The formats of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum RecordFormat {
    /// One JSON value for each record; a file is one record
    Json,
    /// Lines of JSON
    Ndjson,
    /// JSON arrays
    JsonArray,
    /// Plain text; in a file, each line
    Text,
    /// Rows below a row with the names of the columns
    Csv,
    /// SubRip or WebVTT
    Captions,
}

/// The formats of lines of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LineFormat {
    /// A JSON object on each line
    Ndjson,
    /// One JSON array
    Json,
    /// Rows below a row with the names of the columns
    Csv,
    /// Plain lines of text
    Text,
    /// A table
    Table,
}

/// The name of a value on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl LineOutput {
    pub(super) fn sink(&self) -> AdapterSink {
        let format = name(self.output_format);
        match &self.output_file {
            None => AdapterSink::Stdout(StdoutSink { format }),
            Some(path) => AdapterSink::File(FileSink { path: path.clone(), format, append: self.append }),
        }
    }
}

pub(crate) fn milliseconds(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1000.0).round() as u64
}

impl StreamCommon {
    /// An adapter without its source and sink.
    pub(super) fn adapter(&self, name_of: &str, default_format: &str) -> Adapter {
        let errors = self
            .errors_file
            .as_ref()
            .map(|path| AdapterSink::File(FileSink { path: path.clone(), format: "ndjson".into(), append: true }));
        Adapter {
            name: name_of.to_owned(),
            component: self.adapter.clone().unwrap_or_default(),
            task: name(self.task),
            transcript: self.transcript.clone(),
            model: self.model.clone().unwrap_or_default(),
            format: self.format.map_or_else(|| default_format.to_owned(), name),
            text: self.text.clone(),
            id: self.id.clone(),
            output_text: self.with_text,
            ordering: if self.strict { "strict" } else { "best_effort" }.to_owned(),
            top_k: self.top_k,
            in_flight_max: self.in_flight,
            reconnect_attempts_max: self.max_reconnect_attempts,
            reconnect_delay_ms: milliseconds(self.reconnect_delay),
            errors,
            ..Adapter::default()
        }
    }
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
