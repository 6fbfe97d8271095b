//! Creates the parts of a runtime from the configuration.
//!
//! - `models`: the models that the configuration names.
//! - `pools`: a pool of replicas for each model.
//! - `generations`: an instance of the generate component for each language model, and of the upstream component for each upstream.
//! - `event_store`: the channel store; `pipeline_metrics`: metrics from its events.
//! - `gateway`: the gateway; `guest_env`: the settings that its instances see.

pub(crate) mod event_store;
pub(crate) mod gateway;
pub(crate) mod generations;
mod guest_env;
mod models;
mod pipeline_metrics;
pub(crate) mod pools;

use std::path::{Path, PathBuf};

use weir_events::OpenError;
use weir_nn::model::ModelError;

use crate::components::code::{ComponentError, ComponentSource};

/// The components that this program was built with: the files of `weir-precompile`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Builtin {
    /// The gateway component's code.
    pub gateway: Option<&'static [u8]>,
    /// The generate component's code.
    pub generate: Option<&'static [u8]>,
    /// The infer component's code.
    pub infer: Option<&'static [u8]>,
    /// The adapter component's code.
    pub adapter: Option<&'static [u8]>,
    /// The upstream component's code.
    pub upstream: Option<&'static [u8]>,
}

/// Why the runtime cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A component cannot be used.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// A component imports an interface that this host does not provide, or lacks an export.
    #[error("the {0} component does not fit this host: {1:#}")]
    Link(&'static str, wasmtime::Error),
    /// A model cannot be used.
    #[error("model {name} cannot be used")]
    Model {
        /// The model's name.
        name: String,
        /// The reason.
        source: ModelError,
    },
    /// A name in `models.names` has no folder.
    #[error("models.names has `{name}`, and {dir} has no such folder; it has {}", listed(.names))]
    NoSuchModel {
        /// The name.
        name: String,
        /// The models of the folder.
        names: Vec<String>,
        /// `models.dir`.
        dir: PathBuf,
    },
    /// The engine, the precision or the device named in the configuration does not exist.
    #[error("model {name}: {message}")]
    Choice {
        /// The model's name.
        name: String,
        /// The reason, with the names that exist.
        message: String,
    },
    /// `models.dir` cannot be read.
    #[error("models.dir {dir} cannot be read")]
    ModelsDir {
        /// The folder.
        dir: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// wasmtime cannot be set up.
    #[error("wasmtime cannot be set up: {0:#}")]
    Engines(wasmtime::Error),
    /// The channel store cannot be opened.
    #[error("the channel store cannot be opened")]
    Events(#[from] OpenError),
    /// A value of the configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// No thread can be started.
    #[error("no thread can be started: {0}")]
    Threads(std::io::Error),
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "no models".to_owned() } else { names.join(", ") }
}

/// The code of a component: the configured file, or the built-in code.
pub(crate) fn component_source(
    name: &'static str,
    file: &Path,
    builtin: Option<&'static [u8]>,
) -> Result<ComponentSource, ComponentError> {
    match builtin {
        _ if !file.as_os_str().is_empty() => Ok(ComponentSource::File(file.to_path_buf())),
        Some(code) => Ok(ComponentSource::Builtin(code)),
        None => Err(ComponentError::Missing(name)),
    }
}
