//! The items that wait for one model, from all callers: fair between callers, earliest deadline first, bounded.
//!
//! - **Fair**: start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996) over calls, in
//!   tokens. A call's item starts at the end of the call's last one, or at the current virtual time if that is later.
//!   Starts are compared in rounds of `quantum_tokens`, so a call is served a batch's worth before the next has its
//!   turn. Virtual time also advances with the served tokens, divided by the waiting calls (after WF2Q+: Bennett,
//!   Zhang, INFOCOM 1996): new calls in the same round cannot stop it and starve a call that is a round ahead.
//! - **Deadlines**: within a round, and within a call, the earliest due time is served first. An item without a
//!   deadline is due `age_ns_max` after its arrival, so that items with a deadline cannot starve it.
//! - **Expiry and cancellation**: an item past its deadline leaves by [`Queue::poll_expired`], the items of an
//!   abandoned call by [`Queue::cancel`]; neither is in a batch.
//! - **Bounded**: by items and tokens over all calls, and by items for each owner. An item that does not fit is
//!   refused, or others are dropped for it, by the [`DropPolicy`].
//! - **Windows**: by default waiting items can be taken at once. With a [`Window`] they wait until it ends.
//!
//! Times are nanoseconds on one monotonic clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

pub use crate::inference::stream::{Aggregation, DropPolicy};

/// The bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Most waiting items.
    pub items_max: usize,
    /// Most waiting tokens. A larger item is accepted if no other waits.
    pub tokens_max: u64,
    /// Most waiting items of one owner.
    pub owner_items_max: usize,
    /// Tokens that a call is served before the next has its turn.
    pub quantum_tokens: u64,
    /// The time from arrival until an item without a deadline is due, in nanoseconds.
    pub age_ns_max: u64,
    /// The item that is dropped if there is no room.
    pub drop_policy: DropPolicy,
    /// When waiting items can be taken; `None`: at once.
    pub window: Option<Window>,
}

/// When waiting items are released as a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// What ends the window.
    pub aggregation: Aggregation,
    /// The number of items that ends the window.
    pub batch_size: usize,
    /// The time from the arrival of its first item that ends the window, in nanoseconds.
    pub window_ns: u64,
}

/// The properties of an item that queueing depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The call of the item: fairness is between calls.
    pub call: u64,
    /// The owner of the call: the share of the queue is for each owner.
    pub owner: u64,
    /// The expected number of tokens.
    pub tokens: u64,
    /// The deadline, after which the item expires.
    pub deadline_ns: Option<u64>,
}

/// Why an item was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushRefusal {
    /// The queue is full.
    Full,
    /// Its owner has reached its share of the queue.
    Share,
}

/// The result of a push.
#[derive(Debug, PartialEq, Eq)]
pub enum PushOutcome<T> {
    /// The item is queued.
    Waits,
    /// The item is queued, and these items were dropped for it ([`DropPolicy::Head`]).
    Dropped(Vec<T>),
    /// The item was refused ([`DropPolicy::None`]) or dropped ([`DropPolicy::Tail`]).
    Refused(PushRefusal, T),
}

#[derive(Debug)]
struct Entry<T> {
    sequence: u64,
    ticket: Ticket,
    due_ns: u64,
    value: T,
}

/// The waiting items of one call.
#[derive(Debug, Default)]
struct CallQueue {
    /// Items in the order of arrival, which is also that of their due times: `(sequence, slot)`. Removed items stay
    /// until they reach the front.
    line: VecDeque<(u64, usize)>,
    /// Items that are due before an earlier one.
    early: BTreeMap<(u64, u64), usize>,
    /// The due time of the last item in `line`.
    line_due_ns: u64,
    items: usize,
    tokens: u64,
    /// The virtual time at which its next item starts.
    start: u64,
    /// Its current rank: the round, and the sequence of its first item.
    ranked: Option<(u64, u64)>,
}

