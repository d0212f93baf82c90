//! Requantisation, 16 channels at a time: exactly [`crate::conv::requantize`] in vector registers.

use crate::conv::Requantizer;
use crate::vector::Vector512;
use core::arch::x86_64::{
    __m256i, __m512i, _mm_loadl_epi64, _mm256_loadu_si256, _mm512_add_epi64, _mm512_castsi256_si512,
    _mm512_cmpeq_epi64_mask, _mm512_cvtepi32_epi64, _mm512_cvtepu8_epi64, _mm512_cvtsepi64_epi32, _mm512_inserti64x4,
    _mm512_loadu_si512, _mm512_mask_and_epi64, _mm512_mask_set1_epi64, _mm512_max_epi32, _mm512_min_epi32,
    _mm512_mul_epi32, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_sllv_epi64, _mm512_srav_epi64,
    _mm512_srli_epi64, _mm512_sub_epi64, _mm512_testn_epi64_mask,
};

/// The constants of 16 neighbouring channels, as two halves of 64-bit lanes.
#[derive(Clone, Copy)]
pub(crate) struct Channels {
    halves: [Half; 2],
    low: __m512i,
    high: __m512i,
}

#[derive(Clone, Copy)]
struct Half {
    multiplier: __m512i,
    /// The bias and half a unit.
    bias: __m512i,
    shift: __m512i,
    /// The bits that are dropped; all bits where none are.
    dropped: __m512i,
}

impl Channels {
    /// Channels `first..first + 16`.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn new(r: &Requantizer, first: usize) -> Self {
        let (low, high) = (_mm512_set1_epi32(r.low), _mm512_set1_epi32(r.high));
        Channels { halves: [Half::new(r, first), Half::new(r, first + 8)], low, high }
    }

    /// Requantises 16 sums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn apply(&self, sums: &[i32; 16]) -> Vector512 {
        let (first, second) = sums.split_at(8);
        let [a, b] = &self.halves;
        let (first, second) = (a.apply(first), b.apply(second));
        let values = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
        Vector512(_mm512_min_epi32(_mm512_max_epi32(values, self.low), self.high))
    }
}

impl Half {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn new(r: &Requantizer, first: usize) -> Self {
        let multiplier: &[i32; 8] = r.multiplier[first..].first_chunk().expect("eight channels");
        let bias: &[i64; 8] = r.bias[first..].first_chunk().expect("eight channels");
        let shift: &[u8; 8] = r.shift[first..].first_chunk().expect("eight channels");
        // SAFETY: 32 bytes.
        let multiplier = _mm512_cvtepi32_epi64(unsafe { _mm256_loadu_si256(multiplier.as_ptr().cast()) });
        // SAFETY: 64 bytes.
        let bias = unsafe { _mm512_loadu_si512(bias.as_ptr().cast()) };
        // SAFETY: 8 bytes.
        let shift = _mm512_cvtepu8_epi64(unsafe { _mm_loadl_epi64(shift.as_ptr().cast()) });
        let unit = _mm512_sllv_epi64(_mm512_set1_epi64(1), shift);
        let bias = _mm512_add_epi64(bias, _mm512_srli_epi64::<1>(unit));
        let dropped = _mm512_sub_epi64(unit, _mm512_set1_epi64(1));
        let none = _mm512_cmpeq_epi64_mask(dropped, _mm512_setzero_si512());
        Half { multiplier, bias, shift, dropped: _mm512_mask_set1_epi64(dropped, none, -1) }
    }

    /// Eight sums, held within 32 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn apply(&self, sums: &[i32]) -> __m256i {
        let sums: &[i32; 8] = sums.first_chunk().expect("eight sums");
        // SAFETY: 32 bytes.
        let sums = _mm512_cvtepi32_epi64(unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) });
        let x = _mm512_add_epi64(_mm512_mul_epi32(sums, self.multiplier), self.bias);
        let up = _mm512_srav_epi64(x, self.shift);
        // Half a unit was added, so nothing is left below the unit in a tie: then the even neighbour is meant.
        // Where no bit is dropped, the mask finds a tie in 0 alone, which is even.
        let tie = _mm512_testn_epi64_mask(x, self.dropped);
        let even = _mm512_mask_and_epi64(up, tie, up, _mm512_set1_epi64(-2));
        // Saturation to 32 bits comes before a clamp that lies within them.
        _mm512_cvtsepi64_epi32(even)
    }
}
