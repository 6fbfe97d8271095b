//! OpenAI's chat completions and completions as an upstream.

use serde_json::{Map, Value, json};
use weir_core::failure::Failure;

use super::{UpstreamEvent, UpstreamRequest};
use crate::{
    generation::{
        event::{Alternative, Finish, Token, TokenLogprob, ToolDelta},
        request::{Format, GenerateRequest, Prompt, Sampling},
    },
    http::sse_reader::Event,
    json::to_vec,
};

pub(super) fn request(model: &str, request: &GenerateRequest) -> Result<UpstreamRequest, String> {
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    body.insert("stream".to_owned(), true.into());
    body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
    let path = match &request.prompt {
        Prompt::Chat { messages, tools, tool_choice } => {
            body.insert("messages".to_owned(), parse_json(messages)?);
            for (name, text) in [("tools", tools), ("tool_choice", tool_choice)] {
                if let Some(text) = text {
                    body.insert(name.to_owned(), parse_json(text)?);
                }
            }
            if let Some(top) = request.logprobs {
                body.insert("logprobs".to_owned(), true.into());
                body.insert("top_logprobs".to_owned(), top.into());
            }
            "/chat/completions"
        }
        Prompt::Text(text) => {
            body.insert("prompt".to_owned(), text.as_str().into());
            if request.logprobs.is_some() {
                return Err("upstreams do not support log probabilities of a prompt that is not a chat".to_owned());
            }
            "/completions"
        }
        Prompt::Tokens(_) => return Err("upstreams do not support a prompt of tokens".to_owned()),
    };
    let Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        repeat_penalty,
        presence_penalty,
        frequency_penalty,
        biases,
        seed,
    } = &request.sampling;
    let numbers = [
        ("temperature", temperature),
        ("top_p", top_p),
        ("min_p", min_p),
        ("repetition_penalty", repeat_penalty),
        ("presence_penalty", presence_penalty),
        ("frequency_penalty", frequency_penalty),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            body.insert(name.to_owned(), (*number).into());
        }
    }
    if let Some(top_k) = top_k {
        body.insert("top_k".to_owned(), (*top_k).into());
    }
    if let Some(seed) = seed {
        body.insert("seed".to_owned(), seed.cast_signed().into());
    }
    if !biases.is_empty() {
        let biases: Map<String, Value> =
            biases.iter().map(|(token, bias)| (token.to_string(), (*bias).into())).collect();
        body.insert("logit_bias".to_owned(), biases.into());
    }
    if !request.stop.is_empty() {
        body.insert("stop".to_owned(), request.stop.clone().into());
    }
    if let Some(tokens_max) = request.tokens_max {
        body.insert("max_tokens".to_owned(), tokens_max.into());
    }
    if request.choices > 1 {
        body.insert("n".to_owned(), request.choices.into());
    }
    match &request.format {
        None => {}
        Some(Format::Json) => {
            body.insert("response_format".to_owned(), json!({ "type": "json_object" }));
        }
        Some(Format::JsonSchema(schema)) => {
            let schema = json!({ "name": "answer", "strict": true, "schema": parse_json(schema)? });
            body.insert("response_format".to_owned(), json!({ "type": "json_schema", "json_schema": schema }));
        }
        Some(Format::Grammar(_) | Format::Regex(_)) => {
            return Err("upstreams do not support grammars and regular expressions".to_owned());
        }
    }
    Ok(UpstreamRequest { path: path.to_owned(), headers: Vec::new(), body: to_vec(&body) })
}

pub(super) fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("a part of the request is not JSON: {error}"))
}

/// A number of tokens.
pub(super) fn tokens(value: Option<&Value>) -> u32 {
    value.and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

#[derive(Debug, Default)]
pub(super) struct ChunkReader {}

impl ChunkReader {
    pub(super) fn push(&mut self, message: &Event, out: &mut Vec<UpstreamEvent>) {
        if message.data == "[DONE]" {
            return;
        }
        let Ok(chunk) = serde_json::from_str::<Value>(&message.data) else {
            let text = "the upstream sent a chunk that is not JSON".to_owned();
            return out.push(UpstreamEvent::Failed(Failure::Unavailable(text)));
        };
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            let text = error["message"].as_str().or(error.as_str()).unwrap_or("the upstream has failed");
            return out.push(UpstreamEvent::Failed(Failure::Engine(text.to_owned())));
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            out.push(UpstreamEvent::PromptTokens(tokens(usage.get("prompt_tokens"))));
            out.push(UpstreamEvent::Tokens(tokens(usage.get("completion_tokens"))));
        }
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let index = tokens(choice.get("index"));
            let delta = &choice["delta"];
            let text = delta["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            let logprobs = choice.pointer("/logprobs/content").and_then(Value::as_array);
            let logprobs: Vec<TokenLogprob> = logprobs.into_iter().flatten().map(logprob).collect();
            if !text.is_empty() || !logprobs.is_empty() {
                out.push(UpstreamEvent::Piece(Token { index, text: text.to_owned(), tokens: logprobs }));
            }
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
                out.push(UpstreamEvent::Tool(ToolDelta {
                    index,
                    call: tokens(call.get("index")),
                    id: text(&call["id"]),
                    name: text(&call["function"]["name"]),
                    arguments: text(&call["function"]["arguments"]).unwrap_or_default(),
                }));
            }
            let finish = match choice["finish_reason"].as_str() {
                None => continue,
                Some("length") => Finish::Length,
                Some("tool_calls" | "function_call") => Finish::ToolCalls,
                Some("content_filter") => Finish::Filtered,
                Some(_) => Finish::Stop,
            };
            out.push(UpstreamEvent::Done { index, finish, stop: None });
        }
    }
}

fn logprob(token: &Value) -> TokenLogprob {
    let bytes = |token: &Value| match token["bytes"].as_array() {
        Some(bytes) => bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect(),
        None => token["token"].as_str().unwrap_or_default().as_bytes().to_vec(),
    };
    let value = |token: &Value| token["logprob"].as_f64().unwrap_or(-9999.0) as f32;
    let alternative = |token: &Value| Alternative { id: 0, bytes: bytes(token), logprob: value(token) };
    let top = token["top_logprobs"].as_array().into_iter().flatten().map(alternative).collect();
    TokenLogprob { id: 0, bytes: bytes(token), logprob: value(token), top }
}
