//! The JSON of a pipeline. Unknown members are errors, and every error has its path.

use std::{collections::BTreeMap, sync::Arc};

use weir_core::{
    inference::{
        retry::{RetryConfig, RetryPolicy},
        rewrite::SummaryMode,
    },
    pipelines::{
        COMPENSATIONS_MAX, Definition, DefinitionError, Draft, Json, Kind, KindName, Method, OnError,
        PARALLEL_MAX_DEFAULT, STEPS_MAX, Step, StepIndex, Streaming, TIMEOUT_MS_DEFAULT, Task, bounds,
    },
};
use weir_expression::{EXPRESSION_BYTES_MAX, Expression};

use super::writer::{Object, object};
use crate::{
    inference::task::MODEL_BYTES_MAX,
    json::{
        field::{FieldError, FieldReason, RequestError},
        members::{Errors, Members},
        tree::Node,
    },
    pipelines::{
        process_request::CHUNK_SIZE_DEFAULT,
        template::{self, TEMPLATE_BYTES_MAX},
    },
};

/// Longest definition, in bytes.
pub const DEFINITION_BYTES_MAX: usize = 1 << 20;
/// Maximum number of JSON values in a definition.
const VALUES_MAX: usize = 20_000;
/// Longest URL, in bytes.
const URL_BYTES_MAX: usize = 2048;
/// Longest path of a component, in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// Maximum number of headers of an HTTP step.
const HEADERS_MAX: usize = 32;
/// Longest name or value of a header, in bytes.
const HEADER_BYTES_MAX: usize = 4096;
/// Longest name that is passed to [`Draft::check`], in bytes; it reports names that are too long for a definition.
const NAME_BYTES_READ: usize = 1024;
/// The default memory of a component, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 64 << 20;
/// The default deadline of a call of a component, in milliseconds.
pub const DEADLINE_MS_DEFAULT: u64 = 10_000;
/// Headers that the HTTP client sets.
const HEADERS_RESERVED: &[&str] =
    &["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// Reads a definition.
///
/// # Errors
///
/// The body is not JSON, or not a valid definition; every error has its path.
pub fn read(body: &[u8]) -> Result<Definition, RequestError> {
    let mut errors = Errors::default();
    let draft = draft(Node::read(body, VALUES_MAX)?, &mut errors);
    match draft {
        Some(draft) if errors.is_empty() => draft.check().map_err(|definition_errors| {
            let mut errors = Errors::default();
            definition_errors.iter().for_each(|error| errors.push(field_error(error)));
            RequestError::Invalid(errors.into_vec())
        }),
        _ => Err(RequestError::Invalid(errors.into_vec())),
    }
}

/// A definition as JSON on one line; [`read`] returns an equal definition.
pub fn to_json(definition: &Definition) -> String {
    let Draft { name, steps, streaming, parallel_max } = definition.draft();
    object(|out| {
        out.value("name", name);
        out.object("streaming", |out| {
            let Streaming { enabled, emit_progress, buffer_size, flush_interval_ms } = streaming;
            out.value("enabled", enabled).value("emit_progress", emit_progress);
            out.value("buffer_size", buffer_size).value("flush_interval_ms", flush_interval_ms);
        });
        out.value("parallel_max", parallel_max);
        out.array("steps", steps, |out, step| {
            write_task(out, &step.task);
            if let Some(after) = &step.after {
                out.value("after", after);
            }
            out.value("on_error", step.on_error.name());
            if !step.compensation.is_empty() {
                out.array("compensation", &step.compensation, write_task);
            }
        });
    })
}

fn draft(node: Node<'_>, errors: &mut Errors) -> Option<Draft> {
    let mut members = Members::of_node(String::new(), node, errors)?;
    let name = members.required_text_bytes("name", NAME_BYTES_READ, errors);
    let streaming = members.take("streaming").and_then(|node| streaming(node, errors)).unwrap_or_default();
    let parallel = PARALLEL_MAX_DEFAULT as u64;
    let parallel_max = number(&mut members, "parallel_max", bounds::PARALLEL, parallel, errors) as usize;
    members.require("steps", errors);
    let items = members.items("steps", STEPS_MAX, errors);
    let steps = items.into_iter().flatten().filter_map(|(path, node)| step(path, node, errors)).collect();
    members.finish(errors);
    Some(Draft { name: name?, steps, streaming, parallel_max })
}

fn streaming(node: Node<'_>, errors: &mut Errors) -> Option<Streaming> {
    let default = Streaming::default();
    let mut members = Members::of_node("streaming".to_owned(), node, errors)?;
    let streaming = Streaming {
        enabled: members.boolean("enabled", errors).unwrap_or(default.enabled),
        emit_progress: members.boolean("emit_progress", errors).unwrap_or(default.emit_progress),
        buffer_size: number(&mut members, "buffer_size", bounds::BUFFER_SIZE, default.buffer_size as u64, errors)
            as usize,
        flush_interval_ms: number(
            &mut members,
            "flush_interval_ms",
            bounds::FLUSH_INTERVAL_MS,
            default.flush_interval_ms,
            errors,
        ),
    };
    members.finish(errors);
    Some(streaming)
}

fn step(path: String, node: Node<'_>, errors: &mut Errors) -> Option<Step> {
    let mut members = Members::of_node(path, node, errors)?;
    let (task, has_kind) = read_task(&mut members, errors);
    let after = members.items("after", STEPS_MAX, errors).map(|items| {
        items
            .into_iter()
            .filter_map(|(path, node)| match node {
                Node::Text(id) => Some(id.into_owned()),
                other => {
                    errors.push(FieldError::wrong_type(path, "string", other.name()));
                    None
                }
            })
            .collect()
    });
    let on_error = members.choice("on_error", OnError::ALL, OnError::name, errors).unwrap_or(OnError::Fail);
    let compensations = members.items("compensation", COMPENSATIONS_MAX, errors);
    let compensation = compensations.into_iter().flatten().filter_map(|(path, node)| {
        let mut members = Members::of_node(path, node, errors)?;
        let (task, has_kind) = read_task(&mut members, errors);
        if has_kind {
            members.finish(errors);
        }
        task
    });
    let compensation = compensation.collect();
    if has_kind {
        members.finish(errors);
    }
    Some(Step { task: task?, after, on_error, compensation })
}

/// The task in an object, and whether its kind is valid: without a kind, its other members are not known.
fn read_task(members: &mut Members<'_>, errors: &mut Errors) -> (Option<Task>, bool) {
    let id = members.required_text_bytes("id", NAME_BYTES_READ, errors);
    members.require("kind", errors);
    let name = members.choice("kind", KindName::ALL, KindName::name, errors);
    let input = expression(members, "input", errors);
    let timeout_ms = number(members, "timeout_ms", bounds::TIMEOUT_MS, TIMEOUT_MS_DEFAULT, errors);
    let retry = retry(members, errors);
    let kind = name.and_then(|name| kind(name, members, errors));
    let task = id.zip(kind).map(|(id, kind)| Task { id: id.into(), kind, input, retry, timeout_ms });
    (task, name.is_some())
}

/// Reads a whole number within bounds; `default` if it is absent or invalid.
fn number(
    members: &mut Members<'_>,
    name: &'static str,
    (min, max): (u64, u64),
    default: u64,
    errors: &mut Errors,
) -> u64 {
    members.integer_within(name, (min as i64, max as i64), errors).map_or(default, |number| number as u64)
}

fn retry(members: &mut Members<'_>, errors: &mut Errors) -> RetryConfig {
    let default = RetryConfig::default();
    let path = members.path("retry");
    let Some(node) = members.take("retry") else { return default };
    let Some(mut members) = Members::of_node(path, node, errors) else { return default };
    let ms = (0, u64::from(u32::MAX));
    // All bounds fit in a u32.
    let mut number = |name, bounds, default: u32| number(&mut members, name, bounds, u64::from(default), errors) as u32;
    let max_attempts = number("max_attempts", bounds::MAX_ATTEMPTS, default.max_attempts);
    let base_backoff_ms = number("base_backoff_ms", ms, default.base_backoff_ms);
    let backoff_ms_max = number("backoff_ms_max", ms, default.backoff_ms_max);
    let policy = members.choice("policy", RetryPolicy::ALL, RetryPolicy::name, errors);
    members.finish(errors);
    let policy = policy.unwrap_or(default.policy);
    RetryConfig { max_attempts, base_backoff_ms, backoff_ms_max, policy, ..default }
}

fn kind(name: KindName, members: &mut Members<'_>, errors: &mut Errors) -> Option<Kind> {
    let mut model = |errors: &mut Errors| members.text_bytes("model", MODEL_BYTES_MAX, errors);
    Some(match name {
        KindName::Chunk => {
            let default = CHUNK_SIZE_DEFAULT as u64;
            Kind::Chunk { chunk_size: number(members, "chunk_size", bounds::CHUNK_SIZE, default, errors) as u32 }
        }
        KindName::Sentiment => Kind::Sentiment { model: model(errors) },
        KindName::Entities => Kind::Entities { model: model(errors) },
        KindName::Summary => {
            let model = model(errors);
            Kind::Summary { model, mode: members.choice("mode", SummaryMode::ALL, SummaryMode::name, errors) }
        }
        KindName::Embed => {
            Kind::Embed { model: model(errors), normalize: members.boolean("normalize", errors).unwrap_or(true) }
        }
        KindName::Annotate => Kind::Annotate,
        KindName::Generate => generate(members, errors)?,
        KindName::Map => {
            let text = members.required_text_bytes("expression", EXPRESSION_BYTES_MAX, errors);
            Kind::Map { expression: valid_expression(text, &members.path("expression"), errors)? }
        }
        KindName::Http => http(members, errors)?,
        KindName::Component => {
            let path = members.required_text_bytes("path", PATH_BYTES_MAX, errors);
            let memory_bytes_max =
                number(members, "memory_bytes_max", bounds::MEMORY_BYTES, MEMORY_BYTES_DEFAULT, errors);
            let deadline_ms = number(members, "deadline_ms", bounds::TIMEOUT_MS, DEADLINE_MS_DEFAULT, errors);
            let config = members.take("config").map_or_else(Json::null, |node| {
                let mut text = String::new();
                node.write(&mut text);
                Json::from_checked(text)
            });
            let field = members.path("path");
            if path.as_deref().is_some_and(|path| path.is_empty() || path.chars().any(char::is_control)) {
                errors.push_at(&field, FieldReason::NotAllowed, "must be the path of a component");
            }
            Kind::Component { path: path?, memory_bytes_max, deadline_ms, config }
        }
    })
}

fn generate(members: &mut Members<'_>, errors: &mut Errors) -> Option<Kind> {
    let model = members.text_bytes("model", MODEL_BYTES_MAX, errors);
    let template = members.required_text_bytes("template", TEMPLATE_BYTES_MAX, errors);
    if let Some(Err(error)) = template.as_deref().map(template::parts) {
        errors.push_at(&members.path("template"), FieldReason::NotAllowed, &format!("is no template: {error}"));
    }
    let system = members.text_bytes("system", TEMPLATE_BYTES_MAX, errors);
    let within = |(min, max): (u64, u64)| (min as i64, max as i64);
    let tokens_max = members.integer_within("max_tokens", within(bounds::TOKENS), errors);
    let temperature = members.number("temperature", errors).map(|temperature| (temperature * 1000.0).round());
    let (min, max) = bounds::TEMPERATURE_THOUSANDTHS;
    if temperature.is_some_and(|thousandths| !(min as f64..=max as f64).contains(&thousandths)) {
        errors.push_at(&members.path("temperature"), FieldReason::OutOfRange, "must be 0 to 2");
    }
    let seed = members.integer("seed", errors).map(i64::cast_unsigned);
    Some(Kind::Generate {
        model,
        template: template?,
        system,
        tokens_max: tokens_max.map(|tokens| tokens as u32),
        temperature_thousandths: temperature.map(|thousandths| thousandths as u32),
        seed,
    })
}

fn http(members: &mut Members<'_>, errors: &mut Errors) -> Option<Kind> {
    let url = members.required_text_bytes("url", URL_BYTES_MAX, errors);
    let method = members.choice("method", Method::ALL, Method::name, errors).unwrap_or(Method::Post);
    let headers = headers(members, errors);
    let body = expression(members, "body", errors);
    if url.as_deref().is_some_and(|url| !is_url(url)) {
        let what = "must be an http or https URL without spaces, user or fragment";
        errors.push_at(&members.path("url"), FieldReason::NotAllowed, what);
    }
    Some(Kind::Http { url: url?, method, headers, body })
}

fn headers(members: &mut Members<'_>, errors: &mut Errors) -> Vec<(String, String)> {
    let path = members.path("headers");
    let all = match members.take("headers") {
        None => return Vec::new(),
        Some(Node::Object(all)) => all,
        Some(other) => {
            errors.push(FieldError::wrong_type(path, "object", other.name()));
            return Vec::new();
        }
    };
    if all.len() > HEADERS_MAX {
        let (bounds, count) = ((0, HEADERS_MAX as i64), all.len() as i64);
        errors.push(FieldError::bounded(path, FieldReason::TooLong, "have a number of members of", bounds, count));
        return Vec::new();
    }
    let mut headers = BTreeMap::new();
    for (name, value) in all {
        let lower = name.to_ascii_lowercase();
        let path = format!("{path}.{}", name.chars().filter(|c| !c.is_control()).take(64).collect::<String>());
        match value {
            _ if !is_token(&name) => errors.push_at(&path, FieldReason::NotAllowed, "is no name of a header"),
            _ if HEADERS_RESERVED.contains(&&*lower) => {
                errors.push_at(&path, FieldReason::NotAllowed, "is set by the HTTP client");
            }
            _ if headers.contains_key(&lower) => errors.push_at(&path, FieldReason::NotAllowed, "is given twice"),
            Node::Text(value) if is_header_value(&value) => {
                headers.insert(lower, value.into_owned());
            }
            Node::Text(_) => errors.push_at(&path, FieldReason::NotAllowed, "is no value of a header"),
            other => errors.push(FieldError::wrong_type(path, "string", other.name())),
        }
    }
    headers.into_iter().collect()
}

fn expression(members: &mut Members<'_>, name: &'static str, errors: &mut Errors) -> Option<String> {
    let text = members.text_bytes(name, EXPRESSION_BYTES_MAX, errors);
    valid_expression(text, &members.path(name), errors)
}

/// Returns the text if it is a valid expression.
fn valid_expression(text: Option<String>, path: &str, errors: &mut Errors) -> Option<String> {
    let text = text?;
    match Expression::parse(&text) {
        Ok(_) => Some(text),
        Err(error) => {
            errors.push_at(path, FieldReason::NotAllowed, &format!("is no expression: {error}"));
            None
        }
    }
}

/// True for a token (RFC 9110, section 5.6.2).
fn is_token(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=HEADER_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// True for the value of a header (RFC 9110, section 5.5), ASCII only.
fn is_header_value(value: &str) -> bool {
    let fits = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
    value.len() <= HEADER_BYTES_MAX && value.bytes().all(fits) && value.trim() == value
}

fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let authority = rest.and_then(|rest| rest.split(['/', '?']).next()).unwrap_or("");
    let fits = url.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte));
    !authority.is_empty() && !authority.starts_with(':') && !authority.contains('@') && fits
}

