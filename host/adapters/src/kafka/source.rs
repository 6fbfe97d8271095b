//! A consumer group as a source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{CommitMode, Consumer as _};
use tokio::sync::{mpsc, oneshot};
use weir_config::KafkaSource as Config;
use weir_core::adapter::SourceRecord;

use super::assignment::{Assignment, TopicPartition};
use super::client::{Access, REPORTS_TIMEOUT, Reports, blocking, failure, reach};
use super::consumer::{
    Context, GroupConsumer, Poller, REFUSALS_OF_A_MEMBER_THAT_JOINS, REFUSED_COMMIT_TIMEOUT, commit_now, offset_list,
};
use super::sink::Transaction;
use crate::driver::{BoxFuture, Committer, DriverError, Read, Safe, Source};

/// The time between two reports of the lag, ms.
const STATISTICS_INTERVAL_MS: &str = "5000";
/// Fetched messages that librdkafka retains for a consumer, KiB.
const FETCHED_KIB_MAX: &str = "16384";
/// How long the coordinator waits for a member that joins, and a member for the response to that, ms. The thread of the consumer polls
/// far more often: only a revocation occupies it, for up to 40 s.
const POLL_INTERVAL_MS_MAX: u32 = 60_000;
/// How long a consumer may take to leave its group.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A consumer group as a source.
pub struct KafkaSource {
    reads: mpsc::Receiver<Result<Read, DriverError>>,
    assignment: Arc<Assignment>,
    lag: Arc<AtomicU64>,
    /// Records that exceeded the bound of the last read.
    rest: Vec<SourceRecord>,
}

/// Commits positions.
pub struct KafkaCommitter {
    /// Until the committer is dropped. The thread of the consumer releases it last, since that blocks.
    consumer: Option<Arc<GroupConsumer>>,
    assignment: Arc<Assignment>,
    transaction: Option<Transaction>,
    /// The bound of the last commit.
    timeout: Duration,
    /// Resolves when the consumer has left the group.
    left: Option<oneshot::Receiver<()>>,
}

/// Joins the group for an adapter. With a transaction, positions are committed in it.
///
/// # Errors
///
/// A property is refused, or no broker can be reached, or it refuses.
pub async fn open(
    name: &str,
    config: &Config,
    transaction: Option<Transaction>,
) -> Result<(KafkaSource, KafkaCommitter), DriverError> {
    // librdkafka refuses an interval that is shorter than the session.
    let session_timeout_ms = config.properties.get("session.timeout.ms").and_then(|value| value.parse().ok());
    let poll_interval_ms = session_timeout_ms.unwrap_or(config.session_timeout_ms).max(POLL_INTERVAL_MS_MAX);
    let mut native = Access::from(config).config(&[
        ("auto.offset.reset", config.auto_offset_reset.clone()),
        ("session.timeout.ms", config.session_timeout_ms.to_string()),
        ("max.poll.interval.ms", poll_interval_ms.to_string()),
        ("partition.assignment.strategy", "cooperative-sticky".to_owned()),
        ("isolation.level", "read_committed".to_owned()),
        ("statistics.interval.ms", STATISTICS_INTERVAL_MS.to_owned()),
        ("queued.max.messages.kbytes", FETCHED_KIB_MAX.to_owned()),
    ])?;
    native.set("group.id", &config.group).set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    let (assignment, lag) = (Arc::new(Assignment::default()), Arc::new(AtomicU64::new(u64::MAX)));
    let context = Context {
        assignment: assignment.clone(),
        reports: Reports::default(),
        name: name.to_owned(),
        lag: lag.clone(),
        has_commit_failed: AtomicBool::new(false),
        is_transactional: transaction.is_some(),
    };
    let (topics, timeout) = (config.topics.clone(), Duration::from_millis(config.timeout_ms));
    reach(&config.brokers, timeout).await?;
    let consumer = blocking(move || {
        let consumer = GroupConsumer::from_config_and_context(&native, context).map_err(|error| failure(&error))?;
        // Finds a wrong address or wrong credentials; a group would wait for them without end.
        if let Err(error) = consumer.fetch_metadata(topics.first().map(String::as_str), timeout) {
            // Reports that have arrived meanwhile; there are no messages yet.
            drop(consumer.poll(REPORTS_TIMEOUT));
            return Err(consumer.context().reports.failure(&error));
        }
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| failure(&error))?;
        Ok(Arc::new(consumer))
    });
    let consumer = consumer.await??;
    let (sender, reads) = mpsc::channel(1);
    let (leaving, left) = oneshot::channel();
    let poller = Poller {
        consumer: consumer.clone(),
        assignment: assignment.clone(),
        reads: sender,
        records_max: config.max_poll_records.max(1) as usize,
        runtime: tokio::runtime::Handle::current(),
    };
    let source = KafkaSource { reads, assignment: assignment.clone(), lag, rest: Vec::new() };
    let committer = KafkaCommitter { consumer: Some(consumer), assignment, transaction, timeout, left: Some(left) };
    // It ends when the committer is dropped.
    std::thread::Builder::new()
        .name("weir-kafka".to_owned())
        .spawn(move || {
            poller.run();
            drop(leaving);
        })
        .map_err(DriverError::transport)?;
    Ok((source, committer))
}

