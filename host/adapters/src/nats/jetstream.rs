//! Requests to JetStream: streams, consumers, and what is published to a stream.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weir_config::NatsSource as Config;
use weir_core::wording::json_types;

use super::connection::Client;
use super::protocol::{Message, matches};
use crate::driver::DriverError;

/// The status of a request that no service has subscribed to.
pub(super) const NO_RESPONDERS: u16 = 503;

/// Codes of errors that are handled separately.
const STREAM_NOT_FOUND: u64 = 10_059;
const CONSUMER_NOT_FOUND: u64 = 10_014;
const MESSAGE_TOO_LARGE: u64 = 10_054;

/// An error of JetStream, with the HTTP-like `code` and the more specific `err_code`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ApiError {
    code: u64,
    err_code: u64,
    description: String,
}

impl ApiError {
    fn failure(&self) -> DriverError {
        DriverError::transport(format!("NATS refuses: {} (error {})", self.description, self.err_code))
    }

    /// The failure to create a consumer. From 500 on, the error is one of the server, such as a cluster without a leader.
    fn creation_failure(&self, consumer: &str) -> DriverError {
        match self.code {
            500.. => self.failure(),
            _ => DriverError::Config(format!("NATS does not create the consumer `{consumer}`: {}", self.description)),
        }
    }
}

/// A stream.
#[derive(Debug, Deserialize)]
pub(super) struct StreamInfo {
    config: StreamConfig,
    state: StreamState,
}

#[derive(Debug, Deserialize)]
struct StreamConfig {
    #[serde(default)]
    subjects: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct StreamState {
    messages: u64,
}

impl StreamInfo {
    /// The number of stored messages.
    pub(super) fn messages(&self) -> u64 {
        self.state.messages
    }

    /// Whether it stores messages of a subject.
    pub(super) fn has_subject(&self, subject: &str) -> bool {
        self.config.subjects.iter().any(|pattern| matches(pattern, subject))
    }
}

/// A consumer.
#[derive(Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    config: ConsumerConfig,
    /// The number of messages that it has not delivered.
    #[serde(default)]
    pub(super) num_pending: u64,
    /// The number of messages that were delivered and not acknowledged.
    #[serde(default)]
    pub(super) num_ack_pending: u64,
}

/// The configuration of a consumer. Servers omit what is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConsumerConfig {
    ack_policy: String,
    /// In nanoseconds.
    ack_wait: u64,
    deliver_subject: String,
    filter_subject: String,
    filter_subjects: Vec<String>,
    max_deliver: i64,
    /// The most messages of a request; 0: no bound.
    max_batch: u64,
}

impl ConsumerInfo {
    /// How long the server waits for an acknowledgement before it delivers a message again.
    pub(super) fn ack_wait(&self) -> Duration {
        Duration::from_nanos(self.config.ack_wait)
    }

    /// The most messages of one request.
    pub(super) fn batch_max(&self) -> usize {
        match self.config.max_batch {
            0 => usize::MAX,
            max => usize::try_from(max).unwrap_or(usize::MAX),
        }
    }

    /// Whether it delivers messages of a subject that its stream stores.
    pub(super) fn has_subject(&self, subject: &str) -> bool {
        let ConsumerConfig { filter_subject, filter_subjects, .. } = &self.config;
        let mut filters = filter_subjects.iter().chain(Some(filter_subject).filter(|filter| !filter.is_empty()));
        (filter_subject.is_empty() && filter_subjects.is_empty()) || filters.any(|filter| matches(filter, subject))
    }

    /// Checks that the consumer loses no message with the configuration of the source.
    fn check(&self, config: &Config) -> Result<(), String> {
        let name = &config.consumer;
        if !self.config.deliver_subject.is_empty() {
            return Err(format!("the consumer `{name}` pushes messages; name another one"));
        }
        if self.config.ack_policy != "explicit" {
            return Err(format!("the consumer `{name}` has no explicit acknowledgements; name another one"));
        }
        match u64::try_from(self.config.max_deliver) {
            // -1: unlimited.
            Err(_) | Ok(0) => Ok(()),
            Ok(max) if max > config.deliveries_max => Ok(()),
            Ok(max) => Err(format!(
                "the consumer `{name}` ends deliveries of a message after {max}, which would be lost then; its max_deliver must be \
                 more than deliveries_max, {}",
                config.deliveries_max
            )),
        }
    }
}

