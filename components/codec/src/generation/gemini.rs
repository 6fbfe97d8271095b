//! Gemini's `generateContent` and `streamGenerateContent`. The streams have no comments and no `[DONE]`, since clients fail on both.

use serde_json::{Value, json};

use super::{
    ApiRequest,
    dialect::{Dialect, DialectKind, Frame},
    error::google_of,
    event::{Finish, GenerationEvent, ToolDelta, Usage},
    generated::{Choice, Generated, GeneratedCall},
    message::{MESSAGES_MAX, Message, Role, TOOLS_MAX, Tool, ToolCall, messages_json, tools_json},
    request::{
        Format, GenerateRequest, LOGPROBS_MAX, PROMPT_BYTES_MAX, Prompt, Sampling, check_format, choices, count, json,
        members, number_within, seed, stop,
    },
};
use crate::json::{
    field::{FieldReason, RequestError},
    members::{Errors, Members},
    to_vec,
    tree::Node,
};

/// Reads a body. The model, and whether the response is a stream, come from the path.
///
/// # Errors
///
/// The body is not valid; every invalid field is listed.
pub fn read(body: &[u8], model: &str, stream: bool) -> Result<ApiRequest, RequestError> {
    let mut members = members(body)?;
    let mut errors = Errors::default();
    let mut messages = Vec::new();
    let system = ["systemInstruction", "system_instruction"].into_iter().find(|name| members.has(name));
    if let Some(name) = system
        && let Some(node) = members.take(name)
    {
        let node = if matches!(node, Node::Text(_)) { text_content(node) } else { node };
        content(name.to_owned(), node, Some(Role::System), &mut messages, &mut errors);
    }
    if members.require("contents", &mut errors) {
        match members.take("contents") {
            Some(Node::Array(items)) if items.len() <= MESSAGES_MAX => {
                for (at, node) in items.into_iter().enumerate() {
                    content(format!("contents[{at}]"), node, None, &mut messages, &mut errors);
                }
            }
            Some(node @ Node::Object(_)) => content("contents".to_owned(), node, None, &mut messages, &mut errors),
            _ => errors.push_at("contents", FieldReason::WrongType, "must be a list of at most 2048 contents"),
        }
        if messages.is_empty() && errors.is_empty() {
            errors.push_at("contents", FieldReason::TooShort, "must have at least one content");
        }
    }
    let messages = messages_json(&messages, "contents", &mut errors);
    let mut tools = tools(&mut members, &mut errors);
    let tool_choice = tool_choice(&mut members, &mut tools, &mut errors);
    let prompt = Prompt::Chat { messages, tools: tools_json(&tools), tool_choice };
    let mut request = GenerateRequest { model: Some(model.to_owned()), ..GenerateRequest::new(prompt) };
    let config = ["generationConfig", "generation_config"].into_iter().find(|name| members.has(name));
    if let Some(name) = config
        && let Some(mut config) = members.object(name, &mut errors)
    {
        generation_config(&mut config, &mut request, &mut errors);
    }
    errors.finish(ApiRequest { request, stream, detach: false, dialect: Dialect::new(DialectKind::Gemini) })
}

