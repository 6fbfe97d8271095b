//! The undelivered events of one subscriber.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::{Entry, Gap};

/// The bytes of an item besides its event, which all subscribers share. The event counts in full: the subscriber's
/// socket has to send it, and the subscriber keeps it in memory after the log has evicted it.
const ITEM_BYTES: usize = 32;

/// An empty queue with a larger capacity than this releases its memory.
const IDLE_ITEMS_MAX: usize = 8;

/// An undelivered item of a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An event, and the number of events directly before it that later ones of their key replaced.
    Event(Arc<Entry>, u32),
    /// Events that are not available to the subscriber.
    Gap(Box<Gap>),
}

impl Item {
    fn bytes(&self) -> usize {
        ITEM_BYTES + if let Self::Event(entry, _) = self { entry.bytes() } else { 0 }
    }
}

/// A queue of one subscriber's undelivered events, bounded by bytes.
///
/// A fast reader gets all events. Over the bound, events that a later one of the same key replaces are dropped, and the
/// next delivered event has their number. Events without a key are never dropped. If the rest takes more than seven
/// eighths of the bound, the reader is too slow; the free eighth keeps the cost of coalescing constant per event.
#[derive(Debug, Default)]
pub struct Outbox {
    items: VecDeque<Item>,
    bytes: usize,
}

impl Outbox {
    /// The number of undelivered items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True when there is no undelivered item.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The bytes of the undelivered items.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an item. Returns false if the reader is too slow: the outbox then exceeds its bound, and the caller must
    /// clear it.
    #[must_use]
    pub fn push(&mut self, item: Item, bytes_max: usize) -> bool {
        self.bytes += item.bytes();
        self.items.push_back(item);
        // A single item is accepted whatever its size, since it could otherwise never be delivered.
        if self.bytes <= bytes_max || self.items.len() == 1 {
            return true;
        }
        self.coalesce();
        self.bytes <= bytes_max / 8 * 7 || self.items.len() == 1
    }

    /// The next item.
    pub fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= item.bytes();
        if self.items.is_empty() && self.items.capacity() > IDLE_ITEMS_MAX {
            self.items = VecDeque::new();
        }
        Some(item)
    }

    /// Removes all items.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps the newest event of each key, and everything without one.
    fn coalesce(&mut self) {
        let mut keys: HashSet<&str> = HashSet::new();
        let mut keep: Vec<bool> = self
            .items
            .iter()
            .rev()
            .map(|item| match item {
                Item::Event(entry, _) => entry.coalesce.as_deref().is_none_or(|key| keys.insert(key)),
                Item::Gap(_) => {
                    // An event before a gap is not replaced by one after it, since the count would span the gap.
                    keys.clear();
                    true
                }
            })
            .collect();
        // The events dropped since the last retained one, which are counted in the next retained one. There is one,
        // since the newest event of each key is retained.
        let mut dropped = 0;
        let mut bytes = 0;
        self.items.retain_mut(|item| {
            let is_kept = keep.pop().unwrap_or(true);
            if let Item::Event(_, before) = item {
                if is_kept {
                    *before += std::mem::take(&mut dropped);
                } else {
                    dropped += *before + 1;
                }
            }
            bytes += if is_kept { item.bytes() } else { 0 };
            is_kept
        });
        self.bytes = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::{Cursor, Draft};

    fn event(seq: u64, key: Option<&str>) -> Item {
        let draft = Draft { coalesce: key.map(Into::into), ..Draft::new("e", "x".repeat(100)) };
        Item::Event(Arc::new(draft.at(Cursor::new(1, seq), 0)), 0)
    }

    fn drain(outbox: &mut Outbox) -> Vec<(u64, u32)> {
        let mut all = Vec::new();
        while let Some(item) = outbox.pop() {
            all.push(match item {
                Item::Event(entry, coalesced) => (entry.cursor.seq, coalesced),
                Item::Gap(_) => (0, 0),
            });
        }
        all
    }

    #[test]
    fn fast_reader_gets_all_events() {
        let mut outbox = Outbox::default();
        for seq in 1..=3 {
            assert!(outbox.push(event(seq, Some("k")), 10_000));
        }
        assert_eq!(drain(&mut outbox), [(1, 0), (2, 0), (3, 0)]);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn over_the_bound_the_newest_event_of_each_key_and_all_results_remain() {
        let mut outbox = Outbox::default();
        let bytes_max = event(1, Some("a")).bytes() * 6;
        for (seq, key) in [(1, Some("a")), (2, Some("b")), (3, None), (4, Some("a")), (5, Some("b")), (6, Some("a"))] {
            assert!(outbox.push(event(seq, key), bytes_max));
        }
        assert!(outbox.push(event(7, Some("a")), bytes_max));
        assert_eq!(drain(&mut outbox), [(3, 2), (5, 1), (7, 1)]);
    }

    #[test]
    fn coalesced_counts_add_up_over_two_rounds() {
        let mut outbox = Outbox::default();
        let bytes_max = event(1, Some("a")).bytes() * 2;
        for seq in 1..=9 {
            assert!(outbox.push(event(seq, Some("a")), bytes_max));
        }
        let drained = drain(&mut outbox);
        assert_eq!(drained.iter().map(|(_, coalesced)| coalesced + 1).sum::<u32>(), 9);
        assert_eq!(drained.last().unwrap().0, 9);
    }

    #[test]
    fn results_over_the_bound_are_refused() {
        let mut outbox = Outbox::default();
        let bytes_max = event(1, None).bytes() * 3;
        for seq in 1..=3 {
            assert!(outbox.push(event(seq, None), bytes_max));
        }
        assert!(!outbox.push(event(4, None), bytes_max));
    }

    #[test]
    fn single_large_event_fits() {
        let mut outbox = Outbox::default();
        assert!(outbox.push(event(1, None), 1));
        assert!(!outbox.push(event(2, None), 1));
    }

    #[test]
    fn events_do_not_coalesce_across_a_gap() {
        let mut outbox = Outbox::default();
        let bytes_max = event(1, Some("a")).bytes() * 3;
        let gap = Gap { missing_from: Cursor::new(1, 3), missing_to: Cursor::new(2, 0) };
        assert!(outbox.push(event(1, Some("a")), bytes_max));
        assert!(outbox.push(event(2, Some("a")), bytes_max));
        assert!(outbox.push(Item::Gap(Box::new(gap)), bytes_max));
        assert!(outbox.push(event(1, Some("a")), bytes_max));
        assert_eq!(drain(&mut outbox), [(2, 1), (0, 0), (1, 0)]);
    }
}
