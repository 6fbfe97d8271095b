//! The dialect of the Hugging Face inference API, as used by `huggingface_hub.InferenceClient`: `POST /models/{name}`; the model
//! determines the task.
//!
//! `options` and parameters of other tasks, which clients of several services send, are ignored.

use serde::Serialize;

use crate::{
    http::problem::Problem,
    inference::{
        output::Output,
        query::decode_path,
        request::{Input, VALUES_MAX, inputs},
        task::{Aggregation, Parameters, Task},
    },
    json::{
        JsonError,
        field::{FieldError, FieldReason, RequestError, finish},
        to_vec,
        tree::Node,
    },
};

/// The path after `/models/`: the name of a model, and optionally the task that a client expects of it (`NAME/pipeline/TASK`).
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The name of the model.
    pub model: String,
    /// A kind of model, such as `feature-extraction`.
    pub pipeline: Option<String>,
}

impl Target {
    /// Reads the path after `/models/`.
    pub fn read(path: &str) -> Self {
        match path.rsplit_once("/pipeline/") {
            Some((model, task)) if !model.is_empty() && !task.contains('/') => {
                Self { model: decode_path(model).into_owned(), pipeline: Some(decode_path(task).into_owned()) }
            }
            _ => Self { model: decode_path(path).into_owned(), pipeline: None },
        }
    }
}

/// A body.
#[derive(Debug, PartialEq, Eq)]
pub struct HubRequest {
    /// The texts.
    pub inputs: Vec<Input>,
    /// There is one text, which is not in a list.
    pub single: bool,
    /// The parameters of the request.
    pub parameters: Parameters,
}

impl HubRequest {
    /// Reads a body. Parameters are members of `parameters`, or of the body itself, as clients send those of embeddings.
    pub fn from_json(body: &[u8], task: Task) -> Result<Self, RequestError> {
        let members = match Node::read(body, VALUES_MAX)? {
            Node::Object(members) => members,
            other => return Err(JsonError::NotAnObject { got: other.name() }.into()),
        };
        let mut request = Self { inputs: Vec::new(), single: false, parameters: Parameters::default() };
        // The default of that service.
        request.parameters.aggregation = Some(Aggregation::Simple);
        let (mut errors, mut has_inputs) = (Vec::new(), false);
        for (key, node) in members {
            match (&*key, node) {
                ("inputs", node) => {
                    has_inputs = true;
                    request.single = !matches!(node, Node::Array(_));
                    request.inputs = inputs(node, task, &mut errors);
                }
                ("parameters", Node::Object(members)) => {
                    for (key, node) in members {
                        parameter(&mut request.parameters, task, &key, node, &mut errors);
                    }
                }
                ("parameters", Node::Null) => {}
                ("parameters", other) => errors.push(FieldError::wrong_type("parameters", "object", other.name())),
                (key, node) => parameter(&mut request.parameters, task, key, node, &mut errors),
            }
        }
        if !has_inputs {
            errors.push(FieldError::new("inputs", FieldReason::Missing, "`inputs` is required".to_owned()));
        }
        finish(request, errors)
    }
}

fn parameter(into: &mut Parameters, task: Task, key: &str, node: Node<'_>, errors: &mut Vec<FieldError>) {
    if task.parameters().contains(&key)
        && let Err(error) = into.take(key, key.to_owned().into(), node)
    {
        errors.push(error);
    }
}

/// The response body: labels are a list for each text, even for a single one; entities and embeddings of a single text are not in a
/// list of texts.
pub fn answer_json(task: Task, outputs: &[Output], single: bool) -> Vec<u8> {
    match outputs {
        [output] if single && task != Task::Classify => to_vec(output),
        outputs => to_vec(&outputs),
    }
}

/// The body of an error of that service.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HubError<'a> {
    /// What went wrong.
    pub error: &'a str,
    /// Estimated time until the model is ready, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_time: Option<f64>,
}

