//! `wasi:nn` on the host.
//!
//! - [`Selection`]: the engine that serves a model.
//! - [`Registry`]: graphs by name, each loaded once per process.
//! - [`Graph`], [`Context`]: a loaded graph and the execution context of one caller, for any [`Engine`].
//! - [`NnCtx`], [`NnView`], [`add_to_linker`]: the interfaces of `wasi:nn@0.2.0-rc-2024-10-28` for wasmtime components.
//! - [`stages`]: timestamps of the stages that an item passes.
//! - [`model`]: models on disk in the Hugging Face layout, listed, checked and fetched.
//!
//! Compiled for wasm32 it has the engine `builtin` alone, and neither wasmtime nor downloads: `components/nn` makes a component of it that
//! exports `wasi:nn`.
//!
//! ```no_run
//! use std::path::Path;
//! use weir_nn::{Engine, Registry, RegistryConfig, Tensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::new(RegistryConfig::default());
//! let graph = registry.insert_dir("double", Path::new("models/double"), Engine::Tract)?;
//! let mut context = graph.context()?;
//! for (name, output) in context.compute(vec![("x".to_owned(), Tensor::from_f32(&[1, 2], &[1.0, 2.0]))])? {
//!     tracing::info!(name, dimensions = ?output.dimensions);
//! }
//! # Ok(())
//! # }
//! ```

#![cfg_attr(target_arch = "wasm32", allow(dead_code, reason = "parts of the engines that a component does not have"))]

mod builtin;
mod config;
mod device;
#[cfg(not(target_arch = "wasm32"))]
mod driver;
mod engine;
mod error;
mod fit;
mod graph;
#[cfg(not(target_arch = "wasm32"))]
mod host;
#[cfg(not(target_arch = "wasm32"))]
pub mod model;
#[cfg(not(target_arch = "wasm32"))]
mod onnx;
#[cfg(not(target_arch = "wasm32"))]
mod onnxruntime;
mod registry;
mod selection;
#[cfg(not(target_arch = "wasm32"))]
pub mod stages;
mod structure;
mod tensor;
#[cfg(not(target_arch = "wasm32"))]
mod tract;
mod wording;

pub mod safetensors {
    //! The header of a file of weights in the safetensors format.

    pub use crate::builtin::safetensors::{Dtype, Entry, Header};
}

#[cfg(test)]
#[path = "../tests/graphs/mod.rs"]
mod graphs;

pub use config::RegistryConfig;
pub use device::{Device, DeviceChoice, UnknownDevice};
pub use engine::{
    Choices, Dimension, ElementType, Engine, EngineChoice, Precision, PrecisionChoice, TensorInfo, UnknownEngine,
    UnknownPrecision,
};
pub use error::{ErrorCode, LoadError, NnError};
pub use graph::{Context, Graph};
#[cfg(not(target_arch = "wasm32"))]
pub use host::{ContextHandle, ErrorHandle, GraphAccess, GraphHandle, NnCtx, NnView, TensorHandle, add_to_linker};
#[cfg(not(target_arch = "wasm32"))]
pub use onnxruntime::library_folders;
pub use registry::Registry;
pub use selection::Selection;
pub use tensor::{Tensor, TensorType};
pub use weir_kernels::{Isa, UnknownIsa};
