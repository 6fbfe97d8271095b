//! What the paths that work text by text take and answer.

use schemars::JsonSchema;
use serde_json::{Value, json};

use super::{BATCH_PROBLEMS, BODY_PROBLEMS, Schemas, json_of};
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

/// A text, or an object with one. A line of an NDJSON body is one of these too.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Input")]
#[allow(dead_code)]
enum InputDoc {
    Text(String),
    Object(InputObject),
}

/// A text and what belongs to it; other fields are refused.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct InputObject {
    /// The text.
    text: String,
    /// The second text of a pair; only `/v1/classify` takes one.
    #[schemars(default)]
    text_pair: Option<String>,
    /// Comes back with the result of a stream.
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

/// Parameters of `/v1/classify`. The query string takes the same; it is how an NDJSON request gives them.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct ClassifyParameters {
    /// How many labels, best first; all when absent.
    #[schemars(default, range(min = 1))]
    top_k: Option<u32>,
    /// When absent, the model's configuration decides.
    #[schemars(default)]
    function_to_apply: Option<FunctionToApply>,
    /// Cut a text of more tokens than the model takes; else it fails with `too_long`.
    #[schemars(default)]
    truncation: bool,
    /// The side at which it is cut; `right`, the end, when absent.
    #[schemars(default)]
    truncation_direction: Option<TruncationDirection>,
    /// How long a text may take, in milliseconds; one that waits longer fails with `deadline_exceeded`.
    #[schemars(default, range(min = 1))]
    timeout_ms: Option<u32>,
}

/// Parameters of `/v1/tokens`. The query string takes the same; `ignore_labels` is repeated there.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct TokensParameters {
    /// `none` when absent.
    #[schemars(default)]
    aggregation_strategy: Option<AggregationStrategy>,
    /// Labels left out; `["O"]` when absent.
    #[schemars(default, length(max = IGNORE_LABELS_MAX))]
    ignore_labels: Option<Vec<String>>,
    /// Cut a text of more tokens than the model takes, unless false; then it fails with `too_long`.
    #[schemars(default = "yes")]
    truncation: bool,
    /// The side at which it is cut; `right`, the end, when absent.
    #[schemars(default)]
    truncation_direction: Option<TruncationDirection>,
    /// Read a longer text whole, in windows with at least this many tokens in common; at most half of the model's maximum. It is not cut
    /// then.
    #[schemars(default, range(min = 1))]
    stride: Option<u32>,
    /// How long a text may take, in milliseconds; one that waits longer fails with `deadline_exceeded`.
    #[schemars(default, range(min = 1))]
    timeout_ms: Option<u32>,
}

/// Parameters of `/v1/embed`. The query string takes the same.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct EmbedParameters {
    /// Scale the vector to length 1.
    #[schemars(default = "yes")]
    normalize: bool,
    /// Cut a text of more tokens than the model takes, unless false; then it fails with `too_long`.
    #[schemars(default = "yes")]
    truncate: bool,
    /// The side at which it is cut; `right`, the end, when absent.
    #[schemars(default)]
    truncation_direction: Option<TruncationDirection>,
    /// How long a text may take, in milliseconds; one that waits longer fails with `deadline_exceeded`.
    #[schemars(default, range(min = 1))]
    timeout_ms: Option<u32>,
}

fn yes() -> bool {
    true
}

/// Texts and their task parameters; other fields are refused.
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

/// A result, or why there is none. A failure that may pass is a problem of the whole request, and so is any failure of
/// a request with one text.
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
    /// The model that made them.
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

