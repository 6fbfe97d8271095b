//! The partitions that the group has assigned to this consumer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A partition of a topic.
pub(super) type TopicPartition = (String, i32);

/// The assignment, shared by the thread of the consumer and the committer.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    state: Mutex<State>,
    /// Notified when records are complete.
    completed: Condvar,
    /// Notified when the adapter has ended.
    closed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of each partition of this consumer. A partition that is assigned again has another number.
    numbers: BTreeMap<TopicPartition, u32>,
    partitions: BTreeMap<u32, TopicPartition>,
    number_next: u32,
    /// Records in flight, by number.
    in_flight: BTreeMap<u32, u64>,
    /// The offset after the last complete record, by number.
    positions: BTreeMap<u32, i64>,
    /// Numbers that were revoked and not reported yet.
    revoked: Vec<u32>,
    /// A partition was revoked while records of it were in flight.
    has_lost_records: bool,
    /// The adapter has ended: no record in flight will complete.
    is_closed: bool,
}

impl Assignment {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a partition.
    pub(super) fn number(&self, topic: &str, partition: i32) -> u32 {
        let mut state = self.lock();
        let key = (topic.to_owned(), partition);
        if let Some(number) = state.numbers.get(&key) {
            return *number;
        }
        let number = state.number_next;
        state.number_next += 1;
        state.numbers.insert(key.clone(), number);
        state.partitions.insert(number, key);
        number
    }

    /// The numbers of the partitions that belong to this consumer.
    pub(super) fn numbers(&self) -> BTreeSet<u32> {
        self.lock().partitions.keys().copied().collect()
    }

    /// Records that a record of each of these numbers is in flight.
    pub(super) fn add(&self, numbers: impl Iterator<Item = u32>) {
        let mut state = self.lock();
        numbers.for_each(|number| *state.in_flight.entry(number).or_default() += 1);
    }

    /// Records that records of these numbers are written, after their positions have advanced.
    pub(super) fn complete(&self, numbers: impl Iterator<Item = u32>) {
        let mut state = self.lock();
        for number in numbers {
            if let Some(count) = state.in_flight.get_mut(&number) {
                *count = count.saturating_sub(1);
            }
        }
        drop(state);
        self.completed.notify_all();
    }

    /// Sets the position of a partition; returns the partition if it still belongs to this consumer.
    pub(super) fn advance(&self, number: u32, position: i64) -> Option<TopicPartition> {
        let mut state = self.lock();
        let partition = state.partitions.get(&number).cloned()?;
        state.positions.insert(number, position);
        Some(partition)
    }

    /// Waits until no record of these partitions is in flight, at most for `timeout`. Returns their positions.
    pub(super) fn wait_complete(
        &self,
        revoked: &BTreeSet<TopicPartition>,
        timeout: Duration,
    ) -> Vec<(TopicPartition, i64)> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        let numbers: Vec<u32> = revoked.iter().filter_map(|partition| state.numbers.get(partition).copied()).collect();
        loop {
            let is_complete =
                numbers.iter().all(|number| state.in_flight.get(number).is_none_or(|in_flight| *in_flight == 0));
            let left = deadline.saturating_duration_since(Instant::now());
            if is_complete || state.is_closed || left.is_zero() {
                break;
            }
            state = self.completed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let position = |number: &u32| Some((state.partitions.get(number)?.clone(), *state.positions.get(number)?));
        numbers.iter().filter_map(position).collect()
    }

    /// Records that partitions belong to another consumer.
    pub(super) fn revoke(&self, revoked: &BTreeSet<TopicPartition>) {
        let mut state = self.lock();
        for partition in revoked {
            if let Some(number) = state.numbers.remove(partition) {
                state.partitions.remove(&number);
                state.positions.remove(&number);
                state.has_lost_records |= state.in_flight.remove(&number).is_some_and(|in_flight| in_flight > 0);
                state.revoked.push(number);
            }
        }
    }

    /// The numbers that were revoked since the last call.
    pub(super) fn take_revoked(&self) -> Vec<u32> {
        std::mem::take(&mut self.lock().revoked)
    }

    /// Whether a partition was revoked while records of it were in flight.
    pub(super) fn has_lost_records(&self) -> bool {
        self.lock().has_lost_records
    }

    /// The positions of all partitions of this consumer.
    pub(super) fn positions(&self) -> Vec<(TopicPartition, i64)> {
        let state = self.lock();
        let position = |(number, position): (&u32, &i64)| Some((state.partitions.get(number)?.clone(), *position));
        state.positions.iter().filter_map(position).collect()
    }

    /// Records that the adapter has ended, which ends [`Self::wait_complete`].
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.completed.notify_all();
        self.closed.notify_all();
    }

    /// Waits until the adapter has ended.
    pub(super) fn wait_closed(&self) {
        let is_open = |state: &mut State| !state.is_closed;
        drop(self.closed.wait_while(self.lock(), is_open).unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn set(partitions: &[i32]) -> BTreeSet<TopicPartition> {
        partitions.iter().map(|partition| ("t".to_owned(), *partition)).collect()
    }

    #[test]
    fn partition_assigned_again_has_another_number() {
        let assignment = Assignment::default();
        assert_eq!((assignment.number("t", 0), assignment.number("t", 1), assignment.number("t", 0)), (0, 1, 0));
        assert_eq!(assignment.advance(0, 7), Some(("t".to_owned(), 0)));
        assignment.revoke(&set(&[0, 5]));
        assert_eq!((assignment.take_revoked(), assignment.take_revoked()), (vec![0], vec![]));
        assert_eq!(assignment.numbers(), BTreeSet::from([1]));
        assert_eq!((assignment.advance(0, 8), assignment.number("t", 0)), (None, 2));
        assert_eq!(assignment.positions(), []);
        assert!(!assignment.has_lost_records());
        assignment.add([1].into_iter());
        assignment.revoke(&set(&[1]));
        assert!(assignment.has_lost_records());
    }

    #[test]
    fn revocation_waits_for_records_in_flight_up_to_its_bound() {
        let assignment = Arc::new(Assignment::default());
        let (number, other) = (assignment.number("t", 0), assignment.number("t", 1));
        assignment.add([number, other].into_iter());
        let began = Instant::now();
        assert_eq!(assignment.wait_complete(&set(&[0]), Duration::from_millis(30)), []);
        assert!(began.elapsed() >= Duration::from_millis(30));
        let completing = assignment.clone();
        let thread = std::thread::spawn(move || {
            completing.advance(number, 7);
            completing.complete([number].into_iter());
        });
        assert_eq!(assignment.wait_complete(&set(&[0]), Duration::from_secs(60)), [(("t".to_owned(), 0), 7)]);
        thread.join().unwrap();
        let waiting = assignment.clone();
        let thread = std::thread::spawn(move || waiting.wait_closed());
        assignment.close();
        thread.join().unwrap();
        assert_eq!(assignment.wait_complete(&set(&[1]), Duration::from_secs(60)), []);
    }
}
