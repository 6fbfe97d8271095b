//! What of an execution outlives the process: its checkpoint in `weir:stream/state`, its events in its channel.
//!
//! | key | value |
//! |---|---|
//! | `execution:ID` | the last checkpoint of one that runs |
//! | `ended:ID` | the last checkpoint of one that has ended, for a while |
//! | `checkpoint:ID.S.N` | the parts of a checkpoint that one value does not hold |
//! | `listed:USER.ORDER.ID` | how far the execution is, see `listing` |
//! | `start:KEY` | the execution that an `Idempotency-Key` began |
//!
//! Every write carries the lease of `execution:ID`, which the instance that runs the execution holds.
//!
//! A value begins with a line `weir-execution VERSION PARTS SLOT OWNER`; with 0 parts the checkpoint follows it. Parts are written
//! before the value that names them, in one of two slots in turn, so that a crash in between leaves the checkpoint before whole.

use std::rc::Rc;

use weir_codec::{
    channels::route::Channel,
    pipelines::{checkpoint, event},
};
use weir_core::{
    channels::Cursor,
    pipelines::{Batch, Checkpoint, Definition},
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

/// What a value holds of a checkpoint; the store takes a mebibyte.
const PART_BYTES: usize = 1_000_000;
/// Bytes of an event that the store takes, and of all events that are appended together.
const EVENT_BYTES_MAX: usize = 262_144;
const APPEND_BYTES_MAX: usize = 1 << 20;
const APPEND_EVENTS_MAX: usize = 1000;
const PAGE_EVENTS_MAX: u32 = 1000;
/// The delays between attempts to save or store, in milliseconds.
const RETRY_MS: (u64, u64) = (100, 10_000);
const VERSION: &str = "1";

/// The kinds of keys of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExecutionKey {
    Going,
    Ended,
}

impl ExecutionKey {
    pub(super) fn key(self, id: &str) -> String {
        match self {
            Self::Going => format!("execution:{id}"),
            Self::Ended => format!("ended:{id}"),
        }
    }

    /// The kind of its keys.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Going => "execution",
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

/// Another instance owns the execution: nothing more may be stored from here.
#[derive(Debug)]
pub(super) struct OwnershipLost;

/// Saves a checkpoint, however long that takes; its number.
pub(super) async fn save(
    pipelines: &'static Pipelines,
    live: Rc<RunningExecution>,
    checkpoint: Checkpoint,
) -> Result<u64, OwnershipLost> {
    let number = checkpoint.number;
    let mut delay_ms = RETRY_MS.0;
    while let Err(failure) = try_save(pipelines, &live, &checkpoint).await {
        if let Failure::Fenced = failure {
            live.lose();
            return Err(OwnershipLost);
        }
        eprintln!("warn: a checkpoint of {} was not saved: {}", checkpoint.execution_id, store::reason(&failure));
        Deadline::after(clock::now(), delay_ms).passed().await;
        delay_ms = (delay_ms * 2).min(RETRY_MS.1);
    }
    live.checkpoint.replace(Some(checkpoint));
    Ok(number)
}

/// Saves a checkpoint, or not.
pub(super) async fn try_save(
    pipelines: &Pipelines,
    live: &RunningExecution,
    checkpoint: &Checkpoint,
) -> Result<(), Failure> {
    let definition = live.execution.borrow().definition().clone();
    let id = &checkpoint.execution_id;
    let bytes = turns::run(&live.owner, || checkpoint::encode(checkpoint, &definition)).await;
    let slot = if checkpoint.number.is_multiple_of(2) { "a" } else { "b" };
    let parts = put(ExecutionKey::Going, id, live, slot, bytes, None).await?;
    live.parts.set(live.parts.get().max(parts));
    // The next checkpoint tries again.
    if let Err(failure) = listing::put(live, None).await {
        eprintln!("warn: {id} is not listed as it is: {}", store::reason(&failure));
    }
    // Whose channel it is must be known for as long as there are events in it.
    if checkpoint.number > 1 && pipelines.settings.auth.required {
        own(live).await?;
    }
    Ok(())
}

/// Makes the channel of an execution its owner's.
pub(super) async fn own(live: &RunningExecution) -> Result<(), Failure> {
    let id = live.execution.borrow().id().clone();
    let channel = Channel::from_name(&format!("pipeline:{id}"));
    let user = Channel::from_name(&format!("user:{}", live.owner));
    let Some((channel, user)) = channel.zip(user) else {
        return Err(Failure::Invalid("the user has no channel".to_owned()));
    };
    // Why not is for the log.
    ownership::settle(&channel, &user, ownership::PastEvents::Owned)
        .await
        .map(drop)
        .map_err(|_| Failure::Unavailable(1000))
}

/// Appends events to the channel; the batch, and how many events the channel holds then.
pub(super) async fn store(live: Rc<RunningExecution>, batch: Batch) -> Result<(Batch, u64), OwnershipLost> {
    let id = live.execution.borrow().id().clone();
    let channel = format!("pipeline:{id}");
    let (mut wire, mut bytes, mut seq) = (Vec::new(), 0, 0);
    let turn = turns::take(&live.owner).await;
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
        let append = async { events::append(channel.clone(), wire.clone(), live.fence(), live.share()).await };
        match turns::hand_over(&live.owner, bytes, append).await {
            Ok(places) => {
                live.last.set(places.last().copied().unwrap_or(live.last.get()));
                live.stored.set(seq);
                return Ok((batch, seq));
            }
            // Its last event is there, so all of them are.
            Err(Failure::Finished) => {
                let all = batch.events.last().map_or(seq, |last| last.seq);
                live.stored.set(all);
                return Ok((batch, all));
            }
            Err(Failure::Fenced) => {
                live.lose();
                return Err(OwnershipLost);
            }
            Err(failure) => eprintln!("warn: events of {id} were not stored: {}", store::reason(&failure)),
        }
        Deadline::after(clock::now(), delay_ms).passed().await;
        delay_ms = (delay_ms * 2).min(RETRY_MS.1);
        // They may have been stored all the same.
        if let Ok(stored) = tail(&live).await
            && stored > 0
            && wire_begins(&batch) <= stored
        {
            return Ok((batch, stored));
        }
    }
}

