//! The body of `POST /process-stream` and `POST /process-batch`.

use weir_core::inference::{chunk::code_points, rewrite::SummaryMode};

use crate::json::{
    JsonError,
    field::{FieldError, FieldReason, RequestError},
    members::{Errors, Members},
    tree::Node,
};

/// Maximum number of JSON values in a request.
const VALUES_MAX: usize = 65_536;

/// Minimum number of code points in a text.
pub const TEXT_CODE_POINTS_MIN: usize = 10;
/// Maximum number of code points in a text.
pub const TEXT_CODE_POINTS_MAX: usize = 5000;
/// Minimum number of code points in a chunk.
pub const CHUNK_SIZE_MIN: i64 = 50;
/// Maximum number of code points in a chunk.
pub const CHUNK_SIZE_MAX: i64 = 500;
/// The default number of code points in a chunk.
pub const CHUNK_SIZE_DEFAULT: i64 = 200;

/// A text and its options. Unknown fields are refused, since a misspelled option would be ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(deny_unknown_fields))]
pub struct ProcessRequest {
    /// The text, counted in Unicode code points. It must not contain U+0000.
    #[cfg_attr(feature = "schema", schemars(length(min = TEXT_CODE_POINTS_MIN, max = TEXT_CODE_POINTS_MAX)))]
    pub text: String,
    /// Label each chunk and the whole text.
    #[cfg_attr(feature = "schema", schemars(default = "yes"))]
    pub include_sentiment: bool,
    /// Summarize the text, if it is longer than 100 code points.
    #[cfg_attr(feature = "schema", schemars(default = "yes"))]
    pub include_summary: bool,
    /// How the summary is made.
    #[cfg_attr(feature = "schema", schemars(rename = "summary", with = "Option<SummaryOptionsSchema>"))]
    pub summary_mode: Option<SummaryMode>,
    /// Find named entities.
    #[cfg_attr(feature = "schema", schemars(default))]
    pub include_entities: bool,
    /// Code points per chunk.
    #[cfg_attr(feature = "schema", schemars(range(min = CHUNK_SIZE_MIN, max = CHUNK_SIZE_MAX), default = "chunk_size_default"))]
    pub chunk_size: u32,
}

#[cfg(feature = "schema")]
fn yes() -> bool {
    true
}

#[cfg(feature = "schema")]
fn chunk_size_default() -> u32 {
    CHUNK_SIZE_DEFAULT as u32
}

impl ProcessRequest {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// The body is not a JSON object, or has invalid fields; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        let node = Node::read(body, VALUES_MAX)?;
        let (got, mut errors) = (node.name(), Errors::default());
        let members = Members::of_node(String::new(), node, &mut errors);
        let mut members = members.ok_or(JsonError::NotAnObject { got })?;
        let text = text(&mut members, &mut errors);
        let include_sentiment = members.boolean("include_sentiment", &mut errors).unwrap_or(true);
        let include_summary = members.boolean("include_summary", &mut errors).unwrap_or(true);
        let summary_mode = summary_mode(&mut members, &mut errors);
        let include_entities = members.boolean("include_entities", &mut errors).unwrap_or(false);
        let bounds = (CHUNK_SIZE_MIN, CHUNK_SIZE_MAX);
        let chunk_size = members.integer_within("chunk_size", bounds, &mut errors).unwrap_or(CHUNK_SIZE_DEFAULT) as u32;
        members.finish(&mut errors);
        errors.finish(Self { text, include_sentiment, include_summary, summary_mode, include_entities, chunk_size })
    }
}

/// The member `summary`: `{"mode": …}`.
fn summary_mode(members: &mut Members<'_>, errors: &mut Errors) -> Option<SummaryMode> {
    let mut members = members.object("summary", errors)?;
    let mode = members.choice("mode", SummaryMode::ALL, SummaryMode::name, errors);
    members.finish(errors);
    mode
}

/// How a summary is made.
#[cfg(feature = "schema")]
#[derive(schemars::JsonSchema)]
#[schemars(rename = "SummaryOptions", deny_unknown_fields)]
pub(crate) struct SummaryOptionsSchema {
    /// `extractive`: sentences of the text. `abstractive`: a language model rewrites them; where its text has a number or a name that they do
    /// not have, the summary is extractive, and says why.
    #[expect(dead_code, reason = "it is read by hand")]
    pub mode: Option<String>,
}

