//! Stores the events of a session: first appends them to its channel, then sets the checkpoint with the state after
//! them.

use std::cell::Cell;

use weir_codec::{
    http::problem::Problem,
    transcripts::{
        outbox::{Batch, EventOutbox, Record},
        stored::{Head, Phase},
    },
};

use super::{
    registry::{Entry, SessionRegistry},
    running::now_ms,
};
use weir_core::channels::Cursor;

use crate::{
    platform::{
        bindings::weir::stream::events::{self, Event, Failure},
        store,
        turns::SharedTurn,
    },
    transcripts::enrich,
};

/// The event that an expired session ends with.
const EXPIRED: &str = "session_expired";

/// Stores the events of one session, for the request that holds it.
pub(crate) struct SessionLog<'a> {
    pub(crate) registry: &'static SessionRegistry,
    pub(crate) entry: &'a Entry,
    /// The turn of the request, in which its events are passed to the host.
    pub(crate) turn: SharedTurn,
    after: Cell<Cursor>,
    /// The amount of events appended so far.
    appended: Cell<Amount>,
    /// The amount at the last checkpoint.
    at_checkpoint: Cell<Amount>,
    /// The amount at the last checkpoint that was stored: the channel must retain the events since then.
    at_stored: Cell<Amount>,
}

/// A number of events, and their bytes.
type Amount = (u64, u64);

impl<'a> SessionLog<'a> {
    /// Continues after a cursor of the channel.
    pub(crate) fn new(registry: &'static SessionRegistry, entry: &'a Entry, after: Cursor) -> Self {
        let zero = || Cell::new((0, 0));
        Self {
            registry,
            entry,
            turn: SharedTurn::default(),
            after: Cell::new(after),
            appended: zero(),
            at_checkpoint: zero(),
            at_stored: zero(),
        }
    }

    /// Enriches a batch, appends its events, and sets its checkpoint. Returns the cursors of its records.
    pub(crate) async fn store(&self, outbox: &EventOutbox, batch: &mut Batch) -> Result<Vec<(u64, u64)>, Problem> {
        let queries = outbox.queries(batch);
        if !queries.is_empty() {
            let results = enrich::run_queries(queries, self.registry.settings).await;
            outbox.handle_query_results(batch, results.into_iter());
        }
        let records = batch.records();
        let expired = records.iter().any(|record| record.name == EXPIRED);
        let warned = records.iter().rev().find_map(expiring);
        let cursors = self.append(records).await?;
        if let Some(checkpoint) = batch.checkpoint.take() {
            self.set_checkpoint(checkpoint, |head| {
                head.warned_ms = warned;
                if expired {
                    head.phase = Phase::Expired;
                }
            });
        }
        Ok(cursors)
    }

    /// Ends the session and finishes its channel. All earlier outputs must be stored.
    pub(crate) async fn end(&self, batch: &Batch, checkpoint: Vec<u8>) -> Result<Vec<(u64, u64)>, Problem> {
        let mut events = self.events(batch.records());
        if let Some(last) = events.last_mut() {
            last.finishes = true;
        }
        let cursors = self.append_events(events).await?;
        self.set_checkpoint(checkpoint, |head| head.phase = Phase::Ended);
        Ok(cursors)
    }

    /// Whether the last checkpoint must be stored before more events are appended: otherwise the channel might not
    /// retain all events since the stored one.
    pub(crate) fn must_put(&self) -> bool {
        let ((events, bytes), put) = (self.appended.get(), self.at_stored.get());
        let settings = &self.registry.settings.sessions;
        let far = events - put.0 >= settings.channel_events_max * 2 / 5
            || bytes - put.1 >= settings.channel_bytes_max * 2 / 5;
        far && self.at_checkpoint.get() != put
    }

    /// Stores the session with its last checkpoint. Must not be called concurrently.
    pub(crate) async fn put(&self) -> Result<(), Problem> {
        let at_checkpoint = self.at_checkpoint.get();
        self.registry.put_within(self.entry, &self.turn).await?;
        self.at_stored.set(at_checkpoint);
        Ok(())
    }

    fn set_checkpoint(&self, checkpoint: Vec<u8>, change: impl FnOnce(&mut Head)) {
        let Cursor { epoch, seq } = self.after.get();
        self.at_checkpoint.set(self.appended.get());
        self.registry.set_checkpoint(self.entry, checkpoint, |head| {
            head.after = (epoch, seq);
            head.kept_ms = now_ms();
            change(head);
        });
    }

    async fn append(&self, records: Vec<Record>) -> Result<Vec<(u64, u64)>, Problem> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        self.append_events(self.events(records)).await
    }

    fn events(&self, records: Vec<Record>) -> Vec<Event> {
        let event = |Record { name, data, coalesces }: Record| Event {
            name: name.to_owned(),
            data,
            coalesce: coalesces.then(|| name.to_owned()),
            finishes: name == EXPIRED,
        };
        records.into_iter().map(event).collect()
    }

    /// Appends events; returns their cursors.
    async fn append_events(&self, events: Vec<Event>) -> Result<Vec<(u64, u64)>, Problem> {
        let (count, bytes) = (events.len() as u64, events.iter().map(|event| event.data.len() as u64).sum::<u64>());
        // Until the next checkpoint, and permanently if the append fails, the channel may have events that the
        // checkpoint does not cover.
        self.entry.unclean();
        // Without a lease, another instance has taken the session over.
        let Some(fence) = self.entry.fence() else { return Err(store::problem(Failure::Fenced)) };
        let owner = self.entry.owner();
        let (user, size) = (owner.clone().unwrap_or_default(), usize::try_from(bytes).unwrap_or(usize::MAX));
        let append = events::append(self.entry.channel.to_string(), events, Some(fence), owner);
        let cursors = match self.turn.hand_over(&user, size, append).await {
            Ok(cursors) => cursors,
            Err(Failure::Finished) => return Err(finished()),
            Err(Failure::Fenced) => {
                self.entry.mark_lost();
                return Err(store::problem(Failure::Fenced));
            }
            Err(failure) => return Err(store::problem(failure)),
        };
        let (events, all) = self.appended.get();
        self.appended.set((events + count, all + bytes));
        if let Some(last) = cursors.last() {
            self.after.set(*last);
        }
        Ok(cursors.into_iter().map(|cursor| (cursor.epoch, cursor.seq)).collect())
    }
}

/// 409: the session has ended, so its channel has its last event.
pub(crate) fn finished() -> Problem {
    let detail = "the session has ended and accepts no more input";
    Problem::refused(409, "session_ended", "The session has ended", detail, None)
}

/// The time until the session expires, in milliseconds, if the record is `session_expiring`.
fn expiring(record: &Record) -> Option<u64> {
    let rest = record.data.strip_prefix(r#"{"type":"session_expiring","in_ms":"#)?;
    rest.trim_end_matches('}').parse().ok()
}
