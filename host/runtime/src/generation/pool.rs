//! The generations of one model, from all callers: their ids on the merged stream, and the routes of their events to
//! the callers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::call::{CallState, Fallback};
use super::metrics::PoolMetrics;
use crate::bindings::generate_types::{Command, Event, EventKind, GenerateModel, Reason, Request};
use crate::types::Failure;

/// When to retry after the queue was full, ms.
const RETRY_AFTER_MS: u32 = 1_000;

/// The reason of a model that is not ready yet; its requests wait.
const LOADING: &str = "the model is loading";

/// The generations of one model, or of one upstream.
pub(super) struct ModelPool {
    name: String,
    metrics: Arc<PoolMetrics>,
    /// The number of steps and events so far, from which hangs are detected.
    progress: Arc<AtomicU64>,
    is_upstream: bool,
    /// Permits of requests that have not ended.
    room: Arc<Semaphore>,
    next: AtomicU32,
    state: Mutex<State>,
    /// Notified when the model becomes ready or unavailable.
    changed: watch::Sender<()>,
    stopping: watch::Sender<bool>,
}

struct State {
    /// The commands for the running instance, or for the next one.
    commands: mpsc::UnboundedSender<Command>,
    /// The receiver of the commands, until an instance takes it.
    receiver: Option<mpsc::UnboundedReceiver<Command>>,
    routes: HashMap<u64, Route>,
    info: GenerateModel,
}

/// The route of a generation's events to its caller.
pub(super) struct Route {
    caller_id: u64,
    call: Arc<CallState>,
    tx: mpsc::UnboundedSender<Event>,
    /// Choices that have not ended.
    choices: u32,
    since: Instant,
    has_begun: bool,
    has_token: bool,
    /// The next pool, until the generation begins.
    fallback: Option<Fallback>,
    /// Its permit of the pool.
    _permit: OwnedSemaphorePermit,
}

impl Route {
    pub(super) fn new(
        caller_id: u64,
        call: Arc<CallState>,
        tx: mpsc::UnboundedSender<Event>,
        (choices, fallback): (u32, Option<Fallback>),
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            caller_id,
            call,
            tx,
            choices: choices.max(1),
            since: Instant::now(),
            has_begun: false,
            has_token: false,
            fallback,
            _permit: permit,
        }
    }

    /// Sends an event to the caller; returns whether the generation has ended with it.
    fn send(&mut self, kind: EventKind, metrics: &PoolMetrics) -> bool {
        let has_ended = match &kind {
            EventKind::Begun(begun) => {
                self.has_begun = true;
                self.fallback = None;
                metrics.prompt_tokens.increment(u64::from(begun.prompt_tokens));
                metrics.cached_tokens.increment(u64::from(begun.cached_tokens));
                false
            }
            EventKind::Failed(_) => {
                metrics.failures.increment(1);
                if self.falls_back(&kind) {
                    metrics.fallbacks.increment(1);
                    return true;
                }
                self.fallback = None;
                true
            }
            EventKind::Done(done) => {
                self.choices = self.choices.saturating_sub(1);
                if self.choices == 0 && done.reason == Reason::Cancelled {
                    metrics.cancelled.increment(1);
                }
                self.choices == 0
            }
            EventKind::Piece(_) | EventKind::Tool(_) => {
                if !std::mem::replace(&mut self.has_token, true) {
                    metrics.first_token.record(self.since.elapsed().as_secs_f64());
                }
                false
            }
        };
        if has_ended {
            self.fallback = None;
        }
        // An error means that the receiver is dropped.
        let _ = self.tx.send(Event { id: self.caller_id, kind });
        has_ended
    }

    /// Whether the request goes to another pool instead of failing: nothing was sent to the caller, and another pool may succeed.
    fn falls_back(&self, kind: &EventKind) -> bool {
        let may_differ = matches!(
            kind,
            EventKind::Failed(
                Failure::Overloaded(_) | Failure::CircuitOpen(_) | Failure::Unavailable(_) | Failure::Engine(_)
            )
        );
        may_differ && !self.has_begun && self.fallback.is_some()
    }
}

