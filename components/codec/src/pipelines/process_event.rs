//! The events of `/process-stream`.
//!
//! Field names, their order and the messages do not change: existing clients depend on them.

use serde::{Serialize, Serializer};
use weir_core::{
    inference::{
        rewrite::SummaryMode,
        tally::Tally,
        text_step::{ChunkSentiment, Entity, TextStep},
    },
    pipelines::StepFailure,
};

use crate::json::to_vec;

/// An event of `/process-stream`.
#[derive(Debug, Clone, PartialEq)]
pub enum ProcessEvent {
    /// The text was accepted.
    Started {
        /// Nanoseconds since 1970.
        unix_ns: u64,
        /// Length of the text, in code points.
        text_length: usize,
    },
    /// The text is being split into chunks.
    Chunking,
    /// The text was split into chunks.
    Chunked {
        /// Number of chunks.
        chunks: usize,
    },
    /// A step began.
    Processing(TextStep),
    /// A chunk was labelled.
    SentimentProgress {
        /// The sentiment of the chunk.
        result: ChunkSentiment,
        /// Number of chunks.
        chunks: usize,
    },
    /// Every chunk was labelled.
    SentimentComplete {
        /// The sentiment of the whole text.
        overall: &'static str,
        /// The sentiment of each chunk, in order.
        chunks: Vec<ChunkSentiment>,
        /// Number of chunks per sentiment.
        tally: Tally,
    },
    /// The text was summarized.
    SummarizationComplete {
        /// The summary.
        summary: String,
        /// Code points of the summary divided by code points of the text.
        compression_ratio: f64,
        /// How it was made, where that was asked for.
        mode: Option<SummaryMode>,
        /// Why it is extractive although the other was asked for.
        fallback: Option<String>,
    },
    /// Entities were extracted.
    EntitiesComplete {
        /// In the order of the text.
        entities: Vec<Entity>,
    },
    /// A step failed; the others continue.
    StepError {
        /// The step.
        step: TextStep,
        /// Why it failed.
        failure: StepFailure,
    },
    /// The last event: every step has been completed or has failed.
    Completed {
        /// The steps that failed, in the order of their errors.
        failed: Vec<TextStep>,
        /// Nanoseconds since the beginning.
        elapsed_ns: u64,
        /// Nanoseconds since 1970.
        unix_ns: u64,
    },
    /// The last event: the request was aborted.
    Error(StepFailure),
}

