//! One attempt of a step, with what the kinds of step need besides the input.

use weir_core::pipelines::{Run, Task};

use super::{Pipelines, running::RunningExecution};

/// An attempt of a step of a running execution.
pub(super) struct Attempt<'s> {
    pub(super) pipelines: &'static Pipelines,
    pub(super) running: &'s RunningExecution,
    pub(super) task: &'s Task,
    pub(super) run: Run,
    /// The idempotency key: equal for all attempts of this step in this execution, and unique to them.
    pub(super) key: String,
}
