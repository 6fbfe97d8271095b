//! `/process-stream` and `/process-batch` as a pipeline, and the events of `/process-stream`.
//!
//! The steps run in parallel (sentiment needs the chunks, the others only the text); the [`Renderer`] returns their events one step after
//! the other, in the documented order.

use std::{collections::VecDeque, mem};

use serde::{Deserialize, de::IgnoredAny};
use weir_core::{
    inference::{
        chunk::code_points,
        retry::{RetryConfig, RetryPolicy},
        text_step::{SUMMARY_CODE_POINTS_OVER, TextStep},
    },
    pipelines::{Data, Definition, Draft, Event, Json, Kind, OnError, Step, Streaming},
};

use super::{
    process_event::{self, ProcessEvent},
    process_request::ProcessRequest,
    writer::object,
};

/// The name of the pipeline.
pub const NAME: &str = "process-stream";
const CHUNK: &str = "chunk";
/// The steps in the order of their events, by their ids in the definition.
pub(super) const STEPS: [(&str, TextStep); 3] =
    [("sentiment", TextStep::Sentiment), ("summary", TextStep::Summarization), ("entities", TextStep::Entities)];

/// The pipeline of a request. The text is split into chunks of `chunk_size` code points; with `None` it is one chunk. Steps are not
/// retried, and the failure of one does not stop the others.
pub fn definition(request: &ProcessRequest, chunk_size: Option<u32>, timeout_ms: u64) -> Definition {
    let text_length = code_points(&request.text);
    let whole = u32::try_from(text_length.max(1)).unwrap_or(u32::MAX);
    let chunk_size = chunk_size.unwrap_or(whole);
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
        steps.push(step("summary", Kind::Summary { model: None, mode: request.summary_mode }, &[]));
    }
    if request.include_entities {
        steps.push(step("entities", Kind::Entities { model: None }, &[]));
    }
    let streaming = Streaming { flush_interval_ms: 0, ..Streaming::default() };
    let draft = Draft { streaming, ..Draft::new(NAME, steps) };
    draft.check().expect("a text within the bounds of a request and a timeout within a day make a definition")
}

/// The input of the pipeline.
pub fn input(request: &ProcessRequest) -> Json {
    Json::from_checked(object(|out| {
        out.value("text", &request.text);
    }))
}

/// A rendered event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The value of `status`, which is also the name of the SSE event.
    pub status: String,
    /// The event as JSON, without an end of line.
    pub json: String,
}

/// Renders the events of an execution of [`definition`], in the order of their sequence.
#[derive(Debug)]
pub struct Renderer {
    text_length: usize,
    /// The events of each step that wait for the steps before it; `None` for a step that was not requested or is current.
    steps: [Option<VecDeque<Line>>; 3],
    /// The step whose events are returned as they arrive; `None` before the text is split.
    current: Option<usize>,
    /// Number of sentiment parts so far.
    parts: u64,
    is_chunking: bool,
    is_over: bool,
    /// The failed steps, by their index in [`STEPS`].
    failed: [bool; STEPS.len()],
}

impl Renderer {
    /// A renderer for a request and its definition.
    pub fn new(request: &ProcessRequest, definition: &Definition) -> Self {
        let has = |id: &str| definition.steps().iter().any(|step| *step.task.id == *id);
        let steps = STEPS.map(|(id, _)| has(id).then(VecDeque::new));
        let text_length = code_points(&request.text);
        Self {
            text_length,
            steps,
            current: None,
            parts: 0,
            is_chunking: false,
            is_over: false,
            failed: [false; STEPS.len()],
        }
    }

    /// Renders an event. Returns no lines, or several that have waited for it.
    pub fn handle_event(&mut self, event: &Event) -> Vec<Line> {
        let mut lines = Vec::new();
        if self.is_over {
            return lines;
        }
        match (&event.data, event.step_id.as_deref()) {
            (Data::PipelineStart { .. }, _) => {
                let started = ProcessEvent::Started { unix_ns: event.unix_ns, text_length: self.text_length };
                lines.push(render(&started));
            }
            (Data::PipelineComplete { duration_ns, .. }, _) => {
                self.is_over = true;
                let failed = STEPS.iter().zip(self.failed).filter_map(|((_, step), failed)| failed.then_some(*step));
                let failed = failed.collect();
                let completed = ProcessEvent::Completed { failed, elapsed_ns: *duration_ns, unix_ns: event.unix_ns };
                lines.push(render(&completed));
            }
            (Data::PipelineError { failure, .. }, _) => {
                self.is_over = true;
                lines.push(render(&ProcessEvent::Error(failure.failure.clone())));
            }
            (Data::StepStart { .. }, Some(CHUNK)) if !mem::replace(&mut self.is_chunking, true) => {
                lines.push(render(&ProcessEvent::Chunking));
            }
            (Data::StepComplete { output, .. }, Some(CHUNK)) => {
                lines.push(render(&ProcessEvent::Chunked { chunks: count(output) }));
                self.begin(0, &mut lines);
            }
            (data, Some(id)) => self.handle_step_event(id, data, &mut lines),
            _ => {}
        }
        lines
    }

    /// Renders an event of a step, or queues it until the steps before have ended.
    fn handle_step_event(&mut self, id: &str, data: &Data, lines: &mut Vec<Line>) {
        let Some(at) = STEPS.iter().position(|(step, _)| *step == id) else { return };
        let step = STEPS[at].1;
        let name = process_event::step_name(step);
        let line = match data {
            Data::StepOutput { index, output } if *index == self.parts => {
                self.parts += 1;
                with_status(&format!("{name}_progress"), output)
            }
            Data::StepComplete { output, .. } => with_status(&format!("{name}_complete"), output),
            Data::StepError { failure, retry_in_ns: None, .. } => {
                self.failed[at] = true;
                render(&ProcessEvent::StepError { step, failure: failure.clone() })
            }
            _ => return,
        };
        let is_last = !matches!(data, Data::StepOutput { .. });
        if self.current != Some(at) {
            self.steps[at].get_or_insert_default().push_back(line);
            return;
        }
        lines.push(line);
        if is_last {
            self.begin(at + 1, lines);
        }
    }

    /// Returns the queued events of the steps from an index on, up to the first step that has not ended, which becomes the current one.
    fn begin(&mut self, from: usize, lines: &mut Vec<Line>) {
        for (at, (_, step)) in STEPS.iter().enumerate().skip(from) {
            let Some(waiting) = self.steps[at].take() else { continue };
            self.current = Some(at);
            lines.push(render(&ProcessEvent::Processing(*step)));
            let has_ended = waiting.back().is_some_and(|line| !line.status.ends_with("_progress"));
            lines.extend(waiting);
            if !has_ended {
                return;
            }
        }
        self.current = Some(STEPS.len());
    }
}

fn render(event: &ProcessEvent) -> Line {
    let json = String::from_utf8(process_event::to_json(event)).expect("serde_json writes UTF-8");
    Line { status: process_event::status(event).to_owned(), json }
}

/// The event with a status and the members of a step's output.
fn with_status(status: &str, output: &Json) -> Line {
    let rest = output.as_str().strip_prefix('{').unwrap_or("}");
    let comma = if rest == "}" { "" } else { "," };
    Line { status: status.to_owned(), json: format!(r#"{{"status":"{status}"{comma}{rest}"#) }
}

/// The number of chunks in the output of the `chunk` step.
fn count(output: &Json) -> usize {
    #[derive(Deserialize)]
    struct Chunks {
        chunks: Vec<IgnoredAny>,
    }
    serde_json::from_str::<Chunks>(output.as_str()).map_or(0, |output| output.chunks.len())
}
