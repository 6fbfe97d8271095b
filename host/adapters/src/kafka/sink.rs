//! A topic as a sink.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::sync::Mutex;
use weir_config::KafkaSink as Config;
use weir_core::adapter::ResultRecord;

use super::assignment::TopicPartition;
use super::client::{Access, ReportContext, Reports, blocking, reach};
use super::consumer::{GroupConsumer, offset_list};
use crate::driver::{BoxFuture, DriverError, Rejected, Sink};

/// Results that are sent before the first is acknowledged.
const UNACKNOWLEDGED_MAX: usize = 1024;
/// The largest record that is sent; topics have bounds of their own.
const RECORD_BYTES_MAX: &str = "16777216";

/// A producer. It is dropped on a thread of its own, since that waits for messages that are not acknowledged.
struct Client {
    producer: Option<FutureProducer<ReportContext>>,
    reports: Arc<Reports>,
}

impl Client {
    async fn open(config: &Config, transactional_id: Option<&str>) -> Result<Self, DriverError> {
        let mut native = Access::from(config).config(&[
            ("enable.idempotence", "true".to_owned()),
            ("linger.ms", "5".to_owned()),
            ("compression.type", "lz4".to_owned()),
            // The same key is in the same partition as with the Java client.
            ("partitioner", "murmur2_random".to_owned()),
            ("message.max.bytes", RECORD_BYTES_MAX.to_owned()),
            ("message.timeout.ms", config.timeout_ms.max(1).to_string()),
            ("transaction.timeout.ms", config.timeout_ms.max(1000).to_string()),
        ])?;
        if let Some(id) = transactional_id {
            native.set("transactional.id", id);
        }
        reach(config.brokers.as_str(), Duration::from_millis(config.timeout_ms)).await?;
        let context = ReportContext::default();
        let reports = context.0.clone();
        let producer = blocking(move || FutureProducer::from_config_and_context(&native, context)).await?;
        let producer = producer.map_err(|error| reports.failure(&error))?;
        Ok(Self { producer: Some(producer), reports })
    }

