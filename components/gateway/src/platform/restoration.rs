//! Whether the stored sessions and executions are counted after a start. Until they are, the counts per user are too
//! low, so no session or execution starts.

use std::cell::Cell;

use weir_codec::http::problem::Problem;

use super::{
    clock::{self, Deadline},
    notify::TaskNotify,
};

/// How long a request waits for the end of the restoration, in milliseconds.
const WAIT_MS_MAX: u64 = 2000;
const RETRY_AFTER_MS: u32 = 1000;

/// Whether the store is being read.
#[derive(Default)]
pub(crate) struct Restoration {
    phase: Cell<Phase>,
    finished: TaskNotify,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// Another instance reads the store, if any does.
    #[default]
    NotBegun,
    Running,
    Finished,
}

impl Restoration {
    /// Marks that reading the store has begun. False if it had begun before: it must not begin again.
    #[must_use]
    pub(crate) fn begin(&self) -> bool {
        let is_first = self.phase.get() == Phase::NotBegun;
        if is_first {
            self.phase.set(Phase::Running);
        }
        is_first
    }

    /// Marks that everything in the store is counted.
    pub(crate) fn finish(&self) {
        self.phase.set(Phase::Finished);
        self.finished.notify();
    }

    fn is_running(&self) -> bool {
        self.phase.get() == Phase::Running
    }

    /// Waits until everything in the store is counted; 503 `restoring` if that takes longer than `WAIT_MS_MAX`.
    pub(crate) async fn counted(&self) -> Result<(), Problem> {
        if !self.is_running() {
            return Ok(());
        }
        let deadline = Deadline::after(clock::now(), WAIT_MS_MAX);
        match deadline.bound(self.finished.until(|| !self.is_running())).await {
            Some(()) => Ok(()),
            None => {
                let detail = "the server has started, and has not read its store yet; retry later";
                Err(Problem::refused(503, "restoring", "The server is starting", detail, Some(RETRY_AFTER_MS)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoration_that_has_begun_does_not_begin_again() {
        let restoration = Restoration::default();
        assert!(!restoration.is_running());
        assert!(restoration.begin() && !restoration.begin() && restoration.is_running());
        restoration.finish();
        assert!(!restoration.begin() && !restoration.is_running());
    }
}
