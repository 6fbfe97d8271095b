//! The framing of events: lines of JSON, or server-sent events. What else subscriptions need is in [`crate::http::sse`].

use std::io::Write as _;

/// The format of a stream of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// One JSON object per line.
    Ndjson,
    /// Server-sent events (the HTML standard, section 9.2): `id`, `event` and `data`.
    Sse,
}

impl Framing {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Sse => "text/event-stream",
        }
    }

    /// Appends the bytes before the data of an event; the data must not have a line end.
    pub fn begin(self, out: &mut Vec<u8>, id: u64, name: &str) {
        if self == Self::Sse {
            write!(out, "id: {id}\nevent: {name}\ndata: ").expect("writing to a vector cannot fail");
        }
    }

    /// Appends the bytes after the data of an event.
    pub fn end(self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self == Self::Sse { b"\n\n" } else { b"\n" });
    }

    /// Appends an event. `id` is its number in the stream, from 1. `name` must not have a line end; `data` may.
    pub fn push(self, out: &mut Vec<u8>, id: u64, name: &str, data: &[u8]) {
        match self {
            Self::Ndjson => {
                out.extend_from_slice(data);
                out.push(b'\n');
            }
            Self::Sse => {
                write!(out, "id: {id}\nevent: {name}\n").expect("writing to a vector cannot fail");
                push_data_lines(out, data);
                out.push(b'\n');
            }
        }
    }
}

/// Appends the `data` lines of an event of SSE.
pub(crate) fn push_data_lines(out: &mut Vec<u8>, data: &[u8]) {
    for line in lines(data) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
}

/// The lines of a text, by the line ends of SSE: CR LF, LF and CR. A text without a line end is one line.
fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(at) = text.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            rest = None;
            return Some(text);
        };
        let width = if text[at..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = Some(&text[at + width..]);
        Some(&text[..at])
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(framing: Framing, data: &str, want: Expect) {
        let mut out = Vec::new();
        framing.push(&mut out, 7, "chunked", data.as_bytes());
        want.assert_eq(&String::from_utf8(out).expect("text").replace('\r', "␍"));
    }

    #[test]
    fn event_in_each_framing() {
        check(
            Framing::Ndjson,
            r#"{"a":1}"#,
            expect![[r#"
            {"a":1}
        "#]],
        );
        check(
            Framing::Sse,
            r#"{"a":1}"#,
            expect![[r#"
            id: 7
            event: chunked
            data: {"a":1}

        "#]],
        );
    }

    #[test]
    fn line_end_in_data_starts_another_data_line() {
        check(
            Framing::Sse,
            "a\nb\r\nc\rd\n",
            expect![[r#"
            id: 7
            event: chunked
            data: a
            data: b
            data: c
            data: d
            data: 

        "#]],
        );
        check(
            Framing::Sse,
            "",
            expect![[r#"
            id: 7
            event: chunked
            data: 

        "#]],
        );
    }

    /// The data of one event, as a reader of the standard reads it.
    fn read_data(stream: &str) -> String {
        let normal = stream.replace("\r\n", "\n").replace('\r', "\n");
        let data: Vec<&str> = normal.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        data.join("\n")
    }

    proptest! {
        #[test]
        fn data_reads_back_with_normalized_line_ends(data in "[a\r\n:é ]{0,24}") {
            let mut out = Vec::new();
            Framing::Sse.push(&mut out, 1, "e", data.as_bytes());
            let text = String::from_utf8(out).expect("text");
            prop_assert_eq!(read_data(&text), data.replace("\r\n", "\n").replace('\r', "\n"));
            prop_assert!(text.ends_with("\n\n"));
            prop_assert_eq!(text.matches("\n\n").count(), 1);
        }
    }
}