/// One event: a line of NDJSON, or the data of an SSE event.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "ProcessEvent"))]
pub enum Wire<'a> {
    /// The first event: the text was accepted.
    Started {
        /// Human-readable text.
        message: &'static str,
        /// Seconds since 1970.
        timestamp: f64,
        /// Code points in the text.
        text_length: usize,
    },
    /// The text is being split into chunks.
    Chunking {
        /// Human-readable text.
        message: &'static str,
    },
    /// The text was split into chunks.
    Chunked {
        /// Human-readable text.
        message: String,
        /// Number of chunks.
        chunks: usize,
    },
    /// The chunks are being labelled.
    SentimentProcessing {
        /// Human-readable text.
        message: &'static str,
    },
    /// A chunk was labelled; these events are in the order of the chunks.
    SentimentProgress {
        /// Labelled chunks divided by all chunks: above 0, and 1 for the last chunk.
        progress: f64,
        /// The sentiment of the chunk.
        chunk_result: WireChunk<'a>,
    },
    /// Every chunk was labelled.
    SentimentComplete {
        /// POSITIVE or NEGATIVE, whichever has more chunks, else NEUTRAL.
        overall_sentiment: &'static str,
        /// Every chunk, in order.
        chunk_sentiments: Vec<WireChunk<'a>>,
        /// Chunks labelled POSITIVE.
        positive_chunks: usize,
        /// Chunks labelled NEGATIVE.
        negative_chunks: usize,
    },
    /// The text is being summarized.
    SummarizationProcessing {
        /// Human-readable text.
        message: &'static str,
    },
    /// The text was summarized.
    SummarizationComplete {
        /// The summary.
        summary: &'a str,
        /// Code points of the summary divided by code points of the text.
        compression_ratio: f64,
        /// `extractive` or `abstractive`, where the request asked for a mode.
        #[serde(skip_serializing_if = "Option::is_none")]
        summary_mode: Option<&'static str>,
        /// Why the summary is extractive although the request asked for an abstractive one.
        #[serde(skip_serializing_if = "Option::is_none")]
        summary_fallback: Option<&'a str>,
    },
    /// Entities are being extracted.
    EntitiesProcessing {
        /// Human-readable text.
        message: &'static str,
    },
    /// Entities were extracted.
    EntitiesComplete {
        /// In the order of the text.
        entities: &'a WireEntities<'a>,
        /// The same entities by label, labels in the order of their first entity.
        #[cfg_attr(
            feature = "schema",
            schemars(with = "std::collections::BTreeMap<String, Vec<WireEntity<'static>>>")
        )]
        entity_types: ByLabel<'a>,
        /// Number of entities.
        total_entities: usize,
    },
    /// Sentiment failed; the stream continues with the next step.
    SentimentError(WireFailure<'a>),
    /// The summary failed; the stream continues with the next step.
    SummarizationError(WireFailure<'a>),
    /// Entities failed; the stream continues.
    EntitiesError(WireFailure<'a>),
    /// The last event: every step has been completed or has failed.
    Completed {
        /// Human-readable text.
        message: String,
        /// The names of the failed steps, as in the `status` of their events; absent when none failed.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        failed_steps: Vec<&'static str>,
        /// Seconds from the request to this event.
        total_processing_time: f64,
        /// Seconds since 1970.
        timestamp: f64,
    },
    /// The last event: the request was aborted.
    Error(WireFailure<'a>),
}

/// The entities of a text.
pub type WireEntities<'a> = [WireEntity<'a>];

/// The sentiment of a chunk.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "ChunkSentiment"))]
pub struct WireChunk<'a> {
    /// The number of the chunk, from 1.
    pub chunk: usize,
    /// POSITIVE, NEGATIVE, NEUTRAL, or a label of the model in capitals.
    pub sentiment: &'a str,
    /// The score of the label.
    pub confidence: f32,
}

impl<'a> From<&'a ChunkSentiment> for WireChunk<'a> {
    fn from(chunk: &'a ChunkSentiment) -> Self {
        Self { chunk: chunk.chunk, sentiment: &chunk.sentiment, confidence: chunk.confidence }
    }
}

/// An entity.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Entity"))]
pub struct WireEntity<'a> {
    /// The slice of the text.
    pub text: &'a str,
    /// Its label.
    pub label: &'a str,
    /// The meaning of the label; null for an unknown label.
    pub description: Option<&'static str>,
    /// First code point of the text.
    pub start: u32,
    /// Code point after the last.
    pub end: u32,
}

impl<'a> From<&'a Entity> for WireEntity<'a> {
    fn from(entity: &'a Entity) -> Self {
        let Entity { text, label, start, end } = entity;
        Self { text, label, description: explain(label), start: *start, end: *end }
    }
}

/// Entities grouped by label, in the order in which the labels first appear.
#[derive(Debug)]
pub struct ByLabel<'a>(&'a WireEntities<'a>);

impl Serialize for ByLabel<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut groups: Vec<(&str, Vec<&WireEntity<'_>>)> = Vec::new();
        for entity in self.0 {
            match groups.iter_mut().find(|(label, _)| *label == entity.label) {
                Some((_, group)) => group.push(entity),
                None => groups.push((entity.label, vec![entity])),
            }
        }
        serializer.collect_map(groups)
    }
}

/// Why a step or a request failed.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Failure"))]
pub struct WireFailure<'a> {
    /// Human-readable text.
    pub error: &'a str,
    /// Machine-readable code.
    pub code: &'a str,
    /// True when the same request may succeed later.
    pub retryable: bool,
}

impl<'a> From<&'a StepFailure> for WireFailure<'a> {
    fn from(failure: &'a StepFailure) -> Self {
        Self { error: &failure.message, code: &failure.code, retryable: failure.retryable }
    }
}

/// The value of `status`, which is also the name of the SSE event.
pub fn status(event: &ProcessEvent) -> &'static str {
    match event {
        ProcessEvent::Started { .. } => "started",
        ProcessEvent::Chunking => "chunking",
        ProcessEvent::Chunked { .. } => "chunked",
        ProcessEvent::Processing(TextStep::Sentiment) => "sentiment_processing",
        ProcessEvent::Processing(TextStep::Summarization) => "summarization_processing",
        ProcessEvent::Processing(TextStep::Entities) => "entities_processing",
        ProcessEvent::SentimentProgress { .. } => "sentiment_progress",
        ProcessEvent::SentimentComplete { .. } => "sentiment_complete",
        ProcessEvent::SummarizationComplete { .. } => "summarization_complete",
        ProcessEvent::EntitiesComplete { .. } => "entities_complete",
        ProcessEvent::StepError { step: TextStep::Sentiment, .. } => "sentiment_error",
        ProcessEvent::StepError { step: TextStep::Summarization, .. } => "summarization_error",
        ProcessEvent::StepError { step: TextStep::Entities, .. } => "entities_error",
        ProcessEvent::Completed { .. } => "completed",
        ProcessEvent::Error(_) => "error",
    }
}

