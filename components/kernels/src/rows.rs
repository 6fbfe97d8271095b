//! Activations in the form that products read.

use crate::aligned::Aligned;
use crate::matrix::Matrix;
use crate::simd::{Kernel, Simd, load_up_to};
use crate::strided::Strided;
use crate::weights::Precision;

/// Scratch memory for activations `[rows, inner]` that are converted to the precision of a matrix. It grows to the size of the largest
/// product. Products in f32 read the activations in place.
#[derive(Debug, Default)]
pub struct Rows {
    /// `[row][stride]`, each word a pair of bf16 or a group of quantized activations.
    words: Aligned<u32>,
    /// The distance from a row to the next, in words.
    stride: usize,
    /// By row; an integer means `(integer - zero) * scale`.
    scales: Vec<f32>,
    zeros: Vec<i32>,
}

/// Activations for a product.
#[derive(Clone, Copy)]
pub(crate) enum Activations<'a> {
    F32(Strided<'a, f32>),
    Lowered(Lowered<'a>),
}

/// Activations in bf16 or u8.
#[derive(Clone, Copy)]
pub(crate) struct Lowered<'a> {
    pub(crate) words: Strided<'a, u32>,
    /// By row; unused in bf16.
    pub(crate) scales: &'a [f32],
    /// By row; unused in bf16.
    pub(crate) zeros: &'a [i32],
}

/// Consecutive rows that are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// Splits rows into as few blocks as possible, as equal as possible.
#[inline(always)]
pub(crate) fn blocks(rows: usize, block_rows: usize) -> impl Iterator<Item = Block> {
    let count = rows.div_ceil(block_rows);
    let mut first = 0;
    (0..count).map(move |block| {
        let count = (rows - first).div_ceil(count - block);
        first += count;
        Block { first: first - count, count }
    })
}

impl Rows {
    /// Converts the rows `[rows, matrix.inner()]` of a slice to the form that products with `matrix` read.
    pub(crate) fn lower<'a>(&'a mut self, source: &'a [f32], matrix: &Matrix) -> Activations<'a> {
        let inner = matrix.inner();
        assert_eq!(source.len() % inner, 0, "rows of {inner}");
        let rows = source.len() / inner;
        let precision = matrix.precision();
        let group = match precision {
            Precision::F32 => return Activations::F32(Strided { elements: source, stride: inner }),
            Precision::Bf16 => 2,
            Precision::Int8 => matrix.layout.group,
        };
        // Whole vectors, and an odd number of cache lines: rows of a block must not compete for the same lines of the cache.
        let lines = (inner.div_ceil(group) * size_of::<u32>()).div_ceil(LINE_BYTES) | 1;
        self.stride = lines * LINE_BYTES / size_of::<u32>();
        self.words.resize(rows * self.stride);
        self.scales.resize(rows, 0.0);
        self.zeros.resize(rows, 0);
        matrix.isa().run(Lower { source, inner, precision, rows: self });
        let words = Strided { elements: &self.words[..], stride: self.stride };
        Activations::Lowered(Lowered { words, scales: &self.scales, zeros: &self.zeros })
    }
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Converts each row: to bf16, or to u8 by its own range.
struct Lower<'a> {
    source: &'a [f32],
    inner: usize,
    precision: Precision,
    rows: &'a mut Rows,
}

impl Kernel for Lower<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, inner, precision, rows } = self;
        let words = rows.words.chunks_exact_mut(rows.stride);
        for (index, (row, words)) in source.chunks_exact(inner).zip(words).enumerate() {
            if precision == Precision::Bf16 {
                for (values, to) in row.chunks(S::LANES).zip(words.chunks_mut(S::LANES / 2)) {
                    simd.store_bf16(load_up_to(simd, values, 0.0), to);
                }
            } else {
                (rows.scales[index], rows.zeros[index]) = quantize(simd, row, words);
            }
        }
    }
}

/// Independent minima and maxima, which hide the latency of a comparison.
const CHAINS: usize = 2;

/// Quantizes one row to u8, less the shift of the instruction set, and returns its scale and zero point. The integers cover the range
/// of the row, extended to include zero.
#[inline(always)]
fn quantize<S: Simd>(simd: S, row: &[f32], to: &mut [u32]) -> (f32, i32) {
    let (mut least, mut greatest) = ([simd.splat(0.0); CHAINS], [simd.splat(0.0); CHAINS]);
    let mut chains = row.chunks_exact(CHAINS * S::LANES);
    for values in &mut chains {
        for (chain, values) in values.chunks_exact(S::LANES).enumerate() {
            let values = simd.load(values);
            (least[chain], greatest[chain]) = (simd.min(least[chain], values), simd.max(greatest[chain], values));
        }
    }
    for values in chains.remainder().chunks(S::LANES) {
        let values = load_up_to(simd, values, 0.0);
        (least[0], greatest[0]) = (simd.min(least[0], values), simd.max(greatest[0], values));
    }
    let least = simd.least(simd.min(least[0], least[1]));
    let greatest = simd.greatest(simd.max(greatest[0], greatest[1]));
    // A row of zeros has no range, and f32 cannot divide by a smaller one.
    let scale = ((greatest - least) / 255.0).max(1e-30);
    let zero = (-least / scale).round_ties_even();
    let (factor, shift) = (simd.splat(1.0 / scale), simd.splat(zero));
    let (lowest, highest) = (simd.splat(0.0), simd.splat(255.0));
    let mut vectors = row.chunks_exact(S::LANES);
    let mut groups = to.chunks_exact_mut(S::LANES / S::INT8_GROUP);
    for (values, to) in (&mut vectors).zip(&mut groups) {
        let integers = simd.add(simd.round(simd.mul(simd.load(values), factor)), shift);
        simd.store_int8(simd.min(simd.max(integers, lowest), highest), to);
    }
    if let (false, Some(to)) = (vectors.remainder().is_empty(), groups.next()) {
        let integers = simd.add(simd.round(simd.mul(simd.load_part(vectors.remainder(), 0.0), factor)), shift);
        simd.store_int8(simd.min(simd.max(integers, lowest), highest), to);
    }
    (scale, zero as i32 - S::INT8_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_any_count_cover_all_rows_evenly() {
        for rows in 0..100 {
            for block_rows in 1..13 {
                let blocks: Vec<Block> = blocks(rows, block_rows).collect();
                assert_eq!(blocks.len(), rows.div_ceil(block_rows));
                let mut next = 0;
                for block in &blocks {
                    assert_eq!(block.first, next);
                    next += block.count;
                }
                assert_eq!(next, rows);
                let counts = || blocks.iter().map(|block| block.count);
                assert!(counts().all(|count| (1..=block_rows).contains(&count)));
                assert!(counts().max().unwrap_or(0) - counts().min().unwrap_or(0) <= 1);
            }
        }
    }
}
