//! The decision of which requests of one kind are passed on, from the outcomes of the recent ones.
//!
//! While the component refuses requests, requests are passed on at `ratio` times the rate at which it accepts them, and a few
//! more (adaptive throttling, "Site Reliability Engineering" by Beyer et al., chapter 21; also Envoy's admission control). This
//! needs no estimate of the capacity. The limit is a rate and not a share of the requests, so that the first request after an
//! overload is passed on. It ends when the component refuses hardly any request.

/// Refusals in a window from which requests are limited, and the requests passed on in a window beyond `ratio`.
const REFUSALS_MIN: f64 = 20.0;
/// The most refusals that count, so that the limit ends soon when the component accepts everything.
const REFUSALS_MAX: f64 = 5.0 * REFUSALS_MIN;
/// The time for which unused permits are kept, in seconds.
const BURST_S: f64 = 0.1;
/// The share of a window that must pass before rates are known.
const START_SHARE: f64 = 0.25;

/// The settings of a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowConfig {
    /// The time in which the weight of a request falls to 1/e, in nanoseconds.
    pub(super) window_ns: f64,
    /// The requests passed on for each accepted one.
    pub(super) ratio: f64,
}

/// The recent requests of one kind, weighted by their age.
#[derive(Debug, Clone)]
pub(super) struct Window {
    accepted: f64,
    refused: f64,
    /// The number of requests that may be passed on now.
    permits: f64,
    start_ns: u64,
    /// The time of the last update of the weights.
    at_ns: u64,
}

impl Window {
    pub(super) fn new(now_ns: u64) -> Self {
        Self { accepted: 0.0, refused: 0.0, permits: 0.0, start_ns: now_ns, at_ns: now_ns }
    }

    /// Counts the outcome of a request that was passed on.
    pub(super) fn record(&mut self, config: &WindowConfig, now_ns: u64, is_accepted: bool) {
        self.advance(config, now_ns);
        match is_accepted {
            true => self.accepted += 1.0,
            false => self.refused = (self.refused + 1.0).min(REFUSALS_MAX),
        }
    }

    /// Whether a request that comes now is refused.
    pub(super) fn refuses(&mut self, config: &WindowConfig, now_ns: u64) -> bool {
        self.advance(config, now_ns);
        let age_ns = now_ns.saturating_sub(self.start_ns) as f64;
        if self.refused < REFUSALS_MIN || age_ns < START_SHARE * config.window_ns {
            return false;
        }
        if self.permits < 1.0 {
            return true;
        }
        self.permits -= 1.0;
        false
    }

    /// Whether the window has no effect and can be removed.
    pub(super) fn is_idle(&mut self, config: &WindowConfig, now_ns: u64) -> bool {
        self.advance(config, now_ns);
        self.accepted + self.refused < 1.0
    }

    fn advance(&mut self, config: &WindowConfig, now_ns: u64) {
        // The times of several threads may be out of order.
        let passed_ns = now_ns.saturating_sub(self.at_ns) as f64;
        if passed_ns == 0.0 {
            return;
        }
        let rate = self.rate_per_s(config, now_ns);
        self.permits = (self.permits + rate * passed_ns / 1e9).min((rate * BURST_S).max(1.0));
        let factor = (-passed_ns / config.window_ns).exp();
        self.accepted *= factor;
        self.refused *= factor;
        self.at_ns = now_ns;
        if self.accepted + self.refused < 1e-3 {
            *self = Self::new(now_ns);
        }
    }

