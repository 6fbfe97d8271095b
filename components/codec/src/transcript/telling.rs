//! What a session says, on its way out: to the models that are asked about it, into the channel that keeps it, and to the
//! client.
//!
//! It does no IO. Whoever drives it hands over what the session says, takes a [`Batch`] when there is one, has its
//! [`Batch::questions`] answered, appends its [`Batch::records`] where the session is stored, and gives it back with
//! [`Telling::handle_told`]; only then is it for the client. All that one input led to is in one batch, so that what is stored are
//! whole inputs.

use std::{io::Write as _, mem};

use weir_core::session::Event;

use super::{
    config::SessionAsk,
    event::{EventLine, Said},
    input::Refusal,
    semantic::Parts,
};
use crate::{
    frame::Framing,
    output::{Entity, ItemError, Label},
};

/// Events from which a batch is full; it may have those of one input more.
const BATCH_EVENTS: usize = 200;
/// Bytes from which a batch is full.
const BATCH_BYTES: usize = 256 << 10;
/// A line with more bytes leaves out what it says twice.
const LINE_BYTES_MAX: usize = 200 << 10;

/// Something that was said.
#[derive(Debug)]
struct Told {
    name: &'static str,
    line: String,
    /// The event, where a model is asked about it.
    asked: Option<Box<(Event, Option<u64>, Option<u64>, Said)>>,
    /// It belongs into the channel; what is no event is for this client alone.
    is_event: bool,
    /// The next belongs to the same input.
    more: bool,
}

/// What is asked of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The label of a final segment.
    Sentiment,
    /// The entities of a final segment.
    Entities,
    /// The sentences that say most of a window.
    Summary,
}

/// A question about an event of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub asked: Asked,
    /// Of what.
    pub text: String,
    /// The place in the batch.
    at: usize,
}

/// What is answered to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// [`Asked::Sentiment`]
    Sentiment(Result<Label, ItemError>),
    /// [`Asked::Entities`]
    Entities(Result<Vec<Entity>, ItemError>),
    /// [`Asked::Summary`]
    Summary(Result<String, ItemError>),
}

/// An event for the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The kind of event.
    pub name: &'static str,
    /// The event, as JSON.
    pub data: String,
    /// A later one of this name says all that it says.
    pub coalesces: bool,
}

/// Some of what was said: whole inputs, in their order.
#[derive(Debug, Default)]
pub struct Batch {
    told: Vec<Told>,
    /// The session as it is after it.
    pub checkpoint: Option<Vec<u8>>,
}

/// What a session says.
#[derive(Debug)]
pub struct Telling {
    parts: Parts,
    sentiment: bool,
    entities: bool,
    framing: Framing,
    stored: bool,
    waiting: Vec<Told>,
    waiting_bytes: usize,
    checkpoint: Option<Vec<u8>>,
    /// All that has come is to be told.
    paused: bool,
    line_bytes_max: usize,
    out: Vec<u8>,
    /// Events written, for server-sent events of a session that is not stored.
    events: u64,
    closing: Option<Refusal>,
    done: bool,
}

impl Telling {
    /// What a session of one request says.
    pub fn one_shot(ask: &SessionAsk, framing: Framing) -> Self {
        Self {
            parts: ask.parts(),
            sentiment: ask.sentiment,
            entities: ask.entities,
            framing,
            stored: false,
            waiting: Vec::new(),
            waiting_bytes: 0,
            checkpoint: None,
            paused: false,
            line_bytes_max: 0,
            out: Vec::new(),
            events: 0,
            closing: None,
            done: false,
        }
    }

    /// What a session says that is stored: its events have numbers, and places in its channel.
    pub fn stored(ask: &SessionAsk, framing: Framing) -> Self {
        Self { stored: true, ..Self::one_shot(ask, framing) }
    }

