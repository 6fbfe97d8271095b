//! Layer normalization and softmax: functions of one row.

use crate::math::exp;
use crate::simd::{Kernel, Simd, load_tail, store_tail};

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
            let mean = sum(simd, row, |value| value) / width as f32;
            let means = simd.splat(mean);
            let squares = |value: S::F32| {
                let distance = simd.sub(value, means);
                simd.mul(distance, distance)
            };
            // The lanes past the row's end hold the mean, whose distance is zero.
            let variance = sum_filled(simd, row, mean, squares) / width as f32;
            let factor = simd.splat(1.0 / (variance + self.epsilon).sqrt());
            let parts = row.chunks_mut(S::LANES).zip(self.gain.chunks(S::LANES)).zip(self.bias.chunks(S::LANES));
            for ((cells, gain), bias) in parts {
                let scaled = |values, gain, bias| simd.mul_add(simd.mul(simd.sub(values, means), factor), gain, bias);
                if cells.len() == S::LANES {
                    simd.store(scaled(simd.load(cells), simd.load(gain), simd.load(bias)), cells);
                } else {
                    let (values, gain) = (load_tail(simd, cells, 0.0), load_tail(simd, gain, 0.0));
                    store_tail(simd, scaled(values, gain, load_tail(simd, bias, 0.0)), cells);
                }
            }
        }
    }
}

#[inline(always)]
fn sum<S: Simd>(simd: S, row: &[f32], of: impl Fn(S::F32) -> S::F32) -> f32 {
    sum_filled(simd, row, 0.0, of)
}

#[inline(always)]
fn sum_filled<S: Simd>(simd: S, row: &[f32], fill: f32, of: impl Fn(S::F32) -> S::F32) -> f32 {
    let mut total = simd.splat(0.0);
    let mut vectors = row.chunks_exact(S::LANES);
    for values in &mut vectors {
        total = simd.add(total, of(simd.load(values)));
    }
    if !vectors.remainder().is_empty() {
        total = simd.add(total, of(load_tail(simd, vectors.remainder(), fill)));
    }
    simd.sum(total)
}

/// Replaces a row by `exp(row - greatest) / sum`. The row is not empty.
#[inline(always)]
pub(crate) fn softmax<S: Simd>(simd: S, row: &mut [f32]) {
    let mut greatest = simd.splat(f32::NEG_INFINITY);
    let mut vectors = row.chunks_exact(S::LANES);
    for values in &mut vectors {
        greatest = simd.max(greatest, simd.load(values));
    }
    greatest = simd.max(greatest, load_tail(simd, vectors.remainder(), f32::NEG_INFINITY));
    let greatest = simd.splat(simd.greatest(greatest));
    let mut total = simd.splat(0.0);
    for cells in row.chunks_mut(S::LANES) {
        if cells.len() == S::LANES {
            let shares = exp(simd, simd.sub(simd.load(cells), greatest));
            total = simd.add(total, shares);
            simd.store(shares, cells);
        } else {
            let shares = exp(simd, simd.sub(load_tail(simd, cells, 0.0), greatest));
            store_tail(simd, shares, cells);
            total = simd.add(total, load_tail(simd, cells, 0.0));
        }
    }
    let factor = simd.splat(1.0 / simd.sum(total));
    for cells in row.chunks_mut(S::LANES) {
        if cells.len() == S::LANES {
            simd.store(simd.mul(simd.load(cells), factor), cells);
        } else {
            let shares = simd.mul(load_tail(simd, cells, 0.0), factor);
            store_tail(simd, shares, cells);
        }
    }
}
