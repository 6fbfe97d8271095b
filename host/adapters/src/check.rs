//! Checks of a connection. Each has a result, and a failure has a remedy.

use std::path::Path;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{IntoConnectionInfo as _, Value};
use tokio::net::TcpStream;
use weir_config::{HttpSource, KafkaSource, RedisSource, WebSocketSource};
use weir_core::wording::counted;

use crate::driver::DriverError;
use crate::http::client::Target;
use crate::{http, redis as driver, websocket};

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name: `resolve`, `connect`, `tls`, `authenticate`, `stream`, `topic`, `handshake`, `read` or `write`.
    pub name: &'static str,
    /// A description of the result, or the failure with a remedy.
    pub outcome: Result<String, String>,
    /// Its duration, in milliseconds.
    pub elapsed_ms: u64,
}

/// The checks of one connection, up to the first failure of each of its servers.
#[derive(Debug)]
pub struct Checks {
    /// The checks, in their order.
    pub list: Vec<Check>,
    /// The server that is checked, if there are several.
    server: Option<String>,
    began: Instant,
}

impl Default for Checks {
    fn default() -> Self {
        Self { list: Vec::new(), server: None, began: Instant::now() }
    }
}

impl Checks {
    /// True when every check has passed.
    pub fn passed(&self) -> bool {
        self.list.iter().all(|check| check.outcome.is_ok())
    }

    /// Sets the server, one of several, with whose address the texts of the next checks begin; `None`: they concern all.
    pub(crate) fn begin_server(&mut self, server: Option<String>) {
        self.server = server;
    }

    /// Adds a check that ends now; `None` after a failure.
    pub(crate) fn record<T>(&mut self, name: &'static str, outcome: Result<(T, String), String>) -> Option<T> {
        let elapsed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began = Instant::now();
        let named = |text: String| match &self.server {
            Some(server) if !text.starts_with(server.as_str()) => format!("{server}: {text}"),
            _ => text,
        };
        let (value, outcome) = match outcome {
            Ok((value, description)) => (Some(value), Ok(named(description))),
            Err(reason) => (None, Err(named(reason))),
        };
        self.list.push(Check { name, outcome, elapsed_ms });
        value
    }

    /// The token of a file; `Some(None)` where no file is configured.
    fn token(&mut self, path: &Path) -> Option<Option<String>> {
        if path.as_os_str().is_empty() {
            return Some(None);
        }
        match driver::secret(path) {
            Ok(token) => Some(Some(token)),
            Err(error) => self.record("authenticate", Err(error.to_string())),
        }
    }
}

pub(crate) fn with_remedy(error: &DriverError, remedy: &str) -> String {
    format!("{error}; {remedy}")
}

/// Resolves a name and connects.
pub(crate) async fn reach(checks: &mut Checks, host: &str, port: u16, timeout: Duration) -> Option<()> {
    let resolved = tokio::net::lookup_host((host, port)).await.map(Iterator::collect::<Vec<_>>);
    let outcome = match resolved {
        Ok(addresses) if !addresses.is_empty() => {
            let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            Ok((addresses, shown.join(", ")))
        }
        Ok(_) => Err(format!("{host} has no address; check the name")),
        Err(error) => Err(format!("{host}: {error}; check the name and the name server")),
    };
    let addresses = checks.record("resolve", outcome)?;
    let outcome = match tokio::time::timeout(timeout, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(stream)) => Ok(((), stream.peer_addr().map_or_else(|_| host.to_owned(), |address| address.to_string()))),
        Ok(Err(error)) => Err(format!("{host}:{port}: {error}; check that the server runs, and its port")),
        Err(_) => Err(format!("{host}:{port} does not answer within {} ms; check firewalls", timeout.as_millis())),
    };
    checks.record("connect", outcome)
}