/// Converts an error of a definition to a field error with its path.
fn field_error(error: &DefinitionError) -> FieldError {
    let id_path = |index: &StepIndex| match index.compensation {
        None => format!("steps[{}].id", index.step),
        Some(at) => format!("steps[{}].compensation[{at}].id", index.step),
    };
    let (path, reason) = match error {
        DefinitionError::Name { .. } => ("name".to_owned(), FieldReason::NotAllowed),
        DefinitionError::NoSteps => ("steps".to_owned(), FieldReason::TooShort),
        DefinitionError::TooManySteps { .. } => ("steps".to_owned(), FieldReason::TooLong),
        DefinitionError::Id { place: at, .. } | DefinitionError::DuplicateId { place: at, .. } => {
            (id_path(at), FieldReason::NotAllowed)
        }
        DefinitionError::UnknownAfter { step, index, .. } | DefinitionError::AfterTwice { step, index, .. } => {
            (format!("steps[{step}].after[{index}]"), FieldReason::NotAllowed)
        }
        DefinitionError::Cycle { step, .. } => (format!("steps[{step}].after"), FieldReason::NotAllowed),
        DefinitionError::OutOfRange { step: None, field, .. } => ((*field).to_owned(), FieldReason::OutOfRange),
        DefinitionError::OutOfRange { step: Some(step), field, .. } => {
            (format!("steps[{step}].{field}"), FieldReason::OutOfRange)
        }
    };
    let message = format!("`{path}`: {error}");
    FieldError::new(path, reason, message)
}

