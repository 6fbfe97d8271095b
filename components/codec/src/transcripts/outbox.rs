//! What a session says, on its way out: to the models that are asked about it, into the channel that keeps it, and to the
//! client.
//!
//! It does no IO. Whoever drives it hands over what the session says, takes a [`Batch`] when there is one, has its
//! [`Telling::questions`] answered, appends its [`Batch::records`] where the session is stored, and gives it back with
//! [`Telling::handle_told`]; only then is it for the client. All that one input led to is in one batch, so that what is stored are
//! whole inputs.

use std::{collections::VecDeque, io::Write as _, mem};

use weir_core::transcripts::Event;

use super::{
    event::{EventLine, Said},
    input::Refusal,
    semantic::Parts,
    stored::Annotate,
};
use crate::{
    http::framing::Framing,
    inference::output::{Entity, ItemError, Label},
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
    asked: Option<Box<About>>,
    /// It belongs into the channel; what is no event is for this client alone.
    is_event: bool,
    /// The next belongs to the same input.
    more: bool,
}

/// What waits to be told, in its order.
#[derive(Debug)]
enum Waiting {
    Told(Told),
    /// The session as it is after what stands before, and before what stands behind.
    Checkpoint(Vec<u8>),
}

/// An event that models are asked about, until they have answered.
#[derive(Debug)]
struct About {
    event: Event,
    number: Option<u64>,
    seq: Option<u64>,
    said: Said,
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
    waiting: VecDeque<Waiting>,
    /// All that has come is to be told.
    paused: bool,
    /// Batches that were taken and not given back.
    taken: usize,
    line_bytes_max: usize,
    out: Vec<u8>,
    /// Events written, for server-sent events of a session that is not stored.
    events: u64,
    closing: Option<Refusal>,
    done: bool,
}

impl Telling {
    /// What a session of one request says.
    pub fn one_shot(annotate: Annotate, framing: Framing) -> Self {
        let Annotate { keywords, intent, sentiment, entities } = annotate;
        Self {
            parts: Parts { keywords, intent },
            sentiment,
            entities,
            framing,
            stored: false,
            waiting: VecDeque::new(),
            paused: false,
            taken: 0,
            line_bytes_max: 0,
            out: Vec::new(),
            events: 0,
            closing: None,
            done: false,
        }
    }

    /// What a session says that is stored: its events have numbers, and places in its channel.
    pub fn stored(annotate: Annotate, framing: Framing) -> Self {
        Self { stored: true, ..Self::one_shot(annotate, framing) }
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
        let about = About { event, number, seq, said: Said::default() };
        let (name, line) = draw(&about, self.parts);
        let asked = asks.then(|| Box::new(about));
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
        self.waiting.push_back(Waiting::Checkpoint(bytes));
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
        self.line_bytes_max = self.line_bytes_max.max(told.line.len());
        self.waiting.push_back(Waiting::Told(told));
    }

    /// The next batch: what came before a checkpoint or a pause, or as much as one batch may have.
    pub fn poll_batch(&mut self) -> Option<Batch> {
        let (mut count, mut bytes, mut whole) = (0, 0, 0);
        let mut ready = None;
        for waiting in &self.waiting {
            let Waiting::Told(told) = waiting else {
                ready = Some(count);
                break;
            };
            (count, bytes) = (count + 1, bytes + told.line.len());
            if !told.more {
                whole = count;
                if count >= BATCH_EVENTS || bytes >= BATCH_BYTES {
                    ready = Some(count);
                    break;
                }
            }
        }
        let paused = (self.paused && whole > 0).then_some(whole);
        let Some(count) = ready.or(paused) else {
            self.paused = false;
            return None;
        };
        let told = self.waiting.drain(..count).filter_map(|waiting| match waiting {
            Waiting::Told(told) => Some(told),
            Waiting::Checkpoint(_) => None,
        });
        let told = told.collect();
        let checkpoint = match self.waiting.pop_front() {
            Some(Waiting::Checkpoint(bytes)) => Some(bytes),
            Some(other) => {
                self.waiting.push_front(other);
                None
            }
            None => None,
        };
        self.taken += 1;
        Some(Batch { told, checkpoint })
    }

