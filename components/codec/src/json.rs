//! A bounded reader of one JSON object: which of its fields have which shapes, or what is wrong and where.
//!
//! Stricter than `serde_json::Value`: an object that names a key twice is refused, since parties that read different
//! ones of the two would act on different requests. Nesting is bounded, and what is not kept is not allocated.

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
        /// From 1, in bytes.
        column: usize,
    },
    /// It is JSON nested deeper than 127 levels.
    #[error("the body is nested too deeply at line {line}, column {column}")]
    TooDeep {
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
    /// An object names a key twice.
    #[error("the key `{key}` appears twice, the second time at line {line}, column {column}")]
    DuplicateKey {
        /// The key, shortened.
        key: String,
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
    /// It is JSON, and not an object.
    #[error("the body is {got}; a JSON object was expected")]
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
    /// What it is, for a message.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
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

fn explain(error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let place = format!(" at line {line} column {column}");
    let reason = message.strip_suffix(&place).unwrap_or(&message);
    if let Some(key) = reason.strip_prefix(DUPLICATE) {
        return JsonError::DuplicateKey { key: key.to_owned(), line, column };
    }
    if reason == "recursion limit exceeded" {
        return JsonError::TooDeep { line, column };
    }
    JsonError::Malformed { reason: reason.to_owned(), line, column }
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
        Ok(Top::Other("a number"))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Top, E> {
        Ok(Top::Other("a number"))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Top, E> {
        Ok(Top::Other("a number"))
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Top, E> {
        Ok(Top::Other("a string"))
    }
}

fn duplicate<E: de::Error>(key: &str) -> E {
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
