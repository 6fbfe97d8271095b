//! Graphs by name: each is loaded once per process, at registration or at first use, and shared by all callers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::config::RegistryConfig;
use crate::engine::{Engine, GraphOptions, GraphSource};
use crate::error::LoadError;
use crate::graph::{Graph, backend};
use crate::selection::{Selection, onnx_file};

struct Entry {
    path: PathBuf,
    engine: Engine,
    options: GraphOptions,
    loaded: OnceLock<Result<Arc<Graph>, LoadError>>,
}

/// The graphs of this process, by name.
#[derive(Default)]
pub struct Registry {
    config: RegistryConfig,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl Registry {
    /// A registry without graphs.
    pub fn new(config: RegistryConfig) -> Self {
        Self { config, entries: Mutex::default() }
    }

    /// The bounds of this registry.
    pub fn config(&self) -> &RegistryConfig {
        &self.config
    }

    /// Registers the graph of a model directory (or an ONNX file) and loads it now.
    ///
    /// # Errors
    /// When the name is taken or the graph cannot be loaded; then nothing is registered.
    pub fn insert_dir(&self, name: &str, path: &Path, engine: Engine) -> Result<Arc<Graph>, LoadError> {
        self.insert_lazy(name, path, engine)?;
        let loaded = self.graph(name);
        if loaded.is_err() {
            self.remove(name);
        }
        loaded
    }

    /// Registers the graph of a model directory (or an ONNX file), to be loaded at its first use.
    ///
    /// # Errors
    /// When the name is taken, or the engine's library is missing or unusable, so that every use of the graph would fail.
    pub fn insert_lazy(&self, name: &str, path: &Path, engine: Engine) -> Result<(), LoadError> {
        self.insert_entry(name, path, engine, GraphOptions::default())
    }

    /// Registers the graph of a selection, to be loaded at its first use.
    ///
    /// # Errors
    /// As [`insert_lazy`](Self::insert_lazy).
    pub fn insert_selection(&self, name: &str, selection: &Selection) -> Result<(), LoadError> {
        let options = GraphOptions { precision: selection.precision, device: selection.device };
        self.insert_entry(name, &selection.file, selection.engine, options)
    }

    fn insert_entry(&self, name: &str, path: &Path, engine: Engine, options: GraphOptions) -> Result<(), LoadError> {
        backend(engine).prepare(options.device, &self.config)?;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.contains_key(name) {
            return Err(LoadError::NameTaken(name.to_owned()));
        }
        let entry = Entry { path: path.to_owned(), engine, options, loaded: OnceLock::new() };
        entries.insert(name.to_owned(), Arc::new(entry));
        Ok(())
    }

    /// Removes a name; returns whether it was registered. The graph lives on in its contexts.
    pub fn remove(&self, name: &str) -> bool {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(name).is_some()
    }

    /// The graph of a name, loaded at the first call; concurrent callers wait for one load.
    ///
    /// # Errors
    /// When there is none, or loading it has failed; a failed load is not repeated.
    pub fn graph(&self, name: &str) -> Result<Arc<Graph>, LoadError> {
        let entry = self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let entry = entry.ok_or_else(|| LoadError::UnknownName(name.to_owned()))?;
        entry.loaded.get_or_init(|| self.load(name, &entry)).clone()
    }

    /// A graph that is no part of the registry, from the content of its file, without external data.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn load_bytes(&self, content: &[u8], engine: Engine) -> Result<Arc<Graph>, LoadError> {
        let options = GraphOptions::default();
        backend(engine).prepare(options.device, &self.config)?;
        Ok(Arc::new(Graph::load("", GraphSource::Bytes(content), engine, options, &self.config)?))
    }

    /// The registered names, in order.
    pub fn names(&self) -> Vec<String> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn load(&self, name: &str, entry: &Entry) -> Result<Arc<Graph>, LoadError> {
        let started = std::time::Instant::now();
        let file = onnx_file(&entry.path)?;
        let graph = Graph::load(name, GraphSource::File(&file), entry.engine, entry.options, &self.config)?;
        let ms = started.elapsed().as_millis() as u64;
        let builtin = entry.engine == Engine::Builtin;
        let precision = builtin.then(|| tracing::field::display(entry.options.precision.unwrap_or_default()));
        let isa = builtin.then(|| tracing::field::display(self.config.isa));
        tracing::info!(name, engine = %entry.engine, device = %entry.options.device, precision, isa, ms, "graph loaded");
        tracing::debug!(name, file = %file.display(), "graph loaded from");
        Ok(Arc::new(graph))
    }
}