/// An event as one line of JSON, without an end of line.
pub fn to_json(event: &ProcessEvent) -> Vec<u8> {
    let wire_entities: Vec<WireEntity<'_>> = match event {
        ProcessEvent::EntitiesComplete { entities } => entities.iter().map(WireEntity::from).collect(),
        _ => Vec::new(),
    };
    to_vec(&wire(event, &wire_entities))
}

fn wire<'a>(event: &'a ProcessEvent, wire_entities: &'a WireEntities<'a>) -> Wire<'a> {
    match event {
        ProcessEvent::Started { unix_ns, text_length } => Wire::Started {
            message: "Beginning text processing...",
            timestamp: seconds(*unix_ns),
            text_length: *text_length,
        },
        ProcessEvent::Chunking => Wire::Chunking { message: "Splitting text into chunks..." },
        ProcessEvent::Chunked { chunks } => {
            Wire::Chunked { message: format!("Split into {chunks} chunks"), chunks: *chunks }
        }
        ProcessEvent::Processing(TextStep::Sentiment) => {
            Wire::SentimentProcessing { message: "Analyzing sentiment..." }
        }
        ProcessEvent::Processing(TextStep::Summarization) => {
            Wire::SummarizationProcessing { message: "Generating summary..." }
        }
        ProcessEvent::Processing(TextStep::Entities) => Wire::EntitiesProcessing { message: "Extracting entities..." },
        ProcessEvent::SentimentProgress { result, chunks } => Wire::SentimentProgress {
            progress: result.chunk as f64 / *chunks as f64,
            chunk_result: WireChunk::from(result),
        },
        ProcessEvent::SentimentComplete { overall, chunks, tally } => Wire::SentimentComplete {
            overall_sentiment: overall,
            chunk_sentiments: chunks.iter().map(WireChunk::from).collect(),
            positive_chunks: tally.positive,
            negative_chunks: tally.negative,
        },
        ProcessEvent::SummarizationComplete { summary, compression_ratio, mode, fallback } => {
            Wire::SummarizationComplete {
                summary,
                compression_ratio: *compression_ratio,
                summary_mode: mode.map(SummaryMode::name),
                summary_fallback: fallback.as_deref(),
            }
        }
        ProcessEvent::EntitiesComplete { .. } => Wire::EntitiesComplete {
            entities: wire_entities,
            entity_types: ByLabel(wire_entities),
            total_entities: wire_entities.len(),
        },
        ProcessEvent::StepError { step: TextStep::Sentiment, failure } => Wire::SentimentError(failure.into()),
        ProcessEvent::StepError { step: TextStep::Summarization, failure } => Wire::SummarizationError(failure.into()),
        ProcessEvent::StepError { step: TextStep::Entities, failure } => Wire::EntitiesError(failure.into()),
        ProcessEvent::Completed { failed, elapsed_ns, unix_ns } => Wire::Completed {
            message: completion(failed),
            failed_steps: failed.iter().copied().map(step_name).collect(),
            total_processing_time: seconds(*elapsed_ns),
            timestamp: seconds(*unix_ns),
        },
        ProcessEvent::Error(failure) => Wire::Error(failure.into()),
    }
}

/// The message of the last event.
fn completion(failed: &[TextStep]) -> String {
    if failed.is_empty() {
        return "All processing complete!".to_owned();
    }
    let names: Vec<&str> = failed.iter().copied().map(step_name).collect();
    format!("Processing ended; failed: {}", names.join(", "))
}

/// The name of a step, as in the statuses of its events.
pub fn step_name(step: TextStep) -> &'static str {
    match step {
        TextStep::Sentiment => "sentiment",
        TextStep::Summarization => "summarization",
        TextStep::Entities => "entities",
    }
}

