//! The executions of this instance.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use weir_codec::pipelines::execution::ExecutionSummary;
use weir_core::{
    channels::Shares,
    pipelines::{Limits, Reliability, ReliabilityConfig},
};

use super::{
    definitions::{self, Definitions, LoadResult},
    running::RunningExecution,
};
use crate::platform::{
    restoration::Restoration,
    settings::{Pipelines as Config, Settings},
};

/// Maximum number of ended executions in the list of this instance.
const ENDED_MAX: usize = 1000;

/// The executions of this instance.
pub(crate) struct Pipelines {
    pub(super) config: &'static Config,
    pub(super) settings: &'static Settings,
    pub(super) definitions: Definitions,
    pub(super) running: RefCell<BTreeMap<Arc<str>, Rc<RunningExecution>>>,
    /// The number of each user's executions that are starting and not yet in `running`, so that the bounds hold while a
    /// first checkpoint is saved.
    pub(super) starting: RefCell<Shares>,
    /// The executions that ended last, each with its owner.
    pub(super) ended: RefCell<VecDeque<(String, ExecutionSummary)>>,
    pub(super) reliability: RefCell<Reliability>,
    /// Executions that are being opened here, so that none is opened twice.
    opening: RefCell<BTreeSet<String>>,
    /// Executions that cannot be resumed; the reason was logged.
    pub(super) damaged: RefCell<BTreeSet<String>>,
    /// Whether the executions in the store have been counted.
    pub(super) restoration: Restoration,
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
            definitions: Definitions::new(&config.dir),
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

    /// The limits of every execution, which no definition can change.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            input_bytes_max: self.config.input_bytes_max,
            output_bytes_max: self.config.output_bytes_max,
            outputs_bytes_max: self.config.outputs_bytes_max,
            buffer_bytes_max: self.config.outputs_bytes_max,
            ..Limits::default()
        }
    }

    /// An execution that runs here.
    pub(super) fn find(&self, id: &str) -> Option<Rc<RunningExecution>> {
        self.running.borrow().get(id).cloned()
    }

    /// Whether the maximum number of executions is reached.
    pub(super) fn is_full(&self) -> bool {
        self.running.borrow().len() + self.starting.borrow().total() >= self.config.executions_max
    }

    /// Moves an execution from the running to the ended ones, after its end was stored.
    pub(super) fn ended(&self, running: &RunningExecution, listed: ExecutionSummary) {
        self.running.borrow_mut().remove(&listed.execution_id);
        self.list(running.owner.clone(), listed);
    }

    /// Drops an execution that another instance has taken over.
    pub(super) fn abandon(&self, running: &Rc<RunningExecution>) {
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
    pub(super) fn open(&'static self, id: &str) -> Option<OpeningGuard> {
        let is_new = self.find(id).is_none() && self.opening.borrow_mut().insert(id.to_owned());
        is_new.then(|| OpeningGuard { pipelines: self, id: id.to_owned() })
    }

    pub(super) fn list(&self, owner: String, listed: ExecutionSummary) {
        let mut ended = self.ended.borrow_mut();
        if ended.len() == ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back((owner, listed));
    }

    /// A definition of the operator's folder, or the built-in one.
    pub(super) fn definition(&self, name: &str) -> Option<LoadResult> {
        self.definitions.find(name).or_else(|| definitions::built_in(name))
    }
}

/// An execution that is being opened in this instance.
pub(super) struct OpeningGuard {
    pipelines: &'static Pipelines,
    id: String,
}

impl Drop for OpeningGuard {
    fn drop(&mut self) {
        self.pipelines.opening.borrow_mut().remove(&self.id);
    }
}
