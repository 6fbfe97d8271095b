//! The outputs of a session as lines of JSON.

use serde::Serialize;
use weir_core::inference::rewrite::{SummaryMode, SummaryText};
use weir_core::transcripts::{Event, Final, Metrics, Segment, Workflow};

use super::{
    input::Refusal,
    semantic::{Semantic, SemanticParts},
};
use crate::{
    inference::output::{Entity, ItemError, LabelScore},
    json::to_vec,
};

/// The results of models for an event; `None` where no model was asked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Enrichment {
    /// The sentiment of a final segment.
    pub sentiment: Option<Result<LabelScore, ItemError>>,
    /// The entities of a final segment.
    pub entities: Option<Result<Vec<Entity>, ItemError>>,
    /// The summary of the context window, for a summary that is due.
    pub summary: Option<Result<SummaryText, ItemError>>,
}

/// A segment.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Segment"))]
pub struct SegmentWire<'a> {
    /// Start, in seconds.
    pub start: f64,
    /// End, in seconds.
    pub end: f64,
    /// The text.
    pub text: &'a str,
    /// The speaker.
    pub speaker_id: Option<&'a str>,
}

impl<'a> From<&'a Segment> for SegmentWire<'a> {
    fn from(segment: &'a Segment) -> Self {
        let Segment { start, end, text, speaker_id } = segment;
        Self { start: *start, end: *end, text, speaker_id: speaker_id.as_deref() }
    }
}

/// A line of a session's stream.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EventLine<'a> {
    /// The segment in flight; it may change.
    PartialSegment {
        /// Its current state.
        segment: SegmentWire<'a>,
        /// The sequence number of the chunk or end that caused it, in a stored session.
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        /// The number of the event, in a stored session.
        #[serde(skip_serializing_if = "Option::is_none")]
        event_id: Option<u64>,
    },
    /// A segment that will not change.
    FinalSegment {
        /// The segment.
        segment: SegmentWire<'a>,
        /// Its number among the final segments, from 0.
        segment_id: u64,
        /// The annotations of the segment, if they were requested.
        #[serde(skip_serializing_if = "Option::is_none")]
        semantic: Option<Semantic<'a>>,
        /// The workflow of its intent: question, action_item, decision or general.
        #[serde(skip_serializing_if = "Option::is_none")]
        workflow: Option<&'static str>,
        /// The label of the sentiment model, if it was requested.
        #[serde(skip_serializing_if = "Option::is_none")]
        sentiment: Option<&'a LabelScore>,
        /// Why there is no sentiment.
        #[serde(skip_serializing_if = "Option::is_none")]
        sentiment_error: Option<&'a ItemError>,
        /// The entities of the segment, if they were requested.
        #[serde(skip_serializing_if = "Option::is_none")]
        entities: Option<&'a [Entity]>,
        /// Why there are no entities.
        #[serde(skip_serializing_if = "Option::is_none")]
        entities_error: Option<&'a ItemError>,
        /// The sequence number of the chunk or end that caused it, in a stored session.
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        /// The number of the event, in a stored session.
        #[serde(skip_serializing_if = "Option::is_none")]
        event_id: Option<u64>,
    },
    /// A summary is due: the prompt for a language model.
    SummaryDue {
        /// `incremental` or `final`.
        kind: &'static str,
        /// Number of final segments so far.
        finals: u64,
        /// The context window.
        context: &'a str,
        /// Its keywords.
        keywords: Vec<&'a str>,
        /// The context and the instruction.
        prompt: &'a str,
        /// The most central sentences of the window.
        #[serde(skip_serializing_if = "Option::is_none")]
        summary: Option<&'a str>,
        /// `extractive` or `abstractive`, where the session asked for abstractive summaries.
        #[serde(skip_serializing_if = "Option::is_none")]
        summary_mode: Option<&'static str>,
        /// Why the summary is extractive although the session asked for abstractive ones.
        #[serde(skip_serializing_if = "Option::is_none")]
        summary_fallback: Option<String>,
        /// Why there is no summary.
        #[serde(skip_serializing_if = "Option::is_none")]
        summary_error: Option<&'a ItemError>,
        /// The sequence number of the chunk or end that caused it, in a stored session.
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        /// The number of the event, in a stored session.
        #[serde(skip_serializing_if = "Option::is_none")]
        event_id: Option<u64>,
    },
    /// A queue was full.
    SegmentDropped {
        /// The final segment that was dropped from it.
        segment_id: u64,
        /// The queue.
        workflow: &'static str,
    },
    /// The session is about to expire without input.
    SessionExpiring {
        /// The time until it expires, in milliseconds.
        in_ms: u64,
    },
    /// The session accepts no more input: it was idle for too long.
    SessionExpired {
        /// The number of the event, in a stored session.
        #[serde(skip_serializing_if = "Option::is_none")]
        event_id: Option<u64>,
    },
    /// The session accepts no more input: its client has ended it.
    SessionEnded,
    /// The session was deleted.
    SessionDeleted,
    /// A line was refused; the session continues without it.
    Error {
        /// Why it was refused.
        error: &'a Refusal,
        /// The line, from 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u64>,
    },
    /// A chunk was received before and is not processed again.
    Repeated {
        /// Its sequence number.
        seq: u64,
        /// The highest sequence number so far.
        seq_last: u64,
    },
}

