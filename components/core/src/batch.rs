//! Planning of padded batches: which sequences share one run of a model.
//!
//! A padded batch costs `rows × longest` tokens whatever the lengths inside, plus a fixed cost per run. Sorting by
//! length and cutting the sorted list is optimal for such a cost, and the best cuts are found exactly by dynamic
//! programming over the sorted list in `O(n × rows_max)`.

/// What a batch may hold and what a run costs besides its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most sequences in one batch; at least 1 is assumed.
    pub rows_max: usize,
    /// The most padded tokens (`rows × longest`) in one batch. A sequence longer than this goes alone.
    pub padded_tokens_max: usize,
    /// What one run costs besides its tokens, in tokens: padding is accepted while it costs less than another run.
    pub run_overhead_tokens: usize,
}

/// Cuts sequences of the given `lengths` into batches of the least padded cost within `limits`.
///
/// Returns batches of indices into `lengths`; every index is in exactly one batch. Inside a batch the indices go
/// from the shortest sequence to the longest; the batches are in the order of their smallest index, so that what came
/// first is computed first. Equal lengths keep their order, and the plan is a function of its arguments alone.
///
/// ```
/// use weir_core::batch::{BatchLimits, plan_batches};
/// let limits = BatchLimits { rows_max: 32, padded_tokens_max: 512, run_overhead_tokens: 8 };
/// assert_eq!(plan_batches(&[12, 200, 10], limits), vec![vec![2, 0], vec![1]]);
/// ```
pub fn plan_batches(lengths: &[usize], limits: BatchLimits) -> Vec<Vec<usize>> {
    let mut sorted: Vec<usize> = (0..lengths.len()).collect();
    sorted.sort_by_key(|&index| (lengths[index], index));
    let cuts = cheapest_cuts(&sorted, lengths, limits);

    let mut batches: Vec<Vec<usize>> = cuts.iter().map(|&(start, end)| sorted[start..end].to_vec()).collect();
    batches.sort_by_key(|batch| batch.iter().min().copied());
    batches
}

/// The ranges of `sorted` that make the cheapest batches, from the last to the first.
fn cheapest_cuts(sorted: &[usize], lengths: &[usize], limits: BatchLimits) -> Vec<(usize, usize)> {
    let rows_max = limits.rows_max.max(1);
    // `best[end]`: the least cost of the first `end` sequences and where the last of their batches starts.
    let mut best: Vec<(usize, usize)> = vec![(0, 0)];
    for end in 1..=sorted.len() {
        let longest = lengths[sorted[end - 1]];
        let mut choice = (usize::MAX, end - 1);
        for start in (end.saturating_sub(rows_max)..end).rev() {
            let rows = end - start;
            let padded = longest.saturating_mul(rows);
            if rows > 1 && padded > limits.padded_tokens_max {
                break;
            }
            let cost = best[start].0.saturating_add(limits.run_overhead_tokens).saturating_add(padded);
            if cost <= choice.0 {
                choice = (cost, start);
            }
        }
        best.push(choice);
    }

    let mut cuts = Vec::new();
    let mut end = sorted.len();
    while end > 0 {
        let start = best[end].1;
        cuts.push((start, end));
        end = start;
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: BatchLimits = BatchLimits { rows_max: 32, padded_tokens_max: 512, run_overhead_tokens: 8 };

    fn cost(batches: &[Vec<usize>], lengths: &[usize], limits: BatchLimits) -> usize {
        let longest = |batch: &Vec<usize>| batch.iter().map(|&index| lengths[index]).max().unwrap_or(0);
        batches.iter().map(|batch| limits.run_overhead_tokens + batch.len() * longest(batch)).sum()
    }

    /// The least cost over every way to cut `lengths` (any grouping, not only of neighbours), by brute force.
    fn least_cost(lengths: &[usize], limits: BatchLimits) -> usize {
        fn go(rest: &[usize], lengths: &[usize], groups: &mut Vec<Vec<usize>>, limits: BatchLimits) -> usize {
            let Some((&first, rest)) = rest.split_first() else {
                let legal = groups.iter().all(|group| {
                    let longest = group.iter().map(|&index| lengths[index]).max().unwrap_or(0);
                    group.len() == 1
                        || (group.len() <= limits.rows_max && group.len() * longest <= limits.padded_tokens_max)
                });
                return if legal { cost(groups, lengths, limits) } else { usize::MAX };
            };
            let mut least = usize::MAX;
            for group in 0..=groups.len() {
                if group == groups.len() {
                    groups.push(vec![first]);
                } else {
                    groups[group].push(first);
                }
                least = least.min(go(rest, lengths, groups, limits));
                groups[group].pop();
                groups.retain(|group| !group.is_empty());
            }
            least
        }
        go(&(0..lengths.len()).collect::<Vec<_>>(), lengths, &mut Vec::new(), limits)
    }

    #[test]
    fn nothing_makes_no_batch() {
        assert!(plan_batches(&[], LIMITS).is_empty());
    }

    #[test]
    fn equal_lengths_fill_batches() {
        let batches = plan_batches(&[10; 70], LIMITS);
        assert!(batches.iter().all(|batch| batch.len() <= 32));
        assert_eq!(batches.len(), 3);
    }

    #[test]
    fn very_different_lengths_do_not_share() {
        assert_eq!(plan_batches(&[100, 10], LIMITS), vec![vec![0], vec![1]]);
    }

    #[test]
    fn a_sequence_over_the_bound_goes_alone() {
        assert_eq!(plan_batches(&[600, 600, 5], LIMITS), vec![vec![0], vec![1], vec![2]]);
    }

    proptest! {
        #[test]
        fn every_item_is_in_exactly_one_batch_within_the_bounds(
            lengths in prop::collection::vec(0usize..700, 0..200),
            rows_max in 1usize..40,
            padded_tokens_max in 1usize..600,
            run_overhead_tokens in 0usize..20,
        ) {
            let limits = BatchLimits { rows_max, padded_tokens_max, run_overhead_tokens };
            let batches = plan_batches(&lengths, limits);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let longest = batch.iter().map(|&index| lengths[index]).max().unwrap_or(0);
                prop_assert!(!batch.is_empty() && batch.len() <= rows_max);
                prop_assert!(batch.len() == 1 || batch.len() * longest <= padded_tokens_max);
            }
            prop_assert!(batches.windows(2).all(|pair| pair[0].iter().min() < pair[1].iter().min()));
        }

        #[test]
        fn no_other_grouping_is_cheaper(
            lengths in prop::collection::vec(1usize..30, 0..7),
            rows_max in 1usize..5,
            padded_tokens_max in 1usize..80,
            run_overhead_tokens in 0usize..20,
        ) {
            let limits = BatchLimits { rows_max, padded_tokens_max, run_overhead_tokens };
            let batches = plan_batches(&lengths, limits);
            prop_assert_eq!(cost(&batches, &lengths, limits), least_cost(&lengths, limits));
        }
    }
}
