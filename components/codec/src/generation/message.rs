//! The messages of a chat in the form of OpenAI's chat completions API, with text as content, for every dialect.

use serde::Serialize;

use super::request::{PROMPT_BYTES_MAX, json};
use crate::json::{
    field::{FieldError, FieldReason},
    members::{Errors, Members},
    to_vec,
    tree::Node,
};

/// Maximum number of messages of a chat.
pub(crate) const MESSAGES_MAX: usize = 2048;
/// Maximum number of tools of a chat.
pub(crate) const TOOLS_MAX: usize = 128;

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_call_id: Option<String>,
}

/// A call of a function by the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) function: Function,
}

/// The function of a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// JSON text.
    pub(crate) arguments: String,
}

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Tool {
    #[serde(rename = "type")]
    kind: &'static str,
    function: ToolFunction,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ToolFunction {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<serde_json::Value>,
}

impl Message {
    /// A message with text only.
    pub(crate) fn text(role: Role, content: String) -> Self {
        Self { role, content: Some(content), name: None, tool_calls: Vec::new(), tool_call_id: None }
    }
}

impl ToolCall {
    /// A call of a function.
    pub(crate) fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, kind: "function", function: Function { name, arguments } }
    }
}

impl Tool {
    /// The name of the function.
    pub(crate) fn name(&self) -> &str {
        &self.function.name
    }

    /// A function; `parameters` is its JSON schema.
    pub(crate) fn new(name: String, description: Option<String>, parameters: Option<&Node<'_>>) -> Self {
        let parameters = parameters.and_then(|node| serde_json::from_str(&json(node)).ok());
        Self { kind: "function", function: ToolFunction { name, description, parameters } }
    }
}

/// Messages as JSON text, bounded in bytes.
pub(crate) fn messages_json(messages: &[Message], field: &str, errors: &mut Errors) -> String {
    let text = String::from_utf8(to_vec(&messages)).unwrap_or_default();
    if text.len() > PROMPT_BYTES_MAX {
        let (bounds, what) = ((0, PROMPT_BYTES_MAX as i64), "have a length in bytes of");
        errors.push(FieldError::bounded(field, FieldReason::TooLong, what, bounds, text.len() as i64));
    }
    text
}

/// Tools as JSON text; `None` if the list is empty.
pub(crate) fn tools_json(tools: &[Tool]) -> Option<String> {
    (!tools.is_empty()).then(|| String::from_utf8(to_vec(&tools)).unwrap_or_default())
}

/// Reads `messages` of OpenAI's chat completions API.
pub(crate) fn read_messages(members: &mut Members<'_>, errors: &mut Errors) -> Vec<Message> {
    if !members.require("messages", errors) {
        return Vec::new();
    }
    let items = members.items("messages", MESSAGES_MAX, errors).unwrap_or_default();
    if items.is_empty() && errors.is_empty() {
        errors.push_at("messages", FieldReason::TooShort, "must have at least one message");
    }
    items.into_iter().filter_map(|(path, node)| message(path, node, errors)).collect()
}

fn message(path: String, node: Node<'_>, errors: &mut Errors) -> Option<Message> {
    let mut members = Members::of_node(path, node, errors)?.with_null_as_absent();
    let role = members.required_text_bytes("role", 64, errors)?;
    let role = match role.as_str() {
        // `developer` is the newer name of `system`.
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        other => {
            let excerpt: String = other.chars().filter(|c| !c.is_control()).collect();
            let what = format!("must be one of system, developer, user, assistant, tool, and is `{excerpt}`");
            errors.push_at(&members.path("role"), FieldReason::NotAllowed, &what);
            return None;
        }
    };
    let content = content(&mut members, "content", errors);
    let name = members.text("name", errors);
    let tool_call_id = members.text("tool_call_id", errors);
    let calls = members.items("tool_calls", TOOLS_MAX, errors).unwrap_or_default();
    let tool_calls: Vec<ToolCall> = calls.into_iter().filter_map(|(path, node)| call(path, node, errors)).collect();
    if content.is_none() && tool_calls.is_empty() && role != Role::Assistant {
        errors.push_at(&members.path("content"), FieldReason::Missing, "is required");
    }
    Some(Message { role, content, name, tool_calls, tool_call_id })
}

