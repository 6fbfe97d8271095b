//! Checks a JSON text in parts of bounded size, and removes the white space between its values.

use std::{borrow::Cow, collections::BTreeSet};

use weir_core::pipelines::Json;

use crate::json::{JsonError, duplicate_key, raw::string_bytes, tree::Node};

/// Maximum number of values, of any type and at any depth, in the JSON of a client or a step.
pub const VALUES_MAX: usize = 1 << 17;
/// Deepest nesting of such JSON. The outputs of steps nest it deeper, and stay below the 127 levels that serde_json reads.
pub const DEPTH_MAX: usize = weir_expression::OUTPUT_DEPTH_MAX;

/// Bytes after a value that an error can depend on.
const CONTEXT_BYTES: usize = 16;

/// A JSON text that is read in parts.
///
/// A string or a number is not divided: a part ends after the value that reaches its bound.
pub(super) struct Reader<'t> {
    text: &'t str,
    at: usize,
    expected: Expected,
    open: Vec<Open<'t>>,
    values_left: usize,
    compact: String,
}

/// What comes next in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Value,
    ItemOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

/// An array or object that has not ended.
enum Open<'t> {
    Array,
    /// The keys that were read.
    Object(BTreeSet<Cow<'t, str>>),
}

impl<'t> Reader<'t> {
    pub(super) fn new(body: &'t [u8]) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(body).map_err(|error| JsonError::NotUtf8 { at: error.valid_up_to() })?;
        if text.trim_start_matches([' ', '\t', '\r', '\n']).is_empty() {
            return Err(JsonError::Empty);
        }
        let compact = String::with_capacity(text.len());
        Ok(Self { text, at: 0, expected: Expected::Value, open: Vec::new(), values_left: VALUES_MAX, compact })
    }

    /// Reads about `bytes_max` bytes; returns whether more remain.
    pub(super) fn advance(&mut self, bytes_max: usize) -> Result<bool, JsonError> {
        let end = self.at.saturating_add(bytes_max);
        loop {
            self.skip_space(end);
            let is_whole = self.open.is_empty() && self.expected == Expected::CommaOrEnd;
            let Some(byte) = self.peek() else {
                return if is_whole { Ok(false) } else { Err(self.syntax_error(0)) };
            };
            if self.at >= end {
                return Ok(true);
            }
            if is_whole {
                return Err(self.syntax_error(0));
            }
            self.handle(byte)?;
        }
    }

    /// The text without white space between its values, after the last part.
    pub(super) fn into_json(self) -> Json {
        Json::from_checked(self.compact)
    }

    fn handle(&mut self, byte: u8) -> Result<(), JsonError> {
        use Expected::{Colon, CommaOrEnd, ItemOrEnd, Key, KeyOrEnd, Value};
        match (self.expected, byte) {
            (ItemOrEnd | CommaOrEnd, b']') if self.is_in_array() => self.end(),
            (KeyOrEnd | CommaOrEnd, b'}') if !self.is_in_array() && !self.open.is_empty() => self.end(),
            (CommaOrEnd, b',') => {
                let next = if self.is_in_array() { Value } else { Key };
                self.copy(1, next);
            }
            (Key | KeyOrEnd, b'"') => self.key()?,
            (Colon, b':') => self.copy(1, Value),
            (Value | ItemOrEnd, _) => {
                let Some(left) = self.values_left.checked_sub(1) else {
                    return Err(self.error_here("too many values"));
                };
                self.values_left = left;
                match byte {
                    b'[' => self.begin(Open::Array, ItemOrEnd)?,
                    b'{' => self.begin(Open::Object(BTreeSet::new()), KeyOrEnd)?,
                    _ => self.scalar()?,
                }
            }
            _ => return Err(self.syntax_error(1)),
        }
        Ok(())
    }

    fn is_in_array(&self) -> bool {
        matches!(self.open.last(), Some(Open::Array))
    }

