//! Convolutions whose weights are too many to hold: those of the last taps are read while it runs, a few taps at a time.
//!
//! A convolution is the sum of what its taps contribute. Weights that are used once an image gain nothing from lying in
//! memory but the copy out of the system's cache of the file, and packing on the way.

use super::pack::Part;
use super::store::{Accumulators, Last, Partial, Requantized};
use super::{Conv2d, Convolution, Direction, Input, Line, Output, Requantizer, rows};
use crate::bytes::as_i8_mut;
use crate::pool::Disjoint;
use crate::{Context, Isa};
use core::ops::Range;

/// Bytes of packed weights that are read before they are used, at least one tap: they stay in the last-level cache.
const CHUNK: usize = if cfg!(test) { 12 << 10 } else { 8 << 20 };
/// Bytes that a thread reads at once, at least four rows: they stay in its second-level cache until they are packed.
const PIECE: usize = if cfg!(test) { 1 << 10 } else { 128 << 10 };
/// Groups of four rows that are packed at once: rows of a few thousand channels all fall into the same sets of the
/// first-level cache, which keeps this many of their lines until the panel beside it needs them.
const GROUPS: usize = 2;

/// The weights of a convolution that does not hold all of them.
#[derive(Clone, Copy)]
pub struct Streamed<'a> {
    /// How many taps' weights are held, the first ones.
    pub held: usize,
    /// Those, as [`Convolution::part`] of so many taps packs them.
    pub packed: &'a [Line],
    /// Reads weights as stored, `[KH, KW, C_in, C_out]` and −127..=127: the number of the first, and where they go.
    pub read: &'a (dyn Fn(usize, &mut [i8]) + Sync),
}

impl Convolution {
    /// Whether it can run with weights that it does not hold, whatever the image's size.
    pub fn streams(&self, isa: Isa) -> bool {
        // Few channels and windows of 3 × 3 have kernels of their own, which want all weights.
        let Conv2d { kernel, c_in, .. } = self.geometry;
        let own = c_in <= 3 || kernel == [3; 2] || rows::fits(self);
        isa != Isa::Scalar && self.direction == Direction::Forward && !own
    }

    /// How many of its taps' packed weights `limit` bytes hold; all where it does not stream.
    pub fn held_taps(&self, isa: Isa, limit: usize) -> usize {
        if self.streams(isa) { self.taps().min(limit / self.tap_bytes(isa)) } else { self.taps() }
    }

    /// Bytes of a tap's packed weights; 1 where none are packed.
    fn tap_bytes(&self, isa: Isa) -> usize {
        (self.part(1).packed_len(isa) * size_of::<Line>()).max(1)
    }

    /// `taps` of its taps, as packing weights knows them.
    #[must_use]
    pub fn part(&self, taps: usize) -> Convolution {
        Convolution { geometry: Conv2d { kernel: [taps, 1], ..self.geometry }, ..*self }
    }

    /// How many i32 of scratch a run takes whose weights are not all held.
    pub fn streamed_scratch_len(&self, ctx: Context) -> usize {
        let sums = self.geometry.output_len();
        let chunk = self.part(self.chunk(ctx.isa)).packed_len(ctx.isa);
        self.scratch_len(ctx) + sums + Line::words(ctx.pool.threads() * self.piece_lines() + chunk)
    }

    /// Taps that are read before they are used.
    fn chunk(&self, isa: Isa) -> usize {
        (CHUNK / self.tap_bytes(isa)).clamp(1, self.taps())
    }

    /// Source channels whose weights are read at once.
    fn piece_rows(&self) -> usize {
        (PIECE / self.geometry.c_out / 4).max(1) * 4
    }

    /// Lines that those take.
    fn piece_lines(&self) -> usize {
        (self.piece_rows() * self.geometry.c_out).div_ceil(size_of::<Line>())
    }

