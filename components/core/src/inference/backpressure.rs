//! Gates for backpressure: by acknowledgements of the consumer, or by the size of the queued items.
//!
//! Both are counters with a bound: the driver asks before it sends and reports each send. They store no items.

use crate::named::named;

named! {
    /// What makes a stream push back.
    pub enum BackpressurePolicy {
        /// The consumer has not acknowledged enough.
        AckBased = "ack_based",
        /// Too much is held.
        SizeBased = "size_based",
    }
}

/// A bound on items sent and not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckGate {
    unacknowledged: usize,
    unacknowledged_max: usize,
}

impl AckGate {
    /// A gate with nothing sent; at least 1 is assumed.
    pub fn new(unacknowledged_max: usize) -> Self {
        Self { unacknowledged: 0, unacknowledged_max: unacknowledged_max.max(1) }
    }

    /// How many more may be sent now.
    pub fn room(&self) -> usize {
        self.unacknowledged_max.saturating_sub(self.unacknowledged)
    }

    /// True when at least one more may be sent now.
    pub fn may_send(&self) -> bool {
        self.room() > 0
    }

    /// Sent and not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// Counts sent items, also over the bound: there is no capacity then until enough are acknowledged.
    pub fn sent(&mut self, count: usize) {
        self.unacknowledged = self.unacknowledged.saturating_add(count);
    }

    /// Takes acknowledgements and returns how many of them were owed; the rest is ignored.
    pub fn acknowledge(&mut self, count: usize) -> usize {
        let owed = count.min(self.unacknowledged);
        self.unacknowledged -= owed;
        owed
    }
}

/// A bound on items and bytes. One item larger than all of the bytes is admitted alone, because it could otherwise never be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeGate {
    items: usize,
    items_max: usize,
    bytes: usize,
    bytes_max: usize,
}

impl SizeGate {
    /// A gate with nothing held; at least 1 item is assumed.
    pub fn new(items_max: usize, bytes_max: usize) -> Self {
        Self { items: 0, items_max: items_max.max(1), bytes: 0, bytes_max }
    }

    /// Items held.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when one more item of this size, in bytes, may be sent now.
    pub fn may_send(&self, bytes: usize) -> bool {
        self.may_send_after(bytes, 0, 0)
    }

    /// True when one more item of this size, in bytes, could be sent once others were removed.
    pub fn may_send_after(&self, bytes: usize, removed_items: usize, removed_bytes: usize) -> bool {
        let items = self.items.saturating_sub(removed_items);
        let held = self.bytes.saturating_sub(removed_bytes);
        items < self.items_max && (items == 0 || held.saturating_add(bytes) <= self.bytes_max)
    }

    /// Counts one item of this size, in bytes.
    pub fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Removes one item of this size, in bytes, from the count.
    pub fn remove(&mut self, bytes: usize) {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_those_of_the_configuration() {
        let names: Vec<_> = BackpressurePolicy::ALL.iter().map(|policy| policy.name()).collect();
        assert_eq!(names, ["ack_based", "size_based"]);
        assert_eq!(BackpressurePolicy::from_name("size_based"), Some(BackpressurePolicy::SizeBased));
    }

    #[test]
    fn surplus_acknowledgements_free_no_capacity() {
        let mut gate = AckGate::new(2);
        assert_eq!(gate.acknowledge(5), 0);
        gate.sent(2);
        assert!(!gate.may_send());
        assert_eq!((gate.acknowledge(1), gate.room()), (1, 1));
        gate.sent(4);
        assert_eq!((gate.room(), gate.acknowledge(9), gate.room()), (0, 5, 2));
    }

    #[test]
    fn item_over_the_bound_is_admitted_alone() {
        let mut gate = SizeGate::new(3, 10);
        assert!(gate.may_send(99));
        gate.add(99);
        assert!(!gate.may_send(0) && gate.may_send_after(10, 1, 99));
        gate.remove(99);
        gate.add(4);
        assert!(gate.may_send(6) && !gate.may_send(7));
        gate.add(6);
        gate.add(0);
        assert!(!gate.may_send(0));
    }

    proptest! {
        #[test]
        fn gate_stays_within_its_bounds(
            items_max in 1usize..10,
            bytes_max in 0usize..100,
            ops in prop::collection::vec((any::<bool>(), 0usize..60), 0..200),
        ) {
            let mut size = SizeGate::new(items_max, bytes_max);
            let mut ack = AckGate::new(items_max);
            let mut held = Vec::new();
            let mut owed = 0;
            for (send, bytes) in ops {
                if send {
                    if size.may_send(bytes) {
                        size.add(bytes);
                        held.push(bytes);
                    }
                    let sent = bytes.min(ack.room());
                    ack.sent(sent);
                    owed += sent;
                } else {
                    if !held.is_empty() {
                        size.remove(held.remove(0));
                    }
                    let acknowledged = ack.acknowledge(bytes);
                    prop_assert_eq!(acknowledged, bytes.min(owed));
                    owed -= acknowledged;
                }
                let bytes: usize = held.iter().sum();
                prop_assert_eq!((size.items(), size.bytes()), (held.len(), bytes));
                prop_assert!(held.len() <= items_max && (held.len() <= 1 || bytes <= bytes_max));
                prop_assert!(owed <= items_max && ack.unacknowledged() == owed);
                prop_assert_eq!(ack.may_send(), owed < items_max);
            }
        }
    }
}
