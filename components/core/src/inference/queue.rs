//! The items that wait for one model, from all callers: fair between callers, earliest deadline first, bounded.
//!
//! - **Fair**: start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996) over calls, in
//!   tokens. A call's item starts where the call's last one ended, or now if that is later. Starts are compared in rounds
//!   of `quantum_tokens`, so that a call is served a batch's worth before the next has its turn. Now moves on with what
//!   is served, shared by those who wait (after WF2Q+: Bennett, Zhang, INFOCOM 1996), even where new calls keep coming in
//!   the same round: they cannot hold it still and starve one that is a round ahead.
//! - **Deadlines**: within a round, and within a call, the earliest due time is served first. An item without a deadline is due
//!   `age_ns_max` after its arrival, so that items with a deadline cannot starve it.
//! - **Expiry and cancellation**: an item past its deadline leaves by [`Queue::poll_expired`], the items of an abandoned call by
//!   [`Queue::cancel`]; neither is ever taken for a batch.
//! - **Bounded**: by items and tokens over all calls, and by items for each owner. What does not fit is refused, or makes
//!   room for itself as the [`DropPolicy`] says.
//! - **Windows**: by default whatever waits may be taken at once. With a [`Window`] it waits for its batch.
//!
//! Times are nanoseconds on one monotonic clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

pub use crate::inference::stream::{Aggregation, DropPolicy};

/// The bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// The most items waiting.
    pub items_max: usize,
    /// The most tokens waiting. An item with more than this is let in when nothing else waits.
    pub tokens_max: u64,
    /// The most items of one owner waiting.
    pub owner_items_max: usize,
    /// What a call is served before the next has its turn.
    pub quantum_tokens: u64,
    /// When an item without a deadline is due, counted from its arrival.
    pub age_ns_max: u64,
    /// Who goes when there is no room.
    pub drop_policy: DropPolicy,
    /// When what waits may be taken; none: at once.
    pub window: Option<Window>,
}

/// When a batch is closed by those who want it to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// What closes it.
    pub aggregation: Aggregation,
    /// The count that closes it.
    pub batch_size: usize,
    /// The time that closes it, from the arrival of its first item.
    pub window_ns: u64,
}

/// An item to be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The call it belongs to: fairness is between calls.
    pub call: u64,
    /// Whose call it is: the share of the queue is for each owner.
    pub owner: u64,
    /// How many tokens it is expected to cost.
    pub tokens: u64,
    /// When it is of no use any more.
    pub deadline_ns: Option<u64>,
}

/// Why an item was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushRefusal {
    /// The queue is full.
    Full,
    /// Its owner has its share of the queue already.
    Share,
}

/// What came of a push.
#[derive(Debug, PartialEq, Eq)]
pub enum PushOutcome<T> {
    /// It waits.
    Waits,
    /// It waits, and these went for it ([`DropPolicy::Head`]).
    Dropped(Vec<T>),
    /// It was not let in ([`DropPolicy::None`]), or is what goes ([`DropPolicy::Tail`]).
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
    /// Items in the order of their arrival, which is that of their due times too: `(sequence, slot)`. Empty slots stay until they come to
    /// the front.
    line: VecDeque<(u64, usize)>,
    /// Items that are due before one that came earlier.
    early: BTreeMap<(u64, u64), usize>,
    /// The due time of the last item in `line`.
    line_due_ns: u64,
    items: usize,
    /// The virtual time at which its next item starts.
    start: u64,
    /// The round in which it is ranked, and the sequence of the item that it is ranked by.
    ranked: Option<(u64, u64)>,
}

/// A map by numbers that this process assigned, or that are well distributed already: the finalizer of SplitMix64 is enough.
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

/// The number of ended calls from which past ones are removed.
const ENDED_MIN: usize = 64;

/// Virtual time is counted in these parts of a token, so that a share of one is not lost.
const PARTS: u64 = 1 << 16;

/// A call's rank: round, due time and sequence of its first item, and the call.
type Rank = Reverse<(u64, u64, u64, u64)>;

