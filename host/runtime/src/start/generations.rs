//! Starts an instance of the generate component for each language model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weir_config::{Config, Generate};

use crate::components::code;
use crate::components::engine::Host;
use crate::generation::engine::Load;
use crate::generation::gguf::{self, GgufBounds};
use crate::generation::{GenerateFactory, Generations, PoolBounds};
use crate::start::{Builtin, StartError, component_source, guest_env, models};

/// Starts the instances. Models load in the background.
pub(crate) fn start(config: &Config, builtin: Builtin, host: &Host) -> Result<Generations, StartError> {
    let models = models::language_models(config)?;
    if models.is_empty() {
        return Ok(Generations::default());
    }
    let generate = &config.generate;
    let source = component_source("generate", &generate.component, builtin.generate)?;
    let component = code::load(host.engine(), &source)?;
    let environment = guest_env::generate(config);
    let factory = GenerateFactory::new(host, &component, generate.memory_bytes_max, environment)
        .map_err(|error| StartError::Link("generate", error))?;
    let bounds = PoolBounds {
        requests_max: generate.running_max.saturating_add(generate.queue_requests_max) as usize,
        hang_timeout: Duration::from_millis(generate.hang_timeout_ms),
    };
    let models: BTreeMap<String, Load> = models.into_iter().map(|(name, path)| (name, load(config, path))).collect();
    Generations::start(models, &factory, bounds).map_err(StartError::Threads)
}

fn load(config: &Config, path: PathBuf) -> Load {
    let Generate { threads, cache_tokens_max, running_max, .. } = config.generate;
    let bounds = GgufBounds { threads, cache_tokens_max, running_max };
    Arc::new(move || gguf::load(&path, bounds))
}
