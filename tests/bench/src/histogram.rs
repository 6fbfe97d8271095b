//! Latencies in buckets whose width is 1/64 of their value: at most 1.6 % off, from 1 ns to 18 s and beyond.
//!
//! The layout is that of HdrHistogram: exact below 64 ns, then 64 buckets for each doubling.

use serde::{Deserialize, Serialize};

/// Buckets for each doubling.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// Counts of nanoseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum_ns: u128,
    max_ns: u64,
}

/// The quantiles of a histogram for a report, in milliseconds; zeros when it is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Histogram {
    pub(crate) fn record(&mut self, ns: u64) {
        let ix = bucket(ns);
        if ix >= self.counts.len() {
            self.counts.resize(ix + 1, 0);
        }
        self.counts[ix] += 1;
        self.total += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// The smallest bucket that `share` of all values do not exceed, by its upper edge; the largest value is exact.
    pub(crate) fn quantile_ns(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut cumulative = 0;
        for (ix, count) in self.counts.iter().enumerate() {
            cumulative += count;
            if cumulative >= rank {
                return upper(ix).min(self.max_ns);
            }
        }
        self.max_ns
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        if self.total == 0 {
            return Quantiles::default();
        }
        let ms = |share| self.quantile_ns(share) as f64 / 1e6;
        Quantiles {
            count: self.total,
            mean: self.sum_ns as f64 / self.total as f64 / 1e6,
            p50: ms(0.5),
            p90: ms(0.9),
            p99: ms(0.99),
            p999: ms(0.999),
            max: self.max_ns as f64 / 1e6,
        }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let shift = 63 - ns.leading_zeros() - STEP_BITS;
    // `ns >> shift` is in STEPS..2*STEPS.
    (u64::from(shift) * STEPS + (ns >> shift)) as usize
}

/// The largest value of a bucket.
fn upper(ix: usize) -> u64 {
    let ix = ix as u64;
    if ix < STEPS {
        return ix;
    }
    let shift = ix / STEPS - 1;
    let from = u128::from(ix - shift * STEPS) << shift;
    u64::try_from(from + (1_u128 << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_in_narrow_buckets() {
        let mut before = 0;
        for value in (0..2_000).chain((11..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let ix = bucket(value);
            assert!(upper(ix) >= value && (ix == 0 || upper(ix - 1) < value), "{value} in {ix}");
            assert!(upper(ix) - value <= value / STEPS, "{value}: {}", upper(ix));
            if value < 2_000 {
                assert!(ix >= before);
                before = ix;
            }
        }
        assert_eq!(upper(bucket(u64::MAX)), u64::MAX);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut histogram = Histogram::default();
        (1..=1_000_u64).for_each(|us| histogram.record(us * 1_000));
        let found = histogram.quantiles();
        for (value, wanted) in [(found.p50, 0.5), (found.p90, 0.9), (found.p99, 0.99), (found.mean, 0.5005)] {
            assert!((value / wanted - 1.0).abs() < 0.02, "{value} for {wanted}");
        }
        assert_eq!((found.count, found.max), (1_000, 1.0));
        assert_eq!(Histogram::default().quantiles(), Quantiles::default());
    }

    #[test]
    fn one_slow_answer_in_a_hundred_is_not_the_99th_but_two_are() {
        let mut histogram = Histogram::default();
        (0..99).for_each(|_| histogram.record(1_000));
        histogram.record(1_000_000);
        assert!(histogram.quantile_ns(0.99) < 1_100);
        histogram.record(1_000_000);
        assert!(histogram.quantile_ns(0.99) > 900_000);
    }
}
