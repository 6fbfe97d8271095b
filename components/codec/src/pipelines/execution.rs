//! The response bodies about executions.

use std::sync::Arc;

use weir_core::pipelines::{Definition, Rates, Snapshot, State, Status, StepState};

use super::{
    definition_file::DefinitionFault,
    event::{timestamp, write_failure, write_pipeline_failure},
    writer::{Object, object},
};

/// The body of `202 Accepted`, with links to the status and the events.
pub fn accepted_json(execution_id: &str, pipeline: &str) -> String {
    object(|out| {
        out.value("execution_id", execution_id).value("pipeline", pipeline).value("state", State::Running.name());
        write_links(out, execution_id);
    })
}

/// The value of `Location` with `202`: the path of the status.
pub fn location(execution_id: &str) -> String {
    format!("/executions/{execution_id}")
}

fn write_links(out: &mut Object<'_>, execution_id: &str) {
    out.object("links", |out| {
        out.value("self", &location(execution_id));
        out.value("events", &format!("/stream/pipeline/{execution_id}"));
        out.value("websocket", &format!("/ws/pipeline/{execution_id}"));
    });
}

/// The body of `GET /executions/{id}`, and of `POST /pipelines/{name}` when the client waited for the end.
///
/// `output` is null unless the execution is completed, `failure` unless it has failed.
pub fn status_json(status: &Status) -> String {
    object(|out| {
        out.value("execution_id", &*status.execution_id).value("pipeline", &*status.pipeline);
        out.value("state", status.state.name()).value("started_at", &timestamp(status.began_unix_ns));
        out.milliseconds("duration_ms", status.duration_ns);
        out.value("events", &status.events).value("resumed", &status.resumed);
        out.array("steps", &status.steps, |out, step| {
            out.value("id", &*step.id).value("state", step.state.name()).value("attempts", &step.attempts);
            out.value("kind", step.kind.name()).value("after", &step.after.iter().map(|id| &**id).collect::<Vec<_>>());
            out.value("started_at", &step.times.began_unix_ns.map(timestamp));
            match step.times.duration_ns {
                Some(duration_ns) => out.milliseconds("duration_ms", duration_ns),
                None => out.raw("duration_ms", "null"),
            };
            out.value("progress", &step.progress);
            if let Some(failure) = &step.failure {
                write_failure(out, failure);
            }
        });
        out.raw("output", status.output.as_ref().map_or("null", |output| output.as_str()));
        match &status.failure {
            Some(failure) => out.object("failure", |out| write_pipeline_failure(out, failure)),
            None => out.raw("failure", "null"),
        };
        write_links(out, &status.execution_id);
    })
}

/// An execution in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionSummary {
    /// Its id.
    pub execution_id: Arc<str>,
    /// The name of the pipeline.
    pub pipeline: Arc<str>,
    /// Its state.
    pub state: State,
    /// When it began, in nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// Number of failed steps.
    pub errors: u32,
}

impl From<Status> for ExecutionSummary {
    fn from(status: Status) -> Self {
        let failed = status.steps.iter().filter(|step| step.state == StepState::Failed).count();
        Self {
            execution_id: status.execution_id,
            pipeline: status.pipeline,
            state: status.state,
            began_unix_ns: status.began_unix_ns,
            errors: u32::try_from(failed).unwrap_or(u32::MAX),
        }
    }
}

/// The body of `GET /executions`.
pub fn executions_json(executions: &[ExecutionSummary]) -> String {
    object(|out| {
        out.array("executions", executions, |out, listed| {
            out.value("execution_id", &*listed.execution_id).value("pipeline", &*listed.pipeline);
            out.value("state", listed.state.name()).value("started_at", &timestamp(listed.began_unix_ns));
            out.value("errors", &listed.errors);
            write_links(out, &listed.execution_id);
        });
    })
}

/// The body of `GET /pipelines`: each name with its definition, or with the errors of its file.
pub fn pipelines_json<'a>(
    pipelines: impl IntoIterator<Item = (&'a str, Result<&'a Definition, &'a DefinitionFault>)>,
) -> String {
    object(|out| {
        out.array("pipelines", pipelines, |out, (name, definition)| {
            out.value("name", name).value("valid", &definition.is_ok());
            let steps = definition.map(Definition::steps).unwrap_or_default();
            out.array("steps", steps, |out, step| {
                out.value("id", &*step.task.id).value("kind", step.task.kind.name().name());
            });
            if let Err(fault) = definition {
                out.value("error", &fault.detail).value("errors", &fault.errors);
            }
        });
    })
}

/// The body of `GET /reliability`: `sr`, `cr`, `tcl_ms` and `wct_ms` since the start and for the window, with the counts that they are
/// computed from. A rate without counts is null.
pub fn reliability_json(snapshot: &Snapshot) -> String {
    object(|out| {
        out.object("total", |out| write_rates(out, &snapshot.total));
        out.object("window", |out| {
            out.value("seconds", &(snapshot.window_ns / 1_000_000_000));
            write_rates(out, &snapshot.window);
        });
    })
}

fn write_rates(out: &mut Object<'_>, rates: &Rates) {
    let ms = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1000.0);
    out.value("sr", &rates.success_rate()).value("cr", &rates.compensation_rate());
    out.value("tcl_ms", &ms(rates.tool_latency_s())).value("wct_ms", &ms(rates.workflow_time_s()));
    for (name, count) in [
        ("executions_completed", rates.executions_completed),
        ("executions_failed", rates.executions_failed),
        ("executions_cancelled", rates.executions_cancelled),
        ("steps_completed", rates.steps_completed),
        ("steps_failed", rates.steps_failed),
        ("retries", rates.retries),
        ("compensations", rates.compensations),
        ("tool_calls", rates.tool_calls),
    ] {
        out.value(name, &count);
    }
}
