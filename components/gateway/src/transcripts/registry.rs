//! The sessions of this instance. A session at rest is represented by its last checkpoint; a fed session is held by its
//! feeder.
//!
//! One request at a time has a [`SessionLease`]: a new request asks the holder to stop, and gets the lease when it is
//! released. So the newest feeder wins, and the events of two feeders are never interleaved in the channel.
//!
//! If instances share a store, the holder of a session also acquires it there ([`StoreLease`]) before it changes
//! anything, and reads it again if another instance has owned it in between. A session at rest has no owner.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use spin_sdk::wasip3::{
    wit_bindgen::{StreamReader, StreamWriter},
    wit_stream,
};
use weir_codec::{
    channels::route::{Channel, ChannelKind},
    http::problem::Problem,
    transcripts::stored::{self, Head, Phase},
};
use weir_core::{channels::Shares, wording::counted};

use super::persistence;
use crate::platform::{
    bindings::weir::stream::events::{Failure, Fence},
    clock::{self, Deadline},
    lease::{self, StoreLease},
    restoration::Restoration,
    settings::Settings,
    store,
    turns::SharedTurn,
};

/// The memory that is counted for an entry besides its checkpoint, in bytes.
const ENTRY_BYTES: usize = 400;
/// How long a request waits for another instance that is about to release the session, in milliseconds.
pub(crate) const PATIENCE_MS: u64 = 500;
/// The interval of its attempts, in milliseconds.
const POLL_MS: u64 = 25;

/// The sessions of this instance.
pub(crate) struct SessionRegistry {
    pub(crate) settings: &'static Settings,
    entries: RefCell<HashMap<Box<str>, Rc<Entry>>>,
    /// The number of sessions of each user.
    users: RefCell<Shares>,
    /// The number of sessions of each user that are being created.
    beginning: RefCell<Shares>,
    /// Bytes of checkpoints and entries in memory.
    bytes: Cell<usize>,
    /// Whether the sessions in the store have been counted.
    pub(crate) restoration: Restoration,
    /// True when the sweep task runs.
    pub(crate) swept: Cell<bool>,
    /// The number of uses of checkpoints so far.
    uses: Cell<u64>,
}

/// The entry of a session.
pub(crate) struct Entry {
    pub(crate) channel: Channel,
    state: RefCell<State>,
}

struct State {
    head: Head,
    /// The last checkpoint; none if only the store has it.
    checkpoint: Option<Box<[u8]>>,
    /// The number of the last use of the checkpoint: those used least recently are evicted first.
    used: u64,
    /// The store does not have the newest checkpoint.
    dirty: bool,
    /// The checkpoint covers all events of the channel.
    clean: bool,
    /// When the sweep advances the clock of the session, in milliseconds since 1970; 0 for never.
    due_ms: u64,
    /// The last request in the queue for the session.
    last: Option<Tail>,
    /// The number of leases so far.
    leases: u64,
    /// The last lease of this instance in the store. It can be renewed if no other instance has acquired the session
    /// since.
    store_lease: Option<Rc<StoreLease>>,
    deleted: bool,
}

/// The last request of a queue. Dropping `_stop` asks it to release the session; `released` ends when it has done so.
struct Tail {
    number: u64,
    _stop: StreamWriter<u8>,
    released: StreamReader<u8>,
}

/// A permit for a session that is starting, returned when it is dropped: a started session counts itself.
pub(crate) struct SessionReservation {
    registry: &'static SessionRegistry,
    owner: Option<String>,
}

impl Drop for SessionReservation {
    fn drop(&mut self) {
        self.registry.beginning.borrow_mut().remove(self.owner.as_deref(), 1);
    }
}

/// The exclusive right of a request to a session, within this instance.
pub(crate) struct SessionLease {
    pub(crate) entry: Rc<Entry>,
    number: u64,
    stop: RefCell<Option<StreamReader<u8>>>,
    released: RefCell<Option<StreamWriter<u8>>>,
}

