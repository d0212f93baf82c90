//! Packing of weights for the gathering convolution: `[panel][tap][c4][NR][4]`, the last index running over four source
//! channels, as the dot-product instructions want it.

use super::{Convolution, Direction, Line};
use crate::bytes::as_u8;
#[cfg(target_arch = "x86_64")]
use crate::interleave::interleave_32;
use crate::interleave::{interleave, transpose_words};
use crate::pool::Disjoint;
use crate::vector::LANES;
use crate::{Context, Isa};
use core::ops::Range;
use core::slice;

/// Lines that [`pack`] fills for panels of `nr` channels.
pub(crate) fn packed_lines(plan: &Convolution, nr: usize) -> usize {
    let [.., c] = plan.source();
    let [.., target] = plan.target();
    target.div_ceil(nr) * plan.taps() * c.div_ceil(4) * nr * 4 / 64
}

/// Packs the weights of some taps for panels of `nr` channels, a multiple of 16, flipping bits of each weight: 0x80 adds
/// 128.
pub(crate) fn pack(
    ctx: Context,
    plan: &Convolution,
    nr: usize,
    flip: u8,
    packed: &mut [Line],
    taps: Range<usize>,
    weights: &[i8],
) {
    let ([.., c], [.., target]) = (plan.source(), plan.target());
    let (groups, panels) = (c.div_ceil(4), target.div_ceil(nr));
    // Weights are read in the order in which they lie: they come from memory.
    let (units, unit_len) = match plan.direction {
        Direction::Forward => (groups, 4 * target),
        Direction::Transposed => (panels, nr * c),
    };
    let count = units * taps.len();
    let at_once = (TASK / unit_len).max(1);
    let packed = Disjoint::new(packed);
    ctx.pool.run(count.div_ceil(at_once), &|task, _| {
        for unit in task * at_once..count.min((task + 1) * at_once) {
            let (tap, unit) = (unit / units, unit % units);
            let weights = &as_u8(weights)[tap * c * target..][..c * target];
            let part = Part { isa: ctx.isa, packed: &packed, tap: taps.start + tap, plan, nr, flip };
            ctx.isa.vectorize(
                #[inline(always)]
                || match plan.direction {
                    // SAFETY: tasks have disjoint taps or groups.
                    Direction::Forward => unsafe { part.rows(unit..unit + 1, &weights[unit * 4 * target..]) },
                    // SAFETY: tasks have disjoint taps or panels.
                    Direction::Transposed => unsafe { part.columns(unit, weights) },
                },
            );
        }
    });
}

/// Weights that a task packs, if it is more than one group of four source channels or one panel.
const TASK: usize = 1 << 14;

/// What is packed of a tap.
pub(super) struct Part<'a> {
    pub isa: Isa,
    pub packed: &'a Disjoint<'a, Line>,
    /// The tap's place in the panels.
    pub tap: usize,
    pub plan: &'a Convolution,
    pub nr: usize,
    pub flip: u8,
}

impl Part<'_> {
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

