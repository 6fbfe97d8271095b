//! The results that wait for the sink.

use weir_core::adapter::ResultRecord;
use weir_core::wording::counted;

/// With as many results of complete records that wait, the component's results are not received.
const PENDING_MAX: usize = 512;
/// The most results, and their bytes, that complete no record. A payload has at most 65,536 items, each with a few results.
const OPEN_RESULTS_MAX: usize = 1 << 18;
const OPEN_BYTES_MAX: usize = 256 << 20;

/// Results in their order. Those of a record are written only together with the one that completes it, so no result is written of a
/// record that the component does not complete.
#[derive(Debug, Default)]
pub(crate) struct PendingResults {
    results: Vec<ResultRecord>,
    /// The number of results up to the last one that completes a record.
    complete: usize,
    /// The number of positions that they complete.
    positions: usize,
    /// The bytes of the results after the last one that completes a record.
    open_bytes: usize,
}

impl PendingResults {
    pub(crate) fn push(&mut self, result: ResultRecord) {
        let positions = result.completes.len();
        self.open_bytes += result_bytes(&result);
        self.results.push(result);
        if positions > 0 {
            self.positions += positions;
            self.complete = self.results.len();
            self.open_bytes = 0;
        }
    }

    pub(crate) fn extend(&mut self, results: Vec<ResultRecord>) {
        results.into_iter().for_each(|result| self.push(result));
    }

    /// Whether more results may be received. Those of one record are bounded by [`Self::excess`].
    pub(crate) fn has_room(&self) -> bool {
        self.complete < PENDING_MAX
    }

    /// The error of a component that gives results without end and completes no record.
    pub(crate) fn excess(&self) -> Option<String> {
        let open = self.results.len() - self.complete;
        let bound = match (open > OPEN_RESULTS_MAX, self.open_bytes > OPEN_BYTES_MAX) {
            (true, _) => counted(OPEN_RESULTS_MAX, "result"),
            (false, true) => counted(OPEN_BYTES_MAX, "byte"),
            (false, false) => return None,
        };
        Some(format!("it has given more than {bound} without completing a record"))
    }

    /// Removes the results of complete records. `open` is given once all records were read: the number of those that are not complete. If
    /// the results complete all of them, results of no record are removed too.
    pub(crate) fn take(&mut self, open: Option<usize>) -> Vec<ResultRecord> {
        let count = match open {
            Some(open) if self.positions >= open => {
                self.open_bytes = 0;
                self.results.len()
            }
            _ => self.complete,
        };
        (self.complete, self.positions) = (0, 0);
        self.results.drain(..count).collect()
    }
}

fn result_bytes(result: &ResultRecord) -> usize {
    let headers: usize = result.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
    result.payload.len() + result.key.as_ref().map_or(0, Vec::len) + result.origin.len() + headers
}

#[cfg(test)]
mod tests {
    use weir_core::adapter::{Destination, Position};

    use super::*;

    fn result(completes: &[u64]) -> ResultRecord {
        ResultRecord {
            payload: Vec::new(),
            key: None,
            headers: Vec::new(),
            destination: Destination::Output,
            origin: String::new(),
            completes: completes.iter().map(|offset| Position { partition: 0, offset: *offset }).collect(),
        }
    }

    #[test]
    fn results_of_an_incomplete_record_wait_and_do_not_count_for_the_bound() {
        let mut pending = PendingResults::default();
        pending.push(result(&[1]));
        for _ in 0..PENDING_MAX {
            pending.push(result(&[]));
        }
        assert!(pending.has_room());
        assert_eq!((pending.take(None).len(), pending.take(Some(1)).len()), (1, 0));
        pending.push(result(&[2]));
        assert!(!pending.has_room());
        assert_eq!(pending.take(None).len(), PENDING_MAX + 1);
    }

    #[test]
    fn results_of_no_record_are_taken_once_all_records_are_complete() {
        let mut pending = PendingResults::default();
        pending.push(result(&[1]));
        pending.push(result(&[]));
        assert_eq!(pending.take(Some(2)).len(), 1);
        assert_eq!(pending.take(Some(1)).len(), 0);
        assert_eq!(pending.take(Some(0)).len(), 1);
    }
    #[test]
    fn results_that_complete_no_record_are_bounded() {
        let mut pending = PendingResults::default();
        (0..OPEN_RESULTS_MAX).for_each(|_| pending.push(result(&[])));
        assert_eq!(pending.excess(), None);
        pending.push(result(&[]));
        assert_eq!(pending.excess().unwrap(), "it has given more than 262144 results without completing a record");
        // They are those of a record.
        pending.push(result(&[1]));
        assert_eq!(pending.excess(), None);
        let large = ResultRecord { payload: vec![0; OPEN_BYTES_MAX], ..result(&[]) };
        pending.push(large);
        assert_eq!(pending.excess(), None);
        pending.push(ResultRecord { payload: vec![0], ..result(&[]) });
        assert_eq!(pending.excess().unwrap(), "it has given more than 268435456 bytes without completing a record");
        // After the last record, they belong to none.
        pending.take(Some(1));
        assert_eq!((pending.excess(), pending.results.len()), (None, 0));
    }
}
