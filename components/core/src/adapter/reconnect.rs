//! The delays before attempts to reconnect.

use crate::random::between;

const NS_PER_MS: u64 = 1_000_000;
/// The most doublings of the delay.
const DOUBLINGS_MAX: u32 = 16;

/// The bounds and delays of attempts to reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconnectConfig {
    /// Most consecutive attempts without a stable connection; 0: no bound.
    pub attempts_max: u32,
    /// The delay before the first attempt, in milliseconds; it doubles with each one.
    pub delay_ms: u64,
    /// The longest delay, in milliseconds.
    pub delay_ms_max: u64,
    /// The duration after which a connection is stable and resets the count of attempts, in milliseconds.
    pub stable_ms: u64,
}

impl Default for ReconnectConfig {
    fn default() -> Self {
        Self { attempts_max: 5, delay_ms: 1000, delay_ms_max: 30_000, stable_ms: 10_000 }
    }
}

/// The attempts to connect since the last stable connection.
#[derive(Debug, Clone)]
pub struct Reconnect {
    config: ReconnectConfig,
    attempts: u32,
    connected_ns: Option<u64>,
}

impl Reconnect {
    /// The state before the first connection.
    pub fn new(config: ReconnectConfig) -> Self {
        Self { config, attempts: 0, connected_ns: None }
    }

    /// Attempts since the last stable connection.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Records that the connection is established.
    pub fn handle_connected(&mut self, now: u64) {
        self.connected_ns = Some(now);
    }

    /// Records that the connection is lost, or that an attempt has failed. Returns the delay before the next attempt,
    /// in nanoseconds: between half of the exponential delay and all of it, and at least `delay_ms_min`, which the peer
    /// requested. `None` if no attempts remain.
    pub fn handle_lost(&mut self, now: u64, delay_ms_min: Option<u64>, random: u64) -> Option<u64> {
        let stable_ns = self.config.stable_ms.saturating_mul(NS_PER_MS);
        if self.connected_ns.take().is_some_and(|connected| now.saturating_sub(connected) >= stable_ns) {
            self.attempts = 0;
        }
        if self.config.attempts_max > 0 && self.attempts >= self.config.attempts_max {
            return None;
        }
        let doubled = self.config.delay_ms.saturating_mul(1 << self.attempts.min(DOUBLINGS_MAX));
        let delay_ns = doubled.min(self.config.delay_ms_max).saturating_mul(NS_PER_MS);
        self.attempts = self.attempts.saturating_add(1);
        Some(between(random, delay_ns / 2, delay_ns).max(delay_ms_min.unwrap_or(0).saturating_mul(NS_PER_MS)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn delays_double_up_to_their_bound_until_attempts_are_used_up() {
        let config = ReconnectConfig { attempts_max: 4, delay_ms: 1000, delay_ms_max: 3000, stable_ms: 10 };
        let mut reconnect = Reconnect::new(config);
        let delays: Vec<Option<u64>> = (0..5).map(|_| reconnect.handle_lost(0, None, u64::MAX)).collect();
        let ms = |delay: u64| Some(delay * NS_PER_MS);
        assert_eq!(delays, [ms(1000), ms(2000), ms(3000), ms(3000), None]);
        reconnect.handle_connected(0);
        assert_eq!(reconnect.handle_lost(9 * NS_PER_MS, None, 0), None);
        reconnect.handle_connected(0);
        assert_eq!(reconnect.handle_lost(10 * NS_PER_MS, None, 0), ms(500));
        assert_eq!(reconnect.handle_lost(0, Some(7000), 0), ms(7000));
    }

    proptest! {
        #[test]
        fn delays_are_within_their_bounds(
            delay_ms in 0u64..100_000, delay_ms_max in 0u64..1_000_000, randoms in prop::collection::vec(any::<u64>(), 1..80),
        ) {
            let config = ReconnectConfig { attempts_max: 0, delay_ms, delay_ms_max, stable_ms: 1 };
            let mut reconnect = Reconnect::new(config);
            for random in randoms {
                let delay = reconnect.handle_lost(0, None, random).expect("attempts are unbounded");
                prop_assert!(delay <= delay_ms_max * NS_PER_MS);
                prop_assert!(delay >= delay_ms.min(delay_ms_max) * NS_PER_MS / 2);
            }
        }
    }
}