impl KafkaSource {
    async fn next(&mut self, max: usize) -> Result<Read, DriverError> {
        loop {
            let mut records = match std::mem::take(&mut self.rest) {
                rest if !rest.is_empty() => rest,
                _ => match self.reads.recv().await {
                    Some(Ok(Read::Records(records))) => records,
                    Some(read) => return read,
                    None => return Err(DriverError::transport("the consumer has ended")),
                },
            };
            // The next consumer of a partition has its records.
            let numbers = self.assignment.numbers();
            records.retain(|record| numbers.contains(&record.position.partition));
            if !records.is_empty() {
                self.rest = records.split_off(records.len().min(max));
                return Ok(Read::Records(records));
            }
        }
    }
}

impl Source for KafkaSource {
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>> {
        Box::pin(self.next(max))
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.lag.load(Ordering::Relaxed)).filter(|lag| *lag != u64::MAX)
    }
}

impl KafkaCommitter {
    fn consumer(&self) -> Result<&Arc<GroupConsumer>, DriverError> {
        self.consumer.as_ref().ok_or_else(|| DriverError::transport("the consumer has left its group"))
    }

    async fn commit_all(&mut self, safe: &Safe) -> Result<(), DriverError> {
        let advanced: Vec<(TopicPartition, i64)> = safe
            .commits
            .iter()
            .filter_map(|commit| {
                let position = i64::try_from(commit.offset).ok()?.checked_add(1)?;
                Some((self.assignment.advance(commit.partition, position)?, position))
            })
            .collect();
        let consumer = self.consumer()?;
        match &self.transaction {
            // Results of a revoked partition are in the open transaction, and its next consumer writes them again.
            Some(_) if self.assignment.has_lost_records() => {
                return Err(DriverError::transport("a partition was revoked within a transaction, which is aborted"));
            }
            // It has results past a position, which would be written again after a failure.
            Some(_) if !safe.is_exact => {}
            Some(transaction) => transaction.commit(consumer, &self.assignment.positions()).await?,
            None if advanced.is_empty() => {}
            None => {
                let list = offset_list(&advanced).map_err(|error| failure(&error))?;
                consumer.commit(&list, CommitMode::Async).map_err(|error| failure(&error))?;
            }
        }
        self.assignment.complete(safe.completed.iter().map(|position| position.partition));
        Ok(())
    }

    async fn finish_all(&mut self) -> Result<(), DriverError> {
        if self.transaction.is_none() {
            let (consumer, assignment) = (self.consumer()?.clone(), self.assignment.clone());
            let refused_timeout = REFUSED_COMMIT_TIMEOUT.min(self.timeout);
            // librdkafka would wait for minutes for brokers that are silent.
            let committed = blocking(move || {
                commit_now(&consumer, refused_timeout, REFUSALS_OF_A_MEMBER_THAT_JOINS, || assignment.positions())
            });
            let committed = tokio::time::timeout(self.timeout, committed).await.map_err(|_| {
                let timeout_ms = self.timeout.as_millis();
                DriverError::transport(format!(
                    "the last positions are not committed within {timeout_ms} ms: their records are read again"
                ))
            });
            committed??.map_err(|error| failure(&error))?;
        }
        self.close();
        if let Some(left) = self.left.take() {
            // A consumer that has not left in time is removed from the group after the session timeout.
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, left).await;
        }
        Ok(())
    }

    /// Ends the thread of the consumer, which leaves the group.
    fn close(&mut self) {
        self.consumer = None;
        self.assignment.close();
    }
}

impl Committer for KafkaCommitter {
    fn commit<'a>(&'a mut self, safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(self.commit_all(safe))
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.finish_all())
    }
}

impl Drop for KafkaCommitter {
    fn drop(&mut self) {
        self.close();
    }
}
