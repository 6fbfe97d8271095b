//! Language models: [`gguf`] reads their files, [`Model`] holds packed weights, and [`Engine`] computes forward passes over a paged
//! cache and samples tokens. No IO but reading model files, no async, no dependency on a runtime.
//!
//! # A step
//! [`Engine::step`] appends tokens to any number of sequences in one pass over the weights, prompts and single tokens mixed, and
//! samples where a row asks for it. Its bits do not depend on which rows stand beside a row, on how a prompt is cut into rows, or
//! on the number of threads: every sum has an order that its own row determines.
//!
//! # Threads
//! The thread that calls [`Engine::step`] computes, with the helpers of the engine, which wait between steps. Everything else of an
//! [`Engine`] returns at once, while a step runs as well.
//!
//! # The cache
//! Keys and values lie in f16 in pages of sixteen tokens. [`Engine::fork`] shares pages; a page that several sequences have is copied
//! when one of them appends to it. Only tokens that a step has appended are part of a sequence: a step that fails or is cancelled
//! appends nothing.

mod cache;
mod engine;
mod forward;
pub mod gguf;
pub mod model;
mod sampling;
mod team;
mod wording;

pub use cache::SequenceError;
pub use engine::{Cancel, Engine, EngineConfig, EngineError, Row, Sample, Sampled, StepError};
pub use model::{LoadError, Model, Tokenizer, TokenizerKind};
pub use sampling::{Sampler, SamplerError};

/// Tokens of a page of the cache.
pub const PAGE_TOKENS: u32 = weir_kernels::PAGE_TOKENS as u32;
