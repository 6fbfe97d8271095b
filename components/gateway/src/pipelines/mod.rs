//! Pipelines: [`weir_core::pipelines::Execution`]s driven by the clocks, inference, other services and the operator's components,
//! stored in `weir:stream/state`, with their events in channels of their own.
//!
//! - `definitions`: the operator's folder of pipelines.
//! - `routes`: the paths of pipelines and executions.
//! - `running`: an execution in this instance and the tasks that wait for it; `driver`: the task that drives it.
//! - `ephemeral`: an execution inside of one request, of which nothing is stored; `process`: `/process-stream` and `/process-batch`, which
//!   are such executions.
//! - `persistence`: checkpoints and events in the store; `resume`: continuing from there; `listing`: the executions of a user in the store.
//! - `attempt`, `steps`: one attempt of each kind of step; `generate`: the step that generates text; `http`,
//!   `component`: the steps that run outside of Weir.
//! - `upload`: files as inputs of executions.
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
mod resume;
mod routes;
mod running;
mod steps;
mod upload;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use spin_sdk::wasip3::spawn;
use weir_codec::pipelines::execution::ExecutionSummary;
use weir_core::{
    channels::Shares,
    pipelines::{Limits, Reliability, ReliabilityConfig},
};

use self::running::RunningExecution;
use crate::platform::{
    bindings::weir::stream::events::Failure,
    restoration::Restoration,
    settings::{Pipelines as Config, Settings},
};

/// Maximum number of ended executions in the list of this instance.
const ENDED_MAX: usize = 1000;

/// The executions of this instance.
pub(crate) struct Pipelines {
    config: &'static Config,
    settings: &'static Settings,
    definitions: definitions::Definitions,
    running: RefCell<BTreeMap<Arc<str>, Rc<RunningExecution>>>,
    /// The number of each user's executions that are starting and not yet in `running`, so that the bounds hold while a
    /// first checkpoint is saved.
    starting: RefCell<Shares>,
    /// The executions that ended last, each with its owner.
    ended: RefCell<VecDeque<(String, ExecutionSummary)>>,
    reliability: RefCell<Reliability>,
    /// Executions that are being opened here, so that none is opened twice.
    opening: RefCell<BTreeSet<String>>,
    /// Executions that cannot be resumed; the reason was logged.
    damaged: RefCell<BTreeSet<String>>,
    /// Whether the executions in the store have been counted.
    restoration: Restoration,
}

impl Pipelines {
    /// The executions of this instance.
    pub(crate) fn current() -> Result<&'static Self, &'static str> {
        thread_local! {
            static PIPELINES: Cell<Option<&'static Pipelines>> = const { Cell::new(None) };
        }
        if let Some(pipelines) = PIPELINES.get() {
            return Ok(pipelines);
        }
        let settings = Settings::current()?;
        let config = &settings.pipelines;
        // One thread, and one value for the lifetime of the instance.
        let pipelines: &'static Self = Box::leak(Box::new(Self {
            config,
            settings,
            definitions: definitions::Definitions::new(&config.dir),
            running: RefCell::default(),
            starting: RefCell::new(Shares::new(usize::MAX, 100)),
            ended: RefCell::default(),
            reliability: RefCell::new(Reliability::new(ReliabilityConfig::default())),
            opening: RefCell::default(),
            damaged: RefCell::default(),
            restoration: Restoration::default(),
        }));
        PIPELINES.set(Some(pipelines));
        Ok(pipelines)
    }

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

    /// The limits of every execution, which no definition can change.
    fn limits(&self) -> Limits {
        Limits {
            input_bytes_max: self.config.input_bytes_max,
            output_bytes_max: self.config.output_bytes_max,
            outputs_bytes_max: self.config.outputs_bytes_max,
            buffer_bytes_max: self.config.outputs_bytes_max,
            ..Limits::default()
        }
    }

    /// Registers an execution and spawns its driver.
    fn spawn_driver(&'static self, running: RunningExecution) -> Rc<RunningExecution> {
        let running = Rc::new(running);
        let id = running.execution.borrow().id().clone();
        self.running.borrow_mut().insert(id, running.clone());
        spawn(driver::drive(self, running.clone()));
        running
    }

    /// An execution that runs here.
    fn find(&self, id: &str) -> Option<Rc<RunningExecution>> {
        self.running.borrow().get(id).cloned()
    }

    /// Whether the maximum number of executions is reached.
    fn is_full(&self) -> bool {
        self.running.borrow().len() + self.starting.borrow().total() >= self.config.executions_max
    }

    /// Moves an execution from the running to the ended ones, after its end was stored.
    fn ended(&self, running: &RunningExecution, listed: ExecutionSummary) {
        self.running.borrow_mut().remove(&listed.execution_id);
        self.list(running.owner.clone(), listed);
    }

    /// Drops an execution that another instance has taken over.
    fn abandon(&self, running: &Rc<RunningExecution>) {
        let id = running.execution.borrow().id().clone();
        let mut all = self.running.borrow_mut();
        if all.get(&id).is_some_and(|other| Rc::ptr_eq(other, running)) {
            all.remove(&id);
        }
        drop(all);
        running.finish();
    }

    /// Marks an execution as being opened; none if it is being opened or runs here already. An instance that acquired
    /// the lease a second time would have its own earlier writes refused.
    fn open(&'static self, id: &str) -> Option<OpeningGuard> {
        let is_new = self.find(id).is_none() && self.opening.borrow_mut().insert(id.to_owned());
        is_new.then(|| OpeningGuard { pipelines: self, id: id.to_owned() })
    }

    fn list(&self, owner: String, listed: ExecutionSummary) {
        let mut ended = self.ended.borrow_mut();
        if ended.len() == ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back((owner, listed));
    }

    /// True when an execution exists, in memory or in the store.
    pub(crate) async fn exists(&self, id: &str) -> Result<bool, Failure> {
        Ok(self.find(id).is_some() || persistence::exists(id).await?)
    }

    fn definition(&self, name: &str) -> Option<definitions::LoadResult> {
        self.definitions.find(name).or_else(|| upload::built_in(name))
    }
}

/// An execution that is being opened in this instance.
struct OpeningGuard {
    pipelines: &'static Pipelines,
    id: String,
}

impl Drop for OpeningGuard {
    fn drop(&mut self) {
        self.pipelines.opening.borrow_mut().remove(&self.id);
    }
}
