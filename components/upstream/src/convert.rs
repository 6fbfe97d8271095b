//! All conversions between the types of `weir:stream/generate` and those of codec and core.

use weir_codec::generation::{
    event::{Alternative, Finish, Token, TokenLogprob, ToolDelta},
    request::{Format, GenerateRequest, Prompt, Sampling},
};
use weir_core::failure::Failure;

use crate::bindings::weir::stream::{generate_types as wire, types};

/// Converts a request to its form in codec.
pub fn request(request: wire::Request) -> GenerateRequest {
    GenerateRequest {
        model: Some(request.model),
        prompt: match request.prompt {
            wire::Prompt::Chat(wire::Chat { messages, tools, tool_choice }) => {
                Prompt::Chat { messages, tools, tool_choice }
            }
            wire::Prompt::Text(text) => Prompt::Text(text),
            wire::Prompt::Tokens(tokens) => Prompt::Tokens(tokens),
        },
        sampling: Sampling {
            temperature: request.sampling.temperature,
            top_k: request.sampling.top_k,
            top_p: request.sampling.top_p,
            min_p: request.sampling.min_p,
            repeat_penalty: request.sampling.repeat_penalty,
            presence_penalty: request.sampling.presence_penalty,
            frequency_penalty: request.sampling.frequency_penalty,
            biases: request.sampling.biases,
            seed: request.sampling.seed,
        },
        stop: request.stop,
        tokens_max: request.tokens_max,
        choices: request.choices,
        format: request.format.map(|format| match format {
            wire::Format::Json => Format::Json,
            wire::Format::JsonSchema(schema) => Format::JsonSchema(schema),
            wire::Format::Grammar(grammar) => Format::Grammar(grammar),
            wire::Format::Regex(regex) => Format::Regex(regex),
        }),
        logprobs: request.logprobs,
    }
}

/// Converts a piece of text to its WIT form.
pub fn piece(token: Token) -> wire::Piece {
    let alternative = |Alternative { id, bytes, logprob }| (id, bytes, logprob);
    let logprob = |token: TokenLogprob| wire::Token {
        id: token.id,
        bytes: token.bytes,
        logprob: token.logprob,
        top: token.top.into_iter().map(alternative).collect(),
    };
    wire::Piece { index: token.index, text: token.text, tokens: token.tokens.into_iter().map(logprob).collect() }
}

/// Converts a part of a tool call to its WIT form.
pub fn tool(delta: ToolDelta) -> wire::ToolDelta {
    let ToolDelta { index, call, id, name, arguments } = delta;
    wire::ToolDelta { index, call, id, name, arguments }
}

/// Converts a finish reason to its WIT form.
pub fn reason(finish: Finish) -> wire::Reason {
    match finish {
        Finish::Stop => wire::Reason::Stop,
        Finish::Length => wire::Reason::Length,
        Finish::ToolCalls => wire::Reason::ToolCalls,
        Finish::Filtered => wire::Reason::Filtered,
    }
}

/// Converts a failure to its WIT form.
pub fn failure(failure: Failure) -> types::Failure {
    match failure {
        Failure::InvalidInput(reason) => types::Failure::InvalidInput(reason),
        Failure::UnknownModel { name, .. } => types::Failure::UnknownModel(name),
        Failure::TooLong { tokens, tokens_max } => types::Failure::TooLong(types::TooLong { tokens, tokens_max }),
        Failure::Overloaded { retry_after_ms } => types::Failure::Overloaded(retry_after_ms),
        Failure::Throttled { retry_after_ms } => types::Failure::Throttled(retry_after_ms),
        Failure::CircuitOpen { retry_after_ms } => types::Failure::CircuitOpen(retry_after_ms),
        Failure::Unavailable(reason) => types::Failure::Unavailable(reason),
        Failure::DeadlineExceeded | Failure::RequestTimeout { .. } => types::Failure::DeadlineExceeded,
        Failure::Engine(reason) => types::Failure::Engine(reason),
        Failure::Other(reason) => types::Failure::Other(reason),
    }
}
