//! Instances of the upstream component: each has one server, its environment names it, and its requests get the key on their way out.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Store, StoreLimits};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::instance::InstanceSource;
use super::upstream_requests::UpstreamRequests;
use crate::bindings::generate::GenerateExportsPre;
use crate::components::engine::Host;
use crate::components::guest_log::GuestLog;
use crate::components::limits::limits;

/// Makes the instances of all upstreams; cheap to clone.
#[derive(Clone)]
pub(crate) struct UpstreamFactory {
    host: Host,
    pre: GenerateExportsPre<UpstreamState>,
    memory_bytes_max: u64,
}

/// One upstream, for [`super::Generations::start`].
pub(crate) struct UpstreamSource {
    pub(crate) name: String,
    /// The models that it has; with `*` as the last character all names with the part before it.
    pub(crate) models: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) requests: UpstreamRequests,
    /// Requests at once.
    pub(crate) requests_max: usize,
    /// Counts the frames of its responses.
    pub(crate) progress: Arc<AtomicU64>,
}

/// Makes the instances of one upstream.
pub(super) struct UpstreamInstances {
    factory: UpstreamFactory,
    name: String,
    environment: Vec<(String, String)>,
    requests: UpstreamRequests,
}

/// The data of an instance's store.
pub(crate) struct UpstreamState {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    requests: UpstreamRequests,
    limits: StoreLimits,
}

impl WasiView for UpstreamState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for UpstreamState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.requests }
    }
}

impl UpstreamFactory {
    /// Links the component once for all upstreams.
    pub(crate) fn new(host: &Host, component: &Component, memory_bytes_max: u64) -> wasmtime::Result<Self> {
        let mut linker = Linker::<UpstreamState>::new(host.engine());
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        let pre = GenerateExportsPre::new(linker.instantiate_pre(component)?)?;
        Ok(Self { host: host.clone(), pre, memory_bytes_max })
    }

    pub(super) fn instances(&self, source: &UpstreamSource) -> UpstreamInstances {
        UpstreamInstances {
            factory: self.clone(),
            name: source.name.clone(),
            environment: source.environment.clone(),
            requests: source.requests.clone(),
        }
    }
}

impl InstanceSource for UpstreamInstances {
    type State = UpstreamState;

    fn host(&self) -> &Host {
        &self.factory.host
    }

    fn pre(&self) -> &GenerateExportsPre<UpstreamState> {
        &self.factory.pre
    }

    fn store(&self) -> Store<UpstreamState> {
        let mut wasi = WasiCtx::builder();
        wasi.stderr(GuestLog::built_in("upstream", &self.name)).envs(&self.environment);
        let state = UpstreamState {
            table: ResourceTable::new(),
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            requests: self.requests.clone(),
            limits: limits(self.factory.memory_bytes_max),
        };
        let mut store = Store::new(self.factory.host.engine(), state);
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        store
    }
}
