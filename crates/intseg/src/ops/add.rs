//! The sum of two tensors with aligned exponents, and ReLU if set: a residual connection or a skip.

use super::{Operator, Step};
use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::requantize::{self, Contribution};

/// An addition of a training graph.
pub struct Add {
    relu: bool,
}

impl Add {
    /// With ReLU or without.
    pub fn new(relu: bool) -> Self {
        Add { relu }
    }
}

/// The tensors as parts of a sum in units of `2^` the returned exponent: the finest of theirs, unless the others'
/// shifts would leave 64 bits.
pub fn aligned<'a>(parts: &[&'a Tensor]) -> (Vec<Contribution<'a>>, i32) {
    aligned_to(parts, parts.iter().map(|part| part.exponent).min().unwrap_or(0))
}

/// As [`aligned`], in a unit that is not coarser than `2^exponent` either.
pub fn aligned_to<'a>(parts: &[&'a Tensor], exponent: i32) -> (Vec<Contribution<'a>>, i32) {
    let exponents = || parts.iter().map(|part| part.exponent).chain([exponent]);
    let coarsest = exponents().max().unwrap_or(0);
    let unit = exponents().min().unwrap_or(0).max(coarsest - Contribution::MAX_SHIFT);
    let contribution = |part: &&'a Tensor| {
        let shift = part.exponent - unit;
        match &part.mantissas {
            Mantissas::U8(m) => Contribution::U8(m, shift),
            Mantissas::I8(m) => Contribution::I8(m, shift),
            Mantissas::I16(m) => Contribution::I16(m, shift),
            Mantissas::I32(m) => Contribution::I32(m, shift),
        }
    };
    (parts.iter().map(contribution).collect(), unit)
}

impl Operator for Add {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let (parts, unit) = aligned(inputs);
        let shape = inputs[0].shape;
        let (low, high) = requantize::range_of_sum(step.kernels, &parts);
        if self.relu {
            let shift = requantize::shift_for(high as u64, step.bits.a);
            let limit = (1 << step.bits.a) - 1;
            let mut out = step.buffers.take_u8(shape.len());
            requantize::sum_to_nearest(step.kernels, &mut out, &parts, shift, [0, limit], |v| v as u8);
            Tensor::u8(shape, unit + shift as i32, out)
        } else {
            let largest = low.unsigned_abs().max(high.unsigned_abs());
            let shift = requantize::shift_for(largest, step.bits.residual - 1);
            let limit = (1 << (step.bits.residual - 1)) - 1;
            let mut out = step.buffers.take_i16(shape.len());
            requantize::sum_to_nearest(step.kernels, &mut out, &parts, shift, [-limit, limit], |v| v as i16);
            Tensor::i16(shape, unit + shift as i32, out)
        }
    }

    fn backward(
        &mut self,
        step: &Step,
        inputs: &[&Tensor],
        out: &Tensor,
        error: Tensor,
        wanted: &[bool],
    ) -> Vec<Option<Tensor>> {
        let error = super::mask_by_relu(step, self.relu, out, error);
        let mut error = Some(error);
        // The last input takes the error itself, those before it a copy.
        let last = wanted.iter().rposition(|&wanted| wanted);
        (0..inputs.len())
            .map(|k| match last {
                Some(last) if k < last && wanted[k] => error.as_ref().map(|e| step.buffers.copy(step.kernels.pool, e)),
                Some(last) if k == last => error.take(),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use crate::tensor::Shape;
    use intseg_kernels::Context;

    fn step(buffers: &Buffers) -> Step<'_> {
        Step { kernels: Context::reference(), bits: Bits::default(), buffers, seed: 0, number: 0, node: 0 }
    }

    #[test]
    fn exponents_are_aligned_exactly() {
        let buffers = Buffers::default();
        let shape = Shape::new(1, 1, 1, 4);
        let a = Tensor::i16(shape, -3, vec![1000, -5, 7, 0].into());
        let b = Tensor::u8(shape, -1, vec![255, 1, 0, 3].into());
        let sum = Add::new(false).forward(&step(&buffers), &[&a, &b]);
        assert_eq!((sum.exponent, sum.to_i64()), (-3, vec![2020, -1, 7, 12]));
        let relu = Add::new(true).forward(&step(&buffers), &[&a, &b]);
        // 2020 needs 11 bits: three are dropped, to nearest even.
        assert_eq!((relu.exponent, relu.to_i64()), (0, vec![252, 0, 1, 2]));
    }

    #[test]
    fn the_error_reaches_both_inputs_where_relu_let_through() {
        let buffers = Buffers::default();
        let shape = Shape::new(1, 1, 1, 3);
        let out = Tensor::u8(shape, 0, vec![0, 1, 200].into());
        let error = Tensor::i8(shape, -4, vec![9, -9, 5].into());
        let parts = Add::new(true).backward(&step(&buffers), &[&out, &out], &out, error, &[true, true]);
        let want = Tensor::i8(shape, -4, vec![0, -9, 5].into());
        assert_eq!(parts, [Some(want.clone()), Some(want)]);
    }
}
