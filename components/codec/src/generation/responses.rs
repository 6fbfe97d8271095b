//! OpenAI's responses: `POST /v1/responses`, and `GET /v1/responses/{id}`, with which a client that reconnects continues after
//! `starting_after`.

use serde_json::{Map, Value, json};

use super::{
    ApiRequest,
    chat::logprobs_json,
    dialect::{Dialect, DialectKind, Frame},
    error::openai_of,
    event::{Finish, GenerationEvent, Token, ToolDelta},
    generated::{Choice, Generated, GeneratedCall},
    message::{MESSAGES_MAX, Message, Role, ToolCall, content_of, messages_json, read_tools, tool_choice, tools_json},
    request::{
        Format, GenerateRequest, LOGPROBS_MAX, PROMPT_BYTES_MAX, Prompt, Sampling, check_format, count,
        json as json_text, members, model, number_within, response_format,
    },
};
use crate::json::{
    field::{FieldReason, RequestError},
    members::{Errors, Members},
    to_vec,
    tree::Node,
};

/// Maximum number of bytes of the request's fields that a response repeats; more are left out.
const ECHO_BYTES_MAX: usize = 64 << 10;
/// The prefix of a response id before the id of its generation.
const ID_PREFIX: &str = "resp_";

/// Reads a body.
///
/// # Errors
///
/// The body is not valid; every invalid field is listed.
pub fn read(body: &[u8]) -> Result<ApiRequest, RequestError> {
    let mut members = members(body)?;
    let mut errors = Errors::default();
    let mut echo = Map::new();
    let model = model(&mut members, &mut errors);
    let mut messages = Vec::new();
    if let Some(instructions) = members.text_bytes("instructions", PROMPT_BYTES_MAX, &mut errors) {
        echo.insert("instructions".to_owned(), instructions.as_str().into());
        messages.push(Message::text(Role::System, instructions));
    }
    for name in ["previous_response_id", "conversation", "prompt"] {
        if members.take(name).is_some() {
            let what = "is not known here: this server keeps no conversations; send all messages as `input`";
            errors.push_at(name, FieldReason::Unknown, what);
        }
    }
    if members.require("input", &mut errors) {
        input(&mut members, &mut messages, &mut errors);
    }
    let messages = messages_json(&messages, "input", &mut errors);
    let tools = tools_json(&read_tools(&mut members, &mut errors));
    let tool_choice = tool_choice(&mut members, &mut errors);
    let sampling = Sampling {
        temperature: number_within(&mut members, "temperature", (0.0, 2.0), &mut errors),
        top_p: number_within(&mut members, "top_p", (0.0, 1.0), &mut errors),
        ..Sampling::default()
    };
    let tokens_max = count(&mut members, "max_output_tokens", 1, &mut errors);
    let format = text_format(&mut members, &mut errors);
    let top = members.integer_within("top_logprobs", (0, i64::from(LOGPROBS_MAX)), &mut errors);
    let top = top.and_then(|top| u32::try_from(top).ok());
    let include = members.texts("include", &mut errors).unwrap_or_default();
    let wants = include.iter().any(|name| name == "message.output_text.logprobs");
    let logprobs = (wants || top.is_some_and(|top| top > 0)).then(|| top.unwrap_or(0));
    let stream = members.boolean("stream", &mut errors).unwrap_or(false);
    // A background response is requested later with `GET`.
    let detach = members.boolean("background", &mut errors).unwrap_or(false);
    if let Some(metadata) = members.take("metadata").and_then(|node| serde_json::from_str(&json_text(&node)).ok()) {
        echo.insert("metadata".to_owned(), metadata);
    }
    for (name, value) in [("temperature", sampling.temperature), ("top_p", sampling.top_p)] {
        if let Some(value) = value {
            echo.insert(name.to_owned(), value.into());
        }
    }
    if let Some(tokens_max) = tokens_max {
        echo.insert("max_output_tokens".to_owned(), tokens_max.into());
    }
    if detach {
        echo.insert("background".to_owned(), true.into());
    }
    let echo = Value::Object(echo);
    let echo = if echo.to_string().len() <= ECHO_BYTES_MAX { echo } else { Value::Null };
    let prompt = Prompt::Chat { messages, tools, tool_choice };
    let request = GenerateRequest { model, sampling, tokens_max, format, logprobs, ..GenerateRequest::new(prompt) };
    let dialect = Dialect { echo, ..Dialect::new(DialectKind::Responses) };
    errors.finish(ApiRequest { request, stream, detach, dialect })
}

