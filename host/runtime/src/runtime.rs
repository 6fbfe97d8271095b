//! The native host as one value: models with their replicas, the channel store, and the gateway.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use wasmtime::component::Component;
use weir_config::Config;
use weir_events::Store;

use crate::bindings::generate_types::GenerateModel;
use crate::components::adapter::Adapters;
use crate::components::engine::Host;
use crate::components::gateway::Gateway;
use crate::generation::Generations;
use crate::inference::call::{CallOpener, Pools};
use crate::inference::pool::PoolStats;
use crate::start::{Builtin, StartError, event_store, gateway, generations, pools};
use crate::types::ModelInfo;

/// The native host.
pub struct Runtime {
    _host: Host,
    calls: CallOpener,
    generations: Generations,
    adapters: Adapters,
    serving: Option<ServerParts>,
    draining: Arc<AtomicBool>,
}

/// The additional parts of a runtime that serves requests.
struct ServerParts {
    gateway: Gateway,
    events: Store,
}

impl Runtime {
    /// Starts the replicas of every configured model, without gateway and channel store. Models load in the background;
    /// [`Runtime::settled`] waits for them.
    ///
    /// # Errors
    ///
    /// A component, or a model's files, cannot be used.
    pub fn start(config: &Config, builtin: Builtin) -> Result<Self, StartError> {
        Self::start_with(config, builtin, None)
    }

    /// As [`Runtime::start`], with the channel store and the gateway. Redis may be unreachable at the start.
    ///
    /// # Errors
    ///
    /// As [`Runtime::start`]; or the store cannot be opened.
    pub async fn serve(config: &Config, builtin: Builtin) -> Result<Self, StartError> {
        let events = event_store::open(&config.events).await?;
        Self::start_with(config, builtin, Some(events))
    }

    fn start_with(config: &Config, builtin: Builtin, events: Option<Store>) -> Result<Self, StartError> {
        let host = Host::new().map_err(StartError::Engines)?;
        let draining = Arc::new(AtomicBool::new(false));
        let (pools, gateway_component) = start_pools(config, builtin, &host, events.is_some())?;
        let calls = CallOpener::new(Arc::new(pools), config.infer.call_items_max as usize);
        let generations = generations::start(config, builtin, &host)?;
        let hang_timeout = Duration::from_millis(config.infer.hang_timeout_ms);
        let adapters = Adapters::new(&host, &calls, builtin, config.gateway.memory_bytes_max, hang_timeout);
        let serving = match events.zip(gateway_component) {
            Some((events, component)) => {
                let parts = (&calls, &generations);
                let gateway = gateway::start(config, &component, &host, parts, &events, &draining)?;
                Some(ServerParts { gateway, events })
            }
            None => None,
        };
        Ok(Self { _host: host, calls, generations, adapters, serving, draining })
    }

    /// The opener of inference calls.
    pub fn call(&self) -> &CallOpener {
        &self.calls
    }

    /// The language models; opens calls that generate text.
    pub fn generations(&self) -> &Generations {
        &self.generations
    }

    /// Adapter components, which share the models' queues with all other callers.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// The gateway; `None` unless this runtime serves.
    pub fn gateway(&self) -> Option<&Gateway> {
        self.serving.as_ref().map(|serving| &serving.gateway)
    }

    /// The channel store; `None` unless this runtime serves.
    pub fn events(&self) -> Option<&Store> {
        self.serving.as_ref().map(|serving| &serving.events)
    }

    /// The models and their current state, ordered by name.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.calls.pools().values().map(|pool| pool.info()).collect()
    }

    /// The language models and their current state, ordered by name.
    pub fn language_models(&self) -> Vec<GenerateModel> {
        self.generations.models()
    }

    /// The counters of a model's items; `None` when the model is not served.
    pub fn stats(&self, name: &str) -> Option<PoolStats> {
        self.calls.pools().get(name).map(|pool| pool.stats())
    }

    /// Whether an item waits in the queue of a model.
    pub fn has_waiting_items(&self) -> bool {
        self.calls.pools().values().any(|pool| pool.queue().depth().0 > 0)
    }

    /// Releases the items that a window holds back for a model. Returns their number.
    pub fn flush(&self, name: &str) -> usize {
        self.calls.pools().get(name).map_or(0, |pool| pool.flush())
    }

    /// Resolves when the model is ready: a replica has computed its first item.
    ///
    /// # Errors
    ///
    /// Why the model cannot answer.
    pub async fn settled(&self, name: &str) -> Result<(), String> {
        match self.calls.pools().get(name) {
            Some(pool) => pool.settled().await,
            None => match self.generations.settled(name).await {
                Some(settled) => settled,
                None => Err(format!("no model named `{name}` is served here")),
            },
        }
    }

    /// Reports every model as not ready from now on, and disconnects subscribers, whose streams would not end by
    /// themselves. Other requests in progress continue.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        if let Some(events) = self.events() {
            events.disconnect();
        }
    }

    /// Writes the unwritten events of the channel store and closes it.
    ///
    /// # Errors
    ///
    /// The last commit of the channel store failed: acknowledged events and state may be lost.
    pub async fn close(&self) -> Result<(), weir_events::Error> {
        match self.events() {
            Some(events) => events.close().await,
            None => Ok(()),
        }
    }

    /// Updates the gauges and the copied counters, before they are rendered.
    pub fn report(&self) {
        for pool in self.calls.pools().values() {
            pool.report();
        }
        self.generations.report();
        if let Some(events) = self.events() {
            event_store::report(events);
        }
    }
}

/// Starts the pools and, at the same time, loads the gateway's component: most of a start is decompressing components.
fn start_pools(
    config: &Config,
    builtin: Builtin,
    host: &Host,
    with_gateway: bool,
) -> Result<(Pools, Option<Component>), StartError> {
    let load = || gateway::load(config, builtin, host);
    thread::scope(|scope| {
        let spawn = || thread::Builder::new().name("weir-load".into()).spawn_scoped(scope, load);
        let thread = with_gateway.then(spawn).transpose().map_err(StartError::Threads)?;
        let pools = pools::start(config, builtin, host)?;
        let component = thread.map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).transpose()?;
        Ok((pools, component))
    })
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for pool in self.calls.pools().values() {
            pool.stop();
        }
        self.generations.stop();
    }
}
