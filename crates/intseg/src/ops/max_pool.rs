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
