//! The persistent state of an execution: its checkpoint in `weir:stream/state`, its events in its channel.
//!
//! | key | value |
//! |---|---|
//! | `execution:ID` | the last checkpoint of a running execution |
//! | `ended:ID` | the last checkpoint of an ended execution, for `pipelines.ttl_ms` |
//! | `checkpoint:ID.S.N` | the parts of a checkpoint that is too large for one value |
//! | `listed:USER.ORDER.ID` | the entry of the execution in the list of its user, see `listing` |
//! | `start:KEY` | the execution that was started with an `Idempotency-Key` |
//!
//! Every write carries the lease of `execution:ID`, which the instance that runs the execution holds.
//!
//! A value begins with a line `weir-execution VERSION PARTS SLOT OWNER`; with 0 parts the checkpoint follows it. Parts
//! are written before the value that names them, alternating between two slots, so that a crash in between leaves the
//! previous checkpoint complete.

use std::rc::Rc;

use weir_codec::{
    channels::route::Channel,
    pipelines::{
        checkpoint::{self, CheckpointError, Decoder, Encoder},
        event,
    },
};
use weir_core::{
    channels::Cursor,
    pipelines::{
        Batch, Checkpoint, Data, Definition, Event as PipelineEvent, Metadata, PipelineFailure, Sequenced, StepFailure,
    },
};

use super::{Pipelines, listing, running::RunningExecution};
use crate::{
    channels::ownership,
    platform::{
        bindings::weir::stream::{
            events::{self, Event, Failure},
            state,
        },
        clock::{self, Deadline},
        store, turns,
    },
};

/// Maximum size of a part of a checkpoint; the store accepts values of up to a mebibyte.
const PART_BYTES: usize = 1_000_000;
/// Bytes of a checkpoint that are encoded or scanned in one turn.
const SLICE_BYTES: usize = 128 << 10;
/// Maximum number of parts of a checkpoint.
const PARTS_MAX: usize = checkpoint::CHECKPOINT_BYTES_MAX.div_ceil(PART_BYTES);
/// Maximum size of one event in the store, and of all events of one append.
const EVENT_BYTES_MAX: usize = 262_144;
const APPEND_BYTES_MAX: usize = 1 << 20;
const APPEND_EVENTS_MAX: usize = 1000;
const PAGE_EVENTS_MAX: u32 = 1000;
/// The delays between attempts to save or store, in milliseconds.
const RETRY_MS: (u64, u64) = (100, 10_000);
const VERSION: &str = "1";

/// The keys under which an execution is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExecutionKey {
    Running,
    Ended,
}

impl ExecutionKey {
    pub(super) fn key(self, id: &str) -> String {
        match self {
            Self::Running => format!("execution:{id}"),
            Self::Ended => format!("ended:{id}"),
        }
    }

    /// The part of its keys before the colon.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Running => "execution",
            Self::Ended => "ended",
        }
    }
}

/// The stored state of an execution.
pub(super) struct StoredExecution {
    pub(super) owner: String,
    pub(super) parts: usize,
    pub(super) definition: Definition,
    pub(super) checkpoint: Checkpoint,
}

/// This instance can store nothing more of an execution: another one owns it, or the store refuses the state for good.
#[derive(Debug)]
pub(super) struct WriteRefused;

/// Whether a write that has failed may succeed later.
fn is_retried(failure: &Failure) -> bool {
    !matches!(failure, Failure::Fenced | Failure::TooLarge(_) | Failure::Invalid(_))
}

/// Marks an execution whose write cannot succeed, so that its driver ends.
fn refuse(running: &RunningExecution, failure: &Failure) -> WriteRefused {
    match failure {
        Failure::Fenced => running.lose(),
        failure => running.refuse(store::reason(failure)),
    }
    WriteRefused
}

/// Saves a checkpoint, retrying until it succeeds; returns its number.
pub(super) async fn save(
    pipelines: &'static Pipelines,
    running: Rc<RunningExecution>,
    checkpoint: Checkpoint,
) -> Result<u64, WriteRefused> {
    let number = checkpoint.number;
    let mut delay_ms = RETRY_MS.0;
    while let Err(failure) = try_save(pipelines, &running, &checkpoint).await {
        if !is_retried(&failure) {
            return Err(refuse(&running, &failure));
        }
        eprintln!("warn: a checkpoint of {} was not saved: {}", checkpoint.execution_id, store::reason(&failure));
        Deadline::after(clock::now(), delay_ms).passed().await;
        delay_ms = (delay_ms * 2).min(RETRY_MS.1);
    }
    running.checkpoint.replace(Some(checkpoint));
    Ok(number)
}

