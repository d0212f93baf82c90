//! Changing the width of whole tensors: maxima, rounding, sums of errors.
//!
//! What only training needs stands on 64-bit atomics, which small cores lack: it is not compiled for those.

use crate::pool::for_each_piece;
use crate::round::{bit_length, half_even_i32, half_even_i64, stochastic_i32, stochastic_i64, within};
use crate::{Context, Dither};
use core::ops::AddAssign;
#[cfg(target_has_atomic = "64")]
use core::sync::atomic::AtomicU64;
use core::sync::atomic::{AtomicU32, Ordering};

/// Elements that one task handles.
const PIECE: usize = 1 << 14;
/// Elements that are summed in a buffer on the stack.
const BLOCK: usize = 256;

/// The right shift that brings magnitudes up to `largest` to `bits` bits.
pub fn shift_for(largest: u64, bits: u32) -> u32 {
    bit_length(largest).saturating_sub(bits)
}

/// The largest magnitude.
pub fn max_magnitude<T: Copy + Into<i32> + Sync>(ctx: Context, values: &[T]) -> u32 {
    let largest = AtomicU32::new(0);
    ctx.pool.run(values.len().div_ceil(PIECE), &|piece, _| {
        let values = &values[piece * PIECE..values.len().min((piece + 1) * PIECE)];
        let here = ctx.isa.vectorize(
            #[inline(always)]
            || values.iter().fold(0, |max: u32, &v| max.max(v.into().unsigned_abs())),
        );
        largest.fetch_max(here, Ordering::Relaxed);
    });
    largest.into_inner()
}

/// The smallest and the largest of `sums[p, k] + bias[k]`, or of the sums alone when `bias` is empty; `(0, 0)` of
/// nothing. `sums` is `[P, K]`; the additions must fit 32 bits.
pub fn range_biased(ctx: Context, sums: &[i32], bias: &[i32]) -> (i32, i32) {
    // Both ends are kept in unsigned order, which an atomic maximum understands.
    let (low, high) = (AtomicU32::new(0), AtomicU32::new(0));
    let ordered = |v: i32| v as u32 ^ 0x8000_0000;
    let row = if bias.is_empty() { PIECE } else { bias.len() };
    let rows = (PIECE / row).max(1);
    ctx.pool.run(sums.len().div_ceil(rows * row), &|piece, _| {
        let sums = &sums[piece * rows * row..sums.len().min((piece + 1) * rows * row)];
        let (min, max) = ctx.isa.vectorize(
            #[inline(always)]
            || {
                let mut ends = (i32::MAX, i32::MIN);
                for sums in sums.chunks(row) {
                    ends = match bias {
                        [] => sums.iter().fold(ends, |(a, b), &v| (a.min(v), b.max(v))),
                        _ => sums.iter().zip(bias).fold(ends, |(a, b), (&v, &c)| (a.min(v + c), b.max(v + c))),
                    };
                }
                ends
            },
        );
        low.fetch_max(!ordered(min), Ordering::Relaxed);
        high.fetch_max(ordered(max), Ordering::Relaxed);
    });
    match sums {
        [] => (0, 0),
        _ => ((!low.into_inner() ^ 0x8000_0000) as i32, (high.into_inner() ^ 0x8000_0000) as i32),
    }
}

/// `out = clamp(half_even((sums + bias) / 2^shift), low, high)`, where `narrow` casts. `bias` may be empty.
fn bias_and_round<T: Send>(
    ctx: Context,
    out: &mut [T],
    sums: &[i32],
    bias: &[i32],
    shift: u32,
    [low, high]: [i32; 2],
    narrow: impl Fn(i32) -> T + Sync + Copy,
) {
    assert_eq!(out.len(), sums.len(), "output");
    let row = if bias.is_empty() { PIECE } else { bias.len() };
    let piece_len = (PIECE / row).max(1) * row;
    for_each_piece(ctx.pool, out, piece_len, |piece, out, _| {
        let sums = &sums[piece * piece_len..][..out.len()];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (out, sums) in out.chunks_mut(row).zip(sums.chunks(row)) {
                    let round = |v: i32| narrow(within(half_even_i32(v, shift), low, high));
                    match bias {
                        [] => out.iter_mut().zip(sums).for_each(|(out, &v)| *out = round(v)),
                        _ => out.iter_mut().zip(sums.iter().zip(bias)).for_each(|(out, (&v, &b))| *out = round(v + b)),
                    }
                }
            },
        );
    });
}

