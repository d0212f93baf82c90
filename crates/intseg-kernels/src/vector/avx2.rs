//! The vector of AVX2: two registers.
//!
//! Values exist only inside [`crate::Isa::run_loop`], which makes them on machines that have the instructions: that is
//! the safety of every block here.

use super::{LANES, Vector, WORD_LANES, Words};
use core::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi32, _mm_cvtsi32_si128, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_max_epi32,
    _mm_packs_epi16, _mm_packus_epi16, _mm_setr_epi8, _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_srli_si128,
    _mm_storeu_si128, _mm_unpackhi_epi64, _mm_unpacklo_epi64, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_epi64,
    _mm256_and_si256, _mm256_blendv_epi8, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmpgt_epi32,
    _mm256_cmpgt_epi64, _mm256_cvtepi8_epi16, _mm256_cvtepi8_epi32, _mm256_cvtepi16_epi32, _mm256_cvtepu8_epi16,
    _mm256_cvtepu8_epi32, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_max_epi32,
    _mm256_min_epi32, _mm256_movemask_ps, _mm256_mul_epu32, _mm256_mullo_epi32, _mm256_or_si256, _mm256_packs_epi32,
    _mm256_permute4x64_epi64, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_sll_epi32, _mm256_slli_epi64,
    _mm256_sra_epi32, _mm256_srav_epi32, _mm256_srl_epi32, _mm256_srl_epi64, _mm256_srli_epi64, _mm256_storeu_si256,
    _mm256_sub_epi16, _mm256_sub_epi32, _mm256_xor_si256,
};

/// Thirty-two lanes: the first sixteen, the last sixteen.
#[derive(Clone, Copy)]
pub(crate) struct Words256(__m256i, __m256i);

impl Words for Words256 {
    #[inline(always)]
    fn load_u8(from: &[u8; WORD_LANES]) -> Self {
        // SAFETY: the instructions are there, and 32 bytes.
        unsafe {
            let from = from.as_ptr().cast::<__m128i>();
            let [first, last] = [from, from.add(1)].map(|half| _mm256_cvtepu8_epi16(_mm_loadu_si128(half)));
            Self(first, last)
        }
    }
    #[inline(always)]
    fn load_i8(from: &[i8; WORD_LANES]) -> Self {
        // SAFETY: the instructions are there, and 32 bytes.
        unsafe {
            let from = from.as_ptr().cast::<__m128i>();
            let [first, last] = [from, from.add(1)].map(|half| _mm256_cvtepi8_epi16(_mm_loadu_si128(half)));
            Self(first, last)
        }
    }
    #[inline(always)]
    fn load_pairs(from: &[i8; 4 * LANES]) -> [Self; 2] {
        // SAFETY: the instructions are there, and 64 bytes.
        unsafe {
            let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
            let from = from.as_ptr().cast::<__m128i>();
            let quarters = [0, 1, 2, 3].map(|k| _mm_shuffle_epi8(_mm_loadu_si128(from.add(k)), order));
            let first = |a, b| _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(a, b));
            let last = |a, b| _mm256_cvtepi8_epi16(_mm_unpackhi_epi64(a, b));
            let [a, b, c, d] = quarters;
            [Self(first(a, b), first(c, d)), Self(last(a, b), last(c, d))]
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [i16; WORD_LANES]) {
        // SAFETY: the instructions are there, and 64 bytes.
        unsafe {
            let to = to.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(to, self.0);
            _mm256_storeu_si256(to.add(1), self.1);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_add_epi16(self.0, other.0), _mm256_add_epi16(self.1, other.1)) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_sub_epi16(self.0, other.0), _mm256_sub_epi16(self.1, other.1)) }
    }
}

/// Sixteen lanes: the first eight, the last eight.
#[derive(Clone, Copy)]
pub(crate) struct Vector256(__m256i, __m256i);

impl Vector for Vector256 {
    /// All bits of a lane, or none.
    type Mask = Vector256;
    type Words = Words256;
    type Table<'a> = &'a [u16; 256];

