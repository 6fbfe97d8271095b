//! Rates of requests and bounds of open connections: pure state, with a key for each client.
//!
//! The rate is the generic cell rate algorithm (ITU-T I.371, annex A): one time per key, at which the quota of the key
//! is full again. A key whose time has passed is equivalent to an unknown one, so it is not stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::Arc,
};

use thiserror::Error;

/// The rate of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaConfig {
    /// Requests per period, on average.
    pub per_period: NonZeroU32,
    /// The period, in nanoseconds; a request costs at least 1 ns of it.
    pub period_ns: u64,
    /// Most requests at once after an idle time.
    pub burst: NonZeroU32,
    /// Most stored keys. With more active ones, the key whose quota is full earliest is evicted.
    pub keys_max: usize,
}

/// A client exceeds its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("too many requests; retry in {} ms", .retry_after_ns.div_ceil(1_000_000))]
pub struct RateExceeded {
    /// The delay before a retry, in nanoseconds.
    pub retry_after_ns: u64,
}

impl RateExceeded {
    /// The delay before a retry in milliseconds, rounded up.
    pub fn retry_after_ms(&self) -> u32 {
        u32::try_from(self.retry_after_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX)
    }
}

/// A rate for each key. It stores at most `keys_max` keys.
#[derive(Debug, Clone)]
pub struct Quota {
    /// The cost of a request.
    cost_ns: u64,
    /// How far the time of a key can be ahead of now at a request.
    ahead_ns_max: u64,
    keys_max: usize,
    /// When the quota of each key is full again.
    full_ns: BTreeMap<Arc<str>, u64>,
    /// The same, earliest first.
    by_time: BTreeSet<(u64, Arc<str>)>,
    evicted: u64,
}

impl Quota {
    /// A quota without keys.
    pub fn new(config: QuotaConfig) -> Self {
        let cost_ns = (config.period_ns / u64::from(config.per_period.get())).max(1);
        Self {
            cost_ns,
            ahead_ns_max: cost_ns.saturating_mul(u64::from(config.burst.get()) - 1),
            keys_max: config.keys_max.max(1),
            full_ns: BTreeMap::new(),
            by_time: BTreeSet::new(),
            evicted: 0,
        }
    }

    /// Requests an admission for a key. A refusal has no cost: a client that waits for `retry_after_ns` is admitted.
    ///
    /// # Errors
    ///
    /// The key has used its quota.
    pub fn take(&mut self, now: u64, key: &str) -> Result<(), RateExceeded> {
        self.remove_idle(now);
        let known = self.full_ns.get_key_value(key).map(|(key, full_ns)| (key.clone(), *full_ns));
        let full_ns = known.as_ref().map_or(now, |(_, full_ns)| (*full_ns).max(now));
        let retry_after_ns = (full_ns - now).saturating_sub(self.ahead_ns_max);
        if retry_after_ns > 0 {
            return Err(RateExceeded { retry_after_ns });
        }
        let key = match known {
            Some((key, full_ns)) => {
                self.by_time.remove(&(full_ns, key.clone()));
                key
            }
            None => {
                self.make_room();
                Arc::from(key)
            }
        };
        let full_ns = full_ns.saturating_add(self.cost_ns);
        self.by_time.insert((full_ns, key.clone()));
        self.full_ns.insert(key, full_ns);
        Ok(())
    }

    /// The number of stored keys.
    pub fn keys(&self) -> usize {
        self.full_ns.len()
    }

    /// The number of evicted keys whose quota was not full.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Removes keys whose quota is full: a few at a time, but more than are added.
    fn remove_idle(&mut self, now: u64) {
        const REMOVALS_MAX: usize = 4;
        for _ in 0..REMOVALS_MAX {
            match self.by_time.first() {
                Some((full_ns, _)) if *full_ns <= now => self.remove_first(),
                _ => return,
            }
        }
    }

    fn make_room(&mut self) {
        if self.full_ns.len() >= self.keys_max {
            self.remove_first();
            self.evicted += 1;
        }
    }