impl<'a> EventLine<'a> {
    /// The line of an event.
    pub fn new(event: &'a Event, event_id: Option<u64>, parts: SemanticParts) -> Self {
        match event {
            Event::Partial(segment) => Self::PartialSegment { segment: segment.into(), seq: None, event_id },
            Event::Final(segment) => Self::of_final(segment, event_id, parts),
            Event::Summary(due) => Self::SummaryDue {
                kind: due.kind.name(),
                finals: due.finals,
                context: &due.context,
                keywords: due.keywords.iter().map(|name| &**name).collect(),
                prompt: &due.prompt,
                summary: None,
                summary_mode: None,
                summary_fallback: None,
                summary_error: None,
                seq: None,
                event_id,
            },
            Event::Dropped(segment) => {
                Self::SegmentDropped { segment_id: segment.id, workflow: segment.workflow.name() }
            }
            Event::Expiring { in_ms } => Self::SessionExpiring { in_ms: *in_ms },
            Event::Expired => Self::SessionExpired { event_id },
        }
    }

    fn of_final(final_segment: &'a Final, event_id: Option<u64>, parts: SemanticParts) -> Self {
        let Final { id, segment, annotation, workflow } = final_segment;
        let semantic = Semantic::new(annotation, parts, *id, &segment.text, segment.speaker_id.as_deref());
        let workflow = parts.intent.then(|| workflow.name());
        Self::FinalSegment {
            segment: segment.into(),
            segment_id: *id,
            semantic,
            workflow,
            sentiment: None,
            sentiment_error: None,
            entities: None,
            entities_error: None,
            seq: None,
            event_id,
        }
    }

    /// Adds the sequence number of the input that caused the event.
    #[must_use]
    pub fn with_input_seq(mut self, input_seq: Option<u64>) -> Self {
        match &mut self {
            Self::PartialSegment { seq, .. } | Self::FinalSegment { seq, .. } | Self::SummaryDue { seq, .. } => {
                *seq = input_seq;
            }
            _ => {}
        }
        self
    }

