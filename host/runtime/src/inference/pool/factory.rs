//! The factory of infer instances.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Store, StoreLimits};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use weir_nn::{GraphAccess, NnCtx, NnView, Registry};

use super::PoolConfig;
use crate::bindings::infer::InferExportsPre;
use crate::components::engine::Host;
use crate::components::guest_log::GuestLog;
use crate::components::limits::limits;

/// Creates the instances of replicas; cheap to clone.
#[derive(Clone)]
pub(crate) struct InferFactory {
    pub(crate) host: Host,
    pub(crate) pre: InferExportsPre<InferState>,
    pub(crate) registry: Arc<Registry>,
}

impl InferFactory {
    /// Links the infer component once for all replicas.
    pub(crate) fn new(host: &Host, component: &Component, registry: Arc<Registry>) -> wasmtime::Result<Self> {
        let mut linker = Linker::<InferState>::new(host.engine());
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        weir_nn::add_to_linker(&mut linker, |state: &mut InferState| NnView {
            ctx: &mut state.nn,
            table: &mut state.table,
        })?;
        let pre = InferExportsPre::new(linker.instantiate_pre(component)?)?;
        Ok(Self { host: host.clone(), pre, registry })
    }

    /// Creates a store for an instance of a model. The completed computations of the engine are counted in `computed`.
    pub(super) fn store(&self, pool: &PoolConfig, computed: Arc<AtomicU64>) -> wasmtime::Result<Store<InferState>> {
        let name = &pool.name;
        let mut wasi = WasiCtx::builder();
        wasi.stderr(GuestLog::built_in("infer", name)).envs(&pool.environment);
        wasi.preopened_dir(&pool.path, format!("/models/{name}"), FsPerms::ReadOnly)?;
        let state = InferState {
            table: ResourceTable::new(),
            wasi: wasi.build(),
            nn: NnCtx::new(self.registry.clone(), GraphAccess::only([name.clone()])).counting(computed),
            limits: limits(pool.memory_bytes_max),
        };
        let mut store = Store::new(self.host.engine(), state);
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(store)
    }
}

/// The data of an infer instance's store.
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
