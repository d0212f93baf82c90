//! Statistics of a batch, and normalisation.

use super::{BLOCK, FLUSH_ROWS, Join, Tile, ahead, for_each_tile, groups, partial_len, reduce, rows_of};
use crate::Context;
use crate::pool::{Disjoint, fetch, for_each_piece};
use crate::round::{bit_length, within};
use crate::vector::{Element, LANES, Lanes, Loop, Vector, load, store};
use core::ops::Range;

/// A type that batch normalisation reads: accumulators or a residual stream.
#[allow(private_bounds, reason = "no other type can be read")]
pub trait Source: Element + Into<i32> {}
impl Source for i32 {}
impl Source for i16 {}

/// A type that batch normalisation writes: activations or a residual stream.
#[allow(private_bounds, reason = "no other type can be written")]
pub trait Target: Element {}
impl Target for u8 {}
impl Target for i16 {}

/// Sum, smallest and largest value of each channel.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    partial: &'a [i64],
    row: usize,
}

impl Statistics<'_> {
    /// The sum.
    pub fn sum(&self, channel: usize) -> i64 {
        self.partial[channel]
    }

    /// The smallest and the largest value.
    pub fn ends(&self, channel: usize) -> (i32, i32) {
        (self.partial[self.row + channel] as i32, self.partial[2 * self.row + channel] as i32)
    }

    /// How many i64 of scratch [`statistics`] takes.
    pub fn scratch_len(ctx: Context, channels: usize) -> usize {
        partial_len(ctx, 3, channels)
    }
}

/// Sum, smallest and largest of each channel. `scratch` has [`Statistics::scratch_len`] values.
pub fn statistics<'a, T: Source>(ctx: Context, scratch: &'a mut [i64], y: &[T], channels: usize) -> Statistics<'a> {
    let joins = [Join::Sum, Join::Min, Join::Max];
    reduce(ctx, scratch, &joins, y.len() / channels, channels, |part, rows| {
        ctx.isa.run_loop(Ends { part, y, channels, rows });
    });
    Statistics { partial: scratch, row: groups(channels) * LANES }
}

struct Ends<'a, T> {
    part: &'a mut [i64],
    y: &'a [T],
    channels: usize,
    rows: Range<usize>,
}

impl<T: Source> Loop for Ends<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Ends { part, y, channels, rows } = self;
        let (all, ahead) = (groups(channels), ahead(channels));
        for_each_block(
            rows,
            all,
            #[inline(always)]
            |rows, groups| {
                // Sums of the low and the high halves, smallest, largest.
                let mut acc = [[Lanes::default(); 4]; BLOCK];
                for acc in &mut acc[..groups.len()] {
                    (acc[2], acc[3]) = (Lanes([i32::MAX; LANES]), Lanes([i32::MIN; LANES]));
                }
                let first = groups.start;
                for_each_tile(
                    rows,
                    channels,
                    groups.clone(),
                    #[inline(always)]
                    |Tile { group, lanes, at, rows }| {
                        let acc = &mut acc[group - first];
                        let [mut low, mut high, mut min, mut max] = acc.map(|lanes| lanes.get::<V>());
                        for row in 0..rows {
                            let at = at + row * channels;
                            fetch(y, at + ahead);
                            let y: V = load(y, at, lanes);
                            low = low.add(y.and(V::splat(0xFFFF)));
                            high = high.add(y.shr(16));
                            (min, max) = (min.min(y), max.max(y));
                        }
                        acc.iter_mut().zip([low, high, min, max]).for_each(|(acc, v)| acc.set(v));
                    },
                );
                for (group, [low, high, min, max]) in groups.zip(&acc) {
                    for k in 0..LANES {
                        let at = group * LANES + k;
                        part[at] += (i64::from(high.0[k]) << 16) + i64::from(low.0[k]);
                        let (lowest, largest) = ((all * LANES) + at, 2 * all * LANES + at);
                        part[lowest] = part[lowest].min(min.0[k].into());
                        part[largest] = part[largest].max(max.0[k].into());
                    }
                }
            },
        );
    }
}