/// Tries once to save a checkpoint.
pub(super) async fn try_save(
    pipelines: &Pipelines,
    running: &RunningExecution,
    checkpoint: &Checkpoint,
) -> Result<(), Failure> {
    let definition = running.execution.borrow().definition().clone();
    let id = &checkpoint.execution_id;
    let slot = if checkpoint.number.is_multiple_of(2) { "a" } else { "b" };
    let encoder = Encoder::new(checkpoint, &definition);
    let parts = put(ExecutionKey::Running, id, running, slot, encoder, None).await?;
    running.parts.set(running.parts.get().max(parts));
    // The next checkpoint tries again.
    if let Err(failure) = listing::put(running, None).await {
        eprintln!("warn: the state of {id} in the list of executions was not updated: {}", store::reason(&failure));
    }
    // The ownership of the channel must be stored as long as the channel has events.
    if checkpoint.number > 1 && pipelines.settings.auth.required {
        assign_channel_owner(running).await?;
    }
    Ok(())
}

/// Records the owner of an execution as the owner of its channel.
pub(super) async fn assign_channel_owner(running: &RunningExecution) -> Result<(), Failure> {
    let id = running.execution.borrow().id().clone();
    let channel = Channel::from_name(&format!("pipeline:{id}"));
    let user = Channel::from_name(&format!("user:{}", running.owner));
    let Some((channel, user)) = channel.zip(user) else {
        return Err(Failure::Invalid("the name of the user is not valid as a channel".to_owned()));
    };
    let assigned = ownership::assign(&channel, &user, ownership::PastEvents::Owned).await;
    assigned.map(drop).map_err(|problem| {
        eprintln!("warn: the owner of {channel} was not recorded: {}", problem.detail);
        Failure::Unavailable(problem.retry_after_ms.unwrap_or(1000))
    })
}

/// Appends events to the channel, retrying until it succeeds. Returns the batch and the number of the last stored
/// event.
pub(super) async fn store(running: Rc<RunningExecution>, batch: Batch) -> Result<(Batch, u64), WriteRefused> {
    let id = running.execution.borrow().id().clone();
    let channel = format!("pipeline:{id}");
    let (mut wire, mut bytes, mut seq) = (Vec::new(), 0, 0);
    let values_bytes = batch.events.iter().map(|sequenced| sequenced.event.bytes()).sum();
    let turn = turns::take_over(&running.owner, values_bytes).await;
    for sequenced in batch.events.iter().take(APPEND_EVENTS_MAX) {
        let data = event::numbered_json(&id, sequenced, EVENT_BYTES_MAX);
        if bytes + data.len() > APPEND_BYTES_MAX && !wire.is_empty() {
            break;
        }
        (bytes, seq) = (bytes + data.len(), sequenced.seq);
        let name = sequenced.event.event_type().name();
        let step = sequenced.event.step_id.as_deref().unwrap_or_default();
        let coalesce =
            (name == "step_progress").then(|| format!("p:{}", step.get(..step.len().min(60)).unwrap_or_default()));
        wire.push(Event { name: name.to_owned(), data, coalesce, finishes: sequenced.event.is_last() });
    }
    drop(turn);
    let mut delay_ms = RETRY_MS.0;
    loop {
        let append = async { events::append(channel.clone(), wire.clone(), running.fence(), running.share()).await };
        match turns::hand_over(&running.owner, bytes, append).await {
            Ok(cursors) => {
                running.last.set(cursors.last().copied().unwrap_or(running.last.get()));
                running.stored.set(seq);
                return Ok((batch, seq));
            }
            // The channel has its last event, so all events are stored.
            Err(Failure::Finished) => {
                let all = batch.events.last().map_or(seq, |last| last.seq);
                running.stored.set(all);
                return Ok((batch, all));
            }
            Err(failure) if !is_retried(&failure) => return Err(refuse(&running, &failure)),
            Err(failure) => eprintln!("warn: events of {id} were not stored: {}", store::reason(&failure)),
        }
        Deadline::after(clock::now(), delay_ms).passed().await;
        delay_ms = (delay_ms * 2).min(RETRY_MS.1);
        // The append may have succeeded although it was reported as failed.
        if let Ok(stored) = tail(&running).await
            && stored > 0
            && first_seq(&batch) <= stored
        {
            return Ok((batch, stored));
        }
    }
}

fn first_seq(batch: &Batch) -> u64 {
    batch.events.first().map_or(u64::MAX, |first| first.seq)
}

/// The number of the last event in the channel, as far as the retained events show it; 0 when there is none.
pub(super) async fn tail(running: &RunningExecution) -> Result<u64, Failure> {
    let channel = format!("pipeline:{}", running.execution.borrow().id());
    let (last, stored) = tail_after(&channel, running.last.get(), running.stored.get()).await?;
    running.last.set(last);
    running.stored.set(stored);
    Ok(stored)
}

