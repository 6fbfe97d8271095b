//! Turns on one thread, fair by user: the order in which waiting tasks run, each for one bounded slice.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) over the durations of slices: a user's next slice starts, on a
//! virtual clock, at the end of its last one or now, whichever is later, and the earliest start is next. A task of one
//! user therefore waits for at most the running slice and one slice of each other user, regardless of their number of
//! tasks.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// The waiting tickets, and the running one. [`Turns::request`] returns a ticket.
#[derive(Debug, Default)]
pub struct Turns {
    users: HashMap<Arc<str>, User>,
    /// The start of the next slice of each waiting user on the virtual clock, and its ticket as a tie breaker.
    next: BTreeSet<(u64, u64, Arc<str>)>,
    /// The ticket that has the turn, and its user.
    running: Option<(u64, Arc<str>)>,
    /// The virtual clock: the start of the current or last slice.
    clock_ns: u64,
    last_ticket: u64,
}

#[derive(Debug, Default)]
struct User {
    /// When its last slice ended, on the virtual clock.
    end_ns: u64,
    waiting: VecDeque<u64>,
}

impl Turns {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a turn, and returns its ticket.
    pub fn request(&mut self, user: &str) -> u64 {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let user: Arc<str> = match self.users.get_key_value(user) {
            Some((user, _)) => Arc::clone(user),
            None => user.into(),
        };
        let entry = self.users.entry(Arc::clone(&user)).or_default();
        entry.waiting.push_back(ticket);
        // A running user is queued again when the duration of its slice is known.
        let is_running = self.running.as_ref().is_some_and(|(_, running)| *running == user);
        if entry.waiting.len() == 1 && !is_running {
            self.next.insert((entry.end_ns.max(self.clock_ns), ticket, user));
        }
        ticket
    }

    /// Gives the turn to the next ticket, unless one has it; returns the ticket.
    pub fn poll(&mut self) -> Option<u64> {
        if self.running.is_some() {
            return None;
        }
        let (start_ns, ticket, user) = self.next.pop_first()?;
        self.clock_ns = start_ns;
        if let Some(entry) = self.users.get_mut(&user) {
            entry.waiting.pop_front();
            // The duration of the slice is not known yet; the next slice of this user waits for it.
            entry.end_ns = start_ns;
        }
        self.running = Some((ticket, user));
        Some(ticket)
    }

    /// Ends a ticket: its slice is over after `duration_ns`, or it no longer waits.
    pub fn finish(&mut self, ticket: u64, duration_ns: u64) {
        match self.running.take_if(|(running, _)| *running == ticket) {
            Some((_, user)) => {
                let Some(entry) = self.users.get_mut(&user) else { return };
                entry.end_ns = self.clock_ns.saturating_add(duration_ns);
                match entry.waiting.front() {
                    Some(first) => {
                        self.next.insert((entry.end_ns, *first, user));
                    }
                    None => self.remove_idle(),
                }
            }
            None => self.cancel(ticket),
        }
    }

    /// The number of waiting tickets.
    pub fn len(&self) -> usize {
        self.users.values().map(|user| user.waiting.len()).sum()
    }

    /// True when no ticket waits or has the turn.
    pub fn is_empty(&self) -> bool {
        self.running.is_none() && self.next.is_empty()
    }

    fn cancel(&mut self, ticket: u64) {
        let removed = self.users.iter_mut().find_map(|(user, entry)| {
            let at = entry.waiting.iter().position(|other| *other == ticket)?;
            entry.waiting.remove(at);
            Some((Arc::clone(user), at, entry.waiting.front().copied()))
        });
        // If it was the first ticket of its user and that user is not running, the next one replaces it.
        let Some((user, 0, first)) = removed else { return };
        let Some(key) = self.next.iter().find(|(_, other, _)| *other == ticket).cloned() else { return };
        self.next.remove(&key);
        if let Some(first) = first {
            self.next.insert((key.0, first, user));
        }
    }

