//! The OpenAPI 3.1 description of the gateway, written from the wire types themselves.

mod channels;
mod generation;
mod pipelines;
mod sessions;
mod tasks;
mod transcript;

use schemars::{
    JsonSchema, SchemaGenerator,
    generate::{Contract, SchemaSettings},
};
use serde_json::{Map, Value, json};

use crate::{
    http::{
        problem,
        route::{Index, ROUTES, Route},
    },
    inference::models,
    pipelines::{process_batch, process_event, process_request::ProcessRequest},
};

/// The document.
pub fn document(version: &str) -> Value {
    let mut schemas = Schemas { sent: generator(Contract::Deserialize), answered: generator(Contract::Serialize) };
    let mut paths = Map::new();
    for (path, route) in ROUTES {
        let method = if route.posts() { "post" } else { "get" };
        paths.insert(path.to_owned(), json!({ method: operation(route, &mut schemas) }));
    }
    generation::add(&mut paths, &mut schemas);
    channels::add(&mut paths, &mut schemas);
    sessions::add(&mut paths, &mut schemas);
    pipelines::add(&mut paths, &mut schemas);
    let mut components = schemas.sent.take_definitions(true);
    components.append(&mut schemas.answered.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Weir",
            "version": version,
            "description": "Streaming inference for text. Lengths, chunks and offsets count Unicode code points. \
                            Every answer carries `X-Request-Id`: the request's, if it has 1 to 128 visible ASCII \
                            characters, else a new one. Whatever fails before a stream begins is answered with \
                            `application/problem+json` (RFC 9457).",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": components },
    })
}

/// Schemas of request bodies, in which fields with a default may be absent, and of responses.
struct Schemas {
    sent: SchemaGenerator,
    answered: SchemaGenerator,
}

impl Schemas {
    fn sent<T: JsonSchema>(&mut self) -> Value {
        self.sent.subschema_for::<T>().to_value()
    }

    fn answered<T: JsonSchema>(&mut self) -> Value {
        self.answered.subschema_for::<T>().to_value()
    }
}

fn generator(contract: Contract) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.contract = contract;
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.into_generator()
}

/// Problems that any request with a body can meet, with what each means.
const BODY_PROBLEMS: [(&str, &str); 6] = [
    ("400", "The body cannot be read: it is empty, incomplete, not UTF-8, not JSON, or not an object"),
    ("406", "The client accepts no form in which the answer exists"),
    ("408", "The body came too slowly"),
    ("413", "The body is too large"),
    ("415", "The body is not JSON in UTF-8"),
    ("422", "The body can be read and its fields are wrong; `errors` lists them all"),
];

/// Problems of a request whose answer is computed whole.
const BATCH_PROBLEMS: [(&str, &str); 3] = [
    ("502", "Inference failed on this text; `step` says where"),
    ("503", "The model cannot answer now, see `Retry-After`"),
    ("504", "The request took too long"),
];

fn operation(route: Route, schemas: &mut Schemas) -> Value {
    let (id, summary, ok) = match route {
        Route::Index => ("index", "What there is", json_of(schemas.answered::<Index<'_>>())),
        Route::Livez => {
            let alive = json!({
                "type": "object",
                "properties": { "status": { "const": "alive" } },
                "required": ["status"],
            });
            ("livez", "Whether the gateway answers", json_of(alive))
        }
        Route::Readyz => {
            ("readyz", "Whether every model can answer", json_of(schemas.answered::<models::Readiness<'_>>()))
        }
        Route::Models => ("models", "The models that are served", json_of(schemas.answered::<models::Models<'_>>())),
        Route::OpenApi => ("openapi", "This document", json_of(json!({ "type": "object" }))),
        Route::ProcessStream => {
            let event = schemas.answered::<process_event::Wire<'_>>();
            let lines = json!({
                "application/x-ndjson": { "schema": event.clone() },
                "text/event-stream": { "schema": event },
            });
            ("processStream", "Process a text and stream every result as soon as it exists", lines)
        }
        Route::ProcessBatch => {
            let answer = json_of(schemas.answered::<process_batch::BatchResponse>());
            ("processBatch", "Process a text and answer once", answer)
        }
        Route::Task(_) | Route::Hub | Route::Predict => tasks::described(route, schemas),
        Route::TeiEmbed | Route::EmbedSparse | Route::Rerank | Route::Embeddings | Route::Moderations => {
            let (id, summary, _) = other_dialect(route);
            (id, summary, json_of(json!({})))
        }
        Route::Transcript | Route::Annotate => transcript::described(route, schemas),
    };
    let mut responses = Map::new();
    if !ok.is_null() {
        responses.insert("200".to_owned(), json!({ "description": description(route), "content": ok }));
    }
    let problems: &[&[(&str, &str)]] = match route {
        Route::ProcessStream => &[&BODY_PROBLEMS],
        Route::ProcessBatch => &[&BODY_PROBLEMS, &BATCH_PROBLEMS],
        Route::Readyz | Route::Models => &[&[("503", "Not ready; `models` says which")]],
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
        let content = json_of(schemas.sent::<ProcessRequest>());
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

/// Problems of the routes of other servers, whose errors have the shapes of these.
const OTHER_PROBLEMS: [(&str, &str); 5] = [
    ("400", "The request is wrong; 422 in the dialect of text-embeddings-inference"),
    ("404", "No such model is served"),
    ("424", "No model that is served does this"),
    ("429", "The caller has more than its share, see `Retry-After`"),
    ("503", "The model cannot answer now"),
];

/// The id, the summary and the body of a route of another server.
fn other_dialect(route: Route) -> (&'static str, &'static str, &'static str) {
    match route {
        Route::TeiEmbed => (
            "teiEmbed",
            "Embeddings, in the dialect of text-embeddings-inference",
            "`inputs`, a text or a list of texts; `normalize`, `truncate`",
        ),
        Route::EmbedSparse => ("embedSparse", "Declined: no model makes sparse embeddings", "As for `/embed`"),
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

/// A problem, by its media type.
fn problem(schemas: &mut Schemas) -> Value {
    json!({ problem::CONTENT_TYPE: { "schema": schemas.answered::<problem::Wire<'_>>() } })
}

fn description(route: Route) -> String {
    let text = match route {
        Route::Task(_) | Route::Hub | Route::Predict => return tasks::description(route),
        Route::Transcript | Route::Annotate => transcript::DESCRIPTION,
        Route::ProcessStream => {
            "Events in this order: started, chunking, chunked; for each step that was asked for its `_processing`, \
             for sentiment a `_progress` per chunk, then `_complete` or `_error`; at last completed, or error when \
             the request was given up. As NDJSON each is a line. As server-sent events each has its status as \
             `event`, its place in the stream as `id`, and itself as `data`."
        }
        Route::ProcessBatch => "The results that were asked for",
        Route::Readyz => "Every model can answer",
        _ => "The answer",
    };
    text.to_owned()
}

fn json_of(schema: Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}
