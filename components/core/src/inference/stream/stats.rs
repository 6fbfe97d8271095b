//! The statistics of a stream.

use super::{ErrorCategory, FlushReason, StreamState};
use crate::inference::breaker::BreakerState;

/// Buckets per power of two, so a quantile is at most 1/8 too high.
const STEPS: usize = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
const BUCKETS: usize = STEPS * (64 - STEP_BITS as usize + 1);

/// A histogram of nanoseconds in buckets whose width grows with the value. Its size is constant, about 4 KB.
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
    /// Records a value.
    pub fn record(&mut self, value_ns: u64) {
        let count = &mut self.counts[bucket(value_ns)];
        *count = count.saturating_add(1);
        self.count = self.count.saturating_add(1);
        self.max_ns = self.max_ns.max(value_ns);
    }

    /// The number of recorded values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The exact largest value; 0 without values.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// A value that `percent` of the values do not exceed, at most 1/8 too high; `None` without values. More than 100
    /// counts as 100.
    pub fn quantile_ns(&self, percent: u32) -> Option<u64> {
        let rank = (u128::from(self.count) * u128::from(percent.min(100))).div_ceil(100).max(1);
        let mut below = 0u128;
        self.counts.iter().enumerate().find_map(|(bucket, count)| {
            below += u128::from(*count);
            (below >= rank && *count > 0).then(|| bound_ns(bucket).min(self.max_ns))
        })
    }

    /// The non-empty buckets in ascending order: the largest value of each, and its number of values.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(bucket, count)| (bound_ns(bucket), *count))
    }
}

/// The bucket of a value. Values below [`STEPS`] have a bucket each; above, it is given by the leading bit and the bits
/// after it.
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

/// The statistics of a stream since its creation.
///
/// At any time `pushed == delivered + failed + dropped + buffered + in_flight + unpolled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// The state of the stream.
    pub state: StreamState,
    /// Accepted items, dropped ones included.
    pub pushed: u64,
    /// Pushes that were refused because there was no room.
    pub pushed_back: u64,
    /// Results polled.
    pub delivered: u64,
    /// Items that failed and were not dropped, by category in the order of [`ErrorCategory::ALL`].
    pub failed_by_category: [u64; ErrorCategory::ALL.len()],
    /// Dropped items.
    pub dropped: u64,
    /// Attempts after the first.
    pub retried: u64,
    /// Retries that the budget refused.
    pub retries_refused: u64,
    /// Items at inference.
    pub in_flight: usize,
    /// Items that wait for their first or another attempt.
    pub buffered: usize,
    /// Results and failures that were not polled yet.
    pub unpolled: usize,
    /// Items that were released or dropped and not acknowledged.
    pub unacknowledged: usize,
    /// Batches by the reason of their release, in the order of [`FlushReason::ALL`].
    pub batches_by_reason: [u64; FlushReason::ALL.len()],
    /// Attempts in all batches.
    pub attempts: u64,
    /// The state of the circuit breaker, if there is one.
    pub breaker: Option<BreakerState>,
    /// The latencies of results, from push to outcome.
    pub latency: Histogram,
}

impl Stats {
    /// Items that failed for a reason of the category.
    pub fn failed(&self, category: ErrorCategory) -> u64 {
        self.failed_by_category[category as usize]
    }

    /// Items that failed, in all categories.
    pub fn failed_total(&self) -> u64 {
        self.failed_by_category.iter().sum()
    }

    /// Batches released for a reason.
    pub fn batches(&self, reason: FlushReason) -> u64 {
        self.batches_by_reason[reason as usize]
    }

    /// Batches released, for all reasons.
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
            let quantile = histogram.quantile_ns(percent).unwrap();
            prop_assert!(quantile >= exact && quantile - exact <= exact / 8);
            prop_assert_eq!(histogram.count(), values.len() as u64);
            prop_assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), values.len() as u64);
            prop_assert_eq!(histogram.max_ns(), values[values.len() - 1]);
        }
    }
}