/// Bias, ReLU and rounding to nearest: `[P, K]` sums to unsigned 8 bits, 0 to `high`.
pub fn bias_relu_u8(ctx: Context, out: &mut [u8], sums: &[i32], bias: &[i32], shift: u32, high: u8) {
    bias_and_round(
        ctx,
        out,
        sums,
        bias,
        shift,
        [0, high.into()],
        #[inline(always)]
        |v| v as u8,
    );
}

/// Bias and rounding to nearest: `[P, K]` sums to signed 16 bits, −`limit` to `limit`.
pub fn bias_i16(ctx: Context, out: &mut [i16], sums: &[i32], bias: &[i32], shift: u32, limit: i16) {
    bias_and_round(
        ctx,
        out,
        sums,
        bias,
        shift,
        [-i32::from(limit), limit.into()],
        #[inline(always)]
        |v| v as i16,
    );
}

/// Rounds 16 bits to 8 stochastically, −`limit` to `limit`.
pub fn stochastic_i8(ctx: Context, out: &mut [i8], values: &[i16], shift: u32, limit: i8, dither: Dither) {
    assert_eq!(out.len(), values.len(), "output");
    let dither = dither.over(shift);
    for_each_piece(ctx.pool, out, PIECE, |piece, out, _| {
        let values = &values[piece * PIECE..][..out.len()];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (i, (out, &value)) in out.iter_mut().zip(values).enumerate() {
                    let rounded = stochastic_i32(value.into(), shift, dither.at(piece * PIECE + i));
                    *out = within(rounded, -i32::from(limit), limit.into()) as i8;
                }
            },
        );
    });
}

/// Splits 16 bits into two signed bytes, `value = 256 · high + low`, exactly up to a magnitude of 32 512, where
/// larger ones are cut off.
pub fn split_i16(ctx: Context, high: &mut [i8], low: &mut [i8], values: &[i16]) {
    assert!(high.len() == values.len() && low.len() == values.len(), "output");
    let part = |ctx: Context, out: &mut [i8], shift: u32| {
        for_each_piece(ctx.pool, out, PIECE, |piece, out, _| {
            let values = &values[piece * PIECE..][..out.len()];
            ctx.isa.vectorize(
                #[inline(always)]
                || {
                    for (out, &value) in out.iter_mut().zip(values) {
                        let value = i32::from(value).clamp(-32_512, 32_512);
                        // The low byte is signed, so that the high one takes its carry.
                        *out = ((value + if shift == 8 { 128 } else { 0 }) >> shift) as i8;
                    }
                },
            );
        });
    };
    part(ctx, high, 8);
    part(ctx, low, 0);
}

/// Zeroes errors where ReLU's output is 0.
pub fn mask<T: Copy + Default + Send>(ctx: Context, errors: &mut [T], output: &[u8]) {
    assert_eq!(errors.len(), output.len(), "output");
    for_each_piece(ctx.pool, errors, PIECE, |piece, errors, _| {
        let output = &output[piece * PIECE..][..errors.len()];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (error, &out) in errors.iter_mut().zip(output) {
                    *error = if out > 0 { *error } else { T::default() };
                }
            },
        );
    });
}

