//! Convolution with its weights: forward, backward-data, backward-weight.

use super::{Operator, Step, mask_by_relu};
use crate::graph::{ConvOutput, ConvSpec};
use crate::parameter::Parameter;
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::requantize::{self, Contribution};
use intseg_kernels::{Conv2d, Convolution, Direction, Dither, Input, Line, Role, WeightGradient, Weights};

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
    in_use: Vec<i8>,
    forward: Vec<Line>,
    transposed: Vec<Line>,
    /// Whether `in_use` and the packed weights are those of the masters.
    packed: bool,
}

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
            in_use: Vec::new(),
            forward: Vec::new(),
            transposed: Vec::new(),
            packed: false,
        }
    }

    /// The integers in use, `[KH, KW, C_in, C_out]`.
    pub fn weights_in_use(&self, bits: u32) -> Vec<i8> {
        let mut weights = vec![0; self.weight.master.len()];
        self.weight.in_use_i8(bits, &mut weights);
        weights
    }

    fn geometry(&self, input: Shape) -> Conv2d {
        debug_assert_eq!(input.c, self.c_in);
        self.spec.geometry(input)
    }

    fn pass(&self, geometry: Conv2d, direction: Direction) -> Convolution {
        Convolution { geometry, direction, signed: self.signed || direction == Direction::Transposed }
    }

    /// Rounds and packs the weights again after an update.
    fn pack(&mut self, step: &Step, geometry: Conv2d) {
        if self.packed {
            return;
        }
        self.in_use.resize(self.weight.master.len(), 0);
        self.weight.in_use_i8(step.bits.w, &mut self.in_use);
        let forward = self.pass(geometry, Direction::Forward);
        self.forward.resize(forward.packed_len(step.kernels.isa), Line::ZERO);
        forward.pack(step.kernels.isa, &mut self.forward, &self.in_use);
        if !self.signed {
            let transposed = self.pass(geometry, Direction::Transposed);
            self.transposed.resize(transposed.packed_len(step.kernels.isa), Line::ZERO);
            transposed.pack(step.kernels.isa, &mut self.transposed, &self.in_use);
        }
        self.packed = true;
    }

    /// The exact sums of one direction.
    fn accumulate(&self, step: &Step, geometry: Conv2d, direction: Direction, input: Input) -> Vec<i32> {
        let pass = self.pass(geometry, direction);
        let (len, packed) = match direction {
            Direction::Forward => (geometry.output_len(), &self.forward),
            Direction::Transposed => (geometry.input_len(), &self.transposed),
        };
        let mut sums = step.buffers.take_i32(len);
        let mut scratch = step.buffers.take_i32(pass.scratch_len(step.kernels));
        pass.run(step.kernels, &mut sums, input, Weights { raw: &self.in_use, packed }, &mut scratch);
        step.buffers.give_i32(scratch);
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

    /// Adds the weight gradient of an 8-bit error, `2^shift` times.
    fn add_weight_gradient(&mut self, step: &Step, geometry: Conv2d, input: &Tensor, error: &[i8], shift: u32) {
        let pass = WeightGradient { geometry, signed: self.signed };
        let mut scratch = step.buffers.take_i32(pass.scratch_len(step.kernels));
        pass.run(step.kernels, &mut self.weight.gradient, as_input(input), error, shift, &mut scratch);
        step.buffers.give_i32(scratch);
    }
}

impl Operator for Conv {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let input = inputs[0];
        let geometry = self.geometry(input.shape);
        self.pack(step, geometry);
        let sums = self.accumulate(step, geometry, Direction::Forward, as_input(input));
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
            bias.gradient = step.buffers.take_i64(self.spec.channels);
            channel_sums(&mut bias.gradient, &error);
            bias.gradient_exponent = error.exponent;
        }
        self.weight.gradient = step.buffers.take_i64(geometry.weights_len());
        self.weight.gradient.fill(0);
        self.weight.gradient_exponent = input.exponent + error.exponent;
        let exponent = error.exponent + self.weight.exponent;
        let data = match &error.mantissas {
            Mantissas::I8(e) => {
                self.add_weight_gradient(step, geometry, input, e, 0);
                wanted[0].then(|| {
                    let sums = self.accumulate(step, geometry, Direction::Transposed, Input::I8(e));
                    Tensor::i32(input.shape, exponent, sums)
                })
            }
            Mantissas::I16(e) => {
                let (mut high, mut low) = (step.buffers.take_i8(e.len()), step.buffers.take_i8(e.len()));
                requantize::split_i16(step.kernels, &mut high, &mut low, e);
                self.add_weight_gradient(step, geometry, input, &high, 8);
                self.add_weight_gradient(step, geometry, input, &low, 0);
                let data = wanted[0].then(|| self.combined(step, geometry, input.shape, [&high, &low], exponent));
                step.buffers.give_i8(high);
                step.buffers.give_i8(low);
                data
            }
            other => unreachable!("quantize_e2 returns 8 or 16 bits, not {other:?}"),
        };
        step.buffers.give(error);
        self.packed = false;
        vec![data]
    }

    fn parameters(&mut self) -> Vec<&mut Parameter> {
        std::iter::once(&mut self.weight).chain(&mut self.bias).collect()
    }
}

impl Conv {
    /// Backward-data of a 16-bit error as two exact 8-bit passes, `256·high + low`, rounded to 16 bits once.
    fn combined(&self, step: &Step, geometry: Conv2d, shape: Shape, parts: [&[i8]; 2], exponent: i32) -> Tensor {
        let [high, low] = parts.map(|part| self.accumulate(step, geometry, Direction::Transposed, Input::I8(part)));
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
        return error;
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

/// Sums of an error over all positions.
fn channel_sums(sums: &mut [i64], error: &Tensor) {
    fn add<T: Copy + Into<i64>>(sums: &mut [i64], error: &[T]) {
        for pixel in error.chunks_exact(sums.len()) {
            sums.iter_mut().zip(pixel).for_each(|(sum, &e)| *sum += e.into());
        }
    }
    sums.fill(0);
    match &error.mantissas {
        Mantissas::I8(e) => add(sums, e),
        Mantissas::I16(e) => add(sums, e),
        other => unreachable!("errors have 8 or 16 bits, not {other:?}"),
    }
}
