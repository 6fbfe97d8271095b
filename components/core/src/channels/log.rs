//! The retained events of one channel.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Cursor, Entry, Gap};

/// The retention of each channel. The bounds apply to every channel separately, so a busy one does not evict another's
/// events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most events of a channel; 0 counts as 1.
    pub events_max: usize,
    /// Most bytes of a channel, names and overhead included. A single larger event is retained.
    pub bytes_max: usize,
    /// How long an event is retained, in milliseconds.
    pub age_ms_max: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events_max: 1_000, bytes_max: 1 << 20, age_ms_max: 3_600_000 }
    }
}

/// The retained events of a channel, in order. The log may have holes; readers get a gap for each.
#[derive(Debug, Clone)]
pub struct Log {
    retention: Retention,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// The cursor of the newest event, retained or not.
    last: Cursor,
    finished: bool,
}

/// The position at which a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seek {
    /// The cursor before the first event that it gets.
    pub position: Cursor,
    /// The missing events before the position.
    pub gap: Option<Gap>,
}

/// A part of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The missing events before `entries`.
    pub gap: Option<Gap>,
    /// The events, in order and without a hole between them.
    pub entries: Vec<Arc<Entry>>,
    /// The cursor after which the next page begins.
    pub next: Cursor,
    /// True when nothing comes after this page, now or later.
    pub ended: bool,
}

impl Log {
    /// An empty log whose next event comes after `last`.
    pub fn new(retention: Retention, last: Cursor) -> Self {
        let retention = Retention { events_max: retention.events_max.max(1), ..retention };
        Self { retention, entries: VecDeque::new(), bytes: 0, last, finished: false }
    }

    /// The cursor of the newest event, retained or not.
    pub fn last(&self) -> Cursor {
        self.last
    }

    /// True when the last event of the channel was appended.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// Marks the channel as finished, if its last event is no longer retained.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// The number of retained events.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when no event is retained.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The bytes of the retained events.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest retained event.
    pub fn first(&self) -> Option<&Arc<Entry>> {
        self.entries.front()
    }

    /// Appends the next event, and evicts the events that exceed the retention; an event that is not after the newest
    /// is ignored. Returns whether it was appended.
    pub fn push(&mut self, entry: Arc<Entry>) -> bool {
        if entry.cursor <= self.last {
            return false;
        }
        self.last = entry.cursor;
        self.finished |= entry.finishes;
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.entries.len() > self.retention.events_max || self.bytes > self.retention.bytes_max {
            if self.entries.len() == 1 {
                break;
            }
            self.drop_first();
        }
        true
    }

    /// Removes events that are too old, at a time of the clock of [`Entry::stored_ms`]. Returns whether an event was
    /// removed.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let before = self.entries.len();
        while self.entries.front().is_some_and(|entry| expired(entry, now_ms, self.retention.age_ms_max)) {
            self.drop_first();
        }
        self.entries.len() < before
    }

    /// Continues after `last`, if events up to it existed but are not available: readers get a gap.
    pub fn skip_to(&mut self, last: Cursor) {
        self.last = self.last.max(last);
    }

    /// Removes the events, and continues after `last`.
    pub fn restart(&mut self, last: Cursor) {
        *self = Self::new(self.retention, last);
    }

    /// The position at which a reader begins that has received everything up to `after`, in O(log n).
    ///
    /// [`Cursor::START`] is before the first retained event, without a gap. A cursor after the newest event was not
    /// assigned by this channel: its reader gets a gap from the beginning, then all retained events.
    pub fn seek(&self, after: Cursor) -> Seek {
        let first = self.after(self.resolve(after)).map(|entry| entry.cursor);
        seek(after, first, self.last)
    }

    /// The cursor itself, or [`Cursor::UNKNOWN`] for one that this channel has not assigned.
    pub fn resolve(&self, after: Cursor) -> Cursor {
        resolve(after, self.last)
    }

    /// The first retained event after a cursor, in O(log n).
    pub fn after(&self, position: Cursor) -> Option<&Arc<Entry>> {
        self.entries.get(self.index(position))
    }

    /// All retained events after a cursor, in order.
    pub fn all_after(&self, position: Cursor) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.range(self.index(position)..)
    }

    /// The part of the channel after a cursor: at most `limit` events and `bytes_max` bytes, but at least one event if
    /// there is one.
    pub fn read(&self, after: Cursor, limit: usize, bytes_max: usize) -> Page {
        let entries = self.all_after(self.resolve(after)).map(Arc::clone);
        page(after, self.last, self.finished, entries, limit, bytes_max)
    }

    fn index(&self, after: Cursor) -> usize {
        self.entries.partition_point(|entry| entry.cursor <= after)
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes();
        }
    }
}

