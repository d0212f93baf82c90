//! Gradients through batch normalisation and the ReLU behind it.
//!
//! The gradient with respect to y is `scale · e − offset` with one of two offsets a channel, by the sign of x̂ (0 counts
//! as positive); e is the error where ReLU let through, else 0. So its largest magnitude follows from each channel's
//! extreme errors on both sides, which the pass for the sums finds on the way: no pass looks for it.

use super::forward::for_each_block;
use super::{BLOCK, ChannelGroup, Join, Tile, ahead, for_each_tile, groups, partial_len, reduce, rows_of};
use crate::pool::{fetch, for_each_piece};
use crate::vector::{Element, LANES, Lanes, Loop, Vector, load, store};
use crate::{Context, Dither};
use core::ops::Range;

pub mod wide;

/// What one pass over errors and x̂ finds of each channel. Masked errors count as 0.
#[derive(Clone, Copy, Debug)]
pub struct ErrorStatistics<'a> {
    partial: &'a [i64],
    row: usize,
}

/// A type that errors are held in.
#[allow(private_bounds, reason = "no other type holds errors")]
pub trait Error: Element {}
impl Error for i8 {}
impl Error for i16 {}

const JOINS: [Join; 7] = [Join::Sum, Join::Sum, Join::Sum, Join::Max, Join::Min, Join::Max, Join::Min];

impl ErrorStatistics<'_> {
    /// `Σ e`.
    pub fn sum(&self, channel: usize) -> i64 {
        self.partial[self.row + channel]
    }

    /// `Σ e · x̂`.
    pub fn product(&self, channel: usize) -> i64 {
        self.partial[channel]
    }

    /// How many x̂ are not negative.
    pub fn positive(&self, channel: usize) -> i64 {
        self.partial[2 * self.row + channel]
    }

    /// The largest and the smallest error where x̂ is not negative, then where it is; 0 counts as one of them.
    pub fn extremes(&self, channel: usize) -> [i64; 4] {
        [3, 4, 5, 6].map(|k| self.partial[k * self.row + channel])
    }

    /// How many i64 of scratch [`error_statistics`] takes.
    pub fn scratch_len(ctx: Context, channels: usize) -> usize {
        partial_len(ctx, JOINS.len(), channels)
    }
}

/// The operands of a backward pass, `[P, C]`.
#[derive(Clone, Copy)]
pub struct Gradients<'a, E> {
    /// Errors at the output.
    pub error: &'a [E],
    /// x̂ of the forward pass.
    pub x_hat: &'a [i16],
    /// C.
    pub channels: usize,
    /// The forward pass's constants.
    pub constants: &'a [ChannelGroup],
    /// Whether ReLU followed.
    pub relu: bool,
}

/// Sums and extremes of each channel. `scratch` has [`ErrorStatistics::scratch_len`] values.
pub fn error_statistics<'a, E: Error>(
    ctx: Context,
    scratch: &'a mut [i64],
    operands: &Gradients<E>,
) -> ErrorStatistics<'a> {
    let (len, channels) = (operands.error.len(), operands.channels);
    assert!(operands.x_hat.len() == len && operands.constants.len() == groups(channels), "lengths");
    reduce(ctx, scratch, &JOINS, len / channels, channels, |part, rows| {
        ctx.isa.run_loop(Sums { part, operands, rows });
    });
    ErrorStatistics { partial: scratch, row: groups(channels) * LANES }
}

struct Sums<'a, E> {
    part: &'a mut [i64],
    operands: &'a Gradients<'a, E>,
    rows: Range<usize>,
}

