//! The code of a component: built into the program, or a file.

use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::components::engine;

/// A component's code.
#[derive(Debug, Clone, PartialEq)]
pub enum ComponentSource {
    /// Compiled ahead of time when this program was built.
    Builtin(&'static [u8]),
    /// A `.wasm` file, compiled when it is loaded.
    File(PathBuf),
}

/// Why a component cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The program was built without the component.
    #[error(
        "the {0} component is not built in: build with `cargo xtask build`, or give one with `--component {0}=FILE.wasm`"
    )]
    Missing(&'static str),
    /// The file cannot be read.
    #[error("component {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is not a component, or needs imports that this host does not provide.
    #[error("component {path} cannot be used")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The error of wasmtime.
        source: wasmtime::Error,
    },
    /// The code was compiled with other settings or by another version.
    #[error("the built-in code does not fit this program: {0:#}")]
    Mismatch(wasmtime::Error),
    /// The output cannot be written.
    #[error("{path} cannot be written")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
}

/// Loads a component.
pub fn load(engine: &Engine, source: &ComponentSource) -> Result<Component, ComponentError> {
    match source {
        // SAFETY: the bytes were produced by `precompile` in this program's own build and are part of its image.
        ComponentSource::Builtin(code) => {
            unsafe { Component::deserialize(engine, code) }.map_err(ComponentError::Mismatch)
        }
        ComponentSource::File(path) => {
            let bytes = read(path)?;
            Component::new(engine, bytes).map_err(|source| ComponentError::Invalid { path: path.clone(), source })
        }
    }
}

/// Compiles `input` ahead of time into `output`.
pub fn precompile(input: &Path, output: &Path) -> Result<(), ComponentError> {
    let bytes = read(input)?;
    let invalid = |source| ComponentError::Invalid { path: input.to_path_buf(), source };
    let engine = engine::config().and_then(|config| Engine::new(&config)).map_err(invalid)?;
    let code = engine.precompile_component(&bytes).map_err(invalid)?;
    std::fs::write(output, code).map_err(|source| ComponentError::Unwritable { path: output.to_path_buf(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, ComponentError> {
    std::fs::read(path).map_err(|source| ComponentError::Unreadable { path: path.to_path_buf(), source })
}
