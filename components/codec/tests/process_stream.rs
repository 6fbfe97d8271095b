//! `/process-stream` as a pipeline: for any text and any answers, in any order, the lines are those of
//! `weir_core::process`, byte by byte, after every single answer.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc};

use proptest::prelude::*;
use weir_codec::pipelines::{
    output::{self, Say, Sentiments},
    process_event,
    process_stream::{self, Renderer},
};
use weir_core::{
    failure::Failure,
    pipelines::{Execution, Kind, KindName, Limits, Run, StepFailure},
    process::{Answer, Now, Process, Request, Span, Step},
};

fn now(ms: u64) -> Now {
    Now { monotonic_ns: ms * 1_234_567, unix_ns: 1_761_129_000_000_000_000 + ms * 1_234_567 }
}

/// The pipeline with its steps, one of each kind, as a driver would run them.
struct Pipeline {
    request: Request,
    execution: Execution,
    renderer: Renderer,
    sentiments: Sentiments,
    runs: BTreeMap<KindName, Run>,
    chunks: usize,
    stored: u64,
    lines: Vec<String>,
}

impl Pipeline {
    fn new(request: Request) -> Self {
        let definition = process_stream::definition(&request, 60_000);
        let renderer = Renderer::new(&request, &definition);
        let input = process_stream::input(&request);
        let execution = Execution::new(Arc::new(definition), "exec_x", input, Limits::default(), 1, now(0));
        let mut pipeline = Self {
            execution: execution.expect("fits"),
            renderer,
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
                    for line in self.renderer.handle_event(&sequenced.event) {
                        assert!(line.json.starts_with(&format!(r#"{{"status":"{}""#, line.status)));
                        self.lines.push(line.json);
                    }
                }
                self.execution.handle_stored(self.stored);
            } else if let Some(work) = self.execution.poll_start(now) {
                let kind = self.execution.definition().task(work.run.place).expect("a task").kind.clone();
                self.runs.insert(kind.name(), work.run);
                if let Kind::Chunk { chunk_size } = kind {
                    let chunks = output::chunks(&self.request.text, chunk_size);
                    let value: serde_json::Value = serde_json::from_str(chunks.as_str()).expect("JSON");
                    self.chunks = value["chunks"].as_array().expect("chunks").len();
                    self.sentiments = Sentiments::new(self.chunks);
                    self.execution.handle_finished(now, work.run, chunks);
                }
            } else {
                return;
            }
        }
    }

    fn handle_answer(&mut self, now: Now, id: u64, answer: Result<Answer, Failure>) {
        let (kind, result) = match usize::try_from(id).expect("small") {
            chunk if chunk < self.chunks => {
                self.sentiments.handle_answer(chunk, answer);
                let run = self.runs[&KindName::Sentiment];
                while let Some(say) = self.sentiments.poll() {
                    match say {
                        Say::Part(part) => self.execution.handle_output(now, run, part).expect("room"),
                        Say::Finished(output) => self.execution.handle_finished(now, run, output),
                        Say::Failed(failure) => self.execution.handle_failed(now, run, StepFailure::from(&failure)),
                    }
                }
                return self.drain(now);
            }
            other if other == self.chunks => (KindName::Summary, output::summary(answer, &self.request.text)),
            _ => (KindName::Entities, output::entities(answer, &self.request.text)),
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
}

fn lines(process: &mut Process, now: Now) -> Vec<String> {
    let events = std::iter::from_fn(|| process.poll_event(now));
    events.map(|said| String::from_utf8(process_event::to_json(&said)).expect("UTF-8")).collect()
}

fn failures() -> impl Strategy<Value = Failure> {
    prop_oneof![
        Just(Failure::DeadlineExceeded),
        Just(Failure::Overloaded { retry_after_ms: 7 }),
        Just(Failure::TooLong { tokens: 600, tokens_max: 512 }),
        "\\PC{0,20}".prop_map(Failure::Engine),
        any::<String>().prop_map(Failure::Other),
    ]
}

fn answers() -> impl Strategy<Value = Result<Answer, Failure>> {
    let label = prop::sample::select(vec!["positive", "NEG", " neutral", "5 stars", "joie\"é\n"]);
    let span = ("(PER|ORG|X\"|é)", 0u32..40, 0u32..40).prop_map(|(label, start, length)| Span {
        label,
        start,
        end: start + length,
    });
    prop_oneof![
        6 => (label, any::<f32>().prop_filter("a score", |f| f.is_finite()))
            .prop_map(|(label, score)| Ok(Answer::Label { label: label.to_owned(), score })),
        2 => any::<String>().prop_map(|summary| Ok(Answer::Summary(summary))),
        2 => prop::collection::vec(span, 0..5).prop_map(|spans| Ok(Answer::Entities(spans))),
        1 => failures().prop_map(Err),
    ]
}

/// An answer of the kind that was asked for, most of the time.
fn fitting(step: Step, answer: &Result<Answer, Failure>, strict: bool) -> Result<Answer, Failure> {
    match (step, answer) {
        (_, answer) if strict => answer.clone(),
        (Step::Summarization, Ok(Answer::Label { label, .. })) => Ok(Answer::Summary(label.clone())),
        (Step::Entities, Ok(Answer::Label { score, .. })) => {
            let end = (score.abs() % 12.0) as u32;
            Ok(Answer::Entities(vec![Span { label: "LOC".to_owned(), start: 0, end }]))
        }
        (Step::Sentiment, Ok(Answer::Summary(_) | Answer::Entities(_))) => {
            Ok(Answer::Label { label: "NEGATIVE".to_owned(), score: 0.1 })
        }
        _ => answer.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_lines_are_the_same(
        text in "\\PC{10,260}",
        flags in any::<[bool; 3]>(),
        chunk_size in prop::option::of(1usize..80),
        order in prop::collection::vec((any::<u32>(), answers(), 0u8..8), 1..40),
        aborts_after in prop::option::weighted(0.2, 0usize..8),
    ) {
        let request = Request {
            text,
            include_sentiment: flags[0],
            include_summary: flags[1],
            include_entities: flags[2],
            chunk_size: chunk_size.and_then(NonZeroUsize::new),
        };
        let mut process = Process::new(request.clone(), now(0));
        let mut want = lines(&mut process, now(0));
        let mut work: Vec<(u64, Step)> = Vec::new();
        while let Some(piece) = process.poll_work() {
            work.push((piece.id, piece.step));
        }
        let mut pipeline = Pipeline::new(request);
        prop_assert_eq!(&pipeline.lines, &want);
        work.sort_by_key(|(id, _)| order[*id as usize % order.len()].0);
        for (ms, (id, step)) in (1u64..).zip(work) {
            if aborts_after == Some(ms as usize) {
                let failure = Failure::RequestTimeout { timeout_ms: 5 };
                pipeline.cancel(now(ms), &failure);
                if let Some(last) = process.handle_abort(failure) {
                    want.push(String::from_utf8(process_event::to_json(&last)).expect("UTF-8"));
                }
                break;
            }
            let (_, answer, kind) = &order[id as usize % order.len()];
            let answer = fitting(step, answer, *kind == 0);
            process.handle_answer(id, answer.clone());
            want.extend(lines(&mut process, now(ms)));
            pipeline.handle_answer(now(ms), id, answer);
            prop_assert_eq!(&pipeline.lines, &want);
        }
        prop_assert_eq!(&pipeline.lines, &want);
        prop_assert!(process.is_done() && pipeline.execution.is_drained());
    }
}
