//! The paths of channels. Parts of what publishers send are passed through without parsing, so the schemas are written here.

use serde_json::{Map, Value, json};

use super::schemas::{Schemas, problem};
use crate::channels::{
    event::events_of,
    filter::THROTTLE_MS_MAX,
    publish::{LEVELS, MESSAGE_CODE_POINTS_MAX, NAME_CODE_POINTS_MAX, TEMPORAL_STATUSES},
    route::{CHANNEL_ROUTES, ChannelKind, ID_BYTES_MAX},
    subscribe::LAST_EVENT_ID,
};

/// Adds the paths.
pub(super) fn add(paths: &mut Map<String, Value>, schemas: &mut Schemas) {
    for (method, path) in CHANNEL_ROUTES {
        let mut operation = match path {
            "/stream/health" => health(),
            "/tickets" => tickets(),
            path if method == "GET" => subscribe(path),
            path => publish(path),
        };
        if let Some(name) = path.split(['{', '}']).nth(1) {
            let id = json!({
                "name": name, "in": "path", "required": true,
                "schema": { "type": "string", "minLength": 1, "maxLength": ID_BYTES_MAX,
                            "pattern": "^[A-Za-z0-9_~:@+=|-][A-Za-z0-9._~:@+=|-]*$" },
            });
            let more = operation["parameters"].as_array().cloned().unwrap_or_default();
            operation["parameters"] = Value::Array([vec![id], more].concat());
        }
        let content = problem(schemas);
        if let Some(responses) = operation["responses"].as_object_mut() {
            for (status, what) in problems(method, path) {
                responses.insert((*status).to_owned(), json!({ "description": what, "content": content.clone() }));
            }
        }
        paths.insert(path.to_owned(), json!({ method.to_ascii_lowercase(): operation }));
    }
}

/// The problems of an operation.
fn problems(method: &str, path: &str) -> &'static [(&'static str, &'static str)] {
    const STORE: (&str, &str) = ("503", "The channel store is not available now, or is full, see `Retry-After`");
    const NOT_AUTHENTICATED: (&str, &str) = ("401", "The request has no valid credentials");
    const NOT_LOOPBACK: (&str, &str) =
        ("403", "Without authentication, channels are served on a loopback address only");
    const NOT_FOUND: (&str, &str) = ("404", "There is no such channel, or this user has no access to it");
    const RATE_LIMITED: (&str, &str) =
        ("429", "This user sends too many requests, or has its share of the channel store, see `Retry-After`");
    match (method, path) {
        (_, "/stream/health") => &[],
        (_, "/tickets") => {
            &[NOT_AUTHENTICATED, ("422", "The body has invalid fields, or the ticket would be too long"), RATE_LIMITED]
        }
        ("GET", _) => &[
            NOT_AUTHENTICATED,
            NOT_LOOPBACK,
            NOT_FOUND,
            ("406", "The client accepts neither media type"),
            ("422", "The id is invalid, or the cursor is given twice"),
            RATE_LIMITED,
            STORE,
        ],
        _ => &[
            ("400", "The body is not JSON"),
            NOT_AUTHENTICATED,
            NOT_LOOPBACK,
            NOT_FOUND,
            ("409", "The channel is finished"),
            ("413", "The body or the event is too large"),
            ("422", "The body has invalid fields; `errors` lists them"),
            RATE_LIMITED,
            STORE,
        ],
    }
}

fn kind(path: &str) -> Option<ChannelKind> {
    ChannelKind::from_name(path.split('/').nth(2)?)
}

fn subscribe(path: &str) -> Value {
    let kind = kind(path);
    let names = kind.map(events_of).unwrap_or_default().join(", ");
    let name = kind.map_or("channel", ChannelKind::name);
    let stream = |description: &str| json!({ "schema": { "type": "string", "description": description } });
    json!({
        "operationId": format!("follow_{name}"),
        "summary": format!("Follow the channel of a {name}"),
        "parameters": [
            { "name": "Last-Event-ID", "in": "header", "schema": { "type": "string" },
              "description": "The id of the last event that the client has: the stream begins after it. For an id that is not of this channel, the \
                              stream begins with a `gap` and all retained events" },
            { "name": LAST_EVENT_ID, "in": "query", "schema": { "type": "string" },
              "description": "The same for a first connection; the header takes precedence" },
            { "name": "ticket", "in": "query", "schema": { "type": "string" },
              "description": "A ticket of `POST /tickets`, for clients that cannot send a header" },
            { "name": "events", "in": "query", "schema": { "type": "string" },
              "description": "Names of events, separated by commas: other events are filtered out, without a gap. Cursors are exact with every filter" },
            { "name": "steps", "in": "query", "schema": { "type": "string" },
              "description": "Ids of steps, separated by commas: events of other steps are filtered out" },
            { "name": "throttle_ms", "in": "query",
              "schema": { "type": "integer", "minimum": 0, "maximum": THROTTLE_MS_MAX, "default": 0 },
              "description": "The period, in milliseconds, in which at most the newest progress event of a key is sent; 0 sends all" },
        ],
        "responses": {
            "200": {
                "description": format!(
                    "Events as they occur: {names}. The id of an event is its cursor, `epoch-seq`. A `gap` reports events that \
                     are no longer retained, from `missing_from` to `missing_to`, both included."
                ),
                "content": {
                    "text/event-stream": stream("Server-sent events; a comment as the heartbeat"),
                    "application/x-ndjson": stream("A line `{type, id, channel, data}` for each event"),
                },
            },
            "204": { "description": "The channel is finished, and the client has all of its events" },
        },
    })
}

