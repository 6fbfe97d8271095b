//! Generated text: requests of several APIs in, and their answers from the events of a generation.
//!
//! - [`request`]: what a generation is asked to do; `message`: the messages and tools of a chat in one form.
//! - [`event`]: the events of a generation, as they lie in its channel; [`generated`]: the text that they add up to.
//! - [`dialect`]: a stream of events in the form of an API; [`error`]: errors in the shapes of the APIs.
//! - [`weir`], [`chat`], [`completions`], [`responses`], [`messages`], [`gemini`], [`ui`]: the APIs.
//! - [`upstream`]: the same APIs the other way round, for other servers that generate.
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
pub mod request;
pub mod responses;
pub mod resume;
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
    /// What is asked.
    pub request: GenerateRequest,
    /// The answer is a stream. This decides, never `Accept`: clients ask for streams and accept `application/json`.
    pub stream: bool,
    /// The generation continues when the client has left.
    pub detach: bool,
    /// How it is answered.
    pub dialect: Dialect,
}
