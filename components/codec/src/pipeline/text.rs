//! Any JSON: checked once, then carried as text on one line.

use weir_core::pipeline::Json;

use crate::{json::JsonError, tree::Node};

/// Most values (of any kind, at any depth) in a JSON text of a client or a step.
pub const VALUES_MAX: usize = 1 << 17;

/// Reads one JSON value of any type: what `POST /pipelines/{name}` takes, and what a step puts out.
///
/// As strict as everything here: duplicate keys are refused and nesting is bounded. The text is kept as it is but for the
/// white space between values, so that numbers keep all their digits.
pub fn read(body: &[u8]) -> Result<Json, JsonError> {
    Node::read(body, VALUES_MAX)?;
    let text = std::str::from_utf8(body).map_err(|error| JsonError::NotUtf8 { at: error.valid_up_to() })?;
    Ok(Json::from_checked(compact(text)))
}

/// A JSON text without white space between its values.
fn compact(text: &str) -> String {
    let mut compact = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for character in text.chars() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
        } else if matches!(character, ' ' | '\t' | '\r' | '\n') {
            continue;
        } else {
            in_string = character == '"';
        }
        compact.push(character);
    }
    compact
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_put_on_one_line_and_otherwise_left_alone() {
        for (text, want) in [
            (" { \"a\" : [ 1 ,\r\n 2.50 ] } ", r#"{"a":[1,2.50]}"#),
            (r#" "a \" b\\" "#, r#""a \" b\\""#),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("null", "null"),
        ] {
            assert_eq!(read(text.as_bytes()).map(|json| json.as_str().to_owned()), Ok(want.to_owned()));
        }
        for text in ["", "{", "1 2", r#"{"a":1,"a":2}"#, "\"\n\""] {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_value_keeps_its_meaning(key in "\\PC*", text in any::<String>(), number in any::<f64>()) {
            let value = serde_json::json!({ key: [text, number, { "x": null }] });
            let pretty = serde_json::to_string_pretty(&value).expect("JSON");
            let json = read(pretty.as_bytes()).expect("JSON");
            prop_assert!(!json.as_str().contains('\n'));
            let back: serde_json::Value = serde_json::from_str(json.as_str()).expect("JSON");
            prop_assert_eq!(back, value);
        }

        #[test]
        fn no_bytes_can_hurt(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
        }
    }
}