/// Resolves a name and connects, with TLS if the URL has it.
async fn reach_target(checks: &mut Checks, target: &Target, timeout: Duration) -> Option<()> {
    reach(checks, &target.host, target.port, timeout).await?;
    if !target.is_tls {
        return Some(());
    }
    let outcome = match target.within(timeout, target.open()).await {
        Ok(_) => Ok(((), "established".to_owned())),
        Err(error) => {
            let remedy =
                "check that the server has TLS on this port and a certificate of a known authority for this name";
            Err(with_remedy(&error, remedy))
        }
    };
    checks.record("tls", outcome)
}

/// Checks a stream of Redis: its server, the credentials, and the permissions to read it and to write the output stream, if there is one.
pub async fn redis(config: &RedisSource, output_stream: Option<&str>) -> Checks {
    let mut checks = Checks::default();
    check_redis(&mut checks, config, output_stream).await;
    checks
}

async fn check_redis(checks: &mut Checks, config: &RedisSource, output_stream: Option<&str>) -> Option<()> {
    let timeout = Duration::from_millis(config.timeout_ms);
    let info = config.url.as_str().into_connection_info();
    let (host, port) = match info.as_ref().map(redis::ConnectionInfo::addr) {
        Ok(redis::ConnectionAddr::Tcp(host, port)) => (host.clone(), *port),
        _ => return checks.record("resolve", Err("the URL must be redis://[user@]host:port/database".to_owned())),
    };
    reach(checks, &host, port, timeout).await?;
    let connected = match driver::connect(&config.url, &config.password_file, timeout, timeout).await {
        Ok(mut connection) => {
            command(&mut connection, redis::cmd("PING")).await.map(|_| (connection, "accepted".to_owned()))
        }
        Err(error) => Err(with_remedy(&error, "check the user of the URL and the password file")),
    };
    let mut connection = checks.record("authenticate", connected)?;
    let mut kind = redis::cmd("TYPE");
    kind.arg(&config.stream);
    let outcome = command(&mut connection, kind).await.and_then(|kind| {
        match redis::from_redis_value::<String>(kind).map_err(|error| error.to_string())?.as_str() {
            "stream" => Ok(((), format!("`{}` exists", config.stream))),
            "none" => Ok(((), format!("`{}` does not exist yet; it is created at the start", config.stream))),
            kind => Err(format!("`{}` is a {kind}; name a stream", config.stream)),
        }
    });
    checks.record("stream", outcome)?;
    // Permissions are checked when a command is queued, and a discarded transaction changes nothing.
    let mut read = redis::cmd("XGROUP");
    read.arg("CREATE").arg(&config.stream).arg(&config.group).arg("$").arg("MKSTREAM");
    let may_read = queue(&mut connection, read).await;
    checks.record("read", may_read.map(|()| ((), format!("as a consumer of `{}`", config.group))))?;
    let Some(output_stream) = output_stream else { return Some(()) };
    let mut write = redis::cmd("XADD");
    write.arg(output_stream).arg("*").arg("payload").arg("");
    let may_write = queue(&mut connection, write).await;
    checks.record("write", may_write.map(|()| ((), format!("to `{output_stream}`"))))
}

async fn command(connection: &mut MultiplexedConnection, command: redis::Cmd) -> Result<Value, String> {
    let answer = command.query_async(connection).await;
    answer.map_err(|error| format!("Redis refuses: {error}; check the permissions of the user"))
}

/// Queues a command in a transaction, and discards it.
async fn queue(connection: &mut MultiplexedConnection, queued: redis::Cmd) -> Result<(), String> {
    command(connection, redis::cmd("MULTI")).await?;
    let outcome = command(connection, queued).await;
    command(connection, redis::cmd("DISCARD")).await?;
    outcome.map(drop)
}

/// Checks topics of Kafka: each broker, TLS and the credentials, whether the input topic may be read, and whether the output topic, if there is
/// one, is visible.
#[cfg(feature = "kafka")]
pub async fn kafka(config: &KafkaSource, output_topic: Option<&str>) -> Checks {
    let mut checks = Checks::default();
    check_kafka(&mut checks, config, output_topic).await;
    checks
}

