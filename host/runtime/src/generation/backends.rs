//! The pools that have a model: the local one of its name, then the upstreams with the model, in the order of the configuration.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::pool::ModelPool;
use crate::bindings::generate_types::GenerateModel;

/// The pools.
#[derive(Default)]
pub(super) struct Backends {
    pub(super) local: BTreeMap<String, Arc<ModelPool>>,
    pub(super) upstreams: Vec<UpstreamBackend>,
    /// A hasher with a random key, so that no client can collide with the tenant of another.
    tenants: RandomState,
}

/// A pool of an upstream.
pub(super) struct UpstreamBackend {
    /// Names; one that ends in `*` stands for all names with the same beginning.
    pub(super) models: Vec<String>,
    pub(super) pool: Arc<ModelPool>,
}

impl Backends {
    /// The pools that have a model, the first choice first.
    pub(super) fn of(&self, model: &str) -> VecDeque<Arc<ModelPool>> {
        let upstreams = self.upstreams.iter().filter(|upstream| upstream.has(model)).map(|upstream| &upstream.pool);
        self.local.get(model).into_iter().chain(upstreams).cloned().collect()
    }

    /// The models, ordered by name.
    pub(super) fn models(&self) -> Vec<GenerateModel> {
        let mut models: BTreeMap<String, GenerateModel> = BTreeMap::new();
        for (name, pool) in &self.local {
            models.insert(name.clone(), pool.info());
        }
        for upstream in &self.upstreams {
            let info = upstream.pool.info();
            for name in &upstream.models {
                let model = GenerateModel { name: name.clone(), context_tokens_max: None, ..info.clone() };
                let known = models.entry(name.clone()).or_insert_with(|| model.clone());
                if model.ready && !known.ready {
                    *known = GenerateModel { context_tokens_max: known.context_tokens_max, ..model };
                }
            }
        }
        models.into_values().collect()
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = &Arc<ModelPool>> {
        self.local.values().chain(self.upstreams.iter().map(|upstream| &upstream.pool))
    }

    /// The pool whose readiness is that of a model.
    pub(super) fn first(&self, model: &str) -> Option<&Arc<ModelPool>> {
        let upstream = || self.upstreams.iter().find(|upstream| upstream.has(model)).map(|upstream| &upstream.pool);
        self.local.get(model).or_else(upstream)
    }

    /// The upper half of the ids of the generations of an owner: a client, or one of several users of a caller.
    pub(super) fn tenant(&self, owner: (u64, u32)) -> u32 {
        (self.tenants.hash_one(owner) >> 32) as u32
    }
}

impl UpstreamBackend {
    fn has(&self, model: &str) -> bool {
        self.models.iter().any(|name| match name.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => name == model,
        })
    }
}