/// The cursor and the number of the last event of a channel after a known one.
pub(super) async fn tail_after(channel: &str, last: Cursor, stored: u64) -> Result<(Cursor, u64), Failure> {
    let (mut last, mut stored) = (last, stored);
    loop {
        let page = events::read(channel.to_owned(), last, PAGE_EVENTS_MAX).await?;
        let Some(entry) = page.entries.last() else { return Ok((last, stored)) };
        last = entry.at;
        stored = event::number(&entry.event.data).unwrap_or(stored).max(stored);
    }
}

/// Stores the end of an execution and deletes its running state. While the store refuses the write, the running state
/// remains, and the execution ends again after a restart.
pub(super) async fn end(pipelines: &Pipelines, running: &RunningExecution) -> Result<(), WriteRefused> {
    let Some(mut checkpoint) = running.checkpoint.take() else { return Ok(()) };
    // Its events are stored.
    checkpoint.outbox.clear();
    let definition = running.execution.borrow().definition().clone();
    let id = checkpoint.execution_id.clone();
    let ttl_ms = pipelines.config.ttl_ms;
    let mut delay_ms = RETRY_MS.0;
    let mut is_deleted = false;
    while let Err(failure) = put_end(&id, running, Encoder::new(&checkpoint, &definition), ttl_ms).await {
        match failure {
            failure if !is_retried(&failure) => return Err(refuse(running, &failure)),
            // Both states do not fit at once: the running state is deleted first. After a crash in between, only the
            // channel shows how the execution ended.
            Failure::ShareExceeded(_) | Failure::Full(_) if !is_deleted => {
                delete_running_state(&id, running).await;
                is_deleted = true;
                continue;
            }
            Failure::ShareExceeded(_) | Failure::Full(_) => {
                eprintln!("warn: the end of {id} is not stored: {}", store::reason(&failure));
                return Ok(());
            }
            _ => {}
        }
        eprintln!("warn: the end of {id} was not stored and is retried: {}", store::reason(&failure));
        Deadline::after(clock::now(), delay_ms).passed().await;
        delay_ms = (delay_ms * 2).min(RETRY_MS.1);
    }
    if !is_deleted {
        delete_running_state(&id, running).await;
    }
    Ok(())
}

/// Ends an execution whose state the store refuses for good: appends a last event and deletes its running state.
pub(super) async fn end_refused(running: &RunningExecution, reason: &str) {
    let id = running.execution.borrow().id().clone();
    eprintln!("error: {id} cannot be stored, and ends: {reason}");
    let failure = StepFailure::last("state_refused", "the state of the execution cannot be stored");
    let failure = PipelineFailure { failure, step_id: None, cancelled: false, compensated: 0, compensations_failed: 0 };
    let event = PipelineEvent {
        step_id: None,
        unix_ns: clock::now().unix_ns,
        data: Data::PipelineError { failure, duration_ns: 0 },
        metadata: Metadata::default(),
    };
    let last = Sequenced { seq: running.stored.get().saturating_add(1), event };
    let data = event::numbered_json(&id, &last, EVENT_BYTES_MAX);
    let name = last.event.event_type().name().to_owned();
    let last = Event { name, data, coalesce: None, finishes: true };
    match events::append(format!("pipeline:{id}"), vec![last], running.fence(), running.share()).await {
        Ok(_) | Err(Failure::Finished) => delete_running_state(&id, running).await,
        // After a restart it is tried again.
        Err(failure) => eprintln!("warn: the end of {id} is not stored: {}", store::reason(&failure)),
    }
}

async fn put_end(id: &str, running: &RunningExecution, encoder: Encoder, ttl_ms: u64) -> Result<(), Failure> {
    put(ExecutionKey::Ended, id, running, "e", encoder, Some(ttl_ms)).await?;
    listing::put(running, Some(ttl_ms)).await
}

/// Deletes the running state of an execution. If the store is unavailable, the next restart deletes it.
async fn delete_running_state(id: &str, running: &RunningExecution) {
    let parts = running.parts.get();
    if let Err(failure) = state::delete(ExecutionKey::Running.key(id), running.fence()).await {
        eprintln!("warn: {id} has ended and its running state was not deleted: {}", store::reason(&failure));
        return;
    }
    for (slot, part) in ["a", "b"].into_iter().flat_map(|slot| (0..parts).map(move |part| (slot, part))) {
        if state::delete(part_key(id, slot, part), running.fence()).await.is_err() {
            return;
        }
    }
}

fn part_key(id: &str, slot: &str, part: usize) -> String {
    format!("checkpoint:{id}.{slot}.{part}")
}