fn text(members: &mut Members<'_>, errors: &mut Errors) -> String {
    const FIELD: &str = "text";
    members.require(FIELD, errors);
    let Some(text) = members.text(FIELD, errors) else { return String::new() };
    let length = code_points(&text);
    let mut wrong_length = |reason| {
        let bounds = (TEXT_CODE_POINTS_MIN as i64, TEXT_CODE_POINTS_MAX as i64);
        errors.push(FieldError::bounded(FIELD, reason, "have a length in code points of", bounds, length as i64));
    };
    if length < TEXT_CODE_POINTS_MIN {
        wrong_length(FieldReason::TooShort);
    } else if length > TEXT_CODE_POINTS_MAX {
        wrong_length(FieldReason::TooLong);
    }
    if let Some(at) = text.chars().position(|c| c == '\0') {
        let message = format!("`text` must not contain U+0000, and does as code point {at}");
        let error = FieldError::new(FIELD, FieldReason::ContainsNul, message);
        errors.push(FieldError { actual: Some(at as i64), ..error });
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::http::problem::Problem;

    fn check(body: &str, want: Expect) {
        want.assert_eq(&match ProcessRequest::from_json(body.as_bytes()) {
            Ok(request) => format!("{request:#?}"),
            Err(error) => {
                let problem = Problem::from(error).to_json("r-1");
                let value: serde_json::Value = serde_json::from_slice(&problem).expect("a problem is JSON");
                serde_json::to_string_pretty(&value).expect("JSON")
            }
        });
    }

    #[test]
    fn absent_options_have_their_defaults() {
        check(
            r#"{"text":"ten points"}"#,
            expect![[r#"
                ProcessRequest {
                    text: "ten points",
                    include_sentiment: true,
                    include_summary: true,
                    summary_mode: None,
                    include_entities: false,
                    chunk_size: 200,
                }"#]],
        );
    }

    #[test]
    fn each_field_is_read() {
        check(
            r#"{"text":"ten points","include_sentiment":false,"include_summary":false,"include_entities":true,
                "chunk_size":50.0}"#,
            expect![[r#"
                ProcessRequest {
                    text: "ten points",
                    include_sentiment: false,
                    include_summary: false,
                    summary_mode: None,
                    include_entities: true,
                    chunk_size: 50,
                }"#]],
        );
    }

    #[test]
    fn unknown_field_is_refused_with_the_nearest_name() {
        let check = |body: &str, want: &str| {
            let error = ProcessRequest::from_json(body.as_bytes()).expect_err("a field is not known");
            assert_eq!(error.to_string(), want);
        };
        let known = "there are text, include_sentiment, include_summary, summary, include_entities, chunk_size";
        check(
            r#"{"text":"ten points","include_entity":true}"#,
            &format!("`include_entity` is not known here (did you mean `include_entities`?); {known}"),
        );
        check(r#"{"text":"ten points","model":null}"#, &format!("`model` is not known here; {known}"));
        check(
            r#"{"texts":"ten points"}"#,
            &format!("`text` is required; `texts` is not known here (did you mean `text`?); {known}"),
        );
        let many: String = (0..1000).map(|at| format!(r#","field{at}":1"#)).collect();
        let body = format!(r#"{{"text":"ten points"{many}}}"#);
        let Err(RequestError::Invalid(errors)) = ProcessRequest::from_json(body.as_bytes()) else { panic!("{body}") };
        assert!(errors.len() < 100 && errors.iter().all(|error| error.reason == FieldReason::Unknown));
    }

    #[test]
    fn all_type_errors_are_listed() {
        check(
            r#"{"text":["a"],"include_sentiment":"true","include_summary":1,"include_entities":null,"chunk_size":75.5}"#,
            expect![[r#"
                {
                  "code": "invalid_request",
                  "detail": "`text` must be a string, and is an array; `include_sentiment` must be a boolean, and is a string; `include_summary` must be a boolean, and is an integer; `include_entities` must be a boolean, and is null; `chunk_size` must be an integer, and is a number",
                  "errors": [
                    {
                      "expected": "string",
                      "field": "text",
                      "got": "array",
                      "message": "`text` must be a string, and is an array",
                      "reason": "wrong_type"
                    },
                    {
                      "expected": "boolean",
                      "field": "include_sentiment",
                      "got": "string",
                      "message": "`include_sentiment` must be a boolean, and is a string",
                      "reason": "wrong_type"
                    },
                    {
                      "expected": "boolean",
                      "field": "include_summary",
                      "got": "integer",
                      "message": "`include_summary` must be a boolean, and is an integer",
                      "reason": "wrong_type"
                    },
                    {
                      "expected": "boolean",
                      "field": "include_entities",
                      "got": "null",
                      "message": "`include_entities` must be a boolean, and is null",
                      "reason": "wrong_type"
                    },
                    {
                      "expected": "integer",
                      "field": "chunk_size",
                      "got": "number",
                      "message": "`chunk_size` must be an integer, and is a number",
                      "reason": "wrong_type"
                    }
                  ],
                  "request_id": "r-1",
                  "retryable": false,
                  "status": 422,
                  "title": "The request is not valid",
                  "type": "urn:weir:problem:invalid-request"
                }"#]],
        );
    }

    #[test]
    fn value_out_of_bounds_is_refused_with_the_bounds() {
        check(
            r#"{"text":"nine poin","chunk_size":49}"#,
            expect![[r#"
            {
              "code": "invalid_request",
              "detail": "`text` must have a length in code points of 10 to 5000, and is 9; `chunk_size` must be 50 to 500, and is 49",
              "errors": [
                {
                  "actual": 9,
                  "field": "text",
                  "max": 5000,
                  "message": "`text` must have a length in code points of 10 to 5000, and is 9",
                  "min": 10,
                  "reason": "too_short"
                },
                {
                  "actual": 49,
                  "field": "chunk_size",
                  "max": 500,
                  "message": "`chunk_size` must be 50 to 500, and is 49",
                  "min": 50,
                  "reason": "out_of_range"
                }
              ],
              "request_id": "r-1",
              "retryable": false,
              "status": 422,
              "title": "The request is not valid",
              "type": "urn:weir:problem:invalid-request"
            }"#]],
        );
        check(
            &format!(r#"{{"text":"{}","chunk_size":501}}"#, "x".repeat(5001)),
            expect![[r#"
            {
              "code": "invalid_request",
              "detail": "`text` must have a length in code points of 10 to 5000, and is 5001; `chunk_size` must be 50 to 500, and is 501",
              "errors": [
                {
                  "actual": 5001,
                  "field": "text",
                  "max": 5000,
                  "message": "`text` must have a length in code points of 10 to 5000, and is 5001",
                  "min": 10,
                  "reason": "too_long"
                },
                {
                  "actual": 501,
                  "field": "chunk_size",
                  "max": 500,
                  "message": "`chunk_size` must be 50 to 500, and is 501",
                  "min": 50,
                  "reason": "out_of_range"
                }
              ],
              "request_id": "r-1",
              "retryable": false,
              "status": 422,
              "title": "The request is not valid",
              "type": "urn:weir:problem:invalid-request"
            }"#]],
        );
        check(
            r#"{"text":"\u0000 ten points","chunk_size":-9000000000}"#,
            expect![[r#"
            {
              "code": "invalid_request",
              "detail": "`text` must not contain U+0000, and does as code point 0; `chunk_size` must be 50 to 500, and is -9000000000",
              "errors": [
                {
                  "actual": 0,
                  "field": "text",
                  "message": "`text` must not contain U+0000, and does as code point 0",
                  "reason": "contains_nul"
                },
                {
                  "actual": -9000000000,
                  "field": "chunk_size",
                  "max": 500,
                  "message": "`chunk_size` must be 50 to 500, and is -9000000000",
                  "min": 50,
                  "reason": "out_of_range"
                }
              ],
              "request_id": "r-1",
              "retryable": false,
              "status": 422,
              "title": "The request is not valid",
              "type": "urn:weir:problem:invalid-request"
            }"#]],
        );
        check(
            r#"{"chunk_size":"200"}"#,
            expect![[r#"
            {
              "code": "invalid_request",
              "detail": "`text` is required; `chunk_size` must be an integer, and is a string",
              "errors": [
                {
                  "field": "text",
                  "message": "`text` is required",
                  "reason": "missing"
                },
                {
                  "expected": "integer",
                  "field": "chunk_size",
                  "got": "string",
                  "message": "`chunk_size` must be an integer, and is a string",
                  "reason": "wrong_type"
                }
              ],
              "request_id": "r-1",
              "retryable": false,
              "status": 422,
              "title": "The request is not valid",
              "type": "urn:weir:problem:invalid-request"
            }"#]],
        );
    }

    #[test]
    fn malformed_body_is_refused_with_its_position() {
        check(
            "",
            expect![[r#"
            {
              "code": "empty_body",
              "detail": "the body is empty; JSON was expected",
              "request_id": "r-1",
              "retryable": false,
              "status": 400,
              "title": "The body is empty",
              "type": "urn:weir:problem:empty-body"
            }"#]],
        );
        check(
            "{\"text\": \"ten\n",
            expect![[r#"
            {
              "code": "malformed_json",
              "column": 0,
              "detail": "the body is not JSON: control character (\\u0000-\\u001F) found while parsing a string at line 2, column 0",
              "line": 2,
              "request_id": "r-1",
              "retryable": false,
              "status": 400,
              "title": "The body is not JSON",
              "type": "urn:weir:problem:malformed-json"
            }"#]],
        );
        check(
            "[]",
            expect![[r#"
            {
              "code": "not_an_object",
              "detail": "the body is an array; a JSON object was expected",
              "request_id": "r-1",
              "retryable": false,
              "status": 400,
              "title": "The body is not an object",
              "type": "urn:weir:problem:not-an-object"
            }"#]],
        );
        check(
            r#"{"text":"ten points","text":"ten points"}"#,
            expect![[r#"
            {
              "code": "duplicate_key",
              "column": 27,
              "detail": "the key `text` appears twice, the second time at line 1, column 27",
              "line": 1,
              "request_id": "r-1",
              "retryable": false,
              "status": 400,
              "title": "A key appears twice",
              "type": "urn:weir:problem:duplicate-key"
            }"#]],
        );
        check(
            r#"{"text":"\ud83d ten points"}"#,
            expect![[r#"
                {
                  "code": "malformed_json",
                  "column": 16,
                  "detail": "a `\\u` escape at line 1, column 16 is half of a surrogate pair without the other half",
                  "line": 1,
                  "request_id": "r-1",
                  "retryable": false,
                  "status": 400,
                  "title": "The body is not JSON",
                  "type": "urn:weir:problem:malformed-json"
                }"#]],
        );
        check(
            &format!(r#"{{"text":{}"#, "[".repeat(200)),
            expect![[r#"
            {
              "code": "json_too_deep",
              "column": 135,
              "detail": "the body is nested too deeply at line 1, column 135",
              "line": 1,
              "request_id": "r-1",
              "retryable": false,
              "status": 400,
              "title": "The body is nested too deeply",
              "type": "urn:weir:problem:json-too-deep"
            }"#]],
        );
    }

    #[test]
    fn lengths_count_code_points() {
        let length = |text: &str| {
            let body = serde_json::json!({ "text": text }).to_string();
            ProcessRequest::from_json(body.as_bytes()).is_ok()
        };
        assert!(length(&"😀".repeat(10)) && !length(&"😀".repeat(9)));
        assert!(length(&"e\u{301}".repeat(5)) && !length(&"é".repeat(9)));
        assert!(length(&"日".repeat(5000)) && !length(&"日".repeat(5001)));
    }

    proptest! {
        #[test]
        fn size_outside_its_bounds_is_refused(size in -1000i64..1000) {
            let body = format!(r#"{{"text":"ten points","chunk_size":{size}}}"#);
            let read = ProcessRequest::from_json(body.as_bytes()).map(|request| i64::from(request.chunk_size));
            prop_assert_eq!(read.ok(), (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&size).then_some(size));
        }
    }
}
