//! The passes over a tensor that batch normalisation with the mean absolute deviation takes.
//!
//! A tensor is `[P, C]`: positions by channels. What is computed per channel in between is the caller's
//! (`intseg::ops::batch_norm`).

use crate::pool::{Disjoint, for_each_piece};
use crate::round::{half_even_i32, half_even_i64, stochastic_i32, stochastic_i64, within};
use crate::{Context, Dither};
use core::ops::{Mul, Sub};
use core::sync::atomic::{AtomicU64, Ordering};

/// Elements that one task handles, at least.
const PIECE: usize = 1 << 14;

/// Rows of `channels` elements that one task handles.
fn rows_of(channels: usize) -> usize {
    (PIECE / channels).max(1)
}

/// A loop over positions for some neighbouring channels, whose constants then stay in registers.
trait Lanes {
    /// Handles channels `first..first + L` of every position.
    fn run<const L: usize>(&mut self, first: usize);
}

/// Runs a loop over all channels, 16 at a time as long as there are as many.
#[inline(always)]
fn for_all_channels(channels: usize, lanes: &mut impl Lanes) {
    let mut first = 0;
    while first + 16 <= channels {
        lanes.run::<16>(first);
        first += 16;
    }
    while first + 8 <= channels {
        lanes.run::<8>(first);
        first += 8;
    }
    while first < channels {
        lanes.run::<1>(first);
        first += 1;
    }
}

/// Elements `first..first + L` of row `row` of `[P, channels]`.
#[inline(always)]
fn lane<T: Copy, const L: usize>(values: &[T], row: usize, channels: usize, first: usize) -> [T; L] {
    *values[row * channels + first..].first_chunk().expect("a whole row")
}

/// Reduces `[P, C]` rows to `width` values a channel: `visit(accumulators, rows)` adds a task's rows to its worker's
/// accumulators, `join` joins those of two workers. `partial` holds `threads · width` values, of which the first
/// `width` are the result.
fn reduce(
    ctx: Context,
    partial: &mut [i64],
    width: usize,
    start: impl Fn(&mut [i64]),
    tasks: usize,
    visit: impl Fn(&mut [i64], usize) + Sync,
    join: impl Fn(&mut [i64], &[i64]),
) {
    let threads = ctx.pool.threads();
    assert_eq!(partial.len(), threads * width, "partial results");
    partial.chunks_exact_mut(width).for_each(start);
    let shared = Disjoint::new(partial);
    ctx.pool.run(tasks, &|task, worker| {
        // SAFETY: each worker has its own part, and runs one task at a time.
        visit(unsafe { shared.piece(worker * width, (worker + 1) * width) }, task);
    });
    let (first, others) = partial.split_at_mut(width);
    others.chunks_exact(width).for_each(|other| join(first, other));
}

struct Ends<'a, T> {
    part: &'a mut [i64],
    y: &'a [T],
    channels: usize,
}

impl<T: Copy + Into<i32>> Lanes for Ends<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(&mut self, first: usize) {
        let (mut sums, mut min, mut max) = ([0i64; L], [i32::MAX; L], [i32::MIN; L]);
        for row in 0..self.y.len() / self.channels {
            let y: [T; L] = lane(self.y, row, self.channels, first);
            for k in 0..L {
                let y: i32 = y[k].into();
                sums[k] += i64::from(y);
                min[k] = y.min(min[k]);
                max[k] = y.max(max[k]);
            }
        }
        for k in 0..L {
            let at = first + k;
            self.part[at] += sums[k];
            let (low, high) = (self.channels + at, 2 * self.channels + at);
            self.part[low] = self.part[low].min(min[k].into());
            self.part[high] = self.part[high].max(max[k].into());
        }
    }
}