impl<E: Error> Loop for Sums<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Sums { part, operands, rows } = self;
        let Gradients { error, x_hat, channels, constants, relu } = *operands;
        let (row_len, ahead) = (constants.len() * LANES, ahead(channels));
        let (zero, below) = (V::splat(0), V::splat(-1));
        for_each_block(
            rows,
            constants.len(),
            #[inline(always)]
            |rows, groups| {
                // As `JOINS`; products are summed as low and high halves.
                let mut acc = [[Lanes::default(); JOINS.len() + 1]; BLOCK];
                let first = groups.start;
                for_each_tile(
                    rows,
                    channels,
                    groups.clone(),
                    #[inline(always)]
                    |Tile { group, lanes, at, rows }| {
                        let [gamma, beta] = [&constants[group].gamma, &constants[group].beta_q23].map(Lanes::get::<V>);
                        let acc = &mut acc[group - first];
                        let [mut high, mut low, mut sum, mut positive, mut up, mut down, mut left_up, mut left_down] =
                            acc.map(|lanes| lanes.get::<V>());
                        for row in 0..rows {
                            let at = at + row * channels;
                            fetch(error, at + ahead);
                            fetch(x_hat, at + ahead);
                            let e: V = load(error, at, lanes);
                            let x: V = load(x_hat, at, lanes);
                            let e = if relu { e.keep(x.mul(gamma).add(beta).greater(zero)) } else { e };
                            sum = sum.add(e);
                            let product = e.mul(x);
                            low = low.add(product.and(V::splat(0xFFFF)));
                            high = high.add(product.shr(16));
                            let not_negative = x.greater(below);
                            positive = positive.add(V::splat(1).keep(not_negative));
                            let right = e.keep(not_negative);
                            let left = e.sub(right);
                            (up, down) = (up.max(right), down.min(right));
                            (left_up, left_down) = (left_up.max(left), left_down.min(left));
                        }
                        let results = [high, low, sum, positive, up, down, left_up, left_down];
                        acc.iter_mut().zip(results).for_each(|(acc, v)| acc.set(v));
                    },
                );
                for (group, acc) in groups.zip(&acc) {
                    let [high, low, others @ ..] = acc;
                    for k in 0..LANES {
                        let product = (i64::from(high.0[k]) << 16) + i64::from(low.0[k]);
                        let values = others.iter().map(|lanes| i64::from(lanes.0[k]));
                        for (value, (new, join)) in core::iter::once(product).chain(values).zip(JOINS).enumerate() {
                            let part = &mut part[value * row_len + group * LANES + k];
                            *part = join.join(*part, new);
                        }
                    }
                }
            },
        );
    }
}

/// Each channel's gradient, `scale · e − offset`, for 16 channels. Products and offsets must stay below 2^30.
#[derive(Clone, Copy, Debug, Default)]
pub struct GradientGroup {
    /// Of the error.
    pub scale: Lanes,
    /// Where x̂ is not negative.
    pub offset_positive: Lanes,
    /// Where x̂ is negative.
    pub offset_negative: Lanes,
}

/// Writes the gradient, rounded stochastically after a right shift, within ±`limit`.
///
/// # Panics
/// When lengths differ.
pub fn gradient<U: Error, E: Error>(
    ctx: Context,
    out: &mut [U],
    operands: &Gradients<E>,
    coefficients: &[GradientGroup],
    shift: u32,
    limit: i32,
    dither: Dither,
) {
    let Gradients { error, x_hat, channels, constants, .. } = *operands;
    assert!(out.len() == error.len() && x_hat.len() == error.len(), "lengths");
    assert!(constants.len() == groups(channels) && coefficients.len() == constants.len(), "constants");
    let piece_len = rows_of(channels) * channels;
    let dither = dither.over(shift);
    for_each_piece(ctx.pool, out, piece_len, |piece, out, _| {
        let from = piece * piece_len;
        ctx.isa.run_loop(Rounded { out, from, operands, coefficients, shift, limit, dither });
    });
}

struct Rounded<'a, U, E> {
    out: &'a mut [U],
    /// Index of the first element.
    from: usize,
    operands: &'a Gradients<'a, E>,
    coefficients: &'a [GradientGroup],
    shift: u32,
    limit: i32,
    dither: Dither,
}

