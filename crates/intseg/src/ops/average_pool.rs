//! Global average pooling: one integer division a channel.

use super::{Operator, Step};
use crate::buffers::Buffer;
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::average_pool::channel_sums;
use intseg_kernels::requantize::shift_for;
use intseg_kernels::round::divide_half_even;

/// Fractional bits that a mean has before it is rounded to 8 bits.
const MEAN_BITS: u32 = 16;

/// `[N, H, W, C]` activations to their means, `[N, 1, 1, C]`.
#[derive(Default)]
pub struct GlobalAveragePool;

impl GlobalAveragePool {
    /// The sums over all positions, `[N, C]`.
    pub fn sums(step: &Step, input: &Tensor) -> Buffer<i64> {
        let Mantissas::U8(values) = &input.mantissas else { unreachable!("average pooling reads activations") };
        let Shape { n, h, w, c } = input.shape;
        let mut sums = step.buffers.take_i64(n * c);
        channel_sums(step.kernels, &mut sums, values, h * w, c);
        sums
    }
}

impl Operator for GlobalAveragePool {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let input = inputs[0];
        let Shape { n, h, w, c } = input.shape;
        let mut sums = Self::sums(step, input);
        sums.iter_mut().for_each(|sum| *sum = divide_half_even(*sum << MEAN_BITS, (h * w) as i64));
        let largest = sums.iter().copied().max().unwrap_or(0);
        let shift = shift_for(largest as u64, step.bits.a);
        let high = (1 << step.bits.a) - 1;
        let mut out = step.buffers.take_u8(n * c);
        for (out, &mean) in out.iter_mut().zip(&*sums) {
            *out = divide_half_even(mean, 1 << shift).min(high) as u8;
        }
        step.buffers.give_i64(sums);
        Tensor::u8(Shape::new(n, 1, 1, c), input.exponent + shift as i32 - MEAN_BITS as i32, out)
    }

    fn backward(
        &mut self,
        step: &Step,
        inputs: &[&Tensor],
        _: &Tensor,
        error: Tensor,
        _: &[bool],
    ) -> Vec<Option<Tensor>> {
        let shape = inputs[0].shape;
        let pixels = shape.h * shape.w;
        // 1/(H·W) as a mantissa of 8 bits more than its error: the product fits 16.
        let shift = 7 + pixels.ilog2();
        let reciprocal = divide_half_even(1 << shift, pixels as i64);
        let mut out = step.buffers.take_i16(shape.len());
        let values = error.to_i64();
        // An 8-bit error times the reciprocal is exact in 16 bits; a 16-bit one drops its low byte.
        let drop = if matches!(error.mantissas, Mantissas::I16(_)) { 8 } else { 0 };
        for (image, errors) in out.chunks_exact_mut(pixels * shape.c).zip(values.chunks_exact(shape.c)) {
            for pixel in image.chunks_exact_mut(shape.c) {
                for (out, &e) in pixel.iter_mut().zip(errors) {
                    *out = ((e * reciprocal) >> drop) as i16;
                }
            }
        }
        let exponent = error.exponent + drop - shift as i32;
        step.buffers.give(error);
        vec![Some(Tensor::i16(shape, exponent, out))]
    }
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued mean")]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use intseg_kernels::Context;

    #[test]
    fn means_and_their_adjoint_are_those_of_reals() {
        let buffers = Buffers::default();
        let step = Step {
            kernels: Context::reference(),
            bits: Bits::default(),
            buffers: &buffers,
            seed: 0,
            number: 0,
            node: 0,
        };
        let shape = Shape::new(2, 5, 7, 3);
        let input = Tensor::u8(shape, -4, (0..shape.len()).map(|i| (i * 37 % 251) as u8).collect());
        let out = GlobalAveragePool.forward(&step, &[&input]);
        for (i, mean) in out.to_i64().iter().enumerate() {
            let values = input.to_i64()[i / 3 * 105..][..105].iter().skip(i % 3).step_by(3).sum::<i64>();
            let (want, got) = (values as f64 / 35.0 / 16.0, *mean as f64 * 2f64.powi(out.exponent));
            assert!((got - want).abs() <= 0.51 * 2f64.powi(out.exponent), "{got} {want}");
        }
        for error in [
            Tensor::i8(out.shape, 2, vec![127, -5, 0, 1, 99, -127].into()),
            Tensor::i16(out.shape, -6, vec![32_512, 3, -9000, 1, 0, 7].into()),
        ] {
            let want: Vec<f64> = error.to_i64().iter().map(|&e| e as f64 * 2f64.powi(error.exponent) / 35.0).collect();
            let back = GlobalAveragePool.backward(&step, &[&input], &out, error, &[true]).remove(0).expect("an error");
            let unit = 2f64.powi(back.exponent);
            for (i, v) in back.to_i64().iter().enumerate() {
                let want = want[i / 105 * 3 + i % 3];
                assert!((*v as f64 * unit - want).abs() <= 0.005 * want.abs() + unit, "{v} {want}");
            }
        }
    }
}