    /// The session says something: its number, the sequence number of the input that led to it, and whether that input led to
    /// more, which comes next.
    pub fn handle_event(&mut self, event: Event, number: Option<u64>, seq: Option<u64>, more: bool) {
        let (number, seq) = if self.stored { (number, seq) } else { (None, None) };
        let asks = match &event {
            Event::Final(_) => self.sentiment || self.entities,
            Event::Summary(_) => true,
            _ => false,
        };
        let said = Said::default();
        let (name, line) = draw(&event, number, seq, &said, self.parts);
        let asked = asks.then(|| Box::new((event, number, seq, said)));
        self.push(Told { name, line, asked, is_event: true, more });
    }

    /// The session did not take a line.
    pub fn handle_refusal(&mut self, line: u64, refusal: &Refusal) {
        self.answer(&EventLine::Error { error: refusal, line: (line > 0).then_some(line) });
    }

    /// The session had taken it before.
    pub fn handle_repeated(&mut self, seq: u64, seq_last: u64) {
        self.answer(&EventLine::Repeated { seq, seq_last });
    }

    /// The session as it is after all that it has said.
    pub fn handle_checkpoint(&mut self, bytes: Vec<u8>) {
        self.checkpoint = Some(bytes);
    }

    /// Nothing more comes for now: what waits is told.
    pub fn handle_pause(&mut self) {
        self.paused = true;
    }

    /// Something that is no event of the session's own is said last of all, and told in the channel: that it has ended.
    pub fn handle_ended(&mut self) {
        let line = EventLine::SessionEnded;
        let (name, line) = (line.name(), text(&line));
        self.push(Told { name, line, asked: None, is_event: true, more: false });
    }

    fn answer(&mut self, line: &EventLine<'_>) {
        let (name, line) = (line.name(), text(line));
        self.push(Told { name, line, asked: None, is_event: false, more: false });
    }

    fn push(&mut self, told: Told) {
        self.waiting_bytes += told.line.len();
        self.line_bytes_max = self.line_bytes_max.max(told.line.len());
        self.waiting.push(told);
    }

    /// The next batch: what came before a checkpoint or a pause, or as much as one batch may have.
    pub fn poll_batch(&mut self) -> Option<Batch> {
        let full = self.waiting.len() >= BATCH_EVENTS || self.waiting_bytes >= BATCH_BYTES;
        if !full && !self.paused && self.checkpoint.is_none() {
            return None;
        }
        let (mut count, mut bytes, mut whole) = (0, 0, 0);
        for told in &self.waiting {
            (count, bytes) = (count + 1, bytes + told.line.len());
            if !told.more {
                whole = count;
                if count >= BATCH_EVENTS || bytes >= BATCH_BYTES {
                    break;
                }
            }
        }
        if whole == 0 && self.checkpoint.is_none() {
            self.paused = false;
            return None;
        }
        let rest = self.waiting.split_off(whole);
        let told = mem::replace(&mut self.waiting, rest);
        self.waiting_bytes = self.waiting.iter().map(|told| told.line.len()).sum();
        let checkpoint = if self.waiting.is_empty() { self.checkpoint.take() } else { None };
        self.paused &= !self.waiting.is_empty();
        Some(Batch { told, checkpoint })
    }

    /// A batch has been stored, where it is to be: it is for the client now. `places` are those of its records.
    pub fn handle_told(&mut self, batch: Batch, places: &[(u64, u64)]) {
        let mut places = places.iter();
        for told in &batch.told {
            self.events += 1;
            if self.framing == Framing::Sse {
                match (self.stored, told.is_event) {
                    (false, _) => writeln!(self.out, "id: {}", self.events),
                    (true, true) => match places.next() {
                        Some((epoch, seq)) => writeln!(self.out, "id: {epoch}-{seq}"),
                        None => Ok(()),
                    },
                    // What is no event has no place to go on from.
                    (true, false) => Ok(()),
                }
                .expect("a vector takes every write");
                write!(self.out, "event: {}\ndata: ", told.name).expect("a vector takes every write");
            }
            self.out.extend_from_slice(told.line.as_bytes());
            self.framing.end(&mut self.out);
        }
    }