/// Cuts rows and groups into blocks whose partial results are kept at hand and flushed once.
#[inline(always)]
pub(super) fn for_each_block(rows: Range<usize>, groups: usize, mut visit: impl FnMut(Range<usize>, Range<usize>)) {
    let mut from = rows.start;
    while from < rows.end {
        let to = rows.end.min(from + FLUSH_ROWS);
        let mut group = 0;
        while group < groups {
            visit(from..to, group..groups.min(group + BLOCK));
            group += BLOCK;
        }
        from = to;
    }
}

/// `Σ |256 · y − mean|` of each channel, the means in units of 2^-8: returned as a slice of `scratch`, which has
/// as many values as one reduction takes ([`Statistics::scratch_len`] suffices).
pub fn absolute_deviations<'a, T: Source>(
    ctx: Context,
    scratch: &'a mut [i64],
    y: &[T],
    means_q8: &[i64],
) -> &'a [i64] {
    let channels = means_q8.len();
    let (n, row) = ((y.len() / channels) as i64, groups(channels) * LANES);
    let scratch = &mut scratch[..partial_len(ctx, 2, channels)];
    reduce(ctx, scratch, &[Join::Sum; 2], y.len() / channels, channels, |part, rows| {
        ctx.isa.run_loop(Deviations { part, y, means_q8, rows });
    });
    // With mean = 256 · floor + rest, a value above the floor is `rest` nearer to the mean than to the floor, one that
    // is not is as much farther.
    let (sums, above) = scratch.split_at_mut(row);
    for ((sum, &above), &mean) in sums.iter_mut().zip(&*above).zip(means_q8) {
        *sum = (*sum << 8) + (mean & 255) * (n - 2 * above);
    }
    &sums[..channels]
}

struct Deviations<'a, T> {
    part: &'a mut [i64],
    y: &'a [T],
    means_q8: &'a [i64],
    rows: Range<usize>,
}

impl<T: Source> Loop for Deviations<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Deviations { part, y, means_q8, rows } = self;
        let channels = means_q8.len();
        let (all, ahead) = (groups(channels), ahead(channels));
        for_each_block(
            rows,
            all,
            #[inline(always)]
            |rows, groups| {
                let mut floors = [Lanes::default(); BLOCK];
                for (floor, means) in floors.iter_mut().zip(means_q8[groups.start * LANES..].chunks(LANES)) {
                    floor.0.iter_mut().zip(means).for_each(|(floor, &mean)| *floor = (mean >> 8) as i32);
                }
                // Sums of the low and the high halves of |y − floor|, and how many values lie above.
                let mut acc = [[Lanes::default(); 3]; BLOCK];
                let first = groups.start;
                for_each_tile(
                    rows,
                    channels,
                    groups.clone(),
                    #[inline(always)]
                    |Tile { group, lanes, at, rows }| {
                        let acc = &mut acc[group - first];
                        let [mut low, mut high, mut above] = acc.map(|lanes| lanes.get::<V>());
                        let floor: V = floors[group - first].get();
                        for row in 0..rows {
                            let at = at + row * channels;
                            fetch(y, at + ahead);
                            let y: V = load(y, at, lanes);
                            // Exact in 32 unsigned bits.
                            let distance = y.max(floor).sub(y.min(floor));
                            low = low.add(distance.and(V::splat(0xFFFF)));
                            high = high.add(distance.shr_unsigned(16));
                            above = above.add(V::splat(1).keep(y.greater(floor)));
                        }
                        acc.iter_mut().zip([low, high, above]).for_each(|(acc, v)| acc.set(v));
                    },
                );
                for (group, [low, high, above]) in groups.zip(&acc) {
                    for k in 0..LANES {
                        let at = group * LANES + k;
                        part[at] += (i64::from(high.0[k]) << 16) + i64::from(low.0[k]);
                        part[all * LANES + at] += i64::from(above.0[k]);
                    }
                }
            },
        );
    }
}

