//! AVX2 with FMA and F16C, and with or without AVX-VNNI: vectors of eight lanes. x86-64 processors since Haswell (2013) and Zen (2017);
//! AVX-VNNI since Alder Lake (2021) and Zen 5 (2024).
//!
//! # Safety
//! Every intrinsic here needs AVX2, FMA or F16C, `_mm256_dpbusd_avx_epi32` needs AVX-VNNI also, and nothing else but, for loads and
//! stores, memory that the slices have been checked to cover. A value of [`Avx2`] is made only by [`Avx2::detect`], so code that holds
//! one runs on a processor with all three; a value of `Avx2<true>` means AVX-VNNI as well. Loads and stores need no alignment
//! (`loadu`, `storeu`).

use std::arch::x86_64::*;

use crate::simd::{Kernel, Simd};

/// The proof that the processor has AVX2, FMA and F16C, and AVX-VNNI if `VNNI` is true.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// Detects the features at run time.
    pub(crate) fn detect() -> Option<Self> {
        let has_all = std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c")
            && (!VNNI || std::is_x86_feature_detected!("avxvnni"));
        has_all.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K, simd: Avx2<false>) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn run_vnni<K: Kernel>(kernel: K, simd: Avx2<true>) -> K::Output {
    kernel.run(simd)
}

/// Reduces the eight lanes to one by `op`: halves are combined until one lane is left.
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

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    const INT8_GROUP: usize = if VNNI { 4 } else { 2 };
    const BLOCK_ROWS: usize = 4;
    const BYTE_SHIFT: u8 = if VNNI { 0 } else { 128 };

    type F32 = __m256;
    type I32 = __m256i;
    type Bf16 = __m256i;
    /// 32 u8 or i8 with AVX-VNNI. 16 i16 without: AVX2's product of u8 and i8 saturates, the one of i16 does not.
    type Int8 = __m256i;
    type Bytes = __m256i;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is the proof that the processor has the features.
        unsafe { if VNNI { run_vnni(kernel, Avx2(())) } else { run_avx2(kernel, Avx2(())) } }
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
    fn splat_bf16(self, pair: u32) -> __m256i {
        self.splat_i32(pair as i32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u32]) -> __m256i {
        let from = &from[..8];
        // SAFETY: see the module; `from` has 32 bytes.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: __m256, activations: __m256i, weights: __m256i) -> __m256 {
        // SAFETY: see the module.
        unsafe {
            let high = _mm256_set1_epi32(-0x1_0000);
            let (a, b) = (_mm256_slli_epi32::<16>(activations), _mm256_slli_epi32::<16>(weights));
            let sum = _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum);
            let (a, b) = (_mm256_and_si256(activations, high), _mm256_and_si256(weights, high));
            _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum)
        }
    }

    #[inline(always)]
    fn store_bf16(self, value: __m256, to: &mut [u32]) {
        let to = &mut to[..4];
        // SAFETY: see the module; `to` has sixteen bytes.
        unsafe {
            let bits = _mm256_castps_si256(value);
            let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
            let quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000)));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value);
            let rounded = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, nan));
            // `packus` puts the low halves of its 128-bit lanes into the first and third quarter.
            let words = _mm256_srli_epi32::<16>(rounded);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(words, words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
        }
    }

    #[inline(always)]
    fn splat_int8(self, group: u32) -> __m256i {
        self.splat_i32(group as i32)
    }

    #[inline(always)]
    fn load_int8(self, from: &[i8]) -> __m256i {
        if VNNI {
            let from = &from[..32];
            // SAFETY: see the module; `from` has 32 bytes.
            return unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        }
        let from = &from[..16];
        // SAFETY: see the module; `from` has sixteen bytes.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn dot_int8(self, sum: __m256i, activations: __m256i, weights: __m256i) -> __m256i {
        if VNNI {
            // SAFETY: see the module.
            return unsafe { _mm256_dpbusd_avx_epi32(sum, activations, weights) };
        }
        // SAFETY: see the module.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(activations, weights)) }
    }

    #[inline(always)]
    fn store_int8(self, value: __m256, to: &mut [u32]) {
        let to = &mut to[..8 / Self::INT8_GROUP];
        // SAFETY: see the module; `to` has a byte for each lane with AVX-VNNI, two without.
        unsafe {
            let words = _mm256_cvtps_epi32(value);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(words, words));
            let pairs = _mm256_castsi256_si128(packed);
            if VNNI {
                _mm_storel_epi64(to.as_mut_ptr().cast(), _mm_packus_epi16(pairs, pairs));
            } else {
                _mm_storeu_si128(to.as_mut_ptr().cast(), pairs);
            }
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> __m256i {
        let from = &from[..32];
        // SAFETY: see the module; `from` has 32 bytes.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: __m256i) -> __m256i {
        // SAFETY: see the module.
        unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: __m256i) -> __m256i {
        // SAFETY: see the module.
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn store_bytes(self, value: __m256, to: &mut [u32]) {
        let to = &mut to[..2];
        // SAFETY: see the module; `to` has eight bytes.
        unsafe {
            let words = _mm256_cvtps_epi32(value);
            let pairs = _mm256_permute4x64_epi64::<0b1000>(_mm256_packs_epi32(words, words));
            let pairs = _mm256_castsi256_si128(pairs);
            _mm_storel_epi64(to.as_mut_ptr().cast(), _mm_packs_epi16(pairs, pairs));
        }
    }

    #[inline(always)]
    fn dot_bytes(self, sum: __m256i, weights: __m256i, activations: u32) -> __m256i {
        // SAFETY: see the module.
        unsafe {
            let activations = _mm256_set1_epi32(activations as i32);
            if VNNI {
                return _mm256_dpbusd_avx_epi32(sum, weights, activations);
            }
            // The sum of two products of a magnitude of at most 128 and an activation of at most 127 fits i16.
            let signed = _mm256_sign_epi8(activations, weights);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn dot_nibbles(self, sum: __m256i, weights: &[__m256i; 8], activations: &[u32; 8]) -> __m256i {
        let mut sum = sum;
        if VNNI {
            for group in 0..8 {
                sum = self.dot_bytes(sum, weights[group], activations[group]);
            }
            return sum;
        }
        // SAFETY: see the module.
        unsafe {
            // A lane adds sixteen products of at most 15 * 127: 30480 fits i16.
            let mut pairs = _mm256_setzero_si256();
            for group in 0..8 {
                let activations = _mm256_set1_epi32(activations[group] as i32);
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[group], activations));
            }
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> __m256 {
        let from = &from[..8];
        // SAFETY: see the module; `from` has sixteen bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_f16(self, value: __m256, to: &mut [u16]) {
        let to = &mut to[..8];
        // SAFETY: see the module; `to` has sixteen bytes.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
            _mm_storeu_si128(to.as_mut_ptr().cast(), halves);
        }
    }
}
