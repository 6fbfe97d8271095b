//! `/process-stream` and `/process-batch` as a pipeline, driven like in the gateway: compares the lines of recorded cases byte by byte after
//! every outcome, and checks properties for any text and for outcomes in any order.
//!
//! `process_streams.jsonl` was recorded from the state machine that served both routes before the pipeline.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use serde_json::Value;
use weir_codec::{
    http::problem::Problem,
    pipelines::{
        output::{self, Sentiments, StepOutput},
        process_batch::BatchCollector,
        process_request::ProcessRequest,
        process_stream::{self, Renderer},
    },
};
use weir_core::{
    failure::Failure,
    inference::{
        rewrite::SummaryText,
        text_step::{Span, TextOutput},
    },
    pipelines::{Execution, Kind, KindName, Limits, Run, StepFailure},
    time::Now,
};

type Outcome = Result<TextOutput, Failure>;

fn now(ms: u64) -> Now {
    Now { monotonic_ns: ms * 1_234_567, unix_ns: 1_761_129_000_000_000_000 + ms * 1_234_567 }
}

/// A driver of the pipeline with its steps, at most one of each kind.
struct Pipeline {
    request: ProcessRequest,
    execution: Execution,
    renderer: Renderer,
    collector: BatchCollector,
    sentiments: Sentiments,
    runs: BTreeMap<KindName, Run>,
    chunks: usize,
    stored: u64,
    lines: Vec<String>,
}

impl Pipeline {
    fn new(request: ProcessRequest, chunk_size: Option<u32>) -> Self {
        let definition = process_stream::definition(&request, chunk_size, 60_000);
        let renderer = Renderer::new(&request, &definition);
        let collector = BatchCollector::new(&definition);
        let input = process_stream::input(&request);
        let execution = Execution::new(Arc::new(definition), "exec_x", input, Limits::default(), 1, now(0));
        let mut pipeline = Self {
            execution: execution.expect("fits"),
            renderer,
            collector,
            sentiments: Sentiments::new(0),
            runs: BTreeMap::new(),
            chunks: 0,
            stored: 0,
            lines: Vec::new(),
            request,
        };
        pipeline.drain(now(0));
        pipeline
    }

