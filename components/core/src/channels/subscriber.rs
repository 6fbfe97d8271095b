//! One reader that follows a channel: replay from the log, then live events.

use std::sync::Arc;

use super::{Cursor, Entry, Gap, Item, Log, Outbox};
use crate::named::named;

named! {
    /// Why a subscriber was closed before its channel ended. It may resume from its cursor.
    pub enum CloseReason {
        /// It read too slowly.
        Slow = "slow",
        /// The store stopped, or lost the channel.
        Lost = "lost",
    }
}

/// An output of a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The next event.
    Event {
        /// The event, shared by all subscribers.
        entry: Arc<Entry>,
        /// The number of events between the previous one and this one that later ones of their key replaced.
        coalesced: u32,
    },
    /// Events that are not available; the next event is after `missing_to`.
    Gap(Gap),
    /// The subscriber is closed. This is its last delivery.
    Closed(CloseReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Reads from the log, up to the end of the log at the time of the subscription.
    Replay { until: Cursor },
    /// Reads from the outbox.
    Live,
    /// Closed; the reason is the next delivery.
    Closing(CloseReason),
    /// All events were delivered, or the reason of the close was.
    Ended,
}

/// A reader that follows a channel.
///
/// It first reads from the log, at its own pace, with an empty outbox. When it reaches the position at which the log
/// ended at the time of the subscription, all later events are moved to its outbox in one step and it is live: from
/// then on each event is offered to it. So the handover happens once, after at most one log of events, and nothing is
/// copied. If a replay takes so long that the later events do not fit the outbox, the reader is closed as slow, and can
/// resume.
///
/// The driver calls all methods for one channel under one lock, with the current log, and offers each event exactly
/// once.
#[derive(Debug)]
pub struct Subscriber {
    state: State,
    /// The cursor of the last event that was read from the log, or put into the outbox.
    tail: Cursor,
    /// The cursor up to which events or gaps were delivered.
    delivered: Cursor,
    /// The reader's cursor, if the channel has not assigned it, until the gap is delivered.
    foreign: Option<Cursor>,
    outbox: Outbox,
    outbox_bytes_max: usize,
}

impl Subscriber {
    /// A reader that has received everything up to `after`, whose outbox has at most `outbox_bytes_max` bytes.
    pub fn new(after: Cursor, outbox_bytes_max: usize, log: &Log) -> Self {
        // A cursor that the channel has not assigned must not be confused with an equal one that it assigns later.
        let foreign = Some(after).filter(|_| log.resolve(after) != after);
        let after = log.resolve(after);
        // The start is the oldest event that is retained now. Events that are evicted before they are read are a gap.
        let tail = if after == Cursor::START { log.seek(after).position } else { after };
        let state = State::Replay { until: log.last() };
        Self { state, tail, delivered: tail, foreign, outbox: Outbox::default(), outbox_bytes_max }
    }

    /// The cursor from which it would resume.
    pub fn delivered(&self) -> Cursor {
        self.delivered
    }

    /// The bytes in its outbox.
    pub fn outbox_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// True when there are no further deliveries.
    pub fn ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Offers an event that was just appended to the log.
    pub fn handle_appended(&mut self, entry: &Arc<Entry>) {
        if self.tail == Cursor::START {
            // The channel had no event at the time of the subscription: this is its first.
            self.tail = entry.cursor.previous();
            self.delivered = self.tail;
        }
        if self.state == State::Live {
            self.offer(entry);
        }
    }

    /// Closes the subscriber, and drops its undelivered events.
    pub fn close(&mut self, reason: CloseReason) {
        if self.state != State::Ended {
            self.outbox.clear();
            self.state = State::Closing(reason);
        }
    }

    /// The reason of the close, if its delivery is pending.
    pub fn closing(&self) -> Option<CloseReason> {
        if let State::Closing(reason) = self.state { Some(reason) } else { None }
    }

