//! The command line of `weir stream kafka`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use weir_config::{Adapter, AdapterSink, AdapterSource, KafkaSink, KafkaSource, StdoutSink};

use super::common::{StreamCommon, milliseconds};
use crate::numbers::{seconds, whole};

/// `weir stream kafka`.
#[derive(Debug, Args)]
pub(crate) struct StreamKafka {
    /// Bootstrap servers, separated by commas
    #[arg(long, visible_alias = "url", value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    brokers: String,
    /// Topic to read; can be repeated
    #[arg(long, value_name = "TOPIC", default_value = "text-input")]
    topic: Vec<String>,
    /// Topic for the results
    #[arg(long, value_name = "TOPIC", default_value = "sentiment-output")]
    output_topic: String,
    /// Topic for records that have no result because of an error
    #[arg(long, value_name = "TOPIC", default_value = "sentiment-errors")]
    errors_topic: String,
    /// Consumer group
    #[arg(long, value_name = "NAME", default_value = "weir")]
    group: String,
    /// Where a group without positions begins
    #[arg(long, value_name = "POSITION", default_value = "earliest", value_parser = ["earliest", "latest"])]
    auto_offset_reset: String,
    /// A consumer that sends no heartbeat for this time loses its partitions, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    session_timeout: f64,
    /// Most records of one read
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = whole::<1, u32>)]
    max_poll_records: u32,
    /// Commit results and positions in transactions; results are then in the order of the records
    #[arg(long, conflicts_with_all = ["stdout", "errors_file"])]
    transactional: bool,
    /// User of SASL
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// File with the password of SASL
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Property of librdkafka, as in `--property security.protocol=sasl_ssl`; can be repeated
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
    /// Write results to the standard output instead of the topic
    #[arg(long)]
    stdout: bool,
    #[command(flatten)]
    pub(crate) common: StreamCommon,
}

/// A property and its value.
pub(crate) fn property(pair: &str) -> Result<(String, String), String> {
    match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a property is KEY=VALUE".to_owned()),
    }
}

impl StreamKafka {
    /// The adapter that the flags describe.
    pub(super) fn adapter(&self) -> Adapter {
        let properties: BTreeMap<String, String> = self.properties.iter().cloned().collect();
        let (username, password_file) =
            (self.username.clone().unwrap_or_default(), self.password_file.clone().unwrap_or_default());
        let sink = |topic: &str| {
            AdapterSink::Kafka(KafkaSink {
                brokers: self.brokers.clone(),
                topic: topic.to_owned(),
                username: username.clone(),
                password_file: password_file.clone(),
                properties: properties.clone(),
                ..KafkaSink::default()
            })
        };
        let adapter = self.common.adapter("kafka", "json");
        Adapter {
            source: AdapterSource::Kafka(KafkaSource {
                brokers: self.brokers.clone(),
                topics: self.topic.clone(),
                group: self.group.clone(),
                auto_offset_reset: self.auto_offset_reset.clone(),
                session_timeout_ms: u32::try_from(milliseconds(self.session_timeout)).unwrap_or(u32::MAX),
                max_poll_records: self.max_poll_records,
                guarantee: if self.transactional { "transactional" } else { "at_least_once" }.to_owned(),
                username: username.clone(),
                password_file: password_file.clone(),
                properties: properties.clone(),
                ..KafkaSource::default()
            }),
            sink: match self.stdout {
                true => AdapterSink::Stdout(StdoutSink::default()),
                false => sink(&self.output_topic),
            },
            errors: adapter.errors.clone().or_else(|| Some(sink(&self.errors_topic))),
            ..adapter
        }
    }
}
