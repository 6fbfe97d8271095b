//! Other servers that generate text: requests to them, and what their streams say.
//!
//! - `sse`: a stream of server-sent events, as bytes arrive.
//! - `openai`, `anthropic`, `gemini`: the APIs.

mod anthropic;
mod gemini;
mod openai;
mod sse;
#[cfg(test)]
mod tests;

use weir_core::failure::Failure;

use self::sse::SseReader;
use super::{
    event::{Finish, Token, ToolDelta},
    request::GenerateRequest,
};

/// The API of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamKind {
    /// OpenAI's chat completions and completions, and the many servers that have them.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Gemini's `streamGenerateContent`.
    Gemini,
}

/// A request to an upstream, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamRequest {
    /// What comes after the base URL.
    pub path: String,
    /// Headers besides those of every request with JSON.
    pub headers: Vec<(&'static str, &'static str)>,
    /// JSON.
    pub body: Vec<u8>,
}

/// What a stream of an upstream says.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamEvent {
    /// Tokens of the prompt, as far as they are known: the first event.
    Begun {
        /// All of them; 0 where the upstream does not say it at the start.
        prompt_tokens: u32,
        /// Those that were in a cache.
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
        /// Why.
        finish: Finish,
        /// The stop string that ended it.
        stop: Option<String>,
    },
    /// Tokens that were generated for all choices.
    Tokens(u32),
    /// The upstream has failed; there is nothing more.
    Failed(Failure),
}

impl UpstreamKind {
    /// A request for a stream.
    ///
    /// # Errors
    ///
    /// The API has no such request; the text says which part.
    pub fn request(self, model: &str, request: &GenerateRequest) -> Result<UpstreamRequest, String> {
        match self {
            Self::OpenAi => openai::request(model, request),
            Self::Anthropic => anthropic::request(model, request),
            Self::Gemini => gemini::request(model, request),
        }
    }

    /// The header that carries the key of the upstream, and what comes before the key in it.
    pub fn key_header(self) -> (&'static str, &'static str) {
        match self {
            Self::OpenAi => ("authorization", "Bearer "),
            Self::Anthropic => ("x-api-key", ""),
            Self::Gemini => ("x-goog-api-key", ""),
        }
    }

    /// The failure of a response that is none, by its status and what there is of its body.
    pub fn refusal(self, status: u16, retry_after_s: Option<u32>, body: &[u8]) -> Failure {
        let message = message(body).unwrap_or_else(|| format!("the upstream answered with the status {status}"));
        let retry_after_ms = retry_after_s.map_or(1000, |seconds| seconds.saturating_mul(1000));
        match status {
            400 | 413 | 422 => Failure::InvalidInput(message),
            404 => Failure::InvalidInput(message),
            // The key is the operator's: what is wrong with it is no client's business.
            401 | 403 => Failure::Unavailable("the upstream refuses the key of this server".to_owned()),
            429 | 503 | 529 => Failure::Overloaded { retry_after_ms },
            _ => Failure::Unavailable(message),
        }
    }
}

/// Longest message of an upstream that is passed on, bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The message in the body of an error, in the shape of any of the APIs.
fn message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = value.pointer("/error/message").or_else(|| value.pointer("/0/error/message"))?.as_str()?;
    Some(message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned())
}

/// The stream of an upstream.
#[derive(Debug)]
pub struct UpstreamStream {
    sse: SseReader,
    state: State,
    has_begun: bool,
    /// Choices that have not ended.
    open: u32,
    is_over: bool,
}

#[derive(Debug)]
enum State {
    OpenAi(openai::ChunkReader),
    Anthropic(anthropic::EventReader),
    Gemini(gemini::ChunkReader),
}

impl UpstreamStream {
    /// The stream of the answer to a request with this many choices.
    pub fn new(kind: UpstreamKind, choices: u32) -> Self {
        let state = match kind {
            UpstreamKind::OpenAi => State::OpenAi(openai::ChunkReader::default()),
            UpstreamKind::Anthropic => State::Anthropic(anthropic::EventReader::default()),
            UpstreamKind::Gemini => State::Gemini(gemini::ChunkReader::default()),
        };
        Self { sse: SseReader::default(), state, has_begun: false, open: choices, is_over: false }
    }

    /// Takes bytes as they arrive; what they say. Nothing follows a failure.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<UpstreamEvent> {
        let mut events = Vec::new();
        if self.is_over {
            return events;
        }
        match self.sse.push(bytes) {
            Ok(messages) => {
                for message in messages {
                    match &mut self.state {
                        State::OpenAi(reader) => reader.push(&message, &mut events),
                        State::Anthropic(reader) => reader.push(&message, &mut events),
                        State::Gemini(reader) => reader.push(&message, &mut events),
                    }
                }
            }
            Err(error) => events.push(UpstreamEvent::Failed(Failure::Unavailable(error))),
        }
        self.checked(events)
    }

    /// The body has ended. A stream that ends before its choices is a failure, never a reason to stop.
    pub fn end(&mut self) -> Vec<UpstreamEvent> {
        if self.is_over || self.open == 0 {
            return Vec::new();
        }
        let text = "the stream of the upstream ended without a finish reason".to_owned();
        self.checked(vec![UpstreamEvent::Failed(Failure::Unavailable(text))])
    }

    /// Whether every choice has ended, or the stream has failed.
    pub fn is_over(&self) -> bool {
        self.is_over || self.open == 0
    }

    /// Puts a beginning before the first event, and ends after the last.
    fn checked(&mut self, events: Vec<UpstreamEvent>) -> Vec<UpstreamEvent> {
        let mut checked = Vec::with_capacity(events.len() + 1);
        for event in events {
            match &event {
                UpstreamEvent::Begun { .. } if self.has_begun => continue,
                UpstreamEvent::Begun { .. } => self.has_begun = true,
                UpstreamEvent::Failed(_) => self.is_over = true,
                _ if !self.has_begun => {
                    self.has_begun = true;
                    checked.push(UpstreamEvent::Begun { prompt_tokens: 0, cached_tokens: 0 });
                }
                _ => {}
            }
            if matches!(event, UpstreamEvent::Done { .. }) {
                if self.open == 0 {
                    continue;
                }
                self.open -= 1;
            }
            let is_over = self.is_over;
            checked.push(event);
            if is_over {
                break;
            }
        }
        checked
    }
}
