//! AVX-512 with VNNI, and with or without BF16: vectors of sixteen lanes. Intel since Cascade Lake (2019; BF16 since Cooper Lake and
//! Sapphire Rapids), AMD since Zen 4 (2022; with BF16).
//!
//! # Safety
//! Every intrinsic here needs AVX-512 F, BW, DQ, VL or VNNI, `_mm512_dpbf16_ps` and `_mm512_cvtneps_pbh` need BF16 also, and nothing
//! else but, for loads and stores, memory that the slices have been checked to cover (a masked lane is not accessed). A value of
//! [`Avx512`] is made only by [`Avx512::detect`], so code that holds one runs on a processor with all of them; a value of
//! `Avx512<true>` means BF16 as well. Loads and stores need no alignment (`loadu`, `storeu`).

use std::arch::x86_64::*;

use crate::simd::{Kernel, Simd};

/// The proof that the processor has AVX-512 F, BW, DQ, VL and VNNI, and BF16 if `BF16` is true.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// Detects the features at run time.
    pub(crate) fn detect() -> Option<Self> {
        let has_all = std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("avx512vnni")
            && (!BF16 || std::is_x86_feature_detected!("avx512bf16"));
        has_all.then_some(Self(()))
    }

    /// The mask of the first `len` lanes.
    #[inline(always)]
    fn lanes(len: usize) -> __mmask16 {
        ((1_u32 << len.min(16)) - 1) as __mmask16
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K, simd: Avx512<false>) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
fn run_bf16<K: Kernel>(kernel: K, simd: Avx512<true>) -> K::Output {
    kernel.run(simd)
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    const ROWS: usize = 12;
    const INT8_GROUP: usize = 4;
    const BLOCK_ROWS: usize = 8;
    const BYTE_SHIFT: u8 = 0;

    type F32 = __m512;
    type I32 = __m512i;
    type Bf16 = __m512i;
    type Int8 = __m512i;
    type Bytes = __m512i;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is the proof that the processor has the features.
        unsafe { if BF16 { run_bf16(kernel, Avx512(())) } else { run_avx512(kernel, Avx512(())) } }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..16];
        // SAFETY: see the module; `from` has sixteen elements.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32]) {
        let to = &mut to[..16];
        // SAFETY: see the module; `to` has sixteen elements.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: see the module.
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    fn greatest(self, a: __m512) -> f32 {
        // SAFETY: see the module.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn least(self, a: __m512) -> f32 {
        // SAFETY: see the module.
        unsafe { _mm512_reduce_min_ps(a) }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m512i {
        // SAFETY: see the module.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32]) -> __m512i {
        let from = &from[..16];
        // SAFETY: see the module; `from` has sixteen elements.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn sub_i32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the module.
        unsafe { _mm512_sub_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_i32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the module.
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn splat_bf16(self, pair: u32) -> __m512i {
        self.splat_i32(pair as i32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u32]) -> __m512i {
        let from = &from[..16];
        // SAFETY: see the module; `from` has sixteen elements.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: __m512, activations: __m512i, weights: __m512i) -> __m512 {
        if BF16 {
            // SAFETY: see the module; `__m512bh` is 64 bytes of any content, as `__m512i` is.
            return unsafe {
                let (activations, weights) = (
                    std::mem::transmute::<__m512i, __m512bh>(activations),
                    std::mem::transmute::<__m512i, __m512bh>(weights),
                );
                _mm512_dpbf16_ps(sum, activations, weights)
            };
        }
        // SAFETY: see the module.
        unsafe {
            let high = _mm512_set1_epi32(-0x1_0000);
            let (a, b) = (_mm512_slli_epi32::<16>(activations), _mm512_slli_epi32::<16>(weights));
            let sum = _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
            let (a, b) = (_mm512_and_si512(activations, high), _mm512_and_si512(weights, high));
            _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
        }
    }

    #[inline(always)]
    fn store_bf16(self, value: __m512, to: &mut [u32]) {
        let to = &mut to[..8];
        // SAFETY: see the module; `to` has 32 bytes, and `__m256bh` is 32 bytes of any content, as `__m256i` is.
        unsafe {
            let rounded = if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value))
            } else {
                let bits = _mm512_castps_si512(value);
                let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
                let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet)))
            };
            _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded);
        }
    }

    #[inline(always)]
    fn splat_int8(self, group: u32) -> __m512i {
        self.splat_i32(group as i32)
    }

    #[inline(always)]
    fn load_int8(self, from: &[i8]) -> __m512i {
        let from = &from[..64];
        // SAFETY: see the module; `from` has 64 bytes.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot_int8(self, sum: __m512i, activations: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: see the module.
        unsafe { _mm512_dpbusd_epi32(sum, activations, weights) }
    }

    #[inline(always)]
    fn store_int8(self, value: __m512, to: &mut [u32]) {
        let to = &mut to[..4];
        // SAFETY: see the module; `to` has sixteen bytes.
        unsafe {
            // Not `_mm512_cvtepi32_epi8`: with a store it becomes one instruction that takes tens of cycles on Zen. Instead, gather
            // the first byte of each word within quarters of the vector, then the first word of each quarter.
            let bytes = _mm512_shuffle_epi8(_mm512_cvtps_epi32(value), _mm512_set1_epi32(0x0c08_0400));
            let words =
                _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), bytes);
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_castsi512_si128(words));
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> __m512i {
        let from = &from[..64];
        // SAFETY: see the module; `from` has 64 bytes.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: __m512i) -> __m512i {
        // SAFETY: see the module.
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: __m512i) -> __m512i {
        // SAFETY: see the module.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn store_bytes(self, value: __m512, to: &mut [u32]) {
        // The low byte of each integer, whatever its sign.
        self.store_int8(value, to);
    }

    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, weights: __m512i, activations: u32) -> __m512i {
        // SAFETY: see the module.
        unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(activations as i32)) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> __m512 {
        let from = &from[..16];
        // SAFETY: see the module; `from` has 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_f16(self, value: __m512, to: &mut [u16]) {
        let to = &mut to[..16];
        // SAFETY: see the module; `to` has 32 bytes.
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: see the module; a prefetch accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> __m512 {
        // SAFETY: see the module; the lanes of the mask are the elements of `from`.
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), Self::lanes(from.len()), from.as_ptr()) }
    }

    #[inline(always)]
    fn store_part(self, value: __m512, to: &mut [f32]) {
        // SAFETY: see the module; the lanes of the mask are the elements of `to`.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), Self::lanes(to.len()), value) }
    }

    #[inline(always)]
    fn transpose(self, from: &[f32], stride: usize, to: &mut [f32], to_stride: usize) {
        let mut rows = [self.splat(0.0); 16];
        for (index, row) in rows.iter_mut().enumerate() {
            *row = self.load(&from[index * stride..]);
        }
        // Four rounds, each of which exchanges halves of pairs of rows: first single elements, at last eight.
        // SAFETY: see the module.
        unsafe {
            for pair in rows.chunks_exact_mut(2) {
                let (a, b) = (pair[0], pair[1]);
                (pair[0], pair[1]) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            }
            for four in rows.chunks_exact_mut(4) {
                let [a, b, c, d] = [four[0], four[1], four[2], four[3]];
                four[0] = _mm512_shuffle_ps::<0b01_00_01_00>(a, c);
                four[1] = _mm512_shuffle_ps::<0b11_10_11_10>(a, c);
                four[2] = _mm512_shuffle_ps::<0b01_00_01_00>(b, d);
                four[3] = _mm512_shuffle_ps::<0b11_10_11_10>(b, d);
            }
            // A quarter of row r of group g of four holds column 4 quarter + r of rows 4 g to 4 g + 3.
            for row in 0..4 {
                let [a, b, c, d] = [rows[row], rows[4 + row], rows[8 + row], rows[12 + row]];
                let (ab, cd) =
                    (_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d));
                self.store(_mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd), &mut to[row * to_stride..]);
                self.store(_mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd), &mut to[(8 + row) * to_stride..]);
                let (ab, cd) =
                    (_mm512_shuffle_f32x4::<0b11_01_11_01>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d));
                self.store(_mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd), &mut to[(4 + row) * to_stride..]);
                self.store(_mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd), &mut to[(12 + row) * to_stride..]);
            }
        }
    }
}
