//! Channels in Redis Streams, shared by all Weir servers.
//!
//! An entry's id is the event's cursor, `epoch-seq`, which a script assigns. Assigned sequences have no holes, so every
//! hole means that events are missing. A Redis server that was restarted may have lost events that readers have seen,
//! so a channel then continues in a new epoch, unless the configuration states that the server persists every write.
//!
//! Each channel that is followed in this process has a mirror of its stream in memory. One blocking read for all of
//! them updates the mirrors ([`reader`]). Pages are read from Redis directly.
//!
//! While Redis is unavailable, memory may replace it: such events enter the mirror in an epoch of their own. When Redis
//! is available again, the mirror is loaded again, and its subscribers see a gap instead of the events that only memory
//! had.

mod lease;
mod link;
mod reader;
mod shared;
mod state;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::Script;
use tokio::sync::Notify;
use weir_core::channels::{ChannelName, Cursor, Draft, Fence, Page};

use crate::backend::{Health, Usage, WriteContext};
use crate::clock::Clock;
use crate::config::{EventsConfig, StoreKind};
use crate::error::{Error, OpenError};
use crate::hub::Hub;
use crate::lease::Acquisition;
use crate::redis::lease::RedisLeases;
use crate::redis::link::Link;
use crate::redis::shared::{REMEMBERED_MS, Shared};
use crate::redis::stream::claim_key;
use crate::subscription::Subscription;

/// How often the owner record of a followed channel is renewed during its time to live, and how many are renewed with
/// one command.
const RENEWALS: u64 = 4;
const RENEWED_AT_ONCE: usize = 256;

#[derive(Debug)]
pub(crate) struct Redis {
    shared: Arc<Shared>,
    reader: tokio::task::JoinHandle<()>,
    /// When owner records of followed channels were last renewed, by the store clock.
    renewed_ms: AtomicU64,
}

impl Redis {
    pub(crate) fn open(config: Arc<EventsConfig>, clock: Arc<Clock>, hub: Arc<Hub>) -> Result<Self, OpenError> {
        let link = Arc::new(Link::new(config.redis.clone())?);
        let append = Script::new(include_str!("append.lua"));
        let loading = tokio::sync::Mutex::new(());
        let (values, leases) = (state::State::new(Arc::clone(&config)), RedisLeases::new());
        let followed = Notify::new();
        let shared = Arc::new(Shared { config, clock, hub, link, append, values, leases, followed, loading });
        let reader = tokio::spawn(reader::run(Arc::clone(&shared)));
        Ok(Self { shared, reader, renewed_ms: AtomicU64::new(0) })
    }

    pub(crate) async fn append(
        &self,
        name: &ChannelName,
        drafts: Vec<Draft>,
        write: WriteContext<'_>,
    ) -> Result<Vec<Cursor>, Error> {
        let appended = self.shared.append(name, &drafts, write).await;
        match appended {
            // Only Redis knows the owners of leases.
            Err(Error::Unavailable { .. }) if self.shared.falls_back() && write.fence.is_none() => {
                self.shared.append_in_memory(name, drafts)
            }
            appended => appended,
        }
    }

    pub(crate) async fn read(&self, name: &ChannelName, after: Cursor, limit: usize) -> Result<Page, Error> {
        match self.shared.read(name, after, limit).await {
            Err(error @ Error::Unavailable { .. }) => match self.shared.hub.resident(name) {
                Some(channel) if self.shared.falls_back() => {
                    Ok(channel.lock().log.read(after, limit, self.shared.config.page_bytes_max))
                }
                _ => Err(error),
            },
            page => page,
        }
    }

    pub(crate) async fn follow(&self, name: &ChannelName, after: Cursor) -> Result<Subscription, Error> {
        self.shared.catch_up(name, after).await?;
        loop {
            let channel = self.shared.mirror(name).await?;
            channel.lock().log.expire(self.shared.clock.now_ms());
            match Subscription::open(&self.shared.hub, &channel, after) {
                Ok(Some(subscription)) => {
                    self.shared.followed.notify_one();
                    return Ok(subscription);
                }
                Ok(None) => {}
                Err(error) => {
                    // The mirror has no subscriber whose end would remove it.
                    self.shared.hub.forget(name, |state| !state.diverged);
                    return Err(error);
                }
            }
        }
    }