    fn remove_first(&mut self) {
        if let Some((_, key)) = self.by_time.pop_first() {
            self.full_ns.remove(&key);
        }
    }
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConnectionRefused {
    /// The user has reached the bound of one user.
    #[error("you have {connections_max} open connections, the most that one user may have")]
    User {
        /// The bound.
        connections_max: usize,
    },
    /// All users together have reached the bound.
    #[error("the server has reached its bound of open connections")]
    Total,
}

/// The open connections of each user. Memory is proportional to the number of users with one.
#[derive(Debug, Clone)]
pub struct Connections {
    per_user_max: usize,
    total_max: usize,
    open: BTreeMap<Box<str>, usize>,
    total: usize,
}

impl Connections {
    /// No open connections.
    pub fn new(per_user_max: usize, total_max: usize) -> Self {
        Self { per_user_max, total_max, open: BTreeMap::new(), total: 0 }
    }

    /// Opens a connection of a user. Each must be closed by [`Self::close`].
    ///
    /// # Errors
    ///
    /// The user, or all users together, have reached the bound.
    pub fn open(&mut self, user: &str) -> Result<(), ConnectionRefused> {
        if self.total >= self.total_max {
            return Err(ConnectionRefused::Total);
        }
        if self.of(user) >= self.per_user_max {
            return Err(ConnectionRefused::User { connections_max: self.per_user_max });
        }
        match self.open.get_mut(user) {
            Some(open) => *open += 1,
            None => drop(self.open.insert(user.into(), 1)),
        }
        self.total += 1;
        Ok(())
    }

    /// Closes a connection of a user, if it has one.
    pub fn close(&mut self, user: &str) {
        let Some(open) = self.open.get_mut(user) else { return };
        *open -= 1;
        self.total -= 1;
        if *open == 0 {
            self.open.remove(user);
        }
    }

    /// The number of open connections of a user.
    pub fn of(&self, user: &str) -> usize {
        self.open.get(user).copied().unwrap_or(0)
    }

    /// The number of open connections.
    pub fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1_000_000_000;

    fn config(per_period: u32, burst: u32, keys_max: usize) -> QuotaConfig {
        let count = |count| NonZeroU32::new(count).unwrap();
        QuotaConfig { per_period: count(per_period), period_ns: S, burst: count(burst), keys_max }
    }

    #[test]
    fn burst_is_admitted_at_once_and_then_the_rate_applies() {
        let mut quota = Quota::new(config(2, 3, 10));
        for _ in 0..3 {
            assert_eq!(quota.take(0, "a"), Ok(()));
        }
        assert_eq!(quota.take(0, "a"), Err(RateExceeded { retry_after_ns: S / 2 }));
        // Each key has its own rate.
        assert_eq!(quota.take(0, "b"), Ok(()));
        assert_eq!(quota.take(S / 2 - 1, "a"), Err(RateExceeded { retry_after_ns: 1 }));
        assert_eq!(quota.take(S / 2, "a"), Ok(()));
        let limited = quota.take(S / 2 + 1, "a").unwrap_err();
        assert_eq!(
            (limited.retry_after_ms(), limited.to_string().as_str()),
            (500, "too many requests; retry in 500 ms")
        );
        // After an idle time the whole burst is available again, but not more.
        for _ in 0..3 {
            assert_eq!(quota.take(10 * S, "a"), Ok(()));
        }
        assert!(quota.take(10 * S, "a").is_err());
        assert_eq!(RateExceeded { retry_after_ns: u64::MAX }.retry_after_ms(), u32::MAX);
    }

