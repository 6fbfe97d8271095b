//! One caller's pair of streams: commands in, events out. A call ends when its commands and all its generations have
//! ended, and is abandoned when its caller drops the events.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::backends::Backends;
use super::pool::{ModelPool, Route};
use crate::bindings::generate_types::{Command, Done, Event, EventKind, Reason, Request};
use crate::types::{Failure, WhenFull};

/// The state that the two ends of a call share.
pub(super) struct CallState {
    backends: Arc<Backends>,
    /// The client that made the call.
    owner: u64,
    /// True once the events are dropped.
    is_abandoned: AtomicBool,
    /// True once the request that made the call has ended: only detached generations continue.
    is_request_over: AtomicBool,
    /// The generations that have not ended, by the caller's ids.
    open: Mutex<HashMap<u64, OpenGeneration>>,
}

struct OpenGeneration {
    pool: Arc<ModelPool>,
    /// The id on the merged stream.
    id: u64,
    detached: bool,
    /// Whether the caller has cancelled it: it then does not fall back.
    is_cancelled: bool,
}

/// A request for the next pool, if the current one fails before its first token.
pub(super) struct Fallback {
    request: Request,
    /// The time from which the deadline of the request is counted.
    since: Instant,
    /// The pools that were not tried yet, the first choice first.
    rest: VecDeque<Arc<ModelPool>>,
}

pub(super) fn open(backends: Arc<Backends>, owner: u64) -> (CommandSender, EventReceiver) {
    let (tx, rx) = mpsc::unbounded_channel();
    let call = Arc::new(CallState {
        backends,
        owner,
        is_abandoned: AtomicBool::new(false),
        is_request_over: AtomicBool::new(false),
        open: Mutex::default(),
    });
    (CommandSender { call: call.clone(), tx }, EventReceiver { rx, call })
}

impl CallState {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, OpenGeneration>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a generation that has ended.
    pub(super) fn remove(&self, id: u64) {
        self.open().remove(&id);
    }

    /// Whether a generation may run: its call is not abandoned, and its request has not ended or it is detached.
    fn allows(&self, detached: bool) -> bool {
        !self.is_abandoned.load(Ordering::SeqCst) && (detached || !self.is_request_over.load(Ordering::SeqCst))
    }

    /// Cancels the generations that are no longer allowed.
    fn cancel_disallowed(&self) {
        // A pool is not called while this call is locked, since it locks its own state.
        let cancelled: Vec<_> = {
            let open = self.open();
            let disallowed = open.values().filter(|generation| !self.allows(generation.detached));
            disallowed.map(|generation| (generation.pool.clone(), generation.id)).collect()
        };
        for (pool, id) in cancelled {
            pool.cancel(id);
        }
    }

    /// Marks a generation as cancelled; returns its pool and its id there.
    fn set_cancelled(&self, id: u64) -> Option<(Arc<ModelPool>, u64)> {
        let mut open = self.open();
        let generation = open.get_mut(&id)?;
        generation.is_cancelled = true;
        Some((generation.pool.clone(), generation.id))
    }

    /// Submits a request to a pool with the permit that it has there.
    fn submit(
        self: &Arc<Self>,
        pool: &Arc<ModelPool>,
        request: Request,
        tx: mpsc::UnboundedSender<Event>,
        (fallback, permit): (Option<Fallback>, OwnedSemaphorePermit),
    ) {
        let (caller_id, detached) = (request.id, request.detached);
        // The upper half of a caller's id identifies one of its users.
        let user = (caller_id >> 32) as u32;
        let owner = if user == 0 { (self.owner, 0) } else { (0, user) };
        let id = pool.next_id(self.backends.tenant(owner));
        self.open_generation(caller_id, pool.clone(), id, detached);
        let route = Route::new(caller_id, self.clone(), tx, (request.choices, fallback), permit);
        pool.submit(Request { id, ..request }, route);
        let is_cancelled = self.open().get(&caller_id).is_some_and(|open| open.is_cancelled);
        if is_cancelled || !self.allows(detached) {
            pool.cancel(id);
        }
    }

