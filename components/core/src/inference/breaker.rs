//! A circuit breaker: suspends calls that fail repeatedly.
//!
//! A closed breaker admits every call and records the times of failures. Enough failures within the window open it:
//! every call is refused until it half-opens and admits a few probes. Successful probes close it, a failed one opens it
//! again. Each change of state starts a new generation, and the result of a call counts only in the generation that
//! admitted it, since earlier calls do not reflect the current state.

use std::collections::VecDeque;

use thiserror::Error;

use crate::named::named;

const NS_PER_S: u64 = 1_000_000_000;

named! {
    /// The state of a breaker.
    pub enum BreakerState {
        /// Every call is admitted.
        Closed = "closed",
        /// No call is admitted.
        Open = "open",
        /// A few probes are admitted.
        HalfOpen = "half_open",
    }
}

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures within the window that open it; 0 counts as 1.
    pub failures_to_open: u32,
    /// The window, in nanoseconds; a failure exactly at its start still counts.
    pub window_ns: u64,
    /// How long it stays open, in nanoseconds.
    pub open_ns: u64,
    /// Probes that must succeed to close it, and the most concurrent probes; 0 counts as 1.
    pub successes_to_close: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures_to_open: 5, window_ns: 300 * NS_PER_S, open_ns: 30 * NS_PER_S, successes_to_close: 2 }
    }
}

/// An admitted call. Its result must be passed to [`Breaker::record`].
#[must_use = "a probe without a recorded result occupies a permit until it is abandoned"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    generation: u64,
}

/// A refused call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the circuit is open for another {} ms", .retry_after_ns.div_ceil(1_000_000))]
pub struct CircuitOpen {
    /// The delay before a call can be admitted, in nanoseconds.
    pub retry_after_ns: u64,
}

