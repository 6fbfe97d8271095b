//! Instances of the gateway component behind `wasi:http/handler`. An instance serves many requests at once and is reused.

pub(crate) mod admission;
mod run;
mod scaled;
mod stateful;

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use wasmtime::component::{Accessor, Component, GuestTaskId, HasSelf, Linker, ResourceTable, StreamReader};
use wasmtime::{AsContextMut, Engine, Store, StoreLimits};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpView};
use weir_events::Store as EventStore;

use crate::bindings::gateway::GatewayHost;
use crate::bindings::gateway::weir::stream::infer::{Host, HostWithStore};
use crate::inference::call::{Abandon, Call, FromGuest, ToGuest};
use crate::components::guest_log::GuestLog;
use crate::components::gateway::admission::{InstanceBounds, Occupancy, RequestQueue, Reservation};
use crate::components::gateway::scaled::Front;
use crate::components::gateway::stateful::{self, Keeper};
use crate::components::limits::limits;
use crate::components::outgoing::Outgoing;
use crate::components::steps::Steps;
use crate::types::{Item, ModelInfo, Outcome};

/// A request for the gateway.
pub type Request = http::Request<WasiBody>;

/// The gateway's answer; its body counts as a request in progress until it ends or is dropped.
pub type Response = http::Response<CountedBody>;

/// How gateway instances are made.
#[derive(Debug, Clone)]
pub(crate) struct GatewayConfig {
    pub(crate) instance_requests_max: usize,
    /// Most instances in front.
    pub(crate) instances_max: usize,
    pub(crate) memory_bytes_max: u64,
    /// Bytes of request bodies that one instance in front has at once.
    pub(crate) body_bytes_max: u64,
    pub(crate) keeper_memory_bytes_max: u64,
    /// The same for the keeper.
    pub(crate) keeper_body_bytes_max: u64,
    /// Of the bytes of bodies in all instances, what one client may have.
    pub(crate) client_share_percent: u32,
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
    front: Front,
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
        let share = |bytes: u64| bytes.saturating_mul(u64::from(config.client_share_percent)) / 100;
        let front = InstanceBounds {
            requests_max: config.instance_requests_max,
            body_bytes_max: config.body_bytes_max,
            client_body_bytes_max: share(config.body_bytes_max.saturating_mul(config.instances_max as u64)),
        };
        let keeper = InstanceBounds {
            // Whoever accepts requests bounds them.
            requests_max: usize::MAX,
            body_bytes_max: config.keeper_body_bytes_max,
            client_body_bytes_max: share(config.keeper_body_bytes_max),
        };
        let maker = Arc::new(Maker { engine: engine.clone(), pre, config, call, events, steps, draining });
        let keeper = Keeper::start(maker.clone(), RequestQueue::new(keeper));
        Ok(Self { front: Front::new(maker, RequestQueue::new(front)), keeper })
    }

    /// Answers a request of a client, which has a share of each queue. [`BodyBytes`] among its extensions says what its body
    /// takes of an instance's memory. The caller bounds how many requests it has open; one that no instance has room for is
    /// refused.
    pub async fn handle(&self, mut request: Request, client: u64) -> wasmtime::Result<Response> {
        let body_bytes = body_bytes(&mut request);
        let open = Arc::new(OpenRequest::new(client));
        let response = match stateful::keeps(request.uri().path()) {
            true => self.keeper.handle(request, open.clone(), body_bytes).await?,
            false => self.front.handle(request, open.clone(), body_bytes).await?,
        };
        Ok(response.map(|body| CountedBody { body, open, has_ended: false }))
    }
}

/// One request, from its start until its answer's body has ended or nobody waits for it any more: then it no longer counts
/// among those of its instance, and the calls that it made are given up.
pub(crate) struct OpenRequest {
    /// Whose it is.
    pub(crate) client: u64,
    instance: OnceLock<Arc<Occupancy>>,
    reservation: OnceLock<Arc<Reservation>>,
    calls: Mutex<Vec<Abandon>>,
}

impl OpenRequest {
    pub(crate) fn new(client: u64) -> Self {
        Self { client, instance: OnceLock::new(), reservation: OnceLock::new(), calls: Mutex::default() }
    }

    /// Counts it among the requests of an instance.
    pub(crate) fn begin(&self, instance: Arc<Occupancy>, reservation: Arc<Reservation>) {
        instance.begin_request();
        let _ = self.reservation.set(reservation);
        let _ = self.instance.set(instance);
    }

    /// Whether an instance has it.
    pub(crate) fn is_taken(&self) -> bool {
        self.instance.get().is_some()
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.get() {
            instance.end_request();
        }
        for call in self.calls.get_mut().unwrap_or_else(PoisonError::into_inner) {
            call.now();
        }
    }
}

/// The body of an answer, which keeps its request counted. It ends with an error when its instance was lost before the guest
/// had written all of it.
pub struct CountedBody {
    body: WasiBody,
    open: Arc<OpenRequest>,
    has_ended: bool,
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() {
            self.has_ended = true;
            // The streams of an instance that is lost end with its store, and look as if the guest had ended them.
            if self.open.instance.get().is_some_and(|instance| instance.is_lost()) {
                return Poll::Ready(Some(Err(wasmtime_wasi_http::Error::HttpResponseIncomplete)));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // A body that seems to have ended may be one whose instance was lost: only `poll_frame` tells them apart.
        self.has_ended || (self.body.is_end_stream() && self.body.size_hint().exact() == Some(0))
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
    requests: HashMap<GuestTaskId, Weak<OpenRequest>>,
}

impl GatewayState {
    /// Ties a task of the guest to the request that it answers.
    pub(crate) fn add_request(&mut self, task: GuestTaskId, request: &Arc<OpenRequest>) {
        self.requests.retain(|_, request| request.strong_count() > 0);
        self.requests.insert(task, Arc::downgrade(request));
    }
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
            let owner = request.as_ref().map_or(0, |request| request.client);
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
    pub(crate) fn config(&self) -> &GatewayConfig {
        &self.config
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

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

/// What a request's body takes of an instance's memory at most: an extension of a request, for a host that knows how its
/// kind is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyBytes(pub u64);

/// What a body without an announced length takes of an instance's memory, when the host says nothing.
const UNKNOWN_BODY_BYTES: u64 = 256 << 10;

fn body_bytes(request: &mut Request) -> u64 {
    match request.extensions_mut().remove::<BodyBytes>() {
        Some(BodyBytes(bytes)) => bytes,
        None => request.body().size_hint().exact().unwrap_or(UNKNOWN_BODY_BYTES),
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

pub use crate::components::gateway::admission::AdmissionError;
pub use wasmtime::Error as HandleError;
pub use wasmtime_wasi_http::Error as BodyError;

/// Whether `handle` failed because the instance trapped, so that the same request may well succeed.
pub fn is_lost_instance(error: &wasmtime::Error) -> bool {
    error.is::<wasmtime_wasi_http::handler::TrapOrPanicError>()
}

/// Why no instance took a request, when that is why `handle` failed.
pub fn admission_error(error: &wasmtime::Error) -> Option<AdmissionError> {
    error.downcast_ref().copied()
}

/// Whether `handle` failed because no answer came in time.
pub fn is_timeout(error: &wasmtime::Error) -> bool {
    error.is::<wasmtime_wasi_http::handler::ExpirationError>()
}
