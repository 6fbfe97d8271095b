//! The dialect of text-embeddings-inference 1.x: `POST /predict` with its formats, its error types and their statuses.

use serde::Serialize;

use crate::{
    http::problem::Problem,
    inference::{
        output::{LabelScore, Output},
        request::{INPUTS_MAX, Input, VALUES_MAX},
        task::{Activation, Parameters},
    },
    json::{
        JsonError,
        field::{FieldError, FieldReason, RequestError, finish},
        to_vec,
        tree::Node,
    },
};

/// A body.
#[derive(Debug, PartialEq, Eq)]
pub struct PredictRequest {
    /// The texts.
    pub inputs: Vec<Input>,
    /// There is one text or pair, which is not in a list.
    pub single: bool,
    /// The parameters: `raw_scores` and `truncate`, both false by default, and `truncation_direction`.
    pub parameters: Parameters,
}

impl PredictRequest {
    /// Reads a body. `inputs` is a string, a list of one or two strings (a text or a pair), or a list of such lists.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        let members = match Node::read(body, VALUES_MAX)? {
            Node::Object(members) => members,
            other => return Err(JsonError::NotAnObject { got: other.name() }.into()),
        };
        let (mut inputs, mut single, mut errors) = (None, true, Vec::new());
        let mut parameters = Parameters { truncation: Some(false), ..Parameters::default() };
        for (key, node) in members {
            match (&*key, node) {
                ("inputs", node) => match read_inputs(node) {
                    Ok((texts, one)) => (inputs, single) = (Some(texts), one),
                    Err(error) => {
                        inputs = Some(Vec::new());
                        errors.push(error);
                    }
                },
                ("truncate", Node::Bool(cut)) => parameters.truncation = Some(cut),
                ("raw_scores", Node::Bool(raw)) => parameters.activation = raw.then_some(Activation::None),
                ("truncate", Node::Null) => {}
                (key @ ("truncate" | "raw_scores"), other) => {
                    errors.push(FieldError::wrong_type(key.to_owned(), "boolean", other.name()));
                }
                ("truncation_direction", node) => {
                    if let Err(error) = parameters.take("truncation_direction", "truncation_direction".into(), node) {
                        errors.push(error);
                    }
                }
                _ => {}
            }
        }
        if inputs.is_none() {
            errors.push(FieldError::new("inputs", FieldReason::Missing, "`inputs` is required".to_owned()));
        }
        finish(Self { inputs: inputs.unwrap_or_default(), single, parameters }, errors)
    }

    /// True when a text is empty; text-embeddings-inference refuses it.
    pub fn has_empty(&self) -> bool {
        self.inputs.iter().any(|input| input.text.is_empty())
    }
}

const SHAPE: &str = "`inputs` must be a string, a pair of strings [string, string] or a batch of mixed strings and pairs \
                     [[string], [string, string], ...]";

fn shape() -> FieldError {
    FieldError::new("inputs", FieldReason::WrongType, SHAPE.to_owned())
}

fn read_inputs(node: Node<'_>) -> Result<(Vec<Input>, bool), FieldError> {
    let nodes = match node {
        Node::Text(text) => return Ok((vec![Input { text: text.into_owned(), text_pair: None, id: None }], true)),
        Node::Array(nodes) => nodes,
        _ => return Err(shape()),
    };
    if nodes.len() > INPUTS_MAX {
        let (bounds, length) = ((1, INPUTS_MAX as i64), nodes.len() as i64);
        return Err(FieldError::bounded("inputs", FieldReason::TooLong, "have a length of", bounds, length));
    }
    match nodes.first() {
        Some(Node::Text(_)) => Ok((vec![sequence(nodes)?], true)),
        Some(Node::Array(_)) => {
            let inputs = nodes.into_iter().map(|node| match node {
                Node::Array(texts) => sequence(texts),
                _ => Err(shape()),
            });
            Ok((inputs.collect::<Result<_, _>>()?, false))
        }
        _ => Err(shape()),
    }
}

/// One or two strings.
fn sequence(nodes: Vec<Node<'_>>) -> Result<Input, FieldError> {
    let mut texts = nodes.into_iter();
    match (texts.next(), texts.next(), texts.next()) {
        (Some(Node::Text(text)), None, None) => Ok(Input { text: text.into_owned(), text_pair: None, id: None }),
        (Some(Node::Text(text)), Some(Node::Text(pair)), None) => {
            Ok(Input { text: text.into_owned(), text_pair: Some(pair.into_owned()), id: None })
        }
        _ => Err(shape()),
    }
}

/// A label and its score, with the members in the order of text-embeddings-inference.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Prediction<'a> {
    /// The score after the activation function; the logit with `raw_scores`.
    pub score: f32,
    /// A label of the model.
    pub label: &'a str,
}

/// The response body: a list of predictions, best first, or a list of such lists.
pub fn answer_json(outputs: &[Output], single: bool) -> Vec<u8> {
    let lists: Vec<Vec<Prediction<'_>>> = outputs.iter().map(predictions).collect();
    match lists.as_slice() {
        [list] if single => to_vec(list),
        lists => to_vec(&lists),
    }
}

