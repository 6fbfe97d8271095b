//! The requests and responses of the tasks on texts.

use schemars::JsonSchema;
use serde_json::{Value, json};

use super::schemas::{BATCH_PROBLEMS, BODY_PROBLEMS, Schemas, json_of, problem};
use crate::{
    http::route::Route,
    inference::{
        hub::HubError,
        output::{DoneLine, Entity, Id, ItemError, ItemLine, LabelScore},
        request::{ID_BYTES_MAX, INPUTS_MAX, LINE_BYTES_MAX},
        task::{IGNORE_LABELS_MAX, MODEL_BYTES_MAX, Task},
        tei::{PredictError, Prediction},
    },
};

/// A text, or an object with a text; also a line of an NDJSON body.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Input")]
#[allow(dead_code)]
enum InputDoc {
    Text(String),
    Object(InputObject),
}

/// A text with its pair and its id; unknown fields are refused.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct InputObject {
    /// The text.
    text: String,
    /// The second text of a pair; only for `/v1/classify`.
    #[schemars(default)]
    text_pair: Option<String>,
    /// The id of the text, repeated in the result of a stream.
    #[schemars(default, extend("maxLength" = ID_BYTES_MAX))]
    id: Option<Id>,
}

/// One text or several.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Inputs")]
#[allow(dead_code)]
enum InputsDoc {
    One(InputDoc),
    Many(#[schemars(length(max = INPUTS_MAX))] Vec<InputDoc>),
}

/// The function from logits to scores.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code)]
enum FunctionToApply {
    /// Scores of one text add up to 1.
    Softmax,
    /// Each label by itself.
    Sigmoid,
    /// The logits as they are.
    None,
}

/// A side of a text, in any case.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code)]
enum TruncationDirection {
    /// The beginning is cut off.
    Left,
    /// The end is cut off.
    Right,
}

/// How tokens become entities, as in the token-classification pipeline of transformers.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code)]
enum AggregationStrategy {
    /// Every token by itself.
    None,
    /// Neighbours with the same entity.
    Simple,
    /// A word has the label of its first token.
    First,
    /// A word has the label with the best mean score.
    Average,
    /// A word has the label of its best token.
    Max,
}

/// Parameters of `/v1/classify`. The query string has the same parameters, for NDJSON requests.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct ClassifyParameters {
    /// Number of labels, best first; all when absent.
    #[schemars(default, range(min = 1))]
    top_k: Option<u32>,
    /// The activation function; when absent, that of the model's configuration.
    #[schemars(default)]
    function_to_apply: Option<FunctionToApply>,
    /// Truncate a text of more tokens than the model accepts; else it fails with `too_long`.
    #[schemars(default)]
    truncation: bool,
    /// The side that is cut off; `right`, the end, when absent.
    #[schemars(default)]
    truncation_direction: Option<TruncationDirection>,
    /// The timeout of a text, in milliseconds; after it the text fails with `deadline_exceeded`.
    #[schemars(default, range(min = 1))]
    timeout_ms: Option<u32>,
}

/// Parameters of `/v1/tokens`. The query string has the same parameters; `ignore_labels` is repeated there.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct TokensParameters {
    /// How tokens become entities; `none` when absent.
    #[schemars(default)]
    aggregation_strategy: Option<AggregationStrategy>,
    /// Labels that are left out; `["O"]` when absent.
    #[schemars(default, length(max = IGNORE_LABELS_MAX))]
    ignore_labels: Option<Vec<String>>,
    /// Truncate a text of more tokens than the model accepts; if false, it fails with `too_long`.
    #[schemars(default = "yes")]
    truncation: bool,
    /// The side that is cut off; `right`, the end, when absent.
    #[schemars(default)]
    truncation_direction: Option<TruncationDirection>,
    /// Read a longer text completely, in windows that overlap by at least this number of tokens; at most half of the model's maximum. The
    /// text is not truncated then.
    #[schemars(default, range(min = 1))]
    stride: Option<u32>,
    /// The timeout of a text, in milliseconds; after it the text fails with `deadline_exceeded`.
    #[schemars(default, range(min = 1))]
    timeout_ms: Option<u32>,
}

/// Parameters of `/v1/embed`. The query string has the same parameters.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct EmbedParameters {
    /// Scale the vector to length 1.
    #[schemars(default = "yes")]
    normalize: bool,
    /// Truncate a text of more tokens than the model accepts; if false, it fails with `too_long`.
    #[schemars(default = "yes")]
    truncate: bool,
    /// The side that is cut off; `right`, the end, when absent.
    #[schemars(default)]
    truncation_direction: Option<TruncationDirection>,
    /// The timeout of a text, in milliseconds; after it the text fails with `deadline_exceeded`.
    #[schemars(default, range(min = 1))]
    timeout_ms: Option<u32>,
}

