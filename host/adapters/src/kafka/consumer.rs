//! The consumer: a thread that polls the group, whether or not the adapter takes records.
//!
//! librdkafka calls back in `poll`: a consumer that does not poll learns of no rebalance, and leaves its group after
//! `max.poll.interval.ms`. So while the adapter takes no records, the thread pauses the partitions and polls on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use weir_core::adapter::{Header, Position, SourceRecord};

use super::assignment::{Assignment, TopicPartition};
use super::client::{Reports, failure};
use crate::RECORD_ID_HEADER;
use crate::driver::{DriverError, Read};

/// How long one poll waits for a message.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// How long the adapter may take no records before partitions are paused: a pause discards what librdkafka has fetched.
const PAUSE_AFTER: Duration = Duration::from_millis(500);
/// How long the revocation of a partition waits for its records in flight.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(20);
/// The time between attempts to commit after a failure.
const COMMIT_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The most partitions that a line of the log names.
const NAMES_MAX: usize = 32;
/// The time between attempts to commit while the group rebalances, and for how long they are made.
const REFUSED_COMMIT_INTERVAL: Duration = Duration::from_millis(100);
pub(super) const REFUSED_COMMIT_TIMEOUT: Duration = Duration::from_secs(20);

/// What librdkafka reports to.
pub(super) struct Context {
    pub(super) assignment: Arc<Assignment>,
    pub(super) reports: Reports,
    /// The name of the adapter.
    pub(super) name: String,
    /// The records of all partitions that are not consumed; `u64::MAX`: not known yet.
    pub(super) lag: Arc<AtomicU64>,
    /// A commit has failed and is repeated.
    pub(super) has_commit_failed: AtomicBool,
    /// Positions are committed only in transactions.
    pub(super) is_transactional: bool,
}

/// A consumer of a group.
pub(super) type GroupConsumer = BaseConsumer<Context>;

impl Context {
    fn set_lag(&self, topic: &str, partition: i32, lag: u64) {
        let labels =
            [("adapter", self.name.clone()), ("topic", topic.to_owned()), ("partition", partition.to_string())];
        metrics::gauge!("weir_adapter_lag_records", &labels).set(lag as f64);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, _facility: &str, message: &str) {
        self.reports.handle_log(level, message);
    }

