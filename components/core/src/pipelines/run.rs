//! Runs of steps: the requests to a driver, its reports, and the outcome of an execution.

use std::sync::Arc;

use thiserror::Error;

use super::{buffer::Full, definition::StepIndex, event::PipelineFailure, json::Json};

/// Bounds of an execution, which are independent of its definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The input of a pipeline, in bytes of JSON.
    pub input_bytes_max: usize,
    /// The output of a step, or a part of it, in bytes of JSON.
    pub output_bytes_max: usize,
    /// The outputs of all steps together, in bytes of JSON; every checkpoint contains them.
    pub outputs_bytes_max: usize,
    /// The values of events that wait to be stored, in bytes.
    pub buffer_bytes_max: usize,
    /// The message of a progress event, in bytes; a longer one is cut.
    pub message_bytes_max: usize,
    /// Resumptions after which an execution fails, because it seems to crash its process.
    pub resumes_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            input_bytes_max: 1 << 20,
            output_bytes_max: 1 << 20,
            outputs_bytes_max: 8 << 20,
            buffer_bytes_max: 4 << 20,
            message_bytes_max: 1024,
            resumes_max: 16,
        }
    }
}

/// One attempt of a step or a compensation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The step or compensation.
    pub place: StepIndex,
    /// The number of the run, unique in the execution, even across crashes.
    pub number: u32,
}

/// A run that the driver is to start.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRequest {
    /// Identifies the run in every report about it.
    pub run: Run,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The inputs of the run.
    pub inputs: Inputs,
}

/// The inputs of a run. The expressions of a task are evaluated over `{"input": …, "steps": {id: output, …}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// The input of the pipeline.
    pub input: Json,
    /// The outputs of all steps that it depends on, by id, in the order of the definition; `null` for one that failed.
    /// A compensation has the output of the step that it undoes as well, last.
    pub steps: Vec<(Arc<str>, Json)>,
    /// The indexes in `steps` of the direct dependencies.
    pub direct: Vec<usize>,
}

impl Inputs {
    /// The input of a task without an expression: the input of the pipeline if it depends on no step, the output of the
    /// only step that it depends on, or an object of the outputs of several steps by id.
    pub fn default_json(&self) -> Json {
        let direct = |at: &usize| self.steps.get(*at).map(|(id, output)| (&**id, output));
        match &self.direct[..] {
            [] => self.input.clone(),
            [at] => direct(at).map_or_else(Json::null, |(_, output)| output.clone()),
            several => Json::object(several.iter().filter_map(direct)),
        }
    }
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every step has ended.
    Completed {
        /// The output of the step without a successor; with several of them an object of their outputs by id.
        output: Json,
    },
    /// It failed or was cancelled.
    Failed(PipelineFailure),
}

/// Why a report of a run was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReportError {
    /// The buffer of events is full. Report the output again once events were stored, and read no more from the step
    /// until then.
    #[error("the events that wait to be stored have no room for more")]
    Full,
    /// The run has ended: its result is not used.
    #[error("the run is over")]
    Stale,
    /// The output exceeds its bound: the driver should fail the run.
    #[error("{bytes} bytes of JSON are more than the {bytes_max} that are allowed")]
    TooLarge {
        /// Its size, in bytes.
        bytes: usize,
        /// The largest size, in bytes.
        bytes_max: usize,
    },
}

impl From<Full> for ReportError {
    fn from(_: Full) -> Self {
        Self::Full
    }
}
