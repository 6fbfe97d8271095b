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
use weir_guest::notify::Signal;

use crate::platform::{
    bindings::weir::stream::events::Fence,
    clock::{self, Deadline},
    lease::StoreLease,
    notify::TaskNotify,
    settings::Settings,
};

/// The delay before a failed renewal of the lease is retried, in milliseconds.
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
    /// The largest number of separate parts that a checkpoint of it was stored in.
    pub(super) parts: Cell<usize>,
    /// The state that this instance last wrote to the store's list of executions.
    pub(super) listed: Cell<Option<State>>,
    /// The cursor of the last event in the channel.
    pub(super) last: Cell<Cursor>,
    /// The number of that event.
    pub(super) stored: Cell<u64>,
    /// Wakes the driver, from its steps, which run in the same task.
    pub(super) changed: Signal,
    /// Wakes the driver, from other tasks, when the execution is cancelled.
    pub(super) cancel_notify: TaskNotify,
    cancelled: Cell<bool>,
    /// Notified when events were stored, and when the execution has ended.
    pub(super) progress_notify: TaskNotify,
    is_finished: Cell<bool>,
    /// Why the store refuses its state for good.
    refusal: RefCell<Option<String>>,
    /// The progress to report, for the execution of an upload.
    pub(super) upload: RefCell<Option<UploadProgress>>,
}

impl RunningExecution {
    /// An execution of which nothing is stored yet.
    pub(super) fn new(execution: Execution, owner: String, lease: Option<StoreLease>) -> Self {
        let is_upload = lease.is_some() && upload::is_upload(execution.input());
        let upload = is_upload.then(|| UploadProgress::new(&execution.status(clock::monotonic_ns())));
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
            cancel_notify: TaskNotify::default(),
            cancelled: Cell::new(false),
            progress_notify: TaskNotify::default(),
            is_finished: Cell::new(false),
            refusal: RefCell::default(),
        }
    }

    /// The fence that every write of its state carries.
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

    /// Marks it as taken over, after a write was refused. The driver ends.
    pub(super) fn lose(&self) {
        if let Some(lease) = &self.lease {
            lease.lose();
        }
        self.changed.notify();
    }

    /// Marks that the store refuses its state for good. The driver ends.
    pub(super) fn refuse(&self, reason: String) {
        self.refusal.replace(Some(reason));
        self.changed.notify();
    }

    /// Whether the store refuses its state for good.
    pub(super) fn is_refused(&self) -> bool {
        self.refusal.borrow().is_some()
    }

    /// Why the store refuses its state for good.
    pub(super) fn refusal(&self) -> Option<String> {
        self.refusal.borrow().clone()
    }

    /// Resolves when a step may call another service: while the lease is fresh. Never resolves if the execution is
    /// lost, since its steps are dropped then.
    pub(super) async fn wait_until_owned(&self) {
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

    /// Renews the lease until it is lost.
    pub(super) async fn keep_lease(&self) {
        match &self.lease {
            Some(lease) => lease.renew_until_lost(|| self.changed.notify()).await,
            None => std::future::pending().await,
        }
    }

    /// Releases the lease, so that other instances may acquire it.
    pub(super) async fn release(&self) {
        if let Some(lease) = &self.lease {
            lease.release().await;
        }
    }

    /// Reports the progress of a step, 0 to 1.
    pub(super) fn progress(&self, run: Run, progress: f64, message: &str) {
        self.execution.borrow_mut().handle_progress(clock::now(), run, progress, message);
        self.changed.notify();
    }

    /// Adds a part of the output of a step. Waits while events are produced faster than they are stored.
    pub(super) async fn part(&self, run: Run, part: Json) -> Result<(), StepFailure> {
        loop {
            let stored = self.stored.get();
            let result = self.execution.borrow_mut().handle_output(clock::now(), run, part.clone());
            self.changed.notify();
            match result {
                // The run has ended, and this future is about to be dropped.
                Ok(()) | Err(ReportError::Stale) => return Ok(()),
                Err(error @ ReportError::TooLarge { .. }) => {
                    return Err(StepFailure::last("output_too_large", error.to_string()));
                }
                Err(ReportError::Full) => self.progress_notify.until(|| self.stored.get() != stored).await,
            }
        }
    }

    /// Cancels it; false when it has ended or its compensations run.
    pub(super) fn cancel(&self) -> bool {
        let reason = StepFailure::last("cancelled", "the execution was cancelled");
        let result = self.execution.borrow_mut().handle_cancel(clock::now(), reason);
        self.cancelled.set(self.cancelled.get() || result);
        self.cancel_notify.notify();
        result
    }

    /// Resolves when another task has cancelled it.
    pub(super) async fn cancelled(&self) {
        self.cancel_notify.until(|| self.cancelled.get()).await;
    }

    /// Marks its end as stored.
    pub(super) fn finish(&self) {
        self.is_finished.set(true);
        self.progress_notify.notify();
    }

    /// Resolves when it has ended and its end is stored.
    pub(super) async fn ended(self: Rc<Self>) {
        self.progress_notify.until(|| self.is_finished.get()).await;
    }
}
