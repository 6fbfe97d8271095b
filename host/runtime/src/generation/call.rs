//! One caller's pair of streams: commands in, events out. A call ends when its commands and all its generations have
//! ended, and is abandoned when its caller drops the events.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::pool::{ModelPool, Route};
use crate::bindings::generate_types::{Command, Event, EventKind, Request};
use crate::types::{Failure, WhenFull};

/// The state that the two ends of a call share.
pub(super) struct Call {
    pools: Arc<BTreeMap<String, Arc<ModelPool>>>,
    /// The upper half of the ids of its generations.
    tenant: u32,
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
}

pub(super) fn open(pools: Arc<BTreeMap<String, Arc<ModelPool>>>, tenant: u32) -> (CommandSender, EventReceiver) {
    let (tx, rx) = mpsc::unbounded_channel();
    let call = Arc::new(Call {
        pools,
        tenant,
        is_abandoned: AtomicBool::new(false),
        is_request_over: AtomicBool::new(false),
        open: Mutex::default(),
    });
    (CommandSender { call: call.clone(), tx }, EventReceiver { rx, call })
}

impl Call {
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
}

/// The receiver of the events was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of the events was dropped")]
pub struct CallAbandoned;

/// The sending end of a call. The commands end when the last clone is dropped.
#[derive(Clone)]
pub struct CommandSender {
    call: Arc<Call>,
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
            Some(Waiting { pool, request, since }) => {
                let permit = pool.room().clone().acquire_owned().await;
                match permit {
                    Ok(permit) => self.submit(&pool, request, since, permit),
                    Err(_) => self.refuse(request.id, Failure::Unavailable("the server is stopping".into())),
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
                let open = self.call.open().get(&id).map(|generation| (generation.pool.clone(), generation.id));
                if let Some((pool, id)) = open {
                    pool.cancel(id);
                }
            }
            Command::Start(request) => return Ok(self.start(request)),
        }
        Ok(None)
    }

    fn start(&self, request: Request) -> Option<Waiting> {
        let since = Instant::now();
        let Some(pool) = self.call.pools.get(&request.model).cloned() else {
            self.refuse(request.id, Failure::UnknownModel(request.model));
            return None;
        };
        if self.call.open().contains_key(&request.id) {
            self.refuse_duplicate(request.id);
            return None;
        }
        match pool.room().clone().try_acquire_owned() {
            Ok(permit) => self.submit(&pool, request, since, permit),
            Err(_) if request.when_full == WhenFull::Wait => return Some(Waiting { pool, request, since }),
            Err(_) => self.refuse(request.id, Failure::Overloaded(pool.count_refused())),
        }
        None
    }

    fn submit(&self, pool: &Arc<ModelPool>, request: Request, since: Instant, permit: OwnedSemaphorePermit) {
        if !self.call.allows(request.detached) {
            return;
        }
        let waited_ms = u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
        let deadline_ms = match request.deadline_ms {
            Some(deadline_ms) if deadline_ms <= waited_ms => return self.refuse(request.id, Failure::DeadlineExceeded),
            deadline_ms => deadline_ms.map(|deadline_ms| deadline_ms - waited_ms),
        };
        let (caller_id, detached) = (request.id, request.detached);
        let id = pool.next_id(self.call.tenant);
        // Inserted before it is submitted, since the end of the generation removes it.
        // Another command with the id may have been submitted while this one waited for room.
        let is_new = match self.call.open().entry(caller_id) {
            Entry::Vacant(vacant) => {
                vacant.insert(OpenGeneration { pool: pool.clone(), id, detached });
                true
            }
            Entry::Occupied(_) => false,
        };
        if !is_new {
            return self.refuse_duplicate(caller_id);
        }
        let route = Route::new(caller_id, self.call.clone(), self.tx.clone(), request.choices, permit);
        pool.submit(Request { id, deadline_ms, ..request }, route);
        if !self.call.allows(detached) {
            pool.cancel(id);
        }
    }

    fn refuse_duplicate(&self, id: u64) {
        self.refuse(id, Failure::InvalidInput(format!("the id {id} is that of a generation that has not ended")));
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
    request: Request,
    since: Instant,
}

/// The receiving end of a call. Dropping it cancels the generations of the call.
pub struct EventReceiver {
    rx: mpsc::UnboundedReceiver<Event>,
    call: Arc<Call>,
}

impl EventReceiver {
    /// Waits for an event, and takes up to `max` of those that are there; empty once the sender is dropped and every generation has ended.
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
pub(crate) struct GenerationHandle(Weak<Call>);

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
