//! Text generation: the calls of gateway instances, and for each language model one instance of the generate component
//! that serves all calls.
//!
//! - `call`: one caller's pair of streams, commands in and events out.
//! - `backends`: the pools that have a model: the local one, then upstreams.
//! - `pool`: the generations of a model or an upstream: their ids on the merged stream, and the routes of their events to the callers.
//! - `instance`: the thread and the store of the instance; an instance that traps is replaced, and its requests fail.
//! - `upstream`: instances of the upstream component; `upstream_requests`: their HTTP requests, to which the host adds the key;
//!   `upstream_connections`: the connections of these requests.
//! - `lm`: the interface `weir:stream/lm` for the instance, over an `engine`; `gguf`: the engine for GGUF files.

mod backends;
mod call;
pub(crate) mod engine;
pub(crate) mod gguf;
pub(crate) mod instance;
pub(crate) mod lm;
mod metrics;
mod pool;
#[cfg(test)]
mod tests;
pub(crate) mod upstream;
mod upstream_connections;
pub(crate) mod upstream_requests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::OnceCell;

use self::backends::{Backends, UpstreamBackend};
pub(crate) use self::call::GenerationHandle;
pub use self::call::{CallAbandoned, CommandSender, EventReceiver};
use self::engine::Load;
pub(crate) use self::instance::GenerateFactory;
use self::lm::ServedModel;
use self::pool::ModelPool;
use self::upstream::UpstreamSource;
use crate::bindings::generate_types::GenerateModel;

/// The language models that are served; opens calls. Cheap to clone.
#[derive(Clone, Default)]
pub struct Generations(Arc<Backends>);

/// Bounds of each model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolBounds {
    /// Most requests at once, queued ones included.
    pub(crate) requests_max: usize,
    pub(crate) hang_timeout: Duration,
}

impl Generations {
    /// Starts an instance for each model, given by name and loader. The models load in the background.
    pub(crate) fn start(
        models: BTreeMap<String, Load>,
        factory: &GenerateFactory,
        bounds: PoolBounds,
    ) -> std::io::Result<Self> {
        let mut backends = Backends::default();
        for (name, load) in models {
            let steps = Arc::<AtomicU64>::default();
            let pool = ModelPool::new(name.clone(), steps.clone(), bounds.requests_max, false);
            let (metrics, engine) = (pool.metrics().clone(), Arc::new(OnceCell::new()));
            let model = ServedModel { name: name.clone(), load, engine, metrics, steps };
            instance::start(pool.clone(), factory.instances(model), bounds.hang_timeout)?;
            backends.local.insert(name, pool);
        }
        Ok(Self(Arc::new(backends)))
    }

    /// Starts an instance for each upstream, in the order of preference.
    pub(crate) fn with_upstreams(self, sources: Vec<UpstreamSource>, hang_timeout: Duration) -> std::io::Result<Self> {
        let mut backends = Arc::into_inner(self.0).expect("no call is open before the start has ended");
        for source in sources {
            let pool = ModelPool::new(source.name.clone(), source.progress.clone(), source.requests_max, true);
            instance::start(pool.clone(), source.instances(), hang_timeout)?;
            backends.upstreams.push(UpstreamBackend { models: source.models, pool });
        }
        Ok(Self(Arc::new(backends)))
    }

    /// Opens a call: a sender of commands and the stream of events.
    pub fn open(&self) -> (CommandSender, EventReceiver) {
        self.open_for(0)
    }

    /// Opens a call for one of several owners: a sender of commands and the stream of events.
    pub(crate) fn open_for(&self, owner: u64) -> (CommandSender, EventReceiver) {
        call::open(self.0.clone(), owner)
    }

    /// The models, ordered by name.
    pub fn models(&self) -> Vec<GenerateModel> {
        self.0.models()
    }

    /// Resolves when a model is ready; `None` when no language model has this name.
    pub(crate) async fn settled(&self, name: &str) -> Option<Result<(), String>> {
        Some(self.0.first(name)?.settled().await)
    }

    /// Updates the gauges, before they are rendered.
    pub(crate) fn report(&self) {
        self.0.pools().for_each(|pool| pool.report());
    }

    /// Ends the instances.
    pub(crate) fn stop(&self) {
        self.0.pools().for_each(|pool| pool.stop());
    }
}
