//! Going on with what a crash has interrupted.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use weir_codec::pipeline::answer::Listed;
use weir_core::pipeline::{Execution, ResumeError};

use super::{
    Pipelines,
    keep::{self, Kept, Place},
    live::Live,
};
use crate::{
    bindings::weir::stream::{
        events::{Cursor, Failure},
        state,
    },
    clock::{self, Deadline},
    publish, request_id,
};

/// Executions that are read at once.
const READ_AT_ONCE: usize = 8;
/// Keys in a page.
const KEYS_MAX: u32 = 500;
/// How long to wait for a store that does not answer.
const RETRY_MS: u64 = 500;

/// Goes on with every execution that was going on, and lists those that have ended. New ones may begin meanwhile.
pub(super) async fn resume(pipelines: &'static Pipelines) {
    each_key(pipelines, Place::Going).await;
    each_key(pipelines, Place::Ended).await;
}

async fn each_key(pipelines: &'static Pipelines, place: Place) {
    let mut after = String::new();
    loop {
        let keys = match state::keys(place.kind().to_owned(), after.clone(), KEYS_MAX).await {
            Ok(keys) => keys,
            Err(failure) => {
                eprintln!("warn: what was interrupted is not known yet: {}", publish::reason(&failure));
                Deadline::after(clock::now(), RETRY_MS).passed().await;
                continue;
            }
        };
        let is_last = keys.len() < KEYS_MAX as usize;
        after = keys.last().cloned().unwrap_or_default();
        stream::iter(keys)
            .for_each_concurrent(READ_AT_ONCE, |key| async move {
                let Some(id) = key.split_once(':').map(|(_, id)| id.to_owned()) else { return };
                match place {
                    Place::Going => go_on(pipelines, &id).await,
                    Place::Ended => list(pipelines, &id).await,
                }
            })
            .await;
        if is_last {
            return;
        }
    }
}

/// Goes on with one; what is damaged is told in the log and left where it is.
async fn go_on(pipelines: &'static Pipelines, id: &str) {
    loop {
        if pipelines.find(id).is_some() {
            return;
        }
        match read(pipelines, id).await {
            Ok(Some(live)) => {
                pipelines.go(live);
                return;
            }
            Ok(None) => return,
            Err(failure @ Failure::Unavailable(_)) => {
                eprintln!("warn: {id} does not go on yet: {}", publish::reason(&failure));
                Deadline::after(clock::now(), RETRY_MS).passed().await;
            }
            Err(failure) => {
                eprintln!("warn: {id} cannot go on: {}", publish::reason(&failure));
                return;
            }
        }
    }
}

async fn read(pipelines: &'static Pipelines, id: &str) -> Result<Option<Live>, Failure> {
    let Some(kept) = keep::get(Place::Going, id).await? else { return Ok(None) };
    let (last, stored) = keep::tail_after(&format!("pipeline:{id}"), Cursor { epoch: 0, seq: 0 }, 0).await?;
    let Kept { owner, parts, definition, checkpoint } = kept;
    let definition = Arc::new(definition);
    let resume = |events_stored| {
        let (definition, checkpoint) = (definition.clone(), checkpoint.clone());
        Execution::resume(definition, checkpoint, events_stored, pipelines.limits(), request_id::seed(), clock::now())
    };
    let resumed = match resume(stored) {
        // A store that keeps less than it says has lost events, or they are too old to be kept. Whoever follows is told of the
        // gap by the channel.
        Err(ResumeError::EventsLost { events_known, .. }) => resume(events_known),
        other => other,
    };
    let execution = resumed.map_err(|error| Failure::Other(error.to_string()))?;
    let live = Live::new(execution, owner);
    live.checkpoint.replace(Some(checkpoint));
    live.parts.set(parts);
    live.last.set(last);
    live.stored.set(stored);
    Ok(Some(live))
}

/// Lists one that has ended.
async fn list(pipelines: &'static Pipelines, id: &str) {
    // Who asks for it by its id is told what is wrong.
    let Ok(Some(kept)) = keep::get(Place::Ended, id).await else { return };
    let owner = kept.owner.clone();
    if let Some(status) = status(pipelines, kept) {
        let (execution_id, pipeline) = (status.execution_id, status.pipeline);
        pipelines
            .list(owner, Listed { execution_id, pipeline, state: status.state, began_unix_ns: status.began_unix_ns });
    }
}

/// How far a kept execution is.
pub(super) fn status(pipelines: &Pipelines, kept: Kept) -> Option<weir_core::pipeline::Status> {
    let (stored, now) = (kept.checkpoint.events_end, clock::now());
    let definition = Arc::new(kept.definition);
    let execution = Execution::resume(definition, kept.checkpoint, stored, pipelines.limits(), 0, now).ok()?;
    Some(execution.status(now.monotonic_ns))
}
