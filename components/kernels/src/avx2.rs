//! AVX2 with FMA: vectors of eight lanes. x86-64 processors since Haswell (2013) and Zen (2017).
//!
//! # Safety
//! Every intrinsic here needs AVX2 and FMA, and nothing else but, for loads and stores, memory that the slices have been checked to
//! cover. A value of [`Avx2`] is made only by [`Avx2::detect`], so code that holds one runs on a processor with both. None of the pointers
//! that are read or written needs an alignment (`loadu`, `storeu`).

use std::arch::x86_64::*;

use crate::simd::{Kernel, Simd};

/// The proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Asks the processor.
    pub(crate) fn detect() -> Option<Self> {
        (std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn compiled<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
    kernel.run(simd)
}

/// The lower lane of the two halves' combination by `op`, then of its own halves, down to one.
macro_rules! reduce {
    ($a:expr, $op:ident) => {{
        // SAFETY: see the module.
        unsafe {
            let halves = $op(_mm256_castps256_ps128($a), _mm256_extractf128_ps::<1>($a));
            let pairs = $op(halves, _mm_movehl_ps(halves, halves));
            _mm_cvtss_f32($op(pairs, _mm_shuffle_ps::<1>(pairs, pairs)))
        }
    }};
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    const GROUP: usize = 2;

    type F32 = __m256;
    type I32 = __m256i;
    /// 16 i16. AVX2's product of u8 and i8 saturates, the one of i16 does not.
    type Factors = __m256i;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is the proof that the processor has AVX2 and FMA.
        unsafe { compiled(kernel, self) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..8];
        // SAFETY: see the module; `from` has eight elements.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m256, to: &mut [f32]) {
        let to = &mut to[..8];
        // SAFETY: see the module; `to` has eight elements.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        // SAFETY: see the module.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        reduce!(a, _mm_add_ps)
    }

    #[inline(always)]
    fn greatest(self, a: __m256) -> f32 {
        reduce!(a, _mm_max_ps)
    }

    #[inline(always)]
    fn least(self, a: __m256) -> f32 {
        reduce!(a, _mm_min_ps)
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m256i {
        // SAFETY: see the module.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32]) -> __m256i {
        let from = &from[..8];
        // SAFETY: see the module; `from` has 32 bytes.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn sub_i32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see the module.
        unsafe { _mm256_sub_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_i32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see the module.
        unsafe { _mm256_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn to_f32(self, a: __m256i) -> __m256 {
        // SAFETY: see the module.
        unsafe { _mm256_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn splat_group(self, word: i32) -> __m256i {
        self.splat_i32(word)
    }

    #[inline(always)]
    fn load_weights(self, from: &[i8]) -> __m256i {
        let from = &from[..16];
        // SAFETY: see the module; `from` has 16 bytes.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn dot(self, sum: __m256i, activations: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: see the module.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(activations, weights)) }
    }

    #[inline(always)]
    fn group_word(self, activations: &[u8]) -> i32 {
        i32::from(activations[0]) | i32::from(activations[1]) << 16
    }
}
