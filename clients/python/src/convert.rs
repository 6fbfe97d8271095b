//! Tasks from Python, outputs and failures to Python. Outputs have the form of the pipelines of transformers.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use weir_core::failure::Failure;
use weir_core::inference::stream::Cause;
use weir_runtime::types::{
    Activation, Aggregation, ClassifyOptions, EmbedOptions, Entity, LabelScore, Output, Overflow, SummaryOptions, Task,
    TokenOptions,
};

/// A task for a model, as `Task.mapping` of `weir_stream._backend` writes it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct TaskRequest {
    /// `classify`, `tokens`, `embed` or `summarize`.
    task: String,
    /// `truncate`, `truncate_left`, `fail` or `split`.
    overflow: String,
    /// Of `classify`; none: all labels.
    top_k: Option<u32>,
    /// Of `classify`; none: by the configuration of the model.
    function_to_apply: Option<String>,
    /// Of `tokens`.
    aggregation_strategy: String,
    /// Of `tokens`.
    ignore_labels: Vec<String>,
    /// Of `tokens`, in tokens.
    stride: Option<u32>,
    /// Of `embed`.
    normalize: bool,
    /// Of `summarize`, in tokens.
    tokens_min: u32,
    /// Of `summarize`, in tokens.
    tokens_max: u32,
}

impl TaskRequest {
    /// The task, and the treatment of a long text.
    ///
    /// # Errors
    /// A name does not exist.
    pub(crate) fn read(self) -> PyResult<(Task, Overflow)> {
        let task = match self.task.as_str() {
            "classify" => {
                let activation = self.function_to_apply.as_deref().map(activation).transpose()?;
                Task::Classify(ClassifyOptions { top_k: self.top_k, activation })
            }
            "tokens" => Task::Tokens(TokenOptions {
                aggregation: aggregation(&self.aggregation_strategy)?,
                ignore_labels: self.ignore_labels,
                stride: self.stride,
            }),
            "embed" => Task::Embed(EmbedOptions { normalize: self.normalize }),
            "summarize" => Task::Summarize(SummaryOptions { tokens_min: self.tokens_min, tokens_max: self.tokens_max }),
            other => return Err(unknown("task", other, "classify, tokens, embed, summarize")),
        };
        let overflow = match self.overflow.as_str() {
            "truncate" => Overflow::Truncate,
            "truncate_left" => Overflow::TruncateLeft,
            "fail" => Overflow::Fail,
            "split" => Overflow::Split,
            other => return Err(unknown("overflow", other, "truncate, truncate_left, fail, split")),
        };
        Ok((task, overflow))
    }
}

fn activation(name: &str) -> PyResult<Activation> {
    match name {
        "softmax" => Ok(Activation::Softmax),
        "sigmoid" => Ok(Activation::Sigmoid),
        "none" => Ok(Activation::Identity),
        other => Err(unknown("function_to_apply", other, "softmax, sigmoid, none")),
    }
}

fn aggregation(name: &str) -> PyResult<Aggregation> {
    match name {
        "none" => Ok(Aggregation::None),
        "simple" => Ok(Aggregation::Simple),
        "first" => Ok(Aggregation::First),
        "average" => Ok(Aggregation::Average),
        "max" => Ok(Aggregation::Max),
        other => Err(unknown("aggregation_strategy", other, "none, simple, first, average, max")),
    }
}

/// A name that does not exist, with those that do.
pub(crate) fn unknown(name: &str, value: &str, values: &str) -> PyErr {
    PyValueError::new_err(format!("{name} `{value}` does not exist; there are {values}"))
}

/// An output: a list of dictionaries, a list of numbers, or a text.
pub(crate) fn output<'py>(py: Python<'py>, output: &Output) -> PyResult<Bound<'py, PyAny>> {
    match output {
        Output::Labels(labels) => list(py, labels, label),
        Output::Entities(entities) => list(py, entities, entity),
        Output::Embedding(vector) => Ok(PyList::new(py, vector.iter().map(|value| f64::from(*value)))?.into_any()),
        Output::Summary(text) => text.into_bound_py_any(py),
    }
}

fn list<'py, T>(
    py: Python<'py>,
    values: &[T],
    convert: impl Fn(Python<'py>, &T) -> PyResult<Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let values = values.iter().map(|value| convert(py, value)).collect::<PyResult<Vec<_>>>()?;
    Ok(PyList::new(py, values)?.into_any())
}

fn label<'py>(py: Python<'py>, label: &LabelScore) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item(intern!(py, "label"), &label.label)?;
    dict.set_item(intern!(py, "score"), f64::from(label.score))?;
    Ok(dict)
}

fn entity<'py>(py: Python<'py>, entity: &Entity) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let group = if entity.index.is_some() { intern!(py, "entity") } else { intern!(py, "entity_group") };
    dict.set_item(group, &entity.label)?;
    dict.set_item(intern!(py, "score"), f64::from(entity.score))?;
    if let Some(index) = entity.index {
        dict.set_item(intern!(py, "index"), index)?;
    }
    dict.set_item(intern!(py, "word"), &entity.word)?;
    dict.set_item(intern!(py, "start"), entity.start)?;
    dict.set_item(intern!(py, "end"), entity.end)?;
    Ok(dict)
}

/// A failure as `(code, message, category, retryable, retry_after_ms)`.
pub(crate) type FailureTuple = (&'static str, String, &'static str, bool, Option<u32>);

pub(crate) fn failure(failure: &Failure) -> FailureTuple {
    let category = Cause::Failed(failure.clone()).category().name();
    (failure.code(), failure.to_string(), category, failure.retryable(), failure.retry_after_ms())
}

/// The cause of an error of a stream, in the form of [`failure`].
pub(crate) fn cause(cause: &Cause) -> FailureTuple {
    match cause {
        Cause::Failed(failed) => failure(failed),
        Cause::Dropped => ("dropped", cause.to_string(), cause.category().name(), true, None),
    }
}

/// An error with its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