    fn begin(&mut self, open: Open<'t>, expected: Expected) -> Result<(), JsonError> {
        self.open.push(open);
        if self.open.len() > DEPTH_MAX {
            let (line, column) = self.position();
            return Err(JsonError::TooDeep { line, column: column + 1 });
        }
        self.copy(1, expected);
        Ok(())
    }

    fn end(&mut self) {
        self.open.pop();
        self.copy(1, Expected::CommaOrEnd);
    }

    /// Copies the next bytes.
    fn copy(&mut self, bytes: usize, expected: Expected) {
        self.compact.push_str(&self.text[self.at..self.at + bytes]);
        self.at += bytes;
        self.expected = expected;
    }

    /// Reads a key.
    fn key(&mut self) -> Result<(), JsonError> {
        let length = self.scalar_bytes();
        let key = match Node::read(&self.text.as_bytes()[self.at..self.at + length], 1) {
            Ok(Node::Text(key)) => key,
            _ => return Err(self.syntax_error(length)),
        };
        self.copy(length, Expected::Colon);
        if let Some(Open::Object(keys)) = self.open.last_mut()
            && let Some(key) = keys.replace(key)
        {
            self.skip_space(usize::MAX);
            let (line, column) = self.position();
            return Err(duplicate_key(&key, line, column));
        }
        Ok(())
    }

    /// Reads a string, a number, a boolean or null.
    fn scalar(&mut self) -> Result<(), JsonError> {
        let length = self.scalar_bytes();
        if Node::read(&self.text.as_bytes()[self.at..self.at + length], 1).is_err() {
            return Err(self.syntax_error(length));
        }
        self.copy(length, Expected::CommaOrEnd);
        Ok(())
    }

    /// The length of the scalar that begins here, if it is one.
    fn scalar_bytes(&self) -> usize {
        let rest = &self.text.as_bytes()[self.at..];
        match rest.first() {
            Some(b'"') => string_bytes(rest).unwrap_or(rest.len()),
            _ => rest.iter().position(|byte| b",]} \t\r\n".contains(byte)).unwrap_or(rest.len()),
        }
    }

    /// The error of the next `bytes` bytes: that of the same bytes after a short text with the same state.
    fn syntax_error(&self, bytes: usize) -> JsonError {
        let state = match (self.expected, self.is_in_array()) {
            (Expected::Value, _) if self.open.is_empty() => "",
            (Expected::Value, true) => "[0,",
            (Expected::Value, false) => "{\"\":",
            (Expected::ItemOrEnd, _) => "[",
            (Expected::Key, _) => "{\"\":0,",
            (Expected::KeyOrEnd, _) => "{",
            (Expected::Colon, _) => "{\"\" ",
            (Expected::CommaOrEnd, _) if self.open.is_empty() => "0 ",
            (Expected::CommaOrEnd, true) => "[0 ",
            (Expected::CommaOrEnd, false) => "{\"\":0 ",
        };
        let end = self.text.ceil_char_boundary(self.at.saturating_add(bytes + CONTEXT_BYTES).min(self.text.len()));
        let text = format!("{state}{}", &self.text[self.at..end]);
        match Node::read(text.as_bytes(), usize::MAX) {
            Ok(_) => self.error_here("wrong syntax"),
            Err(error) => {
                let (line, column) = self.position();
                let column_of_text = column as isize - state.len() as isize;
                error.moved(line - 1, column_of_text)
            }
        }
    }

    fn error_here(&self, reason: &str) -> JsonError {
        let (line, column) = self.position();
        JsonError::Malformed { reason: reason.to_owned(), line, column }
    }

