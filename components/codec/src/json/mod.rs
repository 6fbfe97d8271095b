//! A bounded reader of one JSON object: which of its fields have which shapes, or what is wrong and where.
//!
//! Stricter than `serde_json::Value`: an object that names a key twice is refused, since parties that read different
//! ones of the two would act on different requests. Nesting is bounded, and what is not kept is not allocated.

pub(crate) mod nearest;
pub(crate) mod raw;
pub mod tree;

use std::{collections::BTreeMap, fmt};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
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

/// A JSON value as far as a request needs it.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number, also when written `200.0` or `2e2`: JSON Schema calls these integers too.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// A string.
    String(String),
    /// An array; its items are checked and dropped.
    Array,
    /// An object; its members are checked and dropped.
    Object,
}

impl Shape {
    /// What it is, in the words of JSON Schema.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Integer(_) => "integer",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array => "array",
            Self::Object => "object",
        }
    }
}

/// The name of a type in a sentence.
pub(crate) fn with_article(name: &str) -> String {
    match name {
        "null" => name.to_owned(),
        _ if name.starts_with(['a', 'i', 'o']) => format!("an {name}"),
        _ => format!("a {name}"),
    }
}

/// The fields of an object by name.
pub type Fields = BTreeMap<String, Shape>;

/// Reads one JSON object.
pub fn read_object(body: &[u8]) -> Result<Fields, JsonError> {
    let text = std::str::from_utf8(body).map_err(|error| JsonError::NotUtf8 { at: error.valid_up_to() })?;
    if text.trim_matches([' ', '\t', '\r', '\n']).is_empty() {
        return Err(JsonError::Empty);
    }
    match serde_json::from_str::<Top>(text) {
        Ok(Top::Fields(fields)) => Ok(fields),
        Ok(Top::Other(got)) => Err(JsonError::NotAnObject { got }),
        Err(error) => Err(explain(&error)),
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

enum Top {
    Fields(Fields),
    Other(&'static str),
}

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TopVisitor)
    }
}

struct TopVisitor;

