//! WebAssembly's vectors of 128 bits: four lanes. A module is compiled for them or not; no run-time check is possible.
//!
//! # Safety
//! The module that this is compiled into has the feature, so its intrinsics are safe except for loads and stores, which need memory
//! that the slices have been checked to cover, of any alignment.

use std::arch::wasm32::*;

use crate::simd::{Kernel, Simd, f32_to_f16};

/// WebAssembly's vectors, which this module is compiled for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wasm;

impl Simd for Wasm {
    const LANES: usize = 4;
    const ROWS: usize = 6;
    const INT8_GROUP: usize = 2;
    const BLOCK_ROWS: usize = 4;
    const BYTE_SHIFT: u8 = 128;

    type F32 = v128;
    type I32 = v128;
    type Bf16 = v128;
    /// 8 i16.
    type Int8 = v128;
    type Bytes = v128;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> v128 {
        f32x4_splat(value)
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> v128 {
        let from = &from[..4];
        // SAFETY: `from` has sixteen bytes.
        unsafe { v128_load(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, value: v128, to: &mut [f32]) {
        let to = &mut to[..4];
        // SAFETY: `to` has sixteen bytes.
        unsafe { v128_store(to.as_mut_ptr().cast(), value) }
    }

    #[inline(always)]
    fn add(self, a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }

    #[inline(always)]
    fn sub(self, a: v128, b: v128) -> v128 {
        f32x4_sub(a, b)
    }

    #[inline(always)]
    fn mul(self, a: v128, b: v128) -> v128 {
        f32x4_mul(a, b)
    }

    #[inline(always)]
    fn div(self, a: v128, b: v128) -> v128 {
        f32x4_div(a, b)
    }

    #[inline(always)]
    fn max(self, a: v128, b: v128) -> v128 {
        // One instruction on x86, where `f32x4_max` is several. `b < a ? a : b`.
        f32x4_pmax(b, a)
    }

    #[inline(always)]
    fn min(self, a: v128, b: v128) -> v128 {
        f32x4_pmin(b, a)
    }

    #[inline(always)]
    fn mul_add(self, a: v128, b: v128, c: v128) -> v128 {
        f32x4_add(f32x4_mul(a, b), c)
    }

    #[inline(always)]
    fn round(self, a: v128) -> v128 {
        f32x4_nearest(a)
    }

    #[inline(always)]
    fn pow2(self, n: v128) -> v128 {
        i32x4_shl(i32x4_add(i32x4_trunc_sat_f32x4(n), i32x4_splat(127)), 23)
    }

    #[inline(always)]
    fn sum(self, a: v128) -> f32 {
        let pairs = f32x4_add(a, i32x4_shuffle::<2, 3, 0, 1>(a, a));
        f32x4_extract_lane::<0>(pairs) + f32x4_extract_lane::<1>(pairs)
    }

    #[inline(always)]
    fn greatest(self, a: v128) -> f32 {
        let pairs = self.max(a, i32x4_shuffle::<2, 3, 0, 1>(a, a));
        f32x4_extract_lane::<0>(pairs).max(f32x4_extract_lane::<1>(pairs))
    }

    #[inline(always)]
    fn least(self, a: v128) -> f32 {
        let pairs = self.min(a, i32x4_shuffle::<2, 3, 0, 1>(a, a));
        f32x4_extract_lane::<0>(pairs).min(f32x4_extract_lane::<1>(pairs))
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> v128 {
        i32x4_splat(value)
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32]) -> v128 {
        let from = &from[..4];
        // SAFETY: `from` has sixteen bytes.
        unsafe { v128_load(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn sub_i32(self, a: v128, b: v128) -> v128 {
        i32x4_sub(a, b)
    }

    #[inline(always)]
    fn mul_i32(self, a: v128, b: v128) -> v128 {
        i32x4_mul(a, b)
    }

    #[inline(always)]
    fn to_f32(self, a: v128) -> v128 {
        f32x4_convert_i32x4(a)
    }

    #[inline(always)]
    fn splat_bf16(self, pair: u32) -> v128 {
        u32x4_splat(pair)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u32]) -> v128 {
        let from = &from[..4];
        // SAFETY: `from` has sixteen bytes.
        unsafe { v128_load(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: v128, activations: v128, weights: v128) -> v128 {
        let high = u32x4_splat(0xffff_0000);
        let sum = self.mul_add(u32x4_shl(activations, 16), u32x4_shl(weights, 16), sum);
        self.mul_add(v128_and(activations, high), v128_and(weights, high), sum)
    }

    #[inline(always)]
    fn store_bf16(self, value: v128, to: &mut [u32]) {
        let to = &mut to[..2];
        let last = v128_and(u32x4_shr(value, 16), u32x4_splat(1));
        let rounded = u32x4_add(u32x4_add(value, u32x4_splat(0x7fff)), last);
        let quiet = v128_or(value, u32x4_splat(0x40_0000));
        let words = u32x4_shr(v128_bitselect(rounded, quiet, f32x4_eq(value, value)), 16);
        let packed = u16x8_narrow_i32x4(words, words);
        (to[0], to[1]) = (u32x4_extract_lane::<0>(packed), u32x4_extract_lane::<1>(packed));
    }

    #[inline(always)]
    fn splat_int8(self, group: u32) -> v128 {
        u32x4_splat(group)
    }

    #[inline(always)]
    fn load_int8(self, from: &[i8]) -> v128 {
        let from = &from[..8];
        // SAFETY: `from` has eight bytes.
        unsafe { i16x8_load_extend_i8x8(from.as_ptr()) }
    }

    #[inline(always)]
    fn dot_int8(self, sum: v128, activations: v128, weights: v128) -> v128 {
        i32x4_add(sum, i32x4_dot_i16x8(activations, weights))
    }

    #[inline(always)]
    fn store_int8(self, value: v128, to: &mut [u32]) {
        let to = &mut to[..2];
        let words = i32x4_trunc_sat_f32x4(value);
        let packed = u16x8_narrow_i32x4(words, words);
        (to[0], to[1]) = (u32x4_extract_lane::<0>(packed), u32x4_extract_lane::<1>(packed));
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> v128 {
        let from = &from[..16];
        // SAFETY: `from` has sixteen bytes.
        unsafe { v128_load(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: v128) -> v128 {
        v128_and(bytes, u8x16_splat(15))
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: v128) -> v128 {
        u8x16_shr(bytes, 4)
    }

    #[inline(always)]
    fn store_bytes(self, value: v128, to: &mut [u32]) {
        let words = i32x4_trunc_sat_f32x4(value);
        let pairs = i16x8_narrow_i32x4(words, words);
        to[0] = u32x4_extract_lane::<0>(i8x16_narrow_i16x8(pairs, pairs));
    }

    #[inline(always)]
    fn dot_bytes(self, sum: v128, weights: v128, activations: u32) -> v128 {
        let activations = i16x8_extend_low_i8x16(u32x4_splat(activations));
        let low = i32x4_dot_i16x8(i16x8_extend_low_i8x16(weights), activations);
        let high = i32x4_dot_i16x8(i16x8_extend_high_i8x16(weights), activations);
        let pairs = i32x4_add(i32x4_shuffle::<0, 2, 4, 6>(low, high), i32x4_shuffle::<1, 3, 5, 7>(low, high));
        i32x4_add(sum, pairs)
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> v128 {
        let from = &from[..4];
        // SAFETY: `from` has eight bytes.
        let halves = unsafe { u32x4_load_extend_u16x4(from.as_ptr()) };
        let magnitude = u32x4_shl(v128_and(halves, u32x4_splat(0x7fff)), 13);
        let value = f32x4_mul(magnitude, f32x4_splat(f32::from_bits((127 + 112) << 23)));
        v128_or(value, u32x4_shl(v128_and(halves, u32x4_splat(0x8000)), 16))
    }

    #[inline(always)]
    fn store_f16(self, value: v128, to: &mut [u16]) {
        let mut lanes = [0.0; 4];
        self.store(value, &mut lanes);
        to[..4].copy_from_slice(&lanes.map(f32_to_f16));
    }
}
