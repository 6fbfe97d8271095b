//! Gates for backpressure: by acknowledgements of the consumer, or by the size of the queued items.
//!
//! Both are counters with a bound: the driver checks before it sends, and reports each send. They store no items.

use crate::named::named;

named! {
    /// The cause of backpressure of a stream.
    pub enum BackpressurePolicy {
        /// Too many items that the consumer has not acknowledged.
        AckBased = "ack_based",
        /// Too many queued items or bytes.
        SizeBased = "size_based",
    }
}

/// A bound on the items that were sent and not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckGate {
    unacknowledged: usize,
    unacknowledged_max: usize,
}

impl AckGate {
    /// A gate without unacknowledged items. A bound of 0 counts as 1.
    pub fn new(unacknowledged_max: usize) -> Self {
        Self { unacknowledged: 0, unacknowledged_max: unacknowledged_max.max(1) }
    }

    /// The number of items that can be sent now.
    pub fn room(&self) -> usize {
        self.unacknowledged_max.saturating_sub(self.unacknowledged)
    }

    /// True when at least one item can be sent now.
    pub fn may_send(&self) -> bool {
        self.room() > 0
    }

    /// The number of items that were sent and not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// Counts sent items, even over the bound: there is then no room until enough of them are acknowledged.
    pub fn sent(&mut self, count: usize) {
        self.unacknowledged = self.unacknowledged.saturating_add(count);
    }

    /// Handles acknowledgements, and returns the number of them that match sent items; surplus ones are ignored.
    pub fn acknowledge(&mut self, count: usize) -> usize {
        let acknowledged = count.min(self.unacknowledged);
        self.unacknowledged -= acknowledged;
        acknowledged
    }
}

/// A bound on items and bytes. An item that exceeds the bound of bytes is admitted alone, since it could otherwise
/// never be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeGate {
    items: usize,
    items_max: usize,
    bytes: usize,
    bytes_max: usize,
}

impl SizeGate {
    /// A gate without items. A bound of 0 items counts as 1.
    pub fn new(items_max: usize, bytes_max: usize) -> Self {
        Self { items: 0, items_max: items_max.max(1), bytes: 0, bytes_max }
    }

    /// The number of queued items.
    pub fn items(&self) -> usize {
        self.items
    }

    /// The number of queued bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when an item of this size, in bytes, can be added now.
    pub fn may_send(&self, bytes: usize) -> bool {
        self.may_send_after(bytes, 0, 0)
    }

    /// True when an item of this size, in bytes, could be added after the removal of others.
    pub fn may_send_after(&self, bytes: usize, removed_items: usize, removed_bytes: usize) -> bool {
        let items = self.items.saturating_sub(removed_items);
        let held = self.bytes.saturating_sub(removed_bytes);
        items < self.items_max && (items == 0 || held.saturating_add(bytes) <= self.bytes_max)
    }

    /// Adds one item of this size, in bytes.
    pub fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Removes one item of this size, in bytes.
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
    fn surplus_acknowledgements_free_no_room() {
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
            let mut unacknowledged = 0;
            for (send, bytes) in ops {
                if send {
                    if size.may_send(bytes) {
                        size.add(bytes);
                        held.push(bytes);
                    }
                    let sent = bytes.min(ack.room());
                    ack.sent(sent);
                    unacknowledged += sent;
                } else {
                    if !held.is_empty() {
                        size.remove(held.remove(0));
                    }
                    let acknowledged = ack.acknowledge(bytes);
                    prop_assert_eq!(acknowledged, bytes.min(unacknowledged));
                    unacknowledged -= acknowledged;
                }
                let bytes: usize = held.iter().sum();
                prop_assert_eq!((size.items(), size.bytes()), (held.len(), bytes));
                prop_assert!(held.len() <= items_max && (held.len() <= 1 || bytes <= bytes_max));
                prop_assert!(unacknowledged <= items_max && ack.unacknowledged() == unacknowledged);
                prop_assert_eq!(ack.may_send(), unacknowledged < items_max);
            }
        }
    }
}