impl<'de> Visitor<'de> for TopVisitor {
    type Value = Top;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Top, A::Error> {
        let mut fields = Fields::new();
        while let Some(key) = map.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(duplicate(&key));
            }
            let value = map.next_value()?;
            fields.insert(key, value);
        }
        Ok(Top::Fields(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Top, A::Error> {
        ShapeVisitor.visit_seq(seq).map(|shape| Top::Other(shape.name()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Top, E> {
        Ok(Top::Other(Shape::Null.name()))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Top, E> {
        Ok(Top::Other(Shape::Bool(value).name()))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Top, E> {
        Ok(Top::Other("number"))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Top, E> {
        Ok(Top::Other("number"))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Top, E> {
        Ok(Top::Other("number"))
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Top, E> {
        Ok(Top::Other("string"))
    }
}

pub(crate) fn duplicate<E: de::Error>(key: &str) -> E {
    let key: String = key.chars().take(KEY_CODE_POINTS_MAX).collect();
    E::custom(format_args!("{DUPLICATE}{key}"))
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Shape, E> {
        Ok(Shape::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Shape, E> {
        Ok(Shape::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Shape, E> {
        Ok(i64::try_from(value).map_or(Shape::Number(value as f64), Shape::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Shape, E> {
        // Up to 2^53 every integer has an exact f64 of its own.
        let whole = value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0;
        Ok(if whole { Shape::Integer(value as i64) } else { Shape::Number(value) })
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Shape, E> {
        Ok(Shape::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Shape, E> {
        Ok(Shape::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        while seq.next_element::<Shape>()?.is_some() {}
        Ok(Shape::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut keys = std::collections::BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.contains(&key) {
                return Err(duplicate(&key));
            }
            map.next_value::<Shape>()?;
            keys.insert(key);
        }
        Ok(Shape::Object)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(body: &[u8], want: Expect) {
        want.assert_eq(&match read_object(body) {
            Ok(fields) => format!("{fields:?}"),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn shapes() {
        check(
            br#"{"a":null,"b":true,"c":-3,"d":1.5,"e":2e2,"f":"x\n\ud83d\ude00","g":[1,{}],"h":{"i":1}}"#,
            expect![[
                r#"{"a": Null, "b": Bool(true), "c": Integer(-3), "d": Number(1.5), "e": Integer(200), "f": String("x\n😀"), "g": Array, "h": Object}"#
            ]],
        );
        check(b" { } ", expect!["{}"]);
        check(
            br#"{"n":1e300,"m":18446744073709551615}"#,
            expect![[r#"{"m": Number(1.8446744073709552e19), "n": Number(1e300)}"#]],
        );
    }

    #[test]
    fn what_is_wrong_and_where() {
        check(b"", expect!["the body is empty; a JSON object was expected"]);
        check(b" \r\n\t", expect!["the body is empty; a JSON object was expected"]);
        check(b"\xef\xbb\xbf{}", expect!["the body is not JSON: expected value at line 1, column 1"]);
        check(b"{\"a\":\"\xff\"}", expect!["the body is not UTF-8: byte 6 does not fit"]);
        check(b"{\n \"a\": tru }", expect!["the body is not JSON: expected ident at line 2, column 10"]);
        check(b"{\"a\":1", expect!["the body is not JSON: EOF while parsing an object at line 1, column 6"]);
        check(b"{\"a\":1}}", expect!["the body is not JSON: trailing characters at line 1, column 8"]);
        check(b"{\"a\":1,}", expect!["the body is not JSON: trailing comma at line 1, column 8"]);
        check(b"{'a':1}", expect!["the body is not JSON: key must be a string at line 1, column 2"]);
        check(
            b"{\"a\":\"\x00\"}",
            expect![[
                r#"the body is not JSON: control character (\u0000-\u001F) found while parsing a string at line 1, column 7"#
            ]],
        );
        check(b"{\"a\":1e999}", expect!["the body is not JSON: number out of range at line 1, column 10"]);
        check(
            br#"{"a":"\ud800 x"}"#,
            expect![[r#"a `\u` escape at line 1, column 13 is half of a surrogate pair without the other half"#]],
        );
        check(
            br#"{"a":"\udc00"}"#,
            expect![[r#"a `\u` escape at line 1, column 12 is half of a surrogate pair without the other half"#]],
        );
        check(
            br#"{"a":"\ud800\ud800"}"#,
            expect![[r#"a `\u` escape at line 1, column 18 is half of a surrogate pair without the other half"#]],
        );
        check(br#"{"a":"\uZZZZ"}"#, expect!["the body is not JSON: invalid escape at line 1, column 12"]);
    }

    #[test]
    fn keys_are_unique_at_every_depth() {
        check(br#"{"a":1,"a":2}"#, expect!["the key `a` appears twice, the second time at line 1, column 10"]);
        check(
            br#"{"a":{"b":[{"c":1,"c":2}]}}"#,
            expect!["the key `c` appears twice, the second time at line 1, column 21"],
        );
        check(
            format!(r#"{{"{0}":1,"{0}":2}}"#, "k".repeat(1000)).as_bytes(),
            expect![
                "the key `kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk` appears twice, the second time at line 1, column 2008"
            ],
        );
    }

    #[test]
    fn other_values() {
        check(b"null", expect!["the body is null; a JSON object was expected"]);
        check(b"true", expect!["the body is a boolean; a JSON object was expected"]);
        check(b"-1", expect!["the body is a number; a JSON object was expected"]);
        check(b"1", expect!["the body is a number; a JSON object was expected"]);
        check(b"1.5", expect!["the body is a number; a JSON object was expected"]);
        check(b"\"text\"", expect!["the body is a string; a JSON object was expected"]);
        check(b"[{}]", expect!["the body is an array; a JSON object was expected"]);
    }

    #[test]
    fn depth_is_bounded() {
        check("[".repeat(100_000).as_bytes(), expect!["the body is nested too deeply at line 1, column 128"]);
        check(
            format!("{{\"x\":{}", "[".repeat(100_000)).as_bytes(),
            expect!["the body is nested too deeply at line 1, column 132"],
        );
        check(
            format!("{{\"x\":{}", "{\"x\":".repeat(100_000)).as_bytes(),
            expect!["the body is nested too deeply at line 1, column 636"],
        );
    }

    proptest! {
        #[test]
        fn no_bytes_can_hurt(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_object(&body);
        }

        #[test]
        fn every_string_reads_back(text in any::<String>()) {
            let body = serde_json::to_vec(&serde_json::json!({ "text": text })).expect("a string");
            let fields = read_object(&body).expect("an object");
            prop_assert_eq!(fields.get("text"), Some(&Shape::String(text)));
        }
    }
}
