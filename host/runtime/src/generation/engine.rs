//! The engine of a language model, as `weir:stream/lm` needs it: a description of the model, and sequences in a cache,
//! which steps extend.

use std::sync::Arc;

use weir_lm::Cancel;

use crate::bindings::lm::weir::stream::lm::{ModelInfo, Row, Sampled, Sampler, Tokenizer};
use crate::types::Failure;

/// A loaded language model.
pub(crate) trait Engine: Send + Sync {
    /// The description of the model.
    fn info(&self) -> ModelInfo;
    /// The tokenizer in the model's file.
    fn tokenizer(&self) -> Tokenizer;
    /// The chat template in the model's file.
    fn chat_template(&self) -> Option<String>;
    /// Sequences of one instance of the generate component. Dropping them frees their pages.
    fn sequences(&self) -> Arc<dyn Sequences>;
}

/// The sequences of one instance. The semantics are those of `weir:stream/lm.model`. All methods except `step` return
/// immediately, even during a step.
pub(crate) trait Sequences: Send + Sync {
    fn pages_free(&self) -> u32;
    fn create(&self, sampler: Sampler) -> Result<u32, Failure>;
    fn fork(&self, sequence: u32, tokens: u32, sampler: Sampler) -> Result<u32, Failure>;
    fn trim(&self, sequence: u32, tokens: u32) -> Result<(), Failure>;
    fn remove(&self, sequence: u32);
    /// Computes a step; called on a blocking thread. Returns early, between two layers, once it is cancelled.
    fn step(&self, rows: Vec<Row>, cancel: &Cancel) -> Result<Vec<Sampled>, Failure>;
}

/// Loads a model; called on a blocking thread, and again only if it failed. The error is a message for the operator.
pub(crate) type Load = Arc<dyn Fn() -> Result<Arc<dyn Engine>, String> + Send + Sync>;
