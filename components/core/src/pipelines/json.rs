//! JSON values as text that this crate does not parse.

use std::{fmt, sync::Arc};

/// One JSON value as text, cheap to clone.
///
/// This crate does not parse it; it only joins such texts into objects. The creator must have checked that it is a
/// single value without line ends, as `weir-codec` does.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Arc<str>);

impl Json {
    /// A text that is known to be one JSON value on one line.
    pub fn from_checked(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// `null`
    pub fn null() -> Self {
        Self("null".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The length of the text in bytes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// An object of members whose names need no escape, in the order given.
    pub(super) fn object<'a>(members: impl IntoIterator<Item = (&'a str, &'a Json)>) -> Self {
        let mut text = String::from("{");
        for (name, value) in members {
            if text.len() > 1 {
                text.push(',');
            }
            text.push('"');
            text.push_str(name);
            text.push_str("\":");
            text.push_str(value.as_str());
        }
        text.push('}');
        Self(text.into())
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}
