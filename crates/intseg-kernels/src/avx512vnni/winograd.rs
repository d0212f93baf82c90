//! The products of Winograd tiles: 14 tiles by 32 channels, 28 accumulators in registers.

use crate::conv::Line;
use crate::conv::winograd::Multiply;
use crate::isa::Avx512Vnni;
use core::arch::x86_64::{
    __m512i, _mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};

/// The innermost loop.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(pub(crate) Avx512Vnni);

/// Vectors of a panel.
const VECTORS: usize = 2;

impl Multiply for Kernel {
    const MR: usize = 14;
    const NR: usize = 16 * VECTORS;
    const FLIP: i8 = -128;

    fn multiply(self, sums: &mut [i32], tiles: usize, pairs: usize, input: &[Line], weights: &[Line]) {
        assert!(sums.len() == tiles * Self::NR && weights.len() == pairs * VECTORS);
        assert!((1..=Self::MR).contains(&tiles) && input.len() == pairs.div_ceil(16) * Self::MR);
        const COUNTED: [unsafe fn(*mut i32, usize, *const i32, *const __m512i); 14] = [
            accumulate::<1>,
            accumulate::<2>,
            accumulate::<3>,
            accumulate::<4>,
            accumulate::<5>,
            accumulate::<6>,
            accumulate::<7>,
            accumulate::<8>,
            accumulate::<9>,
            accumulate::<10>,
            accumulate::<11>,
            accumulate::<12>,
            accumulate::<13>,
            accumulate::<14>,
        ];
        let (out, input, weights) = (sums.as_mut_ptr(), input.as_ptr().cast(), weights.as_ptr().cast());
        // SAFETY: `self` proves the features, and the lengths have been checked.
        unsafe { COUNTED[tiles - 1](out, pairs, input, weights) }
    }
}

/// # Safety
/// `sums` has `32 · TILES` values, `weights` two vectors a pair, `input` 14 lines for every 16 pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn accumulate<const TILES: usize>(sums: *mut i32, pairs: usize, input: *const i32, weights: *const __m512i) {
    let mut totals = [[_mm512_setzero_si512(); VECTORS]; TILES];
    for pair in 0..pairs {
        // SAFETY: as the caller promises.
        let two = [0, 1].map(|v| unsafe { _mm512_loadu_si512(weights.add(VECTORS * pair + v)) });
        // SAFETY: as the caller promises; a block of 16 pairs is 14 lines of 16 words of 32 bits.
        let block = unsafe { input.add(pair / 16 * (16 * Kernel::MR) + pair % 16) };
        for (tile, totals) in totals.iter_mut().enumerate() {
            // SAFETY: a line of the block.
            let words = _mm512_set1_epi32(unsafe { *block.add(16 * tile) });
            for v in 0..VECTORS {
                totals[v] = _mm512_dpwssd_epi32(totals[v], words, two[v]);
            }
        }
    }
    for (k, total) in totals.as_flattened().iter().enumerate() {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_si512(sums.add(16 * k).cast(), *total) };
    }
}
