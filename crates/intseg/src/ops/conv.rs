//! Convolution with its weights: forward, backward-data, backward-weight.

use super::{Operator, Step, mask_by_relu};
use crate::buffers::Buffer;
use crate::graph::{ConvOutput, ConvSpec};
use crate::parameter::{Parameter, Rate};
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::average_pool;
use intseg_kernels::conv::Sum;
use intseg_kernels::requantize::{self, Contribution};
use intseg_kernels::round::stochastic_i32;
use intseg_kernels::{Context, Conv2d, Convolution, Direction, Dither, Input, Line, Role, WeightGradient, Weights};
use std::ops::Range;

/// A convolution of a training graph.
pub struct Conv {
    spec: ConvSpec,
    c_in: usize,
    /// Whether the input is signed (the image) and so wants no error.
    signed: bool,
    /// `[KH, KW, C_in, C_out]`.
    pub weight: Parameter,
    /// `[C_out]`, absent where batch normalisation follows.
    pub bias: Option<Parameter>,
    /// The error that `backward` left for `learn`: 8 bits, or 16 as a high and a low half.
    error: Vec<Buffer<i8>>,
    error_exponent: i32,
}

/// Weights whose gradient is computed and used at once.
const AT_ONCE: usize = 1 << 21;

impl Conv {
    /// A convolution with initial weights drawn for ReLU (He et al. 2015) and a bias of zero.
    pub fn new(name: &str, spec: ConvSpec, c_in: usize, signed: bool, draw: Dither) -> Self {
        let shape = [spec.kernel[0], spec.kernel[1], c_in, spec.channels];
        let bias = (spec.output != ConvOutput::Accumulators)
            .then(|| Parameter::affine(&format!("{name}.bias"), spec.channels, 0));
        Conv {
            spec,
            c_in,
            signed,
            weight: Parameter::he_normal(&format!("{name}.weight"), shape, draw),
            bias,
            error: Vec::new(),
            error_exponent: 0,
        }
    }

    /// The integers in use, `[KH, KW, C_in, C_out]`.
    pub fn weights_in_use(&self, bits: u32) -> Vec<i8> {
        let mut coarse = vec![0; if bits < 8 { self.weight.master.len() } else { 0 }];
        self.weight.in_use(Context::reference(), bits, &mut coarse).to_vec()
    }

    /// The error that `backward` left, of the output's shape.
    pub fn error_in_use(&self, shape: Shape) -> Tensor {
        let whole = |i: usize| self.error.iter().fold(0, |sum, part| (sum << 8) + i32::from(part[i]));
        Tensor::i32(shape, self.error_exponent, (0..shape.len()).map(whole).collect())
    }

    /// The largest magnitude that the sums of backward-data can reach for an error of 8 bits.
    pub fn backward_bound(&self) -> u64 {
        (self.spec.kernel[0] * self.spec.kernel[1] * self.spec.channels) as u64 * 128 * 127
    }

    fn geometry(&self, input: Shape) -> Conv2d {
        debug_assert_eq!(input.c, self.c_in);
        self.spec.geometry(input)
    }

    fn pass(&self, geometry: Conv2d, direction: Direction) -> Convolution {
        Convolution { geometry, direction, signed: self.signed || direction == Direction::Transposed }
    }

    /// The exact sums of one direction for each of some inputs. The weights are packed for it: packed
    /// weights of all layers would take as much memory as the weights, and packing takes little time.
    fn accumulate<const N: usize>(
        &self,
        step: &Step,
        geometry: Conv2d,
        direction: Direction,
        inputs: [Input; N],
    ) -> [Buffer<i32>; N] {
        let pass = self.pass(geometry, direction);
        let len = match direction {
            Direction::Forward => geometry.output_len(),
            Direction::Transposed => geometry.input_len(),
        };
        // In a buffer of the kind that sums have: where weights are many, sums are few.
        let lines = pass.packed_len(step.kernels.isa);
        let mut words = step.buffers.take_i32(Line::words(lines));
        let packed = &mut Line::in_words(&mut words)[..lines];
        let mut coarse = step.buffers.take_i8(if step.bits.w < 8 { self.weight.master.len() } else { 0 });
        let raw = self.weight.in_use(step.kernels, step.bits.w, &mut coarse);
        pass.pack(step.kernels, packed, raw);
        let mut scratch = step.buffers.take_i32(pass.scratch_len(step.kernels));
        let weights = Weights { raw, packed };
        let sums = inputs.map(|input| {
            let mut sums = step.buffers.take_i32(len);
            pass.run(step.kernels, &mut sums, input, weights, &mut scratch);
            sums
        });
        step.buffers.give_i32(scratch);
        step.buffers.give_i32(words);
        step.buffers.give_i8(coarse);
        sums
    }

