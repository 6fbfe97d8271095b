//! A choice: one generated text, from sampled tokens to events.

use weir_core::generation::FinishReason;
use weir_core::generation::text::TextStream;

use crate::bindings::weir::stream::lm::Sampled;
use crate::constraint::{Constraint, NextTokens};
use crate::model::LanguageModel;
use crate::tools::{Part, ToolFormat, ToolParser};
use crate::types::{Done, EventKind, Piece, Reason, Token, ToolDelta};

/// The state of a generated text.
pub struct Choice {
    index: u32,
    text: TextStream,
    tools: Option<ToolParser>,
    /// The prefix of the ids of its tool calls.
    call_prefix: String,
    constraint: Option<Constraint>,
    wants_logprobs: bool,
    /// The sampled tokens. The last one is not computed yet.
    pub tokens: Vec<u32>,
}

/// How a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The reason.
    pub reason: FinishReason,
    /// The stop string that ended it, if one did.
    pub stop: Option<String>,
}

impl End {
    /// An end without a stop string.
    pub fn of(reason: FinishReason) -> Self {
        Self { reason, stop: None }
    }
}

impl Choice {
    /// A text without tokens. `tools` are the format of tool calls and the prefix of their ids, if the text may have
    /// calls.
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

    /// The tokens that may come next; none if there is no constraint.
    ///
    /// # Errors
    ///
    /// The constraint exceeds its computation limits.
    pub fn allowed(&mut self) -> Result<Option<NextTokens>, String> {
        self.constraint.as_mut().map(Constraint::allowed).transpose()
    }

    /// Adds a sampled token, and its events to `events`. Returns how the text ended, if it did.
    ///
    /// # Errors
    ///
    /// The constraint does not allow the token.
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
        self.emit(&cut.text, logprobs, events);
        Ok(match cut.stop {
            Some(stop) => Some(End { reason: FinishReason::Stop, stop: Some(stop) }),
            None => is_complete.then(|| End::of(FinishReason::Stop)),
        })
    }

    /// Ends the text: adds events for the text that was held back, and for the end.
    pub fn finish(&mut self, end: End, events: &mut Vec<EventKind>) {
        let mut end = end;
        // After a stop string, or when cancelled, the text that was held back is dropped.
        if end.stop.is_none() && end.reason != FinishReason::Cancelled {
            let cut = self.text.finish();
            self.emit(&cut.text, Vec::new(), events);
            end.stop = cut.stop;
        }
        if let Some(parser) = &mut self.tools {
            let parts = parser.finish();
            if end.reason == FinishReason::Stop && parser.complete_calls() > 0 {
                end.reason = FinishReason::ToolCalls;
            }
            self.emit_parts(parts, Vec::new(), events);
        }
        let tokens = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        let reason = match end.reason {
            FinishReason::Stop => Reason::Stop,
            FinishReason::Length => Reason::Length,
            FinishReason::ToolCalls => Reason::ToolCalls,
            FinishReason::Filtered => Reason::Filtered,
            FinishReason::Cancelled => Reason::Cancelled,
        };
        events.push(EventKind::Done(Done { index: self.index, reason, stop: end.stop, tokens, prompt_tokens: None }));
    }

    fn emit(&mut self, text: &str, logprobs: Vec<Token>, events: &mut Vec<EventKind>) {
        let parts = match &mut self.tools {
            Some(parser) => parser.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Part::Text(text.to_owned())],
        };
        self.emit_parts(parts, logprobs, events);
    }

    fn emit_parts(&self, parts: Vec<Part>, mut logprobs: Vec<Token>, events: &mut Vec<EventKind>) {
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

/// Whether a control token is the marker that begins tool calls.
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

/// JSON has no infinity: an impossible token gets -9999, as in the API of OpenAI.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
