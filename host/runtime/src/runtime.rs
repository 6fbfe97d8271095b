//! Everything together: models, replicas, the gateway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weir_config::{AuthMode, Config, EventsStore};
use weir_core::inference::breaker::BreakerConfig;
use weir_core::inference::queue::{Aggregation, DropPolicy, QueueConfig, Window};
use weir_core::inference::retry::{RetryBudgetConfig, RetryConfig, RetryPolicy};
use weir_events::{OpenError, Store};
use weir_nn::model::{ModelDir, ModelError, Task};
use weir_nn::{Engine as NnEngine, Registry, RegistryConfig};

use crate::inference::call::{Call, Pools};
use crate::start::event_store;
use crate::components::code::{self, ComponentError, Source};
use crate::components::engine::Host;
use crate::components::gateway::{Gateway, GatewayConfig, KEYS_DIR, PIPELINES_DIR};
use crate::inference::pool::{Machinery, Pool, PoolConfig, PoolStats};
use crate::inference::queue::QueueSettings;
use crate::components::steps::{Steps, StepsConfig};
use crate::types::{Failure, ModelInfo, ModelKind};

/// The components that this program was built with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Builtin {
    /// The gateway component's code, compiled ahead of time.
    pub gateway: Option<&'static [u8]>,
    /// The infer component's code, compiled ahead of time.
    pub infer: Option<&'static [u8]>,
}

/// Why the runtime cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A component cannot be used.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// A component asks for something that this host does not have, or lacks what it needs.
    #[error("the {0} component does not fit this host: {1:#}")]
    Link(&'static str, wasmtime::Error),
    /// A model cannot be used.
    #[error("model {name} cannot be used")]
    Model {
        /// The model's name.
        name: String,
        /// What is wrong with it.
        source: ModelError,
    },
    /// A name from the configuration has no folder.
    #[error("models.names has {name:?}, and {dir} has no such folder; it has {}", served(.names))]
    NoSuchModel {
        /// The name.
        name: String,
        /// The models that there are.
        names: Vec<String>,
        /// `models.dir`.
        dir: PathBuf,
    },
    /// The engine named in the configuration does not exist.
    #[error("model {name}: {message}")]
    Engine {
        /// The model's name.
        name: String,
        /// Which engines there are.
        message: String,
    },
    /// `models.dir` cannot be read.
    #[error("models.dir {dir} cannot be read")]
    ModelsDir {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// wasmtime cannot be set up.
    #[error("wasmtime cannot be set up: {0:#}")]
    Engines(wasmtime::Error),
    /// The channel store cannot be opened.
    #[error("the channel store cannot be opened")]
    Events(#[from] OpenError),
    /// `http.listen` is no address, or `auth.dir` no folder.
    #[error("{0}")]
    Config(String),
    /// No thread can be started.
    #[error("no thread can be started: {0}")]
    Threads(std::io::Error),
}

fn served(names: &[String]) -> String {
    if names.is_empty() { "no models".to_owned() } else { names.join(", ") }
}

/// The native host: models with their replicas, and the gateway.
pub struct Runtime {
    _host: Host,
    call: Call,
    serving: Option<Serving>,
    draining: Arc<AtomicBool>,
}

/// What only a runtime that serves has.
struct Serving {
    gateway: Gateway,
    events: Store,
}

impl Runtime {
    /// Starts the replicas of every configured model. Models load in the background; [`Runtime::settled`] waits for them.
    ///
    /// # Errors
    ///
    /// A component, or a model's files, cannot be used.
    pub fn start(config: &Config, builtin: Builtin) -> Result<Self, StartError> {
        Self::start_with(config, builtin, None)
    }

    /// The same with the channel store and the gateway.
    ///
    /// # Errors
    ///
    /// As [`Runtime::start`]; or the store cannot be opened. Redis need not be there yet.
    pub async fn serve(config: &Config, builtin: Builtin) -> Result<Self, StartError> {
        let events = event_store::open(&config.events).await?;
        Self::start_with(config, builtin, Some(events))
    }

    fn start_with(config: &Config, builtin: Builtin, events: Option<Store>) -> Result<Self, StartError> {
        let host = Host::new().map_err(StartError::Engines)?;
        let draining = Arc::new(AtomicBool::new(false));
        let pools = Arc::new(start_pools(config, builtin, &host)?);
        watch_pools(&pools).map_err(StartError::Threads)?;
        let call = Call::new(pools, config.infer.call_items_max as usize);
        let serving = match events {
            Some(events) => {
                let gateway = start_gateway(config, builtin, &host, &call, &events, &draining)?;
                Some(Serving { gateway, events })
            }
            None => None,
        };
        Ok(Self { _host: host, call, serving, draining })
    }

    /// Where calls are opened.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The gateway, when this runtime serves.
    pub fn gateway(&self) -> Option<&Gateway> {
        self.serving.as_ref().map(|serving| &serving.gateway)
    }

    /// The channel store, when this runtime serves.
    pub fn events(&self) -> Option<&Store> {
        self.serving.as_ref().map(|serving| &serving.events)
    }

    /// The models as they are now, in the order of their names.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.call.pools().values().map(|pool| pool.info()).collect()
    }

    /// What has become of a model's items so far; none when it is not served.
    pub fn stats(&self, name: &str) -> Option<PoolStats> {
        self.call.pools().get(name).map(|pool| pool.stats())
    }

    /// Lets what a window holds back for a model go now. Returns how many items that releases.
    pub fn flush(&self, name: &str) -> usize {
        self.call.pools().get(name).map_or(0, |pool| pool.flush())
    }

    /// Resolves when the model has answered its first item, or cannot, with the reason.
    pub async fn settled(&self, name: &str) -> Result<(), String> {
        match self.call.pools().get(name) {
            Some(pool) => pool.settled().await,
            None => Err(format!("no model named {name:?} is served here")),
        }
    }

    /// From now on every model says that it is not ready, and subscribers are sent away, for they would never be done; other
    /// work in progress goes on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        if let Some(events) = self.events() {
            events.disconnect();
        }
    }

    /// Writes what is to be written of the channels. Nothing can be published any more.
    ///
    /// # Errors
    ///
    /// The last commit of the channel store failed: events and state that were answered may be lost.
    pub async fn close(&self) -> Result<(), weir_events::Error> {
        match self.events() {
            Some(events) => events.close().await,
            None => Ok(()),
        }
    }

    /// Brings the gauges up to date, before they are read.
    pub fn report(&self) {
        for pool in self.call.pools().values() {
            pool.report();
        }
        if let Some(events) = self.events() {
            event_store::report(events);
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for pool in self.call.pools().values() {
            pool.stop();
        }
    }
}

