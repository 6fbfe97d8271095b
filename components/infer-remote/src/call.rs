//! The state of a call that its requests share.

use std::cell::{Cell, RefCell};

use weir_core::failure::Failure;
use weir_guest::notify::LocalNotify;

use crate::bindings::weir::stream::types::{Outcome, Output};
use crate::convert;
use crate::settings::Settings;

pub(crate) struct CallState {
    pub(crate) settings: Settings,
    /// Notified after each change of the state below, and of a request.
    pub(crate) changed: LocalNotify,
    /// Whether the stream of items has ended.
    pub(crate) has_ended: Cell<bool>,
    /// Outcomes that were not written.
    pub(crate) done: RefCell<Vec<Outcome>>,
}

impl CallState {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, changed: LocalNotify::default(), has_ended: Cell::new(false), done: RefCell::default() }
    }

    /// Queues the outcome of an item.
    pub(crate) fn finish(&self, id: u64, tokens: u32, result: Result<Output, Failure>) {
        self.done.borrow_mut().push(convert::outcome(id, tokens, result));
        self.changed.notify();
    }
}