/// A request in the dialect of the Hugging Face inference API; other fields are ignored.
#[derive(JsonSchema)]
#[allow(dead_code)]
struct HubRequest {
    /// The texts.
    inputs: InputsDoc,
    /// Those of the model's task; they may stand beside `inputs` too.
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

/// An answer in the dialect of the Hugging Face inference API, by the kind of the model.
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

/// A request in the dialect of text-embeddings-inference; other fields are ignored.
#[derive(JsonSchema)]
#[allow(dead_code)]
struct PredictRequest {
    /// The texts.
    inputs: PredictInputs,
    /// Answer the logits.
    #[schemars(default)]
    raw_scores: bool,
    /// Cut a text of more tokens than the model takes.
    #[schemars(default)]
    truncate: bool,
    /// The side at which it is cut; `right`, the end, when absent.
    #[schemars(default)]
    truncation_direction: Option<TruncationDirection>,
}

/// An answer in the dialect of text-embeddings-inference.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum PredictAnswer<'a> {
    One(Vec<Prediction<'a>>),
    Many(Vec<Vec<Prediction<'a>>>),
}

/// Name, summary and answers of a path.
pub(super) fn described(route: Route, schemas: &mut Schemas) -> (&'static str, &'static str, Value) {
    let line = |schemas: &mut Schemas, whole: Value| {
        let line = schemas.answered::<StreamLine<'_>>();
        json!({
            "application/json": { "schema": whole },
            "application/x-ndjson": { "schema": line.clone() },
            "text/event-stream": { "schema": line },
        })
    };
    match route {
        Route::Task(Task::Classify) => {
            let whole = schemas.answered::<ResultsBody<LabelScore>>();
            ("classify", "Score texts against the labels of a model", line(schemas, whole))
        }
        Route::Task(Task::Tokens) => {
            let whole = schemas.answered::<ResultsBody<Entity>>();
            ("tokens", "Find spans of texts and label them", line(schemas, whole))
        }
        Route::Task(Task::Embed) => {
            let whole = schemas.answered::<ResultsBody<f32>>();
            ("embed", "Turn texts into vectors", line(schemas, whole))
        }
        Route::Hub => {
            let whole = json_of(schemas.answered::<HubAnswer>());
            ("hub", "The dialect of the Hugging Face inference API", whole)
        }
        _ => {
            let whole = json_of(schemas.answered::<PredictAnswer<'_>>());
            ("predict", "The dialect of text-embeddings-inference", whole)
        }
    }
}

/// What a path takes.
pub(super) fn body(route: Route, schemas: &mut Schemas) -> Value {
    let schema = match route {
        Route::Task(Task::Classify) => schemas.sent::<Request<ClassifyParameters>>(),
        Route::Task(Task::Tokens) => schemas.sent::<Request<TokensParameters>>(),
        Route::Task(Task::Embed) => schemas.sent::<Request<EmbedParameters>>(),
        Route::Hub => schemas.sent::<HubRequest>(),
        _ => schemas.sent::<PredictRequest>(),
    };
    let mut content = json_of(schema);
    if matches!(route, Route::Task(_)) {
        content["application/x-ndjson"] = json!({ "schema": schemas.sent::<InputDoc>() });
    }
    content
}

/// The parameters of the path and the query string.
pub(super) fn parameters(route: Route, schemas: &mut Schemas) -> Option<Value> {
    match route {
        Route::Hub => Some(json!([{
            "name": "name", "in": "path", "required": true, "schema": { "type": "string" },
            "description": "The name of a model, as `/v1/models` lists it; `/pipeline/{task}` may follow.",
        }])),
        Route::Task(task) => {
            let schema = match task {
                Task::Classify => schemas.sent::<ClassifyParameters>(),
                Task::Tokens => schemas.sent::<TokensParameters>(),
                Task::Embed => schemas.sent::<EmbedParameters>(),
            };
            Some(json!([
                {
                    "name": "model", "in": "query", "schema": { "type": "string" },
                    "description": "The model; in a JSON request the body's goes before it.",
                },
                {
                    "name": "parameters", "in": "query", "style": "form", "explode": true, "schema": schema,
                    "description": "What is asked; in a JSON request the body's go before these.",
                },
            ]))
        }
        _ => None,
    }
}

/// What can go wrong, and the schema that says it.
pub(super) fn problems(route: Route, schemas: &mut Schemas) -> Vec<(&'static str, &'static str, Value)> {
    let of = |table: &[(&'static str, &'static str)], content: Value| -> Vec<_> {
        table.iter().map(|&(status, what)| (status, what, content.clone())).collect()
    };
    match route {
        Route::Task(_) => {
            let content = super::problem(schemas);
            let mut all = of(&BODY_PROBLEMS, content.clone());
            all.extend(of(&ITEM_PROBLEMS, content.clone()));
            all.extend(of(&BATCH_PROBLEMS, content));
            all
        }
        Route::Hub => of(&HUB_PROBLEMS, json_of(schemas.answered::<HubError<'_>>())),
        _ => of(&PREDICT_PROBLEMS, json_of(schemas.answered::<PredictError<'_>>())),
    }
}

const ITEM_PROBLEMS: [(&str, &str); 2] =
    [("404", "No such model is served"), ("429", "The caller has more than its share, see `Retry-After`")];

const HUB_PROBLEMS: [(&str, &str); 6] = [
    ("400", "The request is wrong"),
    ("404", "No such model is served"),
    ("429", "The caller has more than its share, see `Retry-After`"),
    ("500", "Inference failed on this text"),
    ("503", "The model cannot answer now: it is busy, or it is loading, as `estimated_time` says"),
    ("504", "The request took too long"),
];

const PREDICT_PROBLEMS: [(&str, &str); 6] = [
    ("400", "`Empty`: a text is empty; `Validation`: the body is not JSON"),
    ("413", "`Validation`: a text has more tokens than the model takes, or the body is too large"),
    ("422", "`Validation`: the body has another shape; `Tokenizer`: a text cannot be tokenized"),
    ("424", "`Backend`: inference failed"),
    ("429", "`Overloaded`: the queue is full, see `Retry-After`"),
    ("503", "`Unhealthy`: the model cannot answer now"),
];

/// What a successful answer is.
pub(super) fn description(route: Route) -> String {
    match route {
        Route::Task(_) => format!(
            "A JSON request is answered at once, or by `Accept` as a stream. An NDJSON request (a text on each line, \
             of at most {LINE_BYTES_MAX} bytes; the body has no bound) is answered as a stream that begins before the \
             body has ended: a line for each text as soon as its result exists, whatever their order, then \
             `{{\"done\":true,…}}`. A line that is wrong is one error, and the stream goes on. As server-sent events \
             each line is the data of a `result`, `error` or `done`."
        ),
        _ => "The answer".to_owned(),
    }
}
