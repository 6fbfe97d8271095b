//! What is retained of one channel.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Cursor, Entry, Gap};

/// The retention of each channel. Every channel has these bounds for itself: a busy one takes nothing from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The most events of a channel; at least 1 is assumed.
    pub events_max: usize,
    /// The most bytes of a channel, names and bookkeeping included. A single larger event is retained.
    pub bytes_max: usize,
    /// How long an event is retained, in milliseconds.
    pub age_ms_max: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events_max: 1_000, bytes_max: 1 << 20, age_ms_max: 3_600_000 }
    }
}

/// The events of a channel that are retained, in order. It may have holes; readers get a gap for each.
#[derive(Debug, Clone)]
pub struct Log {
    retention: Retention,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// The cursor of the newest event, retained or not.
    last: Cursor,
    finished: bool,
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seek {
    /// The cursor before the first event that it gets.
    pub position: Cursor,
    /// What it misses before that.
    pub gap: Option<Gap>,
}

/// A part of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// What is missing before the events.
    pub gap: Option<Gap>,
    /// The events, in order and without a hole between them.
    pub entries: Vec<Arc<Entry>>,
    /// Where the next page begins.
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

    /// True when the last event of the channel is in.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// Says that the channel is finished, where its last event is not retained any more.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Events retained.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing is retained.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes retained.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest event retained.
    pub fn first(&self) -> Option<&Arc<Entry>> {
        self.entries.front()
    }

    /// Appends the next event, and evicts the events that exceed the retention; an event that is not after the newest is ignored. Returns
    /// whether it was appended.
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

    /// Removes events that are too old, at a time of the clock of [`Entry::stored_ms`]. Returns true when something was removed.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let before = self.entries.len();
        while self.entries.front().is_some_and(|entry| expired(entry, now_ms, self.retention.age_ms_max)) {
            self.drop_first();
        }
        self.entries.len() < before
    }

    /// Continues after `last`, where events are known to have been and cannot be had: readers see a hole.
    pub fn skip_to(&mut self, last: Cursor) {
        self.last = self.last.max(last);
    }

    /// Removes the events, and continues after `last`.
    pub fn restart(&mut self, last: Cursor) {
        *self = Self::new(self.retention, last);
    }

    /// Where a reader begins that has seen everything up to `after`, in O(log n).
    ///
    /// [`Cursor::START`] is the first retained event and misses nothing. A cursor after the newest event was not assigned by this
    /// channel: its reader gets a gap from the beginning, then all retained events.
    pub fn seek(&self, after: Cursor) -> Seek {
        let first = self.after(self.resolve(after)).map(|entry| entry.cursor);
        seek(after, first, self.last)
    }

    /// The cursor itself, or [`Cursor::UNKNOWN`] for one that this channel has not given out.
    pub fn resolve(&self, after: Cursor) -> Cursor {
        resolve(after, self.last)
    }

    /// The first event retained after a cursor, in O(log n).
    pub fn after(&self, position: Cursor) -> Option<&Arc<Entry>> {
        self.entries.get(self.index(position))
    }

    /// All events retained after a cursor, in order.
    pub fn all_after(&self, position: Cursor) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.range(self.index(position)..)
    }

    /// The part of the channel after a cursor: at most `limit` events, and not many more than `bytes_max` bytes.
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

/// The part of a channel after a cursor, from the events that a store has after it: at most `limit`, and none that would make it more
/// than `bytes_max` bytes except the first. It ends before a hole; the next one starts with the gap. The events of a cursor after the
/// newest event are those after the result of [`resolve`].
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
    let (mut taken, mut bytes) = (Vec::new(), 0_usize);
    while let Some(entry) = entries.next_if(|entry| position.leads_to(entry.cursor) && taken.len() < limit) {
        bytes = bytes.saturating_add(entry.bytes());
        if bytes > bytes_max && !taken.is_empty() {
            break;
        }
        position = entry.cursor;
        taken.push(entry);
    }
    Page { gap, entries: taken, next: position, ended: finished && position >= last }
}

/// Where a reader of `after` begins, given the first event retained after it and the newest of all.
fn seek(after: Cursor, first: Option<Cursor>, last: Cursor) -> Seek {
    let next = match first {
        // Nothing was ever appended.
        None if last == Cursor::START && after == last => return Seek { position: after, gap: None },
        // After the newest, or all later events are gone: the next event follows the newest.
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

    const KEEP: Retention = Retention { events_max: 4, bytes_max: 10_000, age_ms_max: 100 };

    fn at(epoch: u64, seq: u64) -> Cursor {
        Cursor { epoch, seq }
    }

    fn entry(epoch: u64, seq: u64, bytes: usize, time_ms: u64) -> Arc<Entry> {
        Arc::new(Draft::new("e", "x".repeat(bytes)).at(at(epoch, seq), time_ms))
    }

    fn log(cursors: &[(u64, u64)]) -> Log {
        let mut log = Log::new(KEEP, at(1, 0));
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
    fn another_life_is_a_gap() {
        let log = log(&[(1, 1), (3, 1), (3, 2)]);
        assert_eq!(log.seek(at(1, 1)), Seek { position: at(3, 0), gap: gap((1, 2), (3, 0)) });
        assert_eq!(log.seek(at(2, 7)), Seek { position: at(3, 0), gap: gap((2, 8), (3, 0)) });
        // Cursors that this channel has not given, or not yet.
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
    fn empty_log_declares_evicted_events() {
        let mut log = log(&[(1, 1), (1, 2)]);
        assert!(!log.expire(100) && log.expire(101) && log.is_empty() && log.bytes() == 0);
        assert_eq!(log.seek(at(1, 1)), Seek { position: at(1, 2), gap: gap((1, 2), (1, 2)) });
        assert_eq!(log.seek(at(1, 2)).gap, None);
        assert_eq!(log.seek(Cursor::START).position, at(1, 2));
    }

    #[test]
    fn bytes_evict_and_one_large_event_remains() {
        let mut log = Log::new(Retention { bytes_max: 1_000, ..KEEP }, at(1, 0));
        log.push(entry(1, 1, 500, 0));
        log.push(entry(1, 2, 500, 0));
        assert_eq!(log.len(), 1);
        log.push(entry(1, 3, 5_000, 0));
        assert_eq!((log.len(), log.first().unwrap().cursor), (1, at(1, 3)));
    }

    #[test]
    fn entries_that_are_not_after_the_last_are_ignored() {
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
