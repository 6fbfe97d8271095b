//! The product of quantized activations and quantized weights.

use crate::quantized::rows::{QuantizedRow, QuantizedRows};
use crate::quantized::{BLOCK, GROUPS, PANEL};
use crate::rows::{Block, blocks};
use crate::simd::{Kernel, Simd};

/// Panels of weights.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) blocks: usize,
    pub(crate) factor: f32,
    pub(crate) values: &'a [u8],
    pub(crate) scales: &'a [u16],
    pub(crate) minima: &'a [u16],
    pub(crate) bias: &'a [f32],
    /// Added to the stored integers.
    pub(crate) offset: f32,
}

/// `out[panel][row][column]` of all rows and panels.
pub(crate) struct Multiply<'a> {
    pub(crate) weights: Weights<'a>,
    pub(crate) has_bytes: bool,
    pub(crate) rows: &'a QuantizedRows,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (self.has_bytes, self.weights.minima.is_empty()) {
            (false, true) => self.panels::<S, false, false>(simd),
            (false, false) => self.panels::<S, false, true>(simd),
            (true, true) => self.panels::<S, true, false>(simd),
            (true, false) => self.panels::<S, true, true>(simd),
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn panels<S: Simd, const BYTES: bool, const MINIMUM: bool>(self, simd: S) {
        let Self { weights, rows, out, .. } = self;
        let count = rows.rows();
        if count == 0 || weights.blocks == 0 {
            out.fill(0.0);
            return;
        }
        let block_bytes = if BYTES { BLOCK * PANEL } else { BLOCK * PANEL / 2 };
        // A panel stays in the cache while all blocks of rows pass it.
        for (panel, out) in out.chunks_exact_mut(count * PANEL).enumerate() {
            let cells = panel * weights.blocks * PANEL..(panel + 1) * weights.blocks * PANEL;
            let weights = Weights {
                values: &weights.values[panel * weights.blocks * block_bytes..][..weights.blocks * block_bytes],
                scales: &weights.scales[cells.clone()],
                minima: if MINIMUM { &weights.minima[cells] } else { &[] },
                bias: if weights.bias.is_empty() { &[] } else { &weights.bias[panel * PANEL..][..PANEL] },
                ..weights
            };
            for block in blocks(count, S::BLOCK_ROWS) {
                let out = &mut out[block.first * PANEL..][..block.count * PANEL];
                match block.count {
                    1 => multiply_rows::<S, 1, BYTES, MINIMUM>(simd, weights, rows, block, out),
                    2 => multiply_rows::<S, 2, BYTES, MINIMUM>(simd, weights, rows, block, out),
                    3 => multiply_rows::<S, 3, BYTES, MINIMUM>(simd, weights, rows, block, out),
                    4 => multiply_rows::<S, 4, BYTES, MINIMUM>(simd, weights, rows, block, out),
                    5 if S::BLOCK_ROWS > 4 => multiply_rows::<S, 5, BYTES, MINIMUM>(simd, weights, rows, block, out),
                    6 if S::BLOCK_ROWS > 4 => multiply_rows::<S, 6, BYTES, MINIMUM>(simd, weights, rows, block, out),
                    7 if S::BLOCK_ROWS > 4 => multiply_rows::<S, 7, BYTES, MINIMUM>(simd, weights, rows, block, out),
                    8 if S::BLOCK_ROWS > 4 => multiply_rows::<S, 8, BYTES, MINIMUM>(simd, weights, rows, block, out),
                    count => unreachable!("a block of {count} rows"),
                }
            }
        }
    }
}

/// Multiplies a block of rows by a panel.
#[inline(always)]
fn multiply_rows<S: Simd, const R: usize, const BYTES: bool, const MINIMUM: bool>(
    simd: S,
    weights: Weights<'_>,
    rows: &QuantizedRows,
    block: Block,
    out: &mut [f32],
) {
    let mut inputs = [rows.row(block.first); R];
    for (index, input) in inputs.iter_mut().enumerate() {
        *input = rows.row(block.first + index);
    }
    for part in 0..PANEL / S::LANES {
        let first = part * S::LANES;
        let sums = tile::<S, R, BYTES, MINIMUM>(simd, weights, &inputs, first);
        let bias = if weights.bias.is_empty() { simd.splat(0.0) } else { simd.load(&weights.bias[first..]) };
        for (sum, out) in sums.into_iter().zip(out.chunks_exact_mut(PANEL)) {
            simd.store(simd.mul_add(sum, simd.splat(weights.factor), bias), &mut out[first..first + S::LANES]);
        }
    }
}

/// The distance at which weights are prefetched, in bytes.
const PREFETCH_BYTES: usize = 1536;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// The sums of `R` rows and the columns of a panel from `first` on.
#[inline(always)]
fn tile<S: Simd, const R: usize, const BYTES: bool, const MINIMUM: bool>(
    simd: S,
    weights: Weights<'_>,
    rows: &[QuantizedRow<'_>; R],
    first: usize,
) -> [S::F32; R] {
    let block_bytes = if BYTES { BLOCK * PANEL } else { BLOCK * PANEL / 2 };
    let mut totals = [simd.splat(0.0); R];
    for (block, values) in weights.values.chunks_exact(block_bytes).enumerate() {
        if first == 0 && R <= 4 {
            let ahead = values.as_ptr().wrapping_add(PREFETCH_BYTES);
            for line in 0..block_bytes / LINE_BYTES {
                simd.prefetch(ahead.wrapping_add(line * LINE_BYTES));
            }
        }
        let mut groups = [simd.load_bytes(&values[4 * first..]); GROUPS];
        if BYTES {
            for (group, vector) in groups.iter_mut().enumerate() {
                *vector = simd.load_bytes(&values[4 * (group * PANEL + first)..]);
            }
        } else {
            for (pair, vectors) in groups.chunks_exact_mut(2).enumerate() {
                let bytes = simd.load_bytes(&values[4 * (pair * PANEL + first)..]);
                vectors[0] = simd.low_nibbles(bytes);
                vectors[1] = simd.high_nibbles(bytes);
            }
        }
        let scales = simd.load_f16(&weights.scales[block * PANEL + first..]);
        // The factor of the sum of the activations: the minimum, plus the offset of the stored integers.
        let minima = match (MINIMUM, BYTES) {
            (true, false) => simd.load_f16(&weights.minima[block * PANEL + first..]),
            (true, true) => {
                let minima = simd.load_f16(&weights.minima[block * PANEL + first..]);
                simd.mul_add(scales, simd.splat(weights.offset), minima)
            }
            (false, _) => simd.mul(scales, simd.splat(weights.offset)),
        };
        for (row, total) in rows.iter().zip(&mut totals) {
            let (activations, scale, sum) = (&row.groups[block], row.scales[block], row.sums[block]);
            let mut products = simd.splat_i32(0);
            if BYTES {
                for (vector, activations) in groups.iter().zip(activations) {
                    products = simd.dot_bytes(products, *vector, *activations);
                }
            } else {
                products = simd.dot_nibbles(products, &groups, activations);
            }
            let scaled = simd.mul(scales, simd.splat(scale));
            *total = simd.mul_add(scaled, simd.to_f32(products), *total);
            *total = simd.mul_add(minima, simd.splat(sum), *total);
        }
    }
    totals
}
