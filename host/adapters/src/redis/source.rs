//! A consumer group as a source.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamAutoClaimReply, StreamId, StreamReadReply};
use redis::{FromRedisValue, Value};
use weir_config::RedisSource as Config;
use weir_core::adapter::{Header, Position, SourceRecord};
use weir_core::wording::counted;

use super::{KEY_FIELD, connect, failure};
use crate::RECORD_ID_HEADER;
use crate::driver::{BoxFuture, Committer, DriverError, Read, Safe, Source};

/// The most entries of other consumers that are claimed at once.
const CLAIM_ENTRIES_MAX: usize = 64;
/// The longest time between claims of entries of other consumers.
const CLAIM_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// The entries that were read and are not acknowledged.
#[derive(Default)]
struct Unacknowledged {
    /// The ids of entries, by the offset of their record.
    ids: BTreeMap<u64, String>,
    open: BTreeSet<String>,
    offset_next: u64,
}

type Shared = Arc<Mutex<Unacknowledged>>;

fn lock(shared: &Shared) -> MutexGuard<'_, Unacknowledged> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream as a source.
pub struct RedisSource {
    config: Config,
    consumer: String,
    /// The connection of blocking reads.
    reading: MultiplexedConnection,
    /// The connection of all other commands.
    commands: MultiplexedConnection,
    /// The id after which pending entries of this consumer are read; `None` when all were read.
    history: Option<String>,
    /// The id at which the next claim of entries of other consumers begins.
    claim_from: String,
    claimed: Option<Instant>,
    ready: VecDeque<Read>,
    shared: Shared,
}

/// Acknowledges entries.
pub struct RedisCommitter {
    config: Config,
    commands: MultiplexedConnection,
    shared: Shared,
}

/// Connects, and creates the group if it is missing.
///
/// # Errors
///
/// The server cannot be reached, or refuses a command.
pub async fn open(config: &Config) -> Result<(RedisSource, RedisCommitter), DriverError> {
    let timeout = Duration::from_millis(config.timeout_ms);
    let block = Duration::from_millis(config.block_ms);
    let reading = connect(&config.url, &config.password_file, timeout, timeout + block).await?;
    let mut commands = connect(&config.url, &config.password_file, timeout, timeout).await?;
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg(&config.stream).arg(&config.group).arg(&config.start).arg("MKSTREAM");
    match create.query_async::<Value>(&mut commands).await {
        Err(error) if error.code() == Some("BUSYGROUP") => {}
        result => drop(result.map_err(|error| failure(&error))?),
    }
    let shared = Shared::default();
    let consumer = match config.consumer.is_empty() {
        true => host_name(),
        false => config.consumer.clone(),
    };
    let source = RedisSource {
        config: config.clone(),
        consumer,
        reading,
        commands: commands.clone(),
        history: Some("0".to_owned()),
        claim_from: "0-0".to_owned(),
        claimed: None,
        ready: VecDeque::new(),
        shared: shared.clone(),
    };
    Ok((source, RedisCommitter { config: config.clone(), commands, shared }))
}

pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "weir".to_owned(),
        name => name.to_owned(),
    }
}

impl RedisSource {
    async fn next(&mut self, max: usize) -> Result<Read, DriverError> {
        loop {
            if let Some(read) = self.ready.pop_front() {
                return Ok(read);
            }
            if let Some(after) = self.history.take() {
                let entries = self.read_group(&after, max, false).await?;
                self.history = entries.last().map(|entry| entry.id.clone());
                self.redeliver(entries).await?;
                continue;
            }
            if self.is_claim_due() {
                self.claim(max).await?;
                continue;
            }
            let entries = self.read_group(">", max, true).await?;
            let records = self.records(entries);
            if !records.is_empty() {
                return Ok(Read::Records(records));
            }
        }
    }

    fn is_claim_due(&self) -> bool {
        let interval = Duration::from_millis(self.config.claim_idle_ms / 2).min(CLAIM_INTERVAL_MAX);
        self.claimed.is_none_or(|claimed| claimed.elapsed() >= interval)
    }