    #[test]
    fn idle_keys_are_evicted_before_active_ones() {
        let mut quota = Quota::new(config(1, 1, 3));
        for (at, key) in ["a", "b", "c"].into_iter().enumerate() {
            quota.take(at as u64, key).unwrap();
        }
        quota.take(3, "d").unwrap();
        assert_eq!((quota.keys(), quota.evicted()), (3, 1));
        // The evicted key is the one whose quota was full earliest.
        assert_eq!(quota.take(4, "b"), Err(RateExceeded { retry_after_ns: S - 3 }));
        quota.take(10 * S, "e").unwrap();
        assert_eq!((quota.keys(), quota.evicted()), (1, 1));
    }

    #[test]
    fn connections_are_bounded_per_user_and_in_total() {
        let mut connections = Connections::new(2, 3);
        connections.open("a").unwrap();
        connections.open("a").unwrap();
        assert_eq!(connections.open("a"), Err(ConnectionRefused::User { connections_max: 2 }));
        connections.open("b").unwrap();
        assert_eq!(connections.open("c"), Err(ConnectionRefused::Total));
        connections.close("a");
        connections.close("nobody");
        assert_eq!((connections.of("a"), connections.of("b"), connections.total()), (1, 1, 2));
        connections.open("c").unwrap();
        for user in ["a", "b", "c", "c"] {
            connections.close(user);
        }
        assert_eq!((connections.total(), connections.open.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn windows_have_at_most_the_burst_and_the_rate(
            per_period in 1u32..20,
            burst in 1u32..8,
            steps in prop::collection::vec((0u64..S / 2, 0usize..3), 1..120),
        ) {
            let mut quota = Quota::new(config(per_period, burst, 8));
            let keys = ["a", "b", "c"];
            let mut taken: [Vec<u64>; 3] = Default::default();
            let mut now = 0;
            for (wait_ns, key) in steps {
                now += wait_ns;
                match quota.take(now, keys[key]) {
                    Ok(()) => taken[key].push(now),
                    Err(RateExceeded { retry_after_ns }) => {
                        // A client that waits for the time in the refusal is admitted, and not before.
                        prop_assert!(retry_after_ns > 0);
                        prop_assert!(quota.clone().take(now + retry_after_ns, keys[key]).is_ok());
                        prop_assert!(quota.clone().take(now + retry_after_ns - 1, keys[key]).is_err());
                    }
                }
                prop_assert!(quota.keys() <= 3);
                prop_assert_eq!(quota.keys(), quota.by_time.len());
            }
            let cost_ns = S / u64::from(per_period);
            for times in taken {
                for (first, from) in times.iter().enumerate() {
                    for (last, to) in times.iter().enumerate().skip(first) {
                        let allowed = u64::from(burst) + (to - from) / cost_ns;
                        prop_assert!((last - first + 1) as u64 <= allowed);
                    }
                }
            }
            prop_assert_eq!(quota.evicted(), 0);
        }

        #[test]
        fn memory_is_bounded_for_any_keys(
            keys_max in 1usize..6,
            keys in prop::collection::vec((0u64..S, "[a-z]{1,2}"), 0..100),
        ) {
            let mut quota = Quota::new(config(1, 2, keys_max));
            let mut now = 0;
            for (wait_ns, key) in keys {
                now += wait_ns;
                let _ = quota.take(now, &key);
                prop_assert!(quota.keys() <= keys_max);
                prop_assert_eq!(quota.keys(), quota.by_time.len());
            }
        }

        #[test]
        fn connections_are_counted(steps in prop::collection::vec((any::<bool>(), 0usize..4), 0..100)) {
            let users = ["a", "b", "c", "d"];
            let mut connections = Connections::new(3, 7);
            let mut open = [0usize; 4];
            for (opens, user) in steps {
                if opens {
                    let fits = open[user] < 3 && open.iter().sum::<usize>() < 7;
                    prop_assert_eq!(connections.open(users[user]).is_ok(), fits);
                    open[user] += usize::from(fits);
                } else {
                    connections.close(users[user]);
                    open[user] = open[user].saturating_sub(1);
                }
                prop_assert_eq!(connections.of(users[user]), open[user]);
                prop_assert_eq!(connections.total(), open.iter().sum::<usize>());
            }
        }
    }
}
