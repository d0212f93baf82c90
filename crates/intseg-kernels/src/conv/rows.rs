//! Convolutions of few channels: a whole row of the kernel at once.
//!
//! The pixels that a kernel's row covers lie side by side in memory. So a kernel of `[KH, KW]` taps of `C` channels is one
//! of `[KH, 1]` taps of `KW · C` channels. Dot products of four bytes are then full where three channels would leave a
//! quarter of each empty, and of a tile's work less is looking up where its pixels read: with few channels that takes as long
//! as the products. For this the input is copied with its padding, so that no tap is a special case. A signed input is
//! copied with 128 added to every byte, padding included; each sum then holds 128 times the sum of its channel's weights,
//! which it starts without.

use super::gather::{MAX_MR, MAX_TAPS, MAX_TILE, MicroKernel, Reads, Start, Sums, Tap, chunk_of};
use super::store::Store;
use super::{Convolution, Direction, Input, Line};
use crate::Context;
use crate::bytes::as_u8;
use crate::pool::for_each_piece;
use crate::vector::LANES;
use core::ops::Range;

/// Rows that are copied at once.
const COPIED: usize = 32;
/// Channels up to which an image, and up to which any map runs this way.
const OF_IMAGE: usize = 3;
const MOST: usize = 32;

/// Whether a convolution runs this way, whatever the image's size. Its weights are packed for it.
pub(crate) fn fits(plan: &Convolution) -> bool {
    let ([.., c], g) = (plan.source(), &plan.geometry);
    let image = plan.direction == Direction::Forward && c <= OF_IMAGE && g.dilation[1] == 1 && g.kernel[0] <= MAX_TAPS;
    // Taps on padding are multiplied too, which does not count in small windows.
    let small = g.kernel.iter().zip(g.padding).all(|(&kernel, padding)| kernel <= 3 && padding < kernel);
    c > 0 && g.kernel[1] > 1 && (image || c <= MOST && small && g.stride == [1; 2] && g.dilation == [1; 2])
}

/// Rows and columns of padding before the source.
fn padding(plan: &Convolution) -> [usize; 2] {
    let g = &plan.geometry;
    match plan.direction {
        Direction::Forward => g.padding,
        // The adjoint reads backwards from the other end of the window.
        Direction::Transposed => [0, 1].map(|axis| g.kernel[axis] - 1 - g.padding[axis]),
    }
}

/// Groups of four bytes of a kernel's row.
fn groups(plan: &Convolution) -> usize {
    (plan.geometry.kernel[1] * plan.source()[2]).div_ceil(4)
}

/// Lines of a panel of `nr` channels.
fn panel_lines(plan: &Convolution, nr: usize) -> usize {
    plan.geometry.kernel[0] * groups(plan) * nr * 4 / 64
}

/// Lines that [`pack`] fills for panels of `nr` channels.
pub(crate) fn packed_lines(plan: &Convolution, nr: usize) -> usize {
    plan.target()[2].div_ceil(nr) * panel_lines(plan, nr)
}

/// Packs the weights of some taps: `[panel][kernel row][group][NR][4]`, the last index running over four bytes of the row.
pub(crate) fn pack(plan: &Convolution, nr: usize, packed: &mut [Line], taps: Range<usize>, weights: &[i8]) {
    let ([.., target], [.., c], [kh, kw]) = (plan.target(), plan.source(), plan.geometry.kernel);
    let groups = groups(plan);
    // From one target channel's weight to the next, and from one source channel's.
    let (apart, between) = match plan.direction {
        Direction::Forward => (1, target),
        Direction::Transposed => (c, 1),
    };
    for (panel, packed) in packed.chunks_exact_mut(panel_lines(plan, nr)).enumerate() {
        let bytes = Line::bytes_mut(packed);
        for (weights, tap) in weights.chunks_exact(c * target).zip(taps.clone()) {
            let [y, x] = match plan.direction {
                Direction::Forward => [tap / kw, tap % kw],
                Direction::Transposed => [kh - 1 - tap / kw, kw - 1 - tap % kw],
            };
            let row = &mut bytes[y * groups * nr * 4..][..groups * nr * 4];
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
                        let weights = weights[channel * apart + lane * between..].iter().step_by(apart);
                        channels[..len].iter_mut().zip(weights).for_each(|(to, &weight)| *to = weight);
                    }
                    write(x * c + lane, from, channels);
                }
                if x == kw - 1 {
                    // What lies behind the row's last pixel does not count.
                    (kw * c..groups * 4).for_each(|at| write(at, from, [0; LANES]));
                }
            }
        }
    }
}

/// The padded copy: bytes of a row, and of all rows with what is read behind the last.
fn copy_size(plan: &Convolution) -> [usize; 2] {
    let ([h, w, c], [top, left]) = (plan.source(), padding(plan));
    let row = (w + 2 * left) * c;
    let behind = MAX_MR * plan.geometry.stride[1] * c + 4;
    [row, plan.geometry.batch * (h + 2 * top) * row + behind]
}

