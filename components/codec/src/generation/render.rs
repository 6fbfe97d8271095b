//! A generation in a dialect: one JSON document, an error, or a stream of bytes.
//!
//! Every dialect is rendered from the same events, and the rendering of an event depends only on the events before it. Frames are
//! numbered. For a client that reconnects, they are rendered again from the first event and the frames that it has are left out, so that
//! it receives exactly the rest.

use super::{
    chat, completions,
    dialect::{Dialect, DialectKind, Frame, StreamFraming},
    error,
    event::GenerationEvent,
    gemini,
    generated::Generated,
    messages,
    responses::{self, ResponseStream},
    ui, weir,
};
use crate::http::{problem::Problem, sse};

impl DialectKind {
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
