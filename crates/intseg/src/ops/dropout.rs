//! Dropout: an integer mask; what is kept is scaled by `256 / (256 − drop)`.

use super::{Operator, Step};
use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::pool::for_each_piece;
use intseg_kernels::round::half_even_i32;
use intseg_kernels::{Context, Role};

/// Elements that one task handles.
const PIECE: usize = 1 << 14;

/// A dropout of a training graph.
pub struct Dropout {
    drop_256: u32,
}

impl Dropout {
    /// Zeroes `drop_256` of 256 elements, fewer than 256.
    pub fn new(drop_256: u32) -> Self {
        Dropout { drop_256: drop_256.min(255) }
    }

    /// `256 / (256 − drop)` in units of 2^-8.
    fn scale_q8(&self) -> i32 {
        (65_536 / (256 - self.drop_256)) as i32
    }

    fn keeps(&self, step: &Step) -> impl Fn(usize) -> bool + Copy + use<> {
        let (dither, drop) = (step.dither(Role::Dropout, 0), self.drop_256);
        #[inline(always)]
        move |index| dither.at(index) >> 24 >= drop
    }
}

impl Operator for Dropout {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let input = inputs[0];
        let Mantissas::U8(values) = &input.mantissas else { unreachable!("dropout reads activations") };
        let (keeps, scale) = (self.keeps(step), self.scale_q8());
        // The scale is between 1 and 256: an exponent that is larger by its whole bits leaves room for it.
        let room = (scale as u32 - 1).ilog2().max(7) - 7;
        let mut out = step.buffers.take_u8(values.len());
        mask(
            step.kernels,
            &mut out,
            values,
            keeps,
            #[inline(always)]
            move |value| half_even_i32(i32::from(value) * scale, 8 + room).min(255) as u8,
        );
        Tensor::u8(input.shape, input.exponent + room as i32, out)
    }

    fn backward(&mut self, step: &Step, _: &[&Tensor], _: &Tensor, error: Tensor, _: &[bool]) -> Vec<Option<Tensor>> {
        let (keeps, scale) = (self.keeps(step), self.scale_q8());
        let mut out = step.buffers.take_i32(error.shape.len());
        match &error.mantissas {
            Mantissas::I8(e) => mask_scaled(step.kernels, &mut out, e, keeps, scale),
            Mantissas::I16(e) => mask_scaled(step.kernels, &mut out, e, keeps, scale),
            other => unreachable!("errors have 8 or 16 bits, not {other:?}"),
        }
        let part = Tensor::i32(error.shape, error.exponent - 8, out);
        step.buffers.give(error);
        vec![Some(part)]
    }
}

/// Errors times the scale where they are kept, 0 elsewhere.
fn mask_scaled<E: Copy + Into<i32> + Sync>(
    ctx: Context,
    out: &mut [i32],
    errors: &[E],
    keeps: impl Fn(usize) -> bool + Copy + Sync,
    scale: i32,
) {
    mask(
        ctx,
        out,
        errors,
        keeps,
        #[inline(always)]
        move |e| e.into() * scale,
    );
}

/// What is kept, scaled, and 0 elsewhere. The closures must be inlinable: see [`intseg_kernels::Isa::vectorize`].
fn mask<E: Copy + Sync, T: Default + Send>(
    ctx: Context,
    out: &mut [T],
    values: &[E],
    keeps: impl Fn(usize) -> bool + Copy + Sync,
    scaled: impl Fn(E) -> T + Copy + Sync,
) {
    for_each_piece(ctx.pool, out, PIECE, |piece, out, _| {
        let (first, values) = (piece * PIECE, &values[piece * PIECE..]);
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                // Copies, which stay in registers.
                let (keeps, scaled) = (keeps, scaled);
                for (i, (out, &value)) in out.iter_mut().zip(values).enumerate() {
                    *out = if keeps(first + i) { scaled(value) } else { T::default() };
                }
            },
        );
    });
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued rule")]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use crate::tensor::Shape;

    #[test]
    fn the_mean_is_kept_and_the_backward_mask_is_the_forward_mask() {
        let buffers = Buffers::default();
        let step = Step {
            kernels: Context::reference(),
            bits: Bits::default(),
            buffers: &buffers,
            seed: 0,
            number: 0,
            node: 0,
        };
        let shape = Shape::new(1, 100, 100, 4);
        for drop_256 in [26, 128, 230] {
            let mut dropout = Dropout::new(drop_256);
            let input = Tensor::u8(shape, -4, vec![200; shape.len()].into());
            let out = dropout.forward(&step, &[&input]);
            let mean = out.to_i64().iter().sum::<i64>() as f64 * 2f64.powi(out.exponent + 4) / shape.len() as f64;
            assert!((mean - 200.0).abs() < 6.0, "{drop_256}: {mean}");
            let back =
                dropout.backward(&step, &[&input], &out, Tensor::i8(shape, 0, vec![3; shape.len()].into()), &[true]);
            let back = back[0].as_ref().unwrap().to_i64();
            assert!(back.iter().zip(out.to_i64()).all(|(&b, o)| (b != 0) == (o != 0)));
        }
    }
}