/// A part of a sum of tensors: mantissas, and the left shift (right, to nearest, if negative) that aligns them with the
/// other parts.
#[derive(Clone, Copy, Debug)]
pub enum Contribution<'a> {
    /// Activations.
    U8(&'a [u8], i32),
    /// 8 bits.
    I8(&'a [i8], i32),
    /// 16 bits.
    I16(&'a [i16], i32),
    /// Accumulators.
    I32(&'a [i32], i32),
}

impl Contribution<'_> {
    /// The largest left shift of a contribution; beyond it, sums could leave 64 bits.
    pub const MAX_SHIFT: i32 = 28;

    fn len(&self) -> usize {
        match self {
            Contribution::U8(values, _) => values.len(),
            Contribution::I8(values, _) => values.len(),
            Contribution::I16(values, _) => values.len(),
            Contribution::I32(values, _) => values.len(),
        }
    }

    /// Bits that the aligned values can take, without their sign.
    fn bits(&self, ctx: Context) -> i32 {
        let (bits, shift) = match *self {
            Contribution::U8(_, shift) => (8, shift),
            Contribution::I8(_, shift) => (7, shift),
            Contribution::I16(_, shift) => (15, shift),
            Contribution::I32(values, shift) => (bit_length(max_magnitude(ctx, values).into()) as i32, shift),
        };
        bits + shift
    }

    #[inline(always)]
    fn add_to<W: Wide>(&self, sums: &mut [W], from: usize) {
        match *self {
            Contribution::U8(values, shift) => add_aligned(sums, &values[from..], shift),
            Contribution::I8(values, shift) => add_aligned(sums, &values[from..], shift),
            Contribution::I16(values, shift) => add_aligned(sums, &values[from..], shift),
            Contribution::I32(values, shift) => add_aligned(sums, &values[from..], shift),
        }
    }
}

/// Whether the sum of contributions fits 32 bits, half a unit of a right shift included.
fn fits_32(ctx: Context, parts: &[Contribution]) -> bool {
    let room = 30 - (parts.len() as u32).next_power_of_two().trailing_zeros() as i32;
    let in_range = |part: &Contribution| {
        let (Contribution::U8(_, shift)
        | Contribution::I8(_, shift)
        | Contribution::I16(_, shift)
        | Contribution::I32(_, shift)) = part;
        (-31..=Contribution::MAX_SHIFT).contains(shift)
    };
    parts.iter().all(in_range) && parts.iter().all(|part| part.bits(ctx) <= room)
}

/// The integers that contributions are added in.
trait Wide: Copy + Default + Ord + AddAssign + Into<i64> {
    /// `value · 2^shift`, rounded to nearest if `shift` is negative.
    fn aligned(value: i32, shift: i32) -> Self;
    fn half_even(self, shift: u32) -> Self;
    fn stochastic(self, shift: u32, bits: u32) -> Self;
}

impl Wide for i32 {
    #[inline(always)]
    fn aligned(value: i32, shift: i32) -> Self {
        if shift >= 0 { value << shift } else { half_even_i32(value, shift.unsigned_abs()) }
    }
    #[inline(always)]
    fn half_even(self, shift: u32) -> Self {
        half_even_i32(self, shift.min(31))
    }
    #[inline(always)]
    fn stochastic(self, shift: u32, bits: u32) -> Self {
        stochastic_i32(self, shift, bits)
    }
}

impl Wide for i64 {
    #[inline(always)]
    fn aligned(value: i32, shift: i32) -> Self {
        match shift {
            0.. => i64::from(value) << shift,
            _ => half_even_i64(value.into(), shift.unsigned_abs().min(62)),
        }
    }
    #[inline(always)]
    fn half_even(self, shift: u32) -> Self {
        half_even_i64(self, shift)
    }
    #[inline(always)]
    fn stochastic(self, shift: u32, bits: u32) -> Self {
        stochastic_i64(self, shift, bits)
    }
}

#[inline(always)]
fn add_aligned<T: Copy + Into<i32>, W: Wide>(sums: &mut [W], values: &[T], shift: i32) {
    // Two loops: a shift of either direction in one would not be vectorised.
    if shift >= 0 {
        sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum += W::aligned(v.into(), shift));
    } else {
        sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum += W::aligned(v.into(), shift));
    }
}

