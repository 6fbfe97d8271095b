//! The due times of an open loop: a Poisson process, fixed before the run and independent of the server.

use crate::rng::Rng;

/// Arrivals at `rate` per second, in nanoseconds since the start, up to `seconds`; deterministic for a seed.
pub(crate) fn poisson(rate: f64, seconds: f64, seed: u64) -> Vec<u64> {
    assert!(rate > 0.0 && seconds >= 0.0, "a rate of {rate} for {seconds} s");
    let mut rng = Rng::new(seed ^ 0x706f_6973_736f_6e00);
    let mut due = Vec::with_capacity((rate * seconds * 1.1) as usize + 16);
    let mut at = 0.0;
    loop {
        at += rng.exponential() / rate;
        if at >= seconds {
            return due;
        }
        due.push((at * 1e9) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_exponential() {
        let due = poisson(1_000.0, 50.0, 3);
        assert!((due.len() as f64 / 50_000.0 - 1.0).abs() < 0.02, "{}", due.len());
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e6).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // A property of the exponential distribution: its deviation is its mean, and 1/e of the gaps are longer.
        assert!((mean - 1.0).abs() < 0.02 && (deviation / mean - 1.0).abs() < 0.03, "{mean} {deviation}");
        let longer = gaps.iter().filter(|gap| **gap > 1.0).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.01, "{longer}");
    }

    #[test]
    fn seed_determines_the_schedule() {
        assert_eq!(poisson(100.0, 2.0, 1), poisson(100.0, 2.0, 1));
        assert_ne!(poisson(100.0, 2.0, 1), poisson(100.0, 2.0, 2));
        assert!(poisson(100.0, 2.0, 1).is_sorted());
    }
}
