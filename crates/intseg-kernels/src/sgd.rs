//! The update of masters and momenta (method of DESIGN §3.7).

use crate::conv::Sum;
use crate::pool::{Disjoint, for_each_piece};
use crate::round::{bit_length, divide_half_even, half_even_i32, stochastic_i32, stochastic_i64, within};
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
        let here = values.iter().fold(0, |max: u64, &v| max.max(v.into().unsigned_abs()));
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

/// Updates momenta and masters from exact gradient sums; returns how many masters lie beyond the limit.
///
/// `v ← round(v · momentum + g · rate + w · decay)`, `w ← w − round(v / 2^8)`, both roundings stochastic. Nothing wraps:
/// momenta and masters saturate at 31 bits. The first stream rounds the gradient, the second momentum and master.
///
/// # Panics
/// When the lengths differ.
pub fn update<G: Sum>(
    ctx: Context,
    master: &mut [i32],
    momentum: &mut [i32],
    gradient: &[G],
    u: &Update,
    dithers: [Dither; 2],
) -> usize {
    assert!(master.len() == momentum.len() && master.len() == gradient.len(), "lengths");
    let outside = AtomicUsize::new(0);
    let momentum = Disjoint::new(momentum);
    let rule = Rule::new(u, dithers);
    for_each_piece(ctx.pool, master, PIECE, |piece, master, _| {
        let from = piece * PIECE;
        // SAFETY: the same range of indices as the piece of masters, which is this task's alone.
        let momentum = unsafe { momentum.piece(from, from + master.len()) };
        let gradient = &gradient[from..][..master.len()];
        let count = ctx.isa.vectorize(
            #[inline(always)]
            || rule.apply(from, master, momentum, gradient),
        );
        outside.fetch_add(count as usize, Ordering::Relaxed);
    });
    outside.into_inner()
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
    pub fn apply<G: Sum>(&self, from: usize, master: &mut [i32], momentum: &mut [i32], gradient: &[G]) -> u32 {
        // Copies, which stay in registers.
        let Rule { gradient_shift, gradient_dither, dither, constants, .. } = *self;
        let first = self.first + from;
        let mut count = 0;
        if gradient_shift == 0 && constants.left <= 61 - 47 && size_of::<G>() == 4 {
            // A product of 32 and 16 bits is far from its limit, and may be shifted beforehand.
            let rate = constants.rate << constants.left;
            for (i, ((w, v), &g)) in master.iter_mut().zip(momentum).zip(gradient).enumerate() {
                let at = 3 * (first + i);
                let step = (g.into() * rate) >> constants.right;
                count += u32::from(update_one(w, v, step, &constants, [dither.at(at + 1), dither.at(at + 2)]));
            }
            return count;
        }
        for (i, ((w, v), &g)) in master.iter_mut().zip(momentum).zip(gradient).enumerate() {
            let at = 3 * (first + i);
            let g = match gradient_shift {
                0 => g.into(),
                shift => stochastic_i64(g.into(), shift, gradient_dither.at(at)),
            };
            let step = (within(g * constants.rate, -constants.term_limit, constants.term_limit) << constants.left)
                >> constants.right;
            count += u32::from(update_one(w, v, step, &constants, [dither.at(at + 1), dither.at(at + 2)]));
        }
        count
    }
}

/// An update as shifts and factors.
#[derive(Clone, Copy)]
struct Constants {
    rate: i64,
    /// `(g · rate)`, within `±limit`, is shifted left and then right.
    left: u32,
    right: u32,
    term_limit: i64,
    decay: i64,
    /// With as many fractional bits as the sum.
    momentum: i64,
    coarse: u32,
    limit: u32,
}

impl Constants {
    fn new(u: &Update) -> Self {
        let shift = u.rate_shift - FRACTION as i32;
        // A left shift this long would be an update far beyond the grid: it saturates.
        let left = (-shift).clamp(0, 60) as u32;
        Constants {
            rate: u.rate.into(),
            left,
            right: shift.clamp(0, 63) as u32,
            term_limit: (1 << 61) >> left,
            // A product with a 31-bit master stays below 2^61.
            decay: u.decay_q40.min(1 << 30) as i64,
            momentum: i64::from(u.momentum_q15) << (FRACTION - 15),
            coarse: u.coarse,
            limit: u.limit as u32,
        }
    }
}

#[inline(always)]
fn update_one(w: &mut i32, v: &mut i32, step: i64, c: &Constants, bits: [u32; 2]) -> bool {
    let decay = (i64::from(*w) * c.decay) >> (32 - FRACTION);
    let kept = i64::from(*v) * c.momentum;
    let sum = kept + step + decay;
    let rounded = (sum + i64::from(bits[0] >> (32 - FRACTION))) >> FRACTION;
    *v = (within(rounded, i32::MIN.into(), i32::MAX.into()) as i32).max(-i32::MAX);
    // At most 2^24, so that 32 bits wrap once at most, and show it by their sign.
    let by = stochastic_i32(*v, 8 + c.coarse, bits[1]) << c.coarse;
    let moved = w.wrapping_sub(by);
    let wrapped = ((*w ^ by) & (*w ^ moved)) < 0;
    let end = (*w >> 31) ^ i32::MAX;
    *w = if wrapped { end } else { moved }.max(-i32::MAX);
    w.unsigned_abs() > c.limit
}

