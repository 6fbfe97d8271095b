//! Uploads: a file becomes the input of an execution, whose events are reported as progress of a file and of a workflow.

use std::{rc::Rc, sync::Arc};

use spin_sdk::wasip3::http::types;
use weir_auth::identity::Identity;
use weir_codec::{
    channels::{
        event::StreamEvent,
        publish::{Progress, user_channel},
        route::{Channel, ChannelKind},
    },
    http::problem::Problem,
    json::field::RequestError,
    pipelines::{
        definition_file, execution, execution_id, text,
        upload::{self, UploadProgress, UploadQuery},
    },
};
use weir_core::pipelines::{Batch, Data, Event, Metadata, Outcome};

use super::{
    Pipelines,
    definitions::LoadResult,
    persistence::{self, WriteRefused},
    routes::start_execution,
    running::RunningExecution,
};
use crate::{
    auth::Access,
    channels::{ownership, publish},
    http::{request::RequestContext, request_id, response::BufferedResponse},
    platform::{clock, settings::Settings, turns},
};

/// The channels that an upload reports to.
const KINDS: [ChannelKind; 2] = [ChannelKind::File, ChannelKind::Workflow];
const NS_PER_MS: u64 = 1_000_000;

/// The built-in pipeline, which runs uploads that name none.
pub(super) fn built_in(name: &str) -> Option<LoadResult> {
    let read = || definition_file::read(upload::DEFINITION.as_bytes(), upload::PIPELINE);
    (name == upload::PIPELINE).then(|| read().map(Arc::new).map_err(Rc::new))
}

impl RequestContext<'_> {
    /// Starts an execution with a file as its input.
    pub(super) async fn upload(
        &self,
        pipelines: &'static Pipelines,
        body: types::Request,
        identity: &Identity,
    ) -> Result<BufferedResponse, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let UploadQuery { pipeline, name } = UploadQuery::read(self.query)?;
        let pipeline = pipeline.as_deref().unwrap_or(upload::PIPELINE);
        let definition = self.definition(pipelines, pipeline, identity)?;
        let access = Access::current()?;
        access.check_publish_rate(identity, self.began)?;
        self.encoding()?;
        let content_type = self.header("content-type");
        let body = self.whole(body, settings).await?;
        let file = upload::read(content_type.as_deref(), &body)?;
        let read = || text::read(upload::input(&file, name.as_deref()).as_bytes());
        let input = turns::run_over(identity.user(), body.len(), read).await;
        let input = input.map_err(RequestError::from)?;
        pipelines.check_input(&input)?;
        pipelines.restoration.counted().await?;
        let _permit = pipelines.reserve(identity.user())?;
        let id = execution_id::from_random(request_id::random());
        if access.required()
            && let Some(user) = user_channel(identity.user())
        {
            for kind in KINDS {
                ownership::assign(&channel(kind, &id)?, &user, ownership::PastEvents::Owned).await?;
            }
        }
        start_execution(pipelines, definition, &id, input, identity).await?;
        let reply = BufferedResponse::error(202, upload::accepted_json(&id, pipeline).into_bytes());
        Ok(reply.with("location", execution::location(&id)))
    }
}

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

fn channel(kind: ChannelKind, id: &str) -> Result<Channel, Problem> {
    Channel::new(kind, id).map_err(|_| Problem::internal("the id is not valid as a channel"))
}
