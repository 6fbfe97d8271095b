//! The settings of wasmtime, and the clock that makes guests yield. The build compiles components with the same
//! settings, so that the embedded code is accepted.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use wasmtime::{Config, Engine};

use crate::sleeper::Sleeper;

/// How long a guest runs before it yields to others.
const EPOCH: Duration = Duration::from_millis(10);

/// The settings of the engine. Code is compiled for the target's baseline processor and not for that of the build
/// machine, so that a binary built on one machine runs on another.
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

/// An engine and the thread that advances its epoch while guests run.
#[derive(Clone)]
pub(crate) struct Host {
    engine: Engine,
    ticker: Arc<Ticker>,
}

impl Host {
    /// Creates the engine and starts its epoch thread, which ends when the last clone is dropped.
    pub(crate) fn new() -> wasmtime::Result<Self> {
        let engine = Engine::new(&config()?)?;
        let clock = Arc::new(Clock::default());
        let (thread_engine, thread_clock) = (engine.clone(), clock.clone());
        std::thread::Builder::new().name("weir-epoch".into()).spawn(move || thread_clock.run(&thread_engine))?;
        Ok(Self { engine, ticker: Arc::new(Ticker(clock)) })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Makes the clock tick every 10 ms until the guard is dropped.
    pub(crate) fn ticking(&self) -> Running<'_> {
        self.ticker.0.enter()
    }

    /// Resolves after the next tick.
    pub(crate) fn ticked(&self) -> Notified<'_> {
        self.ticker.0.ticks.notified()
    }

    /// Runs a future in which a guest may run. The epoch advances only while such a future is polled, so a guest that
    /// runs outside of this function is not interrupted.
    pub(crate) async fn run_guest<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            let _running = self.ticker.0.enter();
            future.as_mut().poll(cx)
        })
        .await
    }
}

/// The epoch clock, and the counts of guests that have started and stopped running.
#[derive(Default)]
struct Clock {
    entered: AtomicU64,
    left: AtomicU64,
    is_stopped: AtomicBool,
    sleeper: Sleeper,
    ticks: Notify,
}

impl Clock {
    fn enter(&self) -> Running<'_> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        self.sleeper.wake();
        Running(self)
    }

    /// Advances the epoch until it is stopped.
    fn run(&self, engine: &Engine) {
        let mut entered = 0;
        while !self.is_stopped.load(Ordering::SeqCst) {
            // No guest runs, and none has run since the previous tick.
            if self.left.load(Ordering::SeqCst) == entered {
                let has_work =
                    || self.entered.load(Ordering::SeqCst) != entered || self.is_stopped.load(Ordering::SeqCst);
                self.sleeper.sleep_unless(has_work);
            }
            entered = self.entered.load(Ordering::SeqCst);
            std::thread::sleep(EPOCH);
            engine.increment_epoch();
            self.ticks.notify_waiters();
        }
    }
}

/// Keeps the clock ticking until it is dropped, for a running guest or for a task that waits for ticks.
pub(crate) struct Running<'a>(&'a Clock);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::SeqCst);
    }
}

/// Stops the clock when the last host is dropped.
struct Ticker(Arc<Clock>);

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.is_stopped.store(true, Ordering::SeqCst);
        self.0.sleeper.wake();
    }
}
