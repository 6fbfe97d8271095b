//! Properties of channels under random publishers, readers, disconnects and crashes, on virtual time.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    /// Events with their sizes in bytes, each with one of a few keys or none.
    Publish(Vec<(usize, Option<u8>)>),
    Poll(Index, usize),
    /// A new reader, from the start or from any assigned cursor.
    Follow(Option<Index>),
    Disconnect(Index),
    Reconnect(Index),
    Page(usize),
    Wait(u64),
    /// A restart that loses no acknowledged event.
    Restart,
    /// A crash that loses this many of the newest events.
    Crash(usize),
    /// The channel is removed and created again.
    Recreate,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let event = (0usize..200, prop::option::weighted(0.8, 0u8..3));
    let op = prop_oneof![
        10 => prop::collection::vec(event, 1..6).prop_map(Op::Publish),
        12 => (any::<Index>(), 0usize..8).prop_map(|(which, count)| Op::Poll(which, count)),
        3 => prop::option::of(any::<Index>()).prop_map(Op::Follow),
        2 => any::<Index>().prop_map(Op::Disconnect),
        4 => any::<Index>().prop_map(Op::Reconnect),
        3 => (1usize..5).prop_map(Op::Page),
        2 => (0u64..80).prop_map(Op::Wait),
        1 => Just(Op::Restart),
        1 => (0usize..6).prop_map(Op::Crash),
        1 => Just(Op::Recreate),
    ];
    prop::collection::vec(op, 0..150)
}

/// A reader, and its deliveries.
struct Reader {
    connection: Option<Subscriber>,
    /// The cursor that it would send as `Last-Event-ID`.
    cursor: Cursor,
    /// The index of the last event that it received, among all published events.
    received: Option<usize>,
}

struct World {
    retention: Retention,
    outbox_bytes_max: usize,
    log: Log,
    /// The cursor of the next event.
    next: Cursor,
    now_ms: u64,
    published: Vec<Arc<Entry>>,
    index: HashMap<Cursor, usize>,
    readers: Vec<Reader>,
    /// A reader that reads pages.
    paging: Reader,
    gaps: usize,
    coalesced: usize,
    slow: usize,
}

impl World {
    fn new(retention: Retention, outbox_bytes_max: usize) -> Self {
        let log = Log::new(retention, Cursor::new(1, 0));
        let paging = Reader { connection: None, cursor: Cursor::new(1, 0), received: None };
        Self {
            retention,
            outbox_bytes_max,
            log,
            next: Cursor::new(1, 1),
            now_ms: 0,
            published: Vec::new(),
            index: HashMap::new(),
            readers: Vec::new(),
            paging,
            gaps: 0,
            coalesced: 0,
            slow: 0,
        }
    }

    fn apply(&mut self, op: Op) {
        let has_readers = !self.readers.is_empty();
        match op {
            Op::Publish(events) => events.into_iter().for_each(|(bytes, key)| self.publish(bytes, key)),
            Op::Poll(which, count) if has_readers => self.poll(which.index(self.readers.len()), count),
            Op::Disconnect(which) if has_readers => {
                let which = which.index(self.readers.len());
                self.readers[which].connection = None;
            }
            Op::Reconnect(which) if has_readers => self.connect(which.index(self.readers.len())),
            Op::Poll(..) | Op::Disconnect(_) | Op::Reconnect(_) => {}
            Op::Follow(from) => self.follow(from),
            Op::Page(limit) => self.page(limit),
            Op::Wait(ms) => {
                self.now_ms += ms;
                self.log.expire(self.now_ms);
            }
            Op::Restart => self.recover(0),
            Op::Crash(lost) => self.recover(lost),
            Op::Recreate => {
                let epoch = self.next.epoch + 1;
                self.log = Log::new(self.retention, Cursor::new(epoch, 0));
                self.next = Cursor::new(epoch, 1);
                self.readers.iter_mut().for_each(|reader| reader.connection = None);
            }
        }
        assert!(self.log.len() <= self.retention.events_max);
        assert!(self.log.len() <= 1 || self.log.bytes() <= self.retention.bytes_max);
        for subscriber in self.readers.iter().filter_map(|reader| reader.connection.as_ref()) {
            // A single item may exceed the bound: an event, or an event after a gap.
            assert!(subscriber.outbox_bytes() <= self.outbox_bytes_max.max(600));
        }
    }

