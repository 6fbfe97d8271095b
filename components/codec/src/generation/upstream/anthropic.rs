//! Anthropic's messages as an upstream.

use serde_json::{Map, Value, json};
use weir_core::failure::Failure;

use super::{
    UpstreamEvent, UpstreamRequest,
    openai::{parse_json, tokens},
};
use crate::{
    generation::{
        event::{Finish, Token, ToolDelta},
        request::{GenerateRequest, Prompt},
    },
    http::sse_reader::Event,
    json::to_vec,
};

/// Maximum number of generated tokens when the request has no bound; the API requires one.
const TOKENS_MAX: u32 = 4096;

pub(super) fn request(model: &str, request: &GenerateRequest) -> Result<UpstreamRequest, String> {
    let Prompt::Chat { messages, tools, tool_choice } = &request.prompt else {
        return Err("this kind of upstream supports only chats".to_owned());
    };
    if request.choices > 1 || request.format.is_some() || request.logprobs.is_some() {
        return Err("this kind of upstream does not support several choices, formats or log probabilities".to_owned());
    }
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
    set("model", model.into());
    set("stream", true.into());
    set("max_tokens", request.tokens_max.unwrap_or(TOKENS_MAX).into());
    let (mut system, mut turns): (Vec<String>, Vec<Value>) = (Vec::new(), Vec::new());
    for message in parse_json(messages)?.as_array().into_iter().flatten() {
        let text = message["content"].as_str().unwrap_or_default();
        match message["role"].as_str() {
            Some("system") => system.push(text.to_owned()),
            Some("tool") => {
                let result = json!({ "type": "tool_result", "tool_use_id": message["tool_call_id"], "content": text });
                push_turn(&mut turns, "user", vec![result]);
            }
            Some("assistant") => {
                let mut blocks = Vec::new();
                if !text.is_empty() {
                    blocks.push(json!({ "type": "text", "text": text }));
                }
                for call in message["tool_calls"].as_array().into_iter().flatten() {
                    let function = &call["function"];
                    let input =
                        parse_json(function["arguments"].as_str().unwrap_or("{}")).unwrap_or_else(|_| json!({}));
                    let (id, name) = (&call["id"], &function["name"]);
                    blocks.push(json!({ "type": "tool_use", "id": id, "name": name, "input": input }));
                }
                push_turn(&mut turns, "assistant", blocks);
            }
            _ => push_turn(&mut turns, "user", vec![json!({ "type": "text", "text": text })]),
        }
    }
    set("messages", turns.into());
    if !system.is_empty() {
        set("system", system.join("\n\n").into());
    }
    if let Some(tools) = tools {
        let tool = |tool: &Value| {
            let function = &tool["function"];
            let schema = function.get("parameters").cloned().unwrap_or_else(|| json!({ "type": "object" }));
            let mut value = json!({ "name": function["name"], "input_schema": schema });
            if function["description"].is_string() {
                value["description"] = function["description"].clone();
            }
            value
        };
        set("tools", parse_json(tools)?.as_array().into_iter().flatten().map(tool).collect());
    }
    if let Some(choice) = tool_choice {
        let choice = parse_json(choice)?;
        let value = match choice.as_str() {
            Some("required") => json!({ "type": "any" }),
            Some("none") => json!({ "type": "none" }),
            Some(_) => json!({ "type": "auto" }),
            None => json!({ "type": "tool", "name": choice["function"]["name"] }),
        };
        set("tool_choice", value);
    }
    if let Some(temperature) = request.sampling.temperature {
        set("temperature", temperature.min(1.0).into());
    }
    if let Some(top_p) = request.sampling.top_p {
        set("top_p", top_p.into());
    }
    if let Some(top_k) = request.sampling.top_k.filter(|top_k| *top_k > 0) {
        set("top_k", top_k.into());
    }
    if !request.stop.is_empty() {
        set("stop_sequences", request.stop.clone().into());
    }
    let headers = vec![("anthropic-version", "2023-06-01")];
    Ok(UpstreamRequest { path: "/v1/messages".to_owned(), headers, body: to_vec(&body) })
}

/// Appends a message. Consecutive messages of the same role are merged, since the API requires alternating roles.
fn push_turn(turns: &mut Vec<Value>, role: &str, blocks: Vec<Value>) {
    if let Some(last) = turns.last_mut().filter(|last| last["role"] == role)
        && let Some(content) = last["content"].as_array_mut()
    {
        content.extend(blocks);
        return;
    }
    turns.push(json!({ "role": role, "content": blocks }));
}

#[derive(Debug, Default)]
pub(super) struct EventReader {
    /// Number of tool calls so far; the last one belongs to the open block.
    calls: u32,
    done: Option<(Finish, Option<String>)>,
}

impl EventReader {
    pub(super) fn push(&mut self, message: &Event, out: &mut Vec<UpstreamEvent>) {
        let Ok(event) = serde_json::from_str::<Value>(&message.data) else {
            let text = "the upstream sent an event that is not JSON".to_owned();
            return out.push(UpstreamEvent::Failed(Failure::Unavailable(text)));
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match event["type"].as_str() {
            Some("message_start") => {
                let usage = &event["message"]["usage"];
                let cached_tokens = tokens(usage.get("cache_read_input_tokens"));
                let written = tokens(usage.get("cache_creation_input_tokens"));
                let prompt_tokens = tokens(usage.get("input_tokens")) + cached_tokens + written;
                out.push(UpstreamEvent::Begun { prompt_tokens, cached_tokens });
            }
            Some("content_block_start") if event["content_block"]["type"] == "tool_use" => {
                let block = &event["content_block"];
                self.calls += 1;
                let (id, name) = (Some(text(&block["id"])), Some(text(&block["name"])));
                out.push(UpstreamEvent::Tool(ToolDelta {
                    index: 0,
                    call: self.calls - 1,
                    id,
                    name,
                    arguments: String::new(),
                }));
            }
            Some("content_block_delta") => match event["delta"]["type"].as_str() {
                Some("text_delta") => {
                    let text = text(&event["delta"]["text"]);
                    out.push(UpstreamEvent::Piece(Token { index: 0, text, tokens: Vec::new() }));
                }
                Some("input_json_delta") => out.push(UpstreamEvent::Tool(ToolDelta {
                    index: 0,
                    call: self.calls.saturating_sub(1),
                    id: None,
                    name: None,
                    arguments: text(&event["delta"]["partial_json"]),
                })),
                _ => {}
            },
            Some("message_delta") => {
                if let Some(usage) = event.get("usage") {
                    out.push(UpstreamEvent::Tokens(tokens(usage.get("output_tokens"))));
                }
                let finish = match event["delta"]["stop_reason"].as_str() {
                    None => return,
                    Some("max_tokens" | "model_context_window_exceeded") => Finish::Length,
                    Some("tool_use") => Finish::ToolCalls,
                    Some("refusal") => Finish::Filtered,
                    Some(_) => Finish::Stop,
                };
                self.done = Some((finish, event["delta"]["stop_sequence"].as_str().map(str::to_owned)));
            }
            // The finish reason is reported only when the message is complete.
            Some("message_stop") => {
                if let Some((finish, stop)) = self.done.take() {
                    out.push(UpstreamEvent::Done { index: 0, finish, stop });
                }
            }
            Some("error") => {
                let message = text(&event["error"]["message"]);
                out.push(UpstreamEvent::Failed(match event["error"]["type"].as_str() {
                    Some("overloaded_error" | "rate_limit_error") => Failure::Overloaded { retry_after_ms: 1000 },
                    _ => Failure::Engine(message),
                }));
            }
            _ => {}
        }
    }
}
