//! Multi-head attention within each text of a packed batch. Vaswani et al., "Attention Is All You Need", 2017, section 3.2.

use std::ops::Range;

use crate::aligned::Aligned;
use crate::normalize::softmax;
use crate::product::{by_rows, sums};
use crate::relative::ScoreTerm;
use crate::rows::{Block, blocks};
use crate::simd::{Kernel, Simd, store_tail};

/// For each text and head: `softmax(factor Q Kᵀ + term) V`.
pub(crate) struct Attention<'a> {
    /// `[tokens, 3 heads head_size]`: queries, keys and values beside each other.
    pub(crate) qkv: &'a [f32],
    /// The tokens of each text, end to end.
    pub(crate) texts: &'a [Range<usize>],
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    /// What scores are multiplied by: `1 / sqrt(head_size)`, or 1 where the queries have it already.
    pub(crate) factor: f32,
    /// What is added to the scores.
    pub(crate) term: Option<&'a mut dyn ScoreTerm>,
    /// `[tokens, heads head_size]`
    pub(crate) out: &'a mut [f32],
    pub(crate) buffers: &'a mut Buffers,
}

/// Memory that attention works in.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The keys of a head in panels of keys: `[panel][head_size][key]`.
    keys: Aligned<f32>,
    /// The values of a head in panels of columns: `[panel][key][column]`.
    values: Aligned<f32>,
    /// The queries of a block, interleaved: `[head_size][query]`.
    queries: Aligned<f32>,
    /// The scores of a block: `[query][key]`, each row as long as the panels of keys.
    scores: Aligned<f32>,
    /// The shares of a block, interleaved: `[key][query]`.
    shares: Aligned<f32>,
}

impl Kernel for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { qkv, texts, heads, head_size, factor, mut term, out, buffers } = self;
        let width = 2 * S::LANES;
        let hidden = heads * head_size;
        for text in texts {
            let tokens = text.len();
            let row = 3 * hidden;
            let text_qkv = &qkv[text.start * row..text.end * row];
            let text_out = &mut out[text.start * hidden..text.end * hidden];
            buffers.keys.resize(tokens.next_multiple_of(width) * head_size);
            buffers.values.resize(head_size.next_multiple_of(width) * tokens);
            buffers.queries.resize(S::ROWS * head_size);
            buffers.scores.resize(S::ROWS * tokens.next_multiple_of(width));
            buffers.shares.resize(S::ROWS * tokens);
            for head in 0..heads {
                let part =
                    |which: usize| (which * hidden + head * head_size)..(which * hidden + (head + 1) * head_size);
                let of = Head { simd, tokens, head_size, columns: head * head_size..(head + 1) * head_size, hidden };
                let rows = || text_qkv.chunks_exact(row);
                if let Some(term) = &mut term {
                    term.begin(text, head);
                }
                of.pack_keys(rows().map(|row| &row[part(1)]), &mut buffers.keys);
                of.pack_values(rows().map(|row| &row[part(2)]), &mut buffers.values);
                for block in blocks(tokens, S::ROWS) {
                    let queries = &mut buffers.queries[..block.count * head_size];
                    let source = text_qkv[block.first * row..].chunks_exact(row).take(block.count);
                    for (query, row) in source.enumerate() {
                        for (to, value) in queries.iter_mut().skip(query).step_by(block.count).zip(&row[part(0)]) {
                            *to = *value * factor;
                        }
                    }
                    by_rows!(block.count, attend::<S>(&of, block, term.as_deref(), buffers, text_out));
                }
            }
        }
    }
}

/// One head of one text.
struct Head<S> {
    simd: S,
    tokens: usize,
    head_size: usize,
    /// Its columns of the result.
    columns: Range<usize>,
    /// The columns of a row of the result.
    hidden: usize,
}

impl<S: Simd> Head<S> {
    #[inline(always)]
    fn pack_keys<'a>(&self, rows: impl Iterator<Item = &'a [f32]>, to: &mut [f32]) {
        let width = 2 * S::LANES;
        let panel_len = width * self.head_size;
        for (key, row) in rows.enumerate() {
            let panel = &mut to[key / width * panel_len..][..panel_len];
            for (to, value) in panel.iter_mut().skip(key % width).step_by(width).zip(row) {
                *to = *value;
            }
        }
        // The keys past the last one must be finite: their scores are computed, and not read.
        let used = self.tokens % width;
        if used > 0 {
            let last = &mut to[self.tokens / width * panel_len..][..panel_len];
            last.chunks_exact_mut(width).for_each(|row| row[used..].fill(0.0));
        }
    }

    #[inline(always)]
    fn pack_values<'a>(&self, rows: impl Iterator<Item = &'a [f32]>, to: &mut [f32]) {
        let width = 2 * S::LANES;
        for (key, row) in rows.enumerate() {
            for (panel, values) in row.chunks(width).enumerate() {
                let to = &mut to[(panel * self.tokens + key) * width..][..width];
                to[..values.len()].copy_from_slice(values);
                to[values.len()..].fill(0.0);
            }
        }
    }
}

/// The results of a block of queries.
#[inline(always)]
fn attend<S: Simd, const R: usize>(
    head: &Head<S>,
    block: Block,
    term: Option<&dyn ScoreTerm>,
    buffers: &mut Buffers,
    out: &mut [f32],
) {
    let Head { simd, tokens, head_size, hidden, .. } = *head;
    let width = 2 * S::LANES;
    let stride = tokens.next_multiple_of(width);
    let queries = &buffers.queries[..R * head_size];
    let scores = &mut buffers.scores[..R * stride];
    for (panel, keys) in buffers.keys.chunks_exact(width * head_size).enumerate() {
        let sums = sums::<S, R>(simd, queries, keys);
        for (row, sums) in scores.chunks_exact_mut(stride).zip(sums) {
            let row = &mut row[panel * width..][..width];
            simd.store(sums[0], row);
            simd.store(sums[1], &mut row[S::LANES..]);
        }
    }
    let shares = &mut buffers.shares[..R * tokens];
    for (query, row) in scores.chunks_exact_mut(stride).enumerate() {
        let row = &mut row[..tokens];
        if let Some(term) = term {
            term.add(block.first + query, row);
        }
        softmax(simd, row);
        for (to, share) in shares.iter_mut().skip(query).step_by(R).zip(row) {
            *to = *share;
        }
    }
    let columns = head.columns.clone();
    for (panel, values) in buffers.values.chunks_exact(width * tokens).enumerate() {
        let sums = sums::<S, R>(simd, shares, values);
        for (query, sums) in sums.into_iter().enumerate() {
            let row = &mut out[(block.first + query) * hidden..][..hidden][columns.clone()];
            let end = row.len().min((panel + 1) * width);
            for (cells, sum) in row[panel * width..end].chunks_mut(S::LANES).zip(sums) {
                if cells.len() == S::LANES { simd.store(sum, cells) } else { store_tail(simd, sum, cells) }
            }
        }
    }
}
