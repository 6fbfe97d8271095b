//! A call of `run`: its events, and its generations that have not ended.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use futures::lock::Mutex;
use weir_guest::notify::Signal;
use wit_bindgen::StreamWriter;

use crate::bindings::{exports::weir::stream::generate::Event, weir::stream::generate_types::EventKind};

/// One call of `run`.
pub(super) struct RunCall {
    events: Mutex<StreamWriter<Event>>,
    /// The generations that have not ended.
    pub(super) open: RefCell<HashMap<u64, Rc<OpenGeneration>>>,
}

/// A generation that has not ended.
#[derive(Default)]
pub(super) struct OpenGeneration {
    is_cancelled: Cell<bool>,
    changed: Signal,
}

impl OpenGeneration {
    pub(super) fn cancel(&self) {
        self.is_cancelled.set(true);
        self.changed.notify();
    }

    pub(super) async fn cancelled(&self) {
        while !self.is_cancelled.get() {
            self.changed.wait().await;
        }
    }
}

impl RunCall {
    pub(super) fn new(events: StreamWriter<Event>) -> Self {
        Self { events: Mutex::new(events), open: RefCell::default() }
    }

    /// Writes events of a generation. If the reader of the events has closed the stream, all generations end.
    pub(super) async fn write(&self, id: u64, kinds: Vec<EventKind>) {
        if kinds.is_empty() {
            return;
        }
        let events = kinds.into_iter().map(|kind| Event { id, kind }).collect();
        let unwritten = self.events.lock().await.write_all(events).await;
        if !unwritten.is_empty() {
            self.open.borrow().values().for_each(|open| open.cancel());
        }
    }
}
