//! Kafka: consumer groups as sources, topics as sinks, by librdkafka.
//!
//! - `client`: properties, reports and failures of every client.
//! - `consumer`: a thread that polls the group, so that a slow model pauses partitions and the consumer stays in the group.
//! - `assignment`: the partitions of this consumer, their numbers, and their records in flight.
//! - `source`: records and commits.
//! - `sink`: an idempotent producer, or a transaction of results and positions.
//! - `probe`: requests of connection checks.

mod assignment;
mod client;
mod consumer;
mod probe;
mod sink;
mod source;

pub(crate) use client::{HAS_TLS, broker_address, check_properties, is_tls_failure};
pub(crate) use probe::{check_read, topics};
pub use sink::{KafkaSink, Transaction};
pub use source::{KafkaCommitter, KafkaSource, open};