    /// As [`Convolution::run_requantized`], with weights of which some are read on the way.
    ///
    /// # Panics
    /// As [`Convolution::run_requantized`], and when [`Convolution::streams`] says that it cannot.
    pub fn run_streamed(
        &self,
        ctx: Context,
        out: Output,
        input: Input,
        weights: Streamed,
        requantizer: Requantizer,
        scratch: &mut [i32],
    ) {
        let Streamed { held, packed, read } = weights;
        assert!(self.streams(ctx.isa) && held <= self.taps(), "a convolution whose weights can be streamed");
        assert_eq!(packed.len(), self.part(held).packed_len(ctx.isa), "packed weights");
        assert!(scratch.len() >= self.streamed_scratch_len(ctx), "scratch");
        let (prepared, scratch) = scratch.split_at_mut(self.prepared_len(ctx));
        let store = self.requantized(ctx, out, requantizer, prepared);
        let (own, scratch) = scratch.split_at_mut(self.sums_scratch_len(ctx));
        let (sums, scratch) = scratch.split_at_mut(self.geometry.output_len());
        let (pieces, chunk) = Line::in_words(scratch).split_at_mut(ctx.pool.threads() * self.piece_lines());
        if held > 0 {
            self.add(ctx, &store, sums, 0..held, input, packed, own);
        }
        let at_once = self.chunk(ctx.isa);
        for first in (held..self.taps()).step_by(at_once) {
            let taps = first..self.taps().min(first + at_once);
            let packed = &mut chunk[..self.part(taps.len()).packed_len(ctx.isa)];
            self.fetch(ctx, taps.clone(), packed, pieces, read);
            self.add(ctx, &store, sums, taps, input, packed, own);
        }
    }

    /// Adds what some taps contribute, whose weights alone `packed` has: the first ones begin the sums, and those of the
    /// last ones go on to `store`.
    #[allow(clippy::too_many_arguments, reason = "a convolution's operands, and which of its taps")]
    fn add(
        &self,
        ctx: Context,
        store: &Requantized,
        sums: &mut [i32],
        taps: Range<usize>,
        input: Input,
        packed: &[Line],
        scratch: &mut [i32],
    ) {
        let channels = self.geometry.c_out;
        #[cfg(target_arch = "x86_64")]
        match (taps.start == 0, taps.end == self.taps()) {
            (true, true) => self.gather(ctx, taps, store, input, packed, scratch),
            (true, false) => self.gather(ctx, taps, &Accumulators::new(sums, channels), input, packed, scratch),
            (false, false) => {
                let store = Partial(Accumulators::new(sums, channels));
                self.gather(ctx, taps, &store, input, packed, scratch);
            }
            (false, true) => self.gather(ctx, taps, &Last { sums, channels, store }, input, packed, scratch),
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (ctx, store, sums, input, packed, scratch, channels);
            unreachable!("portable code holds the weights of {taps:?}");
        }
    }

