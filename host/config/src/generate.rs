//! The section `generate`: text generation by language models of this host.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Text generation by language models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Generate {
    /// A component file to use in place of the built-in one.
    pub component: PathBuf,
    /// Memory of one instance of the component, bytes; the weights and the cache of a model are not part of it.
    pub memory_bytes_max: u64,
    /// Expected time of one step of a model, ms. A step computes one token of every running generation, and as much of
    /// new prompts as fits into this time. It is the time between two tokens while a long prompt is computed.
    pub step_ms: u32,
    /// Texts that one model generates at once; each choice of a request is one. Further requests wait.
    pub running_max: u32,
    /// Requests that wait for one model. Streams wait for room; a request that does not fit is answered 503 with
    /// `Retry-After`.
    pub queue_requests_max: u32,
    /// Most tokens that a request without a bound of its own generates.
    pub tokens_max: u32,
    /// Tokens in the cache of one model: those of all running generations, each with its prompt and the tokens that it
    /// may generate, and those of earlier prompts, which later requests with the same beginning reuse. A token takes 23
    /// KB of memory with the model of the demo. At most `running_max` times the context of the model is allocated.
    pub cache_tokens_max: u32,
    /// Most bytes in a prompt, the messages of a chat and its tools included.
    pub prompt_bytes_max: u32,
    /// Most texts that one request may ask for.
    pub choices_max: u32,
    /// Threads that compute one model. 0: one for each core.
    pub threads: u32,
    /// System prompts whose computed state all callers share. The state of other prompts is reused for the same caller
    /// only, because the response time reveals whether a prompt was in the cache.
    pub prefixes: Vec<String>,
    /// An instance with requests that computes nothing for this time is replaced, ms; its requests are answered
    /// `unavailable`.
    pub hang_timeout_ms: u64,
}

impl Default for Generate {
    fn default() -> Self {
        Self {
            component: PathBuf::new(),
            memory_bytes_max: 1 << 30,
            step_ms: 30,
            running_max: 64,
            queue_requests_max: 256,
            tokens_max: 512,
            cache_tokens_max: 16_384,
            prompt_bytes_max: 1 << 20,
            choices_max: 8,
            threads: 0,
            prefixes: Vec::new(),
            hang_timeout_ms: 60_000,
        }
    }
}
