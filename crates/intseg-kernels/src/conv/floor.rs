//! Requantisation in fewer steps, where a channel's numbers allow it.
//!
//! A multiplier that is a power of two leaves a sum and a shift, of 32 bits ([`Shift`]). Otherwise rounding to nearest even
//! is a floor ([`Floor`]):
//!
//! `half_even(x / 2^s)` is `(x + half a unit) >> s` but where exactly half a unit was left: there the result is even, and
//! the floor may be one more. A channel's sums meet such a tie rarely: `sum · multiplier + bias + half` is a multiple of
//! `2^s` for one sum in `2^s` divided by the power of two in the multiplier. Where that leaves at most one sum that can
//! occur at all, its result is known beforehand, and if it should be one less, so is the bias: no other sum, being no
//! multiple of `2^s`, notices.

/// `(sum · multiplier + bias) >> shift`, which is [`super::requantize`] before its clamp. The shift is 32..=62.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    pub multiplier: i32,
    pub bias: i64,
    pub shift: u32,
}

impl Floor {
    /// For all sums of magnitude up to `bound`, which is below 2^31; `None` where several of them are ties, and where the
    /// numbers do not fit.
    pub fn new(multiplier: i32, bias: i64, shift: u8, bound: i64) -> Option<Self> {
        // Results then lie in the upper half of 64 bits.
        let up = 32u32.saturating_sub(shift.into());
        let shift = u32::from(shift) + up;
        let wide = i64::from(multiplier) << up;
        if !(32..=62).contains(&shift) || i64::from(wide as i32) != wide || bias.unsigned_abs() > (1 << 61) >> up {
            return None;
        }
        let multiplier = wide as i32;
        let bias = (bias << up) + (1 << (shift - 1));
        let zeros = multiplier.trailing_zeros();
        // Sums that are ties: `sum · multiplier + bias` is a multiple of 2^shift.
        let tie = if multiplier == 0 {
            // All or none.
            (bias & ((1 << shift) - 1) == 0).then_some(0)
        } else if bias & ((1 << zeros) - 1) != 0 {
            None
        } else {
            // All that are equal to this one modulo 2^period.
            let period = shift - zeros;
            let sum = (bias >> zeros).wrapping_neg().wrapping_mul(inverse(i64::from(multiplier >> zeros)));
            let sum = sum << (64 - period) >> (64 - period);
            if bound >> (period - 1) != 0 {
                return None;
            }
            (sum.abs() <= bound).then_some(sum)
        };
        let odd = tie.map_or(0, |sum| (sum * i64::from(multiplier) + bias) >> shift & 1);
        Some(Floor { multiplier, bias: bias - odd, shift })
    }
}

/// `half_even((sum + bias) / 2^shift)`, which is [`super::requantize`] before its clamp. The shift is 0..=30.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shift {
    pub bias: i32,
    pub shift: u32,
}

impl Shift {
    /// For all sums of magnitude up to `bound`; `None` where the multiplier is no power of two or the bias no multiple of
    /// it, and where 32 bits might not do.
    pub fn new(multiplier: i32, bias: i64, shift: u8, bound: i64) -> Option<Self> {
        let zeros = multiplier.trailing_zeros();
        let shift = u32::from(shift).checked_sub(zeros).filter(|shift| *shift <= 30)?;
        let whole = multiplier > 0 && multiplier >> zeros == 1 && bias & (i64::from(multiplier) - 1) == 0;
        // Half a unit is added besides.
        let fits = bound.saturating_add((bias >> zeros).saturating_abs()) < (1 << 30);
        (whole && fits).then_some(Shift { bias: (bias >> zeros) as i32, shift })
    }
}

/// The inverse of an odd number modulo 2^64, by Newton's iteration: each round doubles the bits that are right, of which
/// the number itself has three.
fn inverse(odd: i64) -> i64 {
    (0..5).fold(odd, |inverse, _| inverse.wrapping_mul(2i64.wrapping_sub(odd.wrapping_mul(inverse))))
}

#[cfg(test)]
mod tests {
    use super::super::requantize;
    use super::*;
    use crate::round::half_even_i32;
    use proptest::prelude::*;

    fn floor(f: Floor, sum: i64) -> i64 {
        (sum * i64::from(f.multiplier) + f.bias) >> f.shift
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn the_floor_is_the_rounding_for_every_sum_within_the_bound(
            odd in -200i32..200, zeros in 0..12u32, bias in -5000i64..5000, bias_zeros in 0..12u32, shift in 1..20u8, bound in 1..3000i64,
        ) {
            let (multiplier, bias) = (odd << zeros, bias << bias_zeros);
            if let Some(f) = Floor::new(multiplier, bias, shift, bound) {
                for sum in -bound..=bound {
                    let want = requantize(sum as i32, multiplier, bias, shift, i32::MIN, i32::MAX);
                    prop_assert_eq!(floor(f, sum), i64::from(want), "sum {}", sum);
                }
            }
        }

        #[test]
        fn a_tie_of_large_numbers_is_rounded_to_even(
            multiplier in 1i32..1 << 24, sum in -(1i64 << 26)..1 << 26, result in -300i64..300, shift in 33..50u8,
        ) {
            // A bias that makes this sum a tie.
            let bias = (result << shift) + (1 << (shift - 1)) - sum * i64::from(multiplier);
            if let Some(f) = Floor::new(multiplier, bias, shift, 1 << 26) {
                for sum in sum - 2..=sum + 2 {
                    let want = requantize(sum as i32, multiplier, bias, shift, i32::MIN, i32::MAX);
                    prop_assert_eq!(floor(f, sum), i64::from(want));
                }
            }
        }
    }

    #[test]
    fn a_power_of_two_is_a_shift_for_every_sum_within_the_bound() {
        for (zeros, shift, bias) in
            [(0, 0, 5), (3, 3, -8), (3, 9, 64), (4, 9, 48), (20, 33, 7 << 20), (23, 23, -(9i64 << 23))]
        {
            let s = Shift::new(1 << zeros, bias, shift, 3000).unwrap();
            for sum in -3000..=3000 {
                let want = requantize(sum, 1 << zeros, bias, shift, i32::MIN, i32::MAX);
                assert_eq!(half_even_i32(sum + s.bias, s.shift), want);
            }
        }
        let none = [
            (3, 0, 9, 1),
            (-4, 0, 9, 1),
            (0, 0, 9, 1),
            (4, 2, 9, 1),
            (4, 0, 1, 1),
            (1, 0, 31, 1),
            (1, 1 << 29, 9, 1 << 29),
        ];
        assert!(none.iter().all(|&(m, b, s, bound)| Shift::new(m, b, s, bound).is_none()));
    }

    #[test]
    fn most_channels_of_models_have_a_floor_and_powers_of_two_have_none() {
        let most = (1..=1000).filter(|k| Floor::new((1 << 23) + 7919 * k, 12_345, 34, 1 << 26).is_some());
        assert!(most.count() > 950);
        assert!(Floor::new(1 << 23, 0, 34, 1 << 26).is_none());
        assert_eq!(
            Floor::new(0, 5 << 40, 40, 1 << 26),
            Some(Floor { multiplier: 0, bias: (5 << 40) + (1 << 39), shift: 40 })
        );
    }
}
