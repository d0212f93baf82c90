//! The ceiling of `vpmaddwd` on bytes widened to 16 bits.

use core::arch::x86_64::*;
use core::hint::black_box;

/// Twelve independent sums of 8 lanes, two products each; the widened operands stay in registers.
#[target_feature(enable = "avx2")]
pub fn multiply_accumulate(rounds: usize) -> u64 {
    const SUMS: usize = 12;
    let b = black_box(_mm256_set1_epi16(-5));
    let mut a = black_box(_mm256_set1_epi16(3));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..rounds {
        // An operand that changes keeps the products from being computed once before the loop.
        a = _mm256_xor_si256(a, b);
        for sum in &mut sums {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, *sum));
        }
    }
    black_box(sums);
    (rounds * SUMS * 16) as u64
}