/// Sum, smallest and largest of each channel. `partial` is scratch of `threads · 3 · C`; its first `3 · C` values are
/// the result: sums, then minima, then maxima.
pub fn statistics<T: Copy + Into<i32> + Sync>(ctx: Context, partial: &mut [i64], y: &[T], channels: usize) {
    let rows = rows_of(channels);
    let start = |part: &mut [i64]| {
        let (sum, ends) = part.split_at_mut(channels);
        let (min, max) = ends.split_at_mut(channels);
        sum.fill(0);
        min.fill(i64::MAX);
        max.fill(i64::MIN);
    };
    let visit = |part: &mut [i64], task: usize| {
        let y = &y[task * rows * channels..y.len().min((task + 1) * rows * channels)];
        ctx.isa.vectorize(
            #[inline(always)]
            || for_all_channels(channels, &mut Ends { part, y, channels }),
        );
    };
    let join = |a: &mut [i64], b: &[i64]| {
        for (k, (a, &b)) in a.iter_mut().zip(b).enumerate() {
            *a = match k / channels {
                0 => *a + b,
                1 => b.min(*a),
                _ => b.max(*a),
            };
        }
    };
    reduce(ctx, partial, 3 * channels, start, (y.len() / channels).div_ceil(rows), visit, join);
}

struct Deviations<'a, T> {
    sums: &'a mut [i64],
    y: &'a [T],
    mean_q8: &'a [i64],
    narrow: bool,
}

impl<T: Copy + Into<i32>> Lanes for Deviations<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(&mut self, first: usize) {
        let channels = self.mean_q8.len();
        let mean: [i64; L] = lane(self.mean_q8, 0, channels, first);
        let mut sums = [0i64; L];
        for row in 0..self.y.len() / channels {
            let y: [T; L] = lane(self.y, row, channels, first);
            for k in 0..L {
                sums[k] += match self.narrow {
                    true => i64::from(((y[k].into() << 8) - mean[k] as i32).unsigned_abs()),
                    false => ((i64::from(y[k].into()) << 8) - mean[k]).abs(),
                };
            }
        }
        self.sums[first..first + L].iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
}

/// `Σ |256 · y − mean|` of each channel, the means in units of 2^-8. `partial` is scratch of `threads · C`; its first
/// `C` values are the result. `narrow` promises that every `256 · y − mean` fits 32 bits.
pub fn absolute_deviations<T: Copy + Into<i32> + Sync>(
    ctx: Context,
    partial: &mut [i64],
    y: &[T],
    mean_q8: &[i64],
    narrow: bool,
) {
    let channels = mean_q8.len();
    let rows = rows_of(channels);
    let visit = |sums: &mut [i64], task: usize| {
        let y = &y[task * rows * channels..y.len().min((task + 1) * rows * channels)];
        ctx.isa.vectorize(
            #[inline(always)]
            || for_all_channels(channels, &mut Deviations { sums, y, mean_q8, narrow }),
        );
    };
    let join = |a: &mut [i64], b: &[i64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    reduce(ctx, partial, channels, |part| part.fill(0), (y.len() / channels).div_ceil(rows), visit, join);
}

/// One channel's normalisation, `x̂ = (256 · y − mean) / σ` with 11 fractional bits, and its scale and offset.
#[derive(Clone, Copy, Debug, Default)]
pub struct Channel {
    /// Mean in units of 2^-8.
    pub mean_q8: i64,
    /// Reciprocal of σ: a mantissa of 17 bits at most.
    pub reciprocal: i64,
    /// Right shift of `(256 · y − mean) · reciprocal`, 0..=62.
    pub shift: u32,
    /// γ in units of 2^-12.
    pub gamma: i32,
    /// β in units of 2^-23.
    pub beta_q23: i32,
}

impl Channel {
    /// x̂ in units of 2^-11, a multiple of `2^coarse`.
    #[inline(always)]
    pub fn normalize(&self, y: i32, coarse: u32) -> i32 {
        let d = (i64::from(y) << 8) - self.mean_q8;
        let x_hat = half_even_i64(d * self.reciprocal, self.shift + coarse);
        (within(x_hat, -32_767 >> coarse, 32_767 >> coarse) << coarse) as i32
    }

    /// `γ·x̂ + β` in units of 2^-23. Never overflows: |x̂| < 2^15, |γ| < 2^15, |β| < 2^26.
    #[inline(always)]
    pub fn scale(&self, x_hat: i32) -> i32 {
        x_hat * self.gamma + self.beta_q23
    }
}

/// How the normalised, scaled values are rounded.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// x̂ keeps multiples of `2^coarse`.
    pub coarse: u32,
    /// Right shift of the scaled values.
    pub shift: u32,
    /// Smallest output; 0 is ReLU.
    pub low: i32,
    /// Largest output.
    pub high: i32,
}