    fn publish(&mut self, bytes: usize, key: Option<u8>) {
        let draft = Draft { coalesce: key.map(|key| key.to_string().into()), ..Draft::new("e", "x".repeat(bytes)) };
        let entry = Arc::new(draft.at(self.next, self.now_ms));
        self.next = self.next.next();
        self.index.insert(entry.cursor, self.published.len());
        self.published.push(Arc::clone(&entry));
        assert!(self.log.push(Arc::clone(&entry)));
        self.readers
            .iter_mut()
            .filter_map(|reader| reader.connection.as_mut())
            .for_each(|subscriber| subscriber.handle_appended(&entry));
    }

    /// A process ends and another starts from the stored events.
    fn recover(&mut self, lost: usize) {
        let stored: Vec<_> = self.log.all_after(Cursor::START).cloned().collect();
        let last = self.log.last();
        let lost = lost.min(stored.len());
        let stored = &stored[..stored.len() - lost];
        let before = match (stored.first(), lost) {
            (Some(first), _) => first.cursor.previous(),
            (None, 0) => self.log.last(),
            (None, _) => Cursor::new(self.log.last().epoch, 0),
        };
        self.log = Log::new(self.retention, before);
        stored.iter().for_each(|entry| assert!(self.log.push(Arc::clone(entry))));
        if lost > 0 {
            self.next = Cursor::new(self.next.epoch + 1, 1);
            // The log skips to a new epoch, so the cursors of the lost events count as assigned by it.
            self.log.skip_to(self.next.previous());
        } else {
            self.log.skip_to(last);
        }
        self.readers.iter_mut().for_each(|reader| reader.connection = None);
    }

    fn follow(&mut self, from: Option<Index>) {
        let known = self.published.len();
        let (cursor, received) = match from.filter(|_| known > 0).map(|from| from.index(known)) {
            Some(index) => (self.published[index].cursor, Some(index)),
            None => (Cursor::START, None),
        };
        self.readers.push(Reader { connection: None, cursor, received });
        self.connect(self.readers.len() - 1);
    }

    fn connect(&mut self, which: usize) {
        let reader = &mut self.readers[which];
        let subscriber = Subscriber::new(reader.cursor, self.outbox_bytes_max, &self.log);
        if reader.cursor == Cursor::START {
            reader.cursor = subscriber.delivered();
            let first = self.log.first().map_or(self.published.len(), |first| self.index[&first.cursor]);
            reader.received = first.checked_sub(1);
        }
        reader.connection = Some(subscriber);
    }

    fn poll(&mut self, which: usize, count: usize) {
        for _ in 0..count {
            let reader = &mut self.readers[which];
            let Some(delivery) = reader.connection.as_mut().and_then(|connection| connection.poll(&self.log)) else {
                return;
            };
            match delivery {
                Delivery::Event { entry, coalesced } => {
                    self.coalesced += coalesced as usize;
                    check_event(reader, &entry, coalesced, &self.published, &self.index);
                }
                Delivery::Gap(gap) => {
                    self.gaps += 1;
                    check_gap(reader, gap);
                }
                Delivery::Closed(reason) => {
                    assert_eq!(reason, CloseReason::Slow);
                    self.slow += 1;
                    reader.connection = None;
                }
            }
            let resume_cursor = reader.connection.as_ref().map(Subscriber::delivered);
            assert!(resume_cursor.is_none_or(|at| at == reader.cursor));
        }
    }

    fn page(&mut self, limit: usize) {
        let page = self.log.read(self.paging.cursor, limit, 1_000);
        if let Some(gap) = page.gap {
            check_gap(&mut self.paging, gap);
        }
        assert!(page.entries.len() <= limit);
        page.entries.iter().for_each(|entry| check_event(&mut self.paging, entry, 0, &self.published, &self.index));
        assert_eq!(self.paging.cursor, page.next);
    }

    /// All readers reconnect and read everything.
    fn finish(&mut self) {
        for which in 0..self.readers.len() {
            // A reader that is closed as slow resumes once; its replay then reaches the end of the log.
            for _ in 0..2 {
                if self.readers[which].connection.is_none() {
                    self.connect(which);
                }
                self.poll(which, usize::MAX);
            }
            assert!(self.readers[which].connection.is_some(), "closed twice while nothing was published");
            assert_eq!(self.readers[which].cursor, self.log.last());
        }
        while self.paging.cursor != self.log.last() {
            self.page(3);
        }
    }
}