/// The queue. `T` is what the caller keeps of an item.
#[derive(Debug)]
pub struct Queue<T> {
    config: QueueConfig,
    slots: Vec<Option<Entry<T>>>,
    free: Vec<usize>,
    calls: NumberMap<CallQueue>,
    /// Where calls that have nothing waiting ended, if that is later than now.
    ended: NumberMap<u64>,
    /// The size at which those that are past are forgotten.
    ended_max: usize,
    owners: NumberMap<usize>,
    /// May hold ranks of the past; the call knows which one is true.
    order: BinaryHeap<Rank>,
    /// Deadlines with sequence and slot; may hold items that are gone.
    deadlines: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Sequence and slot in the order of arrival, where the oldest may have to go; may hold items that are gone.
    arrivals: VecDeque<(u64, usize)>,
    /// Now, in parts of a token: where a new call starts.
    virtual_time: u64,
    /// What now has come to by service alone.
    least: u64,
    sequence: u64,
    items: usize,
    tokens: u64,
    /// How many of those that wait may be taken: with a window those that were released.
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
            least: 0,
            sequence: 0,
            items: 0,
            tokens: 0,
            released: 0,
            opened_ns: None,
        }
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.items
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Tokens waiting.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Calls with something waiting.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Items of an owner waiting.
    pub fn owned(&self, owner: u64) -> usize {
        self.owners.get(&owner).copied().unwrap_or(0)
    }

    /// Checks that an item of this many tokens would be admitted.
    pub fn has_room(&self, owner: u64, tokens: u64) -> Result<(), PushRefusal> {
        if self.owned(owner) >= self.config.owner_items_max {
            return Err(PushRefusal::Share);
        }
        let full = self.items >= self.config.items_max
            || (self.items > 0 && self.tokens.saturating_add(tokens) > self.config.tokens_max);
        if full { Err(PushRefusal::Full) } else { Ok(()) }
    }

    /// How many tokens are served, about, until an item that comes now is done itself: what the calls are served in turns
    /// until its call has had enough of them, and if one turn is enough, no more than all that wait. A call that needs
    /// more turns shares them with calls that are still to come.
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

    /// Puts an item into the queue, or says that there is no room.
    pub fn push(&mut self, now_ns: u64, ticket: Ticket, value: T) -> PushOutcome<T> {
        let mut dropped = Vec::new();
        while let Err(refused) = self.has_room(ticket.owner, ticket.tokens) {
            let Some(slot) = self.oldest((refused == PushRefusal::Share).then_some(ticket.owner)) else {
                return PushOutcome::Refused(refused, value);
            };
            dropped.extend(self.remove(slot).map(|entry| entry.value));
        }
        self.insert(now_ns, ticket, value);
        if dropped.is_empty() { PushOutcome::Waits } else { PushOutcome::Dropped(dropped) }
    }

    /// Puts an item into the queue whatever the bounds say: for items whose room was found elsewhere.
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

    /// Takes up to `items_max` items of together at most `tokens_max` tokens (but one at least), in the order in which
    /// they should be served.
    pub fn take(&mut self, now_ns: u64, items_max: usize, tokens_max: u64) -> Vec<T> {
        self.release(now_ns);
        let mut taken = Vec::new();
        let mut tokens = 0u64;
        while taken.len() < items_max && self.takeable() > 0 {
            let Some((call, slot)) = self.first() else { break };
            let Some(entry) = &self.slots[slot] else { break };
            if entry.ticket.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
                // It leaves by `poll_expired`; the caller asks for that first.
                break;
            }
            let cost = entry.ticket.tokens;
            if !taken.is_empty() && tokens.saturating_add(cost) > tokens_max {
                break;
            }
            let served = cost.max(1) * PARTS;
            let waiting = self.calls.len() as u64;
            let round = self.round();
            if let Some(call) = self.calls.get_mut(&call) {
                // Half a share, so that it does not reach the next round before those who wait in this one are served.
                self.least = (self.least + served / (2 * waiting)).max(call.start - call.start % round);
                self.virtual_time = self.virtual_time.max(self.least).max(call.start);
                call.start += served;
            }
            tokens += cost;
            if self.config.window.is_some() {
                self.released -= 1;
            }
            taken.extend(self.remove(slot).map(|entry| entry.value));
        }
        taken
    }

    /// The next item whose deadline has passed, taken out.
    pub fn poll_expired(&mut self, now_ns: u64) -> Option<T> {
        while let Some(&Reverse((deadline_ns, sequence, slot))) = self.deadlines.peek() {
            let lives = self.lives(slot, sequence);
            if lives && deadline_ns > now_ns {
                return None;
            }
            self.deadlines.pop();
            if lives {
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
            if self.lives(slot, sequence) {
                cancelled.extend(self.remove(slot).map(|entry| entry.value));
            }
        }
        cancelled
    }

    /// Takes out everything.
    pub fn clear(&mut self) -> Vec<T> {
        let mut entries: Vec<Entry<T>> = self.slots.iter_mut().filter_map(Option::take).collect();
        entries.sort_by_key(|entry| entry.sequence);
        let config = self.config;
        *self =
            Self { sequence: self.sequence, virtual_time: self.virtual_time, least: self.least, ..Self::new(config) };
        entries.into_iter().map(|entry| entry.value).collect()
    }

    /// Lets everything that waits be taken now, whatever its window says. Returns how many items that releases.
    pub fn flush(&mut self) -> usize {
        let count = self.items - self.takeable();
        self.released = self.items;
        self.opened_ns = None;
        count
    }

    /// How many items may be taken now. [`Queue::take`] updates it first.
    pub fn takeable(&self) -> usize {
        if self.config.window.is_some() { self.released.min(self.items) } else { self.items }
    }

    /// When to come back: the next deadline or end of a window. May be early, never late.
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

    fn lives(&self, slot: usize, sequence: u64) -> bool {
        self.slots.get(slot).and_then(Option::as_ref).is_some_and(|entry| entry.sequence == sequence)
    }

    /// Takes an item out of its slot and of every count.
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
            call.early.remove(&(entry.due_ns, entry.sequence));
            if call.items == 0 {
                let end = call.start;
                self.calls.remove(&entry.ticket.call);
                self.end(entry.ticket.call, end);
            } else if call.ranked.is_some_and(|(_, sequence)| sequence == entry.sequence) {
                self.rank(entry.ticket.call);
            }
        }
        // What is gone may stay in the heaps only while it does not outnumber what lives.
        if self.deadlines.len() > 2 * self.items + 64 {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines.retain(|&Reverse((_, sequence, slot))| self.lives(slot, sequence));
            self.deadlines = deadlines;
        }
        if self.arrivals.len() > 2 * self.items + 64 {
            let mut arrivals = std::mem::take(&mut self.arrivals);
            arrivals.retain(|&(sequence, slot)| self.lives(slot, sequence));
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

    /// Remembers where a call ended, so that it does not gain by having nothing waiting for a moment.
    fn end(&mut self, call: u64, end: u64) {
        if self.calls.is_empty() {
            // Nobody is left to whom it could owe anything.
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

    /// The slot of a call's first item; removes empty slots at the front of its line.
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

    /// The call whose turn it is and the slot of its first item.
    fn first(&mut self) -> Option<(u64, usize)> {
        while let Some(&Reverse((round, _, sequence, id))) = self.order.peek() {
            if self.calls.get(&id).is_some_and(|call| call.ranked == Some((round, sequence))) {
                return self.first_of(id).map(|slot| (id, slot));
            }
            self.order.pop();
        }
        None
    }

    /// The slot of the oldest item, of an owner or of all; maintained with [`DropPolicy::Head`] only.
    fn oldest(&mut self, owner: Option<u64>) -> Option<usize> {
        while let Some(&(sequence, slot)) = self.arrivals.front() {
            if self.lives(slot, sequence) {
                break;
            }
            self.arrivals.pop_front();
        }
        let is_his = |slot: usize| {
            let entry = self.slots[slot].as_ref();
            owner.is_none_or(|owner| entry.is_some_and(|entry| entry.ticket.owner == owner))
        };
        let mut living = self.arrivals.iter().filter(|&&(sequence, slot)| self.lives(slot, sequence));
        living.find(|&&(_, slot)| is_his(slot)).map(|&(_, slot)| slot)
    }
}

/// The recent rate of a model's answers, for `Retry-After`.
#[derive(Debug, Clone, Default)]
pub struct Rate {
    tokens: f64,
    busy_ns: f64,
}

/// The rate of a model that has not answered yet, in tokens per second.
const FIRST_TOKENS_PER_SECOND: f64 = 5_000.0;
/// The work over which older answers are forgotten: short, since a processor that is shared changes its pace.
const RATE_MEMORY_NS: f64 = 1e9;

impl Rate {
    /// Records that a number of tokens was computed in a time.
    pub fn served(&mut self, tokens: u64, busy_ns: u64) {
        let keep = (-(busy_ns as f64) / RATE_MEMORY_NS).exp();
        self.tokens = self.tokens * keep + tokens as f64;
        self.busy_ns = self.busy_ns * keep + busy_ns as f64;
    }

    /// Tokens per second of one replica's work.
    pub fn tokens_per_second(&self) -> f64 {
        // The first guess weighs as much as a hundredth of a second.
        const GUESS_NS: f64 = 1e7;
        (self.tokens + FIRST_TOKENS_PER_SECOND * GUESS_NS / 1e9) / ((self.busy_ns + GUESS_NS) / 1e9)
    }

    /// The expected time until this many waiting tokens are computed by the replicas, in milliseconds: from 1 to 60,000.
    pub fn wait_ms(&self, tokens: u64, replicas: usize) -> u32 {
        let ms = tokens as f64 / (self.tokens_per_second() * replicas.max(1) as f64) * 1e3;
        ms.ceil().clamp(1.0, 60_000.0) as u32
    }
}

#[cfg(test)]
mod tests;
