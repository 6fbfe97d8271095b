//! The state of one call: decodes records, hands out their items for inference, encodes results.

use std::sync::Arc;

use weir_codec::adapter::{
    config::{AdapterConfig, TaskKind},
    decode::{CSV_COLUMNS_HEADER, Decoded, Input, REFUSAL_HEADER, Refusal, decode, decode_chunks},
    encode::{Output, encode},
};
use weir_core::{
    adapter::{
        Destination, Done, ERROR_CATEGORY_HEADER, ERROR_CODE_HEADER, ERROR_REASON_HEADER, ErrorCategory, Flow,
        FlowConfig, Header, Part, Position, ResultRecord, SourceRecord,
    },
    failure::Failure,
    inference::text_step::TextStep,
    transcripts::annotate::{AnnotateBuffer, AnnotateConfig, Annotator},
};

use crate::sessions::{EndedSession, InputEvents, SessionName, Sessions};

/// The header of a result with the name of the model.
pub const MODEL_HEADER: &str = "weir-model";
/// The header of a record with its trace context.
const TRACE_HEADER: &str = "traceparent";

/// The records of one call. The driver passes in records and outcomes, and polls items and results.
#[derive(Debug)]
pub struct Transform {
    config: AdapterConfig,
    flow: Flow<OpenRecord, ItemInput, Output>,
    /// For the task `annotate`, which needs no model.
    annotator: Option<Annotator>,
    /// For the task `transcript`.
    sessions: Option<Sessions>,
}

/// The input of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemInput {
    /// The text, and what is computed for it.
    pub content: ItemContent,
    /// The header `traceparent` of its record.
    pub traceparent: Option<Arc<str>>,
}

/// The text of an item, and what is computed for it.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemContent {
    /// A text of a record, for the model of the adapter.
    Text(Input),
    /// A text of a transcript, for the model of a step.
    Step(TextStep, String),
}

/// A record without all of its results.
#[derive(Debug)]
struct OpenRecord {
    payload: Vec<u8>,
    key: Option<Vec<u8>>,
    headers: Vec<Header>,
    origin: String,
    /// None for the sessions that end after the last record.
    position: Option<Position>,
    parts: Vec<OpenPart>,
}

/// One part of a payload.
#[derive(Debug)]
struct OpenPart {
    /// Its bytes; `None` when it is the whole payload.
    bytes: Option<Vec<u8>>,
    content: PartContent,
}

#[derive(Debug)]
enum PartContent {
    /// It has no item.
    Refused(Refusal),
    /// It has one item.
    Item,
    /// Events of a transcript, each of which has a result. The name of the session unless it is that of the record.
    Events(Option<SessionName>, Box<InputEvents>),
}

/// The fields of a record that its results repeat.
#[derive(Debug, Clone, Default)]
struct RepeatedFields {
    key: Option<Vec<u8>>,
    headers: Vec<Header>,
    origin: String,
}

impl RepeatedFields {
    /// The fields for a result; those for the last one are not copied.
    fn take(&mut self, is_last: bool) -> Self {
        if is_last { std::mem::take(self) } else { self.clone() }
    }

    fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push(Header::new(name, value));
        self
    }

    fn result(self, payload: Vec<u8>, destination: Destination) -> ResultRecord {
        let Self { key, headers, origin } = self;
        ResultRecord { payload, key, headers, destination, origin, completes: Vec::new() }
    }
}

impl Transform {
    /// A transform without records. `seed` seeds the jitter of retries.
    ///
    /// # Errors
    ///
    /// The settings are invalid; the text names the field and the valid values.
    pub fn new(config: &str, seed: u64) -> Result<Self, String> {
        let config = AdapterConfig::from_json(config)?;
        let flow = FlowConfig { ordering: config.order(), retry: config.retry() };
        let annotator = match config.task {
            TaskKind::Annotate => Some(Annotator::new(&AnnotateConfig::default()).map_err(|error| error.to_string())?),
            _ => None,
        };
        let sessions = match config.task {
            TaskKind::Transcript => Some(Sessions::new(&config.transcript)?),
            _ => None,
        };
        Ok(Self { flow: Flow::new(flow, seed), config, annotator, sessions })
    }

    /// The settings.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The number of records without all of their results.
    pub fn open(&self) -> usize {
        self.flow.open()
    }

