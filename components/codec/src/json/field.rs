//! What is wrong with the fields of a body.

use serde::Serialize;
use weir_core::nearest::suggestion;

use super::{JsonError, with_article};

/// Maximum number of errors in a response. What a client sends in a few bytes must not make an answer of megabytes.
pub const ERRORS_MAX: usize = 32;

/// Why a body is not a request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// It cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// It can be read and its fields are wrong. All of them are listed, but answers show [`ERRORS_MAX`] and say that there are more;
    /// readers stop when they have found one more than that.
    #[error("{}", summary(.0))]
    Invalid(Vec<FieldError>),
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FieldError {
    /// The field; one of an item includes its index, as `inputs[3].text`.
    pub field: Box<str>,
    /// What is wrong: a constant for programs.
    pub reason: FieldReason,
    /// What is wrong: a sentence.
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
    /// The type that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<&'static str>,
    /// The type that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub got: Option<&'static str>,
}

/// The ways in which a field can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum FieldReason {
    /// It is required and absent.
    Missing,
    /// It has another type.
    WrongType,
    /// It is too short.
    TooShort,
    /// It is too long.
    TooLong,
    /// It lies outside its bounds.
    OutOfRange,
    /// It contains U+0000.
    ContainsNul,
    /// There is no such field, or not here.
    Unknown,
    /// It is none of the values that it may have.
    NotAllowed,
}

impl FieldError {
    /// A field and its error; `message` names the field.
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

/// There is no such field; the one that was likely meant, and those that there are.
pub(crate) fn unknown(field: impl Into<Box<str>>, known: &[&str]) -> FieldError {
    let field = field.into();
    let shown: String = field.chars().filter(|c| !c.is_control()).take(64).collect();
    let message = match known {
        [] => format!("`{shown}` is not known here"),
        known => {
            // Of `parameters.top_k` the last part is the name.
            let name = shown.rsplit_once('.').map_or(shown.as_str(), |(_, name)| name);
            let meant = suggestion(name, known);
            format!("`{shown}` is not known here{meant}; there are {}", known.join(", "))
        }
    };
    FieldError::new(shown, FieldReason::Unknown, message)
}

/// What a text must be that is none of the names that it may be.
pub(crate) fn one_of(text: &str, names: &[&str]) -> String {
    format!("must be one of {}{}", names.join(", "), suggestion(text, names))
}

/// What was read, if there was no mistake; else at most one mistake more than an answer shows.
pub(crate) fn finish<T>(request: T, mut errors: Vec<FieldError>) -> Result<T, RequestError> {
    if errors.is_empty() {
        return Ok(request);
    }
    // One more than is shown says that there are more.
    errors.truncate(ERRORS_MAX + 1);
    Err(RequestError::Invalid(errors))
}
