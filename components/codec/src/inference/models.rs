//! What is served, and whether it is ready.

use serde::Serialize;

use crate::json::to_vec;

/// A served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Model {
    /// Its name.
    pub name: String,
    /// `text-classification`, `token-classification` or `feature-extraction`.
    pub kind: &'static str,
    /// Its labels in the order of their ids; empty for an embedding model.
    pub labels: Vec<String>,
    /// The longest sequence it takes, special tokens included.
    pub tokens_max: u32,
    /// True once it has answered.
    pub ready: bool,
}

/// The body of `GET /v1/models`.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Models<'a> {
    /// In the order of their names.
    pub models: &'a [Model],
}

/// The body of `GET /readyz` when every model is ready.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Readiness<'a> {
    /// `ready`
    pub status: &'static str,
    /// The models, in the order of their names.
    pub models: Vec<ModelState<'a>>,
    /// Bounds that all users together have reached, by the names of their configuration keys: what needs more of them is answered 503
    /// until there is room. Requests without state, such as inference, are served.
    pub exhausted: &'a [String],
}

/// A model and whether it can answer.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelState<'a> {
    /// Its name.
    pub name: &'a str,
    /// True once it has answered.
    pub ready: bool,
}

/// The body of `GET /v1/models`.
pub fn models_json(models: &[Model]) -> Vec<u8> {
    to_vec(&Models { models })
}

/// The body of `GET /readyz` when every model is ready.
pub fn ready_json(models: &[Model], exhausted: &[String]) -> Vec<u8> {
    to_vec(&Readiness { status: "ready", models: states(models), exhausted })
}

/// Each model and whether it can answer.
pub(crate) fn states(models: &[Model]) -> Vec<ModelState<'_>> {
    models.iter().map(|model| ModelState { name: &model.name, ready: model.ready }).collect()
}