fn yes() -> bool {
    true
}

/// Texts and their task parameters; unknown fields are refused.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "{P}Request")]
#[allow(dead_code)]
struct Request<P> {
    /// The texts.
    inputs: InputsDoc,
    /// The model; when absent, the one that is configured for the task.
    #[schemars(default, length(min = 1, max = MODEL_BYTES_MAX))]
    model: Option<String>,
    /// The parameters of the request.
    #[schemars(default)]
    parameters: Option<P>,
}

/// A result or an error. A retryable failure is a problem of the whole request, and so is every failure of a request with
/// one text.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "{O}Place")]
#[allow(dead_code)]
enum ResultSlot<O> {
    Output(Vec<O>),
    Failed { error: ItemError },
}

/// The results, in the order of the texts.
#[derive(JsonSchema)]
#[schemars(rename = "{O}Answer")]
#[allow(dead_code)]
struct ResultsBody<O> {
    /// The results.
    outputs: Vec<ResultSlot<O>>,
    /// The model.
    model: String,
}

/// A line of a stream.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "StreamLine")]
#[allow(dead_code)]
enum StreamLine<'a> {
    Item(ItemLine<'a>),
    Done(DoneLine),
}

/// A request in the dialect of the Hugging Face inference API; unknown fields are ignored.
#[derive(JsonSchema)]
#[allow(dead_code)]
struct HubRequest {
    /// The texts.
    inputs: InputsDoc,
    /// The parameters of the model's task; they may also be members of the body.
    #[schemars(default)]
    parameters: Option<HubParameters>,
    /// Ignored.
    #[schemars(default)]
    options: Option<serde_json::Map<String, Value>>,
}

/// The parameters of one of the tasks.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum HubParameters {
    Classify(ClassifyParameters),
    Tokens(TokensParameters),
    Embed(EmbedParameters),
}

/// A response in the dialect of the Hugging Face inference API, by the kind of the model.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum HubAnswer {
    Labels(Vec<Vec<LabelScore>>),
    Entities(Vec<Entity>),
    EntitiesOfMany(Vec<Vec<Entity>>),
    Embedding(Vec<f32>),
    EmbeddingsOfMany(Vec<Vec<f32>>),
}