    /// Removes users without waiting tickets whose last slice ended before the virtual clock.
    fn remove_idle(&mut self) {
        let clock_ns = self.clock_ns;
        if self.next.is_empty() {
            // No ticket waits, so no user is behind another.
            self.users.clear();
        } else if self.users.len() > 2 * self.next.len() + 16 {
            self.users.retain(|_, user| !user.waiting.is_empty() || user.end_ns > clock_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn user_with_one_task_precedes_the_second_slice_of_another() {
        let mut turns = Turns::new();
        let heavy: Vec<u64> = (0..100).map(|_| turns.request("heavy")).collect();
        assert_eq!(turns.poll(), Some(heavy[0]));
        assert_eq!(turns.poll(), None);
        let light = turns.request("light");
        turns.finish(heavy[0], 50);
        assert_eq!(turns.poll(), Some(light));
        turns.finish(light, 1);
        assert_eq!(turns.poll(), Some(heavy[1]));
    }

    #[test]
    fn users_share_time_not_slices() {
        let mut turns = Turns::new();
        let (mut long, mut short) = (0, 0);
        for _ in 0..100 {
            turns.request("long");
            turns.request("short");
        }
        for _ in 0..66 {
            let ticket = turns.poll().unwrap();
            let duration_ns = if ticket % 2 == 1 { 30 } else { 10 };
            *(if duration_ns == 30 { &mut long } else { &mut short }) += duration_ns;
            turns.finish(ticket, duration_ns);
        }
        assert!(u64::abs_diff(long, short) <= 30, "{long} and {short}");
    }

    #[test]
    fn idle_user_accumulates_no_priority() {
        let mut turns = Turns::new();
        for _ in 0..10 {
            turns.request("busy");
        }
        for _ in 0..5 {
            let ticket = turns.poll().unwrap();
            turns.finish(ticket, 10);
        }
        // A late user does not get the time that it has not used.
        let late: Vec<u64> = (0..5).map(|_| turns.request("late")).collect();
        let mut order = Vec::new();
        while let Some(ticket) = turns.poll() {
            order.push(late.contains(&ticket));
            turns.finish(ticket, 10);
        }
        assert_eq!(order.iter().take(4).filter(|is_late| **is_late).count(), 2, "{order:?}");
    }

    #[test]
    fn abandoned_ticket_blocks_no_other() {
        let mut turns = Turns::new();
        let (first, second, third) = (turns.request("a"), turns.request("a"), turns.request("b"));
        turns.finish(first, 0);
        assert_eq!(turns.poll(), Some(second));
        turns.finish(third, 0);
        turns.finish(second, 1);
        assert_eq!(turns.poll(), None);
        assert!(turns.is_empty());
        assert_eq!(turns.len(), 0);
    }

    proptest! {
        // In any order of events every ticket that is not abandoned gets one turn, one at a time, and a waiting user
        // gets one before any other user has had more than two slices of the same length.
        #[test]
        fn each_ticket_gets_its_turn(ops in prop::collection::vec((0u8..3, 0u8..4), 0..300)) {
            let mut turns = Turns::new();
            let mut waiting: Vec<(u64, u8)> = Vec::new();
            let mut running: Option<u64> = None;
            let mut passed: HashMap<u8, HashMap<u8, u32>> = HashMap::new();
            for (op, user) in ops {
                match op {
                    0 => waiting.push((turns.request(&user.to_string()), user)),
                    1 => {
                        if let Some(ticket) = running.take() {
                            turns.finish(ticket, 10);
                        }
                        if let Some(ticket) = turns.poll() {
                            let at = waiting.iter().position(|(other, _)| *other == ticket);
                            prop_assert!(at.is_some(), "a second turn, or one of an abandoned ticket");
                            let (_, user) = waiting.remove(at.unwrap());
                            running = Some(ticket);
                            passed.remove(&user);
                            for (_, other) in &waiting {
                                if *other != user && !passed.contains_key(other) {
                                    passed.insert(*other, HashMap::new());
                                }
                            }
                            for (_, by) in passed.iter_mut().filter(|(other, _)| **other != user) {
                                let count = by.entry(user).or_insert(0);
                                *count += 1;
                                prop_assert!(*count <= 2, "passed {count} times");
                            }
                        } else {
                            prop_assert!(waiting.is_empty());
                        }
                    }
                    _ => if let Some(at) = waiting.iter().position(|(_, other)| *other == user) {
                        let (ticket, _) = waiting.remove(at);
                        turns.finish(ticket, 0);
                        if !waiting.iter().any(|(_, other)| *other == user) {
                            passed.remove(&user);
                        }
                    },
                }
                prop_assert_eq!(turns.len(), waiting.len());
            }
        }
    }
}
