//! The frames of the client protocol of NATS, without IO: control lines, messages and their headers.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::Deserialize;
use weir_core::adapter::Header;

/// The longest control line, in bytes. The INFO of a large cluster has some kilobytes.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;
/// The largest message with its headers, in bytes. Servers allow no larger one.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;

const LINE_END: &[u8] = b"\r\n";
const HEADERS_START: &str = "NATS/1.0";
pub(super) const PING: &[u8] = b"PING\r\n";
pub(super) const PONG: &[u8] = b"PONG\r\n";

/// A frame of a server.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// The properties of the server.
    Info(Info),
    /// A message of a subscription.
    Message(Message),
    /// A request for a PONG.
    Ping,
    /// The answer to a PING.
    Pong,
    /// A command was accepted.
    Ok,
    /// A command was refused, or the connection ends.
    Error(String),
}

/// The properties of a server.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Info {
    /// The largest message that it accepts, headers included, in bytes.
    #[serde(default = "max_payload")]
    pub(super) max_payload: usize,
    /// Whether connections must have TLS.
    #[serde(default)]
    pub(super) tls_required: bool,
    /// Whether connections may have TLS.
    #[serde(default)]
    pub(super) tls_available: bool,
    /// The challenge that a client with an nkey signs.
    #[serde(default)]
    pub(super) nonce: String,
}

/// The default of servers.
fn max_payload() -> usize {
    1 << 20
}

/// A message of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) subject: String,
    /// The id of the subscription.
    pub(super) subscription: u64,
    /// The subject of a reply; empty if none is expected.
    pub(super) reply: String,
    /// The status, in a message of the server itself.
    pub(super) status: Option<Status>,
    pub(super) headers: Vec<Header>,
    pub(super) payload: Bytes,
}

/// The status of a message, with numbers as those of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) description: String,
}

/// A violation of the protocol by the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    /// A control line has no end.
    #[error("a line has more than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    /// A message exceeds the bound.
    #[error("a message has more than {MESSAGE_BYTES_MAX} bytes")]
    MessageTooLong,
    /// Something else.
    #[error("`{0}` is not a frame of NATS")]
    Malformed(String),
}

impl ProtocolError {
    fn malformed(bytes: &[u8]) -> Self {
        let shown = &bytes[..bytes.len().min(80)];
        Self::Malformed(String::from_utf8_lossy(shown).into_owned())
    }
}

