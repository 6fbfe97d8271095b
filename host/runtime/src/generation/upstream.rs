//! Instances of the upstream component. Each has one server, which its environment names, and the host adds the key to its requests.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use wasmtime::Store;
use wasmtime::component::Component;
use wasmtime_wasi::WasiCtx;
use weir_wasi::StoreData;

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
    pre: GenerateExportsPre<StoreData>,
    memory_bytes_max: u64,
}

/// One upstream, for [`super::Generations::start`].
pub(crate) struct UpstreamSource {
    pub(crate) factory: UpstreamFactory,
    pub(crate) name: String,
    /// Names of its models; one that ends in `*` stands for all names with the same beginning.
    pub(crate) models: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) requests: UpstreamRequests,
    /// The most requests at once, the queued ones included.
    pub(crate) requests_max: usize,
    /// The number of frames of its responses, from which hangs are detected.
    pub(crate) progress: Arc<AtomicU64>,
}

/// Makes the instances of one upstream.
pub(super) struct UpstreamInstances {
    factory: UpstreamFactory,
    name: String,
    environment: Vec<(String, String)>,
    requests: UpstreamRequests,
}

impl UpstreamFactory {
    /// Links a component once for all upstreams that use it.
    pub(crate) fn new(host: &Host, component: &Component, memory_bytes_max: u64) -> wasmtime::Result<Self> {
        let linker = weir_wasi::linker_with_http(host.engine())?;
        let pre = GenerateExportsPre::new(linker.instantiate_pre(component)?)?;
        Ok(Self { host: host.clone(), pre, memory_bytes_max })
    }
}

impl UpstreamSource {
    pub(super) fn instances(&self) -> UpstreamInstances {
        UpstreamInstances {
            factory: self.factory.clone(),
            name: self.name.clone(),
            environment: self.environment.clone(),
            requests: self.requests.clone(),
        }
    }
}

impl InstanceSource for UpstreamInstances {
    fn host(&self) -> &Host {
        &self.factory.host
    }

    fn pre(&self) -> &GenerateExportsPre<StoreData> {
        &self.factory.pre
    }

    fn store(&self) -> Store<StoreData> {
        let mut wasi = WasiCtx::builder();
        wasi.stderr(GuestLog::built_in("upstream", &self.name)).envs(&self.environment);
        let data = StoreData::new(wasi.build(), limits(self.factory.memory_bytes_max), ());
        weir_wasi::store(self.factory.host.engine(), data.with_requests(self.requests.clone()))
    }
}