    /// Decodes a record and queues its items.
    pub fn handle_record(&mut self, record: SourceRecord) {
        let SourceRecord { payload, key, mut headers, origin, position } = record;
        let mut take = |name: &str| {
            let at = headers.iter().position(|header| header.name == name)?;
            Some(headers.remove(at).value)
        };
        let (columns, refusal) = (take(CSV_COLUMNS_HEADER), take(REFUSAL_HEADER));
        let (mut parts, mut contents) = (Vec::new(), Vec::new());
        match (refusal, &mut self.sessions) {
            (Some(reason), _) => {
                let reason = String::from_utf8_lossy(&reason).into_owned();
                let content = PartContent::Refused(Refusal { code: "malformed_source", reason });
                parts.push(OpenPart { bytes: None, content });
            }
            (None, Some(sessions)) => {
                let name = SessionName { origin: origin.clone(), key: key.clone() };
                for Decoded { bytes, item } in decode_chunks(&self.config, &payload) {
                    let handled = item.and_then(|input| sessions.handle_input(&name, position.partition, input));
                    let content = match handled {
                        Ok(events) => event_part(None, events, &mut contents),
                        Err(refusal) => PartContent::Refused(refusal),
                    };
                    parts.push(OpenPart { bytes, content });
                }
                while let Some(EndedSession { name, events, .. }) = sessions.poll_excess() {
                    parts.push(OpenPart { bytes: None, content: event_part(Some(name), events, &mut contents) });
                }
            }
            (None, None) => {
                for Decoded { bytes, item } in decode(&self.config, &payload, columns.as_deref()) {
                    let content = match item {
                        Ok(input) => {
                            contents.push(ItemContent::Text(input));
                            PartContent::Item
                        }
                        Err(refusal) => PartContent::Refused(refusal),
                    };
                    parts.push(OpenPart { bytes, content });
                }
            }
        }
        let trace = headers.iter().rev().find(|header| header.name == TRACE_HEADER);
        let traceparent: Option<Arc<str>> =
            trace.and_then(|header| std::str::from_utf8(&header.value).ok()).map(Arc::from);
        let record = OpenRecord { payload, key, headers, origin, position: Some(position), parts };
        let input = |content| ItemInput { content, traceparent: traceparent.clone() };
        self.flow.handle_record(position, record, contents.into_iter().map(input).collect());
        self.annotate();
    }

    /// Ends the open sessions of transcripts, after the last record.
    pub fn handle_end(&mut self) {
        let Some(sessions) = &mut self.sessions else { return };
        while let Some(EndedSession { name, partition, events }) = sessions.poll_end() {
            let mut contents = Vec::new();
            let content = event_part(None, events, &mut contents);
            let SessionName { origin, key } = name;
            let (payload, headers, parts) = (Vec::new(), Vec::new(), vec![OpenPart { bytes: None, content }]);
            let record = OpenRecord { payload, key, headers, origin, position: None, parts };
            let inputs = contents.into_iter().map(|content| ItemInput { content, traceparent: None });
            self.flow.handle_record(Position { partition, offset: u64::MAX }, record, inputs.collect());
        }
    }

    /// Annotates the waiting items, if the task is `annotate`.
    fn annotate(&mut self) {
        let Some(annotator) = &self.annotator else { return };
        let mut buffer = AnnotateBuffer::default();
        while let Some((attempt, ItemInput { content: ItemContent::Text(input), .. })) = self.flow.poll_item(0) {
            let annotation = annotator.annotate(&input.text, &mut buffer);
            self.flow.handle_outcome(0, attempt, Ok(Output::Annotation(annotation)));
        }
    }

    /// Records the outcome of an attempt.
    pub fn handle_outcome(&mut self, now: u64, attempt: u64, result: Result<Output, Failure>) {
        self.flow.handle_outcome(now, attempt, result);
    }

    /// The next item for inference, with the number of its attempt.
    pub fn poll_item(&mut self, now: u64) -> Option<(u64, ItemInput)> {
        self.flow.poll_item(now)
    }

