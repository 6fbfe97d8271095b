//! Multi-head attention within each text of a packed batch. Vaswani et al., "Attention Is All You Need", 2017, section 3.2.

use std::ops::Range;

use crate::aligned::Aligned;
use crate::normalize::{exponentials, scale};
use crate::relative::ScoreTerm;
use crate::rows::{Block, blocks};
use crate::simd::{Kernel, Simd, store_up_to};
use crate::strided::Strided;
use crate::tile::{Float, by_rows, tile};

/// For each text and head: `softmax(factor Q Kᵀ + term) V`.
pub(crate) struct Attention<'a> {
    /// `[tokens, 3 heads head_size]`: queries, keys and values beside each other.
    pub(crate) qkv: &'a [f32],
    /// The tokens of each text, end to end.
    pub(crate) texts: &'a [Range<usize>],
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    /// The factor of the scores: `1 / sqrt(head_size)`, or 1 where the queries are scaled already. Positive.
    pub(crate) factor: f32,
    /// Added to the scores.
    pub(crate) term: Option<&'a mut dyn ScoreTerm>,
    /// `[tokens, heads head_size]`
    pub(crate) out: &'a mut [f32],
    pub(crate) buffers: &'a mut Buffers,
}

/// Scratch memory of attention.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The keys of a head in panels of keys: `[panel][head_size][key]`.
    keys: Aligned<f32>,
    /// The values of a head in panels of columns: `[panel][key][column]`.
    values: Aligned<f32>,
    /// The scores of a block: `[query][key]`, each row as long as the panels of keys.
    scores: Aligned<f32>,
}

impl Kernel for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { qkv, texts, heads, head_size, factor, mut term, out, buffers } = self;
        let width = 2 * S::LANES;
        let hidden = heads * head_size;
        let stride = 3 * hidden;
        for text in texts {
            let tokens = text.len();
            let qkv = &qkv[text.start * stride..text.end * stride];
            let out = &mut out[text.start * hidden..text.end * hidden];
            buffers.keys.resize(tokens.next_multiple_of(width) * head_size);
            buffers.values.resize(head_size.next_multiple_of(width) * tokens);
            buffers.scores.resize(S::ROWS * tokens.next_multiple_of(width));
            for index in 0..heads {
                let part = |which: usize| Strided { elements: &qkv[which * hidden + index * head_size..], stride };
                let head =
                    Head { simd, tokens, head_size, factor, queries: part(0), column: index * head_size, hidden };
                if let Some(term) = &mut term {
                    term.begin(text, index);
                }
                head.pack_keys(part(1), &mut buffers.keys);
                head.pack_values(part(2), &mut buffers.values);
                for block in blocks(tokens, S::ROWS) {
                    by_rows!(block.count, attend::<S>(&head, block, term.as_deref(), buffers, out));
                }
            }
        }
    }
}

/// One head of one text.
struct Head<'a, S> {
    simd: S,
    tokens: usize,
    head_size: usize,
    factor: f32,
    queries: Strided<'a, f32>,
    /// The first column of the head in the result.
    column: usize,
    /// The columns of the result.
    hidden: usize,
}

impl<S: Simd> Head<'_, S> {
    #[inline(always)]
    fn pack_keys(&self, keys: Strided<'_, f32>, to: &mut [f32]) {
        let Self { simd, tokens, head_size, .. } = *self;
        let width = 2 * S::LANES;
        // Squares first, then the remaining rows and columns.
        let whole_keys = tokens / S::LANES * S::LANES;
        let whole_columns = head_size / S::LANES * S::LANES;
        let offset = |key: usize| key / width * width * head_size + key % width;
        for first_key in (0..whole_keys).step_by(S::LANES) {
            let keys = keys.skip(first_key);
            for column in (0..whole_columns).step_by(S::LANES) {
                let to = &mut to[offset(first_key) + column * width..];
                simd.transpose(&keys.elements[column..], keys.stride, to, width);
            }
        }
        for key in 0..tokens {
            let row = &keys.elements[key * keys.stride..][..head_size];
            let first = if key < whole_keys { whole_columns } else { 0 };
            for (column, value) in row.iter().enumerate().skip(first) {
                to[offset(key) + column * width] = *value;
            }
        }
        // The padding after the last key must be finite: its scores are computed, but not read.
        let used = tokens % width;
        if used > 0 {
            let last = &mut to[tokens / width * width * head_size..][..width * head_size];
            last.chunks_exact_mut(width).for_each(|row| row[used..].fill(0.0));
        }
    }

    #[inline(always)]
    fn pack_values(&self, values: Strided<'_, f32>, to: &mut [f32]) {
        let width = 2 * S::LANES;
        for (panel, to) in to.chunks_exact_mut(width * self.tokens).enumerate() {
            let columns = panel * width..self.head_size.min((panel + 1) * width);
            for (key, to) in to.chunks_exact_mut(width).enumerate() {
                let row = &values.elements[key * values.stride..][columns.clone()];
                if row.len() == width {
                    to.copy_from_slice(&row[..width]);
                } else {
                    to[..row.len()].copy_from_slice(row);
                    to[row.len()..].fill(0.0);
                }
            }
        }
    }
}

