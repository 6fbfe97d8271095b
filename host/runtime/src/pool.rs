//! The replicas of one model. Each is a thread with an infer instance of its own, fed by one long-lived stream in which
//! the items of all callers are merged, so that batches form across requests.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::watch;
use wasmtime::component::{
    Component, Destination, Linker, ResourceTable, Source, StreamConsumer, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};
use wasmtime::{Engine, Store, StoreContextMut, StoreLimits};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use weir_core::queue::Ticket;
use weir_nn::{Names, NnCtx, NnView, Registry};

use crate::bindings::infer::InferExportsPre;
use crate::call::{Call, Reply};
use crate::limits::limits;
use crate::queue::{Ask, Job, Queue, QueueSettings, Taken};
use crate::types::{
    Aggregation, ClassifyOptions, EmbedOptions, Failure, Item, ModelInfo, ModelKind, Outcome, Output, Overflow, Task,
    TokenOptions, WhenFull,
};

/// How a pool is set up.
pub(crate) struct PoolConfig {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) info: ModelInfo,
    pub(crate) replicas: usize,
    pub(crate) queue: QueueSettings,
    pub(crate) memory_bytes_max: u64,
    /// Tokens handed to a replica at a time: a few batches, for it to choose from.
    pub(crate) ahead_tokens: u64,
    /// What the infer component is told about batches.
    pub(crate) environment: Vec<(String, String)>,
    /// A replica that owes answers and gives none for so long is lost.
    pub(crate) hang_timeout: Duration,
}

/// The replicas of one model and the queue before them.
pub struct Pool {
    config: PoolConfig,
    queue: Queue,
    /// Replicas that have answered their warm-up.
    ready: watch::Sender<usize>,
    /// There has been one.
    was_ready: AtomicBool,
    /// What keeps the model from answering, when that is known.
    trouble: Mutex<Option<String>>,
    stopping: watch::Sender<bool>,
    /// The instance that each replica runs, while it runs one.
    running: Mutex<Vec<Option<Arc<Running>>>>,
    /// Replicas without a thread, because too many threads hang.
    vacant: Mutex<Vec<usize>>,
    /// Threads that hang in an engine, and can only be waited for.
    hanging: AtomicUsize,
    hangs: AtomicU64,
    machinery: OnceLock<Machinery>,
    metrics: PoolMetrics,
}

/// What has become of a model's items since it started, and what waits now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Replicas that answer.
    pub replicas_ready: usize,
    /// Threads that hang in the engine, given up.
    pub threads_hanging: usize,
    /// Items waiting.
    pub waiting: usize,
    /// Tokens waiting, as estimated.
    pub waiting_tokens: u64,
    /// False while the circuit breaker lets nothing, or only probes, through.
    pub circuit_closed: bool,
    /// Items handed to replicas, those handed over again included.
    pub handed_over: u64,
    /// Items that a replica answered.
    pub answered: u64,
    /// Items that were not computed because their caller was gone.
    pub abandoned: u64,
    /// Items whose deadline passed while they waited.
    pub expired: u64,
    /// Items refused by, or dropped from, a full queue.
    pub overloaded: u64,
    /// Items refused because their owner had its share.
    pub throttled: u64,
    /// Items refused by an open circuit.
    pub circuit_open: u64,
    /// Attempts after the first.
    pub retried: u64,
    /// Replicas that hung and were replaced.
    pub hangs: u64,
}

struct PoolMetrics {
    items: Counter,
    tokens: Counter,
    failures: Counter,
    restarts: Counter,
    hangs: Counter,
    ready: Gauge,
    hanging: Gauge,
    waiting: Gauge,
    waiting_tokens: Gauge,
    circuit: Gauge,
    abandoned: Counter,
    expired: Counter,
    overloaded: Counter,
    throttled: Counter,
    refused: Counter,
    retried: Counter,
}

/// What a replica needs to make an instance.
#[derive(Clone)]
pub(crate) struct Machinery {
    pub(crate) engine: Engine,
    pub(crate) pre: InferExportsPre<InferState>,
    pub(crate) registry: Arc<Registry>,
}

