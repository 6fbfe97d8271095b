//! The inner loop of every product: a few rows by two vectors of columns, with the sums in registers.
//!
//! # Safety
//! [`tile`] reads activations through a pointer, because checking each index would take as long as the arithmetic. It checks once,
//! before the loop, that all indices are in bounds. Nothing else here is unsafe.

use crate::simd::Simd;
use crate::strided::Strided;

/// The number format of a product.
pub(crate) trait Format<S: Simd>: Sized {
    /// An element of a row, multiplied by one element of each column in one step.
    type Activation: Copy;
    /// An element of a panel.
    type Weight: Copy;
    /// The factors of all lanes in one step.
    type Factors: Copy;
    /// The sums of all lanes.
    type Sums: Copy;

    /// The number of weights of one vector in one step.
    const WEIGHTS: usize;

    /// Zeros.
    fn zero(simd: S) -> Self::Sums;
    /// An activation in every lane.
    fn splat(simd: S, activation: Self::Activation) -> Self::Factors;
    /// The first [`WEIGHTS`](Self::WEIGHTS) of a slice.
    fn load(simd: S, weights: &[Self::Weight]) -> Self::Factors;
    /// `sums + activations * weights`
    fn step(simd: S, sums: Self::Sums, activations: Self::Factors, weights: Self::Factors) -> Self::Sums;

    /// The sums of `R` rows and a panel `[step][two vectors of columns]`: each element is one sum in the order of the steps.
    ///
    /// # Panics
    /// When a row has fewer elements than the panel has steps.
    #[inline(always)]
    fn tile<const R: usize>(
        simd: S,
        rows: Strided<'_, Self::Activation>,
        panel: &[Self::Weight],
    ) -> [[Self::Sums; 2]; R] {
        tile::<S, Self, R>(simd, rows, panel)
    }
}

/// f32 by f32.
pub(crate) struct Float;

/// Pairs of bf16, summed in f32.
pub(crate) struct Brain;

/// Groups of u8 by groups of i8, summed in i32.
pub(crate) struct Integer;

impl<S: Simd> Format<S> for Float {
    type Activation = f32;
    type Weight = f32;
    type Factors = S::F32;
    type Sums = S::F32;

    const WEIGHTS: usize = S::LANES;

    #[inline(always)]
    fn zero(simd: S) -> S::F32 {
        simd.splat(0.0)
    }

    #[inline(always)]
    fn splat(simd: S, activation: f32) -> S::F32 {
        simd.splat(activation)
    }

    #[inline(always)]
    fn load(simd: S, weights: &[f32]) -> S::F32 {
        simd.load(weights)
    }

    #[inline(always)]
    fn step(simd: S, sums: S::F32, activations: S::F32, weights: S::F32) -> S::F32 {
        simd.mul_add(activations, weights, sums)
    }
}

impl<S: Simd> Format<S> for Brain {
    type Activation = u32;
    type Weight = u32;
    type Factors = S::Bf16;
    type Sums = S::F32;

    const WEIGHTS: usize = S::LANES;

    #[inline(always)]
    fn zero(simd: S) -> S::F32 {
        simd.splat(0.0)
    }

    #[inline(always)]
    fn splat(simd: S, activation: u32) -> S::Bf16 {
        simd.splat_bf16(activation)
    }

    #[inline(always)]
    fn load(simd: S, weights: &[u32]) -> S::Bf16 {
        simd.load_bf16(weights)
    }

    #[inline(always)]
    fn step(simd: S, sums: S::F32, activations: S::Bf16, weights: S::Bf16) -> S::F32 {
        simd.dot_bf16(sums, activations, weights)
    }
}

impl<S: Simd> Format<S> for Integer {
    type Activation = u32;
    type Weight = i8;
    type Factors = S::Int8;
    type Sums = S::I32;

    const WEIGHTS: usize = S::LANES * S::INT8_GROUP;

    #[inline(always)]
    fn zero(simd: S) -> S::I32 {
        simd.splat_i32(0)
    }

