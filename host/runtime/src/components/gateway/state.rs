//! The state of a gateway instance, and the factory of instances.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::{Component, GuestTaskId, HasSelf};
use wasmtime_wasi::{FsPerms, WasiCtx};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use weir_events::Store as EventStore;
use weir_wasi::StoreData;

use crate::bindings::gateway::GatewayHost;
use crate::components::engine::Host;
use crate::components::gateway::admission::OpenRequest;
use crate::components::guest_log::GuestLog;
use crate::components::limits::limits;
use crate::components::outgoing::HttpAllowList;
use crate::components::steps::Steps;
use crate::generation::Generations;
use crate::inference::call::CallOpener;

/// The configuration of gateway instances.
#[derive(Debug, Clone)]
pub(crate) struct GatewayConfig {
    pub(crate) instance_requests_max: usize,
    /// Most stateless instances.
    pub(crate) instances_max: usize,
    pub(crate) memory_bytes_max: u64,
    /// The most bytes of request bodies in one stateless instance.
    pub(crate) body_bytes_max: u64,
    pub(crate) stateful_memory_bytes_max: u64,
    /// The most bytes of request bodies in the stateful instance.
    pub(crate) stateful_body_bytes_max: u64,
    /// The share of one client in the bytes of request bodies in all instances, percent.
    pub(crate) client_share_percent: u32,
    pub(crate) idle_timeout: Duration,
    /// Time for the head of a response; the component has limits of its own below this.
    pub(crate) head_timeout: Duration,
    /// The time for a response that is not a stream.
    pub(crate) request_timeout: Duration,
    pub(crate) environment: Vec<(String, String)>,
    /// Folders, and the paths at which instances see them, read-only.
    pub(crate) folders: Vec<(PathBuf, &'static str)>,
    /// The authorities that the stateful instance may call.
    pub(crate) http_allow: Vec<String>,
}

/// The two kinds of gateway instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// One of several, started as needed; holds no state between requests.
    Stateless,
    /// The one instance that holds executions and stored sessions.
    Stateful,
}

impl Role {
    /// The name of the component in the log.
    fn log_name(self) -> &'static str {
        match self {
            Self::Stateless => "gateway",
            Self::Stateful => "stateful-gateway",
        }
    }
}

/// The environment variable of the stateful instance.
const STATEFUL_VARIABLE: (&str, &str) = ("WEIR_KEEPER", "1");

/// The state of a gateway instance.
pub(crate) struct GatewayState {
    pub(crate) calls: CallOpener,
    pub(crate) generations: Generations,
    pub(crate) events: EventStore,
    pub(crate) steps: Steps,
    draining: Arc<AtomicBool>,
    /// The requests of this instance, by the guest task that answers them; finished ones are removed when the next one
    /// comes.
    requests: HashMap<GuestTaskId, Weak<OpenRequest>>,
}

impl GatewayState {
    /// Records the request that a task of the guest answers.
    pub(crate) fn add_request(&mut self, task: GuestTaskId, request: &Arc<OpenRequest>) {
        self.requests.retain(|_, request| request.strong_count() > 0);
        self.requests.insert(task, Arc::downgrade(request));
    }

    /// The open request that a task of the guest answers.
    pub(crate) fn request_of(&self, task: GuestTaskId) -> Option<Arc<OpenRequest>> {
        self.requests.get(&task)?.upgrade()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Creates gateway instances.
pub(crate) struct GatewayFactory {
    host: Host,
    pre: ServicePre<StoreData>,
    config: GatewayConfig,
    calls: CallOpener,
    generations: Generations,
    events: EventStore,
    steps: Steps,
    draining: Arc<AtomicBool>,
}

impl GatewayFactory {
    /// Links the component once for all instances.
    pub(crate) fn new(
        host: &Host,
        component: &Component,
        config: GatewayConfig,
        (calls, generations): (CallOpener, Generations),
        events: EventStore,
        steps: Steps,
        draining: Arc<AtomicBool>,
    ) -> wasmtime::Result<Self> {
        let mut linker = weir_wasi::linker_with_http(host.engine())?;
        GatewayHost::add_to_linker::<_, HasSelf<GatewayState>>(&mut linker, StoreData::state)?;
        let pre = ServicePre::new(linker.instantiate_pre(component)?)?;
        Ok(Self { host: host.clone(), pre, config, calls, generations, events, steps, draining })
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn config(&self) -> &GatewayConfig {
        &self.config
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Creates an instance in a store of its own.
    pub(crate) async fn instantiate(&self, role: Role) -> wasmtime::Result<(Store<StoreData>, Service)> {
        let mut wasi = WasiCtx::builder();
        wasi.stderr(GuestLog::built_in(role.log_name(), "")).envs(&self.config.environment);
        // Only the stateful instance runs pipeline steps, so only it may call services.
        let (memory_bytes_max, http_allow) = match role {
            Role::Stateless => (self.config.memory_bytes_max, &[][..]),
            Role::Stateful => (self.config.stateful_memory_bytes_max, self.config.http_allow.as_slice()),
        };
        if role == Role::Stateful {
            let (name, value) = STATEFUL_VARIABLE;
            wasi.env(name, value);
        }
        for (folder, guest_path) in &self.config.folders {
            wasi.preopened_dir(folder, guest_path, FsPerms::ReadOnly)?;
        }
        let state = GatewayState {
            calls: self.calls.clone(),
            generations: self.generations.clone(),
            events: self.events.clone(),
            steps: self.steps.clone(),
            draining: self.draining.clone(),
            requests: HashMap::new(),
        };
        let data = StoreData::new(wasi.build(), limits(memory_bytes_max), state);
        let mut store = weir_wasi::store(self.host.engine(), data.with_requests(HttpAllowList::new(http_allow)));
        let service = self.host.run_guest(self.pre.instantiate_async(&mut store)).await?;
        Ok((store, service))
    }
}