/// Sends a request to JetStream.
async fn api_request<T: DeserializeOwned>(
    client: &Client,
    subject: &str,
    request: &Value,
) -> Result<Result<T, ApiError>, DriverError> {
    let payload = if request.is_null() { Vec::new() } else { request.to_string().into_bytes() };
    let reply = client.request(subject, &payload).await?;
    if reply.status.is_some_and(|status| status.code == NO_RESPONDERS) {
        return Err(DriverError::transport("NATS has no JetStream for this user; enable it for the account"));
    }
    parse(&reply.payload)
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<Result<T, ApiError>, DriverError> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Option<ApiError>,
    }
    let invalid = |error: serde_json::Error| {
        DriverError::transport(format!("a reply of JetStream is invalid: {}", json_types(&error.to_string())))
    };
    if let Some(error) = serde_json::from_slice::<Refusal>(payload).map_err(invalid)?.error {
        return Ok(Err(error));
    }
    Ok(Ok(serde_json::from_slice(payload).map_err(invalid)?))
}

/// A stream by its name.
pub(super) async fn stream(client: &Client, name: &str) -> Result<StreamInfo, DriverError> {
    match api_request(client, &format!("$JS.API.STREAM.INFO.{name}"), &Value::Null).await? {
        Ok(stream) => Ok(stream),
        Err(error) if error.err_code == STREAM_NOT_FOUND => {
            Err(DriverError::Config(format!("NATS has no stream `{name}`; create it")))
        }
        Err(error) => Err(error.failure()),
    }
}

/// The name of the stream that stores a subject.
pub(super) async fn stream_of(client: &Client, subject: &str) -> Result<Option<String>, DriverError> {
    #[derive(Deserialize)]
    struct Names {
        streams: Option<Vec<String>>,
    }
    let request = json!({ "subject": subject });
    let names: Result<Names, _> = api_request(client, "$JS.API.STREAM.NAMES", &request).await?;
    let names = names.map_err(|error| error.failure())?;
    Ok(names.streams.unwrap_or_default().into_iter().next())
}

/// The consumer of a source, if it exists.
pub(super) async fn consumer(client: &Client, config: &Config) -> Result<Option<ConsumerInfo>, DriverError> {
    let subject = format!("$JS.API.CONSUMER.INFO.{}.{}", config.stream, config.consumer);
    let consumer: ConsumerInfo = match api_request(client, &subject, &Value::Null).await? {
        Ok(consumer) => consumer,
        Err(error) if error.err_code == CONSUMER_NOT_FOUND => return Ok(None),
        Err(error) => return Err(error.failure()),
    };
    consumer.check(config).map_err(DriverError::Config)?;
    Ok(Some(consumer))
}

/// Creates the consumer of a source.
pub(super) async fn create_consumer(client: &Client, config: &Config) -> Result<ConsumerInfo, DriverError> {
    let nanoseconds = u64::try_from(Duration::from_millis(config.ack_wait_ms).as_nanos()).unwrap_or(u64::MAX);
    let mut settings = json!({
        "durable_name": config.consumer,
        "deliver_policy": if config.start == "new" { "new" } else { "all" },
        "ack_policy": "explicit",
        "ack_wait": nanoseconds,
        "max_ack_pending": config.ack_pending_max,
        // A message that was delivered too often is written to the error destination, and then acknowledged.
        "max_deliver": -1,
    });
    if !config.subject.is_empty() {
        settings["filter_subject"] = config.subject.as_str().into();
    }
    let subject = format!("$JS.API.CONSUMER.DURABLE.CREATE.{}.{}", config.stream, config.consumer);
    let request = json!({ "stream_name": config.stream, "config": settings });
    let created: Result<ConsumerInfo, _> = api_request(client, &subject, &request).await?;
    created.map_err(|error: ApiError| error.creation_failure(&config.consumer))
}

/// Why a stream has not stored a message.
#[derive(Debug)]
pub(super) enum PublishError {
    /// It is too large for the stream.
    TooLarge(String),
    /// Another attempt may succeed.
    Failed(DriverError),
}

/// Checks the reply to a message that was published to a subject.
pub(super) fn check_stored(subject: &str, reply: &Message) -> Result<(), PublishError> {
    if reply.status.as_ref().is_some_and(|status| status.code == NO_RESPONDERS) {
        let reason = format!("no stream of NATS stores the subject `{subject}`; create one");
        return Err(PublishError::Failed(DriverError::transport(reason)));
    }
    #[derive(Deserialize)]
    struct Stored {
        #[expect(dead_code, reason = "a reply without it is invalid")]
        stream: String,
    }
    match parse::<Stored>(&reply.payload).map_err(PublishError::Failed)? {
        Ok(_) => Ok(()),
        Err(error) if error.err_code == MESSAGE_TOO_LARGE => Err(PublishError::TooLarge(error.description)),
        Err(error) => Err(PublishError::Failed(error.failure())),
    }
}

