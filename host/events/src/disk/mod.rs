//! Channels and values in a file.
//!
//! Every channel in use is completely in memory. An event is assigned its cursor, is written to the file, and only then
//! enters the log in memory and reaches subscribers, so that no reader sees an event that a crash could remove. One
//! thread writes; all jobs that wait during a commit share the next commit and its fsync.
//!
//! A file that is not durable is flushed periodically, and events are visible before the flush. Such a file records
//! that it is open. If it was not closed, every channel continues in a new epoch, and readers get a gap for events that
//! may have been lost.

mod database;
mod record;
mod recovery;
mod storage;
mod tables;
#[cfg(test)]
mod tests;
mod values;
mod writer;

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};
use weir_core::channels::{ChannelName, Cursor, Draft, Fence, Log, Page};

use crate::backend::{Health, Usage, WriteContext};
use crate::claims::{ClaimEnd, Claims};
use crate::clock::Clock;
use crate::config::{EventsConfig, StoreKind};
use crate::disk::database::{Database, closed};
use crate::disk::storage::Opener;
use crate::disk::tables::{ChannelMeta, Put};
use crate::disk::values::StoredValues;
use crate::disk::writer::{Job, Shared, Status, Writer};
use crate::error::{Error, OpenError, lock};
use crate::hub::{Channel, Hub, State};
use crate::lease::{Acquisition, LocalLeases};
use crate::subscription::Subscription;

#[derive(Debug)]
pub(crate) struct Disk {
    config: Arc<EventsConfig>,
    clock: Arc<Clock>,
    hub: Arc<Hub>,
    database: Arc<Database>,
    jobs: mpsc::Sender<Job>,
    status: Arc<Status>,
    claims: Arc<Mutex<Claims>>,
    values: Arc<StoredValues>,
    pub(crate) leases: LocalLeases,
    /// Held while a channel is loaded into memory, so that it is loaded once.
    loading: tokio::sync::Mutex<()>,
}

impl Disk {
    pub(crate) async fn open(config: Arc<EventsConfig>, clock: Arc<Clock>, hub: Arc<Hub>) -> Result<Self, OpenError> {
        let opener = Opener::path(&config.path);
        Self::open_with(config, clock, hub, opener).await
    }