    /// A batch has been stored, where it is to be: it is for the client now. `places` are those of its records.
    pub fn handle_told(&mut self, batch: Batch, places: &[(u64, u64)]) {
        self.taken = self.taken.saturating_sub(1);
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
            let line = EventLine::Error { error: &refusal, line: None };
            let told = Told { name: line.name(), line: text(&line), asked: None, is_event: false, more: false };
            self.handle_told(Batch { told: vec![told], checkpoint: None }, &[]);
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

    /// True when something was said that is not for the client yet.
    pub fn is_owing(&self) -> bool {
        self.taken > 0 || !self.waiting.is_empty()
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
            match told.asked.as_deref().map(|about| &about.event) {
                Some(Event::Final(kept)) => {
                    let mut ask = |asked| questions.push(Question { asked, text: kept.segment.text.clone(), at });
                    if self.sentiment {
                        ask(Asked::Sentiment);
                    }
                    if self.entities {
                        ask(Asked::Entities);
                    }
                }
                Some(Event::Summary(due)) => {
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
            let about = batch.told.get_mut(question.at).and_then(|told| told.asked.as_mut());
            let Some(About { said, .. }) = about.map(|about| &mut **about) else { continue };
            match answer {
                Answer::Sentiment(result) => said.sentiment = Some(result),
                Answer::Entities(result) => said.entities = Some(result),
                Answer::Summary(result) => said.summary = Some(result),
            }
        }
        for told in &mut batch.told {
            if let Some(about) = told.asked.take() {
                told.line = draw(&about, self.parts).1;
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

fn draw(about: &About, parts: Parts) -> (&'static str, String) {
    let About { event, number, seq, said } = about;
    let drawn = |event| text(&EventLine::new(event, *number, parts).led_to_by(*seq).with(said));
    let line = drawn(event);
    let line = match event {
        // A window of long segments: its texts are in the final segments too.
        Event::Summary(due) if line.len() > LINE_BYTES_MAX => {
            let mut due = due.clone();
            (due.context, due.prompt) = (String::new(), String::new());
            drawn(&Event::Summary(due))
        }
        _ => line,
    };
    (EventLine::new(event, *number, parts).name(), line)
}

fn text(line: &EventLine<'_>) -> String {
    let mut out = Vec::with_capacity(256);
    line.write(&mut out);
    String::from_utf8(out).expect("JSON is UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::lines::Line,
        transcripts::{
            config::SessionAsk,
            input::{Body, Input, read_line},
        },
    };
    use expect_test::{Expect, expect};
    use weir_core::transcripts::{Chunk, Session, SessionRules};

    fn line(number: u64, content: &str) -> Line<'_> {
        Line { number, content: Some(content.as_bytes()) }
    }

    fn check(out: Option<Vec<u8>>, want: Expect) {
        want.assert_eq(&String::from_utf8(out.unwrap_or_default()).unwrap());
    }

    #[test]
    fn a_transcript_from_line_to_line() {
        let ask = SessionAsk::from_query("max_gap_sec=0.5&annotate=intent").unwrap();
        let mut session = Session::new(SessionRules::new(ask.config.clone()).unwrap(), 0);
        let mut stream = Telling::one_shot((&ask).into(), Framing::Sse);
        for (number, content) in [(1, r#"{"start":0,"end":1,"text":"ok"}"#), (3, "{"), (4, r#"{"op":"end"}"#)] {
            match read_line(&line(number, content)) {
                Ok(Input { seq, body: Body::Chunk(chunk) }) => session.handle_chunk(0, seq, chunk).map(drop).unwrap(),
                Ok(Input { seq, body: Body::End }) => session.handle_end(0, seq).map(drop).unwrap(),
                Err(refusal) => stream.handle_refusal(number, &refusal),
            }
            while let Some(output) = session.poll_event(0) {
                stream.handle_event(output.event, output.number, None, false);
            }
        }
        stream.handle_repeated(1, 2);
        assert!(stream.poll_batch().is_none());
        stream.handle_pause();
        let batch = stream.poll_batch().unwrap();
        assert!(stream.questions(&batch).is_empty());
        stream.handle_told(batch, &[]);
        stream.handle_broken(ItemError::body_incomplete().into());
        assert!(!stream.is_done());
        stream.handle_end();
        check(
            stream.poll_output(),
            expect![[r#"
                id: 1
                event: partial_segment
                data: {"type":"partial_segment","segment":{"start":0.0,"end":1.0,"text":"ok","speaker_id":null}}

                id: 2
                event: error
                data: {"type":"error","error":{"message":"it is not JSON: EOF while parsing an object at column 1","code":"malformed_json"},"line":3}

                id: 3
                event: final_segment
                data: {"type":"final_segment","segment":{"start":0.0,"end":1.0,"text":"ok","speaker_id":null},"segment_id":0,"semantic":{"intent":"agreement"},"workflow":"decision"}

                id: 4
                event: repeated
                data: {"type":"repeated","seq":1,"seq_last":2}

                id: 5
                event: error
                data: {"type":"error","error":{"message":"the body ended before all of it had arrived","code":"body_incomplete"}}

            "#]],
        );
        assert!(stream.is_done());
    }

    /// What a session of this configuration says of chunks of other speakers, each with its sequence number, and of its end.
    fn told(ask: &SessionAsk, telling: &mut Telling, texts: &[&str]) {
        let mut session = Session::new(SessionRules::new(ask.config.clone()).unwrap(), 0);
        for (at, text) in texts.iter().enumerate() {
            let (time, seq) = (at as f64, Some(at as u64));
            let speaker_id = Some(at.to_string());
            session
                .handle_chunk(0, seq, Chunk { start: time, end: time, text: (*text).to_owned(), speaker_id })
                .unwrap();
            say(&mut session, telling, seq);
        }
        let seq = Some(texts.len() as u64);
        session.handle_end(0, seq).unwrap();
        say(&mut session, telling, seq);
    }

    fn say(session: &mut Session, telling: &mut Telling, seq: Option<u64>) {
        let mut next = session.poll_event(0);
        while let Some(output) = next {
            next = session.poll_event(0);
            telling.handle_event(output.event, output.number, seq, next.is_some());
        }
    }

    #[test]
    fn models_are_asked_before_anything_is_stored() {
        let ask =
            SessionAsk::from_json(br#"{"annotate":["sentiment","entities"],"summary":{"every_finals":0}}"#).unwrap();
        let mut telling = Telling::stored((&ask).into(), Framing::Sse);
        told(&ask, &mut telling, &["good"]);
        telling.handle_checkpoint(b"state".to_vec());
        let mut batch = telling.poll_batch().unwrap();
        assert_eq!(batch.checkpoint.as_deref(), Some(b"state".as_slice()));
        let questions = telling.questions(&batch);
        let asked: Vec<_> = questions.iter().map(|question| (question.asked, question.text.as_str())).collect();
        assert_eq!(asked, [(Asked::Sentiment, "good"), (Asked::Entities, "good"), (Asked::Summary, "good")]);
        let answers = [
            Answer::Sentiment(Ok(Label { label: "POSITIVE".to_owned(), score: 0.5 })),
            Answer::Entities(Err(ItemError::new("engine", "it broke"))),
            Answer::Summary(Ok("Good.".to_owned())),
        ];
        telling.handle_answers(&mut batch, questions.into_iter().zip(answers));
        let records = batch.records();
        let names: Vec<_> = records.iter().map(|record| (record.name, record.coalesces)).collect();
        assert_eq!(names, [("partial_segment", true), ("final_segment", false), ("summary_due", false)]);
        telling.handle_told(batch, &[(1, 1), (1, 2), (1, 3)]);
        check(
            telling.poll_output(),
            expect![[r#"
            id: 1-1
            event: partial_segment
            data: {"type":"partial_segment","segment":{"start":0.0,"end":0.0,"text":"good","speaker_id":"0"},"seq":0,"event_id":1}

            id: 1-2
            event: final_segment
            data: {"type":"final_segment","segment":{"start":0.0,"end":0.0,"text":"good","speaker_id":"0"},"segment_id":0,"sentiment":{"label":"POSITIVE","score":0.5},"entities_error":{"code":"engine","message":"it broke","retryable":false},"seq":1,"event_id":2}

            id: 1-3
            event: summary_due
            data: {"type":"summary_due","kind":"final","finals":1,"context":"Recent conversation context:\n[0.0s] 0: good","keywords":[],"prompt":"Recent conversation context:\n[0.0s] 0: good\n\nConversation keywords: \n\nGenerate a final summary covering:\n1. Main topics discussed\n2. Key decisions made\n3. Action items identified\n","summary":"Good.","seq":1,"event_id":3}

        "#]],
        );
    }

    /// What comes behind a checkpoint is not in it, be it that half of what an input led to has come.
    #[test]
    fn a_checkpoint_has_what_came_before_it() {
        let ask = SessionAsk::from_json(b"{}").unwrap();
        let mut telling = Telling::stored((&ask).into(), Framing::Ndjson);
        let partial = |text: &str| {
            Event::Partial(weir_core::transcripts::Segment {
                start: 0.0,
                end: 0.0,
                text: text.to_owned(),
                speaker_id: None,
            })
        };
        telling.handle_event(partial("a"), Some(1), Some(1), false);
        telling.handle_checkpoint(b"1".to_vec());
        telling.handle_event(partial("b"), Some(2), Some(2), true);
        let batch = telling.poll_batch().unwrap();
        assert_eq!((batch.records().len(), batch.checkpoint.as_deref()), (1, Some(b"1".as_slice())));
        assert!(telling.poll_batch().is_none());
        telling.handle_event(partial("c"), Some(3), Some(2), false);
        assert!(telling.poll_batch().is_none());
        telling.handle_checkpoint(b"2".to_vec());
        telling.handle_checkpoint(b"3".to_vec());
        let batch = telling.poll_batch().unwrap();
        assert_eq!((batch.records().len(), batch.checkpoint.as_deref()), (2, Some(b"2".as_slice())));
        let batch = telling.poll_batch().unwrap();
        assert_eq!((batch.is_empty(), batch.checkpoint.as_deref()), (true, Some(b"3".as_slice())));
        assert!(telling.poll_batch().is_none());
    }

    /// Whatever the size of a batch, what one input led to is in one.
    #[test]
    fn batches_are_bounded_and_hold_whole_inputs() {
        let ask = SessionAsk::from_json(br#"{"annotate":[],"summary":{"every_finals":1}}"#).unwrap();
        let mut telling = Telling::stored((&ask).into(), Framing::Ndjson);
        told(&ask, &mut telling, &["a word"; 700]);
        telling.handle_checkpoint(Vec::new());
        let (mut records, mut last_seq) = (Vec::new(), None);
        let mut kept = 0;
        while let Some(batch) = telling.poll_batch() {
            assert_eq!(kept, 0, "the checkpoint comes with the last");
            kept += usize::from(batch.checkpoint.is_some());
            let of_batch = batch.records();
            assert!(of_batch.len() < BATCH_EVENTS + 4);
            let seq =
                |record: &Record| serde_json::from_str::<serde_json::Value>(&record.data).unwrap()["seq"].as_u64();
            assert!(last_seq.is_none_or(|last| last != of_batch.first().and_then(seq)), "an input was cut");
            last_seq = Some(of_batch.last().and_then(seq));
            records.extend(of_batch);
        }
        // A partial, a final and its summary for each, and the last summary.
        assert_eq!((records.len(), kept), (700 * 3 + 1, 1));
    }
}
