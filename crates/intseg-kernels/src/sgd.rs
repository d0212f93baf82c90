//! The update of masters and momenta (method of DESIGN §3.7).

use crate::conv::Sum;
use crate::masters::{Master, WeightMasters, joined, parted};
use crate::pool::{Disjoint, for_each_piece};
use crate::round::{bit_length, divide_half_even, stochastic_i32, stochastic_i64, within};
use crate::{Context, Dither};
#[cfg(target_has_atomic = "64")]
use core::sync::atomic::AtomicU64;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Elements that one task handles.
const PIECE: usize = 1 << 13;

/// The largest magnitude of exact gradient sums.
#[cfg(target_has_atomic = "64")]
pub fn max_magnitude<G: Sum>(ctx: Context, values: &[G]) -> u64 {
    let largest = AtomicU64::new(0);
    ctx.pool.run(values.len().div_ceil(PIECE), &|piece, _| {
        let values = &values[piece * PIECE..values.len().min((piece + 1) * PIECE)];
        let here = ctx.isa.vectorize(
            #[inline(always)]
            || values.iter().fold(0, |max: u64, &v| max.max(v.into().unsigned_abs())),
        );
        largest.fetch_max(here, Ordering::Relaxed);
    });
    largest.into_inner()
}

/// The integers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Index of the first value, for its random bits.
    pub first: usize,
    /// The gradient is first rounded to multiples of `2^gradient_shift` (the method's 8-bit G), stochastically, and
    /// then counted in that unit.
    pub gradient_shift: u32,
    /// `lr / n` as a mantissa below 2^16.
    pub rate: u32,
    /// Right shift (left if negative) of gradient times rate into momentum units.
    pub rate_shift: i32,
    /// Learning rate times weight decay, Q40, in momentum units a master unit: 8 more fractional bits.
    pub decay_q40: u64,
    /// Momentum, Q15.
    pub momentum_q15: u32,
    /// Masters keep multiples of `2^coarse` (0 for the method's 24 bits).
    pub coarse: u32,
    /// A master beyond this magnitude counts as outside its grid.
    pub limit: i32,
}

/// Fractional bits of momentum units that the terms of an update are added in, before one rounding.
const FRACTION: u32 = 24;

/// Updates momenta and masters of weights from exact gradient sums; returns how many masters lie beyond the limit.
///
/// `v ← round(v · momentum + g · rate + w · decay)`, `w ← w − round(v / 2^8)`, both roundings stochastic. Nothing wraps:
/// momenta saturate at 31 bits, masters at [`crate::masters::LARGEST`]. The first stream rounds the gradient, the second
/// momentum and master, by different bits of one draw.
///
/// # Panics
/// When the lengths differ.
pub fn update<G: Sum>(
    ctx: Context,
    masters: WeightMasters,
    momentum: &mut [i32],
    gradient: &[G],
    u: &Update,
    dithers: [Dither; 2],
) -> usize {
    assert!(masters.steps.len() == momentum.len() && momentum.len() == gradient.len(), "lengths");
    let outside = AtomicUsize::new(0);
    let momentum = Disjoint::new(momentum);
    let rule = Rule::new(u, dithers);
    masters.for_each_piece(ctx, |from, masters| {
        let len = masters.steps.len();
        // SAFETY: the same range of indices as the piece of masters, which is this task's alone.
        let momentum = unsafe { momentum.piece(from, from + len) };
        let count = ctx.isa.vectorize(
            #[inline(always)]
            || rule.apply(from, masters.each(), momentum, &gradient[from..][..len]),
        );
        outside.fetch_add(count as usize, Ordering::Relaxed);
    });
    outside.into_inner()
}

/// As [`update`] for biases, scales and offsets, which are few: masters are 32-bit integers and saturate at 31 bits.
///
/// # Panics
/// When the lengths differ.
pub fn update_affine<G: Sum>(
    ctx: Context,
    masters: &mut [i32],
    momentum: &mut [i32],
    gradient: &[G],
    u: &Update,
    dithers: [Dither; 2],
) -> usize {
    assert!(masters.len() == momentum.len() && masters.len() == gradient.len(), "lengths");
    let rule = Rule::new(u, dithers);
    let count = ctx.isa.vectorize(
        #[inline(always)]
        || rule.apply(0, masters.iter_mut(), momentum, gradient),
    );
    count as usize
}

