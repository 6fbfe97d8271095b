//! The delays and bounds of retries.
//!
//! A [`Retry`] spaces the attempts of one item by a [`RetryPolicy`]; the jittered ones are those of "Exponential
//! Backoff And Jitter" (AWS Architecture Blog, 2015). A [`RetryBudget`] bounds the retries of all items together by the
//! first attempts, as Finagle and linkerd do, so retries do not multiply an outage: three attempts per item would
//! otherwise triple the load on a failing model.

use crate::{named::named, random::between};

/// Nanoseconds in a millisecond.
const NS_PER_MS: u64 = 1_000_000;

named! {
    /// The delays between the attempts of one item.
    pub enum RetryPolicy {
        /// One attempt only.
        NoRetry = "no_retry",
        /// `base_backoff_ms` each time.
        FixedDelay = "fixed_delay",
        /// Uniform from 0 to `base_backoff_ms × 2^retries` ("full jitter").
        ExponentialJitter = "exponential_jitter",
        /// Uniform from `base_backoff_ms` to three times the delay before ("decorrelated jitter").
        ExponentialDecorrelated = "exponential_decorrelated",
    }
}

named! {
    /// Whether a circuit breaker guards the model.
    pub enum CircuitBreakerPolicy {
        /// A circuit breaker guards the model.
        On = "on",
        /// Every batch is sent to the model, even after repeated failures.
        Off = "off",
    }
}

/// The retries of temporary failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryConfig {
    /// Attempts per item, the first included; at least 1.
    pub max_attempts: u32,
    /// The delay that the policy starts from, in milliseconds.
    pub base_backoff_ms: u32,
    /// The longest delay, in milliseconds.
    pub backoff_ms_max: u32,
    /// The delays between attempts.
    pub policy: RetryPolicy,
    /// Whether a circuit breaker guards the model.
    pub circuit_breaker_policy: CircuitBreakerPolicy,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            base_backoff_ms: 100,
            backoff_ms_max: 10_000,
            policy: RetryPolicy::ExponentialJitter,
            circuit_breaker_policy: CircuitBreakerPolicy::On,
        }
    }
}

/// The attempts of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
    /// The delay before the current attempt; `None` for the first.
    previous_ns: Option<u64>,
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

impl Retry {
    /// The first attempt.
    pub fn new() -> Self {
        Self { attempts: 1, previous_ns: None }
    }

    /// Attempts so far, the present one included: from 1 to `max_attempts`.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Counts another attempt and returns the delay before it, in nanoseconds; `None` if no attempts remain.
    ///
    /// `random` is uniform over `u64`; the policies without jitter ignore it. The delay never exceeds
    /// `config.backoff_ms_max`.
    pub fn next_delay_ns(&mut self, config: &RetryConfig, random: u64) -> Option<u64> {
        if self.attempts >= config.max_attempts {
            return None;
        }
        let longest = u64::from(config.backoff_ms_max) * NS_PER_MS;
        let base = (u64::from(config.base_backoff_ms) * NS_PER_MS).min(longest);
        let delay = match config.policy {
            RetryPolicy::NoRetry => return None,
            RetryPolicy::FixedDelay => base,
            RetryPolicy::ExponentialJitter => {
                let factor = 1u64.checked_shl(self.attempts - 1).unwrap_or(u64::MAX);
                between(random, 0, base.saturating_mul(factor).min(longest))
            }
            RetryPolicy::ExponentialDecorrelated => {
                let previous = self.previous_ns.unwrap_or(base);
                between(random, base, previous.saturating_mul(3).min(longest))
            }
        };
        self.attempts += 1;
        self.previous_ns = Some(delay);
        Some(delay)
    }
}

/// The bounds of the retries of all items together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudgetConfig {
    /// Retries per hundred first attempts.
    pub ratio_percent: u32,
    /// Additional retries per second, so a stream with few items can retry too.
    pub retries_per_s_min: u32,
    /// Most unused retries that accumulate; 0 counts as 1.
    pub saved_retries_max: u32,
}

impl Default for RetryBudgetConfig {
    fn default() -> Self {
        Self { ratio_percent: 20, retries_per_s_min: 10, saved_retries_max: 100 }
    }
}

