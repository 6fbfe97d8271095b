//! Activations, in the form that products read them.

use crate::aligned::Aligned;
use crate::isa::Layout;
use crate::matrix::{Matrix, Precision};
use crate::simd::{Kernel, Simd, load_tail, store_tail};

/// Activations `[rows, inner]` in blocks: the rows that a tile computes lie interleaved, so that it reads them from front to back.
/// Memory that is filled for each product and grows to the largest that it has seen.
#[derive(Debug, Default)]
pub struct Rows {
    /// Rows of all blocks.
    len: usize,
    /// The most rows of a block.
    block_rows: usize,
    /// `[block][inner][row]`
    floats: Aligned<f32>,
    /// `[block][group][row]`, each word a group of quantized activations.
    words: Aligned<i32>,
    /// For each row, what an integer stands for: `(integer - zero) * scale`.
    scales: Vec<f32>,
    zeros: Vec<i32>,
    /// One row of quantized activations.
    row: Vec<u8>,
}

/// Consecutive rows that are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// Splits rows into as few blocks as possible, as equal as possible.
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
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        blocks(self.len, self.block_rows)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The activations of a block in f32.
    pub(crate) fn floats(&self, block: Block, inner: usize) -> &[f32] {
        &self.floats[block.first * inner..][..block.count * inner]
    }

    /// The activations of a block in integers.
    pub(crate) fn words(&self, block: Block, groups: usize) -> &[i32] {
        &self.words[block.first * groups..][..block.count * groups]
    }

    pub(crate) fn scale(&self, row: usize) -> f32 {
        self.scales[row]
    }

    pub(crate) fn zero(&self, row: usize) -> i32 {
        self.zeros[row]
    }

    /// Takes the rows `[rows, matrix.inner()]` of a slice in the form that products with `matrix` read.
    pub(crate) fn fill(&mut self, source: &[f32], matrix: &Matrix) {
        let inner = matrix.inner();
        assert_eq!(source.len() % inner, 0, "rows of {inner}");
        let rows = source.len() / inner;
        let Layout { rows: block_rows, group, .. } = matrix.layout;
        (self.len, self.block_rows) = (rows, block_rows);
        match matrix.precision() {
            Precision::F32 => {
                self.floats.resize(rows * inner);
                interleave(source, inner, block_rows, &mut self.floats);
            }
            Precision::Int8 => {
                let groups = inner.div_ceil(group);
                self.words.resize(rows * groups);
                self.scales.resize(rows, 0.0);
                self.zeros.resize(rows, 0);
                self.row.clear();
                self.row.resize(groups * group, 0);
                matrix.isa().run(Quantize { source, inner, groups, rows: self });
            }
        }
    }
}

/// Rows of a slice `[rows, inner]` as `[block][inner][row]`.
fn interleave(source: &[f32], inner: usize, block_rows: usize, to: &mut [f32]) {
    for Block { first, count } in blocks(source.len() / inner, block_rows) {
        let to = &mut to[first * inner..][..count * inner];
        for (row, source) in source[first * inner..][..count * inner].chunks_exact(inner).enumerate() {
            for (to, value) in to.iter_mut().skip(row).step_by(count).zip(source) {
                *to = *value;
            }
        }
    }
}

/// Quantizes each row by its own range.
struct Quantize<'a> {
    source: &'a [f32],
    inner: usize,
    groups: usize,
    rows: &'a mut Rows,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, inner, groups, rows } = self;
        for Block { first, count } in rows.blocks() {
            for row in 0..count {
                let values = &source[(first + row) * inner..][..inner];
                let (scale, zero) = quantize(simd, values, &mut rows.row[..inner]);
                (rows.scales[first + row], rows.zeros[first + row]) = (scale, zero);
                let words = rows.words[first * groups..][..count * groups].iter_mut().skip(row).step_by(count);
                for (word, group) in words.zip(rows.row.chunks_exact(S::GROUP)) {
                    *word = simd.group_word(group);
                }
            }
        }
    }
}

/// One row in u8; its scale and zero point. The range that the integers cover is that of the row, and has zero in it.
#[inline(always)]
fn quantize<S: Simd>(simd: S, row: &[f32], to: &mut [u8]) -> (f32, i32) {
    let (mut least, mut greatest) = (simd.splat(0.0), simd.splat(0.0));
    let mut vectors = row.chunks_exact(S::LANES);
    for values in &mut vectors {
        let values = simd.load(values);
        (least, greatest) = (simd.min(least, values), simd.max(greatest, values));
    }
    let tail = load_tail(simd, vectors.remainder(), 0.0);
    let (least, greatest) = (simd.least(simd.min(least, tail)), simd.greatest(simd.max(greatest, tail)));
    // A row of zeros has no range; one this small has none that f32 can divide by.
    let scale = ((greatest - least) / 255.0).max(1e-30);
    let zero = (-least / scale).round_ties_even();
    let (factor, shift) = (simd.splat(1.0 / scale), simd.splat(zero));
    let (lowest, highest) = (simd.splat(0.0), simd.splat(255.0));
    let mut lanes = [0.0; crate::simd::LANES_MAX];
    for (values, to) in row.chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
        let values = if values.len() == S::LANES { simd.load(values) } else { load_tail(simd, values, 0.0) };
        let integers = simd.add(simd.round(simd.mul(values, factor)), shift);
        store_tail(simd, simd.min(simd.max(integers, lowest), highest), &mut lanes[..S::LANES]);
        for (to, value) in to.iter_mut().zip(lanes) {
            *to = value as u8;
        }
    }
    (scale, zero as i32)
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
