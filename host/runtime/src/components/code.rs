//! The code of a component: built into the program, or a file.

use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::components::engine;

/// A component's code.
#[derive(Debug, Clone, PartialEq)]
pub enum ComponentSource {
    /// Compiled ahead of time when this program was built, and compressed.
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
    /// The code is not what [`precompile`] writes.
    #[error("the built-in code cannot be decompressed: {0}")]
    Damaged(&'static str),
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
        ComponentSource::Builtin(code) => {
            let code = decompress(code).map_err(ComponentError::Damaged)?;
            // SAFETY: the bytes were produced by `precompile` in this program's own build and are part of its image.
            unsafe { Component::deserialize(engine, code) }.map_err(ComponentError::Mismatch)
        }
        ComponentSource::File(path) => {
            let bytes = read(path)?;
            Component::new(engine, bytes).map_err(|source| ComponentError::Invalid { path: path.clone(), source })
        }
    }
}

/// The level of compression, the highest: 3 % smaller than 17, in 40 % more time. All decompress equally fast.
const LEVEL: i32 = 22;

/// Compiles `input` ahead of time into `output`, compressed.
pub fn precompile(input: &Path, output: &Path) -> Result<(), ComponentError> {
    let bytes = read(input)?;
    let invalid = |source| ComponentError::Invalid { path: input.to_path_buf(), source };
    let engine = engine::config().and_then(|config| Engine::new(&config)).map_err(invalid)?;
    let code = engine.precompile_component(&bytes).map_err(invalid)?;
    std::fs::write(output, compress(&code))
        .map_err(|source| ComponentError::Unwritable { path: output.to_path_buf(), source })
}

/// One frame of zstd with the size of its content.
fn compress(code: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::with_capacity(zstd_safe::compress_bound(code.len()));
    zstd_safe::compress(&mut compressed, code, LEVEL).expect("the buffer has the size that zstd asks for");
    compressed
}

fn decompress(compressed: &[u8]) -> Result<Vec<u8>, &'static str> {
    let size = zstd_safe::get_frame_content_size(compressed).ok().flatten().ok_or("it has no size")?;
    let mut code = Vec::new();
    let size = usize::try_from(size).map_err(|_| "it is too large")?;
    code.try_reserve_exact(size).map_err(|_| "there is not enough memory")?;
    zstd_safe::decompress(&mut code, compressed).map_err(zstd_safe::get_error_name)?;
    Ok(code)
}

fn read(path: &Path) -> Result<Vec<u8>, ComponentError> {
    std::fs::read(path).map_err(|source| ComponentError::Unreadable { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_code_decompresses_to_itself() {
        let code: Vec<u8> = (0..100_000u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let compressed = compress(&code);
        assert!(compressed.len() < code.len() / 4, "{} bytes", compressed.len());
        assert_eq!(decompress(&compressed), Ok(code));
        assert_eq!(decompress(&compress(&[])), Ok(Vec::new()));
    }

    #[test]
    fn damaged_code_is_an_error() {
        let compressed = compress(&[7; 1000]);
        assert!(decompress(&compressed[..compressed.len() - 1]).is_err());
        assert!(decompress(b"\x7fELF").is_err());
        let host = crate::components::engine::Host::new().unwrap();
        let error = load(host.engine(), &ComponentSource::Builtin(b"\x7fELF")).unwrap_err();
        assert_eq!(error.to_string(), "the built-in code cannot be decompressed: it has no size");
    }
}
