//! Anthropic's messages: `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use serde_json::{Value, json};

use super::{
    ApiRequest,
    dialect::{Dialect, DialectKind, Frame},
    error::anthropic_of,
    event::{Done, Finish, GenerationEvent, Usage},
    generated::{Choice, Generated},
    message::{
        MESSAGES_MAX, Message, Role, TOOLS_MAX, Tool, ToolCall, content_of, messages_json, named_choice, tools_json,
    },
    request::{GenerateRequest, PROMPT_BYTES_MAX, Prompt, Sampling, count, json, members, model, number_within, stop},
};
use crate::json::{
    field::{FieldReason, RequestError},
    members::{Errors, Members},
    to_vec,
    tree::Node,
};

/// Reads a body. `needs_tokens_max`: whether `max_tokens` is required. Messages require it, counting their tokens does not.
///
/// # Errors
///
/// The body is not valid; every invalid field is listed.
pub fn read(body: &[u8], needs_tokens_max: bool) -> Result<ApiRequest, RequestError> {
    let mut members = members(body)?;
    let mut errors = Errors::default();
    let model = model(&mut members, &mut errors);
    let mut messages = Vec::new();
    if let Some(node) = members.take("system")
        && let Some(text) = content_of("system".to_owned(), node, &mut errors)
    {
        messages.push(Message::text(Role::System, text));
    }
    if members.require("messages", &mut errors) {
        let items = members.items("messages", MESSAGES_MAX, &mut errors).unwrap_or_default();
        if items.is_empty() && errors.is_empty() {
            errors.push_at("messages", FieldReason::TooShort, "must have at least one message");
        }
        for (path, node) in items {
            message(path, node, &mut messages, &mut errors);
        }
    }
    let messages = messages_json(&messages, "messages", &mut errors);
    let tools = members.items("tools", TOOLS_MAX, &mut errors).unwrap_or_default();
    let tools: Vec<Tool> = tools.into_iter().filter_map(|(path, node)| tool(path, node, &mut errors)).collect();
    let tool_choice = tool_choice(&mut members, &mut errors);
    if needs_tokens_max {
        members.require("max_tokens", &mut errors);
    }
    let tokens_max = count(&mut members, "max_tokens", 1, &mut errors);
    let sampling = Sampling {
        temperature: number_within(&mut members, "temperature", (0.0, 1.0), &mut errors),
        top_k: count(&mut members, "top_k", 0, &mut errors),
        top_p: number_within(&mut members, "top_p", (0.0, 1.0), &mut errors),
        ..Sampling::default()
    };
    let stop = stop(&mut members, "stop_sequences", &mut errors);
    let stream = members.boolean("stream", &mut errors).unwrap_or(false);
    let prompt = Prompt::Chat { messages, tools: tools_json(&tools), tool_choice };
    let request = GenerateRequest { model, sampling, stop, tokens_max, ..GenerateRequest::new(prompt) };
    errors.finish(ApiRequest { request, stream, detach: false, dialect: Dialect::new(DialectKind::Messages) })
}

