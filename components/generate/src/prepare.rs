//! From a request to the tokens and settings of a generation. Invalid requests are refused here, before anything is
//! computed.

use serde_json::{Value as Json, json};

use crate::Failure;
use crate::bindings::weir::stream::lm::Sampler;
use crate::bindings::weir::stream::types::TooLong;
use crate::constraint::Constraint;
use crate::escape;
use crate::model::LanguageModel;
use crate::settings::Settings;
use crate::template::{Template, TemplateError};
use crate::tools::{self, ToolChoice, ToolFormat};
use crate::types::{Chat, Prompt, Request, Sampling};

/// A checked request, ready to run.
pub struct Prepared {
    /// The tokens of the prompt; at least one.
    pub tokens: Vec<u32>,
    /// The number of leading tokens that are a configured prefix.
    pub shared_tokens: usize,
    /// How tokens are sampled, including the seed.
    pub sampler: Sampler,
    /// The constraint of the text, if it has one.
    pub constraint: Option<Constraint>,
    /// The format of tool calls, if the text may have some.
    pub tools: Option<ToolFormat>,
}

/// Maximum number of stop strings, and maximum size of one in bytes.
const STOPS_MAX: usize = 8;
const STOP_BYTES_MAX: usize = 256;
/// Maximum number of alternatives that are reported for a token.
const LOGPROBS_MAX: u32 = 20;
/// Maximum number of biases.
const BIASES_MAX: usize = 1024;
/// Maximum size of a rendered prompt as a multiple of `prompt_bytes_max`.
const RENDERED_FACTOR: usize = 4;
/// Lower bound of that maximum, in bytes.
const RENDERED_BYTES_MIN: usize = 64 << 10;
/// The number of last tokens to which penalties apply.
const PENALTY_TOKENS: u32 = 64;

fn invalid(text: impl Into<String>) -> Failure {
    Failure::InvalidInput(text.into())
}

/// Checks and prepares a request; `random_seed` makes a seed if the request has none.
///
/// # Errors
///
/// [`Failure::InvalidInput`] with the reason, or [`Failure::TooLong`].
pub fn prepare(
    request: &Request,
    model: &LanguageModel,
    settings: &Settings,
    random_seed: impl FnOnce() -> u64,
) -> Result<Prepared, Failure> {
    check(request, model, settings)?;
    let mut constraint = None;
    let mut format = None;
    let tokens = match &request.prompt {
        Prompt::Tokens(tokens) => {
            let count = model.tokenizer.len();
            if let Some(token) = tokens.iter().find(|token| **token as usize >= count) {
                return Err(invalid(format!("the prompt has the token {token}, and the model has {count} tokens")));
            }
            tokens.clone()
        }
        Prompt::Text(text) => encode(model, text, false)?,
        Prompt::Chat(chat) => {
            let (text, choice) = render(chat, model, settings)?;
            if choice != ToolChoice::None {
                format = Some(model.tool_format);
            }
            if let ToolChoice::Required(tools) = choice {
                if request.format.is_some() {
                    return Err(invalid("a format and a tool_choice that requires a tool cannot be combined"));
                }
                let grammar = model.tool_format.grammar(&tools, &model.tokenizer);
                let result = model.constraints().and_then(|constraints| constraints.begin_lark(grammar));
                constraint =
                    Some(result.map_err(|error| invalid(format!("the parameters of a tool cannot be used: {error}")))?);
            }
            encode(model, &text, true)?
        }
    };
    if let Some(form) = &request.format {
        let result = model.constraints().and_then(|constraints| constraints.begin(form));
        constraint = Some(result.map_err(invalid)?);
    }
    let tokens = match (tokens.is_empty(), model.tokenizer.begin()) {
        (false, _) => tokens,
        // The model needs at least one token to compute.
        (true, Some(begin)) => vec![begin],
        (true, None) => return Err(invalid("the prompt is empty")),
    };
    check_length(tokens.len(), model)?;
    let seed = request.sampling.seed.unwrap_or_else(random_seed);
    let shared_tokens = model.shared_tokens(&tokens);
    Ok(Prepared { tokens, shared_tokens, sampler: sampler(&request.sampling, seed), constraint, tools: format })
}

