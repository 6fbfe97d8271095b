//! WebSocket over HTTP: bodies of `application/websocket-events`, by which an intermediary that holds a WebSocket asks a
//! server that only knows requests.
//!
//! An event is its name, the size of its content in hexadecimal where it has one, CR LF, and the content with another
//! CR LF (GRIP, "WebSocket-over-HTTP"). Reading is bounded in events and bytes and borrows from the body.

use std::io::Write as _;

use thiserror::Error;

/// The `Content-Type`.
pub const CONTENT_TYPE: &str = "application/websocket-events";
/// The value of `Sec-WebSocket-Extensions` in the answer to an [`WebSocketEvent::Open`] that is to be followed by
/// [`Control`] messages. Messages for the client begin with `m:` from then on.
pub const EXTENSION: &str = "grip; message-prefix=\"m:\"";
/// Most events in a body.
pub const EVENTS_MAX: usize = 1024;
/// Most digits in a size.
const SIZE_DIGITS_MAX: usize = 8;
/// Most bytes in the line of an event: the longest name, a space and a size.
const LINE_BYTES_MAX: usize = "DISCONNECT".len() + 1 + SIZE_DIGITS_MAX;
/// Most bytes in the reason of a close (RFC 6455, section 5.5).
pub const REASON_BYTES_MAX: usize = 123;

