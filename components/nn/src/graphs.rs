//! The graphs of this instance: loaded at first use, or before its memory was stored, and never unloaded.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use weir_nn::{
    Choices, Engine, EngineChoice, Graph, LoadError, NnError, PrecisionChoice, Registry, RegistryConfig, Selection,
};

/// The folder of the model folders, read-only.
const MODELS_DIR: &str = "/models";
/// The longest name of a model.
const NAME_BYTES_MAX: usize = 128;
/// The most bytes of stored weights of all graphs of an instance. Weights in int8 that are computed in f32 take four times as much, and an
/// instance has at most 4 GiB of memory.
const WEIGHT_BYTES_MAX: u64 = 512 << 20;
/// The largest tensor, in bytes; `models.tensor_bytes_max` of the native host.
pub(crate) const TENSOR_BYTES_MAX: usize = 64 << 20;
/// The most tensors, contexts, graphs and errors at once.
pub(crate) const RESOURCES_MAX: usize = 10_000;
/// The most bytes of tensors at once.
pub(crate) const RESOURCE_BYTES_MAX: usize = 256 << 20;
/// The largest graph that a caller passes as bytes.
const CALLER_GRAPH_BYTES_MAX: u64 = 64 << 20;

/// A graph.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) graph: Arc<Graph>,
    /// Of a graph that a caller passed as bytes, which goes with its last user.
    _weights: Option<Rc<Weights>>,
}

/// Weights that are counted until nothing uses them.
struct Weights {
    total: Rc<Cell<u64>>,
    bytes: u64,
}

impl Drop for Weights {
    fn drop(&mut self) {
        self.total.set(self.total.get().saturating_sub(self.bytes));
    }
}

/// Counts weights; fails if there are too many with them.
fn count(total: &Cell<u64>, bytes: u64) -> Result<(), NnError> {
    let all = total.get().saturating_add(bytes);
    if all > WEIGHT_BYTES_MAX {
        return Err(NnError::too_large(format!(
            "the weights of all graphs have {all} bytes, more than the {WEIGHT_BYTES_MAX} of a component"
        )));
    }
    total.set(all);
    Ok(())
}

/// The graphs by name.
pub(crate) struct Graphs {
    registry: Registry,
    precision: PrecisionChoice,
    weight_bytes: Rc<Cell<u64>>,
    /// All graphs were loaded before the memory was stored. Handles of folders are not a part of it, so no file is read any more.
    is_stored: Cell<bool>,
}

impl Graphs {
    /// A registry without graphs.
    pub(crate) fn new() -> Self {
        let config = RegistryConfig {
            tensor_bytes_max: TENSOR_BYTES_MAX,
            graph_bytes_max: WEIGHT_BYTES_MAX,
            guest_graph_bytes_max: CALLER_GRAPH_BYTES_MAX,
            resources_max: RESOURCES_MAX,
            resource_bytes_max: RESOURCE_BYTES_MAX,
            ..RegistryConfig::default()
        };
        let precision = std::env::var("WEIR_MODELS_PRECISION").ok().and_then(|name| name.parse().ok());
        Self {
            registry: Registry::new(config),
            precision: precision.unwrap_or_default(),
            weight_bytes: Rc::default(),
            is_stored: Cell::new(false),
        }
    }

    /// Loads every graph of `/models`, and none later.
    pub(crate) fn load_all(&self) -> Result<(), String> {
        let folders = std::fs::read_dir(MODELS_DIR).map_err(|error| format!("{MODELS_DIR} cannot be read: {error}"))?;
        for folder in folders {
            let folder = folder.map_err(|error| format!("{MODELS_DIR} cannot be read: {error}"))?;
            let name = folder.file_name().to_string_lossy().into_owned();
            self.by_name(&name).map_err(|error| format!("model {name}: {}", error.text))?;
        }
        self.is_stored.set(true);
        Ok(())
    }

    /// The graph of a name, loaded if necessary. After a failure, the next call tries again.
    pub(crate) fn by_name(&self, name: &str) -> Result<Loaded, NnError> {
        Ok(Loaded { graph: self.load_by_name(name)?, _weights: None })
    }

    fn load_by_name(&self, name: &str) -> Result<Arc<Graph>, NnError> {
        let is_plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
        let unknown = || LoadError::UnknownName(name.chars().take(NAME_BYTES_MAX).collect());
        if !is_plain || name.len() > NAME_BYTES_MAX {
            return Err(unknown().into());
        }
        if self.is_stored.get() {
            return Ok(self.registry.graph(name)?);
        }
        let path = Path::new(MODELS_DIR).join(name);
        if !path.is_dir() {
            return Err(unknown().into());
        }
        if let Ok(loaded) = self.registry.graph(name) {
            return Ok(loaded);
        }
        self.registry.remove(name);
        let engine = EngineChoice::Only(Engine::Builtin);
        let choices = Choices { engine, precision: self.precision, ..Choices::default() };
        let selection = Selection::of(&path, choices, self.registry.config())?;
        self.registry.insert_selection(name, &selection)?;
        let loaded = self.registry.graph(name).map_err(NnError::from).and_then(|graph| self.counted(graph));
        if loaded.is_err() {
            self.registry.remove(name);
        }
        loaded
    }

    /// Loads a graph from the bytes of an ONNX file.
    pub(crate) fn by_content(&self, content: &[u8]) -> Result<Loaded, NnError> {
        if content.len() as u64 > CALLER_GRAPH_BYTES_MAX {
            return Err(NnError::too_large(format!(
                "the graph has {} bytes, more than the {CALLER_GRAPH_BYTES_MAX} allowed",
                content.len()
            )));
        }
        // The weights of a graph in one file are at most the file, which is counted before memory is taken for them.
        let bytes = content.len() as u64;
        count(&self.weight_bytes, bytes)?;
        let weights = Weights { total: self.weight_bytes.clone(), bytes };
        let graph = self.registry.load_bytes(content, Engine::Builtin)?;
        Ok(Loaded { graph, _weights: Some(Rc::new(weights)) })
    }

    /// Counts the weights of a graph of `/models`, which stays.
    fn counted(&self, graph: Arc<Graph>) -> Result<Arc<Graph>, NnError> {
        count(&self.weight_bytes, graph.parameter_bytes()).map(|()| graph)
    }
}
