//! Claims: keys that exactly one caller obtains, for single-use tickets and for requests that must not be executed
//! twice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use thiserror::Error;

use super::{ShareExceeded, Shares};

/// Why there is no room for another claim. Claims are never evicted before they expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ClaimsFull {
    /// All users together have reached the bound.
    #[error("too many claims are held; one ends in {retry_after_ms} ms")]
    Total {
        /// When the next claim expires.
        retry_after_ms: u64,
    },
    /// The user has reached the bound of one user.
    #[error("the user holds {max} claims, as many as one user may hold")]
    User {
        /// The bound.
        max: usize,
    },
}

/// The user towards whose share a claim counts: the part between the first and the last colon of `KIND:USER:ID`.
fn user_of(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once(':')?;
    rest.rsplit_once(':').map(|(user, _)| user)
}

/// The current claims. A key `KIND:USER:ID` counts towards the share of the user that it names.
#[derive(Debug)]
pub struct Claims {
    claims_max: usize,
    shares: Shares,
    ends_ms: HashMap<Arc<str>, u64>,
    by_end: BinaryHeap<Reverse<(u64, Arc<str>)>>,
}

impl Claims {
    /// No claims, with room for `claims_max` (0 counts as 1), of which one user may hold `user_percent_max` percent.
    pub fn new(claims_max: usize, user_percent_max: u8) -> Self {
        let claims_max = claims_max.max(1);
        let shares = Shares::new(claims_max, user_percent_max);
        Self { claims_max, shares, ends_ms: HashMap::new(), by_end: BinaryHeap::new() }
    }

    /// The number of claims, including expired ones that were not removed yet.
    pub fn len(&self) -> usize {
        self.ends_ms.len()
    }

    /// True when there is no claim.
    pub fn is_empty(&self) -> bool {
        self.ends_ms.is_empty()
    }

    /// Claims a key for `ttl_ms`: true for the first caller, false for all others until the claim expires.
    ///
    /// # Errors
    ///
    /// The bound of all claims, or of the user's, is reached.
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

    /// Restores a stored claim, without a check of the bounds.
    pub fn restore(&mut self, key: &str, end_ms: u64) {
        let key: Arc<str> = key.into();
        if self.ends_ms.insert(Arc::clone(&key), end_ms).is_none() {
            self.shares.add(user_of(&key), 1);
        }
        self.by_end.push(Reverse((end_ms, key)));
        // The ends of released claims remain in the heap until it is rebuilt.
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
        let mut expired = Vec::new();
        while let Some(Reverse((end_ms, _))) = self.by_end.peek() {
            if *end_ms > now_ms {
                break;
            }
            let Some(Reverse((end_ms, key))) = self.by_end.pop() else { break };
            // A released key may have been claimed again, with another end.
            if self.ends_ms.get(&key) == Some(&end_ms) {
                self.release(&key);
                expired.push(key);
            }
        }
        expired
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
    fn claim_beyond_the_bound_is_refused() {
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
        // A claimed key is still answered with false, and other users and keys without a user have room.
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
                    Ok(is_first) => {
                        prop_assert_eq!(is_first, !held);
                        if is_first {
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