/// Computes the results of a block of queries.
#[inline(always)]
fn attend<S: Simd, const R: usize>(
    head: &Head<'_, S>,
    block: Block,
    term: Option<&dyn ScoreTerm>,
    buffers: &mut Buffers,
    out: &mut [f32],
) {
    let Head { simd, tokens, head_size, hidden, .. } = *head;
    let width = 2 * S::LANES;
    let stride = tokens.next_multiple_of(width);
    let queries = head.queries.skip(block.first);
    let scores = &mut buffers.scores[..R * stride];
    for (panel, keys) in buffers.keys.chunks_exact(width * head_size).enumerate() {
        let sums = tile::<S, Float, R>(simd, queries, keys);
        for (row, sums) in scores.chunks_exact_mut(stride).zip(sums) {
            let row = &mut row[panel * width..][..width];
            simd.store(sums[0], row);
            simd.store(sums[1], &mut row[S::LANES..]);
        }
    }
    let mut shares = [0.0; R];
    for (query, (share, row)) in shares.iter_mut().zip(scores.chunks_exact_mut(stride)).enumerate() {
        let row = &mut row[..tokens];
        let mut factor = head.factor;
        if let Some(term) = term {
            scale(simd, row, factor);
            term.add(block.first + query, row);
            factor = 1.0;
        }
        *share = 1.0 / exponentials(simd, row, factor);
    }
    let scores = Strided { elements: &buffers.scores[..], stride };
    for (panel, values) in buffers.values.chunks_exact(width * tokens).enumerate() {
        let sums = tile::<S, Float, R>(simd, scores, values);
        for (query, sums) in sums.into_iter().enumerate() {
            let row = &mut out[(block.first + query) * hidden + head.column..][..head_size];
            let end = head_size.min((panel + 1) * width);
            let share = simd.splat(shares[query]);
            for (cells, sum) in row[panel * width..end].chunks_mut(S::LANES).zip(sums) {
                store_up_to(simd, simd.mul(sum, share), cells);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::Isa;

    /// One head of one text in f64: `[tokens, head_size]`.
    fn exact(qkv: &[f32], tokens: usize, hidden: usize, columns: Range<usize>, factor: f32) -> Vec<f64> {
        let part = |which: usize, token: usize| &qkv[token * 3 * hidden + which * hidden..][..hidden][columns.clone()];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let one = |query: usize| {
            let scores: Vec<f64> =
                (0..tokens).map(|key| f64::from(factor) * dot(part(0, query), part(1, key))).collect();
            let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let shares: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
            let total: f64 = shares.iter().sum();
            let value = |column: usize| {
                let weighted = shares.iter().enumerate().map(|(key, share)| share * f64::from(part(2, key)[column]));
                weighted.sum::<f64>() / total
            };
            (0..columns.len()).map(value).collect::<Vec<f64>>()
        };
        (0..tokens).flat_map(one).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 100 }))]

        #[test]
        fn attention_of_any_shape_agrees_with_f64(
            lengths in prop::collection::vec(1..if cfg!(miri) { 6_usize } else { 60 }, 1..4),
            heads in 1_usize..4,
            head_size in 1..if cfg!(miri) { 9_usize } else { 70 },
            factor in 0.05_f32..1.0,
        ) {
            let hidden = heads * head_size;
            let tokens: usize = lengths.iter().sum();
            let qkv: Vec<f32> =
                (0..tokens * 3 * hidden).map(|index| ((index * 7919) % 2003) as f32 / 1001.0 - 1.0).collect();
            let mut start = 0;
            let texts: Vec<Range<usize>> = lengths.iter().map(|length| { start += length; start - length..start }).collect();
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; tokens * hidden];
                let mut buffers = Buffers::default();
                isa.run(Attention {
                    qkv: &qkv,
                    texts: &texts,
                    heads,
                    head_size,
                    factor,
                    term: None,
                    out: &mut out,
                    buffers: &mut buffers,
                });
                for text in &texts {
                    for head in 0..heads {
                        let columns = head * head_size..(head + 1) * head_size;
                        let qkv = &qkv[text.start * 3 * hidden..text.end * 3 * hidden];
                        let exact = exact(qkv, text.len(), hidden, columns.clone(), factor);
                        let rows = out[text.start * hidden..text.end * hidden].chunks_exact(hidden);
                        let values = rows.flat_map(|row| row[columns.clone()].iter());
                        for (value, exact) in values.zip(exact) {
                            prop_assert!((f64::from(*value) - exact).abs() < 2e-5, "{isa}: {value} is not {exact}");
                        }
                    }
                }
            }
        }
    }

    struct Transpose {
        stride: usize,
        to_stride: usize,
    }

    impl Kernel for Transpose {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Self { stride, to_stride } = self;
            let from: Vec<f32> = (0..S::LANES * stride).map(|index| index as f32).collect();
            let mut to = vec![-1.0; S::LANES * to_stride];
            simd.transpose(&from, stride, &mut to, to_stride);
            for row in 0..S::LANES {
                for column in 0..to_stride {
                    let expected = if column < S::LANES { from[column * stride + row] } else { -1.0 };
                    assert_eq!(to[row * to_stride + column], expected, "row {row}, column {column}");
                }
            }
        }
    }

    #[test]
    fn square_is_transposed_and_nothing_else_written() {
        for isa in Isa::available() {
            isa.run(Transpose { stride: 16, to_stride: 16 });
            isa.run(Transpose { stride: 37, to_stride: 32 });
        }
    }
}
