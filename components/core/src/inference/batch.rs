//! The choice of the sequences that share a run of a model.
//!
//! A [`Batcher`] holds the tokenized sequences that wait in one instance, and forms a batch whenever the engine is
//! free: it does not wait for more. The sequence with the earliest turn is always in the next batch, so every wait is
//! finite; the others are chosen for the lowest cost per token, by the current [`Cost`] estimate.
//!
//! - [`Form::Packed`]: the sequences of a batch are concatenated. The cost depends on their tokens, rounded up to a
//!   [bucket](Shapes); the sequences that fill a bucket best are found by an exact solution of the subset-sum problem.
//! - [`Form::Padded`]: every sequence of a batch is padded to the longest. Sequences of similar length share a batch.
//!
//! Turns: callers get equal numbers of tokens by the start-time fair queueing of [`queue`](crate::inference::queue), so
//! neither a caller with many items nor a text of a thousand sentences delays the others.

use std::collections::{HashMap, HashSet};

use crate::inference::cost::Cost;

/// The layout of several sequences in the input of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Concatenated: `[1, tokens]`.
    Packed,
    /// One row for each, padded to the longest: `[rows, longest]`.
    Padded,
}

/// The sizes that a run can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shapes {
    /// All sizes: the engine needs no plan for a shape.
    #[default]
    Any,
    /// Few sizes: the engine prepares a plan for each frequent shape, so lengths are rounded up and row counts are
    /// chosen from a short list.
    Bounded,
}

/// The bounds of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most sequences; 0 counts as 1.
    pub rows_max: usize,
    /// Most computed tokens, with padding and rounding. A longer sequence is a batch of its own.
    pub tokens_max: usize,
    /// Most expected time of a batch with more than one sequence, in nanoseconds; 0: no bound.
    pub time_ns_max: u64,
}

/// The row counts of a padded batch with [`Shapes::Bounded`].
const ROW_COUNTS: [usize; 10] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
/// Most sequences that are considered for a batch: those with the earliest turns.
const CANDIDATES_MAX: usize = 96;
/// A padded batch of a device for thousands of tokens has more candidates: one for this many tokens.
const CANDIDATE_TOKENS: usize = 16;
/// The batches' worth of tokens that a batcher with packed batches reads ahead.
const PACKED_AHEAD: usize = 2;
/// As [`PACKED_AHEAD`], for padded batches, which need more sequences to choose similar lengths from.
const PADDED_AHEAD: usize = 4;
/// A packed batch is chosen if its tokens per time are at least this part of the best: the largest of such batches. Where a run costs about
/// the same for each token, the estimate would otherwise select small batches by chance, and each batch has costs outside of the engine.
const RATE_PART_MIN: f64 = 0.85;
/// The parts of a token in which virtual time by service is counted, so fractions of a token are not lost.
const PARTS: u64 = 1 << 16;
/// Most texts with more tokens than a batch that are read at once. Their tokens do not count as read ahead.
const LONG_ITEMS_MAX: usize = 32;

impl Shapes {
    /// The size of a run with this many tokens (packed) or of a sequence of that length (padded), rounded up.
    pub fn round(self, tokens: usize) -> usize {
        match self {
            Self::Any => tokens,
            Self::Bounded => match tokens {
                0..=128 => tokens.next_multiple_of(8).max(8),
                129..=256 => tokens.next_multiple_of(32),
                _ => tokens.next_multiple_of(64),
            },
        }
    }
}

/// The size of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The number of sequences.
    pub rows: usize,
    /// The computed tokens, with padding and rounding.
    pub tokens: usize,
    /// The length of the rows of a padded batch; for a packed batch the same as `tokens`.
    pub length: usize,
}

/// A batch to be computed.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<R> {
    /// The sequences, in the order of their turns.
    pub rows: Vec<R>,
    /// Its size.
    pub shape: Shape,
}

