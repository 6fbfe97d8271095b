//! Leases with fencing tokens: one owner at a time for a key, and a store that refuses the writes of earlier owners.
//!
//! A lease ends by the clock, but safety does not depend on the clock. Every acquisition has a greater token than those
//! before it, and a write carries the token of its owner: the store refuses it unless that token is the newest of its
//! key. An owner that was paused past the end of its lease can therefore not write after another has acquired it
//! (Kleppmann, "How to do distributed locking", 2016; Gray and Cheriton, "Leases", 1989).
//!
//! An expired lease that no other owner has acquired can still be renewed, with the same token: no other owner has
//! written since.

use std::collections::HashMap;

use thiserror::Error;

use super::ChannelName;

/// How long a released lease can still be renewed by its last owner, in milliseconds.
pub const RELEASED_MS: u64 = 60_000;
/// How long an expired lease can still be renewed, in milliseconds.
pub const EXPIRED_MS: u64 = 86_400_000;
/// The interval at which leases are removed, in milliseconds.
const EXPIRE_INTERVAL_MS: u64 = 10_000;

/// The proof of a write that its author owns the lease of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The key of the lease, which need not be the key that is written.
    pub key: ChannelName,
    /// The token that the acquisition returned.
    pub token: u64,
}

/// Why a lease was not acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AcquireError {
    /// Another owner has it.
    #[error("another owner has the lease, for {remaining_ms} ms unless it is renewed")]
    Held {
        /// The time until it ends unless its owner renews it.
        remaining_ms: u64,
    },
    /// There is no room for another lease.
    #[error("{leases_max} leases are held, and no more fit")]
    Full {
        /// The bound.
        leases_max: usize,
    },
}

/// The token is not the newest of its key: the lease was acquired again, or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the lease is not held any more")]
pub struct StaleFence;

#[derive(Debug, Clone)]
struct Lease {
    token: u64,
    owner: Box<str>,
    end_ms: u64,
    remove_at_ms: u64,
}

/// Leases of one process. Times are milliseconds of a clock that never goes back.
#[derive(Debug)]
pub struct Leases {
    leases_max: usize,
    leases: HashMap<ChannelName, Lease>,
    last_token: u64,
    expire_at_ms: u64,
}

impl Leases {
    /// No leases, and room for `leases_max` (0 counts as 1). Tokens begin after `last_token`, which must not be below
    /// any token of an earlier process.
    pub fn new(leases_max: usize, last_token: u64) -> Self {
        Self { leases_max: leases_max.max(1), leases: HashMap::new(), last_token, expire_at_ms: 0 }
    }

    /// The number of leases, including expired ones that were not removed yet.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// True when there is no lease.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Acquires the lease of a key for an owner, and returns its token. The current owner gets a new token; its earlier
    /// one becomes stale.
    ///
    /// # Errors
    ///
    /// Another owner has it, or there is no room.
    pub fn acquire(&mut self, key: &ChannelName, owner: &str, now_ms: u64, ttl_ms: u64) -> Result<u64, AcquireError> {
        match self.leases.get(key) {
            Some(lease) if *lease.owner != *owner && lease.end_ms > now_ms => {
                return Err(AcquireError::Held { remaining_ms: lease.end_ms - now_ms });
            }
            Some(_) => {}
            None if self.leases.len() >= self.leases_max => {
                self.expire_at_ms = 0;
                self.expire(now_ms);
                if self.leases.len() >= self.leases_max {
                    return Err(AcquireError::Full { leases_max: self.leases_max });
                }
            }
            None => self.expire(now_ms),
        }
        self.last_token += 1;
        let (end_ms, remove_at_ms) = ends(now_ms, ttl_ms);
        let lease = Lease { token: self.last_token, owner: owner.into(), end_ms, remove_at_ms };
        self.leases.insert(key.clone(), lease);
        Ok(self.last_token)
    }

    /// Extends a lease to `ttl_ms` from now.
    ///
    /// # Errors
    ///
    /// The token is not the newest one of the lease.
    pub fn renew(&mut self, fence: &Fence, now_ms: u64, ttl_ms: u64) -> Result<(), StaleFence> {
        let lease = self.leases.get_mut(&fence.key).filter(|lease| lease.token == fence.token).ok_or(StaleFence)?;
        (lease.end_ms, lease.remove_at_ms) = ends(now_ms, ttl_ms);
        Ok(())
    }

    /// Ends a lease now. Until another owner acquires it, its token stays valid for [`RELEASED_MS`].
    ///
    /// # Errors
    ///
    /// The token is not the newest one of the lease.
    pub fn release(&mut self, fence: &Fence, now_ms: u64) -> Result<(), StaleFence> {
        let lease = self.leases.get_mut(&fence.key).filter(|lease| lease.token == fence.token).ok_or(StaleFence)?;
        (lease.end_ms, lease.remove_at_ms) = (now_ms, now_ms.saturating_add(RELEASED_MS));
        Ok(())
    }

    /// Checks that a write with this token is allowed.
    ///
    /// # Errors
    ///
    /// The token is not the newest one of the lease.
    pub fn check(&self, fence: &Fence) -> Result<(), StaleFence> {
        match self.leases.get(&fence.key) {
            Some(lease) if lease.token == fence.token => Ok(()),
            _ => Err(StaleFence),
        }
    }

