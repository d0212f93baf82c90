//! The passes over a tensor that batch normalisation with the mean absolute deviation takes.
//!
//! A tensor is `[P, C]`: positions by channels. What is computed per channel in between is the caller's
//! (`intseg::ops::batch_norm`).

use crate::pool::{Disjoint, for_each_piece};
use crate::round::{half_even_i32, half_even_i64, stochastic_i32, stochastic_i64};
use crate::{Context, Dither};
use core::ops::{Mul, Sub};
use core::sync::atomic::{AtomicU64, Ordering};

/// Elements that one task handles, at least.
const PIECE: usize = 1 << 14;

/// Rows of `channels` elements that one task handles.
fn rows_of(channels: usize) -> usize {
    (PIECE / channels).max(1)
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
        let (sum, ends) = part.split_at_mut(channels);
        let (min, max) = ends.split_at_mut(channels);
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for row in y.chunks_exact(channels) {
                    for (((sum, min), max), &y) in sum.iter_mut().zip(&mut *min).zip(&mut *max).zip(row) {
                        let y = i64::from(y.into());
                        *sum += y;
                        *min = y.min(*min);
                        *max = y.max(*max);
                    }
                }
            },
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
            || {
                for row in y.chunks_exact(channels) {
                    let row = sums.iter_mut().zip(row).zip(mean_q8);
                    match narrow {
                        true => row.for_each(|((sum, &y), &mean)| {
                            *sum += i64::from(((y.into() << 8) - mean as i32).unsigned_abs());
                        }),
                        false => row.for_each(|((sum, &y), &mean)| *sum += ((i64::from(y.into()) << 8) - mean).abs()),
                    }
                }
            },
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
        (x_hat.clamp(-32_767 >> coarse, 32_767 >> coarse) << coarse) as i32
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
                let width = channels.len();
                let rows = out.chunks_exact_mut(width).zip(x_hat.chunks_exact_mut(width)).zip(y.chunks_exact(width));
                for ((out, x_hat), y) in rows {
                    for (((out, x_hat), &y), channel) in out.iter_mut().zip(x_hat).zip(y).zip(channels) {
                        let x = channel.normalize(y.into(), rounding.coarse);
                        *x_hat = x as i16;
                        let z = half_even_i32(channel.scale(x), rounding.shift);
                        *out = narrow(z.clamp(rounding.low, rounding.high));
                    }
                }
            },
        );
    });
}

/// Whether ReLU let a value through.
#[inline(always)]
fn passes(channel: &Channel, x_hat: i16, relu: bool) -> bool {
    !relu || channel.scale(x_hat.into()) > 0
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
        let (sum, rest) = part.split_at_mut(width);
        let (product, sign) = rest.split_at_mut(width);
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (error, x_hat) in error.chunks_exact(width).zip(x_hat.chunks_exact(width)) {
                    let out = sum.iter_mut().zip(&mut *product).zip(&mut *sign);
                    for ((out, (&e, &x)), channel) in out.zip(error.iter().zip(x_hat)).zip(channels) {
                        let ((sum, product), sign) = out;
                        let e = if passes(channel, x, relu) { e.into() } else { 0 };
                        *sum += i64::from(e);
                        *product += i64::from(e * i32::from(x));
                        *sign += i64::from(x.signum());
                    }
                }
            },
        );
    };
    let join = |a: &mut [i64], b: &[i64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    reduce(ctx, partial, 3 * width, |part| part.fill(0), (error.len() / width).div_ceil(rows), visit, join);
}

/// The integers that gradients are computed in: 32 bits for 8-bit errors, 64 bits for 16-bit ones.
pub trait Wide: Copy + Sync + Mul<Output = Self> + Sub<Output = Self> + From<i16> {
    /// The magnitude.
    fn magnitude(self) -> u64;
    /// Stochastic rounding of `self / 2^shift`, within ±`limit`.
    fn stochastic(self, shift: u32, bits: u32, limit: i32) -> i32;
}

impl Wide for i32 {
    #[inline(always)]
    fn magnitude(self) -> u64 {
        self.unsigned_abs().into()
    }

    #[inline(always)]
    fn stochastic(self, shift: u32, bits: u32, limit: i32) -> i32 {
        stochastic_i32(self, shift, bits).clamp(-limit, limit)
    }
}

impl Wide for i64 {
    #[inline(always)]
    fn magnitude(self) -> u64 {
        self.unsigned_abs()
    }

    #[inline(always)]
    fn stochastic(self, shift: u32, bits: u32, limit: i32) -> i32 {
        stochastic_i64(self, shift, bits).clamp(-i64::from(limit), limit.into()) as i32
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
    /// Calls `visit(index, gradient)` for the elements of some rows.
    #[inline(always)]
    fn for_each(&self, from: usize, to: usize, mut visit: impl FnMut(usize, W)) {
        let width = self.channels.len();
        for at in (from..to).step_by(width) {
            let row = self.error[at..at + width].iter().zip(&self.x_hat[at..at + width]);
            for (k, ((&e, &x), (channel, gradient))) in
                row.zip(self.channels.iter().zip(&self.gradients[..width])).enumerate()
            {
                let e: i16 = if passes(channel, x, self.relu) { e.into() } else { 0 };
                visit(at + k, gradient.at(e, x));
            }
        }
    }

    /// The largest magnitude of the gradient.
    pub fn max_magnitude(&self, ctx: Context) -> u64 {
        let piece_len = rows_of(self.channels.len()) * self.channels.len();
        let largest = AtomicU64::new(0);
        ctx.pool.run(self.error.len().div_ceil(piece_len), &|piece, _| {
            let here = ctx.isa.vectorize(
                #[inline(always)]
                || {
                    let mut max = 0;
                    let to = self.error.len().min((piece + 1) * piece_len);
                    self.for_each(piece * piece_len, to, |_, gradient| max = gradient.magnitude().max(max));
                    max
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
                    let len = out.len();
                    self.for_each(from, from + len, |i, gradient| {
                        out[i - from] = narrow(gradient.stochastic(shift, dither.at(i), limit));
                    });
                },
            );
        });
    }
}