impl Machinery {
    /// Links the infer component once for all replicas.
    pub(crate) fn new(engine: &Engine, component: &Component, registry: Arc<Registry>) -> wasmtime::Result<Self> {
        let mut linker = Linker::<InferState>::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        weir_nn::add_to_linker(&mut linker, |state: &mut InferState| NnView {
            ctx: &mut state.nn,
            table: &mut state.table,
        })?;
        let pre = InferExportsPre::new(linker.instantiate_pre(component)?)?;
        Ok(Self { engine: engine.clone(), pre, registry })
    }
}

/// What an infer instance's store holds.
pub(crate) struct InferState {
    table: ResourceTable,
    wasi: WasiCtx,
    nn: NnCtx,
    limits: StoreLimits,
}

impl WasiView for InferState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// How long a replica that failed waits before it is made anew: doubled each time, up to the last.
const RESTART_DELAYS_MS: [u64; 6] = [50, 200, 1_000, 3_000, 10_000, 30_000];

impl Pool {
    pub(crate) fn new(config: PoolConfig) -> Arc<Self> {
        let name = config.name.clone();
        let counts = |metric: &'static str| counter!(metric, "model" => name.clone());
        let shows = |metric: &'static str| gauge!(metric, "model" => name.clone());
        let metrics = PoolMetrics {
            items: counts("weir_infer_items_total"),
            tokens: counts("weir_infer_tokens_total"),
            failures: counts("weir_infer_failures_total"),
            restarts: counts("weir_infer_replica_restarts_total"),
            hangs: counts("weir_infer_replica_hangs_total"),
            ready: shows("weir_infer_replicas_ready"),
            hanging: shows("weir_infer_threads_hanging"),
            waiting: shows("weir_infer_queue_items"),
            waiting_tokens: shows("weir_infer_queue_tokens"),
            circuit: shows("weir_infer_circuit_open"),
            abandoned: counts("weir_infer_items_abandoned_total"),
            expired: counts("weir_infer_items_expired_total"),
            overloaded: counts("weir_infer_items_overloaded_total"),
            throttled: counts("weir_infer_items_throttled_total"),
            refused: counts("weir_infer_items_circuit_open_total"),
            retried: counts("weir_infer_items_retried_total"),
        };
        Arc::new(Self {
            queue: Queue::new(config.queue.clone(), config.replicas),
            running: Mutex::new((0..config.replicas).map(|_| None).collect()),
            config,
            ready: watch::Sender::new(0),
            was_ready: AtomicBool::new(false),
            trouble: Mutex::new(None),
            stopping: watch::Sender::new(false),
            vacant: Mutex::default(),
            hanging: AtomicUsize::new(0),
            hangs: AtomicU64::new(0),
            machinery: OnceLock::new(),
            metrics,
        })
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The model, with `ready` as it is now.
    pub fn info(&self) -> ModelInfo {
        ModelInfo { ready: self.is_ready(), ..self.config.info.clone() }
    }

    /// Whether a replica has answered.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow() > 0
    }

    /// What keeps the model from answering, when that is known.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves when the model has answered, or when it cannot, with the reason.
    pub async fn settled(&self) -> Result<(), String> {
        let mut ready = self.ready.subscribe();
        loop {
            if *ready.borrow_and_update() > 0 {
                return Ok(());
            }
            if let Some(trouble) = self.trouble() {
                return Err(trouble);
            }
            if ready.changed().await.is_err() {
                return Err("it is stopping".into());
            }
        }
    }

    /// Updates the gauges that are read rather than counted.
    pub(crate) fn report(&self) {
        let (items, tokens, closed) = self.queue.depth();
        self.metrics.waiting.set(items as f64);
        self.metrics.waiting_tokens.set(tokens as f64);
        self.metrics.circuit.set(if closed { 0.0 } else { 1.0 });
        let counts = &self.queue.counts;
        for (counter, count) in [
            (&self.metrics.abandoned, &counts.abandoned),
            (&self.metrics.expired, &counts.expired),
            (&self.metrics.overloaded, &counts.overloaded),
            (&self.metrics.throttled, &counts.throttled),
            (&self.metrics.refused, &counts.refused),
            (&self.metrics.retried, &counts.retried),
        ] {
            counter.absolute(count.load(Ordering::Relaxed));
        }
    }