    /// Removes leases that can no longer be renewed. Most calls return at once, so it may be called often.
    pub fn expire(&mut self, now_ms: u64) {
        if now_ms >= self.expire_at_ms {
            self.expire_at_ms = now_ms.saturating_add(EXPIRE_INTERVAL_MS);
            self.leases.retain(|_, lease| lease.remove_at_ms > now_ms);
        }
    }
}

fn ends(now_ms: u64, ttl_ms: u64) -> (u64, u64) {
    let end_ms = now_ms.saturating_add(ttl_ms);
    (end_ms, end_ms.saturating_add(EXPIRED_MS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> ChannelName {
        text.parse().unwrap()
    }

    fn fence(token: u64) -> Fence {
        Fence { key: key("execution:x"), token }
    }

    #[test]
    fn lease_held_by_another_is_refused_until_it_ends() {
        let mut leases = Leases::new(10, 0);
        let first = leases.acquire(&key("execution:x"), "a", 0, 100).unwrap();
        let held = |remaining_ms| Err(AcquireError::Held { remaining_ms });
        assert_eq!(leases.acquire(&key("execution:x"), "b", 30, 100), held(70));
        leases.renew(&fence(first), 90, 100).unwrap();
        assert_eq!(leases.acquire(&key("execution:x"), "b", 189, 100), held(1));
        let second = leases.acquire(&key("execution:x"), "b", 190, 100).unwrap();
        assert!(second > first);
        assert_eq!(leases.renew(&fence(first), 191, 100), Err(StaleFence));
        assert_eq!((leases.check(&fence(first)), leases.check(&fence(second))), (Err(StaleFence), Ok(())));
    }

    #[test]
    fn expired_lease_without_a_new_owner_is_renewed_with_its_token() {
        let mut leases = Leases::new(10, 0);
        let token = leases.acquire(&key("execution:x"), "a", 0, 100).unwrap();
        assert_eq!(leases.check(&fence(token)), Ok(()));
        assert_eq!(leases.renew(&fence(token), 5_000, 100), Ok(()));
        assert!(leases.acquire(&key("execution:x"), "b", 5_099, 100).is_err());
    }

    #[test]
    fn released_lease_is_free_at_once() {
        let mut leases = Leases::new(10, 0);
        let token = leases.acquire(&key("execution:x"), "a", 0, 100).unwrap();
        leases.release(&fence(token), 10).unwrap();
        leases.renew(&fence(token), 20, 100).unwrap();
        leases.release(&fence(token), 30).unwrap();
        leases.acquire(&key("execution:x"), "b", 30, 100).unwrap();
        assert_eq!(leases.release(&fence(token), 40), Err(StaleFence));
    }

    #[test]
    fn same_owner_gets_a_new_token_and_loses_the_earlier_one() {
        let mut leases = Leases::new(10, 7);
        let first = leases.acquire(&key("execution:x"), "a", 0, 100).unwrap();
        let second = leases.acquire(&key("execution:x"), "a", 1, 100).unwrap();
        assert_eq!((first, second), (8, 9));
        assert_eq!(leases.check(&fence(first)), Err(StaleFence));
    }

    #[test]
    fn leases_are_bounded_and_removed_after_their_end() {
        let mut leases = Leases::new(1, 0);
        let token = leases.acquire(&key("execution:x"), "a", 0, 100).unwrap();
        assert_eq!(leases.acquire(&key("execution:y"), "a", 1, 100), Err(AcquireError::Full { leases_max: 1 }));
        leases.release(&fence(token), 10).unwrap();
        leases.acquire(&key("execution:y"), "a", 10 + RELEASED_MS, 100).unwrap();
        assert_eq!(leases.check(&fence(token)), Err(StaleFence));
    }

    proptest! {
        // For any order of acquisitions, renewals and releases, only the newest token of a key is valid, and a key
        // changes its owner only when the lease has ended.
        #[test]
        fn only_the_newest_token_is_valid(ops in prop::collection::vec((0u8..3, 0u8..3, 0u64..60, 1u64..80), 0..200)) {
            let mut leases = Leases::new(10, 0);
            let (mut now, mut end) = (0, 0);
            let mut tokens: Vec<(u64, u8)> = Vec::new();
            for (op, owner, wait, ttl) in ops {
                now += wait;
                let mine = tokens.iter().rev().find(|(_, by)| *by == owner).map(|(token, _)| *token);
                let newest = tokens.last().copied();
                match op {
                    0 => match leases.acquire(&key("execution:x"), &owner.to_string(), now, ttl) {
                        Ok(token) => {
                            prop_assert!(newest.is_none_or(|(last, by)| token > last && (by == owner || end <= now)));
                            tokens.push((token, owner));
                            end = now + ttl;
                        }
                        Err(_) => prop_assert!(end > now && newest.is_some_and(|(_, by)| by != owner)),
                    },
                    op => if let Some(mine) = mine {
                        let valid = newest.is_some_and(|(token, _)| token == mine);
                        let result = match op {
                            1 => leases.renew(&fence(mine), now, ttl),
                            _ => leases.release(&fence(mine), now),
                        };
                        prop_assert_eq!(result.is_ok(), valid);
                        if valid {
                            end = if op == 1 { now + ttl } else { now };
                        }
                    },
                }
                for (token, _) in &tokens {
                    prop_assert_eq!(leases.check(&fence(*token)).is_ok(), Some(*token) == tokens.last().map(|(t, _)| *t));
                }
            }
        }
    }
}