/// An update of a tensor, as shifts and factors.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    first: usize,
    gradient_shift: u32,
    gradient_dither: Dither,
    dither: Dither,
    constants: Constants,
}

impl Rule {
    /// With the streams that [`update`] takes.
    pub fn new(u: &Update, [gradient_dither, dither]: [Dither; 2]) -> Self {
        Rule {
            first: u.first,
            gradient_shift: u.gradient_shift,
            gradient_dither: gradient_dither.over(u.gradient_shift),
            dither: dither.over(8 + u.coarse),
            constants: Constants::new(u),
        }
    }

    /// Updates the values from number `from` on, and returns how many masters lie beyond the limit.
    #[inline(always)]
    pub fn apply<G: Sum, M: Master>(
        &self,
        from: usize,
        masters: impl Iterator<Item = M>,
        momentum: &mut [i32],
        gradient: &[G],
    ) -> u32 {
        // Copies, which stay in registers.
        let Rule { gradient_shift, gradient_dither, dither, constants, .. } = *self;
        let first = self.first + from;
        let mut count = 0;
        if gradient_shift == 0 && constants.left <= 61 - 47 && size_of::<G>() == 4 {
            // A product of 32 and 16 bits is far from its limit, and may be shifted beforehand.
            let rate = i64::from(constants.rate << constants.left);
            for (i, ((w, v), &g)) in masters.zip(momentum).zip(gradient).enumerate() {
                let at = first + i;
                let step = (g.into() * rate) >> constants.right;
                count += u32::from(update_one(w, v, step, &constants, dither.at(at)));
            }
            return count;
        }
        for (i, ((w, v), &g)) in masters.zip(momentum).zip(gradient).enumerate() {
            let at = first + i;
            let g = match gradient_shift {
                0 => g.into(),
                shift => stochastic_i64(g.into(), shift, gradient_dither.at(at)),
            };
            let step = (within(g * i64::from(constants.rate), -constants.term_limit, constants.term_limit)
                << constants.left)
                >> constants.right;
            count += u32::from(update_one(w, v, step, &constants, dither.at(at)));
        }
        count
    }
}

/// An update as shifts and factors.
#[derive(Clone, Copy)]
struct Constants {
    rate: i32,
    /// `(g · rate)`, within `±limit`, is shifted left and then right.
    left: u32,
    right: u32,
    term_limit: i64,
    decay: i32,
    /// With as many fractional bits as the sum.
    momentum: i32,
    coarse: u32,
    limit: u32,
}

impl Constants {
    fn new(u: &Update) -> Self {
        let shift = u.rate_shift - FRACTION as i32;
        // A left shift this long would be an update far beyond the grid: it saturates.
        let left = (-shift).clamp(0, 60) as u32;
        Constants {
            // Factors of 31 bits: a processor multiplies two such numbers in one instruction.
            rate: u.rate.min(u16::MAX.into()) as i32,
            left,
            right: shift.clamp(0, 63) as u32,
            term_limit: (1 << 61) >> left,
            // A product with a 31-bit master stays below 2^61.
            decay: u.decay_q40.min(1 << 30) as i32,
            momentum: (u.momentum_q15.min(1 << 15) << (FRACTION - 15)) as i32,
            coarse: u.coarse,
            limit: u.limit as u32,
        }
    }
}

#[inline(always)]
fn update_one(mut master: impl Master, v: &mut i32, step: i64, c: &Constants, bits: u32) -> bool {
    let decay = (i64::from(master.get()) * i64::from(c.decay)) >> (32 - FRACTION);
    let kept = i64::from(*v) * i64::from(c.momentum);
    let sum = kept + step + decay;
    let rounded = (sum + i64::from(bits >> (32 - FRACTION))) >> FRACTION;
    *v = (within(rounded, i32::MIN.into(), i32::MAX.into()) as i32).max(-i32::MAX);
    // The bits that the momentum left, where masters keep all of theirs.
    let by = stochastic_i32(*v, 8 + c.coarse, bits) << c.coarse;
    master.lower(by).unsigned_abs() > c.limit
}