impl ModelPool {
    /// A pool without generations, of at most `requests_max` at once, the queued ones included. `progress` is the number of steps and events
    /// of its instance.
    pub(super) fn new(name: String, progress: Arc<AtomicU64>, requests_max: usize, is_upstream: bool) -> Arc<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let info =
            GenerateModel { name: name.clone(), context_tokens_max: None, ready: false, reason: Some(LOADING.into()) };
        Arc::new(Self {
            metrics: Arc::new(PoolMetrics::new(&name)),
            name,
            progress,
            is_upstream,
            room: Arc::new(Semaphore::new(requests_max)),
            next: AtomicU32::new(0),
            state: Mutex::new(State { commands, receiver: Some(receiver), routes: HashMap::new(), info }),
            changed: watch::Sender::new(()),
            stopping: watch::Sender::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn metrics(&self) -> &Arc<PoolMetrics> {
        &self.metrics
    }

    /// The semaphore of which each request holds a permit until it has ended.
    pub(super) fn room(&self) -> &Arc<Semaphore> {
        &self.room
    }

    /// Counts a request that was refused because the queue is full; returns when to retry, ms.
    pub(super) fn count_refused(&self) -> u32 {
        self.metrics.refused.increment(1);
        RETRY_AFTER_MS
    }

    /// The model; without a reason while it loads.
    pub(super) fn info(&self) -> GenerateModel {
        let mut info = self.state().info.clone();
        info.reason.take_if(|reason| reason.as_str() == LOADING);
        info
    }

    /// The id of the next generation of a tenant on the merged stream.
    pub(super) fn next_id(&self, tenant: u32) -> u64 {
        u64::from(tenant) << 32 | u64::from(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a generation to the running instance, or to the next one. It fails while the model is unavailable.
    pub(super) fn submit(&self, request: Request, route: Route) {
        self.metrics.requests.increment(1);
        let mut state = self.state();
        let id = request.id;
        let refusal = match &state.info {
            GenerateModel { ready: false, reason: Some(reason), .. } if self.is_unavailable(&state) => {
                Some(format!("the model {} cannot answer: {reason}", self.name))
            }
            _ => None,
        };
        state.routes.insert(id, route);
        match refusal {
            Some(text) => {
                drop(state);
                self.deliver(vec![Event { id, kind: EventKind::Failed(Failure::Unavailable(text)) }]);
            }
            // The receiver is in the state or in the instance. If the instance is lost, the sender is replaced.
            None => drop(state.commands.send(Command::Start(request))),
        }
    }

    /// Whether the last instance ended before it was ready.
    fn is_unavailable(&self, state: &State) -> bool {
        !state.info.ready && state.info.reason.as_deref() != Some(LOADING)
    }

    /// Cancels a generation, unless it has ended.
    pub(super) fn cancel(&self, id: u64) {
        let state = self.state();
        if state.routes.contains_key(&id) {
            // An error means that the instance is lost, which ends the generation.
            let _ = state.commands.send(Command::Cancel(id));
        }
    }

    /// Sends events of the instance to their callers.
    pub(super) fn deliver(&self, events: Vec<Event>) {
        let mut ended = Vec::new();
        let mut state = self.state();
        for event in events {
            let Some(route) = state.routes.get_mut(&event.id) else {
                tracing::warn!(model = self.name, "the generate component gave an event for an unknown request");
                continue;
            };
            let failure = match &event.kind {
                EventKind::Failed(failure) => Some(failure.clone()),
                _ => None,
            };
            if route.send(event.kind, &self.metrics) {
                ended.extend(state.routes.remove(&event.id).map(|route| (route, failure)));
            }
        }
        drop(state);
        // A call locks its own state, then that of a pool: not while this one is locked.
        for (route, failure) in ended {
            match route.fallback.zip(failure) {
                Some((fallback, failure)) => route.call.clone().fall_back(route.caller_id, route.tx, fallback, failure),
                None => route.call.remove(route.caller_id),
            }
        }
    }

    /// The commands for a new instance.
    pub(super) fn connect(&self) -> mpsc::UnboundedReceiver<Command> {
        let mut state = self.state();
        state.receiver.take().unwrap_or_else(|| {
            let (commands, receiver) = mpsc::unbounded_channel();
            state.commands = commands;
            receiver
        })
    }

    /// Stores the description that an instance gives of its model.
    ///
    /// # Errors
    ///
    /// The instance does not have the model, or the model is not ready.
    pub(super) fn set_info(&self, models: Vec<GenerateModel>) -> Result<(), String> {
        // The models of an upstream are those of the configuration.
        if self.is_upstream {
            return Ok(());
        }
        let Some(model) = models.into_iter().find(|model| model.name == self.name) else {
            return Err(format!("the generate component does not know the model {}", self.name));
        };
        if !model.ready {
            return Err(model.reason.unwrap_or_else(|| "it is not ready".into()));
        }
        self.state().info.context_tokens_max = model.context_tokens_max;
        Ok(())
    }

    pub(super) fn set_ready(&self) {
        let mut state = self.state();
        state.info.ready = true;
        state.info.reason = None;
        drop(state);
        self.metrics.ready.set(1.0);
        self.changed.send_replace(());
    }

    /// Refuses requests from now on, until an instance is ready.
    pub(super) fn set_unavailable(&self, reason: String) {
        let mut state = self.state();
        state.info.ready = false;
        state.info.reason = Some(reason);
        drop(state);
        self.metrics.ready.set(0.0);
        self.changed.send_replace(());
    }

    /// Fails all generations of a lost instance. Returns whether it was ready.
    pub(super) fn handle_loss(&self, text: &str) -> bool {
        self.metrics.restarts.increment(1);
        let (commands, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        (state.commands, state.receiver) = (commands, Some(receiver));
        let was_ready = state.info.ready;
        if was_ready {
            // New requests wait for the next instance; if that fails to start, they are refused.
            state.info.ready = false;
            state.info.reason = Some(LOADING.into());
        }
        let ids: Vec<u64> = state.routes.keys().copied().collect();
        drop(state);
        if !was_ready {
            self.set_unavailable(text.to_owned());
        }
        let reason = if was_ready { "the instance that had this request was lost" } else { text };
        let failed = |id| Event { id, kind: EventKind::Failed(Failure::Unavailable(reason.to_owned())) };
        self.deliver(ids.into_iter().map(failed).collect());
        was_ready
    }

    /// Whether there is a request that has not ended.
    pub(super) fn is_busy(&self) -> bool {
        !self.state().routes.is_empty()
    }

    /// Counts events of the instance.
    pub(super) fn count_progress(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of steps and events so far.
    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Updates the gauges, before they are rendered.
    pub(super) fn report(&self) {
        let state = self.state();
        let running = state.routes.values().filter(|route| route.has_begun).count();
        self.metrics.running.set(running as f64);
        self.metrics.queued.set((state.routes.len() - running) as f64);
    }

    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
        self.set_unavailable("the server is stopping".into());
    }

    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Resolves when the model is ready.
    ///
    /// # Errors
    ///
    /// Why the model cannot answer.
    pub(super) async fn settled(&self) -> Result<(), String> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(settled) = self.poll_settled() {
                return settled;
            }
            if changed.changed().await.is_err() {
                return Err("the server is stopping".into());
            }
        }
    }

    /// Whether the model is ready, or why it cannot be; `None` while it loads.
    fn poll_settled(&self) -> Option<Result<(), String>> {
        let state = self.state();
        match state.info.ready {
            true => Some(Ok(())),
            false if self.is_unavailable(&state) => Some(Err(state.info.reason.clone().unwrap_or_default())),
            false => None,
        }
    }
}
