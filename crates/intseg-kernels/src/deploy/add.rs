//! Sums of two tensors in 32-bit lanes.

use crate::Context;
use crate::pool::for_each_piece;
use crate::requantize::{Contribution, sum_to_nearest};
use crate::round::half_even_i32;

/// Elements that one task takes.
const PIECE: usize = 1 << 14;

/// `out = clamp(half_even(Σ parts / 2^shift), low, high)`, where `narrow` casts: what
/// [`crate::requantize::sum_to_nearest`] computes, in 32-bit lanes where two U8 or I16 parts with left shifts fit them.
/// `shift` is 0..=31.
///
/// # Panics
/// When lengths differ.
pub fn add<T: Send>(
    ctx: Context,
    out: &mut [T],
    parts: &[Contribution],
    shift: u32,
    range: [i32; 2],
    narrow: impl Fn(i32) -> T + Sync + Copy,
) {
    use Contribution::{I16, U8};
    let round = Round { shift, range, narrow };
    match *parts {
        [I16(a, p), I16(b, q)] if fits(p, q) => add_two(ctx, out, (a, p), (b, q), round),
        [U8(a, p), I16(b, q)] if fits(p, q) => add_two(ctx, out, (a, p), (b, q), round),
        [I16(a, p), U8(b, q)] if fits(p, q) => add_two(ctx, out, (a, p), (b, q), round),
        [U8(a, p), U8(b, q)] if fits(p, q) => add_two(ctx, out, (a, p), (b, q), round),
        _ => sum_to_nearest(ctx, out, parts, shift, range.map(i64::from), move |v| narrow(v as i32)),
    }
}

/// Two parts of at most 15 bits and sign, shifted left by at most 14, add up to at most 2^30.
fn fits(p: i32, q: i32) -> bool {
    (0..=14).contains(&p) && (0..=14).contains(&q)
}

/// What becomes of a sum.
#[derive(Clone, Copy)]
struct Round<F> {
    shift: u32,
    range: [i32; 2],
    narrow: F,
}

/// The sum of two tensors, each with its left shift.
fn add_two<A, B, T, F>(ctx: Context, out: &mut [T], (a, p): (&[A], i32), (b, q): (&[B], i32), round: Round<F>)
where
    A: Copy + Into<i32> + Sync,
    B: Copy + Into<i32> + Sync,
    T: Send,
    F: Fn(i32) -> T + Sync + Copy,
{
    assert!(a.len() == out.len() && b.len() == out.len(), "contributions");
    let Round { shift, range: [low, high], narrow } = round;
    for_each_piece(ctx.pool, out, PIECE, |index, out, _| {
        let (a, b) = (&a[index * PIECE..][..out.len()], &b[index * PIECE..][..out.len()]);
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                    let sum = (a.into() << p) + (b.into() << q);
                    *out = narrow(half_even_i32(sum, shift).max(low).min(high));
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::testing::{Threads, random};
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn sums_equal_the_general_ones_on_every_instruction_set() {
        let wide: Vec<i16> = random(40_000, 1, 16).iter().map(|&v| v as i16).collect();
        let other: Vec<i16> = random(40_000, 2, 16).iter().map(|&v| v as i16).collect();
        let bytes: Vec<u8> = random(40_000, 3, 9).iter().map(|&v| v as u8).collect();
        let (a, b, c) = (&wide[..], &other[..], &bytes[..]);
        for (p, q, shift) in [(0, 0, 0), (0, 3, 1), (14, 14, 31), (5, 0, 4), (-3, 2, 3)] {
            let cases = [
                [Contribution::I16(a, p), Contribution::I16(b, q)],
                [Contribution::U8(c, p), Contribution::I16(b, q)],
                [Contribution::I16(a, p), Contribution::U8(c, q)],
                [Contribution::U8(c, p), Contribution::U8(c, q)],
            ];
            for (parts, isa) in cases.iter().flat_map(|parts| Isa::available().map(move |isa| (parts, isa))) {
                let (mut got, mut want) = (vec![0i16; a.len()], vec![0i16; a.len()]);
                let ctx = Context { isa, pool: &Threads(3) };
                add(ctx, &mut got, parts, shift, [-32767, 32767], |v| v as i16);
                sum_to_nearest(Context::reference(), &mut want, parts, shift, [-32767, 32767], |v| v as i16);
                assert_eq!(got, want);
            }
        }
    }
}