    /// Adds the results of models.
    #[must_use]
    pub fn with_enrichment(mut self, enrichment: &'a Enrichment) -> Self {
        match &mut self {
            Self::FinalSegment { sentiment, sentiment_error, entities, entities_error, .. } => {
                (*sentiment, *sentiment_error) = split(enrichment.sentiment.as_ref());
                let (values, error) = split(enrichment.entities.as_ref());
                (*entities, *entities_error) = (values.map(Vec::as_slice), error);
            }
            Self::SummaryDue { summary, summary_mode, summary_fallback, summary_error, .. } => {
                let (made, error) = split(enrichment.summary.as_ref());
                (*summary, *summary_error) = (made.map(|made| made.text.as_str()), error);
                *summary_mode = made.and_then(|made| made.mode).map(SummaryMode::name);
                *summary_fallback = made.and_then(|made| made.fallback.as_ref()).map(ToString::to_string);
            }
            _ => {}
        }
        self
    }

    /// Its `type`, which is also the name of the server-sent event.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PartialSegment { .. } => "partial_segment",
            Self::FinalSegment { .. } => "final_segment",
            Self::SummaryDue { .. } => "summary_due",
            Self::SegmentDropped { .. } => "segment_dropped",
            Self::SessionExpiring { .. } => "session_expiring",
            Self::SessionExpired { .. } => "session_expired",
            Self::SessionEnded => "session_ended",
            Self::SessionDeleted => "session_deleted",
            Self::Error { .. } => "error",
            Self::Repeated { .. } => "repeated",
        }
    }

    /// Appends the line as JSON, without a line end.
    pub fn write(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("a line serializes, and writing to a vector cannot fail");
    }
}

/// Splits a result into its value and its error.
fn split<T, E>(result: Option<&Result<T, E>>) -> (Option<&T>, Option<&E>) {
    match result {
        Some(Ok(value)) => (Some(value), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    }
}

/// Counts and rates of a session.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "SessionMetrics"))]
pub struct MetricsWire {
    /// Number of chunks that were processed.
    pub chunks_ingested: u64,
    /// Number of final segments.
    pub segments_finalized: u64,
    /// Number of partial segments that were sent.
    pub segments_partial: u64,
    /// Number of calls of a language model.
    pub llm_calls: u64,
    /// Seconds since the session began.
    pub elapsed_sec: f64,
    /// Chunks per second over that time.
    pub chunks_per_sec: f64,
    /// Calls of a language model per minute over that time.
    pub llm_calls_per_min: f64,
    /// Number of refused chunks.
    pub chunks_refused: u64,
    /// Number of repeated chunks.
    pub chunks_repeated: u64,
    /// Number of segments in each queue.
    pub queue_depths: ByWorkflow,
    /// Number of segments dropped from each queue.
    pub segments_dropped: ByWorkflow,
    /// Number of segments in the context window.
    pub context_segments: u64,
    /// The duration of the context window, in seconds.
    pub context_span_sec: f64,
    /// Mean time from the arrival of a chunk to the delivery of its events, in milliseconds.
    pub latency_ms_mean: f64,
    /// Maximum time from the arrival of a chunk to the delivery of its events, in milliseconds.
    pub latency_ms_max: f64,
}

/// A count for each workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ByWorkflow {
    /// Questions and clarifications.
    pub question: u64,
    /// Action items and commitments.
    pub action_item: u64,
    /// Decisions and agreements.
    pub decision: u64,
    /// Everything else.
    pub general: u64,
}

impl ByWorkflow {
    fn new(count: impl Fn(usize) -> u64) -> Self {
        let of = |workflow: Workflow| count(workflow as usize);
        Self {
            question: of(Workflow::Question),
            action_item: of(Workflow::ActionItem),
            decision: of(Workflow::Decision),
            general: of(Workflow::General),
        }
    }
}

impl From<&Metrics> for MetricsWire {
    fn from(metrics: &Metrics) -> Self {
        let counters = metrics.counters;
        Self {
            chunks_ingested: counters.chunks_ingested,
            segments_finalized: counters.segments_finalized,
            segments_partial: counters.segments_partial,
            llm_calls: counters.llm_calls,
            elapsed_sec: metrics.elapsed_sec,
            chunks_per_sec: metrics.chunks_per_sec,
            llm_calls_per_min: metrics.llm_calls_per_min,
            chunks_refused: counters.chunks_refused,
            chunks_repeated: counters.chunks_repeated,
            queue_depths: ByWorkflow::new(|at| metrics.queue_depths[at] as u64),
            segments_dropped: ByWorkflow::new(|at| counters.segments_dropped[at]),
            context_segments: metrics.context_segments as u64,
            context_span_sec: metrics.context_span_sec,
            latency_ms_mean: metrics.latency.mean_ms(),
            latency_ms_max: metrics.latency.max_ns as f64 / 1e6,
        }
    }
}

