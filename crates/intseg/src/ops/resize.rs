//! Bilinear resizing to the size of another tensor, exact in coordinates, rounded once.

use super::{Operator, Step};
use crate::buffers::Buffer;
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::resize::{Resize, Tap, axis};
use intseg_kernels::round::bit_length;
use intseg_kernels::{Role, requantize, sgd};

/// The taps of both axes of a resize.
pub struct Taps {
    input: [usize; 2],
    rows: Vec<Tap>,
    columns: Vec<Tap>,
    denominators: [u32; 2],
}

impl Taps {
    /// For a resize from `input` to `output` rows and columns.
    pub fn new(input: [usize; 2], output: [usize; 2], align_corners: bool) -> Self {
        let [mut rows, mut columns] = output.map(|size| vec![Tap::default(); size]);
        let denominators = [axis(&mut rows, input[0], align_corners), axis(&mut columns, input[1], align_corners)];
        Taps { input, rows, columns, denominators }
    }

    /// The kernel for tensors of `channels`.
    pub fn kernel(&self, channels: usize) -> Resize<'_> {
        let Taps { input, rows, columns, denominators } = self;
        Resize { input: *input, channels, rows, columns, denominators: *denominators }
    }
}

/// The adjoint of a resize applied to an error, divided by the denominators and brought to 16 bits stochastically.
pub fn adjoint<E: Copy + Into<i64> + Sync>(
    step: &Step,
    resize: &Resize,
    error: &[E],
    exponent: i32,
    shape: Shape,
) -> Tensor {
    let mut sums = step.buffers.take_i64(shape.len());
    adjoint_sums(step, resize, error, &mut sums);
    narrowed(step, resize, sums, exponent, shape)
}

/// The exact sums of the adjoint, in units of the error's and of one over the resize's denominator.
pub fn adjoint_sums<E: Copy + Into<i64> + Sync>(step: &Step, resize: &Resize, error: &[E], sums: &mut [i64]) {
    let mut scratch = step.buffers.take_i64(resize.adjoint_scratch_len(step.kernels));
    resize.adjoint(step.kernels, sums, error, &mut scratch);
    step.buffers.give_i64(scratch);
}

/// The sums of an adjoint of an error of that exponent in 16 bits.
pub fn narrowed(step: &Step, resize: &Resize, sums: Buffer<i64>, exponent: i32, shape: Shape) -> Tensor {
    // 1 / denominator as a 16-bit mantissa; 1 where it is a power of two.
    let denominator = resize.denominator();
    let whole = denominator.ilog2() as i32;
    let (reciprocal, fraction) = match denominator.count_ones() {
        1 => (1, whole),
        _ => (((1i128 << (whole + 16)) / i128::from(denominator)) as i64, whole + 16),
    };
    let largest = sgd::max_magnitude(step.kernels, &sums);
    let bits = bit_length(largest) + bit_length(reciprocal as u64);
    let shift = bits.saturating_sub(15);
    let mut out = step.buffers.take_i16(shape.len());
    let dither = step.dither(Role::ErrorAtActivation, 2);
    requantize::scale_i16(step.kernels, &mut out, &sums, reciprocal, shift, dither);
    step.buffers.give_i64(sums);
    Tensor::i16(shape, exponent - fraction + shift as i32, out)
}

/// A resize of the first input to the rows and columns of the second.
pub struct ResizeLike {
    align_corners: bool,
    taps: Option<Taps>,
}

impl ResizeLike {
    /// With aligned corners or half-pixel centres.
    pub fn new(align_corners: bool) -> Self {
        ResizeLike { align_corners, taps: None }
    }
}

impl Operator for ResizeLike {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let [input, like] = [inputs[0], inputs[1]];
        let (from, to) = ([input.shape.h, input.shape.w], [like.shape.h, like.shape.w]);
        let taps = match self.taps.take() {
            Some(taps) if taps.input == from && [taps.rows.len(), taps.columns.len()] == to => taps,
            _ => Taps::new(from, to, self.align_corners),
        };
        let kernel = taps.kernel(input.shape.c);
        let shape = Shape { c: input.shape.c, ..like.shape };
        let out = match &input.mantissas {
            Mantissas::U8(values) => {
                let mut out = step.buffers.take_u8(shape.len());
                kernel.forward(step.kernels, &mut out, values);
                Tensor::u8(shape, input.exponent, out)
            }
            Mantissas::I16(values) => {
                let mut out = step.buffers.take_i16(shape.len());
                kernel.forward(step.kernels, &mut out, values);
                Tensor::i16(shape, input.exponent, out)
            }
            other => unreachable!("resizing reads activations or scores, not {other:?}"),
        };
        self.taps = Some(taps);
        out
    }

    fn backward(
        &mut self,
        step: &Step,
        inputs: &[&Tensor],
        _: &Tensor,
        error: Tensor,
        _: &[bool],
    ) -> Vec<Option<Tensor>> {
        let taps = self.taps.as_ref().expect("forward runs before backward");
        let (shape, kernel) = (inputs[0].shape, taps.kernel(inputs[0].shape.c));
        let part = match &error.mantissas {
            Mantissas::I8(e) => adjoint(step, &kernel, e, error.exponent, shape),
            Mantissas::I16(e) => adjoint(step, &kernel, e, error.exponent, shape),
            other => unreachable!("errors have 8 or 16 bits, not {other:?}"),
        };
        step.buffers.give(error);
        vec![Some(part), None]
    }
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued adjoint")]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use intseg_kernels::{Context, Dither};

    #[test]
    fn backward_is_the_adjoint_of_forward_for_any_ratio() {
        let buffers = Buffers::default();
        let step = Step {
            kernels: Context::reference(),
            bits: Bits::default(),
            buffers: &buffers,
            seed: 0,
            number: 0,
            node: 0,
        };
        let bits = Dither::new(2, 0, 0, Role::Scene);
        for (from, to) in [([4, 6], [8, 12]), ([5, 7], [13, 11]), ([1, 1], [6, 5]), ([9, 8], [4, 3])] {
            for align_corners in [false, true] {
                let input = Shape::new(2, from[0], from[1], 3);
                let like = Tensor::i16(Shape::new(2, to[0], to[1], 1), 0, vec![0; 2 * to[0] * to[1]].into());
                let x = Tensor::i16(input, -8, (0..input.len()).map(|i| (bits.at(i) as i32 >> 17) as i16).collect());
                let mut resize = ResizeLike::new(align_corners);
                let out = resize.forward(&step, &[&x, &like]);
                let e = (0..out.shape.len()).map(|i| (bits.at(90_000 + i) as i32 >> 17) as i16).collect();
                let e = Tensor::i16(out.shape, -10, e);
                let value =
                    |t: &Tensor| t.to_i64().iter().map(|&m| m as f64 * 2f64.powi(t.exponent)).collect::<Vec<_>>();
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let forward = dot(&value(&out), &value(&e));
                let size = dot(&value(&out), &value(&out)).sqrt() * dot(&value(&e), &value(&e)).sqrt();
                let parts = resize.backward(&step, &[&x, &like], &out, e, &[true, false]);
                assert!(parts[1].is_none(), "the size alone is read of the second input");
                let back = parts[0].as_ref().expect("an error");
                let adjoint = dot(&value(&x), &value(back));
                assert!((forward - adjoint).abs() < 1e-3 * size, "{from:?} {to:?}: {forward} {adjoint}");
            }
        }
    }
}
