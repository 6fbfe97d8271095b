//! The generations of one model, from all callers: their ids on the merged stream, and the way of their events back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::call::Call;
use crate::bindings::generate_types::{Command, Event, EventKind, GenerateModel, Request};
use crate::types::Failure;

/// How long a caller that finds the queue full should wait, ms.
const RETRY_AFTER_MS: u32 = 1_000;

/// The generations of one model.
pub(super) struct ModelPool {
    name: String,
    room: Arc<Semaphore>,
    next: AtomicU32,
    state: Mutex<State>,
}

struct State {
    /// Commands for the instance that runs, or the next one.
    commands: mpsc::UnboundedSender<Command>,
    routes: HashMap<u64, Route>,
    info: GenerateModel,
}

/// The way of a generation's events to its caller.
pub(super) struct Route {
    caller_id: u64,
    call: Arc<Call>,
    tx: mpsc::UnboundedSender<Event>,
    /// Choices that have not ended.
    choices: u32,
    /// Its place in the queue.
    _permit: OwnedSemaphorePermit,
}

impl Route {
    pub(super) fn new(
        caller_id: u64,
        call: Arc<Call>,
        tx: mpsc::UnboundedSender<Event>,
        choices: u32,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { caller_id, call, tx, choices: choices.max(1), _permit: permit }
    }

    /// Sends an event to the caller; returns whether the generation has ended with it.
    fn send(&mut self, kind: EventKind) -> bool {
        let has_ended = match &kind {
            EventKind::Failed(_) => true,
            EventKind::Done(_) => {
                self.choices -= 1;
                self.choices == 0
            }
            _ => false,
        };
        // An error means that the receiver is dropped.
        let _ = self.tx.send(Event { id: self.caller_id, kind });
        has_ended
    }
}

impl ModelPool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The permits of generations that have not ended.
    pub(super) fn room(&self) -> &Arc<Semaphore> {
        &self.room
    }

    pub(super) fn retry_after_ms(&self) -> u32 {
        RETRY_AFTER_MS
    }

    pub(super) fn info(&self) -> GenerateModel {
        self.state().info.clone()
    }

    /// The id of the next generation of a tenant on the merged stream.
    pub(super) fn next_id(&self, tenant: u32) -> u64 {
        u64::from(tenant) << 32 | u64::from(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands a generation to the instance.
    pub(super) fn submit(&self, request: Request, route: Route) {
        let mut state = self.state();
        let id = request.id;
        state.routes.insert(id, route);
        if state.commands.send(Command::Start(request)).is_err() {
            drop(state);
            let text = format!("the instance of the model {} was lost", self.name);
            self.deliver(Event { id, kind: EventKind::Failed(Failure::Unavailable(text)) });
        }
    }

    /// Cancels a generation, unless it has ended.
    pub(super) fn cancel(&self, id: u64) {
        let state = self.state();
        if state.routes.contains_key(&id) {
            // An error means that the instance is lost, which ends the generation.
            let _ = state.commands.send(Command::Cancel(id));
        }
    }

    /// Sends an event of the instance to its caller.
    pub(super) fn deliver(&self, event: Event) {
        let mut state = self.state();
        let Some(route) = state.routes.get_mut(&event.id) else { return };
        if route.send(event.kind)
            && let Some(route) = state.routes.remove(&event.id)
        {
            drop(state);
            route.call.remove(route.caller_id);
        }
    }
}
