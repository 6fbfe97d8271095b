//! Pipelines: the steps of a graph that run, fail, are retried and compensated, with events in a channel.
//!
//! - [`Definition`]: the steps and their dependencies, validated.
//! - [`Execution`]: one run of a definition, as a state machine.
//! - [`Event`]: an event of an execution; [`Sequenced`]: an event with its number in the channel.
//! - [`Checkpoint`]: the state of an execution as plain data, to continue from after a crash.
//! - [`Reliability`]: SR, CR, TCL and WCT, from the events.
//!
//! # Guarantees across a crash
//!
//! Each durable change (the start, the end of a step or compensation, the end of the execution) creates a
//! [`Checkpoint`] with the events of that change and every earlier event that is not known to be stored: an outbox. Its
//! events are stored only after the checkpoint is saved, and no step starts from an output that is not in a saved
//! checkpoint. So after any crash:
//!
//! - Events have the numbers 1, 2, 3… without a hole, and each number is stored once: [`Execution::resume`] takes the
//!   number of events that the channel has, and sends only later ones.
//! - Each `step_complete` and the last event (`pipeline_complete` or `pipeline_error`) are stored exactly once, and a
//!   step with a stored `step_complete` never runs again.
//! - A step that was running, or waited for a retry, is run again from its first attempt: **at least once**. Its
//!   `step_start`, `step_output` and `step_error` are then repeated with a higher `run` in their metadata; the outputs
//!   of the highest run are valid.
//! - A step that was running during compensation is neither run again nor compensated.
//! - Coalesced `step_progress` events are lost. Other events that were not part of a checkpoint can be lost with the
//!   process; they belong to a step that runs again.

mod buffer;
mod checkpoint;
mod definition;
mod event;
mod execution;
mod json;
mod reliability;
mod resume;
mod run;
mod slot;
mod status;
#[cfg(test)]
mod tests;

pub use buffer::{Batch, Full};
pub use checkpoint::{Checkpoint, CheckpointPhase, CheckpointStep, ResumeError, StepTimes};
pub use definition::{
    COMPENSATIONS_MAX, Definition, DefinitionError, Draft, ID_BYTES_MAX, Kind, KindName, Method, NAME_BYTES_MAX,
    OnError, PARALLEL_MAX, PARALLEL_MAX_DEFAULT, STEPS_MAX, Step, StepIndex, Streaming, TIMEOUT_MS_DEFAULT,
    TIMEOUT_MS_MAX, Task, bounds,
};
pub use event::{Data, Event, EventType, Metadata, PipelineFailure, Sequenced, StepFailure};
pub use execution::Execution;
pub use json::Json;
pub use reliability::{Rates, Reliability, ReliabilityConfig, Snapshot};
pub use run::{Inputs, Limits, Outcome, ReportError, Run, RunRequest};
pub use status::{State, Status, StepState, StepStatus};