struct Normalization<'a, T, U, F> {
    out: &'a mut [U],
    x_hat: &'a mut [i16],
    y: &'a [T],
    channels: &'a [Channel],
    rounding: Rounding,
    narrow: &'a F,
}

impl<T: Copy + Into<i32>, U, F: Fn(i32) -> U> Lanes for Normalization<'_, T, U, F> {
    #[inline(always)]
    fn run<const L: usize>(&mut self, first: usize) {
        let width = self.channels.len();
        let channels: [Channel; L] = lane(self.channels, 0, width, first);
        for row in 0..self.y.len() / width {
            let y: [T; L] = lane(self.y, row, width, first);
            let at = row * width + first;
            let (x_hat, out) = (&mut self.x_hat[at..at + L], &mut self.out[at..at + L]);
            for k in 0..L {
                let x = channels[k].normalize(y[k].into(), self.rounding.coarse);
                x_hat[k] = x as i16;
                let z = half_even_i32(channels[k].scale(x), self.rounding.shift);
                out[k] = (self.narrow)(within(z, self.rounding.low, self.rounding.high));
            }
        }
    }
}

/// Normalises, scales and rounds to nearest; keeps x̂ for the backward pass.
pub fn normalize<T: Copy + Into<i32> + Sync, U: Send>(
    ctx: Context,
    out: &mut [U],
    x_hat: &mut [i16],
    y: &[T],
    channels: &[Channel],
    rounding: Rounding,
    narrow: impl Fn(i32) -> U + Sync,
) {
    assert!(out.len() == y.len() && x_hat.len() == y.len(), "lengths");
    let piece_len = rows_of(channels.len()) * channels.len();
    let x_hat = Disjoint::new(x_hat);
    for_each_piece(ctx.pool, out, piece_len, |piece, out, _| {
        let from = piece * piece_len;
        // SAFETY: the same range of indices as the piece of the output, which is this task's alone.
        let x_hat = unsafe { x_hat.piece(from, from + out.len()) };
        let y = &y[from..][..out.len()];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                let mut pass = Normalization { out, x_hat, y, channels, rounding, narrow: &narrow };
                for_all_channels(channels.len(), &mut pass);
            },
        );
    });
}

/// Whether ReLU let a value through.
#[inline(always)]
fn passes(channel: &Channel, x_hat: i16, relu: bool) -> bool {
    !relu || channel.scale(x_hat.into()) > 0
}

struct ErrorSums<'a, E> {
    part: &'a mut [i64],
    error: &'a [E],
    x_hat: &'a [i16],
    channels: &'a [Channel],
    relu: bool,
}

impl<E: Copy + Into<i32>> Lanes for ErrorSums<'_, E> {
    #[inline(always)]
    fn run<const L: usize>(&mut self, first: usize) {
        let width = self.channels.len();
        let channels: [Channel; L] = lane(self.channels, 0, width, first);
        let (mut sums, mut products, mut signs) = ([0i64; L], [0i64; L], [0i32; L]);
        for row in 0..self.error.len() / width {
            let error: [E; L] = lane(self.error, row, width, first);
            let x_hat: [i16; L] = lane(self.x_hat, row, width, first);
            for k in 0..L {
                let e = if passes(&channels[k], x_hat[k], self.relu) { error[k].into() } else { 0 };
                sums[k] += i64::from(e);
                products[k] += i64::from(e * i32::from(x_hat[k]));
                signs[k] += i32::from(x_hat[k].signum());
            }
        }
        for k in 0..L {
            self.part[first + k] += sums[k];
            self.part[width + first + k] += products[k];
            self.part[2 * width + first + k] += i64::from(signs[k]);
        }
    }
}