/// Calls `visit(first index, sums)` for the aligned sums of a range, block by block.
#[inline(always)]
fn for_each_block<W: Wide>(parts: &[Contribution], from: usize, to: usize, mut visit: impl FnMut(usize, &[W])) {
    let mut sums = [W::default(); BLOCK];
    let mut at = from;
    while at < to {
        let sums = &mut sums[..BLOCK.min(to - at)];
        sums.fill(W::default());
        // Not `for_each`: what it is handed is compiled without the caller's instruction set.
        for part in parts {
            part.add_to(sums, at);
        }
        visit(at, sums);
        at += BLOCK;
    }
}

/// The smallest and the largest sum of contributions; 0 counts as one of them.
#[cfg(target_has_atomic = "64")]
pub fn range_of_sum(ctx: Context, parts: &[Contribution]) -> (i64, i64) {
    match fits_32(ctx, parts) {
        true => range_in::<i32>(ctx, parts),
        false => range_in::<i64>(ctx, parts),
    }
}

#[cfg(target_has_atomic = "64")]
fn range_in<W: Wide>(ctx: Context, parts: &[Contribution]) -> (i64, i64) {
    let len = parts.first().map_or(0, Contribution::len);
    let (low, high) = (AtomicU64::new(0), AtomicU64::new(0));
    ctx.pool.run(len.div_ceil(PIECE), &|piece, _| {
        let (min, max) = ctx.isa.vectorize(
            #[inline(always)]
            || {
                let mut ends = (W::default(), W::default());
                for_each_block(
                    parts,
                    piece * PIECE,
                    len.min((piece + 1) * PIECE),
                    #[inline(always)]
                    |_, sums: &[W]| {
                        ends = sums.iter().fold(ends, |(a, b), &v| (a.min(v), b.max(v)));
                    },
                );
                ends
            },
        );
        low.fetch_max(min.into().unsigned_abs(), Ordering::Relaxed);
        high.fetch_max(max.into().unsigned_abs(), Ordering::Relaxed);
    });
    (-(low.into_inner() as i64), high.into_inner() as i64)
}

/// `out = clamp(half_even(Σ parts / 2^shift), low, high)`, where `narrow` casts.
pub fn sum_to_nearest<T: Send>(
    ctx: Context,
    out: &mut [T],
    parts: &[Contribution],
    shift: u32,
    range: [i64; 2],
    narrow: impl Fn(i64) -> T + Sync + Copy,
) {
    match fits_32(ctx, parts) {
        true => nearest_in::<i32, T>(ctx, out, parts, shift, range, narrow),
        false => nearest_in::<i64, T>(ctx, out, parts, shift, range, narrow),
    }
}

fn nearest_in<W: Wide, T: Send>(
    ctx: Context,
    out: &mut [T],
    parts: &[Contribution],
    shift: u32,
    [low, high]: [i64; 2],
    narrow: impl Fn(i64) -> T + Sync + Copy,
) {
    assert!(parts.iter().all(|part| part.len() == out.len()), "contributions");
    for_each_piece(ctx.pool, out, PIECE, |piece, out, _| {
        let from = piece * PIECE;
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for_each_block(
                    parts,
                    from,
                    from + out.len(),
                    #[inline(always)]
                    |at, sums: &[W]| {
                        for (out, &v) in out[at - from..].iter_mut().zip(sums) {
                            *out = narrow(within(v.half_even(shift).into(), low, high));
                        }
                    },
                );
            },
        );
    });
}

/// `out = stochastic(values · multiplier / 2^shift)` within ±32 767: the scaling of exact sums that a denominator
/// which is no power of two leaves behind. The products must fit 63 bits.
pub fn scale_i16(ctx: Context, out: &mut [i16], values: &[i64], multiplier: i64, shift: u32, dither: Dither) {
    assert_eq!(out.len(), values.len(), "output");
    let dither = dither.over(shift);
    for_each_piece(ctx.pool, out, PIECE, |piece, out, _| {
        let values = &values[piece * PIECE..][..out.len()];
        for (i, (out, &v)) in out.iter_mut().zip(values).enumerate() {
            let rounded = stochastic_i64(v * multiplier, shift, dither.at(piece * PIECE + i));
            *out = rounded.clamp(-32_767, 32_767) as i16;
        }
    });
}