    /// The next delivery; `None` if there is none now, or none any more ([`Self::ended`]).
    pub fn poll(&mut self, log: &Log) -> Option<Delivery> {
        match self.state {
            State::Ended => return None,
            State::Closing(reason) => {
                self.state = State::Ended;
                return Some(Delivery::Closed(reason));
            }
            State::Replay { until } => {
                if let Some(delivery) = self.replay(log, until) {
                    return Some(delivery);
                }
                self.state = State::Live;
                for entry in log.all_after(self.tail) {
                    self.handle_appended(entry);
                }
                if self.closing().is_some() {
                    return self.poll(log);
                }
            }
            State::Live => {}
        }
        match self.outbox.pop() {
            Some(Item::Event(entry, coalesced)) => Some(self.deliver(entry, coalesced)),
            Some(Item::Gap(gap)) => {
                self.delivered = gap.missing_to;
                Some(Delivery::Gap(*gap))
            }
            None => {
                if log.finished() && self.tail >= log.last() {
                    self.state = State::Ended;
                }
                None
            }
        }
    }

    /// The next delivery from the log, as long as there is one up to `until`.
    fn replay(&mut self, log: &Log, until: Cursor) -> Option<Delivery> {
        let seek = log.seek(self.tail);
        if let Some(mut gap) = seek.gap {
            if let Some(foreign) = self.foreign.take() {
                gap.missing_from = foreign.next();
            }
            self.tail = seek.position;
            self.delivered = seek.position;
            return Some(Delivery::Gap(gap));
        }
        let entry = log.after(self.tail).filter(|entry| entry.cursor <= until)?;
        self.tail = entry.cursor;
        Some(self.deliver(Arc::clone(entry), 0))
    }

    fn deliver(&mut self, entry: Arc<Entry>, coalesced: u32) -> Delivery {
        self.delivered = entry.cursor;
        Delivery::Event { entry, coalesced }
    }