/// `Σ e`, `Σ e·x̂` and `Σ sign(x̂)` of each channel, where `e` is the error that ReLU lets through. `partial` is scratch
/// of `threads · 3 · C`; its first `3 · C` values are the result.
pub fn error_statistics<E: Copy + Into<i32> + Sync>(
    ctx: Context,
    partial: &mut [i64],
    error: &[E],
    x_hat: &[i16],
    channels: &[Channel],
    relu: bool,
) {
    let width = channels.len();
    let rows = rows_of(width);
    let visit = |part: &mut [i64], task: usize| {
        let range = task * rows * width..error.len().min((task + 1) * rows * width);
        let (error, x_hat) = (&error[range.clone()], &x_hat[range]);
        ctx.isa.vectorize(
            #[inline(always)]
            || for_all_channels(width, &mut ErrorSums { part, error, x_hat, channels, relu }),
        );
    };
    let join = |a: &mut [i64], b: &[i64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    reduce(ctx, partial, 3 * width, |part| part.fill(0), (error.len() / width).div_ceil(rows), visit, join);
}

/// The integers that gradients are computed in: 32 bits for 8-bit errors, 64 bits for 16-bit ones.
pub trait Wide: Copy + Sync + Mul<Output = Self> + Sub<Output = Self> + From<i16> {
    /// Holds magnitudes.
    type Magnitude: Copy + Default + Ord + Into<u64>;
    /// The magnitude.
    fn magnitude(self) -> Self::Magnitude;
    /// Stochastic rounding of `self / 2^shift`, within ±`limit`.
    fn stochastic(self, shift: u32, bits: u32, limit: i32) -> i32;
}

impl Wide for i32 {
    type Magnitude = u32;

    #[inline(always)]
    fn magnitude(self) -> u32 {
        self.unsigned_abs()
    }

    #[inline(always)]
    fn stochastic(self, shift: u32, bits: u32, limit: i32) -> i32 {
        within(stochastic_i32(self, shift, bits), -limit, limit)
    }
}

impl Wide for i64 {
    type Magnitude = u64;

    #[inline(always)]
    fn magnitude(self) -> u64 {
        self.unsigned_abs()
    }

    #[inline(always)]
    fn stochastic(self, shift: u32, bits: u32, limit: i32) -> i32 {
        within(stochastic_i64(self, shift, bits), -i64::from(limit), limit.into()) as i32
    }
}

/// One channel's gradient with respect to y: `scale · e − offset − sign(x̂) · slope`.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<W> {
    /// Of the error.
    pub scale: W,
    /// From the mean.
    pub offset: W,
    /// From the deviation.
    pub slope: W,
}

impl<W: Wide> Gradient<W> {
    #[inline(always)]
    fn at(&self, e: i16, x_hat: i16) -> W {
        self.scale * W::from(e) - self.offset - W::from(x_hat.signum()) * self.slope
    }
}

/// The operands of a backward pass, `[P, C]`.
#[derive(Clone, Copy)]
pub struct Backward<'a, E, W> {
    /// Errors at the output.
    pub error: &'a [E],
    /// x̂ of the forward pass.
    pub x_hat: &'a [i16],
    /// The forward pass's channels.
    pub channels: &'a [Channel],
    /// The gradients' coefficients, one a channel.
    pub gradients: &'a [Gradient<W>],
    /// Whether ReLU followed.
    pub relu: bool,
}