    #[inline(always)]
    fn splat(simd: S, activation: u32) -> S::Int8 {
        simd.splat_int8(activation)
    }

    #[inline(always)]
    fn load(simd: S, weights: &[i8]) -> S::Int8 {
        simd.load_int8(weights)
    }

    #[inline(always)]
    fn step(simd: S, sums: S::I32, activations: S::Int8, weights: S::Int8) -> S::I32 {
        simd.dot_int8(sums, activations, weights)
    }

    #[inline(always)]
    fn tile<const R: usize>(simd: S, rows: Strided<'_, u32>, panel: &[i8]) -> [[S::I32; 2]; R] {
        match simd.tile_int8::<R>(rows, panel) {
            Some(sums) => sums,
            None => tile::<S, Self, R>(simd, rows, panel),
        }
    }
}

/// The distance at which weights are prefetched, in bytes.
const PREFETCH_BYTES: usize = 2048;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// [`Format::tile`] by its steps, also where the instruction set has a product of matrices.
///
/// # Panics
/// When a row has fewer elements than the panel has steps.
#[inline(always)]
pub(crate) fn tile<S: Simd, F: Format<S>, const R: usize>(
    simd: S,
    rows: Strided<'_, F::Activation>,
    panel: &[F::Weight],
) -> [[F::Sums; 2]; R] {
    let width = 2 * F::WEIGHTS;
    let steps = panel.len() / width;
    let stride = rows.stride;
    // With `R` at most 12 and slices within the address space, neither product overflows.
    assert!(stride <= isize::MAX as usize / 16 && (R - 1) * stride + steps <= rows.elements.len(), "rows of a tile");
    let mut sums = [[F::zero(simd); 2]; R];
    let mut front = rows.elements.as_ptr();
    for weights in panel.chunks_exact(width) {
        // The hardware prefetcher is late where weights come from the third-level cache or from memory.
        let ahead = weights.as_ptr().cast::<u8>().wrapping_add(PREFETCH_BYTES);
        simd.prefetch(ahead);
        simd.prefetch(ahead.wrapping_add(LINE_BYTES));
        let weights = [F::load(simd, weights), F::load(simd, &weights[F::WEIGHTS..])];
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `front` is `step` elements into `rows.elements`, and `row * stride + step` is at most
            // `(R - 1) * stride + steps - 1`, which was checked to be in bounds.
            let activations = F::splat(simd, unsafe { *front.add(row * stride) });
            sums[0] = F::step(simd, sums[0], activations, weights[0]);
            sums[1] = F::step(simd, sums[1], activations, weights[1]);
        }
        // SAFETY: the result is at most one past the end of the first row, which lies in `rows.elements`.
        front = unsafe { front.add(1) };
    }
    sums
}

/// Calls `$function::<$parameters.., ROWS>($arguments)` with `ROWS` = `$count`, 1 to 12.
macro_rules! by_rows {
    ($count:expr, $function:ident :: <$($parameter:ty),*>($($argument:expr),* $(,)?)) => {
        match $count {
            1 => $function::<$($parameter),*, 1>($($argument),*),
            2 => $function::<$($parameter),*, 2>($($argument),*),
            3 => $function::<$($parameter),*, 3>($($argument),*),
            4 => $function::<$($parameter),*, 4>($($argument),*),
            5 => $function::<$($parameter),*, 5>($($argument),*),
            6 => $function::<$($parameter),*, 6>($($argument),*),
            // Unreachable for a narrower instruction set, which so has no code for these rows.
            count if S::ROWS > 6 => match count {
                7 => $function::<$($parameter),*, 7>($($argument),*),
                8 => $function::<$($parameter),*, 8>($($argument),*),
                9 => $function::<$($parameter),*, 9>($($argument),*),
                10 => $function::<$($parameter),*, 10>($($argument),*),
                11 => $function::<$($parameter),*, 11>($($argument),*),
                12 => $function::<$($parameter),*, 12>($($argument),*),
                count => unreachable!("a block of {count} rows"),
            },
            count => unreachable!("a block of {count} rows"),
        }
    };
}
pub(crate) use by_rows;
