//! Requests to another server that generates text: admission, retries, and the limits of each user.
//!
//! A circuit breaker stops requests to a server that fails repeatedly, a budget bounds the retries of all requests together, and every user
//! has a bound of concurrent requests and a bucket of tokens. A request is admitted while its user has a token left, and its tokens are
//! subtracted when it ends, since their number is known only then. A bucket can therefore be below zero; its user waits until it has filled.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::{
    failure::Failure,
    inference::{
        breaker::{Breaker, BreakerConfig, CircuitOpen, Permit},
        retry::{Retry, RetryBudget, RetryBudgetConfig, RetryConfig},
    },
};

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_MINUTE: i64 = 60_000_000_000;
/// The most users in memory.
const USERS_MAX: usize = 16_384;
/// The delay before another attempt when the bound of concurrent requests is reached, in milliseconds.
const RUNNING_RETRY_AFTER_MS: u32 = 1000;

/// The bounds of an upstream.
#[derive(Debug, Clone)]
pub struct UpstreamConfig {
    /// The most concurrent requests.
    pub running_max: u32,
    /// The most concurrent requests of one user.
    pub user_running_max: u32,
    /// Tokens of one user per minute, those of prompts included; 0 for no bound.
    pub user_tokens_per_minute: u32,
    /// Attempts of a request.
    pub retry: RetryConfig,
    /// Retries of all requests together.
    pub retry_budget: RetryBudgetConfig,
    /// The circuit breaker.
    pub breaker: BreakerConfig,
}

/// Why a request is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UpstreamRefusal {
    /// The bound of concurrent requests is reached.
    #[error("the upstream has its maximum of concurrent requests; retry in {retry_after_ms} ms")]
    Running {
        /// When to ask again.
        retry_after_ms: u32,
    },
    /// The user has reached a limit of requests or tokens.
    #[error("you have reached your limit of requests or tokens for the upstream; retry in {retry_after_ms} ms")]
    User {
        /// When to ask again.
        retry_after_ms: u32,
    },
    /// The server has failed repeatedly.
    #[error("the upstream has failed repeatedly and gets no requests for {retry_after_ms} ms")]
    Circuit {
        /// When to ask again.
        retry_after_ms: u32,
    },
}

impl From<UpstreamRefusal> for Failure {
    fn from(refusal: UpstreamRefusal) -> Self {
        match refusal {
            UpstreamRefusal::Running { retry_after_ms } => Self::Overloaded { retry_after_ms },
            UpstreamRefusal::User { retry_after_ms } => Self::Throttled { retry_after_ms },
            UpstreamRefusal::Circuit { retry_after_ms } => Self::CircuitOpen { retry_after_ms },
        }
    }
}

/// The outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The server responded. The refusal of an invalid request counts as a response.
    Ok,
    /// It failed after text was passed on, which another attempt would repeat.
    FailedLate,
    /// It failed before the first token, and another attempt would fail too.
    FailedForGood,
    /// It failed before the first token. The server requests this delay before another attempt; 0 if it requests none.
    FailedEarly {
        /// Milliseconds.
        retry_after_ms: u32,
    },
}

/// An upstream. It has at most `USERS_MAX` users in memory.
#[derive(Debug)]
pub struct Upstream {
    config: UpstreamConfig,
    breaker: Breaker,
    budget: RetryBudget,
    running: u32,
    users: BTreeMap<u32, User>,
}

#[derive(Debug)]
struct User {
    running: u32,
    /// The tokens of the bucket, as the nanoseconds in which they fill; below zero after a request with more tokens than were left.
    balance_ns: i64,
    filled_ns: u64,
}

/// An admitted request, which is returned to [`Upstream::end`].
#[derive(Debug)]
#[must_use = "a request that is not ended counts as running"]
pub struct UpstreamAdmission {
    user: u32,
    retry: Retry,
}

impl Upstream {
    /// An upstream without requests.
    pub fn new(config: UpstreamConfig, now: u64) -> Self {
        let (breaker, budget) = (Breaker::new(config.breaker), RetryBudget::new(config.retry_budget, now));
        Self { config, breaker, budget, running: 0, users: BTreeMap::new() }
    }