/// Reads `input`: a text, or items, which are messages, function calls and their results.
fn input(members: &mut Members<'_>, out: &mut Vec<Message>, errors: &mut Errors) {
    let items = match members.take("input") {
        Some(Node::Text(text)) => return out.push(Message::text(Role::User, text.into_owned())),
        Some(Node::Array(items)) if items.len() <= MESSAGES_MAX => items,
        Some(Node::Array(_)) => return errors.push_at("input", FieldReason::TooLong, "must have at most 2048 items"),
        Some(other) => return errors.push_type("input", "string or array", &other),
        None => return errors.push_at("input", FieldReason::Missing, "is required"),
    };
    for (at, node) in items.into_iter().enumerate() {
        let Some(item) = Members::of_node(format!("input[{at}]"), node, errors) else { return };
        item_of(item.with_null_as_absent(), out, errors);
    }
}

fn item_of(mut item: Members<'_>, out: &mut Vec<Message>, errors: &mut Errors) {
    match item.text("type", errors).as_deref() {
        None | Some("message") => {
            let role = match item.required_text_bytes("role", 64, errors).as_deref() {
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                Some("system" | "developer") => Role::System,
                Some(other) => {
                    let excerpt: String = other.chars().filter(|c| !c.is_control()).collect();
                    let what = format!("must be one of system, developer, user, assistant, and is `{excerpt}`");
                    return errors.push_at(&item.path("role"), FieldReason::NotAllowed, &what);
                }
                None => return,
            };
            let path = item.path("content");
            match item.take("content") {
                Some(node) => out.extend(content_of(path, node, errors).map(|text| Message::text(role, text))),
                None => errors.push_at(&path, FieldReason::Missing, "is required"),
            }
        }
        Some("function_call") => {
            let id = item.required_text_bytes("call_id", 256, errors).unwrap_or_default();
            let name = item.required_text_bytes("name", 256, errors).unwrap_or_default();
            let arguments = item.text("arguments", errors).unwrap_or_default();
            let call = ToolCall::new(id, name, arguments);
            // Consecutive calls belong to one message.
            match out.last_mut() {
                Some(last) if last.role == Role::Assistant => last.tool_calls.push(call),
                _ => out.push(Message {
                    content: None,
                    tool_calls: vec![call],
                    ..Message::text(Role::Assistant, String::new())
                }),
            }
        }
        Some("function_call_output") => {
            let id = item.required_text_bytes("call_id", 256, errors);
            let path = item.path("output");
            let output = item.take("output").and_then(|node| content_of(path, node, errors));
            out.push(Message { tool_call_id: id, ..Message::text(Role::Tool, output.unwrap_or_default()) });
        }
        // Reasoning of earlier turns is not part of the conversation.
        Some("reasoning") => {}
        Some(other) => {
            let excerpt: String = other.chars().filter(|c| !c.is_control()).take(64).collect();
            let what = format!("is `{excerpt}`, which is not known here");
            errors.push_at(&item.path("type"), FieldReason::NotAllowed, &what);
        }
    }
}

fn text_format(members: &mut Members<'_>, errors: &mut Errors) -> Option<Format> {
    let mut text = members.object("text", errors)?;
    let mut format = text.object("format", errors)?;
    let format = response_format(&mut format, errors);
    check_format(format.as_ref(), errors);
    format
}

/// The id of a response.
pub fn response_id(generation_id: &str) -> String {
    format!("{ID_PREFIX}{generation_id}")
}

/// The id of the generation of a response.
pub fn generation_id(response_id: &str) -> &str {
    response_id.strip_prefix(ID_PREFIX).unwrap_or(response_id)
}

fn status(choice: &Choice) -> &'static str {
    match choice.finish() {
        None => "in_progress",
        Some(Finish::Length | Finish::Filtered) => "incomplete",
        Some(Finish::Stop | Finish::ToolCalls) => "completed",
    }
}