/// A map by numbers that this process assigns, or that are well distributed: the finalizer of SplitMix64 is a
/// sufficient hash.
type NumberMap<V> = HashMap<u64, V, BuildHasherDefault<SplitMixHasher>>;

#[derive(Debug, Default)]
struct SplitMixHasher(u64);

impl Hasher for SplitMixHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(self.0 ^ u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = mixed ^ (mixed >> 31);
    }
}

/// The number of ended calls from which those in the past are removed.
const ENDED_MIN: usize = 64;

/// The parts of a token in which virtual time is counted, so fractions of a token are not lost.
const PARTS: u64 = 1 << 16;

/// A call's rank: round, due time and sequence of its first item, and the call.
type Rank = Reverse<(u64, u64, u64, u64)>;

/// The queue of one model. `T` is the caller's data for an item.
#[derive(Debug)]
pub struct Queue<T> {
    config: QueueConfig,
    slots: Vec<Option<Entry<T>>>,
    free: Vec<usize>,
    calls: NumberMap<CallQueue>,
    /// The virtual times at which calls without waiting items ended, if later than the current one.
    ended: NumberMap<u64>,
    /// The size of `ended` at which those in the past are removed.
    ended_max: usize,
    owners: NumberMap<usize>,
    /// The ranks of calls. It may contain stale ranks; the current one is stored in the call.
    order: BinaryHeap<Rank>,
    /// Deadlines with sequence and slot; it may contain removed items.
    deadlines: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Sequence and slot in the order of arrival, with [`DropPolicy::Head`] only; it may contain removed items.
    arrivals: VecDeque<(u64, usize)>,
    /// The virtual time, in parts of a token: the start of a new call.
    virtual_time: u64,
    /// The lower bound of virtual time by service.
    service_time: u64,
    sequence: u64,
    items: usize,
    tokens: u64,
    /// With a window, the number of waiting items that were released.
    released: usize,
    /// The arrival of the oldest item that is not released.
    opened_ns: Option<u64>,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(config: QueueConfig) -> Self {
        Self {
            config,
            slots: Vec::new(),
            free: Vec::new(),
            calls: NumberMap::default(),
            ended: NumberMap::default(),
            ended_max: ENDED_MIN,
            owners: NumberMap::default(),
            order: BinaryHeap::new(),
            deadlines: BinaryHeap::new(),
            arrivals: VecDeque::new(),
            virtual_time: 0,
            service_time: 0,
            sequence: 0,
            items: 0,
            tokens: 0,
            released: 0,
            opened_ns: None,
        }
    }

    /// The number of waiting items.
    pub fn len(&self) -> usize {
        self.items
    }

    /// True when no item waits.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// The number of waiting tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The number of calls with waiting items.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// The number of waiting items of an owner.
    pub fn owned(&self, owner: u64) -> usize {
        self.owners.get(&owner).copied().unwrap_or(0)
    }

    /// Checks that there is room for an item of this many tokens.
    ///
    /// # Errors
    ///
    /// The queue is full, or the owner has reached its share.
    pub fn has_room(&self, owner: u64, tokens: u64) -> Result<(), PushRefusal> {
        if self.owned(owner) >= self.config.owner_items_max {
            return Err(PushRefusal::Share);
        }
        let full = self.items >= self.config.items_max
            || (self.items > 0 && self.tokens.saturating_add(tokens) > self.config.tokens_max);
        if full { Err(PushRefusal::Full) } else { Ok(()) }
    }

    /// Whether the waiting items of this call are at least half of those that take the room: of the queue, or of the
    /// share of its owner.
    pub fn is_filled_by(&self, call: u64, owner: u64, bound: PushRefusal) -> bool {
        let Some(waiting) = self.calls.get(&call) else { return false };
        match bound {
            PushRefusal::Share => 2 * waiting.items >= self.owned(owner),
            PushRefusal::Full => 2 * waiting.items >= self.items || waiting.tokens >= self.tokens.div_ceil(2),
        }
    }

