//! Reads the input of a session: one JSON object per line.
//!
//! `{"start":0.0,"end":1.2,"text":"hello","speaker_id":"a"}` is a chunk, `{"op":"end"}` makes the segment in flight final; both may have
//! a `seq`. A missing `speaker_id` is the same as null. Unknown fields are refused, since a misspelled `speaker_id` would merge speakers.

use std::borrow::Cow;

use serde::Serialize;
use weir_core::transcripts::{Chunk, ChunkError};

use crate::{
    http::lines::Line,
    inference::request::{LINE_BYTES_MAX, explain},
    json::tree::Node,
};

/// Maximum number of JSON values on a line: more than a chunk has.
const VALUES_MAX: usize = 64;

/// The content of a line.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A chunk.
    Chunk(Chunk),
    /// The segment in flight is final.
    End,
}

/// A valid line.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// The sequence number of the client, if it numbers its inputs in increasing order.
    pub seq: Option<u64>,
    /// The chunk or the end.
    pub body: Body,
}

/// Why a line was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Refusal {
    /// Human-readable text.
    pub message: String,
    /// Machine-readable code of the violated rule.
    pub code: Cow<'static, str>,
    /// The invalid field, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<Cow<'static, str>>,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, field: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { message: message.into(), code: code.into(), field: field.map(Cow::Borrowed) }
    }
}

impl From<&ChunkError> for Refusal {
    fn from(error: &ChunkError) -> Self {
        Self::new(error.rule(), error.field(), error.to_string())
    }
}

/// Reads a line.
///
/// # Errors
///
/// [`Refusal`]: the line is too long, not JSON, not an object, or has an invalid field.
pub fn read_line(line: &Line<'_>) -> Result<Input, Refusal> {
    match line.content {
        Some(content) => read(content),
        None => Err(Refusal::new("line_too_long", None, format!("the line has more than {LINE_BYTES_MAX} bytes"))),
    }
}

/// Reads a line or a message.
///
/// # Errors
///
/// [`Refusal`]: the content is not JSON, not an object, or has an invalid field.
pub fn read(content: &[u8]) -> Result<Input, Refusal> {
    let node = Node::read(content, VALUES_MAX).map_err(|error| {
        let (code, message) = explain(&error);
        Refusal::new(code, None, message)
    })?;
    let Node::Object(members) = node else {
        let message = format!("a chunk is an object, and not {}", crate::json::with_article(node.name()));
        return Err(Refusal::new("not_an_object", None, message));
    };
    let mut fields = Fields::default();
    for (name, node) in members {
        fields.take(&name, node)?;
    }
    fields.input()
}

#[derive(Default)]
struct Fields {
    start: Option<f64>,
    end: Option<f64>,
    text: Option<String>,
    speaker_id: Option<String>,
    seq: Option<u64>,
    op: bool,
}

impl Fields {
    fn take(&mut self, name: &str, node: Node<'_>) -> Result<(), Refusal> {
        match name {
            "start" => self.start = Some(seconds("start", &node)?),
            "end" => self.end = Some(seconds("end", &node)?),
            "text" => self.text = Some(text("text", node, "a string")?),
            "speaker_id" if node == Node::Null => {}
            "speaker_id" => self.speaker_id = Some(text("speaker_id", node, "a string or null")?),
            "seq" if node == Node::Null => {}
            "seq" => match node {
                Node::Integer(seq) if seq >= 0 => self.seq = Some(seq as u64),
                node => return Err(wrong_type("seq", "a whole number of at least 0", &node)),
            },
            "op" => match node {
                Node::Text(op) if op == "end" => self.op = true,
                _ => return Err(Refusal::new("not_allowed", Some("op"), "`op` may be \"end\" and nothing else")),
            },
            _ => {
                let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
                let message = format!(
                    "there is no field `{name}`; a chunk has start, end, text, speaker_id and seq, an end has op and seq"
                );
                return Err(Refusal { field: Some(name.into()), ..Refusal::new("unknown_field", None, message) });
            }
        }
        Ok(())
    }

    fn input(self) -> Result<Input, Refusal> {
        let Self { start, end, text, speaker_id, seq, op } = self;
        if op {
            let other = [
                ("start", start.is_some()),
                ("end", end.is_some()),
                ("text", text.is_some()),
                ("speaker_id", speaker_id.is_some()),
            ];
            return match other.into_iter().find(|(_, is_present)| *is_present) {
                Some((field, _)) => {
                    Err(Refusal::new("not_allowed", Some(field), format!("`{field}` does not go with `op`")))
                }
                None => Ok(Input { seq, body: Body::End }),
            };
        }
        let missing = |field| move || Refusal::new("missing_field", Some(field), format!("`{field}` is required"));
        let chunk = Chunk {
            start: start.ok_or_else(missing("start"))?,
            end: end.ok_or_else(missing("end"))?,
            text: text.ok_or_else(missing("text"))?,
            speaker_id,
        };
        Ok(Input { seq, body: Body::Chunk(chunk) })
    }
}