/// The response object in its current state.
fn response(generated: &Generated) -> Value {
    let empty = Choice::default();
    let choice = generated.choices.first().unwrap_or(&empty);
    let status = match &generated.error {
        Some(failed) if failed.code == "cancelled" => "cancelled",
        Some(_) => "failed",
        None => status(choice),
    };
    let incomplete = match choice.finish() {
        Some(Finish::Length) => json!({ "reason": "max_output_tokens" }),
        Some(Finish::Filtered) => json!({ "reason": "content_filter" }),
        _ => Value::Null,
    };
    let usage = generated.usage.map(|usage| {
        json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": { "cached_tokens": usage.cached_tokens },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": usage.total_tokens(),
        })
    });
    let error = generated.error.as_ref().map(|failed| json!({ "code": failed.code, "message": failed.message }));
    let output = if choice.done.is_some() || generated.error.is_some() { items(generated, choice) } else { Vec::new() };
    let mut value = json!({
        "id": response_id(generated.id()),
        "object": "response",
        "created_at": generated.created(),
        "status": status,
        "background": false,
        "error": error,
        "incomplete_details": incomplete,
        "instructions": null,
        "max_output_tokens": null,
        "metadata": {},
        "model": generated.model(),
        "output": output,
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": { "effort": null, "summary": null },
        "store": true,
        "temperature": 1.0,
        "text": { "format": { "type": "text" } },
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
    });
    let echo = generated.started.as_ref().and_then(|started| started.dialect.echo.as_object());
    for (name, repeated) in echo.into_iter().flatten() {
        value[name.as_str()] = repeated.clone();
    }
    value
}

/// The output of a response: a message if there is text or there are no calls, then the calls.
fn items(generated: &Generated, choice: &Choice) -> Vec<Value> {
    let mut items = Vec::new();
    if !choice.text.is_empty() || choice.calls.is_empty() {
        let status = if status(choice) == "completed" { "completed" } else { "incomplete" };
        items.push(message_item(generated.id(), status, &[text_part(choice)]));
    }
    let call = |(at, call): (usize, &GeneratedCall)| call_item(generated.id(), at, call, "completed");
    items.extend(choice.calls.iter().enumerate().map(call));
    items
}

fn text_part(choice: &Choice) -> Value {
    let logprobs = logprobs_json(&choice.tokens);
    json!({ "type": "output_text", "text": choice.text, "annotations": [], "logprobs": logprobs })
}

fn message_id(generation_id: &str) -> String {
    format!("msg_{generation_id}")
}

fn message_item(generation_id: &str, status: &str, content: &[Value]) -> Value {
    let id = message_id(generation_id);
    json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
}

fn call_item_id(generation_id: &str, at: usize) -> String {
    format!("fc_{generation_id}_{at}")
}

fn call_item(generation_id: &str, at: usize, call: &GeneratedCall, status: &str) -> Value {
    json!({
        "id": call_item_id(generation_id, at),
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    })
}

/// The complete response body.
pub(crate) fn whole_json(generated: &Generated) -> Vec<u8> {
    to_vec(&response(generated))
}

/// The response body for a response that may still be in progress.
pub fn state_json(generated: &Generated) -> Vec<u8> {
    to_vec(&response(generated))
}

/// The stream of a generation. Every event has a sequence number, which a client sends to resume after it.
#[derive(Debug, Default)]
pub(crate) struct ResponseStream {
    generated: Generated,
    sequence: u64,
    /// The open item and its index in the output.
    open: Option<(Item, u32)>,
    items: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Text,
    Call(u32),
}

impl ResponseStream {
    pub(crate) fn push(&mut self, event: &GenerationEvent, out: &mut Vec<Frame>) {
        match event {
            GenerationEvent::Started(_) => {
                self.generated.push(event);
                for kind in ["response.created", "response.in_progress"] {
                    let response = response(&self.generated);
                    self.emit(kind, json!({ "response": response }), out);
                }
            }
            GenerationEvent::Token(token) if token.index == 0 => self.push_text(token, event, out),
            GenerationEvent::ToolCall(delta) if delta.index == 0 => self.push_call(delta, event, out),
            GenerationEvent::Done(done) if done.index == 0 => {
                if self.items == 0 {
                    self.open(Item::Text, out);
                }
                // The last item has the status of the choice, so it is closed after the event is recorded.
                self.generated.push(event);
                self.close(out);
                let kind = match done.finish_reason {
                    Finish::Stop | Finish::ToolCalls => "response.completed",
                    Finish::Length | Finish::Filtered => "response.incomplete",
                };
                let response = response(&self.generated);
                self.emit(kind, json!({ "response": response }), out);
            }
            GenerationEvent::Error(failed) => {
                self.generated.push(event);
                let error = openai_of(failed).error;
                let error = json!({ "code": error.code, "message": error.message, "param": null });
                self.emit("error", error, out);
                let response = response(&self.generated);
                self.emit("response.failed", json!({ "response": response }), out);
            }
            _ => {}
        }
    }

