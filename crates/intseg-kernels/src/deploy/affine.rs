//! A multiplier, bias and shift per channel on at most 16 bits.

use crate::pool::for_each_piece;
use crate::{Context, Requantizer};

/// Elements that one task takes, about.
const PIECE: usize = 1 << 14;

/// `out = clamp(half_even((input · multiplier + bias) / 2^shift))` per channel: folded batch normalisation (and ReLU)
/// of a residual stream. `input` has at most 16 bits; `narrow` casts what was clamped.
///
/// Channels that all fit run in 32-bit lanes: `|multiplier|·2^15 + |bias| + 2^shift < 2^31`.
///
/// # Panics
/// When lengths differ, or are no multiple of the number of channels.
pub fn affine<I, T>(
    ctx: Context,
    out: &mut [T],
    input: &[I],
    requantizer: Requantizer,
    narrow: impl Fn(i32) -> T + Sync + Copy,
) where
    I: Copy + Sync + Into<i32>,
    T: Send,
{
    let channels = requantizer.multiplier.len();
    assert!(requantizer.bias.len() == channels && requantizer.shift.len() == channels, "requantizer");
    assert!(out.len() == input.len() && input.len().is_multiple_of(channels), "input");
    let piece_len = (PIECE / channels).max(1) * channels;
    let fits = fits_32_bits(&requantizer);
    for_each_piece(ctx.pool, out, piece_len, |index, out, _| {
        let input = &input[index * piece_len..][..out.len()];
        let pixels = out.chunks_exact_mut(channels).zip(input.chunks_exact(channels));
        ctx.isa.vectorize(
            #[inline(always)]
            || match fits {
                true => pixels.for_each(|(out, input)| pixel(out, input, &requantizer, scale_32, narrow)),
                false => pixels.for_each(|(out, input)| pixel(out, input, &requantizer, scale_64, narrow)),
            },
        );
    });
}

fn fits_32_bits(requantizer: &Requantizer) -> bool {
    let channels = requantizer.multiplier.iter().zip(requantizer.bias).zip(requantizer.shift);
    channels.into_iter().all(|((&multiplier, &bias), &shift)| {
        let largest = (u64::from(multiplier.unsigned_abs()) << 15).saturating_add(bias.unsigned_abs());
        shift <= 30 && largest.saturating_add(1 << shift) <= i32::MAX as u64
    })
}

#[inline(always)]
fn pixel<I: Copy + Into<i32>, T>(
    out: &mut [T],
    input: &[I],
    requantizer: &Requantizer,
    scale: impl Fn(i32, i32, i64, u8, i32, i32) -> i32,
    narrow: impl Fn(i32) -> T,
) {
    let &Requantizer { multiplier, bias, shift, low, high } = requantizer;
    let parameters = multiplier.iter().zip(bias).zip(shift);
    for ((out, &input), ((&multiplier, &bias), &shift)) in out.iter_mut().zip(input).zip(parameters) {
        *out = narrow(scale(input.into(), multiplier, bias, shift, low, high));
    }
}

/// One channel of [`affine`] in 32 bits: half of the unit is added, less one where the floor is even.
#[inline(always)]
fn scale_32(input: i32, multiplier: i32, bias: i64, shift: u8, low: i32, high: i32) -> i32 {
    let (product, shift) = (input.wrapping_mul(multiplier).wrapping_add(bias as i32), u32::from(shift) & 31);
    // Where nothing is shifted out, half is 0 and nothing may be subtracted.
    let half = (1i32 << shift) >> 1;
    let even = !(product >> shift) & 1 & i32::from(half != 0);
    (product.wrapping_add(half - even) >> shift).max(low).min(high)
}

/// One channel of [`affine`] in 64 bits: product, bias and half stay below 2^63 together, since the input has 16.
#[inline(always)]
fn scale_64(input: i32, multiplier: i32, bias: i64, shift: u8, low: i32, high: i32) -> i32 {
    let (product, shift) = (i64::from(input) * i64::from(multiplier) + bias, u32::from(shift) & 63);
    let half = (1i64 << shift) >> 1;
    let even = !(product >> shift) & 1 & i64::from(half != 0);
    ((product + (half - even)) >> shift).max(low.into()).min(high.into()) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::testing::{Threads, random};
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn narrow_and_wide_channels_give_the_exact_rounding_on_every_instruction_set() {
        for (multiplier_bits, bias_bits, shift) in [(14, 30, 20), (12, 20, 0), (12, 20, 1), (30, 32, 33), (32, 32, 40)]
        {
            for channels in [1, 7, 40] {
                let input: Vec<i16> = random(channels * 500, 1, 16).iter().map(|&v| v as i16).collect();
                let multiplier = random(channels, 2, multiplier_bits);
                let bias: Vec<i64> = random(channels, 3, bias_bits).iter().map(|&v| i64::from(v) * 3 / 4).collect();
                let shift: Vec<u8> = (0..channels).map(|k| shift + (k % 3) as u8).collect();
                let requantizer =
                    Requantizer { multiplier: &multiplier, bias: &bias, shift: &shift, low: -30000, high: 30000 };
                for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                    let mut out = vec![0i16; input.len()];
                    affine(Context { isa, pool: &Threads(threads) }, &mut out, &input, requantizer, |v| v as i16);
                    for (i, (&out, &x)) in out.iter().zip(&input).enumerate() {
                        let k = i % channels;
                        let product = i64::from(x) * i64::from(multiplier[k]) + bias[k];
                        let want = crate::round::half_even_i64(product, shift[k].into()).clamp(-30000, 30000);
                        assert_eq!(i64::from(out), want, "{product} >> {}", shift[k]);
                    }
                }
            }
        }
    }
}