impl<U: Error, E: Error> Loop for Rounded<'_, U, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Rounded { out, from, operands, coefficients, shift, limit, dither } = self;
        let Gradients { error, x_hat, channels, constants, relu } = *operands;
        let (error, x_hat) = (&error[from..from + out.len()], &x_hat[from..from + out.len()]);
        let [zero, below, low, high] = [0, -1, -limit, limit].map(V::splat);
        let ahead = ahead(channels);
        for_each_tile(
            0..out.len() / channels,
            channels,
            0..constants.len(),
            #[inline(always)]
            |Tile { group, lanes, at, rows }| {
                let [gamma, beta] = [&constants[group].gamma, &constants[group].beta_q23].map(Lanes::get::<V>);
                let c = &coefficients[group];
                let [scale, right, left] = [&c.scale, &c.offset_positive, &c.offset_negative].map(Lanes::get::<V>);
                for row in 0..rows {
                    let at = at + row * channels;
                    fetch(error, at + ahead);
                    fetch(x_hat, at + ahead);
                    let e: V = load(error, at, lanes);
                    let x: V = load(x_hat, at, lanes);
                    let e = if relu { e.keep(x.mul(gamma).add(beta).greater(zero)) } else { e };
                    let gradient = e.mul(scale).sub(right.or_else(x.greater(below), left));
                    let rounded = gradient.stochastic(shift, dither.lanes(from + at)).within(low, high);
                    store(rounded, out, at, lanes);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::Channel;
    use super::*;
    use crate::round::{stochastic_i32, within};
    use crate::testing::Threads;
    use crate::{Isa, Role};
    use std::vec;
    use std::vec::Vec;

    const DITHER: Dither = Dither::new(3, 1, 2, Role::ErrorAtConvolution);

    #[test]
    fn sums_extremes_and_gradients_are_the_definitions() {
        let draw = Dither::new(2, 0, 0, Role::Initial);
        for (channels, rows, relu) in [(5, 600, true), (16, 300, false), (40, 17, true), (272, 300, true)] {
            let len = channels * rows;
            let error: Vec<i16> = (0..len).map(|i| (draw.at(i) as i32 >> 16) as i16).collect();
            let x_hat: Vec<i16> = (0..len).map(|i| (draw.at(len + i) as i32 >> 16).max(-32_767) as i16).collect();
            let all: Vec<Channel> = (0..channels as i32)
                .map(|k| k % 100)
                .map(|k| Channel::new(0, 256, 3000 - 300 * k, 1_000_000 - 90_000 * k, 0))
                .collect();
            let constants: Vec<ChannelGroup> = all.chunks(LANES).map(ChannelGroup::new).collect();
            let passed = |i: usize| match !relu || all[i % channels].scale(x_hat[i].into()) > 0 {
                true => i64::from(error[i]),
                false => 0,
            };
            let mut coefficients = vec![GradientGroup::default(); constants.len()];
            for k in 0..channels {
                let group = &mut coefficients[k / LANES];
                group.scale.0[k % LANES] = 9000 - 70 * k as i32;
                group.offset_positive.0[k % LANES] = 123_456 * (k as i32 % 7);
                group.offset_negative.0[k % LANES] = -54_321 * (k as i32 % 5);
            }
            for (isa, pool) in Isa::available().flat_map(|isa| [1, 3].map(|threads| (isa, Threads(threads)))) {
                let ctx = Context { isa, pool: &pool };
                let operands = Gradients { error: &error, x_hat: &x_hat, channels, constants: &constants, relu };
                let mut scratch = vec![5; ErrorStatistics::scratch_len(ctx, channels)];
                let found = error_statistics(ctx, &mut scratch, &operands);
                for k in 0..channels {
                    let column = || (k..len).step_by(channels);
                    assert_eq!(found.sum(k), column().map(passed).sum::<i64>());
                    assert_eq!(found.product(k), column().map(|i| passed(i) * i64::from(x_hat[i])).sum::<i64>());
                    assert_eq!(found.positive(k), column().filter(|&i| x_hat[i] >= 0).count() as i64);
                    let side = |right: bool| column().filter(|&i| (x_hat[i] >= 0) == right).map(passed).collect();
                    let [right, left]: [Vec<i64>; 2] = [side(true), side(false)];
                    let ends = |side: &[i64]| side.iter().fold([0, 0], |[a, b], &e| [e.max(a), e.min(b)]);
                    let ([a, b], [c, d]) = (ends(&right), ends(&left));
                    assert_eq!(found.extremes(k), [a, b, c, d]);
                }
                let mut out = vec![9i8; len];
                gradient(ctx, &mut out, &operands, &coefficients, 22, 127, DITHER);
                for (i, &out) in out.iter().enumerate() {
                    let (group, lane) = (&coefficients[i % channels / LANES], i % channels % LANES);
                    let offset = if x_hat[i] >= 0 { group.offset_positive } else { group.offset_negative };
                    let exact = group.scale.0[lane] * passed(i) as i32 - offset.0[lane];
                    let want = within(stochastic_i32(exact, 22, DITHER.at(i)), -127, 127);
                    assert_eq!(i32::from(out), want, "{} at {i}", isa.name());
                }
            }
        }
    }
}
