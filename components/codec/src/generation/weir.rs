//! Weir's own dialect: `POST /generate-stream`. The response is text by default; by `Accept`, the events of the channel as NDJSON or as
//! server-sent events.

use serde_json::{Value, json};

use super::{
    ApiRequest,
    dialect::{Dialect, DialectKind, StreamFraming},
    generated::{Choice, Generated},
    message::{messages_json, read_messages, read_tools, tool_choice, tools_json},
    request::{
        GenerateRequest, LOGPROBS_MAX, PROMPT_BYTES_MAX, Prompt, choices, count, format, members, model, sampling, stop,
    },
};
use crate::{
    http::accept::choose,
    json::{
        field::{FieldReason, RequestError},
        members::Errors,
        to_vec,
    },
};

/// Reads a body: `prompt`, a text that the model continues, or `messages`, and parameters under their names in OpenAI's API. An unknown
/// member is an error.
///
/// # Errors
///
/// The body is not valid; every invalid field is listed.
pub fn read(body: &[u8]) -> Result<ApiRequest, RequestError> {
    let mut members = members(body)?;
    let mut errors = Errors::default();
    let model = model(&mut members, &mut errors);
    let text = members.text_bytes("prompt", PROMPT_BYTES_MAX, &mut errors);
    let prompt = match (text, members.has("messages")) {
        (Some(_), true) => {
            errors.push_at("prompt", FieldReason::NotAllowed, "cannot be there together with `messages`");
            Prompt::Text(String::new())
        }
        (Some(text), false) => Prompt::Text(text),
        (None, _) => {
            let messages = read_messages(&mut members, &mut errors);
            let messages = messages_json(&messages, "messages", &mut errors);
            let tools = tools_json(&read_tools(&mut members, &mut errors));
            let tool_choice = tool_choice(&mut members, &mut errors);
            Prompt::Chat { messages, tools, tool_choice }
        }
    };
    let sampling = sampling(&mut members, &mut errors);
    let stop = stop(&mut members, "stop", &mut errors);
    let tokens_max = count(&mut members, "max_tokens", 1, &mut errors);
    let choices = choices(&mut members, "n", &mut errors);
    let format = format(&mut members, &mut errors);
    let logprobs = members.integer_within("logprobs", (0, i64::from(LOGPROBS_MAX)), &mut errors);
    let logprobs = logprobs.and_then(|count| u32::try_from(count).ok());
    let stream = members.boolean("stream", &mut errors).unwrap_or(true);
    let detach = members.boolean("detach", &mut errors).unwrap_or(false);
    members.finish(&mut errors);
    let request = GenerateRequest { model, prompt, sampling, stop, tokens_max, choices, format, logprobs };
    errors.finish(ApiRequest { request, stream, detach, dialect: Dialect::new(DialectKind::Weir) })
}

/// The framing that a client prefers; text when it accepts everything, `None` when it accepts none of them.
pub fn framing(accept: Option<&str>) -> Option<StreamFraming> {
    let ndjson = [("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl")];
    let offers: [(StreamFraming, &[(&str, &str)]); 3] = [
        (StreamFraming::Text, &[("text", "plain")]),
        (StreamFraming::Ndjson, &ndjson),
        (StreamFraming::Sse, &[("text", "event-stream")]),
    ];
    choose(accept, &offers)
}

/// The complete response body.
pub(crate) fn whole_json(generated: &Generated) -> Vec<u8> {
    let choice = |(index, choice): (usize, &Choice)| {
        let calls =
            choice.calls.iter().map(|call| json!({ "id": call.id, "name": call.name, "arguments": call.arguments }));
        let mut value = json!({ "index": index, "text": choice.text, "finish_reason": choice.finish() });
        if !choice.calls.is_empty() {
            value["tool_calls"] = calls.collect();
        }
        if !choice.tokens.is_empty() {
            value["tokens"] = serde_json::to_value(&choice.tokens).unwrap_or_default();
        }
        if let Some(stop) = choice.done.as_ref().and_then(|done| done.stop.as_deref()) {
            value["stop"] = stop.into();
        }
        value
    };
    let choices: Vec<Value> = generated.choices.iter().enumerate().map(choice).collect();
    to_vec(&json!({
        "generation_id": generated.id(),
        "model": generated.model(),
        "created": generated.created(),
        "seed": generated.started.as_ref().map(|started| started.seed),
        "choices": choices,
        "usage": generated.usage(),
    }))
}
