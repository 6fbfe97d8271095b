//! Topics of Kafka.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Topics of Kafka as a source: a consumer group with cooperative rebalances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSource {
    /// Bootstrap servers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topics.
    pub topics: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// Where a group without positions begins: `earliest` or `latest`.
    pub auto_offset_reset: String,
    /// A consumer that sends no heartbeat for this time loses its partitions, ms.
    pub session_timeout_ms: u32,
    /// Most records of one read.
    pub max_poll_records: u32,
    /// `at_least_once`: positions are committed after results are acknowledged. `transactional`: results and positions are committed in one
    /// transaction, in the order of the records; the sink, and the error destination if there is one, must be topics of the same cluster.
    pub guarantee: String,
    /// The id of the transactions; empty: made of the group, the adapter and the name of the host. Two processes must not have the same one.
    pub transactional_id: String,
    /// The user of SASL; empty: none.
    pub username: String,
    /// A file with the password of SASL.
    pub password_file: PathBuf,
    /// Timeout of the first request to the brokers, ms.
    pub timeout_ms: u64,
    /// Properties of librdkafka such as `security.protocol`, which override these keys and Weir's defaults.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaSource {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            topics: vec!["text-input".into()],
            group: "weir".into(),
            auto_offset_reset: "earliest".into(),
            session_timeout_ms: 30_000,
            max_poll_records: 500,
            guarantee: "at_least_once".into(),
            transactional_id: String::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            timeout_ms: 10_000,
            properties: BTreeMap::new(),
        }
    }
}

/// A topic of Kafka as a sink, with an idempotent producer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSink {
    /// Bootstrap servers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// The user of SASL; empty: none.
    pub username: String,
    /// A file with the password of SASL.
    pub password_file: PathBuf,
    /// Timeout of the acknowledgement of a result, ms; then the adapter connects anew.
    pub timeout_ms: u64,
    /// Properties of librdkafka, which override these keys and Weir's defaults.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaSink {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            topic: "sentiment-output".into(),
            username: String::new(),
            password_file: PathBuf::new(),
            timeout_ms: 30_000,
            properties: BTreeMap::new(),
        }
    }
}
