//! Text generation by a language model: pure, on virtual time.
//!
//! - [`scheduler`]: which requests run, and what each step computes.
//! - [`admission`]: which request runs next, and which computed prompt gives way to it.
//! - [`prefix`]: which computed prompts are kept, for requests that begin alike.
//! - [`text`]: from the bytes of tokens to pieces of text: whole characters ([`utf8`]), and never a stop string ([`stop`]).
//! - [`upstream`]: requests to another server that generates text: bounds, retries, and what each user may use.

pub mod admission;
pub mod prefix;
pub mod scheduler;
pub mod stop;
pub mod text;
pub mod upstream;
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
