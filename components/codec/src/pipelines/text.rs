//! Any JSON value, checked once and then passed on as text on one line.

use weir_core::pipelines::Json;

use crate::json::JsonError;

mod reader;

use reader::Reader;

pub use reader::{DEPTH_MAX, VALUES_MAX};

/// Reads one JSON value of any type: the body of `POST /pipelines/{name}`, and the output of a step.
///
/// As strict as the other readers: duplicate keys are refused and nesting is bounded. Only the white space between values is removed, so
/// that numbers keep all their digits.
///
/// # Errors
///
/// The body is not JSON, has too many values or a duplicate key, or is nested too deeply.
pub fn read(body: &[u8]) -> Result<Json, JsonError> {
    let mut reader = Reader::new(body)?;
    while reader.advance(usize::MAX)? {}
    Ok(reader.into_json())
}

/// Bytes that are read between two pauses.
const SLICE_BYTES: usize = 32 << 10;

/// Like [`read`], with a pause after each 32 KiB, so that other tasks can run on the same thread. A string or a number is not divided.
///
/// # Errors
///
/// Those of [`read`].
pub async fn read_in_slices(body: &[u8], mut pause: impl AsyncFnMut()) -> Result<Json, JsonError> {
    let mut reader = Reader::new(body)?;
    while reader.advance(SLICE_BYTES)? {
        pause().await;
    }
    Ok(reader.into_json())
}

/// A text as a JSON string.
pub fn string(text: &str) -> Json {
    let mut out = String::with_capacity(text.len() + 2);
    super::writer::value(&mut out, text);
    Json::from_checked(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn value_is_unchanged_except_for_white_space() {
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
        let nested = |depth: usize| format!("\n{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(nested(DEPTH_MAX).as_bytes()).is_ok());
        let want = JsonError::TooDeep { line: 2, column: DEPTH_MAX + 1 };
        assert_eq!(read(nested(DEPTH_MAX + 1).as_bytes()), Err(want));
    }

    proptest! {
        #[test]
        fn arbitrary_value_keeps_its_meaning(key in "\\PC*", text in any::<String>(), number in any::<f64>()) {
            let value = serde_json::json!({ key: [text, number, { "x": null }] });
            let pretty = serde_json::to_string_pretty(&value).expect("JSON");
            let json = read(pretty.as_bytes()).expect("JSON");
            prop_assert!(!json.as_str().contains('\n'));
            let back: serde_json::Value = serde_json::from_str(json.as_str()).expect("JSON");
            prop_assert_eq!(back, value);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
        }
    }
}
