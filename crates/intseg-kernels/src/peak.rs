//! The machine's ceiling: how fast an instruction set multiplies and accumulates bytes when nothing has to be loaded.
//!
//! A convolution's speed is judged against this figure. The loops hold their operands in registers and keep enough
//! independent sums in flight to hide the latency of a multiplication.

use crate::Isa;
use core::hint::black_box;

/// Multiplies and accumulates bytes for `rounds` rounds; returns how many multiply-accumulates that were.
pub fn multiply_accumulate(isa: Isa, rounds: usize) -> u64 {
    match isa {
        Isa::Scalar => scalar(rounds),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` value exists only where the feature was found.
        Isa::Avx2(_) => unsafe { crate::avx2::peak::multiply_accumulate(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx512Vnni` value exists only where the features were found.
        Isa::Avx512Vnni(_) => unsafe { crate::avx512vnni::peak::multiply_accumulate(rounds) },
    }
}

fn scalar(rounds: usize) -> u64 {
    const LANES: usize = 64;
    let (a, b) = (black_box([3u8; LANES]), black_box([-5i8; LANES]));
    let mut sums = [0i32; LANES];
    for _ in 0..rounds {
        for ((sum, &a), &b) in sums.iter_mut().zip(&a).zip(&b) {
            *sum = sum.wrapping_add(i32::from(a) * i32::from(b));
        }
        // Without this the rounds collapse into one multiplication.
        sums = black_box(sums);
    }
    (rounds * LANES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_proportional_to_the_rounds_on_every_instruction_set() {
        for isa in Isa::available() {
            let one = multiply_accumulate(isa, 1);
            assert!(one > 0);
            assert_eq!(multiply_accumulate(isa, 100), 100 * one, "{}", isa.name());
        }
    }
}