#[derive(Debug)]
struct Row<R> {
    turn: u64,
    order: u64,
    tokens: usize,
    /// The number of its text, if that has more tokens than a batch.
    long: Option<u64>,
    value: R,
}

/// The sequences that wait in one instance.
#[derive(Debug)]
pub struct Batcher<R> {
    form: Form,
    shapes: Shapes,
    limits: BatchLimits,
    cost: Cost,
    rows: Vec<Row<R>>,
    /// The virtual time at which the next sequence of a caller starts, in tokens.
    starts: HashMap<u32, u64>,
    virtual_time: u64,
    /// The lower bound of virtual time by service, in [`PARTS`] of a token. It advances with each batch, so new callers
    /// cannot stop virtual time and starve a sequence with a later turn.
    service_time: u64,
    order: u64,
}

impl<R> Batcher<R> {
    /// An empty batcher.
    pub fn new(form: Form, shapes: Shapes, limits: BatchLimits) -> Self {
        let limits = BatchLimits { rows_max: limits.rows_max.max(1), tokens_max: limits.tokens_max.max(1), ..limits };
        Self {
            form,
            shapes,
            limits,
            cost: Cost::default(),
            rows: Vec::new(),
            starts: HashMap::new(),
            virtual_time: 0,
            service_time: 0,
            order: 0,
        }
    }

    /// The number of waiting sequences.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True when no sequence waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether more items should be read before the next batch is formed.
    pub fn wants(&self) -> bool {
        let ahead = match self.form {
            Form::Packed => PACKED_AHEAD,
            Form::Padded => PADDED_AHEAD,
        };
        let short: usize = self.rows.iter().filter(|row| row.long.is_none()).map(|row| row.tokens).sum();
        // A long text counts until its last sequence is in a batch.
        let long: HashSet<u64> = self.rows.iter().filter_map(|row| row.long).collect();
        short < ahead * self.limits.tokens_max && long.len() < LONG_ITEMS_MAX
    }

    /// Adds the sequences of one item, each with its number of tokens.
    pub fn push(&mut self, caller: u32, sequences: impl IntoIterator<Item = (usize, R)>) {
        let first = self.rows.len();
        let mut start = self.starts.get(&caller).copied().unwrap_or(0).max(self.virtual_time);
        let mut total = 0;
        let item = self.order;
        for (tokens, value) in sequences {
            self.rows.push(Row { turn: start, order: self.order, tokens, long: None, value });
            self.order += 1;
            start += tokens as u64;
            total += tokens;
        }
        if total > self.limits.tokens_max {
            self.rows[first..].iter_mut().for_each(|row| row.long = Some(item));
        }
        self.starts.insert(caller, start);
    }

    /// Removes the waiting sequences for which `keep` returns false. The others keep their turns.
    pub fn retain(&mut self, mut keep: impl FnMut(&R) -> bool) {
        self.rows.retain(|row| keep(&row.value));
    }

    /// The next batch; `None` if no sequence waits.
    pub fn next_batch(&mut self) -> Option<Batch<R>> {
        self.rows.sort_unstable_by_key(|row| (row.turn, row.order));
        let oldest = self.rows.first()?.turn;
        self.virtual_time = self.virtual_time.max(oldest);
        let candidates = self.rows.len().min(self.candidates_max());
        let lengths: Vec<usize> = self.rows[..candidates].iter().map(|row| row.tokens).collect();
        let (mut chosen, shape) = match self.form {
            Form::Packed => self.pack(&lengths),
            Form::Padded => self.pad(&lengths),
        };
        chosen.sort_unstable();
        // Half of the oldest sequence's share for each row (there are at least as many rows as callers): a new caller
        // is still before the later sequences of the others.
        let share = lengths[0] as u64 * PARTS / (2 * self.rows.len() as u64);
        self.service_time = (self.service_time + share).max(oldest * PARTS);
        self.virtual_time = self.virtual_time.max(self.service_time / PARTS);
        let mut rows = Vec::with_capacity(chosen.len());
        for &index in chosen.iter().rev() {
            rows.push(self.rows.remove(index).value);
        }
        rows.reverse();
        if self.rows.is_empty() {
            self.starts.clear();
        } else if self.starts.len() > 2 * self.rows.len() + 64 {
            let now = self.virtual_time;
            self.starts.retain(|_, start| *start > now);
        }
        Some(Batch { rows, shape })
    }

