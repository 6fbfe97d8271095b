//! Instances of the gateway component behind `wasi:http/handler`. An instance serves many requests at once and is reused.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use wasmtime::component::{Accessor, Component, GuestTaskId, HasSelf, Linker, ResourceTable, StreamReader};
use wasmtime::{AsContextMut, Engine, Store, StoreContextMut, StoreLimits};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, ProxyHandler, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpView};
use weir_events::Store as EventStore;

use crate::bindings::gateway::GatewayHost;
use crate::bindings::gateway::weir::stream::infer::{Host, HostWithStore};
use crate::call::{Abandon, Call, FromGuest, ToGuest};
use crate::guest_log::GuestLog;
use crate::keeper::{self, Keeper};
use crate::limits::limits;
use crate::outgoing::Outgoing;
use crate::steps::Steps;
use crate::types::{Item, ModelInfo, Outcome};

/// A request for the gateway.
pub type Request = http::Request<WasiBody>;

/// The gateway's answer; its body counts as a request in progress until it ends or is dropped.
pub type Response = http::Response<CountedBody>;

/// How gateway instances are made.
#[derive(Debug, Clone)]
pub(crate) struct GatewayConfig {
    pub(crate) instance_requests_max: usize,
    pub(crate) memory_bytes_max: u64,
    pub(crate) keeper_memory_bytes_max: u64,
    pub(crate) idle_timeout: Duration,
    /// Time for the head of an answer; the component has limits of its own below this.
    pub(crate) head_timeout: Duration,
    pub(crate) environment: Vec<(String, String)>,
    /// Folders, and where instances see them, read-only.
    pub(crate) folders: Vec<(PathBuf, &'static str)>,
    /// The authorities that the keeper may call.
    pub(crate) http_allow: Vec<String>,
}

/// Where an instance sees the folder of keys.
pub(crate) const KEYS_DIR: &str = "/auth";
/// Where an instance sees the folder of pipelines.
pub(crate) const PIPELINES_DIR: &str = "/pipelines";

/// The gateway: hands requests to instances, and makes as many as are needed; what is kept goes to the keeper.
#[derive(Clone)]
pub struct Gateway {
    handler: ProxyHandler<Front>,
    keeper: Keeper,
}

impl Gateway {
    pub(crate) fn new(
        engine: &Engine,
        component: &Component,
        config: GatewayConfig,
        call: Call,
        events: EventStore,
        steps: Steps,
        draining: Arc<AtomicBool>,
    ) -> wasmtime::Result<Self> {
        let mut linker = Linker::<GatewayState>::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        GatewayHost::add_to_linker::<_, HasSelf<GatewayState>>(&mut linker, |state| state)?;
        let pre = ServicePre::new(linker.instantiate_pre(component)?)?;
        let (keeper_memory_bytes_max, head_timeout) = (config.keeper_memory_bytes_max, config.head_timeout);
        let maker = Arc::new(Maker { engine: engine.clone(), pre, config, call, events, steps, draining });
        let keeper = Keeper::start(maker.clone(), keeper_memory_bytes_max, head_timeout);
        Ok(Self { handler: ProxyHandler::new(Front(maker)), keeper })
    }

