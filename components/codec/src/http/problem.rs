//! Problem details for HTTP APIs (RFC 9457): the body of every error response before a stream starts.

use serde::Serialize;
use weir_core::{
    failure::{Failure, RETRY_AFTER_MS},
    inference::text_step::TextStep,
    nearest::suggestion,
    pipelines::StepFailure,
};

use crate::{
    inference::models::{self, Model, ModelState, states},
    json::{
        JsonError,
        field::{ERRORS_MAX, FieldError, RequestError},
        to_vec,
    },
    pipelines::process_event::step_name,
    transcripts::captions::EncodingError,
};

/// The `Content-Type` of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";
/// Longest text of a client that a message repeats, in code points.
const QUOTE_CODE_POINTS_MAX: usize = 200;

/// An error response.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// Machine-readable code; `type` is a URN with it.
    pub code: &'static str,
    /// Short description, the same for every problem with this code.
    pub title: &'static str,
    /// What went wrong this time.
    pub detail: String,
    /// The value of `Retry-After`, in milliseconds; `None` when a retry cannot succeed.
    pub retry_after_ms: Option<u32>,
    /// Further members and headers.
    pub more: ProblemDetails,
}

/// Further details of a problem.
#[derive(Debug, Clone, Default)]
pub enum ProblemDetails {
    /// No further details.
    #[default]
    None,
    /// The invalid fields.
    Fields(Vec<FieldError>),
    /// The position of the error in the body.
    Position {
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
    /// The line of the error in the body, from 1.
    Line(usize),
    /// The step that failed.
    Step(TextStep),
    /// All models, with whether each is ready.
    Models(Vec<Model>),
    /// The methods of the path, for `Allow`.
    Allow(&'static str),
    /// The available media types of the response.
    Available(&'static [&'static str]),
    /// The accepted media types of the body, for `Accept` (RFC 9110, section 15.5.16).
    Accepted(&'static [&'static str]),
    /// The accepted content codings of the body, for `Accept-Encoding`.
    Codings(&'static str),
}

/// The JSON of a problem.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Problem"))]
pub struct Wire<'a> {
    /// A URN that names the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short description, the same for every problem of this type.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time.
    pub detail: &'a str,
    /// Machine-readable code.
    pub code: &'static str,
    /// The id of the request, as in `X-Request-Id`.
    pub request_id: &'a str,
    /// True when the same request may succeed later.
    pub retryable: bool,
    /// The time until a retry, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
    /// The invalid fields, at most 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<&'a [FieldError]>,
    /// True when more fields are invalid than `errors` lists.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub errors_truncated: bool,
    /// The line of the error in the body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The byte of the error in the line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The step that failed: sentiment, summarization or entities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<&'static str>,
    /// The models and whether each is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<ModelState<'a>>>,
    /// The available media types of the response (406), or the accepted media types of the body (415).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<&'static [&'static str]>,
}

