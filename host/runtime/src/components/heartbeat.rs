//! Detects instances whose event loop does not run, because a guest computes without yielding.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Heartbeats of an event loop per timeout.
pub(crate) const HEARTBEATS: u32 = 4;

/// Counts up while the event loop that polls it runs.
pub(crate) async fn beat(heartbeats: &AtomicU64, timeout: Duration) -> Infallible {
    loop {
        heartbeats.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(timeout / HEARTBEATS).await;
    }
}

/// Resolves when the counter has not changed for `timeout`.
pub(crate) async fn silence(heartbeats: &AtomicU64, timeout: Duration) {
    let mut previous = 0;
    loop {
        tokio::time::sleep(timeout).await;
        let now = heartbeats.load(Ordering::Relaxed);
        if now == previous {
            return;
        }
        previous = now;
    }
}