/// A name that no other instance has: what this one acquires leases under.
fn instance_name() -> String {
    let half = |seed: u64| std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), seed);
    format!("{:016x}{:016x}-{}", half(0), half(1), std::process::id())
}

fn start_pools(config: &Config, builtin: Builtin, host: &Host) -> Result<Pools, StartError> {
    let models = models(config)?;
    let mut pools = Pools::new();
    if models.is_empty() {
        return Ok(pools);
    }
    let registry = Arc::new(Registry::new(RegistryConfig {
        tensor_bytes_max: usize::try_from(config.models.tensor_bytes_max).unwrap_or(usize::MAX),
        plans_max: config.models.plans_max as usize,
        ..RegistryConfig::default()
    }));
    let source = source("infer", &config.infer.component, builtin.infer)?;
    let component = code::load(host.engine(), &source)?;
    let machinery = Machinery::new(host.engine(), &component, registry.clone())
        .map_err(|error| StartError::Link("infer", error))?;
    for (name, model) in models {
        let dir = ModelDir::open(&model.path).map_err(|source| StartError::Model { name: name.clone(), source })?;
        let packed =
            Some(model.path.join("model_packed.onnx")).filter(|file| model.engine.prefers_packed() && file.is_file());
        let batches = batches(&config.infer, model.engine, packed.is_some());
        registry
            .insert_lazy(&name, packed.as_ref().unwrap_or(&model.path), model.engine)
            .map_err(|error| StartError::Model { name: name.clone(), source: error.into() })?;
        let pool = Pool::new(PoolConfig {
            info: info(&name, &dir),
            path: model.path,
            replicas: model.replicas,
            queue: queue_settings(&config.infer),
            memory_bytes_max: config.infer.memory_bytes_max,
            ahead_tokens: batches.ahead_tokens,
            environment: batches.environment,
            hang_timeout: Duration::from_millis(config.infer.hang_timeout_ms),
            name: name.clone(),
        });
        pool.start(&machinery).map_err(StartError::Threads)?;
        pools.insert(name, pool);
    }
    Ok(pools)
}

