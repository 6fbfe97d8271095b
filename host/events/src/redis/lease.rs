//! Leases in Redis: a hash for each key, the newest token of all, and a script that uses the server's clock.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Script;
use weir_core::channels::{ChannelName, EXPIRED_MS, Fence, RELEASED_MS};

use crate::error::{Error, lock};
use crate::lease::Acquisition;
use crate::redis::link::Link;

/// The most keys that have acquisitions without an answer, and the most such owners of one key.
const UNANSWERED_KEYS_MAX: usize = 4096;
const UNANSWERED_OWNERS_MAX: usize = 16;
/// The least number of leases at which expired ones are removed.
const TOKENS_MIN: usize = 1024;
/// How long after the end of its lease a delayed acquisition may still reach the server.
const LATE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct RedisLeases {
    script: Script,
    /// Leases that were acquired here and not released, so that they can be released when the store is closed.
    tokens: Mutex<Tokens>,
    /// Acquisitions that the server may have performed although their owners got no answer. The next acquisition of the
    /// key names these owners, so that their leases do not delay it.
    unanswered: Mutex<HashMap<ChannelName, Vec<Unanswered>>>,
    closed: AtomicBool,
}

/// Leases and their tokens. Those that expire without a release are removed from time to time.
#[derive(Debug, Default)]
struct Tokens {
    /// The token of each lease, and its end by the clock of this process.
    held: HashMap<ChannelName, (u64, Instant)>,
    /// The number of leases at which expired ones are removed.
    expire_at: usize,
}

impl Tokens {
    fn insert(&mut self, key: ChannelName, token: u64, ttl_ms: u64) {
        let now = Instant::now();
        if self.held.len() >= self.expire_at {
            self.held.retain(|_, (_, end)| *end > now);
            self.expire_at = (self.held.len() * 2).max(TOKENS_MIN);
        }
        // The longest lease is an hour.
        self.held.insert(key, (token, now + Duration::from_millis(ttl_ms)));
    }

    fn remove(&mut self, fence: &Fence) {
        if self.held.get(&fence.key).is_some_and(|(token, _)| *token == fence.token) {
            self.held.remove(&fence.key);
        }
    }

    fn fences(&self) -> Vec<Fence> {
        self.held.iter().map(|(key, (token, _))| Fence { key: key.clone(), token: *token }).collect()
    }
}

/// An owner whose acquisition has no answer.
#[derive(Debug)]
struct Unanswered {
    owner: Box<str>,
    until: Instant,
}

/// An acquisition that was sent. If it is dropped without an answer, its owner is recorded as having given up.
struct PendingAcquisition<'a> {
    leases: &'a RedisLeases,
    key: &'a ChannelName,
    owner: &'a str,
    ttl_ms: u64,
    is_answered: bool,
}

impl Drop for PendingAcquisition<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.leases.give_up(self.key, self.owner, self.ttl_ms);
        }
    }
}

