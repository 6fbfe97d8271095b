//! The paths of generated text. The bodies of other APIs are described by a reference to their documentation.

use serde_json::{Map, Value, json};

use super::schemas::{Schemas, json_of};
use crate::{
    channels::route::ID_BYTES_MAX,
    generation::{
        error::OpenAiError,
        event::GenerationEvent,
        request::{CHOICES_MAX, LOGPROBS_MAX, STOP_BYTES_MAX, STOP_MAX},
        route::{GENERATION_ROUTES, GenerationRoute},
    },
};

const PROBLEMS: [(&str, &str); 10] = [
    (
        "400",
        "The request is invalid; `param` or the message names the field. A prompt that is too long has the code `context_length_exceeded`",
    ),
    ("401", "The request has no valid credentials"),
    ("404", "There is no such model or generation, or this user has no access to it"),
    ("408", "The body did not arrive in time"),
    ("413", "The body is too large"),
    ("415", "The body is not JSON in UTF-8"),
    ("429", "This user sends too many requests, or has reached a limit, see `Retry-After`"),
    ("502", "The model failed"),
    ("503", "The model is not available now, see `Retry-After`"),
    ("504", "The request took too long"),
];

/// Adds the paths.
pub(super) fn add(paths: &mut Map<String, Value>, schemas: &mut Schemas) {
    for (method, path) in GENERATION_ROUTES {
        let (id, summary, body) = operation_head(method, path);
        let ok = match path {
            "/generate-stream" => {
                let event = schemas.response::<GenerationEvent>();
                json!({
                    "text/plain": { "schema": { "type": "string" } },
                    "application/x-ndjson": { "schema": event.clone() },
                    "text/event-stream": { "schema": event },
                })
            }
            "/v1/messages/count_tokens" => json_of(json!({
                "type": "object", "properties": { "input_tokens": { "type": "integer" } }, "required": ["input_tokens"],
            })),
            _ => json!({
                "application/json": { "schema": { "type": "object" } },
                "text/event-stream": { "schema": { "type": "object" } },
            }),
        };
        let mut responses = Map::new();
        responses.insert("200".to_owned(), json!({ "description": "The response", "content": ok }));
        for (status, what) in PROBLEMS {
            let has_body = method == "POST" || !matches!(status, "400" | "408" | "413" | "415" | "502" | "504");
            let route = GenerationRoute::find(&path.replace(['{', '}'], ""));
            if has_body {
                let content = problem(route.as_ref(), schemas);
                responses.insert(status.to_owned(), json!({ "description": what, "content": content }));
            }
        }
        let mut operation = json!({ "operationId": id, "summary": summary, "responses": responses });
        if let Some(body) = body {
            operation["requestBody"] = json!({ "required": true, "content": json_of(body) });
        }
        let parameters = parameters(method, path);
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method.to_ascii_lowercase()] = operation;
    }
}

fn problem(route: Option<&GenerationRoute>, schemas: &mut Schemas) -> Value {
    use crate::generation::dialect::DialectKind::{Chat, Completions, Responses};
    match route.map(GenerationRoute::dialect) {
        Some(Chat | Completions | Responses) => json_of(schemas.response::<OpenAiError>()),
        _ => json_of(json!({ "type": "object" })),
    }
}