/// A build without Kafka checks nothing.
#[cfg(not(feature = "kafka"))]
pub async fn kafka(_config: &KafkaSource, _output_topic: Option<&str>) -> Checks {
    let mut checks = Checks::default();
    let reason = "this program was built without Kafka; build it with the feature `kafka`".to_owned();
    let _: Option<()> = checks.record("resolve", Err(reason));
    checks
}

#[cfg(feature = "kafka")]
async fn check_kafka(checks: &mut Checks, config: &KafkaSource, output_topic: Option<&str>) -> Option<()> {
    use crate::kafka;

    if let Err(reason) = kafka::check_properties(&config.properties) {
        return checks.record("tls", Err(reason));
    }
    reach_brokers(checks, &config.brokers, Duration::from_millis(config.timeout_ms)).await?;
    let topics = kafka::topics(config, None).await;
    if let Err(error) = &topics
        && kafka::is_tls_failure(error)
    {
        let remedy = "check the property ssl.ca.location and the addresses of the brokers";
        return checks.record("tls", Err(with_remedy(error, remedy)));
    }
    let topics = topics.map_err(|error| {
        let remedy = match kafka::HAS_TLS {
            true => "check the user, the password file, and the properties security.protocol and sasl.mechanism",
            false => "check the user, the password file and the properties; this program was built without TLS",
        };
        with_remedy(&error, remedy)
    });
    let described = topics.map(|topics| ((), format!("{} visible", counted(topics.len(), "topic"))));
    checks.record("authenticate", described)?;
    let topic = config.topics.first().map(String::as_str).unwrap_or_default();
    let remedy = |topic: &str, error: DriverError| {
        let error = with_remedy(&error, "create the topic, or check the permissions of the user");
        format!("`{topic}`: {error}")
    };
    let partitions = async |topic: &str| {
        let topics = kafka::topics(config, Some(topic)).await.map_err(|error| remedy(topic, error))?;
        let partitions = topics.first().map_or(0, |(_, partitions)| *partitions);
        Ok(((), format!("`{topic}` has {}", counted(partitions, "partition"))))
    };
    checks.record("topic", partitions(topic).await)?;
    let records = kafka::check_read(config, topic).await.map_err(|error| remedy(topic, error));
    checks.record(
        "read",
        records.map(|records| ((), format!("partition 0 of `{topic}` has {}", counted(records, "record")))),
    )?;
    let Some(output_topic) = output_topic else { return Some(()) };
    checks.record("write", partitions(output_topic).await)
}

/// Resolves and connects to each broker; `None` if none can be reached.
#[cfg(feature = "kafka")]
async fn reach_brokers(checks: &mut Checks, brokers: &str, timeout: Duration) -> Option<()> {
    let all: Vec<&str> = brokers.split(',').map(str::trim).filter(|broker| !broker.is_empty()).collect();
    let mut is_reached = None;
    for broker in &all {
        checks.begin_server((all.len() > 1).then(|| (*broker).to_owned()));
        let (host, port) = crate::kafka::broker_address(broker);
        is_reached = reach(checks, host, port, timeout).await.or(is_reached);
    }
    checks.begin_server(None);
    if all.is_empty() {
        let reason = format!("`{brokers}` names no broker; give host:port, several separated by commas");
        return checks.record("resolve", Err(reason));
    }
    is_reached
}

/// Checks a feed over HTTP: its server, TLS, credentials and content type.
pub async fn http(config: &HttpSource) -> Checks {
    let mut checks = Checks::default();
    check_http(&mut checks, config).await;
    checks
}