    /// Whether half of the queue has room for an item of this many tokens, or no item of its call waits and the queue
    /// has room.
    pub fn has_half_room(&self, call: u64, owner: u64, tokens: u64) -> bool {
        let is_small =
            self.items < self.config.items_max / 2 && self.tokens.saturating_add(tokens) <= self.config.tokens_max / 2;
        (is_small || !self.calls.contains_key(&call)) && self.has_room(owner, tokens).is_ok()
    }

    /// An estimate of the tokens that are served until an item that arrives now is done: the turns of all calls until
    /// its call has had enough of them, or all waiting tokens if one turn is enough and they are fewer. With more
    /// turns, later calls can be served first.
    pub fn until_served(&self, call: u64, tokens: u64) -> u64 {
        let mean = self.tokens / self.items.max(1) as u64;
        let (mine, calls) = match self.calls.get(&call) {
            Some(call) => (call.items as u64 * mean, self.calls.len()),
            None => (0, self.calls.len() + 1),
        };
        let own = mine.saturating_add(tokens);
        let turns = (calls as u64).saturating_mul(own.saturating_add(self.config.quantum_tokens));
        if own <= self.config.quantum_tokens { self.tokens.saturating_add(tokens).min(turns) } else { turns }
    }

    /// Adds an item within the bounds of the queue.
    pub fn push(&mut self, now_ns: u64, ticket: Ticket, value: T) -> PushOutcome<T> {
        let mut dropped = Vec::new();
        while let Err(refusal) = self.has_room(ticket.owner, ticket.tokens) {
            let Some(slot) = self.oldest((refusal == PushRefusal::Share).then_some(ticket.owner)) else {
                return PushOutcome::Refused(refusal, value);
            };
            dropped.extend(self.remove(slot).map(|entry| entry.value));
        }
        self.insert(now_ns, ticket, value);
        if dropped.is_empty() { PushOutcome::Waits } else { PushOutcome::Dropped(dropped) }
    }

    /// Adds an item without a check of the bounds, for items that were admitted before.
    pub fn insert(&mut self, now_ns: u64, ticket: Ticket, value: T) {
        let sequence = self.sequence;
        self.sequence += 1;
        let due_ns = ticket.deadline_ns.unwrap_or(u64::MAX).min(now_ns.saturating_add(self.config.age_ns_max));
        let entry = Entry { sequence, ticket, due_ns, value };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[slot] = Some(entry);
        self.items += 1;
        self.tokens += ticket.tokens;
        *self.owners.entry(ticket.owner).or_default() += 1;
        if self.config.drop_policy == DropPolicy::Head {
            self.arrivals.push_back((sequence, slot));
        }
        if let Some(deadline_ns) = ticket.deadline_ns {
            self.deadlines.push(Reverse((deadline_ns, sequence, slot)));
        }

        let (virtual_time, ended) = (self.virtual_time, &mut self.ended);
        let call = self.calls.entry(ticket.call).or_insert_with(|| {
            let end = if ended.is_empty() { None } else { ended.remove(&ticket.call) };
            CallQueue { start: end.unwrap_or(0).max(virtual_time), ..CallQueue::default() }
        });
        call.items += 1;
        call.tokens += ticket.tokens;
        let is_first = if call.line.is_empty() || due_ns >= call.line_due_ns {
            call.line.push_back((sequence, slot));
            call.line_due_ns = due_ns;
            call.line.len() == 1
        } else {
            call.early.insert((due_ns, sequence), slot);
            call.early.first_key_value().is_some_and(|(first, _)| *first == (due_ns, sequence))
        };
        if is_first {
            self.rank(ticket.call);
        }
        self.opened_ns.get_or_insert(now_ns);
        self.release_by_count();
    }