    /// The number of requests that have not ended.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Admits a request of a user.
    ///
    /// # Errors
    ///
    /// [`UpstreamRefusal::Running`], [`UpstreamRefusal::User`]
    pub fn admit(&mut self, now: u64, user: u32) -> Result<UpstreamAdmission, UpstreamRefusal> {
        if self.running >= self.config.running_max {
            return Err(UpstreamRefusal::Running { retry_after_ms: RUNNING_RETRY_AFTER_MS });
        }
        self.make_room(now, user);
        let per_minute = self.config.user_tokens_per_minute;
        let user_running_max = self.config.user_running_max;
        let account = self.users.entry(user).or_insert(User { running: 0, balance_ns: NS_PER_MINUTE, filled_ns: now });
        account.fill(now);
        if account.running >= user_running_max {
            return Err(UpstreamRefusal::User { retry_after_ms: RUNNING_RETRY_AFTER_MS });
        }
        let token_ns = token_ns(per_minute);
        if per_minute > 0 && account.balance_ns < token_ns {
            let wait_ns = account.balance_ns.abs_diff(token_ns);
            let retry_after_ms = u32::try_from(wait_ns.div_ceil(NS_PER_MS)).unwrap_or(u32::MAX);
            return Err(UpstreamRefusal::User { retry_after_ms });
        }
        account.running += 1;
        self.running += 1;
        self.budget.deposit(now);
        Ok(UpstreamAdmission { user, retry: Retry::new() })
    }

    /// Permits an attempt of an admitted request. Its outcome is passed to [`Self::record`].
    ///
    /// # Errors
    ///
    /// [`UpstreamRefusal::Circuit`]
    pub fn attempt(&mut self, now: u64) -> Result<Permit, UpstreamRefusal> {
        self.breaker.admit(now).map_err(|CircuitOpen { retry_after_ns }| {
            let retry_after_ms = u32::try_from(retry_after_ns.div_ceil(NS_PER_MS)).unwrap_or(u32::MAX);
            UpstreamRefusal::Circuit { retry_after_ms }
        })
    }

    /// Records the outcome of an attempt. Returns the delay before the next one, in nanoseconds; `None` if there is no other.
    ///
    /// `random` is uniform over `u64`. If a server requests a delay over the maximum, there is no other attempt.
    pub fn record(
        &mut self,
        now: u64,
        admission: &mut UpstreamAdmission,
        permit: Permit,
        outcome: AttemptOutcome,
        random: u64,
    ) -> Option<u64> {
        self.breaker.record(now, permit, outcome == AttemptOutcome::Ok);
        let AttemptOutcome::FailedEarly { retry_after_ms } = outcome else { return None };
        if retry_after_ms > self.config.retry.backoff_ms_max {
            return None;
        }
        let delay_ns = admission.retry.next_delay_ns(&self.config.retry, random)?;
        let delay_ns = delay_ns.max(u64::from(retry_after_ms) * NS_PER_MS);
        self.budget.withdraw(now).then_some(delay_ns)
    }

    /// Returns the permit of an abandoned attempt.
    pub fn cancel(&mut self, permit: Permit) {
        self.breaker.cancel(permit);
    }

    /// Ends a request with its number of tokens.
    pub fn end(&mut self, now: u64, admission: UpstreamAdmission, tokens: u64) {
        self.running = self.running.saturating_sub(1);
        let token_ns = token_ns(self.config.user_tokens_per_minute);
        if let Some(account) = self.users.get_mut(&admission.user) {
            account.fill(now);
            account.running = account.running.saturating_sub(1);
            let cost_ns = i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(token_ns);
            account.balance_ns = account.balance_ns.saturating_sub(cost_ns);
        }
    }

    /// Removes users with full buckets, and if that is not enough the idle user with the most tokens.
    fn make_room(&mut self, now: u64, user: u32) {
        if self.users.len() < USERS_MAX || self.users.contains_key(&user) {
            return;
        }
        self.users.retain(|_, account| {
            account.fill(now);
            account.running > 0 || account.balance_ns < NS_PER_MINUTE
        });
        if self.users.len() >= USERS_MAX {
            let idle = self.users.iter().filter(|(_, account)| account.running == 0);
            let least = idle.max_by_key(|(_, account)| account.balance_ns).map(|(user, _)| *user);
            if let Some(least) = least {
                self.users.remove(&least);
            }
        }
    }
}

impl User {
    /// Fills the bucket, which is full after a minute without use.
    fn fill(&mut self, now: u64) {
        let elapsed_ns = i64::try_from(now.saturating_sub(self.filled_ns)).unwrap_or(i64::MAX);
        self.balance_ns = self.balance_ns.saturating_add(elapsed_ns).min(NS_PER_MINUTE);
        self.filled_ns = self.filled_ns.max(now);
    }
}

