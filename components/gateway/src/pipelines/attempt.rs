//! One attempt of a step, for the kinds of step that need more than its input.

use weir_core::pipelines::{Run, Task};

use super::{Pipelines, running::RunningExecution};

/// An attempt of a step.
pub(super) struct Attempt<'s> {
    pub(super) pipelines: &'static Pipelines,
    pub(super) live: &'s RunningExecution,
    pub(super) task: &'s Task,
    pub(super) run: Run,
    /// The same for every attempt of the step in this execution, and for no other.
    pub(super) key: String,
}
