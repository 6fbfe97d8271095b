//! Readings of the clocks, which are arguments of the state machines in this crate.

/// The clocks, read by a driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of a monotonic clock.
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}
