//! Attention of queries over pages of keys and values. Vaswani et al., "Attention Is All You Need", 2017, section 3.2; heads of queries
//! that share a head of keys and values: Ainslie et al., "GQA", 2023.

use crate::decoder::cache::{CachePages, PAGE_TOKENS};
use crate::isa::Isa;
use crate::normalize::{exponentials, scale};
use crate::rows::{Block, blocks};
use crate::simd::{Kernel, Simd};
use crate::tile::by_rows;

/// `softmax(factor Q Kᵀ) V` of queries of one sequence and one head of its keys and values. Each query is computed by itself, page
/// after page, so that other queries in the call do not change its bits.
#[derive(Debug)]
pub struct PagedAttention<'a> {
    /// The keys and values of a layer.
    pub cache: &'a CachePages,
    /// The pages of the sequence.
    pub pages: &'a [u32],
    /// The head of keys and values.
    pub head: usize,
    /// `[query][head_size]`
    pub queries: &'a [f32],
    /// The number of tokens that each query attends to, counted from the first; at least one.
    pub lengths: &'a [usize],
    /// The factor of the scores; positive.
    pub factor: f32,
    /// `[query][head_size]`
    pub out: &'a mut [f32],
    /// Scratch memory, grown as needed.
    pub scores: &'a mut Vec<f32>,
}

impl PagedAttention<'_> {
    /// Computes the attention and writes it to `out`.
    ///
    /// # Panics
    /// If the lengths of the slices do not agree, or a length is not within the pages.
    pub fn compute(self, isa: Isa) {
        let head_size = self.cache.shape().head_size;
        assert_eq!(self.queries.len(), self.lengths.len() * head_size, "the queries of an attention");
        assert_eq!(self.out.len(), self.queries.len(), "the result of an attention");
        let covered = self.pages.len() * PAGE_TOKENS;
        assert!(self.lengths.iter().all(|length| (1..=covered).contains(length)), "the lengths of an attention");
        isa.run(self);
    }
}

impl Kernel for PagedAttention<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cache, pages, head, queries, lengths, factor, out, scores } = self;
        let head_size = cache.shape().head_size;
        for block in blocks(lengths.len(), S::ROWS) {
            let rows = block.first..block.first + block.count;
            let lengths = &lengths[rows.clone()];
            let longest = lengths.iter().copied().max().unwrap_or(0);
            let width = longest.next_multiple_of(PAGE_TOKENS);
            if scores.len() < block.count * width {
                scores.resize(block.count * width, 0.0);
            }
            let pages = &pages[..width / PAGE_TOKENS];
            let elements = rows.start * head_size..rows.end * head_size;
            let queries = &queries[elements.clone()];
            let view = View { cache, pages, head, head_size };
            by_rows!(block.count, score_rows::<S>(simd, view, queries, &mut scores[..]));
            let out = &mut out[elements];
            let mut sums = [0.0; ROWS_MAX];
            for ((row, length), sum) in scores.chunks_exact_mut(width).zip(lengths).zip(&mut sums) {
                *sum = exponentials(simd, &mut row[..*length], factor);
                row[*length..].fill(0.0);
            }
            for part in blocks(block.count, if S::ROWS > 6 { 6 } else { 3 }) {
                add_values(simd, view, part, longest, &scores[part.first * width..], out);
            }
            for (row, sum) in out.chunks_exact_mut(head_size).zip(sums) {
                scale(simd, row, 1.0 / sum);
            }
        }
    }
}

/// The largest [`Simd::ROWS`].
const ROWS_MAX: usize = 12;

/// The pages of a sequence and a head of them.
#[derive(Clone, Copy)]
struct View<'a> {
    cache: &'a CachePages,
    pages: &'a [u32],
    head: usize,
    head_size: usize,
}

/// Writes `scores[row][key]`, each row as long as the pages. Few rows are multiplied by several pages at once: more independent sums
/// hide the latency of an addition.
#[inline(always)]
fn score_rows<S: Simd, const R: usize>(simd: S, view: View<'_>, queries: &[f32], scores: &mut [f32]) {
    if R <= 3 {
        score_pages::<S, R, 4>(simd, view, queries, scores);
    } else if R <= 6 {
        score_pages::<S, R, 2>(simd, view, queries, scores);
    } else {
        score_pages::<S, R, 1>(simd, view, queries, scores);
    }
}