/// Removes a frame from the start of a buffer; `None` if it is incomplete.
pub(super) fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, ProtocolError> {
    let Some(end) = buffer.windows(LINE_END.len()).take(LINE_BYTES_MAX).position(|window| window == LINE_END) else {
        return match buffer.len() > LINE_BYTES_MAX {
            true => Err(ProtocolError::LineTooLong),
            false => Ok(None),
        };
    };
    let malformed = || ProtocolError::malformed(&buffer[..end]);
    let line = std::str::from_utf8(&buffer[..end]).map_err(|_| malformed())?;
    let (verb, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let frame = match verb.to_ascii_uppercase().as_str() {
        "MSG" | "HMSG" => return decode_message(buffer, end),
        "INFO" => Frame::Info(serde_json::from_str(rest).map_err(|_| malformed())?),
        "PING" => Frame::Ping,
        "PONG" => Frame::Pong,
        "+OK" => Frame::Ok,
        "-ERR" => Frame::Error(rest.trim().trim_matches('\'').to_owned()),
        _ => return Err(malformed()),
    };
    buffer.advance(end + LINE_END.len());
    Ok(Some(frame))
}

/// Removes a message whose control line ends at `end`: `MSG subject subscription [reply] bytes`, or
/// `HMSG subject subscription [reply] bytes-of-headers bytes`.
fn decode_message(buffer: &mut BytesMut, end: usize) -> Result<Option<Frame>, ProtocolError> {
    let malformed = || ProtocolError::malformed(&buffer[..end]);
    let line = std::str::from_utf8(&buffer[..end]).map_err(|_| malformed())?;
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let has_headers = fields[0].eq_ignore_ascii_case("HMSG");
    let (subject, subscription, reply, headers_bytes, bytes) = match (has_headers, &fields[1..]) {
        (false, [subject, subscription, bytes]) => (subject, subscription, "", "0", bytes),
        (false, [subject, subscription, reply, bytes]) => (subject, subscription, *reply, "0", bytes),
        (true, [subject, subscription, headers, bytes]) => (subject, subscription, "", *headers, bytes),
        (true, [subject, subscription, reply, headers, bytes]) => (subject, subscription, *reply, *headers, bytes),
        _ => return Err(malformed()),
    };
    let number = |text: &str| text.parse::<usize>().map_err(|_| malformed());
    let (headers_bytes, bytes) = (number(headers_bytes)?, number(bytes)?);
    if headers_bytes > bytes {
        return Err(malformed());
    }
    if bytes > MESSAGE_BYTES_MAX {
        return Err(ProtocolError::MessageTooLong);
    }
    let start = end + LINE_END.len();
    if buffer.len() < start + bytes + LINE_END.len() {
        return Ok(None);
    }
    if &buffer[start + bytes..start + bytes + LINE_END.len()] != LINE_END {
        return Err(malformed());
    }
    let mut message = Message {
        subject: (*subject).to_owned(),
        subscription: subscription.parse().map_err(|_| malformed())?,
        reply: reply.to_owned(),
        status: None,
        headers: Vec::new(),
        payload: Bytes::new(),
    };
    buffer.advance(start);
    let mut content = buffer.split_to(bytes).freeze();
    buffer.advance(LINE_END.len());
    if has_headers {
        (message.status, message.headers) = decode_headers(&content.split_to(headers_bytes))?;
    }
    message.payload = content;
    Ok(Some(Frame::Message(message)))
}

/// The status and the headers of a block: `NATS/1.0 [code description]`, then lines `name: value`, then an empty line.
fn decode_headers(block: &[u8]) -> Result<(Option<Status>, Vec<Header>), ProtocolError> {
    let malformed = || ProtocolError::malformed(block);
    let mut lines = block.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first = std::str::from_utf8(lines.next().unwrap_or_default()).map_err(|_| malformed())?;
    let status = first.strip_prefix(HEADERS_START).ok_or_else(malformed)?.trim();
    let status = match status.split_once(' ').unwrap_or((status, "")) {
        ("", _) => None,
        (code, description) => {
            Some(Status { code: code.parse().map_err(|_| malformed())?, description: description.trim().to_owned() })
        }
    };
    let mut headers = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(malformed)?;
        let name = String::from_utf8_lossy(&line[..colon]);
        headers.push(Header::new(&name, line[colon + 1..].trim_ascii()));
    }
    Ok((status, headers))
}

/// Encodes a message. If `reply` is empty, no reply is expected. Subjects have been checked with [`is_subject`].
pub(super) fn publish(subject: &str, reply: &str, headers: &[Header], payload: &[u8]) -> Bytes {
    let mut frame = Vec::new();
    append_publish(&mut frame, subject, reply, headers, payload);
    frame.into()
}

/// Appends a message to frames, as [`publish`] encodes it.
pub(super) fn append_publish(frames: &mut Vec<u8>, subject: &str, reply: &str, headers: &[Header], payload: &[u8]) {
    let block = encode_headers(headers);
    let separator = if reply.is_empty() { "" } else { " " };
    let line = match block.is_empty() {
        true => format!("PUB {subject}{separator}{reply} {}\r\n", payload.len()),
        false => format!("HPUB {subject}{separator}{reply} {} {}\r\n", block.len(), block.len() + payload.len()),
    };
    frames.reserve(line.len() + block.len() + payload.len() + LINE_END.len());
    for part in [line.as_bytes(), &block, payload, LINE_END] {
        frames.extend_from_slice(part);
    }
}