    #[inline(always)]
    fn splat(value: i32) -> Self {
        // SAFETY: the instructions are there (see above).
        let all = unsafe { _mm256_set1_epi32(value) };
        Self(all, all)
    }
    #[inline(always)]
    fn load_i32(from: &[i32; LANES]) -> Self {
        // SAFETY: the instructions are there, and 64 bytes.
        unsafe {
            let from = from.as_ptr().cast::<__m256i>();
            Self(_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1)))
        }
    }
    #[inline(always)]
    fn load_i16(from: &[i16; LANES]) -> Self {
        // SAFETY: the instructions are there, and 32 bytes.
        unsafe {
            let all = _mm256_loadu_si256(from.as_ptr().cast());
            let (first, last) = (_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
            Self(_mm256_cvtepi16_epi32(first), _mm256_cvtepi16_epi32(last))
        }
    }
    #[inline(always)]
    fn load_i8(from: &[i8; LANES]) -> Self {
        // SAFETY: the instructions are there, and 16 bytes.
        unsafe {
            let all = _mm_loadu_si128(from.as_ptr().cast());
            Self(_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(all)))
        }
    }
    #[inline(always)]
    fn load_u8(from: &[u8; LANES]) -> Self {
        // SAFETY: the instructions are there, and 16 bytes.
        unsafe {
            let all = _mm_loadu_si128(from.as_ptr().cast());
            Self(_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(all)))
        }
    }
    #[inline(always)]
    fn store_i32(self, to: &mut [i32; LANES]) {
        // SAFETY: the instructions are there, and 64 bytes.
        unsafe {
            let to = to.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(to, self.0);
            _mm256_storeu_si256(to.add(1), self.1);
        }
    }
    #[inline(always)]
    fn store_i16(self, to: &mut [i16; LANES]) {
        // SAFETY: the instructions are there, and 32 bytes.
        unsafe {
            // Packing interleaves the registers' halves.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(self.0, self.1));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), packed);
        }
    }
    #[inline(always)]
    fn store_i8(self, to: &mut [i8; LANES]) {
        // SAFETY: the instructions are there, and 16 bytes.
        unsafe {
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(self.0, self.1));
            let packed = _mm_packs_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
            _mm_storeu_si128(to.as_mut_ptr().cast(), packed);
        }
    }
    #[inline(always)]
    fn store_u8(self, to: &mut [u8; LANES]) {
        // SAFETY: the instructions are there, and 16 bytes.
        unsafe {
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(self.0, self.1));
            let packed = _mm_packus_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
            _mm_storeu_si128(to.as_mut_ptr().cast(), packed);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_add_epi32(self.0, other.0), _mm256_add_epi32(self.1, other.1)) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_sub_epi32(self.0, other.0), _mm256_sub_epi32(self.1, other.1)) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_mullo_epi32(self.0, other.0), _mm256_mullo_epi32(self.1, other.1)) }
    }
    #[inline(always)]
    fn add_narrow_product(self, a: Self, b: Self) -> Self {
        // The upper halves of the lanes of `a` are 0, and so are the second products that the instruction adds.
        // SAFETY: the instructions are there (see above).
        self.add(unsafe { Self(_mm256_madd_epi16(a.0, b.0), _mm256_madd_epi16(a.1, b.1)) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_min_epi32(self.0, other.0), _mm256_min_epi32(self.1, other.1)) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_max_epi32(self.0, other.0), _mm256_max_epi32(self.1, other.1)) }
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_and_si256(self.0, other.0), _mm256_and_si256(self.1, other.1)) }
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_xor_si256(self.0, other.0), _mm256_xor_si256(self.1, other.1)) }
    }
    #[inline(always)]
    fn shl(self, count: u32) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe {
            let count = _mm_cvtsi32_si128(count as i32);
            Self(_mm256_sll_epi32(self.0, count), _mm256_sll_epi32(self.1, count))
        }
    }
    #[inline(always)]
    fn shr(self, count: u32) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe {
            let count = _mm_cvtsi32_si128(count as i32);
            Self(_mm256_sra_epi32(self.0, count), _mm256_sra_epi32(self.1, count))
        }
    }
    #[inline(always)]
    fn shr_unsigned(self, count: u32) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe {
            let count = _mm_cvtsi32_si128(count as i32);
            Self(_mm256_srl_epi32(self.0, count), _mm256_srl_epi32(self.1, count))
        }
    }
    #[inline(always)]
    fn shr_each(self, counts: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_srav_epi32(self.0, counts.0), _mm256_srav_epi32(self.1, counts.1)) }
    }
    #[inline(always)]
    fn greater(self, other: Self) -> Self::Mask {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_cmpgt_epi32(self.0, other.0), _mm256_cmpgt_epi32(self.1, other.1)) }
    }
    #[inline(always)]
    fn keep(self, mask: Self::Mask) -> Self {
        self.and(mask)
    }
    #[inline(always)]
    fn or_else(self, mask: Self::Mask, other: Self) -> Self {
        // SAFETY: the instructions are there (see above).
        unsafe { Self(_mm256_blendv_epi8(other.0, self.0, mask.0), _mm256_blendv_epi8(other.1, self.1, mask.1)) }
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        // SAFETY: the instructions are there (see above).
        let half = |half| unsafe { _mm256_movemask_ps(_mm256_castsi256_ps(half)) } as u32;
        half(mask.0) | half(mask.1) << 8
    }
    #[inline(always)]
    fn scaled(self, factor: u32, add: u64, shift: u32, limit: u32) -> Self {
        Self(scaled(self.0, factor, add, shift, limit), scaled(self.1, factor, add, shift, limit))
    }
    #[inline(always)]
    fn largest(self) -> i32 {
        // SAFETY: the instructions are there (see above).
        unsafe {
            let max = _mm256_max_epi32(self.0, self.1);
            let max = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
            let max = _mm_max_epi32(max, _mm_shuffle_epi32::<0b01_00_11_10>(max));
            _mm_cvtsi128_si32(_mm_max_epi32(max, _mm_shuffle_epi32::<0b10_11_00_01>(max)))
        }
    }
    #[inline(always)]
    fn total(self) -> i32 {
        // SAFETY: the instructions are there (see above).
        unsafe {
            let sum = _mm256_add_epi32(self.0, self.1);
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
            _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)))
        }
    }
    #[inline(always)]
    fn table(values: &[u16; 256]) -> &[u16; 256] {
        values
    }
    #[inline(always)]
    fn look_up(self, table: &&[u16; 256]) -> Self {
        let mut lanes = [0; LANES];
        self.store_i32(&mut lanes);
        for lane in &mut lanes {
            *lane = table[(*lane & 255) as usize].into();
        }
        Self::load_i32(&lanes)
    }
}

/// [`Vector::scaled`] of eight lanes.
#[inline(always)]
fn scaled(lanes: __m256i, factor: u32, add: u64, shift: u32, limit: u32) -> __m256i {
    // SAFETY: the instructions are there (see above).
    unsafe {
        let even = scaled_even(lanes, factor, add, shift, limit);
        let odd = scaled_even(_mm256_srli_epi64::<32>(lanes), factor, add, shift, limit);
        _mm256_or_si256(even, _mm256_slli_epi64::<32>(odd))
    }
}

/// Of the even lanes, as 64 bits.
#[inline(always)]
fn scaled_even(lanes: __m256i, factor: u32, add: u64, shift: u32, limit: u32) -> __m256i {
    // SAFETY: the instructions are there (see above).
    unsafe {
        let product = _mm256_mul_epu32(lanes, _mm256_set1_epi64x(factor.into()));
        let sum = _mm256_add_epi64(product, _mm256_set1_epi64x(add as i64));
        let shifted = _mm256_srl_epi64(sum, _mm_cvtsi32_si128(shift as i32));
        let limit = _mm256_set1_epi64x(limit.into());
        _mm256_blendv_epi8(shifted, limit, _mm256_cmpgt_epi64(shifted, limit))
    }
}
