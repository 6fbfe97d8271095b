//! Properties, reports and failures of every client.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::net::TcpStream;
use weir_config::{KafkaSink, KafkaSource};

use crate::driver::DriverError;
use crate::redis::secret;

/// Whether librdkafka was built with OpenSSL: TLS, SCRAM and OAUTHBEARER.
pub(crate) const HAS_TLS: bool = cfg!(feature = "kafka-tls");

/// How long a failed call handles the reports that have arrived: with a timeout of zero, a poll handles one of them.
pub(super) const REPORTS_TIMEOUT: Duration = Duration::from_millis(100);

/// A part of every error of OpenSSL about TLS.
const OPENSSL_ERROR: &str = ":SSL routines:";
/// A part of a line of the log about a commit that has failed.
const FAILED_COMMIT: &str = "Offset commit (manual) failed";
/// The beginning of the failure of a TLS handshake.
const TLS_FAILURE: &str = "TLS with ";

/// The port of a broker without one.
const DEFAULT_PORT: u16 = 9092;

/// Properties that keys of the configuration or the guarantee of the adapter determine.
const RESERVED: [&str; 6] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "transactional.id",
];

/// Checks that the build supports what properties ask for, before anything connects.
///
/// # Errors
///
/// A property needs TLS or OpenSSL, and the build has neither.
pub(crate) fn check_properties(properties: &BTreeMap<String, String>) -> Result<(), String> {
    // The values of other properties may be secrets.
    let needs_tls = |key: &str, value: &str| match key {
        "security.protocol" if value.to_ascii_lowercase().ends_with("ssl") => Some(format!("{key}={value}")),
        "sasl.mechanism" | "sasl.mechanisms" if !matches!(value, "PLAIN" | "GSSAPI") => Some(format!("{key}={value}")),
        key if key.starts_with("ssl.") => Some(key.to_owned()),
        _ => None,
    };
    let needed = properties.iter().find_map(|(key, value)| needs_tls(key, value));
    match needed.filter(|_| !HAS_TLS) {
        Some(property) => {
            Err(format!("the property {property} needs a program that is built with the feature `kafka-tls`"))
        }
        None => Ok(()),
    }
}

/// Connects to the bootstrap servers and returns once one accepts: librdkafka would wait for them without a reason.
///
/// # Errors
///
/// None of them accepts a connection; the text has the reason of each.
pub(super) async fn reach(brokers: &str, timeout: Duration) -> Result<(), DriverError> {
    let mut attempts: FuturesUnordered<_> = brokers
        .split(',')
        .map(str::trim)
        .filter(|broker| !broker.is_empty())
        .map(|broker| connect(broker, timeout))
        .collect();
    let mut reasons = Vec::new();
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(reason),
        }
    }
    let reasons = reasons.join(", ");
    Err(DriverError::transport(format!(
        "no broker of `{brokers}` accepts a connection ({reasons}); check the addresses and that a broker runs there, with `weir test-connection \
         --protocol kafka`"
    )))
}

/// The host and the port of a broker, `host`, `host:port` or `protocol://host:port`.
pub(crate) fn broker_address(broker: &str) -> (&str, u16) {
    let address = broker.rsplit_once("://").map_or(broker, |(_, address)| address);
    let (host, port) = match address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) => (host, port),
        None => (address, DEFAULT_PORT),
    };
    (host.trim_matches(['[', ']']), port)
}

/// Connects to a broker.
async fn connect(broker: &str, timeout: Duration) -> Result<(), String> {
    let connected = TcpStream::connect(broker_address(broker));
    match tokio::time::timeout(timeout, connected).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{broker}: {error}")),
        Err(_) => Err(format!("{broker}: no answer within {} ms", timeout.as_millis())),
    }
}

/// How to reach and authenticate with a cluster.
pub(super) struct Access<'a> {
    /// Bootstrap servers, `host:port`, separated by commas.
    pub(super) brokers: &'a str,
    /// The user of SASL; empty: none.
    pub(super) username: &'a str,
    /// A file with the password of SASL; empty: none.
    pub(super) password_file: &'a Path,
    /// Properties of librdkafka, which override Weir's defaults.
    pub(super) properties: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a KafkaSource> for Access<'a> {
    fn from(config: &'a KafkaSource) -> Self {
        let KafkaSource { brokers, username, password_file, properties, .. } = config;
        Self { brokers, username, password_file, properties }
    }
}

impl<'a> From<&'a KafkaSink> for Access<'a> {
    fn from(config: &'a KafkaSink) -> Self {
        let KafkaSink { brokers, username, password_file, properties, .. } = config;
        Self { brokers, username, password_file, properties }
    }
}