#[inline(always)]
fn score_pages<S: Simd, const R: usize, const P: usize>(simd: S, view: View<'_>, queries: &[f32], scores: &mut [f32]) {
    let width = view.pages.len() * PAGE_TOKENS;
    let together = view.pages.len() / P * P;
    for page in (0..together).step_by(P) {
        score::<S, R, P>(simd, view, page, width, queries, scores);
    }
    for page in together..view.pages.len() {
        score::<S, R, 1>(simd, view, page, width, queries, scores);
    }
}

#[inline(always)]
fn score<S: Simd, const R: usize, const P: usize>(
    simd: S,
    view: View<'_>,
    page: usize,
    width: usize,
    queries: &[f32],
    scores: &mut [f32],
) {
    let mut keys = [view.cache.keys(view.pages[page], view.head); P];
    for (index, keys) in keys.iter_mut().enumerate() {
        *keys = view.cache.keys(view.pages[page + index], view.head);
    }
    let mut rows = [queries; R];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = &queries[index * view.head_size..][..view.head_size];
    }
    for first in (0..PAGE_TOKENS).step_by(S::LANES) {
        let mut sums = [[simd.splat(0.0); P]; R];
        for element in 0..view.head_size {
            let mut vectors = [simd.splat(0.0); P];
            for (vector, keys) in vectors.iter_mut().zip(&keys) {
                *vector = simd.load_f16(&keys[element * PAGE_TOKENS + first..]);
            }
            for (sums, row) in sums.iter_mut().zip(&rows) {
                let query = simd.splat(row[element]);
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = simd.mul_add(query, vector, *sum);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (index, sum) in sums.into_iter().enumerate() {
                simd.store(sum, &mut scores[row * width + (page + index) * PAGE_TOKENS + first..]);
            }
        }
    }
}

/// Writes `out[row] = weights[row] · values` for the rows of a part.
#[inline(always)]
fn add_values<S: Simd>(simd: S, view: View<'_>, part: Block, tokens: usize, weights: &[f32], out: &mut [f32]) {
    let out = &mut out[part.first * view.head_size..][..part.count * view.head_size];
    match part.count {
        1 => add_columns::<S, 1>(simd, view, tokens, weights, out),
        2 => add_columns::<S, 2>(simd, view, tokens, weights, out),
        3 => add_columns::<S, 3>(simd, view, tokens, weights, out),
        4 if S::ROWS > 6 => add_columns::<S, 4>(simd, view, tokens, weights, out),
        5 if S::ROWS > 6 => add_columns::<S, 5>(simd, view, tokens, weights, out),
        6 if S::ROWS > 6 => add_columns::<S, 6>(simd, view, tokens, weights, out),
        count => unreachable!("a part of {count} rows"),
    }
}

#[inline(always)]
fn add_columns<S: Simd, const R: usize>(simd: S, view: View<'_>, tokens: usize, weights: &[f32], out: &mut [f32]) {
    let vectors = view.head_size / S::LANES;
    let together = vectors / 4 * 4;
    for vector in (0..together).step_by(4) {
        weighted::<S, R, 4>(simd, view, tokens, vector * S::LANES, weights, out);
    }
    for vector in together..vectors {
        weighted::<S, R, 1>(simd, view, tokens, vector * S::LANES, weights, out);
    }
}

#[inline(always)]
fn weighted<S: Simd, const R: usize, const C: usize>(
    simd: S,
    view: View<'_>,
    tokens: usize,
    column: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let width = view.pages.len() * PAGE_TOKENS;
    let mut rows = [weights; R];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = &weights[index * width..][..width];
    }
    let mut sums = [[simd.splat(0.0); C]; R];
    for (index, page) in view.pages.iter().enumerate() {
        let values = view.cache.values(*page, view.head);
        let first = index * PAGE_TOKENS;
        // The slots after the last token hold arbitrary numbers.
        for token in 0..PAGE_TOKENS.min(tokens - first) {
            let mut vectors = [simd.splat(0.0); C];
            for (lane, vector) in vectors.iter_mut().enumerate() {
                *vector = simd.load_f16(&values[token * view.head_size + column + lane * S::LANES..]);
            }
            for (sums, row) in sums.iter_mut().zip(&rows) {
                let weight = simd.splat(row[first + token]);
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = simd.mul_add(weight, vector, *sum);
                }
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (lane, sum) in sums.into_iter().enumerate() {
            simd.store(sum, &mut out[row * view.head_size + column + lane * S::LANES..]);
        }
    }
}
