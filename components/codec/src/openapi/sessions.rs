//! The paths of stored sessions.

use serde_json::{Map, Value, json};

use super::{Schemas, json_of, problem, transcript};
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

/// What can go wrong.
fn problems(method: &str, path: &str) -> Vec<(&'static str, &'static str)> {
    let mut problems = vec![
        ("401", "The request does not show who sends it"),
        ("403", "Without authentication sessions are kept on a loopback address only"),
        (
            "429",
            "This user asks too often, or has all the sessions or all the state that a user may have, see `Retry-After`",
        ),
        ("503", "What sessions are kept in cannot answer now, or there are too many of them; see `Retry-After`"),
    ];
    if path == "/sessions" {
        problems.push(("400", "The body cannot be read"));
        problems.push(("413", "The body is too large"));
        problems.push(("415", "The body is not JSON in UTF-8"));
        problems.push(("422", "The configuration is wrong; `errors` lists all that is"));
        return problems;
    }
    problems.push(("404", "There is no such session, or not for this user"));
    problems.push(("422", "The id is none"));
    if path.ends_with("/context") || method == "POST" {
        problems.push(("406", "No form of the answer is accepted"));
    }
    if method == "POST" {
        problems.push(("409", "The session has ended or expired, or another instance owns it"));
    }
    if path.ends_with("/chunks") {
        problems.push(("415", "The body is neither lines of JSON nor JSON"));
    }
    problems
}

fn operation(method: &str, path: &str, schemas: &mut Schemas) -> Value {
    let lines = |schemas: &mut Schemas| {
        let line = schemas.answered::<EventLine<'_>>();
        json!({ "application/x-ndjson": { "schema": line.clone() }, "text/event-stream": { "schema": line } })
    };
    match (method, path.rsplit('/').next()) {
        ("POST", Some("sessions")) => {
            let link = json!({ "schema": { "type": "string" }, "description": "The path of the session" });
            json!({
                "operationId": "createSession",
                "summary": "Make a transcript session that is stored",
                "requestBody": { "required": true, "content": json_of(config()) },
                "responses": { "201": {
                    "description": "The session, and where it is found",
                    "headers": { "Location": link },
                    "content": json_of(schemas.answered::<SessionCreated<'_>>()),
                } },
            })
        }
        ("POST", Some("chunks")) => json!({
            "operationId": "feedSession",
            "summary": "Feed a session: chunks in, events out, in both directions at once",
            "description": "Every event is in the session's channel before it is answered. A chunk with a `seq` that is not above the highest \
                            that was taken is answered `repeated`: submitting again what has no answer is safe, after a crash of the server \
                            too. Who feeds a session that another request feeds takes it over; the other is told `superseded`.",
            "requestBody": { "required": true, "content": transcript::lines(schemas) },
            "responses": { "200": { "description": transcript::DESCRIPTION, "content": lines(schemas) } },
        }),
        ("POST", _) => json!({
            "operationId": "endSession",
            "summary": "End a session: what is in flight is final, the last summary is made, and its channel is finished",
            "responses": { "200": { "description": transcript::DESCRIPTION, "content": lines(schemas) } },
        }),
        ("DELETE", _) => json!({
            "operationId": "deleteSession",
            "summary": "Delete a session; its channel is finished, and can be replayed for as long as events are kept",
            "responses": { "204": { "description": "It is gone" } },
        }),
        (_, Some("context")) => {
            let mut content = json_of(schemas.answered::<ContextWire<'_>>());
            content["text/plain"] = json!({ "schema": { "type": "string" } });
            json!({
                "operationId": "sessionContext",
                "summary": "What a language model is shown: the latest final segments, and the prompt",
                "responses": { "200": { "description": "The context window", "content": content } },
            })
        }
        _ => {
            let known = json!({
                "type": "object",
                "properties": {
                    "session_id": { "type": "string" },
                    "state": { "enum": ["open", "expired", "ended"] },
                    "created_ms": { "type": "integer", "description": "When it was made, in milliseconds since 1970" },
                    "feeding": { "type": "boolean", "description": "A request feeds it now" },
                },
                "required": ["session_id", "created_ms", "feeding"],
            });
            let state = json!({ "allOf": [schemas.answered::<StateWire<'_>>(), known] });
            json!({
                "operationId": "session",
                "summary": "The state of a session, and what it counts",
                "responses": { "200": { "description": "As of the last answer to who feeds it", "content": json_of(state) } },
            })
        }
    }
}

/// A configuration. What is not there has its default.
fn config() -> Value {
    let object =
        |properties: Value| json!({ "type": "object", "additionalProperties": false, "properties": properties });
    let whole = |default: u64, description: &str| json!({ "type": "integer", "minimum": 0, "default": default, "description": description });
    let number = |default: f64, description: &str| json!({ "type": "number", "minimum": 0, "default": default, "description": description });
    let lists = |description: &str| {
        json!({
            "type": "object", "description": description,
            "additionalProperties": { "type": "array", "items": { "type": "string" } },
        })
    };
    object(json!({
        "max_gap_sec": number(1.0, "A pause of more seconds ends a segment"),
        "overlap": {
            "type": "boolean", "default": false,
            "description": "Chunks may start while the segment in flight lasts, not before it starts",
        },
        "annotate": {
            "type": "array", "items": { "enum": ["keywords", "intent", "sentiment", "entities"] },
            "default": ["keywords", "intent"],
            "description": "What is told of final segments; models are asked for `sentiment` and `entities`",
        },
        "keywords": lists("The keywords of each risk, in the place of those that are known"),
        "actions": lists("The phrases of each pattern that announces an action, in the place of those that are known"),
        "context": object(json!({
            "max_segments": whole(10, "Most final segments in the context window"),
            "max_time_sec": number(120.0, "Most seconds that it spans"),
        })),
        "summary": object(json!({
            "every_finals": whole(5, "A summary after so many final segments; 0 for never"),
            "at_end": { "type": "boolean", "default": true, "description": "A summary at the end" },
        })),
        "routing": object(json!({
            "question": whole(0, "Segments that are kept for this workflow"),
            "action_item": whole(0, "The same"),
            "decision": whole(0, "The same"),
            "general": whole(0, "The same"),
            "queued_max": whole(128, "Segments of all workflows together"),
        })),
        "idle": object(json!({
            "expire_ms": whole(600_000, "A session to which nothing comes for so long expires; 0 for never. A stored session may not ask for longer than the server allows (`sessions.expire_ms_max`)"),
            "warn_ms": whole(30_000, "It is warned so long before"),
        })),
        "limits": object(json!({
            "text_bytes_max": whole(8192, "Of a chunk"),
            "speaker_bytes_max": whole(256, "Of a speaker's name"),
            "segment_bytes_max": whole(16_384, "Of a segment: one that would pass it is final; at most 32768 where it is stored"),
        })),
    }))
}
