//! Max pooling and its backward pass.

use crate::Context;
use crate::pool::{Disjoint, for_each_piece};

/// A pooling of `[batch, in_h, in_w, channels]` to `[batch, out_h, out_w, channels]`. Windows may reach over the
/// border, where nothing wins; every window must cover at least one input pixel.
#[derive(Clone, Copy, Debug)]
pub struct MaxPool {
    /// Images.
    pub batch: usize,
    /// Input rows and columns.
    pub input: [usize; 2],
    /// Output rows and columns.
    pub output: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// Rows and columns of the window, at most 255 taps.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Rows and columns before the first input pixel that the first window covers.
    pub padding: [usize; 2],
}

/// Output rows and columns of a pooling; `None` when the window does not fit. With `ceil` a last window may reach over
/// the border if it starts on the input or on its leading padding.
pub fn output_size(
    input: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    ceil: bool,
) -> Option<[usize; 2]> {
    let along = |axis: usize| {
        let size = input[axis];
        let Some(room) = (size + 2 * padding[axis]).checked_sub(kernel[axis]) else {
            // A window larger than the whole input still has one position when it may reach over the border.
            return (ceil && size > 0).then_some(1);
        };
        if !ceil {
            return Some(room / stride[axis] + 1);
        }
        let last = room.div_ceil(stride[axis]);
        Some(if last * stride[axis] >= size + padding[axis] { last } else { last + 1 })
    };
    Some([along(0)?, along(1)?])
}

impl MaxPool {
    /// The taps of the window at output position `at` that lie on the input along `axis`, and the input's index at tap
    /// 0 (negative on padding).
    fn window(&self, axis: usize, at: usize) -> (core::ops::Range<usize>, isize) {
        let start = (at * self.stride[axis]) as isize - self.padding[axis] as isize;
        let first = (-start).max(0) as usize;
        let end = (self.input[axis] as isize - start).clamp(first as isize, self.kernel[axis] as isize) as usize;
        (first..end, start)
    }

    /// Writes the maxima, and in `winner` which tap of its window each came from: the first where several are equal.
    /// `winner` may be empty where no backward pass follows.
    ///
    /// # Panics
    /// When a slice has another length than the shapes say.
    pub fn forward<T: Copy + Ord + Send + Sync>(&self, ctx: Context, out: &mut [T], winner: &mut [u8], input: &[T]) {
        let c = self.channels;
        assert_eq!(input.len(), self.batch * self.input[0] * self.input[1] * c, "input");
        assert_eq!(out.len(), self.batch * self.output[0] * self.output[1] * c, "output");
        assert!(winner.is_empty() || winner.len() == out.len(), "winners");
        let keep = !winner.is_empty();
        let winner = Disjoint::new(winner);
        let row_len = self.output[1] * c;
        for_each_piece(ctx.pool, out, row_len, |row, out, _| {
            let (n, y) = (row / self.output[0], row % self.output[0]);
            let range = if keep { row * row_len..(row + 1) * row_len } else { 0..0 };
            // SAFETY: the same row as the piece of the output, which is this task's alone.
            let winner = unsafe { winner.piece(range.start, range.end) };
            let image = &input[n * self.input[0] * self.input[1] * c..][..self.input[0] * self.input[1] * c];
            ctx.isa.vectorize(
                #[inline(always)]
                || self.forward_row(y, out, winner, image),
            );
        });
    }

