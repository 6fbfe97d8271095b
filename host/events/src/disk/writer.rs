//! The writer thread: jobs that wait during a commit share the next one.
//!
//! After a failed commit the file is recovered ([`super::recovery`]) before anything else is written. Until then every
//! job is rejected, and the store reports that it is unhealthy.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};
use weir_core::channels::{ChannelName, Cursor, Entry};

use crate::claims::{ClaimEnd, Claims};
use crate::clock::Clock;
use crate::config::EventsConfig;
use crate::disk::database::{Database, RETRY_AFTER_MS};
use crate::disk::recovery::Recovery;
use crate::disk::tables::{Append, Change, Put};
use crate::disk::values::{StoredValues, Undo};
use crate::error::{Error, lock};
use crate::hub::{Channel, Hub};

/// The most jobs in one commit.
const GROUP_JOBS_MAX: usize = 4_096;
/// The most channels that one sweep deletes.
const SWEEP_CHANNELS_MAX: usize = 256;

pub(crate) type Completion<T> = oneshot::Sender<Result<T, Error>>;

#[derive(Debug)]
pub(crate) enum Job {
    /// Events whose cursors are assigned.
    Append {
        channel: Arc<Channel>,
        entries: Vec<Arc<Entry>>,
        completion: Completion<Vec<Cursor>>,
    },
    Claim {
        key: Arc<str>,
        end: ClaimEnd,
        completion: Completion<()>,
    },
    /// A value, already encoded.
    Put {
        key: ChannelName,
        put: Put,
        completion: Completion<()>,
    },
    Delete {
        key: ChannelName,
        completion: Completion<()>,
    },
    /// Completes when all jobs before it are written.
    Barrier {
        completion: Completion<()>,
    },
    /// Deletes expired data, flushes, and recovers the file.
    Sweep {
        now_ms: u64,
        claims: Vec<Arc<str>>,
    },
    Close {
        completion: Completion<()>,
    },
}

/// The reason why the file cannot be written, if it cannot.
#[derive(Debug, Default)]
pub(crate) struct Status {
    failure: Mutex<Option<String>>,
}

impl Status {
    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    fn set(&self, failure: Option<String>) {
        *lock(&self.failure) = failure;
    }
}

/// The state that the writer shares with the store.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) config: Arc<EventsConfig>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) database: Arc<Database>,
    pub(crate) values: Arc<StoredValues>,
    pub(crate) claims: Arc<Mutex<Claims>>,
    pub(crate) status: Arc<Status>,
}

pub(crate) struct Writer {
    shared: Shared,
    recovery: Recovery,
    /// When the file was last flushed, by the store clock.
    flushed_ms: u64,
    /// Claims to remove from the file with the next commit.
    ended_claims: Vec<Arc<str>>,
}

/// Events whose cursors are assigned, and the publisher that waits for them to be written.
type PendingAppend = (Arc<Channel>, Vec<Arc<Entry>>, Completion<Vec<Cursor>>);

/// The jobs of one commit.
#[derive(Default)]
struct Group {
    change: Change,
    appends: Vec<PendingAppend>,
    claims: Vec<(Arc<str>, Completion<()>)>,
    values: Vec<Completion<()>>,
    undo: Undo,
    close: Option<Completion<()>>,
}

impl Writer {
    /// A writer for a file; `commit` is the number of its newest commit.
    pub(crate) fn new(shared: Shared, commit: u64) -> Self {
        let recovery = Recovery::new(commit, Arc::clone(&shared.clock));
        Self { shared, recovery, flushed_ms: 0, ended_claims: Vec::new() }
    }

    pub(crate) fn start(mut self, mut queue: mpsc::Receiver<Job>) -> std::io::Result<()> {
        let run = move || {
            while let Some(first) = queue.blocking_recv() {
                let jobs = gather(first, &mut queue, self.shared.config.group_bytes_max);
                if self.write_group(jobs) {
                    queue.close();
                    // Jobs behind the last one fail because their completions are dropped.
                    while queue.try_recv().is_ok() {}
                    return;
                }
            }
            // The store was dropped.
            let (completion, _) = oneshot::channel();
            self.write_group(vec![Job::Close { completion }]);
        };
        std::thread::Builder::new().name("weir-events".to_owned()).spawn(run).map(drop)
    }

