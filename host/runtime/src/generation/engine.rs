//! The engine of a language model, as `weir:stream/lm` needs it: what a model is, and sequences in a cache of which steps are computed.

use std::sync::Arc;

use weir_lm::Cancel;

use crate::bindings::lm::weir::stream::lm::{ModelInfo, Row, Sampled, Sampler, Tokenizer};
use crate::types::Failure;

/// A loaded language model.
pub(crate) trait Engine: Send + Sync {
    /// What it is.
    fn info(&self) -> ModelInfo;
    /// Its tokenizer, as its file has it.
    fn tokenizer(&self) -> Tokenizer;
    /// The chat template of its file.
    fn chat_template(&self) -> Option<String>;
    /// Sequences of one instance of the generate component. Dropping them frees their pages.
    fn sequences(&self) -> Arc<dyn Sequences>;
}

/// The sequences of one instance. The semantics are those of `weir:stream/lm.model`; all but a step returns at once, also during one.
pub(crate) trait Sequences: Send + Sync {
    fn pages_free(&self) -> u32;
    fn create(&self, sampler: Sampler) -> Result<u32, Failure>;
    fn fork(&self, sequence: u32, tokens: u32, sampler: Sampler) -> Result<u32, Failure>;
    fn trim(&self, sequence: u32, tokens: u32) -> Result<(), Failure>;
    fn remove(&self, sequence: u32);
    /// Computes a step, on a thread for it. Returns early, between two layers, once it is cancelled.
    fn step(&self, rows: Vec<Row>, cancel: &Cancel) -> Result<Vec<Sampled>, Failure>;
}

/// Loads a model; called on a thread for blocking work, once unless it fails. The error says what to do.
pub(crate) type Load = Arc<dyn Fn() -> Result<Arc<dyn Engine>, String> + Send + Sync>;