/// Converts a message. One with tool results becomes several messages.
fn message(path: String, node: Node<'_>, out: &mut Vec<Message>, errors: &mut Errors) {
    let Some(members) = Members::of_node(path, node, errors) else { return };
    let mut members = members.with_null_as_absent();
    let role = match members.required_text_bytes("role", 64, errors).as_deref() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        Some(other) => {
            let excerpt: String = other.chars().filter(|c| !c.is_control()).collect();
            let what = format!("must be one of user, assistant, and is `{excerpt}`");
            return errors.push_at(&members.path("role"), FieldReason::NotAllowed, &what);
        }
        None => return,
    };
    let path = members.path("content");
    if !members.require("content", errors) {
        return;
    }
    let blocks = match members.take("content") {
        Some(Node::Array(blocks)) => blocks,
        Some(node) => {
            out.extend(content_of(path, node, errors).map(|text| Message::text(role, text)));
            return;
        }
        None => return errors.push_at(&path, FieldReason::Missing, "is required"),
    };
    let (mut text, mut calls) = (String::new(), Vec::new());
    for (at, block) in blocks.into_iter().enumerate() {
        let path = format!("{path}[{at}]");
        let Some(block) = Members::of_node(path.clone(), block, errors) else { return };
        let mut block = block.with_null_as_absent();
        match block.required_text_bytes("type", 64, errors).as_deref() {
            Some("text") => text += &block.required_text_bytes("text", PROMPT_BYTES_MAX, errors).unwrap_or_default(),
            Some("thinking" | "redacted_thinking") => {}
            Some("tool_use") => {
                let id = block.required_text_bytes("id", 256, errors).unwrap_or_default();
                let name = block.required_text_bytes("name", 256, errors).unwrap_or_default();
                let arguments = block.take("input").map_or_else(|| "{}".to_owned(), |node| json(&node));
                calls.push(ToolCall::new(id, name, arguments));
            }
            Some("tool_result") => {
                let id = block.required_text_bytes("tool_use_id", 256, errors);
                let content = block.take("content").and_then(|node| content_of(block.path("content"), node, errors));
                let result = Message::text(Role::Tool, content.unwrap_or_default());
                out.push(Message { tool_call_id: id, ..result });
            }
            Some(other) => {
                let excerpt: String = other.chars().filter(|c| !c.is_control()).collect();
                let what = format!("is `{excerpt}`; the models here take text alone");
                errors.push_at(&format!("{path}.type"), FieldReason::NotAllowed, &what);
            }
            None => {}
        }
    }
    if !text.is_empty() || !calls.is_empty() {
        out.push(Message { tool_calls: calls, ..Message::text(role, text) });
    }
}

fn tool(path: String, node: Node<'_>, errors: &mut Errors) -> Option<Tool> {
    let mut members = Members::of_node(path, node, errors)?.with_null_as_absent();
    let kind = members.text("type", errors);
    if kind.as_deref().is_some_and(|kind| kind != "custom") {
        errors.push_at(&members.path("type"), FieldReason::NotAllowed, "must be custom: this server runs no tools");
        return None;
    }
    let name = members.required_text_bytes("name", 256, errors)?;
    let description = members.text("description", errors);
    let schema = members.take("input_schema");
    Some(Tool::new(name, description, schema.as_ref()))
}

fn tool_choice(members: &mut Members<'_>, errors: &mut Errors) -> Option<String> {
    let mut choice = members.object("tool_choice", errors)?;
    match choice.required_text_bytes("type", 64, errors)?.as_str() {
        "auto" => Some("\"auto\"".to_owned()),
        "any" => Some("\"required\"".to_owned()),
        "none" => Some("\"none\"".to_owned()),
        "tool" => choice.required_text_bytes("name", 256, errors).map(|name| named_choice(&name)),
        _ => {
            let what = "must be one of auto, any, tool, none";
            errors.push_at("tool_choice.type", FieldReason::NotAllowed, what);
            None
        }
    }
}

/// The response body of `count_tokens`.
pub fn count_json(tokens: u32) -> Vec<u8> {
    to_vec(&json!({ "input_tokens": tokens }))
}

fn id(generation_id: &str) -> String {
    format!("msg_{generation_id}")
}

fn stop_reason(done: &Done) -> &'static str {
    match (done.finish_reason, &done.stop) {
        (Finish::Stop, Some(_)) => "stop_sequence",
        (Finish::Stop, None) => "end_turn",
        (Finish::Length, _) => "max_tokens",
        (Finish::ToolCalls, _) => "tool_use",
        (Finish::Filtered, _) => "refusal",
    }
}

/// In this API, `input_tokens` does not include tokens that were in the cache.
fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}