impl SessionRegistry {
    /// The registry of this instance.
    pub(crate) fn current() -> Result<&'static Self, Problem> {
        thread_local! {
            static REGISTRY: OnceCell<&'static SessionRegistry> = const { OnceCell::new() };
        }
        let settings = Settings::current().map_err(Problem::internal)?;
        // One thread, and one value for the lifetime of the instance.
        Ok(REGISTRY.with(|registry| {
            *registry.get_or_init(|| {
                let (entries, bytes, swept) = (RefCell::default(), Cell::new(0), Cell::new(false));
                let [users, beginning] = [(); 2].map(|()| RefCell::new(Shares::new(usize::MAX, 100)));
                let restoration = Restoration::default();
                let uses = Cell::new(0);
                Box::leak(Box::new(Self { settings, entries, users, beginning, bytes, restoration, swept, uses }))
            })
        }))
    }

    /// The number of sessions in memory.
    pub(crate) fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Takes a permit for a session that is being created, for its owner if users are identified.
    pub(crate) fn reserve(&'static self, owner: Option<&str>) -> Result<SessionReservation, Problem> {
        let settings = &self.settings.sessions;
        let (users, mut beginning) = (self.users.borrow(), self.beginning.borrow_mut());
        let (max, own) = (settings.user_live_max, users.of(owner) + beginning.of(owner));
        if owner.is_some() && own as u64 >= max {
            let detail = format!(
                "you have {}, as many as one user may have; delete one, or wait until some have ended",
                counted(max, "session")
            );
            return Err(Problem::refused(429, "too_many_sessions", "You have too many sessions", detail, Some(1000)));
        }
        let (max, all) = (settings.live_max, users.total() + beginning.total());
        if all as u64 >= max {
            let detail = format!("sessions are limited to {max}, and no more are taken until some have ended");
            return Err(Problem::refused(503, "sessions_full", "There are too many sessions", detail, Some(1000)));
        }
        beginning.add(owner, 1);
        Ok(SessionReservation { registry: self, owner: owner.map(str::to_owned) })
    }

    /// The sessions in memory for which a condition holds.
    pub(crate) fn select(&self, condition: impl Fn(&Entry) -> bool) -> Vec<Rc<Entry>> {
        self.entries.borrow().values().filter(|entry| condition(entry)).cloned().collect()
    }

    /// The number of the next use of a checkpoint.
    fn next_use(&self) -> u64 {
        self.uses.replace(self.uses.get() + 1)
    }

    /// Adds a session, and returns its entry. If there is one of this id already, returns that one unchanged.
    pub(crate) fn insert(
        &self,
        channel: Channel,
        head: Head,
        checkpoint: Vec<u8>,
        dirty: bool,
        clean: bool,
    ) -> Rc<Entry> {
        let mut entries = self.entries.borrow_mut();
        if let Some(known) = entries.get(channel.id()) {
            return known.clone();
        }
        self.bytes.set(self.bytes.get() + ENTRY_BYTES + checkpoint.len());
        self.users.borrow_mut().add(head.owner.as_deref(), 1);
        let due_ms = head.due_ms();
        let checkpoint = Some(checkpoint.into_boxed_slice());
        let used = self.next_use();
        let state = State {
            head,
            checkpoint,
            used,
            dirty,
            clean,
            due_ms,
            last: None,
            leases: 0,
            store_lease: None,
            deleted: false,
        };
        let entry = Rc::new(Entry { channel: channel.clone(), state: RefCell::new(state) });
        entries.insert(channel.id().into(), entry.clone());
        entry
    }

    /// Whether the session of an id was deleted; none if this instance has no such session in memory.
    pub(crate) fn is_deleted(&self, id: &str) -> Option<bool> {
        self.entries.borrow().get(id).map(|entry| entry.is_deleted())
    }

    /// The session of an id, from memory or from the store.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<Rc<Entry>>, Problem> {
        let known = self.entries.borrow().get(id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Ok(channel) = Channel::new(ChannelKind::Session, id) else { return Ok(None) };
        let Some(bytes) = persistence::get(&channel).await? else { return Ok(None) };
        let (head, checkpoint) = stored::decode(&bytes).map_err(|error| Problem::internal(&error.to_string()))?;
        // The channel may have events after the checkpoint.
        let entry = self.insert(channel, head, checkpoint.to_vec(), false, false);
        self.evict();
        Ok(Some(entry))
    }

    /// Acquires a held session in the store, so that only this instance changes it. If another instance has owned it
    /// since, it is read again. None if it was deleted. Waits at most `patience_ms` for another instance to release it.
    pub(crate) async fn acquire(&self, entry: &Entry, patience_ms: u64) -> Result<Option<Rc<StoreLease>>, Problem> {
        if let Some(store_lease) = entry.store_lease() {
            match store_lease.renew().await {
                Ok(()) => return Ok(Some(store_lease)),
                Err(Failure::Fenced) => entry.mark_lost(),
                Err(failure) => return Err(store::problem(failure)),
            }
        }
        let end = Deadline::after(clock::now(), patience_ms);
        let store_lease = loop {
            match lease::acquire(entry.channel.to_string()).await.map_err(store::problem)? {
                Ok(store_lease) => break Rc::new(store_lease),
                Err(remaining_ms) if end.is_past(clock::now()) => return Err(store::owned_elsewhere(remaining_ms)),
                Err(_) => Deadline::after(clock::now(), POLL_MS).passed().await,
            }
        };
        match persistence::get(&entry.channel).await {
            Ok(Some(bytes)) => self.replace(entry, &bytes)?,
            Ok(None) => {
                store_lease.release().await;
                self.remove(entry);
                return Ok(None);
            }
            Err(problem) => {
                store_lease.release().await;
                return Err(problem);
            }
        }
        entry.state.borrow_mut().store_lease = Some(store_lease.clone());
        Ok(Some(store_lease))
    }

    /// Acquires a new session in the store.
    pub(crate) async fn acquire_new(&self, entry: &Entry) -> Result<(), Problem> {
        let acquired = lease::acquire(entry.channel.to_string()).await.map_err(store::problem)?;
        entry.state.borrow_mut().store_lease = Some(Rc::new(acquired.map_err(store::owned_elsewhere)?));
        Ok(())
    }

    /// Reads a session at rest again, since another instance may have changed it. False if it was deleted.
    pub(crate) async fn refresh(&self, entry: &Entry) -> Result<bool, Problem> {
        let version = || {
            let state = entry.state.borrow();
            (state.last.is_none() && !state.dirty && !state.deleted).then_some(state.leases)
        };
        let previous = version();
        if !self.settings.shared || previous.is_none() {
            return Ok(true);
        }
        let bytes = persistence::get(&entry.channel).await?;
        if version() != previous {
            // It was held here meanwhile, so the entry in memory is newer.
            return Ok(true);
        }
        match bytes {
            Some(bytes) => self.replace(entry, &bytes)?,
            None => self.remove(entry),
        }
        Ok(!entry.is_deleted())
    }

    /// Replaces a session by its stored state.
    fn replace(&self, entry: &Entry, bytes: &[u8]) -> Result<(), Problem> {
        let (head, checkpoint) = stored::decode(bytes).map_err(|error| Problem::internal(&error.to_string()))?;
        let mut state = entry.state.borrow_mut();
        let same = |known: &Head| (known.after, known.kept_ms, known.phase) == (head.after, head.kept_ms, head.phase);
        if same(&state.head) && state.checkpoint.is_some() && !state.dirty {
            return Ok(());
        }
        let previous = state.checkpoint.as_ref().map_or(0, |bytes| bytes.len());
        self.bytes.set((self.bytes.get() + checkpoint.len()).saturating_sub(previous));
        state.due_ms = head.due_ms();
        (state.head, state.checkpoint, state.used) = (head, Some(checkpoint.into()), self.next_use());
        // The channel may have events after the checkpoint.
        (state.dirty, state.clean) = (false, false);
        Ok(())
    }

    /// The checkpoint of a session, from memory or from the store.
    pub(crate) async fn checkpoint(&self, entry: &Entry) -> Result<Vec<u8>, Problem> {
        {
            let mut state = entry.state.borrow_mut();
            state.used = self.next_use();
            if let Some(bytes) = &state.checkpoint {
                return Ok(bytes.to_vec());
            }
        }
        let bytes = persistence::get(&entry.channel).await?;
        let lost = || Problem::internal("the stored state of the session is missing");
        let bytes = bytes.ok_or_else(lost)?;
        let (_, checkpoint) = stored::decode(&bytes).map_err(|error| Problem::internal(&error.to_string()))?;
        Ok(checkpoint.to_vec())
    }

    /// Sets the checkpoint of a session, which must cover all events of its channel, and changes its head.
    pub(crate) fn set_checkpoint(&self, entry: &Entry, checkpoint: Vec<u8>, change: impl FnOnce(&mut Head)) {
        let mut state = entry.state.borrow_mut();
        let previous = state.checkpoint.as_ref().map_or(0, |bytes| bytes.len());
        self.bytes.set((self.bytes.get() + checkpoint.len()).saturating_sub(previous));
        (state.checkpoint, state.used) = (Some(checkpoint.into_boxed_slice()), self.next_use());
        change(&mut state.head);
        state.due_ms = state.head.due_ms();
        (state.dirty, state.clean) = (true, true);
    }

    /// Stores the session if its checkpoint is newer than the stored one.
    pub(crate) async fn put(&self, entry: &Entry) -> Result<(), Problem> {
        self.put_within(entry, &SharedTurn::default()).await
    }

    /// Like [`put`](Self::put), in the turn of the request that feeds the session if it has one.
    pub(crate) async fn put_within(&self, entry: &Entry, turn: &SharedTurn) -> Result<(), Problem> {
        let (bytes, ttl_ms, fence, owner) = {
            let mut state = entry.state.borrow_mut();
            let Some(fence) = state.store_lease.as_ref().map(|store_lease| store_lease.fence()) else {
                // Another instance owns the session, and reads the later events from the channel.
                state.dirty = false;
                return Ok(());
            };
            let Some(checkpoint) = state.checkpoint.as_ref().filter(|_| state.dirty && !state.deleted) else {
                return Ok(());
            };
            let bytes = stored::encode(&state.head, checkpoint);
            let ttl_ms = (state.head.phase != Phase::Open).then_some(self.settings.sessions.ended_ttl_ms);
            state.dirty = false;
            (bytes, ttl_ms, fence, state.head.owner.as_deref().map(str::to_owned))
        };
        let (user, size) = (owner.clone().unwrap_or_default(), bytes.len());
        let put = persistence::put(&entry.channel, bytes, ttl_ms, fence, owner);
        match turn.hand_over(&user, size, put).await {
            Ok(()) => Ok(()),
            Err(Failure::Fenced) => {
                entry.mark_lost();
                Err(store::problem(Failure::Fenced))
            }
            Err(failure) => {
                entry.state.borrow_mut().dirty = true;
                Err(store::problem(failure))
            }
        }
    }

    /// Reverts a session to its stored state, when the store has no capacity for the new one: the later events of its
    /// channel restore the difference.
    pub(crate) async fn revert(&self, entry: &Entry) -> Result<(), Problem> {
        match persistence::get(&entry.channel).await? {
            Some(bytes) => {
                // The channel has all later events, so nothing is lost. `replace` skips only entries that are not
                // dirty.
                entry.state.borrow_mut().dirty = true;
                self.replace(entry, &bytes)
            }
            None => Ok(()),
        }
    }

    /// Deletes a session from the store and from memory.
    pub(crate) async fn delete(&self, entry: &Entry) -> Result<(), Problem> {
        let Some(fence) = entry.fence() else { return Err(store::problem(Failure::Fenced)) };
        entry.state.borrow_mut().deleted = true;
        match persistence::delete(&entry.channel, fence).await {
            Ok(()) => {}
            Err(Failure::Fenced) => {
                entry.state.borrow_mut().deleted = false;
                entry.mark_lost();
                return Err(store::problem(Failure::Fenced));
            }
            Err(failure) => return Err(store::problem(failure)),
        }
        self.remove(entry);
        Ok(())
    }

    /// Removes a session from memory that the store no longer has.
    pub(crate) fn remove(&self, entry: &Entry) {
        entry.state.borrow_mut().deleted = true;
        let mut entries = self.entries.borrow_mut();
        if entries.remove(entry.channel.id()).is_some() {
            self.users.borrow_mut().remove(entry.owner().as_deref(), 1);
            let bytes = entry.state.borrow().checkpoint.as_ref().map_or(0, |bytes| bytes.len());
            self.bytes.set(self.bytes.get().saturating_sub(bytes + ENTRY_BYTES));
        }
    }

    /// Evicts stored checkpoints from memory until they are within their bound, those used least recently first.
    pub(crate) fn evict(&self) {
        let bytes_max = usize::try_from(self.settings.sessions.memory_bytes_max).unwrap_or(usize::MAX);
        if self.bytes.get() <= bytes_max {
            return;
        }
        let target = bytes_max - bytes_max / 8;
        for entry in eviction_order(self.entries.borrow().values()) {
            if self.bytes.get() <= target {
                return;
            }
            if let Some(bytes) = entry.state.borrow_mut().checkpoint.take() {
                self.bytes.set(self.bytes.get().saturating_sub(bytes.len()));
            }
        }
    }
}