/// Something that happened to a WebSocket, or that is to happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebSocketEvent<'a> {
    /// It was opened; in an answer: it is accepted.
    Open,
    /// A message of text.
    Text(&'a str),
    /// A message of bytes.
    Binary(&'a [u8]),
    /// A ping with its payload.
    Ping(&'a [u8]),
    /// A pong with its payload.
    Pong(&'a [u8]),
    /// A close with its code and reason, if it had one.
    Close(Option<(u16, &'a str)>),
    /// The connection is gone without a close.
    Disconnect,
}

/// Why a body cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WebSocketEventError {
    /// It ends within an event.
    #[error("the body ends within an event")]
    Incomplete,
    /// There are too many events.
    #[error("a body may have at most {EVENTS_MAX} events")]
    TooMany,
    /// The line of an event has no name that is known, or a size that is none.
    #[error("the event at byte {at} has no known name and size")]
    Line {
        /// From 0.
        at: usize,
    },
    /// A content is longer than it may be.
    #[error("the content of the event at byte {at} may have at most {bytes_max} bytes, and has {bytes}")]
    TooLong {
        /// From 0.
        at: usize,
        /// How many it may have.
        bytes_max: usize,
        /// How many it is said to have.
        bytes: usize,
    },
    /// A content is not what its event may have: text that is no UTF-8, a close of one byte or of no code.
    #[error("the content of the event at byte {at} does not fit it")]
    Content {
        /// From 0.
        at: usize,
    },
}

/// Reads a body. No content has more than `content_bytes_max` bytes.
///
/// # Errors
///
/// It is no such body, or over a bound; nothing of it is to be acted upon then.
pub fn read(body: &[u8], content_bytes_max: usize) -> Result<Vec<WebSocketEvent<'_>>, WebSocketEventError> {
    let mut events = Vec::new();
    let mut at = 0;
    while at < body.len() {
        if events.len() == EVENTS_MAX {
            return Err(WebSocketEventError::TooMany);
        }
        let (event, bytes) = read_event(&body[at..], at, content_bytes_max)?;
        events.push(event);
        at += bytes;
    }
    Ok(events)
}

/// Appends an event. A reason of a close is cut to what a frame can carry.
pub fn push(out: &mut Vec<u8>, event: &WebSocketEvent<'_>) {
    let content = match event {
        WebSocketEvent::Open => return out.extend_from_slice(b"OPEN\r\n"),
        WebSocketEvent::Disconnect => return out.extend_from_slice(b"DISCONNECT\r\n"),
        WebSocketEvent::Close(None) => return out.extend_from_slice(b"CLOSE\r\n"),
        WebSocketEvent::Text(text) => (b"TEXT".as_slice(), text.as_bytes()),
        WebSocketEvent::Binary(bytes) => (b"BINARY".as_slice(), *bytes),
        WebSocketEvent::Ping(bytes) => (b"PING".as_slice(), *bytes),
        WebSocketEvent::Pong(bytes) => (b"PONG".as_slice(), *bytes),
        WebSocketEvent::Close(Some((code, reason))) => {
            let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
            let content = [&code.to_be_bytes(), reason.as_bytes()].concat();
            return push_content(out, b"CLOSE", &content);
        }
    };
    push_content(out, content.0, content.1);
}

/// What a message of text says on a connection with the extension [`EXTENSION`]: such connections have a prefix before each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control<'a> {
    /// Follow a channel, from behind an id where one is given.
    Subscribe {
        /// The name of the channel.
        channel: &'a str,
        /// The id of the last event that the client has.
        prev_id: Option<&'a str>,
    },
    /// Follow a channel no more.
    Unsubscribe {
        /// The name of the channel.
        channel: &'a str,
    },
    /// End the connection once this answer has been written.
    Detach,
}

impl Control<'_> {
    /// The message of text, `c:` and an object of JSON.
    pub fn to_text(&self) -> String {
        let object = match self {
            Self::Subscribe { channel, prev_id: None } => {
                serde_json::json!({ "type": "subscribe", "channel": channel })
            }
            Self::Subscribe { channel, prev_id: Some(prev_id) } => {
                serde_json::json!({ "type": "subscribe", "channel": channel, "prev-id": prev_id })
            }
            Self::Unsubscribe { channel } => serde_json::json!({ "type": "unsubscribe", "channel": channel }),
            Self::Detach => serde_json::json!({ "type": "detach" }),
        };
        format!("c:{object}")
    }
}

fn push_content(out: &mut Vec<u8>, name: &[u8], content: &[u8]) {
    out.extend_from_slice(name);
    write!(out, " {:x}\r\n", content.len()).expect("a vector takes every write");
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
}

/// Reads the event that a body begins with, and how many bytes it has. `at` is where it begins in the whole.
fn read_event(
    body: &[u8],
    at: usize,
    content_bytes_max: usize,
) -> Result<(WebSocketEvent<'_>, usize), WebSocketEventError> {
    let head = &body[..body.len().min(LINE_BYTES_MAX + 2)];
    let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") else {
        let cut = body.len() <= LINE_BYTES_MAX;
        return Err(if cut { WebSocketEventError::Incomplete } else { WebSocketEventError::Line { at } });
    };
    let line = &body[..end];
    let after = end + 2;
    let (name, size) = match line.iter().position(|byte| *byte == b' ') {
        None => (line, None),
        Some(space) => {
            let size = read_size(&line[space + 1..]).ok_or(WebSocketEventError::Line { at })?;
            (&line[..space], Some(size))
        }
    };
    let Some(bytes) = size else {
        let event = match name {
            b"OPEN" => WebSocketEvent::Open,
            b"DISCONNECT" => WebSocketEvent::Disconnect,
            b"CLOSE" => WebSocketEvent::Close(None),
            // Messages without content are written so too.
            b"TEXT" => WebSocketEvent::Text(""),
            b"BINARY" => WebSocketEvent::Binary(b""),
            b"PING" => WebSocketEvent::Ping(b""),
            b"PONG" => WebSocketEvent::Pong(b""),
            _ => return Err(WebSocketEventError::Line { at }),
        };
        return Ok((event, after));
    };
    if bytes > content_bytes_max {
        return Err(WebSocketEventError::TooLong { at, bytes_max: content_bytes_max, bytes });
    }
    let content = body.get(after..after + bytes).ok_or(WebSocketEventError::Incomplete)?;
    match body.get(after + bytes..after + bytes + 2) {
        Some(b"\r\n") => {}
        Some(_) => return Err(WebSocketEventError::Content { at }),
        None => return Err(WebSocketEventError::Incomplete),
    }
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| WebSocketEventError::Content { at });
    let event = match name {
        b"TEXT" => WebSocketEvent::Text(text(content)?),
        b"BINARY" => WebSocketEvent::Binary(content),
        b"PING" => WebSocketEvent::Ping(content),
        b"PONG" => WebSocketEvent::Pong(content),
        b"CLOSE" => match content {
            [] => WebSocketEvent::Close(None),
            [high, low, reason @ ..] => WebSocketEvent::Close(Some((u16::from_be_bytes([*high, *low]), text(reason)?))),
            [_] => return Err(WebSocketEventError::Content { at }),
        },
        _ => return Err(WebSocketEventError::Line { at }),
    };
    Ok((event, after + bytes + 2))
}

