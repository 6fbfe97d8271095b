//! Which sequences share a run of a model.
//!
//! A [`Batcher`] holds the tokenized sequences that wait in one instance and forms a batch whenever the engine is free: it
//! never waits for more. The sequence whose turn it is is always in the next batch, so that every wait is finite; who
//! shares it is chosen for the least cost per token, by the [`Cost`] learned so far.
//!
//! - [`Form::Packed`]: the sequences of a batch are laid end to end. The cost follows the real tokens, rounded up to a
//!   [bucket](Shapes); which sequences fill a bucket best is a subset-sum, solved exactly.
//! - [`Form::Padded`]: every sequence of a batch is padded to the longest. Neighbours in length share a batch.
//!
//! Turns: callers are served alike, in tokens, by the start-time fair queueing of [`queue`](crate::inference::queue), so that neither a
//! caller with much waiting nor a text of a thousand sentences holds up the others.

use std::collections::{HashMap, HashSet};

use crate::inference::cost::Cost;

/// How a graph takes several sequences in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Laid end to end: `[1, tokens]`.
    Packed,
    /// One under the other, padded to the longest: `[rows, longest]`.
    Padded,
}

/// Which sizes a run may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shapes {
    /// Any: the engine takes each size as it comes.
    #[default]
    Any,
    /// Few: the engine plans for each shape that it sees often, so lengths are rounded up and row counts chosen from a
    /// short list.
    Bounded,
}

/// The bounds of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most sequences; at least 1 is assumed.
    pub rows_max: usize,
    /// The most tokens, counted as computed: with padding and rounding. A longer sequence goes alone.
    pub tokens_max: usize,
    /// A batch that is expected to take longer is made smaller, down to one sequence; 0: no bound.
    pub time_ns_max: u64,
}

/// The rows that a padded batch may have where shapes are few.
const ROW_COUNTS: [usize; 10] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
/// How many sequences are looked at when a batch is formed: those whose turn comes first.
const LOOK_ROWS_MAX: usize = 96;
/// A batcher wants more until this many batches' worth of tokens wait in it.
const PACKED_AHEAD: usize = 2;
/// Lengths can only be matched where there is a choice.
const PADDED_AHEAD: usize = 4;
/// Virtual time by service is counted in these parts of a token, so that a share of one is not lost.
const PARTS: u64 = 1 << 16;
/// Texts with more tokens than a batch, at once: they do not keep others from being read.
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