/// The sessions whose checkpoints can be evicted, the one used least recently first.
fn eviction_order<'a>(entries: impl Iterator<Item = &'a Rc<Entry>>) -> Vec<&'a Rc<Entry>> {
    let is_evictable = |entry: &&Rc<Entry>| {
        let state = entry.state.borrow();
        state.last.is_none() && !state.dirty && state.checkpoint.is_some()
    };
    let mut order: Vec<_> = entries.filter(is_evictable).collect();
    order.sort_by_cached_key(|entry| entry.state.borrow().used);
    order
}

/// Whether the store has no capacity for the session, in the share of its owner or in total.
pub(crate) fn is_no_room(problem: &Problem) -> bool {
    matches!(problem.code, "share_exceeded" | "store_full")
}

impl Entry {
    /// The head of its stored record.
    pub(crate) fn head(&self) -> Head {
        self.state.borrow().head.clone()
    }

    /// When its checkpoint was taken, in milliseconds since 1970.
    pub(crate) fn kept_ms(&self) -> u64 {
        self.state.borrow().head.kept_ms
    }

    /// The user that owns the session, if users are identified.
    pub(crate) fn owner(&self) -> Option<String> {
        self.state.borrow().head.owner.as_deref().map(str::to_owned)
    }

    /// The phase of the session.
    pub(crate) fn phase(&self) -> Phase {
        self.state.borrow().head.phase
    }