    fn push_text(&mut self, token: &Token, event: &GenerationEvent, out: &mut Vec<Frame>) {
        if token.text.is_empty() && token.tokens.is_empty() {
            return;
        }
        let output_index = self.open(Item::Text, out);
        self.generated.push(event);
        let data = json!({
            "item_id": message_id(self.generated.id()),
            "output_index": output_index,
            "content_index": 0,
            "delta": token.text,
            "logprobs": logprobs_json(&token.tokens),
        });
        self.emit("response.output_text.delta", data, out);
    }

    fn push_call(&mut self, delta: &ToolDelta, event: &GenerationEvent, out: &mut Vec<Frame>) {
        if delta.id.is_some() || delta.name.is_some() {
            // The id and the name of the call must be known before its item is opened.
            let head = ToolDelta { arguments: String::new(), ..delta.clone() };
            self.generated.push(&GenerationEvent::ToolCall(head));
            self.open(Item::Call(delta.call), out);
            let rest = ToolDelta { id: None, name: None, ..delta.clone() };
            self.generated.push(&GenerationEvent::ToolCall(rest));
        } else {
            self.generated.push(event);
        }
        let output_index = self.open(Item::Call(delta.call), out);
        if !delta.arguments.is_empty() {
            let item_id = call_item_id(self.generated.id(), delta.call as usize);
            let data = json!({ "item_id": item_id, "output_index": output_index, "delta": delta.arguments });
            self.emit("response.function_call_arguments.delta", data, out);
        }
    }

    /// Opens an item unless it is open. Returns its index in the output.
    fn open(&mut self, item: Item, out: &mut Vec<Frame>) -> u32 {
        if let Some((open, output_index)) = self.open
            && open == item
        {
            return output_index;
        }
        self.close(out);
        let output_index = self.items;
        self.items += 1;
        self.open = Some((item, output_index));
        let id = self.generated.id().to_owned();
        let value = match item {
            Item::Text => message_item(&id, "in_progress", &[]),
            Item::Call(at) => call_item(&id, at as usize, &self.call(at), "in_progress"),
        };
        self.emit("response.output_item.added", json!({ "output_index": output_index, "item": value }), out);
        if item == Item::Text {
            let part = json!({ "type": "output_text", "text": "", "annotations": [], "logprobs": [] });
            let data =
                json!({ "item_id": message_id(&id), "output_index": output_index, "content_index": 0, "part": part });
            self.emit("response.content_part.added", data, out);
        }
        output_index
    }

    fn close(&mut self, out: &mut Vec<Frame>) {
        let Some((item, output_index)) = self.open.take() else { return };
        let id = self.generated.id().to_owned();
        let value = match item {
            Item::Text => {
                let empty = Choice::default();
                let choice = self.generated.choices.first().unwrap_or(&empty);
                let (text, part) = (choice.text.clone(), text_part(choice));
                let state = if status(choice) == "incomplete" { "incomplete" } else { "completed" };
                let logprobs = part["logprobs"].clone();
                let item_id = message_id(&id);
                let data = json!({
                    "item_id": item_id, "output_index": output_index, "content_index": 0, "text": text, "logprobs": logprobs,
                });
                self.emit("response.output_text.done", data, out);
                let data =
                    json!({ "item_id": item_id, "output_index": output_index, "content_index": 0, "part": part });
                self.emit("response.content_part.done", data, out);
                message_item(&id, state, &[part])
            }
            Item::Call(at) => {
                let call = self.call(at);
                let item_id = call_item_id(&id, at as usize);
                let data = json!({
                    "item_id": item_id, "output_index": output_index, "name": call.name, "arguments": call.arguments,
                });
                self.emit("response.function_call_arguments.done", data, out);
                call_item(&id, at as usize, &call, "completed")
            }
        };
        self.emit("response.output_item.done", json!({ "output_index": output_index, "item": value }), out);
    }

    fn call(&self, at: u32) -> GeneratedCall {
        let calls = self.generated.choices.first().map_or(&[][..], |choice| &choice.calls);
        calls.get(at as usize).cloned().unwrap_or_default()
    }

    fn emit(&mut self, kind: &'static str, data: Value, out: &mut Vec<Frame>) {
        let mut value = json!({ "type": kind, "sequence_number": self.sequence });
        self.sequence += 1;
        if let Value::Object(members) = data {
            for (name, member) in members {
                value[name.as_str()] = member;
            }
        }
        out.push(Frame::json(Some(kind), &value));
    }
}
