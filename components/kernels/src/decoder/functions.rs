//! Functions of one row.

use crate::isa::Isa;
use crate::math::Activation;
use crate::simd::{Kernel, Simd, load_up_to, store_up_to};

/// Writes `row / sqrt(mean(row²) + epsilon) * gain`. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
///
/// # Panics
/// If the slices are not of one length.
pub fn rms_norm(isa: Isa, row: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(row.len() == gain.len() && row.len() == out.len(), "the sizes of a normalization");
    isa.run(RmsNorm { row, gain, epsilon, out });
}

/// Writes `silu(gate) * up`. Shazeer, "GLU Variants Improve Transformer", 2020.
///
/// # Panics
/// If the slices are not of one length.
pub fn gated_silu(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "the sizes of a gate");
    isa.run(GatedSilu { gate, up, out });
}

/// Rotates the `n` pairs `(head[i], head[i + n])` of a head by the angles with these `n` cosines and sines. Su et al., "RoFormer",
/// 2021, with the pairs of GPT-NeoX.
///
/// # Panics
/// If the head is shorter than all pairs.
pub fn rotate(isa: Isa, head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let pairs = cosines.len();
    assert!(sines.len() == pairs && head.len() >= 2 * pairs, "the sizes of a rotation");
    let (left, right) = head.split_at_mut(pairs);
    isa.run(Rotate { left, right: &mut right[..pairs], cosines, sines });
}

/// Replaces a row by `exp(factor (row - greatest))` and returns the sum of the result, in an order that depends on the length alone.
/// The factor is positive. Exponents below -87.3 count as -87.3.
pub fn exponentials(isa: Isa, row: &mut [f32], factor: f32) -> f32 {
    if row.is_empty() { 0.0 } else { isa.run(Exponentials { row, factor }) }
}

/// The greatest element; negative infinity for an empty row.
pub fn greatest(isa: Isa, row: &[f32]) -> f32 {
    isa.run(Greatest { row })
}

struct RmsNorm<'a> {
    row: &'a [f32],
    gain: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut totals = [simd.splat(0.0); 4];
        for (index, values) in self.row.chunks(S::LANES).enumerate() {
            let values = load_up_to(simd, values, 0.0);
            totals[index % 4] = simd.mul_add(values, values, totals[index % 4]);
        }
        let total = simd.sum(simd.add(simd.add(totals[0], totals[1]), simd.add(totals[2], totals[3])));
        let factor = simd.splat(1.0 / (total / self.row.len() as f32 + self.epsilon).sqrt());
        let parts = self.row.chunks(S::LANES).zip(self.gain.chunks(S::LANES)).zip(self.out.chunks_mut(S::LANES));
        for ((values, gain), out) in parts {
            let scaled = simd.mul(load_up_to(simd, values, 0.0), factor);
            store_up_to(simd, simd.mul(scaled, load_up_to(simd, gain, 0.0)), out);
        }
    }
}

struct GatedSilu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for GatedSilu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let parts = self.gate.chunks(S::LANES).zip(self.up.chunks(S::LANES)).zip(self.out.chunks_mut(S::LANES));
        for ((gate, up), out) in parts {
            let gate = Activation::Silu.apply(simd, load_up_to(simd, gate, 0.0));
            store_up_to(simd, simd.mul(gate, load_up_to(simd, up, 0.0)), out);
        }
    }
}

struct Rotate<'a> {
    left: &'a mut [f32],
    right: &'a mut [f32],
    cosines: &'a [f32],
    sines: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let angles = self.cosines.chunks(S::LANES).zip(self.sines.chunks(S::LANES));
        let pairs = self.left.chunks_mut(S::LANES).zip(self.right.chunks_mut(S::LANES));
        for ((left, right), (cosines, sines)) in pairs.zip(angles) {
            let (a, b) = (load_up_to(simd, left, 0.0), load_up_to(simd, right, 0.0));
            let (cosines, sines) = (load_up_to(simd, cosines, 0.0), load_up_to(simd, sines, 0.0));
            store_up_to(simd, simd.sub(simd.mul(a, cosines), simd.mul(b, sines)), left);
            store_up_to(simd, simd.mul_add(a, sines, simd.mul(b, cosines)), right);
        }
    }
}

struct Exponentials<'a> {
    row: &'a mut [f32],
    factor: f32,
}

impl Kernel for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        crate::normalize::exponentials(simd, self.row, self.factor)
    }
}

struct Greatest<'a> {
    row: &'a [f32],
}

impl Kernel for Greatest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut greatest = [simd.splat(f32::NEG_INFINITY); 4];
        for (index, values) in self.row.chunks(S::LANES).enumerate() {
            greatest[index % 4] = simd.max(greatest[index % 4], load_up_to(simd, values, f32::NEG_INFINITY));
        }
        simd.greatest(simd.max(simd.max(greatest[0], greatest[1]), simd.max(greatest[2], greatest[3])))
    }
}
