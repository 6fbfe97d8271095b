//! What one subscriber has not taken yet.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::{Entry, Gap};

/// The bytes of an item besides its event, which all subscribers share. The event counts in full: the subscriber's socket has to send it,
/// and the subscriber keeps it in memory after the log has evicted it.
const ITEM_BYTES: usize = 32;

/// An emptied queue larger than this gives its memory back.
const IDLE_ITEMS_MAX: usize = 8;

/// Something for the subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An event, and how many before it were replaced by later ones of their key.
    Event(Arc<Entry>, u32),
    /// Events that it cannot have.
    Gap(Box<Gap>),
}

impl Item {
    fn bytes(&self) -> usize {
        ITEM_BYTES + if let Self::Event(entry, _) = self { entry.bytes() } else { 0 }
    }
}

/// A queue of one subscriber's undelivered events, bounded by bytes.
///
/// A reader that keeps up gets all events. Over the bound, events that a later one of the same key replaces are dropped, and the next
/// delivered event has their number. Events without a key are never dropped. When the rest takes more than seven eighths of the bound,
/// the reader is too slow; that eighth makes the cost of dropping constant per event.
#[derive(Debug, Default)]
pub struct Outbox {
    items: VecDeque<Item>,
    bytes: usize,
}

impl Outbox {
    /// Items waiting.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes waiting.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an item. Returns false when the reader is too slow: the outbox is over its bound then and has to be dropped.
    #[must_use]
    pub fn push(&mut self, item: Item, bytes_max: usize) -> bool {
        self.bytes += item.bytes();
        self.items.push_back(item);
        // One item is let in whatever its size, for it could otherwise never be delivered.
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

    /// Lets go of everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps the newest event of each key, and everything without one.
    fn coalesce(&mut self) {
        let mut seen: HashSet<&str> = HashSet::new();
        let mut keep: Vec<bool> = self
            .items
            .iter()
            .rev()
            .map(|item| match item {
                Item::Event(entry, _) => entry.coalesce.as_deref().is_none_or(|key| seen.insert(key)),
                Item::Gap(_) => {
                    // What lies behind a gap is not replaced by what lies before it: the count would span the gap.
                    seen.clear();
                    true
                }
            })
            .collect();
        // How many went since the last that stays; the next that stays says so. One of their keys always does.
        let mut owed = 0;
        let mut bytes = 0;
        self.items.retain_mut(|item| {
            let stays = keep.pop().unwrap_or(true);
            if let Item::Event(_, before) = item {
                if stays {
                    *before += std::mem::take(&mut owed);
                } else {
                    owed += *before + 1;
                }
            }
            bytes += if stays { item.bytes() } else { 0 };
            stays
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

    fn drained(outbox: &mut Outbox) -> Vec<(u64, u32)> {
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
        assert_eq!(drained(&mut outbox), [(1, 0), (2, 0), (3, 0)]);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn past_the_bound_the_newest_of_each_key_and_all_results_stay() {
        let mut outbox = Outbox::default();
        let bytes_max = event(1, Some("a")).bytes() * 6;
        for (seq, key) in [(1, Some("a")), (2, Some("b")), (3, None), (4, Some("a")), (5, Some("b")), (6, Some("a"))] {
            assert!(outbox.push(event(seq, key), bytes_max));
        }
        assert!(outbox.push(event(7, Some("a")), bytes_max));
        assert_eq!(drained(&mut outbox), [(3, 2), (5, 1), (7, 1)]);
    }

    #[test]
    fn counts_add_up_over_two_rounds() {
        let mut outbox = Outbox::default();
        let bytes_max = event(1, Some("a")).bytes() * 2;
        for seq in 1..=9 {
            assert!(outbox.push(event(seq, Some("a")), bytes_max));
        }
        let drained = drained(&mut outbox);
        assert_eq!(drained.iter().map(|(_, coalesced)| coalesced + 1).sum::<u32>(), 9);
        assert_eq!(drained.last().unwrap().0, 9);
    }

    #[test]
    fn results_that_do_not_fit_close_it() {
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
        assert_eq!(drained(&mut outbox), [(2, 1), (0, 0), (1, 0)]);
    }
}
