//! Selects the most likely tokens without sorting all of them.

use std::cmp::Ordering;

/// A token and its weight, an unnormalized probability.
pub(super) type Candidate = (u32, f32);

/// Orders by descending weight, then by ascending token.
pub(super) fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Writes the tokens whose weight is at least `least`, and not 0.
pub(super) fn at_least(weights: &[f32], least: f32, to: &mut Vec<Candidate>) {
    to.clear();
    for (block, weights) in weights.chunks(BLOCK).enumerate() {
        // Most blocks have none, which a vectorized comparison finds.
        if weights.iter().fold(false, |any, weight| any | (*weight >= least)) {
            let tokens = (block * BLOCK) as u32..;
            to.extend(tokens.zip(weights.iter().copied()).filter(|(_, weight)| *weight >= least && *weight > 0.0));
        }
    }
}

const BLOCK: usize = 64;

/// Writes the `count` heaviest tokens, in no order.
pub(super) fn heaviest(weights: &[f32], count: usize, to: &mut Vec<Candidate>) {
    // The bits of positive f32 have the order of the numbers: counts by exponent and four bits of the mantissa.
    const SHIFT: u32 = 19;
    let mut counts = vec![0_u32; 1 << (31 - SHIFT)];
    for weight in weights {
        counts[(weight.abs().to_bits() >> SHIFT) as usize] += 1;
    }
    let mut total = 0;
    let bucket = (0..counts.len()).rev().find(|bucket| {
        total += counts[*bucket] as usize;
        total >= count
    });
    at_least(weights, f32::from_bits((bucket.unwrap_or(0) as u32) << SHIFT), to);
    if to.len() > count {
        to.select_nth_unstable_by(count, order);
        to.truncate(count);
    }
}

/// Sorts as many of the first candidates as it takes for their weights to add up to `target`, and drops the others.
pub(super) fn nucleus(candidates: &mut Vec<Candidate>, target: f64) {
    let (mut sorted, mut sum) = (0, 0.0);
    let mut step = 32;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let count = step.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count, order);
        }
        rest[..count].sort_unstable_by(order);
        for (index, candidate) in rest[..count].iter().enumerate() {
            sum += f64::from(candidate.1);
            if sum >= target {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += count;
        step *= 8;
    }
}

/// The `count` tokens with the greatest logits, the greatest first.
pub(super) fn top(logits: &[f32], count: usize) -> Vec<Candidate> {
    let mut best: Vec<Candidate> = Vec::with_capacity(count + 1);
    if count == 0 {
        return best;
    }
    for (block, logits) in logits.chunks(BLOCK).enumerate() {
        let least = if best.len() < count { f32::NEG_INFINITY } else { best[count - 1].1 };
        if !logits.iter().fold(false, |any, logit| any | (*logit >= least)) {
            continue;
        }
        for candidate in ((block * BLOCK) as u32..).zip(logits.iter().copied()) {
            if best.len() == count && order(&candidate, &best[count - 1]) != Ordering::Less {
                continue;
            }
            let index = best.partition_point(|other| order(other, &candidate) == Ordering::Less);
            best.insert(index, candidate);
            best.truncate(count);
        }
    }
    best
}
