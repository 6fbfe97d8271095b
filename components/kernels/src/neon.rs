//! NEON, with or without its dot product and its matrix product of bytes: vectors of four lanes. Every 64-bit Arm processor has NEON;
//! the dot product is in Armv8.4 and in most cores since 2018 (Neoverse N1, Cortex-A76, Apple M1), the matrix product (I8MM) in
//! Armv8.6 and in most cores since 2021 (Neoverse V1 and N2, Cortex-A710, Apple M2).
//!
//! # Safety
//! NEON is part of every 64-bit Arm target. Its intrinsics need nothing else but, for loads and stores, memory that the slices have
//! been checked to cover, of any alignment. `SDOT` needs the dot product and `SMMLA` the matrix product: `Neon<true, _>` and
//! `Neon<_, true>` are made only by [`Neon::detect`], which checks the processor. Their intrinsics are not stable yet, so they are
//! written in assembly; they read and write only registers.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::simd::{Kernel, Simd};
use crate::strided::Strided;

/// NEON; the proof that the processor has the dot product if `DOT` is true, and the matrix product if `MATRIX` is true.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon<const DOT: bool, const MATRIX: bool>(());

impl<const DOT: bool, const MATRIX: bool> Neon<DOT, MATRIX> {
    /// Detects at run time what the parameters name.
    pub(crate) fn detect() -> Option<Self> {
        let has_dot = !DOT || std::arch::is_aarch64_feature_detected!("dotprod");
        let has_matrix = !MATRIX || std::arch::is_aarch64_feature_detected!("i8mm");
        (has_dot && has_matrix).then_some(Self(()))
    }
}

