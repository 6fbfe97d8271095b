//! The vector operations that kernels are written in.

/// A computation that is compiled for every instruction set.
///
/// `run` is marked `#[inline(always)]` in every implementation, and so is every function that it calls with a [`Simd`]: only what
/// is inlined into [`Simd::run`] is compiled for its instruction set.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;

    /// Computes it.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set. A value of an implementing type is the proof that the processor has it: such values are made only
/// after the processor was asked, which is what makes the operations safe to call.
///
/// All operations are by lane. Slices shorter than what an operation reads or writes are a panic.
pub(crate) trait Simd: Copy {
    /// Elements of a vector.
    const LANES: usize;
    /// The most rows of a product's tile: with two vectors of columns, as many accumulators as the registers hold.
    const ROWS: usize;
    /// Elements of the inner dimension that one lane of [`dot`](Self::dot) multiplies and adds.
    const GROUP: usize;

    /// [`LANES`](Self::LANES) f32.
    type F32: Copy;
    /// [`LANES`](Self::LANES) i32.
    type I32: Copy;
    /// [`LANES`](Self::LANES) groups of [`GROUP`](Self::GROUP) factors of an integer product.
    type Factors: Copy;

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
    /// One group of activations (see [`group_word`](Self::group_word)) in every lane.
    fn splat_group(self, word: i32) -> Self::Factors;
    /// A group of weights for each lane: the first `LANES * GROUP` elements, the groups one after the other.
    fn load_weights(self, from: &[i8]) -> Self::Factors;
    /// Adds to each lane the exact sum of the products of two groups.
    fn dot(self, sum: Self::I32, activations: Self::Factors, weights: Self::Factors) -> Self::I32;
    /// [`GROUP`](Self::GROUP) activations in the form that [`splat_group`](Self::splat_group) takes.
    fn group_word(self, activations: &[u8]) -> i32;
}

/// The largest [`Simd::LANES`] of any instruction set.
pub(crate) const LANES_MAX: usize = 16;

/// A vector of what is left of a row, `fill` in the lanes past its end.
#[inline(always)]
pub(crate) fn load_tail<S: Simd>(simd: S, row: &[f32], fill: f32) -> S::F32 {
    let mut lanes = [fill; LANES_MAX];
    lanes[..row.len()].copy_from_slice(row);
    simd.load(&lanes)
}

/// Writes the first `row.len()` lanes.
#[inline(always)]
pub(crate) fn store_tail<S: Simd>(simd: S, value: S::F32, row: &mut [f32]) {
    let mut lanes = [0.0; LANES_MAX];
    simd.store(value, &mut lanes);
    row.copy_from_slice(&lanes[..row.len()]);
}
