//! The state of an execution as plain data.

use std::sync::Arc;

use thiserror::Error;

use super::{
    event::{PipelineFailure, Sequenced, StepFailure},
    json::Json,
};

/// The state from which an execution continues, besides its definition. Encoded by `weir-codec`.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Its number, from 1; a later one replaces it.
    pub number: u64,
    /// The id of the execution.
    pub execution_id: Arc<str>,
    /// The input of the pipeline.
    pub input: Json,
    /// When the execution began, in nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// When the checkpoint was created, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// The duration of the execution up to the checkpoint, in nanoseconds.
    pub elapsed_ns: u64,
    /// The number of times that the execution was resumed.
    pub resumes: u32,
    /// The number of runs that were started.
    pub runs: u32,
    /// The state of each step of the definition.
    pub steps: Vec<CheckpointStep>,
    /// The times of each step; empty in a checkpoint of an earlier version.
    pub times: Vec<StepTimes>,
    /// The indexes of the completed steps, in the order of completion.
    pub completed: Vec<usize>,
    /// The phase of the execution.
    pub phase: CheckpointPhase,
    /// Compensations that have ended, completed or failed.
    pub compensations_over: usize,
    /// Compensations that failed.
    pub compensations_failed: u32,
    /// The number of the last event that belongs to the checkpoint; 0 if there is none.
    pub events_end: u64,
    /// Its events that were not known to be stored, without holes, up to `events_end`.
    pub outbox: Vec<Sequenced>,
}

/// The times of the last attempt of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// When it began, in nanoseconds since 1970.
    pub began_unix_ns: Option<u64>,
    /// Its duration in nanoseconds, if it has ended.
    pub duration_ns: Option<u64>,
}

/// A step in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointStep {
    /// It was not started, or its attempt has not ended: it runs again.
    Open,
    /// It was completed with this output.
    Completed(Json),
    /// It failed permanently.
    Failed(StepFailure),
}

/// The phase of an execution in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointPhase {
    /// Steps run.
    Running,
    /// A step failed, and completed steps are being compensated.
    Failing {
        /// The failure of the step.
        failure: StepFailure,
        /// The index of the step.
        step: usize,
    },
    /// It was completed.
    Completed,
    /// It failed.
    Failed(PipelineFailure),
}

/// Why an execution cannot continue from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResumeError {
    /// The checkpoint is not one of this definition, or is damaged.
    #[error("the checkpoint does not fit the definition: {0}")]
    Unfit(&'static str),
    /// The channel has lost events that were stored.
    #[error("the channel holds {events_stored} events, and {events_known} of the execution had been stored")]
    EventsLost {
        /// The number of the last event in the channel.
        events_stored: u64,
        /// The number of events that are known to have been stored.
        events_known: u64,
    },
}