    fn drain(&mut self, now: Now) {
        loop {
            if let Some(checkpoint) = self.execution.poll_checkpoint(now) {
                self.execution.handle_checkpoint_saved(checkpoint.number);
            } else if let Some(batch) = self.execution.poll_events(now) {
                for sequenced in &batch.events {
                    self.stored = sequenced.seq;
                    self.collector.handle_event(&sequenced.event);
                    for line in self.renderer.handle_event(&sequenced.event) {
                        assert!(line.json.starts_with(&format!(r#"{{"status":"{}""#, line.status)));
                        self.lines.push(line.json);
                    }
                }
                self.execution.handle_stored(self.stored);
            } else if let Some(start) = self.execution.poll_start(now) {
                let kind = self.execution.definition().task(start.run.place).expect("a task").kind.clone();
                self.runs.insert(kind.name(), start.run);
                if let Kind::Chunk { chunk_size } = kind {
                    let chunks = output::chunks(&self.request.text, chunk_size);
                    let value: Value = serde_json::from_str(chunks.as_str()).expect("JSON");
                    self.chunks = value["chunks"].as_array().expect("chunks").len();
                    self.sentiments = Sentiments::new(self.chunks);
                    self.execution.handle_finished(now, start.run, chunks);
                }
            } else {
                return;
            }
        }
    }

    /// The numbers of the items that running steps wait for: the chunks from 0, then the summary, then the entities.
    fn items(&self) -> Vec<usize> {
        let mut items = Vec::new();
        if self.runs.contains_key(&KindName::Sentiment) {
            items.extend(0..self.chunks);
        }
        items.extend(self.runs.contains_key(&KindName::Summary).then_some(self.chunks));
        items.extend(self.runs.contains_key(&KindName::Entities).then_some(self.chunks + 1));
        items
    }

    fn handle_outcome(&mut self, now: Now, item: usize, outcome: Outcome) {
        let (kind, result) = match item {
            chunk if chunk < self.chunks => {
                self.sentiments.handle_outcome(chunk, outcome);
                let run = self.runs[&KindName::Sentiment];
                while let Some(output) = self.sentiments.poll() {
                    match output {
                        StepOutput::Part(part) => self.execution.handle_output(now, run, part).expect("room"),
                        StepOutput::Finished(output) => self.execution.handle_finished(now, run, output),
                        StepOutput::Failed(failure) => {
                            self.execution.handle_failed(now, run, StepFailure::from(&failure))
                        }
                    }
                }
                return self.drain(now);
            }
            other if other == self.chunks => {
                let sentences = output::sentences(outcome);
                let summary = |sentences| output::summary(SummaryText::new(sentences), &self.request.text);
                (KindName::Summary, sentences.map(summary))
            }
            _ => (KindName::Entities, output::entities(outcome, &self.request.text)),
        };
        let run = self.runs[&kind];
        match result {
            Ok(output) => self.execution.handle_finished(now, run, output),
            Err(failure) => self.execution.handle_failed(now, run, StepFailure::from(&failure)),
        }
        self.drain(now);
    }

    fn cancel(&mut self, now: Now, failure: &Failure) {
        self.execution.handle_cancel(now, StepFailure::from(failure));
        self.drain(now);
        while let Some(run) = self.execution.poll_stop() {
            self.runs.retain(|_, other| *other != run);
        }
    }

    fn statuses(&self) -> Vec<String> {
        self.lines.iter().map(|line| value(line)["status"].as_str().expect("a status").to_owned()).collect()
    }
}

fn value(line: &str) -> Value {
    serde_json::from_str(line).expect("JSON")
}

fn request(text: &str, flags: [bool; 3]) -> ProcessRequest {
    ProcessRequest {
        text: text.to_owned(),
        include_sentiment: flags[0],
        include_summary: flags[1],
        summary_mode: None,
        include_entities: flags[2],
        chunk_size: 200,
    }
}

/// The outcome of an item in a recorded case.
fn recorded_outcome(case: &Value) -> Outcome {
    let text = || case["text"].as_str().expect("a text").to_owned();
    let number = |field: &str| case[field].as_u64().expect("a number") as u32;
    if let Some(label) = case["label"].as_str() {
        return Ok(TextOutput::Label {
            label: label.to_owned(),
            score: case["score"].as_f64().expect("a score") as f32,
        });
    }
    if let Some(summary) = case["summary"].as_str() {
        return Ok(TextOutput::Summary(summary.to_owned()));
    }
    if let Some(entities) = case["entities"].as_array() {
        let span = |span: &Value| Span {
            label: span[0].as_str().expect("a label").to_owned(),
            start: span[1].as_u64().expect("a start") as u32,
            end: span[2].as_u64().expect("an end") as u32,
        };
        return Ok(TextOutput::Entities(entities.iter().map(span).collect()));
    }
    Err(match case["failure"].as_str().expect("a failure") {
        "invalid_input" => Failure::InvalidInput(text()),
        "unknown_model" => Failure::UnknownModel { name: text(), served: Vec::new() },
        "model_unavailable" => Failure::Unavailable(text()),
        "engine_failed" => Failure::Engine(text()),
        "inference_failed" => Failure::Other(text()),
        "too_long" => Failure::TooLong { tokens: number("tokens"), tokens_max: number("tokens_max") },
        "overloaded" => Failure::Overloaded { retry_after_ms: number("retry_after_ms") },
        "throttled" => Failure::Throttled { retry_after_ms: number("retry_after_ms") },
        "circuit_open" => Failure::CircuitOpen { retry_after_ms: number("retry_after_ms") },
        "deadline_exceeded" => Failure::DeadlineExceeded,
        other => panic!("{other}"),
    })
}

#[test]
fn recorded_cases_have_the_same_lines_and_responses() {
    let cases = include_str!("process_streams.jsonl");
    assert_eq!(cases.lines().count(), 160);
    for (number, case) in (1..).zip(cases.lines()) {
        let case = value(case);
        let flag = |field: &str| case[field].as_bool().expect("a flag");
        let flags = [flag("include_sentiment"), flag("include_summary"), flag("include_entities")];
        let chunk_size = case["chunk_size"].as_u64().map(|size| size as u32);
        let mut pipeline = Pipeline::new(request(case["text"].as_str().expect("a text"), flags), chunk_size);
        let mut want: Vec<String> = Vec::new();
        for (ms, step) in (0..).zip(case["steps"].as_array().expect("steps")) {
            if let Some(item) = step["item"].as_u64() {
                pipeline.handle_outcome(now(ms), item as usize, recorded_outcome(&step["outcome"]));
            } else if let Some(timeout_ms) = step["abort_timeout_ms"].as_u64() {
                pipeline.cancel(now(ms), &Failure::RequestTimeout { timeout_ms });
            }
            want.extend(step["lines"].as_array().expect("lines").iter().map(|line| line.as_str().unwrap().to_owned()));
            assert_eq!(pipeline.lines, want, "case {number}, after {ms} outcomes");
        }
        assert!(pipeline.execution.is_drained(), "case {number}");
        let Some(batch) = case.get("batch") else { continue };
        let got = match pipeline.collector.poll_result().expect("a result") {
            Ok(response) => ("body", response.to_json()),
            Err((step, failure)) => ("problem", Problem::failed(step, &failure).to_json("r-1")),
        };
        let got = (got.0, String::from_utf8(got.1).expect("UTF-8"));
        assert_eq!(batch[got.0].as_str(), Some(got.1.as_str()), "case {number}");
    }
}

const LONG: &str = "Alice went to the market on a sunny day and bought apples, pears, plums, bread and \
                    some cheese for the road home.";

/// A successful outcome of an item.
fn success(pipeline: &Pipeline, item: usize) -> Outcome {
    Ok(match item {
        chunk if chunk < pipeline.chunks => TextOutput::Label { label: "positive".to_owned(), score: 0.5 },
        summary if summary == pipeline.chunks => TextOutput::Summary("In short.".to_owned()),
        _ => TextOutput::Entities(vec![Span { label: "PER".to_owned(), start: 0, end: 4 }]),
    })
}

#[test]
fn each_flag_combination_has_its_events_in_order() {
    for bits in 0..8u8 {
        for text in [LONG, "Alice is short."] {
            let flags = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
            let mut pipeline = Pipeline::new(request(text, flags), Some(50));
            let mut want = vec!["started", "chunking", "chunked"];
            if flags[0] {
                want.push("sentiment_processing");
                want.extend(std::iter::repeat_n("sentiment_progress", text.chars().count().div_ceil(50)));
                want.push("sentiment_complete");
            }
            if flags[1] && text == LONG {
                want.extend(["summarization_processing", "summarization_complete"]);
            }
            if flags[2] {
                want.extend(["entities_processing", "entities_complete"]);
            }
            want.push("completed");
            // Outcomes arrive in reverse order.
            for item in pipeline.items().into_iter().rev() {
                let outcome = success(&pipeline, item);
                pipeline.handle_outcome(now(5), item, outcome);
            }
            assert_eq!(pipeline.statuses(), want, "{flags:?} {text}");
            assert!(pipeline.execution.is_drained());
        }
    }
}

#[test]
fn summary_of_100_code_points_is_not_requested() {
    for (length, want) in [(100, 0), (101, 1)] {
        let pipeline = Pipeline::new(request(&"😀".repeat(length), [false, true, false]), Some(50));
        assert_eq!(pipeline.items().len(), want, "{length}");
    }
}

#[test]
fn text_without_a_chunk_size_is_one_chunk() {
    let pipeline = Pipeline::new(request(LONG, [true, false, false]), None);
    assert_eq!(pipeline.items(), [0]);
}

#[test]
fn progress_waits_for_the_chunks_before_it() {
    let mut pipeline = Pipeline::new(request(LONG, [true, false, false]), Some(50));
    assert_eq!(pipeline.statuses(), ["started", "chunking", "chunked", "sentiment_processing"]);
    let label = |label: &str| Ok(TextOutput::Label { label: label.to_owned(), score: 0.25 });
    pipeline.handle_outcome(now(1), 1, label("negative"));
    assert_eq!(pipeline.lines.len(), 4);
    pipeline.handle_outcome(now(1), 0, label("positive"));
    let chunks: Vec<Value> = pipeline.lines[4..].iter().map(|line| value(line)["chunk_result"].clone()).collect();
    assert_eq!(
        chunks,
        [
            serde_json::json!({"chunk": 1, "sentiment": "POSITIVE", "confidence": 0.25}),
            serde_json::json!({"chunk": 2, "sentiment": "NEGATIVE", "confidence": 0.25}),
        ]
    );
    pipeline.handle_outcome(now(1000), 2, label("neutral"));
    assert_eq!(pipeline.statuses()[6..], ["sentiment_progress", "sentiment_complete", "completed"]);
    let complete = value(&pipeline.lines[7]);
    assert_eq!(
        (complete["overall_sentiment"].as_str(), complete["chunk_sentiments"].as_array().unwrap().len()),
        (Some("NEUTRAL"), 3)
    );
    assert_eq!((&complete["positive_chunks"], &complete["negative_chunks"]), (&1.into(), &1.into()));
    assert_eq!(value(&pipeline.lines[8])["total_processing_time"], 1.234567);
}

#[test]
fn step_that_fails_is_reported_and_the_next_continues() {
    let mut pipeline = Pipeline::new(request(LONG, [true; 3]), Some(50));
    for item in 0..5 {
        let outcome = match item {
            1 => Err(Failure::Engine("cracked".to_owned())),
            3 => Err(Failure::DeadlineExceeded),
            _ => success(&pipeline, item),
        };
        pipeline.handle_outcome(now(0), item, outcome);
    }
    assert_eq!(
        pipeline.statuses()[3..],
        [
            "sentiment_processing",
            "sentiment_progress",
            "sentiment_error",
            "summarization_processing",
            "summarization_error",
            "entities_processing",
            "entities_complete",
            "completed"
        ]
    );
    assert_eq!(value(&pipeline.lines[5])["code"], "engine_failed");
    assert_eq!(
        value(pipeline.lines.last().unwrap())["failed_steps"],
        serde_json::json!(["sentiment", "summarization"])
    );
}

#[test]
fn output_of_another_kind_is_a_failure() {
    let mut pipeline = Pipeline::new(request(LONG, [true; 3]), Some(200));
    for item in pipeline.items() {
        let other = if item == pipeline.chunks { pipeline.chunks + 1 } else { pipeline.chunks };
        let outcome = success(&pipeline, other);
        pipeline.handle_outcome(now(0), item, outcome);
    }
    let statuses = pipeline.statuses();
    for error in ["sentiment_error", "summarization_error", "entities_error", "completed"] {
        assert!(statuses.iter().any(|status| status == error), "{statuses:?}");
    }
}

#[test]
fn abort_is_the_last_event_and_is_sent_once() {
    let mut pipeline = Pipeline::new(request(LONG, [true; 3]), Some(200));
    let failure = Failure::RequestTimeout { timeout_ms: 5 };
    pipeline.cancel(now(0), &failure);
    let lines = pipeline.lines.clone();
    assert_eq!(pipeline.statuses().last().map(String::as_str), Some("error"));
    assert!(pipeline.execution.is_drained());
    pipeline.cancel(now(9), &failure);
    assert_eq!(pipeline.lines, lines);
}

#[test]
fn batch_reports_the_failure_of_the_first_step_once_the_steps_before_it_are_complete() {
    let mut pipeline = Pipeline::new(request(LONG, [true; 3]), None);
    pipeline.handle_outcome(now(1), 1, Err(Failure::DeadlineExceeded));
    assert!(pipeline.collector.poll_result().is_none(), "sentiment may still fail");
    let outcome = success(&pipeline, 0);
    pipeline.handle_outcome(now(2), 0, outcome);
    let (step, failure) = pipeline.collector.poll_result().expect("a result").expect_err("a failure");
    assert_eq!(
        (step, &*failure.code),
        (Some(weir_core::inference::text_step::TextStep::Summarization), "deadline_exceeded")
    );
}

#[test]
fn batch_without_steps_has_only_its_time() {
    let mut pipeline = Pipeline::new(request("ten points", [false; 3]), None);
    let response = pipeline.collector.poll_result().expect("a result").expect("a response");
    assert_eq!(String::from_utf8(response.to_json()).unwrap(), r#"{"processing_time":0.0}"#);
}

fn outcomes() -> impl Strategy<Value = (u32, bool)> {
    (any::<u32>(), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn outcomes_in_any_order_give_the_events_of_the_contract(
        text in "\\PC{1,300}",
        flags in any::<[bool; 3]>(),
        chunk_size in 1u32..80,
        outcomes in prop::collection::vec(outcomes(), 310),
    ) {
        let length = text.chars().count();
        let run = |order: &dyn Fn(usize) -> u32| {
            let mut pipeline = Pipeline::new(request(&text, flags), Some(chunk_size));
            let mut items = pipeline.items();
            items.sort_by_key(|item| order(*item));
            for item in items {
                let outcome = match outcomes[item % outcomes.len()].1 {
                    true => Err(Failure::DeadlineExceeded),
                    // No spans, which is valid for every text.
                    false if item == pipeline.chunks + 1 => Ok(TextOutput::Entities(Vec::new())),
                    false => success(&pipeline, item),
                };
                pipeline.handle_outcome(now(1), item, outcome);
            }
            pipeline
        };
        let pipeline = run(&|item| outcomes[item % outcomes.len()].0);
        prop_assert!(pipeline.execution.is_drained());
        let statuses = pipeline.statuses();
        let order = [
            "started", "chunking", "chunked", "sentiment_processing", "sentiment_progress", "sentiment_complete",
            "sentiment_error", "summarization_processing", "summarization_complete", "summarization_error",
            "entities_processing", "entities_complete", "entities_error", "completed",
        ];
        let positions: Vec<_> = statuses.iter().map(|status| order.iter().position(|name| name == status)).collect();
        prop_assert!(positions.iter().all(Option::is_some) && positions.is_sorted(), "{statuses:?}");
        let count = |expected: &str| statuses.iter().filter(|status| *status == expected).count();
        for (step, flag) in [("sentiment", flags[0]), ("summarization", flags[1] && length > 100), ("entities", flags[2])] {
            prop_assert_eq!(count(&format!("{step}_processing")), usize::from(flag));
            let ends = count(&format!("{step}_complete")) + count(&format!("{step}_error"));
            prop_assert_eq!(ends, usize::from(flag));
        }
        // Chunks are reported in order, from the first, without a gap.
        let chunks: Vec<u64> =
            pipeline.lines.iter().filter_map(|line| value(line)["chunk_result"]["chunk"].as_u64()).collect();
        prop_assert_eq!(&chunks, &(1..=chunks.len() as u64).collect::<Vec<_>>());
        if count("sentiment_complete") == 1 {
            prop_assert_eq!(chunks.len(), length.div_ceil(chunk_size as usize));
        }
        // The lines do not depend on the order of the outcomes.
        prop_assert_eq!(&pipeline.lines, &run(&|item| item as u32).lines);
    }
}