/// The time in which a bucket fills by one token; 0 without a bound.
fn token_ns(per_minute: u32) -> i64 {
    if per_minute == 0 { 0 } else { (NS_PER_MINUTE / i64::from(per_minute)).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::retry::RetryPolicy;

    const S: u64 = 1_000_000_000;

    fn config() -> UpstreamConfig {
        UpstreamConfig {
            running_max: 3,
            user_running_max: 2,
            user_tokens_per_minute: 60,
            retry: RetryConfig {
                max_attempts: 3,
                base_backoff_ms: 100,
                policy: RetryPolicy::FixedDelay,
                ..RetryConfig::default()
            },
            retry_budget: RetryBudgetConfig::default(),
            breaker: BreakerConfig { failures_to_open: 4, window_ns: 60 * S, open_ns: 10 * S, successes_to_close: 1 },
        }
    }

    #[test]
    fn user_has_a_share_of_the_requests_at_once_and_all_users_have_the_whole() {
        let mut upstream = Upstream::new(config(), 0);
        let first = upstream.admit(0, 1).unwrap();
        let _second = upstream.admit(0, 1).unwrap();
        assert!(matches!(upstream.admit(0, 1), Err(UpstreamRefusal::User { .. })));
        let _third = upstream.admit(0, 2).unwrap();
        assert!(matches!(upstream.admit(0, 3), Err(UpstreamRefusal::Running { .. })));
        upstream.end(0, first, 0);
        assert_eq!(upstream.running(), 2);
        assert!(upstream.admit(0, 3).is_ok());
    }

    #[test]
    fn tokens_are_paid_at_the_end_and_the_debt_fills_with_time() {
        let mut upstream = Upstream::new(config(), 0);
        let admission = upstream.admit(0, 1).unwrap();
        // 60 tokens were there.
        upstream.end(0, admission, 90);
        assert_eq!(upstream.admit(0, 1).unwrap_err(), UpstreamRefusal::User { retry_after_ms: 31_000 });
        assert!(upstream.admit(0, 2).is_ok(), "the tokens of another user are not touched");
        assert_eq!(upstream.admit(30 * S, 1).unwrap_err(), UpstreamRefusal::User { retry_after_ms: 1000 });
        assert!(upstream.admit(31 * S, 1).is_ok());
        let mut unbounded = Upstream::new(UpstreamConfig { user_tokens_per_minute: 0, ..config() }, 0);
        let admission = unbounded.admit(0, 1).unwrap();
        unbounded.end(0, admission, u64::MAX);
        assert!(unbounded.admit(0, 1).is_ok());
    }

    #[test]
    fn failure_before_the_first_token_is_tried_again_and_a_later_one_is_not() {
        let mut upstream = Upstream::new(config(), 0);
        let mut admission = upstream.admit(0, 1).unwrap();
        let mut record = |upstream: &mut Upstream, outcome| {
            let permit = upstream.attempt(0).unwrap();
            upstream.record(0, &mut admission, permit, outcome, 0)
        };
        assert_eq!(record(&mut upstream, AttemptOutcome::FailedLate), None);
        assert_eq!(record(&mut upstream, AttemptOutcome::FailedForGood), None);
        let early = |retry_after_ms| AttemptOutcome::FailedEarly { retry_after_ms };
        assert_eq!(record(&mut upstream, early(0)), Some(100 * NS_PER_MS));
        let refused = upstream.attempt(0);
        assert!(refused.is_ok(), "three failures do not open the circuit");
        upstream.cancel(refused.unwrap());
    }

    #[test]
    fn server_that_names_a_time_is_asked_after_it_or_not_at_all() {
        let mut upstream = Upstream::new(config(), 0);
        let mut admission = upstream.admit(0, 1).unwrap();
        let mut record = |retry_after_ms| {
            let permit = upstream.attempt(0).unwrap();
            let outcome = AttemptOutcome::FailedEarly { retry_after_ms };
            upstream.record(0, &mut admission, permit, outcome, 0)
        };
        assert_eq!(record(2000), Some(2 * S));
        assert_eq!(record(60_000), None, "longer than the longest delay");
    }

    #[test]
    fn server_that_keeps_failing_gets_no_requests_for_a_while() {
        let mut upstream = Upstream::new(config(), 0);
        let mut admission = upstream.admit(0, 1).unwrap();
        for _ in 0..4 {
            let permit = upstream.attempt(0).unwrap();
            upstream.record(0, &mut admission, permit, AttemptOutcome::FailedForGood, 0);
        }
        assert_eq!(upstream.attempt(0).unwrap_err(), UpstreamRefusal::Circuit { retry_after_ms: 10_000 });
        let probe = upstream.attempt(11 * S).unwrap();
        assert!(upstream.attempt(11 * S).is_err(), "one probe at a time");
        upstream.record(11 * S, &mut admission, probe, AttemptOutcome::Ok, 0);
        assert!(upstream.attempt(11 * S).is_ok());
    }

    #[test]
    fn users_are_bounded_and_those_that_used_nothing_are_forgotten_first() {
        let mut upstream = Upstream::new(UpstreamConfig { running_max: u32::MAX, ..config() }, 0);
        let admission = upstream.admit(0, 0).unwrap();
        upstream.end(0, admission, 60);
        for user in 1..=USERS_MAX as u32 {
            let admission = upstream.admit(0, user).unwrap();
            upstream.end(0, admission, 1);
        }
        assert!(upstream.users.len() <= USERS_MAX);
        assert!(upstream.admit(0, 0).is_err(), "the user who used most is remembered");
    }
}
