//! Requantisation, 16 channels at a time: exactly [`crate::conv::requantize`] in vector registers.

use crate::conv::{Addend, Requantizer};
use crate::vector::{Element, LANES, Vector512};
use core::arch::x86_64::{
    __m512i, _mm_loadu_si128, _mm512_add_epi64, _mm512_cmpeq_epi64_mask, _mm512_cvtepu8_epi32, _mm512_loadu_si512,
    _mm512_mask_and_epi64, _mm512_mask_set1_epi64, _mm512_mask_shuffle_epi32, _mm512_max_epi64, _mm512_min_epi64,
    _mm512_mul_epi32, _mm512_permutex2var_epi64, _mm512_set1_epi64, _mm512_setr_epi64, _mm512_setzero_si512,
    _mm512_sllv_epi64, _mm512_srav_epi64, _mm512_srli_epi64, _mm512_sub_epi64, _mm512_testn_epi64_mask,
};

/// The constants of 16 neighbouring channels: of those with even numbers, and of the others, in lanes of 64 bits.
#[derive(Clone, Copy)]
struct Channels {
    halves: [Half; 2],
    low: __m512i,
    high: __m512i,
}

#[derive(Clone, Copy)]
struct Half {
    /// In the low 32 bits of each lane.
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
    fn new(r: &Requantizer, first: usize) -> Self {
        let multiplier: &[i32; 16] = r.multiplier[first..].first_chunk().expect("16 channels");
        let bias: &[i64; 16] = r.bias[first..].first_chunk().expect("16 channels");
        let shift: &[u8; 16] = r.shift[first..].first_chunk().expect("16 channels");
        // SAFETY: 64 bytes.
        let multiplier = unsafe { _mm512_loadu_si512(multiplier.as_ptr().cast()) };
        // SAFETY: 128 bytes.
        let [a, b] = [0, 8].map(|at| unsafe { _mm512_loadu_si512(bias.as_ptr().add(at).cast()) });
        // SAFETY: 16 bytes.
        let shift = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(shift.as_ptr().cast()) });
        let even = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), b);
        let odd = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), b);
        let upper = |lanes| _mm512_srli_epi64::<32>(lanes);
        let lower = _mm512_mask_shuffle_epi32::<0>(shift, 0xAAAA, _mm512_setzero_si512());
        Channels {
            halves: [Half::new(multiplier, even, lower), Half::new(upper(multiplier), odd, upper(shift))],
            low: _mm512_set1_epi64(r.low.into()),
            high: _mm512_set1_epi64(r.high.into()),
        }
    }

    /// Requantises 16 sums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn apply(&self, sums: __m512i) -> Vector512 {
        let [even, odd] = &self.halves;
        let within = |values| _mm512_max_epi64(_mm512_min_epi64(values, self.high), self.low);
        let (even, odd) = (within(even.apply(sums)), within(odd.apply(_mm512_srli_epi64::<32>(sums))));
        // The low halves of the odd ones' lanes move up, between the others.
        Vector512(_mm512_mask_shuffle_epi32::<0b10_10_00_00>(even, 0xAAAA, odd))
    }
}

impl Half {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn new(multiplier: __m512i, bias: __m512i, shift: __m512i) -> Self {
        let unit = _mm512_sllv_epi64(_mm512_set1_epi64(1), shift);
        let bias = _mm512_add_epi64(bias, _mm512_srli_epi64::<1>(unit));
        let dropped = _mm512_sub_epi64(unit, _mm512_set1_epi64(1));
        let none = _mm512_cmpeq_epi64_mask(dropped, _mm512_setzero_si512());
        Half { multiplier, bias, shift, dropped: _mm512_mask_set1_epi64(dropped, none, -1) }
    }

    /// The low 32 bits of each lane, requantised.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn apply(&self, sums: __m512i) -> __m512i {
        let x = _mm512_add_epi64(_mm512_mul_epi32(sums, self.multiplier), self.bias);
        let up = _mm512_srav_epi64(x, self.shift);
        // Half a unit was added, so nothing is left below the unit in a tie: then the even neighbour is meant.
        // Where no bit is dropped, the mask finds a tie in 0 alone, which is even.
        let tie = _mm512_testn_epi64_mask(x, self.dropped);
        _mm512_mask_and_epi64(up, tie, up, _mm512_set1_epi64(-2))
    }
}

/// Requantises `groups` times 16 channels of a tile, from channel `first` on: `sums` has a row of `row` values a pixel,
/// and pixel `p` is written to `out + p · stride`. What is added has `first` and `channels` like the results.
///
/// # Safety
/// The instructions must be there, `out` writable at each pixel for all groups, and nobody else may use those places.
///
/// # Panics
/// When there are fewer channels, sums or added values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn tile<T: Element>(
    r: &Requantizer,
    [first, groups]: [usize; 2],
    (sums, row): (&[i32], usize),
    pixels: &[usize],
    (out, stride): (*mut T, usize),
    (addend, channels): (Option<&Addend>, usize),
) {
    let Some(last) = pixels.len().checked_sub(1) else { return };
    assert!(last * row + groups * LANES <= sums.len(), "sums");
    for group in 0..groups {
        let (constants, first) = (Channels::new(r, first + group * LANES), first + group * LANES);
        for (m, &pixel) in pixels.iter().enumerate() {
            // SAFETY: the sums of the last pixel's last group are there, as asserted.
            let sums = unsafe { _mm512_loadu_si512(sums.as_ptr().add(m * row + group * LANES).cast()) };
            let mut results = constants.apply(sums);
            if let Some(addend) = addend {
                results = addend.add(results, pixel * channels + first);
            }
            // SAFETY: as the caller promises.
            let out = unsafe { &mut *out.add(pixel * stride + group * LANES).cast::<[T; LANES]>() };
            T::store(results, out);
        }
    }
}