/// The meaning of an entity label: the four of CoNLL-2003, those of OntoNotes 5, and common abbreviations.
fn explain(label: &str) -> Option<&'static str> {
    Some(match label {
        "PER" | "PERSON" => "A named person or family, real or fictional",
        "ORG" => "A company, agency, institution or other organization",
        "LOC" => "A place: in texts labelled with GPE, one that is not a country, city or state",
        "MISC" => "Another name, such as an event, a nationality, a product or a work of art",
        "NORP" => "A nationality, or a religious or political group",
        "FAC" => "A building, airport, road, bridge or other structure",
        "GPE" => "A country, city or state",
        "PRODUCT" => "A vehicle, device, food or other thing that is made, not a service",
        "EVENT" => "A named storm, battle, war, sports event or similar",
        "WORK_OF_ART" => "The title of a book, song, film or other work",
        "LAW" => "A named document that was made into law",
        "LANGUAGE" => "A named language",
        "DATE" => "A date or period of a day or longer, absolute or relative",
        "TIME" => "A time or period shorter than a day",
        "PERCENT" => "A percentage",
        "MONEY" => "An amount of money with its unit",
        "QUANTITY" => "A measurement, such as a weight or a distance",
        "ORDINAL" => "A position in an order: first, second",
        "CARDINAL" => "A number that is none of the other kinds",
        _ => return None,
    })
}