    /// Removes up to `items_max` items of at most `tokens_max` tokens together (but at least one item), in the order of
    /// service.
    pub fn take(&mut self, now_ns: u64, items_max: usize, tokens_max: u64) -> Vec<T> {
        self.release(now_ns);
        let mut taken = Vec::new();
        let mut tokens = 0u64;
        while taken.len() < items_max && self.takeable() > 0 {
            let Some((call, slot)) = self.first() else { break };
            let Some(entry) = &self.slots[slot] else { break };
            if entry.ticket.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
                // The caller must remove it by `poll_expired` first.
                break;
            }
            let cost = entry.ticket.tokens;
            if !taken.is_empty() && tokens.saturating_add(cost) > tokens_max {
                break;
            }
            let service = cost.max(1) * PARTS;
            let waiting = self.calls.len() as u64;
            let round = self.round();
            if let Some(call) = self.calls.get_mut(&call) {
                // Half a share, so virtual time does not reach the next round before the calls of this one are served.
                self.service_time = (self.service_time + service / (2 * waiting)).max(call.start - call.start % round);
                self.virtual_time = self.virtual_time.max(self.service_time).max(call.start);
                call.start += service;
            }
            tokens += cost;
            if self.config.window.is_some() {
                self.released -= 1;
            }
            taken.extend(self.remove(slot).map(|entry| entry.value));
        }
        taken
    }

    /// Removes the next item whose deadline has passed.
    pub fn poll_expired(&mut self, now_ns: u64) -> Option<T> {
        while let Some(&Reverse((deadline_ns, sequence, slot))) = self.deadlines.peek() {
            let is_queued = self.is_queued(slot, sequence);
            if is_queued && deadline_ns > now_ns {
                return None;
            }
            self.deadlines.pop();
            if is_queued {
                return self.remove(slot).map(|entry| entry.value);
            }
        }
        None
    }

    /// Removes the waiting items of an abandoned call.
    pub fn cancel(&mut self, call: u64) -> Vec<T> {
        let Some(waiting) = self.calls.remove(&call) else { return Vec::new() };
        let slots: Vec<(u64, usize)> = waiting
            .line
            .into_iter()
            .chain(waiting.early.into_iter().map(|((_, sequence), slot)| (sequence, slot)))
            .collect();
        let mut cancelled = Vec::with_capacity(waiting.items);
        for (sequence, slot) in slots {
            if self.is_queued(slot, sequence) {
                cancelled.extend(self.remove(slot).map(|entry| entry.value));
            }
        }
        cancelled
    }

    /// Removes all items, in the order of arrival.
    pub fn clear(&mut self) -> Vec<T> {
        let mut entries: Vec<Entry<T>> = self.slots.iter_mut().filter_map(Option::take).collect();
        entries.sort_by_key(|entry| entry.sequence);
        let config = self.config;
        *self = Self {
            sequence: self.sequence,
            virtual_time: self.virtual_time,
            service_time: self.service_time,
            ..Self::new(config)
        };
        entries.into_iter().map(|entry| entry.value).collect()
    }

    /// Releases all waiting items before the end of their window. Returns the number of released items.
    pub fn flush(&mut self) -> usize {
        let count = self.items - self.takeable();
        self.released = self.items;
        self.opened_ns = None;
        count
    }

    /// The number of items that can be taken now. [`Queue::take`] updates it first.
    pub fn takeable(&self) -> usize {
        if self.config.window.is_some() { self.released.min(self.items) } else { self.items }
    }

    /// The next deadline or end of a window. It can be early, but not late.
    pub fn poll_timeout(&self) -> Option<u64> {
        let deadline = self.deadlines.peek().map(|Reverse((deadline_ns, ..))| *deadline_ns);
        let window = self.config.window.filter(|window| window.aggregation != Aggregation::CountOnly);
        let window = window.and_then(|window| Some(self.opened_ns?.saturating_add(window.window_ns)));
        match (deadline, window.filter(|_| self.takeable() < self.items)) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn release_by_count(&mut self) {
        let Some(window) = self.config.window else { return };
        if window.aggregation != Aggregation::TimeOnly && self.items - self.takeable() >= window.batch_size.max(1) {
            self.flush();
        }
    }

    /// Releases the items of windows that have ended.
    pub fn release(&mut self, now_ns: u64) {
        let Some(window) = self.config.window else { return };
        let ended = self.opened_ns.is_some_and(|opened_ns| opened_ns.saturating_add(window.window_ns) <= now_ns);
        if window.aggregation != Aggregation::CountOnly && ended {
            self.flush();
        }
    }

    fn is_queued(&self, slot: usize, sequence: u64) -> bool {
        self.slots.get(slot).and_then(Option::as_ref).is_some_and(|entry| entry.sequence == sequence)
    }

    /// Removes an item from its slot and from all counts.
    fn remove(&mut self, slot: usize) -> Option<Entry<T>> {
        let entry = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        self.items -= 1;
        self.tokens -= entry.ticket.tokens;
        if self.config.window.is_some() {
            self.released = self.released.min(self.items);
            if self.released == self.items {
                self.opened_ns = None;
            }
        }
        if let Some(owned) = self.owners.get_mut(&entry.ticket.owner) {
            *owned -= 1;
            if *owned == 0 {
                self.owners.remove(&entry.ticket.owner);
            }
        }
        if let Some(call) = self.calls.get_mut(&entry.ticket.call) {
            call.items -= 1;
            call.tokens -= entry.ticket.tokens;
            call.early.remove(&(entry.due_ns, entry.sequence));
            if call.items == 0 {
                let end = call.start;
                self.calls.remove(&entry.ticket.call);
                self.end(entry.ticket.call, end);
            } else if call.ranked.is_some_and(|(_, sequence)| sequence == entry.sequence) {
                self.rank(entry.ticket.call);
            }
        }
        // Removed items stay in these collections until they outnumber the queued ones.
        if self.deadlines.len() > 2 * self.items + 64 {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines.retain(|&Reverse((_, sequence, slot))| self.is_queued(slot, sequence));
            self.deadlines = deadlines;
        }
        if self.arrivals.len() > 2 * self.items + 64 {
            let mut arrivals = std::mem::take(&mut self.arrivals);
            arrivals.retain(|&(sequence, slot)| self.is_queued(slot, sequence));
            self.arrivals = arrivals;
        }
        if self.order.len() > 2 * self.calls.len() + 64 {
            let calls = &self.calls;
            self.order.retain(|&Reverse((round, _, sequence, call))| {
                calls.get(&call).is_some_and(|call| call.ranked == Some((round, sequence)))
            });
        }
        Some(entry)
    }

    /// Stores the virtual end of a call, so a call gains no priority by being empty for a moment.
    fn end(&mut self, call: u64, end: u64) {
        if self.calls.is_empty() {
            // No other call waits, so virtual ends have no effect.
            self.ended.clear();
            self.ended_max = ENDED_MIN;
        } else if end > self.virtual_time {
            self.ended.insert(call, end);
            if self.ended.len() > self.ended_max {
                let now = self.virtual_time;
                self.ended.retain(|_, end| *end > now);
                self.ended_max = ENDED_MIN.max(2 * self.ended.len());
            }
        }
    }

    /// The slot of a call's first item. Drops removed items at the front of its line.
    fn first_of(&mut self, id: u64) -> Option<usize> {
        let call = self.calls.get_mut(&id)?;
        while let Some(&(sequence, slot)) = call.line.front() {
            if self.slots[slot].as_ref().is_some_and(|entry| entry.sequence == sequence) {
                break;
            }
            call.line.pop_front();
        }
        let line = call.line.front().map(|&(_, slot)| slot);
        let early = call.early.first_key_value().map(|(_, &slot)| slot);
        match (line, early) {
            (Some(line), Some(early)) => {
                let key = |slot: usize| self.slots[slot].as_ref().map(|entry| (entry.due_ns, entry.sequence));
                Some(if key(early) < key(line) { early } else { line })
            }
            (line, early) => line.or(early),
        }
    }

    /// The length of a round, in parts of a token.
    fn round(&self) -> u64 {
        self.config.quantum_tokens.max(1) * PARTS
    }

    /// Ranks a call by its first item.
    fn rank(&mut self, id: u64) {
        let Some(slot) = self.first_of(id) else { return };
        let Some((due_ns, sequence)) = self.slots[slot].as_ref().map(|entry| (entry.due_ns, entry.sequence)) else {
            return;
        };
        let round = self.round();
        let Some(call) = self.calls.get_mut(&id) else { return };
        let round = call.start / round;
        call.ranked = Some((round, sequence));
        self.order.push(Reverse((round, due_ns, sequence, id)));
    }

    /// The call with the next turn, and the slot of its first item.
    fn first(&mut self) -> Option<(u64, usize)> {
        while let Some(&Reverse((round, _, sequence, id))) = self.order.peek() {
            if self.calls.get(&id).is_some_and(|call| call.ranked == Some((round, sequence))) {
                return self.first_of(id).map(|slot| (id, slot));
            }
            self.order.pop();
        }
        None
    }

    /// The slot of the oldest item of an owner, or of all owners; with [`DropPolicy::Head`] only.
    fn oldest(&mut self, owner: Option<u64>) -> Option<usize> {
        while let Some(&(sequence, slot)) = self.arrivals.front() {
            if self.is_queued(slot, sequence) {
                break;
            }
            self.arrivals.pop_front();
        }
        let is_of_owner = |slot: usize| {
            let entry = self.slots[slot].as_ref();
            owner.is_none_or(|owner| entry.is_some_and(|entry| entry.ticket.owner == owner))
        };
        let mut queued = self.arrivals.iter().filter(|&&(sequence, slot)| self.is_queued(slot, sequence));
        queued.find(|&&(_, slot)| is_of_owner(slot)).map(|&(_, slot)| slot)
    }
}

