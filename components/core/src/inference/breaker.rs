//! A circuit breaker: leaves what fails too often alone for a while.
//!
//! A closed breaker admits every call and remembers when calls failed. Enough failures within the window open it: every call is refused
//! until it half-opens and admits a few probes. Probes that succeed close it, one that fails opens it again. Each change of state starts
//! a new generation, and a call's result counts only in the generation that admitted it: calls admitted before it opened say nothing
//! about the present.

use std::collections::VecDeque;

use thiserror::Error;

use crate::named::named;

const NS_PER_S: u64 = 1_000_000_000;

named! {
    /// What a breaker does with calls.
    pub enum BreakerState {
        /// Every call goes through.
        Closed = "closed",
        /// No call goes through.
        Open = "open",
        /// A few probes go through.
        HalfOpen = "half_open",
    }
}

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures within the window that open it; at least 1 is assumed.
    pub failures_to_open: u32,
    /// The window, in nanoseconds; a failure exactly so long ago still counts.
    pub window_ns: u64,
    /// How long it stays open, in nanoseconds.
    pub open_ns: u64,
    /// Probes that must succeed to close it, and the most that may be out at once; at least 1 is assumed.
    pub successes_to_close: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures_to_open: 5, window_ns: 300 * NS_PER_S, open_ns: 30 * NS_PER_S, successes_to_close: 2 }
    }
}

/// A call that was let through. Its result goes to [`Breaker::record`].
#[must_use = "a probe whose result is never recorded keeps its place until it is given up"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    generation: u64,
}

/// A call that was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the circuit is open for another {} ms", .retry_after_ns.div_ceil(1_000_000))]
pub struct CircuitOpen {
    /// When to ask again, in nanoseconds from now.
    pub retry_after_ns: u64,
}

/// A circuit breaker. Its memory is `failures_to_open` times.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    state: BreakerState,
    generation: u64,
    /// When calls failed, of late: at most `failures_to_open`, only while closed.
    failures_ns: VecDeque<u64>,
    /// When it opened, or when the last probe went out.
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

    /// The state as of the last call of [`Self::admit`] or [`Self::record`]: an open breaker half-opens when it is asked.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// When a call would be let through, in nanoseconds; 0 for at once. Another probe's result may make it earlier.
    pub fn ready_ns(&self) -> u64 {
        match self.state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen if self.probes_out + self.probes_ok < self.config.successes_to_close => 0,
            // A probe without a result for as long as the breaker would be open is abandoned.
            BreakerState::Open | BreakerState::HalfOpen => self.since_ns.saturating_add(self.config.open_ns),
        }
    }

    /// Asks to make a call.
    ///
    /// # Errors
    ///
    /// The breaker is open, or half-open with as many probes out as it needs.
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

    /// Takes the result of a call; one from before the last change of state is ignored.
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

    fn opened(now: u64) -> Breaker {
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
        // The first is out of the window by now.
        fail(&mut breaker, 300 * S + 1, 1);
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&mut breaker, 500 * S, 1);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(501 * S), Err(CircuitOpen { retry_after_ns: 29 * S }));
        assert_eq!(breaker.admit(501 * S).unwrap_err().to_string(), "the circuit is open for another 29000 ms");
    }

    #[test]
    fn two_successes_close_it_and_forget_the_failures() {
        let mut breaker = opened(0);
        assert!(breaker.admit(30 * S - 1).is_err());
        let probes = [0; 2].map(|_| breaker.admit(30 * S).unwrap());
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.admit(31 * S), Err(CircuitOpen { retry_after_ns: 29 * S }));
        breaker.record(32 * S, probes[0], true);
        // One is still needed and one is out.
        assert!(breaker.admit(32 * S).is_err());
        breaker.record(33 * S, probes[1], true);
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&mut breaker, 34 * S, 4);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn failed_probe_reopens_for_the_same_time() {
        let mut breaker = opened(0);
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
    fn probes_that_are_lost_are_given_up_and_cancelled_ones_at_once() {
        let mut breaker = opened(0);
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
