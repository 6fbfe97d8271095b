//! Written server-sent events read back unchanged. The reader in this file passes the vectors of `tests/golden/sse_parser.jsonl`, which were
//! recorded from an independent reader.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;
use weir_codec::{
    channels::{event::StreamEvent, publish::WorkflowBody, route::Channel},
    http::sse::{self, SseEvent},
};

/// The content of a stream.
#[derive(Debug, Default, PartialEq)]
struct StreamContent {
    events: Vec<Event>,
    retries: Vec<u64>,
    comments: Vec<String>,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Event {
    id: Option<String>,
    name: Option<String>,
    data: String,
}

/// An incremental reader that follows the standard, section 9.2.6.
#[derive(Default)]
struct Reader {
    content: StreamContent,
    has_begun: bool,
    /// The last piece ended in a CR, whose LF may follow.
    after_cr: bool,
    line: String,
    data: Option<String>,
    name: Option<String>,
    id: Option<String>,
}

impl Reader {
    fn feed(&mut self, piece: &str) {
        for c in piece.chars() {
            let first = !std::mem::replace(&mut self.has_begun, true);
            let after_cr = std::mem::take(&mut self.after_cr);
            match c {
                '\u{feff}' if first => {}
                '\n' if after_cr => {}
                '\r' | '\n' => {
                    self.after_cr = c == '\r';
                    let line = std::mem::take(&mut self.line);
                    self.take(&line);
                }
                _ => self.line.push(c),
            }
        }
    }

    fn take(&mut self, line: &str) {
        if line.is_empty() {
            let event = Event { id: self.id.take(), name: self.name.take(), data: String::new() };
            if let Some(data) = self.data.take() {
                self.content.events.push(Event { data, ..event });
            }
            return;
        }
        if let Some(comment) = line.strip_prefix(':') {
            self.content.comments.push(comment.strip_prefix(' ').unwrap_or(comment).to_owned());
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "event" => self.name = Some(value.to_owned()).filter(|name| !name.is_empty()),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.content.retries.extend(value.parse::<u64>());
            }
            _ => {}
        }
    }
}

fn read(stream: &str) -> StreamContent {
    let mut reader = Reader::default();
    reader.feed(stream);
    reader.content
}

/// Reads a stream that is cut at UTF-16 code units, as in the vectors; a cut within a character is moved after it.
fn read_cut(stream: &str, cuts: &[usize]) -> StreamContent {
    let mut reader = Reader::default();
    let mut units = 0;
    let mut piece = String::new();
    for c in stream.chars() {
        if cuts.contains(&units) {
            reader.feed(&std::mem::take(&mut piece));
        }
        piece.push(c);
        units += c.len_utf16();
    }
    reader.feed(&piece);
    reader.content
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[test]
fn reader_passes_the_vectors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sse_parser.jsonl");
    let vectors = std::fs::read_to_string(path).unwrap();
    let mut count = 0;
    for line in vectors.lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        let array = |name: &str| vector[name].as_array().cloned().unwrap_or_default();
        let want = StreamContent {
            events: array("ev")
                .iter()
                .map(|event| Event {
                    id: text(&event["id"]),
                    name: text(&event["event"]),
                    data: text(&event["data"]).unwrap(),
                })
                .collect(),
            retries: array("retry").iter().map(|retry| retry.as_u64().unwrap()).collect(),
            comments: array("com").iter().map(|comment| text(comment).unwrap()).collect(),
        };
        let cuts: Vec<usize> = array("cuts").iter().map(|cut| cut.as_u64().unwrap() as usize).collect();
        let input = vector["input"].as_str().unwrap();
        assert_eq!(read_cut(input, &cuts), want, "{}", vector["name"]);
        assert_eq!(read(input), want, "{} in one piece", vector["name"]);
        count += 1;
    }
    assert_eq!(count, 300);
}

/// A text with its line ends as a reader returns them.
fn normal(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Texts with characters and fields that could break an event.
fn framing_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[\r\n\0\u{feff}\u{2028}\u{2029}\u{85}: a]{0,12}",
        "(id|event|data|retry|)(: ?|)[\r\n]{0,2}(id: 9|data: x|event: y)?[\r\n]{0,3}",
        "\\PC{0,12}",
    ]
}

proptest! {
    #[test]
    fn arbitrary_value_reads_back(
        events in prop::collection::vec(
            (
                prop::option::of(framing_text()),
                prop::option::of(framing_text()),
                framing_text(),
                prop::option::of(any::<u32>()),
                framing_text(),
            ),
            0..5,
        ),
        cuts in prop::collection::vec(0usize..200, 0..4),
    ) {
        let mut out = Vec::new();
        let mut want = StreamContent::default();
        for (id, name, data, retry_ms, comment) in &events {
            let mut event = SseEvent::new(data.as_bytes());
            let mut expected = Event { data: normal(data), ..Event::default() };
            let breaks = |text: &str| text.contains(['\r', '\n', '\0']);
            if let Some(id) = id {
                match event.with_id(id) {
                    Ok(with) => (event, expected.id) = (with, Some(id.clone())),
                    Err(_) => prop_assert!(breaks(id)),
                }
            }
            if let Some(name) = name {
                match event.with_name(name) {
                    Ok(with) => (event, expected.name) = (with, Some(name.clone()).filter(|name| !name.is_empty())),
                    Err(_) => prop_assert!(breaks(name)),
                }
            }
            if let Some(retry_ms) = retry_ms {
                event = event.with_retry_ms(*retry_ms);
                want.retries.push(u64::from(*retry_ms));
            }
            // Events and comments are appended to one buffer.
            event.push(&mut out);
            sse::push_comment(&mut out, comment);
            out.extend_from_slice(sse::HEARTBEAT);
            want.events.push(expected);
            want.comments.extend(comment.split(['\r', '\n']).map(str::to_owned));
            want.comments.push(String::new());
        }
        let stream = String::from_utf8(out).expect("UTF-8");
        prop_assert_eq!(read(&stream), StreamContent { ..want });
        prop_assert_eq!(read(&stream), read_cut(&stream, &cuts));
    }

    #[test]
    fn published_data_cannot_leave_its_event(step in framing_text(), message in framing_text(), key in framing_text()) {
        let body = serde_json::json!({
            "step": step, "progress": 7, "message": message, "metadata": { key.clone(): message.clone() },
        });
        let Ok(body) = WorkflowBody::from_json(&serde_json::to_vec(&body).expect("JSON")) else {
            prop_assert!(step.is_empty());
            return Ok(());
        };
        let event = StreamEvent::from(&body);
        let data = event.data(&Channel::from_name("workflow:42").expect("a channel"), 0);
        let mut out = Vec::new();
        SseEvent::new(&data).with_id("e-1").and_then(|e| e.with_name(event.name())).expect("fit").push(&mut out);
        let content = read(std::str::from_utf8(&out).expect("UTF-8"));
        prop_assert_eq!(content.events.len(), 1);
        prop_assert!(content.comments.is_empty() && content.retries.is_empty());
        let read_data: Value = serde_json::from_str(&content.events[0].data).expect("JSON");
        prop_assert_eq!(read_data["step"].as_str(), Some(step.as_str()));
        prop_assert_eq!(read_data["message"].as_str(), Some(message.as_str()));
        prop_assert_eq!(read_data["metadata"][&key].as_str(), Some(message.as_str()));
    }
}
