//! Dropout: an integer mask; what is kept is scaled by `256 / (256 − drop)`.

use super::{Operator, Step};
use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::Role;
use intseg_kernels::round::half_even_i32;

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

    fn keeps(&self, step: &Step) -> impl Fn(usize) -> bool + use<> {
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
        step.kernels.isa.vectorize(
            #[inline(always)]
            || {
                for (i, (out, &value)) in out.iter_mut().zip(values).enumerate() {
                    let scaled = half_even_i32(i32::from(value) * scale, 8 + room).min(255);
                    *out = if keeps(i) { scaled as u8 } else { 0 };
                }
            },
        );
        Tensor::u8(input.shape, input.exponent + room as i32, out)
    }

    fn backward(&mut self, step: &Step, _: &[&Tensor], _: &Tensor, error: Tensor, _: &[bool]) -> Vec<Option<Tensor>> {
        let (keeps, scale) = (self.keeps(step), self.scale_q8());
        let mut out = step.buffers.take_i32(error.shape.len());
        match &error.mantissas {
            Mantissas::I8(e) => mask(step, &mut out, e, scale, keeps),
            Mantissas::I16(e) => mask(step, &mut out, e, scale, keeps),
            other => unreachable!("errors have 8 or 16 bits, not {other:?}"),
        }
        let part = Tensor::i32(error.shape, error.exponent - 8, out);
        step.buffers.give(error);
        vec![Some(part)]
    }
}

/// Errors times the scale where they are kept, 0 elsewhere.
fn mask<E: Copy + Into<i32>>(step: &Step, out: &mut [i32], error: &[E], scale: i32, keeps: impl Fn(usize) -> bool) {
    step.kernels.isa.vectorize(
        #[inline(always)]
        || {
            for (i, (out, &e)) in out.iter_mut().zip(error).enumerate() {
                *out = if keeps(i) { e.into() * scale } else { 0 };
            }
        },
    );
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued rule")]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use crate::tensor::Shape;
    use intseg_kernels::Context;

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
            let input = Tensor::u8(shape, -4, vec![200; shape.len()]);
            let out = dropout.forward(&step, &[&input]);
            let mean = out.to_i64().iter().sum::<i64>() as f64 * 2f64.powi(out.exponent + 4) / shape.len() as f64;
            assert!((mean - 200.0).abs() < 6.0, "{drop_256}: {mean}");
            let back = dropout.backward(&step, &[&input], &out, Tensor::i8(shape, 0, vec![3; shape.len()]), &[true]);
            let back = back[0].as_ref().unwrap().to_i64();
            assert!(back.iter().zip(out.to_i64()).all(|(&b, o)| (b != 0) == (o != 0)));
        }
    }
}
