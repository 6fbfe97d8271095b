//! The channels in memory and their subscribers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

use weir_core::channels::{
    ChannelName, CloseReason, Cursor, Draft, Entry, Log, ShareExceeded, Shares, Subscriber, eviction_order,
};

use crate::clock::Clock;
use crate::config::{EventsConfig, StoreKind};
use crate::error::{Error, lock};

/// How long [`Hub::is_full`] reports a full hub after a channel was refused, in milliseconds.
const FULL_MS: u64 = 10_000;

/// A subscriber of a channel, with the waker of its reader.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) subscriber: Subscriber,
    pub(crate) waker: Option<Waker>,
}

/// The mutable state of a channel, under one lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) log: Log,
    /// The cursor of the next event that this process appends.
    pub(crate) next: Cursor,
    /// True when the channel's last event was assigned its cursor, even if it is not written yet.
    pub(crate) sealed: bool,
    /// The number of appends whose cursors are assigned and that are not written yet.
    pub(crate) pending: usize,
    /// True when the channel was removed from memory: a holder of this value looks it up in the hub again.
    pub(crate) is_removed: bool,
    /// Redis store: the cursor up to which the stream was read.
    pub(crate) source: Cursor,
    /// Redis store: true when the log differs from the stream in Redis.
    pub(crate) diverged: bool,
    /// The user whose share the channel counts towards: the one that appended its first event; until then, its first
    /// follower.
    pub(crate) user: Option<Arc<str>>,
    pub(crate) slots: Vec<Option<Slot>>,
    subscribers: usize,
}

/// A channel in memory.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) name: ChannelName,
    used: AtomicU64,
    state: Mutex<State>,
}

impl Channel {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Publishes written events to subscribers.
    pub(crate) fn publish(&self, entries: &[Arc<Entry>]) {
        let mut state = self.lock();
        state.pending -= 1;
        state.log_and_offer(entries);
        wake(state);
    }

    /// Discards events that were not written: their cursors stay unused.
    pub(crate) fn discard(&self, entries: &[Arc<Entry>]) {
        let mut state = self.lock();
        state.pending -= 1;
        if entries.iter().any(|entry| entry.finishes) {
            state.sealed = false;
        }
    }
}

impl State {
    pub(crate) fn new(log: Log) -> Self {
        let (next, sealed) = (log.last().next(), log.finished());
        let source = log.last();
        Self {
            log,
            next,
            sealed,
            pending: 0,
            is_removed: false,
            source,
            diverged: false,
            user: None,
            slots: Vec::new(),
            subscribers: 0,
        }
    }

    /// Assigns cursors to events.
    pub(crate) fn stamp(&mut self, drafts: Vec<Draft>, clock: &Clock) -> Result<Vec<Arc<Entry>>, Error> {
        if self.sealed {
            return Err(Error::Finished);
        }
        let (wall_ms, stored_ms) = (clock.wall_ms(), clock.now_ms());
        let stamp = |draft: Draft| {
            let cursor = self.next;
            self.next = cursor.next();
            self.sealed |= draft.finishes;
            Arc::new(draft.at(cursor, wall_ms).stored_at(stored_ms))
        };
        Ok(drafts.into_iter().map(stamp).collect())
    }

    pub(crate) fn log_and_offer(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            if self.log.push(Arc::clone(entry)) {
                for slot in self.slots.iter_mut().flatten() {
                    slot.subscriber.handle_appended(entry);
                }
            }
        }
    }

    /// True when the channel never had an event.
    pub(crate) fn is_new(&self) -> bool {
        self.log.last().seq == 0 && self.pending == 0
    }

    /// True when the channel has no subscribers and no pending appends.
    pub(crate) fn idle(&self) -> bool {
        self.subscribers == 0 && self.pending == 0
    }

    fn add_subscriber(&mut self, slot: Slot) -> usize {
        self.subscribers += 1;
        if self.subscribers <= self.slots.len()
            && let Some(free) = self.slots.iter().position(Option::is_none)
        {
            self.slots[free] = Some(slot);
            return free;
        }
        if self.slots.is_empty() {
            // Most channels have one subscriber.
            self.slots.reserve_exact(1);
        }
        self.slots.push(Some(slot));
        self.slots.len() - 1
    }

    fn remove_subscriber(&mut self, slot: usize) {
        if self.slots.get_mut(slot).and_then(Option::take).is_some() {
            self.subscribers -= 1;
        }
        while self.slots.last().is_some_and(Option::is_none) {
            self.slots.pop();
        }
        if self.slots.len() * 4 < self.slots.capacity() {
            self.slots.shrink_to_fit();
        }
    }
}

