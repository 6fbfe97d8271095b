//! The command line of `weir stream nats`.

use std::path::PathBuf;

use clap::Args;
use weir_config::{Adapter, AdapterSink, AdapterSource, NatsSink, NatsSource, StdoutSink};

use super::common::{StreamCommon, milliseconds};
use crate::numbers::{seconds, whole};

/// `weir stream nats`.
#[derive(Debug, Args)]
pub(crate) struct StreamNats {
    /// Servers, `nats://host:port` or `tls://host:port`, separated by commas
    #[arg(long, value_name = "URL", default_value = "nats://127.0.0.1:4222")]
    url: String,
    /// User
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// File with the password of the user
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// File with a token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with the seed of an nkey, `SU…`
    #[arg(long, value_name = "FILE")]
    nkey_file: Option<PathBuf>,
    /// File with the credentials of a user (`.creds`)
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// File with root certificates (PEM) [default: those of Mozilla]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Stream to read
    #[arg(long, value_name = "STREAM", default_value = "text-input")]
    stream: String,
    /// Subject of the messages that are records [default: all of the stream]
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// Durable consumer; created if it is missing
    #[arg(long, value_name = "NAME", default_value = "weir")]
    consumer: String,
    /// Time after which the server delivers a message again that is neither acknowledged nor in progress, seconds; of a new consumer
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    ack_wait: f64,
    /// Deliveries of a message before it goes to the subject for errors without another attempt
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole::<1, u64>)]
    max_deliveries: u64,
    /// Subject for the results
    #[arg(long, value_name = "SUBJECT", default_value = "sentiment-output")]
    output_subject: String,
    /// Subject for records that have no result because of an error
    #[arg(long, value_name = "SUBJECT", default_value = "sentiment-errors")]
    errors_subject: String,
    /// Write results to the standard output instead of the subject
    #[arg(long)]
    stdout: bool,
    /// Timeout of a connection attempt or a request, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    timeout: f64,
    #[command(flatten)]
    pub(crate) common: StreamCommon,
}

impl StreamNats {
    /// The adapter that the flags describe.
    pub(super) fn adapter(&self) -> Adapter {
        let source = NatsSource {
            url: self.url.clone(),
            username: self.username.clone().unwrap_or_default(),
            password_file: self.password_file.clone().unwrap_or_default(),
            token_file: self.token_file.clone().unwrap_or_default(),
            nkey_file: self.nkey_file.clone().unwrap_or_default(),
            credentials_file: self.credentials_file.clone().unwrap_or_default(),
            ca_file: self.ca_file.clone().unwrap_or_default(),
            stream: self.stream.clone(),
            subject: self.subject.clone().unwrap_or_default(),
            consumer: self.consumer.clone(),
            ack_wait_ms: milliseconds(self.ack_wait),
            deliveries_max: self.max_deliveries,
            timeout_ms: milliseconds(self.timeout),
            ..NatsSource::default()
        };
        let sink = |subject: &str| {
            AdapterSink::Nats(NatsSink {
                url: source.url.clone(),
                username: source.username.clone(),
                password_file: source.password_file.clone(),
                token_file: source.token_file.clone(),
                nkey_file: source.nkey_file.clone(),
                credentials_file: source.credentials_file.clone(),
                ca_file: source.ca_file.clone(),
                subject: subject.to_owned(),
                timeout_ms: source.timeout_ms,
            })
        };
        let adapter = self.common.adapter("nats", "json");
        Adapter {
            sink: match self.stdout {
                true => AdapterSink::Stdout(StdoutSink::default()),
                false => sink(&self.output_subject),
            },
            errors: adapter.errors.clone().or_else(|| Some(sink(&self.errors_subject))),
            source: AdapterSource::Nats(source),
            ..adapter
        }
    }
}