    /// No more lines come, though more should: why. It is said last.
    pub fn handle_broken(&mut self, refusal: Refusal) {
        self.closing.get_or_insert(refusal);
    }

    /// The session says no more to this client.
    pub fn handle_end(&mut self) {
        if let Some(refusal) = self.closing.take() {
            self.handle_refusal(0, &refusal);
            let told = self.waiting.split_off(self.waiting.len() - 1);
            self.handle_told(Batch { told, checkpoint: None }, &[]);
        }
        self.done = true;
    }

    /// What is to be written now, if anything.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        (!self.out.is_empty()).then(|| mem::take(&mut self.out))
    }

    /// Bytes that were not taken.
    pub fn output_bytes(&self) -> usize {
        self.out.len()
    }

    /// True when all was taken, and no more comes.
    pub fn is_done(&self) -> bool {
        self.done && self.out.is_empty()
    }

    /// Bytes of the longest line since this was last asked.
    pub fn take_line_bytes_max(&mut self) -> usize {
        mem::take(&mut self.line_bytes_max)
    }

    /// What models are asked about a batch.
    pub fn questions(&self, batch: &Batch) -> Vec<Question> {
        let mut questions = Vec::new();
        for (at, told) in batch.told.iter().enumerate() {
            match told.asked.as_deref() {
                Some((Event::Final(kept), ..)) => {
                    let mut ask =
                        |asked| questions.push(Question { asked, text: kept.segment.text.clone(), at });
                    if self.sentiment {
                        ask(Asked::Sentiment);
                    }
                    if self.entities {
                        ask(Asked::Entities);
                    }
                }
                Some((Event::Summary(due), ..)) => {
                    questions.push(Question { asked: Asked::Summary, text: due.transcript.clone(), at });
                }
                _ => {}
            }
        }
        questions
    }

    /// What models answered about a batch, each to its question.
    pub fn handle_answers(&self, batch: &mut Batch, answers: impl Iterator<Item = (Question, Answer)>) {
        for (question, answer) in answers {
            let asked = batch.told.get_mut(question.at).and_then(|told| told.asked.as_mut());
            let Some((.., said)) = asked.map(|asked| &mut **asked) else { continue };
            match answer {
                Answer::Sentiment(result) => said.sentiment = Some(result),
                Answer::Entities(result) => said.entities = Some(result),
                Answer::Summary(result) => said.summary = Some(result),
            }
        }
        for told in &mut batch.told {
            if let Some(asked) = told.asked.take() {
                let (event, number, seq, said) = *asked;
                told.line = draw(&event, number, seq, &said, self.parts).1;
            }
        }
    }
}

impl Batch {
    /// The events of it, for the channel.
    pub fn records(&self) -> Vec<Record> {
        let events = self.told.iter().filter(|told| told.is_event);
        events
            .map(|Told { name, line, .. }| Record { name, data: line.clone(), coalesces: *name == "partial_segment" })
            .collect()
    }

    /// Nothing was said in it.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }
}

fn draw(event: &Event, number: Option<u64>, seq: Option<u64>, said: &Said, parts: Parts) -> (&'static str, String) {
    let line = EventLine::new(event, number, parts).led_to_by(seq).with(said);
    let (name, drawn) = (line.name(), text(&line));
    match event {
        // A window of long segments: its texts are in the final segments too.
        Event::Summary(due) if drawn.len() > LINE_BYTES_MAX => {
            let mut due = due.clone();
            (due.context, due.prompt) = (String::new(), String::new());
            let event = Event::Summary(due);
            let short = EventLine::new(&event, number, parts).led_to_by(seq).with(said);
            (name, text(&short))
        }
        _ => (name, drawn),
    }
}

fn text(line: &EventLine<'_>) -> String {
    let mut out = Vec::with_capacity(256);
    line.write(&mut out);
    String::from_utf8(out).expect("JSON is UTF-8")
}
