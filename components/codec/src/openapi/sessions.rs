//! The paths of stored sessions.

use serde_json::{Map, Value, json};

use super::{
    schemas::{Schemas, json_of, problem},
    transcript,
};
use crate::{
    channels::route::ID_BYTES_MAX,
    transcripts::{
        event::{ContextWire, EventLine, StateWire},
        route::SESSION_ROUTES,
        stored::SessionCreated,
    },
};

/// Adds the paths.
pub(super) fn add(paths: &mut Map<String, Value>, schemas: &mut Schemas) {
    for (method, path) in SESSION_ROUTES {
        let mut operation = operation(method, path, schemas);
        if path != "/sessions" {
            operation["parameters"] = json!([{
                "name": "session_id", "in": "path", "required": true,
                "schema": { "type": "string", "minLength": 1, "maxLength": ID_BYTES_MAX },
            }]);
        }
        let content = problem(schemas);
        if let Some(responses) = operation["responses"].as_object_mut() {
            for (status, what) in problems(method, path) {
                responses.insert(status.to_owned(), json!({ "description": what, "content": content.clone() }));
            }
        }
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[method.to_ascii_lowercase()] = operation;
    }
}

/// The problems of an operation.
fn problems(method: &str, path: &str) -> Vec<(&'static str, &'static str)> {
    let mut problems = vec![
        ("401", "The request has no valid credentials"),
        ("403", "Without authentication, sessions are stored on a loopback address only"),
        (
            "429",
            "This user sends too many requests, or has reached the maximum sessions or state of a user, see `Retry-After`",
        ),
        ("503", "The store is not available now, or there are too many sessions; see `Retry-After`"),
    ];
    if path == "/sessions" {
        problems.push(("400", "The body is not JSON"));
        problems.push(("413", "The body is too large"));
        problems.push(("415", "The body is not JSON in UTF-8"));
        problems.push(("422", "The configuration has invalid fields; `errors` lists them"));
        return problems;
    }
    problems.push(("404", "There is no such session, or this user has no access to it"));
    problems.push(("422", "The id is invalid"));
    if path.ends_with("/context") || method == "POST" {
        problems.push(("406", "The client accepts none of the media types of the response"));
    }
    if method == "POST" {
        problems.push(("409", "The session has ended or expired, or is owned by another instance"));
    }
    if path.ends_with("/chunks") {
        problems.push(("415", "The body is neither lines of JSON nor JSON"));
    }
    problems
}