fn check(request: &Request, model: &LanguageModel, settings: &Settings) -> Result<(), Failure> {
    let bytes = match &request.prompt {
        Prompt::Chat(chat) => chat.messages.len() + chat.tools.as_ref().map_or(0, String::len),
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => tokens.len(),
    };
    if bytes > settings.prompt_bytes_max as usize {
        let bytes_max = settings.prompt_bytes_max;
        return Err(invalid(format!(
            "the prompt has {bytes} bytes, and may have {bytes_max} (generate.prompt_bytes_max)"
        )));
    }
    if request.choices == 0 || request.choices > settings.choices_max {
        let (choices, most) = (request.choices, settings.choices_max);
        return Err(invalid(format!("choices is {choices}, and must be 1 to {most} (generate.choices_max)")));
    }
    if request.tokens_max == Some(0) {
        return Err(invalid("the maximum of tokens is 0, and must be at least 1"));
    }
    if request.stop.len() > STOPS_MAX {
        return Err(invalid(format!("there are {} stop strings, and may be {STOPS_MAX}", request.stop.len())));
    }
    if let Some(stop) = request.stop.iter().find(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX) {
        return Err(invalid(format!("a stop string has {} bytes, and must have 1 to {STOP_BYTES_MAX}", stop.len())));
    }
    if let Some(top) = request.logprobs.filter(|top| *top > LOGPROBS_MAX) {
        return Err(invalid(format!("logprobs asks for {top} alternatives, and may ask for {LOGPROBS_MAX}")));
    }
    let sampling = &request.sampling;
    let range = |name: &str, value: Option<f32>, least: f32, most: f32| match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(invalid(format!("{name} is {value}, and must be {least} to {most}")))
        }
        _ => Ok(()),
    };
    range("temperature", sampling.temperature, 0.0, 5.0)?;
    range("top_p", sampling.top_p, 0.0, 1.0)?;
    range("min_p", sampling.min_p, 0.0, 1.0)?;
    range("repeat_penalty", sampling.repeat_penalty, 0.01, 10.0)?;
    range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)?;
    range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)?;
    if sampling.biases.len() > BIASES_MAX {
        return Err(invalid(format!("there are {} biases, and may be {BIASES_MAX}", sampling.biases.len())));
    }
    for (token, bias) in &sampling.biases {
        if *token as usize >= model.tokenizer.len() {
            return Err(invalid(format!(
                "a bias names the token {token}, and the model has {}",
                model.tokenizer.len()
            )));
        }
        range("a bias", Some(*bias), -100.0, 100.0)?;
    }
    Ok(())
}

/// The sampler of a request. Defaults: temperature 0.8, top_k 40, top_p 0.95.
fn sampler(sampling: &Sampling, seed: u64) -> Sampler {
    Sampler {
        temperature: sampling.temperature.unwrap_or(0.8),
        top_k: sampling.top_k.unwrap_or(40),
        top_p: sampling.top_p.unwrap_or(0.95),
        min_p: sampling.min_p.unwrap_or(0.0),
        repeat_penalty: sampling.repeat_penalty.unwrap_or(1.0),
        presence_penalty: sampling.presence_penalty.unwrap_or(0.0),
        frequency_penalty: sampling.frequency_penalty.unwrap_or(0.0),
        penalty_tokens: PENALTY_TOKENS,
        biases: sampling.biases.clone(),
        seed,
    }
}

/// Checks that a prompt leaves room for a token in the context.
fn check_length(tokens: usize, model: &LanguageModel) -> Result<(), Failure> {
    let tokens_max = model.info.context_tokens_max.saturating_sub(1);
    match u32::try_from(tokens).unwrap_or(u32::MAX) {
        tokens if tokens > tokens_max => Err(Failure::TooLong(TooLong { tokens, tokens_max })),
        _ => Ok(()),
    }
}

fn encode(model: &LanguageModel, text: &str, parse_control: bool) -> Result<Vec<u32>, Failure> {
    // The library takes a second for a megabyte, and this takes milliseconds.
    check_length(model.tokenizer.tokens_min(text, parse_control), model)?;
    model.tokenizer.encode(text, parse_control).map_err(|error| invalid(error.to_string()))
}

