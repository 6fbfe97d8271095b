//! Escaping of users' text in a prompt. Control tokens are recognized in the rendered template, and a user's text must
//! not produce one. A mark is inserted into every name of a control token in a user's text, and after every beginning
//! of a name at its end, since the next text may continue it. The tokenizer removes the marks after it has looked for
//! control tokens.

use std::borrow::Cow;

/// A noncharacter, which Unicode reserves for internal use. It is removed from users' text.
const MARK: char = '\u{fdd0}';

/// Marks the names of control tokens in a text.
pub fn escape<'a>(text: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    let text = text.replace(MARK, "");
    let mut cuts: Vec<usize> = Vec::new();
    for name in names {
        let Some(first) = name.chars().next() else { continue };
        // Names may overlap, so every occurrence is marked.
        let overlapping = text.char_indices().filter(|(at, char)| *char == first && text[*at..].starts_with(name));
        cuts.extend(overlapping.map(|(at, _)| at + first.len_utf8()));
        let tails = name.char_indices().skip(1).map(|(at, _)| &name[..at]);
        if tails.clone().any(|tail| text.ends_with(tail)) {
            cuts.push(text.len());
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut escaped = String::with_capacity(text.len() + cuts.len() * MARK.len_utf8());
    let mut from = 0;
    for cut in cuts {
        escaped.push_str(&text[from..cut]);
        escaped.push(MARK);
        from = cut;
    }
    escaped.push_str(&text[from..]);
    escaped
}

/// The text without marks.
pub fn remove(text: &str) -> Cow<'_, str> {
    if text.contains(MARK) { Cow::Owned(text.replace(MARK, "")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 3] = ["<|im_end|>", "[INST]", "<<"];

    proptest! {
        /// No concatenation of escaped texts has the name of a control token.
        #[test]
        fn joined_texts_have_no_control_token(
            texts in prop::collection::vec("(<\\|im_end\\|>|<\\||im_|end\\|>|\\[INST|\\]|<|x| ){0,6}", 1..5),
        ) {
            let escaped: String = texts.iter().map(|text| escape(text, NAMES.iter().copied())).collect();
            for name in NAMES {
                prop_assert!(!escaped.contains(name), "{escaped:?} has {name}");
            }
            prop_assert_eq!(remove(&escaped), texts.concat());
        }
    }

    #[test]
    fn plain_text_is_unchanged() {
        assert_eq!(escape("a > b, [1]", NAMES.iter().copied()), "a > b, [1]");
    }
}