    /// Opens the file with an opener.
    async fn open_with(
        config: Arc<EventsConfig>,
        clock: Arc<Clock>,
        hub: Arc<Hub>,
        opener: Opener,
    ) -> Result<Self, OpenError> {
        let (for_database, its_clock) = (Arc::clone(&config), Arc::clone(&clock));
        let opened = tokio::task::spawn_blocking(move || Database::open(&for_database, opener, its_clock)).await;
        let (database, content) = match opened {
            Ok(opened) => opened?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let mut claims = Claims::new(config.claims_max, config.user_percent_max);
        content.claims.iter().for_each(|(key, end)| claims.restore(key, *end));
        let (jobs, queue) = mpsc::channel(config.writes_max.max(1));
        let shared = Shared {
            values: Arc::new(StoredValues::new(&config, &content.values, Arc::clone(&clock))),
            config,
            clock,
            hub,
            database: Arc::new(database),
            claims: Arc::new(Mutex::new(claims)),
            status: Arc::new(Status::default()),
        };
        Writer::new(shared.clone(), content.commit).start(queue).map_err(OpenError::Thread)?;
        let Shared { config, clock, hub, database, values, claims, status } = shared;
        let loading = tokio::sync::Mutex::new(());
        let leases = LocalLeases::new(&clock);
        Ok(Self { config, clock, hub, database, jobs, status, claims, values, leases, loading })
    }

    pub(crate) async fn append(
        &self,
        name: &ChannelName,
        mut drafts: Vec<Draft>,
        write: WriteContext<'_>,
    ) -> Result<Vec<Cursor>, Error> {
        let (completion, result) = oneshot::channel();
        // The slot in the queue is reserved first, so that events are written in the order of their cursors.
        let permit = self.jobs.reserve().await.map_err(|_| closed())?;
        loop {
            let channel = self.channel(name, write.user).await?;
            let _owned = self.leases.check(write.fence)?;
            let is_known = self.database.contains(name);
            let mut state = channel.lock();
            if state.is_removed {
                continue;
            }
            if state.is_new() && !is_known {
                // Until its first event the channel counts towards the share of its first follower.
                state.user = write.user.map(Arc::from);
            }
            let entries = state.stamp(std::mem::take(&mut drafts), &self.clock)?;
            state.pending += 1;
            permit.send(Job::Append { channel: Arc::clone(&channel), entries, completion });
            break;
        }
        result.await.map_err(|_| closed())?
    }

    pub(crate) async fn read(&self, name: &ChannelName, after: Cursor, limit: usize) -> Result<Page, Error> {
        let bytes_max = self.config.page_bytes_max;
        if self.hub.resident(name).is_none() && !self.database.contains(name) {
            return Ok(Log::new(self.config.retention_of(name), self.clock.beginning()).read(after, limit, bytes_max));
        }
        let channel = self.channel(name, None).await?;
        let mut state = channel.lock();
        state.log.expire(self.clock.now_ms());
        Ok(state.log.read(after, limit, bytes_max))
    }

    pub(crate) async fn follow(
        &self,
        name: &ChannelName,
        after: Cursor,
        user: Option<&str>,
    ) -> Result<Subscription, Error> {
        loop {
            let channel = self.channel(name, user).await?;
            channel.lock().log.expire(self.clock.now_ms());
            if let Some(subscription) = Subscription::open(&self.hub, &channel, after)? {
                return Ok(subscription);
            }
        }
    }

    pub(crate) async fn claim(&self, key: &str, ttl_ms: u64) -> Result<bool, Error> {
        let (completion, result) = oneshot::channel();
        let permit = self.jobs.reserve().await.map_err(|_| closed())?;
        let end = ClaimEnd::after(&self.clock, ttl_ms);
        if !lock(&self.claims).claim(key, end, &self.clock)? {
            return Ok(false);
        }
        permit.send(Job::Claim { key: key.into(), end, completion });
        result.await.map_err(|_| closed())?.map(|()| true)
    }

    pub(crate) async fn put(
        &self,
        key: &ChannelName,
        value: &[u8],
        ttl_ms: Option<u64>,
        write: WriteContext<'_>,
    ) -> Result<(), Error> {
        let (completion, result) = oneshot::channel();
        let end_ms = self.clock.end_ms(ttl_ms);
        let record = record::encode_value(key, end_ms, value);
        let put = Put { record, end_ms, user: write.user.map(Arc::from) };
        self.send(Job::Put { key: key.clone(), put, completion }, write.fence).await?;
        result.await.map_err(|_| closed())?
    }

    pub(crate) async fn get(&self, key: &ChannelName) -> Result<Option<Vec<u8>>, Error> {
        if !self.values.has(key) {
            return Ok(None);
        }
        let (database, key) = (Arc::clone(&self.database), key.clone());
        match tokio::task::spawn_blocking(move || database.value(&key)).await {
            Ok(value) => value,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    pub(crate) async fn delete(&self, key: &ChannelName, fence: Option<&Fence>) -> Result<(), Error> {
        let (completion, result) = oneshot::channel();
        self.send(Job::Delete { key: key.clone(), completion }, fence).await?;
        result.await.map_err(|_| closed())?
    }

    /// Acquires a lease; resolves once all writes that were checked before are on the disk, so that the new owner reads
    /// them.
    pub(crate) async fn acquire(&self, key: &ChannelName, owner: &str, ttl_ms: u64) -> Result<Acquisition, Error> {
        let (completion, result) = oneshot::channel();
        let permit = self.jobs.reserve().await.map_err(|_| closed())?;
        let acquired = self.leases.acquire(key, owner, ttl_ms, || permit.send(Job::Barrier { completion }))?;
        if let Acquisition::Acquired(token) = acquired
            && let Err(error) = result.await.map_err(|_| closed()).flatten()
        {
            // The token is not returned, so nothing can be written with it. Other owners need not wait for the end of
            // the lease.
            let _ = self.leases.release(&Fence { key: key.clone(), token });
            return Err(error);
        }
        Ok(acquired)
    }

    /// Sends a job to the writer. The fence is checked and the job is queued under one lock, before any later
    /// acquisition.
    async fn send(&self, job: Job, fence: Option<&Fence>) -> Result<(), Error> {
        let permit = self.jobs.reserve().await.map_err(|_| closed())?;
        let _owned = self.leases.check(fence)?;
        permit.send(job);
        Ok(())
    }

    pub(crate) fn keys(&self, kind: &str, after: &str, limit: usize) -> Vec<String> {
        self.values.keys(kind, after, limit)
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.values.count(kind)
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage { state_bytes: self.values.bytes(), claims: lock(&self.claims).len() }
    }

    pub(crate) fn health(&self) -> Health {
        let stopped = || self.jobs.is_closed().then(|| "the channel store is closed".to_owned());
        let detail = self.status.failure().or_else(stopped);
        Health { store: StoreKind::Disk, ok: detail.is_none(), fallback: false, detail, life: None }
    }

    /// Deletes expired data, and flushes a file that is not durable.
    pub(crate) async fn sweep(&self) {
        self.leases.sweep();
        // If the queue of the writer is full, the next sweep removes them.
        let Ok(permit) = self.jobs.try_reserve() else { return };
        let claims = lock(&self.claims).expire(&self.clock);
        permit.send(Job::Sweep { now_ms: self.clock.now_ms(), claims });
        // Channels without subscribers are on the disk as well, so the least recently used ones are removed from
        // memory.
        while self.hub.len() > self.config.resident_channels_max {
            if !self.hub.shrink() {
                break;
            }
        }
    }

    /// Writes pending changes, and closes the file.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        let (completion, result) = oneshot::channel();
        self.jobs.send(Job::Close { completion }).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }

    /// The channel in memory; loaded from the file, or new, if it is not there yet.
    async fn channel(&self, name: &ChannelName, user: Option<&str>) -> Result<Arc<Channel>, Error> {
        if let Some(channel) = self.hub.resident(name) {
            return Ok(channel);
        }
        let _loading = self.loading.lock().await;
        if let Some(channel) = self.hub.resident(name) {
            return Ok(channel);
        }
        let loaded = if self.database.contains(name) { self.load(name).await? } else { None };
        let on_disk = loaded.is_some();
        let state =
            loaded.unwrap_or_else(|| State::new(Log::new(self.config.retention_of(name), self.clock.beginning())));
        let channel = self.hub.insert(name, if on_disk { None } else { user }, || state)?;
        if on_disk && !self.database.contains(name) {
            // The channel was removed from the file in the meantime: its holders look it up in the hub again.
            self.hub.forget(name, |_| true);
        }
        Ok(channel)
    }

    async fn load(&self, name: &ChannelName) -> Result<Option<State>, Error> {
        let (database, retention, name) = (Arc::clone(&self.database), self.config.retention_of(name), name.clone());
        let load = move || database.load(&name, |before| Log::new(retention, before));
        let loaded = match tokio::task::spawn_blocking(load).await {
            Ok(loaded) => loaded?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let Some((ChannelMeta { last, broken, user, .. }, mut log)) = loaded else { return Ok(None) };
        log.expire(self.clock.now_ms());
        if broken {
            self.clock.observe_epoch(last.epoch);
            // The log may have lost its newest events: the cursors of its readers must be before the next event.
            log.skip_to(Cursor::new(self.clock.fresh_epoch(), 0));
        }
        let mut state = State::new(log);
        state.user = user;
        Ok(Some(state))
    }
}
