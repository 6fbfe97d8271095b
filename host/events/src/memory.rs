//! Channels and values in the memory of this process.

use std::sync::{Arc, Mutex};

use weir_core::channels::{ChannelName, Cursor, Draft, Fence, Log, Page, Values};

use crate::backend::{Usage, WriteContext};
use crate::claims::{ClaimEnd, Claims};
use crate::clock::Clock;
use crate::config::EventsConfig;
use crate::error::{Error, lock};
use crate::hub::{Hub, State, wake};
use crate::lease::LocalLeases;
use crate::subscription::Subscription;

#[derive(Debug)]
pub(crate) struct Memory {
    config: Arc<EventsConfig>,
    clock: Arc<Clock>,
    hub: Arc<Hub>,
    claims: Mutex<Claims>,
    values: Mutex<Values<Arc<[u8]>>>,
    pub(crate) leases: LocalLeases,
}

impl Memory {
    pub(crate) fn new(config: Arc<EventsConfig>, clock: Arc<Clock>, hub: Arc<Hub>) -> Self {
        let claims = Mutex::new(Claims::new(config.claims_max, config.user_percent_max));
        let values = Mutex::new(Values::new(config.state_bytes_max, config.user_percent_max));
        let leases = LocalLeases::new(&clock);
        Self { config, clock, hub, claims, values, leases }
    }

    pub(crate) fn append(
        &self,
        name: &ChannelName,
        mut drafts: Vec<Draft>,
        write: WriteContext<'_>,
    ) -> Result<Vec<Cursor>, Error> {
        let _owned = self.leases.check(write.fence)?;
        loop {
            let channel = self.hub.insert_to_append(name, write.user, || self.empty(name))?;
            let mut state = channel.lock();
            if state.is_removed {
                continue;
            }
            let entries = state.stamp(std::mem::take(&mut drafts), &self.clock)?;
            state.log_and_offer(&entries);
            wake(state);
            return Ok(entries.iter().map(|entry| entry.cursor).collect());
        }
    }

    pub(crate) fn read(&self, name: &ChannelName, after: Cursor, limit: usize) -> Page {
        match self.hub.resident(name) {
            Some(channel) => {
                let mut state = channel.lock();
                state.log.expire(self.clock.now_ms());
                state.log.read(after, limit, self.config.page_bytes_max)
            }
            None => self.empty(name).log.read(after, limit, self.config.page_bytes_max),
        }
    }

    pub(crate) fn follow(&self, name: &ChannelName, after: Cursor, user: Option<&str>) -> Result<Subscription, Error> {
        loop {
            let channel = self.hub.insert(name, user, || self.empty(name))?;
            channel.lock().log.expire(self.clock.now_ms());
            if let Some(subscription) = Subscription::open(&self.hub, &channel, after)? {
                return Ok(subscription);
            }
        }
    }

    pub(crate) fn claim(&self, key: &str, ttl_ms: u64) -> Result<bool, Error> {
        let end = ClaimEnd::after(&self.clock, ttl_ms);
        Ok(lock(&self.claims).claim(key, end, &self.clock)?)
    }

    pub(crate) fn put(
        &self,
        key: &ChannelName,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        write: WriteContext<'_>,
    ) -> Result<(), Error> {
        let _owned = self.leases.check(write.fence)?;
        let (now_ms, bytes) = (self.clock.now_ms(), value.len());
        let mut values = lock(&self.values);
        values.expire(now_ms);
        values.put(key, value.into(), bytes, self.clock.end_ms(ttl_ms), write.user).map_err(Error::state)?;
        Ok(())
    }

    pub(crate) fn get(&self, key: &ChannelName) -> Option<Vec<u8>> {
        let value = lock(&self.values).value(key, self.clock.now_ms()).map(Arc::clone)?;
        Some(value.to_vec())
    }

    pub(crate) fn delete(&self, key: &ChannelName, fence: Option<&Fence>) -> Result<(), Error> {
        let _owned = self.leases.check(fence)?;
        lock(&self.values).delete(key);
        Ok(())
    }

    pub(crate) fn keys(&self, kind: &str, after: &str, limit: usize) -> Vec<String> {
        let keys = lock(&self.values).keys(kind, after, limit, self.clock.now_ms());
        keys.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        lock(&self.values).count(kind)
    }

    pub(crate) fn usage(&self) -> Usage {
        let values = lock(&self.values);
        Usage { state_bytes: values.bytes().total(), claims: lock(&self.claims).len() }
    }

    /// Whether there is nothing that could expire. Leases are not counted, since their expiry is checked when they are
    /// acquired.
    pub(crate) fn is_empty(&self) -> bool {
        self.hub.len() == 0 && lock(&self.claims).len() == 0 && lock(&self.values).is_empty()
    }

    pub(crate) fn sweep(&self) {
        self.hub.sweep_records(self.clock.now_ms(), self.config.retention.age_ms_max);
        lock(&self.claims).expire(&self.clock);
        lock(&self.values).expire(self.clock.now_ms());
        self.leases.sweep();
    }

    fn empty(&self, name: &ChannelName) -> State {
        State::new(Log::new(self.config.retention_of(name), self.clock.beginning()))
    }
}