    /// What has become of items so far, and what waits.
    pub fn stats(&self) -> PoolStats {
        let (waiting, waiting_tokens, closed) = self.queue.depth();
        let counts = &self.queue.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PoolStats {
            replicas_ready: *self.ready.borrow(),
            threads_hanging: self.hanging.load(Ordering::Relaxed),
            waiting,
            waiting_tokens,
            circuit_closed: closed,
            handed_over: read(&counts.handed_over),
            answered: read(&counts.answered),
            abandoned: read(&counts.abandoned),
            expired: read(&counts.expired),
            overloaded: read(&counts.overloaded),
            throttled: read(&counts.throttled),
            circuit_open: read(&counts.refused),
            retried: read(&counts.retried),
            hangs: self.hangs.load(Ordering::Relaxed),
        }
    }

    /// Lets what a window holds back go now. Returns how many items that releases.
    pub fn flush(&self) -> usize {
        self.queue.flush()
    }

    /// Ends the replicas: each when its computation in progress is over.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
        self.queue.down(Some("the server is stopping".into()));
    }

    /// Starts the replicas: the first at once, the others when it has answered, so that they do not slow it down.
    pub(crate) fn start(self: &Arc<Self>, machinery: &Machinery) -> std::io::Result<()> {
        let _ = self.machinery.set(machinery.clone());
        (0..self.config.replicas).try_for_each(|replica| self.start_replica(replica))
    }

    fn start_replica(self: &Arc<Self>, replica: usize) -> std::io::Result<()> {
        let pool = self.clone();
        let name = format!("{}-{replica}", self.config.name);
        std::thread::Builder::new().name(name).spawn(move || pool.replica_thread(replica)).map(drop)
    }

    fn replica_thread(self: Arc<Self>, first: usize) {
        let Some(machinery) = self.machinery.get().cloned() else { return };
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(model = self.config.name, first, %error, "cannot start a replica");
                return self.trouble_is(format!("cannot start a replica: {error}"));
            }
        };
        let mut stopping = self.stopping.subscribe();
        let mut next = Some(first);
        while let Some(replica) = next {
            let stopped = runtime.block_on(async {
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => true,
                    Replaced = self.keep_running(replica, &machinery) => false,
                }
            });
            if stopped {
                return self.queue.leave(replica);
            }
            // It hung, and another runs in its place; or none could be started, and now this one can.
            let hanging = self.hanging.fetch_sub(1, Ordering::SeqCst) - 1;
            self.metrics.hanging.set(hanging as f64);
            next = self.vacant.lock().unwrap_or_else(PoisonError::into_inner).pop();
        }
    }

    /// Runs one instance after another: each until it is lost. Ends when another thread has taken its place.
    async fn keep_running(self: &Arc<Self>, replica: usize, machinery: &Machinery) -> Replaced {
        // The first alone, so that the others do not slow it down; but once there has been one, any may be the first again.
        if replica > 0 && !self.was_ready.load(Ordering::SeqCst) {
            let mut ready = self.ready.subscribe();
            let _ = ready.wait_for(|ready| *ready > 0).await;
        }
        let mut failures = 0;
        loop {
            let running = Arc::new(Running::default());
            self.slot(replica, |slot| *slot = Some(running.clone()));
            let instance = AssertUnwindSafe(self.run_instance(replica, machinery, running.clone()));
            let text = match instance.catch_unwind().await {
                Ok(Ok(never)) => match never {},
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "the host panicked while it ran".into(),
            };
            if running.replaced.load(Ordering::SeqCst) {
                return Replaced;
            }
            let mine = self.slot(replica, |slot| slot.take_if(|slot| Arc::ptr_eq(slot, &running)).is_some());
            if !mine {
                return Replaced;
            }
            self.queue.leave(replica);
            tracing::error!(model = self.config.name, replica, error = text, "a replica is lost");
            self.metrics.restarts.increment(1);
            if running.health.end() {
                // It had answered: what waits is for the next instance, which will soon be there.
                self.count_ready(-1);
                failures = 0;
            } else if !self.is_ready() {
                self.trouble_is(text);
            }
            self.take_back(&running, "the component that computes it ended on it");
            let delay = RESTART_DELAYS_MS[failures.min(RESTART_DELAYS_MS.len() - 1)];
            failures += 1;
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
    }

    fn slot<R>(&self, replica: usize, with: impl FnOnce(&mut Option<Arc<Running>>) -> R) -> R {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        with(&mut running[replica])
    }

    /// What a lost instance owed is tried again or answered.
    fn take_back(&self, running: &Running, culprit: &str) {
        let (owed, alone) = running.routes.clear();
        if owed.is_empty() {
            return;
        }
        for job in self.queue.lost(owed, alone) {
            let failure = match alone {
                true => Failure::Engine(culprit.into()),
                false => Failure::Unavailable("the replica that had this item was lost".into()),
            };
            self.metrics.failures.increment(1);
            job.reply.send(0, Err(failure));
        }
    }

    /// Looks after what waits and who should have answered; to be called every few milliseconds. Says whether there is
    /// anything to look after.
    pub(crate) fn tick(self: &Arc<Self>) -> bool {
        let mut busy = self.queue.tick();
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (replica, running) in running.into_iter().enumerate() {
            let Some(running) = running else { continue };
            let Some(silent) = running.routes.silent() else { continue };
            busy = true;
            // The first item may wait for a graph to be optimized.
            let patience = if running.health.is_ready() { 1 } else { STARTING_PATIENCE };
            if silent >= self.config.hang_timeout * patience {
                self.replace(replica, &running);
            }
        }
        busy
    }

    /// Lets another thread take the place of a replica that hangs. Its own ends when it can.
    fn replace(self: &Arc<Self>, replica: usize, running: &Arc<Running>) {
        // Counted first: its thread takes itself off as soon as it sees that its place is gone.
        let hanging = self.hanging.fetch_add(1, Ordering::SeqCst) + 1;
        let mine = self.slot(replica, |slot| slot.take_if(|slot| Arc::ptr_eq(slot, running)).is_some());
        if !mine || running.replaced.swap(true, Ordering::SeqCst) {
            self.hanging.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        tracing::error!(model = self.config.name, replica, "a replica hangs, and is replaced");
        self.metrics.hangs.increment(1);
        self.hangs.fetch_add(1, Ordering::Relaxed);
        self.metrics.restarts.increment(1);
        self.metrics.hanging.set(hanging as f64);
        if running.health.end() {
            self.count_ready(-1);
        }
        let starts = hanging <= self.config.replicas + HANGING_SPARE;
        if !starts {
            // Before its thread is told: it may be the one that takes the place again.
            self.vacant.lock().unwrap_or_else(PoisonError::into_inner).push(replica);
        }
        running.replaced_notify.notify_one();
        self.queue.leave(replica);
        self.take_back(running, "it was not computed in time, and the replica that computed it was given up");
        if starts && self.start_replica(replica).is_ok() {
            return;
        }
        if starts {
            self.vacant.lock().unwrap_or_else(PoisonError::into_inner).push(replica);
        }
        self.trouble_is(format!("{hanging} threads hang in the engine"));
    }

    /// Makes an instance and feeds it until it is lost.
    async fn run_instance(
        self: &Arc<Self>,
        replica: usize,
        machinery: &Machinery,
        running: Arc<Running>,
    ) -> wasmtime::Result<std::convert::Infallible> {
        let mut store = self.store(machinery, running.routes.computed.clone())?;
        let instance = machinery.pre.instantiate_async(&mut store).await?;
        let warm_up = Some(self.warm_up());
        let merged = Merged { pool: self.clone(), replica, running: running.clone(), warm_up };
        let back = Back { pool: self.clone(), running: running.clone() };
        let ended = Arc::new(tokio::sync::Notify::new());
        let run = store.run_concurrent(async |accessor| -> wasmtime::Result<()> {
            let items = accessor.with(|mut access| StreamReader::new(&mut access, merged))?;
            let outcomes = instance.weir_stream_infer().call_run(accessor, items).await?;
            let consumer = Watched { inner: back, _ended: Ended(ended.clone()) };
            accessor.with(|mut access| outcomes.pipe(&mut access, consumer))?;
            tokio::select! {
                () = ended.notified() => Ok(()),
                reason = running.health.failed() => Err(wasmtime::Error::msg(reason)),
            }
        });
        // From outside: a guest that never stops lets nothing inside of its store go on.
        let result = tokio::select! {
            result = run => result,
            () = running.replaced_notify.notified() => return Err(wasmtime::Error::msg("it was replaced")),
        };
        result??;
        Err(wasmtime::Error::msg("the infer component ended its stream"))
    }

    /// A store whose computations are counted.
    fn store(&self, machinery: &Machinery, computed: Arc<AtomicU64>) -> wasmtime::Result<Store<InferState>> {
        let name = &self.config.name;
        let mut wasi = WasiCtx::builder();
        wasi.inherit_stderr().envs(&self.config.environment);
        wasi.preopened_dir(&self.config.path, format!("/models/{name}"), FsPerms::ReadOnly)?;
        let state = InferState {
            table: ResourceTable::new(),
            wasi: wasi.build(),
            nn: NnCtx::new(machinery.registry.clone(), Names::only([name.clone()])).counting(computed),
            limits: limits(self.config.memory_bytes_max),
        };
        let mut store = Store::new(&machinery.engine, state);
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(store)
    }

    /// The item that every new instance answers first: from then on the replica counts as ready.
    fn warm_up(&self) -> Job {
        let task = match self.config.info.kind {
            ModelKind::TextClassification => Task::Classify(ClassifyOptions { top_k: None, activation: None }),
            ModelKind::TokenClassification => {
                Task::Tokens(TokenOptions { aggregation: Aggregation::None, ignore_labels: Vec::new() })
            }
            ModelKind::FeatureExtraction => Task::Embed(EmbedOptions { normalize: true }),
        };
        let item = Item {
            id: 0,
            model: self.config.name.clone(),
            text: "The first words wake the model up.".into(),
            text_pair: None,
            overflow: Overflow::Truncate,
            deadline_ms: None,
            when_full: WhenFull::Wait,
            task,
        };
        // Nobody waits for it: `Back` sees what becomes of it, at once and whatever else the instance does.
        let (sender, _) = Call::new(Arc::default(), 1).open();
        let reply = Reply::new(&sender, 0);
        let ticket = Ticket { call: 0, owner: 0, tokens: 0, deadline_ns: None };
        Job::new(item, reply, ticket, None)
    }

    /// A new instance has answered its first item, or could not.
    fn warmed_up(&self, running: &Running, result: Result<Output, Failure>) {
        match result {
            Ok(_) if running.health.begin() => self.count_ready(1),
            Ok(_) => {}
            Err(failure) => running.health.fail(crate::runtime::failure_text(&failure)),
        }
    }

    fn count_ready(&self, change: isize) {
        // Held throughout, so that `trouble_is` cannot come between.
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = 0;
        self.ready.send_modify(|ready| {
            *ready = ready.saturating_add_signed(change);
            now = *ready;
        });
        self.metrics.ready.set(now as f64);
        if now > 0 {
            self.was_ready.store(true, Ordering::SeqCst);
            *trouble = None;
            if !*self.stopping.borrow() {
                self.queue.down(None);
            }
        }
    }

    /// The model cannot answer, unless another replica can: says so to those who wait and to those who come.
    fn trouble_is(&self, text: String) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_ready() {
            return;
        }
        let reason = format!("model {} cannot answer: {text}", self.config.name);
        *trouble = Some(text);
        self.queue.down(Some(reason));
        drop(trouble);
        self.ready.send_modify(|_| {});
    }
}

