//! The paths of pipelines and executions. Their answers are written member by member, so their schemas are written here.

use serde_json::{Map, Value, json};
use weir_core::pipelines::{NAME_BYTES_MAX, State, StepState};

use super::{Schemas, problem};
use crate::{
    json::field::FieldError,
    pipelines::{
        list_query::{LIMIT_DEFAULT, LIMIT_MAX},
        route::PIPELINE_ROUTES,
    },
};

/// What can go wrong on a path.
type Problems = &'static [(&'static str, &'static str)];

const WHO: (&str, &str) = ("401", "The request does not show who sends it");
const PLACE: (&str, &str) = ("403", "Without authentication executions are served on a loopback address only");
const THERE: (&str, &str) = ("404", "There is no such thing, or not for this user");
const OFTEN: (&str, &str) = ("429", "This user asks too often, see `Retry-After`");
const INVALID: (&str, &str) = ("503", "The definition cannot be used, for the reasons in `detail` and `errors`");
const QUERY: (&str, &str) = ("422", "The query is not fit; `errors` lists what is wrong");
const STORE: (&str, &str) = ("503", "The store cannot answer now, see `Retry-After`");

/// Adds the paths.
pub(super) fn add(paths: &mut Map<String, Value>, schemas: &mut Schemas) {
    for (method, path) in PIPELINE_ROUTES {
        let (mut operation, problems) = operation(method, path, schemas);
        if let Some(name) = path.split(['{', '}']).nth(1) {
            let schema = match name {
                "name" => {
                    json!({ "type": "string", "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]*$", "maxLength": NAME_BYTES_MAX })
                }
                _ => json!({ "type": "string", "pattern": "^exec_[A-Za-z0-9_-]{21}[AQgw]$" }),
            };
            let place = json!({ "name": name, "in": "path", "required": true, "schema": schema });
            let more = operation["parameters"].as_array().cloned().unwrap_or_default();
            operation["parameters"] = Value::Array([vec![place], more].concat());
        }
        let content = problem(schemas);
        if let Some(responses) = operation["responses"].as_object_mut() {
            for (status, what) in problems {
                responses.insert((*status).to_owned(), json!({ "description": what, "content": content.clone() }));
            }
        }
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method.to_ascii_lowercase()] = operation;
    }
}