/// The context window, for `GET /sessions/{id}/context` as JSON.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ContextWire<'a> {
    /// The text of the window for a language model.
    pub text: String,
    /// Its keywords, sorted.
    pub keywords: Vec<String>,
    /// The prompt of a language model for a summary.
    pub prompt: String,
    /// Its segments, the oldest first.
    pub segments: Vec<SegmentWire<'a>>,
}

/// The context window as JSON.
pub fn context_json(context: &weir_core::transcripts::ContextWindow) -> Vec<u8> {
    let text = context.render_for_llm();
    let keywords = context.keywords();
    to_vec(&ContextWire {
        prompt: weir_core::transcripts::final_prompt(&text, &keywords),
        text,
        keywords: keywords.iter().map(|name| (**name).to_owned()).collect(),
        segments: context.segments().map(|final_segment| (&final_segment.segment).into()).collect(),
    })
}

/// The state of a session, for `GET /sessions/{id}`.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StateWire<'a> {
    /// `open` or `expired`.
    pub state: &'static str,
    /// The segment in flight.
    pub current: Option<SegmentWire<'a>>,
    /// The highest sequence number so far.
    pub seq_last: Option<u64>,
    /// Number of numbered events so far.
    pub events: u64,
    /// Counts and rates.
    pub metrics: MetricsWire,
}