/// A token bucket of retries: first attempts and time fill it, retries empty it.
///
/// Over any span of time, `retries <= saved_retries_max + ratio × first attempts + retries_per_s_min × seconds`, and a
/// new budget has saved only the retries of one second. All arithmetic is in integers, without rounding errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryBudget {
    config: RetryBudgetConfig,
    /// In parts of a retry: [`PARTS_PER_RETRY`].
    balance: u64,
    balance_max: u64,
    filled_ns: u64,
}

/// One percent of a retry is 10^9 parts, so a retry per second is 100 parts per nanosecond.
const PARTS_PER_PERCENT: u64 = 1_000_000_000;
const PARTS_PER_RETRY: u64 = 100 * PARTS_PER_PERCENT;

impl RetryBudget {
    /// A budget at a time, with the retries of one second (`retries_per_s_min`) saved.
    pub fn new(config: RetryBudgetConfig, now: u64) -> Self {
        // The product can exceed 64 bits; it saturates at 184 million retries.
        let balance_max = u64::from(config.saved_retries_max.max(1)).saturating_mul(PARTS_PER_RETRY);
        let balance = u64::from(config.retries_per_s_min).saturating_mul(PARTS_PER_RETRY).min(balance_max);
        Self { config, balance, balance_max, filled_ns: now }
    }

    /// Counts a first attempt.
    pub fn deposit(&mut self, now: u64) {
        self.fill(now);
        self.add(u64::from(self.config.ratio_percent).saturating_mul(PARTS_PER_PERCENT));
    }

    /// Withdraws a retry from the budget; false if the budget has none.
    #[must_use]
    pub fn withdraw(&mut self, now: u64) -> bool {
        self.fill(now);
        let remaining = self.balance.checked_sub(PARTS_PER_RETRY);
        self.balance = remaining.unwrap_or(self.balance);
        remaining.is_some()
    }

    fn fill(&mut self, now: u64) {
        let elapsed_ns = now.saturating_sub(self.filled_ns);
        self.filled_ns = self.filled_ns.max(now);
        self.add(elapsed_ns.saturating_mul(100).saturating_mul(u64::from(self.config.retries_per_s_min)));
    }