    /// Reads and packs the weights of some taps.
    fn fetch(
        &self,
        ctx: Context,
        taps: Range<usize>,
        packed: &mut [Line],
        pieces: &mut [Line],
        read: &(dyn Fn(usize, &mut [i8]) + Sync),
    ) {
        let Conv2d { c_in, c_out, .. } = self.geometry;
        let (part, rows) = (self.part(taps.len()), self.piece_rows());
        let (packed, pieces) = (Disjoint::new(packed), Disjoint::new(pieces));
        let per_tap = c_in.div_ceil(rows);
        ctx.pool.run(taps.len() * per_tap, &|task, worker| {
            let (tap, first) = (task / per_tap, task % per_tap * rows);
            let last = c_in.min(first + rows);
            // SAFETY: each worker has its own piece, and runs one task at a time.
            let piece = unsafe { pieces.piece(worker * self.piece_lines(), (worker + 1) * self.piece_lines()) };
            let piece = &mut Line::bytes_mut(piece)[..(last - first) * c_out];
            read(((taps.start + tap) * c_in + first) * c_out, as_i8_mut(piece));
            let (nr, flip) = (part.panel_width(ctx.isa), part.flip(ctx.isa));
            let part = Part { isa: ctx.isa, packed: &packed, tap, plan: &part, nr, flip };
            ctx.isa.vectorize(
                #[inline(always)]
                || {
                    for (group, piece) in (first / 4..).step_by(GROUPS).zip(piece.chunks(4 * GROUPS * c_out)) {
                        // SAFETY: tasks have disjoint taps or groups.
                        unsafe { part.rows(group..last.div_ceil(4).min(group + GROUPS), piece) };
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::{OutputData, Weights};
    use crate::testing::{Threads, geometry, random};
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn weights_that_are_read_on_the_way_give_the_same_results(
            geometry in geometry(1..3, 1..12, (4..70usize, 1..90usize), [9, 2, 2, 5]), signed: bool, share in 0..12usize, threads in 1..4usize,
        ) {
            let plan = Convolution { geometry, direction: Direction::Forward, signed };
            let held = (plan.taps() * share / 10).min(plan.taps());
            let weights: Vec<i8> = random(geometry.weights_len(), 1, 7).into_iter().map(|v| v as i8).collect();
            let bytes: Vec<u8> = random(geometry.input_len(), 2, 8).into_iter().map(|v| v as u8).collect();
            let input = if signed { Input::I8(crate::bytes::as_i8(&bytes)) } else { Input::U8(&bytes) };
            let c_out = geometry.c_out;
            let (multiplier, bias, shift) = (vec![77_777; c_out], vec![-123_456; c_out], vec![24; c_out]);
            let requantizer = Requantizer { multiplier: &multiplier, bias: &bias, shift: &shift, low: 0, high: 255 };
            for isa in Isa::available().filter(|&isa| plan.streams(isa)) {
                let ctx = Context { isa, pool: &Threads(threads) };
                let output = |data| Output { data: OutputData::U8(data), stride: c_out, offset: 0, addend: None };
                let [mut want, mut got] = [1, 2].map(|value| vec![value; geometry.output_len()]);
                let mut packed = vec![Line::ZERO; plan.packed_len(isa)];
                plan.pack(ctx, &mut packed, &weights);
                let mut scratch = vec![-1; plan.scratch_len(ctx)];
                let all = Weights { raw: &weights, packed: &packed };
                plan.run_requantized(ctx, output(&mut want), input, all, requantizer, &mut scratch);
                let part = plan.part(held);
                let mut packed = vec![Line::ZERO; part.packed_len(isa)];
                part.pack(ctx, &mut packed, &weights[..held * geometry.c_in * c_out]);
                let read = |first: usize, out: &mut [i8]| out.copy_from_slice(&weights[first..first + out.len()]);
                let streamed = Streamed { held, packed: &packed, read: &read };
                let mut scratch = vec![-1; plan.streamed_scratch_len(ctx)];
                plan.run_streamed(ctx, output(&mut got), input, streamed, requantizer, &mut scratch);
                prop_assert!(got == want, "{} x{threads}, {held} of {} taps held", isa.name(), plan.taps());
            }
        }
    }

    #[test]
    fn no_more_taps_are_held_than_the_limit_says() {
        let [kernel, ones, zeros] = [[7; 2], [1; 2], [0; 2]];
        let geometry = Conv2d {
            batch: 1,
            in_h: 8,
            in_w: 8,
            c_in: 64,
            c_out: 96,
            kernel,
            stride: ones,
            dilation: ones,
            padding: zeros,
        };
        let plan = Convolution { geometry, direction: Direction::Forward, signed: false };
        for isa in Isa::available() {
            let all = if isa == Isa::Scalar { [49; 3] } else { [0, 10, 49] };
            assert_eq!([0, 10 * 64 * 96 + 99, 1 << 30].map(|limit| plan.held_taps(isa, limit)), all, "{}", isa.name());
        }
        let small = Convolution { geometry: Conv2d { kernel: [3; 2], ..geometry }, ..plan };
        assert!(Isa::available().all(|isa| !small.streams(isa) && small.held_taps(isa, 0) == 9));
    }
}
