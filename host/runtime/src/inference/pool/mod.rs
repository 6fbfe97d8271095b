//! The replicas of one model. Each is a thread with an infer instance of its own, which reads one long-lived stream of
//! the items of all callers, so that batches form across requests.
//!
//! - `factory`: creates the instances.
//! - `instance`: the items that an instance has in flight, and its health.
//! - `streams`: the two streams of an instance.
//! - `task`: the future of a replica, which its own thread or that of a caller polls.

mod factory;
mod instance;
mod metrics;
mod streams;
pub(crate) mod task;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use wasmtime::component::StreamReader;
use weir_core::inference::queue::Ticket;

pub(crate) use self::factory::InferFactory;
use self::instance::Instance;
use self::metrics::PoolMetrics;
use self::streams::{ItemSource, OutcomeSink, WatchedSink};
use self::task::ReplicaTask;
use crate::components::ended::NotifyOnDrop;
use crate::components::woken::poll_when_woken;
use crate::inference::item::SharedItem;
use crate::inference::queue::{Job, Queue, QueueSettings};
use crate::inference::reply::OutcomeSender;
use crate::types::{
    Aggregation, ClassifyOptions, EmbedOptions, Failure, ModelInfo, ModelKind, Outcome, Output, Overflow, Task,
    TokenOptions, WhenFull,
};

/// The configuration of a pool.
pub(crate) struct PoolConfig {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) info: ModelInfo,
    pub(crate) replicas: usize,
    pub(crate) queue: QueueSettings,
    pub(crate) memory_bytes_max: u64,
    /// Most tokens of a batch.
    pub(crate) batch_tokens_max: u32,
    /// Tokens assigned to a replica at a time: a few batches, from which it chooses.
    pub(crate) ahead_tokens: u64,
    /// Variables of the infer component that set how it forms batches.
    pub(crate) environment: Vec<(String, String)>,
    /// A replica with items in flight is lost when it gives no outcome for this long.
    pub(crate) hang_timeout: Duration,
    /// Whether the engine takes the expected time for every text, so that the thread of a caller may compute short ones.
    pub(crate) may_borrow_threads: bool,
}

/// The replicas of one model and the queue before them.
pub struct Pool {
    config: PoolConfig,
    queue: Queue,
    /// Replicas that have answered their warm-up.
    ready: watch::Sender<usize>,
    /// True once a replica has been ready.
    was_ready: AtomicBool,
    /// Why the model cannot answer, when that is known.
    unavailable: Mutex<Option<String>>,
    stopping: watch::Sender<bool>,
    /// The current instance of each replica, if it has one.
    instances: Mutex<Vec<Option<Arc<Instance>>>>,
    /// Replicas that have no thread because too many threads hang.
    vacant: Mutex<Vec<usize>>,
    /// Threads that hang in an engine: they cannot be stopped.
    hanging: AtomicUsize,
    hangs: AtomicU64,
    factory: OnceLock<InferFactory>,
    metrics: PoolMetrics,
}

/// Counters of a model's items since the start, and its current queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Replicas that are ready.
    pub replicas_ready: usize,
    /// Threads that hang in the engine and were replaced.
    pub threads_hanging: usize,
    /// Items waiting.
    pub waiting: usize,
    /// Tokens waiting, as estimated.
    pub waiting_tokens: u64,
    /// False while the circuit breaker admits no items, or only probes.
    pub circuit_closed: bool,
    /// Items assigned to replicas, retries included.
    pub handed_over: u64,
    /// Items that a replica answered.
    pub answered: u64,
    /// Items that were not computed because their call was abandoned.
    pub abandoned: u64,
    /// Items whose deadline passed while they waited.
    pub expired: u64,
    /// Items refused by, or dropped from, a full queue.
    pub overloaded: u64,
    /// Items refused because their owner has its share.
    pub throttled: u64,
    /// Items refused by an open circuit.
    pub circuit_open: u64,
    /// Attempts after the first.
    pub retried: u64,
    /// Replicas that hung and were replaced.
    pub hangs: u64,
}

/// Delays before a failed replica is created again; the last one applies to all further failures.
const RESTART_DELAYS_MS: [u64; 6] = [50, 200, 1_000, 3_000, 10_000, 30_000];

impl Pool {
    pub(crate) fn new(config: PoolConfig) -> Arc<Self> {
        let metrics = PoolMetrics::new(&config.name);
        Arc::new(Self {
            queue: Queue::new(config.queue.clone(), config.replicas),
            instances: Mutex::new((0..config.replicas).map(|_| None).collect()),
            config,
            ready: watch::Sender::new(0),
            was_ready: AtomicBool::new(false),
            unavailable: Mutex::new(None),
            stopping: watch::Sender::new(false),
            vacant: Mutex::default(),
            hanging: AtomicUsize::new(0),
            hangs: AtomicU64::new(0),
            factory: OnceLock::new(),
            metrics,
        })
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The model's description, with the current values of `ready` and `reason`.
    pub fn info(&self) -> ModelInfo {
        // The infer component names the model.
        let prefix = format!("model {}: ", self.config.name);
        let reason = self.unavailable_reason().map(|reason| reason.strip_prefix(&prefix).unwrap_or(&reason).to_owned());
        ModelInfo { ready: self.is_ready(), reason, ..self.config.info.clone() }
    }

    /// Whether a replica is ready.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow() > 0
    }

