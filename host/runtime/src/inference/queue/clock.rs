//! The clock of a queue.

use std::time::Instant;

/// A clock that counts nanoseconds from 0; tests have one that they set.
pub(super) enum Clock {
    /// The monotonic clock of the system, from its value at this time on.
    System(Instant),
    #[cfg(test)]
    Manual(std::sync::atomic::AtomicU64),
}

impl Clock {
    pub(super) fn system() -> Self {
        Self::System(Instant::now())
    }

    /// A clock that stands still between calls of `advance`.
    #[cfg(test)]
    pub(super) fn manual() -> Self {
        Self::Manual(0.into())
    }

    #[cfg(test)]
    pub(super) fn advance(&self, by: std::time::Duration) {
        let Self::Manual(now_ns) = self else { panic!("the clock of the system cannot be set") };
        now_ns.fetch_add(by.as_nanos() as u64, std::sync::atomic::Ordering::Relaxed);
    }

    pub(super) fn now_ns(&self) -> u64 {
        match self {
            Self::System(start) => nanoseconds(start, Instant::now()),
            #[cfg(test)]
            Self::Manual(now_ns) => now_ns.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// A time of the system's clock on this clock.
    pub(super) fn ns_at(&self, time: Instant) -> u64 {
        match self {
            Self::System(start) => nanoseconds(start, time),
            #[cfg(test)]
            Self::Manual(_) => self.now_ns() + nanoseconds(&Instant::now(), time),
        }
    }
}

fn nanoseconds(start: &Instant, time: Instant) -> u64 {
    u64::try_from(time.saturating_duration_since(*start).as_nanos()).unwrap_or(u64::MAX)
}
