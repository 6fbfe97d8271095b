//! The replicas of one model. Each is a thread with an infer instance of its own, fed by one long-lived stream in which
//! the items of all callers are merged, so that batches form across requests.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::watch;
use wasmtime::component::{
    Component, Destination, Linker, ResourceTable, Source, StreamConsumer, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};
use wasmtime::{Engine, Store, StoreContextMut, StoreLimits};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use weir_nn::{Names, NnCtx, NnView, Registry};

use crate::bindings::infer::InferExportsPre;
use crate::call::{Call, Reply};
use crate::limits::limits;
use crate::queue::{Job, Queue};
use crate::types::{
    Aggregation, ClassifyOptions, EmbedOptions, Item, ModelInfo, ModelKind, Outcome, Overflow, Task, TokenOptions,
    WhenFull,
};

/// How a pool is set up.
pub(crate) struct PoolConfig {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) info: ModelInfo,
    pub(crate) replicas: usize,
    pub(crate) queue_items_max: usize,
    pub(crate) memory_bytes_max: u64,
}

/// The replicas of one model and the queue before them.
pub struct Pool {
    config: PoolConfig,
    queue: Queue,
    /// Replicas that have answered their warm-up.
    ready: watch::Sender<usize>,
    /// What keeps the model from answering, when that is known.
    trouble: Mutex<Option<String>>,
    stopping: watch::Sender<bool>,
    metrics: PoolMetrics,
}

