//! The vector of AVX-512: one register.
//!
//! Values exist only inside [`crate::Isa::run_loop`], which makes them on machines that have the instructions: that is
//! the safety of every block here.

use super::{LANES, Vector, WORD_LANES, Words};
use core::arch::x86_64::{
    __m512i, __mmask16, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_si256, _mm256_storeu_si256,
    _mm512_add_epi16, _mm512_add_epi32, _mm512_and_si512, _mm512_cmpgt_epi32_mask, _mm512_cvtepi8_epi16,
    _mm512_cvtepi8_epi32, _mm512_cvtepi16_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16, _mm512_cvtepu8_epi16,
    _mm512_cvtepu8_epi32, _mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_mask_mov_epi32, _mm512_maskz_mov_epi32,
    _mm512_max_epi32, _mm512_min_epi32, _mm512_mullo_epi32, _mm512_set1_epi32, _mm512_sll_epi32, _mm512_sra_epi32,
    _mm512_srav_epi32, _mm512_srl_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_epi16, _mm512_sub_epi32,
    _mm512_xor_si512,
};

/// Thirty-two lanes.
#[derive(Clone, Copy)]
pub(crate) struct Words512(__m512i);

impl Words for Words512 {
    #[inline(always)]
    fn load_u8(from: &[u8; WORD_LANES]) -> Self {
        // SAFETY: the instructions are there, and 32 bytes.
        Self(unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_i8(from: &[i8; WORD_LANES]) -> Self {
        // SAFETY: the instructions are there, and 32 bytes.
        Self(unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_pairs(from: &[i8; 4 * LANES]) -> [Self; 2] {
        // SAFETY: the instructions are there, and 64 bytes.
        unsafe {
            let groups = _mm512_loadu_si512(from.as_ptr().cast());
            let halves = [groups, _mm512_srli_epi32::<16>(groups)];
            halves.map(|half| Self(_mm512_cvtepi8_epi16(_mm512_cvtepi32_epi16(half))))
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [i16; WORD_LANES]) {
        // SAFETY: the instructions are there, and 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_add_epi16(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_sub_epi16(self.0, other.0) })
    }
}

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(crate) struct Vector512(pub(crate) __m512i);

impl Vector for Vector512 {
    type Mask = __mmask16;
    type Words = Words512;

    #[inline(always)]
    fn splat(value: i32) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_set1_epi32(value) })
    }
    #[inline(always)]
    fn load_i32(from: &[i32; LANES]) -> Self {
        // SAFETY: the instructions are there, and 64 bytes.
        Self(unsafe { _mm512_loadu_si512(from.as_ptr().cast()) })
    }
    #[inline(always)]
    fn load_i16(from: &[i16; LANES]) -> Self {
        // SAFETY: the instructions are there, and 32 bytes.
        Self(unsafe { _mm512_cvtepi16_epi32(_mm256_loadu_si256(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_i8(from: &[i8; LANES]) -> Self {
        // SAFETY: the instructions are there, and 16 bytes.
        Self(unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_u8(from: &[u8; LANES]) -> Self {
        // SAFETY: the instructions are there, and 16 bytes.
        Self(unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn store_i32(self, to: &mut [i32; LANES]) {
        // SAFETY: the instructions are there, and 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), self.0) }
    }
    #[inline(always)]
    fn store_i16(self, to: &mut [i16; LANES]) {
        // SAFETY: the instructions are there, and 32 bytes.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(self.0)) }
    }
    #[inline(always)]
    fn store_i8(self, to: &mut [i8; LANES]) {
        // SAFETY: the instructions are there, and 16 bytes.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(self.0)) }
    }
    #[inline(always)]
    fn store_u8(self, to: &mut [u8; LANES]) {
        // SAFETY: the instructions are there, and 16 bytes.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(self.0)) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_add_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_sub_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_mullo_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn add_narrow_product(self, a: Self, b: Self) -> Self {
        // The upper halves of the lanes of `a` are 0, and so are the second products that the instruction adds.
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_dpwssd_epi32(self.0, a.0, b.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_min_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_max_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_and_si512(self.0, other.0) })
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_xor_si512(self.0, other.0) })
    }
    #[inline(always)]
    fn shl(self, count: u32) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_sll_epi32(self.0, _mm_cvtsi32_si128(count as i32)) })
    }
    #[inline(always)]
    fn shr(self, count: u32) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_sra_epi32(self.0, _mm_cvtsi32_si128(count as i32)) })
    }
    #[inline(always)]
    fn shr_unsigned(self, count: u32) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_srl_epi32(self.0, _mm_cvtsi32_si128(count as i32)) })
    }
    #[inline(always)]
    fn shr_each(self, counts: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_srav_epi32(self.0, counts.0) })
    }
    #[inline(always)]
    fn greater(self, other: Self) -> Self::Mask {
        // SAFETY: the instructions are there (see above).
        unsafe { _mm512_cmpgt_epi32_mask(self.0, other.0) }
    }
    #[inline(always)]
    fn keep(self, mask: Self::Mask) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_maskz_mov_epi32(mask, self.0) })
    }
    #[inline(always)]
    fn or_else(self, mask: Self::Mask, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        Self(unsafe { _mm512_mask_mov_epi32(other.0, mask, self.0) })
    }
}