/// One channel's normalisation, `x̂ = (y − μ) / σ` with 11 fractional bits, and its scale and offset, as 32-bit steps:
/// hold y within the reach of x̂, subtract the centre, shift, multiply, add, shift.
#[derive(Clone, Copy, Debug, Default)]
pub struct Channel {
    low: i32,
    high: i32,
    centre: i32,
    pre_shift: i32,
    reciprocal: i32,
    offset: i32,
    shift: i32,
    gamma: i32,
    beta_q23: i32,
}

/// Largest |x̂|, with 11 fractional bits: 16 deviations.
const X_HAT_LIMIT: i32 = 32_767;

impl Channel {
    /// The channel of a mean and a deviation in units of 2^-8, σ at least 1, γ in units of 2^-12 and below 2^15, β in
    /// units of 2^-23 and below 2^26. x̂ keeps multiples of `2^coarse`, 0..=8.
    ///
    /// The difference keeps 16 bits of what x̂ can reach, the reciprocal 13 at least: x̂ is within 4 units of the quotient
    /// at ±16 σ, and within 2 up to ±2 σ; beyond ±16 σ it stays within a unit of y of its limit.
    pub fn new(mean_q8: i64, sigma_q8: i64, gamma: i32, beta_q23: i32, coarse: u32) -> Self {
        let (floor, rest) = (mean_q8 >> 8, mean_q8 & 255);
        // |y − μ| at which |x̂| is at its limit.
        let reach = (((i128::from(X_HAT_LIMIT) * i128::from(sigma_q8)) >> 19) as i64 + 1).min(1 << 30);
        let pre_shift = bit_length(reach as u64).saturating_sub(16);
        let half = (1i64 << pre_shift) >> 1;
        // The largest shift with which product and offset stay below 2^31.
        let largest = i128::from(reach >> pre_shift) + 1;
        let divide = |shift: i32| {
            let numerator = 1i128 << (shift + pre_shift as i32 + 19);
            (numerator + i128::from(sigma_q8) / 2) / i128::from(sigma_q8)
        };
        let bits = 31 - bit_length(largest as u64) as i32;
        let guess = (bits - pre_shift as i32 - 20 + bit_length(sigma_q8 as u64) as i32).clamp(1, 30);
        let shift = match largest * divide(guess) + (1 << guess) < 1 << 31 {
            true => guess,
            false => guess - 1,
        };
        let spare = (shift + coarse as i32 - 30).max(0);
        let (reciprocal, shift) = ((divide(shift) as i64) >> spare, shift + coarse as i32 - spare);
        // The mean's fraction is below what a shifted difference resolves.
        let fraction = if pre_shift == 0 { (rest * reciprocal) >> 8 } else { 0 };
        Channel {
            low: (floor - reach).clamp(i32::MIN.into(), i32::MAX.into()) as i32,
            high: (floor + reach).clamp(i32::MIN.into(), i32::MAX.into()) as i32,
            centre: (floor - half) as i32,
            pre_shift: pre_shift as i32,
            reciprocal: reciprocal as i32,
            offset: ((1i64 << shift >> 1) - fraction) as i32,
            shift,
            gamma,
            beta_q23,
        }
    }

    /// x̂ in units of 2^-11, a multiple of `2^coarse`.
    pub fn normalize(&self, y: i32, coarse: u32) -> i32 {
        let d = within(y, self.low, self.high).wrapping_sub(self.centre) >> self.pre_shift;
        let x_hat = (d * self.reciprocal + self.offset) >> self.shift;
        within(x_hat, -X_HAT_LIMIT >> coarse, X_HAT_LIMIT >> coarse) << coarse
    }

    /// `γ·x̂ + β` in units of 2^-23. Never overflows: |x̂| < 2^15, |γ| < 2^15, |β| < 2^26.
    pub fn scale(&self, x_hat: i32) -> i32 {
        x_hat * self.gamma + self.beta_q23
    }
}

/// The constants of 16 channels.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChannelGroup {
    low: Lanes,
    high: Lanes,
    centre: Lanes,
    pre_shift: Lanes,
    reciprocal: Lanes,
    offset: Lanes,
    shift: Lanes,
    pub(super) gamma: Lanes,
    pub(super) beta_q23: Lanes,
}

