//! Errors of the fields of a body.

use serde::Serialize;
use weir_core::nearest::suggestion;

use super::{JsonError, with_article};

/// Maximum number of errors in a response: a small invalid body must not cause a response of megabytes.
pub const ERRORS_MAX: usize = 32;

/// Why a body is not a valid request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// The body is not JSON, or not an object.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The body has invalid fields. Responses show at most [`ERRORS_MAX`] errors and note that there are more; readers may stop after one
    /// more than that.
    #[error("{}", summary(.0))]
    Invalid(Vec<FieldError>),
}

/// The error of a field.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FieldError {
    /// The path of the field, with the index of an item, such as `inputs[3].text`.
    pub field: Box<str>,
    /// Machine-readable reason.
    pub reason: FieldReason,
    /// Human-readable text.
    pub message: Box<str>,
    /// Smallest value or length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// Largest value or length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// The value or length that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<i64>,
    /// The expected type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<&'static str>,
    /// The type that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub got: Option<&'static str>,
}

/// The reason of a field error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum FieldReason {
    /// The field is required and absent.
    Missing,
    /// The value has the wrong type.
    WrongType,
    /// The value is too short.
    TooShort,
    /// The value is too long.
    TooLong,
    /// The value is out of its bounds.
    OutOfRange,
    /// The text contains U+0000.
    ContainsNul,
    /// There is no such field here.
    Unknown,
    /// The value is not one of the allowed values.
    NotAllowed,
}

impl FieldError {
    /// The error of a field; `message` names the field.
    pub fn new(field: impl Into<Box<str>>, reason: FieldReason, message: String) -> Self {
        let field = field.into();
        Self { field, reason, message: message.into(), min: None, max: None, actual: None, expected: None, got: None }
    }

    pub(crate) fn wrong_type(field: impl Into<Box<str>>, expected: &'static str, got: &'static str) -> Self {
        let field = field.into();
        let message = format!("`{field}` must be {}, and is {}", with_article(expected), with_article(got));
        Self { expected: Some(expected), got: Some(got), ..Self::new(field, FieldReason::WrongType, message) }
    }

    pub(crate) fn bounded(
        field: impl Into<Box<str>>,
        reason: FieldReason,
        what: &str,
        bounds: (i64, i64),
        actual: i64,
    ) -> Self {
        let field = field.into();
        let (min, max) = bounds;
        let message = format!("`{field}` must {what} {min} to {max}, and is {actual}");
        Self { min: Some(min), max: Some(max), actual: Some(actual), ..Self::new(field, reason, message) }
    }
}

fn summary(errors: &[FieldError]) -> String {
    let mut messages: Vec<&str> = errors.iter().take(ERRORS_MAX).map(|error| &*error.message).collect();
    let more = format!("there are more errors than these {ERRORS_MAX}");
    if errors.len() > ERRORS_MAX {
        messages.push(&more);
    }
    messages.join("; ")
}

/// The error of an unknown field, with the nearest known name and the list of known names.
pub(crate) fn unknown(field: impl Into<Box<str>>, known: &[&str]) -> FieldError {
    let field = field.into();
    let excerpt: String = field.chars().filter(|c| !c.is_control()).take(64).collect();
    let message = match known {
        [] => format!("`{excerpt}` is not known here"),
        known => {
            // Of `parameters.top_k` the last part is the name.
            let name = excerpt.rsplit_once('.').map_or(excerpt.as_str(), |(_, name)| name);
            let nearest = suggestion(name, known);
            format!("`{excerpt}` is not known here{nearest}; there are {}", known.join(", "))
        }
    };
    FieldError::new(excerpt, FieldReason::Unknown, message)
}

/// The message for a text that is not one of `names`.
pub(crate) fn one_of(text: &str, names: &[&str]) -> String {
    format!("must be one of {}{}", names.join(", "), suggestion(text, names))
}

/// Returns `request` if there are no errors; else the errors, at most one more than a response shows.
pub(crate) fn finish<T>(request: T, mut errors: Vec<FieldError>) -> Result<T, RequestError> {
    if errors.is_empty() {
        return Ok(request);
    }
    // The additional error marks the list as truncated.
    errors.truncate(ERRORS_MAX + 1);
    Err(RequestError::Invalid(errors))
}
