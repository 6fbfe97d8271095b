//! Encodes a checkpoint in parts of bounded size: its values have up to a mebibyte each, and one checkpoint has many.

use std::collections::VecDeque;

use serde::Serialize;
use weir_core::pipelines::{Checkpoint, CheckpointStep, Data, Definition, Json, Sequenced};

use super::{VERSION, WireData, WireEvent, WirePhase, WireStep};
use crate::pipelines::definition;

/// Values of at most this size are part of the texts between the values, in bytes.
const SMALL_BYTES: usize = 1 << 10;

/// The remaining parts of an encoded checkpoint. The size of the texts depends on the number of steps and events; large
/// values are referred to, and encoded by [`Encoder::write`].
#[derive(Debug)]
pub struct Encoder {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written.
    written: usize,
}

#[derive(Debug)]
enum Piece {
    /// Encoded text.
    Text(Vec<u8>),
    /// A value, which becomes the content of a JSON string.
    Value(Json),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text,
            Self::Value(value) => value.as_str().as_bytes(),
        }
    }
}

impl Encoder {
    /// Encodes everything but the large values.
    pub fn new(checkpoint: &Checkpoint, definition: &Definition) -> Self {
        let mut out = Writer::default();
        out.begin('{');
        out.member("version", &VERSION).member("number", &checkpoint.number);
        out.member("execution_id", &*checkpoint.execution_id).member("definition", &definition::to_json(definition));
        out.value("input", &checkpoint.input);
        out.member("began_unix_ns", &checkpoint.began_unix_ns).member("unix_ns", &checkpoint.unix_ns);
        out.member("elapsed_ns", &checkpoint.elapsed_ns).member("resumes", &checkpoint.resumes);
        out.member("runs", &checkpoint.runs);
        out.name("steps").begin('[');
        for step in &checkpoint.steps {
            match step {
                CheckpointStep::Completed(output) => {
                    out.element().begin('{').value("completed", output).end('}');
                }
                step => {
                    out.element().json(&WireStep::from(step));
                }
            }
        }
        out.end(']');
        let times: Vec<_> = checkpoint.times.iter().map(|times| (times.began_unix_ns, times.duration_ns)).collect();
        out.member("times", &times).member("completed", &checkpoint.completed);
        out.member("phase", &WirePhase::from(&checkpoint.phase));
        out.member("compensations_over", &checkpoint.compensations_over);
        out.member("compensations_failed", &checkpoint.compensations_failed);
        out.member("events_end", &checkpoint.events_end);
        out.name("outbox").begin('[');
        for sequenced in &checkpoint.outbox {
            out.element().event(sequenced);
        }
        out.end(']').end('}');
        Self { pieces: out.finish(), written: 0 }
    }

    /// Appends encoded bytes from at most `bytes_max` bytes of texts and values; returns whether more remains.
    pub fn write(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        let mut bytes_left = bytes_max;
        while let Some(piece) = self.pieces.front() {
            let rest = &piece.bytes()[self.written..];
            let taken = &rest[..rest.len().min(bytes_left)];
            match piece {
                Piece::Text(_) => out.extend_from_slice(taken),
                Piece::Value(_) => escape(taken, out),
            }
            bytes_left -= taken.len();
            if taken.len() < rest.len() {
                self.written += taken.len();
                return true;
            }
            self.written = 0;
            self.pieces.pop_front();
        }
        false
    }

    /// The size of the remaining texts and values. Their encoding is at least as long.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes().len()).sum::<usize>() - self.written
    }
}

/// Appends bytes of a text as the content of a JSON string. Each byte is escaped by itself, so the bytes can be any part
/// of the text.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..b' ')) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            byte => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Writes objects and arrays whose large values are left out.
#[derive(Default)]
struct Writer {
    pieces: VecDeque<Piece>,
    text: Vec<u8>,
}

impl Writer {
    fn begin(&mut self, bracket: char) -> &mut Self {
        self.text.push(bracket as u8);
        self
    }

    fn end(&mut self, bracket: char) -> &mut Self {
        self.text.push(bracket as u8);
        self
    }

    /// The comma before an element, unless it is the first.
    fn element(&mut self) -> &mut Self {
        if !matches!(self.text.last(), None | Some(b'{' | b'[')) {
            self.text.push(b',');
        }
        self
    }

    fn name(&mut self, name: &str) -> &mut Self {
        self.element();
        self.text.push(b'"');
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b"\":");
        self
    }

    fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> &mut Self {
        self.text.extend(crate::json::to_vec(&value));
        self
    }

    fn member<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> &mut Self {
        self.name(name).json(value)
    }

    /// A member whose value is the text of a JSON value.
    fn value(&mut self, name: &str, value: &Json) -> &mut Self {
        self.name(name).text.push(b'"');
        if value.bytes() <= SMALL_BYTES {
            escape(value.as_str().as_bytes(), &mut self.text);
        } else {
            self.pieces.push_back(Piece::Text(std::mem::take(&mut self.text)));
            self.pieces.push_back(Piece::Value(value.clone()));
        }
        self.text.push(b'"');
        self
    }

    fn event(&mut self, sequenced: &Sequenced) -> &mut Self {
        let WireEvent { seq, step_id, unix_ns, attempt, run, resumed, compensates, .. } = WireEvent::from(sequenced);
        self.begin('{').member("seq", &seq).member("step_id", &step_id).member("unix_ns", &unix_ns);
        match &sequenced.event.data {
            Data::StepOutput { index, output } => {
                self.name("data").begin('{').name("step_output").begin('{');
                self.member("index", index).value("output", output).end('}').end('}')
            }
            Data::StepComplete { kind, output, duration_ns } => {
                self.name("data").begin('{').name("step_complete").begin('{').member("kind", kind.name());
                self.value("output", output).member("duration_ns", duration_ns).end('}').end('}')
            }
            Data::PipelineComplete { output, duration_ns, steps_completed, steps_failed } => {
                self.name("data").begin('{').name("pipeline_complete").begin('{').value("output", output);
                self.member("duration_ns", duration_ns).member("steps_completed", steps_completed);
                self.member("steps_failed", steps_failed).end('}').end('}')
            }
            data => self.member("data", &WireData::from(data)),
        };
        self.member("attempt", &attempt).member("run", &run).member("resumed", &resumed);
        self.member("compensates", &compensates).end('}')
    }

    fn finish(mut self) -> VecDeque<Piece> {
        self.pieces.push_back(Piece::Text(self.text));
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn escaped_text_is_that_of_serde_in_any_parts(text in "[ -~\\u{80}-\\u{10ffff}]{0,60}", at in 0usize..60) {
            let expected = serde_json::to_vec(&text).unwrap();
            let at = at.min(text.len());
            let mut escaped = Vec::new();
            escape(&text.as_bytes()[..at], &mut escaped);
            escape(&text.as_bytes()[at..], &mut escaped);
            prop_assert_eq!(&expected[1..expected.len() - 1], &escaped[..]);
        }
    }
}
