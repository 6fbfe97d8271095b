//! Resumes executions without an owner, after a crash of this instance or another.

use std::{rc::Rc, sync::Arc};

use futures::{StreamExt as _, stream};
use weir_codec::pipelines::execution::ExecutionSummary;
use weir_core::{
    channels::Cursor,
    pipelines::{Execution, ResumeError},
};

use super::{
    Pipelines,
    persistence::{self, ExecutionKey, StoredExecution},
    running::RunningExecution,
};
use crate::{
    http::request_id,
    platform::{
        bindings::weir::stream::{events::Failure, state},
        clock::{self, Deadline},
        lease::{self, StoreLease},
        store,
    },
};

/// Executions that are read at once.
const READ_AT_ONCE: usize = 8;
/// Keys in a page.
const KEYS_MAX: u32 = 500;
/// How long to wait for a store that does not answer.
const RETRY_MS: u64 = 500;
/// Most executions that are remembered as damaged.
const DAMAGED_MAX: usize = 1000;

/// The result of opening an execution.
pub(super) enum OpenResult {
    /// It runs in this instance.
    RunningExecution(Rc<RunningExecution>),
    /// Another instance owns it, until its lease ends, in the given number of milliseconds unless it renews it.
    Elsewhere(u64),
    /// It is being opened here.
    Opening,
    /// It has no unfinished execution of this id.
    Gone,
}

/// Resumes every execution without an owner, lists those that have ended, and then scans periodically for executions whose owner has
/// died. New ones may start during this.
pub(super) async fn resume(pipelines: &'static Pipelines) {
    each_key(pipelines, ExecutionKey::Going).await;
    pipelines.restoration.finish();
    each_key(pipelines, ExecutionKey::Ended).await;
    loop {
        Deadline::after(clock::now(), lease::scan_ms()).passed().await;
        each_key(pipelines, ExecutionKey::Going).await;
    }
}

async fn each_key(pipelines: &'static Pipelines, place: ExecutionKey) {
    let mut after = String::new();
    loop {
        let keys = match state::keys(place.kind().to_owned(), after.clone(), KEYS_MAX).await {
            Ok(keys) => keys,
            Err(failure) => {
                eprintln!("warn: what was interrupted is not known yet: {}", store::reason(&failure));
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
                    ExecutionKey::Going => go_on(pipelines, &id).await,
                    ExecutionKey::Ended => list(pipelines, &id).await,
                }
            })
            .await;
        if is_last {
            return;
        }
    }
}

/// Resumes an execution where it has no owner and there is capacity; damage is logged once, and the stored state is left unchanged.
async fn go_on(pipelines: &'static Pipelines, id: &str) {
    if pipelines.is_full() || pipelines.damaged.borrow().contains(id) {
        return;
    }
    match open(pipelines, id).await {
        Ok(_) => {}
        // The next look tries again.
        Err(failure @ Failure::Unavailable(_)) => {
            eprintln!("warn: {id} is not resumed yet: {}", store::reason(&failure));
        }
        Err(failure) => {
            eprintln!("warn: {id} cannot be resumed: {}", store::reason(&failure));
            let mut damaged = pipelines.damaged.borrow_mut();
            if damaged.len() >= DAMAGED_MAX {
                damaged.clear();
            }
            damaged.insert(id.to_owned());
        }
    }
}

/// Resumes an execution here, unless another instance owns it.
pub(super) async fn open(pipelines: &'static Pipelines, id: &str) -> Result<OpenResult, Failure> {
    let found = || pipelines.find(id).map(OpenResult::RunningExecution);
    let Some(_opening) = pipelines.open(id) else { return Ok(found().unwrap_or(OpenResult::Opening)) };
    let lease = match lease::acquire(ExecutionKey::Going.key(id)).await? {
        Ok(lease) => lease,
        Err(remaining_ms) => return Ok(OpenResult::Elsewhere(remaining_ms)),
    };
    // What the owner before has written is there, and it can write no more.
    let kept = match read(id).await {
        Ok(Some(kept)) => kept,
        nothing => {
            lease.release().await;
            return nothing.map(|_| OpenResult::Gone);
        }
    };
    match live(pipelines, kept, lease) {
        Ok(live) => Ok(OpenResult::RunningExecution(pipelines.go(live))),
        Err((lease, failure)) => {
            lease.release().await;
            Err(failure)
        }
    }
}

/// The last checkpoint of an execution, the cursor of the last event in its channel, and the number of its events.
async fn read(id: &str) -> Result<Option<(StoredExecution, Cursor, u64)>, Failure> {
    let Some(kept) = persistence::get(ExecutionKey::Going, id).await? else { return Ok(None) };
    let (last, stored) = persistence::tail_after(&format!("pipeline:{id}"), Cursor { epoch: 0, seq: 0 }, 0).await?;
    Ok(Some((kept, last, stored)))
}

fn live(
    pipelines: &'static Pipelines,
    (kept, last, stored): (StoredExecution, Cursor, u64),
    lease: StoreLease,
) -> Result<RunningExecution, (StoreLease, Failure)> {
    let StoredExecution { owner, parts, definition, checkpoint } = kept;
    let definition = Arc::new(definition);
    let resume = |events_stored| {
        let (definition, checkpoint) = (definition.clone(), checkpoint.clone());
        Execution::resume(definition, checkpoint, events_stored, pipelines.limits(), request_id::seed(), clock::now())
    };
    let resumed = match resume(stored) {
        // A store with fewer events than it acknowledged has lost them, or they exceeded their retention. Subscribers see a gap in the
        // channel.
        Err(ResumeError::EventsLost { events_known, .. }) => resume(events_known),
        other => other,
    };
    let execution = match resumed {
        Ok(execution) => execution,
        Err(error) => return Err((lease, Failure::Other(error.to_string()))),
    };
    let live = RunningExecution::new(execution, owner, Some(lease));
    live.checkpoint.replace(Some(checkpoint));
    live.parts.set(parts);
    live.last.set(last);
    live.stored.set(stored);
    Ok(live)
}

/// Lists one that has ended.
async fn list(pipelines: &'static Pipelines, id: &str) {
    // A request for it by its id is answered with the reason.
    let Ok(Some(kept)) = persistence::get(ExecutionKey::Ended, id).await else { return };
    let owner = kept.owner.clone();
    if let Some(status) = status(pipelines, kept) {
        pipelines.list(owner, ExecutionSummary::from(status));
    }
}

/// The status of a stored execution.
pub(super) fn status(pipelines: &Pipelines, kept: StoredExecution) -> Option<weir_core::pipelines::Status> {
    let (stored, now) = (kept.checkpoint.events_end, clock::now());
    let definition = Arc::new(kept.definition);
    let execution = Execution::resume(definition, kept.checkpoint, stored, pipelines.limits(), 0, now).ok()?;
    Some(execution.status(now.monotonic_ns))
}
