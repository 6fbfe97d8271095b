//! OpenAI's completions: `POST /v1/completions`.

use serde_json::{Value, json};

use super::{
    ApiRequest,
    chat::{finish_reason, finite, usage_json},
    dialect::{Dialect, DialectKind, Frame},
    error::openai_of,
    event::{GenerationEvent, Started, TokenLogprob},
    generated::Generated,
    request::{
        GenerateRequest, LOGPROBS_MAX, PROMPT_BYTES_MAX, PROMPT_TOKENS_MAX, Prompt, choices, count, format, members,
        model, sampling, stop,
    },
};
use crate::json::{
    field::{FieldError, FieldReason, RequestError},
    members::{Errors, Members},
    to_vec,
    tree::Node,
};

/// Longest prompt that a response can repeat, in bytes: it is stored in one event.
const ECHO_BYTES_MAX: usize = 64 << 10;

/// Reads a body.
///
/// # Errors
///
/// The body is not valid; every invalid field is listed.
pub fn read(body: &[u8]) -> Result<ApiRequest, RequestError> {
    let mut members = members(body)?;
    let mut errors = Errors::default();
    let model = model(&mut members, &mut errors);
    let prompt = prompt(&mut members, &mut errors);
    let sampling = sampling(&mut members, &mut errors);
    let stop = stop(&mut members, "stop", &mut errors);
    let tokens_max = count(&mut members, "max_tokens", 1, &mut errors);
    let count = choices(&mut members, "n", &mut errors);
    let best_of = choices(&mut members, "best_of", &mut errors);
    if best_of > count {
        errors.push_at("best_of", FieldReason::NotAllowed, "must not be above `n`: all texts are returned");
    }
    let format = format(&mut members, &mut errors);
    let logprobs = members.integer_within("logprobs", (0, i64::from(LOGPROBS_MAX)), &mut errors);
    let logprobs = logprobs.and_then(|count| u32::try_from(count).ok());
    let echo = match members.boolean("echo", &mut errors) {
        Some(true) => match &prompt {
            Prompt::Text(text) if logprobs.is_none() && text.len() <= ECHO_BYTES_MAX => Value::from(text.as_str()),
            _ => {
                let what = "is known for a prompt that is a string of at most 65536 bytes, and without `logprobs`";
                errors.push_at("echo", FieldReason::NotAllowed, what);
                Value::Null
            }
        },
        _ => Value::Null,
    };
    if members.text("suffix", &mut errors).is_some_and(|suffix| !suffix.is_empty()) {
        errors.push_at("suffix", FieldReason::Unknown, "is not known here: the models continue a text");
    }
    let stream = members.boolean("stream", &mut errors).unwrap_or(false);
    let options = members.object("stream_options", &mut errors);
    let include_usage = options.and_then(|mut options| options.boolean("include_usage", &mut errors)).unwrap_or(false);
    let request = GenerateRequest { model, prompt, sampling, stop, tokens_max, choices: count, format, logprobs };
    let dialect = Dialect { kind: DialectKind::Completions, include_usage, echo };
    errors.finish(ApiRequest { request, stream, detach: false, dialect })
}

/// Reads the prompt: a text, tokens, or a list with one of these.
fn prompt(members: &mut Members<'_>, errors: &mut Errors) -> Prompt {
    let empty = Prompt::Text(String::new());
    if !members.require("prompt", errors) {
        return empty;
    }
    let Some(node) = members.take("prompt") else {
        errors.push_at("prompt", FieldReason::Missing, "is required");
        return empty;
    };
    match node {
        Node::Text(text) => bounded(text.into_owned(), errors),
        Node::Array(mut items) => match items.first() {
            Some(Node::Integer(_)) => tokens(&items, errors),
            Some(Node::Text(_) | Node::Array(_)) if items.len() == 1 => match items.remove(0) {
                Node::Text(text) => bounded(text.into_owned(), errors),
                Node::Array(items) => tokens(&items, errors),
                _ => empty,
            },
            _ => {
                errors.push_at("prompt", FieldReason::NotAllowed, "must be one text or the tokens of one");
                empty
            }
        },
        other => {
            errors.push_type("prompt", "string or array", &other);
            empty
        }
    }
}

fn bounded(text: String, errors: &mut Errors) -> Prompt {
    if text.len() > PROMPT_BYTES_MAX {
        let (bounds, what) = ((0, PROMPT_BYTES_MAX as i64), "have a length in bytes of");
        errors.push(FieldError::bounded("prompt", FieldReason::TooLong, what, bounds, text.len() as i64));
    }
    Prompt::Text(text)
}