impl Problem {
    fn new(status: u16, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, title, detail: detail.into(), retry_after_ms: None, more: ProblemDetails::None }
    }

    /// 404.
    pub fn not_found(path: &str) -> Self {
        Self::new(404, "not_found", "Not found", format!("there is nothing at `{}`", quote(path)))
    }

    /// 404 for a name in a path, with the nearest of `known`, the names of this kind that the client may see.
    pub fn unknown_name(path: &str, name: &str, known: &[&str]) -> Self {
        let nearest = suggestion(name, known);
        Self::new(404, "not_found", "Not found", format!("there is nothing at `{}`{nearest}", quote(path)))
    }

    /// 405.
    pub fn method_not_allowed(method: &str, path: &str, allow: &'static str) -> Self {
        let detail = format!("`{}` takes {allow}, not {}", quote(path), quote(method));
        let problem = Self::new(405, "method_not_allowed", "Method not allowed", detail);
        Self { more: ProblemDetails::Allow(allow), ..problem }
    }

    /// 406.
    pub fn not_acceptable(available: &'static [&'static str]) -> Self {
        let detail = format!("the answer is available as {}", available.join(" or "));
        let problem = Self::new(406, "not_acceptable", "Not acceptable", detail);
        Self { more: ProblemDetails::Available(available), ..problem }
    }

    /// 408.
    pub fn body_timeout(timeout_ms: u64) -> Self {
        let detail = format!("the body did not arrive within {timeout_ms} ms");
        let problem = Self::new(408, "body_timeout", "The body came too slowly", detail);
        Self { retry_after_ms: Some(0), ..problem }
    }

    /// 413.
    pub fn body_too_large(bytes_max: u64) -> Self {
        let detail = format!("a body may have at most {bytes_max} bytes");
        Self::new(413, "body_too_large", "The body is too large", detail)
    }

    /// 415: the body has none of the accepted media types. `got` is its `Content-Type`; `None` when the header is absent.
    pub fn unsupported_media_type(got: Option<&str>, accepted: &'static [&'static str]) -> Self {
        let (last, others) = accepted.split_last().unwrap_or((&"", &[]));
        let others: String = others.iter().map(|name| format!("`{name}`, ")).collect();
        let list = match others.strip_suffix(", ") {
            Some(others) => format!("{others} or `{last}`"),
            None => format!("`{last}`"),
        };
        let detail = match got.filter(|got| !got.is_empty()) {
            Some(got) => format!("the body must be {list} in UTF-8, not `{}`", quote(got)),
            None => format!("the body must be {list} in UTF-8, and the request has no `Content-Type`"),
        };
        let problem = Self::new(415, "unsupported_media_type", "Unsupported media type", detail);
        Self { more: ProblemDetails::Accepted(accepted), ..problem }
    }

    /// 400: captions have an unsupported encoding.
    pub fn not_text(error: &EncodingError) -> Self {
        let problem = Self::new(400, "not_utf8", "The body is not UTF-8", format!("line {}: {error}", error.line));
        Self { more: ProblemDetails::Line(usize::try_from(error.line).unwrap_or(usize::MAX)), ..problem }
    }

    /// 415.
    pub fn unsupported_encoding(got: &str) -> Self {
        let detail = format!("the body must come without `Content-Encoding`, not as `{}`", quote(got));
        let problem = Self::new(415, "unsupported_content_encoding", "Unsupported content encoding", detail);
        Self { more: ProblemDetails::Codings("identity"), ..problem }
    }

    /// 501: the body has a transfer coding other than `chunked` (RFC 9112, section 6.1).
    pub fn unsupported_transfer_coding(got: &str) -> Self {
        let detail = format!("`Transfer-Encoding` must be `chunked` alone, not `{}`", quote(got));
        Self::new(501, "unsupported_transfer_coding", "Unsupported transfer coding", detail)
    }

    /// 400: the handshake of a WebSocket violates RFC 6455, section 4.2.1.
    pub fn invalid_handshake(what: &str) -> Self {
        Self::new(400, "invalid_handshake", "The WebSocket handshake is not valid", what)
    }

    /// 400: the connection ended before the body was complete.
    pub fn body_incomplete() -> Self {
        let detail = "the body ended before all of it had arrived";
        Self::new(400, "body_incomplete", "The body is incomplete", detail)
    }

    /// A refusal with a status, code and title of the caller. With `retry_after_ms` it is retryable.
    pub fn refused(
        status: u16,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        retry_after_ms: Option<u32>,
    ) -> Self {
        Self { retry_after_ms, ..Self::new(status, code, title, detail) }
    }

    /// 426: the path is a WebSocket, and the request has no upgrade.
    pub fn upgrade_required(path: &str) -> Self {
        let detail = format!("`{path}` is a WebSocket: ask for an upgrade, or POST lines of NDJSON");
        Self::new(426, "upgrade_required", "Upgrade required", &detail)
    }

    /// 501.
    pub fn not_implemented(what: &str) -> Self {
        Self::new(501, "not_implemented", "Not implemented", what)
    }

    /// 500.
    pub fn internal(detail: &str) -> Self {
        Self::new(500, "internal", "Internal error", detail)
    }

    /// 504.
    pub fn request_timeout(timeout_ms: u64) -> Self {
        Self::failed(None, &StepFailure::from(&Failure::RequestTimeout { timeout_ms }))
    }

    /// 503: not every model is ready. `models` is empty when the models did not report in time.
    pub fn not_ready(models: Vec<Model>) -> Self {
        let detail = models::not_ready(&models)
            .unwrap_or_else(|| "the models did not say in time whether they are ready".to_owned());
        let problem = Self::new(503, "not_ready", "Not ready", detail);
        Self { retry_after_ms: Some(1000), more: ProblemDetails::Models(models), ..problem }
    }

    /// 503: steps have no suitable model. Only a change of the configuration helps, so there is no `Retry-After`.
    pub fn steps_not_ready(unmet: &[String], models: Vec<Model>) -> Self {
        let problem = Self::new(503, "not_ready", "Not ready", format!("not ready: {}", unmet.join("; ")));
        Self { more: ProblemDetails::Models(models), ..problem }
    }

    /// 503: the channel store accepts no events.
    pub fn store_not_ready(detail: &str) -> Self {
        let problem = Self::new(503, "not_ready", "Not ready", format!("not ready: the channel store: {detail}"));
        Self { retry_after_ms: Some(1000), ..problem }
    }

    /// 429: the user has reached the bound of the channel store for one user.
    pub fn share_exceeded(retry_after_ms: u32) -> Self {
        let detail = "you have as much of the channel store as one user may have (events.user_percent_max): delete sessions that are \
                      not needed any more, close subscriptions, or wait until something has ended";
        Self::refused(429, "share_exceeded", "You have your share", detail, Some(retry_after_ms.max(1)))
    }

    /// 503: all users together have reached a bound of the channel store.
    pub fn store_full(retry_after_ms: u32) -> Self {
        let detail = "the channel store is full (events.state_bytes_max, events.channels_max)";
        Self::refused(503, "store_full", "The channel store is full", detail, Some(retry_after_ms.max(1)))
    }

    /// A step, or the whole request, failed before anything was sent. 503 when a retry may succeed (504 after a timeout), 502 when
    /// inference failed on this text, 500 when the configuration of this server is wrong.
    pub fn failed(step: Option<TextStep>, failure: &StepFailure) -> Self {
        let (status, code, title) = match &*failure.code {
            "request_timeout" => (504, "request_timeout", "The request took too long"),
            "overloaded" => (503, "overloaded", "The model is overloaded"),
            "throttled" => (429, "throttled", "Too many requests"),
            "circuit_open" => (503, "circuit_open", "The model has failed too often"),
            "model_unavailable" => (503, "model_unavailable", "The model cannot answer now"),
            "deadline_exceeded" => (503, "deadline_exceeded", "The text waited too long"),
            "engine_failed" => (502, "engine_failed", "Inference failed"),
            "unknown_model" => (500, "unknown_model", "No such model"),
            "invalid_input" => (500, "invalid_input", "The model refused its input"),
            "too_long" => (500, "too_long", "The model refused its input"),
            _ => (502, "inference_failed", "Inference failed"),
        };
        let detail = match step {
            Some(step) => format!("{}: {failure}", step_name(step)),
            None => failure.to_string(),
        };
        let more = step.map_or(ProblemDetails::None, ProblemDetails::Step);
        let retry_after_ms = failure.retryable.then(|| failure.retry_after_ms.unwrap_or(RETRY_AFTER_MS));
        Self { retry_after_ms, more, ..Self::new(status, code, title, detail) }
    }

    /// A text failed, and with it the request. As [`Self::failed`], but the client chose the model and the text: 404 for a model that is
    /// not served, 422 for a text that the model refuses.
    pub fn item(failure: &Failure) -> Self {
        let status = match failure {
            Failure::UnknownModel { .. } => Some(404),
            Failure::InvalidInput(_) | Failure::TooLong { .. } => Some(422),
            _ => None,
        };
        let problem = Self::failed(None, &StepFailure::from(failure));
        Self { status: status.unwrap_or(problem.status), ..problem }
    }

    /// The value of `Retry-After`, in seconds, rounded up.
    pub fn retry_after_s(&self) -> Option<u32> {
        self.retry_after_ms.map(|ms| ms.div_ceil(1000))
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> Option<&'static str> {
        match self.more {
            ProblemDetails::Allow(allow) => Some(allow),
            _ => None,
        }
    }

    /// The headers of the response, in addition to `Content-Type`.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        match self.more {
            ProblemDetails::Allow(allow) => headers.push(("allow", allow.to_owned())),
            ProblemDetails::Accepted(types) => headers.push(("accept", types.join(", "))),
            ProblemDetails::Codings(codings) => headers.push(("accept-encoding", codings.to_owned())),
            _ => {}
        }
        if let Some(seconds) = self.retry_after_s() {
            headers.push(("retry-after", seconds.to_string()));
        }
        headers
    }

    /// The response body.
    pub fn to_json(&self, request_id: &str) -> Vec<u8> {
        let mut wire = Wire {
            kind: format!("urn:weir:problem:{}", self.code.replace('_', "-")),
            title: self.title,
            status: self.status,
            detail: &self.detail,
            code: self.code,
            request_id,
            retryable: self.retry_after_ms.is_some(),
            retry_after_ms: self.retry_after_ms,
            errors: None,
            errors_truncated: false,
            line: None,
            column: None,
            step: None,
            models: None,
            available: None,
        };
        match &self.more {
            ProblemDetails::None | ProblemDetails::Allow(_) | ProblemDetails::Codings(_) => {}
            ProblemDetails::Fields(errors) => {
                wire.errors = Some(&errors[..errors.len().min(ERRORS_MAX)]);
                wire.errors_truncated = errors.len() > ERRORS_MAX;
            }
            ProblemDetails::Position { line, column } => (wire.line, wire.column) = (Some(*line), Some(*column)),
            ProblemDetails::Line(line) => wire.line = Some(*line),
            ProblemDetails::Step(step) => wire.step = Some(step_name(*step)),
            ProblemDetails::Models(models) => wire.models = Some(states(models)),
            ProblemDetails::Available(types) | ProblemDetails::Accepted(types) => wire.available = Some(types),
        }
        to_vec(&wire)
    }
}

