//! What an execution tells.

use std::sync::Arc;

use thiserror::Error;

use super::{definition::KindName, json::Json};
use crate::{failure::Failure, named::named};

named! {
    /// The types of event.
    pub enum EventType {
        /// The execution begins.
        PipelineStart = "pipeline_start",
        /// A step begins an attempt.
        StepStart = "step_start",
        /// A step says how far it is.
        StepProgress = "step_progress",
        /// A step has a part of its output.
        StepOutput = "step_output",
        /// A step is done.
        StepComplete = "step_complete",
        /// An attempt of a step failed.
        StepError = "step_error",
        /// The execution is done.
        PipelineComplete = "pipeline_complete",
        /// The execution has failed or was cancelled.
        PipelineError = "pipeline_error",
        /// A checkpoint was saved.
        CheckpointSaved = "checkpoint_saved",
    }
}

/// Why an attempt of a step, or an execution, failed. Clients read the message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct StepFailure {
    /// A constant name for programs.
    pub code: Arc<str>,
    /// For people.
    pub message: Arc<str>,
    /// True when another attempt may succeed.
    pub retryable: bool,
    /// When to try again at the earliest, in milliseconds, if the one who failed says so.
    pub retry_after_ms: Option<u32>,
}

impl StepFailure {
    /// A failure that another attempt does not help.
    pub fn last(code: &str, message: impl Into<Arc<str>>) -> Self {
        Self { code: code.into(), message: message.into(), retryable: false, retry_after_ms: None }
    }

    /// A failure that may pass.
    pub fn passing(code: &str, message: impl Into<Arc<str>>) -> Self {
        Self { retryable: true, ..Self::last(code, message) }
    }
}

impl From<&Failure> for StepFailure {
    fn from(failure: &Failure) -> Self {
        let retry_after_ms = match failure {
            Failure::Overloaded { retry_after_ms }
            | Failure::Throttled { retry_after_ms }
            | Failure::CircuitOpen { retry_after_ms } => Some(*retry_after_ms),
            _ => None,
        };
        Self {
            code: failure.code().into(),
            message: failure.to_string().into(),
            retryable: failure.retryable(),
            retry_after_ms,
        }
    }
}

/// How an execution failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineFailure {
    /// Why.
    pub failure: StepFailure,
    /// The step whose failure it was; none when it was cancelled or interrupted too often.
    pub step_id: Option<Arc<str>>,
    /// True when a user asked for it.
    pub cancelled: bool,
    /// Compensations that were done.
    pub compensated: u32,
    /// Compensations that failed.
    pub compensations_failed: u32,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// The execution begins.
    PipelineStart {
        /// The name of the pipeline.
        name: Arc<str>,
        /// How many steps it has.
        steps: u32,
    },
    /// A step begins an attempt.
    StepStart {
        /// What it does.
        kind: KindName,
    },
    /// A step says how far it is.
    StepProgress {
        /// From 0 to 1.
        progress: f64,
        /// For people; bounded by [`super::Limits::message_bytes_max`].
        message: Arc<str>,
    },
    /// A step has a part of its output.
    StepOutput {
        /// Its number among the parts of this attempt, from 0.
        index: u64,
        /// The part.
        output: Json,
    },
    /// A step is done.
    StepComplete {
        /// What it does.
        kind: KindName,
        /// All of its output.
        output: Json,
        /// How long the last attempt took.
        duration_ns: u64,
    },
    /// An attempt of a step failed.
    StepError {
        /// What it does.
        kind: KindName,
        /// Why.
        failure: StepFailure,
        /// When the next attempt begins; none when this was the last.
        retry_in_ns: Option<u64>,
        /// How long the attempt took.
        duration_ns: u64,
    },
    /// The execution is done.
    PipelineComplete {
        /// The output of the step that none comes after; of several an object by id.
        output: Json,
        /// Since it began.
        duration_ns: u64,
        /// Steps that were completed.
        steps_completed: u32,
        /// Steps that failed while the pipeline continued.
        steps_failed: u32,
    },
    /// The execution has failed or was cancelled.
    PipelineError {
        /// How.
        failure: PipelineFailure,
        /// Since it began.
        duration_ns: u64,
    },
    /// A checkpoint was saved.
    CheckpointSaved {
        /// Its number, from 1.
        checkpoint: u64,
        /// Steps that were completed by then.
        steps_completed: u32,
    },
}

/// The metadata of an event; absent values are 0 or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Which attempt of the step, from 1.
    pub attempt: u32,
    /// The number of the run among all runs of steps in this execution, from 1: it distinguishes runs of a step across attempts and
    /// crashes.
    pub run: u32,
    /// How often the execution had been resumed.
    pub resumed: u32,
    /// The step that this one undoes.
    pub compensates: Option<Arc<str>>,
}

/// Something that happened in an execution. Its id is the channel's.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The step, if it is about one.
    pub step_id: Option<Arc<str>>,
    /// When, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// What.
    pub data: Data,
    /// About the event itself.
    pub metadata: Metadata,
}

impl Event {
    /// Its type.
    pub fn event_type(&self) -> EventType {
        match self.data {
            Data::PipelineStart { .. } => EventType::PipelineStart,
            Data::StepStart { .. } => EventType::StepStart,
            Data::StepProgress { .. } => EventType::StepProgress,
            Data::StepOutput { .. } => EventType::StepOutput,
            Data::StepComplete { .. } => EventType::StepComplete,
            Data::StepError { .. } => EventType::StepError,
            Data::PipelineComplete { .. } => EventType::PipelineComplete,
            Data::PipelineError { .. } => EventType::PipelineError,
            Data::CheckpointSaved { .. } => EventType::CheckpointSaved,
        }
    }

    /// True when nothing comes after it.
    pub fn is_last(&self) -> bool {
        matches!(self.data, Data::PipelineComplete { .. } | Data::PipelineError { .. })
    }

    /// True when it must be stored without waiting for others.
    pub(super) fn is_urgent(&self) -> bool {
        !matches!(self.data, Data::StepProgress { .. } | Data::StepOutput { .. })
    }

    /// About how much memory its values take.
    pub(super) fn bytes(&self) -> usize {
        match &self.data {
            Data::StepOutput { output, .. }
            | Data::StepComplete { output, .. }
            | Data::PipelineComplete { output, .. } => output.bytes(),
            Data::StepProgress { message, .. } => message.len(),
            Data::StepError { failure, .. } => failure.message.len(),
            _ => 0,
        }
    }
}

/// An event and its number in the channel, from 1, without holes.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequenced {
    /// The number.
    pub seq: u64,
    /// The event.
    pub event: Event,
}