fn call(path: String, node: Node<'_>, errors: &mut Errors) -> Option<ToolCall> {
    let mut members = Members::of_node(path, node, errors)?.with_null_as_absent();
    let id = members.text("id", errors).unwrap_or_default();
    let mut function = members.object("function", errors)?;
    let name = function.required_text_bytes("name", 256, errors)?;
    let arguments = function.text("arguments", errors).unwrap_or_default();
    Some(ToolCall::new(id, name, arguments))
}

/// Reads a content: a text, or parts that are texts.
pub(crate) fn content(members: &mut Members<'_>, name: &'static str, errors: &mut Errors) -> Option<String> {
    let path = members.path(name);
    content_of(path, members.take(name)?, errors)
}

/// Reads a text, or joins the texts of parts.
pub(crate) fn content_of(path: String, node: Node<'_>, errors: &mut Errors) -> Option<String> {
    let parts = match node {
        Node::Text(text) => return Some(text.into_owned()),
        Node::Array(parts) => parts,
        other => {
            errors.push_type(path, "string or array", &other);
            return None;
        }
    };
    let mut joined = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{at}]");
        let part = match part {
            Node::Text(text) => {
                joined.push_str(&text);
                continue;
            }
            part => part,
        };
        let mut part = Members::of_node(path, part, errors)?.with_null_as_absent();
        let kind = part.text("type", errors);
        match kind.as_deref() {
            None | Some("text" | "input_text" | "output_text" | "refusal") => {
                let name = if part.has("refusal") { "refusal" } else { "text" };
                joined.push_str(&part.required_text_bytes(name, PROMPT_BYTES_MAX, errors)?);
            }
            // Reasoning of earlier turns is not part of the conversation.
            Some("thinking" | "redacted_thinking" | "reasoning") => {}
            Some(other) => {
                let excerpt: String = other.chars().filter(|c| !c.is_control()).take(64).collect();
                let what = format!("is `{excerpt}`; the models here take text alone");
                errors.push_at(&part.path("type"), FieldReason::NotAllowed, &what);
                return None;
            }
        }
    }
    Some(joined)
}

/// Reads `tools` of OpenAI's chat completions API, or of its responses API, in which the function is one level higher.
pub(crate) fn read_tools(members: &mut Members<'_>, errors: &mut Errors) -> Vec<Tool> {
    let items = members.items("tools", TOOLS_MAX, errors).unwrap_or_default();
    items.into_iter().filter_map(|(path, node)| tool(path, node, errors)).collect()
}

fn tool(path: String, node: Node<'_>, errors: &mut Errors) -> Option<Tool> {
    let mut members = Members::of_node(path, node, errors)?.with_null_as_absent();
    let kind = members.text("type", errors);
    if kind.as_deref().is_some_and(|kind| kind != "function") {
        errors.push_at(&members.path("type"), FieldReason::NotAllowed, "must be function");
        return None;
    }
    let mut function = if members.has("function") { members.object("function", errors)? } else { members };
    let name = function.required_text_bytes("name", 256, errors)?;
    let description = function.text("description", errors);
    let parameters = function.take("parameters");
    Some(Tool::new(name, description, parameters.as_ref()))
}

/// Reads `tool_choice`. Returns it as JSON text in the form of OpenAI's chat completions API.
pub(crate) fn tool_choice(members: &mut Members<'_>, errors: &mut Errors) -> Option<String> {
    match members.take("tool_choice")? {
        Node::Text(choice) if matches!(&*choice, "auto" | "none" | "required") => Some(format!("\"{choice}\"")),
        Node::Object(choice) => {
            let path = members.path("tool_choice");
            let mut choice = Members::of_node(path, Node::Object(choice), errors)?.with_null_as_absent();
            let mut function = if choice.has("function") { choice.object("function", errors)? } else { choice };
            function.required_text_bytes("name", 256, errors).map(|name| named_choice(&name))
        }
        _ => {
            let what = "must be auto, none, required, or an object that names a function";
            errors.push_at("tool_choice", FieldReason::NotAllowed, what);
            None
        }
    }
}

/// The choice of one function, as JSON text.
pub(crate) fn named_choice(name: &str) -> String {
    serde_json::json!({ "type": "function", "function": { "name": name } }).to_string()
}