/// Wakes all waiting readers, outside of the lock.
pub(crate) fn wake(mut state: MutexGuard<'_, State>) {
    let wakers: Vec<Waker> = state.slots.iter_mut().flatten().filter_map(|slot| slot.waker.take()).collect();
    drop(state);
    wakers.into_iter().for_each(Waker::wake);
}

/// The counters of a hub since it was created.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) appended: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) coalesced: AtomicU64,
    pub(crate) gaps: AtomicU64,
    pub(crate) closed_slow: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) subscribers: AtomicUsize,
}

/// Channels by name.
type Channels = HashMap<ChannelName, Arc<Channel>>;

/// The channels in memory, under one lock.
#[derive(Debug)]
struct Residents {
    channels: Channels,
    /// The number of channels of each user; only the memory store counts them here.
    shares: Shares,
    /// Owner records of the memory store: they are evicted only by other owner records, and removed with their
    /// channels.
    records: Channels,
}

/// All channels in memory.
#[derive(Debug)]
pub(crate) struct Hub {
    residents: Mutex<Residents>,
    channels_max: usize,
    subscribers_max: usize,
    /// When a channel was last refused because all were in use, by the store clock; 0 for never.
    full_ms: AtomicU64,
    outbox_bytes_max: usize,
    store: StoreKind,
    tick: AtomicU64,
    pub(crate) counters: Counters,
}

