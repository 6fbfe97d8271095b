//! The events of an execution with a file as its input, as progress of the file and of a workflow.

use std::rc::Rc;

use weir_codec::{
    channels::{
        event::StreamEvent,
        publish::Progress,
        route::{Channel, ChannelKind},
    },
    http::problem::Problem,
    pipelines::upload::UploadProgress,
};
use weir_core::pipelines::{Batch, Data, Event, Metadata, Outcome};

use super::{
    persistence::{self, WriteRefused},
    running::RunningExecution,
};
use crate::{channels::publish, platform::clock};

/// The channels that an upload reports to.
pub(super) const KINDS: [ChannelKind; 2] = [ChannelKind::File, ChannelKind::Workflow];
const NS_PER_MS: u64 = 1_000_000;

/// Stores events of an execution, and reports the progress of an upload.
pub(super) async fn store(running: Rc<RunningExecution>, batch: Batch) -> Result<(Batch, u64), WriteRefused> {
    let (batch, count) = persistence::store(running.clone(), batch).await?;
    for sequenced in batch.events.iter().filter(|sequenced| sequenced.seq <= count) {
        report_event(&running, &sequenced.event).await;
    }
    Ok((batch, count))
}

/// Reports the end of an upload whose last event was stored before a crash and not reported. A channel that has its last event
/// refuses another.
pub(super) async fn report_end(running: &RunningExecution) {
    let event = {
        let execution = running.execution.borrow();
        let is_over = running.upload.borrow().as_ref().is_none_or(UploadProgress::is_over);
        let data = match execution.outcome() {
            Some(Outcome::Completed { output }) if !is_over => {
                Data::PipelineComplete { output: output.clone(), duration_ns: 0, steps_completed: 0, steps_failed: 0 }
            }
            Some(Outcome::Failed(failure)) if !is_over => {
                Data::PipelineError { failure: failure.clone(), duration_ns: 0 }
            }
            _ => return,
        };
        Event { step_id: None, unix_ns: clock::now().unix_ns, data, metadata: Metadata::default() }
    };
    report_event(running, &event).await;
}

async fn report_event(running: &RunningExecution, event: &Event) {
    let progress = running.upload.borrow_mut().as_mut().and_then(|upload| upload.handle_event(event));
    let Some(progress) = progress else { return };
    let id = running.execution.borrow().id().clone();
    for kind in KINDS {
        // Best effort: the channel of the execution has every event.
        if let Err(problem) = append(running, kind, &id, &progress).await {
            eprintln!("warn: the progress of {}:{id} is not reported: {}", kind.name(), problem.detail);
        }
    }
}

async fn append(running: &RunningExecution, kind: ChannelKind, id: &str, progress: &Progress) -> Result<(), Problem> {
    let channel = channel(kind, id)?;
    let event = match kind {
        ChannelKind::File => StreamEvent::AnalysisProgress(progress),
        _ => StreamEvent::WorkflowProgress(progress),
    };
    let data = event.data(&channel, clock::now().unix_ns / NS_PER_MS);
    let data = String::from_utf8(data).map_err(|_| Problem::internal("an event that is not UTF-8"))?;
    publish::append_event(&channel, &event, data, running.share().as_deref()).await.map(drop)
}

pub(super) fn channel(kind: ChannelKind, id: &str) -> Result<Channel, Problem> {
    Channel::new(kind, id).map_err(|_| Problem::internal("the id is not valid as a channel"))
}
