//! Generated text.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use weir_runtime::bindings::generate_types::{
    Chat, Command, Event, EventKind, Format, Prompt, Reason, Request, Sampling,
};
use weir_runtime::generation::EventReceiver;
use weir_runtime::types::WhenFull;
use weir_runtime::{Runtime, core_failure};

use crate::convert;
use crate::process::{self, Owned};

/// A request, as `GenerateRequest.mapping` of `weir_stream._backend` writes it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct GenerateRequest {
    model: String,
    /// The prompt is a JSON array of messages; else it is a text.
    is_chat: bool,
    prompt: String,
    tokens_max: Option<u32>,
    choices: u32,
    stop: Vec<String>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    seed: Option<u64>,
    /// `json`, `json_schema`, `grammar` or `regex`, and its text.
    format: Option<(String, String)>,
}

impl GenerateRequest {
    fn read(self) -> PyResult<Request> {
        let prompt = match self.is_chat {
            true => Prompt::Chat(Chat { messages: self.prompt, tools: None, tool_choice: None }),
            false => Prompt::Text(self.prompt),
        };
        let format = match self.format {
            None => None,
            Some((kind, text)) => Some(match kind.as_str() {
                "json" => Format::Json,
                "json_schema" => Format::JsonSchema(text),
                "grammar" => Format::Grammar(text),
                "regex" => Format::Regex(text),
                other => return Err(convert::unknown("format", other, "json, json_schema, grammar, regex")),
            }),
        };
        Ok(Request {
            id: 0,
            model: self.model,
            prompt,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repeat_penalty: self.repeat_penalty,
                presence_penalty: None,
                frequency_penalty: None,
                biases: Vec::new(),
                seed: self.seed,
            },
            stop: self.stop,
            tokens_max: self.tokens_max,
            choices: self.choices,
            format,
            logprobs: None,
            deadline_ms: None,
            when_full: WhenFull::Wait,
            detached: true,
        })
    }
}

/// A text that is being generated. Dropping it cancels the generation.
#[pyclass(frozen, module = "weir_stream._engine")]
pub(crate) struct Generation {
    events: Owned<tokio::sync::Mutex<EventReceiver>>,
}

/// `(0, choice, text)`, `(1, choice, (reason, tokens))`, `(2, 0, failure)` or `(3, 0, (prompt tokens, seed))`.
type EventTuple = (u8, u32, Py<PyAny>);

/// Most events of one [`Generation::receive`].
const RECEIVED_MAX: usize = 64;

impl Generation {
    pub(crate) fn start(py: Python<'_>, runtime: &Runtime, request: GenerateRequest) -> PyResult<Self> {
        let request = request.read()?;
        if !runtime.language_models().iter().any(|model| model.name == request.model) {
            return Err(PyValueError::new_err(format!("there is no language model `{}`", request.model)));
        }
        let (commands, events) = runtime.generations().open();
        let sent = process::wait(py, async move { commands.send(Command::Start(request)).await })?;
        sent.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(Self { events: Owned::new(tokio::sync::Mutex::new(events)) })
    }
}

#[pymethods]
impl Generation {
    /// Waits for events; an empty list after the last one.
    fn receive(&self, py: Python<'_>) -> PyResult<Vec<EventTuple>> {
        let events = self.events.get()?;
        let received = process::wait(py, async { events.lock().await.recv_many(RECEIVED_MAX).await })?;
        let events = received.into_iter().filter_map(|event| convert(py, event).transpose());
        events.collect()
    }
}

fn convert(py: Python<'_>, event: Event) -> PyResult<Option<EventTuple>> {
    Ok(Some(match event.kind {
        EventKind::Begun(begun) => (3, 0, (begun.prompt_tokens, begun.seed).into_py_any(py)?),
        EventKind::Piece(piece) => (0, piece.index, piece.text.into_py_any(py)?),
        EventKind::Done(done) => (1, done.index, (reason(done.reason), done.tokens).into_py_any(py)?),
        EventKind::Failed(failure) => (2, 0, convert::failure(&core_failure(failure)).into_py_any(py)?),
        // No tools are offered, so none is called.
        EventKind::Tool(_) => return Ok(None),
    }))
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop => "stop",
        Reason::Length => "length",
        Reason::ToolCalls => "tool_calls",
        Reason::Filtered => "filtered",
        Reason::Cancelled => "cancelled",
    }
}