    /// The time at which items must be polled again without another input.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.flow.poll_timeout()
    }

    /// Appends all results of the next complete record to `results`; the last one has the record's position in `completes`. Returns
    /// false when no record is complete.
    pub fn poll_results(&mut self, results: &mut Vec<ResultRecord>) -> bool {
        let Some(Done { record, parts }) = self.flow.poll_done() else { return false };
        let OpenRecord { payload, key, headers, origin, position, parts: open } = record;
        let mut fields = RepeatedFields { key, headers, origin };
        let model = self.config.model.as_str();
        let from = results.len();
        let (mut items, mut open) = (parts.into_iter(), open.into_iter());
        while let Some(OpenPart { bytes, content }) = open.next() {
            let outcome = match content {
                PartContent::Refused(refusal) => Err((ErrorCategory::Client, refusal.code, refusal.reason)),
                PartContent::Events(session, events) => {
                    let outputs = items.by_ref().take(events.queries.len()).map(|part| match part {
                        Part::Output(_, output) => Ok(output),
                        Part::Failed(_, failure) => Err(failure),
                    });
                    for line in events.lines(outputs.collect::<Vec<_>>()) {
                        let mut line = fields.clone().with(MODEL_HEADER, model).result(line, Destination::Output);
                        if let Some(SessionName { origin, key }) = &session {
                            (line.origin, line.key) = (origin.clone(), key.clone());
                        }
                        results.push(line);
                    }
                    continue;
                }
                PartContent::Item => match items.next() {
                    Some(Part::Output(ItemInput { content: ItemContent::Text(input), .. }, output)) => {
                        Ok(encode(&self.config, &input, &output))
                    }
                    Some(Part::Failed(_, failure)) => {
                        Err((ErrorCategory::from(&failure), failure.code(), failure.to_string()))
                    }
                    Some(Part::Output(..)) | None => {
                        Err((ErrorCategory::System, "internal", "the item has no outcome".to_owned()))
                    }
                },
            };
            let fields = fields.take(open.len() == 0);
            results.push(match outcome {
                Ok(payload) => fields.with(MODEL_HEADER, model).result(payload, Destination::Output),
                Err((category, code, reason)) => {
                    let fields = fields.with(ERROR_CATEGORY_HEADER, category.name()).with(ERROR_CODE_HEADER, code);
                    let payload = bytes.unwrap_or_else(|| payload.clone());
                    fields.with(ERROR_REASON_HEADER, reason).result(payload, Destination::Error)
                }
            });
        }
        if let Some(position) = position {
            if results.len() == from {
                fields.headers.clear();
                results.push(fields.result(Vec::new(), Destination::None));
            }
            if let Some(last) = results.last_mut() {
                last.completes.push(position);
            }
        }
        true
    }
}

/// The content of a part that is events; their queries are added to `contents`.
fn event_part(session: Option<SessionName>, events: InputEvents, contents: &mut Vec<ItemContent>) -> PartContent {
    contents.extend(events.queries.iter().map(|query| ItemContent::Step(query.step, query.text.clone())));
    PartContent::Events(session, Box::new(events))
}

#[cfg(test)]
mod tests {
    use weir_codec::inference::output::LabelScore;

    use super::*;

    fn record(offset: u64, payload: &str) -> SourceRecord {
        SourceRecord {
            payload: payload.as_bytes().to_vec(),
            key: Some(b"k".to_vec()),
            headers: vec![Header::new("traceparent", "00-1")],
            origin: "topic".to_owned(),
            position: Position { partition: 0, offset },
        }
    }

    fn label(text: &str) -> Output {
        Output::Labels(vec![LabelScore { label: text.to_owned(), score: 1.0 }])
    }

    /// Gives every item the label of its text, and collects the results.
    fn run(transform: &mut Transform) -> Vec<ResultRecord> {
        let mut results = Vec::new();
        while let Some((attempt, input)) = transform.poll_item(0) {
            let (ItemContent::Text(Input { text, .. }) | ItemContent::Step(_, text)) = input.content;
            transform.handle_outcome(0, attempt, Ok(label(&text)));
        }
        while transform.poll_results(&mut results) {}
        results
    }

