//! The schemas of the document, and the contents and problems that several operations have.

use schemars::{
    JsonSchema, SchemaGenerator,
    generate::{Contract, SchemaSettings},
};
use serde_json::{Map, Value, json};

use crate::http::problem;

/// The schemas of request bodies, in which fields with a default may be absent, and of responses.
pub(super) struct Schemas {
    requests: SchemaGenerator,
    responses: SchemaGenerator,
}

impl Schemas {
    pub(super) fn new() -> Self {
        Self { requests: generator(Contract::Deserialize), responses: generator(Contract::Serialize) }
    }

    /// The definitions that the schemas refer to.
    pub(super) fn into_definitions(mut self) -> Map<String, Value> {
        let mut definitions = self.requests.take_definitions(true);
        definitions.append(&mut self.responses.take_definitions(true));
        definitions
    }

    pub(super) fn request<T: JsonSchema>(&mut self) -> Value {
        self.requests.subschema_for::<T>().to_value()
    }

    pub(super) fn response<T: JsonSchema>(&mut self) -> Value {
        self.responses.subschema_for::<T>().to_value()
    }
}

fn generator(contract: Contract) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.contract = contract;
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.into_generator()
}

/// The problems of every request with a body.
pub(super) const BODY_PROBLEMS: [(&str, &str); 6] = [
    ("400", "The body is empty, incomplete, not UTF-8, not JSON, or not an object"),
    ("406", "The client accepts none of the media types of the response"),
    ("408", "The body did not arrive in time"),
    ("413", "The body is too large"),
    ("415", "The body is not JSON in UTF-8"),
    ("422", "The body has invalid fields; `errors` lists them"),
];

/// The problems of a request whose response is one document.
pub(super) const BATCH_PROBLEMS: [(&str, &str); 3] = [
    ("502", "Inference failed on this text; `step` is the failed step"),
    ("503", "The model is not available now, see `Retry-After`"),
    ("504", "The request took too long"),
];

/// The content of a problem response.
pub(super) fn problem(schemas: &mut Schemas) -> Value {
    json!({ problem::CONTENT_TYPE: { "schema": schemas.response::<problem::Wire<'_>>() } })
}

/// A schema as the content of a body of JSON.
pub(super) fn json_of(schema: Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}