    /// The biases in units of `2^exponent`.
    fn aligned_bias(&self, exponent: i32) -> Vec<i32> {
        let Some(bias) = &self.bias else { return Vec::new() };
        (0..bias.master.len())
            .map(|channel| {
                let shift = bias.exponent - exponent;
                let value = i64::from(bias.in_use_bias(channel));
                let aligned = match shift {
                    0.. => value << shift.min(32),
                    _ => intseg_kernels::round::half_even_i64(value, shift.unsigned_abs().min(62)),
                };
                // Half of the range stays free, so that sum and bias together fit.
                aligned.clamp(-(1 << 30), 1 << 30) as i32
            })
            .collect()
    }

    /// The gradient of the weights of some taps, in units of `2^(input.exponent + error_exponent)`.
    fn weight_gradient<S: Sum>(
        &self,
        step: &Step,
        pass: WeightGradient,
        input: &Tensor,
        taps: Range<usize>,
        gradient: &mut [S],
    ) {
        let mut scratch = step.buffers.take_i32(pass.scratch_len(step.kernels, taps.clone()));
        for (part, error) in self.error.iter().enumerate() {
            let shift = 8 * (self.error.len() - 1 - part) as u32;
            pass.run(step.kernels, gradient, taps.clone(), as_input(input), error, shift, &mut scratch);
        }
        step.buffers.give_i32(scratch);
    }
}

impl Conv {
    /// Weights of one tap.
    fn per_tap(&self) -> usize {
        self.weight.shape[2] * self.spec.channels
    }

    /// Taps whose gradient is computed at once. Rounding a gradient to few bits needs the largest of all.
    fn learnt_at_once(&self, step: &Step) -> usize {
        let taps = self.weight.master.len() / self.per_tap();
        if step.bits.g == 32 { (AT_ONCE / self.per_tap()).clamp(1, taps) } else { taps }
    }

    /// Updates the weights from sums that never are a gradient in memory, `at_once` taps at a time.
    fn learn_directly(
        &mut self,
        step: &Step,
        pass: WeightGradient,
        input: &Tensor,
        rate: &Rate,
        at_once: usize,
    ) -> usize {
        let taps = self.weight.master.len() / self.per_tap();
        let exponent = input.exponent + self.error_exponent;
        let mut saturated = 0;
        for first in (0..taps).step_by(at_once) {
            let range = first..taps.min(first + at_once);
            let mut scratch = step.buffers.take_i32(pass.scratch_len(step.kernels, range.clone()));
            let (input, error) = (as_input(input), &self.error[0]);
            saturated += self.weight.descend_by(step, rate, pass, range, input, error, exponent, &mut scratch);
            step.buffers.give_i32(scratch);
        }
        saturated
    }

    /// Computes the gradient and updates the weights, as many taps at a time as `gradient` holds: the gradient of all
    /// weights of a large layer would be the largest tensor of a step. Returns how many masters left their grid.
    fn learn_weights<S: Sum>(
        &mut self,
        step: &Step,
        pass: WeightGradient,
        input: &Tensor,
        rate: &Rate,
        gradient: &mut [S],
        zero: S,
    ) -> usize {
        let per_tap = self.per_tap();
        let taps = self.weight.master.len() / per_tap;
        let exponent = input.exponent + self.error_exponent;
        let mut saturated = 0;
        for first in (0..taps).step_by(gradient.len() / per_tap) {
            let range = first..taps.min(first + gradient.len() / per_tap);
            let gradient = &mut gradient[..range.len() * per_tap];
            gradient.fill(zero);
            self.weight_gradient(step, pass, input, range, gradient);
            saturated += self.weight.descend(step, 0, rate, first * per_tap, gradient, exponent);
        }
        saturated
    }
}

