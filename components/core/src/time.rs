//! Readings of the clocks, which every state machine here takes as an argument.

/// The clocks, read by a driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds since an arbitrary moment; never goes back.
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}