    fn unavailable_reason(&self) -> Option<String> {
        self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves when the model is ready.
    ///
    /// # Errors
    ///
    /// Why the model cannot answer.
    pub async fn settled(&self) -> Result<(), String> {
        let mut ready = self.ready.subscribe();
        loop {
            if *ready.borrow_and_update() > 0 {
                return Ok(());
            }
            if let Some(reason) = self.unavailable_reason() {
                return Err(reason);
            }
            if ready.changed().await.is_err() {
                return Err("the server is stopping".into());
            }
        }
    }

    /// Updates the gauges, and the counters that the queue counts itself.
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

    /// The counters of its items.
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

    /// Releases the items that a window holds back. Returns their number.
    pub fn flush(&self) -> usize {
        self.queue.flush()
    }

    /// Ends the replicas, each after its computation in progress.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
        self.config.queue.check_thread.wake();
        self.queue.set_unavailable(Some("the server is stopping".into()));
    }

    /// Starts the replicas: the first immediately, the others when the first is ready, so that they do not slow down
    /// its start.
    pub(crate) fn start(self: &Arc<Self>, factory: &InferFactory) -> std::io::Result<()> {
        let _ = self.factory.set(factory.clone());
        (0..self.config.replicas).try_for_each(|replica| self.start_replica(replica))
    }

    fn start_replica(self: &Arc<Self>, replica: usize) -> std::io::Result<()> {
        let pool = self.clone();
        let name = format!("{}-{replica}", self.config.name);
        std::thread::Builder::new().name(name).spawn(move || pool.run_thread(replica)).map(drop)
    }