/// A circuit breaker. It stores at most `failures_to_open` times.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    state: BreakerState,
    generation: u64,
    /// The times of the latest failures while closed, at most `failures_to_open`.
    failures_ns: VecDeque<u64>,
    /// When it opened, or when the last probe was admitted.
    since_ns: u64,
    probes_out: u32,
    probes_ok: u32,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: BreakerConfig) -> Self {
        let config = BreakerConfig {
            failures_to_open: config.failures_to_open.max(1),
            successes_to_close: config.successes_to_close.max(1),
            ..config
        };
        Self {
            config,
            state: BreakerState::Closed,
            generation: 0,
            failures_ns: VecDeque::new(),
            since_ns: 0,
            probes_out: 0,
            probes_ok: 0,
        }
    }

    /// The state after the last call of [`Self::admit`] or [`Self::record`]: an open breaker half-opens in
    /// [`Self::admit`].
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// When a call would be admitted, in nanoseconds; 0 for at once. The result of a probe can make it earlier.
    pub fn ready_ns(&self) -> u64 {
        match self.state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen if self.probes_out + self.probes_ok < self.config.successes_to_close => 0,
            // A probe without a result for as long as the breaker would be open is abandoned.
            BreakerState::Open | BreakerState::HalfOpen => self.since_ns.saturating_add(self.config.open_ns),
        }
    }

    /// Requests a permit for a call.
    ///
    /// # Errors
    ///
    /// The breaker is open, or half-open with as many pending probes as it needs.
    pub fn admit(&mut self, now: u64) -> Result<Permit, CircuitOpen> {
        let retry_after_ns = self.ready_ns().saturating_sub(now);
        if retry_after_ns > 0 {
            return Err(CircuitOpen { retry_after_ns });
        }
        if self.state != BreakerState::Closed {
            if self.state == BreakerState::Open || self.ready_ns() > 0 {
                self.enter(BreakerState::HalfOpen, now);
            }
            self.probes_out += 1;
            self.since_ns = now;
        }
        Ok(Permit { generation: self.generation })
    }

    /// Records the result of a call; one from before the last change of state is ignored.
    pub fn record(&mut self, now: u64, permit: Permit, ok: bool) {
        if permit.generation != self.generation {
            return;
        }
        match (self.state, ok) {
            (BreakerState::Closed, false) => self.record_failure(now),
            (BreakerState::HalfOpen, false) => self.enter(BreakerState::Open, now),
            (BreakerState::HalfOpen, true) => {
                self.probes_out = self.probes_out.saturating_sub(1);
                self.probes_ok += 1;
                if self.probes_ok >= self.config.successes_to_close {
                    self.enter(BreakerState::Closed, now);
                }
            }
            // Nothing is admitted in the generation of an open breaker.
            (BreakerState::Closed, true) | (BreakerState::Open, _) => {}
        }
    }

    /// Returns a permit whose call was not made, or whose result does not count.
    pub fn cancel(&mut self, permit: Permit) {
        if permit.generation == self.generation {
            self.probes_out = self.probes_out.saturating_sub(1);
        }
    }

    fn record_failure(&mut self, now: u64) {
        let failures_to_open = self.config.failures_to_open as usize;
        self.failures_ns.push_back(now);
        if self.failures_ns.len() > failures_to_open {
            self.failures_ns.pop_front();
        }
        let oldest = self.failures_ns.front().copied().unwrap_or(now);
        if self.failures_ns.len() == failures_to_open && now.saturating_sub(oldest) <= self.config.window_ns {
            self.enter(BreakerState::Open, now);
        }
    }

    fn enter(&mut self, state: BreakerState, now: u64) {
        self.state = state;
        self.generation += 1;
        self.failures_ns.clear();
        self.since_ns = now;
        self.probes_out = 0;
        self.probes_ok = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = NS_PER_S;

    fn fail(breaker: &mut Breaker, now: u64, times: usize) {
        for _ in 0..times {
            let permit = breaker.admit(now).unwrap();
            breaker.record(now, permit, false);
        }
    }

    fn open_breaker(now: u64) -> Breaker {
        let mut breaker = Breaker::new(BreakerConfig::default());
        fail(&mut breaker, now, 5);
        assert_eq!(breaker.state(), BreakerState::Open);
        breaker
    }

    #[test]
    fn five_failures_within_the_window_open_it() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        fail(&mut breaker, 0, 1);
        fail(&mut breaker, 200 * S, 3);
        // The first failure is before the window.
        fail(&mut breaker, 300 * S + 1, 1);
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&mut breaker, 500 * S, 1);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(501 * S), Err(CircuitOpen { retry_after_ns: 29 * S }));
        assert_eq!(breaker.admit(501 * S).unwrap_err().to_string(), "the circuit is open for another 29000 ms");
    }

    #[test]
    fn two_successes_close_it_and_reset_the_failures() {
        let mut breaker = open_breaker(0);
        assert!(breaker.admit(30 * S - 1).is_err());
        let probes = [0; 2].map(|_| breaker.admit(30 * S).unwrap());
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.admit(31 * S), Err(CircuitOpen { retry_after_ns: 29 * S }));
        breaker.record(32 * S, probes[0], true);
        // One more success is needed, and one probe is pending.
        assert!(breaker.admit(32 * S).is_err());
        breaker.record(33 * S, probes[1], true);
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&mut breaker, 34 * S, 4);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn failed_probe_reopens_for_the_same_time() {
        let mut breaker = open_breaker(0);
        let probes = [0; 2].map(|_| breaker.admit(40 * S).unwrap());
        breaker.record(41 * S, probes[0], false);
        breaker.record(42 * S, probes[1], true);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(42 * S), Err(CircuitOpen { retry_after_ns: 29 * S }));
    }

    #[test]
    fn late_results_are_ignored() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        let late = [0; 4].map(|_| breaker.admit(0).unwrap());
        fail(&mut breaker, 0, 5);
        breaker.record(S, late[0], true);
        let probe = breaker.admit(30 * S).unwrap();
        breaker.record(31 * S, late[1], true);
        breaker.record(31 * S, late[2], true);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.record(31 * S, late[3], false);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.record(32 * S, probe, true);
        let probe = breaker.admit(32 * S).unwrap();
        breaker.record(32 * S, probe, true);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn lost_probes_are_abandoned_after_a_time_and_cancelled_ones_at_once() {
        let mut breaker = open_breaker(0);
        let lost = [0; 2].map(|_| breaker.admit(30 * S).unwrap());
        assert_eq!(breaker.ready_ns(), 60 * S);
        let probe = breaker.admit(60 * S).unwrap();
        breaker.record(60 * S, lost[0], true);
        breaker.record(60 * S, lost[1], false);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        let second = breaker.admit(60 * S).unwrap();
        assert!(breaker.admit(60 * S).is_err());
        breaker.cancel(second);
        let second = breaker.admit(60 * S).unwrap();
        breaker.record(60 * S, probe, true);
        breaker.record(60 * S, second, true);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    proptest! {
        #[test]
        fn breaker_agrees_with_a_model(
            failures_to_open in 1u32..6,
            successes_to_close in 1u32..4,
            window_ns in 1u64..100,
            open_ns in 0u64..50,
            steps in prop::collection::vec((0u64..20, 0u8..4, any::<prop::sample::Index>()), 0..300),
        ) {
            let config = BreakerConfig { failures_to_open, window_ns, open_ns, successes_to_close };
            let mut breaker = Breaker::new(config);
            let mut now = 0;
            let mut out: Vec<Permit> = Vec::new();
            let mut failed: Vec<u64> = Vec::new();
            let mut opened_ns = 0;
            for (wait_ns, op, index) in steps {
                now += wait_ns;
                let before = breaker.state();
                if op < 2 {
                    match breaker.admit(now) {
                        Ok(permit) => {
                            prop_assert!(before != BreakerState::Open || now >= opened_ns + open_ns);
                            out.push(permit);
                            let probes = out.iter().filter(|out| **out == permit).count();
                            let half_open = breaker.state() == BreakerState::HalfOpen;
                            prop_assert!(!half_open || probes <= successes_to_close as usize);
                        }
                        Err(refused) => {
                            prop_assert!(before != BreakerState::Closed);
                            prop_assert_eq!(refused.retry_after_ns, breaker.ready_ns() - now);
                            // A client that waits for the time in the refusal is admitted.
                            prop_assert!(breaker.clone().admit(now + refused.retry_after_ns).is_ok());
                        }
                    }
                } else if !out.is_empty() {
                    let permit = out.swap_remove(index.index(out.len()));
                    let ok = op == 2;
                    let counts = permit.generation == breaker.generation;
                    breaker.record(now, permit, ok);
                    if !counts {
                        prop_assert_eq!(breaker.state(), before);
                    } else if before == BreakerState::Closed && !ok {
                        failed.push(now);
                        let recent = failed.iter().filter(|at| now - **at <= window_ns).count();
                        let opens = recent >= failures_to_open as usize;
                        prop_assert_eq!(breaker.state() == BreakerState::Open, opens);
                    } else if before == BreakerState::HalfOpen && !ok {
                        prop_assert_eq!(breaker.state(), BreakerState::Open);
                    }
                    if breaker.state() != before {
                        failed.clear();
                        opened_ns = now;
                    }
                }
                prop_assert!(breaker.failures_ns.len() <= failures_to_open as usize);
            }
        }
    }
}
