//! Channels in this process, gone with it.

use std::sync::{Arc, Mutex};

use weir_core::channel::{ChannelName, Claims, Cursor, Draft, Log, Page};

use crate::clock::now_ms;
use crate::config::EventsConfig;
use crate::error::{Error, lock};
use crate::hub::{Hub, State, beginning, wake};
use crate::subscription::Subscription;

#[derive(Debug)]
pub(crate) struct Memory {
    config: Arc<EventsConfig>,
    hub: Arc<Hub>,
    claims: Mutex<Claims>,
}

impl Memory {
    pub(crate) fn new(config: Arc<EventsConfig>, hub: Arc<Hub>) -> Self {
        let claims = Mutex::new(Claims::new(config.claims_max));
        Self { config, hub, claims }
    }

    pub(crate) fn append(&self, name: &ChannelName, mut drafts: Vec<Draft>) -> Result<Vec<Cursor>, Error> {
        loop {
            let channel = self.hub.insert(name, || self.empty())?;
            let mut state = channel.lock();
            if state.gone {
                continue;
            }
            let entries = state.stamp(std::mem::take(&mut drafts), now_ms())?;
            state.log_and_offer(&entries);
            wake(state);
            return Ok(entries.iter().map(|entry| entry.cursor).collect());
        }
    }

    pub(crate) fn read(&self, name: &ChannelName, after: Cursor, limit: usize) -> Page {
        match self.hub.resident(name) {
            Some(channel) => {
                let mut state = channel.lock();
                state.log.expire(now_ms());
                state.log.read(after, limit, self.config.page_bytes_max)
            }
            None => self.empty().log.read(after, limit, self.config.page_bytes_max),
        }
    }

    pub(crate) fn follow(&self, name: &ChannelName, after: Cursor) -> Result<Subscription, Error> {
        loop {
            let channel = self.hub.insert(name, || self.empty())?;
            channel.lock().log.expire(now_ms());
            if let Some(subscription) = self.hub.subscribe(&channel, after)? {
                return Ok(subscription);
            }
        }
    }

    pub(crate) fn claim(&self, key: &str, ttl_ms: u64) -> Result<bool, Error> {
        Ok(lock(&self.claims).claim(key, now_ms(), ttl_ms)?)
    }

    pub(crate) fn sweep(&self) {
        lock(&self.claims).expire(now_ms());
    }

    fn empty(&self) -> State {
        State::new(Log::new(self.config.retention, beginning()))
    }
}