fn operation(method: &str, path: &str, schemas: &mut Schemas) -> (Value, Problems) {
    match (method, path) {
        ("GET", "/pipelines") => {
            let step = object(&[("id", text()), ("kind", text())]);
            let mut pipeline =
                object(&[("name", text()), ("valid", json!({ "type": "boolean" })), ("steps", array(step))]);
            // Only of one that is not valid.
            pipeline["properties"]["error"] = text();
            pipeline["properties"]["errors"] = array(schemas.answered::<FieldError>());
            let list = object(&[("pipelines", array(pipeline))]);
            (read("pipelines", "The pipelines that this user may start", list), &[WHO, PLACE, OFTEN])
        }
        ("POST", "/upload") => (upload(), UPLOAD_PROBLEMS),
        ("POST", _) => (start(), START_PROBLEMS),
        ("GET", "/pipelines/{name}") => {
            let definition = json!({ "type": "object", "description": "Every member, also those with defaults" });
            (read("pipeline", "The definition of a pipeline", definition), &[WHO, PLACE, THERE, OFTEN, INVALID])
        }
        ("GET", "/executions") => {
            let listed = object(&[
                ("execution_id", text()),
                ("pipeline", text()),
                ("state", states()),
                ("started_at", moment()),
                ("errors", described(whole(), "Steps that have failed")),
                ("links", links()),
            ]);
            let list = object(&[("executions", array(listed))]);
            let mut operation = read("executions", "The executions of this user, the newest first", list);
            operation["parameters"] = json!([
                query("state", states(), "In this state only"),
                query("pipeline", text(), "Of this pipeline only"),
                query(
                    "limit",
                    json!({ "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT }),
                    "At most this number",
                ),
                query("after", text(), "Those that began before the execution with this id"),
            ]);
            (operation, &[WHO, PLACE, QUERY, OFTEN])
        }
        ("DELETE", _) => {
            let mut operation =
                read("cancel", "Cancel an execution: what runs is stopped, nothing is undone", status());
            operation["responses"]["200"]["description"] = json!("It has ended");
            (operation, CANCEL_PROBLEMS)
        }
        ("GET", "/reliability") => {
            let rate = json!({ "type": ["number", "null"] });
            let counts = [
                "executions_completed",
                "executions_failed",
                "executions_cancelled",
                "steps_completed",
                "steps_failed",
                "retries",
                "compensations",
                "tool_calls",
            ];
            let rates = ["sr", "cr", "tcl_ms", "wct_ms"].map(|name| (name, rate.clone()));
            let counts = counts.map(|name| (name, whole()));
            let all: Vec<_> = rates.into_iter().chain(counts).collect();
            let window: Vec<_> = std::iter::once(("seconds", whole())).chain(all.clone()).collect();
            let body = object(&[("total", object(&all)), ("window", object(&window))]);
            let what = "Success rate, compensation rate, mean tool latency and mean workflow time";
            (read("reliability", what, body), &[WHO, PLACE, OFTEN])
        }
        _ => (read("execution", "How far an execution is", status()), &[WHO, PLACE, THERE, OFTEN, STORE]),
    }
}

const UPLOAD_PROBLEMS: Problems = &[
    WHO,
    PLACE,
    THERE,
    ("413", "The file is too large"),
    ("415", "The body is neither a text nor a form"),
    ("422", "The file is not a text in UTF-8, or the query is not fit"),
    (
        "429",
        "This user asks too often, or has all the executions or all the state that a user may have, see `Retry-After`",
    ),
    ("503", "The server has all the executions that it may have, or the store cannot answer now, see `Retry-After`"),
];

const CANCEL_PROBLEMS: Problems =
    &[WHO, PLACE, THERE, ("409", "It is over, what it did is being undone, or another instance owns it"), OFTEN, STORE];

const START_PROBLEMS: Problems = &[
    ("400", "The body is no JSON"),
    WHO,
    PLACE,
    THERE,
    ("409", "Another request with this `Idempotency-Key` is being answered"),
    ("413", "The input is too large"),
    ("415", "The body is not JSON in UTF-8"),
    ("422", "The `Idempotency-Key` is none, or was sent with another input"),
    (
        "429",
        "This user asks too often, or has all the executions or all the state that a user may have, see `Retry-After`",
    ),
    (
        "503",
        "The definition of the pipeline cannot be used, for the reasons in `detail` and `errors`; or the server has all the executions that it may have, or the store cannot answer now, see `Retry-After`",
    ),
];

fn upload() -> Value {
    let file = json!({ "schema": { "type": "string" } });
    let form = json!({ "schema": { "type": "object", "properties": { "file": { "type": "string", "contentMediaType": "application/octet-stream" } } } });
    let links = object(&[("file", text()), ("workflow", text()), ("execution", text()), ("events", text())]);
    let accepted = object(&[
        ("file_id", text()),
        ("workflow_id", text()),
        ("execution_id", text()),
        ("pipeline", text()),
        ("links", links),
    ]);
    let location = json!({ "Location": { "schema": { "type": "string" }, "description": "Where its status is" } });
    json!({
        "operationId": "upload",
        "summary": "Analyze a file: an execution with its text as the input",
        "description": "Its progress is reported as `analysis_progress` in the channel of the file and as `workflow_progress` in that of the workflow. The built-in pipeline `analyze` gives sentiment, summary and entities. The input of another pipeline is `{text, upload: {name, bytes}}`.",
        "parameters": [
            query("pipeline", text(), "The pipeline; `analyze` when absent"),
            query("name", text(), "The name of the file"),
        ],
        "requestBody": { "required": true, "content": { "text/plain": file, "multipart/form-data": form } },
        "responses": {
            "202": { "description": "It has begun, and survives a crash from now on", "headers": location,
                     "content": { "application/json": { "schema": accepted } } },
        },
    })
}

fn query(name: &str, schema: Value, what: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": schema, "description": what })
}

fn described(mut schema: Value, what: &str) -> Value {
    schema["description"] = json!(what);
    schema
}

fn start() -> Value {
    let header = |name: &str, what: &str| json!({ "name": name, "in": "header", "schema": { "type": "string" }, "description": what });
    let accepted = object(&[("execution_id", text()), ("pipeline", text()), ("state", states()), ("links", links())]);
    let location = json!({ "Location": { "schema": { "type": "string" }, "description": "Where its status is" } });
    json!({
        "operationId": "start",
        "summary": "Begin an execution of a pipeline",
        "description": "Its events are at `/stream/pipeline/{execution_id}`. It goes on whether or not anybody follows.",
        "parameters": [
            header("Prefer", "`wait` or `wait=SECONDS`: answer with the end, if it comes in time; `respond-async`: do not wait"),
            header("Idempotency-Key", "Requests with the same key begin one execution"),
        ],
        "requestBody": {
            "required": true,
            "content": { "application/json": { "schema": { "description": "The input: any JSON value" } } },
        },
        "responses": {
            "200": { "description": "It has ended, and the client waited for that", "headers": location,
                     "content": { "application/json": { "schema": status() } } },
            "202": { "description": "It has begun, and survives a crash from now on", "headers": location,
                     "content": { "application/json": { "schema": accepted } } },
        },
    })
}

fn read(id: &str, summary: &str, schema: Value) -> Value {
    json!({
        "operationId": id,
        "summary": summary,
        "responses": { "200": { "description": summary, "content": { "application/json": { "schema": schema } } } },
    })
}

fn status() -> Value {
    let steps: Vec<&str> = StepState::ALL.iter().map(|state| state.name()).collect();
    let failure = [("error", text()), ("code", text()), ("retryable", json!({ "type": "boolean" }))];
    let mut step = object(&[
        ("id", text()),
        ("state", json!({ "enum": steps })),
        ("attempts", whole()),
        ("kind", text()),
        ("after", array(text())),
    ]);
    let times = [
        (
            "started_at",
            described(json!({ "type": ["string", "null"], "format": "date-time" }), "When the last attempt began"),
        ),
        ("duration_ms", described(json!({ "type": ["number", "null"] }), "How long it took; null until it is over")),
        ("progress", described(json!({ "type": ["number", "null"] }), "From 0 to 1, as far as it has said")),
    ];
    for (name, schema) in times {
        step["properties"][name] = schema;
    }
    for (name, schema) in &failure {
        step["properties"][name] = schema.clone();
    }
    let more = [
        ("failed_step", json!({ "type": ["string", "null"] })),
        ("cancelled", json!({ "type": "boolean" })),
        ("compensated", whole()),
        ("compensations_failed", whole()),
    ];
    let failure: Vec<_> = failure.into_iter().chain(more).collect();
    object(&[
        ("execution_id", text()),
        ("pipeline", text()),
        ("state", states()),
        ("started_at", moment()),
        ("duration_ms", json!({ "type": "number" })),
        ("events", whole()),
        ("resumed", whole()),
        ("steps", array(step)),
        ("output", json!({ "description": "Null until it was completed" })),
        ("failure", json!({ "oneOf": [object(&failure), { "type": "null" }] })),
        ("links", links()),
    ])
}

fn states() -> Value {
    json!({ "enum": State::ALL.iter().map(|state| state.name()).collect::<Vec<_>>() })
}

fn links() -> Value {
    object(&[("self", text()), ("events", text()), ("websocket", text())])
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn whole() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn moment() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

fn array(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// An object that has all of these.
fn object(members: &[(&str, Value)]) -> Value {
    let names: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({ "type": "object", "properties": properties, "required": names })
}
