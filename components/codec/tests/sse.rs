//! Written server-sent events read back unchanged by `weir_codec::http::sse_reader`, whose own tests compare it with the vectors of
//! `tests/golden/sse_parser.jsonl`.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::Value;
use weir_codec::{
    channels::{event::StreamEvent, publish::WorkflowBody, route::Channel},
    http::{
        sse::{self, SseEvent},
        sse_reader::{Event, EventReader, Received},
    },
};

/// The content of a stream.
#[derive(Debug, Default, PartialEq)]
struct StreamContent {
    events: Vec<Event>,
    retries: Vec<u64>,
    comments: Vec<String>,
}

/// Reads a stream that is cut into pieces.
fn read_cut(stream: &str, cuts: &[usize]) -> StreamContent {
    let bytes = stream.as_bytes();
    let mut cuts: Vec<usize> = cuts.iter().map(|at| at % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    let (mut reader, mut received, mut from) = (EventReader::new(), Vec::new(), 0);
    for at in cuts.into_iter().chain([bytes.len()]) {
        reader.feed(&bytes[from..at], &mut received).unwrap();
        from = at;
    }
    let mut content = StreamContent::default();
    for item in received {
        match item {
            Received::Event(event) => content.events.push(event),
            Received::Retry(ms) => content.retries.push(ms),
            Received::Comment(comment) => content.comments.push(comment),
        }
    }
    content
}

fn read(stream: &str) -> StreamContent {
    read_cut(stream, &[])
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
