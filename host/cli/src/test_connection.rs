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
    /// What to connect to: the adapters of the configuration with this protocol, with the other flags in the place of their values, or the
    /// defaults of the protocol if there are none
    #[arg(long, value_enum)]
    protocol: Protocol,
    /// URL, or the brokers of Kafka [default: that of the adapters of the configuration, or of the protocol]
    #[arg(long, visible_alias = "brokers", value_name = "URL")]
    url: Option<String>,
    /// File with the password (Redis, Kafka, NATS with --username) or the token (WebSocket, HTTP, NATS)
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Redis, NATS: stream to read [default: that of the adapters, or text-input]
    #[arg(long, value_name = "KEY")]
    stream: Option<String>,
    /// Redis: stream to write [default: that of the adapters, or sentiment-output]
    #[arg(long, value_name = "KEY")]
    output_stream: Option<String>,
    /// Kafka: topic to read [default: that of the adapters, or text-input]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Kafka: topic to write [default: that of the adapters, or sentiment-output]
    #[arg(long, value_name = "TOPIC")]
    output_topic: Option<String>,
    /// NATS: consumer to read with [default: that of the adapters, or weir]
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// NATS: subject to write [default: that of the adapters, or sentiment-output]
    #[arg(long, value_name = "SUBJECT")]
    output_subject: Option<String>,
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
#[derive(Debug, PartialEq)]
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

    /// The system that an adapter of the configuration reads, with the flags in the place of its values.
    fn of_adapter(&self, adapter: &Adapter) -> Option<Endpoint> {
        match &adapter.source {
            AdapterSource::Redis(source) => {
                let output = match &adapter.sink {
                    AdapterSink::Redis(RedisSink { stream, url, .. }) if *url == source.url => Some(stream.clone()),
                    _ => None,
                };
                Some(self.redis(source.clone(), output))
            }
            AdapterSource::Kafka(source) => {
                let output = match &adapter.sink {
                    AdapterSink::Kafka(KafkaSink { topic, brokers, .. }) if *brokers == source.brokers => {
                        Some(topic.clone())
                    }
                    _ => None,
                };
                Some(self.kafka(source.clone(), output))
            }
            AdapterSource::Nats(source) => {
                let output = match &adapter.sink {
                    AdapterSink::Nats(NatsSink { subject, url, .. }) if *url == source.url => Some(subject.clone()),
                    _ => None,
                };
                Some(self.nats(source.clone(), output))
            }
            AdapterSource::Http(source) => Some(self.http(source.clone())),
            AdapterSource::WebSocket(source) => Some(self.websocket(source.clone())),
            AdapterSource::File(_) | AdapterSource::Channel(_) => None,
        }
    }

    /// The system of the flags and the defaults; `None` if its URL is missing and has no default.
    fn of_flags(&self, protocol: Protocol) -> Option<Endpoint> {
        match protocol {
            Protocol::Redis => Some(self.redis(RedisSource::default(), Some(RedisSink::default().stream))),
            Protocol::Kafka => Some(self.kafka(KafkaSource::default(), Some(KafkaSink::default().topic))),
            Protocol::Nats => Some(self.nats(NatsSource::default(), Some(NatsSink::default().subject))),
            Protocol::Http => self.url.is_some().then(|| self.http(HttpSource::default())),
            Protocol::WebSocket => self.url.is_some().then(|| self.websocket(WebSocketSource::default())),
            Protocol::All => None,
        }
    }

    fn redis(&self, config: RedisSource, output: Option<String>) -> Endpoint {
        let config = RedisSource {
            url: given(&self.url, config.url),
            password_file: given(&self.secret_file, config.password_file),
            stream: given(&self.stream, config.stream),
            timeout_ms: self.timeout_ms(),
            ..config
        };
        Endpoint::Redis(config, self.output_stream.clone().or(output))
    }

    fn kafka(&self, mut config: KafkaSource, output: Option<String>) -> Endpoint {
        config.properties.extend(self.properties.iter().cloned());
        let config = KafkaSource {
            brokers: given(&self.url, config.brokers),
            topics: self.topic.clone().map_or(config.topics, |topic| vec![topic]),
            username: given(&self.username, config.username),
            password_file: given(&self.secret_file, config.password_file),
            timeout_ms: self.timeout_ms(),
            ..config
        };
        Endpoint::Kafka(config, self.output_topic.clone().or(output))
    }

    fn nats(&self, config: NatsSource, output: Option<String>) -> Endpoint {
        let config = self.with_credentials(config);
        let config = NatsSource {
            url: given(&self.url, config.url),
            ca_file: given(&self.ca_file, config.ca_file),
            stream: given(&self.stream, config.stream),
            consumer: given(&self.consumer, config.consumer),
            timeout_ms: self.timeout_ms(),
            ..config
        };
        Endpoint::Nats(config, self.output_subject.clone().or(output))
    }

    /// The configuration with the credentials of the flags. Their forms exclude each other, so another one of the configuration does not
    /// remain.
    fn with_credentials(&self, config: NatsSource) -> NatsSource {
        let Self { username, secret_file, nkey_file, credentials_file, .. } = self;
        let is_key = nkey_file.is_some() || credentials_file.is_some();
        if username.is_none() && secret_file.is_none() && !is_key {
            return config;
        }
        let username = given(username, if is_key { String::new() } else { config.username });
        let (password_file, token_file) = match username.is_empty() {
            true => (PathBuf::new(), secret_file.clone().unwrap_or_default()),
            false => (given(secret_file, config.password_file), PathBuf::new()),
        };
        NatsSource {
            username,
            password_file,
            token_file,
            nkey_file: nkey_file.clone().unwrap_or_default(),
            credentials_file: credentials_file.clone().unwrap_or_default(),
            ..config
        }
    }

    fn http(&self, config: HttpSource) -> Endpoint {
        Endpoint::Http(HttpSource {
            url: given(&self.url, config.url),
            token_file: given(&self.secret_file, config.token_file),
            timeout_ms: self.timeout_ms(),
            ..config
        })
    }

    fn websocket(&self, config: WebSocketSource) -> Endpoint {
        Endpoint::WebSocket(WebSocketSource {
            url: given(&self.url, config.url),
            token_file: given(&self.secret_file, config.token_file),
            subscribe: given(&self.subscribe, config.subscribe),
            timeout_ms: self.timeout_ms(),
            ..config
        })
    }

    /// The systems to check, with their names.
    fn endpoints(&self, adapters: &[Adapter]) -> anyhow::Result<Vec<(String, Endpoint)>> {
        if self.url.is_some() && self.protocol == Protocol::All {
            bail!("--url needs one protocol; give --protocol websocket, redis, kafka, nats or http");
        }
        let is_selected =
            |endpoint: &Endpoint| matches!(self.protocol, Protocol::All) || endpoint.protocol().1 == self.protocol;
        let configured: Vec<(String, Endpoint)> = adapters
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

/// The value of a flag, or that of the configuration.
fn given<T: Clone>(flag: &Option<T>, configured: T) -> T {
    flag.clone().unwrap_or(configured)
}

pub(crate) fn main(arguments: &TestConnection) -> anyhow::Result<ExitCode> {
    let endpoints = arguments.endpoints(&arguments.setup.load(&[])?.adapter)?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Arguments, Command};

    /// The systems that the flags select, with these adapters in the configuration.
    fn endpoints(flags: &[&str], adapters: &[Adapter]) -> Vec<(String, Endpoint)> {
        let arguments = ["weir", "test-connection"].iter().chain(flags);
        let Command::TestConnection(test) = Arguments::try_parse_from(arguments).unwrap().command else { panic!() };
        test.endpoints(adapters).unwrap()
    }

    fn adapter(name: &str, source: AdapterSource, sink: AdapterSink) -> Adapter {
        Adapter { name: name.into(), source, sink, ..Adapter::default() }
    }

    /// The adapters of a configuration in which no value is that of a default.
    fn configured() -> [Adapter; 3] {
        let redis = RedisSource { url: "redis://one/3".into(), stream: "in".into(), ..RedisSource::default() };
        let results = RedisSink { url: "redis://one/3".into(), stream: "out".into(), ..RedisSink::default() };
        let properties = [("security.protocol", "sasl_ssl"), ("sasl.mechanism", "PLAIN")];
        let kafka = KafkaSource {
            brokers: "one:9093".into(),
            topics: vec!["in".into(), "more".into()],
            username: "ada".into(),
            password_file: "password".into(),
            properties: properties.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..KafkaSource::default()
        };
        let nats = NatsSource {
            url: "nats://one".into(),
            username: "ada".into(),
            password_file: "password".into(),
            stream: "in".into(),
            ..NatsSource::default()
        };
        [
            adapter("r", AdapterSource::Redis(redis), AdapterSink::Redis(results)),
            adapter("k", AdapterSource::Kafka(kafka), AdapterSink::default()),
            adapter("n", AdapterSource::Nats(nats), AdapterSink::default()),
        ]
    }

    #[test]
    fn flags_replace_the_values_of_the_adapters() {
        let one = |flags: &[&str]| {
            let mut all = endpoints(flags, &configured());
            assert_eq!(all.len(), 1, "{all:?}");
            all.remove(0)
        };
        let (name, Endpoint::Redis(config, output)) = one(&["--protocol", "redis", "--stream", "other"]) else {
            panic!()
        };
        assert_eq!((name.as_str(), config.url.as_str(), config.stream.as_str()), ("r", "redis://one/3", "other"));
        assert_eq!(output.as_deref(), Some("out"));
        let flags = ["--protocol", "redis", "--url", "redis://two", "--output-stream", "other"];
        let (_, Endpoint::Redis(config, output)) = one(&flags) else { panic!() };
        assert_eq!((config.url.as_str(), config.stream.as_str()), ("redis://two", "in"));
        assert_eq!(output.as_deref(), Some("other"));
        let property = "security.protocol=sasl_plaintext";
        let flags = ["--protocol", "kafka", "--brokers", "two", "--topic", "other", "--property", property];
        let (_, Endpoint::Kafka(config, output)) = one(&flags) else { panic!() };
        assert_eq!((config.brokers.as_str(), config.topics), ("two", vec!["other".to_owned()]));
        assert_eq!((config.username.as_str(), config.password_file), ("ada", PathBuf::from("password")));
        let properties = [("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "PLAIN")];
        let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(config.properties, BTreeMap::from(properties));
        assert_eq!(output, None, "its results go elsewhere");
    }

    #[test]
    fn credentials_of_flags_replace_those_of_nats() {
        let of = |flags: &[&str]| {
            let flags = [&["--protocol", "nats"][..], flags].concat();
            let Some((_, Endpoint::Nats(config, _))) = endpoints(&flags, &configured()).pop() else { panic!() };
            assert_eq!((config.url.as_str(), config.stream.as_str()), ("nats://one", "in"));
            [config.username.into(), config.password_file, config.token_file, config.nkey_file, config.credentials_file]
                .map(|value| value.display().to_string())
        };
        assert_eq!(of(&[]), ["ada", "password", "", "", ""]);
        assert_eq!(of(&["--secret-file", "new"]), ["ada", "new", "", "", ""]);
        assert_eq!(of(&["--username", "bob"]), ["bob", "password", "", "", ""]);
        assert_eq!(of(&["--nkey-file", "seed"]), ["", "", "", "seed", ""]);
        assert_eq!(of(&["--credentials-file", "user.creds"]), ["", "", "", "", "user.creds"]);
    }

    #[test]
    fn protocol_without_an_adapter_has_its_defaults() {
        let all = endpoints(&["--protocol", "nats", "--secret-file", "token"], &configured()[..2]);
        let [(name, Endpoint::Nats(config, output))] = &all[..] else { panic!("{all:?}") };
        assert_eq!((name.as_str(), config.url.as_str()), ("nats", "nats://127.0.0.1:4222"));
        assert_eq!((config.stream.as_str(), output.as_deref()), ("text-input", Some("sentiment-output")));
        assert_eq!(config.token_file, PathBuf::from("token"));
        let names = |flags: &[&str], adapters: &[Adapter]| {
            endpoints(flags, adapters).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["--protocol", "all"], &configured()), ["r", "k", "n"]);
        assert_eq!(names(&["--protocol", "all"], &[]), ["redis", "kafka", "nats"]);
        assert_eq!(names(&["--protocol", "http", "--url", "http://one"], &configured()), ["http"]);
    }
}
