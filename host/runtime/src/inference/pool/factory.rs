//! The factory of infer instances.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use wasmtime::Store;
use wasmtime::component::{Component, ResourceTable};
use wasmtime_wasi::{FsPerms, WasiCtx};
use weir_nn::{GraphAccess, NnCtx, NnView, Registry};
use weir_wasi::StoreData;

use super::PoolConfig;
use crate::bindings::infer::InferExportsPre;
use crate::components::engine::Host;
use crate::components::guest_log::GuestLog;
use crate::components::limits::limits;

/// Creates the instances of replicas; cheap to clone.
#[derive(Clone)]
pub(crate) struct InferFactory {
    pub(crate) host: Host,
    pub(crate) pre: InferExportsPre<StoreData>,
    pub(crate) registry: Arc<Registry>,
}

impl InferFactory {
    /// Links the infer component once for all replicas.
    pub(crate) fn new(host: &Host, component: &Component, registry: Arc<Registry>) -> wasmtime::Result<Self> {
        let mut linker = weir_wasi::linker(host.engine())?;
        weir_nn::add_to_linker(&mut linker, |data: &mut StoreData| {
            let InferState { nn, table } = data.state();
            NnView { ctx: nn, table }
        })?;
        let pre = InferExportsPre::new(linker.instantiate_pre(component)?)?;
        Ok(Self { host: host.clone(), pre, registry })
    }

    /// Creates a store for an instance of a model. The completed computations of the engine are counted in `computed`.
    pub(super) fn store(&self, pool: &PoolConfig, computed: Arc<AtomicU64>) -> wasmtime::Result<Store<StoreData>> {
        let name = &pool.name;
        let mut wasi = WasiCtx::builder();
        wasi.stderr(GuestLog::built_in("infer", name)).envs(&pool.environment);
        wasi.preopened_dir(&pool.path, format!("/models/{name}"), FsPerms::ReadOnly)?;
        let nn = NnCtx::new(self.registry.clone(), GraphAccess::only([name.clone()])).counting(computed);
        let state = InferState { nn, table: ResourceTable::new() };
        let data = StoreData::new(wasi.build(), limits(pool.memory_bytes_max), state);
        Ok(weir_wasi::store(self.host.engine(), data))
    }
}

/// The state of an infer instance: `wasi:nn`, and the graphs, contexts and tensors that the instance has.
struct InferState {
    nn: NnCtx,
    table: ResourceTable,
}