/// How batches are formed for a model.
struct Batches {
    ahead_tokens: u64,
    environment: Vec<(String, String)>,
}

fn batches(infer: &weir_config::Infer, engine: NnEngine, packed: bool) -> Batches {
    let tokens_max = match infer.batch_tokens_max {
        0 => engine.batch_tokens(),
        tokens_max => tokens_max,
    };
    let shapes = if engine.plans_shapes() { "bounded" } else { "any" };
    // Padded batches need a choice of lengths; packed ones only enough to fill up the next.
    let ahead = if packed { 1 } else { 4 };
    let environment = [
        ("WEIR_INFER_MAX_BATCH_SIZE", infer.max_batch_size.to_string()),
        ("WEIR_INFER_BATCH_TOKENS_MAX", tokens_max.to_string()),
        ("WEIR_INFER_BATCH_TIME_MS_MAX", infer.batch_time_ms_max.to_string()),
        ("WEIR_INFER_SHAPES", shapes.to_owned()),
    ];
    Batches {
        ahead_tokens: ahead * u64::from(tokens_max),
        environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
    }
}

/// When an item without a deadline is due.
const AGE_NS_MAX: u64 = 10_000_000_000;
/// What a call is served before the next has its turn.
const QUANTUM_TOKENS: u64 = 64;

fn queue_settings(infer: &weir_config::Infer) -> QueueSettings {
    let window = (infer.batching == weir_config::Batching::Windowed).then(|| Window {
        aggregation: match infer.aggregation {
            weir_config::Aggregation::TimeAndCount => Aggregation::TimeAndCount,
            weir_config::Aggregation::TimeOnly => Aggregation::TimeOnly,
            weir_config::Aggregation::CountOnly => Aggregation::CountOnly,
        },
        batch_size: infer.batch_size as usize,
        window_ns: u64::from(infer.window_ms) * 1_000_000,
    });
    QueueSettings {
        bounds: QueueConfig {
            items_max: infer.queue_items_max as usize,
            tokens_max: u64::from(infer.queue_tokens_max),
            owner_items_max: infer.caller_items_max as usize,
            quantum_tokens: QUANTUM_TOKENS,
            age_ns_max: AGE_NS_MAX,
            drop_policy: match infer.drop_policy {
                weir_config::DropPolicy::None => DropPolicy::None,
                weir_config::DropPolicy::Head => DropPolicy::Head,
                weir_config::DropPolicy::Tail => DropPolicy::Tail,
            },
            window,
        },
        retry: RetryConfig {
            max_attempts: infer.retry_max_attempts,
            base_backoff_ms: infer.retry_base_backoff_ms,
            policy: match infer.retry_policy {
                weir_config::RetryPolicy::NoRetry => RetryPolicy::NoRetry,
                weir_config::RetryPolicy::FixedDelay => RetryPolicy::FixedDelay,
                weir_config::RetryPolicy::ExponentialJitter => RetryPolicy::ExponentialJitter,
                weir_config::RetryPolicy::ExponentialDecorrelated => RetryPolicy::ExponentialDecorrelated,
            },
            ..RetryConfig::default()
        },
        budget: RetryBudgetConfig { ratio_percent: infer.retry_budget_percent, ..RetryBudgetConfig::default() },
        breaker: (infer.circuit_breaker == weir_config::Switch::On).then(|| BreakerConfig {
            failures_to_open: infer.circuit_failures,
            window_ns: infer.circuit_window_ms.saturating_mul(1_000_000),
            open_ns: infer.circuit_open_ms.saturating_mul(1_000_000),
            successes_to_close: infer.circuit_successes,
        }),
    }
}

/// How often the pools are looked after while there is something to look after, and while there is not.
const TICK: Duration = Duration::from_millis(5);
const IDLE_TICK: Duration = Duration::from_millis(50);