    /// Records the duration of a run.
    pub fn record(&mut self, shape: Shape, duration_ns: u64) {
        self.cost.record(shape.rows, shape.tokens, duration_ns);
    }

    /// Bounds later batches to half of the tokens of a run for which the memory of the device did not suffice.
    pub fn shrink(&mut self, shape: Shape) {
        self.limits.tokens_max = (shape.tokens / 2).clamp(1, self.limits.tokens_max);
    }

    fn candidates_max(&self) -> usize {
        match self.form {
            Form::Packed => CANDIDATES_MAX,
            Form::Padded => CANDIDATES_MAX.max(self.limits.tokens_max / CANDIDATE_TOKENS),
        }
    }

    /// The current cost estimate.
    pub fn cost(&self) -> &Cost {
        &self.cost
    }

    fn in_time(&self, rows: usize, tokens: usize) -> bool {
        self.limits.time_ns_max == 0 || self.cost.predict_ns(rows, tokens) <= self.limits.time_ns_max
    }

    /// Chooses sequences from candidates in the order of their turns; the first one is always chosen.
    fn pack(&self, lengths: &[usize]) -> (Vec<usize>, Shape) {
        let capacity = self.limits.tokens_max;
        let first = lengths[0];
        // `reached[sum]`: the number of sequences with that sum, the last of them, and the sum without it.
        let mut reached: Vec<Option<(usize, usize, usize)>> = vec![None; capacity.max(first) + 1];
        reached[first] = Some((1, 0, 0));
        for (index, &length) in lengths.iter().enumerate().skip(1) {
            for sum in (first..=capacity.saturating_sub(length)).rev() {
                if let Some((rows, ..)) = reached[sum]
                    && reached[sum + length].is_none()
                    && rows < self.limits.rows_max
                {
                    reached[sum + length] = Some((rows + 1, index, sum));
                }
            }
        }
        let rates = reached.iter().enumerate().filter_map(|(sum, entry)| {
            let (rows, ..) = (*entry)?;
            let tokens = self.shapes.round(sum);
            let is_within = sum == first || (tokens <= capacity && self.in_time(rows, tokens));
            is_within.then(|| (sum, sum as f64 / self.cost.predict_ns(rows, tokens) as f64))
        });
        let best_rate = rates.clone().map(|(_, rate)| rate).fold(0.0, f64::max);
        let largest = rates.rev().find(|(_, rate)| *rate >= RATE_PART_MIN * best_rate);
        let best = largest.map_or(first, |(sum, _)| sum);
        let mut chosen = Vec::new();
        let mut sum = best;
        while let Some((_, index, before)) = reached[sum] {
            chosen.push(index);
            if index == 0 {
                break;
            }
            sum = before;
        }
        let tokens = self.shapes.round(best);
        let shape = Shape { rows: chosen.len(), tokens, length: tokens };
        (chosen, shape)
    }

