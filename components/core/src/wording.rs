//! The forms of names, counts, types and dimensions in messages, instead of those of Rust, which are for developers.

use std::fmt::{self, Display, Write as _};

/// The most characters of a name that are shown.
const NAME_CHARS_MAX: usize = 64;

/// A name from a file or a guest in double quotes, with at most 64 characters, and control characters escaped as in JSON.
pub fn quoted(name: &(impl AsRef<str> + ?Sized)) -> impl Display {
    let name = name.as_ref();
    let end = name.char_indices().nth(NAME_CHARS_MAX).map(|(end, _)| end);
    fmt::from_fn(move |f| {
        f.write_char('"')?;
        for character in name[..end.unwrap_or(name.len())].chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                control if control.is_control() => write!(f, "\\u{:04x}", u32::from(control))?,
                character => f.write_char(character)?,
            }
        }
        f.write_char('"')?;
        if end.is_some() { f.write_char('…') } else { Ok(()) }
    })
}

/// Dimensions in brackets: `[2, 3]`.
pub fn listed<T: Display>(sizes: &[T]) -> impl Display {
    fmt::from_fn(move |f| {
        f.write_char('[')?;
        for (index, size) in sizes.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            size.fmt(f)?;
        }
        f.write_char(']')
    })
}

/// A number of things, with the noun in the singular or in the plural: `1 line`, `2 lines`.
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> impl Display {
    fmt::from_fn(move |f| write!(f, "{count} {}", plural_unless(count == N::from(1), noun)))
}

/// A noun, with the plural `s` unless there is one thing.
pub fn plural_unless(is_one: bool, noun: &str) -> impl Display {
    fmt::from_fn(move |f| write!(f, "{noun}{}", if is_one { "" } else { "s" }))
}