impl Operator for Conv {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let input = inputs[0];
        let geometry = self.geometry(input.shape);
        let [sums] = self.accumulate(step, geometry, Direction::Forward, [as_input(input)]);
        let shape = Shape::new(input.shape.n, geometry.out_h(), geometry.out_w(), self.spec.channels);
        let exponent = input.exponent + self.weight.exponent;
        let bias = self.aligned_bias(exponent);
        let output = match self.spec.output {
            ConvOutput::Accumulators => return Tensor::i32(shape, exponent, sums),
            ConvOutput::Relu => {
                let (_, largest) = requantize::range_biased(step.kernels, &sums, &bias);
                let shift = requantize::shift_for(largest.max(0) as u64, step.bits.a);
                let mut out = step.buffers.take_u8(sums.len());
                let high = ((1u32 << step.bits.a) - 1) as u8;
                requantize::bias_relu_u8(step.kernels, &mut out, &sums, &bias, shift, high);
                Tensor::u8(shape, exponent + shift as i32, out)
            }
            ConvOutput::Linear => {
                let (low, high) = requantize::range_biased(step.kernels, &sums, &bias);
                let largest = low.unsigned_abs().max(high.unsigned_abs());
                let shift = requantize::shift_for(largest.into(), step.bits.residual - 1);
                let mut out = step.buffers.take_i16(sums.len());
                let limit = ((1u32 << (step.bits.residual - 1)) - 1) as i16;
                requantize::bias_i16(step.kernels, &mut out, &sums, &bias, shift, limit);
                Tensor::i16(shape, exponent + shift as i32, out)
            }
        };
        step.buffers.give_i32(sums);
        output
    }

    fn backward(
        &mut self,
        step: &Step,
        inputs: &[&Tensor],
        output: &Tensor,
        error: Tensor,
        wanted: &[bool],
    ) -> Vec<Option<Tensor>> {
        let input = inputs[0];
        let geometry = self.geometry(input.shape);
        let error = quantize_e2(step, mask_by_relu(step, self.spec.output == ConvOutput::Relu, output, error));
        if let Some(bias) = &mut self.bias {
            bias.gradient = channel_sums(step, &error);
            bias.gradient_exponent = error.exponent;
        }
        self.error_exponent = error.exponent;
        let exponent = error.exponent + self.weight.exponent;
        let (data, error) = match error.mantissas {
            Mantissas::I8(e) => {
                let data = wanted[0].then(|| {
                    let [sums] = self.accumulate(step, geometry, Direction::Transposed, [Input::I8(&e)]);
                    Tensor::i32(input.shape, exponent, sums)
                });
                (data, vec![e])
            }
            Mantissas::I16(e) => {
                let (mut high, mut low) = (step.buffers.take_i8(e.len()), step.buffers.take_i8(e.len()));
                requantize::split_i16(step.kernels, &mut high, &mut low, &e);
                step.buffers.give_i16(e);
                let data = wanted[0].then(|| self.combined(step, geometry, input.shape, [&high, &low], exponent));
                (data, vec![high, low])
            }
            other => unreachable!("quantize_e2 returns 8 or 16 bits, not {other:?}"),
        };
        self.error = error;
        vec![data]
    }

    fn learn(&mut self, step: &Step, inputs: &[&Tensor], rate: &Rate) {
        let pass = WeightGradient { geometry: self.geometry(inputs[0].shape), signed: self.signed };
        let at_once = self.learnt_at_once(step);
        let saturated = if self.error.len() == 1 && step.bits.g == 32 && pass.learns(step.kernels) {
            self.learn_directly(step, pass, inputs[0], rate, at_once)
        } else if pass.is_narrow() && self.error.len() == 1 {
            let mut gradient = step.buffers.take_i32(at_once * self.per_tap());
            let saturated = self.learn_weights(step, pass, inputs[0], rate, &mut gradient, 0);
            step.buffers.give_i32(gradient);
            saturated
        } else {
            let mut gradient = step.buffers.take_i64(at_once * self.per_tap());
            let saturated = self.learn_weights(step, pass, inputs[0], rate, &mut gradient, 0);
            step.buffers.give_i64(gradient);
            saturated
        };
        std::mem::take(&mut self.error).into_iter().for_each(|error| step.buffers.give_i8(error));
        self.weight.regrid(step, 0, saturated);
        if let Some(bias) = &mut self.bias {
            bias.update(step, 1, rate);
        }
    }

    fn parameters(&mut self) -> Vec<&mut Parameter> {
        std::iter::once(&mut self.weight).chain(&mut self.bias).collect()
    }
}

impl Conv {
    /// Backward-data of a 16-bit error as two exact 8-bit passes, `256·high + low`, rounded to 16 bits once.
    fn combined(&self, step: &Step, geometry: Conv2d, shape: Shape, parts: [&[i8]; 2], exponent: i32) -> Tensor {
        let [high, low] = self.accumulate(step, geometry, Direction::Transposed, parts.map(Input::I8));
        let contributions = [Contribution::I32(&high, 8), Contribution::I32(&low, 0)];
        let mut out = step.buffers.take_i16(shape.len());
        let dither = step.dither(Role::ErrorAtActivation, 1);
        let shift = requantize::collect_i16(step.kernels, &mut out, &contributions, 16, dither);
        step.buffers.give_i32(high);
        step.buffers.give_i32(low);
        Tensor::i16(shape, exponent + shift as i32, out)
    }
}