fn operation_head(method: &str, path: &str) -> (&'static str, &'static str, Option<Value>) {
    let other = |what: &str| Some(json!({ "type": "object", "description": what }));
    match (method, path) {
        (_, "/generate-stream") => ("generateStream", "Generate text, streamed as it is generated", Some(weir_body())),
        (_, "/v1/chat/completions") => {
            let body = other("As in the chat completions API of OpenAI; unknown fields are ignored");
            ("chatCompletions", "Chat, in the dialect of OpenAI's chat completions", body)
        }
        (_, "/v1/completions") => {
            let body = other("As in the completions API of OpenAI, for one prompt");
            ("completions", "Continue a text, in the dialect of OpenAI's completions", body)
        }
        ("POST", "/v1/responses") => {
            let body = other("As in the responses API of OpenAI, without stored conversations and hosted tools");
            ("responses", "Chat, in the dialect of OpenAI's responses", body)
        }
        ("GET", "/v1/responses/{response_id}") => {
            ("response", "A response: its state, or with `stream=true` its stream after a frame", None)
        }
        (_, "/v1/responses/{response_id}/cancel") => ("cancelResponse", "Cancel a response", None),
        (_, "/v1/messages") => {
            let body = other("As in the messages API of Anthropic, for text and tools of the client");
            ("messages", "Chat, in the dialect of Anthropic's messages", body)
        }
        (_, "/v1/messages/count_tokens") => {
            ("countMessageTokens", "Count the tokens of messages", other("As for `/v1/messages`, without `max_tokens`"))
        }
        (_, "/v1beta/models/{model}:generateContent") => {
            let body = other("As in the API of Gemini, for text and tools of the client");
            ("generateContent", "Chat, in the dialect of Gemini; also under `/v1/models/` and `/models/`", body)
        }
        (_, "/v1beta/models/{model}:streamGenerateContent") => {
            let body = other("As for `generateContent`");
            ("streamGenerateContent", "The same as a stream: events with `alt=sse`, else a JSON array", body)
        }
        (_, "/v1/ui/chat") => {
            let body = other("`messages` as `useChat` of the AI SDK sends them");
            ("uiChat", "Chat, as the UI message stream of the AI SDK", body)
        }
        ("GET", _) => {
            ("generation", "A generation, in the dialect of its request, after the frames that the client has", None)
        }
        _ => ("cancelGeneration", "Cancel a generation", None),
    }
}

fn weir_body() -> Value {
    let number = |min: f64, max: f64| json!({ "type": "number", "minimum": min, "maximum": max });
    let integer = |min: u32, max: u32| json!({ "type": "integer", "minimum": min, "maximum": max });
    let stop = json!({ "type": "string", "minLength": 1, "maxLength": STOP_BYTES_MAX });
    json!({
        "type": "object",
        "description": "A prompt or messages, and the parameters of generation; unknown fields are refused",
        "properties": {
            "model": { "type": "string" },
            "prompt": { "type": "string", "description": "A text that the model continues, without its chat template" },
            "messages": { "type": "array", "items": { "type": "object" }, "description": "A chat, as in OpenAI's API" },
            "tools": { "type": "array", "items": { "type": "object" } },
            "tool_choice": {},
            "max_tokens": { "type": "integer", "minimum": 1 },
            "temperature": number(0.0, 2.0),
            "top_k": { "type": "integer", "minimum": 0 },
            "top_p": number(0.0, 1.0),
            "min_p": number(0.0, 1.0),
            "repeat_penalty": number(0.01, 10.0),
            "presence_penalty": number(-2.0, 2.0),
            "frequency_penalty": number(-2.0, 2.0),
            "logit_bias": { "type": "object" },
            "seed": { "type": "integer" },
            "stop": { "oneOf": [stop, { "type": "array", "items": stop, "maxItems": STOP_MAX }] },
            "n": integer(1, CHOICES_MAX),
            "logprobs": integer(0, LOGPROBS_MAX),
            "response_format": { "type": "object" },
            "stream": { "type": "boolean", "default": true },
            "detach": { "type": "boolean", "default": false },
        },
    })
}

fn parameters(method: &str, path: &str) -> Vec<Value> {
    let mut parameters = Vec::new();
    let parameter = |name: &str, location: &str, schema: Value, what: &str| json!({ "name": name, "in": location, "required": location == "path", "schema": schema, "description": what });
    if let Some(name) = path.split(['{', '}']).nth(1) {
        let schema = json!({ "type": "string", "minLength": 1, "maxLength": ID_BYTES_MAX });
        parameters.push(parameter(name, "path", schema, "The name or the id"));
    }
    let flag = json!({ "type": "boolean" });
    match (method, path) {
        ("GET", _) => {
            let number = json!({ "type": "integer", "minimum": 0 });
            parameters.push(parameter("stream", "query", flag, "Respond with a stream"));
            let what = "The number of the last frame that the client has; `Last-Event-ID` has the same meaning and takes precedence";
            parameters.push(parameter("starting_after", "query", number, what));
        }
        ("POST", "/v1/messages/count_tokens" | "/v1/responses/{response_id}/cancel") => {}
        ("POST", _) => {
            let what = "Continue to generate when the client disconnects";
            parameters.push(parameter("detach", "query", flag, what));
        }
        _ => {}
    }
    parameters
}
