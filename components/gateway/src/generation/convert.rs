//! All conversions between the types of `weir:stream/generate` and those of codec.

use weir_codec::generation::{
    event::{Alternative, Finish, Token, TokenLogprob, ToolDelta},
    request::{Format, GenerateRequest, Prompt, Sampling},
};

use crate::platform::bindings::weir::stream::{generate_types as wire, types::WhenFull};

/// A request with an id, for a model. It fails at once if the queue is full.
pub(super) fn request(
    id: u64,
    model: String,
    request: GenerateRequest,
    deadline_ms: Option<u32>,
    detached: bool,
) -> wire::Request {
    wire::Request {
        id,
        model,
        prompt: prompt(request.prompt),
        sampling: sampling(request.sampling),
        stop: request.stop,
        tokens_max: request.tokens_max,
        choices: request.choices,
        format: request.format.map(format),
        logprobs: request.logprobs,
        deadline_ms,
        when_full: WhenFull::Fail,
        detached,
    }
}

fn prompt(prompt: Prompt) -> wire::Prompt {
    match prompt {
        Prompt::Chat { messages, tools, tool_choice } => {
            wire::Prompt::Chat(wire::Chat { messages, tools, tool_choice })
        }
        Prompt::Text(text) => wire::Prompt::Text(text),
        Prompt::Tokens(tokens) => wire::Prompt::Tokens(tokens),
    }
}

fn sampling(sampling: Sampling) -> wire::Sampling {
    wire::Sampling {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repeat_penalty: sampling.repeat_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        biases: sampling.biases,
        seed: sampling.seed,
    }
}

fn format(format: Format) -> wire::Format {
    match format {
        Format::Json => wire::Format::Json,
        Format::JsonSchema(schema) => wire::Format::JsonSchema(schema),
        Format::Grammar(grammar) => wire::Format::Grammar(grammar),
        Format::Regex(regex) => wire::Format::Regex(regex),
    }
}

pub(super) fn token(piece: wire::Piece) -> Token {
    let token = |token: wire::Token| TokenLogprob {
        id: token.id,
        bytes: token.bytes,
        logprob: finite(token.logprob),
        top: token
            .top
            .into_iter()
            .map(|(id, bytes, logprob)| Alternative { id, bytes, logprob: finite(logprob) })
            .collect(),
    };
    Token { index: piece.index, text: piece.text, tokens: piece.tokens.into_iter().map(token).collect() }
}

/// JSON has no infinity: a token that cannot be sampled gets -9999, as in the API of OpenAI.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

pub(super) fn tool(delta: wire::ToolDelta) -> ToolDelta {
    ToolDelta { index: delta.index, call: delta.call, id: delta.id, name: delta.name, arguments: delta.arguments }
}

/// Why a choice ended; none if it was cancelled.
pub(super) fn finish(reason: wire::Reason) -> Option<Finish> {
    match reason {
        wire::Reason::Stop => Some(Finish::Stop),
        wire::Reason::Length => Some(Finish::Length),
        wire::Reason::ToolCalls => Some(Finish::ToolCalls),
        wire::Reason::Filtered => Some(Finish::Filtered),
        wire::Reason::Cancelled => None,
    }
}
