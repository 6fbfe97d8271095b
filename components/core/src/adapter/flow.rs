//! The items of each record, their attempts, and the records that are complete.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Ordering, Position};
use crate::{
    failure::Failure,
    inference::retry::{Retry, RetryConfig},
    random::SplitMix64,
};

const NS_PER_MS: u64 = 1_000_000;

/// The order of records, and the retries of their items.
#[derive(Debug, Clone)]
pub struct FlowConfig {
    /// Whether the records of a partition are done in the order of the source.
    pub ordering: Ordering,
    /// The retries of an item after a temporary failure.
    pub retry: RetryConfig,
}

/// One part of a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Part<I, O> {
    /// An item with its output.
    Output(I, O),
    /// An item without an output, with its last failure.
    Failed(I, Failure),
}

/// A complete record: each of its items has an output or a failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Done<R, I, O> {
    /// The record, as passed to [`Flow::handle_record`].
    pub record: R,
    /// Its parts in the order of its items; empty if the record has no items.
    pub parts: Vec<Part<I, O>>,
}

/// Records of type `R` with items `I`, for which inference computes outputs `O`. A driver passes in records and
/// outcomes, and polls items for inference and complete records, at [`Flow::poll_timeout`] at the latest. Every record
/// is polled exactly once.
#[derive(Debug)]
pub struct Flow<R, I, O> {
    config: FlowConfig,
    random: SplitMix64,
    /// The number of the next record.
    record_next: u64,
    /// The number of the next attempt.
    attempt_next: u64,
    /// Records that were not polled yet, by number.
    records: BTreeMap<u64, OpenRecord<R, I, O>>,
    /// The items at inference, by attempt: record and part.
    attempts: BTreeMap<u64, (u64, usize)>,
    /// Items for inference: record and part.
    ready: VecDeque<(u64, usize)>,
    /// Items that wait for another attempt: due time, record and part.
    delayed: BTreeSet<(u64, u64, usize)>,
    /// Records that are complete and may be polled.
    done: VecDeque<u64>,
    /// With strict ordering: the records of each partition in their order.
    lanes: BTreeMap<u32, VecDeque<u64>>,
}

#[derive(Debug)]
struct OpenRecord<R, I, O> {
    record: R,
    partition: u32,
    items: Vec<Item<I, O>>,
    /// The number of items without a result.
    missing: usize,
}

#[derive(Debug)]
struct Item<I, O> {
    input: I,
    retry: Retry,
    result: Option<Result<O, Failure>>,
}

impl<R, I: Clone, O> Flow<R, I, O> {
    /// A flow without records. `seed` is the seed of the retry jitter.
    pub fn new(config: FlowConfig, seed: u64) -> Self {
        Self {
            config,
            random: SplitMix64::new(seed),
            record_next: 0,
            attempt_next: 0,
            records: BTreeMap::new(),
            attempts: BTreeMap::new(),
            ready: VecDeque::new(),
            delayed: BTreeSet::new(),
            done: VecDeque::new(),
            lanes: BTreeMap::new(),
        }
    }

    /// The number of records that were not polled yet.
    pub fn open(&self) -> usize {
        self.records.len()
    }

    /// Adds a record with its items; a record without items needs no inference.
    pub fn handle_record(&mut self, position: Position, record: R, inputs: Vec<I>) {
        let number = self.record_next;
        self.record_next += 1;
        let missing = inputs.len();
        self.ready.extend((0..missing).map(|part| (number, part)));
        let items = inputs.into_iter().map(|input| Item { input, retry: Retry::new(), result: None }).collect();
        self.records.insert(number, OpenRecord { record, partition: position.partition, items, missing });
        if self.config.ordering == Ordering::Strict {
            self.lanes.entry(position.partition).or_default().push_back(number);
        }
        if missing == 0 {
            self.settle(number);
        }
    }

