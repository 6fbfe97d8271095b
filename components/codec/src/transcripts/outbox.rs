//! Queues the events of a session for models, for the session's channel and for its client.
//!
//! It does no IO. A driver passes in the outputs of the session, takes a [`Batch`] with [`EventOutbox::poll_batch`], obtains the results of
//! its [`EventOutbox::queries`], appends its [`Batch::records`] to the channel if the session is stored, and returns the batch with
//! [`EventOutbox::handle_stored`]; only then is it written to the client. All events of an input are in one batch, so that the store never
//! has a part of an input.

use std::{collections::VecDeque, io::Write as _, mem};

use weir_core::{
    inference::{rewrite::SummaryText, text_step::TextStep},
    transcripts::Event,
};

use super::{
    event::{Enrichment, EventLine},
    input::Refusal,
    semantic::SemanticParts,
    stored::Annotate,
};
use crate::{
    http::framing::Framing,
    inference::output::{Entity, ItemError, LabelScore},
};

/// Events from which a batch is full; the events of its last input may exceed it.
const BATCH_EVENTS: usize = 200;
/// Bytes from which a batch is full.
const BATCH_BYTES: usize = 256 << 10;
/// Bytes from which the line of a summary omits the context and the prompt, whose texts are in final segments too.
const LINE_BYTES_MAX: usize = 200 << 10;

/// An event that is not yet written to the client.
#[derive(Debug)]
struct PendingEvent {
    name: &'static str,
    line: String,
    /// The event, until the models have answered its queries.
    source: Option<Box<SourceEvent>>,
    /// It is also for the channel; replies are for this client only.
    is_event: bool,
    /// The next event belongs to the same input.
    more: bool,
}

/// An entry of the outbox, in the order of the session's outputs.
#[derive(Debug)]
enum OutboxEntry {
    Event(PendingEvent),
    /// The state of the session between the entries before and after it.
    Checkpoint(Vec<u8>),
}

/// The source that the line of an event is rendered from.
#[derive(Debug)]
struct SourceEvent {
    event: Event,
    number: Option<u64>,
    seq: Option<u64>,
    enrichment: Enrichment,
}

/// A request to a model for an event of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The step that computes it: sentiment or entities of a final segment, or the summary of a window.
    pub step: TextStep,
    /// The text to compute it for.
    pub text: String,
    /// A language model rewrites the summary.
    pub is_abstractive: bool,
    /// The index of the event in the batch.
    event: usize,
}

/// The result of a [`Query`].
#[derive(Debug, Clone, PartialEq)]
pub enum QueryResult {
    /// The result of [`TextStep::Sentiment`].
    Sentiment(Result<LabelScore, ItemError>),
    /// The result of [`TextStep::Entities`].
    Entities(Result<Vec<Entity>, ItemError>),
    /// The result of [`TextStep::Summarization`].
    Summary(Result<SummaryText, ItemError>),
}

/// An event for the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name of the event.
    pub name: &'static str,
    /// The event, as JSON.
    pub data: String,
    /// A later event of this name may replace it.
    pub coalesces: bool,
}

/// The events of complete inputs, in order.
#[derive(Debug, Default)]
pub struct Batch {
    events: Vec<PendingEvent>,
    /// The state of the session after these events.
    pub checkpoint: Option<Vec<u8>>,
}

/// The events of one session for one client.
#[derive(Debug)]
pub struct EventOutbox {
    parts: SemanticParts,
    sentiment: bool,
    entities: bool,
    abstractive: bool,
    framing: Framing,
    stored: bool,
    waiting: VecDeque<OutboxEntry>,
    /// No more outputs follow for now, so that a small batch is returned.
    paused: bool,
    /// Number of batches that were polled and not returned.
    batches_out: usize,
    line_bytes_max: usize,
    out: Vec<u8>,
    /// Events written, for server-sent events of a session that is not stored.
    events: u64,
    closing: Option<Refusal>,
    done: bool,
}