impl ChannelGroup {
    /// Groups up to 16 channels.
    pub fn new(channels: &[Channel]) -> Self {
        let mut group = ChannelGroup::default();
        for (k, c) in channels.iter().take(LANES).enumerate() {
            group.low.0[k] = c.low;
            group.high.0[k] = c.high;
            group.centre.0[k] = c.centre;
            group.pre_shift.0[k] = c.pre_shift;
            group.reciprocal.0[k] = c.reciprocal;
            group.offset.0[k] = c.offset;
            group.shift.0[k] = c.shift;
            group.gamma.0[k] = c.gamma;
            group.beta_q23.0[k] = c.beta_q23;
        }
        group
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
///
/// # Panics
/// When lengths differ.
pub fn normalize<T: Source, U: Target>(
    ctx: Context,
    out: &mut [U],
    x_hat: &mut [i16],
    y: &[T],
    channels: usize,
    constants: &[ChannelGroup],
    rounding: Rounding,
) {
    assert!(out.len() == y.len() && x_hat.len() == y.len() && constants.len() == groups(channels), "lengths");
    let piece_len = rows_of(channels) * channels;
    let x_hat = Disjoint::new(x_hat);
    for_each_piece(ctx.pool, out, piece_len, |piece, out, _| {
        let from = piece * piece_len;
        // SAFETY: the same range of indices as the piece of the output, which is this task's alone.
        let x_hat = unsafe { x_hat.piece(from, from + out.len()) };
        let y = &y[from..][..out.len()];
        ctx.isa.run_loop(Normalization { out, x_hat, y, channels, constants, rounding });
    });
}

struct Normalization<'a, T, U> {
    out: &'a mut [U],
    x_hat: &'a mut [i16],
    y: &'a [T],
    channels: usize,
    constants: &'a [ChannelGroup],
    rounding: Rounding,
}

impl<T: Source, U: Target> Loop for Normalization<'_, T, U> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Normalization { out, x_hat, y, channels, constants, rounding } = self;
        let Rounding { coarse, shift, low, high } = rounding;
        let [low, high] = [low, high].map(V::splat);
        let ahead = ahead(channels);
        let limits = [-X_HAT_LIMIT >> coarse, X_HAT_LIMIT >> coarse].map(V::splat);
        for_each_tile(
            0..y.len() / channels,
            channels,
            0..constants.len(),
            #[inline(always)]
            |Tile { group, lanes, at, rows }| {
                let c = &constants[group];
                let [reach_low, reach_high, centre] = [&c.low, &c.high, &c.centre].map(Lanes::get::<V>);
                let [pre_shift, reciprocal, offset] = [&c.pre_shift, &c.reciprocal, &c.offset].map(Lanes::get::<V>);
                let [shift_each, gamma, beta] = [&c.shift, &c.gamma, &c.beta_q23].map(Lanes::get::<V>);
                for row in 0..rows {
                    let at = at + row * channels;
                    fetch(y, at + ahead);
                    let y: V = load(y, at, lanes);
                    let d = y.within(reach_low, reach_high).sub(centre).shr_each(pre_shift);
                    let x = d.mul(reciprocal).add(offset).shr_each(shift_each).within(limits[0], limits[1]).shl(coarse);
                    store(x, x_hat, at, lanes);
                    let z = x.mul(gamma).add(beta).half_even(shift).within(low, high);
                    store(z, out, at, lanes);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::{divide_half_even, half_even_i32};
    use crate::testing::Threads;
    use crate::{Dither, Isa, Role};
    use std::vec;
    use std::vec::Vec;

    fn values(len: usize, bits: u32) -> Vec<i32> {
        let d = Dither::new(8, 0, 0, Role::Initial);
        (0..len).map(|i| d.at(i) as i32 >> (32 - bits)).collect()
    }

    fn contexts() -> impl Iterator<Item = (Isa, Threads)> {
        Isa::available().flat_map(|isa| [1, 3].map(|threads| (isa, Threads(threads))))
    }

    #[test]
    fn statistics_are_the_definitions() {
        for (channels, rows, bits) in [(1, 700, 32), (16, 333, 20), (21, 1000, 31), (300, 5, 12), (600, 130, 32)] {
            let y = values(channels * rows, bits);
            let column = |k: usize| y.iter().skip(k).step_by(channels).copied();
            let means: Vec<i64> = (0..channels)
                .map(|k| divide_half_even(column(k).map(|v| i64::from(v) << 8).sum(), rows as i64))
                .collect();
            for (isa, pool) in contexts() {
                let ctx = Context { isa, pool: &pool };
                let mut scratch = vec![7; Statistics::scratch_len(ctx, channels)];
                let found = statistics(ctx, &mut scratch, &y, channels);
                for k in 0..channels {
                    assert_eq!(found.sum(k), column(k).map(i64::from).sum::<i64>());
                    assert_eq!(found.ends(k), (column(k).min().unwrap(), column(k).max().unwrap()));
                }
                let deviations = absolute_deviations(ctx, &mut scratch, &y, &means);
                for (k, &mean) in means.iter().enumerate() {
                    assert_eq!(deviations[k], column(k).map(|v| ((i64::from(v) << 8) - mean).abs()).sum::<i64>());
                }
            }
        }
    }

    #[test]
    fn x_hat_is_the_quotient_as_nearly_as_it_says() {
        let draw = Dither::new(9, 0, 0, Role::Initial);
        for case in 0..4000 {
            let sigma_q8 = i64::from((draw.at(3 * case) >> (draw.at(case) % 31)).max(1));
            let mean_q8 = i64::from(draw.at(3 * case + 1) as i32 >> (case % 20));
            let channel = Channel::new(mean_q8, sigma_q8, 4096, 0, 0);
            for step in -40i64..=40 {
                // From −20 σ to 20 σ around the mean.
                let y = ((mean_q8 + step * sigma_q8 / 2) >> 8).clamp(-(1 << 30), 1 << 30) as i32;
                let exact = ((i128::from(y) << 8) - i128::from(mean_q8)) * 2048 / i128::from(sigma_q8);
                let held = exact.clamp(-32_767, 32_767) as i32;
                let error = (channel.normalize(y, 0) - held).abs();
                let unit_of_y = ((1i64 << 19) / sigma_q8) as i32;
                let allowed = match held.abs() {
                    0..=4096 => 2,
                    32_767 => 4 + unit_of_y,
                    _ => 4,
                };
                assert!(error <= allowed, "({y} − {mean_q8}/256) / ({sigma_q8}/256): {held} and {error}");
            }
        }
    }

    #[test]
    fn every_instruction_set_normalises_as_one_value_is() {
        for (channels, rows) in [(3, 50), (16, 40), (37, 21), (256, 9)] {
            let y = values(channels * rows, 18);
            let all: Vec<Channel> = (0..channels as i64)
                .map(|k| Channel::new(k * 777 - 9000, 1 + (k * k * 991) % 9_000_000, 4096 - 99 * k as i32, 50_000, 3))
                .collect();
            let groups: Vec<ChannelGroup> = all.chunks(LANES).map(ChannelGroup::new).collect();
            let rounding = Rounding { coarse: 3, shift: 15, low: 0, high: 255 };
            for (isa, pool) in contexts() {
                let (mut out, mut x_hat) = (vec![9u8; y.len()], vec![9i16; y.len()]);
                let ctx = Context { isa, pool: &pool };
                normalize(ctx, &mut out, &mut x_hat, &y, channels, &groups, rounding);
                for (i, &y) in y.iter().enumerate() {
                    let channel = &all[i % channels];
                    let x = channel.normalize(y, 3);
                    let z = within(half_even_i32(channel.scale(x), 15), 0, 255);
                    assert_eq!((i32::from(x_hat[i]), i32::from(out[i])), (x, z), "{} at {i}", isa.name());
                }
            }
        }
    }
}