fn tokens(items: &[Node<'_>], errors: &mut Errors) -> Prompt {
    let token = |item: &Node<'_>| match item {
        Node::Integer(id) => u32::try_from(*id).ok(),
        _ => None,
    };
    let read: Option<Vec<u32>> = items.iter().map(token).collect();
    if items.len() > PROMPT_TOKENS_MAX {
        let (bounds, what) = ((0, PROMPT_TOKENS_MAX as i64), "have a number of items of");
        errors.push(FieldError::bounded("prompt", FieldReason::TooLong, what, bounds, items.len() as i64));
    }
    match read {
        Some(tokens) => Prompt::Tokens(tokens),
        None => {
            errors.push_at("prompt", FieldReason::NotAllowed, "must have ids of tokens alone");
            Prompt::Tokens(Vec::new())
        }
    }
}

fn id(generation_id: &str) -> String {
    format!("cmpl-{generation_id}")
}

/// The log probabilities of tokens, in the form of the completions API. `offset` is the code point of the text at which they begin; it is
/// advanced to the end of the tokens.
fn logprobs_json(tokens: &[TokenLogprob], offset: &mut usize) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut names, mut values, mut offsets, mut tops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for token in tokens {
        let name = text(&token.bytes);
        offsets.push(*offset);
        *offset += name.chars().count();
        names.push(name);
        values.push(finite(token.logprob));
        let top = token.top.iter().map(|other| (text(&other.bytes), finite(other.logprob).into()));
        tops.push(Value::Object(top.collect()));
    }
    json!({ "tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets })
}

/// The stream of a generation.
#[derive(Debug)]
pub(crate) struct CompletionStream {
    include_usage: bool,
    /// The prompt, if the response begins with it.
    echo: Value,
    id: String,
    created: u64,
    model: String,
    /// The number of code points of each choice so far.
    offsets: Vec<usize>,
}

impl CompletionStream {
    pub(crate) fn new(dialect: &Dialect) -> Self {
        let (include_usage, echo) = (dialect.include_usage, dialect.echo.clone());
        Self { include_usage, echo, id: String::new(), created: 0, model: String::new(), offsets: Vec::new() }
    }

    pub(crate) fn push(&mut self, event: &GenerationEvent, out: &mut Vec<Frame>) {
        match event {
            GenerationEvent::Started(Started { generation_id, model, created, choices, .. }) => {
                (self.id, self.created, self.model) = (id(generation_id), *created, model.clone());
                self.offsets = vec![0; *choices as usize];
                if let Some(prompt) = self.echo.as_str() {
                    out.extend((0..*choices).map(|index| self.choice(index, prompt, Value::Null, None)));
                }
            }
            GenerationEvent::Token(token) => {
                if token.text.is_empty() && token.tokens.is_empty() {
                    return;
                }
                let mut fresh = 0;
                let offset = self.offsets.get_mut(token.index as usize).unwrap_or(&mut fresh);
                let logprobs = logprobs_json(&token.tokens, offset);
                out.push(self.choice(token.index, &token.text, logprobs, None));
            }
            GenerationEvent::ToolCall(_) => {}
            GenerationEvent::Done(done) => {
                out.push(self.choice(done.index, "", Value::Null, Some(finish_reason(done.finish_reason))));
                let Some(usage) = &done.usage else { return };
                if self.include_usage {
                    out.push(self.chunk(json!([]), Some(usage_json(usage))));
                }
                out.push(Frame { name: None, data: "[DONE]".to_owned() });
            }
            GenerationEvent::Error(failed) => out.push(Frame::json(None, &openai_of(failed))),
        }
    }

    fn choice(&self, index: u32, text: &str, logprobs: Value, finish: Option<&str>) -> Frame {
        let choice = json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish });
        self.chunk(json!([choice]), self.include_usage.then_some(Value::Null))
    }

    fn chunk(&self, choices: Value, usage: Option<Value>) -> Frame {
        let mut chunk = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        Frame::json(None, &chunk)
    }
}

/// The complete response body.
pub(crate) fn whole_json(generated: &Generated) -> Vec<u8> {
    let echo = generated.started.as_ref().and_then(|started| started.dialect.echo.as_str()).unwrap_or_default();
    let choice = |(index, choice): (usize, &super::generated::Choice)| {
        let logprobs = logprobs_json(&choice.tokens, &mut 0);
        let finish = choice.finish().map(finish_reason);
        json!({ "index": index, "text": format!("{echo}{}", choice.text), "logprobs": logprobs, "finish_reason": finish })
    };
    let choices: Vec<Value> = generated.choices.iter().enumerate().map(choice).collect();
    to_vec(&json!({
        "id": id(generated.id()),
        "object": "text_completion",
        "created": generated.created(),
        "model": generated.model(),
        "choices": choices,
        "usage": usage_json(&generated.usage()),
    }))
}
