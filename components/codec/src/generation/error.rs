//! Errors in the form of each API.

use serde::Serialize;
use serde_json::{Value, json};

use super::event::Failed;
use crate::{
    http::problem::{Problem, ProblemDetails},
    json::to_vec,
};

/// The body of an error of OpenAI's APIs.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OpenAiError {
    /// The error.
    pub error: OpenAiErrorBody,
}

/// The details of an error of OpenAI's APIs.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OpenAiErrorBody {
    /// What went wrong.
    pub message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The invalid field.
    pub param: Option<String>,
    /// Machine-readable code.
    pub code: Option<String>,
}

/// The status of a problem in the APIs for generation: every invalid request is 400, whether it can be parsed or not.
fn status(problem: &Problem) -> u16 {
    match (problem.status, problem.code) {
        (422, _) | (500, "invalid_input" | "too_long") => 400,
        (500, "unknown_model") => 404,
        (status, _) => status,
    }
}

fn openai_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 => "timeout_error",
        429 => "rate_limit_error",
        status if status < 500 => "invalid_request_error",
        _ => "server_error",
    }
}

/// The codes that clients of OpenAI's APIs compare.
fn openai_code(code: &str) -> &str {
    match code {
        "too_long" => "context_length_exceeded",
        "unknown_model" => "model_not_found",
        "throttled" | "rate_limited" => "rate_limit_exceeded",
        other => other,
    }
}

/// The first invalid field.
fn field(problem: &Problem) -> Option<String> {
    match &problem.more {
        ProblemDetails::Fields(fields) => fields.first().map(|error| error.field.clone().into_string()),
        _ => None,
    }
}

/// The status and the body of a problem in OpenAI's APIs.
pub fn openai(problem: &Problem) -> (u16, Vec<u8>) {
    let status = status(problem);
    let error = OpenAiErrorBody {
        message: problem.detail.clone(),
        kind: openai_kind(status),
        param: field(problem),
        code: Some(openai_code(problem.code).to_owned()),
    };
    (status, to_vec(&OpenAiError { error }))
}

/// An error within a stream of OpenAI's APIs.
pub(crate) fn openai_of(failed: &Failed) -> OpenAiError {
    let error = OpenAiErrorBody {
        message: failed.message.clone(),
        kind: openai_kind(failed.status),
        param: None,
        code: Some(openai_code(&failed.code).to_owned()),
    };
    OpenAiError { error }
}

fn anthropic_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        status if status < 500 => "invalid_request_error",
        _ => "api_error",
    }
}

/// The status and the body of a problem in Anthropic's API.
pub(crate) fn anthropic(problem: &Problem) -> (u16, Vec<u8>) {
    let status = status(problem);
    // Anthropic's clients recognize an overload by the status 529.
    let response_status = if status == 503 { 529 } else { status };
    (response_status, to_vec(&anthropic_value(anthropic_kind(status), &problem.detail)))
}

/// An error within a stream of Anthropic's API.
pub(crate) fn anthropic_of(failed: &Failed) -> Value {
    anthropic_value(anthropic_kind(failed.status), &failed.message)
}

fn anthropic_value(kind: &str, message: &str) -> Value {
    json!({ "type": "error", "error": { "type": kind, "message": message } })
}

fn google_status(status: u16) -> &'static str {
    match status {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        499 => "CANCELLED",
        501 => "UNIMPLEMENTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        status if status < 500 => "FAILED_PRECONDITION",
        _ => "INTERNAL",
    }
}

/// The status and the body of a problem in Gemini's API.
pub(crate) fn google(problem: &Problem) -> (u16, Vec<u8>) {
    let status = status(problem);
    (status, to_vec(&google_value(status, &problem.detail)))
}

/// An error within a stream of Gemini's API.
pub(crate) fn google_of(failed: &Failed) -> Value {
    google_value(failed.status, &failed.message)
}

fn google_value(status: u16, message: &str) -> Value {
    json!({ "error": { "code": status, "message": message, "status": google_status(status) } })
}

/// A problem as plain JSON, for clients that display the message.
pub(crate) fn plain_json(problem: &Problem) -> Vec<u8> {
    to_vec(&json!({ "error": problem.detail, "code": problem.code }))
}
