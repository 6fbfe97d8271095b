//! An execution that runs in this instance.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use weir_codec::pipelines::upload::{self, UploadProgress};
use weir_core::{
    channels::Cursor,
    pipelines::{Checkpoint, Execution, Json, ReportError, Run, State, StepFailure},
    time::Now,
};

use crate::platform::{
    bindings::weir::stream::events::Fence,
    clock::{self, Deadline},
    lease::StoreLease,
    notify::{Signal, TaskNotify},
    settings::Settings,
};

/// How long after a lease could not be renewed it is tried again, in milliseconds.
const RENEW_MS: u64 = 100;

/// An execution, shared by its driver, its steps and the requests about it.
pub(super) struct RunningExecution {
    pub(super) execution: RefCell<Execution>,
    /// The user that started it.
    pub(super) owner: String,
    /// None for an ephemeral execution.
    lease: Option<StoreLease>,
    /// The checkpoint that was saved last.
    pub(super) checkpoint: RefCell<Option<Checkpoint>>,
    /// How many values that checkpoint lies in.
    pub(super) parts: Cell<usize>,
    /// The state in the store's list of executions, as far as this instance has written it.
    pub(super) listed: Cell<Option<State>>,
    /// The cursor and the number of the last event in the channel.
    pub(super) last: Cell<Cursor>,
    pub(super) stored: Cell<u64>,
    /// Tells the driver to look: from its steps, which are of its task; and from other tasks.
    pub(super) changed: Signal,
    pub(super) asked: TaskNotify,
    cancelled: Cell<bool>,
    /// Rings when events were stored, and when it has ended.
    pub(super) moved: TaskNotify,
    over: Cell<bool>,
    /// The progress that is reported, of an upload.
    pub(super) upload: RefCell<Option<UploadProgress>>,
}

impl RunningExecution {
    /// Nothing of it is stored yet.
    pub(super) fn new(execution: Execution, owner: String, lease: Option<StoreLease>) -> Self {
        let is_upload = lease.is_some() && upload::is_upload(execution.input());
        let upload = is_upload.then(|| UploadProgress::new(&execution.status(clock::now().monotonic_ns)));
        Self {
            upload: RefCell::new(upload),
            execution: RefCell::new(execution),
            owner,
            lease,
            checkpoint: RefCell::new(None),
            parts: Cell::new(0),
            listed: Cell::new(None),
            last: Cell::new(Cursor { epoch: 0, seq: 0 }),
            stored: Cell::new(0),
            changed: Signal::default(),
            asked: TaskNotify::default(),
            cancelled: Cell::new(false),
            moved: TaskNotify::default(),
            over: Cell::new(false),
        }
    }

    /// What every write of it carries.
    pub(super) fn fence(&self) -> Option<Fence> {
        self.lease.as_ref().map(StoreLease::fence)
    }

    /// The user whose share of the store it counts towards; none where users are not identified.
    pub(super) fn share(&self) -> Option<String> {
        let required = Settings::current().is_ok_and(|settings| settings.auth.required);
        required.then(|| self.owner.clone())
    }

    /// True when steps may start: no other instance can have taken it over.
    pub(super) fn is_owned(&self, now: Now) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.is_fresh(now))
    }

    /// True when another instance has taken it over: writes from here are refused.
    pub(super) fn is_lost(&self) -> bool {
        self.lease.as_ref().is_some_and(StoreLease::is_lost)
    }

    /// A write was refused. The driver ends.
    pub(super) fn lose(&self) {
        if let Some(lease) = &self.lease {
            lease.lose();
        }
        self.changed.notify();
    }

    /// Resolves when a step may call another service; never where the execution is lost, which drops its steps.
    pub(super) async fn owned(&self) {
        while !self.is_owned(clock::now()) {
            match &self.lease {
                Some(lease) if !lease.is_lost() && lease.renew().await.is_ok() => {}
                Some(lease) if !lease.is_lost() => Deadline::after(clock::now(), RENEW_MS).passed().await,
                _ => {
                    self.changed.notify();
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Keeps the lease, and resolves when it is lost.
    pub(super) async fn keep_lease(&self) {
        match &self.lease {
            Some(lease) => lease.keep(|| self.changed.notify()).await,
            None => std::future::pending().await,
        }
    }

    /// Others may have it.
    pub(super) async fn release(&self) {
        if let Some(lease) = &self.lease {
            lease.release().await;
        }
    }

    /// A step says how far it is.
    pub(super) fn progress(&self, run: Run, progress: f64, message: &str) {
        self.execution.borrow_mut().handle_progress(clock::now(), run, progress, message);
        self.changed.notify();
    }

    /// A step has a part of its output. Waits while events are stored more slowly than they come.
    pub(super) async fn part(&self, run: Run, part: Json) -> Result<(), StepFailure> {
        loop {
            let stored = self.stored.get();
            let taken = self.execution.borrow_mut().handle_output(clock::now(), run, part.clone());
            self.changed.notify();
            match taken {
                // A waiter that is over is about to be dropped.
                Ok(()) | Err(ReportError::Stale) => return Ok(()),
                Err(error @ ReportError::TooLarge { .. }) => {
                    return Err(StepFailure::last("output_too_large", error.to_string()));
                }
                Err(ReportError::Full) => self.moved.until(|| self.stored.get() != stored).await,
            }
        }
    }

    /// Ends it; false when it is over, or being undone.
    pub(super) fn cancel(&self) -> bool {
        let reason = StepFailure::last("cancelled", "the execution was cancelled");
        let taken = self.execution.borrow_mut().handle_cancel(clock::now(), reason);
        self.cancelled.set(self.cancelled.get() || taken);
        self.asked.ring();
        taken
    }

    /// Resolves when another task has cancelled it.
    pub(super) async fn cancelled(&self) {
        self.asked.until(|| self.cancelled.get()).await;
    }

    /// Marks it as completely stored.
    pub(super) fn finish(&self) {
        self.over.set(true);
        self.moved.ring();
    }

    /// Resolves when it has ended and its end is stored.
    pub(super) async fn ended(self: Rc<Self>) {
        self.moved.until(|| self.over.get()).await;
    }
}
