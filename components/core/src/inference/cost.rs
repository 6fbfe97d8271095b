//! An online estimate of the duration of a model's runs.
//!
//! `a + b·rows + c·tokens`, fitted by recursive least squares with forgetting (Ljung, "System Identification", 11.2).
//! The deviation of a measurement is clipped to a few times the usual error (Huber's estimator), so a run that the
//! machine interrupted has little weight. An initial estimate is used until there are measurements. The first of them also choose the
//! unit of time: measurements are weighed against the initial estimate, so runs of a second would change that of a millisecond by little.

/// The estimated duration of a run.
#[derive(Debug, Clone)]
pub struct Cost {
    /// `[a, b, c]` in units for `[1, rows, hundreds of tokens]`.
    weights: [f64; 3],
    /// The unit of the weights in microseconds: 1 for a device of about the speed of the initial estimate.
    unit_us: f64,
    /// The duration of the last of the first runs, as a multiple of its estimate.
    last_ratio: f64,
    /// The inverse of the weighted covariance, `P` in the literature.
    spread: [[f64; 3]; 3],
    /// The usual error, as a fraction of the duration of a run.
    error: f64,
    runs: u64,
}

/// The weight of a measurement after one more run: it is halved after about 140 runs.
const FORGET: f64 = 0.995;
/// Errors are clipped to this many usual ones.
const ERRORS_MAX: f64 = 3.0;
/// The runs that determine the unit of the weights and the usual error.
const FIRST_RUNS: u64 = 8;
/// First runs that take this many times the estimate, or this part of it, change the unit.
const RATIO_MIN: f64 = 2.0;
/// The bound of the spread's trace, which grows while the runs are all alike.
const SPREAD_MAX: f64 = 1e10;
/// The estimate before the first measurement: a small encoder on a CPU core.
const INITIAL_US: [f64; 3] = [900.0, 20.0, 10_000.0];

impl Default for Cost {
    fn default() -> Self {
        let spread = [[1e6, 0.0, 0.0], [0.0, 1e4, 0.0], [0.0, 0.0, 1e8]];
        Self { weights: INITIAL_US, unit_us: 1.0, last_ratio: 1.0, spread, error: 0.0, runs: 0 }
    }
}

fn features(rows: usize, tokens: usize) -> [f64; 3] {
    [1.0, rows as f64, tokens as f64 / 100.0]
}

fn dot(one: [f64; 3], other: [f64; 3]) -> f64 {
    one.iter().zip(other).map(|(x, y)| x * y).sum()
}

impl Cost {
    /// A cost with the initial estimate `[a, b, c]` in microseconds for `[1, rows, hundreds of tokens]`.
    pub fn with_guess(guess_us: [f64; 3]) -> Self {
        Self { weights: guess_us, ..Self::default() }
    }

    /// The expected duration of a run with this many sequences and tokens, padding included; at least 1 µs.
    pub fn predict_ns(&self, rows: usize, tokens: usize) -> u64 {
        // A weight can become negative by noise; a larger run is never predicted to be shorter.
        let [a, b, c] = self.weights.map(|weight| weight.max(0.0));
        let us = self.unit_us * dot([a, b, c], features(rows, tokens));
        (us.max(1.0) * 1e3) as u64
    }

    /// Updates the estimate with the duration of a run.
    pub fn record(&mut self, rows: usize, tokens: usize, duration_ns: u64) {
        // Errors are relative to the duration, so short runs are estimated as well as long ones.
        let us = (duration_ns as f64 / 1e3).max(1.0);
        if self.runs < FIRST_RUNS {
            self.choose_unit(us / (self.predict_ns(rows, tokens) as f64 / 1e3));
        }
        let x = features(rows, tokens).map(|feature| feature * self.unit_us / us);
        let mut error = 1.0 - dot(self.weights, x);
        self.runs += 1;
        if self.runs <= FIRST_RUNS {
            // The first runs determine the usual error.
            self.error = self.error.max(error.abs());
        } else {
            let bound = ERRORS_MAX * self.error.max(0.01);
            // A step towards the median of the errors, which is robust against outliers.
            self.error *= if error.abs() > self.error { 1.1 } else { 1.0 / 1.1 };
            self.error = self.error.clamp(1e-3, 1e3);
            error = error.clamp(-bound, bound);
        }
        let px = self.spread.map(|row| dot(row, x));
        let scale = FORGET + dot(px, x);
        for (weight, gain) in self.weights.iter_mut().zip(px) {
            *weight += gain / scale * error;
        }
        let trace: f64 = (0..3).map(|i| self.spread[i][i]).sum();
        let forget = if trace < SPREAD_MAX { FORGET } else { 1.0 };
        for (row, gain) in self.spread.iter_mut().zip(px) {
            for (cell, other) in row.iter_mut().zip(px) {
                *cell = (*cell - gain * other / scale) / forget;
            }
        }
    }