/// Converts nanoseconds to seconds. Whole seconds and the rest are converted separately, since nanoseconds since 1970 exceed the
/// precision of an f64.
pub(crate) fn seconds(ns: u64) -> f64 {
    const NS_PER_S: u64 = 1_000_000_000;
    (ns / NS_PER_S) as f64 + (ns % NS_PER_S) as f64 / NS_PER_S as f64
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use weir_core::failure::Failure;

    use super::*;

    fn check(event: &ProcessEvent, want: Expect) {
        let line = String::from_utf8(to_json(event)).expect("UTF-8");
        want.assert_eq(&line);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["status"], status(event));
        assert!(line.starts_with(r#"{"status":"#) && !line.contains('\n'));
    }

    fn chunk(chunk: usize, sentiment: &str, confidence: f32) -> ChunkSentiment {
        ChunkSentiment { chunk, sentiment: sentiment.to_owned(), confidence }
    }

    #[test]
    fn first_events_of_a_stream_have_their_fields() {
        check(
            &ProcessEvent::Started { unix_ns: 1_700_000_000_250_000_000, text_length: 42 },
            expect![[
                r#"{"status":"started","message":"Beginning text processing...","timestamp":1700000000.25,"text_length":42}"#
            ]],
        );
        check(&ProcessEvent::Chunking, expect![[r#"{"status":"chunking","message":"Splitting text into chunks..."}"#]]);
        check(
            &ProcessEvent::Chunked { chunks: 3 },
            expect![[r#"{"status":"chunked","message":"Split into 3 chunks","chunks":3}"#]],
        );
    }

    #[test]
    fn sentiment_events_have_their_fields() {
        check(
            &ProcessEvent::Processing(TextStep::Sentiment),
            expect![[r#"{"status":"sentiment_processing","message":"Analyzing sentiment..."}"#]],
        );
        // A score is the shortest decimal that reads back as the model's f32.
        let result = chunk(1, "POSITIVE", 0.999_865_65);
        check(
            &ProcessEvent::SentimentProgress { result, chunks: 3 },
            expect![[
                r#"{"status":"sentiment_progress","progress":0.3333333333333333,"chunk_result":{"chunk":1,"sentiment":"POSITIVE","confidence":0.99986565}}"#
            ]],
        );
        check(
            &ProcessEvent::SentimentProgress { result: chunk(3, "NEGATIVE", 0.5), chunks: 3 },
            expect![[
                r#"{"status":"sentiment_progress","progress":1.0,"chunk_result":{"chunk":3,"sentiment":"NEGATIVE","confidence":0.5}}"#
            ]],
        );
        let chunks = vec![chunk(1, "POSITIVE", 0.75), chunk(2, "NEGATIVE", 0.5)];
        let tally = Tally { positive: 1, negative: 1 };
        check(
            &ProcessEvent::SentimentComplete { overall: tally.overall(), chunks, tally },
            expect![[
                r#"{"status":"sentiment_complete","overall_sentiment":"NEUTRAL","chunk_sentiments":[{"chunk":1,"sentiment":"POSITIVE","confidence":0.75},{"chunk":2,"sentiment":"NEGATIVE","confidence":0.5}],"positive_chunks":1,"negative_chunks":1}"#
            ]],
        );
    }

    #[test]
    fn summary_events_have_their_fields() {
        check(
            &ProcessEvent::Processing(TextStep::Summarization),
            expect![[r#"{"status":"summarization_processing","message":"Generating summary..."}"#]],
        );
        let summary = "Line one.\nLine \"two\".\u{2028}".to_owned();
        check(
            &ProcessEvent::SummarizationComplete { summary, compression_ratio: 0.25, mode: None, fallback: None },
            expect![[
                r#"{"status":"summarization_complete","summary":"Line one.\nLine \"two\". ","compression_ratio":0.25}"#
            ]],
        );
    }

    #[test]
    fn entity_events_have_their_fields() {
        check(
            &ProcessEvent::Processing(TextStep::Entities),
            expect![[r#"{"status":"entities_processing","message":"Extracting entities..."}"#]],
        );
        check(
            &ProcessEvent::EntitiesComplete { entities: Vec::new() },
            expect![[r#"{"status":"entities_complete","entities":[],"entity_types":{},"total_entities":0}"#]],
        );
        let entity = |text: &str, label: &str, start| Entity {
            text: text.to_owned(),
            label: label.to_owned(),
            start,
            end: start + 3,
        };
        let entities = vec![entity("Zoë", "PER", 0), entity("IBM", "ORG", 7), entity("Bob", "PER", 20)];
        check(
            &ProcessEvent::EntitiesComplete { entities },
            expect![[
                r#"{"status":"entities_complete","entities":[{"text":"Zoë","label":"PER","description":"A named person or family, real or fictional","start":0,"end":3},{"text":"IBM","label":"ORG","description":"A company, agency, institution or other organization","start":7,"end":10},{"text":"Bob","label":"PER","description":"A named person or family, real or fictional","start":20,"end":23}],"entity_types":{"PER":[{"text":"Zoë","label":"PER","description":"A named person or family, real or fictional","start":0,"end":3},{"text":"Bob","label":"PER","description":"A named person or family, real or fictional","start":20,"end":23}],"ORG":[{"text":"IBM","label":"ORG","description":"A company, agency, institution or other organization","start":7,"end":10}]},"total_entities":3}"#
            ]],
        );
        check(
            &ProcessEvent::EntitiesComplete { entities: vec![entity("abc", "XYZ", 1)] },
            expect![[
                r#"{"status":"entities_complete","entities":[{"text":"abc","label":"XYZ","description":null,"start":1,"end":4}],"entity_types":{"XYZ":[{"text":"abc","label":"XYZ","description":null,"start":1,"end":4}]},"total_entities":1}"#
            ]],
        );
    }

    #[test]
    fn failures_and_last_events_have_their_fields() {
        let failure = StepFailure::from(&Failure::Overloaded { retry_after_ms: 40 });
        for step in [TextStep::Sentiment, TextStep::Summarization, TextStep::Entities] {
            let event = ProcessEvent::StepError { step, failure: failure.clone() };
            let name = step_name(step);
            let want = format!(
                r#"{{"status":"{name}_error","error":"the model's queue is full; retry in 40 ms","code":"overloaded","retryable":true}}"#
            );
            assert_eq!(String::from_utf8(to_json(&event)).expect("UTF-8"), want);
            assert_eq!(status(&event), format!("{name}_error"));
        }
        check(
            &ProcessEvent::Error(StepFailure::from(&Failure::RequestTimeout { timeout_ms: 60_000 })),
            expect![[
                r#"{"status":"error","error":"the request was not finished within 60000 ms","code":"request_timeout","retryable":true}"#
            ]],
        );
        check(
            &ProcessEvent::Completed { failed: vec![], elapsed_ns: 1_250_000_000, unix_ns: 1_700_000_001_500_000_000 },
            expect![[
                r#"{"status":"completed","message":"All processing complete!","total_processing_time":1.25,"timestamp":1700000001.5}"#
            ]],
        );
        check(
            &ProcessEvent::Completed {
                failed: vec![TextStep::Sentiment, TextStep::Summarization],
                elapsed_ns: 1_250_000_000,
                unix_ns: 1_700_000_001_500_000_000,
            },
            expect![[
                r#"{"status":"completed","message":"Processing ended; failed: sentiment, summarization","failed_steps":["sentiment","summarization"],"total_processing_time":1.25,"timestamp":1700000001.5}"#
            ]],
        );
    }
}
