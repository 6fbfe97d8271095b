//! Streams of NATS JetStream.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A stream of NATS JetStream as a source: a durable pull consumer with explicit acknowledgements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSource {
    /// The servers, `nats://host:port` or `tls://host:port`, separated by commas; they are tried in this order.
    pub url: String,
    /// The user; empty: none.
    pub username: String,
    /// A file with the password of the user.
    pub password_file: PathBuf,
    /// A file with a token.
    pub token_file: PathBuf,
    /// A file with the seed of an nkey, `SU…`.
    pub nkey_file: PathBuf,
    /// A file with the credentials of a user (`.creds`).
    pub credentials_file: PathBuf,
    /// A file with root certificates (PEM); empty: those of Mozilla.
    pub ca_file: PathBuf,
    /// The stream, which must exist.
    pub stream: String,
    /// The subject of the messages that are records; empty: all of the stream. Of a new consumer.
    pub subject: String,
    /// The durable consumer; created if it is missing.
    pub consumer: String,
    /// The start of a new consumer: `first`, the first message of the stream, or `new`, after the last one.
    pub start: String,
    /// The time after which the server delivers a message again that is neither acknowledged nor in progress, ms. Of a new consumer.
    pub ack_wait_ms: u64,
    /// Most messages that are delivered and not acknowledged, over all clients of the consumer. Of a new consumer.
    pub ack_pending_max: u32,
    /// Deliveries of a message before it goes to the error destination without another attempt.
    pub deliveries_max: u64,
    /// Timeout of a connection attempt or a request, ms.
    pub timeout_ms: u64,
}

impl Default for NatsSource {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            username: String::new(),
            password_file: PathBuf::new(),
            token_file: PathBuf::new(),
            nkey_file: PathBuf::new(),
            credentials_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            stream: "text-input".into(),
            subject: String::new(),
            consumer: "weir".into(),
            start: "first".into(),
            ack_wait_ms: 30_000,
            ack_pending_max: 1000,
            deliveries_max: 5,
            timeout_ms: 5000,
        }
    }
}

/// A subject of NATS that a stream of JetStream stores, as a sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSink {
    /// The servers, `nats://host:port` or `tls://host:port`, separated by commas; they are tried in this order.
    pub url: String,
    /// The user; empty: none.
    pub username: String,
    /// A file with the password of the user.
    pub password_file: PathBuf,
    /// A file with a token.
    pub token_file: PathBuf,
    /// A file with the seed of an nkey, `SU…`.
    pub nkey_file: PathBuf,
    /// A file with the credentials of a user (`.creds`).
    pub credentials_file: PathBuf,
    /// A file with root certificates (PEM); empty: those of Mozilla.
    pub ca_file: PathBuf,
    /// The subject; a stream must store it.
    pub subject: String,
    /// Timeout of a connection attempt or of the acknowledgement of a result, ms.
    pub timeout_ms: u64,
}

impl Default for NatsSink {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            username: String::new(),
            password_file: PathBuf::new(),
            token_file: PathBuf::new(),
            nkey_file: PathBuf::new(),
            credentials_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            subject: "sentiment-output".into(),
            timeout_ms: 5000,
        }
    }
}