impl From<RequestError> for Problem {
    /// 400 when the body cannot be parsed, 422 when it can and has invalid fields.
    fn from(error: RequestError) -> Self {
        let detail = error.to_string();
        let (code, title, more) = match error {
            RequestError::Invalid(errors) => {
                let problem = Self::new(422, "invalid_request", "The request is not valid", detail);
                return Self { more: ProblemDetails::Fields(errors), ..problem };
            }
            RequestError::Json(JsonError::Empty) => ("empty_body", "The body is empty", ProblemDetails::None),
            RequestError::Json(JsonError::NotUtf8 { .. }) => {
                ("not_utf8", "The body is not UTF-8", ProblemDetails::None)
            }
            RequestError::Json(
                JsonError::Malformed { line, column, .. } | JsonError::LoneSurrogate { line, column },
            ) => ("malformed_json", "The body is not JSON", ProblemDetails::Position { line, column }),
            RequestError::Json(JsonError::TooDeep { line, column }) => {
                ("json_too_deep", "The body is nested too deeply", ProblemDetails::Position { line, column })
            }
            RequestError::Json(JsonError::DuplicateKey { line, column, .. }) => {
                ("duplicate_key", "A key appears twice", ProblemDetails::Position { line, column })
            }
            RequestError::Json(JsonError::NotAnObject { .. }) => {
                ("not_an_object", "The body is not an object", ProblemDetails::None)
            }
        };
        Self { more, ..Self::new(400, code, title, detail) }
    }
}

