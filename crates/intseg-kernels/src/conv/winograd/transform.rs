//! The transforms of F(4, 3) along one axis, over the points 0, 2, 1, −1, −1/2 and ∞.
//!
//! With `M_p` the product of `b·x − a` over all points `a/b` but `p` (∞ is 1/0), row `p` of [`input`] holds the
//! coefficients of `M_p`, row `p` of [`weights`] is the weights' polynomial at `p`, and [`output`] evaluates polynomials
//! of degree 3 at the points, divided by `M_p(p)`: 2, 30, −6, 6, −30, 2. Their least common multiple is [`DIVISOR`].

use crate::vector::{Vector, Words};

/// Values that a tile reads along an axis.
pub(crate) const POINTS: usize = 6;
/// Sums that a tile makes along an axis.
pub(crate) const OUTPUTS: usize = 4;
/// Weights along an axis.
pub(crate) const TAPS: usize = 3;
/// What the sums come out multiplied by along an axis: an odd number, doubled.
const DIVISOR: u32 = 30;

/// The largest sum of the magnitudes of a row of the input's transform. Two axes, and bytes of either sign, stay within
/// 16 bits: `14 · 14 · 128 = 25088`, and for unsigned ones, since positive and negative coefficients balance, less.
#[cfg(test)]
const INPUT_GAIN: i32 = 14;
/// The same of the weights': `7 · 7 · 128 = 6272`.
#[cfg(test)]
const WEIGHT_GAIN: i32 = 7;

#[inline(always)]
fn double<W: Words>(words: W) -> W {
    words.add(words)
}

#[inline(always)]
fn triple<W: Words>(words: W) -> W {
    words.add(words).add(words)
}

/// Transforms input.
#[inline(always)]
pub(crate) fn input<W: Words>([d0, d1, d2, d3, d4, d5]: [W; POINTS]) -> [W; POINTS] {
    let (a, b, c) = (d4.sub(d2), d3.sub(d1), d5.sub(d3));
    let (twice_a, twice_b) = (double(a), double(b));
    [
        twice_a.sub(triple(b)).sub(double(d2.sub(d0))),
        twice_a.add(b),
        twice_a.sub(b).sub(triple(d1.add(d2))),
        twice_a.sub(twice_b).add(triple(d2.sub(d3))),
        a.sub(twice_b),
        double(c).sub(triple(a)).sub(twice_b),
    ]
}

/// The points of F(2, 3), which are some of those of F(4, 3): a tile of so few outputs needs no others.
pub(crate) const NARROW: [usize; 4] = [0, 2, 3, 5];

/// Transforms the first four values for [`NARROW`]; the other points come out as zeros.
#[inline(always)]
pub(crate) fn narrow_input<W: Words>([d0, d1, d2, d3, ..]: [W; POINTS]) -> [W; POINTS] {
    let zero = d0.sub(d0);
    [d2.sub(d0), zero, d2.add(d1), d2.sub(d1), zero, d3.sub(d1)]
}

/// Transforms weights.
#[inline(always)]
pub(crate) fn weights<W: Words>([g0, g1, g2]: [W; TAPS]) -> [W; POINTS] {
    let outer = g0.add(g2);
    let at_two = g0.add(double(g1.add(double(g2))));
    let at_half = g2.add(double(double(g0).sub(g1)));
    [g0, at_two, outer.add(g1), outer.sub(g1), at_half, g2]
}

#[inline(always)]
fn times_5<V: Vector>(vector: V) -> V {
    vector.shl(2).add(vector)
}

#[inline(always)]
fn times_15<V: Vector>(vector: V) -> V {
    vector.shl(4).sub(vector)
}

/// Transforms products to [`DIVISOR`] times the sums.
#[inline(always)]
pub(crate) fn output<V: Vector>([m0, m1, m2, m3, m4, m5]: [V; POINTS]) -> [V; OUTPUTS] {
    let (even, odd) = (times_5(m3.sub(m2)), times_5(m2.add(m3)));
    [
        times_15(m0).add(m1).add(even).sub(m4.shl(3)),
        m1.shl(1).sub(odd).add(m4.shl(2)),
        m1.shl(2).add(even).sub(m4.shl(1)),
        m1.shl(3).sub(odd).add(m4).add(times_15(m5)),
    ]
}

