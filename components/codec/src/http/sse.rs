//! Writes server-sent events for subscriptions (the HTML standard, section 9.2): any text reads back unchanged, except for line ends.
//!
//! Three characters can break the framing: CR and LF end a line, and readers ignore an id with NUL. A line end in data starts another
//! `data` line; names and ids with one of the three characters are refused. All other characters, U+2028 and U+FEFF included, have no
//! special meaning in the middle of a stream, and an event always begins with the name of a field.

use std::io::Write as _;

use thiserror::Error;

use crate::http::framing::push_data_lines;

/// Maximum number of bytes in the id or the name of an event.
pub const NAME_BYTES_MAX: usize = 256;
/// The heartbeat of an idle connection: an empty comment. A stream may begin with it.
pub const HEARTBEAT: &[u8] = b":\n\n";

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SseEvent<'a> {
    id: Option<&'a str>,
    name: Option<&'a str>,
    retry_ms: Option<u32>,
    data: &'a [u8],
}

/// Why an id or a name cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SseError {
    /// The text has a CR, an LF or a NUL.
    #[error("byte {at} of an event's id or name is a control character that would break it")]
    Breaks {
        /// The index of the byte, from 0.
        at: usize,
    },
    /// The text is too long.
    #[error("the id or name of an event may have at most {NAME_BYTES_MAX} bytes, and has {bytes}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
}

impl<'a> SseEvent<'a> {
    /// An event with data only, whose name is `message` for readers. The data is UTF-8; readers receive its line ends as LF.
    pub fn new(data: &'a [u8]) -> Self {
        Self { id: None, name: None, retry_ms: None, data }
    }

    /// With an id, which a client sends as `Last-Event-ID` when it reconnects. An empty id resets the last one.
    ///
    /// # Errors
    ///
    /// The text has a CR, an LF or a NUL, or is too long.
    pub fn with_id(self, id: &'a str) -> Result<Self, SseError> {
        check(id).map(|()| Self { id: Some(id), ..self })
    }

    /// With a name.
    ///
    /// # Errors
    ///
    /// The text has a CR, an LF or a NUL, or is too long.
    pub fn with_name(self, name: &'a str) -> Result<Self, SseError> {
        check(name).map(|()| Self { name: Some(name), ..self })
    }

    /// With the reconnection time of the client, in milliseconds.
    pub fn with_retry_ms(self, retry_ms: u32) -> Self {
        Self { retry_ms: Some(retry_ms), ..self }
    }

    /// Appends the event. Several events may be appended to one buffer.
    pub fn push(&self, out: &mut Vec<u8>) {
        const WRITES: &str = "writing to a vector cannot fail";
        if let Some(id) = self.id {
            writeln!(out, "id: {id}").expect(WRITES);
        }
        if let Some(name) = self.name {
            writeln!(out, "event: {name}").expect(WRITES);
        }
        if let Some(retry_ms) = self.retry_ms {
            writeln!(out, "retry: {retry_ms}").expect(WRITES);
        }
        push_data_lines(out, self.data);
        out.push(b'\n');
    }
}

/// Appends a `retry` field without an event.
pub fn push_retry(out: &mut Vec<u8>, retry_ms: u32) {
    write!(out, "retry: {retry_ms}\n\n").expect("writing to a vector cannot fail");
}

/// Appends a comment without an event; each line of the text is a comment line.
pub fn push_comment(out: &mut Vec<u8>, comment: &str) {
    for line in comment.split(['\r', '\n']) {
        out.extend_from_slice(b": ");
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}

fn check(text: &str) -> Result<(), SseError> {
    if text.len() > NAME_BYTES_MAX {
        return Err(SseError::TooLong { bytes: text.len() });
    }
    match text.bytes().position(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        Some(at) => Err(SseError::Breaks { at }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn event_is_written_with_each_field() {
        let mut out = b"".to_vec();
        push_retry(&mut out, 3000);
        push_comment(&mut out, "hb\r\nid: 7");
        let event = SseEvent::new(b"{\"a\":1}\ndata: x");
        let event = event.with_id("e-7").unwrap().with_name("workflow_progress").unwrap().with_retry_ms(5);
        event.push(&mut out);
        out.extend_from_slice(HEARTBEAT);
        SseEvent::new(b"").push(&mut out);
        expect![[r#"
            retry: 3000

            : hb
            : 
            : id: 7

            id: e-7
            event: workflow_progress
            retry: 5
            data: {"a":1}
            data: data: x

            :

            data: 

        "#]]
        .assert_eq(&String::from_utf8(out).expect("UTF-8"));
    }

    #[test]
    fn names_with_line_ends_are_refused() {
        for (text, want) in [
            ("a\nb", SseError::Breaks { at: 1 }),
            ("\r", SseError::Breaks { at: 0 }),
            ("ab\0", SseError::Breaks { at: 2 }),
            (&"x".repeat(257), SseError::TooLong { bytes: 257 }),
        ] {
            assert_eq!(SseEvent::new(b"").with_id(text), Err(want));
            assert_eq!(SseEvent::new(b"").with_name(text), Err(want));
        }
        for text in ["", " a", "a:b", "\u{feff}", "\u{2028}", "é"] {
            assert!(SseEvent::new(b"").with_id(text).is_ok() && SseEvent::new(b"").with_name(text).is_ok());
        }
    }
}
