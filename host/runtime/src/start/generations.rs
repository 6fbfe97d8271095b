//! Starts an instance of the generate component for each language model, and one of the upstream component for each upstream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use weir_config::{Config, Generate};

use crate::components::code;
use crate::components::engine::Host;
use crate::generation::engine::Load;
use crate::generation::gguf::{self, GgufBounds};
use crate::generation::upstream::{UpstreamFactory, UpstreamSource};
use crate::generation::upstream_requests::UpstreamRequests;
use crate::generation::{GenerateFactory, Generations, PoolBounds};
use crate::start::{Builtin, StartError, component_source, guest_env, models};

/// Memory of one instance of the upstream component, bytes.
const UPSTREAM_MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Added to the time in which every attempt at an upstream has ended, before its instance counts as hung, ms.
const UPSTREAM_MARGIN_MS: u64 = 60_000;

/// Starts the instances. Models load in the background.
pub(crate) fn start(config: &Config, builtin: Builtin, host: &Host) -> Result<Generations, StartError> {
    let generations = start_models(config, builtin, host)?;
    start_upstreams(generations, config, builtin, host)
}

fn start_models(config: &Config, builtin: Builtin, host: &Host) -> Result<Generations, StartError> {
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

fn start_upstreams(
    generations: Generations,
    config: &Config,
    builtin: Builtin,
    host: &Host,
) -> Result<Generations, StartError> {
    if config.upstream.is_empty() {
        return Ok(generations);
    }
    // Upstreams of the same component share its code.
    let mut factories: BTreeMap<&Path, UpstreamFactory> = BTreeMap::new();
    let mut sources = Vec::new();
    for upstream in &config.upstream {
        let factory = match factories.get(upstream.component.as_path()) {
            Some(factory) => factory.clone(),
            None => {
                let source = component_source("upstream", &upstream.component, builtin.upstream)?;
                let component = code::load(host.engine(), &source)?;
                let factory = UpstreamFactory::new(host, &component, UPSTREAM_MEMORY_BYTES_MAX)
                    .map_err(|error| StartError::Link("upstream", error))?;
                factories.entry(&upstream.component).or_insert(factory).clone()
            }
        };
        sources.push(upstream_source(upstream, factory)?);
    }
    let silence_ms = |upstream: &weir_config::Upstream| {
        let attempt_ms = upstream.connect_timeout_ms.saturating_add(upstream.idle_timeout_ms.saturating_mul(2));
        attempt_ms.saturating_mul(upstream.retry_max_attempts.into())
    };
    let silence_ms = config.upstream.iter().map(silence_ms).max().unwrap_or_default();
    let hang_timeout = Duration::from_millis(silence_ms.saturating_add(UPSTREAM_MARGIN_MS));
    generations.with_upstreams(sources, hang_timeout).map_err(StartError::Threads)
}

fn upstream_source(upstream: &weir_config::Upstream, factory: UpstreamFactory) -> Result<UpstreamSource, StartError> {
    let progress = Arc::<AtomicU64>::default();
    let variable = |name: &str| std::env::var(name).ok();
    let requests = UpstreamRequests::new(upstream, progress.clone(), variable).map_err(StartError::Config)?;
    Ok(UpstreamSource {
        factory,
        name: upstream.name.clone(),
        models: upstream.alias_names().map(str::to_owned).chain(upstream.models.iter().cloned()).collect(),
        environment: guest_env::upstream(upstream),
        requests,
        requests_max: upstream.running_max as usize,
        progress,
    })
}

fn load(config: &Config, path: PathBuf) -> Load {
    let Generate { threads, cache_tokens_max, running_max, .. } = config.generate;
    let bounds = GgufBounds { threads, cache_tokens_max, running_max };
    Arc::new(move || gguf::load(&path, bounds))
}