/// The first two of [`output`] from the products at [`NARROW`], which [`narrow_input`] made: the divisors are −1, 2, 2 and 1.
/// The other two mean nothing.
#[inline(always)]
pub(crate) fn narrow_output<V: Vector>([m0, _, m2, m3, _, m5]: [V; POINTS]) -> [V; OUTPUTS] {
    let first = times_15(m2.add(m3).sub(m0.shl(1)));
    let second = times_15(m2.sub(m3).add(m5.shl(1)));
    [first, second, first, second]
}

/// A row of transformed columns.
#[inline(always)]
pub(crate) fn row<T: Copy, const M: usize>(columns: &[[T; M]; POINTS], y: usize) -> [T; POINTS] {
    let [a, b, c, d, e, f] = columns;
    [a[y], b[y], c[y], d[y], e[y], f[y]]
}

/// What two axes of [`output`] multiplied by `DIVISOR²`, divided again. Exact although only 32 bits are known: the odd
/// part has an inverse modulo 2^32, and the two bits that the even part shifts out at the top do not matter to a sum
/// below 2^29.
#[inline(always)]
pub(crate) fn divide<V: Vector>(sum: V) -> V {
    sum.mul(V::splat(ODD_INVERSE as i32)).shr(2)
}

/// The inverse of `DIVISOR² / 4` modulo 2^32, by Newton's iteration: each round doubles the bits that are right.
const ODD_INVERSE: u32 = {
    let odd = DIVISOR * DIVISOR / 4;
    let mut inverse = odd;
    let mut round = 0;
    while round < 4 {
        inverse = inverse.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::{Lanes, WORD_LANES};
    use crate::{Dither, Role};

    type Portable = [i16; WORD_LANES];

    fn both_axes<T: Copy, const N: usize, const M: usize>(
        values: [[T; N]; N],
        along: impl Fn([T; N]) -> [T; M],
    ) -> [[T; M]; M] {
        let columns: [[T; M]; N] = core::array::from_fn(|x| along(values.map(|row| row[x])));
        core::array::from_fn(|y| along(columns.map(|column| column[y])))
    }

    #[test]
    fn transformed_products_are_the_correlation_for_extreme_and_random_values() {
        let d = Dither::new(3, 0, 0, Role::Initial);
        for round in 0..2000 {
            let pick = |k: usize, low: i32, high: i32| match round % 4 {
                0 => [low, high][d.at(round * 64 + k) as usize % 2],
                _ => low + d.below(round * 64 + k, (high - low + 1) as u32) as i32,
            };
            let (low, high) = if round % 2 == 0 { (0, 255) } else { (-128, 127) };
            let image: [[i32; POINTS]; POINTS] =
                core::array::from_fn(|y| core::array::from_fn(|x| pick(y * POINTS + x, low, high)));
            let kernel: [[i32; TAPS]; TAPS] =
                core::array::from_fn(|y| core::array::from_fn(|x| pick(40 + y * TAPS + x, -128, 127)));
            let words = |v: i32| -> Portable { [v as i16; WORD_LANES] };
            let v = both_axes(image.map(|row| row.map(words)), input);
            let u = both_axes(kernel.map(|row| row.map(words)), weights);
            let products =
                core::array::from_fn(|y| core::array::from_fn(|x| i32::from(v[y][x][0]) * i32::from(u[y][x][0])));
            let products: [[i32; POINTS]; POINTS] = products;
            let sums = both_axes(products.map(|row| row.map(Lanes::splat)), output);
            for (y, row) in sums.into_iter().enumerate() {
                for (x, sum) in row.into_iter().enumerate() {
                    let taps = (0..9).map(|t| image[y + t / 3][x + t % 3] * kernel[t / 3][t % 3]);
                    assert_eq!(divide(sum).0[0], taps.sum::<i32>());
                }
            }
        }
    }

    #[test]
    fn narrow_tiles_are_the_correlation_along_either_axis_and_both() {
        let d = Dither::new(4, 0, 0, Role::Initial);
        for round in 0..600 {
            let words = |k: usize, low: i32, count: u32| -> Portable {
                [(low + d.below(round * 64 + k, count) as i32) as i16; WORD_LANES]
            };
            let image: [[Portable; POINTS]; POINTS] =
                core::array::from_fn(|y| core::array::from_fn(|x| words(y * POINTS + x, 0, 256)));
            let kernel: [[Portable; TAPS]; TAPS] =
                core::array::from_fn(|y| core::array::from_fn(|x| words(40 + y * TAPS + x, -128, 256)));
            let [narrow_y, narrow_x] = [round % 3 != 0, round % 3 != 1];
            let u = both_axes(kernel, weights);
            let along = |narrow: bool, v: [Portable; POINTS]| if narrow { narrow_input(v) } else { input(v) };
            let columns: [[Portable; POINTS]; POINTS] =
                core::array::from_fn(|x| along(narrow_y, image.map(|row| row[x])));
            let products: [[Lanes; POINTS]; POINTS] = core::array::from_fn(|y| {
                let row = along(narrow_x, row(&columns, y));
                core::array::from_fn(|x| {
                    // Products that are not computed may be anything.
                    let missing =
                        [(narrow_y, y), (narrow_x, x)].iter().any(|(narrow, p)| *narrow && !NARROW.contains(p));
                    Lanes::splat(if missing { 77_777 } else { i32::from(row[x][0]) * i32::from(u[y][x][0]) })
                })
            });
            let back = |narrow: bool, m: [Lanes; POINTS]| if narrow { narrow_output(m) } else { output(m) };
            let columns: [[Lanes; OUTPUTS]; POINTS] =
                core::array::from_fn(|x| back(narrow_y, products.map(|row| row[x])));
            for y in 0..if narrow_y { 2 } else { OUTPUTS } {
                let sums = back(narrow_x, row(&columns, y));
                for (x, &sum) in sums.iter().take(if narrow_x { 2 } else { OUTPUTS }).enumerate() {
                    let taps =
                        (0..9).map(|t| i32::from(image[y + t / 3][x + t % 3][0]) * i32::from(kernel[t / 3][t % 3][0]));
                    assert_eq!(divide(sum).0[0], taps.sum::<i32>());
                }
            }
        }
    }

    #[test]
    fn sums_up_to_29_bits_survive_the_division() {
        for sum in [0, 1, -1, (1 << 29) - 1, -(1 << 29)] {
            let known = Lanes::splat((DIVISOR * DIVISOR).wrapping_mul(sum as u32) as i32);
            assert_eq!(divide(known).0, [sum; 16]);
        }
    }

    #[test]
    fn transforms_stay_within_16_bits() {
        // A row's coefficients are its values at the unit vectors.
        let rows = |unit: [Portable; POINTS]| input(unit).map(|row| i32::from(row[0]));
        let mut gains = [[0i32; 2]; POINTS];
        for k in 0..POINTS {
            let unit = core::array::from_fn(|j| [i16::from(j == k); WORD_LANES]);
            for (gain, coefficient) in gains.iter_mut().zip(rows(unit)) {
                gain[usize::from(coefficient < 0)] += coefficient.abs();
            }
        }
        assert_eq!(gains.iter().map(|[p, n]| p + n).max(), Some(INPUT_GAIN));
        // Unsigned bytes: along one axis within ± 255 · the larger side, along the other multiplied by both.
        let side = gains.iter().flatten().max().unwrap();
        assert!(255 * side * INPUT_GAIN <= 32_767 && 128 * INPUT_GAIN * INPUT_GAIN <= 32_767);
        // The row at 2 has the largest coefficients, and all of one sign.
        let gain = weights([[1; WORD_LANES]; TAPS]).iter().map(|row| i32::from(row[0])).max();
        assert_eq!(gain, Some(WEIGHT_GAIN));
        assert!(gain.is_some_and(|gain| 128 * gain * gain <= 32_767));
    }
}
