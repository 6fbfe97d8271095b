//! Bounded, exact readers of JSON whose errors have the reason and the path.
//!
//! Stricter than `serde_json::Value`: an object that names a key twice is refused, since parties that read different
//! ones of the two would act on different requests. Nesting is bounded.
//!
//! - [`tree`]: any value as a tree; `members`: an object member by member; `raw`: a member as it was sent.
//! - [`field`]: errors of the fields of a body.

pub mod field;
pub(crate) mod members;
pub(crate) mod raw;
pub mod tree;

use serde::{Serialize, de};
use thiserror::Error;

/// Why a body is not a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JsonError {
    /// There is nothing in it.
    #[error("the body is empty; a JSON object was expected")]
    Empty,
    /// It is not text.
    #[error("the body is not UTF-8: byte {at} does not fit")]
    NotUtf8 {
        /// Index of the first byte that does not fit.
        at: usize,
    },
    /// It is not JSON.
    #[error("the body is not JSON: {reason} at line {line}, column {column}")]
    Malformed {
        /// What the parser says.
        reason: String,
        /// From 1.
        line: usize,
        /// From 1, in bytes; 0 for the end of line before.
        column: usize,
    },
    /// A string escapes half of a surrogate pair, which is no character.
    #[error("a `\\u` escape at line {line}, column {column} is half of a surrogate pair without the other half")]
    LoneSurrogate {
        /// From 1.
        line: usize,
        /// From 1, in bytes; 0 for the end of line before.
        column: usize,
    },
    /// It is JSON nested deeper than 127 levels.
    #[error("the body is nested too deeply at line {line}, column {column}")]
    TooDeep {
        /// From 1.
        line: usize,
        /// From 1, in bytes; 0 for the end of line before.
        column: usize,
    },
    /// An object names a key twice.
    #[error("the key `{key}` appears twice, the second time at line {line}, column {column}")]
    DuplicateKey {
        /// The key, shortened.
        key: String,
        /// From 1.
        line: usize,
        /// From 1, in bytes; 0 for the end of line before.
        column: usize,
    },
    /// It is JSON, and not an object.
    #[error("the body is {}; a JSON object was expected", with_article(.got))]
    NotAnObject {
        /// What it is.
        got: &'static str,
    },
}

/// The name of a type in a sentence.
pub(crate) fn with_article(name: &str) -> String {
    match name {
        "null" => name.to_owned(),
        _ if name.starts_with(['a', 'i', 'o']) => format!("an {name}"),
        _ => format!("a {name}"),
    }
}

/// Marks the message of a duplicate key on its way through `serde_json`'s error, which carries only text.
const DUPLICATE: &str = "duplicate key ";
/// Longest key that a message repeats, in code points.
const KEY_CODE_POINTS_MAX: usize = 64;

pub(crate) fn explain(error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let place = format!(" at line {line} column {column}");
    let reason = message.strip_suffix(&place).unwrap_or(&message);
    if let Some(key) = reason.strip_prefix(DUPLICATE) {
        return JsonError::DuplicateKey { key: key.to_owned(), line, column };
    }
    match reason {
        "recursion limit exceeded" => JsonError::TooDeep { line, column },
        // The parser has found the first half and looks for the second.
        "unexpected end of hex escape" | "lone leading surrogate in hex escape" => {
            JsonError::LoneSurrogate { line, column }
        }
        _ => JsonError::Malformed { reason: reason.to_owned(), line, column },
    }
}

pub(crate) fn duplicate<E: de::Error>(key: &str) -> E {
    let key: String = key.chars().take(KEY_CODE_POINTS_MAX).collect();
    E::custom(format_args!("{DUPLICATE}{key}"))
}

/// A wire type as JSON on one line.
pub(crate) fn to_vec(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("keys are strings and nothing in a wire type refuses to be serialized")
}