/// An error for those who may not know the machine: on one line, and with the last part of each path and URL alone.
pub fn without_paths(text: &str) -> String {
    let word = |word: &str| match word.rsplit_once('/') {
        Some((path, last)) => {
            let inner = path.trim_start_matches(['(', '[', '"', '\'', '`']);
            format!("{}{last}", &path[..path.len() - inner.len()])
        }
        None => word.to_owned(),
    };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// Expected types in messages of serde, and their names in JSON.
const EXPECTED: [(&str, &str); 24] = [
    ("u8", "a whole number from 0 to 255"),
    ("u16", "a whole number from 0 to 65535"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("u64", "a whole number of at least 0"),
    ("u128", "a whole number of at least 0"),
    ("usize", "a whole number of at least 0"),
    ("a nonzero u8", "a whole number from 1 to 255"),
    ("a nonzero u16", "a whole number from 1 to 65535"),
    ("a nonzero u32", "a whole number from 1 to 4294967295"),
    ("a nonzero u64", "a whole number of at least 1"),
    ("a nonzero usize", "a whole number of at least 1"),
    ("i8", "a whole number from -128 to 127"),
    ("i16", "a whole number from -32768 to 32767"),
    ("i32", "a whole number from -2147483648 to 2147483647"),
    ("i64", "a whole number"),
    ("isize", "a whole number"),
    ("f32", "a number"),
    ("f64", "a number"),
    ("a borrowed string", "a string"),
    ("a map", "an object"),
    ("a sequence", "an array"),
    ("unit", "null"),
    // A word that begins with t, f or n.
    ("ident", "`true`, `false` or `null`"),
    ("path string", "a path"),
];
/// Types of values in messages of serde, and their names in JSON.
const FOUND: [(&str, &str); 14] = [
    ("integer", "the number"),
    ("signed int", "the number"),
    ("unsigned int", "the number"),
    ("floating point", "the number"),
    ("float", "the number"),
    ("boolean", "the boolean"),
    ("bool", "the boolean"),
    ("sequence", "an array"),
    ("map", "an object"),
    ("unit value", "null"),
    ("unit", "null"),
    ("Option value", "null"),
    ("string", "the string"),
    ("null", "null"),
];

/// A message of serde with the names of types in JSON in place of those in Rust and in serde.
pub fn json_types(message: &str) -> String {
    let mut message = replaced_after(message, "expected ", &EXPECTED);
    for marker in ["invalid type: found ", "invalid value ", "invalid type: ", "invalid value: "] {
        message = replaced_after(&message, marker, &FOUND);
    }
    message = message.replace("EOF while parsing a list", "it ends in the middle of an array");
    message = message.replace("EOF while parsing", "it ends in the middle of");
    // The name of a type in Rust says nothing to a user.
    for kind in ["struct ", "tuple struct ", "enum ", "internally tagged enum ", "adjacently tagged enum "] {
        let marker = format!("expected {kind}");
        while let Some(at) = message.find(&marker) {
            let name = &message[at + marker.len()..];
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            let article = if kind == "tuple struct " { "an array" } else { "an object" };
            message.replace_range(at..at + marker.len() + end, &format!("expected {article}"));
        }
    }
    message
}

/// Replaces phrases that follow a marker and end with a word.
fn replaced_after(text: &str, marker: &str, phrases: &[(&str, &str)]) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(marker) {
        let (before, after) = rest.split_at(at + marker.len());
        replaced.push_str(before);
        rest = after;
        let is_end = |after: &str| !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let phrase = phrases.iter().find(|(phrase, _)| after.strip_prefix(phrase).is_some_and(is_end));
        if let Some((phrase, replacement)) = phrase {
            replaced.push_str(replacement);
            rest = &after[phrase.len()..];
        }
    }
    replaced.push_str(rest);
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_quoted_bounded_and_on_one_line() {
        let check = |name: &str, expected: &str| assert_eq!(quoted(name).to_string(), expected);
        check("input_ids", "\"input_ids\"");
        check("l'été 日本", "\"l'été 日本\"");
        check("a\"b\\c\n\u{1b}[31m", "\"a\\\"b\\\\c\\n\\u001b[31m\"");
        check(&"x".repeat(500), &format!("\"{}\"…", "x".repeat(64)));
    }

    #[test]
    fn paths_and_urls_are_reduced_to_their_last_part() {
        let check = |text: &str, expected: &str| assert_eq!(without_paths(text), expected);
        check(
            "its memory is too small for /srv/models/a/model.onnx: serve fewer",
            "its memory is too small for model.onnx: serve fewer",
        );
        check("no server at https://user:secret@host:80/v1/models", "no server at models");
        check("a file (\"/srv/a.gguf\")\nis damaged", "a file (\"a.gguf\") is damaged");
        check("./a and ../../b/, c\\d", "a and , c\\d");
        check("nothing of a path", "nothing of a path");
    }

    #[test]
    fn noun_after_one_is_in_the_singular() {
        let forms = [0_u32, 1, 2, 11].map(|count| counted(count, "line").to_string());
        assert_eq!(forms, ["0 lines", "1 line", "2 lines", "11 lines"]);
        assert_eq!(counted(1_usize, "record").to_string(), "1 record");
    }

    #[test]
    fn types_have_their_names_in_json() {
        for (message, expected) in [
            (
                "invalid type: found string \"many\", expected u32 (in FILE)",
                "invalid type: found the string \"many\", expected a whole number from 0 to 4294967295 (in FILE)",
            ),
            (
                "invalid type: sequence, expected a map at line 1 column 12",
                "invalid type: an array, expected an object at line 1 column 12",
            ),
            (
                "invalid value: integer `-1`, expected u8",
                "invalid value: the number `-1`, expected a whole number from 0 to 255",
            ),
            (
                "invalid value signed int `-1`, expected usize",
                "invalid value the number `-1`, expected a whole number of at least 0",
            ),
            (
                "invalid type: null, expected struct Config_2 with 3 elements",
                "invalid type: null, expected an object with 3 elements",
            ),
            (
                "invalid type: floating point `1.5`, expected i64",
                "invalid type: the number `1.5`, expected a whole number",
            ),
            ("invalid type: map, expected a boolean", "invalid type: an object, expected a boolean"),
            ("expected ident", "expected `true`, `false` or `null`"),
            ("EOF while parsing a string", "it ends in the middle of a string"),
            ("EOF while parsing a list at line 1", "it ends in the middle of an array at line 1"),
            ("expected `,` or `}`", "expected `,` or `}`"),
            ("expected u32x", "expected u32x"),
            ("", ""),
        ] {
            assert_eq!(json_types(message), expected);
        }
    }

    #[test]
    fn dimensions_are_in_brackets() {
        assert_eq!(listed(&[2_usize, 3]).to_string(), "[2, 3]");
        assert_eq!(listed::<u32>(&[]).to_string(), "[]");
    }
}
