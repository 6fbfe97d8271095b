//! Language models: [`gguf`] reads their files, [`Model`] holds packed weights, and [`Engine`] computes forward passes over a paged
//! cache and samples tokens. The only IO is reading model files; there is no async and no dependency on a runtime.
//!
//! # A step
//! [`Engine::step`] appends tokens to any number of sequences in one pass over the weights, prompts and single tokens mixed, and
//! samples after the rows that have a [`Sample`]. The bits of a row's result do not depend on the other rows, on the split of a prompt
//! into rows, or on the number of threads: only the row determines the order of every sum.
//!
//! # Threads
//! The thread that calls [`Engine::step`] computes together with the helper threads of the engine, which wait between steps. The other
//! methods of [`Engine`] do not wait for a running step.
//!
//! # The cache
//! Keys and values are stored in f16 in pages of sixteen tokens. [`Engine::fork`] shares pages; a shared page is copied when one of its
//! sequences appends to it. A step that fails or is cancelled appends nothing.

mod cache;
mod engine;
mod forward;
pub mod gguf;
pub mod model;
mod sampling;
mod step;
mod team;

pub use cache::SequenceError;
pub use engine::{Engine, EngineConfig, EngineError};
pub use model::{LoadError, Model, Tokenizer, TokenizerKind};
pub use sampling::{Sampler, SamplerError};
pub use step::{Cancel, Row, Sample, Sampled, StepError};

/// Tokens of a page of the cache.
pub const PAGE_TOKENS: u32 = weir_kernels::PAGE_TOKENS as u32;
