//! Text generation: the calls of gateway instances, and for each language model one instance of the generate component
//! that serves all calls.
//!
//! - `call`: one caller's pair of streams, commands in and events out.
//! - `pool`: the generations of a model: their ids on the merged stream, and the routes of their events to the callers.
//! - `instance`: the thread and the store of the instance; an instance that traps is replaced, and its requests fail.
//! - `lm`: the import `weir:stream/lm` of the instance, over an `engine`; `gguf`: the engine for GGUF files.

mod call;
pub(crate) mod engine;
pub(crate) mod gguf;
pub(crate) mod instance;
pub(crate) mod lm;
mod metrics;
mod pool;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::call::GenerationHandle;
pub use self::call::{CallAbandoned, CommandSender, EventReceiver};
use self::engine::Load;
pub(crate) use self::instance::GenerateFactory;
use self::pool::ModelPool;
use crate::bindings::generate_types::GenerateModel;

/// The language models that are served; opens calls. Cheap to clone.
#[derive(Clone, Default)]
pub struct Generations {
    pools: Arc<BTreeMap<String, Arc<ModelPool>>>,
    tenants: Arc<std::hash::RandomState>,
}

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
        let mut pools = BTreeMap::new();
        for (name, load) in models {
            let pool = ModelPool::new(name.clone(), load, bounds.requests_max);
            instance::start(pool.clone(), factory.clone(), bounds.hang_timeout)?;
            pools.insert(name, pool);
        }
        Ok(Self { pools: Arc::new(pools), tenants: Arc::default() })
    }

    /// Opens a call: a sender of commands and the stream of events.
    pub fn open(&self) -> (CommandSender, EventReceiver) {
        self.open_for(0)
    }

    /// Opens a call for one of several owners: a sender of commands and the stream of events.
    pub(crate) fn open_for(&self, owner: u64) -> (CommandSender, EventReceiver) {
        call::open(self.pools.clone(), self.tenant(owner))
    }

    /// The upper half of the ids of an owner's generations. The hash is keyed per process, so that a client cannot
    /// choose an owner that has the tenant of another.
    fn tenant(&self, owner: u64) -> u32 {
        use std::hash::BuildHasher;
        (self.tenants.hash_one(owner) >> 32) as u32
    }

    /// The models, ordered by name.
    pub fn models(&self) -> Vec<GenerateModel> {
        self.pools.values().map(|pool| pool.info()).collect()
    }

    /// Resolves when a model is ready; `None` when no language model has this name.
    pub(crate) async fn settled(&self, name: &str) -> Option<Result<(), String>> {
        Some(self.pools.get(name)?.settled().await)
    }

    /// Updates the gauges, before they are rendered.
    pub(crate) fn report(&self) {
        self.pools.values().for_each(|pool| pool.report());
    }

    /// Ends the instances.
    pub(crate) fn stop(&self) {
        self.pools.values().for_each(|pool| pool.stop());
    }
}
