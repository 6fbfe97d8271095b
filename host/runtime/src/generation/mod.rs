//! Generation of text: the calls of gateway instances, and for each language model the one instance of the generate component that
//! serves them all.
//!
//! - `call`: one caller's pair of streams, commands in and events out.
//! - `pool`: the generations of a model: their ids on the merged stream, and the way of their events back to the callers.

mod call;
mod pool;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use self::call::{CommandSender, EventReceiver, GenerationHandle};
use self::pool::ModelPool;
use crate::bindings::generate_types::GenerateModel;

/// The language models that are served; opens calls. Cheap to clone.
#[derive(Clone, Default)]
pub struct Generations {
    pools: Arc<BTreeMap<String, Arc<ModelPool>>>,
    tenants: Arc<std::hash::RandomState>,
}

impl Generations {
    /// Opens a call for one of several owners: a sender of commands and the stream of events.
    pub(crate) fn open_for(&self, owner: u64) -> (CommandSender, EventReceiver) {
        call::open(self.pools.clone(), self.tenant(owner))
    }

    /// The upper half of the ids of an owner's generations. The hash has a key of this process, so that nobody can choose an owner
    /// whose tenant is that of another.
    fn tenant(&self, owner: u64) -> u32 {
        use std::hash::BuildHasher;
        (self.tenants.hash_one(owner) >> 32) as u32
    }

    /// The models, ordered by name.
    pub fn models(&self) -> Vec<GenerateModel> {
        self.pools.values().map(|pool| pool.info()).collect()
    }
}