struct PoolMetrics {
    items: Counter,
    failures: Counter,
    restarts: Counter,
    ready: Gauge,
    waiting: Gauge,
    skipped: Counter,
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
        let metrics = PoolMetrics {
            items: counter!("weir_infer_items_total", "model" => name.clone()),
            failures: counter!("weir_infer_failures_total", "model" => name.clone()),
            restarts: counter!("weir_infer_replica_restarts_total", "model" => name.clone()),
            ready: gauge!("weir_infer_replicas_ready", "model" => name.clone()),
            waiting: gauge!("weir_infer_queue_items", "model" => name.clone()),
            skipped: counter!("weir_infer_items_abandoned_total", "model" => name),
        };
        Arc::new(Self {
            queue: Queue::new(config.queue_items_max, config.replicas),
            config,
            ready: watch::Sender::new(0),
            trouble: Mutex::new(None),
            stopping: watch::Sender::new(false),
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
        self.metrics.waiting.set(self.queue.len() as f64);
        self.metrics.skipped.absolute(self.queue.skipped() as u64);
    }

    /// Ends the replicas: each when its computation in progress is over.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Starts the replicas: the first at once, the others when it has answered, so that they do not slow it down.
    pub(crate) fn start(self: &Arc<Self>, machinery: &Machinery) -> std::io::Result<()> {
        for replica in 0..self.config.replicas {
            let pool = self.clone();
            let machinery = machinery.clone();
            std::thread::Builder::new()
                .name(format!("{}-{replica}", self.config.name))
                .spawn(move || pool.replica_thread(replica, &machinery))?;
        }
        Ok(())
    }

    fn replica_thread(self: Arc<Self>, replica: usize, machinery: &Machinery) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(model = self.config.name, replica, %error, "cannot start a replica");
                return self.trouble_is(format!("cannot start a replica: {error}"));
            }
        };
        let mut stopping = self.stopping.subscribe();
        runtime.block_on(async {
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => {}
                () = self.keep_running(replica, machinery) => {}
            }
        });
        self.queue.leave(replica);
    }

    /// Runs one instance after another: each until it is lost.
    async fn keep_running(self: &Arc<Self>, replica: usize, machinery: &Machinery) {
        if replica > 0 {
            let mut ready = self.ready.subscribe();
            let _ = ready.wait_for(|ready| *ready > 0).await;
        }
        let mut failures = 0;
        loop {
            let health = Arc::new(Health::default());
            let instance = AssertUnwindSafe(self.run_instance(replica, machinery, health.clone()));
            let text = match instance.catch_unwind().await {
                Ok(Ok(never)) => match never {},
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "the host panicked while it ran".into(),
            };
            self.queue.leave(replica);
            tracing::error!(model = self.config.name, replica, error = text, "a replica is lost");
            self.metrics.restarts.increment(1);
            if health.end() {
                // It had answered: what waits is for the next instance, which will soon be there.
                self.count_ready(-1);
                failures = 0;
            } else if !self.is_ready() {
                self.trouble_is(text);
            }
            let delay = RESTART_DELAYS_MS[failures.min(RESTART_DELAYS_MS.len() - 1)];
            failures += 1;
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
    }

    /// Makes an instance and feeds it until it is lost.
    async fn run_instance(
        self: &Arc<Self>,
        replica: usize,
        machinery: &Machinery,
        health: Arc<Health>,
    ) -> wasmtime::Result<std::convert::Infallible> {
        let mut store = self.store(machinery)?;
        let instance = machinery.pre.instantiate_async(&mut store).await?;
        let routes = Routes::default();
        let merged =
            Merged { pool: self.clone(), replica, routes: routes.clone(), warm_up: Some(self.warm_up(&health)) };
        let back = Back { pool: self.clone(), routes };
        let ended = Arc::new(tokio::sync::Notify::new());
        let result = store
            .run_concurrent(async |accessor| -> wasmtime::Result<()> {
                let items = accessor.with(|mut access| StreamReader::new(&mut access, merged))?;
                let outcomes = instance.weir_stream_infer().call_run(accessor, items).await?;
                let consumer = Watched { inner: back, _ended: Ended(ended.clone()) };
                accessor.with(|mut access| outcomes.pipe(&mut access, consumer))?;
                tokio::select! {
                    () = ended.notified() => Ok(()),
                    reason = health.failed() => Err(wasmtime::Error::msg(reason)),
                }
            })
            .await;
        result??;
        Err(wasmtime::Error::msg("the infer component ended its stream"))
    }

    fn store(&self, machinery: &Machinery) -> wasmtime::Result<Store<InferState>> {
        let name = &self.config.name;
        let mut wasi = WasiCtx::builder();
        wasi.inherit_stderr();
        wasi.preopened_dir(&self.config.path, format!("/models/{name}"), FsPerms::ReadOnly)?;
        let state = InferState {
            table: ResourceTable::new(),
            wasi: wasi.build(),
            nn: NnCtx::new(machinery.registry.clone(), Names::only([name.clone()])),
            limits: limits(self.config.memory_bytes_max),
        };
        let mut store = Store::new(&machinery.engine, state);
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(store)
    }

    /// The item that every new instance answers first: from then on the replica counts as ready.
    fn warm_up(self: &Arc<Self>, health: &Arc<Health>) -> Job {
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
        let (sender, mut outcomes) = Call::new(Arc::default(), 1).open();
        let reply = Reply::new(&sender, 0);
        let pool = self.clone();
        let health = health.clone();
        tokio::spawn(async move {
            let Some(outcome) = outcomes.recv().await else { return };
            match outcome.result {
                Ok(_) => {
                    if health.begin() {
                        pool.count_ready(1);
                    }
                }
                Err(failure) => health.fail(crate::runtime::failure_text(&failure)),
            }
        });
        Job { item, reply, _place: None }
    }

    fn count_ready(&self, change: isize) {
        let mut now = 0;
        self.ready.send_modify(|ready| {
            *ready = ready.saturating_add_signed(change);
            now = *ready;
        });
        self.metrics.ready.set(now as f64);
        if now > 0 {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.queue.down(None);
        }
    }

    /// The model cannot answer: says so to those who wait and to those who come.
    fn trouble_is(&self, text: String) {
        let reason = format!("model {} cannot answer: {text}", self.config.name);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        self.ready.send_modify(|_| {});
        self.queue.down(Some(reason));
    }
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

/// The replies that an instance owes, by the id that its items have on the merged stream.
#[derive(Clone, Default)]
struct Routes {
    next: Arc<AtomicU64>,
    owed: Arc<Mutex<HashMap<u64, Reply>>>,
}

impl Routes {
    fn add(&self, reply: Reply) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).insert(id, reply);
        id
    }

    fn take(&self, id: u64) -> Option<Reply> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }
}

/// The one stream of items into an instance.
struct Merged {
    pool: Arc<Pool>,
    replica: usize,
    routes: Routes,
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
        let jobs = match self.warm_up.take() {
            Some(job) => Poll::Ready(vec![job]),
            None => self.pool.queue.poll_take(self.replica, cx, room),
        };
        match jobs {
            Poll::Ready(jobs) => {
                self.pool.metrics.items.increment(jobs.len() as u64);
                let items: Vec<Item> =
                    jobs.into_iter().map(|job| Item { id: self.routes.add(job.reply), ..job.item }).collect();
                destination.set_buffer(items.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// The way back: outcomes to the callers who wait for them.
struct Back {
    pool: Arc<Pool>,
    routes: Routes,
}

impl Back {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            if outcome.result.is_err() {
                self.pool.metrics.failures.increment(1);
            }
            match self.routes.take(outcome.id) {
                Some(reply) => reply.send(outcome.result),
                None => tracing::warn!(model = self.pool.config.name, "an outcome for no item"),
            }
        }
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
