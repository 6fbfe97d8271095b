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

/// Executions that are read concurrently.
const READ_AT_ONCE: usize = 8;
/// Keys in one page.
const KEYS_MAX: u32 = 500;
/// The delay before a failed listing of the store is retried, in milliseconds.
const RETRY_MS: u64 = 500;
/// Maximum number of executions in the set of damaged ones.
const DAMAGED_MAX: usize = 1000;

/// The result of opening an execution.
pub(super) enum OpenResult {
    /// It runs in this instance.
    Running(Rc<RunningExecution>),
    /// Another instance owns it; its lease ends in the given number of milliseconds unless it is renewed.
    Elsewhere(u64),
    /// It is being opened here.
    Opening,
    /// The store has no running execution of this id.
    Gone,
}

/// Resumes every execution without an owner, lists those that have ended, and then scans periodically for executions
/// whose owner has died. New executions may start meanwhile.
pub(super) async fn resume(pipelines: &'static Pipelines) {
    each_key(pipelines, ExecutionKey::Running).await;
    pipelines.restoration.finish();
    each_key(pipelines, ExecutionKey::Ended).await;
    loop {
        Deadline::after(clock::now(), lease::scan_ms()).passed().await;
        each_key(pipelines, ExecutionKey::Running).await;
    }
}

async fn each_key(pipelines: &'static Pipelines, key_kind: ExecutionKey) {
    let mut after = String::new();
    loop {
        let keys = match state::keys(key_kind.prefix().to_owned(), after.clone(), KEYS_MAX).await {
            Ok(keys) => keys,
            Err(failure) => {
                eprintln!("warn: the stored executions cannot be listed yet: {}", store::reason(&failure));
                Deadline::after(clock::now(), RETRY_MS).passed().await;
                continue;
            }
        };
        let is_last = keys.len() < KEYS_MAX as usize;
        after = keys.last().cloned().unwrap_or_default();
        stream::iter(keys)
            .for_each_concurrent(READ_AT_ONCE, |key| async move {
                let Some(id) = key.split_once(':').map(|(_, id)| id.to_owned()) else { return };
                match key_kind {
                    ExecutionKey::Running => resume_one(pipelines, &id).await,
                    ExecutionKey::Ended => list(pipelines, &id).await,
                }
            })
            .await;
        if is_last {
            return;
        }
    }
}

/// Resumes an execution if it has no owner and there is capacity. Damaged state is logged once and left unchanged.
async fn resume_one(pipelines: &'static Pipelines, id: &str) {
    if pipelines.is_full() || pipelines.damaged.borrow().contains(id) {
        return;
    }
    match open(pipelines, id).await {
        Ok(_) => {}
        // The next scan tries again.
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
    let running = || pipelines.find(id).map(OpenResult::Running);
    let Some(_opening) = pipelines.open(id) else { return Ok(running().unwrap_or(OpenResult::Opening)) };
    let lease = match lease::acquire(ExecutionKey::Running.key(id)).await? {
        Ok(lease) => lease,
        Err(remaining_ms) => return Ok(OpenResult::Elsewhere(remaining_ms)),
    };
    // The lease comes first: the previous owner can write no more, so what is read is final.
    let stored = match read(id).await {
        Ok(Some(stored)) => stored,
        absent => {
            lease.release().await;
            return absent.map(|_| OpenResult::Gone);
        }
    };
    match restore(pipelines, stored, lease) {
        Ok(running) => Ok(OpenResult::Running(pipelines.spawn_driver(running))),
        Err((lease, failure)) => {
            lease.release().await;
            Err(failure)
        }
    }
}

/// The last checkpoint of an execution, the cursor of the last event in its channel, and the number of its events.
async fn read(id: &str) -> Result<Option<(StoredExecution, Cursor, u64)>, Failure> {
    let Some(execution) = persistence::get(ExecutionKey::Running, id).await? else { return Ok(None) };
    let (last, stored) = persistence::tail_after(&format!("pipeline:{id}"), Cursor { epoch: 0, seq: 0 }, 0).await?;
    Ok(Some((execution, last, stored)))
}

fn restore(
    pipelines: &'static Pipelines,
    (execution, last, stored): (StoredExecution, Cursor, u64),
    lease: StoreLease,
) -> Result<RunningExecution, (StoreLease, Failure)> {
    let StoredExecution { owner, parts, definition, checkpoint } = execution;
    let definition = Arc::new(definition);
    let resume = |events_stored| {
        let (definition, checkpoint) = (definition.clone(), checkpoint.clone());
        Execution::resume(definition, checkpoint, events_stored, pipelines.limits(), request_id::seed(), clock::now())
    };
    let resumed = match resume(stored) {
        // The store has fewer events than it acknowledged: it has lost some, or their retention has ended. Subscribers
        // get a gap.
        Err(ResumeError::EventsLost { events_known, .. }) => resume(events_known),
        other => other,
    };
    let execution = match resumed {
        Ok(execution) => execution,
        Err(error) => return Err((lease, Failure::Other(error.to_string()))),
    };
    let running = RunningExecution::new(execution, owner, Some(lease));
    running.checkpoint.replace(Some(checkpoint));
    running.parts.set(parts);
    running.last.set(last);
    running.stored.set(stored);
    Ok(running)
}

/// Adds an ended execution to the list of this instance.
async fn list(pipelines: &'static Pipelines, id: &str) {
    // A request for the execution by its id gets the error.
    let Ok(Some(stored)) = persistence::get(ExecutionKey::Ended, id).await else { return };
    let owner = stored.owner.clone();
    if let Some(status) = status(pipelines, stored) {
        pipelines.list(owner, ExecutionSummary::from(status));
    }
}

/// The status of a stored execution.
pub(super) fn status(pipelines: &Pipelines, stored: StoredExecution) -> Option<weir_core::pipelines::Status> {
    let (events_stored, now) = (stored.checkpoint.events_end, clock::now());
    let definition = Arc::new(stored.definition);
    let execution = Execution::resume(definition, stored.checkpoint, events_stored, pipelines.limits(), 0, now).ok()?;
    Some(execution.status(now.monotonic_ns))
}