fn message_json(generated: &Generated, content: Value, done: Option<&Done>) -> Value {
    json!({
        "id": id(generated.id()),
        "type": "message",
        "role": "assistant",
        "model": generated.model(),
        "content": content,
        "stop_reason": done.map(stop_reason),
        "stop_sequence": done.and_then(|done| done.stop.as_deref()),
        "usage": usage_json(&generated.usage()),
    })
}

/// The complete response body.
pub(crate) fn whole_json(generated: &Generated) -> Vec<u8> {
    let empty = Choice::default();
    let choice = generated.choices.first().unwrap_or(&empty);
    let mut content = Vec::new();
    if !choice.text.is_empty() || choice.calls.is_empty() {
        content.push(json!({ "type": "text", "text": choice.text }));
    }
    for call in &choice.calls {
        let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        content.push(json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": input }));
    }
    to_vec(&message_json(generated, content.into(), choice.done.as_ref()))
}

/// The stream of a generation.
#[derive(Debug, Default)]
pub(crate) struct MessageStream {
    generated: Generated,
    /// The open block.
    block: Option<Block>,
    /// Number of blocks so far.
    blocks: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Call(u32),
}

impl MessageStream {
    pub(crate) fn push(&mut self, event: &GenerationEvent, out: &mut Vec<Frame>) {
        match event {
            GenerationEvent::Started(_) => {
                self.generated.push(event);
                let message = message_json(&self.generated, json!([]), None);
                out.push(Frame::json(Some("message_start"), &json!({ "type": "message_start", "message": message })));
                out.push(Frame::json(Some("ping"), &json!({ "type": "ping" })));
            }
            GenerationEvent::Token(token) if token.index == 0 && !token.text.is_empty() => {
                self.open(Block::Text, || json!({ "type": "text", "text": "" }), out);
                self.delta(json!({ "type": "text_delta", "text": token.text }), out);
            }
            GenerationEvent::ToolCall(delta) if delta.index == 0 => {
                let (id, name) = (&delta.id, &delta.name);
                let block = || json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                self.open(Block::Call(delta.call), block, out);
                if !delta.arguments.is_empty() {
                    self.delta(json!({ "type": "input_json_delta", "partial_json": delta.arguments }), out);
                }
            }
            GenerationEvent::Done(done) if done.index == 0 => {
                if self.blocks == 0 {
                    self.open(Block::Text, || json!({ "type": "text", "text": "" }), out);
                }
                self.close(out);
                let delta = json!({ "stop_reason": stop_reason(done), "stop_sequence": done.stop });
                let usage = usage_json(&done.usage.unwrap_or_default());
                let data = json!({ "type": "message_delta", "delta": delta, "usage": usage });
                out.push(Frame::json(Some("message_delta"), &data));
                out.push(Frame::json(Some("message_stop"), &json!({ "type": "message_stop" })));
            }
            GenerationEvent::Error(failed) => out.push(Frame::json(Some("error"), &anthropic_of(failed))),
            _ => {}
        }
    }

    fn open(&mut self, block: Block, content: impl FnOnce() -> Value, out: &mut Vec<Frame>) {
        if self.block == Some(block) {
            return;
        }
        self.close(out);
        let data = json!({ "type": "content_block_start", "index": self.blocks, "content_block": content() });
        out.push(Frame::json(Some("content_block_start"), &data));
        self.block = Some(block);
        self.blocks += 1;
    }

    fn delta(&self, delta: Value, out: &mut Vec<Frame>) {
        let data = json!({ "type": "content_block_delta", "index": self.blocks.saturating_sub(1), "delta": delta });
        out.push(Frame::json(Some("content_block_delta"), &data));
    }

    fn close(&mut self, out: &mut Vec<Frame>) {
        if self.block.take().is_some() {
            let data = json!({ "type": "content_block_stop", "index": self.blocks.saturating_sub(1) });
            out.push(Frame::json(Some("content_block_stop"), &data));
        }
    }
}