    fn stats(&self, statistics: Statistics) {
        let mut total = None;
        for topic in statistics.topics.values() {
            // Partitions of other consumers, and the internal one of number -1, have a lag of -1.
            for (number, partition) in &topic.partitions {
                let Ok(lag) = u64::try_from(partition.consumer_lag) else { continue };
                total = Some(total.unwrap_or(0) + lag);
                self.set_lag(&topic.topic, *number, lag);
            }
        }
        // Without a partition, the lag is not known.
        self.lag.store(total.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reports.handle_error(&error, reason);
    }
}

fn partitions(list: &TopicPartitionList) -> BTreeSet<TopicPartition> {
    list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect()
}

/// The partitions as a text: `topic-0, topic-1`.
fn names(partitions: &BTreeSet<TopicPartition>) -> String {
    let first = partitions.iter().take(NAMES_MAX).map(|(topic, partition)| format!("{topic}-{partition}"));
    let names = first.collect::<Vec<_>>().join(", ");
    match partitions.len().saturating_sub(NAMES_MAX) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// A list of positions for a commit.
pub(super) fn offset_list(positions: &[(TopicPartition, i64)]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for ((topic, partition), position) in positions {
        list.add_partition_offset(topic, *partition, Offset::Offset(*position))?;
    }
    Ok(list)
}

/// What the coordinator responds to a commit while members join the group.
const REFUSALS: &[RDKafkaErrorCode] = &[RDKafkaErrorCode::RebalanceInProgress];
/// Those of a member that may join meanwhile: a commit that waited behind its request to join has the generation before.
pub(super) const REFUSALS_OF_A_MEMBER_THAT_JOINS: &[RDKafkaErrorCode] =
    &[RDKafkaErrorCode::RebalanceInProgress, RDKafkaErrorCode::IllegalGeneration];

/// Commits positions and waits for that. A refused commit is repeated, as long as the partitions are this consumer's.
pub(super) fn commit_now(
    consumer: &GroupConsumer,
    refused_timeout: Duration,
    refusals: &[RDKafkaErrorCode],
    positions: impl Fn() -> Vec<(TopicPartition, i64)>,
) -> KafkaResult<()> {
    let deadline = Instant::now() + refused_timeout;
    let is_refused = |error: &KafkaError| error.rdkafka_error_code().is_some_and(|code| refusals.contains(&code));
    loop {
        // Read each time: those of partitions that were revoked meanwhile are not committed.
        let list = offset_list(&positions())?;
        if list.count() == 0 {
            return Ok(());
        }
        match consumer.commit(&list, CommitMode::Sync) {
            Err(error) if is_refused(&error) && !consumer.assignment_lost() && Instant::now() < deadline => {
                std::thread::sleep(REFUSED_COMMIT_INTERVAL);
            }
            committed => return committed,
        }
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(list) = rebalance else { return };
        let revoked = partitions(list);
        // Records in flight are written and committed first, so that the next consumer does not repeat them. Partitions that are
        // lost have another consumer already.
        let timeout = if consumer.assignment_lost() { Duration::ZERO } else { REVOKE_TIMEOUT };
        let positions = self.assignment.wait_complete(&revoked, timeout);
        // An adapter that has ended has committed them, unless it has failed.
        let is_closed = self.assignment.is_closed();
        let refused_timeout = if is_closed { Duration::ZERO } else { REFUSED_COMMIT_TIMEOUT };
        if !timeout.is_zero()
            && !self.is_transactional
            && let Err(error) = commit_now(consumer, refused_timeout, REFUSALS, || positions.clone())
        {
            match is_closed {
                true => tracing::debug!(adapter = self.name, %error, "positions are not committed again at the end"),
                false => {
                    tracing::warn!(adapter = self.name, %error, "positions of revoked partitions are not committed: their records are read again");
                }
            }
        }
        tracing::info!(adapter = self.name, partitions = names(&revoked), "partitions are revoked");
        self.assignment.revoke(&revoked);
        // Their lag is that of their next consumers.
        for (topic, partition) in &revoked {
            self.set_lag(topic, *partition, 0);
        }
    }

    fn post_rebalance(&self, _consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance {
            tracing::info!(adapter = self.name, partitions = names(&partitions(list)), "partitions are assigned");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result
            && error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset)
        {
            // There may be hundreds while members join the group, which one attempt repeats.
            if !self.has_commit_failed.swap(true, Ordering::Relaxed) {
                tracing::info!(adapter = self.name, %error, "a commit has failed and is repeated");
            }
        }
    }
}

/// The thread of a consumer.
pub(super) struct Poller {
    pub(super) consumer: Arc<GroupConsumer>,
    pub(super) assignment: Arc<Assignment>,
    pub(super) reads: mpsc::Sender<Result<Read, DriverError>>,
    /// The most records of one read.
    pub(super) records_max: usize,
    /// The runtime of the adapter.
    pub(super) runtime: tokio::runtime::Handle,
}

/// The reads that the adapter has not taken.
#[derive(Default)]
struct PendingReads {
    revoked: Vec<u32>,
    records: Vec<SourceRecord>,
    offsets: LastOffsets,
    is_paused: bool,
    /// The adapter takes no more records, and writes those in flight.
    is_ending: bool,
}

/// The offset of the last record of each partition, by its number.
#[derive(Default)]
struct LastOffsets(HashMap<u32, u64>);

impl LastOffsets {
    /// Records an offset.
    ///
    /// # Errors
    ///
    /// It does not ascend. The next connection has other numbers of partitions.
    fn advance(&mut self, record: &SourceRecord) -> Result<(), DriverError> {
        let Position { partition, offset } = record.position;
        match self.0.insert(partition, offset) {
            Some(last) if offset <= last => Err(DriverError::transport(format!(
                "the offsets of a partition of `{}` have gone back from {last} to {offset}, as those of a topic that was deleted and created",
                record.origin
            ))),
            _ => Ok(()),
        }
    }
}

impl Poller {
    /// Polls until the adapter has ended, then leaves the group.
    pub(super) fn run(self) {
        if let Err(failure) = self.poll_until_closed() {
            // The adapter may have ended.
            let _ = self.runtime.block_on(self.reads.send(Err(failure)));
            // So that this thread is the last to release the consumer.
            self.assignment.wait_closed();
        }
    }

    fn poll_until_closed(&self) -> Result<(), DriverError> {
        let mut pending = PendingReads::default();
        let mut committed = Instant::now();
        while !self.assignment.is_closed() {
            self.send(&mut pending)?;
            self.poll(&mut pending)?;
            if committed.elapsed() >= COMMIT_RETRY_INTERVAL
                && self.consumer.context().has_commit_failed.swap(false, Ordering::Relaxed)
            {
                committed = Instant::now();
                let positions = self.assignment.positions();
                let list = offset_list(&positions).map_err(|error| failure(&error))?;
                if list.count() > 0
                    && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
                {
                    tracing::debug!(%error, "positions are not committed");
                }
            }
        }
        Ok(())
    }

    /// Sends the waiting reads, if the adapter takes them; otherwise pauses the partitions.
    fn send(&self, pending: &mut PendingReads) -> Result<(), DriverError> {
        pending.revoked.extend(self.assignment.take_revoked());
        pending.records.retain(|record| !pending.revoked.contains(&record.position.partition));
        pending.offsets.0.retain(|number, _| !pending.revoked.contains(number));
        let has_reads = !pending.revoked.is_empty() || !pending.records.is_empty();
        if pending.is_ending || !(has_reads || pending.is_paused) {
            return Ok(());
        }
        let timeout = if pending.is_paused { POLL_TIMEOUT } else { PAUSE_AFTER };
        let reserved = self.runtime.block_on(async { tokio::time::timeout(timeout, self.reads.reserve()).await });
        match reserved {
            Ok(Ok(permit)) => {
                // A revocation precedes the records that were polled after it.
                if !pending.revoked.is_empty() {
                    permit.send(Ok(Read::Revoked(std::mem::take(&mut pending.revoked))));
                } else if !pending.records.is_empty() {
                    let records = std::mem::take(&mut pending.records);
                    self.assignment.add(records.iter().map(|record| record.position.partition));
                    permit.send(Ok(Read::Records(records)));
                }
                if pending.is_paused {
                    let assigned = self.consumer.assignment().map_err(|error| failure(&error))?;
                    self.consumer.resume(&assigned).map_err(|error| failure(&error))?;
                    pending.is_paused = false;
                }
            }
            Ok(Err(_)) => {
                pending.is_ending = true;
                pending.records.clear();
                self.pause(pending);
            }
            Err(_) => self.pause(pending),
        }
        Ok(())
    }

    fn pause(&self, pending: &mut PendingReads) {
        pending.is_paused = true;
        if let Err(error) = self.consumer.assignment().and_then(|assigned| self.consumer.pause(&assigned)) {
            tracing::debug!(%error, "partitions are not paused");
        }
    }

    /// Polls once, then takes the messages that are available without waiting.
    fn poll(&self, pending: &mut PendingReads) -> Result<(), DriverError> {
        let mut timeout = match pending.is_paused && !pending.is_ending || !pending.records.is_empty() {
            true => Duration::ZERO,
            false => POLL_TIMEOUT,
        };
        let mut polled = 0;
        while let Some(message) = self.consumer.poll(timeout) {
            match message {
                Ok(_) if pending.is_ending => self.pause(pending),
                Ok(message) => {
                    let record = record(&message, &self.assignment);
                    pending.offsets.advance(&record)?;
                    pending.records.push(record);
                    if pending.is_paused {
                        // Of a partition that was assigned after the pause.
                        self.pause(pending);
                    }
                }
                Err(error) => self.handle_error(&error)?,
            }
            polled += 1;
            if polled >= self.records_max || pending.records.len() >= self.records_max {
                break;
            }
            timeout = Duration::ZERO;
        }
        Ok(())
    }

    /// A failure that ends the connection; librdkafka recovers from the others by itself.
    fn handle_error(&self, error: &KafkaError) -> Result<(), DriverError> {
        use RDKafkaErrorCode as Code;
        let context = self.consumer.context();
        match error.rdkafka_error_code() {
            Some(
                Code::PartitionEOF
                | Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::Resolve,
            ) => Ok(()),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                tracing::warn!(adapter = context.name, %error, "a topic does not exist yet");
                Ok(())
            }
            _ => Err(context.reports.failure(error)),
        }
    }
}

fn record(message: &BorrowedMessage<'_>, assignment: &Assignment) -> SourceRecord {
    let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
    let mut headers: Vec<Header> = message
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter())
        // That of an earlier adapter: the id is of this topic.
        .filter(|header| header.key != RECORD_ID_HEADER)
        .map(|header| Header { name: header.key.to_owned(), value: header.value.unwrap_or_default().to_vec() })
        .collect();
    headers.push(Header::new(RECORD_ID_HEADER, format!("{topic}-{partition}-{offset}")));
    SourceRecord {
        // A tombstone has an empty payload, which the component refuses.
        payload: message.payload().unwrap_or_default().to_vec(),
        key: message.key().map(<[u8]>::to_vec),
        headers,
        origin: topic.to_owned(),
        position: Position {
            partition: assignment.number(topic, partition),
            // Offsets of Kafka are not negative.
            offset: u64::try_from(offset).unwrap_or(0),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Mutex;

    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
    use rdkafka::config::ClientConfig;
    use rdkafka::statistics::{Partition, Topic};

    use super::*;

    /// The gauges of the lag, by their partitions.
    #[derive(Default)]
    struct Gauges(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

    impl Gauges {
        fn values(&self) -> Vec<(String, f64)> {
            let gauges = self.0.lock().unwrap();
            gauges
                .iter()
                .map(|(partition, bits)| (partition.clone(), f64::from_bits(bits.load(Ordering::Relaxed))))
                .collect()
        }
    }

    impl Recorder for Gauges {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            assert_eq!(key.name(), "weir_adapter_lag_records");
            let partition = key.labels().find(|label| label.key() == "partition").expect("a label").value();
            Gauge::from_arc(self.0.lock().unwrap().entry(partition.to_owned()).or_default().clone())
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    fn statistics(lags: &[i64]) -> Statistics {
        let partition = |lag: &i64| Partition { consumer_lag: *lag, ..Partition::default() };
        let topic = Topic { partitions: (0..).zip(lags.iter().map(partition)).collect(), ..Topic::default() };
        let topic = Topic { topic: "t".to_owned(), ..topic };
        Statistics { topics: HashMap::from([("t".to_owned(), topic)]), ..Statistics::default() }
    }

    #[test]
    fn offsets_that_go_back_end_the_connection() {
        let record = |partition: u32, offset: u64| SourceRecord {
            payload: Vec::new(),
            key: None,
            headers: Vec::new(),
            origin: "t".to_owned(),
            position: Position { partition, offset },
        };
        let mut offsets = LastOffsets::default();
        for (partition, offset) in [(0, 0), (1, 7), (0, 1), (0, 5), (2, 0)] {
            assert_eq!(offsets.advance(&record(partition, offset)), Ok(()));
        }
        for (offset, last) in [(5, 5), (0, 5)] {
            let failure = offsets.advance(&record(0, offset)).unwrap_err();
            assert!(failure.is_retryable(), "{failure:?}");
            let text = format!("the offsets of a partition of `t` have gone back from {last} to {offset}");
            assert!(failure.to_string().starts_with(&text), "{failure}");
        }
    }

    #[test]
    fn many_partitions_are_counted_in_a_line_of_the_log() {
        let partitions = |count| (0..count).map(|partition| ("t".to_owned(), partition)).collect();
        assert_eq!(names(&partitions(2)), "t-0, t-1");
        let text = names(&partitions(100_000));
        assert!(text.starts_with("t-0, t-1, ") && text.ends_with("t-31 and 99968 more"), "{text}");
    }

    #[test]
    fn lag_of_a_revoked_partition_is_that_of_its_next_consumer() {
        let lag = Arc::new(AtomicU64::new(u64::MAX));
        let context = Context {
            assignment: Arc::default(),
            reports: Reports::default(),
            name: "a".to_owned(),
            lag: lag.clone(),
            has_commit_failed: AtomicBool::new(false),
            is_transactional: false,
        };
        // It connects to no broker.
        let consumer: GroupConsumer =
            ClientConfig::new().set("group.id", "g").create_with_context(context).expect("a consumer");
        let (context, gauges) = (consumer.context(), Gauges::default());
        let gauge = |partition: u32, lag| (partition.to_string(), lag);
        metrics::with_local_recorder(&gauges, || {
            context.stats(statistics(&[7, 5]));
            assert_eq!(gauges.values(), [gauge(0, 7.0), gauge(1, 5.0)]);
            assert_eq!(lag.load(Ordering::Relaxed), 12);
            let mut revoked = TopicPartitionList::new();
            revoked.add_partition("t", 1);
            context.pre_rebalance(&consumer, &Rebalance::Revoke(&revoked));
            assert_eq!(gauges.values(), [gauge(0, 7.0), gauge(1, 0.0)]);
            // That of the partitions of other consumers is -1.
            context.stats(statistics(&[6, -1]));
            assert_eq!(gauges.values(), [gauge(0, 6.0), gauge(1, 0.0)]);
            assert_eq!(lag.load(Ordering::Relaxed), 6);
            context.stats(statistics(&[-1, -1]));
            assert_eq!(lag.load(Ordering::Relaxed), u64::MAX, "the lag of a consumer without partitions is not known");
        });
    }
}
