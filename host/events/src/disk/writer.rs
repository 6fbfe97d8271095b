//! The thread that writes: what waits while it commits shares the next commit.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};
use weir_core::channel::{ChannelName, Cursor, Entry};

use crate::config::EventsConfig;
use crate::disk::RETRY_AFTER_MS;
use crate::disk::database::{Append, Change, Database};
use crate::disk::values::{Kept, Undo};
use crate::error::{Error, lock};
use crate::hub::{Channel, Hub, wake};

/// The most jobs that share a commit.
const GROUP_JOBS_MAX: usize = 4_096;
/// The most channels that one sweep deletes.
const SWEEP_CHANNELS_MAX: usize = 256;

type Answer<T> = oneshot::Sender<Result<T, Error>>;

#[derive(Debug)]
pub(crate) enum Job {
    /// Events that have their places.
    Append {
        channel: Arc<Channel>,
        entries: Vec<Arc<Entry>>,
        answer: Answer<Vec<Cursor>>,
    },
    Claim {
        key: Box<str>,
        end_ms: u64,
        answer: Answer<()>,
    },
    /// A value that is written already as it is on the disk.
    Put {
        key: ChannelName,
        record: Vec<u8>,
        end_ms: u64,
        answer: Answer<()>,
    },
    Delete {
        key: ChannelName,
        answer: Answer<()>,
    },
    /// Deletes what is too old, and flushes.
    Sweep {
        now_ms: u64,
        claims: Vec<Arc<str>>,
    },
    Close {
        answer: oneshot::Sender<()>,
    },
}

/// What is the matter with the file.
#[derive(Debug, Default)]
pub(crate) struct Status {
    failure: Mutex<Option<String>>,
}

impl Status {
    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }
}

pub(crate) struct Writer {
    config: Arc<EventsConfig>,
    hub: Arc<Hub>,
    database: Arc<Database>,
    kept: Arc<Kept>,
    status: Arc<Status>,
    /// When the file was last flushed, in milliseconds since 1970.
    flushed_ms: u64,
    /// True when something was written since.
    dirty: bool,
}

impl Writer {
    pub(crate) fn new(
        config: Arc<EventsConfig>,
        hub: Arc<Hub>,
        database: Arc<Database>,
        kept: Arc<Kept>,
        status: Arc<Status>,
    ) -> Self {
        Self { config, hub, database, kept, status, flushed_ms: 0, dirty: false }
    }

    pub(crate) fn start(mut self, mut queue: mpsc::Receiver<Job>) -> std::io::Result<()> {
        let run = move || {
            while let Some(first) = queue.blocking_recv() {
                if self.work(first, &mut queue) {
                    return;
                }
            }
            // The store was dropped.
            let _ = self.commit(&Change { closes: true, ..Change::default() });
        };
        std::thread::Builder::new().name("weir-events".to_owned()).spawn(run).map(drop)
    }