/// Checks that an event follows the reader's last one, or that the events between were replaced and are counted.
fn check_event(
    reader: &mut Reader,
    entry: &Arc<Entry>,
    coalesced: u32,
    published: &[Arc<Entry>],
    index: &HashMap<Cursor, usize>,
) {
    let (before, now) = (reader.cursor, entry.cursor);
    assert_eq!((before.epoch, before.seq + 1 + u64::from(coalesced)), (now.epoch, now.seq), "a silent hole");
    let at = index[&now];
    assert!(reader.received.is_none_or(|received| received < at), "a duplicate");
    assert_eq!(entry, &published[at]);
    for replaced in &published[at - coalesced as usize..at] {
        let key = replaced.coalesce.as_ref().expect("only events with a key are replaced");
        assert!(published[index[&replaced.cursor] + 1..].iter().any(|later| later.coalesce.as_ref() == Some(key)));
    }
    reader.cursor = now;
    reader.received = Some(at);
}

/// Checks that a gap begins directly after the reader's cursor.
fn check_gap(reader: &mut Reader, gap: Gap) {
    assert_eq!(gap.missing_from, reader.cursor.next());
    assert!(gap.missing_from.epoch != gap.missing_to.epoch || gap.missing_from.seq != gap.missing_to.seq + 1);
    reader.cursor = gap.missing_to;
}

proptest! {
    #[test]
    fn reader_gets_the_exact_sequence_or_a_gap(
        events_max in 1usize..20,
        bytes_max in 200usize..4_000,
        outbox_bytes_max in 300usize..2_500,
        ops in ops(),
    ) {
        let retention = Retention { events_max, bytes_max, age_ms_max: 200 };
        let mut world = World::new(retention, outbox_bytes_max);
        ops.into_iter().for_each(|op| world.apply(op));
        world.finish();
    }

    #[test]
    fn page_equals_a_linear_search(
        cursors in prop::collection::btree_set((1u64..4, 1u64..12), 0..20),
        after in (0u64..5, 0u64..13),
        limit in 1usize..6,
    ) {
        let mut log = Log::new(Retention::default(), Cursor::new(1, 0));
        for &(epoch, seq) in &cursors {
            log.push(Arc::new(Draft::new("e", "").at(Cursor::new(epoch, seq), 0)));
        }
        let after = Cursor::new(after.0, after.1);
        let page = log.read(after, limit, usize::MAX);
        // A linear search: the events after the cursor, until the first hole. A cursor after the newest event is not of
        // this channel: all events are after it.
        let is_foreign = after > log.last();
        let rest = cursors.iter().map(|&(epoch, seq)| Cursor::new(epoch, seq));
        let rest = rest.filter(|cursor| *cursor > after || is_foreign);
        let mut expected: Vec<Cursor> = Vec::new();
        for cursor in rest {
            if expected.len() == limit || expected.last().is_some_and(|last| !last.leads_to(cursor)) {
                break;
            }
            expected.push(cursor);
        }
        prop_assert_eq!(page.entries.iter().map(|entry| entry.cursor).collect::<Vec<_>>(), expected.clone());
        let whole = after == Cursor::START || match expected.first() {
            Some(first) => after.leads_to(*first),
            None => after == log.last(),
        };
        prop_assert_eq!(page.gap.is_none(), whole);
        prop_assert_eq!(page.next, expected.last().copied().unwrap_or(if whole && after != Cursor::START { after } else { log.last() }));
    }
}

/// The random cases cover the behaviour to be tested.
#[test]
fn random_cases_have_gaps_slow_readers_and_replaced_events() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let (mut gaps, mut coalesced, mut slow) = (0, 0, 0);
    for _ in 0..100 {
        let mut world = World::new(Retention { events_max: 15, bytes_max: 3_000, age_ms_max: 200 }, 1_300);
        let ops = ops().new_tree(&mut runner).unwrap().current();
        ops.into_iter().for_each(|op| world.apply(op));
        world.finish();
        (gaps, coalesced, slow) = (gaps + world.gaps, coalesced + world.coalesced, slow + world.slow);
    }
    assert!(gaps > 100 && coalesced > 50 && slow > 10, "gaps {gaps}, coalesced {coalesced}, slow {slow}");
}