impl EventOutbox {
    /// An outbox for a session that ends with its request.
    pub fn one_shot(annotate: Annotate, framing: Framing) -> Self {
        let Annotate { keywords, intent, sentiment, entities, abstractive } = annotate;
        Self {
            parts: SemanticParts { keywords, intent },
            sentiment,
            entities,
            abstractive,
            framing,
            stored: false,
            waiting: VecDeque::new(),
            paused: false,
            batches_out: 0,
            line_bytes_max: 0,
            out: Vec::new(),
            events: 0,
            closing: None,
            done: false,
        }
    }

    /// An outbox for a stored session, whose events have numbers, and cursors in its channel.
    pub fn stored(annotate: Annotate, framing: Framing) -> Self {
        Self { stored: true, ..Self::one_shot(annotate, framing) }
    }

    /// Queues an event. `number` is its number, `seq` the sequence number of its input; `more` means that the next event belongs to the
    /// same input.
    pub fn handle_event(&mut self, event: Event, number: Option<u64>, seq: Option<u64>, more: bool) {
        let (number, seq) = if self.stored { (number, seq) } else { (None, None) };
        let has_queries = match &event {
            Event::Final(_) => self.sentiment || self.entities,
            Event::Summary(_) => true,
            _ => false,
        };
        let source = SourceEvent { event, number, seq, enrichment: Enrichment::default() };
        let (name, line) = render(&source, self.parts);
        let source = has_queries.then(|| Box::new(source));
        self.push(PendingEvent { name, line, source, is_event: true, more });
    }

    /// Queues the reply to a refused line. `line` is its number, from 1; 0 if it has none.
    pub fn handle_refusal(&mut self, line: u64, refusal: &Refusal) {
        self.push_reply(&EventLine::Error { error: refusal, line: (line > 0).then_some(line) });
    }

    /// Queues the reply to a repeated input.
    pub fn handle_repeated(&mut self, seq: u64, seq_last: u64) {
        self.push_reply(&EventLine::Repeated { seq, seq_last });
    }

    /// Adds the state of the session after the events so far.
    pub fn handle_checkpoint(&mut self, bytes: Vec<u8>) {
        self.waiting.push_back(OutboxEntry::Checkpoint(bytes));
    }

    /// No more outputs follow for now: the queued events become a batch.
    pub fn handle_pause(&mut self) {
        self.paused = true;
    }

    /// Queues the end of the session, which is the last event of its channel.
    pub fn handle_ended(&mut self) {
        let line = EventLine::SessionEnded;
        let (name, line) = (line.name(), text(&line));
        self.push(PendingEvent { name, line, source: None, is_event: true, more: false });
    }

    fn push_reply(&mut self, line: &EventLine<'_>) {
        let (name, line) = (line.name(), text(line));
        self.push(PendingEvent { name, line, source: None, is_event: false, more: false });
    }

    fn push(&mut self, event: PendingEvent) {
        self.line_bytes_max = self.line_bytes_max.max(event.line.len());
        self.waiting.push_back(OutboxEntry::Event(event));
    }

    /// The next batch: the events before a checkpoint or a pause, up to the bound of a batch.
    pub fn poll_batch(&mut self) -> Option<Batch> {
        let (mut count, mut bytes, mut complete) = (0, 0, 0);
        let mut ready = None;
        for waiting in &self.waiting {
            let OutboxEntry::Event(event) = waiting else {
                ready = Some(count);
                break;
            };
            (count, bytes) = (count + 1, bytes + event.line.len());
            if !event.more {
                complete = count;
                if count >= BATCH_EVENTS || bytes >= BATCH_BYTES {
                    ready = Some(count);
                    break;
                }
            }
        }
        let paused = (self.paused && complete > 0).then_some(complete);
        let Some(count) = ready.or(paused) else {
            self.paused = false;
            return None;
        };
        let events = self.waiting.drain(..count).filter_map(|waiting| match waiting {
            OutboxEntry::Event(event) => Some(event),
            OutboxEntry::Checkpoint(_) => None,
        });
        let events = events.collect();
        let checkpoint = match self.waiting.pop_front() {
            Some(OutboxEntry::Checkpoint(bytes)) => Some(bytes),
            Some(other) => {
                self.waiting.push_front(other);
                None
            }
            None => None,
        };
        self.batches_out += 1;
        Some(Batch { events, checkpoint })
    }