    /// The last lease of this instance in the store.
    pub(crate) fn store_lease(&self) -> Option<Rc<StoreLease>> {
        self.state.borrow().store_lease.clone()
    }

    /// The fence for writes of its state.
    pub(crate) fn fence(&self) -> Option<Fence> {
        self.state.borrow().store_lease.as_ref().map(|store_lease| store_lease.fence())
    }

    /// Marks it as taken over by another instance: the entry in memory is out of date.
    pub(crate) fn mark_lost(&self) {
        let mut state = self.state.borrow_mut();
        if let Some(store_lease) = state.store_lease.take() {
            store_lease.lose();
        }
        (state.dirty, state.clean) = (false, false);
    }

    /// Releases its lease in the store, if the store has its newest checkpoint.
    pub(crate) async fn release_store_lease(&self) {
        let store_lease = {
            let state = self.state.borrow();
            state.store_lease.clone().filter(|_| !state.dirty)
        };
        if let Some(store_lease) = store_lease {
            store_lease.release().await;
        }
    }

    /// Whether a request of this instance holds it.
    pub(crate) fn is_held(&self) -> bool {
        self.state.borrow().last.is_some()
    }

    /// Whether the store lacks the newest checkpoint.
    pub(crate) fn is_dirty(&self) -> bool {
        self.state.borrow().dirty
    }