/// The bytes of encoded headers; 0 if there are none.
pub(super) fn headers_bytes(headers: &[Header]) -> usize {
    encode_headers(headers).len()
}

/// Encodes headers as a block, one line each: control characters of values become spaces, and characters that names must not contain
/// become `-`.
fn encode_headers(headers: &[Header]) -> Vec<u8> {
    if headers.is_empty() {
        return Vec::new();
    }
    let mut block = format!("{HEADERS_START}\r\n").into_bytes();
    for header in headers {
        block.extend(header.name.bytes().map(|byte| if byte.is_ascii_graphic() && byte != b':' { byte } else { b'-' }));
        block.extend_from_slice(b": ");
        block.extend(header.value.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }));
        block.extend_from_slice(LINE_END);
    }
    block.extend_from_slice(LINE_END);
    block
}

/// Encodes a subscription to a subject.
pub(super) fn subscribe(subject: &str, subscription: u64) -> Bytes {
    format!("SUB {subject} {subscription}\r\n").into()
}

/// Encodes the end of a subscription.
pub(super) fn unsubscribe(subscription: u64) -> Bytes {
    format!("UNSUB {subscription}\r\n").into()
}

/// Whether a text is a subject: tokens separated by `.`, none of which is empty. With `wildcards`, a token may be `*`, and the last `>`.
pub(super) fn is_subject(subject: &str, wildcards: bool) -> bool {
    let count = subject.split('.').count();
    subject.split('.').enumerate().all(|(index, token)| match token {
        "*" => wildcards,
        ">" => wildcards && index + 1 == count,
        token => !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control()),
    })
}

