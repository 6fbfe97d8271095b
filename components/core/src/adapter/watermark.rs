//! Which positions of a source are complete, and up to which one each partition may be committed.

use std::collections::{BTreeMap, VecDeque};

use thiserror::Error;

use super::Position;

/// Why a position was refused. The watermarks are unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PositionError {
    /// It does not follow the last one of its partition.
    #[error("offset {offset} of partition {partition} does not follow {last}")]
    NotAscending {
        /// The partition.
        partition: u32,
        /// The offset.
        offset: u64,
        /// The last offset that was read.
        last: u64,
    },
}

/// A watermark to commit: all records of a partition up to and including `offset` are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The partition.
    pub partition: u32,
    /// The last complete offset that no incomplete one precedes.
    pub offset: u64,
}

/// The positions of records that were read and are not committed.
#[derive(Debug, Clone, Default)]
pub struct Watermarks {
    partitions: BTreeMap<u32, Partition>,
    /// Records that were read and are not complete, and their bytes.
    open: usize,
    open_bytes: usize,
}

#[derive(Debug, Clone, Default)]
struct Partition {
    /// From the first incomplete record, ascending.
    records: VecDeque<Record>,
    last_read: Option<u64>,
    watermark: Option<u64>,
    /// Whether the watermark was not polled yet.
    is_new: bool,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    offset: u64,
    bytes: usize,
    is_complete: bool,
}

impl Watermarks {
    /// The state before the first record.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of records that were read and are not complete.
    pub fn open(&self) -> usize {
        self.open
    }

    /// The bytes of these records.
    pub fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    /// Records the position of a record of this many bytes that was read.
    ///
    /// # Errors
    ///
    /// It does not follow the last one of its partition.
    pub fn handle_read(&mut self, position: Position, bytes: usize) -> Result<(), PositionError> {
        let Position { partition, offset } = position;
        let part = self.partitions.entry(partition).or_default();
        if let Some(last) = part.last_read.filter(|last| offset <= *last) {
            return Err(PositionError::NotAscending { partition, offset, last });
        }
        part.last_read = Some(offset);
        part.records.push_back(Record { offset, bytes, is_complete: false });
        self.open += 1;
        self.open_bytes += bytes;
        Ok(())
    }

    /// Records that all results of a position are written. False when the position is not open: it was never read, is
    /// complete already, or belongs to a partition that was revoked.
    pub fn handle_complete(&mut self, position: Position) -> bool {
        let Some(part) = self.partitions.get_mut(&position.partition) else { return false };
        let Ok(at) = part.records.binary_search_by_key(&position.offset, |record| record.offset) else { return false };
        let record = &mut part.records[at];
        if std::mem::replace(&mut record.is_complete, true) {
            return false;
        }
        self.open -= 1;
        self.open_bytes -= record.bytes;
        while let Some(Record { offset, is_complete: true, .. }) = part.records.front().copied() {
            part.records.pop_front();
            part.watermark = Some(offset);
            part.is_new = true;
        }
        true
    }

    /// Removes a partition that was assigned to another consumer: its open records are not committed here.
    pub fn handle_revoked(&mut self, partition: u32) {
        if let Some(part) = self.partitions.remove(&partition) {
            for record in part.records.iter().filter(|record| !record.is_complete) {
                self.open -= 1;
                self.open_bytes -= record.bytes;
            }
        }
    }

    /// The next partition whose watermark has advanced since it was last polled.
    pub fn poll_commit(&mut self) -> Option<Commit> {
        let (partition, part) = self.partitions.iter_mut().find(|(_, part)| part.is_new)?;
        part.is_new = false;
        part.watermark.map(|offset| Commit { partition: *partition, offset })
    }

    /// True when a complete record follows an incomplete one: more records are written than the watermarks cover.
    pub fn has_gaps(&self) -> bool {
        self.partitions.values().any(|part| part.records.iter().any(|record| record.is_complete))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(partition: u32, offset: u64) -> Position {
        Position { partition, offset }
    }

    #[test]
    fn watermark_stops_before_the_first_incomplete_record() {
        let mut marks = Watermarks::new();
        for offset in [3, 7, 8] {
            marks.handle_read(at(0, offset), 1).unwrap();
        }
        assert!(marks.handle_complete(at(0, 8)) && marks.handle_complete(at(0, 7)) && marks.has_gaps());
        assert_eq!(marks.poll_commit(), None);
        assert!(marks.handle_complete(at(0, 3)) && !marks.has_gaps());
        assert_eq!(marks.poll_commit(), Some(Commit { partition: 0, offset: 8 }));
        assert_eq!((marks.poll_commit(), marks.open()), (None, 0));
    }

    #[test]
    fn foreign_repeated_and_descending_positions_are_refused() {
        let mut marks = Watermarks::new();
        marks.handle_read(at(1, 5), 10).unwrap();
        let refused = PositionError::NotAscending { partition: 1, offset: 5, last: 5 };
        assert_eq!(marks.handle_read(at(1, 5), 10), Err(refused));
        assert!(!marks.handle_complete(at(0, 5)) && !marks.handle_complete(at(1, 4)));
        assert!(marks.handle_complete(at(1, 5)) && !marks.handle_complete(at(1, 5)));
        marks.handle_read(at(1, 6), 10).unwrap();
        marks.handle_read(at(2, 1), 7).unwrap();
        assert_eq!((marks.open(), marks.open_bytes()), (2, 17));
        marks.handle_revoked(1);
        assert_eq!((marks.open(), marks.open_bytes(), marks.poll_commit()), (1, 7, None));
        marks.handle_read(at(1, 2), 10).unwrap();
    }

    proptest! {
        /// Compares the watermarks with sets of the positions that were read and completed.
        #[test]
        fn nothing_is_committed_before_it_is_complete(
            steps in prop::collection::vec((0u32..3, 1u64..4, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let mut marks = Watermarks::new();
            let (mut read, mut complete) = (BTreeSet::new(), BTreeSet::new());
            let mut last = [0u64; 3];
            let mut committed = [0u64; 3];
            for (partition, step, choice, reads) in steps {
                let open: Vec<Position> = read.difference(&complete).copied().collect();
                if reads || open.is_empty() {
                    last[partition as usize] += step;
                    let position = at(partition, last[partition as usize]);
                    marks.handle_read(position, position.offset as usize).unwrap();
                    read.insert(position);
                } else {
                    let position = *choice.get(&open);
                    prop_assert!(marks.handle_complete(position));
                    complete.insert(position);
                }
                while let Some(commit) = marks.poll_commit() {
                    prop_assert!(commit.offset > committed[commit.partition as usize]);
                    committed[commit.partition as usize] = commit.offset;
                }
                for partition in 0..3 {
                    let first_open = read.difference(&complete).find(|p| p.partition == partition);
                    let best = read.iter().filter(|p| p.partition == partition)
                        .take_while(|p| first_open.is_none_or(|open| p.offset < open.offset)).last();
                    // The watermark is as late as possible.
                    prop_assert_eq!(committed[partition as usize], best.map_or(0, |p| p.offset));
                }
                prop_assert_eq!(marks.open(), read.len() - complete.len());
                let open_bytes: u64 = read.difference(&complete).map(|position| position.offset).sum();
                prop_assert_eq!(marks.open_bytes(), open_bytes as usize);
            }
        }
    }
}