    /// The line, from 1, and the number of bytes that were read of it.
    fn position(&self) -> (usize, usize) {
        let before = &self.text.as_bytes()[..self.at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        (line, self.at - line_start)
    }

    fn skip_space(&mut self, end: usize) {
        while self.at < end
            && let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek()
        {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::tree::Node;

    fn read(text: &str, part: usize) -> Result<String, JsonError> {
        let mut reader = Reader::new(text.as_bytes())?;
        let mut at = 0;
        while reader.advance(part)? {
            // A part is longer than its bound by less than a scalar, and the scalars here are short.
            assert!((at + part..at + part + 64).contains(&reader.at), "from {at} to {}", reader.at);
            at = reader.at;
        }
        Ok(reader.into_json().as_str().to_owned())
    }

    /// Compares with the reader of the whole text, apart from the bound of the depth.
    fn check(text: &str, part: usize) {
        let got = read(text, part);
        match (Node::read(text.as_bytes(), VALUES_MAX), &got) {
            (_, Err(JsonError::TooDeep { .. })) => {}
            (Ok(_), Ok(compact)) => {
                let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
                assert_eq!(value(compact), value(text), "{text}");
            }
            (Err(want), Err(got)) => assert_eq!(*got, want, "{text}"),
            (want, got) => panic!("{text}: {got:?} instead of {want:?}"),
        }
    }

    #[test]
    fn error_is_that_of_the_whole_text() {
        for text in [
            "",
            " ",
            "x",
            "nul",
            "nulll",
            "tru",
            "01",
            "1e999",
            "-",
            "1 2",
            "1,",
            "]",
            "}",
            ",",
            ":",
            "[",
            "[ ",
            "[1",
            "[1 ",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1x]",
            "[1[2]]",
            "[}",
            "[1}",
            "[]]",
            "[1]\n x",
            "[\"a\"\"b\"]",
            "[\"a\" x",
            "[truex]",
            "[1,\n\n  2,\n x]",
            "{",
            "{ ",
            "{]",
            "{,}",
            "{1:2}",
            "{\"a\"",
            "{\"a\"}",
            "{\"a\" 1}",
            "{\"a\":",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{\"a\":1 \"b\"",
            "{\"a\":1]",
            "{\"a\"\n:\n1,\n\"a\" :2}",
            "{\"a\":1,\"\\u0061\":2}",
            "{\"a\\\":1}",
            "\"a",
            "\"a\\",
            "\"a\n\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\udc00\"",
            "[\n\"a\",\n\"\t\"]",
            "\u{feff}1",
            "[\u{e9}]",
            "[1\u{e9}",
            "{\"a\":\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}",
        ] {
            for part in [1, 3, usize::MAX] {
                check(text, part);
            }
        }
        let text = format!("[{}1]", "1,".repeat(VALUES_MAX));
        check(&text, 1000);
        let nested = |depth: usize| format!("\n{}{}", "[".repeat(depth), "]".repeat(depth));
        let want = JsonError::TooDeep { line: 2, column: DEPTH_MAX + 1 };
        for depth in [DEPTH_MAX + 1, 1000] {
            assert_eq!(read(&nested(depth), 7), Err(want.clone()));
        }
    }

    proptest! {
        #[test]
        fn text_in_parts_is_read_as_the_whole(
            tokens in prop::collection::vec(
                prop::sample::select(vec![
                    "[", "]", "{", "}", ",", ":", " ", "\n", "1", "-2.5e1", "null", "true", "\"a\"", "\"\\u00e9\"", "\"b\":", "é", "\\", "\"",
                ]),
                0..24,
            ),
            part in 1usize..20,
        ) {
            check(&tokens.concat(), part);
        }

        #[test]
        fn valid_text_with_a_fault_is_read_as_the_whole(
            items in prop::collection::btree_map("[a-d\\\\\"é]{0,3}", prop::collection::vec(any::<f64>(), 0..4), 0..5),
            cut in any::<prop::sample::Index>(),
            byte in "[\\[\\]{},:\" \n1a\\\\]?",
            part in 1usize..20,
        ) {
            let text = serde_json::to_string_pretty(&items).unwrap();
            check(&text, part);
            let cut = text.floor_char_boundary(cut.index(text.len() + 1));
            check(&format!("{}{byte}{}", &text[..cut], &text[cut..]), part);
            check(&text[..cut], part);
        }
    }
}
