//! The dialect of a response, and the stream of a generation as bytes.
//!
//! Every dialect is rendered from the same events, and the rendering of an event depends only on the events before it. Frames are
//! numbered. For a client that reconnects, they are rendered again from the first event and the frames that it has are left out, so that
//! it receives exactly the rest.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    chat, completions, error,
    event::GenerationEvent,
    gemini,
    generated::Generated,
    messages,
    responses::{self, ResponseStream},
    ui, weir,
};
use crate::{
    http::{problem::Problem, sse},
    json::to_vec,
};

/// The form in which a request is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Dialect {
    /// The API.
    pub kind: DialectKind,
    /// The stream ends with the usage, if the API lets the request choose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub include_usage: bool,
    /// The fields of the request that the response repeats.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub echo: Value,
}

/// An API for generated text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DialectKind {
    /// `/generate-stream`
    Weir,
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's completions.
    Completions,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Messages,
    /// Gemini's `generateContent`.
    Gemini,
    /// The UI message stream of the AI SDK.
    Ui,
}

/// How a stream is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFraming {
    /// Server-sent events.
    Sse,
    /// One event per line.
    Ndjson,
    /// One JSON array with the events as items.
    JsonArray,
    /// Only the text.
    Text,
}

/// An event of a stream in the form of a dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The event name of server-sent events.
    pub(crate) name: Option<&'static str>,
    /// The data, without a line end.
    pub(crate) data: String,
}

impl Frame {
    /// A frame of JSON.
    pub(crate) fn json(name: Option<&'static str>, value: &impl Serialize) -> Self {
        Self { name, data: String::from_utf8(to_vec(value)).unwrap_or_default() }
    }
}

impl Dialect {
    /// A dialect without options.
    pub fn new(kind: DialectKind) -> Self {
        Self { kind, include_usage: false, echo: Value::Null }
    }
}

impl DialectKind {
    /// The framing of its streams, unless the request chooses another.
    pub fn framing(self) -> StreamFraming {
        match self {
            Self::Weir => StreamFraming::Text,
            _ => StreamFraming::Sse,
        }
    }

    /// The complete response body, after the generation has ended without an error.
    pub fn whole_json(self, generated: &Generated) -> Vec<u8> {
        match self {
            Self::Weir => weir::whole_json(generated),
            Self::Chat => chat::whole_json(generated),
            Self::Completions => completions::whole_json(generated),
            Self::Responses => responses::whole_json(generated),
            Self::Messages => messages::whole_json(generated),
            Self::Gemini => gemini::whole_json(generated),
            Self::Ui => ui::whole_json(generated),
        }
    }

    /// The status and the body of a problem that occurred before the first byte of a response.
    pub fn error_json(self, problem: &Problem) -> (u16, Vec<u8>) {
        match self {
            Self::Weir | Self::Ui => (problem.status, error::plain_json(problem)),
            Self::Chat | Self::Completions | Self::Responses => error::openai(problem),
            Self::Messages => error::anthropic(problem),
            Self::Gemini => error::google(problem),
        }
    }

    /// A header that the clients of this API require on a stream.
    pub fn stream_header(self) -> Option<(&'static str, &'static str)> {
        (self == Self::Ui).then_some(("x-vercel-ai-ui-message-stream", "v1"))
    }
}

impl StreamFraming {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Ndjson => "application/x-ndjson",
            Self::JsonArray => "application/json",
            Self::Text => "text/plain; charset=utf-8",
        }
    }
}

/// The frames of a dialect, from its events.
#[derive(Debug)]
enum Frames {
    Weir,
    Chat(chat::ChatStream),
    Completions(completions::CompletionStream),
    Responses(Box<ResponseStream>),
    Messages(messages::MessageStream),
    Gemini(gemini::ContentStream),
    Ui(ui::UiStream),
}

/// A generation as a stream of bytes.
#[derive(Debug)]
pub struct GenerationStream {
    kind: DialectKind,
    framing: StreamFraming,
    frames: Frames,
    /// The number of the next frame.
    next: u64,
    /// The number of the last frame that the client has.
    after: Option<u64>,
    /// At least one item of the array was written.
    has_items: bool,
}

