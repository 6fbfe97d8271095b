//! A server in this process: the same routes as `weir serve`, with events in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use weir_config::{Config, Model};
use weir_edge::{Listener, Observer};
use weir_runtime::Runtime;

use crate::builtin::BUILTIN;
use crate::convert;
use crate::process::{self, Owned};

/// Ends with the number of requests that were cut, or why the store was not closed.
type Serving = JoinHandle<Result<usize, String>>;

/// A server that listens. One for each process: its metrics are those of the process.
#[pyclass(frozen, module = "weir_stream._engine")]
pub(crate) struct Server {
    /// Where it listens, `HOST:PORT`.
    #[pyo3(get)]
    address: String,
    stop: Arc<Notify>,
    serving: Owned<Mutex<Option<Serving>>>,
}

#[pymethods]
impl Server {
    /// Listens, and starts the models, by name and folder.
    #[new]
    fn new(py: Python<'_>, listen: String, models: BTreeMap<String, PathBuf>) -> PyResult<Self> {
        let mut config = Config::default();
        config.http.listen = listen;
        config.models.dir = PathBuf::new();
        for (name, path) in models {
            config.model.insert(name, Model { path, ..Model::default() });
        }
        let observer = Observer::install().map_err(|error| PyRuntimeError::new_err(convert::chain(&error)))?;
        let start = async {
            let listener = Listener::bind(&config.http.listen).await;
            let listener = listener.map_err(|error| PyOSError::new_err(convert::chain(&error)))?;
            let address = listener.address().to_string();
            let runtime = Runtime::serve(&config, BUILTIN).await;
            let runtime = runtime.map_err(|error| PyValueError::new_err(convert::chain(&error)))?;
            let runtime = Arc::new(runtime);
            let server = weir_edge::Server::new(&config, listener, runtime.clone(), observer);
            let server = server.map_err(|error| PyOSError::new_err(convert::chain(&error)))?;
            let server = server.with_settings(&weir_config::changed_settings(&config));
            Ok::<_, PyErr>((address, runtime, server))
        };
        let (address, runtime, server) = process::wait(py, start)??;
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let serving = process::threads()?.spawn(async move {
            let cut = server.serve(async move { stopped.notified().await }).await;
            runtime.close().await.map_err(|error| convert::chain(&error))?;
            Ok(cut)
        });
        Ok(Self { address, stop, serving: Owned::new(Mutex::new(Some(serving))) })
    }

    /// Refuses new requests; open streams may finish.
    fn stop(&self) {
        self.stop.notify_one();
    }

    /// Waits for the end; returns how many requests were cut.
    fn wait(&self, py: Python<'_>) -> PyResult<usize> {
        let serving = self.serving.get()?.lock().unwrap_or_else(PoisonError::into_inner).take();
        let serving = serving.ok_or_else(|| PyRuntimeError::new_err("another thread waits for the end"))?;
        let ended = process::wait(py, serving)?.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        ended.map_err(PyRuntimeError::new_err)
    }
}
