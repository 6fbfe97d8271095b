//! Bounded, strict readers of JSON. Their errors have a reason and a path.
//!
//! Stricter than `serde_json::Value`: an object with a duplicate key is refused, since two parties could read different values for it.
//! Nesting is bounded.
//!
//! - [`tree`]: any value as a tree; `members`: an object, member by member; `raw`: a member as JSON text.
//! - [`field`]: errors of the fields of a body.

pub mod field;
pub(crate) mod members;
pub(crate) mod raw;
pub mod tree;

use serde::{Serialize, de};
use thiserror::Error;
use weir_core::wording::json_types;

/// Why a body is not a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JsonError {
    /// The body is empty.
    #[error("the body is empty; JSON was expected")]
    Empty,
    /// The body is not UTF-8.
    #[error("the body is not UTF-8: byte {at} does not fit")]
    NotUtf8 {
        /// Index of the first byte that is not UTF-8.
        at: usize,
    },
    /// The body is not JSON.
    #[error("the body is not JSON: {reason} at line {line}, column {column}")]
    Malformed {
        /// The reason of the parser.
        reason: String,
        /// The line, from 1.
        line: usize,
        /// The column, from 1, in bytes; 0 for the line end before the line.
        column: usize,
    },
    /// A string has an escape of an unpaired surrogate, which is not a character.
    #[error("a `\\u` escape at line {line}, column {column} is half of a surrogate pair without the other half")]
    LoneSurrogate {
        /// The line, from 1.
        line: usize,
        /// The column, from 1, in bytes; 0 for the line end before the line.
        column: usize,
    },
    /// The JSON is nested deeper than 127 levels.
    #[error("the body is nested too deeply at line {line}, column {column}")]
    TooDeep {
        /// The line, from 1.
        line: usize,
        /// The column, from 1, in bytes; 0 for the line end before the line.
        column: usize,
    },
    /// An object has a key twice.
    #[error("the key `{key}` appears twice, the second time at line {line}, column {column}")]
    DuplicateKey {
        /// The key, shortened.
        key: String,
        /// The line, from 1.
        line: usize,
        /// The column, from 1, in bytes; 0 for the line end before the line.
        column: usize,
    },
    /// The JSON is not an object.
    #[error("the body is {}; a JSON object was expected", with_article(.got))]
    NotAnObject {
        /// The type of the value.
        got: &'static str,
    },
}

/// The name of a type with its article, for messages.
pub(crate) fn with_article(name: &str) -> String {
    match name {
        "null" => name.to_owned(),
        _ if name.starts_with(['a', 'i', 'o']) => format!("an {name}"),
        _ => format!("a {name}"),
    }
}

/// The prefix of the message for a duplicate key: an error of `serde_json` carries only text.
const DUPLICATE: &str = "duplicate key ";
/// Longest key that a message repeats, in code points.
const KEY_CODE_POINTS_MAX: usize = 64;

pub(crate) fn explain(error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let position = format!(" at line {line} column {column}");
    let reason = message.strip_suffix(&position).unwrap_or(&message);
    if let Some(key) = reason.strip_prefix(DUPLICATE) {
        return JsonError::DuplicateKey { key: key.to_owned(), line, column };
    }
    match reason {
        "recursion limit exceeded" => JsonError::TooDeep { line, column },
        // The parser has read the first surrogate and expects the second.
        "unexpected end of hex escape" | "lone leading surrogate in hex escape" => {
            JsonError::LoneSurrogate { line, column }
        }
        _ => JsonError::Malformed { reason: json_types(reason), line, column },
    }
}

pub(crate) fn duplicate<E: de::Error>(key: &str) -> E {
    let key: String = key.chars().take(KEY_CODE_POINTS_MAX).collect();
    E::custom(format_args!("{DUPLICATE}{key}"))
}

/// The error of a key that appears twice.
pub(crate) fn duplicate_key(key: &str, line: usize, column: usize) -> JsonError {
    JsonError::DuplicateKey { key: key.chars().take(KEY_CODE_POINTS_MAX).collect(), line, column }
}

impl JsonError {
    /// The error of a text that begins after `lines` lines of a longer one, and its first line at `column`.
    pub(crate) fn moved(mut self, lines: usize, column: isize) -> Self {
        if let Self::Malformed { line, column: own, .. }
        | Self::LoneSurrogate { line, column: own }
        | Self::TooDeep { line, column: own }
        | Self::DuplicateKey { line, column: own, .. } = &mut self
        {
            if *line == 1 {
                *own = own.saturating_add_signed(column);
            }
            *line += lines;
        }
        self
    }
}

/// Serializes a wire type as JSON on one line.
pub(crate) fn to_vec(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a wire type has string keys and serializes")
}