/// The cursor itself, or [`Cursor::UNKNOWN`] for one past the newest event of a channel.
pub fn resolve(after: Cursor, last: Cursor) -> Cursor {
    if after > last { Cursor::UNKNOWN } else { after }
}

/// A page of a channel after a cursor, from the events that a store has after it: at most `limit` events and
/// `bytes_max` bytes, but at least one event if there is one. A page ends before a hole; the next one starts with the
/// gap. `entries` are the events after the result of [`resolve`].
pub fn page(
    after: Cursor,
    last: Cursor,
    finished: bool,
    entries: impl Iterator<Item = Arc<Entry>>,
    limit: usize,
    bytes_max: usize,
) -> Page {
    let mut entries = entries.peekable();
    let Seek { mut position, gap } = seek(after, entries.peek().map(|entry| entry.cursor), last);
    let (mut page, mut bytes) = (Vec::new(), 0_usize);
    while let Some(entry) = entries.next_if(|entry| position.leads_to(entry.cursor) && page.len() < limit) {
        bytes = bytes.saturating_add(entry.bytes());
        if bytes > bytes_max && !page.is_empty() {
            break;
        }
        position = entry.cursor;
        page.push(entry);
    }
    Page { gap, entries: page, next: position, ended: finished && position >= last }
}

/// The position at which a reader of `after` begins, given the first retained event after it and the cursor of the
/// newest event.
fn seek(after: Cursor, first: Option<Cursor>, last: Cursor) -> Seek {
    let next = match first {
        // No event was ever appended.
        None if last == Cursor::START && after == last => return Seek { position: after, gap: None },
        // The cursor is after the newest event, or no later event is retained: the next event follows the newest.
        None => last.next(),
        Some(first) => first,
    };
    let gap = Gap::between(after, next);
    let position = if after == Cursor::START || gap.is_some() { next.previous() } else { after };
    Seek { position, gap }
}