fn predictions(output: &Output) -> Vec<Prediction<'_>> {
    match output {
        Output::Labels(labels) => {
            labels.iter().map(|LabelScore { label, score }| Prediction { score: *score, label }).collect()
        }
        Output::Entities(_) | Output::Embedding(_) => Vec::new(),
    }
}

/// The body of an error of text-embeddings-inference.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PredictError<'a> {
    /// What went wrong.
    pub error: &'a str,
    /// Unhealthy, Backend, Overloaded, Validation, Tokenizer or Empty.
    pub error_type: &'static str,
}

/// The status and the body of the error for an empty text.
pub const EMPTY: (u16, &str) = (400, r#"{"error":"`inputs` cannot be empty","error_type":"Empty"}"#);

/// The status and the body of a problem in this dialect.
pub fn error_json(problem: &Problem) -> (u16, Vec<u8>) {
    let (status, error_type) = match problem.code {
        "too_long" => (413, "Validation"),
        "invalid_input" => (422, "Tokenizer"),
        "overloaded" | "throttled" | "deadline_exceeded" => (429, "Overloaded"),
        "engine_failed" | "inference_failed" => (424, "Backend"),
        "unknown_model" | "model_unavailable" | "circuit_open" | "not_ready" => (503, "Unhealthy"),
        "internal" | "request_timeout" => (problem.status, "Backend"),
        _ => (problem.status, "Validation"),
    };
    (status, to_vec(&PredictError { error: &problem.detail, error_type }))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use weir_core::failure::Failure;

    use super::*;
    use crate::inference::task::Side;

    fn check(body: &str, want: Expect) {
        want.assert_eq(&match PredictRequest::from_json(body.as_bytes()) {
            Ok(request) => {
                let texts: Vec<_> = request.inputs.iter().map(|i| (i.text.as_str(), i.text_pair.as_deref())).collect();
                let p = request.parameters;
                format!("{texts:?} {} {:?} {:?}", request.single, p.activation, p.truncation)
            }
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn inputs_are_read_in_the_formats_of_the_dialect() {
        check(r#"{"inputs":"a"}"#, expect![[r#"[("a", None)] true None Some(false)"#]]);
        check(r#"{"inputs":["a"]}"#, expect![[r#"[("a", None)] true None Some(false)"#]]);
        check(
            r#"{"inputs":["a","b"],"raw_scores":true}"#,
            expect![[r#"[("a", Some("b"))] true Some(None) Some(false)"#]],
        );
        check(
            r#"{"inputs":[["a"],["b","c"]],"truncate":true,"truncation_direction":"Right"}"#,
            expect![[r#"[("a", None), ("b", Some("c"))] false None Some(true)"#]],
        );
        let left = PredictRequest::from_json(br#"{"inputs":"a","truncation_direction":"Left"}"#).expect("a request");
        assert_eq!(left.parameters.truncation_direction, Some(Side::Left));
        for wrong in [r#"["a","b","c"]"#, r#"[["a"],"b"]"#, r#"["a",["b"]]"#, "[]", "[[]]", "[1]", "null", "{}"] {
            let body = format!(r#"{{"inputs":{wrong}}}"#);
            let error = PredictRequest::from_json(body.as_bytes()).expect_err(wrong);
            assert!(error.to_string().contains("a pair of strings"), "{wrong}: {error}");
        }
        check(
            r#"{"truncate":1,"raw_scores":"no","truncation_direction":"up"}"#,
            expect![
                "`truncate` must be a boolean, and is an integer; `raw_scores` must be a boolean, and is a string; `truncation_direction` must be one of left, right; `inputs` is required"
            ],
        );
    }

    #[test]
    fn response_body_is_a_list_for_each_text() {
        let text = |body| String::from_utf8(body).expect("UTF-8");
        let labels = Output::Labels(vec![LabelScore { label: "good".to_owned(), score: 0.5 }]);
        expect![[r#"[{"score":0.5,"label":"good"}]"#]]
            .assert_eq(&text(answer_json(std::slice::from_ref(&labels), true)));
        expect![[r#"[[{"score":0.5,"label":"good"}]]"#]]
            .assert_eq(&text(answer_json(std::slice::from_ref(&labels), false)));
    }

    #[test]
    fn error_has_the_type_and_status_of_the_dialect() {
        for (failure, status, kind) in [
            (Failure::TooLong { tokens: 9, tokens_max: 8 }, 413, "Validation"),
            (Failure::InvalidInput(String::new()), 422, "Tokenizer"),
            (Failure::Engine(String::new()), 424, "Backend"),
            (Failure::Overloaded { retry_after_ms: 1 }, 429, "Overloaded"),
            (Failure::Throttled { retry_after_ms: 1 }, 429, "Overloaded"),
            (Failure::DeadlineExceeded, 429, "Overloaded"),
            (Failure::CircuitOpen { retry_after_ms: 1 }, 503, "Unhealthy"),
            (Failure::Unavailable(String::new()), 503, "Unhealthy"),
        ] {
            let (got, body) = error_json(&Problem::item(&failure));
            let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!((got, &body["error_type"]), (status, &kind.into()), "{failure:?}");
        }
        let problem = Problem::from(PredictRequest::from_json(b"{").expect_err("it is cut"));
        assert_eq!(error_json(&problem).0, 400);
        assert!(serde_json::from_str::<serde_json::Value>(EMPTY.1).is_ok());
    }
}
