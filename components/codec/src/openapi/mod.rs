//! The OpenAPI 3.1 description of the gateway, generated from the wire types.

mod channels;
mod generation;
mod pipelines;
mod schemas;
mod sessions;
mod tasks;
mod transcript;

use serde_json::{Map, Value, json};

use self::schemas::{BATCH_PROBLEMS, BODY_PROBLEMS, Schemas, json_of, problem};
use crate::{
    http::route::{Index, ROUTES, Route},
    inference::models,
    pipelines::{process_batch, process_event, process_request::ProcessRequest},
};

/// The OpenAPI document.
pub fn document(version: &str) -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for (path, route) in ROUTES {
        let method = if route.posts() { "post" } else { "get" };
        paths.insert(path.to_owned(), json!({ method: operation(route, &mut schemas) }));
    }
    generation::add(&mut paths, &mut schemas);
    channels::add(&mut paths, &mut schemas);
    sessions::add(&mut paths, &mut schemas);
    pipelines::add(&mut paths, &mut schemas);
    let components = schemas.into_definitions();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Weir",
            "version": version,
            "description": "Streaming inference for text. Lengths, chunks and offsets count Unicode code points. \
                            Every response has `X-Request-Id`: the id of the request, if it has 1 to 128 visible \
                            ASCII characters, else a new one. A failure before a stream begins is answered with \
                            `application/problem+json` (RFC 9457).",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": components },
    })
}

