//! An error record as a line of JSON, for sinks without headers.

use std::fmt::Write as _;

use serde::Serialize;
use weir_core::adapter::{ERROR_CATEGORY_HEADER, ERROR_CODE_HEADER, ERROR_REASON_HEADER, ResultRecord};

#[derive(Serialize)]
struct ErrorLine<'a> {
    error: Reason<'a>,
    origin: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// The original bytes, where they are UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    /// The original bytes in hexadecimal digits, where they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
}

#[derive(Serialize)]
struct Reason<'a> {
    category: &'a str,
    code: &'a str,
    message: &'a str,
}

/// The line without a line end: the error, the origin and position of the record, and its original bytes.
pub fn error_line(record: &ResultRecord) -> Vec<u8> {
    let (payload, payload_hex) = match std::str::from_utf8(&record.payload) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(hex(&record.payload))),
    };
    let position = record.completes.first();
    crate::json::to_vec(&ErrorLine {
        error: Reason {
            category: record.header(ERROR_CATEGORY_HEADER).unwrap_or_default(),
            code: record.header(ERROR_CODE_HEADER).unwrap_or_default(),
            message: record.header(ERROR_REASON_HEADER).unwrap_or_default(),
        },
        origin: &record.origin,
        partition: position.map(|position| position.partition),
        offset: position.map(|position| position.offset),
        payload,
        payload_hex,
    })
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use weir_core::adapter::{ErrorCategory, Position, SourceRecord};

    use super::*;

    #[test]
    fn line_has_the_reason_and_the_original_bytes() {
        let record = |payload: &[u8]| {
            let position = Position { partition: 1, offset: 7 };
            let record = SourceRecord {
                payload: payload.to_vec(),
                key: None,
                headers: Vec::new(),
                origin: "f".into(),
                position,
            };
            let record = ResultRecord::error(record, ErrorCategory::Client, "not_utf8", "it is not");
            String::from_utf8(error_line(&record)).unwrap()
        };
        expect![[r#"{"error":{"category":"client","code":"not_utf8","message":"it is not"},"origin":"f","partition":1,"offset":7,"payload":"a\"b"}"#]].assert_eq(&record(b"a\"b"));
        expect![[r#"{"error":{"category":"client","code":"not_utf8","message":"it is not"},"origin":"f","partition":1,"offset":7,"payload_hex":"ff0a"}"#]].assert_eq(&record(b"\xff\n"));
    }
}