/// The status and the body of a problem in this dialect.
pub fn error_json(problem: &Problem) -> (u16, Vec<u8>) {
    let status = match problem.code {
        "invalid_request" | "invalid_input" | "too_long" => 400,
        "engine_failed" | "inference_failed" => 500,
        _ => problem.status,
    };
    let loading = matches!(problem.code, "model_unavailable" | "not_ready");
    let estimated_time = problem.retry_after_ms.filter(|_| loading).map(|ms| f64::from(ms) / 1000.0);
    (status, to_vec(&HubError { error: &problem.detail, estimated_time }))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use weir_core::failure::Failure;

    use super::*;
    use crate::inference::output::LabelScore;

    #[test]
    fn target_is_split_into_model_and_pipeline() {
        let check = |path, model: &str, pipeline: Option<&str>| {
            let target = Target { model: model.to_owned(), pipeline: pipeline.map(str::to_owned) };
            assert_eq!(Target::read(path), target);
        };
        check("sentiment", "sentiment", None);
        check("org/a%20b", "org/a b", None);
        check("org/m/pipeline/feature-extraction", "org/m", Some("feature-extraction"));
        check("/pipeline/x", "/pipeline/x", None);
    }

    fn check(body: &str, task: Task, want: Expect) {
        want.assert_eq(&match HubRequest::from_json(body.as_bytes(), task) {
            Ok(request) => {
                let texts: Vec<_> = request.inputs.iter().map(|i| (i.text.as_str(), i.text_pair.as_deref())).collect();
                let p = request.parameters;
                format!("{texts:?} {} {:?} {:?} {:?}", request.single, p.top_k, p.normalize, p.truncation)
            }
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn body_is_read_with_the_parameters_of_its_task() {
        check(
            r#"{"inputs":"a","parameters":{"top_k":2,"stride":3},"options":{"wait_for_model":true}}"#,
            Task::Classify,
            expect![[r#"[("a", None)] true Some(2) None None"#]],
        );
        check(
            r#"{"inputs":["a",{"text":"b","text_pair":"c"}]}"#,
            Task::Classify,
            expect![[r#"[("a", None), ("b", Some("c"))] false None None None"#]],
        );
        check(
            r#"{"inputs":"a","normalize":true,"truncate":false,"prompt_name":"query"}"#,
            Task::Embed,
            expect![[r#"[("a", None)] true None Some(true) Some(false)"#]],
        );
        check(
            r#"{"parameters":{"top_k":"two"}}"#,
            Task::Classify,
            expect!["`top_k` must be an integer, and is a string; `inputs` is required"],
        );
    }

    #[test]
    fn response_body_has_the_lists_of_the_task() {
        let text = |body| String::from_utf8(body).expect("UTF-8");
        let labels = Output::Labels(vec![LabelScore { label: "good".to_owned(), score: 0.5 }]);
        expect![[r#"[[{"label":"good","score":0.5}]]"#]].assert_eq(&text(answer_json(
            Task::Classify,
            std::slice::from_ref(&labels),
            true,
        )));
        let embedding = Output::Embedding(vec![0.5]);
        expect!["[0.5]"].assert_eq(&text(answer_json(Task::Embed, std::slice::from_ref(&embedding), true)));
        expect!["[[0.5]]"].assert_eq(&text(answer_json(Task::Embed, std::slice::from_ref(&embedding), false)));
        expect!["[]"].assert_eq(&text(answer_json(Task::Tokens, &[], false)));
    }

    #[test]
    fn error_has_the_status_and_body_of_the_dialect() {
        let check = |problem: Problem, want: Expect| {
            let (status, body) = error_json(&problem);
            want.assert_eq(&format!("{status} {}", String::from_utf8(body).expect("UTF-8")));
        };
        check(
            Problem::item(&Failure::Unavailable("it is loading".to_owned())),
            expect![[r#"503 {"error":"the model cannot answer now: it is loading","estimated_time":1.0}"#]],
        );
        check(
            Problem::item(&Failure::UnknownModel { name: "m".to_owned(), served: Vec::new() }),
            expect![[r#"404 {"error":"no model named `m` is served"}"#]],
        );
        check(
            Problem::item(&Failure::TooLong { tokens: 9, tokens_max: 8 }),
            expect![[r#"400 {"error":"the text has at least 9 tokens and the model takes 8"}"#]],
        );
        check(
            Problem::item(&Failure::Throttled { retry_after_ms: 5 }),
            expect![[r#"429 {"error":"you have more than your share of the model's queue; retry in 5 ms"}"#]],
        );
    }
}
