//! The served models, and whether each is ready.

use serde::Serialize;

use crate::json::to_vec;

/// A served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Model {
    /// Its name.
    pub name: String,
    /// `text-classification`, `token-classification`, `feature-extraction` or `text-generation`.
    pub kind: &'static str,
    /// Its labels in the order of their ids; empty for an embedding model and for one that generates text.
    pub labels: Vec<String>,
    /// Maximum length of a sequence, in tokens, with special tokens; 0 if it is not known.
    pub tokens_max: u32,
    /// True once it has computed a first result.
    pub ready: bool,
    /// Why it is not ready; none while it loads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The body of `GET /v1/models`.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Models<'a> {
    /// In the order of their names.
    pub models: &'a [Model],
    /// `list`, as in OpenAI's API.
    pub object: &'static str,
    /// The same models in the form of OpenAI's API.
    pub data: Vec<ListedModel<'a>>,
}

/// A model in the form of OpenAI's API.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListedModel<'a> {
    /// Its name.
    pub id: &'a str,
    /// `model`
    pub object: &'static str,
    /// Always 0: the time is not known.
    pub created: u64,
    /// `weir`
    pub owned_by: &'static str,
}

/// The kind of a model that generates text.
pub const TEXT_GENERATION: &str = "text-generation";

/// The body of `GET /readyz` when every model is ready.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Readiness<'a> {
    /// `ready`
    pub status: &'static str,
    /// The models, in the order of their names.
    pub models: Vec<ModelState<'a>>,
    /// Bounds that all users together have reached, by the names of their configuration keys: a request that needs more of one is
    /// answered with 503 until there is room. Requests without state, such as inference, are served.
    pub exhausted: &'a [String],
}

/// A model, and whether it is ready.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelState<'a> {
    /// Its name.
    pub name: &'a str,
    /// True once it has computed a first result.
    pub ready: bool,
    /// Why it is not ready; none while it loads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

/// The response body of `GET /v1/models`.
pub fn models_json(models: &[Model]) -> Vec<u8> {
    let data = models.iter().map(|model| listed_model(&model.name)).collect();
    to_vec(&Models { models, object: "list", data })
}

/// The response body of `GET /v1/models/{model}`.
pub fn model_json(model: &Model) -> Vec<u8> {
    to_vec(&listed_model(&model.name))
}

fn listed_model(name: &str) -> ListedModel<'_> {
    ListedModel { id: name, object: "model", created: 0, owned_by: "weir" }
}

/// The response body of `GET /readyz` when every model is ready.
pub fn ready_json(models: &[Model], exhausted: &[String]) -> Vec<u8> {
    to_vec(&Readiness { status: "ready", models: states(models), exhausted })
}

/// Each model, and whether it is ready.
pub(crate) fn states(models: &[Model]) -> Vec<ModelState<'_>> {
    models.iter().map(state).collect()
}

fn state(model: &Model) -> ModelState<'_> {
    let Model { name, ready, reason, .. } = model;
    ModelState { name, ready: *ready, reason: reason.as_deref() }
}

/// The models that are not ready, each with the reason if it has one: `not ready: a, b (its weights are missing)`. None if all are ready.
pub fn not_ready(models: &[Model]) -> Option<String> {
    let described = |model: &Model| match &model.reason {
        Some(reason) => format!("{} ({reason})", model.name),
        None => model.name.clone(),
    };
    let waiting: Vec<String> = models.iter().filter(|model| !model.ready).map(described).collect();
    (!waiting.is_empty()).then(|| format!("not ready: {}", waiting.join(", ")))
}
