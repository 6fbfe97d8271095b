//! Pipelines: [`weir_core::pipelines::Execution`]s driven by the clocks, inference, other services and the operator's components,
//! stored in `weir:stream/state`, with their events in channels of their own.
//!
//! - `definitions`: the operator's folder of pipelines.
//! - `routes`: the paths of pipelines and executions.
//! - `registry`: the executions of this instance; `running`: one of them and the tasks that wait for it; `driver`: the task that drives it.
//! - `ephemeral`: an execution inside of one request, of which nothing is stored; `process`: `/process-stream` and `/process-batch`, which
//!   are such executions.
//! - `persistence`: checkpoints and events in the store; `resume`: continuing from there; `listing`: the executions of a user in the store.
//! - `attempt`, `steps`: one attempt of each kind of step; `generate`: the step that generates text; `http`,
//!   `component`: the steps that run outside of Weir.
//! - `upload`: files as inputs of executions; `upload_progress`: the events of these executions as progress of the upload.
//!
//! Executions belong to an instance, not to a request: they continue when the client disconnects. If the host has a
//! stateful instance (`WEIR_KEEPER`), that instance runs all of them.

mod attempt;
mod component;
mod definitions;
mod driver;
mod ephemeral;
mod generate;
mod http;
mod listing;
mod persistence;
mod process;
mod registry;
mod resume;
mod routes;
mod running;
mod steps;
mod upload;
mod upload_progress;

use spin_sdk::wasip3::spawn;

pub(crate) use self::registry::Pipelines;

use crate::platform::{bindings::weir::stream::events::Failure, settings::Settings};

impl Pipelines {
    /// Called with the first request of the stateful instance: resumes the executions that a crash has interrupted.
    pub(crate) fn wake() {
        // Invalid settings are reported to each request.
        let Ok(settings) = Settings::current() else { return };
        if !settings.keeper {
            return;
        }
        if let Ok(pipelines) = Self::current()
            && pipelines.restoration.begin()
        {
            // Errors in definitions are logged when the server starts.
            pipelines.definitions.reload();
            spawn(resume::resume(pipelines));
        }
    }

    /// True when an execution exists, in memory or in the store.
    pub(crate) async fn exists(&self, id: &str) -> Result<bool, Failure> {
        Ok(self.find(id).is_some() || persistence::exists(id).await?)
    }
}