/// The 8-bit integers in use: masters of `fraction` fractional bits to nearest, on a grid of `2^coarse` over ±127.
///
/// # Panics
/// When the lengths differ.
pub fn in_use(ctx: Context, out: &mut [i8], master: &[i32], fraction: u32, coarse: u32) {
    assert_eq!(out.len(), master.len(), "lengths");
    let limit = (1 << (7 - coarse)) - 1;
    for_each_piece(ctx.pool, out, 8 * PIECE, |piece, out, _| {
        let master = &master[piece * 8 * PIECE..][..out.len()];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (out, &master) in out.iter_mut().zip(master) {
                    *out = (within(half_even_i32(master, fraction + coarse), -limit, limit) << coarse) as i8;
                }
            },
        );
    });
}

/// Halves masters or momenta, stochastically: the grid has grown by one exponent.
pub fn halve(ctx: Context, values: &mut [i32], dither: Dither) {
    for_each_piece(ctx.pool, values, PIECE, |piece, values, _| {
        for (i, value) in values.iter_mut().enumerate() {
            *value = stochastic_i32(*value, 1, dither.at(piece * PIECE + i));
        }
    });
}

/// Takes `values` into a mean of `count` tensors, this one included: `mean ← mean + (value − mean) / count`, to nearest,
/// ties to even.
///
/// # Panics
/// When the lengths differ, or `count` is 0.
pub fn average(ctx: Context, mean: &mut [i32], values: &[i32], count: u32) {
    assert!(mean.len() == values.len() && count > 0, "lengths, or no tensor");
    for_each_piece(ctx.pool, mean, PIECE, |piece, mean, _| {
        for (mean, &value) in mean.iter_mut().zip(&values[piece * PIECE..]) {
            let distance = i64::from(value) - i64::from(*mean);
            // Between the two, so that it fits.
            *mean = (i64::from(*mean) + divide_half_even(distance, count.into())) as i32;
        }
    });
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
    fn naive(w: i32, v: i32, g: i64, u: &Update, bits: [u32; 3]) -> (i32, i32) {
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
        let moved = i128::from(w) - (i128::from(stochastic_i32(v, 8 + u.coarse, bits[2])) << u.coarse);
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
            let want = |g: &dyn Fn(usize) -> i64| -> (Vec<i32>, Vec<i32>) {
                let one = |i: usize| {
                    let at = 3 * (u.first + i);
                    let bits = [dithers[0].at(at), dithers[1].at(at + 1), dithers[1].at(at + 2)];
                    naive(masters[i], momenta[i], g(i), &u, bits)
                };
                (0..len).map(one).unzip()
            };
            let wants = [want(&|i| narrow[i].into()), want(&|i| wide[i])];
            for (isa, threads) in Isa::available().flat_map(|isa| [1, 3].map(|threads| (isa, threads))) {
                let ctx = Context { isa, pool: &Threads(threads) };
                for (is_wide, want) in wants.iter().enumerate() {
                    let (mut w, mut v) = (masters.clone(), momenta.clone());
                    let outside = match is_wide {
                        0 => update(ctx, &mut w, &mut v, &narrow, &u, dithers),
                        _ => update(ctx, &mut w, &mut v, &wide, &u, dithers),
                    };
                    assert!(w == want.0 && v == want.1, "{} {u:?}", isa.name());
                    assert_eq!(outside, w.iter().filter(|w| w.unsigned_abs() > 127 << 16).count());
                }
            }
        }
    }

    #[test]
    fn the_mean_of_tensors_is_within_a_unit_of_the_exact_one() {
        let value = |step: i64, i: i64| (((step * 7 + i) * 2_654_435_761) % (1 << 31)) as i32 * [1, -1][i as usize % 2];
        let count = 20_000;
        let mut mean: Vec<i32> = (0..count).map(|i| value(0, i)).collect();
        for step in 1..32 {
            let values: Vec<i32> = (0..count).map(|i| value(step, i)).collect();
            average(Context::reference(), &mut mean, &values, step as u32 + 1);
        }
        for (i, &mean) in mean.iter().enumerate() {
            let sum: i64 = (0..32).map(|step| i64::from(value(step, i as i64))).sum();
            // Each of 31 roundings loses half a unit at most, of which later ones keep a share: 8 units in all.
            assert!((32 * i64::from(mean) - sum).abs() <= 8 * 32, "{i}: {mean} where 32 times the mean is {sum}");
        }
    }
}
