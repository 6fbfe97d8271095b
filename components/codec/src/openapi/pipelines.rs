//! The paths of pipelines and executions. Their responses are written member by member, so the schemas are written here.

use serde_json::{Map, Value, json};
use weir_core::pipelines::{NAME_BYTES_MAX, State, StepState};

use super::schemas::{Schemas, problem};
use crate::{
    json::field::FieldError,
    pipelines::{
        list_query::{LIMIT_DEFAULT, LIMIT_MAX},
        route::PIPELINE_ROUTES,
    },
};

/// The problems of an operation: status and description.
type Problems = &'static [(&'static str, &'static str)];

const NOT_AUTHENTICATED: (&str, &str) = ("401", "The request has no valid credentials");
const NOT_LOOPBACK: (&str, &str) = ("403", "Without authentication, executions are served on a loopback address only");
const NOT_FOUND: (&str, &str) = ("404", "There is no such resource, or this user has no access to it");
const RATE_LIMITED: (&str, &str) = ("429", "This user sends too many requests, see `Retry-After`");
const INVALID: (&str, &str) = ("503", "The definition cannot be used, for the reasons in `detail` and `errors`");
const QUERY: (&str, &str) = ("422", "The query has invalid parameters; `errors` lists them");
const STORE: (&str, &str) = ("503", "The store is not available now, see `Retry-After`");

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
            let parameter = json!({ "name": name, "in": "path", "required": true, "schema": schema });
            let more = operation["parameters"].as_array().cloned().unwrap_or_default();
            operation["parameters"] = Value::Array([vec![parameter], more].concat());
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
            // Only for an invalid pipeline.
            pipeline["properties"]["error"] = text();
            pipeline["properties"]["errors"] = array(schemas.response::<FieldError>());
            let list = object(&[("pipelines", array(pipeline))]);
            (
                read("pipelines", "The pipelines that this user may start", list),
                &[NOT_AUTHENTICATED, NOT_LOOPBACK, RATE_LIMITED],
            )
        }
        ("POST", "/upload") => (upload(), UPLOAD_PROBLEMS),
        ("POST", _) => (start(), START_PROBLEMS),
        ("GET", "/pipelines/{name}") => {
            let definition =
                json!({ "type": "object", "description": "All members, including those with default values" });
            (
                read("pipeline", "The definition of a pipeline", definition),
                &[NOT_AUTHENTICATED, NOT_LOOPBACK, NOT_FOUND, RATE_LIMITED, INVALID],
            )
        }
        ("GET", "/executions") => {
            let summary_schema = object(&[
                ("execution_id", text()),
                ("pipeline", text()),
                ("state", states()),
                ("started_at", date_time()),
                ("errors", described(integer(), "Number of failed steps")),
                ("links", links()),
            ]);
            let list = object(&[("executions", array(summary_schema))]);
            let mut operation = read("executions", "The executions of this user, the newest first", list);
            operation["parameters"] = json!([
                query("state", states(), "Only executions in this state"),
                query("pipeline", text(), "Only executions of this pipeline"),
                query(
                    "limit",
                    json!({ "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT }),
                    "Maximum number of executions",
                ),
                query("after", text(), "Only executions that began before the execution with this id"),
            ]);
            (operation, &[NOT_AUTHENTICATED, NOT_LOOPBACK, QUERY, RATE_LIMITED])
        }
        ("DELETE", _) => {
            let mut operation =
                read("cancel", "Cancel an execution: running steps are stopped, nothing is compensated", status());
            operation["responses"]["200"]["description"] = json!("The execution has ended");
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
            let counts = counts.map(|name| (name, integer()));
            let all: Vec<_> = rates.into_iter().chain(counts).collect();
            let window: Vec<_> = std::iter::once(("seconds", integer())).chain(all.clone()).collect();
            let body = object(&[("total", object(&all)), ("window", object(&window))]);
            let what = "Success rate, compensation rate, mean tool latency and mean workflow time";
            (read("reliability", what, body), &[NOT_AUTHENTICATED, NOT_LOOPBACK, RATE_LIMITED])
        }
        _ => (
            read("execution", "The status of an execution", status()),
            &[NOT_AUTHENTICATED, NOT_LOOPBACK, NOT_FOUND, RATE_LIMITED, STORE],
        ),
    }
}