    /// Writes a group of jobs; true when the last of them closed the file.
    fn write_group(&mut self, jobs: Vec<Job>) -> bool {
        let closes = matches!(jobs.last(), Some(Job::Close { .. }));
        if let Err(error) = self.recover(closes) {
            for job in jobs {
                self.reject(job, &error);
            }
            return closes;
        }
        let mut group = Group::default();
        let mut appends = Vec::new();
        for job in jobs {
            self.take(job, &mut group, &mut appends);
        }
        for (channel, entries, completion) in appends {
            match self.add_append(&mut group.change, &channel, &entries) {
                Ok(()) => group.appends.push((channel, entries, completion)),
                Err(error) => {
                    channel.discard(&entries);
                    let _ = completion.send(Err(error));
                }
            }
        }
        if !group.change.is_empty() {
            group.change.ended_claims.append(&mut self.ended_claims);
        }
        let Group { change, appends, claims, values, undo, close } = group;
        let Err(error) = self.commit(change) else {
            for (channel, entries, completion) in appends {
                let cursors = entries.iter().map(|entry| entry.cursor).collect();
                channel.publish(&entries);
                // If the publisher does not wait any more, its events are written nevertheless.
                let _ = completion.send(Ok(cursors));
            }
            for completion in claims.into_iter().map(|(_, completion)| completion).chain(values).chain(close) {
                let _ = completion.send(Ok(()));
            }
            return closes;
        };
        self.shared.values.undo(undo);
        for (channel, entries, completion) in appends {
            self.recovery.undecided(channel, entries);
            let _ = completion.send(Err(error.clone()));
        }
        for (key, completion) in claims {
            self.release(key);
            let _ = completion.send(Err(error.clone()));
        }
        for completion in values.into_iter().chain(close) {
            let _ = completion.send(Err(error.clone()));
        }
        closes
    }

    fn take(&mut self, job: Job, group: &mut Group, appends: &mut Vec<PendingAppend>) {
        let (values, change) = (&self.shared.values, &mut group.change);
        match job {
            Job::Append { channel, entries, completion } => appends.push((channel, entries, completion)),
            Job::Claim { key, end, completion } => {
                change.claims.push((Arc::clone(&key), end));
                // A used ticket stays used, even if the store is not durable.
                change.flush = true;
                group.claims.push((key, completion));
            }
            Job::Put { key, put, completion } => match values.put(change, &mut group.undo, &key, put) {
                Ok(()) => group.values.push(completion),
                Err(error) => drop(completion.send(Err(error))),
            },
            Job::Barrier { completion } => group.values.push(completion),
            Job::Delete { key, completion } => {
                values.delete(change, &mut group.undo, &key);
                group.values.push(completion);
            }
            Job::Sweep { now_ms, claims } => {
                values.expire(change, &mut group.undo, now_ms);
                self.sweep(change, now_ms, claims);
            }
            Job::Close { completion } => {
                change.closes = true;
                group.close = Some(completion);
            }
        }
    }

    /// Rejects a job that was not attempted.
    fn reject(&mut self, job: Job, error: &Error) {
        match job {
            Job::Append { channel, entries, completion } => {
                channel.discard(&entries);
                let _ = completion.send(Err(error.clone()));
            }
            Job::Claim { key, completion, .. } => {
                // The file does not have it, so it is not added to `ended_claims`, which would grow with every attempt.
                lock(&self.shared.claims).release(&key);
                let _ = completion.send(Err(error.clone()));
            }
            Job::Sweep { claims, .. } => self.ended_claims.extend(claims),
            Job::Put { completion, .. }
            | Job::Delete { completion, .. }
            | Job::Barrier { completion }
            | Job::Close { completion } => {
                let _ = completion.send(Err(error.clone()));
            }
        }
    }

    /// Releases a claim whose commit has failed, so that the next caller can get it.
    fn release(&mut self, key: Arc<str>) {
        lock(&self.shared.claims).release(&key);
        // The claim may be in the file nevertheless.
        self.ended_claims.push(key);
    }

    /// Adds an append to the change, and makes room for its channel if it is new.
    fn add_append(&self, change: &mut Change, channel: &Arc<Channel>, entries: &[Arc<Entry>]) -> Result<(), Error> {
        let (name, database) = (&channel.name, &self.shared.database);
        let known = database.contains(name) && !change.forgotten.contains(name);
        let user = channel.lock().user.clone().filter(|_| !name.is_owner_record());
        if !known && change.appends.iter().all(|other| other.name != *name) {
            self.make_room_of_user(change, user.as_ref())?;
            let records = name.is_owner_record();
            let alike = |other: &ChannelName| other.is_owner_record() == records;
            let added = change.appends.iter().filter(|append| alike(&append.name) && !database.contains(&append.name));
            let forgotten = change.forgotten.iter().filter(|other| alike(other)).count();
            let channels = (database.count(records) + added.count()).saturating_sub(forgotten);
            if channels >= self.shared.config.channels_max.max(1) {
                if records {
                    self.make_room_for_record(change)?;
                } else {
                    self.make_room(change)?;
                }
            }
        }
        let first = {
            let state = channel.lock();
            // If the log retains no event, all events to store are ones that are not written yet: those of this append
            // and later ones.
            state.log.first().map_or(state.log.last().next(), |first| first.cursor)
        };
        change.appends.push(Append { name: name.clone(), entries: entries.to_vec(), first, user });
        Ok(())
    }