/// Whether a pattern with wildcards matches a subject.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let (mut patterns, mut tokens) = (pattern.split('.'), subject.split('.'));
    loop {
        match (patterns.next(), tokens.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some(pattern), Some(token)) if pattern == "*" || pattern == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The frames of bytes that arrive in parts.
    fn decode_parts(parts: &[&[u8]]) -> Result<Vec<Frame>, ProtocolError> {
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for part in parts {
            buffer.extend_from_slice(part);
            while let Some(frame) = decode(&mut buffer)? {
                frames.push(frame);
            }
        }
        assert!(buffer.is_empty(), "{buffer:?} is left");
        Ok(frames)
    }

    fn message(subject: &str, reply: &str, headers: &[(&str, &str)], payload: &[u8]) -> Message {
        Message {
            subject: subject.to_owned(),
            subscription: 7,
            reply: reply.to_owned(),
            status: None,
            headers: headers.iter().map(|(name, value)| Header::new(name, *value)).collect(),
            payload: Bytes::copy_from_slice(payload),
        }
    }

    #[test]
    fn frames_are_the_same_at_every_split() {
        let all = b"INFO {\"max_payload\":9,\"nonce\":\"n\",\"other\":[1]}\r\nPING\r\n+OK\r\n-ERR 'Stale Connection'\r\n\
            MSG a.b 7 6\r\na\r\n\r\nb\r\nmsg\ta\t7 r.1 0\r\n\r\nHMSG a 7 r 24 26\r\nNATS/1.0\r\nOne:  x y \r\n\r\n12\r\n\
            HMSG a 7 30 30\r\nNATS/1.0 503 No Responders\r\n\r\n\r\nPONG\r\n";
        let whole = decode_parts(&[all]).unwrap();
        let no_responders = Status { code: 503, description: "No Responders".to_owned() };
        let expected = [
            Frame::Info(Info { max_payload: 9, tls_required: false, tls_available: false, nonce: "n".to_owned() }),
            Frame::Ping,
            Frame::Ok,
            Frame::Error("Stale Connection".to_owned()),
            Frame::Message(message("a.b", "", &[], b"a\r\n\r\nb")),
            Frame::Message(message("a", "r.1", &[], b"")),
            Frame::Message(message("a", "r", &[("One", "x y")], b"12")),
            Frame::Message(Message { status: Some(no_responders), ..message("a", "", &[], b"") }),
            Frame::Pong,
        ];
        assert_eq!(whole, expected);
        for split in 0..all.len() {
            assert_eq!(decode_parts(&[&all[..split], &all[split..]]).unwrap(), whole, "split at {split}");
        }
    }

    #[test]
    fn bad_frames_are_errors() {
        let error = |bytes: &[u8]| decode(&mut BytesMut::from(bytes)).unwrap_err();
        for bad in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"MSG a\r\n",
            b"MSG a x 0\r\n\r\n",
            b"MSG a 1 -1\r\n",
            b"MSG a 1 1\r\nabc",
            b"HMSG a 1 3 2\r\nabc\r\n",
            b"HMSG a 1 3 3\r\nabc\r\n",
            b"HMSG a 1 14 14\r\nNATS/1.0 abc\r\n\r\n",
            b"INFO nothing\r\n",
            b"\xff\r\n",
        ] {
            assert!(matches!(error(bad), ProtocolError::Malformed(_)), "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(error(b"MSG a 1 67108865\r\n"), ProtocolError::MessageTooLong);
        assert_eq!(error(&[b'a'; LINE_BYTES_MAX + 1]), ProtocolError::LineTooLong);
    }

    #[test]
    fn published_messages_have_their_lengths() {
        assert_eq!(publish("a", "", &[], b"xyz"), "PUB a 3\r\nxyz\r\n");
        let headers = [Header::new("Bad: name", "a\r\nInjected: b")];
        let block = "NATS/1.0\r\nBad--name: a  Injected: b\r\n\r\n";
        assert_eq!(
            publish("a", "r.1", &headers, b"x"),
            format!("HPUB a r.1 {} {}\r\n{block}x\r\n", block.len(), block.len() + 1)
        );
        assert_eq!(headers_bytes(&headers), block.len());
    }

    #[test]
    fn subjects_are_checked_and_matched() {
        assert!(is_subject("a.b-c", false) && is_subject("a.*.>", true));
        for bad in ["", ".", "a..b", "a.", "a b", "a\n", "a.*", "a.>"] {
            assert!(!is_subject(bad, false), "{bad}");
        }
        assert!(!is_subject("a.>.b", true));
        for (pattern, subject, expected) in
            [("a", "a", true), ("a.*", "a.b", true), ("a.*", "a", false), ("a.>", "a.b.c", true), ("a.>", "a", false)]
        {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
        assert!(!matches("a.b", "a.b.c") && !matches("a.b.c", "a.b"));
    }

    proptest! {
        #[test]
        fn decoder_takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), verb in "(|MSG|HMSG|INFO|-ERR) ") {
            let mut buffer = BytesMut::from(verb.as_bytes());
            buffer.extend_from_slice(&bytes);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }

        #[test]
        fn messages_are_decoded_as_published(
            headers in prop::collection::vec(("[a-zA-Z-]{1,9}", "[ -~]{0,20}"), 0..4),
            payload in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let headers: Vec<Header> = headers.iter().map(|(name, value)| Header::new(name, value.trim())).collect();
            let frame = publish("a.b", "r", &headers, &payload);
            // The frame that a server delivers for it.
            let delivered = if headers.is_empty() { "MSG a.b 7 " } else { "HMSG a.b 7 " };
            let line_end = frame.windows(2).position(|window| window == LINE_END).unwrap();
            let line = std::str::from_utf8(&frame[..line_end]).unwrap();
            let rest = line.split_once(" a.b ").unwrap().1;
            let mut buffer = BytesMut::from(delivered.as_bytes());
            buffer.extend_from_slice(rest.as_bytes());
            buffer.extend_from_slice(&frame[line_end..]);
            let frame = decode(&mut buffer).unwrap().unwrap();
            let expected = Message { headers, ..message("a.b", "r", &[], &payload) };
            prop_assert_eq!(frame, Frame::Message(expected));
        }
    }
}
