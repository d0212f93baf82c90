//! Convolutions and affine maps: operators with constants of their own.

use super::graph::{Values, int, ints};
use super::layers::{Layers, part};
use super::{Precision, scale};
use crate::export::channel::{self, Channel, scale_f32};
use crate::export::power;
use crate::onnx::proto::Attribute;
use crate::onnx::tensor as element;
use intseg_runtime::{Conv, Element, Node, Op, Requantization};

/// Biases of unfused convolutions beyond this many output units are saturated anyway.
const LARGEST_BIAS: i32 = 20;

/// The share of sums that a fused convolution may round otherwise: models with multipliers of 24 bits that were folded
/// before those were chosen to agree stay below, those with 31 bits are a hundred times above.
const FEW: f64 = 1.0 / (1u64 << 17) as f64;

impl Layers<'_> {
    /// A convolution with its scale and bias.
    pub(super) fn conv(&mut self, node: &Node, conv: &Conv, input: &str) -> String {
        let mut channels = Channel::all(&conv.requantization);
        let narrow = node.element != Element::I16;
        let exact = self.precision == Precision::Exact;
        if narrow && !exact && conv.transposed.is_none() {
            match fused(node, conv, &channels) {
                Some(fused) => channels = fused,
                None => return self.unfused(node, conv, &channels, input),
            }
        }
        // 16 bits run in floats anyway: where those would round, the sums are taken as they are.
        let rounds = || channels.iter().any(|channel| !is_exact(channel.scale, channel.bias, node));
        let sums = match conv.transposed {
            Some(extra) => self.transposed(node, conv, &channels, extra, input),
            None if exact || !narrow && rounds() => return self.unfused(node, conv, &channels, input),
            None => self.fused(node, conv, &channels, narrow, input),
        };
        self.rectified(node, sums)
    }

    /// One operator that ONNX Runtime runs in integers, if 8 bits follow it: then the bias is integers too.
    fn fused(&mut self, node: &Node, conv: &Conv, channels: &[Channel], narrow: bool, input: &str) -> String {
        let exponent = self.exponent(node.input(0));
        let weights = channel::weights(conv, channels);
        let scales: Vec<f64> = channels.iter().map(|c| c.scale * power(node.exponent - exponent)).collect();
        let bias = match narrow {
            true => {
                let filters = channels.iter().zip(weights.chunks_exact(conv.kernel[0] * conv.kernel[1] * conv.c_in));
                let bias =
                    filters.map(|(channel, filter)| channel.integer_bias(channel::largest_sum(filter))).collect();
                let units: Vec<f64> = scales.iter().map(|&scale| scale * power(exponent)).collect();
                self.dequantized(&part(node, "bias"), [&[conv.c_out], &[]], Values::I32(bias), &units)
            }
            false => self.float_bias(node, channels),
        };
        let shape = [conv.c_in, conv.kernel[0], conv.kernel[1]];
        let weights = self.dequantized(&part(node, "weight"), [&[conv.c_out], &shape], Values::I8(weights), &scales);
        self.builder.node("Conv", &part(node, "conv"), &[input, &weights, &bias], window(conv))
    }

    /// Exact integer sums as floats, and then scale and bias: what the executor computes, up to 24 bits.
    fn unfused(&mut self, node: &Node, conv: &Conv, channels: &[Channel], input: &str) -> String {
        let units = vec![power(-self.exponent(node.input(0))); conv.c_out];
        let weights = Values::I8(channel::weights(conv, channels));
        let shape = [conv.c_in, conv.kernel[0], conv.kernel[1]];
        let weights = self.dequantized(&part(node, "weight"), [&[conv.c_out], &shape], weights, &units);
        let sums = self.builder.node("Conv", &part(node, "conv"), &[input, &weights], window(conv));
        let channels = channels.iter().map(|channel| (channel.scale, channel.bias)).collect();
        self.scaled(node, channels, 0, &sums)
    }

    fn transposed(&mut self, node: &Node, conv: &Conv, channels: &[Channel], extra: [usize; 2], input: &str) -> String {
        let exponent = self.exponent(node.input(0));
        let scales: Vec<f64> = channels.iter().map(|c| c.scale * power(node.exponent - exponent)).collect();
        let scales = self.scales(&part(node, "weight"), &scales);
        let weights = Values::I8(channel::transposed_weights(conv, channels));
        let shape = [conv.c_in, conv.c_out, conv.kernel[0], conv.kernel[1]];
        let weights = self.builder.constant(&part(node, "weight_quantized"), &shape, weights);
        let axis = vec![int("axis", 1)];
        let weights = self.builder.node("DequantizeLinear", &part(node, "weight"), &[&weights, &scales], axis);
        let bias = self.float_bias(node, channels);
        let mut attributes = window(conv);
        attributes.push(ints("output_padding", extra));
        self.builder.node("ConvTranspose", &part(node, "conv"), &[input, &weights, &bias], attributes)
    }

    fn float_bias(&mut self, node: &Node, channels: &[Channel]) -> String {
        let limit = power(LARGEST_BIAS);
        let bias = channels.iter().map(|c| (c.bias.clamp(-limit, limit) * power(node.exponent)) as f32);
        self.builder.constant(&part(node, "bias"), &[channels.len()], Values::F32(bias.collect()))
    }

    fn scales(&mut self, name: &str, scales: &[f64]) -> String {
        let values = Values::F32(scales.iter().map(|&scale| scale_f32(scale)).collect());
        self.builder.constant(&format!("{name}_scale"), &[scales.len()], values)
    }

    /// A constant of integers, one scale for each of its first dimension.
    pub(super) fn dequantized(&mut self, name: &str, shape: [&[usize]; 2], values: Values, scales: &[f64]) -> String {
        let scale = self.scales(name, scales);
        // ONNX Runtime's precise mode for x86 without VNNI fails on weights that leave their zero points out.
        let zero = match values {
            Values::I8(_) => {
                self.builder.constant(&format!("{name}_zero"), shape[0], Values::I8(vec![0; scales.len()]))
            }
            _ => String::new(),
        };
        let integers = self.builder.constant(&format!("{name}_quantized"), &shape.concat(), values);
        let inputs = [integers.as_str(), &scale, &zero];
        let inputs = if zero.is_empty() { &inputs[..2] } else { &inputs };
        self.builder.node("DequantizeLinear", name, inputs, vec![int("axis", 0)])
    }

    /// A multiplier and a bias a channel.
    pub(super) fn affine(&mut self, node: &Node, requantization: &Requantization, input: &str) -> String {
        let exponent = self.exponent(node.input(0));
        self.scaled(node, channel::affine(requantization).collect(), exponent, input)
    }

    /// A multiplier and a bias a channel, both in units of the output; `exponent` is that of the input's units.
    pub(super) fn scaled(&mut self, node: &Node, channels: Vec<(f64, f64)>, exponent: i32, input: &str) -> String {
        let whole: Option<Vec<f32>> = channels.iter().map(|&(scale, bias)| whole_units(scale, bias)).collect();
        let exact = channels.iter().all(|&(scale, bias)| is_exact(scale, bias, node));
        // Depthwise convolutions to 8 bits alone stay in 32-bit floats, unless all that is exact is asked for.
        let depthwise = matches!(node.op, Op::Depthwise(_)) && node.element != Element::I16;
        if !exact && (self.precision == Precision::Exact || !depthwise) {
            return self.scaled_in_f64(node, &channels, exponent, input);
        }
        let factors = channels.iter().map(|(scale, _)| scale_f32(scale * power(node.exponent - exponent)));
        // Whole units of the input are added to it, which is exact, and leave one rounding.
        let offsets = match &whole {
            Some(whole) => whole.iter().map(|&units| units * power(exponent) as f32).collect(),
            None => channels.iter().map(|(_, bias)| (bias * power(node.exponent)) as f32).collect(),
        };
        let factors = self.of_channels(node, "factors", Values::F32(factors.collect()), channels.len());
        let offsets = self.of_channels(node, "offsets", Values::F32(offsets), channels.len());
        let steps = [("Mul", "scaled", factors), ("Add", "moved", offsets)];
        let order = if whole.is_some() { [1, 0] } else { [0, 1] };
        let result = order.into_iter().fold(input.to_owned(), |value, step| {
            let (operator, name, constant) = &steps[step];
            self.builder.node(operator, &part(node, name), &[&value, constant], vec![])
        });
        self.rectified(node, result)
    }

    /// As [`Self::scaled`], and rounded, in 64-bit floats: they hold a sum times a multiplier of 24 bits.
    fn scaled_in_f64(&mut self, node: &Node, channels: &[(f64, f64)], exponent: i32, input: &str) -> String {
        let (factors, offsets): (Vec<f64>, Vec<f64>) =
            channels.iter().map(|(scale, bias)| (scale * power(-exponent), *bias)).unzip();
        let factors = self.of_channels(node, "factors", Values::F64(factors), channels.len());
        let offsets = self.of_channels(node, "offsets", Values::F64(offsets), channels.len());
        let to = |element: i32| vec![int("to", element.into())];
        let step = scale(self.builder, node.exponent);
        let mut then = |operator: &str, name: &str, inputs: &[&str], settings: Vec<Attribute>| {
            self.builder.node(operator, &part(node, name), inputs, settings)
        };
        let wide = then("Cast", "wide", &[input], to(element::DOUBLE));
        let scaled = then("Mul", "scaled", &[&wide, &factors], vec![]);
        let moved = then("Add", "moved", &[&scaled, &offsets], vec![]);
        let rounded = then("Round", "rounded", &[&moved], vec![]);
        let narrow = then("Cast", "narrow", &[&rounded], to(element::FLOAT));
        let result = then("Mul", "units", &[&narrow, &step], vec![]);
        self.rectified(node, result)
    }

    /// A constant of one value a channel.
    fn of_channels(&mut self, node: &Node, name: &str, values: Values, channels: usize) -> String {
        self.builder.constant(&part(node, name), &[1, channels, 1, 1], values)
    }
}

