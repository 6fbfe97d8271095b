//! The result of a text: a line of a stream, or an item of a list.

use serde::Serialize;
use weir_core::failure::Failure;

/// A label and its score.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "LabelScore"))]
pub struct LabelScore {
    /// A name from the model's `id2label`.
    pub label: String,
    /// The score after the activation function.
    pub score: f32,
}

/// A labelled span of a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "TokenEntity"))]
pub struct Entity {
    /// With aggregation: the group, such as `PER`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_group: Option<String>,
    /// Without aggregation: the label of the token, such as `B-PER`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// The score of the group or token.
    pub score: f32,
    /// Without aggregation: the index of the token in the sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Its tokens, joined.
    pub word: String,
    /// The span of the text.
    pub text: String,
    /// First code point of the span.
    pub start: u32,
    /// Code point after the span.
    pub end: u32,
}

impl Entity {
    /// An entity; with `index` it is a single token, otherwise a group. `words` are its tokens, joined, and its text.
    pub fn new(label: String, score: f32, index: Option<u32>, words: (String, String), span: (u32, u32)) -> Self {
        let (entity_group, entity) = if index.is_some() { (None, Some(label)) } else { (Some(label), None) };
        let (word, text) = words;
        Self { entity_group, entity, score, index, word, text, start: span.0, end: span.1 }
    }
}

/// The result of a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Output {
    /// Of `classify`, best first.
    Labels(Vec<LabelScore>),
    /// Of `tokens`, in the order of the text.
    Entities(Vec<Entity>),
    /// Of `embed`.
    Embedding(Vec<f32>),
}

/// The id of a text, chosen by the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(untagged))]
pub enum Id {
    /// A string of at most 256 bytes.
    Text(String),
    /// A whole number.
    Number(i64),
}

impl std::fmt::Display for Id {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => out.write_str(text),
            Self::Number(number) => number.fmt(out),
        }
    }
}

/// Why a text has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ItemError {
    /// Machine-readable code.
    pub code: &'static str,
    /// Human-readable text.
    pub message: String,
    /// True when the same text may succeed later.
    pub retryable: bool,
    /// The time until a retry, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
    /// The invalid field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<Box<str>>,
    /// The invalid line of the body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

impl ItemError {
    /// An error that is not retryable.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retryable: false, retry_after_ms: None, field: None, line: None }
    }

    /// The body of a stream ended before all of it had arrived.
    pub fn body_incomplete() -> Self {
        Self::new("body_incomplete", "the body ended before all of it had arrived")
    }

    /// No input arrived for too long while no text was open.
    pub fn idle(timeout_ms: u64) -> Self {
        let message = format!("nothing arrived for {timeout_ms} ms");
        Self { retryable: true, retry_after_ms: Some(0), ..Self::new("body_timeout", message) }
    }
}

impl From<&Failure> for ItemError {
    fn from(failure: &Failure) -> Self {
        let retry_after_ms = failure.retry_after_ms();
        let retryable = retry_after_ms.is_some();
        Self { retryable, retry_after_ms, ..Self::new(failure.code(), failure.to_string()) }
    }
}

/// One line of a stream, or the data of one server-sent event.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ItemLine<'a> {
    /// The index of the text, from 0, in the order of the request; absent in an error of the whole stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The text's id, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a Id>,
    /// Of `/v1/classify`: best first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<&'a [LabelScore]>,
    /// Of `/v1/tokens`: in the order of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entities: Option<&'a [Entity]>,
    /// Of `/v1/embed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<&'a [f32]>,
    /// Why there is no result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a ItemError>,
    /// With `Prefer: token-counts`: the tokens that were computed for the text, special tokens included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
}

impl<'a> ItemLine<'a> {
    /// The line of a result.
    pub fn new(index: Option<u64>, id: Option<&'a Id>, result: Result<&'a Output, &'a ItemError>) -> Self {
        let mut line = Self { index, id, scores: None, entities: None, embedding: None, error: None, tokens: None };
        match result {
            Ok(Output::Labels(labels)) => line.scores = Some(labels),
            Ok(Output::Entities(entities)) => line.entities = Some(entities),
            Ok(Output::Embedding(embedding)) => line.embedding = Some(embedding),
            Err(error) => line.error = Some(error),
        }
        line
    }
}

/// The last line of a stream.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Done"))]
pub struct DoneLine {
    /// True.
    pub done: bool,
    /// Texts with a result.
    pub ok: u64,
    /// Texts with an error, and invalid lines.
    pub failed: u64,
}

/// One item of the list of a response: a result, or an error.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ResultSlot<'a> {
    Output(&'a Output),
    Error { error: &'a ItemError },
}

/// The response body with all results: `{"outputs":[…],"model":…}`.
pub fn answer_json(outputs: &[Result<Output, ItemError>], model: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct ResultsBody<'a> {
        outputs: Vec<ResultSlot<'a>>,
        model: &'a str,
    }
    crate::json::to_vec(&ResultsBody { outputs: outputs.iter().map(slot).collect(), model })
}

fn slot(output: &Result<Output, ItemError>) -> ResultSlot<'_> {
    match output {
        Ok(output) => ResultSlot::Output(output),
        Err(error) => ResultSlot::Error { error },
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn body_has_a_slot_for_each_text() {
        let labels = Output::Labels(vec![LabelScore { label: "good".to_owned(), score: 0.5 }]);
        let outputs = [Ok(labels), Err(ItemError::from(&Failure::TooLong { tokens: 9, tokens_max: 8 }))];
        expect![[r#"{"outputs":[[{"label":"good","score":0.5}],{"error":{"code":"too_long","message":"the text has at least 9 tokens and the model takes 8","retryable":false}}],"model":"m"}"#]]
            .assert_eq(&String::from_utf8(answer_json(&outputs, "m")).expect("UTF-8"));
        expect![[r#"{"outputs":[],"model":"m"}"#]].assert_eq(&String::from_utf8(answer_json(&[], "m")).expect("UTF-8"));
    }
}
