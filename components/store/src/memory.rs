//! The store in the memory of the component.

use std::cell::RefCell;
use std::sync::Arc;

use weir_core::channels::{
    AcquireError, ChannelName, Claims, Cursor, Delivery, Draft, Fence, Leases, Page, ShareExceeded, Subscriber, Values,
};

use crate::{
    Acquisition, Condition, Failure, OUTBOX_BYTES_MAX, PAGE_BYTES_MAX, RETRY_MS, Store,
    channels::{Channel, Channels},
    clock_ms, now_ms,
};

const CHANNELS_MAX: usize = 1000;
const CLAIMS_MAX: usize = 1000;
const LEASES_MAX: usize = 10_000;
const STATE_BYTES_MAX: usize = 64 << 20;

struct State {
    channels: Channels,
    claims: Claims,
    values: Values<Vec<u8>>,
    leases: Leases,
    followers: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            channels: Channels::default(),
            claims: Claims::new(CLAIMS_MAX, 100),
            values: Values::new(STATE_BYTES_MAX, 100),
            leases: Leases::new(LEASES_MAX, 0),
            followers: 0,
        }
    }
}

/// A store in memory: as old as its instance.
#[derive(Default)]
pub struct Memory {
    state: RefCell<State>,
}

impl Memory {
    /// Calls a function with a channel, which is created if it does not exist.
    fn with<T>(&self, name: &ChannelName, act: impl FnOnce(&mut Channel) -> T) -> Result<T, Failure> {
        let mut state = self.state.borrow_mut();
        let channel = state.channels.open(name, now_ms(), CHANNELS_MAX).ok_or(Failure::Unavailable(RETRY_MS))?;
        Ok(act(channel))
    }

    /// Fails if the lease of a write is lost.
    fn check(&self, fence: Option<&Fence>) -> Result<(), Failure> {
        let Some(fence) = fence else { return Ok(()) };
        self.state.borrow().leases.check(fence).map_err(|_| Failure::Fenced)
    }
}

impl Store for Memory {
    async fn append(
        &self,
        channel: &ChannelName,
        drafts: Vec<Draft>,
        fence: Option<Fence>,
    ) -> Result<Vec<Cursor>, Failure> {
        self.check(fence.as_ref())?;
        self.with(channel, |channel| {
            if channel.log.finished() {
                return Err(Failure::Finished);
            }
            let mut cursors = Vec::new();
            for draft in drafts {
                let entry = Arc::new(draft.at(channel.log.last().next(), now_ms()));
                cursors.push(entry.cursor);
                channel.log.push(entry.clone());
                for (_, subscriber) in &mut channel.subscribers {
                    subscriber.handle_appended(&entry);
                }
            }
            Ok(cursors)
        })?
    }

    fn read(&self, channel: &ChannelName, after: Cursor, limit: usize) -> Result<Page, Failure> {
        let mut state = self.state.borrow_mut();
        // A read creates no channel, so that reads of unknown names do not evict others.
        Ok(match state.channels.get(channel) {
            Some(channel) => channel.log.read(after, limit, PAGE_BYTES_MAX),
            None => state.channels.empty_log(now_ms()).read(after, limit, PAGE_BYTES_MAX),
        })
    }

    fn follow(&self, channel: &ChannelName, after: Cursor) -> Result<u64, Failure> {
        let follower = {
            let mut state = self.state.borrow_mut();
            state.followers += 1;
            state.followers
        };
        self.with(channel, |channel| {
            let subscriber = Subscriber::new(after, OUTBOX_BYTES_MAX, &channel.log);
            channel.subscribers.push((follower, subscriber));
        })?;
        Ok(follower)
    }

    fn poll(&self, channel: &ChannelName, follower: u64) -> (Vec<Delivery>, bool) {
        let mut state = self.state.borrow_mut();
        let Some(Channel { log, subscribers, .. }) = state.channels.get(channel) else { return (Vec::new(), true) };
        let Some((_, subscriber)) = subscribers.iter_mut().find(|(other, _)| *other == follower) else {
            return (Vec::new(), true);
        };
        let deliveries = std::iter::from_fn(|| subscriber.poll(log)).collect();
        (deliveries, subscriber.ended())
    }

    fn unfollow(&self, channel: &ChannelName, follower: u64) {
        if let Some(channel) = self.state.borrow_mut().channels.get(channel) {
            channel.subscribers.retain(|(other, _)| *other != follower);
        }
    }

    async fn claim(&self, key: &str, ttl_ms: u64) -> Result<bool, Failure> {
        let claimed = self.state.borrow_mut().claims.claim(key, now_ms(), ttl_ms);
        claimed.map_err(|_| Failure::Unavailable(RETRY_MS))
    }

    fn health(&self) -> Condition {
        let followers = self.state.borrow().channels.subscribers() as u32;
        let (store, exhausted) = ("memory".to_owned(), Vec::new());
        Condition { store, ok: true, fallback: false, detail: None, followers, exhausted, life: None }
    }

    async fn put(
        &self,
        key: &ChannelName,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        fence: Option<Fence>,
        user: Option<&str>,
    ) -> Result<(), Failure> {
        self.check(fence.as_ref())?;
        let (now_ms, bytes) = (now_ms(), value.len());
        let end_ms = ttl_ms.map_or(Values::<()>::NEVER_MS, |ttl_ms| now_ms.saturating_add(ttl_ms));
        let values = &mut self.state.borrow_mut().values;
        values.expire(now_ms);
        values.put(key, value, bytes, end_ms, user).map(drop).map_err(|exceeded| match exceeded {
            ShareExceeded::User { .. } => Failure::ShareExceeded(RETRY_MS),
            ShareExceeded::Total { .. } => Failure::Full(RETRY_MS),
        })
    }

    fn value(&self, key: &ChannelName) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.state.borrow().values.value(key, now_ms()).cloned())
    }

    async fn delete(&self, key: &ChannelName, fence: Option<Fence>) -> Result<(), Failure> {
        self.check(fence.as_ref())?;
        self.state.borrow_mut().values.delete(key);
        Ok(())
    }

    fn keys(&self, kind: &str, after: &str, limit: usize) -> Result<Vec<String>, Failure> {
        let state = self.state.borrow();
        Ok(state.values.keys(kind, after, limit, now_ms()).iter().map(ToString::to_string).collect())
    }

    fn count(&self, kind: &str) -> Result<u64, Failure> {
        Ok(self.state.borrow().values.count(kind) as u64)
    }

    async fn acquire(&self, key: &ChannelName, owner: &str, ttl_ms: u64) -> Result<Acquisition, Failure> {
        match self.state.borrow_mut().leases.acquire(key, owner, clock_ms(), ttl_ms) {
            Ok(token) => Ok(Acquisition::Acquired(token)),
            Err(AcquireError::Held { remaining_ms }) => Ok(Acquisition::Held(remaining_ms)),
            Err(AcquireError::Full { .. }) => Err(Failure::Unavailable(RETRY_MS)),
        }
    }

    async fn renew(&self, fence: &Fence, ttl_ms: u64) -> Result<(), Failure> {
        self.state.borrow_mut().leases.renew(fence, clock_ms(), ttl_ms).map_err(|_| Failure::Fenced)
    }

    async fn release(&self, fence: &Fence) -> Result<(), Failure> {
        self.state.borrow_mut().leases.release(fence, clock_ms()).map_err(|_| Failure::Fenced)
    }
}
