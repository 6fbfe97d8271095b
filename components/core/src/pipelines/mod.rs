//! Pipelines: steps of a graph that run, fail, are retried and undone, and append every event of it to a channel.
//!
//! - [`Definition`]: the steps and their dependencies, validated.
//! - [`Execution`]: one run of it, as a state machine that a driver feeds and drains.
//! - [`Event`]: an event of an execution; [`Sequenced`] with its number in the channel.
//! - [`Checkpoint`]: the state of an execution as plain data, to continue from after a crash.
//! - [`Reliability`]: SR, CR, TCL and WCT, from the events.
//!
//! # What is guaranteed across a crash
//!
//! Each lasting change (accepted, a step settled, a compensation settled, the end) makes a [`Checkpoint`] that carries the
//! events of that change and every earlier event whose storing was not confirmed: an outbox. Its events leave only once it
//! is saved, and no step starts from an output that is not in a saved one. So, however the process dies:
//!
//! - Events have the numbers 1, 2, 3… without a hole, and each number is stored once: [`Execution::resume`] takes the number of events
//!   that the channel has, and sends only later ones.
//! - Each `step_complete` and the last event (`pipeline_complete` or `pipeline_error`) are stored exactly once, and a step
//!   with a stored `step_complete` never runs again.
//! - A step that was running, or waited for a retry, is run again from its first attempt: **at least once**. Its
//!   `step_start`, `step_output` and `step_error` then come again, with a higher `run` in their metadata; the outputs of the
//!   highest run are those that count.
//! - A step that was running while others were being undone is neither run again nor undone.
//! - What a coalesced `step_progress` said is gone; everything else that was accepted and not tied to a checkpoint may be
//!   lost with the memory of the process, and belongs to a step that runs again.

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
