//! Packing of weights for the gathering convolution: `[panel][tap][c4][NR][4]`, the last index running over four source
//! channels, as the dot-product instructions want it.

use super::{Convolution, Direction, Line};
use crate::Context;
use crate::pool::Disjoint;
use crate::vector::{LANES, Loop, Vector, first_lanes, load};
use core::ops::Range;

/// Weights to be packed, `[taps, C_in, C_out]`.
pub(crate) trait Source: Copy + Sync {
    /// Up to sixteen of them from `at` on, −128..=127; lanes from `len` on hold 0.
    fn load<V: Vector>(self, at: usize, len: usize) -> V;
}

impl Source for &[i8] {
    #[inline(always)]
    fn load<V: Vector>(self, at: usize, len: usize) -> V {
        load(self, at, len)
    }
}

/// Masters, of which the integers in use are packed (see [`crate::sgd::in_use`]).
#[derive(Clone, Copy, Debug)]
pub struct Masters<'a> {
    /// The masters.
    pub values: &'a [i32],
    /// Their fractional bits.
    pub fraction: u32,
    /// The integers in use are multiples of `2^coarse`, 0..=6, within ±127.
    pub coarse: u32,
}

impl Source for Masters<'_> {
    #[inline(always)]
    fn load<V: Vector>(self, at: usize, len: usize) -> V {
        let shift = self.fraction + self.coarse;
        // Held first: then half a unit can be added.
        let limit = ((1 << (7 - self.coarse)) - 1) << shift;
        let values: V = load(self.values, at, len);
        values.within(V::splat(-limit), V::splat(limit)).half_even(shift).shl(self.coarse)
    }
}

/// Lines that [`pack`] fills for panels of `nr` channels.
pub(crate) fn packed_lines(plan: &Convolution, nr: usize) -> usize {
    let [.., c] = plan.source();
    let [.., target] = plan.target();
    target.div_ceil(nr) * plan.taps() * c.div_ceil(4) * nr * 4 / 64
}

/// Packs the weights of some taps for panels of `nr` channels, a multiple of 16, flipping bits of each weight: 0x80 adds
/// 128.
pub(crate) fn pack<W: Source>(
    ctx: Context,
    plan: &Convolution,
    nr: usize,
    flip: u8,
    packed: &mut [Line],
    taps: Range<usize>,
    weights: W,
) {
    let ([.., c], [.., target]) = (plan.source(), plan.target());
    let (groups, panels) = (c.div_ceil(4), target.div_ceil(nr));
    // Weights are read in the order in which they lie: masters come from memory.
    let (units, unit_len) = match plan.direction {
        Direction::Forward => (groups, 4 * target),
        Direction::Transposed => (panels, nr * c),
    };
    let count = units * taps.len();
    let at_once = (TASK / unit_len).max(1);
    let packed = Disjoint::new(packed);
    ctx.pool.run(count.div_ceil(at_once), &|task, _| {
        for unit in task * at_once..count.min((task + 1) * at_once) {
            let tap = unit / units;
            let part =
                Part { packed: &packed, weights, first: tap * c * target, tap: taps.start + tap, plan, nr, flip };
            match plan.direction {
                // SAFETY: tasks have disjoint taps or groups.
                Direction::Forward => ctx.isa.run_loop(Rows(part, unit % units)),
                // SAFETY: tasks have disjoint taps or panels.
                Direction::Transposed => ctx.isa.run_loop(Columns(part, unit % units)),
            }
        }
    });
}

/// Weights that a task packs, if it is more than one group of four source channels or one panel.
const TASK: usize = 1 << 14;

/// What is packed of a tap.
struct Part<'a, W> {
    packed: &'a Disjoint<'a, Line>,
    weights: W,
    /// The tap's first weight, and its place in the panels.
    first: usize,
    tap: usize,
    plan: &'a Convolution,
    nr: usize,
    flip: u8,
}

impl<W> Part<'_, W> {
    /// The lines of some groups of four source channels in a panel.
    ///
    /// # Safety
    /// No two calls that live at the same time may have a common tap, panel and group.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn lines(&self, panel: usize, groups: Range<usize>) -> &mut [Line] {
        let all = self.plan.source()[2].div_ceil(4);
        let per_group = self.nr / LANES;
        let first = (panel * self.plan.taps() + self.tap) * all;
        // SAFETY: the caller's promise is handed on.
        unsafe { self.packed.piece((first + groups.start) * per_group, (first + groups.end) * per_group) }
    }
}

/// One group of four source channels of a tap `[source][target]`: the four rows become the bytes of words. What does not
/// exist becomes 0, which makes whatever the input holds there harmless.
struct Rows<'a, W>(Part<'a, W>, usize);