    /// Makes room for one more channel of a user whose number of channels is at the maximum.
    fn make_room_of_user(&self, change: &mut Change, user: Option<&Arc<str>>) -> Result<(), Error> {
        let (Some(user), database) = (user, &self.shared.database) else { return Ok(()) };
        let is_new = |append: &&Append| append.user.as_ref() == Some(user) && !database.contains(&append.name);
        let added = change.appends.iter().filter(is_new).count();
        let forgotten = change.forgotten.iter().filter(|name| database.user(name).as_ref() == Some(user)).count();
        let channels = (database.count_of(user) + added).saturating_sub(forgotten);
        let channels_max = self.shared.config.channel_shares(self.shared.config.channels_max).user_max();
        if channels < channels_max {
            return Ok(());
        }
        let at_once = (channels_max / 64).max(1) + channels - channels_max;
        match self.evict(change, database.least_needed(Some(user)), at_once) {
            0 => Err(Error::channel_share(channels_max)),
            _ => Ok(()),
        }
    }

    /// Removes channels without subscribers, of the user that has the most, and their owner records.
    fn make_room(&self, change: &mut Change) -> Result<(), Error> {
        match self.evict(change, self.shared.database.least_needed(None), self.at_once()) {
            0 => Err(Error::channels_full()),
            _ => Ok(()),
        }
    }

    /// Removes channels without subscribers in the given order, at most `count_max`; returns how many were removed.
    fn evict(&self, change: &mut Change, order: Vec<ChannelName>, count_max: usize) -> usize {
        let mut removed = 0;
        for name in order {
            if removed == count_max {
                break;
            }
            if self.forget(change, &name) {
                removed += 1;
            }
        }
        self.shared.hub.counters.evicted.fetch_add(removed as u64, std::sync::atomic::Ordering::Relaxed);
        removed
    }

    /// Removes owner records whose channels do not exist. If every record has its channel, the number of channels is at
    /// its maximum, and some of them are removed with their records.
    fn make_room_for_record(&self, change: &mut Change) -> Result<(), Error> {
        let mut removed = 0;
        for name in self.shared.database.records_without_events(u64::MAX, true) {
            if removed == self.at_once() {
                break;
            }
            if !self.owned_in_use(change, &name) && self.forget(change, &name) {
                removed += 1;
            }
        }
        if removed == 0 { self.make_room(change) } else { Ok(()) }
    }

    /// Adds the removal of a channel and of its owner record to the change, unless the channel has subscribers or
    /// pending appends, or is part of the change already. Returns true if the removal was added.
    fn forget(&self, change: &mut Change, name: &ChannelName) -> bool {
        let Shared { hub, database, .. } = &self.shared;
        let is_new = |change: &Change, name: &ChannelName| {
            !change.forgotten.contains(name) && change.appends.iter().all(|append| append.name != *name)
        };
        let release = |name: &ChannelName| {
            database.mark_removal(name, true);
            let released = hub.forget(name, |_| true);
            if !released {
                database.mark_removal(name, false);
            }
            released
        };
        if !is_new(change, name) || !release(name) {
            return false;
        }
        change.forgotten.push(name.clone());
        if let Some(record) = name.owner_record()
            && database.contains(&record)
            && is_new(change, &record)
            && release(&record)
        {
            change.forgotten.push(record);
        }
        true
    }

    /// True when the channel of an owner record has subscribers or pending appends.
    fn owned_in_use(&self, change: &Change, record: &ChannelName) -> bool {
        record.owned().is_some_and(|owned| {
            self.shared.hub.in_use(&owned) || change.appends.iter().any(|append| append.name == owned)
        })
    }

    /// The number of channels that are removed at once.
    fn at_once(&self) -> usize {
        (self.shared.config.channels_max / 64).max(1)
    }

    fn sweep(&mut self, change: &mut Change, now_ms: u64, claims: Vec<Arc<str>>) {
        change.ended_claims.extend(claims);
        let Shared { config, clock, database, .. } = &self.shared;
        let old_ms = now_ms.saturating_sub(config.retention.age_ms_max);
        let (finished, others) = database.stored_before(old_ms, SWEEP_CHANNELS_MAX);
        for name in finished {
            self.forget(change, &name);
        }
        // A younger record may belong to a channel whose first event is about to be appended.
        for record in database.records_without_events(old_ms, false).into_iter().take(SWEEP_CHANNELS_MAX) {
            if !self.owned_in_use(change, &record) {
                self.forget(change, &record);
            }
        }
        change.emptied.extend(others);
        change.epoch_max = clock.epochs_to_reserve();
        if self.recovery.unflushed() && now_ms.saturating_sub(self.flushed_ms) >= config.flush_ms {
            change.flush = true;
            self.flushed_ms = now_ms;
        }
    }