    #[inline(always)]
    fn forward_row<T: Copy + Ord>(&self, y: usize, out: &mut [T], winner: &mut [u8], image: &[T]) {
        let c = self.channels;
        let (taps_y, start_y) = self.window(0, y);
        for (x, out) in out.chunks_exact_mut(c).enumerate() {
            let (taps_x, start_x) = self.window(1, x);
            if self.kernel == [2; 2] && taps_y == (0..2) && taps_x == (0..2) && !winner.is_empty() {
                let at = (start_y as usize * self.input[1] + start_x as usize) * c;
                let below = at + self.input[1] * c;
                let rows = [&image[at..][..2 * c], &image[below..][..2 * c]];
                largest_of_four(out, &mut winner[x * c..][..c], rows);
                continue;
            }
            let mut first = true;
            for ky in taps_y.clone() {
                for kx in taps_x.clone() {
                    let at = (start_y + ky as isize) as usize * self.input[1] + (start_x + kx as isize) as usize;
                    let values = &image[at * c..][..c];
                    let tap = (ky * self.kernel[1] + kx) as u8;
                    match (core::mem::take(&mut first), winner.is_empty()) {
                        (true, true) => out.copy_from_slice(values),
                        (true, false) => {
                            out.copy_from_slice(values);
                            winner[x * c..][..c].fill(tap);
                        }
                        (false, true) => out.iter_mut().zip(values).for_each(|(o, &v)| *o = v.max(*o)),
                        (false, false) => {
                            for ((o, w), &v) in out.iter_mut().zip(&mut winner[x * c..][..c]).zip(values) {
                                *w = if v > *o { tap } else { *w };
                                *o = v.max(*o);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Whether an input pixel can lie in several windows.
    pub fn overlaps(&self) -> bool {
        self.kernel[0] > self.stride[0] || self.kernel[1] > self.stride[1]
    }

    /// The adjoint: every input pixel gets the errors of the windows that it won. `S` must hold their sum.
    ///
    /// # Panics
    /// When a slice has another length than the shapes say.
    pub fn backward<E, S>(&self, ctx: Context, out: &mut [S], error: &[E], winner: &[u8])
    where
        E: Copy + Sync,
        S: Copy + Default + Send + core::ops::AddAssign + From<E>,
    {
        let c = self.channels;
        assert_eq!(out.len(), self.batch * self.input[0] * self.input[1] * c, "output");
        assert_eq!(error.len(), self.batch * self.output[0] * self.output[1] * c, "error");
        assert_eq!(winner.len(), error.len(), "winners");
        for_each_piece(ctx.pool, out, self.input[1] * c, |row, out, _| {
            let (n, y) = (row / self.input[0], row % self.input[0]);
            out.fill(S::default());
            // The windows that cover row y start at most kernel − 1 rows before it.
            let reach = y + self.padding[0];
            let first = (reach + 1).saturating_sub(self.kernel[0]).div_ceil(self.stride[0]);
            let end = (reach / self.stride[0] + 1).min(self.output[0]);
            ctx.isa.vectorize(
                #[inline(always)]
                || {
                    for window_row in first..end {
                        let ky = reach - window_row * self.stride[0];
                        let at = (n * self.output[0] + window_row) * self.output[1] * c;
                        let len = self.output[1] * c;
                        self.backward_row(ky, out, &error[at..at + len], &winner[at..at + len]);
                    }
                },
            );
        });
    }

    #[inline(always)]
    fn backward_row<E, S>(&self, ky: usize, out: &mut [S], error: &[E], winner: &[u8])
    where
        E: Copy,
        S: Copy + Default + core::ops::AddAssign + From<E>,
    {
        let c = self.channels;
        for (x, (error, winner)) in error.chunks_exact(c).zip(winner.chunks_exact(c)).enumerate() {
            let (taps, start) = self.window(1, x);
            for kx in taps {
                let tap = (ky * self.kernel[1] + kx) as u8;
                let out = &mut out[(start + kx as isize) as usize * c..][..c];
                for ((out, &e), &w) in out.iter_mut().zip(error).zip(winner) {
                    *out += if w == tap { S::from(e) } else { S::default() };
                }
            }
        }
    }
}

/// The maxima of a whole 2 × 2 window, of which `rows` are two pixels each.
#[inline(always)]
fn largest_of_four<T: Copy + Ord>(out: &mut [T], winner: &mut [u8], rows: [&[T]; 2]) {
    let c = out.len();
    let ([a, b], [d, e]) = ([&rows[0][..c], &rows[0][c..][..c]], [&rows[1][..c], &rows[1][c..][..c]]);
    let winner = &mut winner[..c];
    for i in 0..c {
        let (upper, lower) = (a[i].max(b[i]), d[i].max(e[i]));
        let upper_tap = u8::from(b[i] > a[i]);
        let lower_tap = 2 + u8::from(e[i] > d[i]);
        winner[i] = if lower > upper { lower_tap } else { upper_tap };
        out[i] = upper.max(lower);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::testing::{Threads, random};
    use std::vec;
    use std::vec::Vec;

    fn pools() -> [MaxPool; 4] {
        let base = MaxPool {
            batch: 2,
            input: [9, 7],
            output: [5, 4],
            channels: 19,
            kernel: [2; 2],
            stride: [2; 2],
            padding: [0; 2],
        };
        [
            base,
            MaxPool { kernel: [3; 2], padding: [1; 2], ..base },
            MaxPool { input: [1, 1], output: [1, 1], ..base },
            MaxPool { kernel: [1; 2], ..base },
        ]
    }

    #[test]
    fn every_instruction_set_finds_the_first_maximum_of_each_window() {
        for pool in pools() {
            let [h, w] = pool.input;
            let input: Vec<u8> = random(2 * h * w * 19, 1, 6).iter().map(|&v| (v + 32) as u8).collect();
            for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                let ctx = Context { isa, pool: &Threads(threads) };
                let len = 2 * pool.output[0] * pool.output[1] * 19;
                let (mut out, mut winner) = (vec![0; len], vec![9; len]);
                pool.forward(ctx, &mut out, &mut winner, &input);
                let mut silent = vec![0; len];
                pool.forward(ctx, &mut silent, &mut [], &input);
                assert_eq!(out, silent);
                for (i, (&out, &winner)) in out.iter().zip(&winner).enumerate() {
                    let (k, x, y) = (i % 19, i / 19 % pool.output[1], i / 19 / pool.output[1] % pool.output[0]);
                    let n = i / 19 / pool.output[1] / pool.output[0];
                    let mut best: Option<(u8, usize)> = None;
                    for tap in 0..pool.kernel[0] * pool.kernel[1] {
                        let sy = (y * pool.stride[0] + tap / pool.kernel[1]).wrapping_sub(pool.padding[0]);
                        let sx = (x * pool.stride[1] + tap % pool.kernel[1]).wrapping_sub(pool.padding[1]);
                        if sy < h && sx < w {
                            let value = input[((n * h + sy) * w + sx) * 19 + k];
                            if best.is_none_or(|(v, _)| value > v) {
                                best = Some((value, tap));
                            }
                        }
                    }
                    assert_eq!(Some((out, usize::from(winner))), best);
                }
            }
        }
    }

    #[test]
    fn backward_is_the_adjoint_of_the_selection() {
        for pool in pools() {
            let input: Vec<i16> =
                random(2 * pool.input[0] * pool.input[1] * 19, 1, 12).iter().map(|&v| v as i16).collect();
            let len = 2 * pool.output[0] * pool.output[1] * 19;
            let error: Vec<i8> = random(len, 2, 8).iter().map(|&v| v as i8).collect();
            for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                let ctx = Context { isa, pool: &Threads(threads) };
                let (mut out, mut winner) = (vec![0; len], vec![0; len]);
                pool.forward(ctx, &mut out, &mut winner, &input);
                let mut back = vec![7i32; input.len()];
                pool.backward(ctx, &mut back, &error, &winner);
                let forward: i64 = out.iter().zip(&error).map(|(&o, &e)| i64::from(o) * i64::from(e)).sum();
                let adjoint: i64 = input.iter().zip(&back).map(|(&i, &b)| i64::from(i) * i64::from(b)).sum();
                assert_eq!(forward, adjoint);
            }
        }
    }
}