impl<W: Source> Loop for Rows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Rows(part, group) = self;
        let ([.., c], [.., target]) = (part.plan.source(), part.plan.target());
        let rows = (c - group * 4).min(4);
        let flips = V::splat((u32::from_ne_bytes([part.flip; 4]) >> (8 * (4 - rows))) as i32);
        for panel in 0..target.div_ceil(part.nr) {
            // SAFETY: this group of this tap is this task's alone.
            let lines = unsafe { part.lines(panel, group..group + 1) };
            for (line, out) in lines.iter_mut().enumerate() {
                let channel = panel * part.nr + line * LANES;
                let len = target.saturating_sub(channel).min(LANES);
                let at = part.first + group * 4 * target + channel;
                let mut words = V::splat(0);
                if len > 0 {
                    for row in 0..rows {
                        let bytes = part.weights.load::<V>(at + row * target, len).and(V::splat(0xFF));
                        words = words.add(bytes.shl(8 * row as u32));
                    }
                    words = words.xor(flips);
                }
                if len < LANES {
                    words = words.keep(first_lanes::<V>(len));
                }
                words.store_i32(out.integers_mut());
            }
        }
    }
}

/// One panel of a tap `[target][source]`: four neighbours become a word.
struct Columns<'a, W>(Part<'a, W>, usize);

impl<W: Source> Loop for Columns<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Columns(part, panel) = self;
        let ([.., c], [.., target]) = (part.plan.source(), part.plan.target());
        // SAFETY: this panel of this tap is this task's alone.
        let words = Line::sums_mut(unsafe { part.lines(panel, 0..c.div_ceil(4)) });
        let flips = u32::from_ne_bytes([part.flip; 4]);
        for k in 0..part.nr {
            let channel = panel * part.nr + k;
            if channel >= target {
                words.iter_mut().skip(k).step_by(part.nr).for_each(|word| *word = 0);
                continue;
            }
            for from in (0..c).step_by(LANES) {
                let len = (c - from).min(LANES);
                let mut bytes = [0; LANES];
                part.weights.load::<V>(part.first + channel * c + from, len).store_i8(&mut bytes);
                for (group, four) in bytes.as_chunks::<4>().0.iter().take(len.div_ceil(4)).enumerate() {
                    // Bytes behind the last source channel stay 0.
                    let unused = 8 * (4 * group + 4).saturating_sub(len) as u32;
                    let four = four.map(|byte| byte as u8);
                    words[(from / 4 + group) * part.nr + k] = (u32::from_le_bytes(four) ^ flips >> unused) as i32;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::Conv2d;
    use crate::sgd::in_use;
    use crate::testing::{Threads, random};
    use crate::{Inline, Isa};
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn each_byte_is_a_weight_or_nothing_and_masters_are_packed_as_they_are_used() {
        for (c_in, c_out) in [(1, 1), (3, 16), (5, 33), (18, 7), (35, 40)] {
            let [kernel, stride, dilation, padding] = [[3; 2], [1; 2], [1; 2], [1; 2]];
            let geometry = Conv2d { batch: 1, in_h: 4, in_w: 4, c_in, c_out, kernel, stride, dilation, padding };
            let mut masters = random(9 * c_in * c_out, 1, 26);
            masters[0] = i32::MAX;
            *masters.last_mut().unwrap() = -i32::MAX;
            for (direction, coarse, flip) in [
                (Direction::Forward, 0, 0),
                (Direction::Forward, 3, 0x80),
                (Direction::Transposed, 0, 0x80),
                (Direction::Transposed, 1, 0),
            ] {
                let plan = Convolution { geometry, direction, signed: false };
                let mut weights = vec![0; masters.len()];
                in_use(Context::reference(), &mut weights, &masters, 16, coarse);
                let ([.., c], [.., target]) = (plan.source(), plan.target());
                for (isa, nr) in Isa::available().flat_map(|isa| [16, 32].map(|nr| (isa, nr))) {
                    let ctx = Context { isa, pool: &Threads(2) };
                    let mut packed = vec![Line([99; 64]); packed_lines(&plan, nr)];
                    let source = Masters { values: &masters, fraction: 16, coarse };
                    pack(ctx, &plan, nr, flip, &mut packed, 0..9, source);
                    let bytes: Vec<u8> = packed.iter().flat_map(|line| line.0.map(|byte| byte as u8)).collect();
                    for (at, &byte) in bytes.iter().enumerate() {
                        let (lane, k, rest) = (at % 4, at / 4 % nr, at / 4 / nr);
                        let (from, tap) = (rest % c.div_ceil(4) * 4 + lane, rest / c.div_ceil(4) % 9);
                        let to = rest / c.div_ceil(4) / 9 * nr + k;
                        let place = match direction {
                            Direction::Forward => from * target + to,
                            Direction::Transposed => to * c + from,
                        };
                        let want =
                            if from < c && to < target { weights[tap * c * target + place] as u8 ^ flip } else { 0 };
                        assert_eq!(byte, want, "{} {c_in} {c_out} {direction:?} {at}", isa.name());
                    }
                    // Tap by tap, from the weights themselves.
                    let mut again = vec![Line::ZERO; packed.len()];
                    for tap in 0..9 {
                        let tap_weights = &weights[tap * c * target..][..c * target];
                        pack(Context { isa, pool: &Inline }, &plan, nr, flip, &mut again, tap..tap + 1, tap_weights);
                    }
                    assert!(packed.iter().zip(&again).all(|(a, b)| a.0 == b.0));
                }
            }
        }
    }
}