/// Looks after the pools until they are gone.
fn watch_pools(pools: &Arc<Pools>) -> std::io::Result<()> {
    let pools: Vec<_> = pools.values().map(Arc::downgrade).collect();
    let watch = move || {
        loop {
            let mut busy = false;
            let mut any = false;
            for pool in pools.iter().filter_map(std::sync::Weak::upgrade) {
                any = true;
                busy |= pool.tick();
            }
            if !any {
                return;
            }
            std::thread::sleep(if busy { TICK } else { IDLE_TICK });
        }
    };
    std::thread::Builder::new().name("weir-watch".into()).spawn(watch).map(drop)
}

fn start_gateway(
    config: &Config,
    builtin: Builtin,
    host: &Host,
    call: &Call,
    events: &Store,
    draining: &Arc<AtomicBool>,
) -> Result<Gateway, StartError> {
    let source = source("gateway", &config.gateway.component, builtin.gateway)?;
    let component = code::load(host.engine(), &source)?;
    let environment = [
        ("WEIR_HTTP_HOSTS", config.http.hosts.join(" ")),
        ("WEIR_HTTP_BODY_BYTES_MAX", config.http.body_bytes_max.to_string()),
        ("WEIR_HTTP_BODY_TIMEOUT_MS", config.http.body_timeout_ms.to_string()),
        ("WEIR_HTTP_REQUEST_TIMEOUT_MS", config.http.request_timeout_ms.to_string()),
        ("WEIR_STEPS_SENTIMENT", config.steps.sentiment.clone()),
        ("WEIR_STEPS_ENTITIES", config.steps.entities.clone()),
        ("WEIR_STEPS_SUMMARY", config.steps.summary.clone()),
        ("WEIR_EVENTS_HEARTBEAT_MS", config.events.heartbeat_ms.to_string()),
        ("WEIR_EVENTS_RETRY_MS", config.events.retry_ms.to_string()),
        // The edge of this process holds the connections of subscribers.
        ("WEIR_GRIP", "host".to_owned()),
        ("WEIR_EVENTS_EVENTS_MAX", config.events.events_max.to_string()),
        ("WEIR_EVENTS_BYTES_MAX", config.events.bytes_max.to_string()),
        ("WEIR_LEASE_MS", config.events.lease_ms.to_string()),
        ("WEIR_INSTANCE", instance_name()),
        // The file of `disk` and the memory of a process belong to one instance.
        ("WEIR_EVENTS_SHARED", (config.events.store == EventsStore::Redis).to_string()),
        ("WEIR_SESSIONS_LIVE_MAX", config.sessions.live_max.to_string()),
        ("WEIR_SESSIONS_MEMORY_BYTES_MAX", config.sessions.memory_bytes_max.to_string()),
        ("WEIR_SESSIONS_CHECKPOINT_MS", config.sessions.checkpoint_ms.to_string()),
        ("WEIR_SESSIONS_ENDED_TTL_MS", config.sessions.ended_ttl_ms.to_string()),
    ];
    let auth = auth(config)?;
    let pipelines = pipelines(config)?;
    let environment = environment
        .into_iter()
        .chain(auth.environment)
        .chain(pipelines.environment)
        .map(|(name, value)| (name.to_owned(), value));
    let gateway = GatewayConfig {
        instance_requests_max: config.gateway.instance_requests_max as usize,
        instances_max: config.http.requests_max.div_ceil(config.gateway.instance_requests_max) as usize,
        memory_bytes_max: config.gateway.memory_bytes_max,
        body_bytes_max: config.gateway.body_bytes_max,
        keeper_memory_bytes_max: config.gateway.keeper_memory_bytes_max,
        keeper_body_bytes_max: config.gateway.keeper_body_bytes_max,
        client_share_percent: config.http.client_share_percent,
        idle_timeout: Duration::from_millis(config.gateway.idle_timeout_ms),
        // The component answers 408 and 504 by itself; this is for one that is stuck.
        head_timeout: Duration::from_millis(config.http.body_timeout_ms + config.http.request_timeout_ms + 5_000),
        environment: environment.collect(),
        folders: auth.folder.into_iter().chain(pipelines.folder).collect(),
        http_allow: config.pipelines.http_allow.clone(),
    };
    let steps = Steps::new(host.engine(), steps_config(config)?).map_err(|error| StartError::Link("step", error))?;
    Gateway::new(host.engine(), &component, gateway, call.clone(), events.clone(), steps, draining.clone())
        .map_err(|error| StartError::Link("gateway", error))
}