async fn check_http(checks: &mut Checks, config: &HttpSource) -> Option<()> {
    let timeout = Duration::from_millis(config.timeout_ms);
    let target = match Target::http(&config.url) {
        Ok(target) => target,
        Err(error) => return checks.record("resolve", Err(error.to_string())),
    };
    reach_target(checks, &target, timeout).await?;
    let token = checks.token(&config.token_file)?;
    let (status, content_type) = match http::get_head(&target, token.as_deref(), timeout).await {
        Ok(head) => head,
        Err(error) => {
            return checks.record("read", Err(with_remedy(&error, "check that the address is that of an HTTP server")));
        }
    };
    let outcome = match status {
        401 | 403 => Err(format!("the server answers {status}; check the token file")),
        status => Ok(((), format!("the server answers {status}"))),
    };
    checks.record("authenticate", outcome)?;
    let is_feed = content_type.starts_with("text/event-stream") || content_type.contains("ndjson");
    let outcome = match status {
        200..=299 if is_feed => Ok(((), content_type)),
        200..=299 => Err(format!(
            "the content type is `{content_type}`, and must be text/event-stream or application/x-ndjson; check the path"
        )),
        status => Err(format!("the server answers {status}; check the path")),
    };
    checks.record("read", outcome)
}

/// Checks a feed over a WebSocket: its server, TLS, the handshake, the subscription, and the response to a ping.
pub async fn websocket(config: &WebSocketSource) -> Checks {
    let mut checks = Checks::default();
    check_websocket(&mut checks, config).await;
    checks
}

async fn check_websocket(checks: &mut Checks, config: &WebSocketSource) -> Option<()> {
    let timeout = Duration::from_millis(config.timeout_ms);
    let target = match Target::websocket(&config.url) {
        Ok(target) => target,
        Err(error) => return checks.record("resolve", Err(error.to_string())),
    };
    reach_target(checks, &target, timeout).await?;
    let token = checks.token(&config.token_file)?;
    let outcome = match websocket::connect(config, &target, token.as_deref()).await {
        Ok(socket) => Ok((socket, "accepted".to_owned())),
        Err(error @ DriverError::Denied(_)) => Err(with_remedy(&error, "check the token file")),
        Err(error) => Err(with_remedy(&error, "check the path, and that a WebSocket is served there")),
    };
    let mut socket = checks.record("handshake", outcome)?;
    let outcome = match target.within(timeout, websocket::check_liveness(&mut socket)).await {
        Ok(()) => Ok(((), "the server responds to a ping".to_owned())),
        Err(error) => Err(with_remedy(&error, "check the subscription message")),
    };
    checks.record("read", outcome)
}

#[cfg(all(test, feature = "kafka"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_broker_is_checked_by_its_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap().to_string();
        let check = async |brokers: &str| {
            let mut checks = Checks::default();
            let is_reached = reach_brokers(&mut checks, brokers, Duration::from_secs(60)).await.is_some();
            let failures = checks.list.iter().filter_map(|check| check.outcome.clone().err()).collect::<Vec<_>>();
            (is_reached, checks.list.len(), failures)
        };
        assert_eq!(check(&open).await, (true, 2, Vec::new()));
        // Nothing listens on port 1.
        for brokers in [format!("{open}, 127.0.0.1:1"), format!("127.0.0.1:1,{open}")] {
            let (is_reached, count, failures) = check(&brokers).await;
            assert!(is_reached && count == 4 && failures.len() == 1, "{failures:?}");
            assert!(failures[0].starts_with("127.0.0.1:1: Connection refused"), "{failures:?}");
        }
        let (is_reached, _, failures) = check("127.0.0.1:1,[::1]:1").await;
        assert!(!is_reached && failures.len() == 2, "{failures:?}");
        assert!(failures[0].starts_with("127.0.0.1:1: ") && failures[1].starts_with("[::1]:1: "), "{failures:?}");
        let (is_reached, _, failures) = check(" , ").await;
        assert!(!is_reached);
        assert_eq!(failures, ["` , ` names no broker; give host:port, several separated by commas"]);
    }
}