impl Part<'_> {
    /// Groups of four source channels of a tap, whose `weights` are `[source][target]`: four rows become the bytes of words.
    /// What does not exist becomes 0, which makes whatever the input holds there harmless.
    ///
    /// # Safety
    /// No other call for a common group may live at the same time.
    #[inline(always)]
    pub unsafe fn rows(&self, groups: Range<usize>, weights: &[u8]) {
        let ([.., c], [.., target]) = (self.plan.source(), self.plan.target());
        let per_group = self.nr / LANES;
        for panel in 0..target.div_ceil(self.nr) {
            // SAFETY: the caller's promise is handed on.
            let lines = unsafe { self.lines(panel, groups.clone()) };
            for ((group, lines), weights) in
                groups.clone().zip(lines.chunks_exact_mut(per_group)).zip(weights.chunks(4 * target))
            {
                let rows = (c - group * 4).min(4);
                let weights = &weights[..rows * target];
                #[cfg(target_arch = "x86_64")]
                if let (Isa::Avx512Vnni(_), 4, Some(out)) = (self.isa, rows, Line::bytes_mut(lines).first_chunk_mut()) {
                    let row = |row: usize| weights[row * target..][..target][panel * self.nr..].first_chunk();
                    if let [Some(a), Some(b), Some(c), Some(d)] = [row(0), row(1), row(2), row(3)] {
                        // SAFETY: an `Avx512Vnni` value exists only where AVX2 is, too.
                        unsafe { interleave_32(out, [a, b, c, d], self.flip) };
                        continue;
                    }
                }
                for (line, out) in lines.iter_mut().enumerate() {
                    let channel = panel * self.nr + line * LANES;
                    let len = target.saturating_sub(channel).min(LANES);
                    let out = Line::bytes_mut(slice::from_mut(out));
                    if rows == 4 && len == LANES {
                        let row = |row: usize| &weights[row * target + channel..][..LANES];
                        interleave(out, [row(0), row(1), row(2), row(3)], self.flip);
                        continue;
                    }
                    out.fill(0);
                    for (k, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate().take(len) {
                        let column = weights[channel + k..].iter().step_by(target);
                        four.iter_mut().zip(column).for_each(|(out, &weight)| *out = weight ^ self.flip);
                    }
                }
            }
        }
    }

    /// One panel of a tap, whose `weights` are `[target][source]`: four neighbours become a word.
    ///
    /// # Safety
    /// No other call for this panel may live at the same time.
    #[inline(always)]
    unsafe fn columns(&self, panel: usize, weights: &[u8]) {
        let ([.., c], [.., target]) = (self.plan.source(), self.plan.target());
        // SAFETY: the caller's promise is handed on.
        let words = Line::bytes_mut(unsafe { self.lines(panel, 0..c.div_ceil(4)) }).as_chunks_mut::<4>().0;
        let row = |k: usize| &weights[(panel * self.nr + k) * c..][..c];
        let channels = target.saturating_sub(panel * self.nr).min(self.nr);
        let flip = u32::from_ne_bytes([self.flip; 4]);
        // Four channels at a time: words are written beside each other, which is what takes the time.
        let together = channels / 4 * 4;
        for k in (0..together).step_by(4) {
            transpose_words(&mut words[k..], self.nr, [row(k), row(k + 1), row(k + 2), row(k + 3)], flip);
        }
        for k in together..channels {
            for (out, four) in words.chunks_exact_mut(self.nr).zip(row(k).as_chunks::<4>().0) {
                out[k] = (u32::from_ne_bytes(*four) ^ flip).to_ne_bytes();
            }
        }
        if let Some(last) = (c % 4 > 0).then(|| words.len() - self.nr) {
            for (k, word) in words[last..].iter_mut().enumerate().take(channels) {
                let rest = row(k).as_chunks::<4>().1;
                // Bytes behind the last source channel are 0.
                *word = [0; 4];
                word.iter_mut().zip(rest).for_each(|(out, &weight)| *out = weight ^ self.flip);
            }
        }
        for unused in words.chunks_exact_mut(self.nr) {
            unused[channels..].fill([0; 4]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Inline;
    use crate::conv::Conv2d;
    use crate::testing::{Threads, random};
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn each_byte_is_a_weight_or_nothing() {
        for (c_in, c_out) in [(1, 1), (3, 16), (5, 33), (18, 7), (35, 40)] {
            let [kernel, stride, dilation, padding] = [[3; 2], [1; 2], [1; 2], [1; 2]];
            let geometry = Conv2d { batch: 1, in_h: 4, in_w: 4, c_in, c_out, kernel, stride, dilation, padding };
            let weights: Vec<i8> = random(9 * c_in * c_out, 1, 8).into_iter().map(|weight| weight as i8).collect();
            for (direction, flip) in [
                (Direction::Forward, 0),
                (Direction::Forward, 0x80),
                (Direction::Transposed, 0x80),
                (Direction::Transposed, 0),
            ] {
                let plan = Convolution { geometry, direction, signed: false };
                let ([.., c], [.., target]) = (plan.source(), plan.target());
                for (isa, nr) in Isa::available().flat_map(|isa| [16, 32].map(|nr| (isa, nr))) {
                    let ctx = Context { isa, pool: &Threads(2) };
                    let mut packed = vec![Line([99; 64]); packed_lines(&plan, nr)];
                    pack(ctx, &plan, nr, flip, &mut packed, 0..9, &weights);
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
                    // Tap by tap.
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