/// Halves weights' masters and momenta, stochastically: the grid has grown by one exponent.
///
/// # Panics
/// When the lengths differ.
pub fn halve(ctx: Context, masters: WeightMasters, momentum: &mut [i32], [first, second]: [Dither; 2]) {
    assert_eq!(masters.steps.len(), momentum.len(), "lengths");
    masters.for_each_piece(ctx, |from, masters| {
        ctx.isa.vectorize(
            // A copy of the stream, which stays in registers.
            #[inline(always)]
            move || {
                for (i, (step, fraction)) in masters.each().enumerate() {
                    (*step, *fraction) = parted(stochastic_i32(joined(*step, *fraction), 1, first.at(from + i)));
                }
            },
        );
    });
    for_each_piece(ctx.pool, momentum, PIECE, |piece, momentum, _| {
        ctx.isa.vectorize(
            #[inline(always)]
            move || {
                for (i, value) in momentum.iter_mut().enumerate() {
                    *value = stochastic_i32(*value, 1, second.at(piece * PIECE + i));
                }
            },
        );
    });
}

/// Takes weights' masters into a mean of `count` of them, this one included (see [`mean`]).
///
/// # Panics
/// When the lengths differ, or `count` is 0.
pub fn average(ctx: Context, means: WeightMasters, steps: &[i8], fractions: &[i16], count: u32) {
    assert!(means.steps.len() == steps.len() && steps.len() == fractions.len(), "lengths");
    means.for_each_piece(ctx, |from, means| {
        let values = steps[from..].iter().zip(&fractions[from..]);
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for ((kept, rest), (&step, &fraction)) in means.each().zip(values) {
                    (*kept, *rest) = parted(mean(joined(*kept, *rest), joined(step, fraction), count));
                }
            },
        );
    });
}

/// The mean of `count` values, from that of all but one and the last: `mean + (value − mean) / count`, to nearest, ties
/// to even.
///
/// # Panics
/// When `count` is 0.
pub fn mean(mean: i32, value: i32, count: u32) -> i32 {
    let distance = i64::from(value) - i64::from(mean);
    // Between the two, so that it fits.
    (i64::from(mean) + divide_half_even(distance, count.into())) as i32
}