/// True when an event is past its age, by the clock of [`Entry::stored_ms`].
fn expired(entry: &Entry, now_ms: u64, age_ms_max: u64) -> bool {
    now_ms.saturating_sub(entry.stored_ms) > age_ms_max
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::Draft;

    const RETENTION: Retention = Retention { events_max: 4, bytes_max: 10_000, age_ms_max: 100 };

    fn at(epoch: u64, seq: u64) -> Cursor {
        Cursor { epoch, seq }
    }

    fn entry(epoch: u64, seq: u64, bytes: usize, time_ms: u64) -> Arc<Entry> {
        Arc::new(Draft::new("e", "x".repeat(bytes)).at(at(epoch, seq), time_ms))
    }

    fn log(cursors: &[(u64, u64)]) -> Log {
        let mut log = Log::new(RETENTION, at(1, 0));
        for &(epoch, seq) in cursors {
            assert!(log.push(entry(epoch, seq, 1, 0)));
        }
        log
    }

    fn gap(from: (u64, u64), to: (u64, u64)) -> Option<Gap> {
        Some(Gap { missing_from: at(from.0, from.1), missing_to: at(to.0, to.1) })
    }

    #[test]
    fn evicted_events_are_a_gap() {
        let log = log(&[(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6)]);
        assert_eq!((log.len(), log.first().unwrap().cursor), (4, at(1, 3)));
        assert_eq!(log.seek(at(1, 2)), Seek { position: at(1, 2), gap: None });
        assert_eq!(log.seek(at(1, 0)), Seek { position: at(1, 2), gap: gap((1, 1), (1, 2)) });
        assert_eq!(log.seek(at(1, 6)), Seek { position: at(1, 6), gap: None });
        // The start is the oldest retained event.
        assert_eq!(log.seek(Cursor::START), Seek { position: at(1, 2), gap: None });
    }

    #[test]
    fn another_epoch_is_a_gap() {
        let log = log(&[(1, 1), (3, 1), (3, 2)]);
        assert_eq!(log.seek(at(1, 1)), Seek { position: at(3, 0), gap: gap((1, 2), (3, 0)) });
        assert_eq!(log.seek(at(2, 7)), Seek { position: at(3, 0), gap: gap((2, 8), (3, 0)) });
        // Cursors that this channel has not assigned, or not yet.
        for (foreign, from) in [
            (at(3, 9), (3, 10)),
            (at(9, 1), (9, 2)),
            (at(9, u64::MAX), (9, u64::MAX)),
            (Cursor::UNKNOWN, (0, 0)),
            (at(0, 7), (0, 0)),
        ] {
            assert_eq!(log.seek(foreign), Seek { position: at(1, 0), gap: gap(from, (1, 0)) }, "{foreign}");
            let page = log.read(foreign, 10, 10_000);
            assert_eq!((page.gap, page.entries.len(), page.next), (gap(from, (1, 0)), 1, at(1, 1)), "{foreign}");
        }
    }

    #[test]
    fn page_ends_before_a_hole_and_the_next_starts_with_it() {
        let log = log(&[(1, 1), (1, 2), (1, 8), (1, 9)]);
        let page = log.read(Cursor::START, 10, 10_000);
        assert_eq!((page.gap, page.entries.len(), page.next, page.ended), (None, 2, at(1, 2), false));
        let page = log.read(page.next, 10, 10_000);
        assert_eq!((page.gap, page.entries.len(), page.next), (gap((1, 3), (1, 7)), 2, at(1, 9)));
        let page = log.read(page.next, 10, 10_000);
        assert_eq!((page.gap, page.entries.len(), page.next), (None, 0, at(1, 9)));
    }

    #[test]
    fn page_is_bounded_and_always_advances() {
        let log = log(&[(1, 1), (1, 2), (1, 3)]);
        assert_eq!(log.read(Cursor::START, 2, 10_000).next, at(1, 2));
        assert_eq!(log.read(Cursor::START, 10, 1).next, at(1, 1));
        assert_eq!(log.read(Cursor::START, 10, 2 * entry(1, 1, 1, 0).bytes()).next, at(1, 2));
    }

    #[test]
    fn empty_log_reports_evicted_events_as_a_gap() {
        let mut log = log(&[(1, 1), (1, 2)]);
        assert!(!log.expire(100) && log.expire(101) && log.is_empty() && log.bytes() == 0);
        assert_eq!(log.seek(at(1, 1)), Seek { position: at(1, 2), gap: gap((1, 2), (1, 2)) });
        assert_eq!(log.seek(at(1, 2)).gap, None);
        assert_eq!(log.seek(Cursor::START).position, at(1, 2));
    }

    #[test]
    fn event_over_the_byte_bound_is_retained_alone() {
        let mut log = Log::new(Retention { bytes_max: 1_000, ..RETENTION }, at(1, 0));
        log.push(entry(1, 1, 500, 0));
        log.push(entry(1, 2, 500, 0));
        assert_eq!(log.len(), 1);
        log.push(entry(1, 3, 5_000, 0));
        assert_eq!((log.len(), log.first().unwrap().cursor), (1, at(1, 3)));
    }

    #[test]
    fn entry_that_is_not_after_the_last_is_ignored() {
        let mut log = log(&[(2, 5)]);
        assert!(!log.push(entry(2, 5, 1, 0)) && !log.push(entry(1, 9, 1, 0)) && log.len() == 1);
    }

    #[test]
    fn finished_channel_ends_with_its_last_page() {
        let mut log = log(&[(1, 1)]);
        log.push(Arc::new(Draft::new("pipeline_complete", "{}").finishing().at(at(1, 2), 0)));
        assert!(log.finished());
        assert!(!log.read(Cursor::START, 1, 10_000).ended);
        assert!(log.read(at(1, 1), 1, 10_000).ended && log.read(at(1, 2), 1, 10_000).ended);
    }
}
