//! The ceiling of `vpdpbusd`.

use core::arch::x86_64::*;
use core::hint::black_box;

/// Sixteen independent sums of 16 lanes, four products each.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn multiply_accumulate(rounds: usize) -> u64 {
    const SUMS: usize = 16;
    let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-5)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
    (rounds * SUMS * 64) as u64
}
