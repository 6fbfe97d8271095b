//! What the store needs of its host.

use thiserror::Error;

/// A bucket of `wasi:keyvalue`, clocks, and a log.
pub trait Host: 'static {
    /// The value of a key.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, HostError>;
    /// Sets the value of a key.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), HostError>;
    /// Deletes a key, if it exists.
    fn delete(&self, key: &str) -> Result<(), HostError>;
    /// All keys, in any order.
    fn keys(&self) -> Result<Vec<String>, HostError>;
    /// Adds to the number under a key, atomically, and returns the sum.
    fn increment(&self, key: &str, delta: u64) -> Result<u64, HostError>;
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
    /// Milliseconds of a clock that never goes back.
    fn clock_ms(&self) -> u64;
    /// Resolves after a time.
    fn wait_ms(&self, ms: u64) -> impl Future<Output = ()>;
    /// Writes a line to the log.
    fn report(&self, message: &str);
}

/// Why the host failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// It has no such bucket.
    #[error("the host has no bucket of this name (WEIR_KEYVALUE_BUCKET)")]
    NoSuchStore,
    /// The component may not use the bucket.
    #[error("the host denies access to the bucket (WEIR_KEYVALUE_BUCKET)")]
    AccessDenied,
    /// Any other failure, by the host's own words.
    #[error("{0}")]
    Other(String),
}