    /// Reads entries of this consumer after an id, or new ones.
    async fn read_group(&mut self, after: &str, max: usize, blocks: bool) -> Result<Vec<StreamId>, DriverError> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.config.group).arg(&self.consumer).arg("COUNT").arg(max);
        if blocks {
            read.arg("BLOCK").arg(self.config.block_ms.max(1));
        }
        read.arg("STREAMS").arg(&self.config.stream).arg(after);
        let reply: Option<StreamReadReply> =
            read.query_async(&mut self.reading).await.map_err(|error| failure(&error))?;
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|stream| stream.ids).collect())
    }

    /// Claims entries that are idle in other consumers.
    async fn claim(&mut self, max: usize) -> Result<(), DriverError> {
        let mut claim = redis::cmd("XAUTOCLAIM");
        claim.arg(&self.config.stream).arg(&self.config.group).arg(&self.consumer).arg(self.config.claim_idle_ms);
        claim.arg(&self.claim_from).arg("COUNT").arg(max.min(CLAIM_ENTRIES_MAX));
        let reply: StreamAutoClaimReply =
            claim.query_async(&mut self.commands).await.map_err(|error| failure(&error))?;
        self.claim_from = reply.next_stream_id;
        if self.claim_from == "0-0" {
            self.claimed = Some(Instant::now());
        }
        self.redeliver(reply.claimed).await
    }

    /// Queues entries that were delivered before; those that were delivered too often go to the error destination.
    async fn redeliver(&mut self, entries: Vec<StreamId>) -> Result<(), DriverError> {
        let entries: Vec<StreamId> = {
            let shared = lock(&self.shared);
            entries.into_iter().filter(|entry| !shared.open.contains(&entry.id)).collect()
        };
        if entries.is_empty() {
            return Ok(());
        }
        // One command for each entry: a range may have any number of other entries between these, so its answer could
        // omit some of these, which would be taken for acknowledged.
        let mut pending = redis::pipe();
        for entry in &entries {
            pending.cmd("XPENDING").arg(&self.config.stream).arg(&self.config.group);
            pending.arg(&entry.id).arg(&entry.id).arg(1).arg(&self.consumer);
        }
        let pending: Vec<Vec<(String, String, u64, u64)>> =
            pending.query_async(&mut self.commands).await.map_err(|error| failure(&error))?;
        let deliveries: BTreeMap<String, u64> =
            pending.into_iter().flatten().map(|(id, _, _, count)| (id, count)).collect();
        // An entry that is not pending any more was acknowledged meanwhile.
        let entries: Vec<StreamId> = entries.into_iter().filter(|entry| deliveries.contains_key(&entry.id)).collect();
        // An entry that was removed from the stream has no fields and cannot be processed.
        let (removed, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.map.is_empty());
        if !removed.is_empty() {
            let mut acknowledge = redis::cmd("XACK");
            acknowledge.arg(&self.config.stream).arg(&self.config.group);
            removed.iter().for_each(|entry| {
                acknowledge.arg(&entry.id);
            });
            acknowledge.query_async::<Value>(&mut self.commands).await.map_err(|error| failure(&error))?;
        }
        let (dead, entries): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|entry| deliveries.get(&entry.id).is_some_and(|count| *count > self.config.deliveries_max));
        if !dead.is_empty() {
            let deliveries = counted(self.config.deliveries_max, "time");
            let reason = format!("it was delivered more than {deliveries} without an acknowledgement");
            let records = self.records(dead);
            self.ready.push_back(Read::Dead(records, reason));
        }
        let records = self.records(entries);
        if !records.is_empty() {
            self.ready.push_back(Read::Records(records));
        }
        Ok(())
    }

    fn records(&self, entries: Vec<StreamId>) -> Vec<SourceRecord> {
        let mut shared = lock(&self.shared);
        entries.into_iter().map(|entry| shared.record(entry, &self.config)).collect()
    }
}

impl Unacknowledged {
    fn record(&mut self, entry: StreamId, config: &Config) -> SourceRecord {
        let StreamId { id, mut map, .. } = entry;
        let mut take = |name: &str| map.remove(name).map(bytes);
        let (payload, key) = (take(&config.field), take(KEY_FIELD));
        let mut headers: Vec<Header> =
            map.into_iter().map(|(name, value)| Header { name, value: bytes(value) }).collect();
        headers.sort_by(|one, other| one.name.cmp(&other.name));
        headers.push(Header::new(RECORD_ID_HEADER, id.as_str()));
        let offset = self.offset_next;
        self.offset_next += 1;
        self.open.insert(id.clone());
        self.ids.insert(offset, id);
        SourceRecord {
            // An entry without the field has an empty payload, which the component refuses.
            payload: payload.unwrap_or_default(),
            key,
            headers,
            origin: config.stream.clone(),
            position: Position { partition: 0, offset },
        }
    }
}

fn bytes(value: Value) -> Vec<u8> {
    Vec::<u8>::from_redis_value(value).unwrap_or_default()
}

impl Source for RedisSource {
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>> {
        Box::pin(self.next(max))
    }
}

impl Committer for RedisCommitter {
    fn commit<'a>(&'a mut self, safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let ids: Vec<String> = {
                let shared = lock(&self.shared);
                safe.completed.iter().filter_map(|position| shared.ids.get(&position.offset).cloned()).collect()
            };
            if ids.is_empty() {
                return Ok(());
            }
            let mut acknowledge = redis::cmd("XACK");
            acknowledge.arg(&self.config.stream).arg(&self.config.group).arg(&ids);
            acknowledge.query_async::<Value>(&mut self.commands).await.map_err(|error| failure(&error))?;
            let mut shared = lock(&self.shared);
            for position in &safe.completed {
                if let Some(id) = shared.ids.remove(&position.offset) {
                    shared.open.remove(&id);
                }
            }
            Ok(())
        })
    }
}