/// A text, a list of one or two strings (a text or a pair), or a list of such lists.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum PredictInputs {
    Text(String),
    Sequence(#[schemars(length(min = 1, max = 2))] Vec<String>),
    Batch(#[schemars(length(min = 1, max = INPUTS_MAX))] Vec<Vec<String>>),
}

/// A request in the dialect of text-embeddings-inference; unknown fields are ignored.
#[derive(JsonSchema)]
#[allow(dead_code)]
struct PredictRequest {
    /// The texts.
    inputs: PredictInputs,
    /// Return the logits.
    #[schemars(default)]
    raw_scores: bool,
    /// Truncate a text of more tokens than the model accepts.
    #[schemars(default)]
    truncate: bool,
    /// The side that is cut off; `right`, the end, when absent.
    #[schemars(default)]
    truncation_direction: Option<TruncationDirection>,
}

/// A response in the dialect of text-embeddings-inference.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum PredictAnswer<'a> {
    One(Vec<Prediction<'a>>),
    Many(Vec<Vec<Prediction<'a>>>),
}

/// The id, the summary and the response content of an operation.
pub(super) fn operation_head(route: Route, schemas: &mut Schemas) -> (&'static str, &'static str, Value) {
    let line = |schemas: &mut Schemas, document: Value| {
        let line = schemas.response::<StreamLine<'_>>();
        json!({
            "application/json": { "schema": document },
            "application/x-ndjson": { "schema": line.clone() },
            "text/event-stream": { "schema": line },
        })
    };
    match route {
        Route::Task(Task::Classify) => {
            let document = schemas.response::<ResultsBody<LabelScore>>();
            ("classify", "Score texts against the labels of a model", line(schemas, document))
        }
        Route::Task(Task::Tokens) => {
            let document = schemas.response::<ResultsBody<Entity>>();
            ("tokens", "Find spans of texts and label them", line(schemas, document))
        }
        Route::Task(Task::Embed) => {
            let document = schemas.response::<ResultsBody<f32>>();
            ("embed", "Turn texts into vectors", line(schemas, document))
        }
        Route::Hub => {
            let document = json_of(schemas.response::<HubAnswer>());
            ("hub", "The dialect of the Hugging Face inference API", document)
        }
        _ => {
            let document = json_of(schemas.response::<PredictAnswer<'_>>());
            ("predict", "The dialect of text-embeddings-inference", document)
        }
    }
}

/// The content of a request body.
pub(super) fn body(route: Route, schemas: &mut Schemas) -> Value {
    let schema = match route {
        Route::Task(Task::Classify) => schemas.request::<Request<ClassifyParameters>>(),
        Route::Task(Task::Tokens) => schemas.request::<Request<TokensParameters>>(),
        Route::Task(Task::Embed) => schemas.request::<Request<EmbedParameters>>(),
        Route::Hub => schemas.request::<HubRequest>(),
        _ => schemas.request::<PredictRequest>(),
    };
    let mut content = json_of(schema);
    if matches!(route, Route::Task(_)) {
        content["application/x-ndjson"] = json!({ "schema": schemas.request::<InputDoc>() });
    }
    content
}

/// The parameters of the path, the query string and the head.
pub(super) fn parameters(route: Route, schemas: &mut Schemas) -> Option<Value> {
    match route {
        Route::Hub => Some(json!([{
            "name": "name", "in": "path", "required": true, "schema": { "type": "string" },
            "description": "The name of a model, as `/v1/models` lists it; `/pipeline/{task}` may follow.",
        }])),
        Route::Task(task) => {
            let schema = match task {
                Task::Classify => schemas.request::<ClassifyParameters>(),
                Task::Tokens => schemas.request::<TokensParameters>(),
                Task::Embed => schemas.request::<EmbedParameters>(),
            };
            Some(json!([
                {
                    "name": "model", "in": "query", "schema": { "type": "string" },
                    "description": "The model; in a JSON request, the model of the body takes precedence.",
                },
                {
                    "name": "parameters", "in": "query", "style": "form", "explode": true, "schema": schema,
                    "description": "The parameters of the task; in a JSON request, those of the body take precedence.",
                },
                {
                    "name": "Prefer", "in": "header", "schema": { "type": "string" },
                    "description": "Of a stream. `token-counts`: each result has the tokens that were computed for its text; \
                                    `when-full=fail`: a text fails when the queue of the model is full, and does not wait.",
                },
            ]))
        }
        _ => None,
    }
}

/// The problems of an operation, each with its content.
pub(super) fn problems(route: Route, schemas: &mut Schemas) -> Vec<(&'static str, &'static str, Value)> {
    let of = |table: &[(&'static str, &'static str)], content: Value| -> Vec<_> {
        table.iter().map(|&(status, what)| (status, what, content.clone())).collect()
    };
    match route {
        Route::Task(_) => {
            let content = problem(schemas);
            let mut all = of(&BODY_PROBLEMS, content.clone());
            all.extend(of(&ITEM_PROBLEMS, content.clone()));
            all.extend(of(&BATCH_PROBLEMS, content));
            all
        }
        Route::Hub => of(&HUB_PROBLEMS, json_of(schemas.response::<HubError<'_>>())),
        _ => of(&PREDICT_PROBLEMS, json_of(schemas.response::<PredictError<'_>>())),
    }
}

const ITEM_PROBLEMS: [(&str, &str); 2] =
    [("404", "No such model is served"), ("429", "The caller has too many waiting items, see `Retry-After`")];

const HUB_PROBLEMS: [(&str, &str); 6] = [
    ("400", "The request is invalid"),
    ("404", "No such model is served"),
    ("429", "The caller has too many waiting items, see `Retry-After`"),
    ("500", "Inference failed on this text"),
    ("503", "The model is not available now: it is busy, or it is loading for `estimated_time` seconds"),
    ("504", "The request took too long"),
];

const PREDICT_PROBLEMS: [(&str, &str); 6] = [
    ("400", "`Empty`: a text is empty; `Validation`: the body is not JSON"),
    ("413", "`Validation`: a text has more tokens than the model accepts, or the body is too large"),
    ("422", "`Validation`: the body is invalid; `Tokenizer`: a text cannot be tokenized"),
    ("424", "`Backend`: inference failed"),
    ("429", "`Overloaded`: the queue is full, see `Retry-After`"),
    ("503", "`Unhealthy`: the model cannot answer now"),
];

/// The description of a successful response.
pub(super) fn description(route: Route) -> String {
    match route {
        Route::Task(_) => format!(
            "The response to a JSON request is one document, or by `Accept` a stream. The response to an NDJSON request (a \
             text on each line of at most {LINE_BYTES_MAX} bytes; the body has no bound) is a stream that begins before \
             the body has ended: a line for each text as soon as its result exists, in any order, then \
             `{{\"done\":true,…}}`. An invalid line gives one error, and the stream continues. As server-sent events, \
             each line is the data of a `result`, `error` or `done`."
        ),
        _ => "The response".to_owned(),
    }
}
