//! The threads of the engine: one set for the process, started at the first use.

use std::future::Future;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

/// How long a call waits before it looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// The process that started the threads, and the threads.
static THREADS: OnceLock<(u32, Runtime)> = OnceLock::new();

/// The threads.
///
/// # Errors
/// They cannot be started, or this process is a fork of the one that started them.
pub(crate) fn threads() -> PyResult<&'static Runtime> {
    if let Some((owner, runtime)) = THREADS.get() {
        if *owner == std::process::id() {
            return Ok(runtime);
        }
        return Err(PyRuntimeError::new_err(
            "weir_stream was used before this process was forked, and the threads of its engine exist only in the parent: \
             start processes with multiprocessing.get_context(\"spawn\"), or use weir_stream in the children only",
        ));
    }
    let runtime = Builder::new_multi_thread().thread_name("weir-python").enable_all().build();
    let runtime =
        runtime.map_err(|error| PyOSError::new_err(format!("the threads of the engine cannot start: {error}")))?;
    // Another thread of Python may have been first; its threads are as good.
    Ok(&THREADS.get_or_init(|| (std::process::id(), runtime)).1)
}

/// Whether the threads, if there are any, are those of this process.
fn is_owner() -> bool {
    THREADS.get().is_none_or(|(owner, _)| *owner == std::process::id())
}

/// Waits for a future without the interpreter, which other threads use meanwhile. A signal whose handler raises ends the wait.
pub(crate) fn wait<T: Send>(py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
    let threads = threads()?;
    let mut future = pin!(future);
    loop {
        let slice = || threads.block_on(async { tokio::time::timeout(SIGNAL_INTERVAL, future.as_mut()).await });
        match py.detach(slice) {
            Ok(value) => return Ok(value),
            Err(_) => py.check_signals()?,
        }
    }
}

/// A value that is dropped only in the process that made it: in a fork its threads are missing, and stopping them would
/// never return.
pub(crate) struct Owned<T>(Option<T>);

impl<T> Owned<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value.
    ///
    /// # Errors
    /// This process is a fork, or the value was released.
    pub(crate) fn get(&self) -> PyResult<&T> {
        threads()?;
        self.0.as_ref().ok_or_else(|| PyRuntimeError::new_err("it is closed"))
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !is_owner() {
            std::mem::forget(self.0.take());
        }
    }
}
