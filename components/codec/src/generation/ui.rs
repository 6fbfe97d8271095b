//! The UI message stream of the AI SDK, which `useChat` reads: `POST /v1/ui/chat`.

use serde_json::{Value, json};

use super::{
    ApiRequest,
    dialect::{Dialect, DialectKind, Frame},
    event::{Finish, GenerationEvent},
    generated::{Choice, Generated},
    message::{MESSAGES_MAX, Message, Role, messages_json},
    request::{GenerateRequest, PROMPT_BYTES_MAX, Prompt, count, members, model, sampling, stop},
};
use crate::json::{
    field::{FieldReason, RequestError},
    members::{Errors, Members},
    to_vec,
    tree::Node,
};

/// Reads a body: `messages` with parts, as `useChat` sends them, and optionally parameters under their names in OpenAI's API. The
/// response is a stream.
///
/// # Errors
///
/// The body is not valid; every invalid field is listed.
pub fn read(body: &[u8]) -> Result<ApiRequest, RequestError> {
    let mut members = members(body)?;
    let mut errors = Errors::default();
    let model = model(&mut members, &mut errors);
    let mut messages = Vec::new();
    if let Some(system) = members.text_bytes("system", PROMPT_BYTES_MAX, &mut errors) {
        messages.push(Message::text(Role::System, system));
    }
    if members.require("messages", &mut errors) {
        for (path, node) in members.items("messages", MESSAGES_MAX, &mut errors).unwrap_or_default() {
            messages.extend(message(path, node, &mut errors));
        }
        if messages.is_empty() && errors.is_empty() {
            errors.push_at("messages", FieldReason::TooShort, "must have at least one message");
        }
    }
    let messages = messages_json(&messages, "messages", &mut errors);
    let sampling = sampling(&mut members, &mut errors);
    let stop = stop(&mut members, "stop", &mut errors);
    let tokens_max = count(&mut members, "max_tokens", 1, &mut errors);
    let detach = members.boolean("detach", &mut errors).unwrap_or(false);
    let prompt = Prompt::Chat { messages, tools: None, tool_choice: None };
    let request = GenerateRequest { model, sampling, stop, tokens_max, ..GenerateRequest::new(prompt) };
    errors.finish(ApiRequest { request, stream: true, detach, dialect: Dialect::new(DialectKind::Ui) })
}

/// Reads a message. Parts that are not text are ignored: a page stores more in a message than a model reads.
fn message(path: String, node: Node<'_>, errors: &mut Errors) -> Option<Message> {
    let mut members = Members::of_node(path, node, errors)?.with_null_as_absent();
    let role = match members.required_text_bytes("role", 64, errors)?.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => {
            let what = "must be one of system, user, assistant";
            errors.push_at(&members.path("role"), FieldReason::NotAllowed, what);
            return None;
        }
    };
    if let Some(text) = members.text_bytes("content", PROMPT_BYTES_MAX, errors) {
        return Some(Message::text(role, text));
    }
    let mut text = String::new();
    for (path, part) in members.items("parts", MESSAGES_MAX, errors).unwrap_or_default() {
        let mut part = Members::of_node(path, part, errors)?.with_null_as_absent();
        if part.text("type", errors).as_deref() == Some("text") {
            text += &part.required_text_bytes("text", PROMPT_BYTES_MAX, errors)?;
        }
    }
    Some(Message::text(role, text))
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool-calls",
        Finish::Filtered => "content-filter",
    }
}

/// The complete response body, for a client that requests a generation later.
pub(crate) fn whole_json(generated: &Generated) -> Vec<u8> {
    let empty = Choice::default();
    let choice = generated.choices.first().unwrap_or(&empty);
    let parts = json!([{ "type": "text", "text": choice.text, "state": "done" }]);
    to_vec(&json!({ "id": generated.id(), "role": "assistant", "parts": parts }))
}

/// The stream of a generation.
#[derive(Debug, Default)]
pub(crate) struct UiStream {
    generated: Generated,
    is_text_open: bool,
}

/// The id of the only text of a message.
const TEXT_ID: &str = "0";

impl UiStream {
    pub(crate) fn push(&mut self, event: &GenerationEvent, out: &mut Vec<Frame>) {
        let mut part = |value: Value| out.push(Frame::json(None, &value));
        match event {
            GenerationEvent::Started(started) => {
                part(json!({ "type": "start", "messageId": started.generation_id }));
                part(json!({ "type": "start-step" }));
            }
            GenerationEvent::Token(token) if token.index == 0 && !token.text.is_empty() => {
                if !std::mem::replace(&mut self.is_text_open, true) {
                    part(json!({ "type": "text-start", "id": TEXT_ID }));
                }
                part(json!({ "type": "text-delta", "id": TEXT_ID, "delta": token.text }));
            }
            GenerationEvent::ToolCall(delta) if delta.index == 0 => {
                if let (Some(id), Some(name)) = (&delta.id, &delta.name) {
                    part(json!({ "type": "tool-input-start", "toolCallId": id, "toolName": name }));
                }
                self.generated.push(event);
                let calls = self.generated.choices.first().map_or(&[][..], |choice| &choice.calls);
                if let Some(call) = calls.get(delta.call as usize)
                    && !delta.arguments.is_empty()
                {
                    part(
                        json!({ "type": "tool-input-delta", "toolCallId": call.id, "inputTextDelta": delta.arguments }),
                    );
                }
            }
            GenerationEvent::Done(done) if done.index == 0 => {
                if std::mem::take(&mut self.is_text_open) {
                    part(json!({ "type": "text-end", "id": TEXT_ID }));
                }
                for call in self.generated.choices.first().map_or(&[][..], |choice| &choice.calls) {
                    let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
                    let (id, name) = (&call.id, &call.name);
                    part(json!({ "type": "tool-input-available", "toolCallId": id, "toolName": name, "input": input }));
                }
                part(json!({ "type": "finish-step" }));
                part(json!({ "type": "finish", "finishReason": finish_reason(done.finish_reason) }));
                out.push(Frame { name: None, data: "[DONE]".to_owned() });
            }
            GenerationEvent::Error(failed) => {
                part(json!({ "type": "error", "errorText": failed.message }));
                out.push(Frame { name: None, data: "[DONE]".to_owned() });
            }
            _ => {}
        }
    }
}
