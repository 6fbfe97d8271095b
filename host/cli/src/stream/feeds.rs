//! The command line of `weir stream http` and `weir stream websocket`.

use std::path::PathBuf;

use clap::Args;
use weir_config::{Adapter, AdapterSink, AdapterSource, HttpSink, HttpSource, WebSocketSource};

use super::common::{LineOutput, StreamCommon, milliseconds};
use crate::numbers::{seconds, whole};

/// The destination of the results of a feed: a webhook, or lines.
#[derive(Debug, Args)]
struct FeedOutput {
    /// URL to which each result is posted, instead of lines
    #[arg(long, value_name = "URL", conflicts_with_all = ["output_file", "output_format"])]
    webhook: Option<String>,
    /// File with the secret that signs results for the webhook (Standard Webhooks)
    #[arg(long, value_name = "FILE", requires = "webhook")]
    webhook_secret_file: Option<PathBuf>,
    /// File with a token for the webhook, sent as `Authorization: Bearer`
    #[arg(long, value_name = "FILE", requires = "webhook")]
    webhook_token_file: Option<PathBuf>,
    #[command(flatten)]
    lines: LineOutput,
}

impl FeedOutput {
    fn sink(&self) -> AdapterSink {
        match &self.webhook {
            None => self.lines.sink(),
            Some(url) => AdapterSink::Http(HttpSink {
                url: url.clone(),
                token_file: self.webhook_token_file.clone().unwrap_or_default(),
                secret_file: self.webhook_secret_file.clone().unwrap_or_default(),
                ..HttpSink::default()
            }),
        }
    }
}

/// `weir stream http`.
#[derive(Debug, Args)]
pub(crate) struct StreamHttp {
    /// Feed of server-sent events or of lines of JSON
    #[arg(long, visible_alias = "base-url", value_name = "URL")]
    url: String,
    /// File with a token, sent as `Authorization: Bearer`
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Timeout of a connection attempt and of the head of a response, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    timeout: f64,
    /// Name of the server-sent events that are records [default: all]; can be repeated
    #[arg(long = "event", value_name = "NAME")]
    events: Vec<String>,
    /// Time without data after which the feed is requested again, seconds; 0 for no limit
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = seconds)]
    idle_timeout: f64,
    /// Attempts to request the feed again; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole::<0, u32>)]
    max_retries: u32,
    /// Most requests in a second, in the long run
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<1, u32>)]
    requests_per_second: u32,
    /// Most requests at once
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<1, u32>)]
    burst_size: u32,
    #[command(flatten)]
    output: FeedOutput,
    #[command(flatten)]
    pub(crate) common: StreamCommon,
}

impl StreamHttp {
    /// The adapter that the flags describe.
    pub(super) fn adapter(&self) -> Adapter {
        Adapter {
            source: AdapterSource::Http(HttpSource {
                url: self.url.clone(),
                token_file: self.token_file.clone().unwrap_or_default(),
                timeout_ms: milliseconds(self.timeout),
                events: self.events.clone(),
                idle_timeout_ms: milliseconds(self.idle_timeout),
                max_retries: self.max_retries,
                requests_per_second: self.requests_per_second,
                burst_size: self.burst_size,
            }),
            sink: self.output.sink(),
            ..self.common.adapter("http", "json")
        }
    }
}

/// `weir stream websocket`.
#[derive(Debug, Args)]
pub(crate) struct StreamWebSocket {
    /// Feed, `ws://host:port/path` or `wss://…`; each message is a record
    #[arg(long, value_name = "URL")]
    url: String,
    /// File with a token, sent as `Authorization: Bearer`
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Message that is sent after each connection
    #[arg(long, value_name = "MESSAGE")]
    subscribe: Option<String>,
    /// Timeout of a connection attempt and its handshake, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    timeout: f64,
    /// Time between two pings, seconds; a connection on which nothing has arrived for twice this time is lost
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    heartbeat_interval: f64,
    #[command(flatten)]
    output: FeedOutput,
    #[command(flatten)]
    pub(crate) common: StreamCommon,
}

impl StreamWebSocket {
    /// The adapter that the flags describe.
    pub(super) fn adapter(&self) -> Adapter {
        let adapter = self.common.adapter("websocket", "json");
        Adapter {
            source: AdapterSource::WebSocket(WebSocketSource {
                url: self.url.clone(),
                token_file: self.token_file.clone().unwrap_or_default(),
                subscribe: self.subscribe.clone().unwrap_or_default(),
                timeout_ms: milliseconds(self.timeout),
                heartbeat_ms: milliseconds(self.heartbeat_interval),
                max_reconnect_attempts: adapter.reconnect_attempts_max,
                reconnect_delay_ms: adapter.reconnect_delay_ms,
                ..WebSocketSource::default()
            }),
            sink: self.output.sink(),
            ..adapter
        }
    }
}
