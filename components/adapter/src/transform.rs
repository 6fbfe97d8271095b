//! The state of one call: decodes records, hands out their items for inference, encodes results.

use weir_codec::adapter::{
    config::{AdapterConfig, TaskKind},
    decode::{CSV_COLUMNS_HEADER, Decoded, Input, REFUSAL_HEADER, Refusal, decode},
    encode::{Output, encode},
};
use weir_core::{
    adapter::{
        Destination, Done, ERROR_CATEGORY_HEADER, ERROR_CODE_HEADER, ERROR_REASON_HEADER, ErrorCategory, Flow,
        FlowConfig, Header, Part, Position, ResultRecord, SourceRecord,
    },
    failure::Failure,
    transcripts::annotate::{AnnotateBuffer, AnnotateConfig, Annotator},
};

/// The header of a result with the name of the model.
pub const MODEL_HEADER: &str = "weir-model";

/// The records of one call. The driver passes in records and outcomes, and polls items and results.
#[derive(Debug)]
pub struct Transform {
    config: AdapterConfig,
    flow: Flow<OpenRecord, Input, Output>,
    /// For the task `annotate`, which needs no model.
    annotator: Option<Annotator>,
}

/// A record without all of its results.
#[derive(Debug)]
struct OpenRecord {
    payload: Vec<u8>,
    key: Option<Vec<u8>>,
    headers: Vec<Header>,
    origin: String,
    position: Position,
    parts: Vec<OpenPart>,
}

/// One part of a payload: its bytes, and the refusal of a part that has no item.
#[derive(Debug)]
struct OpenPart {
    bytes: Option<Vec<u8>>,
    refusal: Option<Refusal>,
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
        Ok(Self { flow: Flow::new(flow, seed), config, annotator })
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
        let decoded = match refusal {
            Some(reason) => {
                let reason = String::from_utf8_lossy(&reason).into_owned();
                vec![Decoded { bytes: None, item: Err(Refusal { code: "malformed_source", reason }) }]
            }
            None => decode(&self.config, &payload, columns.as_deref()),
        };
        let (mut parts, mut inputs) = (Vec::with_capacity(decoded.len()), Vec::new());
        for Decoded { bytes, item } in decoded {
            let refusal = item.map(|input| inputs.push(input)).err();
            parts.push(OpenPart { bytes, refusal });
        }
        self.flow.handle_record(position, OpenRecord { payload, key, headers, origin, position, parts }, inputs);
        self.annotate();
    }

    /// Annotates the waiting items, if the task is `annotate`.
    fn annotate(&mut self) {
        let Some(annotator) = &self.annotator else { return };
        let mut buffer = AnnotateBuffer::default();
        while let Some((attempt, input)) = self.flow.poll_item(0) {
            let annotation = annotator.annotate(&input.text, &mut buffer);
            self.flow.handle_outcome(0, attempt, Ok(Output::Annotation(annotation)));
        }
    }

    /// Records the outcome of an attempt.
    pub fn handle_outcome(&mut self, now: u64, attempt: u64, result: Result<Output, Failure>) {
        self.flow.handle_outcome(now, attempt, result);
    }

    /// The next item for inference, with the number of its attempt.
    pub fn poll_item(&mut self, now: u64) -> Option<(u64, Input)> {
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
        let result = |payload, headers, destination| ResultRecord {
            payload,
            key: key.clone(),
            headers,
            destination,
            origin: origin.clone(),
            completes: Vec::new(),
        };
        let from = results.len();
        let mut items = parts.into_iter();
        for OpenPart { bytes, refusal } in open {
            let outcome = match refusal {
                Some(refusal) => Err((ErrorCategory::Client, refusal.code, refusal.reason)),
                None => match items.next() {
                    Some(Part::Output(input, output)) => Ok(encode(&self.config, &input, &output)),
                    Some(Part::Failed(_, failure)) => {
                        Err((ErrorCategory::from(&failure), failure.code(), failure.to_string()))
                    }
                    None => Err((ErrorCategory::System, "internal", "the item has no outcome".to_owned())),
                },
            };
            results.push(match outcome {
                Ok(payload) => {
                    let mut headers = headers.clone();
                    headers.push(Header::new(MODEL_HEADER, self.config.model.as_str()));
                    result(payload, headers, Destination::Output)
                }
                Err((category, code, reason)) => {
                    let mut headers = headers.clone();
                    headers.push(Header::new(ERROR_CATEGORY_HEADER, category.name()));
                    headers.push(Header::new(ERROR_CODE_HEADER, code));
                    headers.push(Header::new(ERROR_REASON_HEADER, reason));
                    result(bytes.unwrap_or_else(|| payload.clone()), headers, Destination::Error)
                }
            });
        }
        if results.len() == from {
            results.push(result(Vec::new(), Vec::new(), Destination::None));
        }
        if let Some(last) = results.last_mut() {
            last.completes.push(position);
        }
        true
    }
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
            transform.handle_outcome(0, attempt, Ok(label(&input.text)));
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