fn operation(route: Route, schemas: &mut Schemas) -> Value {
    let (id, summary, ok) = match route {
        Route::Index => ("index", "The routes of the server", json_of(schemas.response::<Index<'_>>())),
        Route::Livez => {
            let alive = json!({
                "type": "object",
                "properties": { "status": { "const": "alive" } },
                "required": ["status"],
            });
            ("livez", "Whether the gateway is alive", json_of(alive))
        }
        Route::Readyz => {
            ("readyz", "Whether every model is ready", json_of(schemas.response::<models::Readiness<'_>>()))
        }
        Route::Models => ("models", "The models that are served", json_of(schemas.response::<models::Models<'_>>())),
        Route::OpenApi => ("openapi", "This document", json_of(json!({ "type": "object" }))),
        Route::ProcessStream => {
            let event = schemas.response::<process_event::Wire<'_>>();
            let lines = json!({
                "application/x-ndjson": { "schema": event.clone() },
                "text/event-stream": { "schema": event },
            });
            ("processStream", "Process a text and stream every result as soon as it exists", lines)
        }
        Route::ProcessBatch => {
            let response = json_of(schemas.response::<process_batch::BatchResponse>());
            ("processBatch", "Process a text and return all results at once", response)
        }
        Route::Task(_) | Route::Hub | Route::Predict => tasks::operation_head(route, schemas),
        Route::TeiEmbed | Route::EmbedSparse | Route::Rerank | Route::Embeddings | Route::Moderations => {
            let (id, summary, _) = other_dialect(route);
            (id, summary, json_of(json!({})))
        }
        Route::Transcript | Route::Annotate => transcript::operation_head(route, schemas),
    };
    let mut responses = Map::new();
    if !ok.is_null() {
        responses.insert("200".to_owned(), json!({ "description": description(route), "content": ok }));
    }
    let problems: &[&[(&str, &str)]] = match route {
        Route::ProcessStream => &[&BODY_PROBLEMS],
        Route::ProcessBatch => &[&BODY_PROBLEMS, &BATCH_PROBLEMS],
        Route::Readyz | Route::Models => &[&[("503", "Not ready; `models` lists the state of each model")]],
        Route::Index | Route::Livez | Route::OpenApi => &[],
        Route::Transcript | Route::Annotate => &[&BODY_PROBLEMS],
        Route::Task(_) | Route::Hub | Route::Predict => &[],
        Route::TeiEmbed | Route::EmbedSparse | Route::Rerank | Route::Embeddings | Route::Moderations => &[],
    };
    let mut problems: Vec<_> = match problems {
        [] => Vec::new(),
        problems => {
            let content = problem(schemas);
            problems.iter().copied().flatten().map(|&(status, what)| (status, what, content.clone())).collect()
        }
    };
    let by_item = matches!(route, Route::Task(_) | Route::Hub | Route::Predict);
    if by_item {
        problems = tasks::problems(route, schemas);
    }
    for (status, what, content) in problems {
        responses.insert(status.to_owned(), json!({ "description": what, "content": content }));
    }
    let mut operation = json!({ "operationId": id, "summary": summary, "responses": responses });
    if matches!(route, Route::ProcessStream | Route::ProcessBatch) {
        let content = json_of(schemas.request::<ProcessRequest>());
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    if matches!(route, Route::TeiEmbed | Route::EmbedSparse | Route::Rerank | Route::Embeddings | Route::Moderations) {
        let (.., body) = other_dialect(route);
        let body = json_of(json!({ "type": "object", "description": body }));
        operation["requestBody"] = json!({ "required": true, "content": body });
        let error = json_of(json!({ "type": "object" }));
        for (status, what) in OTHER_PROBLEMS {
            operation["responses"][status] = json!({ "description": what, "content": error });
        }
    }
    if matches!(route, Route::Transcript | Route::Annotate) {
        operation["requestBody"] = json!({ "required": true, "content": transcript::body(route, schemas) });
        operation["parameters"] = transcript::parameters(route);
    }
    if by_item {
        operation["requestBody"] = json!({ "required": true, "content": tasks::body(route, schemas) });
        if let Some(parameters) = tasks::parameters(route, schemas) {
            operation["parameters"] = parameters;
        }
    }
    operation
}

/// The problems of the dialects of other servers, whose errors have the form of the dialect.
const OTHER_PROBLEMS: [(&str, &str); 5] = [
    ("400", "The request is invalid; 422 in the dialect of text-embeddings-inference"),
    ("404", "No such model is served"),
    ("424", "No served model supports this"),
    ("429", "The caller has more than its share, see `Retry-After`"),
    ("503", "The model is not available now"),
];

/// The id, the summary and the body of a route of another server.
fn other_dialect(route: Route) -> (&'static str, &'static str, &'static str) {
    match route {
        Route::TeiEmbed => (
            "teiEmbed",
            "Embeddings, in the dialect of text-embeddings-inference",
            "`inputs`, a text or a list of texts; `normalize`, `truncate`",
        ),
        Route::EmbedSparse => ("embedSparse", "Always refused: no model computes sparse embeddings", "As for `/embed`"),
        Route::Rerank => (
            "rerank",
            "Texts by their relevance, in the dialect of text-embeddings-inference",
            "`query`, `texts`; `raw_scores`, `return_text`, `truncate`",
        ),
        Route::Moderations => (
            "moderations",
            "Moderation by a classifier, in the dialect of OpenAI",
            "`input`, a text or a list of texts; `model`, whose labels are the categories",
        ),
        _ => (
            "embeddings",
            "Embeddings, in the dialect of OpenAI",
            "`input`, a text or a list of texts; `model`; `encoding_format`, `float` or `base64`",
        ),
    }
}

fn description(route: Route) -> String {
    let text = match route {
        Route::Task(_) | Route::Hub | Route::Predict => return tasks::description(route),
        Route::Transcript | Route::Annotate => transcript::DESCRIPTION,
        Route::ProcessStream => {
            "Events in this order: started, chunking, chunked; for each requested step its `_processing`, for \
             sentiment a `_progress` per chunk, then `_complete` or `_error`; at the end completed, or error when \
             the request was aborted. As NDJSON, each event is a line. As server-sent events, `event` is the \
             status, `id` the number of the event in the stream, and `data` the event."
        }
        Route::ProcessBatch => "The requested results",
        Route::Readyz => "Every model is ready",
        _ => "The response",
    };
    text.to_owned()
}
