//! The sessions of this instance: a session at rest is its last checkpoint; one that is fed is held by its feeder.
//!
//! One request at a time has a [`SessionLease`]: a newcomer asks the holder to stop, and gets the lease when it was released.
//! So the newest feeder wins, and nothing of two is ever in the channel side by side.
//!
//! Where instances share a store, the holder of a session also owns it there ([`StoreLease`]) before it changes anything, and reads it
//! again if another instance has owned it in between. A session at rest has no owner.

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
use weir_core::channels::Shares;

use super::persistence;
use crate::platform::{
    bindings::weir::stream::events::{Failure, Fence},
    clock::{self, Deadline},
    lease::{self, StoreLease},
    restoration::Restoration,
    settings::Settings,
    store, turns,
};

/// What is counted for an entry besides its checkpoint, in bytes.
const ENTRY_BYTES: usize = 400;
/// How long a request waits for another instance that has just answered one and releases the session, in milliseconds.
pub(crate) const PATIENCE_MS: u64 = 500;
/// How often it looks, in milliseconds.
const LOOK_MS: u64 = 25;

/// The sessions of this instance.
pub(crate) struct SessionRegistry {
    pub(crate) settings: &'static Settings,
    entries: RefCell<HashMap<Box<str>, Rc<Entry>>>,
    /// How many sessions each user has, and how many more that begin.
    users: RefCell<Shares>,
    beginning: RefCell<Shares>,
    /// Of checkpoints and entries in memory.
    bytes: Cell<usize>,
    /// Of the sessions of the store.
    pub(crate) restoration: Restoration,
    /// True when the sweep task runs.
    pub(crate) swept: Cell<bool>,
}

/// A session.
pub(crate) struct Entry {
    pub(crate) channel: Channel,
    state: RefCell<State>,
}

struct State {
    head: Head,
    /// None where it is in the store alone.
    checkpoint: Option<Box<[u8]>>,
    /// The store has not got the newest checkpoint.
    dirty: bool,
    /// The channel has nothing that the checkpoint has not.
    clean: bool,
    /// When the session is to be looked at, in milliseconds since 1970; 0 for never.
    due_ms: u64,
    /// The last request in the queue for it.
    last: Option<Tail>,
    leases: u64,
    /// What this instance owned the session by last: where no other instance has owned it since, it can be renewed.
    owned: Option<Rc<StoreLease>>,
    deleted: bool,
}

/// The last request of a queue: dropping `stop` makes it release the session, and `released` ends when it has.
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

/// The session is held.
pub(crate) struct SessionLease {
    pub(crate) entry: Rc<Entry>,
    number: u64,
    stop: RefCell<Option<StreamReader<u8>>>,
    released: RefCell<Option<StreamWriter<u8>>>,
}

impl SessionRegistry {
    /// The one of this instance.
    pub(crate) fn current() -> Result<&'static Self, Problem> {
        thread_local! {
            static KEEPING: OnceCell<&'static SessionRegistry> = const { OnceCell::new() };
        }
        let settings = Settings::current().map_err(Problem::internal)?;
        // There is one thread and one of these for as long as the instance lives.
        Ok(KEEPING.with(|registry| {
            *registry.get_or_init(|| {
                let (entries, bytes, swept) = (RefCell::default(), Cell::new(0), Cell::new(false));
                let [users, beginning] = [(); 2].map(|()| RefCell::new(Shares::new(usize::MAX, 100)));
                let restoration = Restoration::default();
                Box::leak(Box::new(Self { settings, entries, users, beginning, bytes, restoration, swept }))
            })
        }))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Takes a permit for a session that is starting, of its owner where users are identified.
    pub(crate) fn reserve(&'static self, owner: Option<&str>) -> Result<SessionReservation, Problem> {
        let settings = &self.settings.sessions;
        let (users, mut beginning) = (self.users.borrow(), self.beginning.borrow_mut());
        let (max, own) = (settings.user_live_max, users.of(owner) + beginning.of(owner));
        if owner.is_some() && own as u64 >= max {
            let detail = format!(
                "you have {max} sessions, as many as one user may have; delete one, or wait until some have ended"
            );
            return Err(Problem::refused(429, "too_many_sessions", "You have too many sessions", detail, Some(1000)));
        }
        let (max, all) = (settings.live_max, users.total() + beginning.total());
        if all as u64 >= max {
            let detail = format!("there are {max} sessions, and no more are taken until some have ended");
            return Err(Problem::refused(503, "sessions_full", "There are too many sessions", detail, Some(1000)));
        }
        beginning.add(owner, 1);
        Ok(SessionReservation { registry: self, owner: owner.map(str::to_owned) })
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Rc<Entry>> {
        self.entries.borrow().values().cloned().collect()
    }

    /// Takes a session in; the one that is there, where there is one.
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
        let state =
            State { head, checkpoint, dirty, clean, due_ms, last: None, leases: 0, owned: None, deleted: false };
        let entry = Rc::new(Entry { channel: channel.clone(), state: RefCell::new(state) });
        entries.insert(channel.id().into(), entry.clone());
        entry
    }