/// The properties of a delivery, from the subject by which its message is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    /// The number of deliveries of the message, this one included.
    pub(super) delivered: u64,
    /// The number of the message in the stream.
    pub(super) sequence: u64,
    /// The number of messages after it that were not delivered.
    pub(super) pending: u64,
}

impl Delivery {
    /// Parses `$JS.ACK.[domain.account.]stream.consumer.delivered.sequence.number.time.pending[.…]`.
    pub(super) fn parse(subject: &str) -> Option<Self> {
        let tokens: Vec<&str> = subject.strip_prefix("$JS.ACK.")?.split('.').collect();
        let first = match tokens.len() {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        let number = |index: usize| tokens.get(first + index)?.parse().ok();
        Some(Self { delivered: number(0)?, sequence: number(1)?, pending: number(4)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_read_from_both_forms_of_subjects() {
        let expected = Some(Delivery { delivered: 2, sequence: 11, pending: 5 });
        assert_eq!(Delivery::parse("$JS.ACK.stream.weir.2.11.12.1700000000.5"), expected);
        assert_eq!(Delivery::parse("$JS.ACK.hub.ACCOUNT.stream.weir.2.11.12.1700000000.5.token"), expected);
        for bad in ["", "$JS.ACK.a.b", "a.b.c.1.2.3.4.5.6", "$JS.ACK.s.c.x.11.12.13.5"] {
            assert_eq!(Delivery::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn failed_creation_is_retried_only_if_the_server_is_at_fault() {
        let failure = |code| {
            let error = ApiError { code, err_code: 10_008, description: "reason".to_owned() };
            error.creation_failure("weir")
        };
        assert_eq!(failure(503), DriverError::transport("NATS refuses: reason (error 10008)"));
        assert_eq!(failure(400), DriverError::Config("NATS does not create the consumer `weir`: reason".to_owned()));
    }

    fn consumer(config: &str) -> ConsumerInfo {
        serde_json::from_str(&format!("{{\"config\":{config}}}")).unwrap()
    }

    #[test]
    fn consumers_that_would_lose_messages_are_refused() {
        let check = |settings: &str| consumer(settings).check(&Config::default());
        assert_eq!(check(r#"{"ack_policy":"explicit","max_deliver":-1}"#), Ok(()));
        assert_eq!(check(r#"{"ack_policy":"explicit","max_deliver":6}"#), Ok(()));
        let error = check(r#"{"ack_policy":"explicit","max_deliver":5}"#).unwrap_err();
        assert!(
            error.contains("ends deliveries of a message after 5") && error.contains("deliveries_max, 5"),
            "{error}"
        );
        let error = check(r#"{"ack_policy":"none"}"#).unwrap_err();
        assert_eq!(error, "the consumer `weir` has no explicit acknowledgements; name another one");
        let error = check(r#"{"ack_policy":"explicit","deliver_subject":"push"}"#).unwrap_err();
        assert_eq!(error, "the consumer `weir` pushes messages; name another one");
    }

    #[test]
    fn invalid_answer_is_refused_in_terms_of_json() {
        for (answer, reason) in [
            ("null", "invalid type: null, expected an object at line 1 column 4"),
            ("[]", "invalid length 0, expected an object with 1 element at line 1 column 2"),
            ("{}", "missing field `config` at line 1 column 2"),
            ("{\"config\":", "it ends in the middle of a value at line 1 column 10"),
        ] {
            let error = parse::<ConsumerInfo>(answer.as_bytes()).unwrap_err();
            assert_eq!(error, DriverError::transport(format!("a reply of JetStream is invalid: {reason}")));
        }
    }

    #[test]
    fn consumers_deliver_the_subjects_of_their_filters() {
        assert!(consumer("{}").has_subject("a.b"));
        let one = consumer(r#"{"filter_subject":"a.*"}"#);
        assert!(one.has_subject("a.b") && !one.has_subject("b"));
        let several = consumer(r#"{"filter_subjects":["a","b"]}"#);
        assert!(several.has_subject("b") && !several.has_subject("c"));
    }
}
