//! Masters of weights: the integers that convolutions read, and the fractional bits below them.

use crate::Context;
use crate::pool::{Disjoint, for_each_piece};
use crate::round::{half_even_i32, within};

/// Elements that one task handles.
const PIECE: usize = 1 << 13;

/// Fractional bits of a weight's master below the step of the integers in use.
pub const FRACTION_BITS: u32 = 16;
/// The largest magnitude of a weight's master: it rounds to 127 steps.
pub const LARGEST: i32 = (128 << FRACTION_BITS) - (1 << (FRACTION_BITS - 1)) - 1;

/// Masters of weights in the method's 24 bits: `step · 2^16 + fraction`, within ±[`LARGEST`]. The steps are masters to
/// nearest, ties up, and what convolutions read.
pub struct WeightMasters<'a> {
    /// Whole steps, −127..=127.
    pub steps: &'a mut [i8],
    /// What they leave.
    pub fractions: &'a mut [i16],
}

impl<'a> WeightMasters<'a> {
    /// One after the other.
    #[inline(always)]
    pub(crate) fn each(self) -> impl Iterator<Item = (&'a mut i8, &'a mut i16)> {
        self.steps.iter_mut().zip(self.fractions)
    }

    /// Calls `task` with the first index of every piece, and the piece.
    pub(crate) fn for_each_piece(self, ctx: Context, task: impl Fn(usize, WeightMasters) + Sync) {
        assert_eq!(self.steps.len(), self.fractions.len(), "lengths");
        let fractions = Disjoint::new(self.fractions);
        for_each_piece(ctx.pool, self.steps, PIECE, |piece, steps, _| {
            let from = piece * PIECE;
            // SAFETY: the same range of indices as the piece of steps, which is this task's alone.
            let fractions = unsafe { fractions.piece(from, from + steps.len()) };
            task(from, WeightMasters { steps, fractions });
        });
    }
}

/// A weight's master from its whole steps and what they leave.
#[inline(always)]
pub fn joined(step: i8, fraction: i16) -> i32 {
    (i32::from(step) << FRACTION_BITS) + i32::from(fraction)
}

/// A weight's master as whole steps, to nearest and ties up, and what they leave; held within ±[`LARGEST`].
#[inline(always)]
pub fn parted(master: i32) -> (i8, i16) {
    let held = within(master, -LARGEST, LARGEST);
    (((held + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS) as i8, held as i16)
}

/// A master that an update changes.
pub(crate) trait Master {
    fn get(&self) -> i32;
    /// Lowers it by at most 2^24, as far as it can be held, and returns what it is then.
    fn lower(&mut self, by: i32) -> i32;
}

/// Of a bias, a scale or an offset.
impl Master for &mut i32 {
    #[inline(always)]
    fn get(&self) -> i32 {
        **self
    }

    #[inline(always)]
    fn lower(&mut self, by: i32) -> i32 {
        // 32 bits wrap once at most, and show it by their sign.
        let moved = self.wrapping_sub(by);
        let wrapped = ((**self ^ by) & (**self ^ moved)) < 0;
        let end = (**self >> 31) ^ i32::MAX;
        **self = if wrapped { end } else { moved }.max(-i32::MAX);
        **self
    }
}

/// Of a weight.
impl Master for (&mut i8, &mut i16) {
    #[inline(always)]
    fn get(&self) -> i32 {
        joined(*self.0, *self.1)
    }

    #[inline(always)]
    fn lower(&mut self, by: i32) -> i32 {
        let moved = self.get() - by;
        (*self.0, *self.1) = parted(moved);
        moved
    }
}

/// Weights on a grid of `2^coarse` over ±127: masters to nearest, ties to even.
///
/// # Panics
/// When the lengths differ.
pub fn coarse_weights(ctx: Context, out: &mut [i8], steps: &[i8], fractions: &[i16], coarse: u32) {
    assert!(out.len() == steps.len() && out.len() == fractions.len(), "lengths");
    let limit = (1 << (7 - coarse)) - 1;
    for_each_piece(ctx.pool, out, PIECE, |piece, out, _| {
        let parts = steps[piece * PIECE..].iter().zip(&fractions[piece * PIECE..]);
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (out, (&step, &fraction)) in out.iter_mut().zip(parts) {
                    let rounded = half_even_i32(joined(step, fraction), FRACTION_BITS + coarse);
                    *out = (within(rounded, -limit, limit) << coarse) as i8;
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::testing::Threads;
    use std::vec::Vec;

    #[test]
    fn a_master_of_24_bits_is_the_nearest_step_and_what_it_leaves() {
        for master in
            (-(130 << 16)..130 << 16).step_by(37).chain([LARGEST, -LARGEST, i32::MAX, -i32::MAX, 1 << 15, -(1 << 15)])
        {
            let (step, fraction) = parted(master);
            let held = master.clamp(-LARGEST, LARGEST);
            assert_eq!(joined(step, fraction), held);
            assert_eq!(i32::from(step), (held + (1 << 15)).div_euclid(1 << 16));
            assert!(step.unsigned_abs() <= 127);
        }
    }

    #[test]
    fn weights_on_a_coarser_grid_are_masters_to_nearest_within_127() {
        let masters: Vec<i32> = (-LARGEST..=LARGEST).step_by(999).chain([LARGEST, 3 << 15, -(3 << 15)]).collect();
        let (steps, fractions): (Vec<i8>, Vec<i16>) = masters.iter().map(|&master| parted(master)).unzip();
        for (coarse, isa) in [1, 3, 6].into_iter().flat_map(|coarse| Isa::available().map(move |isa| (coarse, isa))) {
            let mut out = std::vec![0; masters.len()];
            coarse_weights(Context { isa, pool: &Threads(2) }, &mut out, &steps, &fractions, coarse);
            let limit = (1 << (7 - coarse)) - 1;
            for (&got, &master) in out.iter().zip(&masters) {
                let unit = 1 << (16 + coarse);
                let want = half_even_i32(master, 16 + coarse).clamp(-limit, limit);
                assert_eq!(i32::from(got), want << coarse);
                assert!(2 * (want * unit - master).abs() <= unit || want.abs() == limit);
            }
        }
    }
}
