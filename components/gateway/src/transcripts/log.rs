//! What a session says, on its way into its channel and its checkpoint: first the events, then the session as it is after them.

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
        store, turns,
    },
    transcripts::enrich,
};

/// The event that an expired session ends with.
const EXPIRED: &str = "session_expired";

/// Stores the events of one session, for the request that holds it.
pub(crate) struct SessionLog<'a> {
    pub(crate) registry: &'static SessionRegistry,
    pub(crate) entry: &'a Entry,
    after: Cell<Cursor>,
    /// What was appended.
    appended: Cell<Amount>,
    /// The amounts of events at the last checkpoint and at the stored one: the channel must retain the events since then.
    kept: Cell<Amount>,
    put: Cell<Amount>,
}

/// Events, and bytes of events.
type Amount = (u64, u64);

impl<'a> SessionLog<'a> {
    /// Continues after a cursor of the channel.
    pub(crate) fn new(registry: &'static SessionRegistry, entry: &'a Entry, after: Cursor) -> Self {
        let zero = || Cell::new((0, 0));
        Self { registry, entry, after: Cell::new(after), appended: zero(), kept: zero(), put: zero() }
    }

    /// Enriches a batch, stores it, and sets its checkpoint. Returns the cursors of its records.
    pub(crate) async fn tell(&self, outbox: &EventOutbox, batch: &mut Batch) -> Result<Vec<(u64, u64)>, Problem> {
        let questions = outbox.queries(batch);
        if !questions.is_empty() {
            let answers = enrich::answer(questions, self.registry.settings).await;
            outbox.handle_query_results(batch, answers.into_iter());
        }
        let records = batch.records();
        let expired = records.iter().any(|record| record.name == EXPIRED);
        let warned = records.iter().rev().find_map(expiring);
        let places = self.append(records).await?;
        if let Some(checkpoint) = batch.checkpoint.take() {
            self.keep(checkpoint, |head| {
                head.warned_ms = warned;
                if expired {
                    head.phase = Phase::Expired;
                }
            });
        }
        Ok(places)
    }

    /// Ends the session: its channel is finished. All outputs must have been stored.
    pub(crate) async fn end(&self, batch: &Batch, checkpoint: Vec<u8>) -> Result<Vec<(u64, u64)>, Problem> {
        let mut events = self.events(batch.records());
        if let Some(last) = events.last_mut() {
            last.finishes = true;
        }
        let places = self.place(events).await?;
        self.keep(checkpoint, |head| head.phase = Phase::Ended);
        Ok(places)
    }

    /// The store must have the newest checkpoint before more is appended: the channel would not reach back to the one that it has.
    pub(crate) fn must_put(&self) -> bool {
        let ((events, bytes), put) = (self.appended.get(), self.put.get());
        let settings = &self.registry.settings.sessions;
        let far = events - put.0 >= settings.channel_events_max * 2 / 5
            || bytes - put.1 >= settings.channel_bytes_max * 2 / 5;
        far && self.kept.get() != put
    }

    /// Stores the session with its last checkpoint. Not concurrently.
    pub(crate) async fn put(&self) -> Result<(), Problem> {
        let kept = self.kept.get();
        self.registry.put(self.entry).await?;
        self.put.set(kept);
        Ok(())
    }

    fn keep(&self, checkpoint: Vec<u8>, change: impl FnOnce(&mut Head)) {
        let Cursor { epoch, seq } = self.after.get();
        self.kept.set(self.appended.get());
        self.registry.keep(self.entry, checkpoint, |head| {
            head.after = (epoch, seq);
            head.kept_ms = now_ms();
            change(head);
        });
    }

    async fn append(&self, records: Vec<Record>) -> Result<Vec<(u64, u64)>, Problem> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        self.place(self.events(records)).await
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
    async fn place(&self, events: Vec<Event>) -> Result<Vec<(u64, u64)>, Problem> {
        let (count, bytes) = (events.len() as u64, events.iter().map(|event| event.data.len() as u64).sum::<u64>());
        // Until the checkpoint says so, and for ever if it fails, the channel may have more than the checkpoint.
        self.entry.unclean();
        // Without a lease, another instance has taken the session over.
        let Some(fence) = self.entry.fence() else { return Err(store::problem(Failure::Fenced)) };
        let owner = self.entry.owner();
        let (user, size) = (owner.clone().unwrap_or_default(), usize::try_from(bytes).unwrap_or(usize::MAX));
        let append = events::append(self.entry.channel.to_string(), events, Some(fence), owner);
        let places = match turns::hand_over(&user, size, append).await {
            Ok(places) => places,
            Err(Failure::Finished) => return Err(finished()),
            Err(Failure::Fenced) => {
                self.entry.disown();
                return Err(store::problem(Failure::Fenced));
            }
            Err(failure) => return Err(store::problem(failure)),
        };
        let (events, all) = self.appended.get();
        self.appended.set((events + count, all + bytes));
        if let Some(last) = places.last() {
            self.after.set(*last);
        }
        Ok(places.into_iter().map(|place| (place.epoch, place.seq)).collect())
    }
}

/// The channel has its last event.
pub(crate) fn finished() -> Problem {
    let detail = "the session has ended, and takes no more";
    Problem::refused(409, "session_ended", "The session has ended", detail, None)
}

/// What a warning says: in how many milliseconds.
fn expiring(record: &Record) -> Option<u64> {
    let rest = record.data.strip_prefix(r#"{"type":"session_expiring","in_ms":"#)?;
    rest.trim_end_matches('}').parse().ok()
}