    /// Changes the unit if two runs in a row took several times the estimate, or a part of it. A single one may have been interrupted, or have
    /// prepared what later ones use.
    fn choose_unit(&mut self, ratio: f64) {
        let common =
            if ratio > 1.0 { ratio.min(self.last_ratio).max(1.0) } else { ratio.max(self.last_ratio).min(1.0) };
        let scale = if common.max(1.0 / common) > RATIO_MIN { common } else { 1.0 };
        self.unit_us *= scale;
        self.last_ratio = ratio / scale;
    }

    /// The number of recorded runs.
    pub fn runs(&self) -> u64 {
        self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A deterministic generator: xorshift64*.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn truth(a: f64, b: f64, c: f64, rows: usize, tokens: usize) -> f64 {
        (a + b * rows as f64 + c * tokens as f64) * 1e3
    }

    proptest! {
        #[test]
        fn linear_cost_is_estimated_despite_outliers(
            a in 100.0f64..5_000.0, b in 0.0f64..200.0, c in 5.0f64..300.0, seed in 1u64..u64::MAX,
        ) {
            let mut cost = Cost::default();
            let mut state = seed;
            for _ in 0..600 {
                let rows = 1 + (random(&mut state) % 32) as usize;
                let tokens = rows * (4 + (random(&mut state) % 60) as usize);
                let noise = 0.95 + (random(&mut state) % 100) as f64 / 1000.0;
                // One run in twenty is interrupted.
                let interruption = if random(&mut state).is_multiple_of(20) { 10.0 } else { 1.0 };
                cost.record(rows, tokens, (truth(a, b, c, rows, tokens) * noise * interruption) as u64);
            }
            for (rows, tokens) in [(4, 64), (8, 128), (16, 512)] {
                let (predicted, expected) = (cost.predict_ns(rows, tokens) as f64, truth(a, b, c, rows, tokens));
                prop_assert!((predicted / expected - 1.0).abs() < 0.25, "{rows}x{tokens}: {predicted} for {expected}");
            }
        }

        #[test]
        fn arbitrary_measurements_leave_a_usable_estimate(
            runs in prop::collection::vec((0usize..100, 0usize..10_000, 0u64..u64::MAX), 0..200),
        ) {
            let mut cost = Cost::default();
            for (rows, tokens, ns) in runs {
                cost.record(rows, tokens, ns);
                prop_assert!(cost.weights.iter().all(|weight| weight.is_finite()));
                prop_assert!(cost.predict_ns(1, 10) >= 1_000);
                prop_assert!(cost.predict_ns(1, 1000) >= cost.predict_ns(1, 10));
            }
        }
    }

    #[test]
    fn repeated_equal_runs_leave_a_usable_estimate() {
        let mut cost = Cost::default();
        for _ in 0..100_000 {
            cost.record(1, 16, 2_000_000);
        }
        let after = cost.predict_ns(1, 16);
        assert!((1_900_000..2_100_000).contains(&after), "{after}");
        for _ in 0..300 {
            cost.record(8, 128, 12_000_000);
        }
        let other = cost.predict_ns(8, 128);
        assert!((10_000_000..14_000_000).contains(&other), "{other}");
    }

    #[test]
    fn few_runs_of_a_device_of_another_speed_suffice() {
        // From 1 µs for each token, a hundredth of the initial estimate, to 10 ms.
        for token_us in [1.0, 10.0, 100.0, 1_000.0, 4_000.0, 10_000.0] {
            let mut cost = Cost::default();
            for (rows, tokens) in [(1, 6), (1, 10), (24, 336), (24, 336), (8, 112), (8, 112), (8, 104), (9, 126)] {
                cost.record(rows, tokens, truth(300.0, 0.0, token_us, rows, tokens) as u64);
            }
            for (rows, tokens) in [(8, 112), (24, 336)] {
                let expected = truth(300.0, 0.0, token_us, rows, tokens);
                let predicted = cost.predict_ns(rows, tokens) as f64;
                assert!((predicted / expected - 1.0).abs() < 0.4, "{token_us} us: {predicted} for {expected}");
            }
        }
    }

    #[test]
    fn long_first_run_has_little_weight() {
        let mut cost = Cost::default();
        cost.record(1, 16, 2_000_000_000);
        for round in 0..8 {
            let (rows, tokens) = (1 + round, 16 * (1 + round));
            cost.record(rows, tokens, truth(500.0, 0.0, 90.0, rows, tokens) as u64);
        }
        let (predicted, expected) = (cost.predict_ns(8, 128) as f64, truth(500.0, 0.0, 90.0, 8, 128));
        assert!((predicted / expected - 1.0).abs() < 0.4, "{predicted} for {expected}");
    }

    #[test]
    fn estimate_follows_a_slower_machine() {
        let mut cost = Cost::default();
        for round in 0..3000usize {
            let slow = if round < 1500 { 1 } else { 3 };
            let tokens = 16 * (1 + round % 8);
            cost.record(1 + round % 8, tokens, slow * (500_000 + 90_000 * tokens as u64));
        }
        let expected = 3.0 * (500_000.0 + 90_000.0 * 128.0);
        let predicted = cost.predict_ns(8, 128) as f64;
        assert!((predicted / expected - 1.0).abs() < 0.2, "{predicted} for {expected}");
    }
}