impl Hub {
    /// A hub for at most `channels_max` channels. In the memory store one user may have `user_percent_max` percent of
    /// them.
    pub(crate) fn new(config: &EventsConfig, channels_max: usize) -> Self {
        let channels_max = channels_max.max(1);
        let shares = config.channel_shares(channels_max);
        Self {
            residents: Mutex::new(Residents { channels: Channels::new(), shares, records: Channels::new() }),
            channels_max,
            subscribers_max: config.subscribers_max,
            full_ms: AtomicU64::new(0),
            outbox_bytes_max: config.outbox_bytes_max,
            store: config.store,
            tick: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// The channel, if it is in memory; marks it as used.
    pub(crate) fn resident(&self, name: &ChannelName) -> Option<Arc<Channel>> {
        let mut residents = lock(&self.residents);
        let channel = self.map_of(&mut residents, name).get(name).map(Arc::clone)?;
        self.touch(&channel);
        // The lookup of an owner precedes a use of its channel.
        if let Some(owned) = name.owned().and_then(|owned| residents.channels.get(&owned)) {
            self.touch(owned);
        }
        Some(channel)
    }

    /// True when the channel has subscribers or pending appends.
    pub(crate) fn in_use(&self, name: &ChannelName) -> bool {
        let mut residents = lock(&self.residents);
        self.map_of(&mut residents, name).get(name).is_some_and(|channel| !channel.lock().idle())
    }

    /// The channel in memory, or a new one with the state of `make`, which counts towards the share of `user`.
    pub(crate) fn insert(
        &self,
        name: &ChannelName,
        user: Option<&str>,
        make: impl FnOnce() -> State,
    ) -> Result<Arc<Channel>, Error> {
        let mut residents = lock(&self.residents);
        let channels = self.map_of(&mut residents, name);
        if let Some(channel) = channels.get(name) {
            self.touch(channel);
            return Ok(Arc::clone(channel));
        }
        let full = channels.len() >= self.channels_max;
        let is_counted = self.store == StoreKind::Memory && !self.is_separate_record(name);
        if is_counted {
            self.make_room_of_user(&mut residents, user)?;
        }
        if full && self.map_of(&mut residents, name).len() >= self.channels_max {
            if self.is_separate_record(name) {
                self.make_room_for_record(&mut residents)?;
            } else {
                self.make_room(&mut residents)?;
            }
        }
        let mut state = make();
        if is_counted {
            state.user = residents.shares.add(user, 1);
        } else if state.user.is_none() {
            state.user = user.map(Arc::from);
        }
        let channel = Arc::new(Channel { name: name.clone(), used: AtomicU64::new(0), state: Mutex::new(state) });
        self.touch(&channel);
        self.map_of(&mut residents, name).insert(name.clone(), Arc::clone(&channel));
        Ok(channel)
    }

    /// [`Hub::insert`] for a user that is about to append: a channel without events counts towards the share of this
    /// user from now on.
    pub(crate) fn insert_to_append(
        &self,
        name: &ChannelName,
        user: Option<&str>,
        make: impl FnOnce() -> State,
    ) -> Result<Arc<Channel>, Error> {
        let channel = self.insert(name, user, make)?;
        let is_other = |state: &State| state.is_new() && state.user.as_deref() != user;
        if self.store == StoreKind::Memory && !self.is_separate_record(name) && is_other(&channel.lock()) {
            let mut residents = lock(&self.residents);
            self.make_room_of_user(&mut residents, user)?;
            let mut state = channel.lock();
            if !state.is_removed && is_other(&state) {
                residents.shares.remove(state.user.as_deref(), 1);
                state.user = residents.shares.add(user, 1);
            }
        }
        Ok(channel)
    }

    /// All channels in memory at this moment.
    pub(crate) fn all(&self) -> Vec<Arc<Channel>> {
        let residents = lock(&self.residents);
        residents.channels.values().chain(residents.records.values()).map(Arc::clone).collect()
    }

    /// The number of channels in memory.
    pub(crate) fn len(&self) -> usize {
        let residents = lock(&self.residents);
        residents.channels.len() + residents.records.len()
    }

    /// Removes a channel from memory if it has no subscribers and no pending appends, and `condition` holds. Returns
    /// false if it stays.
    pub(crate) fn forget(&self, name: &ChannelName, condition: impl FnOnce(&State) -> bool) -> bool {
        let mut residents = lock(&self.residents);
        match self.is_separate_record(name) {
            true => release(&mut residents.records, name, condition).is_ok(),
            false => residents.release(name, condition),
        }
    }

    /// Adds a subscriber that has seen everything up to `after` to a channel, and returns its slot. None when the channel is not in
    /// memory any more.
    pub(crate) fn add_subscriber(&self, channel: &Channel, after: Cursor) -> Result<Option<usize>, Error> {
        let mut state = channel.lock();
        if state.is_removed {
            return Ok(None);
        }
        if self.counters.subscribers.fetch_add(1, Ordering::Relaxed) >= self.subscribers_max {
            self.counters.subscribers.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::unavailable("too many subscribers", 1_000));
        }
        let subscriber = Subscriber::new(after, self.outbox_bytes_max, &state.log);
        Ok(Some(state.add_subscriber(Slot { subscriber, waker: None })))
    }

    pub(crate) fn remove_subscriber(&self, channel: &Channel, slot: usize) {
        self.counters.subscribers.fetch_sub(1, Ordering::Relaxed);
        let mut state = channel.lock();
        state.remove_subscriber(slot);
        // A mirror of a Redis stream, or a channel that never had an event.
        let mirror = self.store == StoreKind::Redis;
        let empty = |state: &State| state.log.last().seq == 0 || mirror && !state.diverged;
        let go = state.idle() && empty(&state);
        drop(state);
        if go {
            self.forget(&channel.name, empty);
        }
    }

    /// Closes all subscribers.
    pub(crate) fn close_all(&self) {
        for channel in self.all() {
            let mut state = channel.lock();
            state.slots.iter_mut().flatten().for_each(|slot| slot.subscriber.close(CloseReason::Lost));
            wake(state);
        }
    }

    /// Removes events that are too old, and finished channels without events.
    pub(crate) fn sweep(&self, now_ms: u64) {
        for channel in self.all() {
            let mut state = channel.lock();
            state.log.expire(now_ms);
            let over = |state: &State| state.log.finished() && state.log.is_empty();
            let go = state.idle() && over(&state);
            drop(state);
            if go {
                self.forget(&channel.name, over);
            }
        }
    }

    /// Removes owner records that are older than `age_ms_max` and whose channels have neither events nor subscribers. A
    /// younger one may belong to a channel whose first event is about to be appended.
    pub(crate) fn sweep_records(&self, now_ms: u64, age_ms_max: u64) {
        let mut residents = lock(&self.residents);
        let Residents { channels, records, .. } = &mut *residents;
        let old: Vec<ChannelName> = records.keys().filter(|name| !is_owning(channels, name)).cloned().collect();
        for name in old {
            let written_ms = |state: &State| state.log.first().map_or(0, |record| record.stored_ms);
            let _in_use = release(records, &name, |state| now_ms.saturating_sub(written_ms(state)) > age_ms_max);
        }
    }

    /// Records that no channel could be removed because all were in use.
    pub(crate) fn record_full(&self, now_ms: u64) {
        self.full_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// True when no channel could be removed recently because all were in use.
    pub(crate) fn is_full(&self, now_ms: u64) -> bool {
        let full_ms = self.full_ms.load(Ordering::Relaxed);
        full_ms > 0 && now_ms.saturating_sub(full_ms) < FULL_MS
    }

    /// True when the number of subscribers is at its maximum.
    pub(crate) fn has_all_subscribers(&self) -> bool {
        self.counters.subscribers.load(Ordering::Relaxed) >= self.subscribers_max
    }

    /// Removes some channels without subscribers from memory, of a store that has them on disk or in Redis. Returns
    /// false when there is none.
    pub(crate) fn shrink(&self) -> bool {
        self.make_room(&mut lock(&self.residents)).is_ok()
    }

    /// True for owner records of the memory store.
    fn is_separate_record(&self, name: &ChannelName) -> bool {
        self.store == StoreKind::Memory && name.is_owner_record()
    }

    /// The map that contains channels of this kind.
    fn map_of<'a>(&self, residents: &'a mut Residents, name: &ChannelName) -> &'a mut Channels {
        if self.is_separate_record(name) { &mut residents.records } else { &mut residents.channels }
    }