const UPLOAD_PROBLEMS: Problems = &[
    NOT_AUTHENTICATED,
    NOT_LOOPBACK,
    NOT_FOUND,
    ("413", "The file is too large"),
    ("415", "The body is neither a text nor a form"),
    ("422", "The file is not UTF-8 text, or the query has invalid parameters"),
    (
        "429",
        "This user sends too many requests, or has reached the maximum executions or state of a user, see `Retry-After`",
    ),
    (
        "503",
        "The server has reached its maximum number of executions, or the store is not available now, see `Retry-After`",
    ),
];

const CANCEL_PROBLEMS: Problems = &[
    NOT_AUTHENTICATED,
    NOT_LOOPBACK,
    NOT_FOUND,
    ("409", "The execution has ended, is being compensated, or is owned by another instance"),
    RATE_LIMITED,
    STORE,
];

const START_PROBLEMS: Problems = &[
    ("400", "The body is not JSON"),
    NOT_AUTHENTICATED,
    NOT_LOOPBACK,
    NOT_FOUND,
    ("409", "Another request with this `Idempotency-Key` is in progress"),
    ("413", "The input is too large"),
    ("415", "The body is not JSON in UTF-8"),
    ("422", "The `Idempotency-Key` is invalid, or was used with another input"),
    (
        "429",
        "This user sends too many requests, or has reached the maximum executions or state of a user, see `Retry-After`",
    ),
    (
        "503",
        "The definition of the pipeline cannot be used, for the reasons in `detail` and `errors`; or the server has reached its maximum number of executions, or the store is not available now, see `Retry-After`",
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
    let location = json!({ "Location": { "schema": { "type": "string" }, "description": "The path of its status" } });
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
            "202": { "description": "The execution has started and is stored", "headers": location,
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
    let location = json!({ "Location": { "schema": { "type": "string" }, "description": "The path of its status" } });
    json!({
        "operationId": "start",
        "summary": "Start an execution of a pipeline",
        "description": "Its events are at `/stream/pipeline/{execution_id}`. It continues without subscribers.",
        "parameters": [
            header("Prefer", "`wait` or `wait=SECONDS`: respond with the final status if the execution ends in time; `respond-async`: do not wait"),
            header("Idempotency-Key", "Requests with the same key start only one execution"),
        ],
        "requestBody": {
            "required": true,
            "content": { "application/json": { "schema": { "description": "The input: any JSON value" } } },
        },
        "responses": {
            "200": { "description": "The execution has ended while the client waited", "headers": location,
                     "content": { "application/json": { "schema": status() } } },
            "202": { "description": "The execution has started and is stored", "headers": location,
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
        ("attempts", integer()),
        ("kind", text()),
        ("after", array(text())),
    ]);
    let times = [
        (
            "started_at",
            described(json!({ "type": ["string", "null"], "format": "date-time" }), "When the last attempt began"),
        ),
        ("duration_ms", described(json!({ "type": ["number", "null"] }), "How long it took; null until it has ended")),
        ("progress", described(json!({ "type": ["number", "null"] }), "Progress from 0 to 1, if the step reports it")),
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
        ("compensated", integer()),
        ("compensations_failed", integer()),
    ];
    let failure: Vec<_> = failure.into_iter().chain(more).collect();
    object(&[
        ("execution_id", text()),
        ("pipeline", text()),
        ("state", states()),
        ("started_at", date_time()),
        ("duration_ms", json!({ "type": "number" })),
        ("events", integer()),
        ("resumed", integer()),
        ("steps", array(step)),
        ("output", json!({ "description": "Null unless the execution is completed" })),
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

fn integer() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn date_time() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

fn array(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// The schema of an object with these required members.
fn object(members: &[(&str, Value)]) -> Value {
    let names: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({ "type": "object", "properties": properties, "required": names })
}