impl Access<'_> {
    /// The properties of a client: Weir's defaults for it, then those of the configuration.
    pub(super) fn config(&self, defaults: &[(&str, String)]) -> Result<ClientConfig, DriverError> {
        check_properties(self.properties).map_err(DriverError::Config)?;
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers).set("client.id", "weir");
        for (key, value) in defaults {
            config.set(*key, value);
        }
        if !self.username.is_empty() {
            config.set("sasl.username", self.username);
        }
        if !self.password_file.as_os_str().is_empty() {
            config.set("sasl.password", secret(self.password_file)?);
        }
        for (key, value) in self.properties {
            if RESERVED.contains(&key.as_str()) {
                return Err(DriverError::Config(format!("the property {key} is not set here: Weir sets it")));
            }
            config.set(key, value);
        }
        Ok(config)
    }
}

/// What librdkafka reports about a client outside of calls.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The last refusal of the credentials.
    denied: Mutex<Option<String>>,
    /// The last failure of a TLS handshake.
    handshake: Mutex<Option<String>>,
}

impl Reports {
    pub(super) fn handle_log(&self, level: RDKafkaLogLevel, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!("librdkafka: {message}");
            }
            // The consumer reports them once for all that are repeated together.
            _ if message.contains(FAILED_COMMIT) => tracing::debug!("librdkafka: {message}"),
            // A lost connection is an error of librdkafka, which restores it by itself.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::info!("librdkafka: {message}"),
            _ => tracing::debug!("librdkafka: {message}"),
        }
    }

    pub(super) fn handle_error(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        let report = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => &self.denied,
            Some(RDKafkaErrorCode::SSL) => &self.handshake,
            // A handshake that fails in its first call is a lost connection for librdkafka.
            _ if reason.contains(OPENSSL_ERROR) => &self.handshake,
            _ => return,
        };
        *report.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }

    /// The failure of an operation: a timeout after refused credentials is a refusal, and one after a TLS handshake that has failed is a
    /// failure of TLS.
    pub(super) fn failure(&self, error: &KafkaError) -> DriverError {
        let take = |report: &Mutex<Option<String>>| report.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reason) = take(&self.denied) {
            return DriverError::Denied(format!("Kafka refuses the credentials: {reason}"));
        }
        match (failure(error), take(&self.handshake)) {
            (DriverError::Transport { .. }, Some(report)) => DriverError::transport(handshake_failure(&report)),
            (failure, _) => failure,
        }
    }
}

/// The failure of a TLS handshake, which librdkafka reports as `protocol://host:port/id: reason`.
fn handshake_failure(report: &str) -> String {
    let (broker, reason) = report.split_once(": ").unwrap_or(("the broker", report));
    let broker = broker.rsplit_once("://").map_or(broker, |(_, address)| address);
    let broker = broker.split('/').next().unwrap_or(broker);
    let reason = match reason.contains("certificate verify failed") {
        // OpenSSL does not say which.
        true => "the certificate is not of an authority in ssl.ca.location, or is for another host, or has expired",
        false => reason,
    };
    format!("{TLS_FAILURE}{broker}: {reason}")
}

/// Whether a failure is that of a TLS handshake.
pub(crate) fn is_tls_failure(failure: &DriverError) -> bool {
    failure.to_string().starts_with(TLS_FAILURE)
}

/// The context of clients other than the consumer of a group.
#[derive(Debug, Clone, Default)]
pub(super) struct ReportContext(pub(super) Arc<Reports>);