fn write_task(out: &mut Object<'_>, task: &Task) {
    let Task { id, kind, input, retry, timeout_ms } = task;
    let id: &Arc<str> = id;
    out.value("id", &**id).value("kind", kind.name().name());
    match kind {
        Kind::Chunk { chunk_size } => {
            out.value("chunk_size", chunk_size);
        }
        Kind::Sentiment { model } | Kind::Entities { model } => write_some(out, "model", model),
        Kind::Summary { model, mode } => {
            write_some(out, "model", model);
            if let Some(mode) = mode {
                out.value("mode", mode.name());
            }
        }
        Kind::Embed { model, normalize } => {
            write_some(out, "model", model);
            out.value("normalize", normalize);
        }
        Kind::Annotate => {}
        Kind::Generate { model, template, system, tokens_max, temperature_thousandths, seed } => {
            write_some(out, "model", model);
            out.value("template", template);
            write_some(out, "system", system);
            if let Some(tokens_max) = tokens_max {
                out.value("max_tokens", tokens_max);
            }
            if let Some(thousandths) = temperature_thousandths {
                out.value("temperature", &(f64::from(*thousandths) / 1000.0));
            }
            if let Some(seed) = seed {
                out.value("seed", &seed.cast_signed());
            }
        }
        Kind::Map { expression } => {
            out.value("expression", expression);
        }
        Kind::Http { url, method, headers, body } => {
            out.value("url", url).value("method", method.name());
            if !headers.is_empty() {
                out.object("headers", |out| {
                    for (name, value) in headers {
                        out.value(name, value);
                    }
                });
            }
            write_some(out, "body", body);
        }
        Kind::Component { path, memory_bytes_max, deadline_ms, config } => {
            out.value("path", path).value("memory_bytes_max", memory_bytes_max).value("deadline_ms", deadline_ms);
            out.raw("config", config.as_str());
        }
    }
    write_some(out, "input", input);
    out.value("timeout_ms", timeout_ms);
    out.object("retry", |out| {
        out.value("max_attempts", &retry.max_attempts).value("base_backoff_ms", &retry.base_backoff_ms);
        out.value("backoff_ms_max", &retry.backoff_ms_max).value("policy", retry.policy.name());
    });
}

fn write_some(out: &mut Object<'_>, name: &str, value: &Option<String>) {
    if let Some(value) = value {
        out.value(name, value);
    }
}
