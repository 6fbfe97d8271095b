//! Samples a token from logits.

use weir_kernels::{Isa, exponentials, greatest};

use super::Sampler;
use super::random::uniform;
use super::select::{self, Candidate};

/// The parameters of one sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) isa: Isa,
    pub(crate) sampler: &'a Sampler,
    /// The tokens of the sequence.
    pub(crate) tokens: &'a [u32],
    /// The number of tokens before the first one that was sampled.
    pub(crate) prompt: usize,
    /// The index of the sequence among the choices of its request.
    pub(crate) index: u32,
    /// A bit for each token, the lowest of the first byte for token 0; `None` allows all.
    pub(crate) allowed: Option<&'a [u8]>,
    /// The number of most likely tokens to report.
    pub(crate) top: usize,
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) token: u32,
    /// Before temperature, penalties and filters.
    pub(crate) logprob: f32,
    /// The most likely tokens with their log probabilities.
    pub(crate) top: Vec<(u32, f32)>,
}

/// Scratch memory.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
    /// By token, 0 between uses.
    counts: Vec<u32>,
    /// Tokens whose logit was changed, with the logit before the change.
    originals: Vec<(u32, f32)>,
}

/// Samples a token from logits, and overwrites them.
pub(crate) fn sample(context: Context<'_>, logits: &mut [f32], scratch: &mut Scratch) -> Outcome {
    let Context { isa, sampler, allowed, .. } = context;
    scratch.weights.clear();
    scratch.weights.extend_from_slice(logits);
    let maximum = greatest(isa, logits);
    let normalizer = maximum + exponentials(isa, &mut scratch.weights, 1.0).ln();
    let mut top = select::top(logits, context.top.min(logits.len()));
    top.iter_mut().for_each(|(_, value)| *value -= normalizer);

    adjust(context, logits, scratch);
    if let Some(allowed) = allowed {
        forbid(logits, allowed);
    }
    let token = if sampler.temperature == 0.0 { most_likely(isa, logits) } else { draw(context, logits, scratch) };
    let original = scratch.originals.iter().find(|(other, _)| *other == token);
    let logit = original.map_or(logits[token as usize], |(_, logit)| *logit);
    Outcome { token, logprob: logit - normalizer, top }
}

/// Applies biases and penalties, only to the tokens that have one.
fn adjust(context: Context<'_>, logits: &mut [f32], scratch: &mut Scratch) {
    let Context { sampler, tokens, prompt, .. } = context;
    let Scratch { counts, originals, .. } = scratch;
    originals.clear();
    counts.resize(logits.len(), 0);
    for (token, bias) in &sampler.biases {
        originals.push((*token, logits[*token as usize]));
        logits[*token as usize] += bias;
    }
    if sampler.repeat_penalty != 1.0 {
        let recent = &tokens[tokens.len().saturating_sub(sampler.penalty_tokens as usize)..];
        for token in recent {
            let count = &mut counts[*token as usize];
            if *count == 0 {
                let logit = &mut logits[*token as usize];
                originals.push((*token, *logit));
                *logit = if *logit > 0.0 { *logit / sampler.repeat_penalty } else { *logit * sampler.repeat_penalty };
            }
            *count = 1;
        }
        recent.iter().for_each(|token| counts[*token as usize] = 0);
    }
    if sampler.presence_penalty != 0.0 || sampler.frequency_penalty != 0.0 {
        let generated = &tokens[prompt.min(tokens.len())..];
        generated.iter().for_each(|token| counts[*token as usize] += 1);
        for token in generated {
            let count = std::mem::take(&mut counts[*token as usize]);
            if count > 0 {
                let logit = &mut logits[*token as usize];
                originals.push((*token, *logit));
                *logit -= sampler.presence_penalty + sampler.frequency_penalty * count as f32;
            }
        }
    }
}