    /// Writes a batch to the client, after it was stored if the session is stored. `cursors` are the cursors of its records.
    pub fn handle_stored(&mut self, batch: Batch, cursors: &[(u64, u64)]) {
        self.batches_out = self.batches_out.saturating_sub(1);
        let mut cursors = cursors.iter();
        for event in &batch.events {
            self.events += 1;
            if self.framing == Framing::Sse {
                match (self.stored, event.is_event) {
                    (false, _) => writeln!(self.out, "id: {}", self.events),
                    (true, true) => match cursors.next() {
                        Some((epoch, seq)) => writeln!(self.out, "id: {epoch}-{seq}"),
                        None => Ok(()),
                    },
                    // A reply is not in the channel, so it has no cursor to resume after.
                    (true, false) => Ok(()),
                }
                .expect("writing to a vector cannot fail");
                write!(self.out, "event: {}\ndata: ", event.name).expect("writing to a vector cannot fail");
            }
            self.out.extend_from_slice(event.line.as_bytes());
            self.framing.end(&mut self.out);
        }
    }

    /// The input ended with an error, which becomes the last line.
    pub fn handle_input_failure(&mut self, refusal: Refusal) {
        self.closing.get_or_insert(refusal);
    }

    /// No more events follow for this client.
    pub fn handle_end(&mut self) {
        if let Some(refusal) = self.closing.take() {
            let line = EventLine::Error { error: &refusal, line: None };
            let event =
                PendingEvent { name: line.name(), line: text(&line), source: None, is_event: false, more: false };
            self.handle_stored(Batch { events: vec![event], checkpoint: None }, &[]);
        }
        self.done = true;
    }

    /// The bytes to write now.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        (!self.out.is_empty()).then(|| mem::take(&mut self.out))
    }

    /// Number of bytes that were not polled.
    pub fn output_bytes(&self) -> usize {
        self.out.len()
    }

    /// True while an event is not yet written to the client.
    pub fn has_pending(&self) -> bool {
        self.batches_out > 0 || !self.waiting.is_empty()
    }

    /// True when all output was polled and no more follows.
    pub fn is_done(&self) -> bool {
        self.done && self.out.is_empty()
    }

    /// Length of the longest line since the last call, in bytes.
    pub fn take_line_bytes_max(&mut self) -> usize {
        mem::take(&mut self.line_bytes_max)
    }

    /// The queries of a batch, whose results are needed before it is stored.
    pub fn queries(&self, batch: &Batch) -> Vec<Query> {
        let mut queries = Vec::new();
        for (at, event) in batch.events.iter().enumerate() {
            match event.source.as_deref().map(|source| &source.event) {
                Some(Event::Final(final_segment)) => {
                    let mut add = |step| {
                        queries.push(Query {
                            step,
                            text: final_segment.segment.text.clone(),
                            is_abstractive: false,
                            event: at,
                        })
                    };
                    if self.sentiment {
                        add(TextStep::Sentiment);
                    }
                    if self.entities {
                        add(TextStep::Entities);
                    }
                }
                Some(Event::Summary(due)) => {
                    queries.push(Query {
                        step: TextStep::Summarization,
                        text: due.transcript.clone(),
                        is_abstractive: self.abstractive,
                        event: at,
                    });
                }
                _ => {}
            }
        }
        queries
    }

    /// Adds the results of the queries of a batch and renders its events with them.
    pub fn handle_query_results(&self, batch: &mut Batch, results: impl Iterator<Item = (Query, QueryResult)>) {
        for (query, result) in results {
            let source = batch.events.get_mut(query.event).and_then(|event| event.source.as_mut());
            let Some(source) = source else { continue };
            let enrichment = &mut source.enrichment;
            match result {
                QueryResult::Sentiment(result) => enrichment.sentiment = Some(result),
                QueryResult::Entities(result) => enrichment.entities = Some(result),
                QueryResult::Summary(result) => enrichment.summary = Some(result),
            }
        }
        for event in &mut batch.events {
            if let Some(source) = event.source.take() {
                event.line = render(&source, self.parts).1;
            }
        }
    }
}