    /// Handles the outcome of an attempt. An unknown attempt is ignored.
    pub fn handle_outcome(&mut self, now: u64, attempt: u64, result: Result<O, Failure>) {
        let Some((number, part)) = self.attempts.remove(&attempt) else { return };
        let Some(open) = self.records.get_mut(&number) else { return };
        let item = &mut open.items[part];
        if let Err(failure) = &result
            && let Some(after_ms) = failure.retry_after_ms()
            && let Some(delay_ns) = item.retry.next_delay_ns(&self.config.retry, self.random.next_u64())
        {
            // With the delay of the policy alone, an open circuit would use up all attempts.
            let requested_ns = match failure {
                Failure::CircuitOpen { .. } | Failure::Overloaded { .. } | Failure::Throttled { .. } => {
                    u64::from(after_ms) * NS_PER_MS
                }
                _ => 0,
            };
            self.delayed.insert((now.saturating_add(delay_ns.max(requested_ns)), number, part));
            return;
        }
        item.result = Some(result);
        open.missing -= 1;
        if open.missing == 0 {
            self.settle(number);
        }
    }

    /// The next item for inference, with the number of its attempt.
    pub fn poll_item(&mut self, now: u64) -> Option<(u64, I)> {
        while let Some(&(due, number, part)) = self.delayed.first()
            && due <= now
        {
            self.delayed.remove(&(due, number, part));
            self.ready.push_back((number, part));
        }
        let (number, part) = self.ready.pop_front()?;
        let input = self.records.get(&number)?.items.get(part)?.input.clone();
        let attempt = self.attempt_next;
        self.attempt_next += 1;
        self.attempts.insert(attempt, (number, part));
        Some((attempt, input))
    }

    /// The next complete record.
    pub fn poll_done(&mut self) -> Option<Done<R, I, O>> {
        let number = self.done.pop_front()?;
        let open = self.records.remove(&number)?;
        let part = |item: Item<I, O>| match item.result {
            Some(Ok(output)) => Part::Output(item.input, output),
            Some(Err(failure)) => Part::Failed(item.input, failure),
            None => Part::Failed(item.input, Failure::Other("the item has no outcome".to_owned())),
        };
        Some(Done { record: open.record, parts: open.items.into_iter().map(part).collect() })
    }

