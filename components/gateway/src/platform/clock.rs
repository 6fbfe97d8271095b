//! The clocks of `wasi:clocks`.

use std::future::Future;

use futures::future::{Either, select};
use spin_sdk::wasip3::clocks::{monotonic_clock, system_clock};
use weir_core::time::Now;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// The monotonic clock, in nanoseconds: one call of the host instead of two.
pub(crate) fn monotonic_ns() -> u64 {
    monotonic_clock::now()
}

/// Both clocks. A wall clock before 1970 reads as 1970.
pub(crate) fn now() -> Now {
    let wall = system_clock::now();
    let seconds = u64::try_from(wall.seconds).unwrap_or(0);
    Now {
        monotonic_ns: monotonic_clock::now(),
        unix_ns: seconds.saturating_mul(NS_PER_S).saturating_add(u64::from(wall.nanoseconds)),
    }
}

/// A point in time of the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at_ns: u64,
}

impl Deadline {
    /// `ms` milliseconds after a time.
    pub(crate) fn after(began: Now, ms: u64) -> Self {
        Self { at_ns: began.monotonic_ns.saturating_add(ms.saturating_mul(NS_PER_MS)) }
    }

    /// A value of the monotonic clock, in nanoseconds.
    pub(crate) fn at(at_ns: u64) -> Self {
        Self { at_ns }
    }

    /// The earlier of two.
    pub(crate) fn earlier(self, other: Self) -> Self {
        Self { at_ns: self.at_ns.min(other.at_ns) }
    }

    /// `ms` milliseconds later.
    pub(crate) fn later(self, ms: u64) -> Self {
        Self { at_ns: self.at_ns.saturating_add(ms.saturating_mul(NS_PER_MS)) }
    }

    /// Whether the deadline has passed.
    pub(crate) fn is_past(self, now: Now) -> bool {
        now.monotonic_ns >= self.at_ns
    }

    /// Resolves when the deadline has passed.
    pub(crate) async fn passed(self) {
        monotonic_clock::wait_until(self.at_ns).await;
    }

    /// The value of the future, or none if the deadline passes first; the future is then dropped.
    pub(crate) async fn bound<T>(self, future: impl Future<Output = T>) -> Option<T> {
        let future = std::pin::pin!(future);
        let passed = std::pin::pin!(self.passed());
        match select(future, passed).await {
            Either::Left((value, _)) => Some(value),
            Either::Right(((), _)) => None,
        }
    }
}