/// The bits below which a gradient of that largest magnitude is cut to keep `bits` bits and a sign.
pub fn gradient_shift(largest: u64, bits: u32) -> u32 {
    bit_length(largest).saturating_sub(bits - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Threads, random};
    use crate::{Isa, Role};
    use std::vec::Vec;

    /// The rule in integers that hold everything.
    fn naive(w: i32, v: i32, g: i64, u: &Update, bits: [u32; 2]) -> (i32, i32) {
        let held = |value: i128| value.clamp(-i128::from(i32::MAX), i32::MAX.into());
        let g = stochastic_i64(g, u.gradient_shift, bits[0]);
        let product = i128::from(g) * i128::from(u.rate);
        let shift = u.rate_shift - FRACTION as i32;
        let left = (-shift).clamp(0, 60);
        let limit = (1i128 << 61) >> left;
        let step = (product.clamp(-limit, limit) << left) >> shift.clamp(0, 63);
        let decay = (i128::from(w) * i128::from(u.decay_q40)) >> 8;
        let sum = ((i128::from(v) * i128::from(u.momentum_q15)) << 9) + step + decay;
        let v = held((sum + i128::from(bits[1] >> 8)) >> 24) as i32;
        let moved = i128::from(w) - (i128::from(stochastic_i32(v, 8 + u.coarse, bits[1])) << u.coarse);
        (held(moved) as i32, v)
    }

    #[test]
    fn an_update_is_its_definition_on_every_instruction_set_up_to_the_ends_of_what_32_bits_hold() {
        let len = 20_011;
        let ends = |values: Vec<i32>| -> Vec<i32> {
            let end = |(i, v): (usize, i32)| {
                [i32::MAX, -i32::MAX, v, v >> 9][if i % 13 == 5 { i / 13 % 2 } else { 2 + i % 2 }]
            };
            values.into_iter().enumerate().map(end).collect()
        };
        let (masters, momenta, narrow) = (ends(random(len, 1, 25)), ends(random(len, 2, 31)), ends(random(len, 3, 32)));
        let weights: (Vec<i8>, Vec<i16>) = masters.iter().map(|&master| parted(master)).unzip();
        let weight_masters: Vec<i32> = weights.0.iter().zip(&weights.1).map(|(&s, &f)| joined(s, f)).collect();
        let wide: Vec<i64> = narrow.iter().enumerate().map(|(i, &g)| i64::from(g) << (i % 14)).collect();
        let dithers = [Dither::new(1, 2, 3, Role::Gradient), Dither::new(1, 2, 3, Role::Update)];
        for (rate_shift, gradient_shift, coarse) in
            [(20, 0, 0), (40, 0, 2), (10, 0, 0), (8, 3, 5), (-30, 0, 0), (90, 7, 0)]
        {
            let u = Update {
                first: 12_345,
                gradient_shift,
                rate: 65_535,
                rate_shift,
                decay_q40: 1 << 22,
                momentum_q15: 29_491,
                coarse,
                limit: 127 << 16,
            };
            let want = |masters: &[i32], g: &dyn Fn(usize) -> i64| -> (Vec<i32>, Vec<i32>) {
                let one = |i: usize| {
                    let bits = dithers.map(|dither| dither.at(u.first + i));
                    naive(masters[i], momenta[i], g(i), &u, bits)
                };
                (0..len).map(one).unzip()
            };
            let (affine, weight) = (&masters[..], &weight_masters[..]);
            let wants = [want(affine, &|i| narrow[i].into()), want(affine, &|i| wide[i])];
            let weight_wants = [want(weight, &|i| narrow[i].into()), want(weight, &|i| wide[i])];
            for (isa, threads) in Isa::available().flat_map(|isa| [1, 3].map(|threads| (isa, threads))) {
                let ctx = Context { isa, pool: &Threads(threads) };
                for (is_wide, want) in wants.iter().enumerate() {
                    let (mut w, mut v) = (masters.clone(), momenta.clone());
                    let outside = match is_wide {
                        0 => update_affine(ctx, &mut w, &mut v, &narrow, &u, dithers),
                        _ => update_affine(ctx, &mut w, &mut v, &wide, &u, dithers),
                    };
                    assert!(w == want.0 && v == want.1, "{} {u:?}", isa.name());
                    assert_eq!(outside, w.iter().filter(|w| w.unsigned_abs() > 127 << 16).count());
                }
                for (is_wide, want) in weight_wants.iter().enumerate() {
                    let (mut steps, mut fractions) = weights.clone();
                    let (masters, mut v) =
                        (WeightMasters { steps: &mut steps, fractions: &mut fractions }, momenta.clone());
                    let outside = match is_wide {
                        0 => update(ctx, masters, &mut v, &narrow, &u, dithers),
                        _ => update(ctx, masters, &mut v, &wide, &u, dithers),
                    };
                    let held: (Vec<i8>, Vec<i16>) = want.0.iter().map(|&w| parted(w)).unzip();
                    assert!((&steps, &fractions) == (&held.0, &held.1) && v == want.1, "{} {u:?}", isa.name());
                    assert_eq!(outside, want.0.iter().filter(|w| w.unsigned_abs() > 127 << 16).count());
                }
            }
        }
    }

    #[test]
    fn the_mean_of_tensors_is_within_a_unit_of_the_exact_one() {
        let value = |step: i64, i: i64| (((step * 7 + i) * 2_654_435_761) % (1 << 31)) as i32 * [1, -1][i as usize % 2];
        // As biases are averaged, and as weights are.
        for drop in [0, 9] {
            let count = 20_000;
            let values = |step| (0..count).map(move |i| value(step, i) >> drop);
            let parts = |step| -> (Vec<i8>, Vec<i16>) { values(step).map(parted).unzip() };
            let mut means: Vec<i32> = values(0).collect();
            let mut weights = parts(0);
            for step in 1..32 {
                means
                    .iter_mut()
                    .zip(values(step))
                    .for_each(|(kept, value)| *kept = mean(*kept, value, step as u32 + 1));
                let (steps, fractions) = parts(step);
                let kept = WeightMasters { steps: &mut weights.0, fractions: &mut weights.1 };
                average(Context::reference(), kept, &steps, &fractions, step as u32 + 1);
            }
            for (i, &mean) in means.iter().enumerate() {
                let sum: i64 = (0..32).map(|step| i64::from(value(step, i as i64) >> drop)).sum();
                // Each of 31 roundings loses half a unit at most, of which later ones keep a share: 8 units in all.
                assert!((32 * i64::from(mean) - sum).abs() <= 8 * 32, "{i}: {mean} where 32 times the mean is {sum}");
                if drop > 0 {
                    assert_eq!(joined(weights.0[i], weights.1[i]), mean);
                }
            }
        }
    }
}