/// The thread's place was taken by another.
struct Replaced;

/// A replica may take so many times as long for its first item.
const STARTING_PATIENCE: u32 = 5;

/// So many threads more than replicas may hang before no more are started.
const HANGING_SPARE: usize = 2;

/// One instance of a replica.
#[derive(Default)]
struct Running {
    routes: Routes,
    health: Health,
    /// It hung, and another runs in its place.
    replaced: AtomicBool,
    replaced_notify: tokio::sync::Notify,
}

/// How an instance fares.
#[derive(Default)]
struct Health {
    phase: Mutex<Phase>,
    failure: Mutex<Option<String>>,
    failed: tokio::sync::Notify,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has not answered yet.
    #[default]
    Starting,
    /// It has answered, and counts as ready.
    Ready,
    /// It is lost.
    Over,
}

impl Health {
    /// It has answered; true unless it is lost already.
    fn begin(&self) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase == Phase::Starting {
            *phase = Phase::Ready;
        }
        *phase == Phase::Ready
    }

    /// It is lost; true if it counted as ready.
    fn end(&self) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *phase, Phase::Over) == Phase::Ready
    }

    fn is_ready(&self) -> bool {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) == Phase::Ready
    }

    fn fail(&self, reason: String) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.failed.notify_one();
    }

    async fn failed(&self) -> String {
        loop {
            self.failed.notified().await;
            if let Some(reason) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return reason;
            }
        }
    }
}