/// Scratch: the padded copy, and what each channel's sums start from.
pub(crate) fn scratch_len(plan: &Convolution, nr: usize) -> usize {
    let [_, bytes] = copy_size(plan);
    Line::words(bytes.div_ceil(64) + plan.target()[2].next_multiple_of(nr) / 16)
}

/// How positions follow each other in the padded copy. Those of an image that no stride takes apart are one sequence, with
/// what comes of padding between rows in it: a tile then need not end where a row does.
struct Lines {
    count: usize,
    /// Output rows of a line.
    rows: usize,
    /// Positions from one of these to the next, and in a line.
    pitch: usize,
    len: usize,
    /// Bytes from a position to the next, and from a line to the next of its image; lines of an image.
    along: usize,
    apart: usize,
    of_image: usize,
}

impl Lines {
    fn new(plan: &Convolution) -> Self {
        let (g, [_, w, c], [out_h, out_w, _]) = (&plan.geometry, plan.source(), plan.target());
        let ([_, left], [row, _]) = (padding(plan), copy_size(plan));
        if g.stride == [1; 2] {
            let pitch = w + 2 * left;
            let len = (out_h - 1) * pitch + out_w;
            return Lines { count: g.batch, rows: out_h, pitch, len, along: c, apart: 0, of_image: 1 };
        }
        let [down, right] = g.stride;
        let (count, of_image) = (g.batch * out_h, out_h);
        Lines { count, rows: 1, pitch: out_w, len: out_w, along: right * c, apart: down * row, of_image }
    }
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
    if g.batch * out_h * out_w * target == 0 {
        return;
    }
    let ([row, bytes], groups) = (copy_size(plan), groups(plan));
    let (copy, starts) = Line::in_words(scratch).split_at_mut(bytes.div_ceil(64));
    let copy = &mut Line::bytes_mut(copy)[..bytes];
    let (input, flip) = match input {
        Input::U8(data) => (data, 0),
        Input::I8(data) => (as_u8(data), 0x80),
    };
    let [top, left] = padding(plan);
    for_each_piece(ctx.pool, copy, COPIED * row, |piece, copy, _| {
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (y, to) in copy.chunks_mut(row).enumerate() {
                    let (image, y) = ((piece * COPIED + y) / (h + 2 * top), (piece * COPIED + y) % (h + 2 * top));
                    if image >= g.batch || !(top..top + h).contains(&y) {
                        to.fill(flip);
                        continue;
                    }
                    let from = &input[(image * h + y - top) * w * c..][..w * c];
                    let (before, to) = to.split_at_mut(left * c);
                    let (to, behind) = to.split_at_mut(w * c);
                    before.fill(flip);
                    behind.fill(flip);
                    to.iter_mut().zip(from).for_each(|(to, &from)| *to = from ^ flip);
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
    let lines = Lines::new(plan);
    let per_line = lines.len.div_ceil(K::MR);
    let tiles = lines.count * per_line;
    let at_once = chunk_of(tiles, 1, ctx.pool.threads());
    ctx.pool.run(tiles.div_ceil(at_once), &|task, _| {
        let mut sums = Sums([0; MAX_TILE]);
        let sums = &mut sums.0[..K::MR * K::NR];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for tile in task * at_once..tiles.min((task + 1) * at_once) {
                    let (line, first) = (tile / per_line, tile % per_line * K::MR);
                    let image = &copy[line / lines.of_image * (h + 2 * top) * row..];
                    let window = image[line % lines.of_image * lines.apart + first * lines.along..].as_ptr();
                    let sources: [[*const u8; MAX_MR]; 1] =
                        [core::array::from_fn(|m| window.wrapping_add(m * lines.along))];
                    let reads = Reads { taps, sources: &sources, along: Some(lines.along) };
                    for (panel, weights) in packed.chunks_exact(panel_lines).enumerate() {
                        let channel = panel * K::NR;
                        let start = match flip {
                            0 => Start::Zero,
                            _ => Start::Row(&starts[channel..][..K::NR]),
                        };
                        // SAFETY: a window lies in the padded copy, of which a row's last group may reach up to three
                        // bytes further, and a tile behind the last position: there are as many bytes. The panel has all
                        // taps' groups.
                        unsafe { kernel.accumulate(sums, start, weights, reads, groups, 4) };
                        let channels = K::NR.min(target - channel);
                        let mut at = first;
                        while at < lines.len.min(first + K::MR) {
                            // As many as belong to one row; those behind its last pixel come of padding.
                            let (y, x) = (at / lines.pitch, at % lines.pitch);
                            let len = out_w.saturating_sub(x).min(first + K::MR - at);
                            let pixel = (line * lines.rows + y) * out_w + x;
                            let pixels: [usize; MAX_MR] = core::array::from_fn(|m| pixel + m);
                            store.prepare(&pixels[..len], channel, channels);
                            let sums = &sums[(at - first) * K::NR..];
                            // SAFETY: each task has positions of its own, each tile and panel its pixels and channels.
                            unsafe { store.store(sums, K::NR, &pixels[..len], channel, channels) };
                            at += lines.pitch - x;
                        }
                    }
                }
            },
        );
    });
}