    fn run_thread(self: Arc<Self>, first: usize) {
        let Some(factory) = self.factory.get().cloned() else { return };
        lower_priority();
        // Without the I/O driver, since no replica has sockets: the thread then sleeps on a futex, which is cheaper to
        // wake.
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(model = self.config.name, first, %error, "cannot start a replica");
                return self.mark_unavailable(format!("cannot start a replica: {error}"));
            }
        };
        let mut next = Some(first);
        while let Some(replica) = next {
            let (pool, factory, mut stopping) = (self.clone(), factory.clone(), self.stopping.subscribe());
            let run = async move {
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => true,
                    ThreadReplaced = pool.run_replica(replica, &factory) => false,
                }
            };
            let stopped = runtime.block_on(ReplicaTask::new(run, self.config.may_borrow_threads).run());
            if stopped {
                return self.queue.remove_waiter(replica);
            }
            // This thread hung, and another one runs its replica. If no other could be started, this one takes a vacant
            // replica.
            let hanging = self.hanging.fetch_sub(1, Ordering::SeqCst) - 1;
            self.metrics.hanging.set(hanging as f64);
            next = self.vacant.lock().unwrap_or_else(PoisonError::into_inner).pop();
        }
    }

    /// Runs one instance after another, each until it is lost. Ends when another thread runs the replica.
    async fn run_replica(self: &Arc<Self>, replica: usize, factory: &InferFactory) -> ThreadReplaced {
        // Replica 0 starts alone, so that the others do not slow down its start. Later, any replica may start first.
        if replica > 0 && !self.was_ready.load(Ordering::SeqCst) {
            let mut ready = self.ready.subscribe();
            let _ = ready.wait_for(|ready| *ready > 0).await;
        }
        let mut failures = 0;
        let mut last = String::new();
        loop {
            let instance = Arc::new(Instance::default());
            self.slot(replica, |slot| *slot = Some(instance.clone()));
            let run = AssertUnwindSafe(self.run_instance(replica, factory, instance.clone()));
            let text = match run.catch_unwind().await {
                Ok(Ok(never)) => match never {},
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "the host panicked while it ran".into(),
            };
            if instance.replaced.load(Ordering::SeqCst) {
                return ThreadReplaced;
            }
            let is_current = self.slot(replica, |slot| slot.take_if(|slot| Arc::ptr_eq(slot, &instance)).is_some());
            if !is_current {
                return ThreadReplaced;
            }
            self.queue.remove_waiter(replica);
            if text == last {
                // The same error was logged before.
                tracing::debug!(model = self.config.name, replica, error = text, "a replica is lost again");
            } else {
                tracing::error!(model = self.config.name, replica, error = text, "a replica is lost");
                last.clone_from(&text);
            }
            self.metrics.restarts.increment(1);
            if instance.health.mark_lost() {
                // The waiting items are not failed: the next instance starts soon.
                self.count_ready(-1);
                failures = 0;
                last.clear();
            } else if !self.is_ready() {
                self.mark_unavailable(text);
            }
            self.requeue(&instance, "the component trapped or ended while it computed this text");
            let delay = RESTART_DELAYS_MS[failures.min(RESTART_DELAYS_MS.len() - 1)];
            failures += 1;
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
    }

    fn slot<R>(&self, replica: usize, with: impl FnOnce(&mut Option<Arc<Instance>>) -> R) -> R {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        with(&mut instances[replica])
    }

    /// Retries or fails the items that a lost instance had in flight. `culprit` is the error of an item that was
    /// computed alone.
    fn requeue(&self, instance: &Instance, culprit: &str) {
        let (jobs, alone) = instance.in_flight.clear();
        if jobs.is_empty() {
            return;
        }
        for job in self.queue.requeue_lost(jobs, alone) {
            let failure = match alone {
                true => Failure::Engine(culprit.into()),
                false => Failure::Unavailable("the replica that had this item was lost".into()),
            };
            self.metrics.failures.increment(1);
            job.reply.send(0, Err(failure));
        }
    }

    /// Releases and expires waiting items, answers items in flight whose request has no more time, and replaces replicas
    /// that hang; to be called every few milliseconds.
    /// Returns whether an item waits or is in flight, or the pool is being stopped.
    pub(crate) fn tick(self: &Arc<Self>) -> bool {
        let mut busy = self.queue.tick() || *self.stopping.borrow();
        let instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (replica, instance) in instances.into_iter().enumerate() {
            let Some(instance) = instance else { continue };
            let Some(silence) = instance.in_flight.silence() else { continue };
            busy = true;
            instance.in_flight.answer_late(self.queue.now_ns());
            // The first item may wait for a graph to be optimized.
            let factor = if instance.health.is_ready() { 1 } else { START_TIMEOUT_FACTOR };
            if silence >= self.config.hang_timeout * factor {
                self.replace(replica, &instance);
            }
        }
        busy
    }

    /// Runs the replica of a hung instance on another thread. The hung thread ends when its engine returns.
    fn replace(self: &Arc<Self>, replica: usize, instance: &Arc<Instance>) {
        // Counted before the flag is set: the hung thread decrements the count as soon as it sees the flag.
        let hanging = self.hanging.fetch_add(1, Ordering::SeqCst) + 1;
        let is_current = self.slot(replica, |slot| slot.take_if(|slot| Arc::ptr_eq(slot, instance)).is_some());
        if !is_current || instance.replaced.swap(true, Ordering::SeqCst) {
            self.hanging.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        tracing::error!(model = self.config.name, replica, "a replica hangs, and is replaced");
        self.metrics.hangs.increment(1);
        self.hangs.fetch_add(1, Ordering::Relaxed);
        self.metrics.restarts.increment(1);
        self.metrics.hanging.set(hanging as f64);
        if instance.health.mark_lost() {
            self.count_ready(-1);
        }
        let starts = hanging <= self.config.replicas + HUNG_THREADS_SPARE;
        if !starts {
            // Added before the hung thread is notified, since that thread may take the vacant replica.
            self.vacant.lock().unwrap_or_else(PoisonError::into_inner).push(replica);
        }
        instance.replaced_notify.notify_one();
        self.queue.remove_waiter(replica);
        self.requeue(instance, "it was not computed in time, and the replica that computed it was replaced");
        if starts && self.start_replica(replica).is_ok() {
            return;
        }
        if starts {
            self.vacant.lock().unwrap_or_else(PoisonError::into_inner).push(replica);
        }
        self.mark_unavailable(format!(
            "{} in the engine",
            if hanging == 1 { "1 thread hangs".to_owned() } else { format!("{hanging} threads hang") }
        ));
    }

    /// Creates an instance and runs it until it is lost.
    async fn run_instance(
        self: &Arc<Self>,
        replica: usize,
        factory: &InferFactory,
        instance: Arc<Instance>,
    ) -> wasmtime::Result<std::convert::Infallible> {
        let mut store = factory.store(&self.config, instance.in_flight.computed.clone())?;
        let component = factory.host.run_guest(factory.pre.instantiate_async(&mut store)).await?;
        // Bindings have items with texts of their own.
        let run = component.weir_stream_infer().func_run();
        let run = run.func().typed::<(StreamReader<SharedItem>,), (StreamReader<Outcome>,)>(&store)?;
        let warm_up = Some(self.warm_up());
        let source = ItemSource { pool: self.clone(), replica, instance: instance.clone(), warm_up };
        let sink = OutcomeSink { pool: self.clone(), instance: instance.clone() };
        let ended = Arc::new(tokio::sync::Notify::new());
        let outcomes = store.run_concurrent(async |accessor| -> wasmtime::Result<()> {
            let items = accessor.with(|mut access| StreamReader::new(&mut access, source))?;
            let (outcomes,) = run.call_concurrent(accessor, (items,)).await?;
            let consumer = WatchedSink { sink, _ended: NotifyOnDrop(ended.clone()) };
            accessor.with(|mut access| outcomes.pipe(&mut access, consumer))?;
            poll_when_woken(async {
                tokio::select! {
                    () = ended.notified() => Ok(()),
                    reason = instance.health.failed() => Err(wasmtime::Error::msg(reason)),
                }
            })
            .await
        });
        // Awaited outside of the store, since a guest that never yields blocks every future inside of it.
        let result = tokio::select! {
            result = factory.host.run_guest(outcomes) => result,
            () = instance.replaced_notify.notified() => return Err(wasmtime::Error::msg("it was replaced")),
        };
        result??;
        Err(wasmtime::Error::msg("the infer component ended its stream"))
    }

    /// The item that every new instance computes first: the replica is ready when it succeeds.
    fn warm_up(&self) -> Job {
        let task = match self.config.info.kind {
            ModelKind::TextClassification => Task::Classify(ClassifyOptions { top_k: None, activation: None }),
            ModelKind::TokenClassification => {
                Task::Tokens(TokenOptions { aggregation: Aggregation::None, ignore_labels: Vec::new(), stride: None })
            }
            ModelKind::FeatureExtraction => Task::Embed(EmbedOptions { normalize: true }),
        };
        let item = SharedItem {
            id: 0,
            model: self.config.name.as_str().into(),
            text: "The first words wake the model up.".into(),
            text_pair: None,
            overflow: Overflow::Truncate,
            deadline_ms: None,
            when_full: WhenFull::Wait,
            traceparent: None,
            task,
        };
        // Its reply has no receiver: `OutcomeSink` handles its outcome.
        let reply = OutcomeSender::without_receiver();
        let ticket = Ticket { call: 0, owner: 0, tokens: 0, deadline_ns: None };
        Job::new(item, reply, ticket, None)
    }

    /// Handles the outcome of an instance's warm-up.
    fn handle_warm_up(&self, instance: &Instance, result: Result<Output, Failure>) {
        match result {
            Ok(_) if instance.health.mark_ready() => self.count_ready(1),
            Ok(_) => {}
            Err(failure) => instance.health.fail(crate::inference::failure::text(&failure)),
        }
    }

    fn count_ready(&self, change: isize) {
        // Locked throughout, so that `mark_unavailable` does not run in between.
        let mut unavailable = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = 0;
        self.ready.send_modify(|ready| {
            *ready = ready.saturating_add_signed(change);
            now = *ready;
        });
        self.metrics.ready.set(now as f64);
        if now > 0 {
            self.was_ready.store(true, Ordering::SeqCst);
            *unavailable = None;
            if !*self.stopping.borrow() {
                self.queue.set_unavailable(None);
            }
        }
    }

    /// Answers waiting and new items with `unavailable`, unless another replica is ready.
    fn mark_unavailable(&self, text: String) {
        let mut unavailable = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_ready() {
            return;
        }
        let reason = format!("model {} cannot answer: {text}", self.config.name);
        *unavailable = Some(text);
        self.queue.set_unavailable(Some(reason));
        drop(unavailable);
        self.ready.send_modify(|_| {});
    }
}

/// Another thread runs the replica.
struct ThreadReplaced;

/// Lowers the priority of this thread below that of the threads that serve sockets, so that those are scheduled
/// promptly while the replicas use all cores. Best effort. On an otherwise idle machine the thread is not slowed down.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    // On Linux the priority of "this process" is that of the calling thread, and that of its identifier the one of the main thread.
    if let Err(error) = rustix::process::getpriority_process(Some(rustix::process::getpid()))
        .and_then(|main| rustix::process::setpriority_process(None, (main + REPLICA_NICE).min(NICE_MAX)))
    {
        tracing::debug!(%error, "the priority of a replica's thread cannot be lowered");
    }
}

/// What replica threads add to the nice value of the program: they get about two thirds of the processor time of another thread that
/// competes for the same core. With a greater value other busy programs would delay each computation by many
/// milliseconds.
#[cfg(target_os = "linux")]
const REPLICA_NICE: i32 = 2;

/// The lowest priority.
#[cfg(target_os = "linux")]
const NICE_MAX: i32 = 19;

/// How many hang timeouts a replica may take for its first item.
const START_TIMEOUT_FACTOR: u32 = 5;

/// Hung threads tolerated beyond the replica count before no more are started.
const HUNG_THREADS_SPARE: usize = 2;
