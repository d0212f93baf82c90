//! Convolutions of images: few channels, a whole row of the kernel at once.
//!
//! The pixels that a kernel's row covers lie side by side in memory. So a kernel of `[KH, KW]` taps of `C` channels is one
//! of `[KH, 1]` taps of `KW · C` channels, and dot products of four bytes are full where three channels would leave a
//! quarter of each empty. For that the input is copied with its padding. A signed input is copied with 128 added to
//! every byte, padding included; each sum then holds 128 times the sum of its channel's weights, which it starts without.

use super::gather::{MAX_MR, MAX_TAPS, MAX_TILE, MicroKernel, Reads, Sums, Tap};
use super::store::Store;
use super::{Convolution, Direction, Input, Line};
use crate::Context;
use crate::bytes::as_u8;
use crate::pool::for_each_piece;
use crate::vector::LANES;
use core::ops::Range;

/// Rows of output pixels of a task.
const ROWS: usize = 4;
/// Rows that are copied at once.
const COPIED: usize = 32;

/// Whether a convolution runs this way. Its weights are packed for it.
pub(crate) fn fits(plan: &Convolution) -> bool {
    let ([.., c], g) = (plan.source(), &plan.geometry);
    plan.direction == Direction::Forward
        && (1..=3).contains(&c)
        && g.dilation[1] == 1
        && g.kernel[1] > 1
        && g.kernel[0] <= MAX_TAPS
}

/// Groups of four bytes of a kernel's row.
fn groups(plan: &Convolution) -> usize {
    (plan.geometry.kernel[1] * plan.geometry.c_in).div_ceil(4)
}

/// Lines of a panel of `nr` channels.
fn panel_lines(plan: &Convolution, nr: usize) -> usize {
    plan.geometry.kernel[0] * groups(plan) * nr * 4 / 64
}

/// Lines that [`pack`] fills for panels of `nr` channels.
pub(crate) fn packed_lines(plan: &Convolution, nr: usize) -> usize {
    plan.geometry.c_out.div_ceil(nr) * panel_lines(plan, nr)
}

/// Packs the weights of some taps: `[panel][kernel row][group][NR][4]`, the last index running over four bytes of the row.
pub(crate) fn pack(plan: &Convolution, nr: usize, packed: &mut [Line], taps: Range<usize>, weights: &[i8]) {
    let ([.., target], [_, kw], c) = (plan.target(), plan.geometry.kernel, plan.geometry.c_in);
    let groups = groups(plan);
    for (panel, packed) in packed.chunks_exact_mut(panel_lines(plan, nr)).enumerate() {
        let bytes = Line::bytes_mut(packed);
        for (index, tap) in taps.clone().enumerate() {
            let row = &mut bytes[tap / kw * groups * nr * 4..][..groups * nr * 4];
            let mut write = |at: usize, from: usize, channels: [i8; LANES]| {
                let fours = row[(at / 4 * nr + from) * 4..].as_chunks_mut::<4>().0;
                fours.iter_mut().zip(channels).for_each(|(four, weight)| four[at % 4] = weight as u8);
            };
            for from in (0..nr).step_by(LANES) {
                let channel = panel * nr + from;
                let len = target.saturating_sub(channel).min(LANES);
                for lane in 0..c {
                    let mut channels = [0; LANES];
                    if len > 0 {
                        let at = (index * c + lane) * target + channel;
                        channels[..len].copy_from_slice(&weights[at..at + len]);
                    }
                    write(tap % kw * c + lane, from, channels);
                }
                if tap % kw == kw - 1 {
                    // What lies behind the row's last pixel does not count.
                    (kw * c..groups * 4).for_each(|at| write(at, from, [0; LANES]));
                }
            }
        }
    }
}

/// The padded copy: bytes of a row, and of all rows with what is read behind the last.
fn copy_size(plan: &Convolution) -> [usize; 2] {
    let (g, [h, w, c]) = (&plan.geometry, plan.source());
    let row = (w + 2 * g.padding[1]) * c;
    [row, g.batch * (h + 2 * g.padding[0]) * row + 4]
}

/// Scratch: the padded copy, and what each channel's sums start from.
pub(crate) fn scratch_len(plan: &Convolution, nr: usize) -> usize {
    let [_, bytes] = copy_size(plan);
    Line::words(bytes.div_ceil(64) + plan.geometry.c_out.next_multiple_of(nr) / 16)
}

