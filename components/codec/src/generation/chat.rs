//! OpenAI's chat completions: `POST /v1/chat/completions`.

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    ApiRequest,
    dialect::{Dialect, DialectKind, Frame},
    error::openai_of,
    event::{Finish, GenerationEvent, Started, TokenLogprob, Usage},
    generated::{Choice, Generated, GeneratedCall},
    message::{messages_json, read_messages, read_tools, tool_choice, tools_json},
    request::{GenerateRequest, LOGPROBS_MAX, Prompt, choices, count, format, members, model, sampling, stop},
};
use crate::json::{
    field::{FieldReason, RequestError},
    members::Errors,
    to_vec,
};

/// Reads a body.
///
/// # Errors
///
/// The body is not valid; every invalid field is listed.
pub fn read(body: &[u8]) -> Result<ApiRequest, RequestError> {
    let mut members = members(body)?;
    let mut errors = Errors::default();
    let model = model(&mut members, &mut errors);
    let messages = read_messages(&mut members, &mut errors);
    let messages = messages_json(&messages, "messages", &mut errors);
    let tools = tools_json(&read_tools(&mut members, &mut errors));
    let tool_choice = tool_choice(&mut members, &mut errors);
    let sampling = sampling(&mut members, &mut errors);
    let stop = stop(&mut members, "stop", &mut errors);
    // `max_completion_tokens` replaces `max_tokens`, which most clients still send.
    let max_tokens = count(&mut members, "max_tokens", 1, &mut errors);
    let tokens_max = count(&mut members, "max_completion_tokens", 1, &mut errors).or(max_tokens);
    let choices = choices(&mut members, "n", &mut errors);
    let format = format(&mut members, &mut errors);
    let top = members.integer_within("top_logprobs", (0, i64::from(LOGPROBS_MAX)), &mut errors);
    let logprobs = match members.boolean("logprobs", &mut errors) {
        Some(true) => Some(top.and_then(|top| u32::try_from(top).ok()).unwrap_or(0)),
        _ if top.is_some_and(|top| top > 0) => {
            errors.push_at("top_logprobs", FieldReason::NotAllowed, "needs `logprobs` to be true");
            None
        }
        _ => None,
    };
    if members.items("functions", usize::MAX, &mut errors).is_some_and(|functions| !functions.is_empty()) {
        errors.push_at("functions", FieldReason::Unknown, "is not known here; use `tools`");
    }
    let stream = members.boolean("stream", &mut errors).unwrap_or(false);
    let options = members.object("stream_options", &mut errors);
    let include_usage = options.and_then(|mut options| options.boolean("include_usage", &mut errors)).unwrap_or(false);
    let prompt = Prompt::Chat { messages, tools, tool_choice };
    let request = GenerateRequest { model, prompt, sampling, stop, tokens_max, choices, format, logprobs };
    let dialect = Dialect { include_usage, ..Dialect::new(DialectKind::Chat) };
    errors.finish(ApiRequest { request, stream, detach: false, dialect })
}

/// `finish_reason`
pub(crate) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
        Finish::Filtered => "content_filter",
    }
}

