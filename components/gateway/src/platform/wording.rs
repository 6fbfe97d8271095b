//! Errors of generated bindings as text: the bindings give them a Rust name and no message.

use std::fmt::Debug;

/// The name of a variant as words, with the text that it carries: `ConnectionRefused` is "connection refused".
pub(crate) fn in_words(error: &impl Debug) -> String {
    let written = format!("{error:?}");
    let (name, rest) = match written.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, ':' | '_')) {
        Some(end) => written.split_at(end),
        None => (written.as_str(), ""),
    };
    let name = name.rsplit("::").next().unwrap_or(name);
    let mut words = String::with_capacity(name.len() + 8);
    for (at, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && at > 0 {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    let text = rest.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')).map(|(text, _)| text);
    match text.filter(|text| !text.is_empty()) {
        Some(text) => format!("{words}: {text}"),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[allow(dead_code)]
    enum Generated {
        ConnectionRefused,
        InternalError(Option<String>),
    }

    #[test]
    fn variant_is_written_as_words_with_its_text() {
        assert_eq!(in_words(&Generated::ConnectionRefused), "connection refused");
        assert_eq!(in_words(&Generated::InternalError(None)), "internal error");
        assert_eq!(in_words(&Generated::InternalError(Some("it broke".to_owned()))), "internal error: it broke");
    }
}