impl Batch {
    /// The events of the batch, for the channel.
    pub fn records(&self) -> Vec<Record> {
        let events = self.events.iter().filter(|event| event.is_event);
        events
            .map(|PendingEvent { name, line, .. }| Record {
                name,
                data: line.clone(),
                coalesces: *name == "partial_segment",
            })
            .collect()
    }

    /// True when it has no events.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

fn render(source: &SourceEvent, parts: SemanticParts) -> (&'static str, String) {
    let SourceEvent { event, number, seq, enrichment } = source;
    let line_of = |event| text(&EventLine::new(event, *number, parts).with_input_seq(*seq).with_enrichment(enrichment));
    let line = line_of(event);
    let line = match event {
        // The line of a window with long segments is too long; its texts are in the final segments too.
        Event::Summary(due) if line.len() > LINE_BYTES_MAX => {
            let mut due = due.clone();
            (due.context, due.prompt) = (String::new(), String::new());
            line_of(&Event::Summary(due))
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
            config::SessionRequest,
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
    fn transcript_is_rendered_line_by_line() {
        let request = SessionRequest::from_query("max_gap_sec=0.5&annotate=intent").unwrap();
        let mut session = Session::new(SessionRules::new(request.config.clone()).unwrap(), 0);
        let mut stream = EventOutbox::one_shot((&request).into(), Framing::Sse);
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
        assert!(stream.queries(&batch).is_empty());
        stream.handle_stored(batch, &[]);
        stream.handle_input_failure(ItemError::body_incomplete().into());
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
                data: {"type":"error","error":{"message":"it is not JSON: it ends in the middle of an object at column 1","code":"malformed_json"},"line":3}

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

    /// Runs a session over one chunk per text, each with another speaker and a sequence number, and passes its events to the outbox.
    fn run_session(request: &SessionRequest, outbox: &mut EventOutbox, texts: &[&str]) {
        let mut session = Session::new(SessionRules::new(request.config.clone()).unwrap(), 0);
        for (at, text) in texts.iter().enumerate() {
            let (time, seq) = (at as f64, Some(at as u64));
            let speaker_id = Some(at.to_string());
            session
                .handle_chunk(0, seq, Chunk { start: time, end: time, text: (*text).to_owned(), speaker_id })
                .unwrap();
            pass_events(&mut session, outbox, seq);
        }
        let seq = Some(texts.len() as u64);
        session.handle_end(0, seq).unwrap();
        pass_events(&mut session, outbox, seq);
    }

    fn pass_events(session: &mut Session, outbox: &mut EventOutbox, seq: Option<u64>) {
        let mut next = session.poll_event(0);
        while let Some(output) = next {
            next = session.poll_event(0);
            outbox.handle_event(output.event, output.number, seq, next.is_some());
        }
    }

    #[test]
    fn enrichment_is_complete_before_events_are_stored() {
        let request =
            SessionRequest::from_json(br#"{"annotate":["sentiment","entities"],"summary":{"every_finals":0}}"#)
                .unwrap();
        let mut outbox = EventOutbox::stored((&request).into(), Framing::Sse);
        run_session(&request, &mut outbox, &["good"]);
        outbox.handle_checkpoint(b"state".to_vec());
        let mut batch = outbox.poll_batch().unwrap();
        assert_eq!(batch.checkpoint.as_deref(), Some(b"state".as_slice()));
        let queries = outbox.queries(&batch);
        let steps: Vec<_> = queries.iter().map(|query| (query.step, query.text.as_str())).collect();
        assert_eq!(
            steps,
            [(TextStep::Sentiment, "good"), (TextStep::Entities, "good"), (TextStep::Summarization, "good")]
        );
        let results = [
            QueryResult::Sentiment(Ok(LabelScore { label: "POSITIVE".to_owned(), score: 0.5 })),
            QueryResult::Entities(Err(ItemError::new("engine", "it broke"))),
            QueryResult::Summary(Ok(SummaryText::new("Good.".to_owned()))),
        ];
        outbox.handle_query_results(&mut batch, queries.into_iter().zip(results));
        let records = batch.records();
        let names: Vec<_> = records.iter().map(|record| (record.name, record.coalesces)).collect();
        assert_eq!(names, [("partial_segment", true), ("final_segment", false), ("summary_due", false)]);
        outbox.handle_stored(batch, &[(1, 1), (1, 2), (1, 3)]);
        check(
            outbox.poll_output(),
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

    /// Events after a checkpoint are not in its batch, even when an input has further events.
    #[test]
    fn checkpoint_covers_the_events_before_it() {
        let request = SessionRequest::from_json(b"{}").unwrap();
        let mut outbox = EventOutbox::stored((&request).into(), Framing::Ndjson);
        let partial = |text: &str| {
            Event::Partial(weir_core::transcripts::Segment {
                start: 0.0,
                end: 0.0,
                text: text.to_owned(),
                speaker_id: None,
            })
        };
        outbox.handle_event(partial("a"), Some(1), Some(1), false);
        outbox.handle_checkpoint(b"1".to_vec());
        outbox.handle_event(partial("b"), Some(2), Some(2), true);
        let batch = outbox.poll_batch().unwrap();
        assert_eq!((batch.records().len(), batch.checkpoint.as_deref()), (1, Some(b"1".as_slice())));
        assert!(outbox.poll_batch().is_none());
        outbox.handle_event(partial("c"), Some(3), Some(2), false);
        assert!(outbox.poll_batch().is_none());
        outbox.handle_checkpoint(b"2".to_vec());
        outbox.handle_checkpoint(b"3".to_vec());
        let batch = outbox.poll_batch().unwrap();
        assert_eq!((batch.records().len(), batch.checkpoint.as_deref()), (2, Some(b"2".as_slice())));
        let batch = outbox.poll_batch().unwrap();
        assert_eq!((batch.is_empty(), batch.checkpoint.as_deref()), (true, Some(b"3".as_slice())));
        assert!(outbox.poll_batch().is_none());
    }

    /// All events of an input are in one batch, for every size of batch.
    #[test]
    fn batches_are_bounded_and_contain_whole_inputs() {
        let request = SessionRequest::from_json(br#"{"annotate":[],"summary":{"every_finals":1}}"#).unwrap();
        let mut outbox = EventOutbox::stored((&request).into(), Framing::Ndjson);
        run_session(&request, &mut outbox, &["a word"; 700]);
        outbox.handle_checkpoint(Vec::new());
        let (mut records, mut last_seq) = (Vec::new(), None);
        let mut checkpoints = 0;
        while let Some(batch) = outbox.poll_batch() {
            assert_eq!(checkpoints, 0, "the checkpoint is in the last batch");
            checkpoints += usize::from(batch.checkpoint.is_some());
            let of_batch = batch.records();
            assert!(of_batch.len() < BATCH_EVENTS + 4);
            let seq =
                |record: &Record| serde_json::from_str::<serde_json::Value>(&record.data).unwrap()["seq"].as_u64();
            assert!(last_seq.is_none_or(|last| last != of_batch.first().and_then(seq)), "an input was split");
            last_seq = Some(of_batch.last().and_then(seq));
            records.extend(of_batch);
        }
        // A partial, a final and its summary for each, and the last summary.
        assert_eq!((records.len(), checkpoints), (700 * 3 + 1, 1));
    }
}
