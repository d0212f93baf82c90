//! Concatenation of activations along channels: all are brought to the largest exponent.

use super::{Operator, Step};
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::Pool;
use intseg_kernels::pool::for_each_piece;
use intseg_kernels::round::half_even_i32;
use std::ops::Range;

/// Positions that one task handles.
const PIXELS: usize = 64;

/// A concatenation of a training graph.
#[derive(Default)]
pub struct Concat;

impl Operator for Concat {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let channels: usize = inputs.iter().map(|input| input.shape.c).sum();
        let shape = inputs[0].shape.with_channels(channels);
        let exponent = inputs.iter().map(|input| input.exponent).max().unwrap_or(0);
        let (ctx, mut out) = (step.kernels, step.buffers.take_u8(shape.len()));
        let mut first = 0;
        for input in inputs {
            let Mantissas::U8(values) = &input.mantissas else { unreachable!("concatenation reads activations") };
            let (c, shift) = (input.shape.c, ((exponent - input.exponent) as u32).min(31));
            for_each_piece(ctx.pool, &mut out, PIXELS * channels, |piece, out, _| {
                let values = &values[piece * PIXELS * c..];
                ctx.isa.vectorize(
                    #[inline(always)]
                    || {
                        for (out, values) in out.chunks_exact_mut(channels).zip(values.chunks_exact(c)) {
                            for (out, &value) in out[first..first + c].iter_mut().zip(values) {
                                *out = half_even_i32(value.into(), shift) as u8;
                            }
                        }
                    },
                );
            });
            first += c;
        }
        Tensor::u8(shape, exponent, out)
    }

    fn backward(
        &mut self,
        step: &Step,
        inputs: &[&Tensor],
        _: &Tensor,
        error: Tensor,
        _: &[bool],
    ) -> Vec<Option<Tensor>> {
        let channels = error.shape.c;
        let mut first = 0;
        let mut part = |shape: Shape| {
            let range = first..first + shape.c;
            first += shape.c;
            match &error.mantissas {
                Mantissas::I8(e) => {
                    let mut out = step.buffers.take_i8(shape.len());
                    slice(step.kernels.pool, &mut out, e, channels, range);
                    Tensor::i8(shape, error.exponent, out)
                }
                Mantissas::I16(e) => {
                    let mut out = step.buffers.take_i16(shape.len());
                    slice(step.kernels.pool, &mut out, e, channels, range);
                    Tensor::i16(shape, error.exponent, out)
                }
                other => unreachable!("errors have 8 or 16 bits, not {other:?}"),
            }
        };
        let parts = inputs.iter().map(|input| Some(part(input.shape))).collect();
        step.buffers.give(error);
        parts
    }
}

/// Copies a range of channels.
fn slice<T: Copy + Send + Sync>(pool: &dyn Pool, out: &mut [T], values: &[T], channels: usize, range: Range<usize>) {
    for_each_piece(pool, out, PIXELS * range.len(), |piece, out, _| {
        let values = values[piece * PIXELS * channels..].chunks_exact(channels);
        for (out, values) in out.chunks_exact_mut(range.len()).zip(values) {
            out.copy_from_slice(&values[range.clone()]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use intseg_kernels::Context;

    #[test]
    fn channels_are_joined_at_the_largest_exponent_and_errors_taken_apart() {
        let buffers = Buffers::default();
        let step = Step {
            kernels: Context::reference(),
            bits: Bits::default(),
            buffers: &buffers,
            seed: 0,
            number: 0,
            node: 0,
        };
        let a = Tensor::u8(Shape::new(1, 1, 2, 1), -3, vec![7, 12].into());
        let b = Tensor::u8(Shape::new(1, 1, 2, 2), -1, vec![1, 2, 3, 4].into());
        let out = Concat.forward(&step, &[&a, &b]);
        assert_eq!((out.exponent, out.to_i64()), (-1, vec![2, 1, 2, 3, 3, 4]));
        let error = Tensor::i8(out.shape, 0, vec![1, 2, 3, 4, 5, 6].into());
        let parts = Concat.backward(&step, &[&a, &b], &out, error, &[true, true]);
        let values: Vec<_> = parts.into_iter().flatten().map(|part| part.to_i64()).collect();
        assert_eq!(values, [vec![1, 4], vec![2, 3, 5, 6]]);
    }
}
