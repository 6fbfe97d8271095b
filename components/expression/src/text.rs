//! Reads and writes values as JSON text in parts of bounded size.
//!
//! A scalar is not divided: a part ends after the value that reaches its bound.

use serde_json::{Map, Value, map};

use super::{
    bounds::{Bounds, OUTPUT_DEPTH_MAX},
    error::EvaluationError,
};

/// Deepest nesting of a text that is read, the same as that of serde_json.
const DEPTH_MAX: usize = 127;

/// A JSON text that is read in parts.
pub(super) struct Reader<'t> {
    text: &'t str,
    at: usize,
    expected: Expected,
    open: Vec<Open>,
    value: Value,
}

/// What comes next in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Value,
    ItemOrEnd,
    Key,
    KeyOrEnd,
    CommaOrEnd,
}

/// An array or object that has not ended.
enum Open {
    Array(Vec<Value>),
    /// The members, and the key of the current one.
    Object(Map<String, Value>, String),
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0, expected: Expected::Value, open: Vec::new(), value: Value::Null }
    }

    /// Reads about `bytes_max` bytes; returns whether more remain.
    pub(super) fn advance(&mut self, bytes_max: usize) -> Result<bool, EvaluationError> {
        let end = self.at.saturating_add(bytes_max);
        loop {
            self.skip_space();
            let is_whole = self.open.is_empty() && self.expected == Expected::CommaOrEnd;
            let Some(byte) = self.peek() else {
                return if is_whole { Ok(false) } else { Err(EvaluationError::Input) };
            };
            if is_whole {
                return Err(EvaluationError::Input);
            }
            if self.at >= end {
                return Ok(true);
            }
            self.handle(byte)?;
        }
    }

    /// The value, after the last part.
    pub(super) fn into_value(self) -> Value {
        self.value
    }

    fn handle(&mut self, byte: u8) -> Result<(), EvaluationError> {
        use Expected::{CommaOrEnd, ItemOrEnd, Key, KeyOrEnd, Value as Item};
        match (self.expected, byte) {
            (Item | ItemOrEnd, b'[' | b'{') if self.open.len() >= DEPTH_MAX => return Err(EvaluationError::Input),
            (Item | ItemOrEnd, b'[') => self.begin(Open::Array(Vec::new()), ItemOrEnd),
            (Item | ItemOrEnd, b'{') => self.begin(Open::Object(Map::new(), String::new()), KeyOrEnd),
            (ItemOrEnd | CommaOrEnd, b']') | (KeyOrEnd | CommaOrEnd, b'}') => self.end(byte)?,
            (CommaOrEnd, b',') => {
                self.at += 1;
                self.expected = if matches!(self.open.last(), Some(Open::Array(_))) { Item } else { Key };
            }
            (Key | KeyOrEnd, b'"') => {
                let name = self.scalar()?;
                self.skip_space();
                let (Value::String(name), Some(b':'), Some(Open::Object(_, key))) =
                    (name, self.peek(), self.open.last_mut())
                else {
                    return Err(EvaluationError::Input);
                };
                *key = name;
                self.at += 1;
                self.expected = Item;
            }
            (Item | ItemOrEnd, _) => {
                let value = self.scalar()?;
                self.push(value);
            }
            _ => return Err(EvaluationError::Input),
        }
        Ok(())
    }

    fn begin(&mut self, open: Open, expected: Expected) {
        self.at += 1;
        self.open.push(open);
        self.expected = expected;
    }

    fn end(&mut self, bracket: u8) -> Result<(), EvaluationError> {
        let value = match (self.open.pop(), bracket) {
            (Some(Open::Array(items)), b']') => Value::Array(items),
            (Some(Open::Object(members, _)), b'}') => Value::Object(members),
            _ => return Err(EvaluationError::Input),
        };
        self.at += 1;
        self.push(value);
        Ok(())
    }

    fn push(&mut self, value: Value) {
        match self.open.last_mut() {
            None => self.value = value,
            Some(Open::Array(items)) => items.push(value),
            Some(Open::Object(members, key)) => {
                members.insert(std::mem::take(key), value);
            }
        }
        self.expected = Expected::CommaOrEnd;
    }

    /// Reads a string, a number, a boolean or null.
    fn scalar(&mut self) -> Result<Value, EvaluationError> {
        let rest = &self.text[self.at..];
        let length = match rest.strip_prefix('"') {
            Some(content) => 2 + string_end(content.as_bytes()).ok_or(EvaluationError::Input)?,
            None => rest.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(rest.len()),
        };
        let value = serde_json::from_str(&rest[..length]).map_err(|_| EvaluationError::Input)?;
        self.at += length;
        Ok(value)
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

/// The position of the quote that ends a string.
fn string_end(content: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += content.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if content[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// A value that is written in parts.
pub(super) struct Writer<'v> {
    text: Vec<u8>,
    bytes_max: usize,
    depth_max: usize,
    next: Option<&'v Value>,
    open: Vec<Rest<'v>>,
}

/// The items or members of an open array or object that are not written.
enum Rest<'v> {
    Array(std::slice::Iter<'v, Value>),
    Object(map::Iter<'v>),
}

impl<'v> Writer<'v> {
    /// Writes a result within its bounds.
    pub(super) fn new(value: &'v Value, bounds: Bounds) -> Self {
        Self {
            text: Vec::new(),
            bytes_max: bounds.output_bytes_max,
            depth_max: OUTPUT_DEPTH_MAX,
            next: Some(value),
            open: Vec::new(),
        }
    }

    /// Writes a value whose bounds were checked.
    pub(super) fn unbounded(value: &'v Value) -> Self {
        Self { bytes_max: usize::MAX, depth_max: usize::MAX, ..Self::new(value, Bounds::default()) }
    }

    /// Writes about `bytes_max` bytes; returns whether more remain.
    pub(super) fn advance(&mut self, bytes_max: usize) -> Result<bool, EvaluationError> {
        let end = self.text.len().saturating_add(bytes_max);
        loop {
            if let Some(value) = self.next.take() {
                self.begin(value)?;
            } else if !self.continue_open()? {
                return Ok(false);
            }
            if self.text.len() >= end {
                return Ok(true);
            }
        }
    }

    /// The text, after the last part.
    pub(super) fn into_text(self) -> String {
        String::from_utf8(self.text).expect("serde_json writes UTF-8")
    }

    fn begin(&mut self, value: &'v Value) -> Result<(), EvaluationError> {
        let rest = match value {
            Value::Array(items) => Rest::Array(items.iter()),
            Value::Object(members) => Rest::Object(members.iter()),
            Value::String(text) => return self.string(text),
            scalar => {
                serde_json::to_writer(&mut self.text, scalar).map_err(|_| EvaluationError::Input)?;
                return self.check(0);
            }
        };
        if self.open.len() >= self.depth_max {
            return Err(EvaluationError::OutputDepth);
        }
        self.text.push(if matches!(rest, Rest::Array(_)) { b'[' } else { b'{' });
        self.open.push(rest);
        self.check(0)
    }

    /// Writes the next part of the innermost open value; false if none is open.
    fn continue_open(&mut self) -> Result<bool, EvaluationError> {
        let (key, value, bracket) = match self.open.last_mut() {
            None => return Ok(false),
            Some(Rest::Array(items)) => (None, items.next(), b']'),
            Some(Rest::Object(members)) => match members.next() {
                Some((key, value)) => (Some(key), Some(value), b'}'),
                None => (None, None, b'}'),
            },
        };
        self.next = value;
        match value {
            None => {
                self.text.push(bracket);
                self.open.pop();
            }
            Some(_) if !matches!(self.text.last(), Some(b'[' | b'{')) => self.text.push(b','),
            Some(_) => {}
        }
        if let Some(key) = key {
            self.string(key)?;
            self.text.push(b':');
        }
        self.check(0)?;
        Ok(true)
    }

    fn string(&mut self, text: &str) -> Result<(), EvaluationError> {
        self.check(text.len() + 2)?;
        serde_json::to_writer(&mut self.text, text).map_err(|_| EvaluationError::Input)?;
        self.check(0)
    }

    /// Checks the length with more bytes that follow.
    fn check(&self, more: usize) -> Result<(), EvaluationError> {
        match self.text.len() + more <= self.bytes_max {
            true => Ok(()),
            false => Err(EvaluationError::OutputBytes(self.bytes_max)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, part: usize) -> Result<Value, EvaluationError> {
        let mut reader = Reader::new(text);
        let mut parts = 1;
        while reader.advance(part)? {
            parts += 1;
        }
        // A part is longer than its bound by less than a scalar, and the scalars here are short.
        assert!(parts * (part + 64) >= text.len(), "{parts} parts of {} bytes", text.len());
        Ok(reader.into_value())
    }

    fn write(value: &Value, bounds: Bounds, part: usize) -> Result<String, EvaluationError> {
        let mut writer = Writer::new(value, bounds);
        while writer.advance(part)? {}
        Ok(writer.into_text())
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,6}|[\"\\\\\n\u{1}a,\\]}]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[a-c\"\\\\é]{0,2}", inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn text_is_read_as_serde_json_reads_it() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let texts = [
            "",
            " ",
            "null",
            " [ 1 , 2 ] ",
            "{\"a\" : {\"b\":[]}}",
            "{\"a\":1,\"a\":2}",
            "[1,]",
            "[,1]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "[1 2]",
            "[}",
            "{]",
            "1 2",
            "[]]",
            "\"a",
            "\"a\\",
            "\"\\u12\"",
            "\"\\ud800\"",
            "nul",
            "nulll",
            "01",
            "1e999",
            "-",
            "[1[2]]",
            "{1:2}",
            "[\"a\"\"b\"]",
            "\u{feff}1",
            "\"\n\"",
        ];
        for text in texts.map(str::to_owned).into_iter().chain([nested(127), nested(128)]) {
            let want = serde_json::from_str::<Value>(&text).map_err(|_| EvaluationError::Input);
            assert_eq!(read(&text, 1), want, "{text}");
        }
    }

    #[test]
    fn written_text_has_its_bounds() {
        let value: Value = serde_json::from_str("[\"abc\",{\"k\":[1]}]").unwrap();
        let whole = value.to_string();
        for bytes_max in 0..whole.len() + 2 {
            let bounds = Bounds { output_bytes_max: bytes_max, ..Bounds::default() };
            let want =
                if bytes_max < whole.len() { Err(EvaluationError::OutputBytes(bytes_max)) } else { Ok(whole.clone()) };
            assert_eq!(write(&value, bounds, 3), want);
        }
    }

    proptest! {
        #[test]
        fn values_are_read_and_written_in_any_parts(value in json(), part in 1usize..40, cut in any::<prop::sample::Index>()) {
            let text = value.to_string();
            prop_assert_eq!(read(&text, part), Ok(value.clone()));
            prop_assert_eq!(write(&value, Bounds::default(), part), Ok(text.clone()));
            // A part of a text is read or refused as serde_json does it.
            let cut = text.floor_char_boundary(cut.index(text.len() + 1));
            for text in [&text[..cut], &text[cut..]] {
                let want = serde_json::from_str::<Value>(text).map_err(|_| EvaluationError::Input);
                prop_assert_eq!(read(text, part), want);
            }
        }
    }
}
