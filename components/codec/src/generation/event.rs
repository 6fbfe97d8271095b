//! The events of a generation, as stored in its channel. Every dialect is rendered from this form, immediately or later.

use serde::{Deserialize, Serialize};

use super::dialect::Dialect;
use crate::json::to_vec;

/// An event of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GenerationEvent {
    /// The prompt was processed: the first event.
    Started(Started),
    /// Generated text.
    Token(Token),
    /// A part of a tool call.
    ToolCall(ToolDelta),
    /// A choice has ended. The event of the last choice is the last event.
    Done(Done),
    /// The generation failed or was interrupted: the last event.
    Error(Failed),
}

/// The start of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Started {
    /// The id of the generation, which is that of its channel.
    pub generation_id: String,
    /// The model.
    pub model: String,
    /// When it began, in seconds since 1970.
    pub created: u64,
    /// Number of tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that were in the cache.
    pub cached_tokens: u32,
    /// The seed of the sampler.
    pub seed: u64,
    /// The number of texts that are generated.
    pub choices: u32,
    /// The form of the response.
    pub dialect: Dialect,
}

/// Generated text: complete UTF-8.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Token {
    /// The choice, from 0.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Its tokens, if log probabilities were requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<TokenLogprob>,
}

/// A token and its log probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenLogprob {
    /// The id.
    pub id: u32,
    /// Its bytes, which may be incomplete UTF-8.
    pub bytes: Vec<u8>,
    /// Its log probability.
    pub logprob: f32,
    /// The most likely tokens at its position, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Alternative>,
}

/// An alternative to the sampled token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Alternative {
    /// The id.
    pub id: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its log probability.
    pub logprob: f32,
}

/// A part of a tool call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ToolDelta {
    /// The choice, from 0.
    pub index: u32,
    /// The call of the choice, from 0.
    pub call: u32,
    /// The id of the call; only in its first part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name of the tool; only in the first part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A part of the arguments, which are JSON text.
    pub arguments: String,
}

/// The end of a choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Done {
    /// The choice, from 0.
    pub index: u32,
    /// Why it ended.
    pub finish_reason: Finish,
    /// The stop string that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
    /// The token counts of the request; only in the event of the last choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended the text, or a stop string was generated.
    Stop,
    /// The maximum number of tokens was reached.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// The content was filtered.
    Filtered,
}

/// Token counts of a request and all of its choices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Usage {
    /// Tokens of the prompt, counted once.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that were in the cache.
    pub cached_tokens: u32,
    /// Generated tokens of all choices.
    pub completion_tokens: u32,
}

impl Usage {
    /// All tokens.
    pub fn total_tokens(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// The failure of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Failed {
    /// Machine-readable code: `cancelled`, `interrupted`, or the code of a problem.
    pub code: String,
    /// What went wrong.
    pub message: String,
    /// The HTTP status of this failure before the first byte of a response.
    pub status: u16,
    /// True when the same request may succeed later.
    pub retryable: bool,
}

impl GenerationEvent {
    /// The name of the server-sent event.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::Token(_) => "token",
            Self::ToolCall(_) => "tool_call",
            Self::Done(_) => "done",
            Self::Error(_) => "error",
        }
    }

    /// True for the last event.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Error(_) | Self::Done(Done { usage: Some(_), .. }))
    }

    /// JSON text on one line.
    pub fn to_json(&self) -> String {
        String::from_utf8(to_vec(self)).unwrap_or_default()
    }

    /// Reads the output of [`Self::to_json`]; `None` for other text.
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}
