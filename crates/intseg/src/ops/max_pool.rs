//! Max pooling of activations or of a residual stream. Its shape rule is [`crate::graph::pooled`].

use super::{Operator, Step};
use crate::graph::{PoolSpec, pooled};
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::max_pool;

/// A max pooling of a training graph.
pub struct MaxPool {
    spec: PoolSpec,
    /// The winning tap of each output.
    winner: Vec<u8>,
}

/// The kernel of a pooling from one shape to another.
pub fn kernel(spec: &PoolSpec, input: Shape, output: Shape) -> max_pool::MaxPool {
    max_pool::MaxPool {
        batch: input.n,
        input: [input.h, input.w],
        output: [output.h, output.w],
        channels: input.c,
        kernel: spec.kernel,
        stride: spec.stride,
        padding: spec.padding,
    }
}

impl MaxPool {
    /// A pooling with that window.
    pub fn new(spec: PoolSpec) -> Self {
        MaxPool { spec, winner: Vec::new() }
    }
}

impl Operator for MaxPool {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let input = inputs[0];
        let shape = pooled(&self.spec, input.shape).expect("the graph's shapes were checked");
        let kernel = kernel(&self.spec, input.shape, shape);
        self.winner.resize(shape.len(), 0);
        match &input.mantissas {
            Mantissas::U8(values) => {
                let mut out = step.buffers.take_u8(shape.len());
                kernel.forward(step.kernels, &mut out, &mut self.winner, values);
                Tensor::u8(shape, input.exponent, out)
            }
            Mantissas::I16(values) => {
                let mut out = step.buffers.take_i16(shape.len());
                kernel.forward(step.kernels, &mut out, &mut self.winner, values);
                Tensor::i16(shape, input.exponent, out)
            }
            other => unreachable!("pooling reads activations or a residual stream, not {other:?}"),
        }
    }

    fn backward(
        &mut self,
        step: &Step,
        inputs: &[&Tensor],
        out: &Tensor,
        error: Tensor,
        _: &[bool],
    ) -> Vec<Option<Tensor>> {
        let shape = inputs[0].shape;
        let kernel = kernel(&self.spec, shape, out.shape);
        let (ctx, exponent) = (step.kernels, error.exponent);
        let part = match (&error.mantissas, kernel.overlaps()) {
            (Mantissas::I8(e), false) => {
                let mut sums = step.buffers.take_i8(shape.len());
                kernel.backward(ctx, &mut sums, e, &self.winner);
                Tensor::i8(shape, exponent, sums)
            }
            (Mantissas::I16(e), false) => {
                let mut sums = step.buffers.take_i16(shape.len());
                kernel.backward(ctx, &mut sums, e, &self.winner);
                Tensor::i16(shape, exponent, sums)
            }
            (Mantissas::I8(e), true) => {
                let mut sums = step.buffers.take_i32(shape.len());
                kernel.backward(ctx, &mut sums, e, &self.winner);
                Tensor::i32(shape, exponent, sums)
            }
            (Mantissas::I16(e), true) => {
                let mut sums = step.buffers.take_i32(shape.len());
                kernel.backward(ctx, &mut sums, e, &self.winner);
                Tensor::i32(shape, exponent, sums)
            }
            (other, _) => unreachable!("errors have 8 or 16 bits, not {other:?}"),
        };
        step.buffers.give(error);
        vec![Some(part)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use intseg_kernels::Context;

    #[test]
    fn errors_go_back_to_the_winners_in_both_widths_with_and_without_overlap() {
        let buffers = Buffers::default();
        let step = Step {
            kernels: Context::reference(),
            bits: Bits::default(),
            buffers: &buffers,
            seed: 0,
            number: 0,
            node: 0,
        };
        let shape = Shape::new(1, 3, 3, 1);
        let input = Tensor::u8(shape, -5, vec![1, 2, 3, 4, 9, 4, 3, 2, 1].into());
        let halves = PoolSpec { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil: true };
        let overlapping = PoolSpec { stride: [1; 2], ceil: false, ..halves };
        for (spec, maxima, back) in [
            (halves, vec![9, 4, 3, 1], vec![0, 0, 0, 0, 10, 20, 30, 0, 40]),
            (overlapping, vec![9, 9, 9, 9], vec![0, 0, 0, 0, 100, 0, 0, 0, 0]),
        ] {
            let mut pool = MaxPool::new(spec);
            let out = pool.forward(&step, &[&input]);
            assert_eq!((out.exponent, out.to_i64()), (-5, maxima));
            let narrow = Tensor::i8(out.shape, -3, vec![10, 20, 30, 40].into());
            let wide = Tensor::i16(out.shape, -3, vec![10, 20, 30, 40].into());
            for error in [narrow, wide] {
                let part = pool.backward(&step, &[&input], &out, error, &[true]).remove(0).expect("an error");
                assert_eq!((part.exponent, part.to_i64()), (-3, back.clone()));
            }
        }
    }
}
