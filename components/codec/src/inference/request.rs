//! The JSON bodies of `/v1/classify`, `/v1/tokens` and `/v1/embed`, and the lines of their streams.

use std::borrow::Cow;

use crate::{
    http::lines::Line,
    inference::{
        output::{Id, ItemError},
        query,
        task::{Parameters, Task},
    },
    json::{
        JsonError,
        field::{ERRORS_MAX, FieldError, FieldReason, RequestError, finish, unknown},
        tree::Node,
    },
};

/// Maximum number of texts in one JSON body.
pub const INPUTS_MAX: usize = 1024;
/// Longest id, in bytes.
pub const ID_BYTES_MAX: usize = 256;
/// Longest line of a stream, in bytes: far more than any model reads of a text.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// Maximum number of JSON values in a body: enough for [`INPUTS_MAX`] objects, and as many again.
pub(crate) const VALUES_MAX: usize = 8 * INPUTS_MAX;
/// Maximum number of JSON values in a line.
const LINE_VALUES_MAX: usize = 64;
/// Maximum number of JSON values in a line of a file, whose objects may hold more than an input.
const FILE_LINE_VALUES_MAX: usize = 16 << 10;

/// A text with its pair and its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// The id that the client chose.
    pub id: Option<Id>,
}

/// The JSON body of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRequest {
    /// The texts.
    pub inputs: Vec<Input>,
    /// The model; `None`: the one that is configured for the task.
    pub model: Option<String>,
    /// The parameters of the request.
    pub parameters: Parameters,
}

impl TaskRequest {
    /// Reads a body; its `parameters` take precedence over those of the query string.
    ///
    /// # Errors
    ///
    /// The body is not a JSON object, or has invalid fields; every invalid field is listed.
    pub fn from_json(body: &[u8], task: Task, query: query::Query) -> Result<Self, RequestError> {
        let members = match Node::read(body, VALUES_MAX)? {
            Node::Object(members) => members,
            other => return Err(JsonError::NotAnObject { got: other.name() }.into()),
        };
        let mut request = Self { inputs: Vec::new(), model: query.model, parameters: query.parameters };
        let (mut errors, mut has_inputs) = (Vec::new(), false);
        for (key, node) in members {
            match &*key {
                "inputs" => {
                    has_inputs = true;
                    request.inputs = inputs(node, task, &mut errors);
                }
                "model" => match node {
                    Node::Null => {}
                    Node::Text(name) => match query::model(name.into_owned()) {
                        Ok(model) => request.model = Some(model),
                        Err(error) => errors.push(error),
                    },
                    other => errors.push(FieldError::wrong_type("model", "string", other.name())),
                },
                "parameters" => parameters(node, task, &mut request.parameters, &mut errors),
                _ => errors.push(unknown(key.into_owned(), &["inputs", "model", "parameters"])),
            }
        }
        if !has_inputs {
            errors.push(FieldError::new("inputs", FieldReason::Missing, "`inputs` is required".to_owned()));
        }
        finish(request, errors)
    }
}

fn parameters(node: Node<'_>, task: Task, into: &mut Parameters, errors: &mut Vec<FieldError>) {
    let members = match node {
        Node::Null => return,
        Node::Object(members) => members,
        other => return errors.push(FieldError::wrong_type("parameters", "object", other.name())),
    };
    for (key, node) in members {
        let field = format!("parameters.{key}");
        if !task.parameters().contains(&&*key) {
            errors.push(unknown(field, task.parameters()));
        } else if let Err(error) = into.take(&key, field.into(), node) {
            errors.push(error);
        }
    }
}

/// Reads `inputs`: a text, an object with a text, or a list of either.
pub(crate) fn inputs(node: Node<'_>, task: Task, errors: &mut Vec<FieldError>) -> Vec<Input> {
    let nodes = match node {
        Node::Array(nodes) => nodes,
        one @ (Node::Text(_) | Node::Object(_)) => {
            return input(one, task, InputPosition::One, errors).into_iter().collect();
        }
        other => {
            errors.push(FieldError::wrong_type("inputs", "string, object or array", other.name()));
            return Vec::new();
        }
    };
    if nodes.len() > INPUTS_MAX {
        let (bounds, length) = ((0, INPUTS_MAX as i64), nodes.len() as i64);
        errors.push(FieldError::bounded("inputs", FieldReason::TooLong, "have a length of", bounds, length));
        return Vec::new();
    }
    let mut inputs = Vec::with_capacity(nodes.len());
    for (at, node) in nodes.into_iter().enumerate() {
        inputs.extend(input(node, task, InputPosition::At(at), errors));
        if errors.len() > ERRORS_MAX {
            break;
        }
    }
    inputs
}