/// The state of a session as JSON.
pub fn state_json(session: &weir_core::transcripts::Session, now_ns: u64) -> Vec<u8> {
    to_vec(&StateWire {
        state: if session.is_expired() { "expired" } else { "open" },
        current: session.current().map(SegmentWire::from),
        seq_last: session.seq_last(),
        events: session.events(),
        metrics: (&session.metrics(now_ns)).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use weir_core::transcripts::{Chunk, RoutingConfig, Session, SessionConfig, SessionRules};

    fn lines(change: impl FnOnce(&mut SessionConfig), texts: &[&str], parts: SemanticParts, ids: bool) -> String {
        let mut config = SessionConfig::default();
        change(&mut config);
        let mut session = Session::new(SessionRules::new(config).unwrap(), 0);
        let mut out = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let (start, end, speaker_id) = (at as f64, at as f64, Some(at.to_string()));
            session.handle_chunk(0, None, Chunk { start, end, text: (*text).to_owned(), speaker_id }).unwrap();
        }
        session.handle_end(0, None).unwrap();
        session.handle_time(570_000_000_000);
        session.handle_time(600_000_000_000);
        while let Some(output) = session.poll_event(0) {
            EventLine::new(&output.event, output.number.filter(|_| ids), parts).write(&mut out);
            out.push(b'\n');
        }
        String::from_utf8(out).unwrap()
    }

    fn check(got: &str, want: Expect) {
        want.assert_eq(got);
    }

    #[test]
    fn each_event_has_its_line() {
        let none = SemanticParts { keywords: false, intent: false };
        check(
            &lines(|_| {}, &["hi"], none, false),
            expect![[r#"
                {"type":"partial_segment","segment":{"start":0.0,"end":0.0,"text":"hi","speaker_id":"0"}}
                {"type":"final_segment","segment":{"start":0.0,"end":0.0,"text":"hi","speaker_id":"0"},"segment_id":0}
                {"type":"summary_due","kind":"final","finals":1,"context":"Recent conversation context:\n[0.0s] 0: hi","keywords":[],"prompt":"Recent conversation context:\n[0.0s] 0: hi\n\nConversation keywords: \n\nGenerate a final summary covering:\n1. Main topics discussed\n2. Key decisions made\n3. Action items identified\n"}
                {"type":"session_expiring","in_ms":30000}
                {"type":"session_expired"}
            "#]],
        );
        let change = |config: &mut SessionConfig| {
            config.summary.at_end = false;
            config.routing = RoutingConfig { queue_len_max: [1; 4], queued_max: 1 };
            config.idle.expire_ms = 0;
        };
        check(
            &lines(change, &["is it?", "no."], SemanticParts { keywords: false, intent: true }, true),
            expect![[r#"
                {"type":"partial_segment","segment":{"start":0.0,"end":0.0,"text":"is it?","speaker_id":"0"},"event_id":1}
                {"type":"final_segment","segment":{"start":0.0,"end":0.0,"text":"is it?","speaker_id":"0"},"segment_id":0,"semantic":{"intent":"question"},"workflow":"question","event_id":2}
                {"type":"partial_segment","segment":{"start":1.0,"end":1.0,"text":"no.","speaker_id":"1"},"event_id":3}
                {"type":"final_segment","segment":{"start":1.0,"end":1.0,"text":"no.","speaker_id":"1"},"segment_id":1,"semantic":{"intent":"general"},"workflow":"general","event_id":4}
                {"type":"segment_dropped","segment_id":1,"workflow":"general"}
            "#]],
        );
    }

    #[test]
    fn refusal_and_repetition_have_their_lines() {
        let refusal = Refusal::new("end_before_start", Some("end"), "Chunk end must be >= start");
        let mut out = Vec::new();
        EventLine::Error { error: &refusal, line: Some(3) }.write(&mut out);
        EventLine::Repeated { seq: 1, seq_last: 4 }.write(&mut out);
        check(
            &String::from_utf8(out).unwrap(),
            expect![[
                r#"{"type":"error","error":{"message":"Chunk end must be >= start","code":"end_before_start","field":"end"},"line":3}{"type":"repeated","seq":1,"seq_last":4}"#
            ]],
        );
    }

    #[test]
    fn state_line_has_its_fields() {
        let mut session = Session::new(SessionRules::new(SessionConfig::default()).unwrap(), 0);
        let chunk = |start: f64, text: &str| Chunk { start, end: start, text: text.to_owned(), speaker_id: None };
        session.handle_chunk(0, Some(4), chunk(0.0, "the price")).unwrap();
        session.handle_chunk(0, None, chunk(9.0, "b")).unwrap();
        check(
            &String::from_utf8(state_json(&session, 2_000_000_000)).unwrap(),
            expect![[
                r#"{"state":"open","current":{"start":9.0,"end":9.0,"text":"b","speaker_id":null},"seq_last":4,"events":3,"metrics":{"chunks_ingested":2,"segments_finalized":1,"segments_partial":2,"llm_calls":0,"elapsed_sec":2.0,"chunks_per_sec":1.0,"llm_calls_per_min":0.0,"chunks_refused":0,"chunks_repeated":0,"queue_depths":{"question":0,"action_item":0,"decision":0,"general":0},"segments_dropped":{"question":0,"action_item":0,"decision":0,"general":0},"context_segments":1,"context_span_sec":0.0,"latency_ms_mean":0.0,"latency_ms_max":0.0}}"#
            ]],
        );
        check(
            &String::from_utf8(context_json(session.context())).unwrap(),
            expect![[
                r#"{"text":"Recent conversation context:\n[0.0s] Unknown: the price","keywords":["price"],"prompt":"Recent conversation context:\n[0.0s] Unknown: the price\n\nConversation keywords: price\n\nGenerate a final summary covering:\n1. Main topics discussed\n2. Key decisions made\n3. Action items identified\n","segments":[{"start":0.0,"end":0.0,"text":"the price","speaker_id":null}]}"#
            ]],
        );
    }
}