/// The rendered text of a chat, and its choice of tools.
fn render(chat: &Chat, model: &LanguageModel, settings: &Settings) -> Result<(String, ToolChoice), Failure> {
    let template = match &model.template {
        Some(Ok(template)) => template,
        Some(Err(error)) => return Err(invalid(error.clone())),
        None => return Err(invalid("the model has no chat template; send a text instead of a chat")),
    };
    let parse = |name: &str, text: &str| -> Result<Json, Failure> {
        serde_json::from_str(text).map_err(|error| invalid(format!("{name} is not JSON: {error}")))
    };
    let mut messages = normalize(&parse("messages", &chat.messages)?)?;
    let tools = chat.tools.as_deref().map(|tools| parse("tools", tools)).transpose()?.filter(|tools| !tools.is_null());
    let parsed = tools.as_ref().map_or(Ok(Vec::new()), tools::parse_tools).map_err(invalid)?;
    let choice = chat.tool_choice.as_deref().map(|choice| parse("tool_choice", choice)).transpose()?;
    let choice = tools::parse_choice(choice.as_ref(), &parsed).map_err(invalid)?;
    let mut tools = tools.filter(|_| choice != ToolChoice::None && !parsed.is_empty());
    if let Some(unsupported) = tools.take_if(|_| !template.has_tools) {
        add_system(&mut messages, &tools::instructions(&unsupported));
    }
    let names: Vec<&str> = model.tokenizer.control_names().collect();
    let mut messages = Json::Array(messages);
    escape_all(&mut messages, &names);
    tools.iter_mut().for_each(|tools| escape_all(tools, &names));
    let bytes_max = (settings.prompt_bytes_max as usize).saturating_mul(RENDERED_FACTOR).max(RENDERED_BYTES_MIN);
    let text = render_variant(template, &messages, tools.as_ref(), bytes_max)?;
    Ok((text, choice))
}

