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

/// The checks of one connection, up to the first failure.
#[derive(Debug)]
pub struct Checks {
    /// The checks, in their order.
    pub list: Vec<Check>,
    began: Instant,
}

impl Default for Checks {
    fn default() -> Self {
        Self { list: Vec::new(), began: Instant::now() }
    }
}

impl Checks {
    /// True when every check has passed.
    pub fn passed(&self) -> bool {
        self.list.iter().all(|check| check.outcome.is_ok())
    }

    /// Adds a check that ends now; `None` after a failure.
    pub(crate) fn record<T>(&mut self, name: &'static str, outcome: Result<(T, String), String>) -> Option<T> {
        let elapsed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began = Instant::now();
        let (value, outcome) = match outcome {
            Ok((value, description)) => (Some(value), Ok(description)),
            Err(reason) => (None, Err(reason)),
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

/// Checks topics of Kafka: a broker, TLS and the credentials, whether the input topic may be read, and whether the output topic, if there is
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
    let timeout = Duration::from_millis(config.timeout_ms);
    let broker = config.brokers.split(',').next().unwrap_or_default().trim();
    let (host, port) = kafka::broker_address(broker);
    if host.is_empty() {
        let reason = format!("`{broker}` is not a broker; give host:port, several separated by commas");
        return checks.record("resolve", Err(reason));
    }
    reach(checks, host, port, timeout).await?;
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
