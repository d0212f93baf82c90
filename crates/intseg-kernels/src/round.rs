//! The two ways in which intseg drops low bits. There is no third.
//!
//! Forward: to nearest, ties to even. Backward and update: stochastic, with random bits handed in by the caller
//! ([`crate::dither`]), so that the mean of many roundings is the exact value.

/// `x / 2^shift` to nearest, ties to even. `shift` is 0..=31. Never overflows.
#[inline(always)]
pub fn half_even_i32(x: i32, shift: u32) -> i32 {
    let floor = x >> shift;
    let rest = x & ((1i64 << shift) - 1) as i32;
    let half = ((1i64 << shift) >> 1) as i32;
    floor + (rest > half || (rest == half && half != 0 && floor & 1 == 1)) as i32
}

/// `x / 2^shift` to nearest, ties to even. `shift` is 0..=62. Never overflows.
#[inline(always)]
pub fn half_even_i64(x: i64, shift: u32) -> i64 {
    let floor = x >> shift;
    let rest = x & ((1i64 << shift) - 1);
    let half = (1i64 << shift) >> 1;
    floor + (rest > half || (rest == half && half != 0 && floor & 1 == 1)) as i64
}

/// `x / 2^shift` rounded up with a probability equal to the dropped fraction, given 32 random `bits`. `shift` is
/// 0..=31. Never overflows; the mean over all `bits` is exactly `x / 2^shift`.
#[inline(always)]
pub fn stochastic_i32(x: i32, shift: u32, bits: u32) -> i32 {
    let mask = ((1u64 << shift) - 1) as u32;
    (x >> shift) + (((x as u32 & mask) + (bits & mask)) >> shift) as i32
}

/// As [`stochastic_i32`] for 64 bits. `shift` is 0..=62; from 32 on, the dropped bits below the 32 highest are
/// truncated first, a bias of less than 2^-32 of the result's unit.
#[inline(always)]
pub fn stochastic_i64(x: i64, shift: u32, bits: u32) -> i64 {
    let pre = shift.saturating_sub(32);
    let (x, shift) = (x >> pre, shift - pre);
    let mask = (1u64 << shift) - 1;
    (x >> shift) + (((x as u64 & mask) + (bits as u64 & mask)) >> shift) as i64
}

/// `a / b` to nearest, ties to even, for a positive divisor.
#[inline(always)]
pub fn divide_half_even(a: i64, b: i64) -> i64 {
    debug_assert!(b > 0);
    let floor = a.div_euclid(b);
    let twice = 2 * a.rem_euclid(b) as i128;
    floor + (twice > b as i128 || (twice == b as i128 && floor & 1 == 1)) as i64
}

/// `value` held within `low..=high`. As `clamp`, without its panic on crossed bounds, which keeps loops from being
/// vectorised.
#[inline(always)]
pub fn within<T: Ord>(value: T, low: T, high: T) -> T {
    value.max(low).min(high)
}

/// Number of bits of `magnitude` (0 for 0): the integer that exponents are chosen from.
#[inline(always)]
pub fn bit_length(magnitude: u64) -> u32 {
    64 - magnitude.leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_even_rounds_ties_to_even() {
        let halves = [(-6, -3), (-5, -2), (-3, -2), (-1, 0), (0, 0), (1, 0), (3, 2), (5, 2), (7, 4)];
        for (x, want) in halves {
            assert_eq!(half_even_i32(x, 1), want, "{x}/2");
            assert_eq!(half_even_i64(x as i64, 1), want as i64);
            assert_eq!(divide_half_even(x as i64, 2), want as i64);
        }
        assert_eq!(half_even_i32(i32::MAX, 0), i32::MAX);
        assert_eq!(half_even_i32(i32::MAX, 31), 1);
        assert_eq!(half_even_i32(i32::MIN, 31), -1);
    }

    #[test]
    fn half_even_is_the_nearest_for_every_shift() {
        for shift in 0..20 {
            for x in -5000..5000i64 {
                let got = half_even_i64(x, shift);
                assert_eq!(half_even_i32(x as i32, shift) as i64, got);
                assert!(2 * (x - (got << shift)).abs() <= 1 << shift, "{x} >> {shift}");
                assert_eq!(got, divide_half_even(x, 1 << shift));
            }
        }
    }

    #[test]
    fn stochastic_rounding_has_the_exact_mean() {
        for x in -300..300 {
            let shift = 5;
            let sum: i32 = (0..32).map(|bits| stochastic_i32(x, shift, bits)).sum();
            assert_eq!(sum, x);
            let wide: i64 = (0..32).map(|bits| stochastic_i64(x as i64, shift, bits)).sum();
            assert_eq!(wide, x as i64);
        }
        assert_eq!(stochastic_i32(i32::MAX, 31, u32::MAX), 1);
        assert_eq!(stochastic_i64(i64::MAX, 62, u32::MAX), 2);
    }
}