    /// As [`Batcher::pack`], for a run whose rows are padded to its longest sequence.
    fn pad(&self, lengths: &[usize]) -> (Vec<usize>, Shape) {
        let mut sorted: Vec<usize> = (0..lengths.len()).collect();
        sorted.sort_by_key(|&index| (lengths[index], index));
        let oldest = sorted.iter().position(|&index| index == 0).unwrap_or(0);
        let alone = self.shapes.round(lengths[0]);
        let mut best = (oldest, oldest, Shape { rows: 1, tokens: alone, length: alone });
        let mut best_rate = lengths[0] as f64 / self.cost.predict_ns(1, alone) as f64;
        for end in oldest..sorted.len() {
            let length = self.shapes.round(lengths[sorted[end]]);
            let mut real = 0;
            for start in (0..=end).rev() {
                real += lengths[sorted[start]];
                let rows = end - start + 1;
                let tokens = rows * length;
                if rows > self.limits.rows_max || (rows > 1 && tokens > self.limits.tokens_max) {
                    break;
                }
                if start > oldest || rows == 1 || (self.shapes == Shapes::Bounded && !ROW_COUNTS.contains(&rows)) {
                    continue;
                }
                let rate = real as f64 / self.cost.predict_ns(rows, tokens) as f64;
                if rate > best_rate && self.in_time(rows, tokens) {
                    best = (start, end, Shape { rows, tokens, length });
                    best_rate = rate;
                }
            }
        }
        let (start, end, shape) = best;
        (sorted[start..=end].to_vec(), shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: BatchLimits = BatchLimits { rows_max: 32, tokens_max: 128, time_ns_max: 0 };

    fn packed() -> Batcher<usize> {
        Batcher::new(Form::Packed, Shapes::Bounded, LIMITS)
    }

    fn push(batcher: &mut Batcher<usize>, caller: u32, lengths: &[usize]) {
        for &length in lengths {
            batcher.push(caller, [(length, length)]);
        }
    }

    #[test]
    fn empty_batcher_has_no_batch() {
        assert_eq!(packed().next_batch(), None);
    }

    #[test]
    fn packing_fills_the_batch_of_the_earliest_turn() {
        let mut batcher = packed();
        push(&mut batcher, 1, &[50, 100, 30, 48, 20]);
        let batch = batcher.next_batch().unwrap();
        assert_eq!(batch.rows, [50, 30, 48]);
        assert_eq!(batch.shape, Shape { rows: 3, tokens: 128, length: 128 });
        assert_eq!(batcher.next_batch().unwrap().rows, [100, 20]);
    }

    #[test]
    fn padding_separates_lengths() {
        let mut batcher = Batcher::new(Form::Padded, Shapes::Any, LIMITS);
        push(&mut batcher, 1, &[100, 10, 11, 12, 9]);
        assert_eq!(batcher.next_batch().unwrap().rows, [100]);
        let batch = batcher.next_batch().unwrap();
        assert_eq!(batch.rows, [10, 11, 12, 9]);
        assert_eq!(batch.shape, Shape { rows: 4, tokens: 48, length: 12 });
    }

    #[test]
    fn long_sequence_is_a_batch_of_its_own() {
        for form in [Form::Packed, Form::Padded] {
            let mut batcher = Batcher::new(form, Shapes::Bounded, LIMITS);
            push(&mut batcher, 1, &[500, 10]);
            let batch = batcher.next_batch().unwrap();
            assert_eq!((batch.rows, batch.shape.tokens), (vec![500], 512));
            assert_eq!(batcher.next_batch().unwrap().rows, [10]);
        }
    }

    #[test]
    fn time_bound_reduces_the_batch_size() {
        let limits = BatchLimits { time_ns_max: 4_000_000, ..LIMITS };
        let mut batcher = Batcher::new(Form::Packed, Shapes::Any, limits);
        for _ in 0..100 {
            batcher.record(Shape { rows: 1, tokens: 16, length: 16 }, 1_600_000);
            batcher.record(Shape { rows: 8, tokens: 128, length: 128 }, 12_800_000);
        }
        push(&mut batcher, 1, &[10; 12]);
        let batch = batcher.next_batch().unwrap();
        assert!((3..=4).contains(&batch.rows.len()), "{batch:?}");
    }

    #[test]
    fn equal_costs_of_tokens_fill_a_batch_although_the_estimate_prefers_few_long_texts() {
        let mut batcher = Batcher::new(Form::Packed, Shapes::Any, LIMITS);
        for _ in 0..200 {
            // 10 us for each token, and half a microsecond for each text.
            batcher.record(Shape { rows: 1, tokens: 16, length: 16 }, 160_500);
            batcher.record(Shape { rows: 10, tokens: 120, length: 120 }, 1_205_000);
            batcher.record(Shape { rows: 3, tokens: 60, length: 60 }, 601_500);
        }
        push(&mut batcher, 1, &[12, 20, 11, 12, 10, 14, 13, 12, 11, 10, 12, 20]);
        let batch = batcher.next_batch().unwrap();
        assert!(batch.rows.len() >= 10, "{batch:?}");
    }

    #[test]
    fn batches_of_a_device_have_thousands_of_tokens() {
        let limits = BatchLimits { rows_max: 512, tokens_max: 4096, time_ns_max: 0 };
        let mut batcher = Batcher::new(Form::Padded, Shapes::Any, limits);
        for _ in 0..100 {
            // A millisecond to start a run, and a microsecond for each token.
            batcher.record(Shape { rows: 1, tokens: 16, length: 16 }, 1_016_000);
            batcher.record(Shape { rows: 128, tokens: 4096, length: 32 }, 5_096_000);
        }
        let lengths: Vec<usize> = (0..1000).map(|index| 12 + index % 5).collect();
        push(&mut batcher, 1, &lengths);
        assert!(batcher.wants(), "a few batches are read ahead");
        let batch = batcher.next_batch().unwrap();
        assert!(batch.rows.len() > 200 && batch.shape.tokens <= 4096, "{} texts, {:?}", batch.rows.len(), batch.shape);
    }

    #[test]
    fn run_that_was_too_large_bounds_later_ones() {
        let mut batcher = Batcher::new(Form::Padded, Shapes::Any, LIMITS);
        batcher.shrink(Shape { rows: 8, tokens: 120, length: 15 });
        push(&mut batcher, 1, &[15; 12]);
        assert_eq!(batcher.next_batch().unwrap().shape.tokens, 60);
        // A later, smaller failure bounds them more, and a larger one from before changes nothing.
        batcher.shrink(Shape { rows: 4, tokens: 60, length: 15 });
        batcher.shrink(Shape { rows: 8, tokens: 120, length: 15 });
        assert_eq!(batcher.next_batch().unwrap().shape.tokens, 30);
        batcher.shrink(Shape { rows: 1, tokens: 1, length: 1 });
        assert_eq!(batcher.next_batch().unwrap().shape.tokens, 15);
    }

    #[test]
    fn text_of_many_sentences_does_not_block_others() {
        let mut batcher = packed();
        batcher.push(1, (0..1000).map(|part| (30, part)));
        assert!(batcher.wants(), "a long text does not fill the batcher");
        assert_eq!(batcher.next_batch().unwrap().rows, [0, 1, 2, 3]);
        batcher.push(2, [(30, 5000)]);
        assert!(batcher.next_batch().unwrap().rows.contains(&5000));
    }

    fn drain(batcher: &mut Batcher<usize>, form: Form, limits: BatchLimits) -> Vec<Vec<usize>> {
        let mut batches = Vec::new();
        while let Some(batch) = batcher.next_batch() {
            assert!(!batch.rows.is_empty() && batch.rows.len() <= limits.rows_max);
            assert_eq!(batch.rows.len(), batch.shape.rows);
            let real: usize = batch.rows.iter().map(|row| row % 1000).sum();
            let longest = batch.rows.iter().map(|row| row % 1000).max().unwrap();
            match form {
                Form::Packed => assert!(real <= batch.shape.tokens),
                Form::Padded => {
                    assert!(longest <= batch.shape.length);
                    assert_eq!(batch.shape.tokens, batch.shape.length * batch.shape.rows);
                }
            }
            assert!(batch.rows.len() == 1 || batch.shape.tokens <= limits.tokens_max);
            batches.push(batch.rows);
        }
        batches
    }

    fn forms() -> impl Strategy<Value = (Form, Shapes)> {
        prop_oneof![
            Just((Form::Packed, Shapes::Any)),
            Just((Form::Packed, Shapes::Bounded)),
            Just((Form::Padded, Shapes::Any)),
            Just((Form::Padded, Shapes::Bounded))
        ]
    }

    proptest! {
        #[test]
        fn each_sequence_is_in_one_batch_within_the_bounds(
            lengths in prop::collection::vec((0u32..5, 1usize..300), 0..150),
            (form, shapes) in forms(),
            rows_max in 1usize..40,
            tokens_max in 1usize..40,
        ) {
            let limits = BatchLimits { rows_max, tokens_max: tokens_max * 8, time_ns_max: 0 };
            let mut batcher = Batcher::new(form, shapes, limits);
            let mut all = Vec::new();
            for (index, &(caller, length)) in lengths.iter().enumerate() {
                let value = index * 1000 + length;
                batcher.push(caller, [(length, value)]);
                all.push(value);
            }
            let mut computed: Vec<usize> = drain(&mut batcher, form, limits).into_iter().flatten().collect();
            computed.sort_unstable();
            prop_assert_eq!(computed, all);
            prop_assert!(batcher.starts.is_empty());
        }

        /// A new sequence is in the next batch, whatever the backlog, or in one of the next few if there are other new
        /// ones.
        #[test]
        fn new_sequence_does_not_wait_for_the_whole_queue(
            line in prop::collection::vec(1usize..128, 1..300),
            batches in 1usize..20,
            mine in 1usize..128,
            newcomers in 0u32..3,
            (form, shapes) in forms(),
        ) {
            let mut batcher = Batcher::new(form, shapes, LIMITS);
            push(&mut batcher, 1, &line);
            for _ in 0..batches { batcher.next_batch(); }
            for other in 0..newcomers { batcher.push(3 + other, [(mine, 1)]); }
            batcher.push(2, [(mine, 9999)]);
            let mut before = 0;
            while !batcher.next_batch().unwrap().rows.contains(&9999) {
                before += 1;
            }
            prop_assert!(before <= newcomers, "{before} batches went first");
        }

        /// New callers whose texts fill every batch do not starve a sequence with a later turn.
        #[test]
        fn new_sequences_do_not_starve_earlier_ones(mine in 65usize..128, theirs in 65usize..128, (form, shapes) in forms()) {
            let mut batcher = Batcher::new(form, shapes, LIMITS);
            batcher.push(0, [(mine, 1), (mine, 9999)]);
            for caller in 1u32.. {
                batcher.push(caller, [(theirs, 1)]);
                if batcher.next_batch().unwrap().rows.contains(&9999) { break; }
                prop_assert!(caller < 100, "the sequence still waits");
            }
        }

        /// Packed batches have little padding if there are many sequences to choose from.
        #[test]
        fn packed_batches_are_full(lengths in prop::collection::vec(4usize..60, 60..90)) {
            let mut batcher = packed();
            push(&mut batcher, 1, &lengths);
            let real: usize = lengths.iter().sum();
            let (mut computed, mut runs) = (0, 0);
            while let Some(batch) = batcher.next_batch() {
                computed += batch.shape.tokens;
                runs += 1;
            }
            prop_assert!(runs <= real.div_ceil(128) + 2, "{runs} runs for {real} tokens");
            prop_assert!((computed - real) as f64 <= 0.02 * real as f64 + 16.0, "{computed} for {real}");
        }

        #[test]
        fn plan_is_deterministic(lengths in prop::collection::vec(1usize..200, 0..60), (form, shapes) in forms()) {
            let plan = || {
                let mut batcher = Batcher::new(form, shapes, LIMITS);
                push(&mut batcher, 1, &lengths);
                drain(&mut batcher, form, LIMITS)
            };
            prop_assert_eq!(plan(), plan());
        }
    }
}