impl GenerationStream {
    /// A stream that leaves out the frames up to the one numbered `after`.
    pub fn new(dialect: &Dialect, framing: StreamFraming, after: Option<u64>) -> Self {
        let frames = match dialect.kind {
            DialectKind::Weir => Frames::Weir,
            DialectKind::Chat => Frames::Chat(chat::ChatStream::new(dialect.include_usage)),
            DialectKind::Completions => Frames::Completions(completions::CompletionStream::new(dialect)),
            DialectKind::Responses => Frames::Responses(Box::default()),
            DialectKind::Messages => Frames::Messages(messages::MessageStream::default()),
            DialectKind::Gemini => Frames::Gemini(gemini::ContentStream::default()),
            DialectKind::Ui => Frames::Ui(ui::UiStream::default()),
        };
        Self { kind: dialect.kind, framing, frames, next: 0, after, has_items: false }
    }

    /// Appends an event. `id` is its cursor in the channel.
    pub fn push(&mut self, id: &str, event: &GenerationEvent, out: &mut Vec<u8>) {
        if self.framing == StreamFraming::Text {
            if let GenerationEvent::Token(token) = event
                && token.index == 0
            {
                out.extend_from_slice(token.text.as_bytes());
            }
            return;
        }
        let mut frames = Vec::new();
        match &mut self.frames {
            Frames::Weir => frames.push(Frame { name: Some(event.name()), data: event.to_json() }),
            Frames::Chat(stream) => stream.push(event, &mut frames),
            Frames::Completions(stream) => stream.push(event, &mut frames),
            Frames::Responses(stream) => stream.push(event, &mut frames),
            Frames::Messages(stream) => stream.push(event, &mut frames),
            Frames::Gemini(stream) => stream.push(event, &mut frames),
            Frames::Ui(stream) => stream.push(event, &mut frames),
        }
        for frame in frames {
            self.write(id, &frame, out);
        }
        if event.is_last() && self.framing == StreamFraming::JsonArray {
            out.extend_from_slice(if self.has_items { b"]\n" } else { b"[]\n" });
        }
    }

    /// The bytes to write while the client waits for the next token; `None` if the clients of this API do not accept any.
    pub fn keep_alive(&self) -> Option<&'static [u8]> {
        match (self.kind, self.framing) {
            // The SSE readers of these clients fail on comments.
            (DialectKind::Gemini, _) => None,
            (DialectKind::Messages, StreamFraming::Sse) => Some(b"event: ping\ndata: {\"type\":\"ping\"}\n\n"),
            (_, StreamFraming::Sse) => Some(sse::HEARTBEAT),
            _ => None,
        }
    }

    fn write(&mut self, id: &str, frame: &Frame, out: &mut Vec<u8>) {
        let number = self.next;
        self.next += 1;
        if self.after.is_some_and(|after| number <= after) {
            return;
        }
        match self.framing {
            StreamFraming::Sse => {
                match self.kind {
                    // The frames are the events of the channel, so their ids are the cursors.
                    DialectKind::Weir => out.extend_from_slice(format!("id: {id}\n").as_bytes()),
                    // The SSE readers of these clients fail on unknown fields.
                    DialectKind::Gemini => {}
                    _ => out.extend_from_slice(format!("id: {number}\n").as_bytes()),
                }
                if let Some(name) = frame.name {
                    out.extend_from_slice(format!("event: {name}\n").as_bytes());
                }
                out.extend_from_slice(format!("data: {}\n\n", frame.data).as_bytes());
            }
            StreamFraming::Ndjson => out.extend_from_slice(format!("{}\n", frame.data).as_bytes()),
            StreamFraming::JsonArray => {
                out.extend_from_slice(if self.has_items { b",\n" } else { b"[" });
                self.has_items = true;
                out.extend_from_slice(frame.data.as_bytes());
            }
            StreamFraming::Text => {}
        }
    }
}