/// Renders a chat in the first variant that the template accepts: unchanged, with consecutive messages of one role
/// joined, or with system messages joined to those of the user.
fn render_variant(
    template: &Template,
    messages: &Json,
    tools: Option<&Json>,
    bytes_max: usize,
) -> Result<String, Failure> {
    let merged = merge_roles(messages);
    let without_system = merge_system(&merged);
    let variants: &[&Json] =
        if template.has_system { &[messages, &merged, &without_system] } else { &[&without_system] };
    let mut first = None;
    for variant in variants {
        match template.render(variant, tools, bytes_max) {
            Ok(text) => return Ok(text),
            Err(error @ (TemplateError::Broken(_) | TemplateError::Exhausted(_))) => {
                return Err(invalid(error.to_string()));
            }
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    let roles: Vec<&str> = messages.as_array().into_iter().flatten().filter_map(|one| one["role"].as_str()).collect();
    let reason = first.map(|error| error.to_string()).unwrap_or_default();
    Err(invalid(format!("the chat template of the model refuses the roles {}: {reason}", roles.join(", "))))
}

/// The messages in the form that templates expect: `developer` becomes `system`, content becomes text, arguments of
/// calls become objects.
fn normalize(messages: &Json) -> Result<Vec<Json>, Failure> {
    let Json::Array(messages) = messages else { return Err(invalid("messages is not an array")) };
    if messages.is_empty() {
        return Err(invalid("messages is empty"));
    }
    messages.iter().enumerate().map(|(at, message)| normalize_one(at, message)).collect()
}

fn normalize_one(at: usize, message: &Json) -> Result<Json, Failure> {
    let Json::Object(fields) = message else { return Err(invalid(format!("messages[{at}] is not an object"))) };
    let role = match fields.get("role").and_then(Json::as_str) {
        Some("developer" | "system") => "system",
        Some("function" | "tool") => "tool",
        Some(role @ ("user" | "assistant")) => role,
        Some(other) => {
            let known = "system, developer, user, assistant or tool";
            return Err(invalid(format!("messages[{at}].role `{other}` is not a role; use {known}")));
        }
        None => return Err(invalid(format!("messages[{at}].role is missing"))),
    };
    let content = match fields.get("content") {
        None | Some(Json::Null) => String::new(),
        Some(Json::String(text)) => text.clone(),
        Some(Json::Array(parts)) => {
            let mut text = String::new();
            for (part, value) in parts.iter().enumerate() {
                match (value["type"].as_str(), value["text"].as_str()) {
                    (Some("text" | "input_text" | "output_text") | None, Some(part)) => text.push_str(part),
                    (kind, _) => {
                        let kind = kind.unwrap_or("none");
                        let path = format!("messages[{at}].content[{part}]");
                        return Err(invalid(format!("{path} has the type `{kind}`, and the model takes text")));
                    }
                }
            }
            text
        }
        Some(_) => return Err(invalid(format!("messages[{at}].content is neither a string nor an array"))),
    };
    let mut normalized = json!({"role": role, "content": content});
    for name in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(value) = fields.get(name).filter(|value| value.is_string()) {
            normalized[name] = value.clone();
        }
    }
    if let Some(Json::Array(calls)) = fields.get("tool_calls").filter(|_| role == "assistant") {
        let object = |call: &Json| {
            let mut call = call.clone();
            let parsed =
                call["function"]["arguments"].as_str().and_then(|text| serde_json::from_str::<Json>(text).ok());
            if let Some(arguments) = parsed {
                call["function"]["arguments"] = arguments;
            }
            call
        };
        let is_call = |call: &Json| call["function"]["name"].is_string();
        if let Some(wrong) = calls.iter().position(|call| !is_call(call)) {
            return Err(invalid(format!("messages[{at}].tool_calls[{wrong}].function.name is missing")));
        }
        if !calls.is_empty() {
            normalized["tool_calls"] = calls.iter().map(object).collect();
        }
    }
    Ok(normalized)
}

/// Appends text to the system message, or inserts one.
fn add_system(messages: &mut Vec<Json>, text: &str) {
    match messages.first_mut().filter(|first| first["role"] == "system") {
        Some(first) => {
            let before = first["content"].as_str().unwrap_or_default();
            first["content"] = Json::from(format!("{before}\n\n{text}"));
        }
        None => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

/// Joins consecutive messages of one role, except those with tool calls and their results.
fn merge_roles(messages: &Json) -> Json {
    let mut merged: Vec<Json> = Vec::new();
    for message in messages.as_array().into_iter().flatten() {
        let same = |last: &&mut Json| {
            last["role"] == message["role"]
                && message["role"] != "tool"
                && last["tool_calls"].is_null()
                && message["tool_calls"].is_null()
        };
        match merged.last_mut().filter(same) {
            Some(last) => {
                let joined =
                    [&last["content"], &message["content"]].map(|content| content.as_str().unwrap_or_default());
                last["content"] = Json::from(joined.join("\n\n"));
            }
            None => merged.push(message.clone()),
        }
    }
    Json::Array(merged)
}

/// Moves system messages into the next message of the user, before its text.
fn merge_system(messages: &Json) -> Json {
    let (mut merged, mut pending) = (Vec::new(), Vec::new());
    for message in messages.as_array().into_iter().flatten() {
        if message["role"] == "system" {
            pending.push(message["content"].as_str().unwrap_or_default().to_owned());
            continue;
        }
        let mut message = message.clone();
        if message["role"] == "user" && !pending.is_empty() {
            pending.push(message["content"].as_str().unwrap_or_default().to_owned());
            message["content"] = Json::from(std::mem::take(&mut pending).join("\n\n"));
        }
        merged.push(message);
    }
    if !pending.is_empty() {
        merged.push(json!({"role": "user", "content": pending.join("\n\n")}));
    }
    merge_roles(&Json::Array(merged))
}

/// Escapes every string and key of a value.
fn escape_all(value: &mut Json, names: &[&str]) {
    match value {
        Json::String(text) => *text = escape::escape(text, names.iter().copied()),
        Json::Array(items) => items.iter_mut().for_each(|item| escape_all(item, names)),
        Json::Object(fields) => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            for key in keys {
                let escaped = escape::escape(&key, names.iter().copied());
                if escaped != key
                    && let Some(value) = fields.remove(&key)
                {
                    fields.insert(escaped.clone(), value);
                }
                if let Some(value) = fields.get_mut(&escaped) {
                    escape_all(value, names);
                }
            }
        }
        _ => {}
    }
}