    /// The number of requests to pass on in a second.
    fn rate_per_s(&self, config: &WindowConfig, now_ns: u64) -> f64 {
        let age_ns = now_ns.saturating_sub(self.start_ns) as f64;
        // The sum of the weights of one request in each window, less for a window that has begun recently.
        let weight = (1.0 - (-age_ns / config.window_ns).exp()).max(0.05);
        (config.ratio * self.accepted / weight + REFUSALS_MIN) / (config.window_ns / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: WindowConfig = WindowConfig { window_ns: 1e9, ratio: 1.1 };

    /// The counts of a simulated second.
    #[derive(Debug, Default, Clone, Copy)]
    struct Second {
        passed: u32,
        accepted: u32,
    }

    /// Offers `rate` requests a second to a component that accepts `capacity` a second; returns the counts by second.
    fn simulate(window: &mut Window, start_s: u64, seconds: u64, rate: u64, capacity: u64) -> Vec<Second> {
        let mut budget = 0.0;
        let second = |second: u64, window: &mut Window, budget: &mut f64| {
            let mut counts = Second::default();
            for number in 0..rate {
                let now_ns = second * 1_000_000_000 + number * 1_000_000_000 / rate;
                // A queue of a tenth of a second.
                *budget = (*budget + capacity as f64 / rate as f64).min(capacity as f64 / 10.0);
                if window.refuses(&CONFIG, now_ns) {
                    continue;
                }
                let is_accepted = *budget >= 1.0;
                *budget -= f64::from(u8::from(is_accepted));
                counts.passed += 1;
                counts.accepted += u32::from(is_accepted);
                window.record(&CONFIG, now_ns, is_accepted);
            }
            counts
        };
        (start_s..start_s + seconds).map(|number| second(number, window, &mut budget)).collect()
    }

    #[test]
    fn overload_is_refused_and_the_capacity_is_used() {
        for (rate, capacity) in [(3_000, 1_000), (10_000, 1_000), (2_000, 200), (30_000, 500)] {
            let mut window = Window::new(0);
            for second in &simulate(&mut window, 0, 10, rate, capacity)[2..] {
                let share = f64::from(second.accepted) / capacity as f64;
                assert!(share > 0.98, "{rate} offered, {capacity} possible: {second:?}");
                let excess = f64::from(second.passed) - 1.1 * f64::from(second.accepted);
                assert!(excess <= 3.0 * REFUSALS_MIN, "{rate} offered, {capacity} possible: {second:?}");
            }
        }
    }

    #[test]
    fn load_within_the_capacity_is_never_refused() {
        let mut window = Window::new(0);
        for second in simulate(&mut window, 0, 10, 900, 1_000) {
            assert_eq!((second.passed, second.accepted), (900, 900));
        }
    }

    #[test]
    fn few_refusals_have_no_effect() {
        let mut window = Window::new(0);
        // Fifteen a second.
        for number in 0..100 {
            assert!(!window.refuses(&CONFIG, number * 66_000_000));
            window.record(&CONFIG, number * 66_000_000, false);
        }
    }

    #[test]
    fn first_requests_after_an_overload_are_passed_on() {
        let mut window = Window::new(0);
        simulate(&mut window, 0, 5, 10_000, 1_000);
        let after = simulate(&mut window, 5, 1, 900, 1_000);
        assert!(after[0].accepted > 890, "{after:?}");
    }

    #[test]
    fn higher_capacity_is_used_within_four_windows() {
        let mut window = Window::new(0);
        simulate(&mut window, 0, 5, 10_000, 200);
        let after = simulate(&mut window, 5, 4, 10_000, 2_000);
        assert!(after[3].accepted > 1_900, "{after:?}");
    }

    #[test]
    fn component_that_accepts_nothing_still_gets_requests() {
        let mut window = Window::new(0);
        let seconds = simulate(&mut window, 0, 5, 1_000, 0);
        let last = seconds.last().expect("a second");
        assert!((15..60).contains(&last.passed), "{seconds:?}");
        let after = simulate(&mut window, 5, 3, 1_000, 2_000);
        assert_eq!(after.last().map(|second| second.passed), Some(1_000), "{after:?}");
    }

    #[test]
    fn window_without_requests_is_idle_after_some_time() {
        let mut window = Window::new(0);
        (0..1_000).for_each(|_| window.record(&CONFIG, 0, false));
        assert!(!window.is_idle(&CONFIG, 1_000_000_000));
        assert!(window.is_idle(&CONFIG, 5_000_000_000));
    }
}
