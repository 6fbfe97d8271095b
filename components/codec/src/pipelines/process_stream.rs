//! `/process-stream` as a pipeline, and its events in the dialect of `/process-stream`.
//!
//! The steps run beside each other (sentiment needs the chunks, the others only the text); the [`Renderer`] tells them one
//! after the other, as the contract has it. What it draws is the same, byte by byte, as what
//! [`weir_core::process::Process`] tells of the same answers.

use std::{collections::VecDeque, mem};

use serde::{Deserialize, de::IgnoredAny};
use weir_core::{
    inference::{
        chunk::code_points,
        retry::{RetryConfig, RetryPolicy},
    },
    pipelines::{Data, Definition, Draft, Event, Json, Kind, OnError, Step, Streaming},
    process::{self, Request, SUMMARY_CODE_POINTS_OVER},
};

use super::writer::object;
use crate::pipelines::process_event;

/// The name of the pipeline.
pub const NAME: &str = "process-stream";
const CHUNK: &str = "chunk";
/// The steps that the dialect tells one after the other, with the names that its events have.
const TOLD: [(&str, process::Step); 3] = [
    ("sentiment", process::Step::Sentiment),
    ("summary", process::Step::Summarization),
    ("entities", process::Step::Entities),
];

/// The pipeline of a request. No step is tried again and none ends the others, as ever.
pub fn definition(request: &Request, timeout_ms: u64) -> Definition {
    let text_length = code_points(&request.text);
    let whole = u32::try_from(text_length.max(1)).unwrap_or(u32::MAX);
    let chunk_size = request.chunk_size.and_then(|size| u32::try_from(size.get()).ok()).unwrap_or(whole);
    let step = |id: &str, kind, after: &[&str]| {
        let mut step = Step::new(id, kind);
        step.after = Some(after.iter().map(|id| (*id).to_owned()).collect());
        step.on_error = OnError::Continue;
        step.task.timeout_ms = timeout_ms;
        step.task.retry = RetryConfig { policy: RetryPolicy::NoRetry, ..RetryConfig::default() };
        step
    };
    let mut steps = vec![step(CHUNK, Kind::Chunk { chunk_size }, &[])];
    if request.include_sentiment {
        steps.push(step("sentiment", Kind::Sentiment { model: None }, &[CHUNK]));
    }
    if request.include_summary && text_length > SUMMARY_CODE_POINTS_OVER {
        steps.push(step("summary", Kind::Summary { model: None }, &[]));
    }
    if request.include_entities {
        steps.push(step("entities", Kind::Entities { model: None }, &[]));
    }
    let streaming = Streaming { flush_interval_ms: 0, ..Streaming::default() };
    let draft = Draft { streaming, ..Draft::new(NAME, steps) };
    draft.check().expect("a text within the bounds of a request and a timeout within a day make a definition")
}

/// The input of the pipeline.
pub fn input(request: &Request) -> Json {
    Json::from_checked(object(|out| {
        out.value("text", &request.text);
    }))
}

/// An event of the dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The value of `status`, which is also the name of the SSE event.
    pub status: String,
    /// The event as JSON, without an end of line.
    pub json: String,
}

/// Draws the events of an execution of [`definition`], in the order of their sequence. Events that are told twice after a
/// crash (of a step that ran again) are drawn once.
#[derive(Debug)]
pub struct Renderer {
    text_length: usize,
    /// What waits to be told of each step; none for a step that was not asked for.
    steps: [Option<VecDeque<Line>>; 3],
    /// Which step is being told; none before the chunks are.
    telling: Option<usize>,
    /// Parts of sentiment that were drawn.
    parts: u64,
    is_chunking: bool,
    is_over: bool,
    /// Which of [`TOLD`] failed.
    failed: [bool; TOLD.len()],
}

impl Renderer {
    /// For a request and its definition.
    pub fn new(request: &Request, definition: &Definition) -> Self {
        let has = |id: &str| definition.steps().iter().any(|step| *step.task.id == *id);
        let steps = TOLD.map(|(id, _)| has(id).then(VecDeque::new));
        let text_length = code_points(&request.text);
        Self {
            text_length,
            steps,
            telling: None,
            parts: 0,
            is_chunking: false,
            is_over: false,
            failed: [false; TOLD.len()],
        }
    }