/// A bias in units of what is scaled, if it is a whole number of them that sums of 24 bits leave room for.
fn whole_units(scale: f64, bias: f64) -> Option<f32> {
    let units = (bias / scale).round_ties_even();
    (units * scale == bias && units.abs() <= power(23)).then_some(units as f32)
}

/// Whether a sum and its bias times a multiplier are 32-bit floats while they fit the output, or round to the same byte.
fn is_exact(multiplier: f64, bias: f64, node: &Node) -> bool {
    if whole_units(multiplier, bias).is_none() {
        return false;
    }
    let bits = if node.element == Element::I16 { 15 } else { 8 };
    let short = (multiplier * power(f32::MANTISSA_DIGITS as i32 - bits)).fract() == 0.0;
    let [scale, weights] = [multiplier.abs(), multiplier.signum()];
    short || bits == 8 && Channel { scale, weights, bias }.rounds_the_same(node.clamp)
}

/// The channels as a runtime can fuse them, unless it would round more than few sums otherwise.
fn fused(node: &Node, conv: &Conv, channels: &[Channel]) -> Option<Vec<Channel>> {
    let weights = channel::weights(conv, channels);
    let filters = weights.chunks_exact(conv.kernel[0] * conv.kernel[1] * conv.c_in);
    let mut share = 0.0;
    let fused = channels.iter().zip(filters).zip(channel::largest_weights(conv)).map(|((channel, filter), largest)| {
        let (fused, wrong) = channel.fused(node.clamp, largest, channel::largest_sum(filter));
        // Of all sums whose output is within the range.
        share += wrong as f64 * channel.scale / f64::from(node.clamp[1] - node.clamp[0]);
        fused
    });
    let fused = fused.collect();
    (share <= FEW * channels.len() as f64).then_some(fused)
}

fn window(conv: &Conv) -> Vec<Attribute> {
    window_of([conv.kernel, conv.stride, conv.dilation, conv.padding])
}

/// A window's settings, from its kernel, stride, dilation and padding.
pub(super) fn window_of([kernel, stride, dilation, padding]: [[usize; 2]; 4]) -> Vec<Attribute> {
    vec![
        ints("dilations", dilation),
        ints("kernel_shape", kernel),
        ints("pads", padding.into_iter().chain(padding)),
        ints("strides", stride),
    ]
}
