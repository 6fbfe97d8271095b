//! Activations, quantized in blocks.

use crate::aligned::Aligned;
use crate::isa::Isa;
use crate::quantized::{BLOCK, GROUPS};
use crate::simd::{Kernel, Simd};

/// Activations `[rows, inner]` in i8, each block with its own scale, `greatest magnitude / 127`. The memory is reused.
#[derive(Debug, Default)]
pub struct QuantizedRows {
    rows: usize,
    inner: usize,
    /// `[row][stride]`, each word a group of four.
    words: Aligned<u32>,
    /// The distance from a row to the next, in words.
    stride: usize,
    /// `[row][block]`
    scales: Vec<f32>,
    /// The sums of the quantized activations: `[row][block]`
    sums: Vec<f32>,
}

impl QuantizedRows {
    /// Quantizes the rows of `source`, `[rows, inner]`.
    ///
    /// # Panics
    /// If `inner` is not a multiple of 32, or `source` is not whole rows.
    pub fn quantize(&mut self, isa: Isa, source: &[f32], inner: usize) {
        self.resize(source.len() / inner.max(1), inner);
        assert_eq!(source.len(), self.rows * inner, "rows of {inner}");
        for (row, values) in source.chunks_exact(inner.max(1)).enumerate() {
            self.quantize_row(isa, row, values);
        }
    }

    /// Sets the size; [`quantize_row`](Self::quantize_row) then fills the rows.
    ///
    /// # Panics
    /// If `inner` is not a multiple of 32.
    pub fn resize(&mut self, rows: usize, inner: usize) {
        assert_eq!(inner % BLOCK, 0, "the inner dimension of quantized rows");
        (self.rows, self.inner) = (rows, inner);
        // An odd number of cache lines: rows of a tile must not compete for the same lines of the cache.
        let lines = (inner / 4 * size_of::<u32>()).div_ceil(LINE_BYTES) | 1;
        self.stride = lines * LINE_BYTES / size_of::<u32>();
        self.words.resize(rows * self.stride);
        self.scales.resize(rows * inner / BLOCK, 0.0);
        self.sums.resize(rows * inner / BLOCK, 0.0);
    }

    /// Quantizes one row.
    ///
    /// # Panics
    /// If there is no such row, or the length of `source` is not the inner dimension.
    pub fn quantize_row(&mut self, isa: Isa, row: usize, source: &[f32]) {
        assert!(row < self.rows && source.len() == self.inner, "a row of {}", self.inner);
        let blocks = row * self.inner / BLOCK..(row + 1) * self.inner / BLOCK;
        isa.run(Quantize {
            source,
            words: &mut self.words[row * self.stride..][..self.inner / 4],
            scales: &mut self.scales[blocks.clone()],
            sums: &mut self.sums[blocks],
        });
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// The groups, scales and sums of a row, by block.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> QuantizedRow<'_> {
        let blocks = self.inner / BLOCK;
        QuantizedRow {
            groups: self.words[row * self.stride..][..blocks * GROUPS].as_chunks().0,
            scales: &self.scales[row * blocks..][..blocks],
            sums: &self.sums[row * blocks..][..blocks],
        }
    }
}

/// A row by block.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedRow<'a> {
    pub(crate) groups: &'a [[u32; GROUPS]],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [f32],
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

struct Quantize<'a> {
    source: &'a [f32],
    words: &'a mut [u32],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factors = self.scales.iter_mut().zip(self.sums);
        let blocks = self.source.chunks_exact(BLOCK).zip(self.words.chunks_exact_mut(GROUPS));
        for ((block, words), (scale, sum)) in blocks.zip(factors) {
            let mut greatest = simd.splat(0.0);
            for values in block.chunks_exact(S::LANES) {
                let values = simd.load(values);
                greatest = simd.max(greatest, simd.max(values, simd.sub(simd.splat(0.0), values)));
            }
            let greatest = simd.greatest(greatest);
            *scale = greatest / 127.0;
            // The reciprocal of a subnormal number may be infinite.
            let inverse = if greatest > f32::MIN_POSITIVE { 127.0 / greatest } else { 0.0 };
            let inverse = simd.splat(inverse);
            // A sum of 32 integers below 128 is exact.
            let mut total = simd.splat(0.0);
            for (values, words) in block.chunks_exact(S::LANES).zip(words.chunks_exact_mut(S::LANES / 4)) {
                let rounded = simd.round(simd.mul(simd.load(values), inverse));
                // This also replaces NaN by a number.
                let rounded = simd.min(simd.max(rounded, simd.splat(-127.0)), simd.splat(127.0));
                total = simd.add(total, rounded);
                simd.store_bytes(rounded, words);
            }
            *sum = *scale * simd.sum(total);
        }
    }
}