/// The position of an input, for the paths of its fields.
#[derive(Debug, Clone, Copy)]
enum InputPosition {
    /// The value of `inputs`.
    One,
    /// An item of `inputs`.
    At(usize),
    /// A line of a stream.
    Line,
    /// A line of a file, whose objects may have other fields.
    FileLine,
}

impl InputPosition {
    fn field(self, name: &'static str) -> Cow<'static, str> {
        match (self, name) {
            (Self::One, "") => "inputs".into(),
            (Self::One, name) => format!("inputs.{name}").into(),
            (Self::At(at), "") => format!("inputs[{at}]").into(),
            (Self::At(at), name) => format!("inputs[{at}].{name}").into(),
            (Self::Line | Self::FileLine, "") => "line".into(),
            (Self::Line | Self::FileLine, name) => name.into(),
        }
    }
}

/// Reads an input. On failure, the errors are in `errors` and the result is the id, if it can be read.
fn input(
    node: Node<'_>,
    task: Task,
    position: InputPosition,
    errors: &mut Vec<FieldError>,
) -> Result<Input, Option<Id>> {
    let members = match node {
        Node::Text(text) => return Ok(Input { text: text.into_owned(), text_pair: None, id: None }),
        Node::Object(members) => members,
        other => {
            errors.push(FieldError::wrong_type(position.field(""), "string or object", other.name()));
            return Err(None);
        }
    };
    let known: &[&str] = if task == Task::Classify { &["text", "text_pair", "id"] } else { &["text", "id"] };
    let (mut text, mut text_pair, mut id, before) = (None, None, None, errors.len());
    for (key, node) in members {
        match (&*key, node) {
            ("text", Node::Text(value)) => text = Some(value.into_owned()),
            ("text_pair", Node::Text(value)) if task == Task::Classify => text_pair = Some(value.into_owned()),
            ("text_pair", Node::Null) if task == Task::Classify => {}
            ("id", Node::Null) => {}
            ("id", Node::Integer(number)) => id = Some(Id::Number(number)),
            ("id", Node::Text(value)) if value.len() <= ID_BYTES_MAX => id = Some(Id::Text(value.into_owned())),
            ("id", Node::Text(value)) => {
                let (bounds, length) = ((0, ID_BYTES_MAX as i64), value.len() as i64);
                let what = "have a length in bytes of";
                errors.push(FieldError::bounded(position.field("id"), FieldReason::TooLong, what, bounds, length));
            }
            ("id", other) => {
                errors.push(FieldError::wrong_type(position.field("id"), "string or integer", other.name()))
            }
            ("text", other) => errors.push(FieldError::wrong_type(position.field("text"), "string", other.name())),
            ("text_pair", other) if task == Task::Classify => {
                errors.push(FieldError::wrong_type(position.field("text_pair"), "string", other.name()));
            }
            // `text_pair` is not ignored: without it, half of the input would be lost.
            (key, _) if matches!(position, InputPosition::FileLine) && key != "text_pair" => {}
            ("text_pair", Node::Null) => {}
            (key, _) => {
                let field = match position {
                    InputPosition::Line | InputPosition::FileLine => key.to_owned(),
                    position => format!("{}.{key}", position.field("")),
                };
                errors.push(unknown(field, known));
            }
        }
    }
    if errors.len() > before {
        return Err(id);
    }
    let Some(text) = text else {
        let field = position.field("text");
        let message = format!("`{field}` is required");
        errors.push(FieldError::new(field, FieldReason::Missing, message));
        return Err(id);
    };
    Ok(Input { text, text_pair, id })
}

/// The rules for lines of streams and files. Blank lines and line ends are handled by [`crate::http::lines::Lines`].
#[derive(Debug, Clone, Copy)]
pub struct LineRules {
    task: Task,
    is_file: bool,
    bytes_max: usize,
}

impl LineRules {
    /// Rules for a stream over HTTP: each line is a JSON string, or an object with `text` and no unknown fields.
    pub fn stream(task: Task) -> Self {
        Self { task, is_file: false, bytes_max: LINE_BYTES_MAX }
    }

