//! `weir test-connection`: checks the systems that adapters connect to.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weir_adapters::check::{self, Checks};
use weir_adapters::nats;
use weir_config::{
    Adapter, AdapterSink, AdapterSource, HttpSource, KafkaSink, KafkaSource, NatsSink, NatsSource, RedisSink,
    RedisSource, WebSocketSource,
};

use crate::logs::printable;
use crate::numbers;
use crate::remote::{block_on, seconds};
use crate::setup::Setup;

/// `weir test-connection`.
#[derive(Debug, Args)]
pub(crate) struct TestConnection {
    /// What to connect to; `all` takes the adapters of the configuration, or the defaults of each protocol if there are none
    #[arg(long, value_enum)]
    protocol: Protocol,
    /// URL, or the brokers of Kafka [default: that of the adapters of the configuration, or of the protocol]
    #[arg(long, visible_alias = "brokers", value_name = "URL")]
    url: Option<String>,
    /// File with the password (Redis, Kafka, NATS with --username) or the token (WebSocket, HTTP, NATS)
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Redis, NATS: stream to read
    #[arg(long, value_name = "KEY", default_value = "text-input")]
    stream: String,
    /// Redis: stream to write
    #[arg(long, value_name = "KEY", default_value = "sentiment-output")]
    output_stream: String,
    /// Kafka: topic to read
    #[arg(long, value_name = "TOPIC", default_value = "text-input")]
    topic: String,
    /// Kafka: topic to write
    #[arg(long, value_name = "TOPIC", default_value = "sentiment-output")]
    output_topic: String,
    /// NATS: consumer to read with
    #[arg(long, value_name = "NAME", default_value = "weir")]
    consumer: String,
    /// NATS: subject to write
    #[arg(long, value_name = "SUBJECT", default_value = "sentiment-output")]
    output_subject: String,
    /// NATS: file with the seed of an nkey
    #[arg(long, value_name = "FILE")]
    nkey_file: Option<PathBuf>,
    /// NATS: file with the credentials of a user (`.creds`)
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// NATS: file with root certificates (PEM) [default: those of Mozilla]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Kafka: user of SASL; NATS: user
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Kafka: property of librdkafka, as in `--property security.protocol=sasl_ssl`; can be repeated
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = crate::stream::property)]
    properties: Vec<(String, String)>,
    /// WebSocket: message that subscribes
    #[arg(long, value_name = "MESSAGE")]
    subscribe: Option<String>,
    /// Time for each check, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = numbers::seconds)]
    timeout: f64,
    /// Print one JSON object for each check
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    setup: Setup,
}

/// The protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// A feed over a WebSocket
    #[value(name = "websocket")]
    WebSocket,
    /// A stream of Redis
    Redis,
    /// Topics of Kafka
    Kafka,
    /// A stream of NATS JetStream
    Nats,
    /// A feed over HTTP
    Http,
    /// All of them
    All,
}

/// A system to check, and its stream, topic or subject for results, if there is one.
enum Endpoint {
    WebSocket(WebSocketSource),
    Redis(RedisSource, Option<String>),
    Kafka(KafkaSource, Option<String>),
    Nats(NatsSource, Option<String>),
    Http(HttpSource),
}

impl Endpoint {
    fn protocol(&self) -> (&'static str, Protocol) {
        match self {
            Self::WebSocket(_) => ("websocket", Protocol::WebSocket),
            Self::Redis(..) => ("redis", Protocol::Redis),
            Self::Kafka(..) => ("kafka", Protocol::Kafka),
            Self::Nats(..) => ("nats", Protocol::Nats),
            Self::Http(_) => ("http", Protocol::Http),
        }
    }

    async fn check(&self) -> Checks {
        match self {
            Self::WebSocket(config) => check::websocket(config).await,
            Self::Redis(config, output) => check::redis(config, output.as_deref()).await,
            Self::Kafka(config, output) => check::kafka(config, output.as_deref()).await,
            Self::Nats(config, output) => nats::check(config, output.as_deref()).await,
            Self::Http(config) => check::http(config).await,
        }
    }
}

impl TestConnection {
    fn timeout_ms(&self) -> u64 {
        u64::try_from(seconds(self.timeout).as_millis()).unwrap_or(u64::MAX)
    }

    /// The systems of an adapter of the configuration.
    fn of_adapter(&self, adapter: &Adapter) -> Option<Endpoint> {
        let timeout_ms = self.timeout_ms();
        match &adapter.source {
            AdapterSource::Redis(source) => {
                let output = match &adapter.sink {
                    AdapterSink::Redis(RedisSink { stream, url, .. }) if *url == source.url => Some(stream.clone()),
                    _ => None,
                };
                Some(Endpoint::Redis(RedisSource { timeout_ms, ..source.clone() }, output))
            }
            AdapterSource::Kafka(source) => {
                let output = match &adapter.sink {
                    AdapterSink::Kafka(KafkaSink { topic, brokers, .. }) if *brokers == source.brokers => {
                        Some(topic.clone())
                    }
                    _ => None,
                };
                Some(Endpoint::Kafka(KafkaSource { timeout_ms, ..source.clone() }, output))
            }
            AdapterSource::Nats(source) => {
                let output = match &adapter.sink {
                    AdapterSink::Nats(NatsSink { subject, url, .. }) if *url == source.url => Some(subject.clone()),
                    _ => None,
                };
                Some(Endpoint::Nats(NatsSource { timeout_ms, ..source.clone() }, output))
            }
            AdapterSource::Http(source) => Some(Endpoint::Http(HttpSource { timeout_ms, ..source.clone() })),
            AdapterSource::WebSocket(source) => {
                Some(Endpoint::WebSocket(WebSocketSource { timeout_ms, ..source.clone() }))
            }
            AdapterSource::File(_) | AdapterSource::Channel(_) => None,
        }
    }