fn text_content(node: Node<'_>) -> Node<'_> {
    let part = Node::Object(vec![("text".into(), node)]);
    Node::Object(vec![("parts".into(), Node::Array(vec![part]))])
}

fn generation_config(config: &mut Members<'_>, request: &mut GenerateRequest, errors: &mut Errors) {
    request.sampling = Sampling {
        temperature: number_within(config, "temperature", (0.0, 2.0), errors),
        top_k: config.number("topK", errors).map(|top_k| top_k.clamp(0.0, f64::from(u32::MAX)) as u32),
        top_p: number_within(config, "topP", (0.0, 1.0), errors),
        presence_penalty: number_within(config, "presencePenalty", (-2.0, 2.0), errors),
        frequency_penalty: number_within(config, "frequencyPenalty", (-2.0, 2.0), errors),
        seed: seed(config, errors),
        ..Sampling::default()
    };
    request.tokens_max = count(config, "maxOutputTokens", 1, errors);
    request.stop = stop(config, "stopSequences", errors);
    request.choices = choices(config, "candidateCount", errors);
    let kind = config.text("responseMimeType", errors);
    let schema = config.take("responseJsonSchema");
    let gemini_schema = config.take("responseSchema");
    request.format = match kind.as_deref() {
        None | Some("text/plain") if schema.is_none() && gemini_schema.is_none() => None,
        None | Some("application/json") => Some(match (schema, gemini_schema) {
            (Some(schema), _) => Format::JsonSchema(json(&schema)),
            (None, Some(gemini_schema)) => Format::JsonSchema(json(&lower_types(gemini_schema))),
            (None, None) => Format::Json,
        }),
        Some(_) => {
            let path = config.path("responseMimeType");
            errors.push_at(&path, FieldReason::NotAllowed, "must be text/plain or application/json");
            None
        }
    };
    check_format(request.format.as_ref(), errors);
    let top = config.integer_within("logprobs", (0, i64::from(LOGPROBS_MAX)), errors);
    if config.boolean("responseLogprobs", errors) == Some(true) {
        request.logprobs = Some(top.and_then(|top| u32::try_from(top).ok()).unwrap_or(0));
    }
}

/// Converts the upper-case type names of Gemini's schemas to lower case, and removes members that are not JSON Schema.
fn lower_types(node: Node<'_>) -> Node<'_> {
    match node {
        Node::Object(members) => Node::Object(
            members
                .into_iter()
                .filter(|(key, _)| !matches!(&**key, "propertyOrdering" | "nullable" | "example" | "title"))
                .map(|(key, value)| match value {
                    Node::Text(name) if key == "type" => (key, Node::Text(name.to_ascii_lowercase().into())),
                    value => (key, lower_types(value)),
                })
                .collect(),
        ),
        Node::Array(items) => Node::Array(items.into_iter().map(lower_types).collect()),
        other => other,
    }
}

/// Reads a content, whose parts are texts, function calls or their results, as messages.
fn content(path: String, node: Node<'_>, role: Option<Role>, out: &mut Vec<Message>, errors: &mut Errors) {
    let Some(members) = Members::of_node(path, node, errors) else { return };
    let mut members = members.with_null_as_absent();
    let role_name = members.text("role", errors);
    let role = match (role, role_name.as_deref()) {
        (Some(role), _) => role,
        (None, Some("model" | "assistant")) => Role::Assistant,
        (None, Some("user" | "function" | "tool") | None) => Role::User,
        (None, Some(other)) => {
            let excerpt: String = other.chars().filter(|c| !c.is_control()).take(64).collect();
            let what = format!("must be one of user, model, and is `{excerpt}`");
            return errors.push_at(&members.path("role"), FieldReason::NotAllowed, &what);
        }
    };
    let parts = members.items("parts", MESSAGES_MAX, errors).unwrap_or_default();
    let (mut text, mut calls) = (String::new(), Vec::new());
    for (path, part) in parts {
        let Some(part) = Members::of_node(path.clone(), part, errors) else { return };
        let mut part = part.with_null_as_absent();
        if part.boolean("thought", errors) == Some(true) {
            continue;
        }
        if part.has("text") {
            text += &part.text_bytes("text", PROMPT_BYTES_MAX, errors).unwrap_or_default();
        } else if part.has("functionCall") {
            let Some(mut call) = part.object("functionCall", errors) else { return };
            let name = call.required_text_bytes("name", 256, errors).unwrap_or_default();
            let id = call.text("id", errors).unwrap_or_else(|| name.clone());
            let arguments = call.take("args").map_or_else(|| "{}".to_owned(), |node| json(&node));
            calls.push(ToolCall::new(id, name, arguments));
        } else if part.has("functionResponse") {
            let Some(mut response) = part.object("functionResponse", errors) else { return };
            let name = response.required_text_bytes("name", 256, errors).unwrap_or_default();
            let id = response.text("id", errors).unwrap_or_else(|| name.clone());
            let result = response.take("response").map_or_else(|| "{}".to_owned(), |node| json(&node));
            let message = Message::text(Role::Tool, result);
            out.push(Message { name: Some(name), tool_call_id: Some(id), ..message });
        } else {
            let what = "must be a text, a functionCall or a functionResponse; the models here take text alone";
            errors.push_at(&path, FieldReason::NotAllowed, what);
        }
    }
    if !text.is_empty() || !calls.is_empty() {
        out.push(Message { tool_calls: calls, ..Message::text(role, text) });
    }
}

fn tools(members: &mut Members<'_>, errors: &mut Errors) -> Vec<Tool> {
    let mut tools = Vec::new();
    for (path, node) in members.items("tools", TOOLS_MAX, errors).unwrap_or_default() {
        let Some(group) = Members::of_node(path, node, errors) else { return tools };
        let mut group = group.with_null_as_absent();
        let functions = group.items("functionDeclarations", TOOLS_MAX, errors).unwrap_or_default();
        for (path, node) in functions {
            let Some(function) = Members::of_node(path, node, errors) else { return tools };
            let mut function = function.with_null_as_absent();
            let Some(name) = function.required_text_bytes("name", 256, errors) else { return tools };
            let description = function.text("description", errors);
            let plain = function.take("parametersJsonSchema");
            let schema = plain.or_else(|| function.take("parameters").map(lower_types));
            tools.push(Tool::new(name, description, schema.as_ref()));
        }
        for name in group.names() {
            let path = group.path(&name);
            errors.push_at(&path, FieldReason::Unknown, "is not known here: this server runs no tools");
        }
    }
    tools
}

/// Reads whether functions are called. With `allowedFunctionNames`, the other tools are removed.
fn tool_choice(members: &mut Members<'_>, tools: &mut Vec<Tool>, errors: &mut Errors) -> Option<String> {
    let mut config = either(members, ["toolConfig", "tool_config"], errors)?;
    let mut calling = either(&mut config, ["functionCallingConfig", "function_calling_config"], errors)?;
    let choice = match calling.text("mode", errors).as_deref() {
        Some("NONE") => "none",
        Some("ANY") => "required",
        Some("AUTO" | "VALIDATED" | "MODE_UNSPECIFIED") | None => "auto",
        Some(_) => {
            let path = calling.path("mode");
            errors.push_at(&path, FieldReason::NotAllowed, "must be one of AUTO, ANY, NONE, VALIDATED");
            return None;
        }
    };
    let names = ["allowedFunctionNames", "allowed_function_names"];
    let name = names.into_iter().find(|name| calling.has(name)).unwrap_or(names[0]);
    let allowed = calling.items(name, TOOLS_MAX, errors).unwrap_or_default();
    if allowed.is_empty() {
        return Some(format!("\"{choice}\""));
    }
    let mut wanted = Vec::new();
    for (path, node) in allowed {
        match node {
            Node::Text(name) if tools.iter().any(|tool| tool.name() == name) => wanted.push(name),
            Node::Text(_) => errors.push_at(&path, FieldReason::NotAllowed, "is not among the tools"),
            node => errors.push_type(path, "a string", &node),
        }
    }
    if choice != "required" {
        let path = calling.path(name);
        errors.push_at(&path, FieldReason::NotAllowed, "needs the mode ANY");
    }
    tools.retain(|tool| wanted.iter().any(|name| tool.name() == name));
    Some(format!("\"{choice}\""))
}

/// The object of one of two names of a member.
fn either<'a>(members: &mut Members<'a>, names: [&'static str; 2], errors: &mut Errors) -> Option<Members<'a>> {
    let name = names.into_iter().find(|name| members.has(name))?;
    members.object(name, errors)
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::ToolCalls => "STOP",
        Finish::Length => "MAX_TOKENS",
        Finish::Filtered => "SAFETY",
    }
}

fn usage_json(usage: &Usage) -> Value {
    let mut value = json!({
        "promptTokenCount": usage.prompt_tokens,
        "candidatesTokenCount": usage.completion_tokens,
        "totalTokenCount": usage.total_tokens(),
    });
    if usage.cached_tokens > 0 {
        value["cachedContentTokenCount"] = usage.cached_tokens.into();
    }
    value
}

fn call_part(call: &GeneratedCall) -> Value {
    let args: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({ "functionCall": { "id": call.id, "name": call.name, "args": args } })
}

fn candidate(index: usize, parts: Value, finish: Option<Finish>) -> Value {
    let mut candidate = json!({ "content": { "parts": parts, "role": "model" }, "index": index });
    if let Some(finish) = finish {
        candidate["finishReason"] = finish_reason(finish).into();
    }
    candidate
}

/// The response body of `countTokens`.
pub fn count_json(tokens: u32) -> Vec<u8> {
    to_vec(&json!({ "totalTokens": tokens }))
}

/// The complete response body.
pub(crate) fn whole_json(generated: &Generated) -> Vec<u8> {
    let choice_json = |(index, choice): (usize, &Choice)| {
        let mut parts = Vec::new();
        if !choice.text.is_empty() || choice.calls.is_empty() {
            parts.push(json!({ "text": choice.text }));
        }
        parts.extend(choice.calls.iter().map(call_part));
        candidate(index, parts.into(), choice.finish())
    };
    let candidates: Vec<Value> = generated.choices.iter().enumerate().map(choice_json).collect();
    to_vec(&json!({
        "candidates": candidates,
        "usageMetadata": usage_json(&generated.usage()),
        "modelVersion": generated.model(),
        "responseId": generated.id(),
    }))
}

/// The stream of a generation.
#[derive(Debug, Default)]
pub(crate) struct ContentStream {
    generated: Generated,
}

impl ContentStream {
    pub(crate) fn push(&mut self, event: &GenerationEvent, out: &mut Vec<Frame>) {
        match event {
            GenerationEvent::Started(_) => self.generated.push(event),
            GenerationEvent::Token(token) if !token.text.is_empty() => {
                let candidate = candidate(token.index as usize, json!([{ "text": token.text }]), None);
                out.push(self.chunk(candidate, None));
            }
            // Tool calls are sent when they are complete, since their arguments are an object in this API.
            GenerationEvent::ToolCall(ToolDelta { .. }) => self.generated.push(event),
            GenerationEvent::Done(done) => {
                let index = done.index as usize;
                let calls = self.generated.choices.get(index).map_or(&[][..], |choice| &choice.calls);
                let mut parts: Vec<Value> = calls.iter().map(call_part).collect();
                if parts.is_empty() {
                    parts.push(json!({ "text": "" }));
                }
                let candidate = candidate(index, parts.into(), Some(done.finish_reason));
                out.push(self.chunk(candidate, done.usage.as_ref()));
            }
            GenerationEvent::Error(failed) => out.push(Frame::json(None, &google_of(failed))),
            GenerationEvent::Token(_) => {}
        }
    }

    fn chunk(&self, candidate: Value, usage: Option<&Usage>) -> Frame {
        let mut chunk = json!({
            "candidates": [candidate],
            "modelVersion": self.generated.model(),
            "responseId": self.generated.id(),
        });
        if let Some(usage) = usage {
            chunk["usageMetadata"] = usage_json(usage);
        }
        Frame::json(None, &chunk)
    }
}
