//! The results of one stream in the order of its items.
//!
//! Batches and retries finish in any order; a strict stream emits each result only after all earlier ones. The waiting
//! results are bounded by a window of sequence numbers, which upstream must not exceed.

use std::collections::VecDeque;

use thiserror::Error;

/// Why a sequence number was refused. The resequencer is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OrderError {
    /// It was inserted or skipped before.
    #[error("sequence number {seq} came twice")]
    Duplicate {
        /// The number.
        seq: u64,
    },
    /// It is too far ahead of the next number.
    #[error("sequence number {seq} is not below {end_seq}, the end of the window")]
    OutOfWindow {
        /// The number.
        seq: u64,
        /// The first number that is not accepted yet.
        end_seq: u64,
    },
}

#[derive(Debug, Clone)]
enum Slot<T> {
    Empty,
    Skipped,
    Value(T),
}

/// Values by sequence number: inserted in any order, removed in ascending order from 0 without a hole.
#[derive(Debug, Clone)]
pub struct Resequencer<T> {
    /// The number of the next value, that of the first slot. It is never a skipped one.
    next_seq: u64,
    window: usize,
    /// At most `window`.
    slots: VecDeque<Slot<T>>,
    /// The number of slots with a value.
    len: usize,
}

impl<T> Resequencer<T> {
    /// A resequencer that accepts numbers less than `window` ahead of the next one. A window of 0 counts as 1.
    pub fn new(window: usize) -> Self {
        Self { next_seq: 0, window: window.max(1), slots: VecDeque::new(), len: 0 }
    }

    /// The number of the next value.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The first number that is not accepted yet.
    pub fn end_seq(&self) -> u64 {
        self.next_seq.saturating_add(self.window as u64)
    }

    /// The number of accepted sequence numbers from `seq` on.
    pub fn room(&self, seq: u64) -> u64 {
        self.end_seq().saturating_sub(seq)
    }

    /// True when `seq` would not be refused.
    pub fn accepts(&self, seq: u64) -> bool {
        self.index(seq).is_ok()
    }

    /// The number of waiting values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no value waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Inserts the value of a number.
    ///
    /// # Errors
    ///
    /// The number was inserted or skipped before, or is out of the window.
    pub fn insert(&mut self, seq: u64, value: T) -> Result<(), OrderError> {
        self.put(seq, Slot::Value(value))?;
        self.len += 1;
        Ok(())
    }

    /// Marks a number as one without a value: later ones do not wait for it.
    ///
    /// # Errors
    ///
    /// The number was inserted or skipped before, or is out of the window.
    pub fn skip(&mut self, seq: u64) -> Result<(), OrderError> {
        self.put(seq, Slot::Skipped)?;
        self.pass_skipped();
        Ok(())
    }

    /// Removes the next value, if it was inserted, and returns it with its number.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        match self.slots.pop_front()? {
            Slot::Value(value) => {
                let seq = self.next_seq;
                self.next_seq += 1;
                self.len -= 1;
                self.pass_skipped();
                Some((seq, value))
            }
            other => {
                self.slots.push_front(other);
                None
            }
        }
    }

    fn put(&mut self, seq: u64, slot: Slot<T>) -> Result<(), OrderError> {
        let index = self.index(seq)?;
        while self.slots.len() <= index {
            self.slots.push_back(Slot::Empty);
        }
        self.slots[index] = slot;
        Ok(())
    }

    fn index(&self, seq: u64) -> Result<usize, OrderError> {
        let duplicate = OrderError::Duplicate { seq };
        let ahead = seq.checked_sub(self.next_seq).ok_or(duplicate)?;
        if ahead >= self.window as u64 {
            return Err(OrderError::OutOfWindow { seq, end_seq: self.end_seq() });
        }
        match self.slots.get(ahead as usize) {
            None | Some(Slot::Empty) => Ok(ahead as usize),
            Some(Slot::Skipped | Slot::Value(_)) => Err(duplicate),
        }
    }

    fn pass_skipped(&mut self) {
        while matches!(self.slots.front(), Some(Slot::Skipped)) {
            self.slots.pop_front();
            self.next_seq += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn early_item_waits_for_its_predecessors() {
        let mut order = Resequencer::new(3);
        order.insert(1, 'b').unwrap();
        assert_eq!((order.pop(), order.len(), order.room(2)), (None, 1, 1));
        assert_eq!(order.insert(3, 'd'), Err(OrderError::OutOfWindow { seq: 3, end_seq: 3 }));
        assert_eq!(order.insert(1, 'x'), Err(OrderError::Duplicate { seq: 1 }));
        order.insert(0, 'a').unwrap();
        assert_eq!(order.pop(), Some((0, 'a')));
        assert!(order.accepts(3) && !order.accepts(4) && !order.accepts(0));
        assert_eq!(order.pop(), Some((1, 'b')));
        assert_eq!(order.insert(0, 'x'), Err(OrderError::Duplicate { seq: 0 }));
        assert!(order.pop().is_none() && order.is_empty());
    }

    #[test]
    fn skipped_number_blocks_no_later_item() {
        let mut order = Resequencer::new(4);
        order.skip(1).unwrap();
        order.insert(2, 'c').unwrap();
        assert_eq!(order.insert(1, 'x').unwrap_err().to_string(), "sequence number 1 came twice");
        order.skip(0).unwrap();
        assert_eq!(order.next_seq(), 2);
        assert_eq!(order.pop(), Some((2, 'c')));
        assert_eq!(
            order.insert(9, 'x').unwrap_err().to_string(),
            "sequence number 9 is not below 7, the end of the window"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_arrival_order_is_resequenced(
            window in 1usize..20,
            ops in prop::collection::vec((0u64..40, any::<bool>(), any::<bool>()), 0..400),
        ) {
            let mut order = Resequencer::new(window);
            let mut inserted = std::collections::BTreeMap::new();
            let mut out = Vec::new();
            for (ahead, skip, pop) in ops {
                let seq = order.next_seq().saturating_sub(3) + ahead;
                let accepts = order.accepts(seq);
                let end_seq = order.end_seq();
                let put = if skip { order.skip(seq) } else { order.insert(seq, seq * 2) };
                prop_assert_eq!(put.is_ok(), accepts);
                match put {
                    Ok(()) => prop_assert!(inserted.insert(seq, skip).is_none()),
                    Err(OrderError::Duplicate { .. }) => prop_assert!(inserted.contains_key(&seq)),
                    Err(OrderError::OutOfWindow { .. }) => prop_assert!(seq >= end_seq),
                }
                if pop {
                    out.extend(order.pop());
                }
                prop_assert!(order.slots.len() <= window);
            }
            out.extend(std::iter::from_fn(|| order.pop()));
            // The removed values are exactly those before the first missing number.
            let first_hole = (0..).find(|seq| !inserted.contains_key(seq)).unwrap();
            let want: Vec<(u64, u64)> = inserted.iter()
                .filter(|(seq, skip)| **seq < first_hole && !**skip)
                .map(|(seq, _)| (*seq, seq * 2))
                .collect();
            prop_assert_eq!(out, want);
            prop_assert_eq!(order.next_seq(), first_hole);
        }
    }
}