    /// The system of the flags; `None` if its URL is missing and has no default.
    fn of_flags(&self, protocol: Protocol) -> Option<Endpoint> {
        let (timeout_ms, secret_file) = (self.timeout_ms(), self.secret_file.clone().unwrap_or_default());
        match protocol {
            Protocol::Redis => {
                let default = RedisSource::default();
                let url = self.url.clone().unwrap_or_else(|| default.url.clone());
                let stream = self.stream.clone();
                let config = RedisSource { url, password_file: secret_file, stream, timeout_ms, ..default };
                Some(Endpoint::Redis(config, Some(self.output_stream.clone())))
            }
            Protocol::Kafka => {
                let default = KafkaSource::default();
                let config = KafkaSource {
                    brokers: self.url.clone().unwrap_or_else(|| default.brokers.clone()),
                    topics: vec![self.topic.clone()],
                    username: self.username.clone().unwrap_or_default(),
                    password_file: secret_file,
                    properties: self.properties.iter().cloned().collect(),
                    timeout_ms,
                    ..default
                };
                Some(Endpoint::Kafka(config, Some(self.output_topic.clone())))
            }
            Protocol::Nats => {
                let default = NatsSource::default();
                let (password_file, token_file) = match self.username {
                    Some(_) => (secret_file, PathBuf::new()),
                    None => (PathBuf::new(), secret_file),
                };
                let config = NatsSource {
                    url: self.url.clone().unwrap_or_else(|| default.url.clone()),
                    username: self.username.clone().unwrap_or_default(),
                    password_file,
                    token_file,
                    nkey_file: self.nkey_file.clone().unwrap_or_default(),
                    credentials_file: self.credentials_file.clone().unwrap_or_default(),
                    ca_file: self.ca_file.clone().unwrap_or_default(),
                    stream: self.stream.clone(),
                    consumer: self.consumer.clone(),
                    timeout_ms,
                    ..default
                };
                Some(Endpoint::Nats(config, Some(self.output_subject.clone())))
            }
            Protocol::Http => {
                let url = self.url.clone()?;
                Some(Endpoint::Http(HttpSource { url, token_file: secret_file, timeout_ms, ..HttpSource::default() }))
            }
            Protocol::WebSocket => Some(Endpoint::WebSocket(WebSocketSource {
                url: self.url.clone()?,
                token_file: secret_file,
                subscribe: self.subscribe.clone().unwrap_or_default(),
                timeout_ms,
                ..WebSocketSource::default()
            })),
            Protocol::All => None,
        }
    }

    /// The systems to check, with their names.
    fn endpoints(&self) -> anyhow::Result<Vec<(String, Endpoint)>> {
        if self.url.is_some() {
            let Some(endpoint) = self.of_flags(self.protocol) else {
                bail!("--url needs one protocol; give --protocol websocket, redis, kafka, nats or http");
            };
            return Ok(vec![(endpoint.protocol().0.to_owned(), endpoint)]);
        }
        let is_selected =
            |endpoint: &Endpoint| matches!(self.protocol, Protocol::All) || endpoint.protocol().1 == self.protocol;
        let configured = self.setup.load(&[])?.adapter;
        let configured: Vec<(String, Endpoint)> = configured
            .iter()
            .filter_map(|adapter| Some((adapter.name.clone(), self.of_adapter(adapter)?)))
            .filter(|(_, endpoint)| is_selected(endpoint))
            .collect();
        if !configured.is_empty() {
            return Ok(configured);
        }
        let all = [Protocol::WebSocket, Protocol::Redis, Protocol::Kafka, Protocol::Nats, Protocol::Http];
        let endpoints: Vec<(String, Endpoint)> = all
            .into_iter()
            .filter_map(|protocol| self.of_flags(protocol))
            .filter(is_selected)
            .map(|endpoint| (endpoint.protocol().0.to_owned(), endpoint))
            .collect();
        if endpoints.is_empty() {
            bail!(
                "a feed has no default URL; give it with --url, or a configuration with an [[adapter]] that has a feed"
            );
        }
        Ok(endpoints)
    }
}

pub(crate) fn main(arguments: &TestConnection) -> anyhow::Result<ExitCode> {
    let endpoints = arguments.endpoints()?;
    let has_passed = block_on(async {
        let mut has_passed = true;
        for (name, endpoint) in &endpoints {
            let checks = endpoint.check().await;
            has_passed &= checks.passed();
            show(name, &checks, arguments.json)?;
        }
        Ok(has_passed)
    })?;
    Ok(if has_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(name: &str, checks: &Checks, as_json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for check in &checks.list {
        let (is_good, text) = match &check.outcome {
            Ok(text) => (true, text),
            Err(reason) => (false, reason),
        };
        if as_json {
            let line: Value = json!({
                "name": name, "check": check.name, "passed": is_good, "message": text, "elapsed_ms": check.elapsed_ms,
            });
            writeln!(out, "{line}")?;
        } else {
            let mark = if is_good { "ok    " } else { "failed" };
            writeln!(out, "{mark} {name} {:<12} {} ({} ms)", check.name, printable(text), check.elapsed_ms)?;
        }
    }
    Ok(())
}
