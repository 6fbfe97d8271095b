//! The events of an execution.

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
        /// A step reports its progress.
        StepProgress = "step_progress",
        /// A step has a part of its output.
        StepOutput = "step_output",
        /// A step was completed.
        StepComplete = "step_complete",
        /// An attempt of a step failed.
        StepError = "step_error",
        /// The execution was completed.
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
    /// The shortest delay before another attempt, in milliseconds, if the failed service requests one.
    pub retry_after_ms: Option<u32>,
}

impl StepFailure {
    /// A permanent failure: another attempt does not help.
    pub fn last(code: &str, message: impl Into<Arc<str>>) -> Self {
        Self { code: code.into(), message: message.into(), retryable: false, retry_after_ms: None }
    }

    /// A transient failure: another attempt may succeed.
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
    /// The failure.
    pub failure: StepFailure,
    /// The step that failed; `None` if the execution was cancelled or interrupted too often.
    pub step_id: Option<Arc<str>>,
    /// True when a user cancelled the execution.
    pub cancelled: bool,
    /// Compensations that were completed.
    pub compensated: u32,
    /// Compensations that failed.
    pub compensations_failed: u32,
}

/// The data of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// The execution begins.
    PipelineStart {
        /// The name of the pipeline.
        name: Arc<str>,
        /// The number of its steps.
        steps: u32,
    },
    /// A step begins an attempt.
    StepStart {
        /// The kind of the step.
        kind: KindName,
    },
    /// A step reports its progress.
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
    /// A step was completed.
    StepComplete {
        /// The kind of the step.
        kind: KindName,
        /// The complete output.
        output: Json,
        /// The duration of the last attempt, in nanoseconds.
        duration_ns: u64,
    },
    /// An attempt of a step failed.
    StepError {
        /// The kind of the step.
        kind: KindName,
        /// The failure.
        failure: StepFailure,
        /// The delay before the next attempt, in nanoseconds; `None` if this was the last one.
        retry_in_ns: Option<u64>,
        /// The duration of the attempt, in nanoseconds.
        duration_ns: u64,
    },
    /// The execution was completed.
    PipelineComplete {
        /// The output of the step without a successor; with several of them an object of their outputs by id.
        output: Json,
        /// The duration of the execution, in nanoseconds.
        duration_ns: u64,
        /// Steps that were completed.
        steps_completed: u32,
        /// Steps that failed while the pipeline continued.
        steps_failed: u32,
    },
    /// The execution has failed or was cancelled.
    PipelineError {
        /// The failure.
        failure: PipelineFailure,
        /// The duration of the execution, in nanoseconds.
        duration_ns: u64,
    },
    /// A checkpoint was saved.
    CheckpointSaved {
        /// The number of the checkpoint, from 1.
        checkpoint: u64,
        /// Steps that are completed in the checkpoint.
        steps_completed: u32,
    },
}

/// The metadata of an event; absent values are 0 or `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The number of the attempt of the step, from 1.
    pub attempt: u32,
    /// The number of the run among all runs of steps in this execution, from 1: it distinguishes runs of a step across
    /// attempts and crashes.
    pub run: u32,
    /// The number of times that the execution had been resumed.
    pub resumed: u32,
    /// The step that this one undoes.
    pub compensates: Option<Arc<str>>,
}

/// An event of an execution. Its id is its cursor in the channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The step, for an event of a step.
    pub step_id: Option<Arc<str>>,
    /// The time, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// The data.
    pub data: Data,
    /// The metadata.
    pub metadata: Metadata,
}

impl Event {
    /// The type of the event.
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

    /// True for the last event of an execution.
    pub fn is_last(&self) -> bool {
        matches!(self.data, Data::PipelineComplete { .. } | Data::PipelineError { .. })
    }

    /// True when the event must be stored without delay.
    pub(super) fn is_urgent(&self) -> bool {
        !matches!(self.data, Data::StepProgress { .. } | Data::StepOutput { .. })
    }

    /// The approximate memory of its values, in bytes.
    pub fn bytes(&self) -> usize {
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