/// What a run was, for [`Batcher::record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub rows: usize,
    /// Tokens as computed: with padding and rounding.
    pub tokens: usize,
    /// The length to which a padded batch is padded; of a packed one the tokens again.
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
    /// Of a text that alone is more than a batch: which one.
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
    /// Where the next sequence of a caller starts, in tokens of virtual time.
    starts: HashMap<u32, u64>,
    virtual_time: u64,
    /// What virtual time has come to by service alone, in [`PARTS`] of a token, so that callers that keep coming cannot hold it
    /// still and starve a sequence whose turn is later.
    least: u64,
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
            least: 0,
            order: 0,
        }
    }

    /// Sequences waiting.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether more should be read before the next batch is formed.
    pub fn wants(&self) -> bool {
        let ahead = match self.form {
            Form::Packed => PACKED_AHEAD,
            Form::Padded => PADDED_AHEAD,
        };
        let short: usize = self.rows.iter().filter(|row| row.long.is_none()).map(|row| row.tokens).sum();
        // Until the last of its sequences is gone.
        let long: HashSet<u64> = self.rows.iter().filter_map(|row| row.long).collect();
        short < ahead * self.limits.tokens_max && long.len() < LONG_ITEMS_MAX
    }

    /// Adds the sequences of one item: each with its tokens.
    pub fn push(&mut self, caller: u32, sequences: impl IntoIterator<Item = (usize, R)>) {
        let begin = self.rows.len();
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
            self.rows[begin..].iter_mut().for_each(|row| row.long = Some(item));
        }
        self.starts.insert(caller, start);
    }

    /// Drops what waits and is of no use any more. The survivors keep their turns.
    pub fn retain(&mut self, mut of_use: impl FnMut(&R) -> bool) {
        self.rows.retain(|row| of_use(&row.value));
    }

    /// The next batch; none when nothing waits.
    pub fn next_batch(&mut self) -> Option<Batch<R>> {
        self.rows.sort_unstable_by_key(|row| (row.turn, row.order));
        let oldest = self.rows.first()?.turn;
        self.virtual_time = self.virtual_time.max(oldest);
        let looked = self.rows.len().min(LOOK_ROWS_MAX);
        let lengths: Vec<usize> = self.rows[..looked].iter().map(|row| row.tokens).collect();
        let (mut chosen, shape) = match self.form {
            Form::Packed => self.pack(&lengths),
            Form::Padded => self.pad(&lengths),
        };
        chosen.sort_unstable();
        // Half a share of the turn that was served (the rows are at least as many as the callers): a newcomer is still before
        // whatever else a caller has waiting.
        let share = lengths[0] as u64 * PARTS / (2 * self.rows.len() as u64);
        self.least = (self.least + share).max(oldest * PARTS);
        self.virtual_time = self.virtual_time.max(self.least / PARTS);
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
    pub fn record(&mut self, shape: Shape, took_ns: u64) {
        self.cost.record(shape.rows, shape.tokens, took_ns);
    }

    /// What has been learned.
    pub fn cost(&self) -> &Cost {
        &self.cost
    }

    fn in_time(&self, rows: usize, tokens: usize) -> bool {
        self.limits.time_ns_max == 0 || self.cost.predict_ns(rows, tokens) <= self.limits.time_ns_max
    }

    /// Chooses among sequences in the order of their turns, the first of them for sure.
    fn pack(&self, lengths: &[usize]) -> (Vec<usize>, Shape) {
        let capacity = self.limits.tokens_max;
        let first = lengths[0];
        // `reached[sum]`: how many sequences make the sum, the last of them, and the sum without it.
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
        // The most tokens for the time; a full batch rather than a smaller one of the same worth.
        let (mut best, mut best_worth) = (first, 0.0);
        for (sum, entry) in reached.iter().enumerate() {
            let Some((rows, ..)) = *entry else { continue };
            let tokens = self.shapes.round(sum);
            let worth = sum as f64 / self.cost.predict_ns(rows, tokens) as f64;
            if worth >= best_worth && (sum == first || (tokens <= capacity && self.in_time(rows, tokens))) {
                (best, best_worth) = (sum, worth);
            }
        }
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

    /// As [`Batcher::pack`], for a run that pads to its longest sequence.
    fn pad(&self, lengths: &[usize]) -> (Vec<usize>, Shape) {
        let mut sorted: Vec<usize> = (0..lengths.len()).collect();
        sorted.sort_by_key(|&index| (lengths[index], index));
        let oldest = sorted.iter().position(|&index| index == 0).unwrap_or(0);
        let alone = self.shapes.round(lengths[0]);
        let mut best = (oldest, oldest, Shape { rows: 1, tokens: alone, length: alone });
        let mut best_worth = lengths[0] as f64 / self.cost.predict_ns(1, alone) as f64;
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
                let worth = real as f64 / self.cost.predict_ns(rows, tokens) as f64;
                if worth > best_worth && self.in_time(rows, tokens) {
                    best = (start, end, Shape { rows, tokens, length });
                    best_worth = worth;
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
    fn empty_queue_gives_no_batch() {
        assert_eq!(packed().next_batch(), None);
    }

    #[test]
    fn packing_fills_the_batch_around_whose_turn_it_is() {
        let mut batcher = packed();
        push(&mut batcher, 1, &[50, 100, 30, 48, 20]);
        let batch = batcher.next_batch().unwrap();
        assert_eq!(batch.rows, [50, 30, 48]);
        assert_eq!(batch.shape, Shape { rows: 3, tokens: 128, length: 128 });
        assert_eq!(batcher.next_batch().unwrap().rows, [100, 20]);
    }

    #[test]
    fn padding_keeps_lengths_apart() {
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
            let mut seen: Vec<usize> = drain(&mut batcher, form, limits).into_iter().flatten().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, all);
            prop_assert!(batcher.starts.is_empty());
        }

        /// However much others have waiting, a newcomer is in the next batch or, when that is another newcomer's, in one
        /// of the next few.
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

        /// Callers that keep adding texts that leave no room do not starve others with a later turn.
        #[test]
        fn new_sequences_do_not_starve_earlier_ones(mine in 65usize..128, theirs in 65usize..128, (form, shapes) in forms()) {
            let mut batcher = Batcher::new(form, shapes, LIMITS);
            batcher.push(0, [(mine, 1), (mine, 9999)]);
            for caller in 1u32.. {
                batcher.push(caller, [(theirs, 1)]);
                if batcher.next_batch().unwrap().rows.contains(&9999) { break; }
                prop_assert!(caller < 100, "it still waits");
            }
        }

        /// Packing wastes little where there is a choice.
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