    fn offer(&mut self, entry: &Arc<Entry>) {
        let gap = Gap::between(self.tail, entry.cursor).map(|gap| Item::Gap(Box::new(gap)));
        self.tail = entry.cursor;
        for item in gap.into_iter().chain([Item::Event(Arc::clone(entry), 0)]) {
            if !self.outbox.push(item, self.outbox_bytes_max) {
                self.close(CloseReason::Slow);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::{Draft, Retention};

    fn at(seq: u64) -> Cursor {
        Cursor::new(1, seq)
    }

    struct Channel {
        log: Log,
        readers: Vec<Subscriber>,
    }

    impl Channel {
        fn new(events_max: usize) -> Self {
            let retention = Retention { events_max, ..Retention::default() };
            Self { log: Log::new(retention, at(0)), readers: Vec::new() }
        }

        fn follow(&mut self, after: Cursor, outbox_events: usize) -> usize {
            let bytes = Item::Event(Arc::new(Draft::new("e", "").at(at(1), 0)), 0);
            let bytes_max = outbox_events * (if let Item::Event(entry, _) = bytes { entry.bytes() } else { 0 } + 32);
            self.readers.push(Subscriber::new(after, bytes_max, &self.log));
            self.readers.len() - 1
        }

        fn append(&mut self, draft: Draft) {
            let entry = Arc::new(draft.at(self.log.last().next(), 0));
            assert!(self.log.push(Arc::clone(&entry)));
            for reader in &mut self.readers {
                reader.handle_appended(&entry);
            }
        }

        fn events(&mut self, count: usize) {
            (0..count).for_each(|_| self.append(Draft::new("e", "")));
        }

        fn poll(&mut self, reader: usize) -> Option<Delivery> {
            self.readers[reader].poll(&self.log)
        }

        /// Sequence numbers; a gap as its two ends, negative.
        fn drain(&mut self, reader: usize) -> Vec<i64> {
            let mut all = Vec::new();
            while let Some(delivery) = self.poll(reader) {
                match delivery {
                    Delivery::Event { entry, .. } => all.push(entry.cursor.seq as i64),
                    Delivery::Gap(gap) => {
                        all.extend([-(gap.missing_from.seq as i64), -(gap.missing_to.seq as i64)]);
                    }
                    Delivery::Closed(_) => all.push(i64::MIN),
                }
            }
            all
        }
    }

    #[test]
    fn replay_continues_into_live_events() {
        let mut channel = Channel::new(100);
        channel.events(3);
        let reader = channel.follow(at(1), 10);
        assert_eq!(channel.poll(reader).map(|_| ()), Some(()));
        channel.events(2);
        assert_eq!(channel.drain(reader), [3, 4, 5]);
        channel.events(1);
        assert_eq!(channel.drain(reader), [6]);
        assert_eq!(channel.readers[reader].delivered(), at(6));
    }

    #[test]
    fn events_lost_during_replay_are_a_gap() {
        let mut channel = Channel::new(3);
        channel.events(3);
        let reader = channel.follow(Cursor::START, 10);
        assert!(channel.poll(reader).is_some());
        channel.events(4);
        assert_eq!(channel.drain(reader), [-2, -4, 5, 6, 7]);
    }

    #[test]
    fn start_of_an_empty_channel_is_its_first_event() {
        let mut channel = Channel::new(2);
        let reader = channel.follow(Cursor::START, 10);
        // It is not polled until the first two events are evicted.
        channel.events(4);
        assert_eq!(channel.drain(reader), [-1, -2, 3, 4]);
    }

    #[test]
    fn slow_reader_is_closed_and_resumes_from_its_cursor() {
        let mut channel = Channel::new(100);
        let slow = channel.follow(Cursor::START, 4);
        channel.events(1);
        assert_eq!(channel.drain(slow), [1]);
        channel.events(9);
        assert_eq!(channel.readers[slow].closing(), Some(CloseReason::Slow));
        assert_eq!(channel.readers[slow].outbox_bytes(), 0);
        assert_eq!(channel.drain(slow), [i64::MIN]);
        assert!(channel.readers[slow].ended());
        let resumed = channel.follow(channel.readers[slow].delivered(), 4);
        assert_eq!(channel.drain(resumed), [2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn foreign_cursor_gets_a_gap_and_the_retained_events() {
        for foreign in [at(9), Cursor::new(7, 1), Cursor::UNKNOWN] {
            let mut channel = Channel::new(3);
            channel.events(4);
            let reader = channel.follow(foreign, 10);
            let missing_from = if foreign.is_unknown() { Cursor::START } else { foreign.next() };
            let gap = Gap { missing_from, missing_to: at(1) };
            assert_eq!(channel.poll(reader), Some(Delivery::Gap(gap)), "{foreign}");
            assert_eq!(channel.drain(reader), [2, 3, 4], "{foreign}");
            channel.events(1);
            assert_eq!(channel.drain(reader), [5], "{foreign}");
        }
    }

    #[test]
    fn foreign_cursor_of_an_empty_channel_gets_one_gap() {
        let mut channel = Channel::new(5);
        let reader = channel.follow(at(1), 10);
        assert!(matches!(channel.poll(reader), Some(Delivery::Gap(_))));
        channel.events(2);
        assert_eq!(channel.drain(reader), [1, 2]);
    }

    #[test]
    fn foreign_cursor_assigned_later_is_a_gap() {
        let mut channel = Channel::new(5);
        let reader = channel.follow(at(1), 10);
        channel.events(2);
        assert!(matches!(channel.poll(reader), Some(Delivery::Gap(_))));
        assert_eq!(channel.drain(reader), [1, 2]);
    }

    #[test]
    fn handover_is_bounded_by_the_outbox() {
        let mut channel = Channel::new(100);
        channel.events(2);
        let reader = channel.follow(Cursor::START, 4);
        channel.events(9);
        assert_eq!(channel.drain(reader), [1, 2, i64::MIN]);
    }

    #[test]
    fn subscriber_ends_with_its_channel() {
        let mut channel = Channel::new(100);
        let reader = channel.follow(Cursor::START, 10);
        channel.append(Draft::new("done", "").finishing());
        assert_eq!(channel.drain(reader), [1]);
        assert!(channel.readers[reader].ended());
        let late = channel.follow(at(1), 10);
        assert_eq!(channel.drain(late), []);
        assert!(channel.readers[late].ended());
    }

    #[test]
    fn new_epoch_of_a_log_is_a_gap() {
        let mut channel = Channel::new(100);
        channel.events(2);
        let reader = channel.follow(Cursor::START, 10);
        assert_eq!(channel.drain(reader), [1, 2]);
        channel.log.restart(Cursor::new(2, 0));
        channel.events(1);
        let gap = Gap { missing_from: at(3), missing_to: Cursor::new(2, 0) };
        assert_eq!(channel.poll(reader), Some(Delivery::Gap(gap)));
        assert_eq!(channel.drain(reader), [1]);
    }
}
