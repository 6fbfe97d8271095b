//! `POST /rerank` of text-embeddings-inference: texts by their relevance to a query, as a cross-encoder scores them.

use serde_json::{Value, json};

use crate::{
    inference::{
        output::{LabelScore, Output},
        request::{INPUTS_MAX, Input, VALUES_MAX},
        task::{Activation, Parameters},
    },
    json::{
        field::{FieldReason, RequestError},
        members::{Errors, Members},
        to_vec,
        tree::Node,
    },
};

/// A body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RerankRequest {
    /// A pair of the query and a text, for each text.
    pub inputs: Vec<Input>,
    /// The response repeats the texts.
    pub return_text: bool,
    /// The parameters: `raw_scores` and `truncate`.
    pub parameters: Parameters,
}

impl RerankRequest {
    /// Reads a body; unknown fields are ignored.
    ///
    /// # Errors
    ///
    /// The body is not valid; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        let mut members = Members::of_lenient_body(body, VALUES_MAX)?;
        let mut errors = Errors::default();
        let query = members.required_text_bytes("query", usize::MAX, &mut errors).unwrap_or_default();
        members.require("texts", &mut errors);
        let mut inputs = Vec::new();
        for (path, item) in members.items("texts", INPUTS_MAX, &mut errors).unwrap_or_default() {
            match item {
                Node::Text(text) => {
                    inputs.push(Input { text: query.clone(), text_pair: Some(text.into_owned()), id: None });
                }
                other => errors.push_type(path, "string", &other),
            }
        }
        if inputs.is_empty() && errors.is_empty() {
            errors.push_at("texts", FieldReason::TooShort, "must have at least one text");
        }
        let is_raw = members.boolean("raw_scores", &mut errors).unwrap_or(false);
        let return_text = members.boolean("return_text", &mut errors).unwrap_or(false);
        let parameters = Parameters {
            activation: Some(if is_raw { Activation::None } else { Activation::Sigmoid }),
            truncation: members.boolean("truncate", &mut errors).or(Some(false)),
            ..Parameters::default()
        };
        errors.finish(Self { inputs, return_text, parameters })
    }
}

/// The response body: the most relevant text first; at equal scores, the earlier text first.
pub fn answer_json(outputs: &[Output], texts: &[String], return_text: bool) -> Vec<u8> {
    let score = |output: &Output| match output {
        Output::Labels(labels) => labels.first().map_or(0.0, |LabelScore { score, .. }| *score),
        Output::Entities(_) | Output::Embedding(_) => 0.0,
    };
    let mut ranked: Vec<(usize, f32)> = outputs.iter().map(score).enumerate().collect();
    ranked.sort_by(|left, right| right.1.total_cmp(&left.1));
    let item = |(index, score): (usize, f32)| {
        let mut value = json!({ "index": index, "score": score });
        if return_text {
            value["text"] = texts.get(index).map_or(Value::Null, |text| text.as_str().into());
        }
        value
    };
    to_vec(&ranked.into_iter().map(item).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_ranked_by_their_scores() {
        let body = br#"{"query":"q","texts":["a","b"],"return_text":true,"raw_scores":true}"#;
        let request = RerankRequest::from_json(body).unwrap();
        assert_eq!(request.inputs[1].text_pair.as_deref(), Some("b"));
        assert_eq!(request.parameters.activation, Some(Activation::None));
        let output = |score| Output::Labels(vec![LabelScore { label: "LABEL_0".to_owned(), score }]);
        let texts = ["a".to_owned(), "b".to_owned()];
        let answer = String::from_utf8(answer_json(&[output(0.25), output(0.5)], &texts, true)).unwrap();
        assert_eq!(answer, r#"[{"index":1,"score":0.5,"text":"b"},{"index":0,"score":0.25,"text":"a"}]"#);
        for body in
            [r#"{"query":"q"}"#, r#"{"texts":["a"]}"#, r#"{"query":"q","texts":[]}"#, r#"{"query":"q","texts":[1]}"#]
        {
            assert!(RerankRequest::from_json(body.as_bytes()).is_err(), "{body}");
        }
    }
}
