//! A call: texts to models, and their results in the order of completion.

use std::sync::{Mutex, PoisonError};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use weir_runtime::types::{Item, Outcome, Overflow, Task, WhenFull};
use weir_runtime::{CallSender, Outcomes, core_failure};

use crate::convert::{self, TaskRequest};
use crate::process::{self, Owned};

/// A text and the second text of a pair.
pub(crate) type TextPair = (String, Option<String>);

/// The result of a text: `(id, True, output)` or `(id, False, failure)`.
pub(crate) type ResultTuple = (u64, bool, Py<PyAny>);

/// Texts of one task to one model.
#[pyclass(frozen, module = "weir_stream._engine")]
pub(crate) struct Call {
    model: String,
    task: Task,
    overflow: Overflow,
    sender: Mutex<Option<CallSender>>,
    outcomes: Owned<tokio::sync::Mutex<Outcomes>>,
}

impl Call {
    pub(crate) fn new(model: String, request: TaskRequest, ends: (CallSender, Outcomes)) -> PyResult<Self> {
        let (task, overflow) = request.read()?;
        let (sender, outcomes) = ends;
        let outcomes = Owned::new(tokio::sync::Mutex::new(outcomes));
        Ok(Self { model, task, overflow, sender: Mutex::new(Some(sender)), outcomes })
    }

    fn sender(&self) -> PyResult<CallSender> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sender.ok_or_else(|| PyRuntimeError::new_err("the call takes no more texts"))
    }

    fn item(&self, id: u64, (text, text_pair): TextPair) -> Item {
        item(&self.model, &self.task, self.overflow, id, (text, text_pair))
    }
}

/// A text that waits for room in the queue of its model.
pub(crate) fn item(model: &str, task: &Task, overflow: Overflow, id: u64, (text, text_pair): TextPair) -> Item {
    Item {
        id,
        model: model.to_owned(),
        text,
        text_pair,
        overflow,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        traceparent: None,
        task: task.clone(),
    }
}

#[pymethods]
impl Call {
    /// Sends a text; waits while the queue of the model is full.
    fn send(&self, py: Python<'_>, id: u64, text: String, text_pair: Option<String>) -> PyResult<()> {
        let sender = self.sender()?;
        let sent = process::wait(py, sender.send(self.item(id, (text, text_pair))))?;
        sent.map_err(|error| PyRuntimeError::new_err(error.to_string()))
    }

    /// There are no more texts.
    fn finish(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits for results; an empty list after `finish` and the last result.
    fn receive(&self, py: Python<'_>) -> PyResult<Vec<ResultTuple>> {
        let outcomes = self.outcomes.get()?;
        let received = process::wait(py, async { outcomes.lock().await.recv_many(RECEIVED_MAX).await })?;
        received.into_iter().map(|outcome| result(py, outcome)).collect()
    }
}

/// Most results of one [`Call::receive`].
const RECEIVED_MAX: usize = 256;

fn result(py: Python<'_>, outcome: Outcome) -> PyResult<ResultTuple> {
    let id = outcome.id;
    match outcome.result {
        Ok(output) => Ok((id, true, convert::output(py, &output)?.unbind())),
        Err(failure) => Ok((id, false, convert::failure(&core_failure(failure)).into_py_any(py)?)),
    }
}

/// Sends every text and waits for all results, in the order of the texts.
pub(crate) fn run(
    py: Python<'_>,
    model: &str,
    request: TaskRequest,
    texts: Vec<TextPair>,
    (sender, mut outcomes): (CallSender, Outcomes),
) -> PyResult<Vec<(bool, Py<PyAny>)>> {
    let (task, overflow) = request.read()?;
    let count = texts.len();
    let items: Vec<Item> =
        texts.into_iter().zip(0..).map(|(text, id)| item(model, &task, overflow, id, text)).collect();
    let feed = async move {
        for item in items {
            // An error means that the receiver has ended, and then `read` ends too.
            if sender.send(item).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let mut received: Vec<Option<Outcome>> = Vec::new();
        received.resize_with(count, || None);
        loop {
            let outcomes = outcomes.recv_many(RECEIVED_MAX).await;
            if outcomes.is_empty() {
                return received;
            }
            for outcome in outcomes {
                let slot = usize::try_from(outcome.id).ok().and_then(|id| received.get_mut(id));
                if let Some(slot) = slot {
                    *slot = Some(outcome);
                }
            }
        }
    };
    let ((), received) = process::wait(py, async { tokio::join!(feed, read) })?;
    let outcome = |outcome: Option<Outcome>| {
        let outcome = outcome.ok_or_else(|| PyRuntimeError::new_err("a text has no outcome"))?;
        let (_, is_ok, value) = result(py, outcome)?;
        Ok((is_ok, value))
    };
    received.into_iter().map(outcome).collect()
}