fn publish(path: &str) -> Value {
    let text = |code_points: usize| json!({ "type": "string", "maxLength": code_points });
    let (name, message) = (text(NAME_CODE_POINTS_MAX), text(MESSAGE_CODE_POINTS_MAX));
    let user = json!({ "type": "string", "description": "The user whose channel receives a copy of the event" });
    let last = json!({ "type": "boolean", "description": "True for the last event of the channel" });
    let progress = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "step": name, "progress": { "type": "number", "minimum": 0, "maximum": 100 }, "message": message,
            "error": message, "canceled": { "type": "boolean" }, "metadata": { "type": "object" }, "result": {},
            "user_id": user, "last": last,
        },
        "required": ["step", "progress"],
    });
    let (id, summary, body) = match path {
        "/stream/publish/user/{id}" => {
            let body = json!({
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "title": name, "message": message, "level": { "enum": LEVELS, "default": LEVELS[0] },
                    "metadata": { "type": "object" },
                },
                "required": ["message"],
            });
            ("notify", "Notify a user", body)
        }
        "/stream/publish/analysis/{file_id}" => {
            ("publishAnalysis", "Publish the progress of a file's analysis", progress)
        }
        _ => {
            let mut progress = progress;
            progress["properties"]["event"] = json!({ "const": "workflow_progress" });
            let temporal = json!({
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "event": { "const": "temporal_status" }, "status": { "enum": TEMPORAL_STATUSES }, "run_id": name,
                    "message": message, "metadata": { "type": "object" }, "result": {}, "user_id": user, "last": last,
                },
                "required": ["event", "status"],
            });
            let body = json!({ "oneOf": [progress, temporal] });
            ("publishWorkflow", "Publish an event of a workflow: its progress, or its status in its engine", body)
        }
    };
    let published = json!({
        "type": "object",
        "properties": {
            "status": { "const": "published" }, "channel": { "type": "string" }, "id": { "type": "string" },
            "user_channel": { "type": "string" }, "user_event_id": { "type": "string" },
        },
        "required": ["status", "channel", "id"],
    });
    json!({
        "operationId": id,
        "summary": summary,
        "requestBody": { "required": true, "content": { "application/json": { "schema": body } } },
        "responses": {
            "200": { "description": "The event is in its channel; `id` is its cursor",
                     "content": { "application/json": { "schema": published } } },
        },
    })
}

fn tickets() -> Value {
    let body = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "path": { "type": "string", "description": "The path that it gives access to, without a query" },
            "scope": { "type": "string", "description": "The scopes that it is limited to, separated by spaces" },
        },
        "required": ["path"],
    });
    let ticket = json!({
        "type": "object",
        "properties": { "ticket": { "type": "string" }, "expires_at": { "type": "string", "format": "date-time" } },
        "required": ["ticket", "expires_at"],
    });
    json!({
        "operationId": "ticket",
        "summary": "A ticket for one request of one path, for pages that cannot send a header",
        "requestBody": { "required": true, "content": { "application/json": { "schema": body } } },
        "responses": {
            "201": { "description": "The ticket", "content": { "application/json": { "schema": ticket } } },
        },
    })
}

fn health() -> Value {
    let services = json!({ "type": "object", "additionalProperties": { "enum": ["healthy", "unhealthy"] } });
    let count = json!({ "type": "integer", "minimum": 0 });
    let adapter = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" }, "source": { "type": "string" }, "sink": { "type": "string" },
            "state": { "enum": ["starting", "running", "reconnecting", "stopping", "stopped", "failed"] },
            "failure": { "type": "string", "description": "Only where no authentication is required" },
            "records": count, "results": count, "errors": count, "in_flight": count, "reconnects": count,
        },
        "required": ["name", "source", "sink", "state", "records", "results", "errors", "in_flight", "reconnects"],
    });
    let health = json!({
        "type": "object",
        "properties": {
            "status": { "enum": ["healthy", "degraded", "unhealthy"] }, "services": services,
            "active_streams": { "type": "integer" }, "timestamp": { "type": "string", "format": "date-time" },
            "details": { "type": "object", "additionalProperties": { "type": "string" } },
            "adapters": { "type": "array", "items": adapter },
        },
        "required": ["status", "services", "active_streams", "timestamp"],
    });
    let content = json!({ "application/json": { "schema": health } });
    json!({
        "operationId": "streamHealth",
        "summary": "The health of the channel store and of the models",
        "responses": {
            "200": { "description": "Channels are served", "content": content },
            "503": { "description": "The channel store accepts no events", "content": content },
        },
    })
}
