//! The dialect of a response: its API, its framing and its frames.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::to_vec;

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
