//! The wall clock, and the epochs that are taken from it.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use weir_core::channel::Values;

/// Low bits of an epoch that tell processes apart.
const RANDOM_BITS: u32 = 16;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// When a value ends that is put now, in milliseconds since 1970; one without a time to live never does.
pub(crate) fn end_ms(now_ms: u64, ttl_ms: Option<u64>) -> u64 {
    ttl_ms.map_or(Values::<()>::NEVER_MS, |ttl_ms| now_ms.saturating_add(ttl_ms))
}

/// An epoch that no channel had before: later than all that this process gave out, later than those of earlier
/// processes as far as the clock was not set back, and not that of another process that began one in the same millisecond.
pub(crate) fn fresh_epoch() -> u64 {
    static LATEST: AtomicU64 = AtomicU64::new(0);
    let random = RandomState::new().hash_one(0) & ((1 << RANDOM_BITS) - 1);
    let wanted = now_ms() << RANDOM_BITS | random;
    let before = LATEST
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |latest| Some(wanted.max(latest + 1)))
        .unwrap_or_default();
    wanted.max(before + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow() {
        let epochs: Vec<u64> = (0..1_000).map(|_| fresh_epoch()).collect();
        assert!(epochs.is_sorted_by(|a, b| a < b));
        assert!(epochs[0] >> RANDOM_BITS >= 1_600_000_000_000);
    }
}
