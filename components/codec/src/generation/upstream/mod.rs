//! Upstreams, which are other servers that generate text: builds requests to them and reads their streams.
//!
//! - `event`: the requests to upstreams, and the events of their streams.
//! - `openai`, `anthropic`, `gemini`: the APIs.

mod anthropic;
mod event;
mod gemini;
mod openai;
#[cfg(test)]
mod tests;

use weir_core::failure::Failure;

pub use self::event::{UpstreamEvent, UpstreamRequest};

use super::request::GenerateRequest;
use crate::http::sse_reader::{EventReader, Received};

/// The API of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamKind {
    /// OpenAI's chat completions and completions, which many servers implement.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Gemini's `streamGenerateContent`.
    Gemini,
}

impl UpstreamKind {
    /// Builds a request for a stream.
    ///
    /// # Errors
    ///
    /// The API does not support a part of the request; the text names it.
    pub fn request(self, model: &str, request: &GenerateRequest) -> Result<UpstreamRequest, String> {
        match self {
            Self::OpenAi => openai::request(model, request),
            Self::Anthropic => anthropic::request(model, request),
            Self::Gemini => gemini::request(model, request),
        }
    }

    /// The header with the API key, and the prefix of the key in its value.
    pub fn key_header(self) -> (&'static str, &'static str) {
        match self {
            Self::OpenAi => ("authorization", "Bearer "),
            Self::Anthropic => ("x-api-key", ""),
            Self::Gemini => ("x-goog-api-key", ""),
        }
    }

    /// The failure of an error response, from its status and the bytes of its body that were read.
    pub fn refusal(self, status: u16, retry_after_s: Option<u32>, body: &[u8]) -> Failure {
        let message = message(body);
        let has_message = message.is_some();
        let message = message.unwrap_or_else(|| format!("the upstream answered with the status {status}"));
        let retry_after_ms = retry_after_s.map_or(1000, |seconds| seconds.saturating_mul(1000));
        match status {
            400 | 413 | 422 => Failure::InvalidInput(message),
            // Without a message of the API the base URL is wrong, which a client cannot change.
            404 if has_message => Failure::InvalidInput(message),
            // The message may quote the operator's key, so clients do not receive it.
            401 | 403 => Failure::Unavailable("the upstream refuses the key of this server".to_owned()),
            429 | 503 | 529 => Failure::Overloaded { retry_after_ms },
            _ => Failure::Unavailable(message),
        }
    }
}

/// Longest message of an upstream that is passed on, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The message in the body of an error, in the form of any of the APIs.
fn message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = value.pointer("/error/message").or_else(|| value.pointer("/0/error/message"))?.as_str()?;
    Some(message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned())
}

/// Longest line, and longest data of an event, in bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// The reader of an upstream's stream.
#[derive(Debug)]
pub struct UpstreamStream {
    sse: EventReader,
    state: State,
    has_begun: bool,
    /// Number of choices that have not ended.
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
    /// A reader for the response to a request with this number of choices.
    pub fn new(kind: UpstreamKind, choices: u32) -> Self {
        let state = match kind {
            UpstreamKind::OpenAi => State::OpenAi(openai::ChunkReader::default()),
            UpstreamKind::Anthropic => State::Anthropic(anthropic::EventReader::default()),
            UpstreamKind::Gemini => State::Gemini(gemini::ChunkReader::default()),
        };
        let sse = EventReader::with_bytes_max(EVENT_BYTES_MAX);
        Self { sse, state, has_begun: false, open: choices, is_over: false }
    }

    /// Reads bytes as they arrive and returns their events. No event follows a failure.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<UpstreamEvent> {
        let mut events = Vec::new();
        if self.is_over {
            return events;
        }
        let mut received = Vec::new();
        let result = self.sse.feed(bytes, &mut received);
        for item in received {
            let Received::Event(message) = item else { continue };
            match &mut self.state {
                State::OpenAi(reader) => reader.push(&message, &mut events),
                State::Anthropic(reader) => reader.push(&message, &mut events),
                State::Gemini(reader) => reader.push(&message, &mut events),
            }
        }
        if result.is_err() {
            let text = format!("the upstream sent an event of more than {EVENT_BYTES_MAX} bytes");
            events.push(UpstreamEvent::Failed(Failure::Unavailable(text)));
        }
        self.normalized(events)
    }

    /// Handles the end of the body. If a choice has not ended, this is a failure and not a finish reason.
    pub fn end(&mut self) -> Vec<UpstreamEvent> {
        if self.is_over || self.open == 0 {
            return Vec::new();
        }
        let text = "the stream of the upstream ended without a finish reason".to_owned();
        self.normalized(vec![UpstreamEvent::Failed(Failure::Unavailable(text))])
    }

    /// True when every choice has ended or the stream has failed.
    pub fn is_over(&self) -> bool {
        self.is_over || self.open == 0
    }

    /// Inserts `Begun` before the first event if it is missing, and drops events after a failure.
    fn normalized(&mut self, events: Vec<UpstreamEvent>) -> Vec<UpstreamEvent> {
        let mut normalized = Vec::with_capacity(events.len() + 1);
        for event in events {
            match &event {
                UpstreamEvent::Begun { .. } if self.has_begun => continue,
                UpstreamEvent::Begun { .. } => self.has_begun = true,
                UpstreamEvent::Failed(_) => self.is_over = true,
                _ if !self.has_begun => {
                    self.has_begun = true;
                    normalized.push(UpstreamEvent::Begun { prompt_tokens: 0, cached_tokens: 0 });
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
            normalized.push(event);
            if is_over {
                break;
            }
        }
        normalized
    }
}
