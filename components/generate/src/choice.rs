//! One text that is generated: from sampled tokens to events.

use weir_core::generation::FinishReason;
use weir_core::generation::text::TextStream;

use crate::bindings::weir::stream::lm::Sampled;
use crate::constraint::{Constraint, Next};
use crate::model::LanguageModel;
use crate::tools::{Part, ToolFormat, ToolParser};
use crate::types::{Done, EventKind, Piece, Reason, Token, ToolDelta};

/// The state of a text.
pub struct Choice {
    index: u32,
    text: TextStream,
    tools: Option<ToolParser>,
    /// Begins the ids of its calls.
    call_prefix: String,
    constraint: Option<Constraint>,
    wants_logprobs: bool,
    /// The sampled tokens; the last one is not yet part of its sequence.
    pub tokens: Vec<u32>,
}

/// How a text has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: FinishReason,
    /// The stop string that ended it.
    pub stop: Option<String>,
}

impl End {
    /// Without a stop string.
    pub fn of(reason: FinishReason) -> Self {
        Self { reason, stop: None }
    }
}

impl Choice {
    /// A text without tokens.
    pub fn new(
        index: u32,
        stops: &[String],
        tools: Option<(ToolFormat, String)>,
        constraint: Option<Constraint>,
        wants_logprobs: bool,
    ) -> Self {
        let (format, call_prefix) = tools.unzip();
        Self {
            index,
            text: TextStream::new(stops.iter().cloned()),
            tools: format.map(ToolParser::new),
            call_prefix: call_prefix.unwrap_or_default(),
            constraint,
            wants_logprobs,
            tokens: Vec::new(),
        }
    }

    /// The tokens that may come next; none where all may.
    ///
    /// # Errors
    ///
    /// The form of the text takes too much to be followed.
    pub fn allowed(&mut self) -> Result<Option<Next>, String> {
        self.constraint.as_mut().map(Constraint::allowed).transpose()
    }

    /// Adds a sampled token. Returns how the text has ended, if it has.
    ///
    /// # Errors
    ///
    /// The token is none that its form allows.
    pub fn push(
        &mut self,
        sampled: &Sampled,
        model: &LanguageModel,
        events: &mut Vec<EventKind>,
    ) -> Result<Option<End>, String> {
        let token = sampled.token;
        if model.is_end(token) {
            return Ok(Some(End::of(FinishReason::Stop)));
        }
        self.tokens.push(token);
        let is_complete = match &mut self.constraint {
            Some(constraint) => constraint.push(token)?,
            None => false,
        };
        let is_shown = match &self.tools {
            Some(_) => !model.tokenizer.is_control(token) || is_marker(model, token),
            None => !model.tokenizer.is_control(token),
        };
        let cut = self.text.push(if is_shown { model.tokenizer.bytes(token) } else { &[] });
        let logprobs: Vec<Token> = if self.wants_logprobs { vec![logprob(sampled, model)] } else { Vec::new() };
        self.show(&cut.text, logprobs, events);
        Ok(match cut.stop {
            Some(stop) => Some(End { reason: FinishReason::Stop, stop: Some(stop) }),
            None => is_complete.then(|| End::of(FinishReason::Stop)),
        })
    }

    /// Ends the text; adds what was held back of it, and its end.
    pub fn finish(&mut self, end: End, events: &mut Vec<EventKind>) {
        let mut end = end;
        // A text that a stop string has ended shows nothing more.
        if end.stop.is_none() && end.reason != FinishReason::Cancelled {
            let cut = self.text.finish();
            self.show(&cut.text, Vec::new(), events);
            end.stop = cut.stop;
        }
        if let Some(parser) = &mut self.tools {
            let parts = parser.finish();
            if end.reason == FinishReason::Stop && parser.complete_calls() > 0 {
                end.reason = FinishReason::ToolCalls;
            }
            self.show_parts(parts, Vec::new(), events);
        }
        let tokens = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        let reason = match end.reason {
            FinishReason::Stop => Reason::Stop,
            FinishReason::Length => Reason::Length,
            FinishReason::ToolCalls => Reason::ToolCalls,
            FinishReason::Filtered => Reason::Filtered,
            FinishReason::Cancelled => Reason::Cancelled,
        };
        events.push(EventKind::Done(Done { index: self.index, reason, stop: end.stop, tokens }));
    }

    fn show(&mut self, text: &str, logprobs: Vec<Token>, events: &mut Vec<EventKind>) {
        let parts = match &mut self.tools {
            Some(parser) => parser.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Part::Text(text.to_owned())],
        };
        self.show_parts(parts, logprobs, events);
    }

    fn show_parts(&self, parts: Vec<Part>, mut logprobs: Vec<Token>, events: &mut Vec<EventKind>) {
        let index = self.index;
        for part in parts {
            events.push(match part {
                Part::Text(text) => EventKind::Piece(Piece { index, text, tokens: std::mem::take(&mut logprobs) }),
                Part::Name { call, name } => {
                    let id = Some(format!("{}{call}", self.call_prefix));
                    EventKind::Tool(ToolDelta { index, call, id, name: Some(name), arguments: String::new() })
                }
                Part::Arguments { text, .. } if text.is_empty() => continue,
                Part::Arguments { call, text } => {
                    EventKind::Tool(ToolDelta { index, call, id: None, name: None, arguments: text })
                }
            });
        }
        if !logprobs.is_empty() {
            events.push(EventKind::Piece(Piece { index, text: String::new(), tokens: logprobs }));
        }
    }
}

/// Whether a control token begins calls of tools.
fn is_marker(model: &LanguageModel, token: u32) -> bool {
    model.tokenizer.bytes(token) == model.tool_format.marker().as_bytes()
}

fn logprob(sampled: &Sampled, model: &LanguageModel) -> Token {
    let bytes = |token: u32| model.tokenizer.bytes(token).to_vec();
    Token {
        id: sampled.token,
        bytes: bytes(sampled.token),
        logprob: finite(sampled.logprob),
        top: sampled.top.iter().map(|(token, logprob)| (*token, bytes(*token), finite(*logprob))).collect(),
    }
}

/// JSON has no infinity: a token that a filter left although it is impossible has a very small probability.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