    /// Writes a group of jobs; true when the last of them closed the file.
    fn work(&mut self, first: Job, queue: &mut mpsc::Receiver<Job>) -> bool {
        let mut change = Change::default();
        let (mut appends, mut done, mut undo, mut closing) = (Vec::new(), Vec::new(), Undo::default(), None);
        let (mut bytes, mut jobs, mut next) = (0_usize, 0, Some(first));
        while let Some(job) = next {
            jobs += 1;
            match job {
                Job::Append { channel, entries, answer } => {
                    bytes += entries.iter().map(|entry| entry.bytes()).sum::<usize>();
                    appends.push((channel, entries, answer));
                }
                Job::Claim { key, end_ms, answer } => {
                    bytes += key.len();
                    change.claims.push((key, end_ms));
                    // A ticket that was used stays used, whatever the configuration says of events.
                    change.flush = true;
                    done.push(answer);
                }
                Job::Put { key, record, end_ms, answer } => {
                    bytes += record.len();
                    match self.kept.put(&mut change, &mut undo, &key, record, end_ms) {
                        Ok(()) => done.push(answer),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Job::Delete { key, answer } => {
                    self.kept.delete(&mut change, &mut undo, &key);
                    done.push(answer);
                }
                Job::Sweep { now_ms, claims } => {
                    self.kept.expire(&mut change, &mut undo, now_ms);
                    self.sweep(&mut change, now_ms, claims);
                }
                Job::Close { answer } => {
                    change.closes = true;
                    closing = Some(answer);
                    break;
                }
            }
            let room = bytes < self.config.group_bytes_max && jobs < GROUP_JOBS_MAX;
            next = if room { queue.try_recv().ok() } else { None };
        }
        let mut written = Vec::new();
        for (channel, entries, answer) in appends {
            match self.place(&mut change, &channel, &entries) {
                Ok(()) => written.push((channel, entries, answer)),
                Err(error) => {
                    give_up(&channel, &entries);
                    let _ = answer.send(Err(error));
                }
            }
        }
        let made = self.commit(&change);
        for (channel, entries, answer) in written {
            // A publisher that does not wait any more is no reason to stop: its events are in.
            let _ = answer.send(match &made {
                Ok(()) => {
                    let mut state = channel.lock();
                    state.pending -= 1;
                    state.log_and_offer(&entries);
                    wake(state);
                    Ok(entries.iter().map(|entry| entry.cursor).collect())
                }
                Err(error) => {
                    give_up(&channel, &entries);
                    Err(error.clone())
                }
            });
        }
        if made.is_err() {
            self.kept.undo(undo);
        }
        for answer in done {
            let _ = answer.send(made.clone());
        }
        if let Some(answer) = closing {
            queue.close();
            // What came after the end is answered by being dropped.
            while queue.try_recv().is_ok() {}
            let _ = answer.send(());
            return true;
        }
        false
    }

    /// Adds an append to the change, making room for its channel where it is new.
    fn place(&self, change: &mut Change, channel: &Arc<Channel>, entries: &[Arc<Entry>]) -> Result<(), Error> {
        let name = &channel.name;
        let new =
            |change: &Change| !self.database.knows(name) && change.appends.iter().all(|other| other.name != *name);
        if new(change) {
            let added = change.appends.iter().filter(|append| !self.database.knows(&append.name)).count();
            let channels = self.database.len() + added - change.forgotten.len().min(self.database.len());
            if channels >= self.config.channels_max.max(1) {
                self.make_room(change)?;
            }
        }
        let first = {
            let state = channel.lock();
            // Where nothing is retained, what is still to be written is all that is kept, this append and others.
            state.log.first().map_or(state.log.last().next(), |first| first.cursor)
        };
        change.appends.push(Append { name: name.clone(), entries: entries.to_vec(), first });
        Ok(())
    }

    /// Lets go of channels that nobody follows.
    fn make_room(&self, change: &mut Change) -> Result<(), Error> {
        let wanted = (self.config.channels_max / 64).max(1);
        let before = change.forgotten.len();
        for name in self.database.least_needed() {
            if change.forgotten.len() - before == wanted {
                break;
            }
            if !change.forgotten.contains(&name) && self.hub.forget(&name, |_| true) {
                change.forgotten.push(name);
            }
        }
        let gone = change.forgotten.len() - before;
        self.hub.counters.evicted.fetch_add(gone as u64, std::sync::atomic::Ordering::Relaxed);
        if gone == 0 {
            return Err(Error::unavailable("every channel that fits is followed", RETRY_AFTER_MS));
        }
        Ok(())
    }

    fn sweep(&mut self, change: &mut Change, now_ms: u64, claims: Vec<Arc<str>>) {
        change.ended_claims.extend(claims);
        let old_ms = now_ms.saturating_sub(self.config.retention.age_ms_max);
        let (finished, others) = self.database.older(old_ms, SWEEP_CHANNELS_MAX);
        let busy = |change: &Change, name: &weir_core::channel::ChannelName| {
            change.appends.iter().any(|append| append.name == *name)
        };
        for name in finished {
            if !busy(change, &name) && !change.forgotten.contains(&name) && self.hub.forget(&name, |_| true) {
                change.forgotten.push(name);
            }
        }
        change.emptied.extend(others);
        if self.dirty && now_ms.saturating_sub(self.flushed_ms) >= self.config.flush_ms {
            change.flush = true;
            self.flushed_ms = now_ms;
        }
    }

    fn commit(&mut self, change: &Change) -> Result<(), Error> {
        let nothing = change.appends.is_empty()
            && change.claims.is_empty()
            && change.values.is_empty()
            && change.ended_claims.is_empty()
            && change.forgotten.is_empty()
            && change.emptied.is_empty();
        if nothing && !change.flush && !change.closes {
            return Ok(());
        }
        let made = self.database.commit(change);
        self.dirty = if change.flush { false } else { self.dirty || !self.config.durable };
        *lock(&self.status.failure) =
            made.as_ref().err().map(|error| format!("the channel store cannot be written: {error}"));
        made.map_err(|error| {
            tracing::error!(%error, "the channel store cannot be written");
            Error::unavailable("the channel store cannot be written", RETRY_AFTER_MS)
        })
    }
}

/// Events that could not be written: their places stay empty.
fn give_up(channel: &Channel, entries: &[Arc<Entry>]) {
    let mut state = channel.lock();
    state.pending -= 1;
    if entries.iter().any(|entry| entry.finishes) {
        state.sealed = false;
    }
}