    pub(crate) async fn claim(&self, key: &str, ttl_ms: u64) -> Result<bool, Error> {
        let mut set = redis::cmd("SET");
        set.arg(claim_key(&self.shared.link.config.prefix, key)).arg(1).arg("NX").arg("PX").arg(ttl_ms);
        let set: Option<String> = self.shared.link.command(set).await?;
        Ok(set.is_some())
    }

    pub(crate) async fn put(
        &self,
        key: &ChannelName,
        value: &[u8],
        ttl_ms: Option<u64>,
        write: WriteContext<'_>,
    ) -> Result<(), Error> {
        self.shared.values.put(&self.shared.link, key, value, ttl_ms, write).await
    }

    pub(crate) async fn count(&self, kind: &str) -> Result<usize, Error> {
        self.shared.values.count(&self.shared.link, kind).await
    }

    /// The usage of the bounds. Claims have no bound in Redis.
    pub(crate) async fn usage(&self) -> Result<Usage, Error> {
        Ok(Usage { state_bytes: self.shared.values.bytes(&self.shared.link).await?, claims: 0 })
    }

    pub(crate) async fn get(&self, key: &ChannelName) -> Result<Option<Vec<u8>>, Error> {
        state::value(&self.shared.link, key).await
    }

    pub(crate) async fn delete(&self, key: &ChannelName, fence: Option<&Fence>) -> Result<(), Error> {
        self.shared.values.delete(&self.shared.link, key, fence).await
    }

    pub(crate) async fn acquire(&self, key: &ChannelName, owner: &str, ttl_ms: u64) -> Result<Acquisition, Error> {
        self.shared.leases.acquire(&self.shared.link, key, owner, ttl_ms).await
    }

    pub(crate) async fn renew(&self, fence: &Fence, ttl_ms: u64) -> Result<(), Error> {
        self.shared.leases.renew(&self.shared.link, fence, ttl_ms).await
    }

    pub(crate) async fn release(&self, fence: &Fence) -> Result<(), Error> {
        self.shared.leases.release(&self.shared.link, fence).await
    }

    pub(crate) async fn close(&self) {
        self.shared.leases.release_all(&self.shared.link).await;
    }

    pub(crate) async fn keys(&self, kind: &str, after: &str, limit: usize) -> Result<Vec<String>, Error> {
        self.shared.values.keys(&self.shared.link, kind, after, limit).await
    }

    pub(crate) async fn health(&self) -> Health {
        let (run, detail) = match self.shared.link.ping().await {
            Ok(run) => (Some(run), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let life = run.filter(|_| !self.shared.config.durable);
        let fallback = detail.is_some() && self.shared.falls_back();
        Health { store: StoreKind::Redis, ok: detail.is_none() || fallback, fallback, detail, life }
    }

    /// Renews the owner records of channels that are followed here, even if no event is published to them.
    pub(crate) async fn sweep(&self) {
        let Shared { config, clock, hub, link, .. } = &*self.shared;
        let (now_ms, age_ms_max) = (clock.now_ms(), config.retention.age_ms_max.max(1));
        if now_ms.saturating_sub(self.renewed_ms.load(Ordering::Relaxed)) < age_ms_max / RENEWALS {
            return;
        }
        let followed = hub.all().into_iter().filter(|channel| !channel.lock().idle());
        let records: Vec<ChannelName> = followed.filter_map(|channel| channel.name.owner_record()).collect();
        for chunk in records.chunks(RENEWED_AT_ONCE) {
            let mut renew = redis::pipe();
            for record in chunk {
                renew.cmd("PEXPIRE").arg(self.shared.key(record)).arg(age_ms_max).ignore();
                let remembered_ms = age_ms_max.saturating_add(REMEMBERED_MS);
                renew.cmd("PEXPIRE").arg(self.shared.meta_key(record)).arg(remembered_ms).ignore();
            }
            let renewed: Result<(), Error> =
                link.request(|mut server| async move { renew.query_async(&mut server.connection).await }).await;
            if renewed.is_err() {
                // The next sweep tries again.
                return;
            }
        }
        self.renewed_ms.store(now_ms, Ordering::Relaxed);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