fn read_size(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > SIZE_DIGITS_MAX {
        return None;
    }
    digits.iter().try_fold(0, |size, digit| Some(size * 16 + (*digit as char).to_digit(16)? as usize))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    const CONTENT_BYTES_MAX: usize = 64;

    fn check(body: &[u8], want: Expect) {
        want.assert_eq(&match read(body, CONTENT_BYTES_MAX) {
            Ok(events) => format!("{events:?}"),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn bodies() {
        check(b"", expect!["[]"]);
        check(
            b"OPEN\r\nTEXT 5\r\nhello\r\nBINARY 2\r\n\r\n\r\nPING\r\nPONG 0\r\n\r\nCLOSE 5\r\n\x03\xe8bye\r\nDISCONNECT\r\n",
            expect![[
                r#"[Open, Text("hello"), Binary([13, 10]), Ping([]), Pong([]), Close(Some((1000, "bye"))), Disconnect]"#
            ]],
        );
        check(b"TEXT 00A\r\n0123456789\r\nCLOSE\r\n", expect![[r#"[Text("0123456789"), Close(None)]"#]]);
    }

    #[test]
    fn what_is_refused() {
        check(b"OPEN", expect!["the body ends within an event"]);
        check(b"TEXT 5\r\nhell", expect!["the body ends within an event"]);
        check(b"TEXT 5\r\nhello", expect!["the body ends within an event"]);
        check(b"TEXT 4\r\nhello\r\n", expect!["the content of the event at byte 0 does not fit it"]);
        check(b"TEXT 1\r\n\xff\r\n", expect!["the content of the event at byte 0 does not fit it"]);
        check(b"OPEN\r\nCLOSE 1\r\n\x03\r\n", expect!["the content of the event at byte 6 does not fit it"]);
        check(b"open\r\n", expect!["the event at byte 0 has no known name and size"]);
        check(b"OPEN 0\r\n\r\n", expect!["the event at byte 0 has no known name and size"]);
        check(b"TEXT  5\r\nhello\r\n", expect!["the event at byte 0 has no known name and size"]);
        check(b"TEXT -1\r\n\r\n", expect!["the event at byte 0 has no known name and size"]);
        check(b"TEXT 100000000\r\n", expect!["the event at byte 0 has no known name and size"]);
        check(
            b"TEXT ffffffff\r\n",
            expect!["the content of the event at byte 0 may have at most 64 bytes, and has 4294967295"],
        );
        check(&[b'A'; 1000], expect!["the event at byte 0 has no known name and size"]);
        check(&b"OPEN\r\n".repeat(EVENTS_MAX + 1), expect!["a body may have at most 1024 events"]);
    }

    #[test]
    fn controls() {
        let subscribe = Control::Subscribe { channel: "workflow:42", prev_id: Some("e-7") };
        assert_eq!(subscribe.to_text(), r#"c:{"channel":"workflow:42","prev-id":"e-7","type":"subscribe"}"#);
        let unsubscribe = Control::Unsubscribe { channel: "a\"b" };
        assert_eq!(unsubscribe.to_text(), r#"c:{"channel":"a\"b","type":"unsubscribe"}"#);
        assert_eq!(Control::Detach.to_text(), r#"c:{"type":"detach"}"#);
    }

    #[test]
    fn a_reason_that_is_too_long_is_cut_between_characters() {
        let reason = "é".repeat(100);
        let mut out = Vec::new();
        push(&mut out, &WebSocketEvent::Close(Some((1008, &reason))));
        assert_eq!(read(&out, 125), Ok(vec![WebSocketEvent::Close(Some((1008, &"é".repeat(61))))]));
    }

    proptest! {
        #[test]
        fn every_event_reads_back(
            events in prop::collection::vec((0u8..7, "\\PC{0,8}|[\r\n]{0,4}", any::<u16>()), 0..8),
        ) {
            let events: Vec<WebSocketEvent<'_>> = events
                .iter()
                .map(|(kind, text, code)| match kind {
                    0 => WebSocketEvent::Open,
                    1 => WebSocketEvent::Text(text),
                    2 => WebSocketEvent::Binary(text.as_bytes()),
                    3 => WebSocketEvent::Ping(text.as_bytes()),
                    4 => WebSocketEvent::Pong(text.as_bytes()),
                    5 => WebSocketEvent::Close(Some((*code, text))),
                    _ => WebSocketEvent::Disconnect,
                })
                .collect();
            let mut out = Vec::new();
            for event in &events {
                push(&mut out, event);
            }
            prop_assert_eq!(read(&out, CONTENT_BYTES_MAX), Ok(events));
            for end in 0..out.len() {
                // A body that was cut is never read as another, unless it was cut between events.
                if let Ok(events) = read(&out[..end], CONTENT_BYTES_MAX) {
                    let mut again = Vec::new();
                    events.iter().for_each(|event| push(&mut again, event));
                    prop_assert_eq!(&again, &out[..end]);
                }
            }
        }

        #[test]
        fn no_bytes_can_hurt(body in "((OPEN|TEXT|PING|CLOSE| |x)( [0-9a-fA-F]{0,9})?\r?\n?){0,6}") {
            if let Ok(events) = read(body.as_bytes(), CONTENT_BYTES_MAX) {
                prop_assert!(events.len() <= EVENTS_MAX);
            }
        }
    }
}