    #[test]
    fn every_part_of_a_record_has_a_result_and_the_last_completes_it() {
        let mut transform = Transform::new(r#"{"format":"ndjson"}"#, 1).unwrap();
        transform.handle_record(record(4, "{\"text\":\"a\",\"id\":1}\nbroken\n{\"text\":\"b\"}\n"));
        let results = run(&mut transform);
        let summaries: Vec<(Destination, String, usize)> = results
            .iter()
            .map(|r| (r.destination, String::from_utf8(r.payload.clone()).unwrap(), r.completes.len()))
            .collect();
        assert_eq!(
            summaries,
            [
                (Destination::Output, r#"{"id":1,"label":"a","score":1.0}"#.to_owned(), 0),
                (Destination::Error, "broken".to_owned(), 0),
                (Destination::Output, r#"{"label":"b","score":1.0}"#.to_owned(), 1),
            ]
        );
        assert_eq!(results[0].header("traceparent"), Some("00-1"));
        transform.handle_record(record(5, r#"{"text":"c"}"#));
        assert_eq!(transform.poll_item(0).unwrap().1.traceparent.as_deref(), Some("00-1"));
        assert_eq!(results[0].header(MODEL_HEADER), Some("sentiment"));
        assert_eq!(results[1].header(ERROR_CATEGORY_HEADER), Some("client"));
        assert_eq!(results[1].header(ERROR_CODE_HEADER), Some("malformed_json"));
        assert_eq!(results[2].completes, [Position { partition: 0, offset: 4 }]);
    }

    #[test]
    fn record_without_items_is_completed_without_a_result() {
        let mut transform = Transform::new(r#"{"format":"json_array"}"#, 1).unwrap();
        transform.handle_record(record(1, "[]"));
        let results = run(&mut transform);
        assert_eq!((results.len(), results[0].destination, results[0].completes.len()), (1, Destination::None, 1));
    }

    #[test]
    fn failure_of_the_model_is_an_error_with_the_original_bytes() {
        let mut transform = Transform::new(r#"{"retry_max_attempts":1}"#, 1).unwrap();
        transform.handle_record(record(1, r#"{"text":"a"}"#));
        let (attempt, _) = transform.poll_item(0).unwrap();
        transform.handle_outcome(0, attempt, Err(Failure::Engine("it is broken".into())));
        let mut results = Vec::new();
        assert!(transform.poll_results(&mut results) && transform.open() == 0);
        assert_eq!(results[0].payload, br#"{"text":"a"}"#);
        assert_eq!(results[0].header(ERROR_CATEGORY_HEADER), Some("model"));
        assert_eq!(results[0].header(ERROR_CODE_HEADER), Some("engine_failed"));
    }

    #[test]
    fn text_is_annotated_without_a_model() {
        let mut transform = Transform::new(r#"{"task":"annotate","model":"rules"}"#, 1).unwrap();
        transform.handle_record(record(1, r#"{"text":"Cancel it, or I want your supervisor.","id":7}"#));
        assert_eq!(transform.poll_item(0), None);
        let results = run(&mut transform);
        let text = String::from_utf8(results[0].payload.clone()).unwrap();
        assert!(text.starts_with(r#"{"id":7,"semantic":{"keywords":["cancel","supervisor"],"#), "{text}");
        assert!(text.contains(r#""risk_tags":["churn_risk","escalation"]"#), "{text}");
        assert_eq!(results[0].header(MODEL_HEADER), Some("rules"));
    }

    /// The payloads of results, each with the number of records that it completes.
    fn payloads(results: &[ResultRecord]) -> Vec<(String, usize)> {
        let payload = |result: &ResultRecord| String::from_utf8(result.payload.clone()).unwrap();
        results.iter().map(|result| (payload(result), result.completes.len())).collect()
    }

    #[test]
    fn chunk_has_its_events_as_results_and_the_end_completes_the_open_segment() {
        let settings = r#"{"task":"transcript","transcript":{"parameters":"annotate=sentiment"}}"#;
        let mut transform = Transform::new(settings, 1).unwrap();
        transform.handle_record(record(0, r#"{"start":0,"end":1,"text":"a"}"#));
        transform.handle_record(record(1, r#"{"start":9,"end":9.5,"text":"b"}"#));
        transform.handle_record(record(2, r#"{"start":"9","end":9.5,"text":"c"}"#));
        let mut other = record(3, r#"{"start":0,"end":1,"text":"d"}"#);
        other.key = None;
        transform.handle_record(other);
        let results = run(&mut transform);
        let partial = |text: &str, start: &str, end: &str| {
            format!(
                r#"{{"type":"partial_segment","segment":{{"start":{start},"end":{end},"text":"{text}","speaker_id":null}}}}"#
            )
        };
        let last = |text: &str, start: &str, end: &str, id: u32| {
            format!(
                r#"{{"type":"final_segment","segment":{{"start":{start},"end":{end},"text":"{text}","speaker_id":null}},"segment_id":{id},"sentiment":{{"label":"{text}","score":1.0}}}}"#
            )
        };
        assert_eq!(
            payloads(&results),
            [
                (partial("a", "0.0", "1.0"), 1),
                (last("a", "0.0", "1.0", 0), 0),
                (partial("b", "9.0", "9.5"), 1),
                (r#"{"start":"9","end":9.5,"text":"c"}"#.to_owned(), 1),
                (partial("d", "0.0", "1.0"), 1),
            ]
        );
        assert_eq!(
            (results[3].destination, results[3].header(ERROR_CODE_HEADER)),
            (Destination::Error, Some("wrong_type"))
        );
        transform.handle_end();
        let results = run(&mut transform);
        assert_eq!(payloads(&results), [(last("d", "0.0", "1.0", 0), 0), (last("b", "9.0", "9.5", 1), 0)]);
        assert_eq!((results[0].key.as_deref(), results[1].key.as_deref()), (None, Some(&b"k"[..])));
        assert_eq!((results[1].origin.as_str(), transform.open()), ("topic", 0));
    }

    #[test]
    fn columns_of_the_driver_are_not_headers_of_the_result() {
        let mut transform = Transform::new(r#"{"format":"csv"}"#, 1).unwrap();
        let mut row = record(1, "7,a");
        row.headers.push(Header::new(CSV_COLUMNS_HEADER, "id,text"));
        transform.handle_record(row);
        let results = run(&mut transform);
        assert_eq!(results[0].payload, br#"{"id":"7","label":"a","score":1.0}"#);
        assert_eq!(results[0].header(CSV_COLUMNS_HEADER), None);
    }
}
