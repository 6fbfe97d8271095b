//! An execution that goes on in this instance.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use weir_core::pipeline::{Checkpoint, Execution, Json, Rejected, Run, StepFailure};

use crate::{
    bindings::weir::stream::events::Cursor,
    clock,
    signal::{Bell, Signal},
};

/// An execution, shared by its driver, its steps and who asks for it.
pub(super) struct Live {
    pub(super) execution: RefCell<Execution>,
    /// The user who began it.
    pub(super) owner: String,
    /// The checkpoint that was saved last.
    pub(super) checkpoint: RefCell<Option<Checkpoint>>,
    /// How many values that checkpoint lies in.
    pub(super) parts: Cell<usize>,
    /// The place of the last event in the channel, and its number.
    pub(super) last: Cell<Cursor>,
    pub(super) stored: Cell<u64>,
    /// Tells the driver to look: from its steps, which are of its task; and from other tasks.
    pub(super) changed: Signal,
    pub(super) asked: Bell,
    cancelled: Cell<bool>,
    /// Rings when events were stored, and when it has ended.
    pub(super) moved: Bell,
    over: Cell<bool>,
}

impl Live {
    /// Nothing of it is kept yet.
    pub(super) fn new(execution: Execution, owner: String) -> Self {
        Self {
            execution: RefCell::new(execution),
            owner,
            checkpoint: RefCell::new(None),
            parts: Cell::new(0),
            last: Cell::new(Cursor { epoch: 0, seq: 0 }),
            stored: Cell::new(0),
            changed: Signal::default(),
            asked: Bell::default(),
            cancelled: Cell::new(false),
            moved: Bell::default(),
            over: Cell::new(false),
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
                // Whoever is over is about to be dropped.
                Ok(()) | Err(Rejected::Stale) => return Ok(()),
                Err(error @ Rejected::TooLarge { .. }) => {
                    return Err(StepFailure::last("output_too_large", error.to_string()));
                }
                Err(Rejected::Full) => self.moved.until(|| self.stored.get() != stored).await,
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

    /// All of it is kept where others look.
    pub(super) fn finish(&self) {
        self.over.set(true);
        self.moved.ring();
    }

    /// Resolves when it has ended and that is kept.
    pub(super) async fn ended(self: Rc<Self>) {
        self.moved.until(|| self.over.get()).await;
    }
}