fn as_input(tensor: &Tensor) -> Input<'_> {
    match &tensor.mantissas {
        Mantissas::U8(m) => Input::U8(m),
        Mantissas::I8(m) => Input::I8(m),
        other => unreachable!("a convolution reads 8-bit activations, not {other:?}"),
    }
}

/// Brings an error to the 8 or 16 bits that convolution backward reads (E2).
fn quantize_e2(step: &Step, error: Tensor) -> Tensor {
    let Mantissas::I16(e) = &error.mantissas else { return error };
    if step.bits.e2 > 8 {
        return if step.bits.e2_flag { flagged(step, error) } else { error };
    }
    let largest = requantize::max_magnitude(step.kernels, e);
    let shift = requantize::shift_for(largest.into(), step.bits.e2 - 1);
    let mut out = step.buffers.take_i8(e.len());
    let limit = ((1u32 << (step.bits.e2 - 1)) - 1) as i8;
    let dither = step.dither(Role::ErrorAtConvolution, 0);
    requantize::stochastic_i8(step.kernels, &mut out, e, shift, limit, dither);
    let (shape, exponent) = (error.shape, error.exponent + shift as i32);
    step.buffers.give(error);
    Tensor::i8(shape, exponent, out)
}

/// Brings a 16-bit error to what 8 bits and a flag hold: magnitudes below 2^7, or multiples of 2^7 up to 127 · 2^7.
fn flagged(step: &Step, mut error: Tensor) -> Tensor {
    const FLAG: u32 = 7;
    let Mantissas::I16(e) = &mut error.mantissas else { return error };
    let largest = requantize::max_magnitude(step.kernels, e);
    let shift = requantize::shift_for(largest.into(), 2 * FLAG);
    let dither = step.dither(Role::ErrorAtConvolution, 1);
    let (fine, coarse) = (dither.over(shift), dither.over(shift + FLAG));
    for (i, e) in e.iter_mut().enumerate() {
        let value = i32::from(*e);
        let rounded = match value.unsigned_abs() >> shift < 1 << FLAG {
            true => stochastic_i32(value, shift, fine.at(i)),
            false => stochastic_i32(value, shift + FLAG, coarse.at(i)).clamp(-127, 127) << FLAG,
        };
        *e = rounded as i16;
    }
    error.exponent += shift as i32;
    error
}

/// Sums of an error over all positions.
fn channel_sums(step: &Step, error: &Tensor) -> Buffer<i64> {
    let Shape { n, h, w, c } = error.shape;
    let mut each = step.buffers.take_i64(n * c);
    match &error.mantissas {
        Mantissas::I8(e) => average_pool::channel_sums(step.kernels, &mut each, e, h * w, c),
        Mantissas::I16(e) => average_pool::channel_sums(step.kernels, &mut each, e, h * w, c),
        other => unreachable!("errors have 8 or 16 bits, not {other:?}"),
    }
    let mut sums = step.buffers.take_i64(c);
    sums.fill(0);
    for image in each.chunks_exact(c) {
        sums.iter_mut().zip(image).for_each(|(sum, &of_image)| *sum += of_image);
    }
    step.buffers.give_i64(each);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;

    #[test]
    fn eight_bits_and_a_flag_keep_small_errors_exactly_and_large_ones_to_a_part_in_128() {
        let buffers = Buffers::default();
        let bits = Bits { e2: 15, e2_flag: true, ..Bits::default() };
        let step = Step { kernels: Context::reference(), bits, buffers: &buffers, seed: 1, number: 0, node: 0 };
        let values: Vec<i16> = (-16_000..16_000).collect();
        let error = Tensor::i16(Shape::new(1, 1, 32_000, 1), -20, values.clone().into());
        let flagged = quantize_e2(&step, error);
        assert_eq!(flagged.exponent, -20);
        let mut drift = 0;
        for (&value, got) in values.iter().zip(flagged.to_i64()) {
            let value = i64::from(value);
            match value.abs() < 128 {
                true => assert_eq!(got, value),
                false => assert!(got % 128 == 0 && (got - value).abs() < 128, "{value} became {got}"),
            }
            drift += got - value;
        }
        assert!(drift.abs() < 32_000, "stochastic rounding keeps the mean, this moved by {drift} in 32 000");
    }
}