impl ClientContext for ReportContext {
    fn log(&self, level: RDKafkaLogLevel, _facility: &str, message: &str) {
        self.0.handle_log(level, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.handle_error(&error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for ReportContext {}

/// The failure of an operation.
pub(super) fn failure(error: &KafkaError) -> DriverError {
    use RDKafkaErrorCode as Code;
    let reason = format!("Kafka: {error}");
    match (error, error.rdkafka_error_code()) {
        // The value may be a secret: only its key is named. librdkafka repeats it in some descriptions.
        (KafkaError::ClientConfig(_, description, key, value), _) => {
            let description = match value.as_str() {
                "" => description.clone(),
                value => description.replace(value, "…"),
            };
            DriverError::Config(format!("the property {key} is refused: {description}"))
        }
        (KafkaError::ClientCreation(_), _) => DriverError::Config(reason),
        (
            _,
            Some(
                Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed,
            ),
        ) => DriverError::Denied(reason),
        (
            _,
            Some(Code::InvalidArgument | Code::InvalidTopic | Code::InvalidGroupId | Code::InconsistentGroupProtocol),
        ) => DriverError::Config(reason),
        _ => DriverError::transport(reason),
    }
}

/// Runs a call of librdkafka that blocks.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(call).await.map_err(DriverError::transport)
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaConfRes;

    use super::*;

    #[test]
    fn reserved_property_is_refused() {
        let access = |key: &str| {
            let properties = BTreeMap::from([(key.to_owned(), "true".to_owned())]);
            let access =
                Access { brokers: "b:9092", username: "", password_file: Path::new(""), properties: &properties };
            access.config(&[("linger.ms", "5".to_owned())]).map(|config| config.get("linger.ms").map(str::to_owned))
        };
        assert_eq!(access("check.crcs"), Ok(Some("5".to_owned())));
        assert_eq!(access("linger.ms"), Ok(Some("true".to_owned())));
        let refused = access("enable.auto.commit").unwrap_err();
        assert_eq!(refused.to_string(), "the property enable.auto.commit is not set here: Weir sets it");
    }

    #[test]
    fn property_that_needs_tls_names_the_feature() {
        let check = |key: &str, value: &str| check_properties(&BTreeMap::from([(key.to_owned(), value.to_owned())]));
        let refused = |property: &str| match HAS_TLS {
            true => Ok(()),
            false => Err(format!("the property {property} needs a program that is built with the feature `kafka-tls`")),
        };
        assert_eq!(check("security.protocol", "SASL_SSL"), refused("security.protocol=SASL_SSL"));
        assert_eq!(check("security.protocol", "ssl"), refused("security.protocol=ssl"));
        assert_eq!(check("sasl.mechanism", "SCRAM-SHA-256"), refused("sasl.mechanism=SCRAM-SHA-256"));
        assert_eq!(check("ssl.key.password", "hunter2"), refused("ssl.key.password"));
        assert_eq!(check("security.protocol", "sasl_plaintext"), Ok(()));
        assert_eq!(check("sasl.mechanism", "PLAIN"), Ok(()));
    }

    #[test]
    fn broker_has_a_protocol_and_a_port_or_not() {
        for (broker, expected) in [
            ("one", ("one", 9092)),
            ("one:9093", ("one", 9093)),
            ("SASL_SSL://one:9093", ("one", 9093)),
            ("[::1]", ("::1", 9092)),
            ("[::1]:9093", ("::1", 9093)),
        ] {
            assert_eq!(broker_address(broker), expected, "{broker}");
        }
    }

    #[tokio::test]
    async fn one_of_several_brokers_has_to_accept() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let timeout = Duration::from_secs(60);
        // Nothing listens on port 1.
        assert_eq!(reach(&format!("127.0.0.1:1, PLAINTEXT://127.0.0.1:{port}"), timeout).await, Ok(()));
        let failure = reach("127.0.0.1:1,[::1]:1", timeout).await.unwrap_err();
        let text = failure.to_string();
        assert!(failure.is_retryable() && text.contains("127.0.0.1:1: ") && text.contains("[::1]:1: "), "{text}");
    }

    #[test]
    fn failure_names_no_value_of_a_property() {
        let (key, value) = ("sasl.password".to_owned(), "hunter2".to_owned());
        let description = "Invalid value \"hunter2\" for configuration property \"sasl.password\"".to_owned();
        let error = KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_INVALID, description, key, value);
        let failure = failure(&error).to_string();
        assert!(failure.contains("sasl.password") && !failure.contains("hunter2"), "{failure}");
    }

    #[test]
    fn refused_credentials_explain_a_timeout() {
        let (reports, timeout) = (Reports::default(), KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
        assert!(matches!(reports.failure(&timeout), DriverError::Transport { .. }));
        reports.handle_error(&KafkaError::Global(RDKafkaErrorCode::Authentication), "no such user");
        assert_eq!(
            reports.failure(&timeout),
            DriverError::Denied("Kafka refuses the credentials: no such user".to_owned())
        );
    }

    #[test]
    fn failed_handshakes_explain_a_timeout() {
        let (reports, timeout) = (Reports::default(), KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
        let ssl = KafkaError::Global(RDKafkaErrorCode::SSL);
        let report = |reason: &str| {
            reports.handle_error(&ssl, &format!("sasl_ssl://one:9093/bootstrap: SSL handshake failed: {reason}"));
        };
        report("error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified");
        let reason =
            "the certificate is not of an authority in ssl.ca.location, or is for another host, or has expired";
        let failure = reports.failure(&timeout);
        assert_eq!(failure, DriverError::transport(format!("TLS with one:9093: {reason}")));
        assert!(is_tls_failure(&failure) && !is_tls_failure(&reports.failure(&timeout)));
        report("error:0A00010B:SSL routines::wrong version number");
        let reason = "SSL handshake failed: error:0A00010B:SSL routines::wrong version number";
        assert_eq!(reports.failure(&timeout), DriverError::transport(format!("TLS with one:9093: {reason}")));
        let lost = KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
        reports.handle_error(&lost, "ssl://two:9093/2: error:0A000086:SSL routines::certificate verify failed");
        assert!(reports.failure(&timeout).to_string().starts_with("TLS with two:9093: the certificate is not of"));
        reports.handle_error(&lost, "ssl://two:9093/2: Disconnected");
        assert!(!is_tls_failure(&reports.failure(&timeout)));
        // Another failure than that of a connection is not explained by it.
        report("error");
        let denied = KafkaError::MetadataFetch(RDKafkaErrorCode::TopicAuthorizationFailed);
        assert!(matches!(reports.failure(&denied), DriverError::Denied(_)));
    }
}