    /// Whether the checkpoint covers all events of the channel.
    pub(crate) fn is_clean(&self) -> bool {
        self.state.borrow().clean
    }

    /// Whether it was deleted.
    pub(crate) fn is_deleted(&self) -> bool {
        self.state.borrow().deleted
    }

    /// Whether the sweep is to advance its clock.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        let state = self.state.borrow();
        state.due_ms > 0 && state.due_ms <= now_ms
    }

    /// Sets when the sweep advances its clock, in milliseconds since 1970; 0 for never.
    pub(crate) fn set_due(&self, due_ms: u64) {
        self.state.borrow_mut().due_ms = due_ms;
    }

    /// Marks that the channel may have events that the checkpoint does not cover.
    pub(crate) fn unclean(&self) {
        self.state.borrow_mut().clean = false;
    }

    /// Asks the current holder to release the session, and holds it once that is done.
    ///
    /// Must be awaited to its end: later requests wait for it.
    pub(crate) async fn lease(self: &Rc<Self>) -> SessionLease {
        let (stop, stop_requested) = wit_stream::new::<u8>();
        let (releases, released) = wit_stream::new::<u8>();
        let (number, previous) = {
            let mut state = self.state.borrow_mut();
            state.leases += 1;
            let number = state.leases;
            (number, state.last.replace(Tail { number, _stop: stop, released }))
        };
        let lease = SessionLease {
            entry: self.clone(),
            number,
            stop: RefCell::new(Some(stop_requested)),
            released: RefCell::new(Some(releases)),
        };
        if let Some(Tail { mut released, _stop, .. }) = previous {
            drop(_stop);
            // Nothing is ever written; the read resolves when the writer is dropped.
            released.read(Vec::with_capacity(1)).await;
        }
        lease
    }
}