    /// Rules for a file with lines of at most `bytes_max` bytes. In addition to the lines of a stream, a line that begins with neither a
    /// brace nor a quoted string is a text, and objects may have unknown fields, as in data sets.
    pub fn file(task: Task, bytes_max: usize) -> Self {
        Self { task, is_file: true, bytes_max }
    }

    /// Reads a line.
    ///
    /// # Errors
    ///
    /// The line is too long, not UTF-8, not JSON where it must be, or not a valid input. The error has the id, if it can be read.
    pub fn read(self, line: &Line<'_>) -> Result<Input, (Option<Id>, ItemError)> {
        let number = line.number;
        let line_error = |code, message: String| {
            let message = format!("line {number}: {message}");
            ItemError { line: Some(number), ..ItemError::new(code, message) }
        };
        let Some(content) = line.content else {
            return Err((None, line_error("line_too_long", format!("it has more than {} bytes", self.bytes_max))));
        };
        if self.is_file && content.contains(&0) {
            let message = "it has a NUL character (U+0000), as text in UTF-16 has; save the file as UTF-8".to_owned();
            return Err((None, line_error("not_utf8", message)));
        }
        let plain = |text: &str| Ok(Input { text: text.to_owned(), text_pair: None, id: None });
        let values_max = if self.is_file { FILE_LINE_VALUES_MAX } else { LINE_VALUES_MAX };
        let node = match std::str::from_utf8(content) {
            Ok(text) if self.is_file && !text.trim_start().starts_with(['{', '"']) => return plain(text),
            // Plain text may begin with a quotation: "Hello," she said.
            Ok(text) if self.is_file && text.trim_start().starts_with('"') => match Node::read(content, 1) {
                Ok(node) => Ok(node),
                Err(_) => return plain(text),
            },
            _ => Node::read(content, values_max),
        };
        let node = node.map_err(|error| {
            let (code, message) = explain(&error);
            (None, line_error(code, message))
        })?;
        let mut errors = Vec::new();
        let position = if self.is_file { InputPosition::FileLine } else { InputPosition::Line };
        input(node, self.task, position, &mut errors).map_err(|id| {
            // An invalid input has at least one error; the first is reported.
            let (field, message) = match errors.into_iter().next() {
                Some(error) => (Some(error.field), error.message.into()),
                None => (None, "it is no item".to_owned()),
            };
            (id, ItemError { field, ..line_error("invalid_item", message) })
        })
    }
}

/// The code and the message of a JSON error in a line.
pub(crate) fn explain(error: &JsonError) -> (&'static str, String) {
    match error {
        JsonError::Empty => ("malformed_json", "it is empty".to_owned()),
        JsonError::NotUtf8 { at } => ("not_utf8", format!("it is not UTF-8: byte {at} does not fit")),
        JsonError::Malformed { reason, column, .. } => {
            ("malformed_json", format!("it is not JSON: {reason} at column {column}"))
        }
        JsonError::LoneSurrogate { column, .. } => {
            ("malformed_json", format!("a `\\u` escape at column {column} is half of a surrogate pair"))
        }
        JsonError::TooDeep { column, .. } => ("json_too_deep", format!("it is nested too deeply at column {column}")),
        JsonError::DuplicateKey { key, column, .. } => {
            ("duplicate_key", format!("the key `{key}` appears twice, the second time at column {column}"))
        }
        JsonError::NotAnObject { got } => ("invalid_item", format!("it is {got}")),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(body: &str, task: Task, want: Expect) {
        want.assert_eq(&match TaskRequest::from_json(body.as_bytes(), task, query::Query::default()) {
            Ok(request) => format!("{:?} {:?} {:?}", request.inputs, request.model, request.parameters),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn inputs_are_read_in_every_form() {
        check(
            r#"{"inputs":"a"}"#,
            Task::Classify,
            expect![[
                r#"[Input { text: "a", text_pair: None, id: None }] None Parameters { top_k: None, activation: None, truncation: None, truncation_direction: None, stride: None, aggregation: None, ignore_labels: None, normalize: None, timeout_ms: None }"#
            ]],
        );
        check(
            r#"{"inputs":["a",{"text":"b","text_pair":"c","id":7}],"model":"m","parameters":{"top_k":1,"function_to_apply":"sigmoid","truncation":true}}"#,
            Task::Classify,
            expect![[
                r#"[Input { text: "a", text_pair: None, id: None }, Input { text: "b", text_pair: Some("c"), id: Some(Number(7)) }] Some("m") Parameters { top_k: Some(1), activation: Some(Sigmoid), truncation: Some(true), truncation_direction: None, stride: None, aggregation: None, ignore_labels: None, normalize: None, timeout_ms: None }"#
            ]],
        );
        check(
            r#"{"inputs":{"text":"b","id":"x"},"model":null,"parameters":{"ignore_labels":["O"],"aggregation_strategy":"first"}}"#,
            Task::Tokens,
            expect![[
                r#"[Input { text: "b", text_pair: None, id: Some(Text("x")) }] None Parameters { top_k: None, activation: None, truncation: None, truncation_direction: None, stride: None, aggregation: Some(First), ignore_labels: Some(["O"]), normalize: None, timeout_ms: None }"#
            ]],
        );
    }

    #[test]
    fn all_field_errors_are_listed() {
        check(
            r#"{"inputs":[1,{"text":2},{"text":"a","pair":"b"},{}],"model":5,"parameters":{"top_k":-1,"normalize":true},"options":{}}"#,
            Task::Classify,
            expect![
                "`inputs[0]` must be a string or object, and is an integer; `inputs[1].text` must be a string, and is an integer; `inputs[2].pair` is not known here; there are text, text_pair, id; `inputs[3].text` is required; `model` must be a string, and is an integer; `parameters.top_k` must be 1 to 4294967295, and is -1; `parameters.normalize` is not known here; there are top_k, function_to_apply, truncation, truncation_direction, timeout_ms; `options` is not known here; there are inputs, model, parameters"
            ],
        );
        check("{}", Task::Embed, expect!["`inputs` is required"]);
        check("[]", Task::Embed, expect!["the body is an array; a JSON object was expected"]);
        check(r#"{"inputs":null}"#, Task::Embed, expect!["`inputs` must be a string, object or array, and is null"]);
        check(
            r#"{"inputs":{"text":"a","text_pair":"b"}}"#,
            Task::Embed,
            expect!["`inputs.text_pair` is not known here; there are text, id"],
        );
        let many = format!(r#"{{"inputs":[{}""]}}"#, r#""","#.repeat(INPUTS_MAX));
        check(&many, Task::Embed, expect!["`inputs` must have a length of 0 to 1024, and is 1025"]);
        let wrong = format!(r#"{{"inputs":[{}1]}}"#, "1,".repeat(999));
        let error = TaskRequest::from_json(wrong.as_bytes(), Task::Embed, query::Query::default()).unwrap_err();
        let body = crate::http::problem::Problem::from(error).to_json("r-1");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errors"].as_array().map(Vec::len), Some(ERRORS_MAX));
        assert_eq!(body["errors_truncated"], true);
    }

    fn line(content: &[u8], want: Expect) {
        want.assert_eq(&match LineRules::stream(Task::Classify).read(&Line { number: 9, content: Some(content) }) {
            Ok(input) => format!("{input:?}"),
            Err((id, error)) => format!("{id:?} {}", serde_json::to_string(&error).expect("JSON")),
        });
    }

    #[test]
    fn line_of_a_stream_is_read_or_refused() {
        line(br#" "a" "#, expect![[r#"Input { text: "a", text_pair: None, id: None }"#]]);
        line(
            br#"{"id":"x","text":"a","text_pair":"b"}"#,
            expect![[r#"Input { text: "a", text_pair: Some("b"), id: Some(Text("x")) }"#]],
        );
        line(
            b"5",
            expect![[
                r#"None {"code":"invalid_item","message":"line 9: `line` must be a string or object, and is an integer","retryable":false,"field":"line","line":9}"#
            ]],
        );
        line(
            b"{\"a",
            expect![[
                r#"None {"code":"malformed_json","message":"line 9: it is not JSON: it ends in the middle of a string at column 3","retryable":false,"line":9}"#
            ]],
        );
        line(
            b"\"\xff\"",
            expect![[
                r#"None {"code":"not_utf8","message":"line 9: it is not UTF-8: byte 1 does not fit","retryable":false,"line":9}"#
            ]],
        );
        line(
            br#"{"text":"a","parameters":{}}"#,
            expect![[
                r#"None {"code":"invalid_item","message":"line 9: `parameters` is not known here; there are text, text_pair, id","retryable":false,"field":"parameters","line":9}"#
            ]],
        );
        line(
            br#"{"id":1.5,"text":"a"}"#,
            expect![[
                r#"None {"code":"invalid_item","message":"line 9: `id` must be a string or integer, and is a number","retryable":false,"field":"id","line":9}"#
            ]],
        );
        line(
            br#"{"id":1}"#,
            expect![[
                r#"Some(Number(1)) {"code":"invalid_item","message":"line 9: `text` is required","retryable":false,"field":"text","line":9}"#
            ]],
        );
        line(
            br#"{"text":"a","text":"b"}"#,
            expect![[
                r#"None {"code":"duplicate_key","message":"line 9: the key `text` appears twice, the second time at column 18","retryable":false,"line":9}"#
            ]],
        );
        line(
            br#"{"id":"x","text":1}"#,
            expect![[
                r#"Some(Text("x")) {"code":"invalid_item","message":"line 9: `text` must be a string, and is an integer","retryable":false,"field":"text","line":9}"#
            ]],
        );
        let (_, error) =
            LineRules::stream(Task::Embed).read(&Line { number: 2, content: None }).expect_err("it is too long");
        assert_eq!((error.code, error.line), ("line_too_long", Some(2)));
    }

    #[test]
    fn line_of_a_file_is_a_text_a_string_or_an_object() {
        let check = |content: &[u8], task, want: Result<&str, &str>| {
            let read = LineRules::file(task, 100).read(&Line { number: 1, content: Some(content) });
            let got = match &read {
                Ok(input) => Ok(input.text.as_str()),
                Err((_, error)) => Err(error.code),
            };
            assert_eq!(got, want, "{}", String::from_utf8_lossy(content));
        };
        check(b" plain [1] ", Task::Embed, Ok(" plain [1] "));
        check(b"5", Task::Embed, Ok("5"));
        check(br#""a \u00e9 \"quoted\" text""#, Task::Embed, Ok("a é \"quoted\" text"));
        check(br#""Hello," she said."#, Task::Embed, Ok(r#""Hello," she said."#));
        check(br#"{"text":"a","label":"x","meta":{"n":[1,2]}}"#, Task::Embed, Ok("a"));
        check(br#"{"text":"a","text_pair":null}"#, Task::Embed, Ok("a"));
        check(br#"{"text":"a","text_pair":"b"}"#, Task::Embed, Err("invalid_item"));
        check(br#"{"text":"a","text_pair":"b"}"#, Task::Classify, Ok("a"));
        check(br#"{"label":"x"}"#, Task::Classify, Err("invalid_item"));
        check(br#"{"text":1}"#, Task::Classify, Err("invalid_item"));
        check(b"{not json", Task::Classify, Err("malformed_json"));
        check(b"caf\xe9", Task::Classify, Err("not_utf8"));
        check(b"c\0a\0f\0", Task::Classify, Err("not_utf8"));
        let many = format!(r#"{{"text":"a","list":[{}1]}}"#, "1,".repeat(10_000));
        check(many.as_bytes(), Task::Classify, Ok("a"));
        let error =
            LineRules::file(Task::Embed, 7).read(&Line { number: 3, content: None }).expect_err("it is too long");
        assert_eq!(error.1.message, "line 3: it has more than 7 bytes");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = TaskRequest::from_json(&body, Task::Classify, query::Query::default());
            for rules in [LineRules::stream(Task::Tokens), LineRules::file(Task::Classify, 100)] {
                let _ = rules.read(&Line { number: 1, content: Some(&body) });
            }
        }
    }
}
