//! An incremental reader of server-sent events (the HTML standard, section 9.2.6). Bytes that are not UTF-8 become U+FFFD.

use thiserror::Error;

/// Default bound of [`EventReader`]: the maximum length of a line, and of the data of an event, in bytes.
pub const EVENT_BYTES_MAX: usize = 8 << 20;
/// The byte order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// An element of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// An event with data.
    Event(Event),
    /// The reconnection time, in milliseconds.
    Retry(u64),
    /// A comment, such as a heartbeat.
    Comment(String),
}

/// An event with data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The id that this event sets; an empty one resets the last id.
    pub id: Option<String>,
    /// Its name; `None` is `message`.
    pub name: Option<String>,
    /// Its data, with its lines joined by LF.
    pub data: String,
}

/// A line, or the data of an event, exceeds the bound of the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an event has more than {bytes_max} bytes")]
pub struct EventTooLong {
    /// The bound, in bytes.
    pub bytes_max: usize,
}

/// The state of a reader. The last id, which a client sends to resume, is left to the caller.
#[derive(Debug)]
pub struct EventReader {
    bytes_max: usize,
    /// The beginning of an incomplete line.
    line: Vec<u8>,
    /// The first line, which may begin with a byte order mark, was read.
    has_begun: bool,
    /// The last byte was a CR; an LF that follows belongs to the same line end.
    after_cr: bool,
    data: Option<String>,
    name: Option<String>,
    id: Option<String>,
}

impl Default for EventReader {
    fn default() -> Self {
        Self::new()
    }
}

impl EventReader {
    /// A reader at the beginning of a stream, with the bound [`EVENT_BYTES_MAX`].
    pub fn new() -> Self {
        Self::with_bytes_max(EVENT_BYTES_MAX)
    }

    /// A reader at the beginning of a stream, whose lines and events have at most `bytes_max` bytes.
    pub fn with_bytes_max(bytes_max: usize) -> Self {
        Self { bytes_max, line: Vec::new(), has_begun: false, after_cr: false, data: None, name: None, id: None }
    }

    /// Reads bytes and appends the elements that they complete to `received`.
    ///
    /// # Errors
    ///
    /// [`EventTooLong`]: the rest of the stream must not be read.
    pub fn feed(&mut self, bytes: &[u8], received: &mut Vec<Received>) -> Result<(), EventTooLong> {
        let mut rest = bytes;
        if std::mem::take(&mut self.after_cr) {
            match rest.strip_prefix(b"\n") {
                Some(after) => rest = after,
                None => self.after_cr = rest.is_empty(),
            }
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.push(&rest[..end])?;
            let is_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if is_cr {
                match rest.strip_prefix(b"\n") {
                    Some(after) => rest = after,
                    None => self.after_cr = rest.is_empty(),
                }
            }
            let line = std::mem::take(&mut self.line);
            self.handle_line(&line, received)?;
        }
        self.push(rest)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), EventTooLong> {
        if self.line.len() + bytes.len() > self.bytes_max {
            return Err(EventTooLong { bytes_max: self.bytes_max });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn handle_line(&mut self, line: &[u8], received: &mut Vec<Received>) -> Result<(), EventTooLong> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let line = if is_first { line.strip_prefix(MARK).unwrap_or(line) } else { line };
        let line = String::from_utf8_lossy(line);
        if line.is_empty() {
            let (id, name) = (self.id.take(), self.name.take());
            if let Some(data) = self.data.take() {
                received.push(Received::Event(Event { id, name, data }));
            }
            return Ok(());
        }
        if let Some(comment) = line.strip_prefix(':') {
            received.push(Received::Comment(comment.strip_prefix(' ').unwrap_or(comment).to_owned()));
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) if data.len() + value.len() >= self.bytes_max => {
                    return Err(EventTooLong { bytes_max: self.bytes_max });
                }
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "event" => self.name = Some(value.to_owned()).filter(|name| !name.is_empty()),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                received.extend(value.parse().ok().map(Received::Retry));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Received> {
        let (mut reader, mut received) = (EventReader::new(), Vec::new());
        for piece in pieces {
            reader.feed(piece, &mut received).unwrap();
        }
        received
    }

    /// The vectors of `tests/golden`, which were recorded from an independent reader: cut in two at every byte, and byte by byte.
    #[test]
    fn reader_passes_the_vectors_at_every_split() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sse_parser.jsonl");
        let vectors = std::fs::read_to_string(path).unwrap();
        let mut count = 0;
        for line in vectors.lines() {
            let vector: Value = serde_json::from_str(line).unwrap();
            let array = |name: &str| vector[name].as_array().cloned().unwrap_or_default();
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let events: Vec<Event> = array("ev")
                .iter()
                .map(|event| Event {
                    id: text(&event["id"]),
                    name: text(&event["event"]),
                    data: text(&event["data"]).unwrap(),
                })
                .collect();
            let retries: Vec<u64> = array("retry").iter().map(|retry| retry.as_u64().unwrap()).collect();
            let comments: Vec<String> = array("com").iter().map(|comment| text(comment).unwrap()).collect();
            let input = vector["input"].as_str().unwrap().as_bytes();
            for cut in 0..=input.len() {
                let received = read([&input[..cut], &input[cut..]]);
                let (mut got, mut got_retries, mut got_comments) = (Vec::new(), Vec::new(), Vec::new());
                for item in received {
                    match item {
                        Received::Event(event) => got.push(event),
                        Received::Retry(ms) => got_retries.push(ms),
                        Received::Comment(comment) => got_comments.push(comment),
                    }
                }
                let name = &vector["name"];
                assert_eq!(
                    (got, got_retries, got_comments),
                    (events.clone(), retries.clone(), comments.clone()),
                    "{name} cut at {cut}"
                );
            }
            assert_eq!(read(input.chunks(1)), read([input]), "{} byte by byte", vector["name"]);
            count += 1;
        }
        assert_eq!(count, 300);
    }

    #[test]
    fn length_of_a_line_and_of_the_data_is_bounded() {
        let (mut reader, mut received) = (EventReader::new(), Vec::new());
        let long = vec![b'x'; EVENT_BYTES_MAX / 2 + 1];
        assert_eq!(reader.feed(&long, &mut received), Ok(()));
        let too_long = Err(EventTooLong { bytes_max: EVENT_BYTES_MAX });
        assert_eq!(reader.feed(&long, &mut received), too_long);
        let mut reader = EventReader::new();
        let line = [b"data:", &long[..], b"\n"].concat();
        assert_eq!(reader.feed(&line, &mut received), Ok(()));
        assert_eq!(reader.feed(&line, &mut received), too_long);
        assert_eq!(received, []);
    }
}
