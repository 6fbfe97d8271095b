//! The results that wait for the sink.

use weir_core::adapter::ResultRecord;

/// With as many results of complete records that wait, the component's results are not received.
const PENDING_MAX: usize = 512;

/// Results in their order. Those of a record are written only together with the one that completes it, so no result is written of a
/// record that the component does not complete.
#[derive(Debug, Default)]
pub(crate) struct PendingResults {
    results: Vec<ResultRecord>,
    /// The number of results up to the last one that completes a record.
    complete: usize,
    /// The number of positions that they complete.
    positions: usize,
}

impl PendingResults {
    pub(crate) fn push(&mut self, result: ResultRecord) {
        let positions = result.completes.len();
        self.results.push(result);
        if positions > 0 {
            self.positions += positions;
            self.complete = self.results.len();
        }
    }

    pub(crate) fn extend(&mut self, results: Vec<ResultRecord>) {
        results.into_iter().for_each(|result| self.push(result));
    }

    /// Whether more results may be received. The results of one record are bounded by the component.
    pub(crate) fn has_room(&self) -> bool {
        self.complete < PENDING_MAX
    }

    /// Removes the results of complete records. `open` is given once all records were read: the number of those that are not complete. If
    /// the results complete all of them, results of no record are removed too.
    pub(crate) fn take(&mut self, open: Option<usize>) -> Vec<ResultRecord> {
        let count = match open {
            Some(open) if self.positions >= open => self.results.len(),
            _ => self.complete,
        };
        (self.complete, self.positions) = (0, 0);
        self.results.drain(..count).collect()
    }
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
}
