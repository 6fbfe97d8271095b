//! Layer normalization and softmax: functions of one row.

use crate::math::exp;
use crate::simd::{Kernel, Simd, load_up_to, store_up_to};

/// Independent partial sums, which hide the latency of an addition.
const CHAINS: usize = 4;

/// Replaces each row by `(row - mean) / sqrt(variance + epsilon) * gain + bias`. Ba, Kiros and Hinton, "Layer Normalization", 2016.
pub(crate) struct LayerNorm<'a> {
    /// `[rows, width]`
    pub(crate) rows: &'a mut [f32],
    /// `[width]`
    pub(crate) gain: &'a [f32],
    /// `[width]`
    pub(crate) bias: &'a [f32],
    pub(crate) epsilon: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.gain.len();
        for row in self.rows.chunks_exact_mut(width) {
            let mean = sum(simd, row) / width as f32;
            let means = simd.splat(mean);
            let variance = squares(simd, row, mean) / width as f32;
            let factor = simd.splat(1.0 / (variance + self.epsilon).sqrt());
            let parts = row.chunks_mut(S::LANES).zip(self.gain.chunks(S::LANES)).zip(self.bias.chunks(S::LANES));
            for ((cells, gain), bias) in parts {
                let [values, gain, bias] = [&*cells, gain, bias].map(|part| load_up_to(simd, part, 0.0));
                let scaled = simd.mul_add(simd.mul(simd.sub(values, means), factor), gain, bias);
                store_up_to(simd, scaled, cells);
            }
        }
    }
}

/// The sum of a row, in an order that depends on its length alone.
#[inline(always)]
fn sum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let mut totals = [simd.splat(0.0); CHAINS];
    let mut chains = row.chunks_exact(CHAINS * S::LANES);
    for values in &mut chains {
        for (total, values) in totals.iter_mut().zip(values.chunks_exact(S::LANES)) {
            *total = simd.add(*total, simd.load(values));
        }
    }
    for values in chains.remainder().chunks(S::LANES) {
        totals[0] = simd.add(totals[0], load_up_to(simd, values, 0.0));
    }
    simd.sum(simd.add(simd.add(totals[0], totals[1]), simd.add(totals[2], totals[3])))
}

/// The sum of the squares of the distances of a row from its mean, in an order that depends on its length alone.
#[inline(always)]
fn squares<S: Simd>(simd: S, row: &[f32], mean: f32) -> f32 {
    let means = simd.splat(mean);
    let mut totals = [simd.splat(0.0); CHAINS];
    let mut chains = row.chunks_exact(CHAINS * S::LANES);
    for values in &mut chains {
        for (total, values) in totals.iter_mut().zip(values.chunks_exact(S::LANES)) {
            let distance = simd.sub(simd.load(values), means);
            *total = simd.mul_add(distance, distance, *total);
        }
    }
    for values in chains.remainder().chunks(S::LANES) {
        // The lanes past the row's end hold the mean, whose distance is zero.
        let distance = simd.sub(load_up_to(simd, values, mean), means);
        totals[0] = simd.mul_add(distance, distance, totals[0]);
    }
    simd.sum(simd.add(simd.add(totals[0], totals[1]), simd.add(totals[2], totals[3])))
}

/// Replaces a row by `exp(factor (row - greatest))` and returns the sum of the result: softmax without the division. The row is not
/// empty, the factor positive.
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(simd: S, row: &mut [f32], factor: f32) -> f32 {
    let mut greatest = simd.splat(f32::NEG_INFINITY);
    for values in row.chunks(S::LANES) {
        greatest = simd.max(greatest, load_up_to(simd, values, f32::NEG_INFINITY));
    }
    let (greatest, factor) = (simd.splat(simd.greatest(greatest)), simd.splat(factor));
    let mut total = simd.splat(0.0);
    let mut vectors = row.chunks_exact_mut(S::LANES);
    for cells in &mut vectors {
        let powers = exp(simd, simd.mul(simd.sub(simd.load(cells), greatest), factor));
        total = simd.add(total, powers);
        simd.store(powers, cells);
    }
    let cells = vectors.into_remainder();
    if !cells.is_empty() {
        let powers = exp(simd, simd.mul(simd.sub(simd.load_part(cells, 0.0), greatest), factor));
        simd.store_part(powers, cells);
        total = simd.add(total, simd.load_part(cells, 0.0));
    }
    simd.sum(total)
}

/// Multiplies a row by a factor.
#[inline(always)]
pub(crate) fn scale<S: Simd>(simd: S, row: &mut [f32], factor: f32) {
    let factor = simd.splat(factor);
    for cells in row.chunks_mut(S::LANES) {
        let scaled = simd.mul(load_up_to(simd, cells, 0.0), factor);
        store_up_to(simd, scaled, cells);
    }
}