    fn commit(&mut self, change: Change) -> Result<(), Error> {
        if change.is_empty() {
            return Ok(());
        }
        let committed = self.recovery.commit(&self.shared.database, change);
        committed.map_err(|error| self.failed(&error))
    }

    /// Recovers the file after a failed commit: immediately with `at_once`, otherwise when the next attempt is due.
    fn recover(&mut self, at_once: bool) -> Result<(), Error> {
        if !self.recovery.needed() {
            return Ok(());
        }
        if !at_once && !self.recovery.due() {
            return Err(unavailable());
        }
        match self.recovery.recover(&self.shared.database, &self.ended_claims) {
            Ok(values) => {
                self.ended_claims.clear();
                self.shared.values.replace(&values);
                self.shared.status.set(None);
                tracing::info!("the channel store can be written again");
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &redb::Error) -> Error {
        let reason = format!("the channel store cannot be written: {error}");
        if self.shared.status.failure().as_ref() != Some(&reason) {
            tracing::error!(path = %self.shared.config.path.display(), %error, "the channel store cannot be written");
        }
        self.shared.status.set(Some(reason));
        unavailable()
    }
}

fn unavailable() -> Error {
    Error::unavailable("the channel store cannot be written", RETRY_AFTER_MS)
}

/// The jobs of one commit: the first, and those that wait behind it, up to `bytes_max` and [`GROUP_JOBS_MAX`]. A job
/// that closes the file is the last.
fn gather(first: Job, queue: &mut mpsc::Receiver<Job>, bytes_max: usize) -> Vec<Job> {
    let (mut jobs, mut bytes, mut next) = (Vec::new(), 0_usize, Some(first));
    while let Some(job) = next {
        bytes += match &job {
            Job::Append { entries, .. } => entries.iter().map(|entry| entry.bytes()).sum(),
            Job::Claim { key, .. } => key.len(),
            Job::Put { put, .. } => put.record.len(),
            Job::Delete { .. } | Job::Barrier { .. } | Job::Sweep { .. } | Job::Close { .. } => 0,
        };
        let closes = matches!(job, Job::Close { .. });
        jobs.push(job);
        let room = bytes < bytes_max && jobs.len() < GROUP_JOBS_MAX && !closes;
        next = if room { queue.try_recv().ok() } else { None };
    }
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tests::TestClock;
    use crate::config::StoreKind;
    use crate::disk::storage::Opener;
    use crate::disk::tests::drive::{Drive, Fault};

    /// Claims of requests that come while the drive is full.
    #[test]
    fn rejected_claims_are_not_collected_while_the_file_cannot_be_written() {
        let (drive, source) = (Drive::default(), TestClock::at(1_700_000_000_000));
        let config = EventsConfig { store: StoreKind::Disk, path: "events.redb".into(), ..EventsConfig::default() };
        let (config, clock) = (Arc::new(config), Arc::new(Clock::new(source.clone())));
        let opened = drive.clone();
        let (database, content) =
            Database::open(&config, Opener::new(move || opened.backend()), Arc::clone(&clock)).unwrap();
        let shared = Shared {
            values: Arc::new(StoredValues::new(&config, &content.values, Arc::clone(&clock))),
            hub: Arc::new(Hub::new(&config, 10_000)),
            database: Arc::new(database),
            claims: Arc::new(Mutex::new(Claims::new(config.claims_max, config.user_percent_max))),
            status: Arc::new(Status::default()),
            config,
            clock,
        };
        let mut writer = Writer::new(shared, content.commit);
        let claim = |writer: &mut Writer, number: usize| {
            let (completion, mut result) = oneshot::channel();
            let (key, end) =
                (format!("ticket:ann:{number}").into(), ClaimEnd { store_ms: u64::MAX, wall_ms: u64::MAX });
            writer.write_group(vec![Job::Claim { key, end, completion }]);
            result.try_recv().expect("a result")
        };
        assert_eq!(claim(&mut writer, 0), Ok(()));
        drive.fail(0, Fault::Full);
        for number in 1..500 {
            assert!(claim(&mut writer, number).is_err());
            source.advance(100);
        }
        // One for each commit that was attempted and may be in the file, none for rejected jobs.
        assert!(writer.ended_claims.len() <= 1, "{} claims", writer.ended_claims.len());
        assert!(drive.heal() > 0);
        source.advance(60_000);
        assert_eq!(claim(&mut writer, 1), Ok(()));
        assert!(writer.ended_claims.is_empty());
    }
}