/// Adds the products of two rows of eight i8 and two columns of eight i8 to `[row][column]`.
///
/// # Safety
/// The processor must have the matrix product.
#[inline(always)]
unsafe fn smmla(sum: int32x4_t, rows: int8x16_t, columns: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: the instruction reads and writes registers alone.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) rows,
            b = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl<const DOT: bool, const MATRIX: bool> Simd for Neon<DOT, MATRIX> {
    const LANES: usize = 4;
    const ROWS: usize = 12;
    const INT8_GROUP: usize = if DOT { 4 } else { 2 };
    /// `SDOT` multiplies i8 by i8.
    const INT8_SHIFT: i32 = if DOT { 128 } else { 0 };
    /// `SMMLA` multiplies eight elements of a column.
    const PANEL_GROUP: usize = if MATRIX { 8 } else { Self::INT8_GROUP };
    const BLOCK_ROWS: usize = 8;
    const BYTE_SHIFT: u8 = 128;

    type F32 = float32x4_t;
    type I32 = int32x4_t;
    type Bf16 = uint32x4_t;
    /// 16 i8 with the dot product, 8 i16 without.
    type Int8 = int8x16_t;
    type Bytes = int8x16_t;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        let from = &from[..4];
        // SAFETY: `from` has four elements.
        unsafe { vld1q_f32(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: float32x4_t, to: &mut [f32]) {
        let to = &mut to[..4];
        // SAFETY: `to` has four elements.
        unsafe { vst1q_f32(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vdivq_f32(a, b) }
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vmaxq_f32(a, b) }
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vminq_f32(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vrndnq_f32(a) }
    }

    #[inline(always)]
    fn pow2(self, n: float32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        }
    }

    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        // SAFETY: see the module.
        unsafe { vaddvq_f32(a) }
    }

    #[inline(always)]
    fn greatest(self, a: float32x4_t) -> f32 {
        // SAFETY: see the module.
        unsafe { vmaxvq_f32(a) }
    }

    #[inline(always)]
    fn least(self, a: float32x4_t) -> f32 {
        // SAFETY: see the module.
        unsafe { vminvq_f32(a) }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> int32x4_t {
        // SAFETY: see the module.
        unsafe { vdupq_n_s32(value) }
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32]) -> int32x4_t {
        let from = &from[..4];
        // SAFETY: `from` has four elements.
        unsafe { vld1q_s32(from.as_ptr()) }
    }

    #[inline(always)]
    fn sub_i32(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: see the module.
        unsafe { vsubq_s32(a, b) }
    }

    #[inline(always)]
    fn mul_i32(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: see the module.
        unsafe { vmulq_s32(a, b) }
    }

    #[inline(always)]
    fn to_f32(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe { vcvtq_f32_s32(a) }
    }

    #[inline(always)]
    fn splat_bf16(self, pair: u32) -> uint32x4_t {
        // SAFETY: see the module.
        unsafe { vdupq_n_u32(pair) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u32]) -> uint32x4_t {
        let from = &from[..4];
        // SAFETY: `from` has four elements.
        unsafe { vld1q_u32(from.as_ptr()) }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: float32x4_t, activations: uint32x4_t, weights: uint32x4_t) -> float32x4_t {
        // SAFETY: see the module.
        unsafe {
            let (a, b) = (vshlq_n_u32::<16>(activations), vshlq_n_u32::<16>(weights));
            let sum = vfmaq_f32(sum, vreinterpretq_f32_u32(a), vreinterpretq_f32_u32(b));
            let high = vdupq_n_u32(0xffff_0000);
            let (a, b) = (vandq_u32(activations, high), vandq_u32(weights, high));
            vfmaq_f32(sum, vreinterpretq_f32_u32(a), vreinterpretq_f32_u32(b))
        }
    }

    #[inline(always)]
    fn store_bf16(self, value: float32x4_t, to: &mut [u32]) {
        let to = &mut to[..2];
        // SAFETY: see the module; `to` has eight bytes.
        unsafe {
            let bits = vreinterpretq_u32_f32(value);
            let last = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), last);
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
            let words = vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(value, value), rounded, quiet));
            vst1_u32(to.as_mut_ptr(), vreinterpret_u32_u16(words));
        }
    }

    #[inline(always)]
    fn splat_int8(self, group: u32) -> int8x16_t {
        // SAFETY: see the module.
        unsafe { vreinterpretq_s8_u32(vdupq_n_u32(group)) }
    }

    #[inline(always)]
    fn load_int8(self, from: &[i8]) -> int8x16_t {
        if DOT {
            let from = &from[..16];
            // SAFETY: `from` has sixteen elements.
            return unsafe { vld1q_s8(from.as_ptr()) };
        }
        let from = &from[..8];
        // SAFETY: see the module; `from` has eight elements.
        unsafe { vreinterpretq_s8_s16(vmovl_s8(vld1_s8(from.as_ptr()))) }
    }

    #[inline(always)]
    fn dot_int8(self, sum: int32x4_t, activations: int8x16_t, weights: int8x16_t) -> int32x4_t {
        if DOT {
            let mut sum = sum;
            // SAFETY: see the module.
            unsafe {
                asm!(
                    ".arch_extension dotprod",
                    "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                    sum = inout(vreg) sum,
                    a = in(vreg) activations,
                    b = in(vreg) weights,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            return sum;
        }
        // SAFETY: see the module.
        unsafe {
            let (a, b) = (vreinterpretq_s16_s8(activations), vreinterpretq_s16_s8(weights));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)))
        }
    }

    #[inline(always)]
    fn tile_int8<const R: usize>(self, rows: Strided<'_, u32>, panel: &[i8]) -> Option<[[int32x4_t; 2]; R]> {
        /// Eight columns of eight elements.
        const STEP: usize = 64;
        /// Pairs of rows of the largest tile.
        const PAIRS_MAX: usize = 6;
        if !MATRIX {
            return None;
        }
        let steps = panel.len() / STEP;
        let stride = rows.stride;
        // With `R` at most 12 and slices within the address space, neither product overflows.
        let end = (R - 1) * stride + 2 * steps;
        assert!(
            R <= 2 * PAIRS_MAX && stride <= isize::MAX as usize / 16 && end <= rows.elements.len(),
            "rows of a tile"
        );
        // For each pair of rows and pair of columns `[row][column]`.
        let mut sums = [[self.splat_i32(0); 4]; PAIRS_MAX];
        let mut front = rows.elements.as_ptr();
        for weights in panel.chunks_exact(STEP) {
            let (left, right) = weights.split_at(STEP / 2);
            let weights = [
                self.load_int8(left),
                self.load_int8(&left[16..]),
                self.load_int8(right),
                self.load_int8(&right[16..]),
            ];
            for (pair, sums) in sums.iter_mut().enumerate().take(R.div_ceil(2)) {
                // The last of an odd number of rows is multiplied twice.
                let (first, second) = (2 * pair, (2 * pair + 1).min(R - 1));
                // SAFETY: `front` is `2 * step` elements into `rows.elements`, and `row * stride + 2 * step + 2` is at most
                // `(R - 1) * stride + 2 * steps`, which was checked to be in bounds.
                let rows = unsafe {
                    let (first, second) = (vld1_u32(front.add(first * stride)), vld1_u32(front.add(second * stride)));
                    vreinterpretq_s8_u32(vcombine_u32(first, second))
                };
                for (sum, columns) in sums.iter_mut().zip(weights) {
                    // SAFETY: `MATRIX` is the proof that the processor has it.
                    *sum = unsafe { smmla(*sum, rows, columns) };
                }
            }
            // SAFETY: the result is at most one past the end of the first row, which lies in `rows.elements`.
            front = unsafe { front.add(2) };
        }
        let mut tile = [[self.splat_i32(0); 2]; R];
        for (row, tile) in tile.iter_mut().enumerate() {
            let [a, b, c, d] = sums[row / 2];
            // SAFETY: see the module.
            *tile = unsafe {
                let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
                let (c, d) = (vreinterpretq_s64_s32(c), vreinterpretq_s64_s32(d));
                let (left, right) = match row % 2 {
                    0 => (vtrn1q_s64(a, b), vtrn1q_s64(c, d)),
                    _ => (vtrn2q_s64(a, b), vtrn2q_s64(c, d)),
                };
                [vreinterpretq_s32_s64(left), vreinterpretq_s32_s64(right)]
            };
        }
        Some(tile)
    }

    #[inline(always)]
    fn store_int8(self, value: float32x4_t, to: &mut [u32]) {
        let to = &mut to[..4 / Self::INT8_GROUP];
        // SAFETY: see the module; `to` has a byte for each lane with the dot product, two without.
        unsafe {
            let words = vmovn_s32(vsubq_s32(vcvtq_s32_f32(value), vdupq_n_s32(Self::INT8_SHIFT)));
            if DOT {
                let bytes = vmovn_s16(vcombine_s16(words, words));
                to[0] = vget_lane_u32::<0>(vreinterpret_u32_s8(bytes));
            } else {
                vst1_u32(to.as_mut_ptr(), vreinterpret_u32_s16(words));
            }
        }
    }

    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32], to_stride: usize) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| self.load(&from[row * stride..]));
        // SAFETY: see the module.
        let columns = unsafe {
            let (ab, cd) = (vtrn1q_f32(a, b), vtrn1q_f32(c, d));
            let (ba, dc) = (vtrn2q_f32(a, b), vtrn2q_f32(c, d));
            let [ab, cd, ba, dc] = [ab, cd, ba, dc].map(|pairs| vreinterpretq_f64_f32(pairs));
            let columns = [vtrn1q_f64(ab, cd), vtrn1q_f64(ba, dc), vtrn2q_f64(ab, cd), vtrn2q_f64(ba, dc)];
            columns.map(|column| vreinterpretq_f32_f64(column))
        };
        for (column, values) in columns.into_iter().enumerate() {
            self.store(values, &mut to[column * to_stride..]);
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> int8x16_t {
        let from = &from[..16];
        // SAFETY: `from` has sixteen bytes.
        unsafe { vreinterpretq_s8_u8(vld1q_u8(from.as_ptr())) }
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: int8x16_t) -> int8x16_t {
        // SAFETY: see the module.
        unsafe { vandq_s8(bytes, vdupq_n_s8(15)) }
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: int8x16_t) -> int8x16_t {
        // SAFETY: see the module.
        unsafe { vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(bytes))) }
    }

    #[inline(always)]
    fn store_bytes(self, value: float32x4_t, to: &mut [u32]) {
        // SAFETY: see the module.
        unsafe {
            let words = vmovn_s32(vcvtq_s32_f32(value));
            to[0] = vget_lane_u32::<0>(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(words, words))));
        }
    }

    #[inline(always)]
    fn dot_bytes(self, sum: int32x4_t, weights: int8x16_t, activations: u32) -> int32x4_t {
        let activations = self.splat_int8(activations);
        if DOT {
            return self.dot_int8(sum, activations, weights);
        }
        // SAFETY: see the module.
        unsafe {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(weights), vget_low_s8(activations)));
            let high = vpaddlq_s16(vmull_high_s8(weights, activations));
            vaddq_s32(sum, vpaddq_s32(low, high))
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> float32x4_t {
        let from = &from[..4];
        // SAFETY: `from` has eight bytes; the instruction is part of NEON, reads and writes registers alone, and its intrinsic is not
        // stable.
        unsafe {
            let halves = vld1_u16(from.as_ptr());
            let value: float32x4_t;
            asm!("fcvtl {value:v}.4s, {halves:v}.4h", value = lateout(vreg) value, halves = in(vreg) halves, options(pure, nomem, nostack, preserves_flags));
            value
        }
    }

    #[inline(always)]
    fn store_f16(self, value: float32x4_t, to: &mut [u16]) {
        let to = &mut to[..4];
        // SAFETY: `to` has eight bytes; as in `load_f16`.
        unsafe {
            let halves: uint16x4_t;
            asm!("fcvtn {halves:v}.4h, {value:v}.4s", halves = lateout(vreg) halves, value = in(vreg) value, options(pure, nomem, nostack, preserves_flags));
            vst1_u16(to.as_mut_ptr(), halves);
        }
    }
}