    fn producer(&self) -> Result<&FutureProducer<ReportContext>, DriverError> {
        self.producer.as_ref().ok_or_else(|| DriverError::transport("the producer has ended"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let producer = self.producer.take();
        // Without a thread it is dropped here.
        let _ = std::thread::Builder::new().name("weir-kafka-end".to_owned()).spawn(move || drop(producer));
    }
}

/// A topic as a sink.
pub struct KafkaSink {
    topic: String,
    client: Arc<Client>,
    /// With a transaction, results are in it, and the committer ends it.
    transaction: Option<Transaction>,
}

/// The transactions of a producer: the sinks of an adapter write into one, and its committer commits it with the positions of the
/// source.
#[derive(Clone)]
pub struct Transaction {
    client: Arc<Client>,
    timeout: Duration,
    is_open: Arc<Mutex<bool>>,
}

impl Transaction {
    /// Creates a producer with a transactional id, which fences an earlier one with the same id and aborts its transaction.
    ///
    /// # Errors
    ///
    /// A property is refused, or no coordinator can be reached.
    pub async fn open(config: &Config, id: &str) -> Result<Self, DriverError> {
        let client = Client::open(config, Some(id)).await?;
        let timeout = Duration::from_millis(config.timeout_ms);
        let producer = client.producer()?.clone();
        let initialized = blocking(move || producer.init_transactions(timeout)).await?;
        initialized.map_err(|error| client.reports.failure(&error))?;
        Ok(Self { client: Arc::new(client), timeout, is_open: Arc::default() })
    }

    /// Begins a transaction, unless one is open.
    async fn begin(&self) -> Result<(), DriverError> {
        let mut is_open = self.is_open.lock().await;
        if !*is_open {
            self.client.producer()?.begin_transaction().map_err(|error| self.client.reports.failure(&error))?;
            *is_open = true;
        }
        Ok(())
    }

    /// Commits the results that were written, together with positions of the source.
    pub(super) async fn commit(
        &self,
        consumer: &Arc<GroupConsumer>,
        positions: &[(TopicPartition, i64)],
    ) -> Result<(), DriverError> {
        self.begin().await?;
        let mut is_open = self.is_open.lock().await;
        let list = offset_list(positions).map_err(|error| self.client.reports.failure(&error))?;
        let group = consumer
            .group_metadata()
            .ok_or_else(|| DriverError::transport("the consumer is not a member of its group"))?;
        let (producer, timeout) = (self.client.producer()?.clone(), self.timeout);
        let committed = blocking(move || {
            if list.count() > 0 {
                // The metadata of the group fence a consumer whose partitions were assigned to another.
                producer.send_offsets_to_transaction(&list, &group, timeout)?;
            }
            producer.commit_transaction(timeout)
        });
        let committed = committed.await?;
        *is_open = false;
        // The next connection has a new producer with the same id, which aborts this transaction.
        committed.map_err(|error| self.client.reports.failure(&error))
    }
}

impl KafkaSink {
    /// Creates a producer, or uses that of a transaction.
    ///
    /// # Errors
    ///
    /// A property is refused.
    pub async fn open(config: &Config, transaction: Option<Transaction>) -> Result<Self, DriverError> {
        let client = match &transaction {
            Some(transaction) => transaction.client.clone(),
            None => Arc::new(Client::open(config, None).await?),
        };
        Ok(Self { topic: config.topic.clone(), client, transaction })
    }

    fn record<'a>(&'a self, result: &'a ResultRecord) -> FutureRecord<'a, Vec<u8>, Vec<u8>> {
        let headers = result.headers.iter().fold(OwnedHeaders::new(), |headers, header| {
            headers.insert(Header { key: &header.name, value: Some(&header.value) })
        });
        let record = FutureRecord::to(&self.topic).payload(&result.payload).headers(headers);
        match &result.key {
            Some(key) => record.key(key),
            None => record,
        }
    }

    /// Sends results in their order, and waits until all are acknowledged.
    async fn write_all(&self, results: &[ResultRecord]) -> Result<Vec<Rejected>, DriverError> {
        if let Some(transaction) = &self.transaction {
            transaction.begin().await?;
        }
        let producer = self.client.producer()?;
        let (mut rejected, mut sent) = (Vec::new(), Vec::new());
        for (index, result) in results.iter().enumerate() {
            if sent.len() == UNACKNOWLEDGED_MAX {
                self.receive_acknowledgements(&mut sent, &mut rejected).await?;
            }
            let mut record = self.record(result);
            loop {
                match producer.send_result(record) {
                    Ok(delivery) => sent.push((index, delivery)),
                    Err((error, unsent)) => match error.rdkafka_error_code() {
                        // There is room once the sent results are acknowledged.
                        Some(RDKafkaErrorCode::QueueFull) if !sent.is_empty() => {
                            self.receive_acknowledgements(&mut sent, &mut rejected).await?;
                            record = unsent;
                            continue;
                        }
                        _ => self.reject(index, &error, &mut rejected)?,
                    },
                }
                break;
            }
        }
        self.receive_acknowledgements(&mut sent, &mut rejected).await?;
        rejected.sort_by_key(|rejected| rejected.index);
        Ok(rejected)
    }

    /// Waits until the sent results are acknowledged.
    async fn receive_acknowledgements(
        &self,
        sent: &mut Vec<(usize, DeliveryFuture)>,
        rejected: &mut Vec<Rejected>,
    ) -> Result<(), DriverError> {
        for (index, delivery) in sent.drain(..) {
            match delivery.await {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => self.reject(index, &error, rejected)?,
                Err(_) => return Err(DriverError::transport("the producer has ended")),
            }
        }
        Ok(())
    }

    /// Rejects a result that no attempt can deliver; another failure ends the connection.
    fn reject(&self, index: usize, error: &KafkaError, rejected: &mut Vec<Rejected>) -> Result<(), DriverError> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord) => {
                rejected.push(Rejected { index, reason: error.to_string() });
                Ok(())
            }
            _ => Err(self.client.reports.failure(error)),
        }
    }
}

impl Sink for KafkaSink {
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<Vec<Rejected>, DriverError>> {
        Box::pin(self.write_all(results))
    }
}