/// Adds contributions and rounds the sum stochastically to `bits` bits; returns the right shift that this took.
#[cfg(target_has_atomic = "64")]
fn collect<T: Send>(
    ctx: Context,
    out: &mut [T],
    parts: &[Contribution],
    bits: u32,
    dither: Dither,
    narrow: impl Fn(i64) -> T + Sync + Copy,
) -> u32 {
    assert!(parts.iter().all(|part| part.len() == out.len()), "contributions");
    if let [Contribution::I32(values, 0)] = parts {
        let shift = shift_for(max_magnitude(ctx, values).into(), bits - 1);
        let limit = (1 << (bits - 1)) - 1;
        let dither = dither.over(shift);
        for_each_piece(ctx.pool, out, PIECE, |piece, out, _| {
            let from = piece * PIECE;
            ctx.isa.vectorize(
                #[inline(always)]
                || {
                    for (i, (out, &v)) in out.iter_mut().zip(&values[from..]).enumerate() {
                        let rounded = within(stochastic_i32(v, shift, dither.at(from + i)), -limit, limit);
                        *out = narrow(rounded.into());
                    }
                },
            );
        });
        return shift;
    }
    match fits_32(ctx, parts) {
        true => collect_in::<i32, T>(ctx, out, parts, bits, dither, narrow),
        false => collect_in::<i64, T>(ctx, out, parts, bits, dither, narrow),
    }
}

#[cfg(target_has_atomic = "64")]
fn collect_in<W: Wide, T: Send>(
    ctx: Context,
    out: &mut [T],
    parts: &[Contribution],
    bits: u32,
    dither: Dither,
    narrow: impl Fn(i64) -> T + Sync + Copy,
) -> u32 {
    let (low, high) = range_in::<W>(ctx, parts);
    let shift = shift_for(low.unsigned_abs().max(high.unsigned_abs()), bits - 1);
    let limit = (1i64 << (bits - 1)) - 1;
    let dither = dither.over(shift);
    for_each_piece(ctx.pool, out, PIECE, |piece, out, _| {
        let from = piece * PIECE;
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for_each_block(
                    parts,
                    from,
                    from + out.len(),
                    #[inline(always)]
                    |at, sums: &[W]| {
                        for (i, (out, &v)) in out[at - from..].iter_mut().zip(sums).enumerate() {
                            *out = narrow(within(v.stochastic(shift, dither.at(at + i)).into(), -limit, limit));
                        }
                    },
                );
            },
        );
    });
    shift
}

/// Adds contributions and rounds the sum stochastically to `bits` bits, at most 8; returns the right shift.
#[cfg(target_has_atomic = "64")]
pub fn collect_i8(ctx: Context, out: &mut [i8], parts: &[Contribution], bits: u32, dither: Dither) -> u32 {
    collect(
        ctx,
        out,
        parts,
        bits,
        dither,
        #[inline(always)]
        |v| v as i8,
    )
}

