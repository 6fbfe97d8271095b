//! Starts the gateway.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use wasmtime::component::Component;
use weir_config::{AuthMode, Config};
use weir_events::Store;

use crate::components::code;
use crate::components::engine::Host;
use crate::components::gateway::Gateway;
use crate::components::gateway::state::{GatewayConfig, GatewayFactory};
use crate::components::steps::{Steps, StepsConfig};
use crate::generation::Generations;
use crate::inference::call::CallOpener;
use crate::start::guest_env::{self, KEYS_DIR, PIPELINES_DIR};
use crate::start::{Builtin, StartError, component_source};

/// The time after the gateway's own limits until the host stops waiting for a response: the component answers 408 and
/// 504 itself unless it hangs.
const HEAD_TIMEOUT_MARGIN_MS: u64 = 5_000;

/// Loads the component.
pub(crate) fn load(config: &Config, builtin: Builtin, host: &Host) -> Result<Component, StartError> {
    let source = component_source("gateway", &config.gateway.component, builtin.gateway)?;
    Ok(code::load(host.engine(), &source)?)
}

/// Starts the gateway with its component.
pub(crate) fn start(
    config: &Config,
    component: &Component,
    host: &Host,
    (calls, generations): (&CallOpener, &Generations),
    events: &Store,
    draining: &Arc<AtomicBool>,
) -> Result<Gateway, StartError> {
    let mut environment = guest_env::gateway(config);
    // A component that is composed with its own infer component sends no items to the pools.
    if component.component_type().imports(host.engine()).any(|(name, _)| name.starts_with("weir:stream/infer@")) {
        let (name, value) = guest_env::DEADLINES;
        environment.push((name.to_owned(), value.to_owned()));
    }
    let steps = Steps::new(host, steps_config(config)?).map_err(|error| StartError::Link("step", error))?;
    let gateway = GatewayConfig {
        instance_requests_max: config.gateway.instance_requests_max as usize,
        instances_max: config.http.requests_max.div_ceil(config.gateway.instance_requests_max) as usize,
        memory_bytes_max: config.gateway.memory_bytes_max,
        body_bytes_max: config.gateway.body_bytes_max,
        stateful_memory_bytes_max: config.gateway.keeper_memory_bytes_max,
        stateful_body_bytes_max: config.gateway.keeper_body_bytes_max,
        client_share_percent: config.http.client_share_percent,
        idle_timeout: Duration::from_millis(config.gateway.idle_timeout_ms),
        head_timeout: Duration::from_millis(
            config
                .http
                .body_timeout_ms
                .saturating_add(config.http.request_timeout_ms)
                .saturating_add(HEAD_TIMEOUT_MARGIN_MS),
        ),
        request_timeout: Duration::from_millis(config.http.request_timeout_ms),
        environment,
        folders: folders(config)?,
        http_allow: config.pipelines.http_allow.clone(),
    };
    let calls = (calls.clone(), generations.clone());
    let (events, draining) = (events.clone(), draining.clone());
    let factory = GatewayFactory::new(host, component, gateway, calls, events, steps, draining);
    Ok(Gateway::start(factory.map_err(|error| StartError::Link("gateway", error))?))
}

/// The folders that instances see, and their paths in the instance.
fn folders(config: &Config) -> Result<Vec<(PathBuf, &'static str)>, StartError> {
    let mut folders = Vec::new();
    if config.auth.mode == AuthMode::Required {
        folders.push((folder("auth.dir", &config.auth.dir)?, KEYS_DIR));
    }
    if !config.pipelines.dir.as_os_str().is_empty() {
        folders.push((folder("pipelines.dir", &config.pipelines.dir)?, PIPELINES_DIR));
    }
    Ok(folders)
}

fn folder(key: &str, dir: &Path) -> Result<PathBuf, StartError> {
    match dir.is_dir() {
        true => Ok(dir.to_path_buf()),
        false => Err(StartError::Config(format!("{key} {} is not a folder", dir.display()))),
    }
}

fn steps_config(config: &Config) -> Result<StepsConfig, StartError> {
    let pipelines = &config.pipelines;
    Ok(StepsConfig {
        files: pipelines.named_steps().map_err(StartError::Config)?,
        memory_bytes_max: pipelines.step_memory_bytes_max,
        deadline_ms_max: pipelines.step_deadline_ms_max,
        calls_max: pipelines.step_calls_max as usize,
    })
}