    /// Draws an event, which may be none, or several that have waited for it.
    pub fn handle_event(&mut self, said: &Event) -> Vec<Line> {
        let mut lines = Vec::new();
        if self.is_over {
            return lines;
        }
        match (&said.data, said.step_id.as_deref()) {
            (Data::PipelineStart { .. }, _) => {
                let started = process::Event::Started { unix_ns: said.unix_ns, text_length: self.text_length };
                lines.push(drawn(&started));
            }
            (Data::PipelineComplete { duration_ns, .. }, _) => {
                self.is_over = true;
                let failed = TOLD.iter().zip(self.failed).filter_map(|((_, step), failed)| failed.then_some(*step));
                let failed = failed.collect();
                let completed = process::Event::Completed { failed, elapsed_ns: *duration_ns, unix_ns: said.unix_ns };
                lines.push(drawn(&completed));
            }
            (Data::PipelineError { failure, .. }, _) => {
                self.is_over = true;
                lines.push(failed("error", &failure.failure));
            }
            (Data::StepStart { .. }, Some(CHUNK)) if !mem::replace(&mut self.is_chunking, true) => {
                lines.push(drawn(&process::Event::Chunking));
            }
            (Data::StepComplete { output, .. }, Some(CHUNK)) => {
                lines.push(drawn(&process::Event::Chunked { chunks: count(output) }));
                self.begin(0, &mut lines);
            }
            (data, Some(id)) => self.tell(id, data, &mut lines),
            _ => {}
        }
        lines
    }

    /// Something of a step that is told in its turn.
    fn tell(&mut self, id: &str, data: &Data, lines: &mut Vec<Line>) {
        let Some(at) = TOLD.iter().position(|(told, _)| *told == id) else { return };
        let name = process_event::step_name(TOLD[at].1);
        let line = match data {
            Data::StepOutput { index, output } if *index == self.parts => {
                self.parts += 1;
                with_status(&format!("{name}_progress"), output)
            }
            Data::StepComplete { output, .. } => with_status(&format!("{name}_complete"), output),
            Data::StepError { failure, retry_in_ns: None, .. } => {
                self.failed[at] = true;
                failed(&format!("{name}_error"), failure)
            }
            _ => return,
        };
        let is_last = !matches!(data, Data::StepOutput { .. });
        if self.telling != Some(at) {
            self.steps[at].get_or_insert_default().push_back(line);
            return;
        }
        lines.push(line);
        if is_last {
            self.begin(at + 1, lines);
        }
    }

    /// Tells a step from its beginning, as far as it is known, and the next when it is over.
    fn begin(&mut self, from: usize, lines: &mut Vec<Line>) {
        for (at, (_, step)) in TOLD.iter().enumerate().skip(from) {
            let Some(waiting) = self.steps[at].take() else { continue };
            self.telling = Some(at);
            lines.push(drawn(&process::Event::Processing(*step)));
            let is_over = waiting.back().is_some_and(|line| !line.status.ends_with("_progress"));
            lines.extend(waiting);
            if !is_over {
                return;
            }
        }
        self.telling = Some(TOLD.len());
    }
}

fn drawn(said: &process::Event) -> Line {
    let json = String::from_utf8(process_event::to_json(said)).expect("serde_json writes UTF-8");
    Line { status: process_event::status(said).to_owned(), json }
}

/// The output of a step is the rest of the event.
fn with_status(status: &str, output: &Json) -> Line {
    let rest = output.as_str().strip_prefix('{').unwrap_or("}");
    let comma = if rest == "}" { "" } else { "," };
    Line { status: status.to_owned(), json: format!(r#"{{"status":"{status}"{comma}{rest}"#) }
}

fn failed(status: &str, failure: &weir_core::pipelines::StepFailure) -> Line {
    let json = object(|out| {
        out.value("status", status);
        super::event::write_failure(out, failure);
    });
    Line { status: status.to_owned(), json }
}

/// How many chunks an output has.
fn count(output: &Json) -> usize {
    #[derive(Deserialize)]
    struct Chunks {
        chunks: Vec<IgnoredAny>,
    }
    serde_json::from_str::<Chunks>(output.as_str()).map_or(0, |output| output.chunks.len())
}