    fn add(&mut self, parts: u64) {
        self.balance = self.balance.saturating_add(parts).min(self.balance_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use proptest::prelude::*;

    const MS: u64 = NS_PER_MS;

    fn delays(policy: RetryPolicy, max_attempts: u32, mut random: impl FnMut() -> u64) -> Vec<u64> {
        let config = RetryConfig { max_attempts, policy, ..RetryConfig::default() };
        let mut retry = Retry::new();
        std::iter::from_fn(|| retry.next_delay_ns(&config, random())).collect()
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for (policy, name) in
            RetryPolicy::ALL.iter().zip(["no_retry", "fixed_delay", "exponential_jitter", "exponential_decorrelated"])
        {
            assert_eq!(policy.to_string(), name);
            assert_eq!(RetryPolicy::from_name(name), Some(*policy));
        }
        assert_eq!(RetryPolicy::from_name("Fixed_Delay"), None);
        assert_eq!(CircuitBreakerPolicy::from_name("off"), Some(CircuitBreakerPolicy::Off));
    }

    #[test]
    fn delays_at_both_ends_of_the_jitter() {
        let largest = || u64::MAX;
        assert!(delays(RetryPolicy::NoRetry, 5, largest).is_empty());
        assert_eq!(delays(RetryPolicy::FixedDelay, 4, largest), [100 * MS; 3]);
        assert_eq!(delays(RetryPolicy::ExponentialJitter, 5, largest), [100, 200, 400, 800].map(|ms| ms * MS));
        assert_eq!(
            delays(RetryPolicy::ExponentialDecorrelated, 7, largest),
            [300, 900, 2700, 8100, 10_000, 10_000].map(|ms| ms * MS)
        );
        assert_eq!(delays(RetryPolicy::ExponentialJitter, 3, || 0), [0; 2]);
        assert_eq!(delays(RetryPolicy::ExponentialDecorrelated, 3, || 0), [100 * MS; 2]);
    }

    #[test]
    fn budget_starts_with_one_second_of_its_floor() {
        let config = RetryBudgetConfig { ratio_percent: 50, retries_per_s_min: 2, saved_retries_max: 3 };
        let mut budget = RetryBudget::new(config, 0);
        assert_eq!([0; 3].map(|now| budget.withdraw(now)), [true, true, false]);
        budget.deposit(0);
        assert!(!budget.withdraw(0));
        budget.deposit(0);
        assert!(budget.withdraw(0));
        assert!(!budget.withdraw(499 * MS) && budget.withdraw(500 * MS));
        // Savings are bounded, and a time in the past adds none.
        assert_eq!([u64::MAX; 4].map(|now| budget.withdraw(now)), [true, true, true, false]);
        assert!(!budget.withdraw(0) && !budget.withdraw(u64::MAX));
    }

    proptest! {
        #[test]
        fn delays_are_within_their_bounds(
            policy in prop::sample::select(RetryPolicy::ALL),
            max_attempts in 1u32..100,
            base_backoff_ms in 0u32..100_000,
            backoff_ms_max: u32,
            seed: u64,
        ) {
            let config = RetryConfig { max_attempts, base_backoff_ms, backoff_ms_max, policy, ..RetryConfig::default() };
            let mut random = SplitMix64::new(seed);
            let mut retry = Retry::new();
            let mut delays = Vec::new();
            while let Some(delay) = retry.next_delay_ns(&config, random.next_u64()) {
                delays.push(delay);
            }
            let retries = if policy == RetryPolicy::NoRetry { 0 } else { max_attempts - 1 };
            prop_assert_eq!(delays.len(), retries as usize);
            prop_assert_eq!(retry.attempts(), retries + 1);
            let base = u64::from(base_backoff_ms.min(backoff_ms_max)) * MS;
            for (number, delay) in delays.iter().enumerate() {
                prop_assert!(*delay <= u64::from(backoff_ms_max) * MS);
                match policy {
                    RetryPolicy::ExponentialJitter => {
                        let window = u128::from(base) << number.min(60);
                        prop_assert!(u128::from(*delay) <= window);
                    }
                    RetryPolicy::ExponentialDecorrelated => {
                        let previous = if number == 0 { base } else { delays[number - 1] };
                        prop_assert!(*delay >= base && *delay <= previous.saturating_mul(3));
                    }
                    RetryPolicy::FixedDelay | RetryPolicy::NoRetry => prop_assert_eq!(*delay, base),
                }
            }
        }

        #[test]
        fn retries_over_any_window_are_within_the_budget(
            ratio_percent in 0u32..200,
            retries_per_s_min in 0u32..20,
            saved_retries_max in 1u32..30,
            steps in prop::collection::vec((0u64..400_000_000, any::<bool>()), 1..200),
        ) {
            let config = RetryBudgetConfig { ratio_percent, retries_per_s_min, saved_retries_max };
            let mut budget = RetryBudget::new(config, 0);
            let mut now = 0;
            // (time, first attempts, retries made)
            let mut log = Vec::new();
            for (wait_ns, is_first) in steps {
                now += wait_ns;
                if is_first {
                    budget.deposit(now);
                    log.push((now, 1u128, 0u128));
                } else {
                    log.push((now, 0, u128::from(budget.withdraw(now))));
                }
            }
            let billion = 1_000_000_000u128;
            for start in 0..log.len() {
                let (mut firsts, mut retries) = (0, 0);
                for &(at, first, retry) in &log[start..] {
                    firsts += first;
                    retries += retry;
                    let elapsed = u128::from(at - log[start].0);
                    let allowed = u128::from(saved_retries_max) * 100 * billion
                        + u128::from(ratio_percent) * firsts * billion
                        + u128::from(retries_per_s_min) * elapsed * 100;
                    prop_assert!(retries * 100 * billion <= allowed);
                }
            }
            // At the beginning, only the retries of one second are saved.
            let (firsts, retries) = log.iter().fold((0, 0), |(f, r), step| (f + step.1, r + step.2));
            let floor = u128::from(retries_per_s_min) * 100 * (u128::from(now) + billion);
            prop_assert!(retries * 100 * billion <= u128::from(ratio_percent) * firsts * billion + floor);
        }

        #[test]
        fn floor_is_always_available(retries_per_s_min in 1u32..50, firsts in 0usize..20) {
            let config = RetryBudgetConfig { ratio_percent: 0, retries_per_s_min, saved_retries_max: 100 };
            let mut budget = RetryBudget::new(config, 0);
            while budget.withdraw(0) {}
            for _ in 0..firsts {
                budget.deposit(0);
            }
            let made = (0..=retries_per_s_min).filter(|_| budget.withdraw(1_000_000_000)).count();
            prop_assert_eq!(made, retries_per_s_min as usize);
        }
    }
}