fn operation(method: &str, path: &str, schemas: &mut Schemas) -> Value {
    let lines = |schemas: &mut Schemas| {
        let line = schemas.response::<EventLine<'_>>();
        json!({ "application/x-ndjson": { "schema": line.clone() }, "text/event-stream": { "schema": line } })
    };
    match (method, path.rsplit('/').next()) {
        ("POST", Some("sessions")) => {
            let link = json!({ "schema": { "type": "string" }, "description": "The path of the session" });
            json!({
                "operationId": "createSession",
                "summary": "Create a stored transcript session",
                "requestBody": { "required": true, "content": json_of(config()) },
                "responses": { "201": {
                    "description": "The session and its links",
                    "headers": { "Location": link },
                    "content": json_of(schemas.response::<SessionCreated<'_>>()),
                } },
            })
        }
        ("POST", Some("chunks")) => json!({
            "operationId": "feedSession",
            "summary": "Feed a session: chunks in, events out, in both directions at once",
            "description": "Every event is stored in the session's channel before it is sent. A chunk with a `seq` that is not above the highest \
                            so far is answered with `repeated`, so sending unanswered chunks again is safe, also after a crash of the \
                            server. A request that feeds a session takes over from an earlier one, which ends with `superseded`.",
            "requestBody": { "required": true, "content": transcript::lines(schemas) },
            "responses": { "200": { "description": transcript::DESCRIPTION, "content": lines(schemas) } },
        }),
        ("POST", _) => json!({
            "operationId": "endSession",
            "summary": "End a session: the segment in flight becomes final, the last summary is due, and the channel is finished",
            "responses": { "200": { "description": transcript::DESCRIPTION, "content": lines(schemas) } },
        }),
        ("DELETE", _) => json!({
            "operationId": "deleteSession",
            "summary": "Delete a session; its channel is finished, and can be replayed while its events are retained",
            "responses": { "204": { "description": "The session is deleted" } },
        }),
        (_, Some("context")) => {
            let mut content = json_of(schemas.response::<ContextWire<'_>>());
            content["text/plain"] = json!({ "schema": { "type": "string" } });
            json!({
                "operationId": "sessionContext",
                "summary": "The context window for a language model: the latest final segments, and the prompt",
                "responses": { "200": { "description": "The context window", "content": content } },
            })
        }
        _ => {
            let registry_state = json!({
                "type": "object",
                "properties": {
                    "session_id": { "type": "string" },
                    "state": { "enum": ["open", "expired", "ended"] },
                    "created_ms": { "type": "integer", "description": "When it was created, in milliseconds since 1970" },
                    "feeding": { "type": "boolean", "description": "True while a request feeds it" },
                },
                "required": ["session_id", "created_ms", "feeding"],
            });
            let state = json!({ "allOf": [schemas.response::<StateWire<'_>>(), registry_state] });
            json!({
                "operationId": "session",
                "summary": "The state and the metrics of a session",
                "responses": { "200": { "description": "The state as of the last stored event", "content": json_of(state) } },
            })
        }
    }
}

/// The schema of a configuration; absent members have their defaults.
fn config() -> Value {
    let object =
        |properties: Value| json!({ "type": "object", "additionalProperties": false, "properties": properties });
    let integer = |default: u64, description: &str| json!({ "type": "integer", "minimum": 0, "default": default, "description": description });
    let number = |default: f64, description: &str| json!({ "type": "number", "minimum": 0, "default": default, "description": description });
    let lists = |description: &str| {
        json!({
            "type": "object", "description": description,
            "additionalProperties": { "type": "array", "items": { "type": "string" } },
        })
    };
    object(json!({
        "max_gap_sec": number(1.0, "A pause of more than this number of seconds ends a segment"),
        "overlap": {
            "type": "boolean", "default": false,
            "description": "Chunks may start before the segment in flight ends, but not before it starts",
        },
        "annotate": {
            "type": "array", "items": { "enum": ["keywords", "intent", "sentiment", "entities"] },
            "default": ["keywords", "intent"],
            "description": "The annotations of final segments; `sentiment` and `entities` are computed by models",
        },
        "keywords": lists("The keywords of each risk, instead of the built-in ones"),
        "actions": lists("The phrases of each pattern of an action, instead of the built-in ones"),
        "context": object(json!({
            "max_segments": integer(10, "Maximum number of final segments in the context window"),
            "max_time_sec": number(120.0, "Maximum duration of the context window, in seconds"),
        })),
        "summary": object(json!({
            "every_finals": integer(5, "Number of final segments after which a summary is due; 0: never"),
            "at_end": { "type": "boolean", "default": true, "description": "A summary is due at the end" },
        })),
        "routing": object(json!({
            "question": integer(0, "Maximum number of queued segments of this workflow"),
            "action_item": integer(0, "The same"),
            "decision": integer(0, "The same"),
            "general": integer(0, "The same"),
            "queued_max": integer(128, "Maximum number of queued segments of all workflows together"),
        })),
        "idle": object(json!({
            "expire_ms": integer(600_000, "Idle time after which the session expires; 0: never. For a stored session, at most `sessions.expire_ms_max`"),
            "warn_ms": integer(30_000, "Time before the expiry at which the session is warned"),
        })),
        "limits": object(json!({
            "text_bytes_max": integer(8192, "Maximum length of the text of a chunk, in bytes"),
            "speaker_bytes_max": integer(256, "Maximum length of a speaker's name, in bytes"),
            "segment_bytes_max": integer(16_384, "Maximum length of a segment, in bytes; a segment that would exceed it becomes final. At most 32768 in a stored session"),
        })),
    }))
}