    /// Opens a generation, or moves an open one to another pool, before it is submitted, since its end removes it. A cancellation is kept.
    fn open_generation(&self, caller_id: u64, pool: Arc<ModelPool>, id: u64, detached: bool) {
        let mut open = self.open();
        let is_cancelled = open.get(&caller_id).is_some_and(|generation| generation.is_cancelled);
        open.insert(caller_id, OpenGeneration { pool, id, detached, is_cancelled });
    }

    /// Submits a failed request to the next pool with room, or sends its failure to the caller.
    pub(super) fn fall_back(
        self: Arc<Self>,
        caller_id: u64,
        tx: mpsc::UnboundedSender<Event>,
        mut fallback: Fallback,
        failure: Failure,
    ) {
        let is_cancelled = self.open().get(&caller_id).is_none_or(|open| open.is_cancelled);
        let choices = fallback.request.choices;
        if is_cancelled || !self.allows(fallback.request.detached) {
            self.remove(caller_id);
            for index in 0..choices {
                let done = Done { index, reason: Reason::Cancelled, stop: None, tokens: 0, prompt_tokens: None };
                // An error means that the receiver is dropped.
                let _ = tx.send(Event { id: caller_id, kind: EventKind::Done(done) });
            }
            return;
        }
        while let Some(pool) = fallback.rest.pop_front() {
            let Ok(permit) = pool.room().clone().try_acquire_owned() else {
                pool.count_refused();
                continue;
            };
            let (request, fallback) = fallback.split();
            // Without time left, the failure is sent.
            let Some(request) = request else { break };
            let failure = crate::inference::failure::text(&failure);
            tracing::info!(backend = pool.name(), failure, "a failed request is submitted to the next backend");
            return self.submit(&pool, request, tx, (fallback, permit));
        }
        self.remove(caller_id);
        // An error means that the receiver is dropped.
        let _ = tx.send(Event { id: caller_id, kind: EventKind::Failed(failure) });
    }
}

impl Fallback {
    /// The request with the time that remains until its deadline, `None` if that has passed; and the fallback after it, if a pool remains.
    fn split(self) -> (Option<Request>, Option<Self>) {
        let waited_ms = u32::try_from(self.since.elapsed().as_millis()).unwrap_or(u32::MAX);
        let (request, rest) = match self.rest.is_empty() {
            true => (self.request, None),
            false => (self.request.clone(), Some(self)),
        };
        let deadline_ms =
            request.deadline_ms.map(|deadline_ms| deadline_ms.checked_sub(waited_ms).filter(|ms| *ms > 0));
        let request = match deadline_ms {
            Some(None) => None,
            deadline_ms => Some(Request { deadline_ms: deadline_ms.flatten(), ..request }),
        };
        (request, rest)
    }
}

/// The receiver of the events was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of the events was dropped")]
pub struct CallAbandoned;

/// The sending end of a call. The commands end when the last clone is dropped.
#[derive(Clone)]
pub struct CommandSender {
    call: Arc<CallState>,
    tx: mpsc::UnboundedSender<Event>,
}

impl CommandSender {
    /// Sends a command; waits while the model's queue is full.
    ///
    /// # Errors
    ///
    /// The receiver of the events was dropped.
    pub async fn send(&self, command: Command) -> Result<(), CallAbandoned> {
        match self.try_send(command)? {
            None => Ok(()),
            Some(Waiting { pool, fallback }) => {
                let id = fallback.request.id;
                match pool.room().clone().acquire_owned().await {
                    Ok(permit) => self.submit(&pool, fallback, permit),
                    Err(_) => self.refuse(id, Failure::Unavailable("the server is stopping".into())),
                }
                self.check_open()
            }
        }
    }

    /// As `send`, without waiting: returns a start command that has to wait for room.
    fn try_send(&self, command: Command) -> Result<Option<Waiting>, CallAbandoned> {
        self.check_open()?;
        match command {
            Command::Cancel(id) => {
                if let Some((pool, id)) = self.call.set_cancelled(id) {
                    pool.cancel(id);
                }
            }
            Command::Start(request) => return Ok(self.start(request)),
        }
        Ok(None)
    }

