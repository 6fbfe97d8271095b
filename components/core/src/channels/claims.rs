//! Keys that exactly one caller gets: single-use tickets, requests that must not be done twice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use thiserror::Error;

use super::{ShareExceeded, Shares};

/// No room for another claim: nothing that has not ended is ever let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ClaimsFull {
    /// All users together hold as many as there may be.
    #[error("too many claims are held; one ends in {retry_after_ms} ms")]
    Total {
        /// When the next one ends.
        retry_after_ms: u64,
    },
    /// The user holds as many as one user may hold.
    #[error("the user holds {max} claims, as many as one user may hold")]
    User {
        /// The most that one user may hold.
        max: usize,
    },
}

/// The user whose share a claim takes: the part between the first and the last colon of `KIND:USER:ID`.
fn user_of(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once(':')?;
    rest.rsplit_once(':').map(|(user, _)| user)
}

/// Claims that have not ended. A key `KIND:USER:ID` counts for the user that it names.
#[derive(Debug)]
pub struct Claims {
    claims_max: usize,
    shares: Shares,
    ends_ms: HashMap<Arc<str>, u64>,
    by_end: BinaryHeap<Reverse<(u64, Arc<str>)>>,
}

impl Claims {
    /// No claims, with room for `claims_max`, at least 1, of which one user may hold `user_percent_max` percent.
    pub fn new(claims_max: usize, user_percent_max: u8) -> Self {
        let claims_max = claims_max.max(1);
        let shares = Shares::new(claims_max, user_percent_max);
        Self { claims_max, shares, ends_ms: HashMap::new(), by_end: BinaryHeap::new() }
    }

    /// Claims held, ended ones included that were not requested since.
    pub fn len(&self) -> usize {
        self.ends_ms.len()
    }

    /// True when none is held.
    pub fn is_empty(&self) -> bool {
        self.ends_ms.is_empty()
    }

    /// Claims a key for so long: true for the first caller, false for all others until the time has passed.
    ///
    /// # Errors
    ///
    /// As many as may be are held.
    pub fn claim(&mut self, key: &str, now_ms: u64, ttl_ms: u64) -> Result<bool, ClaimsFull> {
        self.expire(now_ms);
        if self.ends_ms.contains_key(key) {
            return Ok(false);
        }
        if let Some(Reverse((end_ms, _))) = self.by_end.peek().filter(|_| self.ends_ms.len() >= self.claims_max) {
            return Err(ClaimsFull::Total { retry_after_ms: end_ms.saturating_sub(now_ms) });
        }
        if let Err(ShareExceeded::User { max, .. }) = self.shares.check(user_of(key), 1, 0) {
            return Err(ClaimsFull::User { max });
        }
        self.restore(key, now_ms.saturating_add(ttl_ms));
        Ok(true)
    }

    /// Puts back a claim that a store remembers.
    pub fn restore(&mut self, key: &str, end_ms: u64) {
        let key: Arc<str> = key.into();
        if self.ends_ms.insert(Arc::clone(&key), end_ms).is_none() {
            self.shares.add(user_of(&key), 1);
        }
        self.by_end.push(Reverse((end_ms, key)));
        // Released keys leave their ends behind.
        if self.by_end.len() > 2 * self.claims_max.max(self.ends_ms.len()) {
            self.by_end = self.ends_ms.iter().map(|(key, end_ms)| Reverse((*end_ms, Arc::clone(key)))).collect();
        }
    }

    /// Releases a claim that could not be stored.
    pub fn release(&mut self, key: &str) {
        if self.ends_ms.remove(key).is_some() {
            self.shares.remove(user_of(key), 1);
        }
    }

    /// Removes expired claims, and returns their keys.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Arc<str>> {
        let mut ended = Vec::new();
        while let Some(Reverse((end_ms, _))) = self.by_end.peek() {
            if *end_ms > now_ms {
                break;
            }
            let Some(Reverse((end_ms, key))) = self.by_end.pop() else { break };
            // A released key may have been claimed again for longer.
            if self.ends_ms.get(&key) == Some(&end_ms) {
                self.release(&key);
                ended.push(key);
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_caller_has_a_claim_until_it_expires() {
        let mut claims = Claims::new(10, 100);
        assert_eq!(claims.claim("a", 0, 100), Ok(true));
        assert_eq!(claims.claim("a", 99, 100), Ok(false));
        assert_eq!(claims.claim("b", 99, 100), Ok(true));
        assert_eq!(claims.claim("a", 100, 100), Ok(true));
    }

    #[test]
    fn full_means_refused() {
        let mut claims = Claims::new(2, 100);
        assert_eq!((claims.claim("a", 0, 50), claims.claim("b", 0, 90)), (Ok(true), Ok(true)));
        assert_eq!(claims.claim("c", 10, 1), Err(ClaimsFull::Total { retry_after_ms: 40 }));
        assert_eq!(claims.claim("a", 10, 1), Ok(false));
        assert_eq!(claims.claim("c", 50, 1), Ok(true));
    }

    #[test]
    fn user_with_a_full_share_is_refused_until_a_claim_ends_and_others_are_not() {
        let mut claims = Claims::new(8, 25);
        assert_eq!((claims.claim("t:ann:1", 0, 50), claims.claim("t:ann:2", 0, 90)), (Ok(true), Ok(true)));
        assert_eq!(claims.claim("t:ann:3", 0, 90), Err(ClaimsFull::User { max: 2 }));
        // A key that is held is answered as ever, and other users and keys without a user have their room.
        assert_eq!(claims.claim("t:ann:1", 0, 50), Ok(false));
        assert_eq!((claims.claim("t:urn:b:1", 0, 50), claims.claim("label", 0, 50)), (Ok(true), Ok(true)));
        assert_eq!(claims.claim("t:ann:3", 50, 90), Ok(true));
        claims.release("t:ann:2");
        assert_eq!(claims.claim("t:ann:4", 50, 90), Ok(true));
        assert_eq!(claims.claim("t:ann:5", 50, 90), Err(ClaimsFull::User { max: 2 }));
        assert_eq!(user_of("t:urn:b:1"), Some("urn:b"));
    }

    proptest! {
        #[test]
        fn claim_lasts_exactly_its_duration(
            claims_max in 1usize..5,
            ops in prop::collection::vec((0u64..20, 0u8..6, 0u64..40, any::<bool>()), 0..200),
        ) {
            let mut claims = Claims::new(claims_max, 100);
            let mut model: HashMap<String, u64> = HashMap::new();
            let mut now = 0;
            for (wait, key, ttl, release) in ops {
                now += wait;
                let key = key.to_string();
                model.retain(|_, end| *end > now);
                if release {
                    claims.release(&key);
                    model.remove(&key);
                    continue;
                }
                let held = model.contains_key(&key);
                match claims.claim(&key, now, ttl) {
                    Ok(got) => {
                        prop_assert_eq!(got, !held);
                        if got {
                            model.insert(key, now + ttl);
                        }
                    }
                    Err(_) => prop_assert!(!held && model.len() >= claims_max),
                }
                prop_assert!(claims.len() <= claims_max);
            }
        }
    }
}