/// What an instance owes, by the id that its items have on the merged stream.
#[derive(Default)]
struct Routes {
    next: AtomicU32,
    owing: Mutex<Owing>,
    /// Computations of the engine that have ended.
    computed: Arc<AtomicU64>,
}

#[derive(Default)]
struct Owing {
    owed: HashMap<u64, Job>,
    /// When it last gave an answer, or got an item while it owed none.
    since: Option<Instant>,
    /// How many computations had ended when that was last looked at, and when they had become so many: a long text gives an
    /// answer only after many of them.
    computed: u64,
    computed_at: Option<Instant>,
    /// What it has is a suspect, alone.
    testing: bool,
    /// Waits until it owes nothing.
    waiter: Option<Waker>,
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, Owing> {
        self.owing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes jobs over; returns their items as they travel.
    fn add(&self, jobs: Vec<Job>, testing: bool) -> Vec<Item> {
        let mut owing = self.lock();
        if owing.owed.is_empty() {
            owing.since = Some(Instant::now());
        }
        owing.testing = testing;
        let items = jobs.into_iter().map(|job| {
            // The upper half says whose it is: the component serves calls in turn.
            let id = job.ticket.call << 32 | u64::from(self.next.fetch_add(1, Ordering::Relaxed));
            let item = Item { id, ..job.item.clone() };
            owing.owed.insert(id, job);
            item
        });
        items.collect()
    }

    /// The job of an outcome, and the time since the outcome before or since it was handed over.
    fn take(&self, id: u64) -> Option<(Job, Duration)> {
        let mut owing = self.lock();
        let job = owing.owed.remove(&id)?;
        let now = Instant::now();
        let busy = owing.since.map_or(Duration::ZERO, |since| now - since);
        owing.since = Some(now);
        let waker = if owing.owed.is_empty() {
            owing.testing = false;
            owing.waiter.take()
        } else {
            None
        };
        drop(owing);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some((job, busy))
    }

    /// What is owed, and whether that is a suspect alone; nothing is owed any more.
    fn clear(&self) -> (Vec<Job>, bool) {
        let mut owing = self.lock();
        let mut owed: Vec<(u64, Job)> = owing.owed.drain().collect();
        owed.sort_unstable_by_key(|(id, _)| *id as u32);
        (owed.into_iter().map(|(_, job)| job).collect(), std::mem::take(&mut owing.testing))
    }

    /// How long it has been silent, if it owes anything.
    fn silent(&self) -> Option<Duration> {
        let computed = self.computed.load(Ordering::Relaxed);
        let mut owing = self.lock();
        if owing.computed != computed {
            (owing.computed, owing.computed_at) = (computed, Some(Instant::now()));
        }
        if owing.owed.is_empty() {
            return None;
        }
        owing.since.map(|since| owing.computed_at.map_or(since, |at| at.max(since)).elapsed())
    }

    /// Whether it owes anything and whether that is a suspect; who asks is woken when it owes nothing.
    fn watch(&self, cx: &Context<'_>) -> (bool, bool) {
        let mut owing = self.lock();
        let owes = !owing.owed.is_empty();
        if owes {
            owing.waiter = Some(cx.waker().clone());
        }
        (owes, owing.testing)
    }
}

/// The one stream of items into an instance.
struct Merged {
    pool: Arc<Pool>,
    replica: usize,
    running: Arc<Running>,
    warm_up: Option<Job>,
}

/// Items handed over when the guest does not say how many it can take.
const HANDED_ITEMS_MAX: usize = 64;

impl<D> StreamProducer<D> for Merged {
    type Item = Item;
    type Buffer = VecBuffer<Item>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Item, VecBuffer<Item>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(HANDED_ITEMS_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        if self.running.replaced.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let taken = match self.warm_up.take() {
            Some(job) => Poll::Ready(Taken::Jobs(vec![job])),
            None => {
                let (owes, testing) = self.running.routes.watch(cx);
                let tokens_max = self.pool.config.ahead_tokens;
                let ask = Ask { replica: self.replica, items_max: room, tokens_max, owes, testing };
                self.pool.queue.poll_take(&ask, cx)
            }
        };
        match taken {
            Poll::Ready(taken) => {
                let (jobs, testing) = match taken {
                    Taken::Jobs(jobs) => (jobs, false),
                    Taken::Suspect(job) => (vec![*job], true),
                };
                self.pool.metrics.items.increment(jobs.len() as u64);
                self.pool.queue.counts.handed_over.fetch_add(jobs.len() as u64, Ordering::Relaxed);
                destination.set_buffer(self.running.routes.add(jobs, testing).into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => {
                // It computes now: a wake-up must go to a replica that waits.
                self.pool.queue.leave(self.replica);
                Poll::Ready(Ok(StreamResult::Cancelled))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// The way back: outcomes to the callers who wait for them.
struct Back {
    pool: Arc<Pool>,
    running: Arc<Running>,
}

impl Back {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let pool = &self.pool;
        let (mut tokens, mut failures) = (0, 0);
        for outcome in outcomes {
            let Some((job, busy)) = self.running.routes.take(outcome.id) else {
                if !self.running.replaced.load(Ordering::SeqCst) {
                    tracing::warn!(model = pool.config.name, "an outcome for no item");
                }
                continue;
            };
            tokens += u64::from(outcome.tokens);
            pool.queue.counts.answered.fetch_add(1, Ordering::Relaxed);
            if job.ticket.call == 0 {
                failures += u64::from(outcome.result.is_err());
                pool.warmed_up(&self.running, outcome.result);
                continue;
            }
            let busy_ns = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
            pool.queue.served(job.bytes(), u64::from(outcome.tokens), busy_ns);
            let Some(job) = pool.queue.settle(job, outcome.result.as_ref().err()) else { continue };
            failures += u64::from(outcome.result.is_err());
            job.reply.send(outcome.tokens, outcome.result);
        }
        pool.metrics.tokens.increment(tokens);
        pool.metrics.failures.increment(failures);
    }
}

/// A consumer that tells when it is dropped: the stream has ended.
struct Watched<C> {
    inner: C,
    _ended: Ended,
}

struct Ended(Arc<tokio::sync::Notify>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl<D> StreamConsumer<D> for Watched<Back> {
    type Item = Outcome;

    fn poll_consume(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, Outcome>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut outcomes = Vec::with_capacity(source.remaining(&mut store));
        source.read(&mut store, &mut outcomes)?;
        self.inner.deliver(outcomes);
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