/// What the gateway is told, with a folder and where it sees it.
struct Told {
    folder: Option<(PathBuf, &'static str)>,
    environment: Vec<(&'static str, String)>,
}

fn auth(config: &Config) -> Result<Told, StartError> {
    let auth = &config.auth;
    let required = auth.mode == AuthMode::Required;
    if required && !auth.dir.is_dir() {
        return Err(StartError::Config(format!("auth.dir {} is no folder", auth.dir.display())));
    }
    let flag = |yes: bool| if yes { "true" } else { "false" }.to_owned();
    let environment = vec![
        ("WEIR_AUTH_MODE", if required { "required" } else { "none" }.to_owned()),
        ("WEIR_AUTH_LOOPBACK", flag(is_loopback(&config.http.listen))),
        ("WEIR_AUTH_DIR", KEYS_DIR.to_owned()),
        ("WEIR_AUTH_ISSUERS", auth.issuers.join(" ")),
        ("WEIR_AUTH_AUDIENCES", auth.audiences.join(" ")),
        ("WEIR_AUTH_LEEWAY_S", auth.leeway_s.to_string()),
        ("WEIR_AUTH_TICKET_TTL_S", auth.ticket_ttl_s.to_string()),
        ("WEIR_AUTH_CORS_ORIGINS", auth.cors_origins.join(" ")),
        ("WEIR_AUTH_CORS_CREDENTIALS", flag(auth.cors_credentials)),
        ("WEIR_AUTH_REQUESTS_PER_S", auth.requests_per_s.to_string()),
        ("WEIR_AUTH_REQUESTS_BURST", auth.requests_burst.to_string()),
        ("WEIR_AUTH_PUBLISHES_PER_S", auth.publishes_per_s.to_string()),
        ("WEIR_AUTH_PUBLISHES_BURST", auth.publishes_burst.to_string()),
        ("WEIR_AUTH_CONNECTIONS_MAX", auth.connections_max.to_string()),
    ];
    Ok(Told { folder: required.then(|| (auth.dir.clone(), KEYS_DIR)), environment })
}

/// What the gateway is told of pipelines.
fn pipelines(config: &Config) -> Result<Told, StartError> {
    let pipelines = &config.pipelines;
    let folder = (!pipelines.dir.as_os_str().is_empty()).then(|| (pipelines.dir.clone(), PIPELINES_DIR));
    if let Some((dir, _)) = folder.as_ref().filter(|(dir, _)| !dir.is_dir()) {
        return Err(StartError::Config(format!("pipelines.dir {} is no folder", dir.display())));
    }
    let environment = vec![
        ("WEIR_PIPELINES_DIR", PIPELINES_DIR.to_owned()),
        ("WEIR_PIPELINES_EXECUTIONS_MAX", pipelines.executions_max.to_string()),
        ("WEIR_PIPELINES_USER_EXECUTIONS_MAX", pipelines.user_executions_max.to_string()),
        ("WEIR_PIPELINES_INPUT_BYTES_MAX", pipelines.input_bytes_max.to_string()),
        ("WEIR_PIPELINES_OUTPUT_BYTES_MAX", pipelines.output_bytes_max.to_string()),
        ("WEIR_PIPELINES_OUTPUTS_BYTES_MAX", pipelines.outputs_bytes_max.to_string()),
        ("WEIR_PIPELINES_TTL_MS", pipelines.ttl_ms.to_string()),
        ("WEIR_PIPELINES_HTTP_ALLOW", pipelines.http_allow.join(" ")),
    ];
    Ok(Told { folder, environment })
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

/// Whether only this machine reaches an address. A name counts as what it is, `localhost` or not; it is not looked up.
fn is_loopback(listen: &str) -> bool {
    match listen.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().to_canonical().is_loopback(),
        Err(_) => listen.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
    }
}

fn source(name: &'static str, file: &Path, builtin: Option<&'static [u8]>) -> Result<Source, ComponentError> {
    match builtin {
        _ if !file.as_os_str().is_empty() => Ok(Source::File(file.to_path_buf())),
        Some(code) => Ok(Source::Builtin(code)),
        None => Err(ComponentError::Missing(name)),
    }
}

/// A model that the configuration asks for.
struct Wanted {
    path: PathBuf,
    engine: NnEngine,
    replicas: usize,
}

/// The models that the configuration asks for: those of `models.dir`, and `[model.NAME]` over them.
fn models(config: &Config) -> Result<BTreeMap<String, Wanted>, StartError> {
    let mut found: BTreeMap<String, weir_config::Model> = BTreeMap::new();
    for (name, path) in folders(config)? {
        found.insert(name, weir_config::Model { path, ..Default::default() });
    }
    for (name, model) in &config.model {
        found.insert(name.clone(), model.clone());
    }
    let wanted = found.into_iter().map(|(name, model)| {
        let engine = model.engine.as_deref().unwrap_or(&config.models.engine);
        let engine = NnEngine::from_str(engine)
            .map_err(|error| StartError::Engine { name: name.clone(), message: error.to_string() })?;
        let replicas = match model.replicas.unwrap_or(config.models.replicas) {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            replicas => replicas as usize,
        };
        Ok((name, Wanted { path: model.path, engine, replicas }))
    });
    wanted.collect()
}

fn folders(config: &Config) -> Result<Vec<(String, PathBuf)>, StartError> {
    let dir = &config.models.dir;
    if !config.models.names.is_empty() {
        let named = config.models.names.iter().map(|name| {
            let path = dir.join(name);
            if path.is_dir() {
                Ok((name.clone(), path))
            } else {
                let listed = weir_nn::model::list(dir).unwrap_or_default();
                let names = listed.into_iter().map(|listed| listed.name).collect();
                Err(StartError::NoSuchModel { name: name.clone(), names, dir: dir.clone() })
            }
        });
        return named.collect();
    }
    if dir.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let unreadable = |source| StartError::ModelsDir { dir: dir.clone(), source };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let Some(name) = name.filter(|name| !name.starts_with('.')) else { continue };
        if path.join("config.json").is_file() {
            folders.push((name, path));
        } else if path.join("model.onnx").is_file() {
            tracing::warn!(folder = %path.display(), "this folder has model.onnx and no config.json, and is not served");
        }
    }
    Ok(folders)
}

fn info(name: &str, dir: &ModelDir) -> ModelInfo {
    ModelInfo {
        name: name.into(),
        kind: match dir.task {
            Task::TextClassification => ModelKind::TextClassification,
            Task::TokenClassification => ModelKind::TokenClassification,
            Task::FeatureExtraction => ModelKind::FeatureExtraction,
        },
        labels: dir.labels.clone(),
        tokens_max: dir.tokens_max,
        ready: false,
    }
}

/// A failure in words.
pub fn failure_text(failure: &Failure) -> String {
    match failure {
        Failure::UnknownModel(name) => format!("no model named {name:?} is served here"),
        Failure::InvalidInput(text) | Failure::Unavailable(text) | Failure::Engine(text) | Failure::Other(text) => {
            text.clone()
        }
        Failure::TooLong(counts) => {
            format!("the text has {} tokens, and the model takes {}", counts.tokens, counts.tokens_max)
        }
        Failure::Overloaded(retry_after_ms) => format!("the queue is full; retry after {retry_after_ms} ms"),
        Failure::Throttled(retry_after_ms) => {
            format!("the caller has more than its share of the queue; retry after {retry_after_ms} ms")
        }
        Failure::CircuitOpen(retry_after_ms) => {
            format!("the model has failed too often of late; retry after {retry_after_ms} ms")
        }
        Failure::DeadlineExceeded => "the item waited past its deadline".into(),
    }
}

/// The word for a failure that programs read.
pub fn failure_code(failure: &Failure) -> &'static str {
    match failure {
        Failure::InvalidInput(_) => "invalid_input",
        Failure::UnknownModel(_) => "unknown_model",
        Failure::TooLong(_) => "too_long",
        Failure::Overloaded(_) => "overloaded",
        Failure::Throttled(_) => "throttled",
        Failure::CircuitOpen(_) => "circuit_open",
        Failure::Unavailable(_) => "model_unavailable",
        Failure::DeadlineExceeded => "deadline_exceeded",
        Failure::Engine(_) => "engine_failed",
        Failure::Other(_) => "inference_failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_reaches_loopback() {
        for listen in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "localhost:80"] {
            assert!(is_loopback(listen), "{listen}");
        }
        for listen in
            ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "example.org:80", "localhost.example.org:80", "localhost"]
        {
            assert!(!is_loopback(listen), "{listen}");
        }
    }
}