/// The recent throughput of a model, for `Retry-After`.
#[derive(Debug, Clone, Default)]
pub struct Rate {
    tokens: f64,
    busy_ns: f64,
}

/// The throughput before the first measurement, in tokens per second.
const INITIAL_TOKENS_PER_SECOND: f64 = 5_000.0;
/// The time constant of the average: short, since the speed of a shared processor varies.
const RATE_MEMORY_NS: f64 = 1e9;

impl Rate {
    /// Records that `tokens` tokens were computed in `busy_ns`.
    pub fn served(&mut self, tokens: u64, busy_ns: u64) {
        let decay = (-(busy_ns as f64) / RATE_MEMORY_NS).exp();
        self.tokens = self.tokens * decay + tokens as f64;
        self.busy_ns = self.busy_ns * decay + busy_ns as f64;
    }

    /// Tokens per second of one busy replica.
    pub fn tokens_per_second(&self) -> f64 {
        // The initial value has the weight of a hundredth of a second.
        const INITIAL_NS: f64 = 1e7;
        (self.tokens + INITIAL_TOKENS_PER_SECOND * INITIAL_NS / 1e9) / ((self.busy_ns + INITIAL_NS) / 1e9)
    }

    /// The expected time until this many waiting tokens are computed by the replicas, in milliseconds: from 1 to
    /// 60,000.
    pub fn wait_ms(&self, tokens: u64, replicas: usize) -> u32 {
        let ms = tokens as f64 / (self.tokens_per_second() * replicas.max(1) as f64) * 1e3;
        ms.ceil().clamp(1.0, 60_000.0) as u32
    }
}

#[cfg(test)]
mod tests;