/// Runs a convolution that [`fits`] with a kernel for unsigned input.
pub(crate) fn run<K: MicroKernel, S: Store>(
    kernel: K,
    plan: &Convolution,
    ctx: Context,
    store: &S,
    input: Input,
    packed: &[Line],
    scratch: &mut [i32],
) {
    let (g, [h, w, c], [out_h, out_w, target]) = (plan.geometry, plan.source(), plan.target());
    let ([row, bytes], groups) = (copy_size(plan), groups(plan));
    let (copy, starts) = Line::in_words(scratch).split_at_mut(bytes.div_ceil(64));
    let copy = &mut Line::bytes_mut(copy)[..bytes];
    let (input, flip) = match input {
        Input::U8(data) => (data, 0),
        Input::I8(data) => (as_u8(data), 0x80),
    };
    let [top, left] = g.padding;
    for_each_piece(ctx.pool, copy, COPIED * row, |piece, copy, _| {
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (y, to) in copy.chunks_mut(row).enumerate() {
                    let (image, y) = ((piece * COPIED + y) / (h + 2 * top), (piece * COPIED + y) % (h + 2 * top));
                    to.fill(flip);
                    if image < g.batch && (top..top + h).contains(&y) {
                        let from = &input[(image * h + y - top) * w * c..][..w * c];
                        to[left * c..][..w * c].iter_mut().zip(from).for_each(|(to, &from)| *to = from ^ flip);
                    }
                }
            },
        );
    });
    let panel_lines = panel_lines(plan, K::NR);
    let starts = &mut Line::sums_mut(starts)[..target.next_multiple_of(K::NR)];
    if flip != 0 {
        for (starts, panel) in starts.chunks_exact_mut(K::NR).zip(packed.chunks_exact(panel_lines)) {
            starts.fill(0);
            for (k, four) in panel.iter().flat_map(|line| line.0.as_chunks::<4>().0).enumerate() {
                starts[k % K::NR] -= four.iter().map(|&weight| 128 * i32::from(weight)).sum::<i32>();
            }
        }
    }
    let (copy, starts): (&[u8], &[i32]) = (copy, starts);
    let mut taps = [Tap { index: 0, sources: 0, offset: 0 }; MAX_TAPS];
    let taps = &mut taps[..g.kernel[0]];
    for (index, tap) in taps.iter_mut().enumerate() {
        *tap = Tap { index, sources: 0, offset: (index * g.dilation[0] * row) as isize };
    }
    let taps: &[Tap] = taps;
    let rows = g.batch * out_h;
    ctx.pool.run(rows.div_ceil(ROWS), &|task, _| {
        let mut sums = Sums([0; MAX_TILE]);
        let sums = &mut sums.0[..K::MR * K::NR];
        for out in task * ROWS..rows.min((task + 1) * ROWS) {
            let (image, y) = (out / out_h, out % out_h);
            let line = &copy[(image * (h + 2 * top) + y * g.stride[0]) * row..];
            for x in (0..out_w).step_by(K::MR) {
                let len = K::MR.min(out_w - x);
                // Places behind the last pixel repeat the first.
                let pixel = |m: usize| x + if m < len { m } else { 0 };
                let sources: [[*const u8; MAX_MR]; 1] =
                    [core::array::from_fn(|m| line[pixel(m) * g.stride[1] * c..].as_ptr())];
                let pixels: [usize; MAX_MR] = core::array::from_fn(|m| out * out_w + pixel(m));
                for (panel, weights) in packed.chunks_exact(panel_lines).enumerate() {
                    let first = panel * K::NR;
                    let channels = K::NR.min(target - first);
                    store.prepare(&pixels[..len], first, channels);
                    if flip != 0 {
                        sums.chunks_exact_mut(K::NR).for_each(|sums| sums.copy_from_slice(&starts[first..][..K::NR]));
                    }
                    // SAFETY: a window lies in the padded copy, of which a row's last group may reach up to three bytes
                    // further, into the next row or the bytes behind the last; the panel has all taps' groups.
                    unsafe {
                        kernel.accumulate(sums, flip != 0, weights, Reads { taps, sources: &sources }, groups, 4)
                    };
                    // SAFETY: each task has rows of its own, and each tile and panel its pixels and channels.
                    unsafe { store.store(sums, K::NR, &pixels[..len], first, channels) };
                }
            }
        }
    });
}
