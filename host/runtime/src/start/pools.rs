//! Starts a pool of replicas for each model, and the thread that checks the pools.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use weir_config::{Config, Infer};
use weir_core::inference::breaker::BreakerConfig;
use weir_core::inference::queue::{Aggregation, DropPolicy, QueueConfig, Window};
use weir_core::inference::retry::{RetryBudgetConfig, RetryConfig, RetryPolicy};
use weir_nn::model::{ModelDir, Task};
use weir_nn::{Engine, LoadError, Registry, RegistryConfig, Selection};

use crate::components::code;
use crate::components::engine::Host;
use crate::inference::call::Pools;
use crate::inference::pool::{InferFactory, Pool, PoolConfig};
use crate::inference::queue::QueueSettings;
use crate::sleeper::Sleeper;
use crate::start::models::ModelSettings;
use crate::start::{Builtin, StartError, component_source, guest_env, models};
use crate::types::{ModelInfo, ModelKind};

/// Starts the pools. Models load in the background.
pub(crate) fn start(config: &Config, builtin: Builtin, host: &Host) -> Result<Pools, StartError> {
    let check_thread = Arc::<Sleeper>::default();
    let pools = start_pools(config, builtin, host, &check_thread)?;
    start_check_thread(&pools, check_thread).map_err(StartError::Threads)?;
    Ok(pools)
}

fn start_pools(
    config: &Config,
    builtin: Builtin,
    host: &Host,
    check_thread: &Arc<Sleeper>,
) -> Result<Pools, StartError> {
    let models = models::settings(config)?;
    let mut pools = Pools::new();
    if models.is_empty() {
        return Ok(pools);
    }
    let registry = Arc::new(Registry::new(RegistryConfig {
        tensor_bytes_max: usize::try_from(config.models.tensor_bytes_max).unwrap_or(usize::MAX),
        plans_max: config.models.plans_max as usize,
        tensorrt: Some(config.models.tensorrt.clone()).filter(|folder| !folder.as_os_str().is_empty()),
        isa: models::isa(config)?,
        ..RegistryConfig::default()
    }));
    let source = component_source("infer", &config.infer.component, builtin.infer)?;
    let component = code::load(host.engine(), &source)?;
    let factory =
        InferFactory::new(host, &component, registry.clone()).map_err(|error| StartError::Link("infer", error))?;
    let mut fallbacks = BTreeSet::new();
    for (name, model) in models {
        let dir = ModelDir::open(&model.path).map_err(|source| StartError::Model { name: name.clone(), source })?;
        let selection = select(&name, &model, &registry)
            .map_err(|error| StartError::Model { name: name.clone(), source: error.into() })?;
        let Selection { engine, device, .. } = selection;
        if let Some(reason) = selection.fallback
            && fallbacks.insert(reason.clone())
        {
            tracing::warn!(reason, "models.device is `auto`, and the CPU computes");
        }
        let tokens_max = match config.infer.batch_tokens_max {
            0 => device.batch_tokens(),
            tokens_max => tokens_max,
        };
        // Padded batches need items of different lengths to choose from; packed batches need only enough items for the
        // next batch.
        let batches_ahead = if selection.packed { 1 } else { 4 };
        let pool = Pool::new(PoolConfig {
            info: info(&name, &dir),
            path: model.path,
            replicas: if model.replicas == 0 { device.replicas() } else { model.replicas },
            queue: queue_settings(&config.infer, dir.tokens_max, check_thread),
            memory_bytes_max: config.infer.memory_bytes_max,
            batch_tokens_max: tokens_max,
            ahead_tokens: batches_ahead * u64::from(tokens_max),
            environment: guest_env::infer(config, engine.plans_shapes(device), tokens_max),
            hang_timeout: Duration::from_millis(config.infer.hang_timeout_ms),
            // Other engines compute graphs of which nothing is known, and may hang.
            may_borrow_threads: engine == Engine::Builtin,
            name: name.clone(),
        });
        pool.start(&factory).map_err(StartError::Threads)?;
        pools.insert(name, pool);
    }
    Ok(pools)
}

/// Selects the engine and the device of a model, and registers its graph.
fn select(name: &str, model: &ModelSettings, registry: &Registry) -> Result<Selection, LoadError> {
    let selection = Selection::of(&model.path, model.choices, registry.config())?;
    let Selection { engine, device, reason, .. } = &selection;
    tracing::debug!(model = name, %engine, %device, reason, "engine selected");
    registry.insert_selection(name, &selection)?;
    Ok(selection)
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
        reason: None,
    }
}

/// The time after which an item without a deadline is due.
const AGE_NS_MAX: u64 = 10_000_000_000;
/// Tokens of a call that are served before the next call has its turn.
const QUANTUM_TOKENS: u64 = 64;

fn queue_settings(infer: &Infer, text_tokens_max: u32, check_thread: &Arc<Sleeper>) -> QueueSettings {
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
        text_tokens_max: u64::from(text_tokens_max),
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
        check_thread: check_thread.clone(),
    }
}

/// The interval between checks of the pools while an item waits or is in flight, and the interval for a while after
/// that.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How long the pools are checked after they were busy, before the thread sleeps. Waking it for each of many single
/// items would cost more.
const IDLE_CHECK_DURATION: Duration = Duration::from_secs(1);

/// Starts a thread that checks the pools until they are dropped. While it sleeps, the next item wakes it.
fn start_check_thread(pools: &Pools, sleeper: Arc<Sleeper>) -> std::io::Result<()> {
    let pools: Vec<_> = pools.values().map(Arc::downgrade).collect();
    let check = move || {
        let mut busy_until = Instant::now() + IDLE_CHECK_DURATION;
        while let Some(is_busy) = tick(&pools) {
            let now = Instant::now();
            let mut interval = CHECK_INTERVAL;
            if is_busy {
                busy_until = now + IDLE_CHECK_DURATION;
            } else if now < busy_until {
                interval = IDLE_CHECK_INTERVAL;
            } else {
                sleeper.sleep_unless(|| tick(&pools).unwrap_or(true));
                busy_until = Instant::now() + IDLE_CHECK_DURATION;
            }
            std::thread::sleep(interval);
        }
    };
    std::thread::Builder::new().name("weir-watch".into()).spawn(check).map(drop)
}

/// Checks the pools; returns whether one is busy, or `None` when all are dropped.
fn tick(pools: &[Weak<Pool>]) -> Option<bool> {
    pools.iter().filter_map(Weak::upgrade).map(|pool| pool.tick()).reduce(|busy, more| busy | more)
}