impl SessionLease {
    /// Resolves when another request wants the session. Must not be called concurrently.
    pub(crate) async fn wanted(&self) {
        let stop_requested = self.stop.borrow_mut().take();
        if let Some(mut stop_requested) = stop_requested {
            stop_requested.read(Vec::with_capacity(1)).await;
        }
    }

    /// Releases the session to the next request in the queue.
    pub(crate) fn release(&self) {
        let last = {
            let mut state = self.entry.state.borrow_mut();
            let is_last = state.last.as_ref().is_some_and(|last| last.number == self.number);
            if is_last { state.last.take() } else { None }
        };
        drop(last);
        drop(self.released.take());
    }

    /// Whether another request wants the session.
    pub(crate) fn is_wanted(&self) -> bool {
        self.entry.state.borrow().leases != self.number
    }
}

impl Drop for SessionLease {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use weir_codec::transcripts::config::SessionRequest;

    use super::*;

    fn entry(id: &str, used: u64, dirty: bool, checkpoint: Option<&[u8]>) -> Rc<Entry> {
        let request = SessionRequest::from_query("").expect("the default settings");
        let state = State {
            head: Head::new(None, 0, &request),
            checkpoint: checkpoint.map(Into::into),
            used,
            dirty,
            clean: true,
            due_ms: 0,
            last: None,
            leases: 0,
            store_lease: None,
            deleted: false,
        };
        let channel = Channel::new(ChannelKind::Session, id).expect("a channel");
        Rc::new(Entry { channel, state: RefCell::new(state) })
    }

    #[test]
    fn checkpoint_used_least_recently_is_evicted_first() {
        let entries = [
            entry("c", 3, false, Some(b"x")),
            entry("unstored", 0, true, Some(b"x")),
            entry("a", 1, false, Some(b"x")),
            entry("evicted", 0, false, None),
            entry("b", 2, false, Some(b"x")),
        ];
        let order: Vec<&str> = eviction_order(entries.iter()).iter().map(|entry| entry.channel.id()).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }
}
