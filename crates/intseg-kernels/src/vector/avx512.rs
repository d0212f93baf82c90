//! The vector of AVX-512: one register.
//!
//! Values exist only inside [`crate::Isa::run_loop`], which makes them on machines that have the instructions: that is
//! the safety of every block here.

use super::{LANES, Vector, WORD_LANES, Words};
use core::arch::x86_64::{
    __m512i, __mmask16, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_si256, _mm256_storeu_si256,
    _mm512_add_epi16, _mm512_add_epi32, _mm512_add_epi64, _mm512_and_si512, _mm512_cmpgt_epi32_mask,
    _mm512_cvtepi8_epi16, _mm512_cvtepi8_epi32, _mm512_cvtepi16_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16,
    _mm512_cvtepu8_epi16, _mm512_cvtepu8_epi32, _mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_mask_mov_epi32,
    _mm512_maskz_mov_epi32, _mm512_max_epi32, _mm512_min_epi32, _mm512_min_epu64, _mm512_mul_epu32, _mm512_mullo_epi32,
    _mm512_or_si512, _mm512_permutex2var_epi16, _mm512_reduce_add_epi32, _mm512_reduce_max_epi32, _mm512_set1_epi32,
    _mm512_set1_epi64, _mm512_sll_epi32, _mm512_slli_epi64, _mm512_sra_epi32, _mm512_srav_epi32, _mm512_srl_epi32,
    _mm512_srl_epi64, _mm512_srli_epi32, _mm512_srli_epi64, _mm512_storeu_si512, _mm512_sub_epi16, _mm512_sub_epi32,
    _mm512_test_epi32_mask, _mm512_xor_si512,
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
    type Table<'a> = [__m512i; 8];

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
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        mask.into()
    }
    #[inline(always)]
    fn scaled(self, factor: u32, add: u64, shift: u32, limit: u32) -> Self {
        let even = scaled(self.0, factor, add, shift, limit);
        // SAFETY: the instructions are there (see above).
        let odd = scaled(unsafe { _mm512_srli_epi64::<32>(self.0) }, factor, add, shift, limit);
        // SAFETY: as above.
        Self(unsafe { _mm512_or_si512(even, _mm512_slli_epi64::<32>(odd)) })
    }
    #[inline(always)]
    fn largest(self) -> i32 {
        // SAFETY: the instructions are there (see above).
        unsafe { _mm512_reduce_max_epi32(self.0) }
    }
    #[inline(always)]
    fn total(self) -> i32 {
        // SAFETY: the instructions are there (see above).
        unsafe { _mm512_reduce_add_epi32(self.0) }
    }
    #[inline(always)]
    fn table(values: &[u16; 256]) -> Self::Table<'_> {
        let (lines, _) = values.as_chunks::<32>();
        // SAFETY: the instructions are there, and 64 bytes in each of the eight lines.
        let line = |k: usize| unsafe { _mm512_loadu_si512(lines[k].as_ptr().cast()) };
        [line(0), line(1), line(2), line(3), line(4), line(5), line(6), line(7)]
    }
    #[inline(always)]
    fn look_up(self, table: &Self::Table<'_>) -> Self {
        let [a, b, c, d, e, f, g, h] = *table;
        // SAFETY: the instructions are there (see above).
        unsafe {
            // Each looks at the low six bits of a word; the two above choose among the four.
            let [ab, cd] = [_mm512_permutex2var_epi16(a, self.0, b), _mm512_permutex2var_epi16(c, self.0, d)];
            let [ef, gh] = [_mm512_permutex2var_epi16(e, self.0, f), _mm512_permutex2var_epi16(g, self.0, h)];
            let seventh = _mm512_test_epi32_mask(self.0, _mm512_set1_epi32(1 << 6));
            let eighth = _mm512_test_epi32_mask(self.0, _mm512_set1_epi32(1 << 7));
            let low = _mm512_mask_mov_epi32(ab, seventh, cd);
            let high = _mm512_mask_mov_epi32(ef, seventh, gh);
            // The upper words were looked up too.
            Self(_mm512_and_si512(_mm512_mask_mov_epi32(low, eighth, high), _mm512_set1_epi32(0xFFFF)))
        }
    }
}

/// [`Vector::scaled`] of the even lanes, as 64 bits.
#[inline(always)]
fn scaled(lanes: __m512i, factor: u32, add: u64, shift: u32, limit: u32) -> __m512i {
    // SAFETY: the instructions are there (see above).
    unsafe {
        let product = _mm512_mul_epu32(lanes, _mm512_set1_epi64(factor.into()));
        let sum = _mm512_add_epi64(product, _mm512_set1_epi64(add as i64));
        let shifted = _mm512_srl_epi64(sum, _mm_cvtsi32_si128(shift as i32));
        _mm512_min_epu64(shifted, _mm512_set1_epi64(limit.into()))
    }
}