/// Adds contributions and rounds the sum stochastically to `bits` bits, at most 16; returns the right shift.
#[cfg(target_has_atomic = "64")]
pub fn collect_i16(ctx: Context, out: &mut [i16], parts: &[Contribution], bits: u32, dither: Dither) -> u32 {
    collect(
        ctx,
        out,
        parts,
        bits,
        dither,
        #[inline(always)]
        |v| v as i16,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Threads;
    use crate::{Isa, Role};
    use std::vec;
    use std::vec::Vec;

    const DITHER: Dither = Dither::new(3, 1, 2, Role::ErrorAtActivation);

    fn random(len: usize, tensor: u32, bits: u32) -> Vec<i32> {
        let d = Dither::new(9, 0, tensor, Role::Initial);
        (0..len).map(|i| (d.at(i) as i32) >> (32 - bits)).collect()
    }

    /// The same result from every instruction set on one and on three threads.
    fn same<R: PartialEq + core::fmt::Debug>(compute: impl Fn(Context) -> R) -> R {
        let want = compute(Context::reference());
        for isa in Isa::available() {
            for threads in [1, 3] {
                let got = compute(Context { isa, pool: &Threads(threads) });
                assert!(got == want, "{} x{threads}", isa.name());
            }
        }
        want
    }

    #[test]
    fn maxima_and_ranges_are_exact() {
        let values = random(70_001, 1, 31);
        let want = values.iter().map(|v| v.unsigned_abs()).max().unwrap();
        assert_eq!(same(|ctx| max_magnitude(ctx, &values)), want);
        let bias = random(7, 2, 20);
        let values = random(70_007, 3, 25);
        let biased = || values.iter().enumerate().map(|(i, v)| v + bias[i % 7]);
        assert_eq!(same(|ctx| range_biased(ctx, &values, &bias)), (biased().min().unwrap(), biased().max().unwrap()));
        assert_eq!(same(|ctx| range_biased(ctx, &[], &[])), (0, 0));
    }

    #[test]
    fn bias_and_relu_round_to_nearest_even() {
        let (sums, bias) = (random(50_000, 1, 20), random(10, 2, 18));
        let out = same(|ctx| {
            let mut out = vec![0; sums.len()];
            bias_relu_u8(ctx, &mut out, &sums, &bias, 12, 200);
            out
        });
        for (i, &out) in out.iter().enumerate() {
            let want = crate::round::divide_half_even((sums[i] + bias[i % 10]).into(), 1 << 12);
            assert_eq!(i64::from(out), want.clamp(0, 200));
        }
    }

    #[test]
    fn splitting_is_exact() {
        let values: Vec<i16> = (-32_512..=32_512).collect();
        let (high, low) = same(|ctx| {
            let (mut high, mut low) = (vec![0; values.len()], vec![0; values.len()]);
            split_i16(ctx, &mut high, &mut low, &values);
            (high, low)
        });
        for ((&value, &high), &low) in values.iter().zip(&high).zip(&low) {
            assert_eq!(i32::from(value), 256 * i32::from(high) + i32::from(low));
        }
    }

    #[test]
    fn collected_errors_are_within_one_unit_and_unbiased() {
        let (a, b) = (random(100_000, 1, 30), random(100_000, 2, 16));
        let b: Vec<i16> = b.iter().map(|&v| v as i16).collect();
        let parts = [Contribution::I32(&a, 0), Contribution::I16(&b, 12)];
        let (out, shift) = same(|ctx| {
            let mut out = vec![0i8; a.len()];
            let shift = collect_i8(ctx, &mut out, &parts, 8, DITHER);
            (out, shift)
        });
        let mut drift = 0;
        for (i, &out) in out.iter().enumerate() {
            let exact = i64::from(a[i]) + (i64::from(b[i]) << 12);
            let off = (i64::from(out) << shift) - exact;
            assert!(off.abs() < 1 << shift);
            drift += off;
        }
        assert!((drift / 100_000).abs() < 1 << (shift - 6), "{drift}");
    }

    #[test]
    fn a_single_accumulator_takes_the_same_way_as_a_sum() {
        let a = random(40_000, 1, 28);
        let zeros = vec![0i8; a.len()];
        let collect = |parts: &[Contribution]| {
            same(|ctx| {
                let mut out = vec![0i16; a.len()];
                let shift = collect_i16(ctx, &mut out, parts, 16, DITHER);
                (out, shift)
            })
        };
        let alone = collect(&[Contribution::I32(&a, 0)]);
        assert_eq!(alone, collect(&[Contribution::I32(&a, 0), Contribution::I8(&zeros, 3)]));
    }
}
