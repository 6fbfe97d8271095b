//! JSON as a tree, read in one pass; strings without escapes are borrowed from the body.
//!
//! As strict as [`crate::json`]: duplicate keys are refused and nesting is bounded. The number of values is bounded too, since a tree can
//! be much larger than its body.

use std::{borrow::Cow, cell::Cell, fmt};

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};

use crate::json::{JsonError, duplicate, explain};

/// Number of members up to which keys are compared one by one; larger objects use a set.
const LINEAR_KEYS_MAX: usize = 16;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number, also when written `200.0` or `2e2`.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// A string.
    Text(Cow<'a, str>),
    /// An array.
    Array(Vec<Node<'a>>),
    /// An object; keys are unique and in the order of the body.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// Reads one value, made of at most `values_max` values.
    ///
    /// # Errors
    ///
    /// The body is not JSON, has too many values or a duplicate key, or is nested deeper than 127 levels.
    pub fn read(body: &'a [u8], values_max: usize) -> Result<Self, JsonError> {
        Self::read_with(body, values_max, usize::MAX)
    }

    fn read_with(body: &'a [u8], values_max: usize, depth_stored: usize) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(body).map_err(|error| JsonError::NotUtf8 { at: error.valid_up_to() })?;
        if text.trim_matches([' ', '\t', '\r', '\n']).is_empty() {
            return Err(JsonError::Empty);
        }
        let left = Cell::new(values_max);
        let mut deserializer = serde_json::Deserializer::from_str(text);
        Seed { left: &left, depth_stored }
            .deserialize(&mut deserializer)
            .and_then(|node| deserializer.end().map(|()| node))
            .map_err(|error| explain(&error))
    }

    /// Reads one value. The contents of the arrays and objects in it are checked and dropped; only the keys of an object are stored while it
    /// is read.
    ///
    /// # Errors
    ///
    /// The body is not JSON, has a duplicate key, or is nested deeper than 127 levels.
    pub(crate) fn read_shallow(body: &'a [u8]) -> Result<Self, JsonError> {
        Self::read_with(body, usize::MAX, 1)
    }

    /// Appends the value as JSON on one line.
    pub(crate) fn write(&self, out: &mut String) {
        let text = |value: &str| serde_json::Value::from(value).to_string();
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Self::Integer(number) => out.push_str(&number.to_string()),
            Self::Number(number) => out.push_str(&serde_json::Value::from(*number).to_string()),
            Self::Text(value) => out.push_str(&text(value)),
            Self::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (at, (key, member)) in members.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    out.push_str(&text(key));
                    out.push(':');
                    member.write(out);
                }
                out.push('}');
            }
        }
    }

    /// The name of its type in JSON Schema.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Integer(_) => "integer",
            Self::Number(_) => "number",
            Self::Text(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }
}

/// Reads a value and counts it against the bound.
#[derive(Clone, Copy)]
struct Seed<'c> {
    left: &'c Cell<usize>,
    /// Number of levels whose contents are stored; deeper ones are checked and dropped.
    depth_stored: usize,
}

impl Seed<'_> {
    /// The seed for the contents of an array or object.
    fn inner(self) -> Self {
        Self { depth_stored: self.depth_stored.saturating_sub(1), ..self }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| de::Error::custom("too many values"))?;
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(Node::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(i64::try_from(value).map_or(Node::Number(value as f64), Node::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node<'de>, E> {
        // Integers up to 2^53 are exact in an f64.
        let whole = value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0;
        Ok(if whole { Node::Integer(value as i64) } else { Node::Number(value) })
    }

    fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            if self.depth_stored > 0 {
                items.push(item);
            }
        }
        Ok(Node::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let mut members: Vec<(Cow<'de, str>, Node<'de>)> = Vec::new();
        let mut keys = std::collections::BTreeSet::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let is_duplicate = if members.len() < LINEAR_KEYS_MAX {
                members.iter().any(|(other, _)| *other == key)
            } else {
                if keys.is_empty() {
                    keys.extend(members.iter().map(|(key, _)| key.clone()));
                }
                !keys.insert(key.clone())
            };
            if is_duplicate {
                return Err(duplicate(&key));
            }
            let value = map.next_value_seed(self.inner())?;
            members.push((key, if self.depth_stored > 0 { value } else { Node::Null }));
        }
        if self.depth_stored == 0 {
            members.clear();
        }
        Ok(Node::Object(members))
    }
}

/// Reads a key, borrowed if it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(body: &str, want: Expect) {
        want.assert_eq(&match Node::read(body.as_bytes(), 20) {
            Ok(node) => format!("{node:?}"),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn value_is_read_as_a_tree() {
        check(
            r#"{"a":[null,true,-3,1.5,2e2],"b":"x\ny"}"#,
            expect![[
                r#"Object([("a", Array([Null, Bool(true), Integer(-3), Number(1.5), Integer(200)])), ("b", Text("x\ny"))])"#
            ]],
        );
        check(r#""text""#, expect![[r#"Text("text")"#]]);
    }

    #[test]
    fn malformed_json_is_refused() {
        check("", expect!["the body is empty; JSON was expected"]);
        check("{} {}", expect!["the body is not JSON: trailing characters at line 1, column 4"]);
        check(r#"{"a":1,"a":2}"#, expect!["the key `a` appears twice, the second time at line 1, column 10"]);
        check(
            &format!("[{}1]", "1,".repeat(20)),
            expect!["the body is not JSON: too many values at line 1, column 39"],
        );
        check(&"[".repeat(1000), expect!["the body is not JSON: too many values at line 1, column 20"]);
        let deep = "[".repeat(1000);
        assert!(matches!(Node::read(deep.as_bytes(), 2000), Err(JsonError::TooDeep { .. })));
        let keys: Vec<String> = (0..40).map(|key| format!(r#""k{}":1"#, key % 39)).collect();
        let many = format!("{{{}}}", keys.join(","));
        assert!(matches!(Node::read(many.as_bytes(), 100), Err(JsonError::DuplicateKey { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Node::read(&body, 100);
        }

        #[test]
        fn arbitrary_string_reads_back(text in any::<String>()) {
            let body = serde_json::to_vec(&text).expect("a string");
            prop_assert_eq!(Node::read(&body, 1), Ok(Node::Text(text.as_str().into())));
        }
    }
}