    /// Whether the session of an id was deleted; none where this instance has no such session in memory.
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
        // What came after the checkpoint may be in the channel.
        let entry = self.insert(channel, head, checkpoint.to_vec(), false, false);
        self.evict();
        Ok(Some(entry))
    }

    /// Owns a session that is held, so that this instance alone changes it. Where another has owned it since, it is read again. None
    /// where it is gone. Another instance that is about to release it is waited for, `patience_ms` at most.
    pub(crate) async fn own(&self, entry: &Entry, patience_ms: u64) -> Result<Option<Rc<StoreLease>>, Problem> {
        if let Some(owned) = entry.owned() {
            match owned.renew().await {
                Ok(()) => return Ok(Some(owned)),
                Err(Failure::Fenced) => entry.disown(),
                Err(failure) => return Err(store::problem(failure)),
            }
        }
        let end = Deadline::after(clock::now(), patience_ms);
        let owned = loop {
            match lease::acquire(entry.channel.to_string()).await.map_err(store::problem)? {
                Ok(owned) => break Rc::new(owned),
                Err(remaining_ms) if end.is_past(clock::now()) => return Err(store::owned_elsewhere(remaining_ms)),
                Err(_) => Deadline::after(clock::now(), LOOK_MS).passed().await,
            }
        };
        match persistence::get(&entry.channel).await {
            Ok(Some(bytes)) => self.replace(entry, &bytes)?,
            Ok(None) => {
                owned.release().await;
                self.remove(entry);
                return Ok(None);
            }
            Err(problem) => {
                owned.release().await;
                return Err(problem);
            }
        }
        entry.state.borrow_mut().owned = Some(owned.clone());
        Ok(Some(owned))
    }

    /// Owns a session that begins.
    pub(crate) async fn own_new(&self, entry: &Entry) -> Result<(), Problem> {
        let acquired = lease::acquire(entry.channel.to_string()).await.map_err(store::problem)?;
        entry.state.borrow_mut().owned = Some(Rc::new(acquired.map_err(store::owned_elsewhere)?));
        Ok(())
    }

    /// Reads a session at rest again, which another instance may have changed. False where it is gone.
    pub(crate) async fn refresh(&self, entry: &Entry) -> Result<bool, Problem> {
        let version = || {
            let state = entry.state.borrow();
            (state.last.is_none() && !state.dirty && !state.deleted).then_some(state.leases)
        };
        let before = version();
        if !self.settings.shared || before.is_none() {
            return Ok(true);
        }
        let bytes = persistence::get(&entry.channel).await?;
        if version() != before {
            // It was held here in between, so memory is newer.
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
        let before = state.checkpoint.as_ref().map_or(0, |bytes| bytes.len());
        self.bytes.set((self.bytes.get() + checkpoint.len()).saturating_sub(before));
        state.due_ms = head.due_ms();
        (state.head, state.checkpoint) = (head, Some(checkpoint.into()));
        // What came after the checkpoint may be in the channel.
        (state.dirty, state.clean) = (false, false);
        Ok(())
    }

    /// The checkpoint of a session, from memory or from the store.
    pub(crate) async fn checkpoint(&self, entry: &Entry) -> Result<Vec<u8>, Problem> {
        if let Some(bytes) = &entry.state.borrow().checkpoint {
            return Ok(bytes.to_vec());
        }
        let bytes = persistence::get(&entry.channel).await?;
        let lost = || Problem::internal("what was kept of the session is gone");
        let bytes = bytes.ok_or_else(lost)?;
        let (_, checkpoint) = stored::decode(&bytes).map_err(|error| Problem::internal(&error.to_string()))?;
        Ok(checkpoint.to_vec())
    }

    /// A session is as this checkpoint says, and the channel has nothing that it has not.
    pub(crate) fn keep(&self, entry: &Entry, checkpoint: Vec<u8>, change: impl FnOnce(&mut Head)) {
        let mut state = entry.state.borrow_mut();
        let before = state.checkpoint.as_ref().map_or(0, |bytes| bytes.len());
        self.bytes.set((self.bytes.get() + checkpoint.len()).saturating_sub(before));
        state.checkpoint = Some(checkpoint.into_boxed_slice());
        change(&mut state.head);
        state.due_ms = state.head.due_ms();
        (state.dirty, state.clean) = (true, true);
    }

    /// Stores the session in its present state. False when the store refused it.
    pub(crate) async fn put(&self, entry: &Entry) -> Result<(), Problem> {
        let (bytes, ttl_ms, fence, owner) = {
            let mut state = entry.state.borrow_mut();
            let Some(fence) = state.owned.as_ref().map(|owned| owned.fence()) else {
                // Another instance owns it, and has the events that were appended to the channel.
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
        match turns::hand_over(&user, size, put).await {
            Ok(()) => Ok(()),
            Err(Failure::Fenced) => {
                entry.disown();
                Err(store::problem(Failure::Fenced))
            }
            Err(failure) => {
                entry.state.borrow_mut().dirty = true;
                Err(store::problem(failure))
            }
        }
    }

    /// Reverts a session to its stored state, where the store has no capacity: the later events of its channel restore the rest.
    pub(crate) async fn revert(&self, entry: &Entry) -> Result<(), Problem> {
        match persistence::get(&entry.channel).await? {
            Some(bytes) => {
                // What is in memory has nothing that the channel has not.
                entry.state.borrow_mut().dirty = true;
                self.replace(entry, &bytes)
            }
            None => Ok(()),
        }
    }

    /// Forgets a session.
    pub(crate) async fn forget(&self, entry: &Entry) -> Result<(), Problem> {
        let Some(fence) = entry.fence() else { return Err(store::problem(Failure::Fenced)) };
        entry.state.borrow_mut().deleted = true;
        match persistence::delete(&entry.channel, fence).await {
            Ok(()) => {}
            Err(Failure::Fenced) => {
                entry.state.borrow_mut().deleted = false;
                entry.disown();
                return Err(store::problem(Failure::Fenced));
            }
            Err(failure) => return Err(store::problem(failure)),
        }
        self.remove(entry);
        Ok(())
    }

    /// Takes a session that the store does not have any more out of memory.
    pub(crate) fn remove(&self, entry: &Entry) {
        entry.state.borrow_mut().deleted = true;
        let mut entries = self.entries.borrow_mut();
        if entries.remove(entry.channel.id()).is_some() {
            self.users.borrow_mut().remove(entry.owner().as_deref(), 1);
            let bytes = entry.state.borrow().checkpoint.as_ref().map_or(0, |bytes| bytes.len());
            self.bytes.set(self.bytes.get().saturating_sub(bytes + ENTRY_BYTES));
        }
    }

    /// Evicts stored checkpoints from memory until they are within their bound.
    pub(crate) fn evict(&self) {
        let bytes_max = self.settings.sessions.memory_bytes_max as usize;
        if self.bytes.get() <= bytes_max {
            return;
        }
        for entry in self.entries.borrow().values() {
            let mut state = entry.state.borrow_mut();
            if state.last.is_none()
                && !state.dirty
                && let Some(bytes) = state.checkpoint.take()
            {
                self.bytes.set(self.bytes.get().saturating_sub(bytes.len()));
            }
            if self.bytes.get() <= bytes_max - bytes_max / 8 {
                return;
            }
        }
    }
}

/// The store has no room for the session: in its owner's share, or at all.
pub(crate) fn is_no_room(problem: &Problem) -> bool {
    matches!(problem.code, "share_exceeded" | "store_full")
}

impl Entry {
    /// The head of its stored record.
    pub(crate) fn head(&self) -> Head {
        self.state.borrow().head.clone()
    }

    /// The user to whom it belongs.
    pub(crate) fn owner(&self) -> Option<String> {
        self.state.borrow().head.owner.as_deref().map(str::to_owned)
    }

    /// How far it is.
    pub(crate) fn phase(&self) -> Phase {
        self.state.borrow().head.phase
    }

    /// What this instance owned it by last.
    pub(crate) fn owned(&self) -> Option<Rc<StoreLease>> {
        self.state.borrow().owned.clone()
    }

    /// What writes of it carry.
    pub(crate) fn fence(&self) -> Option<Fence> {
        self.state.borrow().owned.as_ref().map(|owned| owned.fence())
    }

    /// Marks it as owned by another instance since: memory is out of date.
    pub(crate) fn disown(&self) {
        let mut state = self.state.borrow_mut();
        if let Some(owned) = state.owned.take() {
            owned.lose();
        }
        (state.dirty, state.clean) = (false, false);
    }

    /// Lets other instances have it, where the store has all of it and no request here waits for it.
    pub(crate) async fn release_owned(&self) {
        let owned = {
            let state = self.state.borrow();
            state.owned.clone().filter(|_| !state.dirty)
        };
        if let Some(owned) = owned {
            owned.release().await;
        }
    }

    /// A request holds it.
    pub(crate) fn is_held(&self) -> bool {
        self.state.borrow().last.is_some()
    }

    /// The store has not got the newest checkpoint.
    pub(crate) fn is_dirty(&self) -> bool {
        self.state.borrow().dirty
    }

    /// The channel has nothing that the checkpoint has not.
    pub(crate) fn is_clean(&self) -> bool {
        self.state.borrow().clean
    }

    /// It was deleted.
    pub(crate) fn is_deleted(&self) -> bool {
        self.state.borrow().deleted
    }

    /// It is to be looked at.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        let state = self.state.borrow();
        state.due_ms > 0 && state.due_ms <= now_ms
    }

    /// When it is to be looked at next; 0 for never.
    pub(crate) fn set_due(&self, due_ms: u64) {
        self.state.borrow_mut().due_ms = due_ms;
    }

    /// The channel may have more than the checkpoint.
    pub(crate) fn unclean(&self) {
        self.state.borrow_mut().clean = false;
    }

    /// Holds it once the request before has released it, which is asked to.
    ///
    /// Must be awaited to its end: later requests wait for it.
    pub(crate) async fn lease(self: &Rc<Self>) -> SessionLease {
        let (stop, told) = wit_stream::new::<u8>();
        let (releases, released) = wit_stream::new::<u8>();
        let (number, before) = {
            let mut state = self.state.borrow_mut();
            state.leases += 1;
            let number = state.leases;
            (number, state.last.replace(Tail { number, _stop: stop, released }))
        };
        let lease = SessionLease {
            entry: self.clone(),
            number,
            stop: RefCell::new(Some(told)),
            released: RefCell::new(Some(releases)),
        };
        if let Some(Tail { mut released, _stop, .. }) = before {
            drop(_stop);
            // It is never written to: this resolves when it is dropped.
            released.read(Vec::with_capacity(1)).await;
        }
        lease
    }
}

impl SessionLease {
    /// Resolves when another wants the session. To be asked once at a time.
    pub(crate) async fn wanted(&self) {
        let told = self.stop.borrow_mut().take();
        if let Some(mut told) = told {
            told.read(Vec::with_capacity(1)).await;
        }
    }

    /// Releases it to the request that waits for it.
    pub(crate) fn release(&self) {
        let last = {
            let mut state = self.entry.state.borrow_mut();
            let is_last = state.last.as_ref().is_some_and(|last| last.number == self.number);
            if is_last { state.last.take() } else { None }
        };
        drop(last);
        drop(self.released.take());
    }

    /// Another wants the session.
    pub(crate) fn is_wanted(&self) -> bool {
        self.entry.state.borrow().leases != self.number
    }
}

impl Drop for SessionLease {
    fn drop(&mut self) {
        self.release();
    }
}