fn wire_begins(batch: &Batch) -> u64 {
    batch.events.first().map_or(u64::MAX, |first| first.seq)
}

/// The number of the last event in the channel, as far as it can be known; 0 when there is none.
pub(super) async fn tail(live: &RunningExecution) -> Result<u64, Failure> {
    let channel = format!("pipeline:{}", live.execution.borrow().id());
    let (last, stored) = tail_after(&channel, live.last.get(), live.stored.get()).await?;
    live.last.set(last);
    live.stored.set(stored);
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

/// Stores the end of an execution and removes its unfinished state. While the store refuses, the unfinished state remains, and the
/// execution ends again after a restart.
pub(super) async fn end(pipelines: &Pipelines, live: &RunningExecution) -> Result<(), OwnershipLost> {
    let Some(mut checkpoint) = live.checkpoint.take() else { return Ok(()) };
    // Its events are stored.
    checkpoint.outbox.clear();
    let definition = live.execution.borrow().definition().clone();
    let id = checkpoint.execution_id.clone();
    let bytes = turns::run(&live.owner, || checkpoint::encode(&checkpoint, &definition)).await;
    let ttl_ms = pipelines.config.ttl_ms;
    let mut delay_ms = RETRY_MS.0;
    let mut forgotten = false;
    while let Err(failure) = put_end(&id, live, bytes.clone(), ttl_ms).await {
        match failure {
            Failure::Fenced => {
                live.lose();
                return Err(OwnershipLost);
            }
            // Both do not fit at once: the unfinished state is deleted first. After a crash in between, only the channel says how the
            // execution ended.
            Failure::ShareExceeded(_) | Failure::Full(_) if !forgotten => {
                forget(&id, live).await;
                forgotten = true;
                continue;
            }
            Failure::ShareExceeded(_) | Failure::Full(_) => {
                eprintln!("warn: the end of {id} is not kept: {}", store::reason(&failure));
                return Ok(());
            }
            _ => {}
        }
        eprintln!("warn: the end of {id} was not saved: {}", store::reason(&failure));
        Deadline::after(clock::now(), delay_ms).passed().await;
        delay_ms = (delay_ms * 2).min(RETRY_MS.1);
    }
    if !forgotten {
        forget(&id, live).await;
    }
    Ok(())
}

async fn put_end(id: &str, live: &RunningExecution, bytes: Vec<u8>, ttl_ms: u64) -> Result<(), Failure> {
    put(ExecutionKey::Ended, id, live, "e", bytes, Some(ttl_ms)).await?;
    listing::put(live, Some(ttl_ms)).await
}

/// Deletes the unfinished state of an execution. If the store is unavailable, the next restart deletes it.
async fn forget(id: &str, live: &RunningExecution) {
    let parts = live.parts.get();
    if let Err(failure) = state::delete(ExecutionKey::Going.key(id), live.fence()).await {
        eprintln!("warn: {id} has ended and stays among those that go on: {}", store::reason(&failure));
        return;
    }
    for (slot, part) in ["a", "b"].into_iter().flat_map(|slot| (0..parts).map(move |part| (slot, part))) {
        if state::delete(part_key(id, slot, part), live.fence()).await.is_err() {
            return;
        }
    }
}

fn part_key(id: &str, slot: &str, part: usize) -> String {
    format!("checkpoint:{id}.{slot}.{part}")
}

/// Stores a checkpoint under its key; returns the number of its further parts.
async fn put(
    place: ExecutionKey,
    id: &str,
    live: &RunningExecution,
    slot: &str,
    bytes: Vec<u8>,
    ttl_ms: Option<u64>,
) -> Result<usize, Failure> {
    let is_small = bytes.len() <= PART_BYTES;
    let parts = if is_small { 0 } else { bytes.len().div_ceil(PART_BYTES) };
    if !is_small {
        for (part, bytes) in bytes.chunks(PART_BYTES).enumerate() {
            let put = async {
                state::put(part_key(id, slot, part), bytes.to_vec(), ttl_ms, live.fence(), live.share()).await
            };
            turns::hand_over(&live.owner, bytes.len(), put).await?;
        }
    }
    let mut value = head(parts, slot, &live.owner).into_bytes();
    if is_small {
        value.extend(bytes);
    }
    let bytes = value.len();
    let put = state::put(place.key(id), value, ttl_ms, live.fence(), live.share());
    turns::hand_over(&live.owner, bytes, put).await?;
    Ok(parts)
}

fn head(parts: usize, slot: &str, owner: &str) -> String {
    format!("weir-execution {VERSION} {parts} {slot} {owner}\n")
}

/// The parts, slot and owner of a value, and the rest of it.
fn split(value: &[u8]) -> Option<(usize, &str, &str, &[u8])> {
    let end = value.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = value.split_at(end);
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let known = words.next()? == "weir-execution" && words.next()? == VERSION;
    let (parts, slot, owner) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    (known && words.next().is_none()).then_some((parts, slot, owner, &rest[1..]))
}

/// Whether the store has an execution.
pub(super) async fn exists(id: &str) -> Result<bool, Failure> {
    for place in [ExecutionKey::Going, ExecutionKey::Ended] {
        if state::get(place.key(id)).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The stored state of an execution under a key.
pub(super) async fn get(place: ExecutionKey, id: &str) -> Result<Option<StoredExecution>, Failure> {
    let Some(value) = state::get(place.key(id)).await? else { return Ok(None) };
    let damaged = |what: &str| Failure::Other(format!("what is kept of {id} is damaged: {what}"));
    let (parts, slot, owner, rest) = split(&value).ok_or_else(|| damaged("its first line"))?;
    let mut whole = Vec::new();
    if parts * PART_BYTES > checkpoint::CHECKPOINT_BYTES_MAX + PART_BYTES {
        return Err(damaged("too many parts"));
    }
    for part in 0..parts {
        let part = state::get(part_key(id, slot, part)).await?;
        whole.extend(part.ok_or_else(|| damaged("a part is missing"))?);
    }
    let bytes = if parts == 0 { rest } else { &whole };
    let decoded = turns::run(owner, || checkpoint::decode(bytes)).await;
    let (definition, checkpoint) = decoded.map_err(|error| damaged(&error.to_string()))?;
    Ok(Some(StoredExecution { owner: owner.to_owned(), parts, definition, checkpoint }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_marked_with_their_kind() {
        let value = [head(0, "a", "ann@example.org").as_bytes(), b"{\n}"].concat();
        assert_eq!(split(&value), Some((0, "a", "ann@example.org", b"{\n}".as_slice())));
        for other in [
            "",
            "weir-execution 1 0 a ann",
            "weir-execution 2 0 a ann\n",
            "x 1 0 a ann\n",
            "weir-execution 1 0 a b c\n",
        ] {
            assert_eq!(split(other.as_bytes()), None, "{other:?}");
        }
    }
}
