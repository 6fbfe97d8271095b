//! Text generation by a language model: pure, on virtual time.
//!
//! - [`scheduler`]: the queued and running requests, and the rows of each step.
//! - [`admission`]: which request runs next, and which cached sequence is evicted for it.
//! - [`prefix`]: the cached sequences, for requests whose prompts share a prefix.
//! - [`text`]: the bytes of tokens as text, in whole characters ([`utf8`]) and without stop strings ([`stop`]).

pub mod admission;
pub mod prefix;
pub mod scheduler;
pub mod stop;
pub mod text;
pub mod utf8;

#[cfg(test)]
mod tests;

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model produced an end token, or the text contains a stop string.
    Stop,
    /// The token limit is reached, or the context is full.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// The content was filtered.
    Filtered,
    /// The caller cancelled it.
    Cancelled,
}