    /// Answers a request. There is no backpressure here: the caller bounds how many it has open.
    /// `owner` says whose it is: owners have a share of each queue.
    pub async fn handle(&self, request: Request, owner: u64) -> wasmtime::Result<Response> {
        let counted = Arc::new(Counted { owner, instance: OnceLock::new(), calls: Mutex::default() });
        let response = match keeper::keeps(request.uri().path()) {
            true => self.keeper.handle(request).await?,
            false => self.handler.handle(counted.clone(), request).await?,
        };
        Ok(response.map(|body| CountedBody { body, _counted: counted }))
    }
}

/// One request, from its start until its answer's body has ended or nobody waits for it any more: then it no longer counts
/// among those of its instance, and the calls that it made are given up.
struct Counted {
    owner: u64,
    instance: OnceLock<Arc<AtomicUsize>>,
    calls: Mutex<Vec<Abandon>>,
}

impl Counted {
    fn begin(&self, open: &Arc<AtomicUsize>) {
        open.fetch_add(1, Ordering::Relaxed);
        let _ = self.instance.set(open.clone());
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(open) = self.instance.get() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
        for call in self.calls.get_mut().unwrap_or_else(PoisonError::into_inner) {
            call.now();
        }
    }
}

/// The body of an answer, which keeps its request counted.
pub struct CountedBody {
    body: WasiBody,
    _counted: Arc<Counted>,
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a gateway instance's store holds.
pub(crate) struct GatewayState {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Outgoing,
    limits: StoreLimits,
    call: Call,
    pub(crate) events: EventStore,
    pub(crate) steps: Steps,
    draining: Arc<AtomicBool>,
    /// The requests of this instance, by the task that answers them; what is over goes when the next one comes.
    requests: HashMap<GuestTaskId, Weak<Counted>>,
}

impl WasiView for GatewayState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for GatewayState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

impl crate::types::Host for GatewayState {}

impl Host for GatewayState {}

impl HostWithStore<GatewayState> for HasSelf<GatewayState> {
    async fn run(
        accessor: &Accessor<GatewayState, Self>,
        items: StreamReader<Item>,
    ) -> wasmtime::Result<StreamReader<Outcome>> {
        accessor.with(|mut access| {
            let callers: Vec<GuestTaskId> = access.as_context_mut().async_call_stack()?.collect();
            let requests = &access.get().requests;
            let request = callers.iter().find_map(|task| requests.get(task)?.upgrade());
            let owner = request.as_ref().map_or(0, |request| request.owner);
            let (sender, outcomes) = access.get().call.open_for(owner);
            if let Some(request) = request {
                request.calls.lock().unwrap_or_else(PoisonError::into_inner).push(outcomes.abandon());
            }
            items.pipe(&mut access, FromGuest::new(sender))?;
            StreamReader::new(&mut access, ToGuest(outcomes))
        })
    }

