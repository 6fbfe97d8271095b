//! An execution as plain data.

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
    /// Whose it is.
    pub execution_id: Arc<str>,
    /// The input of the pipeline.
    pub input: Json,
    /// When the execution began, in nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// When it was made, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// How long the execution had taken by then.
    pub elapsed_ns: u64,
    /// How often it had been resumed.
    pub resumes: u32,
    /// Runs of steps that were started.
    pub runs: u32,
    /// Each step of the definition.
    pub steps: Vec<CheckpointStep>,
    /// When each of them ran; empty in a checkpoint of an earlier version.
    pub times: Vec<StepTimes>,
    /// Steps that were completed, in that order, by index.
    pub completed: Vec<usize>,
    /// How far the whole is.
    pub phase: CheckpointPhase,
    /// Compensations that are over, done or failed.
    pub compensations_over: usize,
    /// Compensations that failed.
    pub compensations_failed: u32,
    /// The number of the last event that belongs to it; 0 when there is none.
    pub events_end: u64,
    /// Its events that were not known to be stored, without holes, up to `events_end`.
    pub outbox: Vec<Sequenced>,
}

/// When the last attempt of a step ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// When it began, in nanoseconds since 1970.
    pub began_unix_ns: Option<u64>,
    /// How long it took, if it is over.
    pub duration_ns: Option<u64>,
}

/// A step in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointStep {
    /// It was not started, or its attempt has not ended: it runs again.
    Open,
    /// It was completed with this output.
    Completed(Json),
    /// It failed for good.
    Failed(StepFailure),
}

/// The whole in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointPhase {
    /// Steps run.
    Running,
    /// A step failed, and completed steps are being compensated.
    Failing {
        /// Why.
        failure: StepFailure,
        /// Which.
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
    /// The channel has lost events that the execution knows to have been stored.
    #[error("the channel holds {events_stored} events, and {events_known} of the execution had been stored")]
    EventsLost {
        /// The number of the last event in the channel.
        events_stored: u64,
        /// Events that were stored for certain.
        events_known: u64,
    },
}