    /// When items must be polled again without another input.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.delayed.first().map(|(due, ..)| *due)
    }

    /// Makes a complete record available; with strict ordering once all earlier records of its partition are complete.
    fn settle(&mut self, number: u64) {
        if self.config.ordering != Ordering::Strict {
            self.done.push_back(number);
            return;
        }
        let Some(partition) = self.records.get(&number).map(|open| open.partition) else { return };
        let Some(lane) = self.lanes.get_mut(&partition) else { return };
        while let Some(first) = lane.front().copied()
            && self.records.get(&first).is_some_and(|open| open.missing == 0)
        {
            lane.pop_front();
            self.done.push_back(first);
        }
        if lane.is_empty() {
            self.lanes.remove(&partition);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inference::retry::RetryPolicy;

    type Texts = Flow<u64, String, usize>;

    fn flow(ordering: Ordering, max_attempts: u32) -> Texts {
        let retry = RetryConfig { max_attempts, policy: RetryPolicy::FixedDelay, ..RetryConfig::default() };
        Flow::new(FlowConfig { ordering, retry }, 1)
    }

    fn at(partition: u32, offset: u64) -> Position {
        Position { partition, offset }
    }

    #[test]
    fn strict_order_delays_a_record_behind_earlier_ones_of_its_partition_only() {
        let mut flow = flow(Ordering::Strict, 1);
        flow.handle_record(at(0, 0), 10, vec!["a".into(), "b".into()]);
        flow.handle_record(at(0, 1), 11, Vec::new());
        flow.handle_record(at(1, 0), 12, vec!["c".into()]);
        let attempts: Vec<u64> = std::iter::from_fn(|| flow.poll_item(0)).map(|(attempt, _)| attempt).collect();
        flow.handle_outcome(0, attempts[2], Ok(1));
        assert_eq!(flow.poll_done().map(|done| done.record), Some(12));
        flow.handle_outcome(0, attempts[1], Ok(1));
        assert_eq!(flow.poll_done(), None);
        flow.handle_outcome(0, attempts[0], Err(Failure::Engine("x".into())));
        let first = flow.poll_done().unwrap();
        assert!(matches!(&first.parts[..], [Part::Failed(..), Part::Output(b, 1)] if b == "b"), "{first:?}");
        assert_eq!((flow.poll_done().map(|done| done.record), flow.open()), (Some(11), 0));
    }

    #[test]
    fn retry_waits_for_an_open_circuit_and_attempts_are_bounded() {
        let mut flow = flow(Ordering::BestEffort, 2);
        flow.handle_record(at(0, 0), 0, vec!["a".into()]);
        let (attempt, _) = flow.poll_item(0).unwrap();
        flow.handle_outcome(0, attempt, Err(Failure::CircuitOpen { retry_after_ms: 30_000 }));
        assert_eq!((flow.poll_item(29_999 * NS_PER_MS), flow.poll_timeout()), (None, Some(30_000 * NS_PER_MS)));
        let (attempt, _) = flow.poll_item(30_000 * NS_PER_MS).unwrap();
        flow.handle_outcome(attempt + 7, 99, Ok(1));
        flow.handle_outcome(0, attempt, Err(Failure::Unavailable("x".into())));
        let done = flow.poll_done().unwrap();
        assert_eq!(done.parts, [Part::Failed("a".to_owned(), Failure::Unavailable("x".into()))]);
        assert_eq!((flow.poll_item(u64::MAX), flow.poll_timeout()), (None, None));
    }

    proptest! {
        /// For any outcomes in any order, every record is done once, with all of its parts in order.
        #[test]
        fn every_record_is_done_once(
            strict in any::<bool>(),
            records in prop::collection::vec((0u32..3, 0usize..4), 1..40),
            picks in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3), 0..400),
        ) {
            let ordering = if strict { Ordering::Strict } else { Ordering::BestEffort };
            let mut flow = flow(ordering, 3);
            for (number, (partition, parts)) in records.iter().enumerate() {
                let inputs = (0..*parts).map(|part| format!("{number}.{part}")).collect();
                flow.handle_record(at(*partition, number as u64), number as u64, inputs);
            }
            let (mut now, mut picks, mut open, mut done) = (0, picks.into_iter(), Vec::new(), Vec::new());
            loop {
                open.extend(std::iter::from_fn(|| flow.poll_item(now)));
                done.extend(std::iter::from_fn(|| flow.poll_done()));
                if open.is_empty() {
                    match flow.poll_timeout() {
                        Some(due) => now = due,
                        None => break,
                    }
                    continue;
                }
                // Once the picks are used up, everything succeeds.
                let (at, kind) = picks.next().map_or((0, 0), |(index, kind)| (index.index(open.len()), kind));
                let (attempt, text): (u64, String) = open.remove(at);
                let result = match kind {
                    0 => Ok(text.len()),
                    1 => Err(Failure::Unavailable(String::new())),
                    _ => Err(Failure::Engine(String::new())),
                };
                flow.handle_outcome(now, attempt, result);
            }
            prop_assert_eq!(flow.open(), 0);
            prop_assert_eq!(done.len(), records.len());
            let mut numbers: Vec<u64> = done.iter().map(|done| done.record).collect();
            if strict {
                for partition in 0..3 {
                    let order: Vec<u64> =
                        numbers.iter().copied().filter(|number| records[*number as usize].0 == partition).collect();
                    prop_assert!(order.is_sorted());
                }
            }
            numbers.sort_unstable();
            prop_assert_eq!(numbers, (0..records.len() as u64).collect::<Vec<_>>());
            for done in &done {
                let texts: Vec<&String> = done.parts.iter().map(|part| match part {
                    Part::Output(text, _) | Part::Failed(text, _) => text,
                }).collect();
                let expected: Vec<String> =
                    (0..records[done.record as usize].1).map(|part| format!("{}.{part}", done.record)).collect();
                prop_assert_eq!(texts, expected.iter().collect::<Vec<_>>());
            }
        }
    }
}
