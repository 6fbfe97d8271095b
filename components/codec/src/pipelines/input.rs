//! The inputs of steps on texts.
//!
//! | JSON | texts |
//! |---|---|
//! | `"…"`, or an object with a string `text` | one |
//! | `["…", …]`, or an object with such an array `chunks` or `texts` | one per item |
//!
//! So the output of a `chunk` step can be the input of a `sentiment` step. Other members of an object are ignored.

use std::borrow::Cow;

use thiserror::Error;
use weir_core::pipelines::Json;

use super::text::VALUES_MAX;
use crate::json::tree::Node;

/// Maximum number of texts of one step.
pub const TEXTS_MAX: usize = 4096;

/// Why a value is not an input of such a step.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InputError {
    /// The value has none of the accepted forms.
    #[error("the input must be a text, an array of texts, or an object with `text`, `chunks` or `texts`")]
    NoText,
    /// There are too many texts.
    #[error("the input has {0} texts, and a step takes {TEXTS_MAX}")]
    TooMany(usize),
}

/// The texts of an input, in order; there may be none.
pub fn texts(input: &Json) -> Result<Vec<String>, InputError> {
    let node = Node::read(input.as_str().as_bytes(), VALUES_MAX).map_err(|_| InputError::NoText)?;
    let node = match node {
        Node::Object(members) => {
            let position = |name: &str| members.iter().position(|(member, _)| member == name);
            let at = ["text", "chunks", "texts"].into_iter().find_map(position).ok_or(InputError::NoText)?;
            members.into_iter().nth(at).map(|(_, node)| node).ok_or(InputError::NoText)?
        }
        other => other,
    };
    let items = match node {
        Node::Text(text) => return Ok(vec![text.into_owned()]),
        Node::Array(items) => items,
        _ => return Err(InputError::NoText),
    };
    if items.len() > TEXTS_MAX {
        return Err(InputError::TooMany(items.len()));
    }
    let text = |node: Node<'_>| match node {
        Node::Text(text) => Ok(Cow::into_owned(text)),
        _ => Err(InputError::NoText),
    };
    items.into_iter().map(text).collect()
}

/// The text of an input. Several texts, such as the chunks of one, are concatenated.
pub fn text(input: &Json) -> Result<String, InputError> {
    texts(input).map(|texts| texts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<String>, InputError> {
        texts(&Json::from_checked(json))
    }

    #[test]
    fn texts_are_read_in_every_form() {
        for (json, want) in [
            (r#""a\n""#, &["a\n"] as &[&str]),
            (r#"{"id":1,"text":"a"}"#, &["a"]),
            (r#"["a","b"]"#, &["a", "b"]),
            (r#"{"chunks":["a","","c"]}"#, &["a", "", "c"]),
            (r#"{"texts":[]}"#, &[]),
            (r#"{"chunks":["no"],"text":"yes"}"#, &["yes"]),
        ] {
            assert_eq!(read(json).unwrap(), want, "{json}");
        }
        assert_eq!(text(&Json::from_checked(r#"{"chunks":["a ","b"]}"#)).unwrap(), "a b");
    }

    #[test]
    fn inputs_without_a_text_are_refused() {
        for json in ["null", "1", "{}", r#"{"text":1}"#, r#"["a",1]"#, r#"{"chunks":[["a"]]}"#, "", "{"] {
            assert_eq!(read(json), Err(InputError::NoText), "{json}");
        }
        let many = format!("[{}\"\"]", "\"\",".repeat(TEXTS_MAX));
        assert_eq!(read(&many), Err(InputError::TooMany(TEXTS_MAX + 1)));
    }
}
