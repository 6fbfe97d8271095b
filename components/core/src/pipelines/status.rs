//! The state of an execution for clients.

use std::sync::Arc;

use super::{
    checkpoint::StepTimes,
    definition::KindName,
    event::{PipelineFailure, StepFailure},
    execution::Execution,
    json::Json,
    run::Outcome,
    slot::SlotState,
};
use crate::named::named;

named! {
    /// The state of an execution.
    pub enum State {
        /// Steps run or wait.
        Running = "running",
        /// A step failed, and completed steps are being compensated.
        Compensating = "compensating",
        /// It was completed.
        Completed = "completed",
        /// It failed.
        Failed = "failed",
        /// It was cancelled.
        Cancelled = "cancelled",
    }
}

named! {
    /// The state of a step.
    pub enum StepState {
        /// It waits for other steps, or for a free slot.
        Waiting = "waiting",
        /// An attempt runs.
        Running = "running",
        /// It waits for the next attempt.
        Retrying = "retrying",
        /// It was completed.
        Completed = "completed",
        /// It failed permanently.
        Failed = "failed",
        /// It was cancelled, or never started.
        Skipped = "skipped",
    }
}

/// The status of an execution at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The id of the execution.
    pub execution_id: Arc<str>,
    /// The name of the pipeline.
    pub pipeline: Arc<str>,
    /// The state of the execution.
    pub state: State,
    /// When it began, in nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// Its duration so far, or in total, in nanoseconds.
    pub duration_ns: u64,
    /// The number of numbered events.
    pub events: u64,
    /// The number of times that it was resumed.
    pub resumed: u32,
    /// The status of each step.
    pub steps: Vec<StepStatus>,
    /// The output of a completed execution.
    pub output: Option<Json>,
    /// How it failed.
    pub failure: Option<PipelineFailure>,
}

/// The status of a step at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct StepStatus {
    /// The id of the step.
    pub id: Arc<str>,
    /// The state of the step.
    pub state: StepState,
    /// Attempts that were started since the execution was last resumed.
    pub attempts: u32,
    /// Why it failed.
    pub failure: Option<StepFailure>,
    /// The kind of the step.
    pub kind: KindName,
    /// The ids of its direct predecessors.
    pub after: Vec<Arc<str>>,
    /// The times of the last attempt.
    pub times: StepTimes,
    /// The last reported progress of the last attempt, from 0 to 1; 1 for a completed step.
    pub progress: Option<f64>,
}

impl Execution {
    /// The status of the execution at a time.
    pub fn status(&self, now_ns: u64) -> Status {
        let (state, output, failure) = match self.outcome() {
            None if self.is_failing() => (State::Compensating, None, None),
            None => (State::Running, None, None),
            Some(Outcome::Completed { output }) => (State::Completed, Some(output.clone()), None),
            Some(Outcome::Failed(failure)) if failure.cancelled => (State::Cancelled, None, Some(failure.clone())),
            Some(Outcome::Failed(failure)) => (State::Failed, None, Some(failure.clone())),
        };
        let steps = self.slots().enumerate().map(|(at, (task, slot))| {
            let (state, failure) = match &slot.state {
                SlotState::Waiting if self.outcome().is_some() || self.is_failing() => (StepState::Skipped, None),
                SlotState::Waiting => (StepState::Waiting, None),
                SlotState::Running { .. } => (StepState::Running, None),
                SlotState::Backoff { .. } => (StepState::Retrying, None),
                SlotState::Done(_) => (StepState::Completed, None),
                SlotState::Failed(failure) => (StepState::Failed, Some(failure.clone())),
                SlotState::Stopped => (StepState::Skipped, None),
            };
            let progress = if state == StepState::Completed { Some(1.0) } else { slot.progress };
            StepStatus {
                id: task.id.clone(),
                state,
                attempts: slot.attempts,
                failure,
                kind: task.kind.name(),
                after: self.definition().ids_after(at),
                times: slot.times,
                progress,
            }
        });
        Status {
            execution_id: self.id().clone(),
            pipeline: self.definition().name().into(),
            state,
            began_unix_ns: self.began_unix_ns(),
            duration_ns: self.duration_ns(now_ns),
            events: self.events(),
            resumed: self.resumes(),
            steps: steps.collect(),
            output,
            failure,
        }
    }
}
