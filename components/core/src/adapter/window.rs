//! How many records may be in flight.

/// The records in flight for which no rate is needed.
const RECORDS_MIN: usize = 256;
/// The time in which as many records are completed as may be in flight beyond [`RECORDS_MIN`].
const FLIGHT_NS: u64 = 500_000_000;
/// The least time over which the rate is measured.
const PERIOD_NS: u64 = 100_000_000;

/// The bound of the records in flight, which follows their rate.
///
/// A fast model needs many records in flight, so that its next batches are always there. For a slow one they would take long to
/// complete, for which the end of the adapter and a rebalance of a consumer group have to wait.
#[derive(Debug, Clone)]
pub struct Window {
    max: usize,
    size: usize,
    /// The records that were completed since a time.
    completed: usize,
    since_ns: Option<u64>,
}

impl Window {
    /// The window before the first record; `max` is its largest size.
    pub fn new(max: usize) -> Self {
        Self { max, size: max.min(RECORDS_MIN), completed: 0, since_ns: None }
    }

    /// The number of records that may be in flight.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Records that records were completed.
    pub fn handle_complete(&mut self, now: u64, count: usize) {
        let Some(since) = self.since_ns else {
            self.since_ns = Some(now);
            return;
        };
        self.completed += count;
        let elapsed_ns = now.saturating_sub(since);
        if elapsed_ns < PERIOD_NS {
            return;
        }
        let in_time = self.completed as u128 * u128::from(FLIGHT_NS) / u128::from(elapsed_ns);
        let in_time = usize::try_from(in_time).unwrap_or(usize::MAX);
        self.size = in_time.max(RECORDS_MIN).min(self.max);
        (self.completed, self.since_ns) = (0, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NS_PER_MS: u64 = 1_000_000;

    #[test]
    fn size_is_what_is_completed_in_half_a_second_within_bounds() {
        let mut window = Window::new(1024);
        assert_eq!(window.size(), 256);
        window.handle_complete(0, 100);
        // 3000 a second, which the period of 100 ms shows.
        window.handle_complete(50 * NS_PER_MS, 150);
        assert_eq!(window.size(), 256);
        window.handle_complete(100 * NS_PER_MS, 150);
        assert_eq!(window.size(), 1024);
        window.handle_complete(300 * NS_PER_MS, 240);
        assert_eq!(window.size(), 600);
        window.handle_complete(1300 * NS_PER_MS, 20);
        assert_eq!(window.size(), 256);
    }

    #[test]
    fn small_bound_is_the_size() {
        let mut window = Window::new(8);
        (0..100).for_each(|time| window.handle_complete(time * 10 * NS_PER_MS, 1000));
        assert_eq!(window.size(), 8);
    }

    proptest! {
        #[test]
        fn size_is_within_its_bounds(
            max in 1usize..5000, steps in prop::collection::vec((0u64..1_000_000_000, 0usize..100_000), 0..50),
        ) {
            let (mut window, mut now) = (Window::new(max), 0);
            for (after, count) in steps {
                now += after;
                window.handle_complete(now, count);
                prop_assert!(window.size() <= max && window.size() >= max.min(RECORDS_MIN));
            }
        }
    }
}