    fn start(&self, request: Request) -> Option<Waiting> {
        let rest = self.call.backends.of(&request.model);
        let mut fallback = Fallback { request, since: Instant::now(), rest };
        let id = fallback.request.id;
        if self.call.open().contains_key(&id) {
            self.refuse_duplicate(id);
            return None;
        }
        let mut refused = None;
        while let Some(pool) = fallback.rest.pop_front() {
            match pool.room().clone().try_acquire_owned() {
                Ok(permit) => {
                    self.submit(&pool, fallback, permit);
                    return None;
                }
                // Another pool may have room.
                Err(_) if !fallback.rest.is_empty() => refused = Some(pool.count_refused()),
                Err(_) if fallback.request.when_full == WhenFull::Wait => return Some(Waiting { pool, fallback }),
                Err(_) => refused = Some(pool.count_refused()),
            }
        }
        match refused {
            Some(retry_after_ms) => self.refuse(id, Failure::Overloaded(retry_after_ms)),
            None => self.refuse(id, Failure::UnknownModel(fallback.request.model)),
        }
        None
    }

    fn submit(&self, pool: &Arc<ModelPool>, fallback: Fallback, permit: OwnedSemaphorePermit) {
        if !self.call.allows(fallback.request.detached) {
            return;
        }
        let id = fallback.request.id;
        // Another command with the id may have been submitted while this one waited for room.
        if self.call.open().contains_key(&id) {
            return self.refuse_duplicate(id);
        }
        let (request, fallback) = fallback.split();
        let Some(request) = request else { return self.refuse(id, Failure::DeadlineExceeded) };
        self.call.submit(pool, request, self.tx.clone(), (fallback, permit));
    }

    fn refuse_duplicate(&self, id: u64) {
        self.refuse(id, Failure::InvalidInput(format!("the id {id} belongs to a generation that has not ended")));
    }

    fn refuse(&self, id: u64, failure: Failure) {
        // An error means that the receiver is dropped.
        let _ = self.tx.send(Event { id, kind: EventKind::Failed(failure) });
    }

    fn check_open(&self) -> Result<(), CallAbandoned> {
        if self.call.is_abandoned.load(Ordering::SeqCst) { Err(CallAbandoned) } else { Ok(()) }
    }
}

/// A start command that waits for room in the queue of its model.
struct Waiting {
    pool: Arc<ModelPool>,
    fallback: Fallback,
}

/// The receiving end of a call. Dropping it cancels the generations of the call.
pub struct EventReceiver {
    rx: mpsc::UnboundedReceiver<Event>,
    call: Arc<CallState>,
}

impl EventReceiver {
    /// Waits for an event and returns up to `max` of the available ones; empty once the sender is dropped and every generation has ended.
    pub async fn recv_many(&mut self, max: usize) -> Vec<Event> {
        std::future::poll_fn(|cx| self.poll_recv_many(cx, max)).await
    }

    /// Up to `max` events; empty once the sender is dropped and every generation has ended.
    pub(crate) fn poll_recv_many(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Event>> {
        let mut events = Vec::with_capacity(max.min(64));
        self.rx.poll_recv_many(cx, &mut events, max).map(|_| events)
    }

    /// A handle by which another task can end generations of the call.
    pub(crate) fn handle(&self) -> GenerationHandle {
        GenerationHandle(Arc::downgrade(&self.call))
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        self.call.is_abandoned.store(true, Ordering::SeqCst);
        self.call.cancel_disallowed();
    }
}

/// A weak handle of a call: it does not keep the call alive.
pub(crate) struct GenerationHandle(Weak<CallState>);

impl GenerationHandle {
    /// Whether the call has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Cancels the generations of the call that are not detached: the request that made it has ended.
    pub(crate) fn end_attached(&self) {
        if let Some(call) = self.0.upgrade() {
            call.is_request_over.store(true, Ordering::SeqCst);
            call.cancel_disallowed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancellation_is_kept_when_a_generation_moves_to_another_pool() {
        let (sender, _events) = open(Arc::default(), 0);
        let pool = ModelPool::new("a".to_owned(), Arc::default(), 1, true);
        sender.call.open_generation(1, pool.clone(), 7, false);
        assert_eq!(sender.call.set_cancelled(1).map(|(_, id)| id), Some(7));
        sender.call.open_generation(1, pool, 8, false);
        assert!(sender.call.open().get(&1).is_some_and(|generation| generation.is_cancelled && generation.id == 8));
    }
}
