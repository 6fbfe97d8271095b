//! The vector operations that kernels are written in.

use crate::strided::Strided;

/// A computation that is compiled for every instruction set.
///
/// `run` is marked `#[inline(always)]` in every implementation, and so is every function that it calls with a [`Simd`]: only what
/// is inlined into [`Simd::run`] is compiled for its instruction set. A closure cannot have the attribute, so no closure may call a
/// [`Simd`].
pub(crate) trait Kernel {
    /// The result.
    type Output;

    /// Computes the result.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set. A value of an implementing type is the proof that the processor has it: such values are constructed only after
/// the feature was detected, which makes the operations safe to call.
///
/// All operations are by lane. An operation panics on a slice that is shorter than what it reads or writes.
pub(crate) trait Simd: Copy {
    /// Elements of a vector.
    const LANES: usize;
    /// The most rows of a product's tile: with two vectors of columns, as many accumulators as the registers hold.
    const ROWS: usize;
    /// Elements of the inner dimension that one lane of [`dot_int8`](Self::dot_int8) multiplies and adds: 2 or 4.
    const INT8_GROUP: usize;
    /// Elements of the inner dimension that lie together for each column of a panel of i8. Another number than
    /// [`INT8_GROUP`](Self::INT8_GROUP) where [`tile_int8`](Self::tile_int8) replaces [`dot_int8`](Self::dot_int8).
    const PANEL_GROUP: usize = Self::INT8_GROUP;
    /// Subtracted from activations in u8 where integer products take i8: 128. Zero points are lowered by the same number, so that the
    /// results are equal.
    const INT8_SHIFT: i32 = 0;
    /// The most rows of a tile of a product with quantized weights, where registers hold the eight vectors of a block as well.
    const BLOCK_ROWS: usize;
    /// Subtracted from weights in u8 where [`dot_bytes`](Self::dot_bytes) takes i8: 128.
    const BYTE_SHIFT: u8;

    /// [`LANES`](Self::LANES) f32.
    type F32: Copy;
    /// [`LANES`](Self::LANES) i32.
    type I32: Copy;
    /// [`LANES`](Self::LANES) pairs of bf16.
    type Bf16: Copy;
    /// [`LANES`](Self::LANES) groups of [`INT8_GROUP`](Self::INT8_GROUP) factors of an integer product.
    type Int8: Copy;
    /// [`LANES`](Self::LANES) groups of four bytes.
    type Bytes: Copy;

    /// Runs a kernel, compiled for this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    /// `value` in every lane.
    fn splat(self, value: f32) -> Self::F32;
    /// The first elements of a slice.
    fn load(self, from: &[f32]) -> Self::F32;
    /// Writes the first elements of a slice.
    fn store(self, value: Self::F32, to: &mut [f32]);
    /// `a + b`
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The greater of two.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The lesser of two.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The nearest integer, ties to even.
    fn round(self, a: Self::F32) -> Self::F32;
    /// `2^n` for integral `n` in -126 to 127.
    fn pow2(self, n: Self::F32) -> Self::F32;
    /// The sum of all lanes, in an order that is always the same.
    fn sum(self, a: Self::F32) -> f32;
    /// The greatest lane.
    fn greatest(self, a: Self::F32) -> f32;
    /// The least lane.
    fn least(self, a: Self::F32) -> f32;

    /// `value` in every lane.
    fn splat_i32(self, value: i32) -> Self::I32;
    /// The first elements of a slice.
    fn load_i32(self, from: &[i32]) -> Self::I32;
    /// `a - b`
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The low half of `a * b`.
    fn mul_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The nearest f32.
    fn to_f32(self, a: Self::I32) -> Self::F32;

    /// A pair of bf16 in every lane, the first one in the low half of the word.
    fn splat_bf16(self, pair: u32) -> Self::Bf16;
    /// A pair for each lane.
    fn load_bf16(self, from: &[u32]) -> Self::Bf16;
    /// Adds to each lane the products of two pairs, in f32.
    fn dot_bf16(self, sum: Self::F32, activations: Self::Bf16, weights: Self::Bf16) -> Self::F32;
    /// Writes [`LANES`](Self::LANES) values, each rounded to the nearest bf16 (ties to even), as `LANES / 2` pairs.
    fn store_bf16(self, value: Self::F32, to: &mut [u32]);

    /// A group of activations in every lane, as [`store_int8`](Self::store_int8) writes them.
    fn splat_int8(self, group: u32) -> Self::Int8;
    /// A group of weights for each lane: the first `LANES * INT8_GROUP` elements, the groups one after the other.
    fn load_int8(self, from: &[i8]) -> Self::Int8;
    /// Adds to each lane the exact sum of the products of two groups.
    fn dot_int8(self, sum: Self::I32, activations: Self::Int8, weights: Self::Int8) -> Self::I32;
    /// The sums of `R` rows of groups of activations and a panel, if the instruction set has a product of matrices.
    ///
    /// # Panics
    /// When a row has fewer elements than the panel.
    #[inline(always)]
    fn tile_int8<const R: usize>(self, _rows: Strided<'_, u32>, _panel: &[i8]) -> Option<[[Self::I32; 2]; R]> {
        None
    }
    /// Writes [`LANES`](Self::LANES) activations, integers from 0 to 255, less [`INT8_SHIFT`](Self::INT8_SHIFT), as
    /// `LANES / INT8_GROUP` groups.
    fn store_int8(self, value: Self::F32, to: &mut [u32]);