fn seconds(field: &'static str, node: &Node<'_>) -> Result<f64, Refusal> {
    match node {
        Node::Integer(value) => Ok(*value as f64),
        Node::Number(value) => Ok(*value),
        node => Err(wrong_type(field, "a number of seconds", node)),
    }
}

fn text(field: &'static str, node: Node<'_>, expected: &str) -> Result<String, Refusal> {
    match node {
        Node::Text(text) => Ok(text.into_owned()),
        node => Err(wrong_type(field, expected, &node)),
    }
}

fn wrong_type(field: &'static str, expected: &str, node: &Node<'_>) -> Refusal {
    let message = format!("`{field}` must be {expected}, and is {}", crate::json::with_article(node.name()));
    Refusal::new("wrong_type", Some(field), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(content: &str, want: Expect) {
        want.assert_eq(&match read(content.as_bytes()) {
            Ok(input) => format!("{input:?}"),
            Err(refusal) => serde_json::to_string(&refusal).unwrap(),
        });
    }

    #[test]
    fn chunk_and_end_are_read() {
        check(
            r#"{"start":0,"end":1.5,"text":" a\n","speaker_id":null}"#,
            expect![[
                r#"Input { seq: None, body: Chunk(Chunk { start: 0.0, end: 1.5, text: " a\n", speaker_id: None }) }"#
            ]],
        );
        check(
            r#"{"seq":7,"text":"","end":2e0,"start":-1,"speaker_id":""}"#,
            expect![[
                r#"Input { seq: Some(7), body: Chunk(Chunk { start: -1.0, end: 2.0, text: "", speaker_id: Some("") }) }"#
            ]],
        );
        check(r#"{"op":"end","seq":8}"#, expect!["Input { seq: Some(8), body: End }"]);
    }

    #[test]
    fn invalid_line_is_refused_with_the_field() {
        check(
            r#"{"start":0,"text":""}"#,
            expect![[r#"{"message":"`end` is required","code":"missing_field","field":"end"}"#]],
        );
        check(
            r#"{"start":"0","end":1,"text":""}"#,
            expect![[
                r#"{"message":"`start` must be a number of seconds, and is a string","code":"wrong_type","field":"start"}"#
            ]],
        );
        check(
            r#"{"start":0,"end":1,"text":"","speaker":"a"}"#,
            expect![[
                r#"{"message":"there is no field `speaker`; a chunk has start, end, text, speaker_id and seq, an end has op and seq","code":"unknown_field","field":"speaker"}"#
            ]],
        );
        check(
            r#"{"start":0,"end":1,"text":"","a\u001b[31m\nb":"a"}"#,
            expect![[
                r#"{"message":"there is no field `a[31mb`; a chunk has start, end, text, speaker_id and seq, an end has op and seq","code":"unknown_field","field":"a[31mb"}"#
            ]],
        );
        check(
            r#"{"start":0,"end":1,"text":"","speaker_id":3}"#,
            expect![[
                r#"{"message":"`speaker_id` must be a string or null, and is an integer","code":"wrong_type","field":"speaker_id"}"#
            ]],
        );
        check(
            r#"{"op":"end","seq":-1}"#,
            expect![[
                r#"{"message":"`seq` must be a whole number of at least 0, and is an integer","code":"wrong_type","field":"seq"}"#
            ]],
        );
        check(
            r#"{"op":"flush"}"#,
            expect![[r#"{"message":"`op` may be \"end\" and nothing else","code":"not_allowed","field":"op"}"#]],
        );
        check(
            r#"{"op":"end","text":""}"#,
            expect![[r#"{"message":"`text` does not go with `op`","code":"not_allowed","field":"text"}"#]],
        );
        check("[]", expect![[r#"{"message":"a chunk is an object, and not an array","code":"not_an_object"}"#]]);
        check(
            r#"{"start":0"#,
            expect![[
                r#"{"message":"it is not JSON: it ends in the middle of an object at column 10","code":"malformed_json"}"#
            ]],
        );
        let too_long = read_line(&Line { number: 1, content: None }).unwrap_err();
        assert_eq!(too_long.code, "line_too_long");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(content in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&content);
        }

        #[test]
        fn arbitrary_chunk_reads_back(start: f64, end: f64, text: String, speaker_id: Option<String>, seq in proptest::option::of(0..=i64::MAX as u64)) {
            prop_assume!(start.is_finite() && end.is_finite());
            let line = serde_json::json!({"start": start, "end": end, "text": text, "speaker_id": speaker_id, "seq": seq});
            let want = Input { seq, body: Body::Chunk(Chunk { start, end, text, speaker_id }) };
            prop_assert_eq!(read(line.to_string().as_bytes()), Ok(want));
        }
    }
}