/// Stores a checkpoint under its key; returns the number of its separate parts. It is encoded and passed to the store in
/// slices, each in a turn of the user.
async fn put(
    key_kind: ExecutionKey,
    id: &str,
    running: &RunningExecution,
    slot: &str,
    mut encoder: Encoder,
    ttl_ms: Option<u64>,
) -> Result<usize, Failure> {
    let (mut bytes, mut parts) = (Vec::with_capacity(encoder.bytes().min(PART_BYTES)), 0);
    loop {
        let slice_bytes = encoder.bytes().min(SLICE_BYTES);
        let more = turns::run_over(&running.owner, slice_bytes, || encoder.write(&mut bytes, SLICE_BYTES)).await;
        let is_last = !more && bytes.len() <= PART_BYTES;
        if is_last && parts == 0 {
            break;
        }
        if bytes.len() >= PART_BYTES || is_last {
            let rest = bytes.split_off(bytes.len().min(PART_BYTES));
            let part = std::mem::replace(&mut bytes, rest);
            let (part_bytes, key) = (part.len(), part_key(id, slot, parts));
            let put = async { state::put(key, part, ttl_ms, running.fence(), running.share()).await };
            turns::hand_over(&running.owner, part_bytes, put).await?;
            parts += 1;
        }
        if is_last {
            break;
        }
    }
    let mut value = head(parts, slot, &running.owner).into_bytes();
    if parts == 0 {
        value.extend(bytes);
    }
    let bytes = value.len();
    let put = async { state::put(key_kind.key(id), value, ttl_ms, running.fence(), running.share()).await };
    turns::hand_over(&running.owner, bytes, put).await?;
    Ok(parts)
}

fn head(parts: usize, slot: &str, owner: &str) -> String {
    format!("weir-execution {VERSION} {parts} {slot} {owner}\n")
}

/// The number of parts, slot and owner from the first line of a value, and the bytes after that line.
fn split(value: &[u8]) -> Option<(usize, &str, &str, &[u8])> {
    let end = value.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = value.split_at(end);
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let known = words.next()? == "weir-execution" && words.next()? == VERSION;
    let (parts, slot, owner) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let known = known && parts <= PARTS_MAX;
    (known && words.next().is_none()).then_some((parts, slot, owner, &rest[1..]))
}

/// Whether the store has an execution.
pub(super) async fn exists(id: &str) -> Result<bool, Failure> {
    for key_kind in [ExecutionKey::Running, ExecutionKey::Ended] {
        if state::get(key_kind.key(id)).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The stored state of an execution under a key.
pub(super) async fn get(key_kind: ExecutionKey, id: &str) -> Result<Option<StoredExecution>, Failure> {
    let Some(value) = state::get(key_kind.key(id)).await? else { return Ok(None) };
    let damaged = |what: &str| Failure::Other(format!("the stored state of {id} is damaged: {what}"));
    let (parts, slot, owner, rest) = split(&value).ok_or_else(|| damaged("its first line"))?;
    let mut bytes = Vec::new();
    for part in 0..parts {
        let part = state::get(part_key(id, slot, part)).await?;
        bytes.extend(part.ok_or_else(|| damaged("a part is missing"))?);
    }
    let bytes = if parts == 0 { rest } else { &bytes };
    let decoded = decode(owner, bytes).await;
    let (definition, checkpoint) = decoded.map_err(|error| damaged(&error.to_string()))?;
    Ok(Some(StoredExecution { owner: owner.to_owned(), parts, definition, checkpoint }))
}

/// Decodes a checkpoint in slices, each in a turn of the user.
async fn decode(user: &str, bytes: &[u8]) -> Result<(Definition, Checkpoint), CheckpointError> {
    let mut decoder = Decoder::new(bytes)?;
    while turns::run_over(user, bytes.len(), || decoder.advance(SLICE_BYTES)).await? {}
    turns::run_over(user, bytes.len(), || decoder.finish()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_with_another_head_is_refused() {
        let value = [head(0, "a", "ann@example.org").as_bytes(), b"{\n}"].concat();
        assert_eq!(split(&value), Some((0, "a", "ann@example.org", b"{\n}".as_slice())));
        for other in [
            "",
            "weir-execution 1 0 a ann",
            "weir-execution 2 0 a ann\n",
            "x 1 0 a ann\n",
            "weir-execution 1 0 a b c\n",
            // 4295 parts of 1,000,000 bytes are more than a u32 of bytes.
            "weir-execution 1 4295 a ann\n",
            "weir-execution 1 4294967295 a ann\n",
        ] {
            assert_eq!(split(other.as_bytes()), None, "{other:?}");
        }
    }

    #[test]
    fn write_that_can_never_succeed_is_not_retried() {
        for failure in [Failure::TooLarge(String::new()), Failure::Invalid(String::new()), Failure::Fenced] {
            assert!(!is_retried(&failure), "{failure:?}");
        }
        for failure in
            [Failure::Unavailable(1), Failure::Full(1), Failure::ShareExceeded(1), Failure::Other(String::new())]
        {
            assert!(is_retried(&failure), "{failure:?}");
        }
    }
}
