//! The products of Winograd tiles: 5 tiles by 16 channels, ten accumulators in registers.

use crate::conv::Line;
use crate::conv::winograd::Multiply;
use crate::isa::Avx2;
use core::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_storeu_si256,
};

/// The innermost loop.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(pub(crate) Avx2);

/// Vectors of a panel.
const VECTORS: usize = 2;

impl Multiply for Kernel {
    const MR: usize = 5;
    const NR: usize = 8 * VECTORS;
    const FLIP: i8 = 0;

    fn multiply(self, sums: &mut [i32], tiles: usize, pairs: usize, input: &[Line], weights: &[Line]) {
        assert!(sums.len() == tiles * Self::NR && weights.len() == pairs);
        assert!((1..=Self::MR).contains(&tiles) && input.len() == pairs.div_ceil(16) * Self::MR);
        const COUNTED: [unsafe fn(*mut i32, usize, *const i32, *const __m256i); 5] =
            [accumulate::<1>, accumulate::<2>, accumulate::<3>, accumulate::<4>, accumulate::<5>];
        let (out, input, weights) = (sums.as_mut_ptr(), input.as_ptr().cast(), weights.as_ptr().cast());
        // SAFETY: `self` proves the feature, and the lengths have been checked.
        unsafe { COUNTED[tiles - 1](out, pairs, input, weights) }
    }
}

/// # Safety
/// `sums` has `16 · TILES` values, `weights` two vectors a pair, `input` 5 lines for every 16 pairs.
#[target_feature(enable = "avx2")]
unsafe fn accumulate<const TILES: usize>(sums: *mut i32, pairs: usize, input: *const i32, weights: *const __m256i) {
    let mut totals = [[_mm256_setzero_si256(); VECTORS]; TILES];
    for pair in 0..pairs {
        // SAFETY: as the caller promises.
        let two = [0, 1].map(|v| unsafe { _mm256_loadu_si256(weights.add(VECTORS * pair + v)) });
        // SAFETY: as the caller promises; a block of 16 pairs is 5 lines of 16 words of 32 bits.
        let block = unsafe { input.add(pair / 16 * (16 * Kernel::MR) + pair % 16) };
        for (tile, totals) in totals.iter_mut().enumerate() {
            // SAFETY: a line of the block.
            let words = _mm256_set1_epi32(unsafe { *block.add(16 * tile) });
            for v in 0..VECTORS {
                totals[v] = _mm256_add_epi32(totals[v], _mm256_madd_epi16(words, two[v]));
            }
        }
    }
    for (k, total) in totals.as_flattened().iter().enumerate() {
        // SAFETY: as the caller promises.
        unsafe { _mm256_storeu_si256(sums.add(8 * k).cast(), *total) };
    }
}
