//! Texts of the errors of generated bindings, which have only a name in Rust.

use std::fmt::Debug;

/// Longest text, in bytes.
const BYTES_MAX: usize = 256;

/// The name of a variant as words, with the text that it carries: `ConnectionRefused` is "connection refused".
pub(crate) fn in_words(error: &impl Debug) -> String {
    let written = format!("{error:?}");
    let (name, rest) =
        written.split_at(written.find(|c: char| !c.is_ascii_alphanumeric() && c != ':').unwrap_or(written.len()));
    let name = name.rsplit("::").next().unwrap_or(name);
    let mut words = String::new();
    for (at, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && at > 0 {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    let text = rest.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')).map(|(text, _)| text);
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        words += ": ";
        words += text;
    }
    words.truncate(words.floor_char_boundary(BYTES_MAX));
    words
}
