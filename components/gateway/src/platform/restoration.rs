//! Whether the stored sessions and executions are counted after a start. Until they are, the counts per user are too
//! low, so no session or execution starts.

use std::cell::Cell;

use weir_codec::http::problem::Problem;

use super::clock::{self, Deadline};

/// How long a request waits for the end of the restoration, and the interval of its checks, in milliseconds.
const WAIT_MS_MAX: u64 = 2000;
const CHECK_INTERVAL_MS: u64 = 10;
const RETRY_AFTER_MS: u32 = 1000;

/// Whether the store is being read.
#[derive(Debug, Default)]
pub(crate) struct Restoration {
    running: Cell<bool>,
}

impl Restoration {
    /// Marks that reading the store has begun.
    pub(crate) fn begin(&self) {
        self.running.set(true);
    }

    /// Marks that everything in the store is counted.
    pub(crate) fn finish(&self) {
        self.running.set(false);
    }

    /// Waits until everything in the store is counted; 503 `restoring` if that takes longer than `WAIT_MS_MAX`.
    pub(crate) async fn counted(&self) -> Result<(), Problem> {
        let deadline = Deadline::after(clock::now(), WAIT_MS_MAX);
        while self.running.get() {
            if deadline.is_past(clock::now()) {
                let detail = "the server has started, and has not read its store yet; retry later";
                return Err(Problem::refused(503, "restoring", "The server is starting", detail, Some(RETRY_AFTER_MS)));
            }
            Deadline::after(clock::now(), CHECK_INTERVAL_MS).passed().await;
        }
        Ok(())
    }
}