/// A text of a client, shortened, without control characters.
fn quote(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(QUOTE_CODE_POINTS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(problem: &Problem, want: Expect) {
        let body = String::from_utf8(problem.to_json("r-1")).expect("UTF-8");
        let head = format!("{} allow={:?} retry-after={:?}", problem.status, problem.allow(), problem.retry_after_s());
        want.assert_eq(&format!("{head}\n{body}"));
    }

    #[test]
    fn routing_problems_have_their_statuses_and_headers() {
        check(
            &Problem::not_found("/a\u{1b}[31mb"),
            expect![[r#"
            404 allow=None retry-after=None
            {"type":"urn:weir:problem:not-found","title":"Not found","status":404,"detail":"there is nothing at `/a[31mb`","code":"not_found","request_id":"r-1","retryable":false}"#]],
        );
        check(
            &Problem::method_not_allowed("GET", "/process-stream", "POST, OPTIONS"),
            expect![[r#"
            405 allow=Some("POST, OPTIONS") retry-after=None
            {"type":"urn:weir:problem:method-not-allowed","title":"Method not allowed","status":405,"detail":"`/process-stream` takes POST, OPTIONS, not GET","code":"method_not_allowed","request_id":"r-1","retryable":false}"#]],
        );
        check(
            &Problem::not_acceptable(&["application/json"]),
            expect![[r#"
            406 allow=None retry-after=None
            {"type":"urn:weir:problem:not-acceptable","title":"Not acceptable","status":406,"detail":"the answer is available as application/json","code":"not_acceptable","request_id":"r-1","retryable":false,"available":["application/json"]}"#]],
        );
        check(
            &Problem::not_implemented("this server does not generate text"),
            expect![[r#"
            501 allow=None retry-after=None
            {"type":"urn:weir:problem:not-implemented","title":"Not implemented","status":501,"detail":"this server does not generate text","code":"not_implemented","request_id":"r-1","retryable":false}"#]],
        );
        check(
            &Problem::refused(429, "too_many_requests", "Too many requests", "slower", Some(1500)),
            expect![[r#"
            429 allow=None retry-after=Some(2)
            {"type":"urn:weir:problem:too-many-requests","title":"Too many requests","status":429,"detail":"slower","code":"too_many_requests","request_id":"r-1","retryable":true,"retry_after_ms":1500}"#]],
        );
        let long = Problem::not_found(&"é".repeat(1000)).detail;
        assert!(long.chars().count() < 250, "{long}");
    }

    #[test]
    fn body_problems_have_their_statuses_and_headers() {
        check(
            &Problem::body_timeout(30_000),
            expect![[r#"
            408 allow=None retry-after=Some(0)
            {"type":"urn:weir:problem:body-timeout","title":"The body came too slowly","status":408,"detail":"the body did not arrive within 30000 ms","code":"body_timeout","request_id":"r-1","retryable":true,"retry_after_ms":0}"#]],
        );
        check(
            &Problem::body_too_large(1_048_576),
            expect![[r#"
            413 allow=None retry-after=None
            {"type":"urn:weir:problem:body-too-large","title":"The body is too large","status":413,"detail":"a body may have at most 1048576 bytes","code":"body_too_large","request_id":"r-1","retryable":false}"#]],
        );
        check(
            &Problem::body_incomplete(),
            expect![[r#"
            400 allow=None retry-after=None
            {"type":"urn:weir:problem:body-incomplete","title":"The body is incomplete","status":400,"detail":"the body ended before all of it had arrived","code":"body_incomplete","request_id":"r-1","retryable":false}"#]],
        );
        check(
            &Problem::unsupported_media_type(Some("text/plain"), &["application/json"]),
            expect![[r#"
            415 allow=None retry-after=None
            {"type":"urn:weir:problem:unsupported-media-type","title":"Unsupported media type","status":415,"detail":"the body must be `application/json` in UTF-8, not `text/plain`","code":"unsupported_media_type","request_id":"r-1","retryable":false,"available":["application/json"]}"#]],
        );
        let several = Problem::unsupported_media_type(None, &["a/b", "c/d", "e/f"]);
        assert_eq!(
            several.detail,
            "the body must be `a/b`, `c/d` or `e/f` in UTF-8, and the request has no `Content-Type`"
        );
        assert_eq!(several.headers(), [("accept", "a/b, c/d, e/f".to_owned())]);
        assert_eq!(Problem::unsupported_encoding("gzip").headers(), [("accept-encoding", "identity".to_owned())]);
        check(
            &Problem::unsupported_encoding("gzip"),
            expect![[r#"
            415 allow=None retry-after=None
            {"type":"urn:weir:problem:unsupported-content-encoding","title":"Unsupported content encoding","status":415,"detail":"the body must come without `Content-Encoding`, not as `gzip`","code":"unsupported_content_encoding","request_id":"r-1","retryable":false}"#]],
        );
    }

    #[test]
    fn failure_of_a_step_has_a_status_by_its_code() {
        let step = Some(TextStep::Summarization);
        check(
            &Problem::failed(step, &StepFailure::from(&Failure::Overloaded { retry_after_ms: 1500 })),
            expect![[r#"
            503 allow=None retry-after=Some(2)
            {"type":"urn:weir:problem:overloaded","title":"The model is overloaded","status":503,"detail":"summarization: the model's queue is full; retry in 1500 ms","code":"overloaded","request_id":"r-1","retryable":true,"retry_after_ms":1500,"step":"summarization"}"#]],
        );
        check(
            &Problem::failed(step, &StepFailure::from(&Failure::Unavailable("it is loading".to_owned()))),
            expect![[r#"
            503 allow=None retry-after=Some(1)
            {"type":"urn:weir:problem:model-unavailable","title":"The model cannot answer now","status":503,"detail":"summarization: the model cannot answer now: it is loading","code":"model_unavailable","request_id":"r-1","retryable":true,"retry_after_ms":1000,"step":"summarization"}"#]],
        );
        check(
            &Problem::failed(step, &StepFailure::from(&Failure::DeadlineExceeded)),
            expect![[r#"
            503 allow=None retry-after=Some(1)
            {"type":"urn:weir:problem:deadline-exceeded","title":"The text waited too long","status":503,"detail":"summarization: the text waited too long for the model","code":"deadline_exceeded","request_id":"r-1","retryable":true,"retry_after_ms":1000,"step":"summarization"}"#]],
        );
        check(
            &Problem::failed(step, &StepFailure::from(&Failure::Engine("out of range".to_owned()))),
            expect![[r#"
            502 allow=None retry-after=None
            {"type":"urn:weir:problem:engine-failed","title":"Inference failed","status":502,"detail":"summarization: the engine failed on this text: out of range","code":"engine_failed","request_id":"r-1","retryable":false,"step":"summarization"}"#]],
        );
        check(
            &Problem::failed(step, &StepFailure::from(&Failure::Other("lost".to_owned()))),
            expect![[r#"
            502 allow=None retry-after=None
            {"type":"urn:weir:problem:inference-failed","title":"Inference failed","status":502,"detail":"summarization: lost","code":"inference_failed","request_id":"r-1","retryable":false,"step":"summarization"}"#]],
        );
        check(
            &Problem::failed(
                step,
                &StepFailure::from(&Failure::UnknownModel { name: "m".to_owned(), served: Vec::new() }),
            ),
            expect![[r#"
            500 allow=None retry-after=None
            {"type":"urn:weir:problem:unknown-model","title":"No such model","status":500,"detail":"summarization: no model named `m` is served","code":"unknown_model","request_id":"r-1","retryable":false,"step":"summarization"}"#]],
        );
        check(
            &Problem::failed(step, &StepFailure::from(&Failure::InvalidInput("no pair".to_owned()))),
            expect![[r#"
            500 allow=None retry-after=None
            {"type":"urn:weir:problem:invalid-input","title":"The model refused its input","status":500,"detail":"summarization: the model refused its input: no pair","code":"invalid_input","request_id":"r-1","retryable":false,"step":"summarization"}"#]],
        );
        check(
            &Problem::failed(step, &StepFailure::from(&Failure::TooLong { tokens: 600, tokens_max: 512 })),
            expect![[r#"
            500 allow=None retry-after=None
            {"type":"urn:weir:problem:too-long","title":"The model refused its input","status":500,"detail":"summarization: the text has at least 600 tokens and the model takes 512","code":"too_long","request_id":"r-1","retryable":false,"step":"summarization"}"#]],
        );
        check(
            &Problem::request_timeout(60_000),
            expect![[r#"
            504 allow=None retry-after=Some(1)
            {"type":"urn:weir:problem:request-timeout","title":"The request took too long","status":504,"detail":"the request was not finished within 60000 ms","code":"request_timeout","request_id":"r-1","retryable":true,"retry_after_ms":1000}"#]],
        );
        check(
            &Problem::internal("a setting"),
            expect![[r#"
            500 allow=None retry-after=None
            {"type":"urn:weir:problem:internal","title":"Internal error","status":500,"detail":"a setting","code":"internal","request_id":"r-1","retryable":false}"#]],
        );
    }

    #[test]
    fn readiness_lists_every_model() {
        let model = |name: &str, ready| Model {
            name: name.to_owned(),
            kind: "text-classification",
            labels: vec!["no".to_owned(), "yes".to_owned()],
            tokens_max: 512,
            ready,
            reason: None,
        };
        let models = vec![model("a", true), model("b", false)];
        check(
            &Problem::not_ready(models.clone()),
            expect![[r#"
            503 allow=None retry-after=Some(1)
            {"type":"urn:weir:problem:not-ready","title":"Not ready","status":503,"detail":"not ready: b","code":"not_ready","request_id":"r-1","retryable":true,"retry_after_ms":1000,"models":[{"name":"a","ready":true},{"name":"b","ready":false}]}"#]],
        );
        let broken = Model { reason: Some("its memory is too small".to_owned()), ..model("c", false) };
        check(
            &Problem::not_ready(vec![model("b", false), broken]),
            expect![[r#"
            503 allow=None retry-after=Some(1)
            {"type":"urn:weir:problem:not-ready","title":"Not ready","status":503,"detail":"not ready: b, c (its memory is too small)","code":"not_ready","request_id":"r-1","retryable":true,"retry_after_ms":1000,"models":[{"name":"b","ready":false},{"name":"c","ready":false,"reason":"its memory is too small"}]}"#]],
        );
        check(
            &Problem::not_ready(Vec::new()),
            expect![[r#"
            503 allow=None retry-after=Some(1)
            {"type":"urn:weir:problem:not-ready","title":"Not ready","status":503,"detail":"the models did not say in time whether they are ready","code":"not_ready","request_id":"r-1","retryable":true,"retry_after_ms":1000,"models":[]}"#]],
        );
        check(
            &Problem::steps_not_ready(&["steps.sentiment is `x`, which is not served".to_owned()], Vec::new()),
            expect![[r#"
            503 allow=None retry-after=None
            {"type":"urn:weir:problem:not-ready","title":"Not ready","status":503,"detail":"not ready: steps.sentiment is `x`, which is not served","code":"not_ready","request_id":"r-1","retryable":false,"models":[]}"#]],
        );
        let text = |body| String::from_utf8(body).expect("UTF-8");
        expect![[r#"{"status":"ready","models":[{"name":"a","ready":true}],"exhausted":[]}"#]]
            .assert_eq(&text(crate::inference::models::ready_json(&models[..1], &[])));
        expect![[r#"{"models":[{"name":"a","kind":"text-classification","labels":["no","yes"],"tokens_max":512,"ready":true},{"name":"b","kind":"text-classification","labels":["no","yes"],"tokens_max":512,"ready":false}],"object":"list","data":[{"id":"a","object":"model","created":0,"owned_by":"weir"},{"id":"b","object":"model","created":0,"owned_by":"weir"}]}"#]].assert_eq(&text(crate::inference::models::models_json(&models)));
    }
}
