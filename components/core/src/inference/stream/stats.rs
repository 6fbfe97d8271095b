//! What a stream counts.

use super::{ErrorCategory, FlushReason, StreamState};
use crate::inference::breaker::BreakerState;

/// Buckets per power of two: a quantile is at most 1/8 too high.
const STEPS: usize = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
const BUCKETS: usize = STEPS * (64 - STEP_BITS as usize + 1);

/// A histogram of nanoseconds in buckets whose width grows with the value: 4 KB whatever it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], count: 0, max_ns: 0 }
    }
}

impl Histogram {
    /// Counts a value.
    pub fn record(&mut self, value_ns: u64) {
        let count = &mut self.counts[bucket(value_ns)];
        *count = count.saturating_add(1);
        self.count = self.count.saturating_add(1);
        self.max_ns = self.max_ns.max(value_ns);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest value, exactly; 0 when there is none.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// A value that `percent` of the values do not exceed, at most 1/8 too high; none when there are no values. More than 100 counts as
    /// 100.
    pub fn quantile_ns(&self, percent: u32) -> Option<u64> {
        let wanted = (u128::from(self.count) * u128::from(percent.min(100))).div_ceil(100).max(1);
        let mut below = 0u128;
        self.counts.iter().enumerate().find_map(|(bucket, count)| {
            below += u128::from(*count);
            (below >= wanted && *count > 0).then(|| bound_ns(bucket).min(self.max_ns))
        })
    }

    /// The buckets that are not empty, from the lowest: the largest value of each and how many values it counts.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(bucket, count)| (bound_ns(bucket), *count))
    }
}

/// Values below [`STEPS`] have a bucket each; above, the leading bit and the bits after it choose.
fn bucket(value: u64) -> usize {
    let power = value.checked_ilog2().unwrap_or(0);
    let Some(shift) = power.checked_sub(STEP_BITS) else { return value as usize };
    STEPS * (shift as usize + 1) + ((value >> shift) as usize & (STEPS - 1))
}

/// The largest value of a bucket.
fn bound_ns(bucket: usize) -> u64 {
    let Some(shift) = (bucket / STEPS).checked_sub(1) else { return bucket as u64 };
    let lowest = (STEPS + bucket % STEPS) as u64;
    (lowest << shift) | ((1u64 << shift) - 1)
}

/// What a stream has done so far.
///
/// At any time `pushed == delivered + failed + dropped + held`, where held items wait, are at inference, or have an outcome that was not
/// polled yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Where the stream is in its life.
    pub state: StreamState,
    /// Items taken, dropped ones included.
    pub pushed: u64,
    /// Pushes that were refused because there was no room.
    pub pushed_back: u64,
    /// Results polled.
    pub delivered: u64,
    /// Items that failed and were not dropped, by category in the order of [`ErrorCategory::ALL`].
    pub failed_by_category: [u64; ErrorCategory::ALL.len()],
    /// Items that the drop policy chose.
    pub dropped: u64,
    /// Attempts after the first.
    pub retried: u64,
    /// Retries that the budget refused.
    pub retries_refused: u64,
    /// Items at inference.
    pub in_flight: usize,
    /// Items that wait for an attempt, the next one included.
    pub buffered: usize,
    /// Results and failures that were not polled yet.
    pub unpolled: usize,
    /// Released and not acknowledged.
    pub unacknowledged: usize,
    /// Batches by why they were released, in the order of [`FlushReason::ALL`].
    pub batches_by_reason: [u64; FlushReason::ALL.len()],
    /// Attempts in all batches.
    pub attempts: u64,
    /// What the circuit breaker does; none when there is none.
    pub breaker: Option<BreakerState>,
    /// From push to result.
    pub latency: Histogram,
}

impl Stats {
    /// Items that failed for a reason of the category.
    pub fn failed(&self, category: ErrorCategory) -> u64 {
        self.failed_by_category[category as usize]
    }

    /// Items that failed, whatever the reason.
    pub fn failed_total(&self) -> u64 {
        self.failed_by_category.iter().sum()
    }

    /// Batches released for a reason.
    pub fn batches(&self, reason: FlushReason) -> u64 {
        self.batches_by_reason[reason as usize]
    }

    /// Batches released, whatever the reason.
    pub fn batches_total(&self) -> u64 {
        self.batches_by_reason.iter().sum()
    }

    /// Attempts per batch; 0 before the first.
    pub fn mean_batch_size(&self) -> f64 {
        self.attempts as f64 / self.batches_total().max(1) as f64
    }
}

/// The counters among [`Stats`].
#[derive(Debug, Clone, Default)]
pub(super) struct Counters {
    pub(super) pushed: u64,
    pub(super) pushed_back: u64,
    pub(super) delivered: u64,
    pub(super) failed_by_category: [u64; ErrorCategory::ALL.len()],
    pub(super) dropped: u64,
    pub(super) retried: u64,
    pub(super) retries_refused: u64,
    pub(super) batches_by_reason: [u64; FlushReason::ALL.len()],
    pub(super) attempts: u64,
    pub(super) latency: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_cover_every_value_without_a_gap() {
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        assert_eq!(bound_ns(BUCKETS - 1), u64::MAX);
        for at in 0..BUCKETS - 1 {
            let bound = bound_ns(at);
            assert_eq!((bucket(bound), bucket(bound + 1)), (at, at + 1));
        }
    }

    #[test]
    fn empty_histogram_has_no_quantile() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile_ns(50), histogram.max_ns()), (None, 0));
        histogram.record(0);
        assert_eq!((histogram.quantile_ns(0), histogram.quantile_ns(100)), (Some(0), Some(0)));
    }

    proptest! {
        #[test]
        fn quantile_is_at_most_an_eighth_too_high(
            mut values in prop::collection::vec(prop_oneof![0u64..100, any::<u64>(), 0u64..10_000_000_000], 1..200),
            percent in 0u32..120,
        ) {
            let mut histogram = Histogram::default();
            for value in &values {
                histogram.record(*value);
            }
            values.sort_unstable();
            let rank = (values.len() * percent.min(100) as usize).div_ceil(100).max(1);
            let exact = values[rank - 1];
            let told = histogram.quantile_ns(percent).unwrap();
            prop_assert!(told >= exact && told - exact <= exact / 8);
            prop_assert_eq!(histogram.count(), values.len() as u64);
            prop_assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), values.len() as u64);
            prop_assert_eq!(histogram.max_ns(), values[values.len() - 1]);
        }
    }
}