    fn touch(&self, channel: &Channel) {
        channel.used.store(self.tick.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Makes room for one more channel of a user whose number of channels is at the maximum: removes channels without
    /// subscribers.
    fn make_room_of_user(&self, residents: &mut Residents, user: Option<&str>) -> Result<(), Error> {
        let Err(ShareExceeded::User { used, max, .. }) = residents.shares.check(user, 1, 0) else { return Ok(()) };
        let at_once = (max / 64).max(1) + used.saturating_sub(max);
        match self.evict(residents, at_once, |other| other == user) {
            0 => Err(Error::channel_share(max)),
            _ => Ok(()),
        }
    }

    /// Removes some channels without subscribers, of the user that has the most: finished ones first, then the least
    /// recently used. It removes 1/64 of them at once, so that inspecting all channels is not needed for each new one.
    fn make_room(&self, residents: &mut Residents) -> Result<(), Error> {
        match self.evict(residents, self.at_once(), |_| true) {
            0 => Err(Error::channels_full()),
            _ => Ok(()),
        }
    }

    /// Removes channels without subscribers, at most `count_max`; returns how many.
    fn evict(&self, residents: &mut Residents, count_max: usize, matches: impl Fn(Option<&str>) -> bool) -> usize {
        let mut idle = Vec::new();
        for channel in residents.channels.values() {
            let state = channel.lock();
            if state.idle() && matches(state.user.as_deref()) {
                let rank = (!state.log.finished(), channel.used.load(Ordering::Relaxed));
                idle.push((state.user.clone(), rank, channel.name.clone()));
            }
        }
        let order = eviction_order(idle, |user| residents.shares.of(user));
        let mut removed = 0;
        for name in order.into_iter().take(count_max) {
            if residents.release(&name, |_| true) {
                removed += 1;
                if let Some(record) = name.owner_record() {
                    let _in_use = release(&mut residents.records, &record, |_| true);
                }
            }
        }
        if self.store == StoreKind::Memory {
            self.counters.evicted.fetch_add(removed as u64, Ordering::Relaxed);
        }
        removed
    }

    /// Removes the least recently used owner records whose channels do not exist. If every record has its channel, the
    /// number of channels is at its maximum, and some of them are removed with their records.
    fn make_room_for_record(&self, residents: &mut Residents) -> Result<(), Error> {
        let Residents { channels, records, .. } = &mut *residents;
        let orphans = records.values().filter(|record| !is_owning(channels, &record.name));
        let mut orphans: Vec<_> =
            orphans.map(|record| (record.used.load(Ordering::Relaxed), record.name.clone())).collect();
        orphans.sort_unstable();
        let before = records.len();
        for (_, name) in orphans.into_iter().take(self.at_once()) {
            let _in_use = release(records, &name, |_| true);
        }
        if records.len() == before { self.make_room(residents) } else { Ok(()) }
    }

    /// The number of channels that are removed at once.
    fn at_once(&self) -> usize {
        (self.channels_max / 64).max(1)
    }
}

/// True when the channel of an owner record has events or subscribers.
fn is_owning(channels: &Channels, record: &ChannelName) -> bool {
    let owned = record.owned().and_then(|owned| channels.get(&owned));
    owned.is_some_and(|channel| {
        let state = channel.lock();
        !state.idle() || !state.log.is_empty()
    })
}

impl Residents {
    /// Removes a channel that has no subscribers and no pending appends if `condition` holds, and subtracts it from the
    /// share of its user.
    /// Returns false if it stays.
    fn release(&mut self, name: &ChannelName, condition: impl FnOnce(&State) -> bool) -> bool {
        let Ok(removed) = release(&mut self.channels, name, condition) else { return false };
        if let Some(channel) = removed {
            self.shares.remove(channel.lock().user.as_deref(), 1);
        }
        true
    }
}

/// The channel stays: it has subscribers or pending appends, or the condition does not hold.
#[derive(Debug)]
struct InUse;

/// Removes a channel that has no subscribers and no pending appends if `condition` holds; returns it, if it existed.
fn release(
    channels: &mut Channels,
    name: &ChannelName,
    condition: impl FnOnce(&State) -> bool,
) -> Result<Option<Arc<Channel>>, InUse> {
    let Some(channel) = channels.get(name) else { return Ok(None) };
    let mut state = channel.lock();
    if !state.idle() || !condition(&state) {
        return Err(InUse);
    }
    state.is_removed = true;
    drop(state);
    Ok(channels.remove(name))
}
