//! Vectors of four lanes in plain Rust, for every processor. The compiler translates them to the instructions of the target's
//! baseline.

use std::array::from_fn;

use crate::simd::{Kernel, Simd, bf16, f16_to_f32, f32_to_f16};

/// The instruction set that every processor has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

type F32 = [f32; 4];
type I32 = [i32; 4];

impl Simd for Portable {
    const LANES: usize = 4;
    const ROWS: usize = 6;
    const INT8_GROUP: usize = 2;
    const BLOCK_ROWS: usize = 4;
    const BYTE_SHIFT: u8 = 128;

    type F32 = F32;
    type I32 = I32;
    /// Pairs of i16, one after the other: compilers recognize the sum of two products in this form (SSE2 has an instruction for it).
    type Int8 = [i16; 8];
    type Bf16 = [u32; 4];
    type Bytes = [u8; 16];

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> F32 {
        [value; 4]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> F32 {
        from_fn(|lane| from[..4][lane])
    }

    #[inline(always)]
    fn store(self, value: F32, to: &mut [f32]) {
        to[..4].copy_from_slice(&value);
    }

    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        from_fn(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        from_fn(|lane| a[lane] / b[lane])
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn mul_add(self, a: F32, b: F32, c: F32) -> F32 {
        // `f32::mul_add` calls the C library where the baseline has no such instruction.
        from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn round(self, a: F32) -> F32 {
        // Adding and subtracting 1.5 * 2^23 removes the fraction bits. It is exact only below 2^22.
        const SHIFT: f32 = 12_582_912.0;
        from_fn(|lane| if a[lane].abs() < 4_194_304.0 { (a[lane] + SHIFT) - SHIFT } else { a[lane].round_ties_even() })
    }

    #[inline(always)]
    fn pow2(self, n: F32) -> F32 {
        from_fn(|lane| f32::from_bits(((n[lane] as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    fn sum(self, a: F32) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }

    #[inline(always)]
    fn greatest(self, a: F32) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }

    #[inline(always)]
    fn least(self, a: F32) -> f32 {
        a[0].min(a[1]).min(a[2].min(a[3]))
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> I32 {
        [value; 4]
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32]) -> I32 {
        from_fn(|lane| from[..4][lane])
    }

    #[inline(always)]
    fn sub_i32(self, a: I32, b: I32) -> I32 {
        from_fn(|lane| a[lane].wrapping_sub(b[lane]))
    }

    #[inline(always)]
    fn mul_i32(self, a: I32, b: I32) -> I32 {
        from_fn(|lane| a[lane].wrapping_mul(b[lane]))
    }

    #[inline(always)]
    fn to_f32(self, a: I32) -> F32 {
        from_fn(|lane| a[lane] as f32)
    }

    #[inline(always)]
    fn splat_bf16(self, pair: u32) -> [u32; 4] {
        [pair; 4]
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u32]) -> [u32; 4] {
        from_fn(|lane| from[..4][lane])
    }

    #[inline(always)]
    fn dot_bf16(self, sum: F32, activations: [u32; 4], weights: [u32; 4]) -> F32 {
        let low = |pairs: [u32; 4]| pairs.map(|pair| f32::from_bits(pair << 16));
        let high = |pairs: [u32; 4]| pairs.map(|pair| f32::from_bits(pair & 0xffff_0000));
        self.mul_add(high(activations), high(weights), self.mul_add(low(activations), low(weights), sum))
    }

    #[inline(always)]
    fn store_bf16(self, value: F32, to: &mut [u32]) {
        for (to, pair) in to[..2].iter_mut().zip(value.chunks_exact(2)) {
            *to = u32::from(bf16(pair[0])) | u32::from(bf16(pair[1])) << 16;
        }
    }

    #[inline(always)]
    fn splat_int8(self, group: u32) -> [i16; 8] {
        let pair = [group as i16, (group >> 16) as i16];
        from_fn(|index| pair[index % 2])
    }

    #[inline(always)]
    fn load_int8(self, from: &[i8]) -> [i16; 8] {
        let from = &from[..8];
        from_fn(|index| i16::from(from[index]))
    }

    #[inline(always)]
    fn dot_int8(self, sum: I32, activations: [i16; 8], weights: [i16; 8]) -> I32 {
        let product = |index: usize| i32::from(activations[index]) * i32::from(weights[index]);
        from_fn(|lane| sum[lane] + (product(2 * lane) + product(2 * lane + 1)))
    }

    #[inline(always)]
    fn store_int8(self, value: F32, to: &mut [u32]) {
        for (to, pair) in to[..2].iter_mut().zip(value.chunks_exact(2)) {
            *to = pair[0] as u32 | (pair[1] as u32) << 16;
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> [u8; 16] {
        from_fn(|index| from[..16][index])
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: [u8; 16]) -> [u8; 16] {
        bytes.map(|byte| byte & 15)
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: [u8; 16]) -> [u8; 16] {
        bytes.map(|byte| byte >> 4)
    }

    #[inline(always)]
    fn store_bytes(self, value: F32, to: &mut [u32]) {
        to[0] = u32::from_le_bytes(value.map(|value| value as i8 as u8));
    }

    #[inline(always)]
    fn dot_bytes(self, sum: I32, weights: [u8; 16], activations: u32) -> I32 {
        let activations = activations.to_le_bytes().map(|byte| i16::from(byte as i8));
        let product = |index: usize| i32::from(i16::from(weights[index] as i8) * activations[index % 4]);
        from_fn(|lane| {
            let first = 4 * lane;
            sum[lane] + ((product(first) + product(first + 1)) + (product(first + 2) + product(first + 3)))
        })
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> F32 {
        from_fn(|lane| f16_to_f32(from[..4][lane]))
    }

    #[inline(always)]
    fn store_f16(self, value: F32, to: &mut [u16]) {
        to[..4].copy_from_slice(&value.map(f32_to_f16));
    }
}
