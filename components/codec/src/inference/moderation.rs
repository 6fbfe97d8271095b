//! OpenAI's `POST /v1/moderations`, by a classifier that the request names: its labels are the categories.

use serde_json::{Map, Value, json};

use crate::{
    inference::{
        embeddings::EmbeddingsRequest,
        output::{LabelScore, Output},
        request::Input,
    },
    json::{
        field::{FieldError, FieldReason, RequestError},
        to_vec,
    },
};

/// Minimum score of a category that applies.
const APPLIES: f32 = 0.5;

/// A body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModerationRequest {
    /// The texts.
    pub inputs: Vec<Input>,
    /// The classifier.
    pub model: String,
}

impl ModerationRequest {
    /// Reads a body; unknown fields are ignored.
    ///
    /// # Errors
    ///
    /// The body is not valid, or names no model; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        let EmbeddingsRequest { inputs, model, .. } = EmbeddingsRequest::from_json(body)?;
        let Some(model) = model else {
            let message = "`model` is required: it names a classifier whose labels are the categories".to_owned();
            return Err(RequestError::Invalid(vec![FieldError::new("model", FieldReason::Missing, message)]));
        };
        Ok(Self { inputs, model })
    }
}

/// The response body: every label is a category, and a text is flagged when one of them applies.
pub fn answer_json(outputs: &[Output], model: &str, request_id: &str) -> Vec<u8> {
    let results: Vec<Value> = outputs.iter().map(result).collect();
    to_vec(&json!({ "id": format!("modr-{request_id}"), "model": model, "results": results }))
}

fn result(output: &Output) -> Value {
    let labels = match output {
        Output::Labels(labels) => labels.as_slice(),
        Output::Entities(_) | Output::Embedding(_) => &[],
    };
    let (mut categories, mut scores) = (Map::new(), Map::new());
    for LabelScore { label, score } in labels {
        categories.insert(label.clone(), (*score >= APPLIES).into());
        scores.insert(label.clone(), (*score).into());
    }
    let flagged = labels.iter().any(|label| label.score >= APPLIES);
    json!({ "flagged": flagged, "categories": categories, "category_scores": scores })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_categories_and_one_that_applies_flags_the_text() {
        let label = |label: &str, score| LabelScore { label: label.to_owned(), score };
        let output = Output::Labels(vec![label("toxic", 0.75), label("threat", 0.25)]);
        let answer: Value = serde_json::from_slice(&answer_json(&[output], "m", "r")).unwrap();
        assert_eq!(answer["results"][0]["flagged"], true);
        assert_eq!(answer["results"][0]["categories"], json!({ "toxic": true, "threat": false }));
        assert_eq!((&answer["id"], &answer["model"]), (&json!("modr-r"), &json!("m")));
        assert!(ModerationRequest::from_json(br#"{"input":"a"}"#).is_err());
        assert_eq!(ModerationRequest::from_json(br#"{"input":"a","model":"m"}"#).unwrap().model, "m");
    }
}