/// Replaces the logits of tokens that are not allowed by negative infinity.
fn forbid(logits: &mut [f32], allowed: &[u8]) {
    for (logits, byte) in logits.chunks_mut(8).zip(allowed) {
        match byte {
            0xff => {}
            0 => logits.fill(f32::NEG_INFINITY),
            byte => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if byte >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// The first token with the greatest logit.
fn most_likely(isa: Isa, logits: &[f32]) -> u32 {
    let maximum = greatest(isa, logits);
    logits.iter().position(|logit| *logit == maximum).unwrap_or(0) as u32
}

/// Draws a token by its probability at the temperature, among those that pass the filters.
fn draw(context: Context<'_>, logits: &[f32], scratch: &mut Scratch) -> u32 {
    let Context { isa, sampler, allowed, .. } = context;
    let Scratch { weights, candidates, .. } = scratch;
    weights.clear();
    weights.extend_from_slice(logits);
    exponentials(isa, weights, 1.0 / sampler.temperature.max(TEMPERATURE_MIN));
    if allowed.is_some() {
        // `exponentials` computes a small positive number for negative infinity.
        for (weight, logit) in weights.iter_mut().zip(logits) {
            if *logit == f32::NEG_INFINITY {
                *weight = 0.0;
            }
        }
    }
    let random = uniform(sampler.seed, context.index, context.tokens.len() as u64);
    let keeps_all = sampler.top_p >= 1.0;
    if sampler.top_k > 0 && (sampler.top_k as usize) < weights.len() {
        select::heaviest(weights, sampler.top_k as usize, candidates);
        let total: f64 = sorted_total(candidates);
        select::nucleus(candidates, if keeps_all { f64::INFINITY } else { f64::from(sampler.top_p) * total });
    } else if !keeps_all {
        let total = total(weights);
        // All tokens below half of this together weigh less than the share that `top_p` excludes.
        let rest = (1.0 - f64::from(sampler.top_p)) * total / weights.len() as f64;
        select::at_least(weights, (rest / 2.0) as f32, candidates);
        select::nucleus(candidates, f64::from(sampler.top_p) * total);
    } else if sampler.min_p > 0.0 {
        select::at_least(weights, sampler.min_p, candidates);
        select::nucleus(candidates, f64::INFINITY);
    } else {
        return pick(weights, random);
    }
    // The weight of the most likely token is 1.
    candidates.retain(|(_, weight)| *weight >= sampler.min_p);
    let total: f64 = candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut remaining = random * total;
    for (token, weight) in candidates.iter() {
        remaining -= f64::from(*weight);
        if remaining < 0.0 {
            return *token;
        }
    }
    candidates.last().map_or_else(|| most_likely(isa, logits), |(token, _)| *token)
}

/// The least temperature above 0: below it a quotient may overflow, and one token has practically all of the probability.
const TEMPERATURE_MIN: f32 = 1e-3;

/// Sorts the candidates, and sums their weights in that order.
fn sorted_total(candidates: &mut [Candidate]) -> f64 {
    candidates.sort_unstable_by(select::order);
    candidates.iter().map(|(_, weight)| f64::from(*weight)).sum()
}

/// Weights that are added up together.
const PART: usize = 128;

/// The sum of some weights, in eight independent partial sums that hide the latency of an addition.
fn part_total(weights: &[f32]) -> f64 {
    let mut totals = [0.0; 8];
    for (index, weight) in weights.iter().enumerate() {
        totals[index % 8] += f64::from(*weight);
    }
    totals.iter().sum()
}

fn total(weights: &[f32]) -> f64 {
    weights.chunks(PART).map(part_total).sum()
}

/// The first token at which the sum of the weights exceeds the share `random` of the total.
fn pick(weights: &[f32], random: f64) -> u32 {
    let mut remaining = random * total(weights);
    for (part, weights) in weights.chunks(PART).enumerate() {
        let sum = part_total(weights);
        if remaining >= sum {
            remaining -= sum;
            continue;
        }
        for (index, weight) in weights.iter().enumerate() {
            remaining -= f64::from(*weight);
            if remaining < 0.0 {
                return (part * PART + index) as u32;
            }
        }
    }
    // The sum in another order may be smaller, because of rounding.
    weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKENS: usize = 700;

    /// [`sample`], implemented by sorting all tokens.
    fn naive(context: Context<'_>, logits: &[f32]) -> Outcome {
        let Context { isa, sampler, tokens, prompt, index, allowed, top } = context;
        let mut powers = logits.to_vec();
        let normalizer = greatest(isa, logits) + exponentials(isa, &mut powers, 1.0).ln();
        let mut sorted: Vec<Candidate> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(select::order);
        let top = sorted.iter().take(top).map(|(token, logit)| (*token, logit - normalizer)).collect();
        let mut changed = logits.to_vec();
        for (token, logit) in changed.iter_mut().enumerate() {
            let is_it = |other: &&u32| **other == token as u32;
            sampler.biases.iter().filter(|(other, _)| is_it(&other)).for_each(|(_, bias)| *logit += bias);
            let recent = tokens.iter().rev().take(sampler.penalty_tokens as usize);
            if recent.filter(is_it).count() > 0 && sampler.repeat_penalty != 1.0 {
                *logit = if *logit > 0.0 { *logit / sampler.repeat_penalty } else { *logit * sampler.repeat_penalty };
            }
            let count = tokens[prompt..].iter().filter(is_it).count();
            if count > 0 {
                *logit -= sampler.presence_penalty + sampler.frequency_penalty * count as f32;
            }
            if allowed.is_some_and(|allowed| allowed[token / 8] >> (token % 8) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let mut weights = changed.clone();
        let temperature = if sampler.temperature == 0.0 { 1.0 } else { sampler.temperature.max(TEMPERATURE_MIN) };
        exponentials(isa, &mut weights, 1.0 / temperature);
        let kept = (0..).zip(weights).zip(&changed).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let mut kept: Vec<Candidate> = kept.map(|(candidate, _)| candidate).collect();
        let total = |kept: &[Candidate]| kept.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>();
        let filters = (1..TOKENS as u32).contains(&sampler.top_k) || sampler.top_p < 1.0 || sampler.min_p > 0.0;
        if filters || sampler.temperature == 0.0 {
            kept.sort_by(select::order);
        }
        if sampler.top_k > 0 {
            kept.truncate(sampler.top_k as usize);
        }
        if sampler.top_p < 1.0 {
            let (target, mut sum) = (f64::from(sampler.top_p) * total(&kept), 0.0);
            let count = kept.iter().position(|(_, weight)| {
                sum += f64::from(*weight);
                sum >= target
            });
            kept.truncate(count.map_or(kept.len(), |count| count + 1));
        }
        kept.retain(|(_, weight)| *weight >= sampler.min_p);
        let mut left = uniform(sampler.seed, index, tokens.len() as u64) * total(&kept);
        let drawn = kept.iter().find(|(_, weight)| {
            left -= f64::from(*weight);
            left < 0.0
        });
        let first = |_: &Candidate| (0..).zip(&changed).find(|(_, logit)| **logit == greatest(isa, &changed));
        let token = if sampler.temperature == 0.0 {
            kept.first().and_then(first).map_or(0, |(token, _)| token)
        } else {
            drawn.or(kept.last()).map_or(0, |(token, _)| *token)
        };
        Outcome { token, logprob: logits[token as usize] - normalizer, top }
    }

    fn sampler() -> impl Strategy<Value = Sampler> {
        let filters = (
            prop_oneof![Just(0.0_f32), Just(1.0), 0.01..3.0_f32],
            prop_oneof![Just(0_u32), 1..20_u32, Just(650), Just(5000)],
            prop_oneof![Just(1.0_f32), 0.0..1.0_f32],
            prop_oneof![Just(0.0_f32), 0.0..0.5_f32],
        );
        let penalties = (
            prop_oneof![Just(1.0_f32), 0.5..2.0_f32],
            prop_oneof![Just(0.0_f32), -2.0..2.0_f32],
            prop_oneof![Just(0.0_f32), -2.0..2.0_f32],
            0..90_u32,
        );
        let biases = prop::collection::btree_map(0..TOKENS as u32, -9.0..9.0_f32, 0..9);
        (filters, penalties, biases, any::<u64>()).prop_map(|(filters, penalties, biases, seed)| Sampler {
            temperature: filters.0,
            top_k: filters.1,
            top_p: filters.2,
            min_p: filters.3,
            repeat_penalty: penalties.0,
            presence_penalty: penalties.1,
            frequency_penalty: penalties.2,
            penalty_tokens: penalties.3,
            biases: biases.into_iter().collect(),
            seed,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn sample_equals_that_of_sorting_all_tokens(
            sampler in sampler(),
            logits in prop::collection::vec(prop_oneof![-12.0..12.0_f32, (-8..8_i8).prop_map(f32::from)], TOKENS),
            tokens in prop::collection::vec(0..TOKENS as u32, 0..80),
            prompt in 0_usize..80,
            allowed in prop::option::of(prop::collection::vec(any::<u8>(), TOKENS.div_ceil(8))),
            index in 0_u32..8,
            top in 0_usize..21,
        ) {
            let allowed = allowed.filter(|bytes| bytes[..80].iter().any(|byte| *byte > 0));
            let context = Context {
                isa: Isa::best(),
                sampler: &sampler,
                tokens: &tokens,
                prompt: prompt.min(tokens.len()),
                index,
                allowed: allowed.as_deref(),
                top,
            };
            let mut scratch = Scratch::default();
            let expected = naive(context, &logits);
            prop_assert_eq!(&sample(context, &mut logits.clone(), &mut scratch), &expected);
            // The scratch memory has no traces of the first use.
            prop_assert_eq!(&sample(context, &mut logits.clone(), &mut scratch), &expected);
        }
    }

    #[test]
    fn drawn_tokens_have_the_frequencies_of_their_probabilities() {
        let logits: Vec<f32> = [0.5_f32, 0.25, 0.125, 0.125].map(f32::ln).to_vec();
        let mut counts = [0_u32; 4];
        let mut scratch = Scratch::default();
        for seed in 0..16_000 {
            let sampler = Sampler { temperature: 1.0, seed, ..Sampler::default() };
            let context = Context {
                isa: Isa::best(),
                sampler: &sampler,
                tokens: &[1, 2, 3],
                prompt: 3,
                index: 0,
                allowed: None,
                top: 0,
            };
            counts[sample(context, &mut logits.clone(), &mut scratch).token as usize] += 1;
        }
        // Six standard deviations.
        let expected = [8000_u32, 4000, 2000, 2000];
        assert!(counts.iter().zip(expected).all(|(count, expected)| count.abs_diff(expected) < 380), "{counts:?}");
    }
}