    async fn models(accessor: &Accessor<GatewayState, Self>) -> wasmtime::Result<Vec<ModelInfo>> {
        Ok(accessor.with(|mut access| {
            let state = access.get();
            let draining = state.draining.load(Ordering::Relaxed);
            let models = state.call.pools().values().map(|pool| pool.info());
            models.map(|info| ModelInfo { ready: info.ready && !draining, ..info }).collect()
        }))
    }
}

/// Makes instances.
pub(crate) struct Maker {
    engine: Engine,
    pre: ServicePre<GatewayState>,
    config: GatewayConfig,
    call: Call,
    events: EventStore,
    steps: Steps,
    draining: Arc<AtomicBool>,
}

impl Maker {
    /// An instance in a store of its own, with what its environment has besides the configuration.
    pub(crate) async fn store(
        &self,
        memory_bytes_max: u64,
        told: Option<(&str, &str)>,
    ) -> wasmtime::Result<(Store<GatewayState>, Service)> {
        let mut wasi = WasiCtx::builder();
        let component = if told.is_some() { "keeper" } else { "gateway" };
        wasi.stderr(GuestLog::of(component, "")).envs(&self.config.environment);
        if let Some((name, value)) = told {
            wasi.env(name, value);
        }
        for (dir, seen_as) in &self.config.folders {
            wasi.preopened_dir(dir, seen_as, FsPerms::ReadOnly)?;
        }
        // Only the keeper runs steps: instances in front call nobody.
        let allow = if told.is_some() { self.config.http_allow.as_slice() } else { &[] };
        let state = GatewayState {
            table: ResourceTable::new(),
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            hooks: Outgoing::new(allow),
            limits: limits(memory_bytes_max),
            call: self.call.clone(),
            events: self.events.clone(),
            steps: self.steps.clone(),
            draining: self.draining.clone(),
            requests: HashMap::new(),
        };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let service = self.pre.instantiate_async(&mut store).await?;
        Ok((store, service))
    }
}

/// Makes the instances in front, which come and go.
struct Front(Arc<Maker>);

impl HandlerState for Front {
    type StoreData = GatewayState;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<GatewayState, Expiration, Worker>> {
        let config = &self.0.config;
        let (store, service) = self.0.store(config.memory_bytes_max, None).await?;
        metrics::counter!("weir_gateway_instances_total").increment(1);
        let open = Arc::new(AtomicUsize::new(0));
        Ok(Instance {
            store,
            proxy: wasmtime_wasi_http::handler::Proxy::P3(service),
            view: GatewayState::http,
            expiration: Expiration {
                idle_timeout: config.idle_timeout,
                head_timeout: config.head_timeout,
                timer: None,
            },
            state: Worker {
                open,
                requests_max: config.instance_requests_max,
                head_timeout: config.head_timeout,
                draining: self.0.draining.clone(),
            },
        })
    }
}

/// When an instance is let go: idle for long, or a request in it stuck past every limit.
struct Expiration {
    idle_timeout: Duration,
    head_timeout: Duration,
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl WorkerExpiration for Expiration {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        let limit = match status {
            WorkerStatus::Idle => self.idle_timeout,
            // Twice: the request's own limit comes first, and others in the instance may have begun later.
            WorkerStatus::Requests => self.head_timeout * 2,
            // Streams may be long; their ends are the component's and the client's matter.
            WorkerStatus::PostReturn => return Poll::Pending,
        };
        let end = start + limit;
        if self.timer.as_ref().is_none_or(|(armed, _)| *armed != end) {
            self.timer = Some((end, Box::pin(tokio::time::sleep_until(end.into()))));
        }
        if let Some((_, timer)) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
        }
        Poll::Ready(())
    }
}

/// One instance.
struct Worker {
    open: Arc<AtomicUsize>,
    requests_max: usize,
    head_timeout: Duration,
    draining: Arc<AtomicBool>,
}

impl WorkerState for Worker {
    type StoreData = GatewayState;
    type RequestData = Arc<Counted>;

    fn should_accept_request(&self, _concurrent: usize, _total: usize) -> ShouldAccept {
        if self.open.load(Ordering::Relaxed) < self.requests_max { ShouldAccept::Yes } else { ShouldAccept::No }
    }

    fn on_request_start(
        &self,
        mut store: StoreContextMut<'_, GatewayState>,
        data: Arc<Counted>,
        task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        data.begin(&self.open);
        let requests = &mut store.data_mut().requests;
        requests.retain(|_, request| request.strong_count() > 0);
        requests.insert(task, Arc::downgrade(&data));
        Box::pin(tokio::time::sleep(self.head_timeout))
    }

    fn drop(&self, store: Store<GatewayState>, result: wasmtime::Result<()>) {
        // The end of the process drops instances where they stand: that is no loss to report.
        if let Err(error) = result
            && !self.draining.load(Ordering::Relaxed)
        {
            tracing::error!(error = format!("{error:#}"), "a gateway instance is lost");
            metrics::counter!("weir_gateway_instances_lost_total").increment(1);
        }
        drop(store);
    }
}

/// Wraps any body as the gateway takes it.
pub fn request_body<B>(body: B) -> WasiBody
where
    B: Body<Data = Bytes, Error = wasmtime_wasi_http::Error> + Send + 'static,
{
    use http_body_util::BodyExt;
    body.boxed_unsync()
}

pub use wasmtime::Error as HandleError;
pub use wasmtime_wasi_http::Error as BodyError;

/// Whether `handle` failed because the instance trapped, so that the same request may well succeed.
pub fn is_lost_instance(error: &wasmtime::Error) -> bool {
    error.is::<wasmtime_wasi_http::handler::TrapOrPanicError>()
}

/// Whether `handle` failed because no answer came in time.
pub fn is_timeout(error: &wasmtime::Error) -> bool {
    error.is::<wasmtime_wasi_http::handler::ExpirationError>()
}