    /// Four bytes for each lane: the first `4 * LANES` of a slice.
    fn load_bytes(self, from: &[u8]) -> Self::Bytes;
    /// The low four bits of each byte.
    fn low_nibbles(self, bytes: Self::Bytes) -> Self::Bytes;
    /// The high four bits of each byte.
    fn high_nibbles(self, bytes: Self::Bytes) -> Self::Bytes;
    /// Writes [`LANES`](Self::LANES) integers from -127 to 127 as i8, four in a word.
    fn store_bytes(self, value: Self::F32, to: &mut [u32]);
    /// Adds to each lane the exact sum of the products of its four weights, less [`BYTE_SHIFT`](Self::BYTE_SHIFT), and four
    /// activations in i8 from -127 to 127, the first one in the lowest byte.
    fn dot_bytes(self, sum: Self::I32, weights: Self::Bytes, activations: u32) -> Self::I32;

    /// Adds the products of eight groups, with weights from 0 to 15 without [`BYTE_SHIFT`](Self::BYTE_SHIFT).
    #[inline(always)]
    fn dot_nibbles(self, sum: Self::I32, weights: &[Self::Bytes; 8], activations: &[u32; 8]) -> Self::I32 {
        let mut sum = sum;
        for group in 0..8 {
            sum = self.dot_bytes(sum, weights[group], activations[group]);
        }
        sum
    }

    /// The first elements of a slice of f16, exactly. The elements must be finite.
    fn load_f16(self, from: &[u16]) -> Self::F32;
    /// Writes the first elements of a slice, each rounded to the nearest f16, ties to even. Values are at most 65504 in magnitude.
    fn store_f16(self, value: Self::F32, to: &mut [u16]);

    /// Prefetches the cache line of an address, which need not be valid.
    #[inline(always)]
    fn prefetch<T>(self, _address: *const T) {}

    /// The first `from.len()` lanes from a slice with fewer elements than lanes, and `fill` in the others.
    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> Self::F32 {
        let mut lanes = [fill; LANES_MAX];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Writes the first `to.len()` lanes to a slice with fewer elements than lanes.
    #[inline(always)]
    fn store_part(self, value: Self::F32, to: &mut [f32]) {
        let mut lanes = [0.0; LANES_MAX];
        self.store(value, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// Writes the transpose of the square that begins at `from`, its rows `stride` elements apart, to the one that begins at `to`, its
    /// rows `to_stride` apart: `to[column][row] = from[row][column]` for [`LANES`](Self::LANES) rows and columns.
    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32], to_stride: usize) {
        for row in 0..Self::LANES {
            for (column, value) in from[row * stride..][..Self::LANES].iter().enumerate() {
                to[column * to_stride + row] = *value;
            }
        }
    }
}

/// The largest [`Simd::LANES`] of any instruction set.
pub(crate) const LANES_MAX: usize = 16;

/// A vector of a slice that may end before the vector does, `fill` in the lanes past its end.
#[inline(always)]
pub(crate) fn load_up_to<S: Simd>(simd: S, from: &[f32], fill: f32) -> S::F32 {
    if from.len() >= S::LANES { simd.load(from) } else { simd.load_part(from, fill) }
}

/// Writes a vector to a slice that may end before the vector does.
#[inline(always)]
pub(crate) fn store_up_to<S: Simd>(simd: S, value: S::F32, to: &mut [f32]) {
    if to.len() >= S::LANES { simd.store(value, to) } else { simd.store_part(value, to) }
}

/// The value of a finite f16.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    // The exponent's bias is 112 less than that of f32; a multiplication corrects it, for subnormal numbers as well.
    const FACTOR: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * FACTOR;
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// The nearest f16, ties to even, of a value of at most 65504 in magnitude.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let (sign, magnitude) = ((value.to_bits() >> 16 & 0x8000) as u16, value.abs());
    // Below 2^-14 the step is 2^-24: adding 0.5 leaves a multiple of it in the low bits.
    if magnitude < 6.103_515_6e-5 {
        return sign | ((magnitude + 0.5).to_bits() - 0x3f00_0000) as u16;
    }
    let bits = magnitude.to_bits() - (112 << 23);
    sign | ((bits + 0xfff + (bits >> 13 & 1)) >> 13) as u16
}

/// The nearest bf16, ties to even; a NaN becomes a quiet NaN.
#[inline(always)]
pub(crate) fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