/// `usage`
pub(crate) fn usage_json(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens(),
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

/// The log probabilities of tokens, in the form of the chat completions API.
pub(crate) fn logprobs_json(tokens: &[TokenLogprob]) -> Vec<Value> {
    let token = |token: &TokenLogprob| {
        let top: Vec<Value> = token.top.iter().map(|other| logprob(&other.bytes, other.logprob)).collect();
        let mut value = logprob(&token.bytes, token.logprob);
        value["top_logprobs"] = top.into();
        value
    };
    tokens.iter().map(token).collect()
}

fn logprob(bytes: &[u8], logprob: f32) -> Value {
    json!({ "token": String::from_utf8_lossy(bytes), "bytes": bytes, "logprob": finite(logprob) })
}

/// JSON has no infinity: the log probability of a token that cannot be sampled is -9999, as clients expect.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// The id of a response.
fn id(generation_id: &str) -> String {
    format!("chatcmpl-{generation_id}")
}

/// A chunk of a stream.
#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Value,
    /// Null in all chunks but the last if the request includes the usage; else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

/// The stream of a generation.
#[derive(Debug)]
pub(crate) struct ChatStream {
    include_usage: bool,
    id: String,
    created: u64,
    model: String,
}

impl ChatStream {
    pub(crate) fn new(include_usage: bool) -> Self {
        Self { include_usage, id: String::new(), created: 0, model: String::new() }
    }

    pub(crate) fn push(&mut self, event: &GenerationEvent, out: &mut Vec<Frame>) {
        match event {
            GenerationEvent::Started(Started { generation_id, model, created, choices, .. }) => {
                (self.id, self.created, self.model) = (id(generation_id), *created, model.clone());
                for index in 0..*choices {
                    out.push(self.choice(index, json!({ "role": "assistant", "content": "" }), Value::Null, None));
                }
            }
            GenerationEvent::Token(token) => {
                if token.text.is_empty() && token.tokens.is_empty() {
                    return;
                }
                let logprobs = match token.tokens.is_empty() {
                    true => Value::Null,
                    false => json!({ "content": logprobs_json(&token.tokens), "refusal": null }),
                };
                out.push(self.choice(token.index, json!({ "content": token.text }), logprobs, None));
            }
            GenerationEvent::ToolCall(delta) => {
                let mut call = json!({ "index": delta.call, "function": { "arguments": delta.arguments } });
                if let Some(id) = &delta.id {
                    (call["id"], call["type"]) = (id.as_str().into(), "function".into());
                }
                if let Some(name) = &delta.name {
                    call["function"]["name"] = name.as_str().into();
                }
                out.push(self.choice(delta.index, json!({ "tool_calls": [call] }), Value::Null, None));
            }
            GenerationEvent::Done(done) => {
                out.push(self.choice(done.index, json!({}), Value::Null, Some(done.finish_reason)));
                let Some(usage) = &done.usage else { return };
                if self.include_usage {
                    out.push(self.chunk(json!([]), Some(usage_json(usage))));
                }
                out.push(Frame { name: None, data: "[DONE]".to_owned() });
            }
            GenerationEvent::Error(failed) => out.push(Frame::json(None, &openai_of(failed))),
        }
    }

    fn choice(&self, index: u32, delta: Value, logprobs: Value, finish: Option<Finish>) -> Frame {
        let finish = finish.map(finish_reason);
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        self.chunk(json!([choice]), self.include_usage.then_some(Value::Null))
    }

    fn chunk(&self, choices: Value, usage: Option<Value>) -> Frame {
        let (id, created, model) = (&self.id, self.created, &self.model);
        Frame::json(None, &Chunk { id, object: "chat.completion.chunk", created, model, choices, usage })
    }
}

/// The complete response body.
pub(crate) fn whole_json(generated: &Generated) -> Vec<u8> {
    let choices: Vec<Value> =
        generated.choices.iter().enumerate().map(|(index, choice)| choice_json(index, choice)).collect();
    to_vec(&json!({
        "id": id(generated.id()),
        "object": "chat.completion",
        "created": generated.created(),
        "model": generated.model(),
        "choices": choices,
        "usage": usage_json(&generated.usage()),
    }))
}

fn choice_json(index: usize, choice: &Choice) -> Value {
    let call = |call: &GeneratedCall| json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": call.arguments } });
    // A message with tool calls and no text has null content.
    let content =
        if choice.text.is_empty() && !choice.calls.is_empty() { Value::Null } else { choice.text.as_str().into() };
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if !choice.calls.is_empty() {
        message["tool_calls"] = choice.calls.iter().map(call).collect();
    }
    let logprobs = match choice.tokens.is_empty() {
        true => Value::Null,
        false => json!({ "content": logprobs_json(&choice.tokens), "refusal": null }),
    };
    let finish = choice.finish().map(finish_reason);
    json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish })
}
