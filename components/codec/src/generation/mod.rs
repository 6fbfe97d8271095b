//! Generated text: reads the requests of several APIs, and renders their responses from the events of a generation.
//!
//! - [`request`]: the request for a generation; `message`: the messages and tools of a chat in one form.
//! - [`event`]: the events of a generation, as stored in its channel; [`generated`]: the text collected from them.
//! - [`dialect`]: the forms of a response; [`render`]: a generation in them; [`error`]: errors in the form of each API.
//! - [`weir`], [`chat`], [`completions`], [`responses`], [`messages`], [`gemini`], [`ui`]: the APIs.
//! - [`upstream`]: the same APIs the other way round, for other servers that generate.
//! - [`rewrite`]: abstractive summaries.
//! - [`route`]: their paths; [`resume`]: where a client that comes back continues.

pub mod chat;
pub mod completions;
pub mod dialect;
pub mod error;
pub mod event;
pub mod gemini;
pub mod generated;
mod message;
pub mod messages;
pub mod render;
pub mod request;
pub mod responses;
pub mod resume;
pub mod rewrite;
pub mod route;
#[cfg(test)]
mod tests;
pub mod ui;
pub mod upstream;
pub mod weir;

use self::{dialect::Dialect, request::GenerateRequest};

/// A request of an API.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiRequest {
    /// The text to generate.
    pub request: GenerateRequest,
    /// The response is a stream. This decides and not `Accept`, since clients request streams with `Accept: application/json`.
    pub stream: bool,
    /// The generation continues when the client disconnects.
    pub detach: bool,
    /// The form of the response.
    pub dialect: Dialect,
}
