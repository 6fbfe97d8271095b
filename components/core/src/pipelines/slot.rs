//! The state of a step or a compensation.

use super::{checkpoint::StepTimes, event::StepFailure, json::Json};
use crate::inference::retry::Retry;

/// The state of a step or a compensation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SlotState {
    /// It was not started.
    Waiting,
    /// An attempt runs.
    Running {
        /// The number of the run.
        run: u32,
        /// When it began.
        started_ns: u64,
        /// When it times out.
        deadline_ns: u64,
    },
    /// It waits for the next attempt.
    Backoff {
        /// When the next attempt is due.
        until_ns: u64,
    },
    /// It was completed with this output.
    Done(Json),
    /// It failed permanently.
    Failed(StepFailure),
    /// It was cancelled while it ran or waited for another attempt.
    Stopped,
}

/// A step, or a compensation, with its attempts.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    pub(super) retry: Retry,
    /// Attempts that were started.
    pub(super) attempts: u32,
    /// Parts of the output of this attempt.
    pub(super) parts: u64,
    /// The times of the last attempt.
    pub(super) times: StepTimes,
    /// The last reported progress of the last attempt, from 0 to 1.
    pub(super) progress: Option<f64>,
}

impl Slot {
    pub(super) fn new(state: SlotState) -> Self {
        Self { state, retry: Retry::new(), attempts: 0, parts: 0, times: StepTimes::default(), progress: None }
    }

    /// True when an attempt can start now.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        match self.state {
            SlotState::Waiting => true,
            SlotState::Backoff { until_ns } => until_ns <= now_ns,
            _ => false,
        }
    }

    /// When the run of this number started, if it is running.
    pub(super) fn running_since(&self, number: u32) -> Option<u64> {
        match self.state {
            SlotState::Running { run, started_ns, .. } if run == number => Some(started_ns),
            _ => None,
        }
    }
}