impl<E: Copy + Into<i16> + Sync, W: Wide> Backward<'_, E, W> {
    /// The operands of some rows.
    #[inline(always)]
    fn rows(&self, from: usize, to: usize) -> Self {
        Backward { error: &self.error[from..to], x_hat: &self.x_hat[from..to], ..*self }
    }

    /// The gradients of `L` neighbouring channels of a row.
    #[inline(always)]
    fn gradients<const L: usize>(&self, row: usize, first: usize, at: &[(Channel, Gradient<W>); L]) -> [W; L] {
        let width = self.channels.len();
        let error: [E; L] = lane(self.error, row, width, first);
        let x_hat: [i16; L] = lane(self.x_hat, row, width, first);
        core::array::from_fn(|k| {
            let (channel, gradient) = &at[k];
            let e: i16 = if passes(channel, x_hat[k], self.relu) { error[k].into() } else { 0 };
            gradient.at(e, x_hat[k])
        })
    }

    #[inline(always)]
    fn constants<const L: usize>(&self, first: usize) -> [(Channel, Gradient<W>); L] {
        core::array::from_fn(|k| (self.channels[first + k], self.gradients[first + k]))
    }

    /// The largest magnitude of the gradient.
    pub fn max_magnitude(&self, ctx: Context) -> u64 {
        let piece_len = rows_of(self.channels.len()) * self.channels.len();
        let largest = AtomicU64::new(0);
        ctx.pool.run(self.error.len().div_ceil(piece_len), &|piece, _| {
            let here = ctx.isa.vectorize(
                #[inline(always)]
                || {
                    let to = self.error.len().min((piece + 1) * piece_len);
                    let mut pass = Largest { operands: self.rows(piece * piece_len, to), max: 0 };
                    for_all_channels(self.channels.len(), &mut pass);
                    pass.max
                },
            );
            largest.fetch_max(here, Ordering::Relaxed);
        });
        largest.into_inner()
    }

    /// Writes the gradient, rounded stochastically after a right shift, within ±`limit`.
    pub fn write<U: Send>(
        &self,
        ctx: Context,
        out: &mut [U],
        shift: u32,
        limit: i32,
        dither: Dither,
        narrow: impl Fn(i32) -> U + Sync,
    ) {
        assert_eq!(out.len(), self.error.len(), "output");
        let piece_len = rows_of(self.channels.len()) * self.channels.len();
        for_each_piece(ctx.pool, out, piece_len, |piece, out, _| {
            let from = piece * piece_len;
            ctx.isa.vectorize(
                #[inline(always)]
                || {
                    let operands = self.rows(from, from + out.len());
                    let mut pass = Rounded { operands, out, from, shift, limit, dither, narrow: &narrow };
                    for_all_channels(self.channels.len(), &mut pass);
                },
            );
        });
    }
}

struct Largest<'a, E, W> {
    operands: Backward<'a, E, W>,
    max: u64,
}

impl<E: Copy + Into<i16> + Sync, W: Wide> Lanes for Largest<'_, E, W> {
    #[inline(always)]
    fn run<const L: usize>(&mut self, first: usize) {
        let at = self.operands.constants::<L>(first);
        let mut max = [W::Magnitude::default(); L];
        for row in 0..self.operands.error.len() / self.operands.channels.len() {
            let gradients = self.operands.gradients(row, first, &at);
            for k in 0..L {
                max[k] = max[k].max(gradients[k].magnitude());
            }
        }
        self.max = max.into_iter().fold(self.max, |a, b| a.max(b.into()));
    }
}

struct Rounded<'a, E, W, U, F> {
    operands: Backward<'a, E, W>,
    out: &'a mut [U],
    /// Index of the first element, for its random bits.
    from: usize,
    shift: u32,
    limit: i32,
    dither: Dither,
    narrow: &'a F,
}

impl<E: Copy + Into<i16> + Sync, W: Wide, U, F: Fn(i32) -> U> Lanes for Rounded<'_, E, W, U, F> {
    #[inline(always)]
    fn run<const L: usize>(&mut self, first: usize) {
        let at = self.operands.constants::<L>(first);
        let width = self.operands.channels.len();
        for row in 0..self.operands.error.len() / width {
            let gradients = self.operands.gradients(row, first, &at);
            let index = row * width + first;
            let out = &mut self.out[index..index + L];
            for k in 0..L {
                let bits = self.dither.at(self.from + index + k);
                out[k] = (self.narrow)(gradients[k].stochastic(self.shift, bits, self.limit));
            }
        }
    }
}
