//! The requests to upstreams, and the events of their streams.

use weir_core::failure::Failure;

use crate::generation::event::{Finish, Token, ToolDelta};

/// A request to an upstream, without the API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamRequest {
    /// The path after the base URL, with the query.
    pub path: String,
    /// Headers in addition to those of every JSON request.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The JSON body.
    pub body: Vec<u8>,
}

/// An event of the stream of an upstream.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamEvent {
    /// The token counts of the prompt, as far as they are known: the first event.
    Begun {
        /// All tokens of the prompt; 0 if the upstream does not report them at the start.
        prompt_tokens: u32,
        /// Tokens of the prompt that were in a cache.
        cached_tokens: u32,
    },
    /// Generated text.
    Piece(Token),
    /// A part of a tool call.
    Tool(ToolDelta),
    /// A choice has ended.
    Done {
        /// The choice.
        index: u32,
        /// Why it ended.
        finish: Finish,
        /// The stop string that ended it.
        stop: Option<String>,
    },
    /// Tokens of the prompt, if they are known only after the start.
    PromptTokens(u32),
    /// Tokens that were generated for all choices.
    Tokens(u32),
    /// The upstream failed; this is the last event.
    Failed(Failure),
}
