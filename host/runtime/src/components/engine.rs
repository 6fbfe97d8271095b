//! The settings of wasmtime. The build compiles components with the same settings, so that the embedded code is accepted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use wasmtime::{Config, Engine};

/// How long a guest runs before it yields to others.
const EPOCH: Duration = Duration::from_millis(10);

/// The settings of the engine. Code is compiled for the target's baseline processor and not for the one that builds, so that
/// a binary built on one machine starts on another.
pub(crate) fn config() -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config.target(TARGET)?;
    config.wasm_component_model_async(true);
    config.epoch_interruption(true);
    // A trap's backtrace needs names, not addresses of native frames.
    config.generate_address_map(false);
    Ok(config)
}

/// The target triple of this build.
const TARGET: &str = env!("WEIR_TARGET");

/// An engine and the thread that advances its epoch.
#[derive(Clone)]
pub(crate) struct Host {
    engine: Engine,
    _ticker: Arc<Ticker>,
}

impl Host {
    /// Makes the engine and starts its epoch thread, which stops when the last clone is dropped.
    pub(crate) fn new() -> wasmtime::Result<Self> {
        let engine = Engine::new(&config()?)?;
        let ticker = Arc::new(Ticker { stopped: AtomicBool::new(false) });
        let weak: Weak<Ticker> = Arc::downgrade(&ticker);
        let ticking = engine.clone();
        std::thread::Builder::new().name("weir-epoch".into()).spawn(move || {
            while weak.upgrade().is_some_and(|t| !t.stopped.load(Ordering::Relaxed)) {
                std::thread::sleep(EPOCH);
                ticking.increment_epoch();
            }
        })?;
        Ok(Self { engine, _ticker: ticker })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

struct Ticker {
    stopped: AtomicBool,
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