impl RedisLeases {
    pub(crate) fn new() -> Self {
        Self {
            script: Script::new(include_str!("lease.lua")),
            tokens: Mutex::default(),
            unanswered: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) async fn acquire(
        &self,
        link: &Link,
        key: &ChannelName,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<Acquisition, Error> {
        let given_up = self.given_up(key, owner);
        // The caller may drop this future before the answer, too.
        let mut pending = PendingAcquisition { leases: self, key, owner, ttl_ms, is_answered: false };
        let (outcome, number) = self.run(link, "acquire", key, owner, ttl_ms, &given_up).await?;
        pending.is_answered = true;
        self.answered(key, owner);
        if outcome == "held" {
            return Ok(Acquisition::Held { remaining_ms: number });
        }
        lock(&self.tokens).insert(key.clone(), number, ttl_ms);
        Ok(Acquisition::Acquired(number))
    }

    pub(crate) async fn renew(&self, link: &Link, fence: &Fence, ttl_ms: u64) -> Result<(), Error> {
        let (outcome, _) = self.run(link, "renew", &fence.key, &fence.token.to_string(), ttl_ms, &[]).await?;
        if outcome == "fenced" {
            self.forget(fence);
            return Err(Error::Fenced);
        }
        lock(&self.tokens).insert(fence.key.clone(), fence.token, ttl_ms);
        Ok(())
    }

    pub(crate) async fn release(&self, link: &Link, fence: &Fence) -> Result<(), Error> {
        let (outcome, _) = self.run(link, "release", &fence.key, &fence.token.to_string(), 0, &[]).await?;
        self.forget(fence);
        if outcome == "fenced" { Err(Error::Fenced) } else { Ok(()) }
    }

    /// Releases all leases that are held here, so that other owners need not wait for their end. Best effort: otherwise
    /// they expire.
    pub(crate) async fn release_all(&self, link: &Link) {
        self.closed.store(true, Ordering::Relaxed);
        let fences = lock(&self.tokens).fences();
        for fence in fences {
            if let Err(Error::Unavailable { .. }) = self.release(link, &fence).await {
                return;
            }
        }
    }

    /// The owners that gave up an acquisition of this key, except for the one that acquires it now.
    fn given_up(&self, key: &ChannelName, owner: &str) -> Vec<Box<str>> {
        let now = Instant::now();
        let unanswered = lock(&self.unanswered);
        let owners = unanswered.get(key).into_iter().flatten();
        owners.filter(|one| one.until > now && *one.owner != *owner).map(|one| one.owner.clone()).collect()
    }

    /// Records that an owner gave up its acquisition without an answer.
    fn give_up(&self, key: &ChannelName, owner: &str, ttl_ms: u64) {
        let now = Instant::now();
        let mut unanswered = lock(&self.unanswered);
        if unanswered.len() >= UNANSWERED_KEYS_MAX {
            unanswered.retain(|_, owners| owners.iter().any(|one| one.until > now));
        }
        if unanswered.len() >= UNANSWERED_KEYS_MAX && !unanswered.contains_key(key) {
            return;
        }
        let owners = unanswered.entry(key.clone()).or_default();
        owners.retain(|one| one.until > now && *one.owner != *owner);
        if owners.len() >= UNANSWERED_OWNERS_MAX {
            owners.remove(0);
        }
        let until = now + Duration::from_millis(ttl_ms).saturating_add(LATE);
        owners.push(Unanswered { owner: owner.into(), until });
    }

    /// Removes the record that an owner had no answer.
    fn answered(&self, key: &ChannelName, owner: &str) {
        let mut unanswered = lock(&self.unanswered);
        if let Some(owners) = unanswered.get_mut(key) {
            owners.retain(|one| *one.owner != *owner);
            if owners.is_empty() {
                unanswered.remove(key);
            }
        }
    }

    fn forget(&self, fence: &Fence) {
        lock(&self.tokens).remove(fence);
    }

    async fn run(
        &self,
        link: &Link,
        action: &str,
        key: &ChannelName,
        holder: &str,
        ttl_ms: u64,
        given_up: &[Box<str>],
    ) -> Result<(String, u64), Error> {
        if action != "release" && self.closed.load(Ordering::Relaxed) {
            return Err(Error::unavailable("the channel store is closed", 1_000));
        }
        let mut call = self.script.prepare_invoke();
        call.key(lease_key(link, key)).key(format!("{}@@lease-token", link.config.prefix));
        call.arg(action).arg(holder).arg(ttl_ms).arg(EXPIRED_MS).arg(RELEASED_MS);
        for owner in given_up {
            call.arg(&**owner);
        }
        link.request(|mut server| async move { call.invoke_async(&mut server.connection).await }).await
    }
}

/// The key of a lease, with the token that a fenced write is compared with.
pub(crate) fn lease_key(link: &Link, key: &ChannelName) -> String {
    format!("{}@@lease:{key}", link.config.prefix)
}

/// The lease key and the token with which a script checks a write; two empty strings if the write is not fenced.
pub(crate) fn fence_arguments(link: &Link, fence: Option<&Fence>) -> (String, String) {
    fence.map_or_else(Default::default, |fence| (lease_key(link, &fence.key), fence.token.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_that_expire_without_a_release_are_removed() {
        let mut tokens = Tokens::default();
        let key = |number: u64| format!("execution:{number}").parse::<ChannelName>().unwrap();
        tokens.insert(key(0), 1, 3_600_000);
        for number in 1..10_000 {
            tokens.insert(key(number), number, 0);
            assert!(tokens.held.len() <= TOKENS_MIN + 1, "{} leases, of which one is held", tokens.held.len());
        }
        assert!(tokens.fences().iter().any(|fence| fence.key == key(0) && fence.token == 1));
        tokens.remove(&Fence { key: key(0), token: 1 });
        assert!(tokens.fences().iter().all(|fence| fence.key != key(0)));
    }
}
