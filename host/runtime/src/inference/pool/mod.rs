//! The replicas of one model. Each is a thread with an infer instance of its own, fed by one long-lived stream in which
//! the items of all callers are merged, so that batches form across requests.

mod factory;
mod instance;
mod metrics;
mod streams;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use wasmtime::component::StreamReader;
use weir_core::inference::queue::Ticket;

pub(crate) use self::factory::Machinery;
use self::metrics::PoolMetrics;
use self::instance::Running;
use self::streams::{Back, Ended, Merged, Watched};
use crate::inference::call::{Call, Reply};
use crate::inference::queue::{Job, Queue, QueueSettings};
use crate::types::{
    Aggregation, ClassifyOptions, EmbedOptions, Failure, Item, ModelInfo, ModelKind, Output, Overflow, Task,
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

/// How long a replica that failed waits before it is made anew: doubled each time, up to the last.
const RESTART_DELAYS_MS: [u64; 6] = [50, 200, 1_000, 3_000, 10_000, 30_000];

impl Pool {
    pub(crate) fn new(config: PoolConfig) -> Arc<Self> {
        let metrics = PoolMetrics::new(&config.name);
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
        let mut last = String::new();
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
            if text == last {
                // Said already, and nothing is new.
                tracing::debug!(model = self.config.name, replica, error = text, "a replica is lost again");
            } else {
                tracing::error!(model = self.config.name, replica, error = text, "a replica is lost");
                last.clone_from(&text);
            }
            self.metrics.restarts.increment(1);
            if running.health.end() {
                // It had answered: what waits is for the next instance, which will soon be there.
                self.count_ready(-1);
                failures = 0;
                last.clear();
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
        let mut store = machinery.store(&self.config, running.routes.computed.clone())?;
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

    /// The item that every new instance answers first: from then on the replica counts as ready.
    fn warm_up(&self) -> Job {
        let task = match self.config.info.kind {
            ModelKind::TextClassification => Task::Classify(ClassifyOptions { top_k: None, activation: None }),
            ModelKind::TokenClassification => {
                Task::Tokens(TokenOptions { aggregation: Aggregation::None, ignore_labels: Vec::new(), stride: None })
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
