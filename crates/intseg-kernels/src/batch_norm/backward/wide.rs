//! 16-bit gradients of 16-bit errors, in 64 bits: the method's wider error setting, a plain loop.

use super::Gradients;
use crate::batch_norm::rows_of;
use crate::pool::for_each_piece;
use crate::round::{stochastic_i64, within};
use crate::vector::LANES;
use crate::{Context, Dither};

/// One channel's gradient, `scale · e − offset`. `|scale| < 2^41`, `|offset| < 2^58`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coefficients {
    /// Of the error.
    pub scale: i64,
    /// Where x̂ is not negative, and where it is.
    pub offsets: [i64; 2],
}

impl Gradients<'_, i16> {
    /// The error that ReLU lets through at an element, and x̂.
    #[inline(always)]
    fn at(&self, index: usize, channel: usize) -> (i64, i32) {
        let x = i32::from(self.x_hat[index]);
        let (group, lane) = (&self.constants[channel / LANES], channel % LANES);
        let passes = !self.relu || x * group.gamma.0[lane] + group.beta_q23.0[lane] > 0;
        (if passes { self.error[index].into() } else { 0 }, x)
    }
}

/// Writes the gradient, rounded stochastically after a right shift, within ±`limit`.
///
/// # Panics
/// When lengths differ.
pub fn gradient(
    ctx: Context,
    out: &mut [i16],
    operands: &Gradients<i16>,
    coefficients: &[Coefficients],
    shift: u32,
    limit: i32,
    dither: Dither,
) {
    let channels = operands.channels;
    assert!(out.len() == operands.error.len() && coefficients.len() == channels, "lengths");
    let piece_len = rows_of(channels) * channels;
    let dither = dither.over(shift);
    for_each_piece(ctx.pool, out, piece_len, |piece, out, _| {
        for (i, out) in out.iter_mut().enumerate() {
            let (index, k) = (piece * piece_len + i, i % channels);
            let (e, x) = operands.at(index, k);
            let Coefficients { scale, offsets } = coefficients[k];
            let gradient = scale * e - offsets[usize::from(x < 0)];
            let rounded = stochastic_i64(gradient, shift, dither.at(index));
            *out = within(rounded, -i64::from(limit), limit.into()) as i16;
        }
    });
}
