//! A model's nodes as ONNX operators.

use super::graph::{Builder, Values, int, ints};
use super::resize::Bilinear;
use super::{largest, scale};
use crate::export::ExportError;
use crate::export::channel::{self, Channel};
use crate::export::power;
use crate::onnx::tensor as element;
use intseg_runtime::{Conv, Element, Node, Op, Requantization, Shape};

/// The nodes so far: each has a value of 32-bit floats, `[1, C, H, W]`, that holds its mantissas times `2^exponent`
/// exactly.
pub struct Layers<'a> {
    builder: &'a mut Builder,
    shapes: &'a [Shape],
    align_corners: bool,
    values: Vec<String>,
    exponents: Vec<i32>,
}

impl<'a> Layers<'a> {
    /// None yet, of a model with outputs of these shapes.
    pub fn new(builder: &'a mut Builder, shapes: &'a [Shape], align_corners: bool) -> Self {
        Layers { builder, shapes, align_corners, values: Vec::new(), exponents: Vec::new() }
    }

    /// The names of the nodes' values.
    pub fn into_values(self) -> Vec<String> {
        self.values
    }

    /// Adds the next node.
    ///
    /// # Errors
    /// When ONNX cannot say it.
    pub fn add(&mut self, node: &Node) -> Result<(), ExportError> {
        let inputs: Vec<String> = node.inputs().map(|input| self.values[input].clone()).collect();
        let name = part(node, operator(&node.op));
        let value = match &node.op {
            Op::Image => self.image(node),
            Op::Conv(conv) => {
                let sums = self.conv(node, conv, &inputs[0]);
                self.quantized(node, &sums, true)
            }
            Op::Affine(requantization) => {
                let result = self.affine(node, requantization, &inputs[0]);
                self.quantized(node, &result, true)
            }
            Op::Add => {
                let sum = self.builder.node("Add", &name, &[&inputs[0], &inputs[1]], vec![]);
                let sum = self.rectified(node, sum);
                self.quantized(node, &sum, true)
            }
            Op::MaxPool { kernel, stride, padding, .. } => {
                let largest = self.max_pool(node, &inputs[0], *kernel, *stride, *padding);
                match node.element {
                    Element::I16 => largest,
                    _ => self.quantized(node, &largest, false),
                }
            }
            Op::GlobalAveragePool => {
                let mean = self.builder.node("GlobalAveragePool", &name, &[&inputs[0]], vec![]);
                self.quantized(node, &mean, true)
            }
            Op::ResizeLike => self.resize(node, &inputs[0]),
            Op::Concat => {
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                let all = self.builder.node("Concat", &name, &inputs, vec![int("axis", 1)]);
                self.quantized(node, &all, false)
            }
        };
        self.values.push(value);
        self.exponents.push(node.exponent);
        Ok(())
    }

    fn output(&self) -> Shape {
        self.shapes[self.values.len()]
    }

    fn image(&mut self, node: &Node) -> String {
        let Shape { h, w, c } = self.output();
        let image = self.builder.input("image", element::UINT8, &[1, h, w, c]);
        let planes = self.builder.node("Transpose", "image/planes", &[&image], vec![ints("perm", [0, 3, 1, 2])]);
        let zero = self.builder.scalar("zero_image", Values::U8(vec![128]));
        let scale = scale(self.builder, node.exponent);
        self.builder.node("DequantizeLinear", "image/real", &[&planes, &scale, &zero], vec![])
    }

    fn conv(&mut self, node: &Node, conv: &Conv, input: &str) -> String {
        let mut channels = Channel::all(&conv.requantization);
        if node.element == Element::U8 {
            for (k, channel) in channels.iter_mut().enumerate() {
                let largest = conv.weights.iter().skip(k).step_by(conv.c_out).map(|&w| u32::from(channel.weight(w).unsigned_abs())).max();
                *channel = channel.finer(largest.unwrap_or(0));
            }
            let e = channels.iter().map(|c| { let b = c.bias/c.scale; (b-b.round()).abs()*c.scale }).sum::<f64>() / channels.len() as f64;
            let m = channels.iter().map(|c| c.scale).sum::<f64>() / channels.len() as f64;
            eprintln!("{} e {e:.6} scale {m:.5}", node.name);
        }
        let n = node.input(0);
        let mode = std::env::var("FL").unwrap_or_default();
        if node.element == Element::U8 && (mode == "all" || mode == "image" && n == 0 || mode == "two" && n < 2) {
            return self.exact(node, conv, input, &channels);
        }
        let weights = channel::weights(conv, &channels);
        let exponent = self.exponents[node.input(0)];
        let taps = conv.kernel[0] * conv.kernel[1] * conv.c_in;
        let scales: Vec<f64> = channels.iter().map(|c| c.scale * power(node.exponent - exponent)).collect();
        let bias = match node.element {
            // No integers that a float could be in units of follow.
            Element::I16 => {
                let limit = power(20);
                let bias = channels.iter().map(|c| (c.bias.clamp(-limit, limit) * power(node.exponent)) as f32);
                self.builder.constant(&part(node, "bias"), &[conv.c_out], Values::F32(bias.collect()))
            }
            _ => {
                let filters = channels.iter().zip(weights.chunks_exact(taps));
                let bias = filters.map(|(channel, filter)| channel.integer_bias(largest_sum(filter))).collect();
                let units = scales.iter().map(|&scale| scale * power(exponent)).collect::<Vec<_>>();
                self.dequantized(&part(node, "bias"), &[conv.c_out], Values::I32(bias), &units)
            }
        };
        let shape = [conv.c_out, conv.c_in, conv.kernel[0], conv.kernel[1]];
        let weights = self.dequantized(&part(node, "weight"), &shape, Values::I8(weights), &scales);
        let attributes = vec![
            ints("dilations", conv.dilation),
            ints("kernel_shape", conv.kernel),
            ints("pads", conv.padding.into_iter().chain(conv.padding)),
            ints("strides", conv.stride),
        ];
        let sums = self.builder.node("Conv", &part(node, "conv"), &[input, &weights, &bias], attributes);
        self.rectified(node, sums)
    }

    fn exact(&mut self, node: &Node, conv: &Conv, input: &str, channels: &[Channel]) -> String {
        let weights = channel::weights(conv, channels);
        let shape = [conv.c_out, conv.c_in, conv.kernel[0], conv.kernel[1]];
        let exponent = self.exponents[node.input(0)];
        let weights = self.dequantized(&part(node, "weight"), &shape, Values::I8(weights), &vec![power(-exponent); conv.c_out]);
        let attributes = vec![
            ints("dilations", conv.dilation),
            ints("kernel_shape", conv.kernel),
            ints("pads", conv.padding.into_iter().chain(conv.padding)),
            ints("strides", conv.stride),
        ];
        let sums = self.builder.node("Conv", &part(node, "conv"), &[input, &weights], attributes);
        let f = channels.iter().map(|c| channel::scale_f32(c.scale * power(node.exponent))).collect();
        let b = channels.iter().map(|c| (c.bias * power(node.exponent)) as f32).collect();
        let shape = [1, conv.c_out, 1, 1];
        let factors = self.builder.constant(&part(node, "factors"), &shape, Values::F32(f));
        let offsets = self.builder.constant(&part(node, "offsets"), &shape, Values::F32(b));
        let scaled = self.builder.node("Mul", &part(node, "scaled"), &[&sums, &factors], vec![]);
        let moved = self.builder.node("Add", &part(node, "affine"), &[&scaled, &offsets], vec![]);
        self.rectified(node, moved)
    }

    /// A constant of integers, one scale for each of its first dimension.
    fn dequantized(&mut self, name: &str, shape: &[usize], values: Values, scales: &[f64]) -> String {
        let scales = scales.iter().map(|&scale| channel::scale_f32(scale)).collect();
        let scale = self.builder.constant(&format!("{name}_scale"), &shape[..1], Values::F32(scales));
        let integers = self.builder.constant(&format!("{name}_quantized"), shape, values);
        self.builder.node("DequantizeLinear", name, &[&integers, &scale], vec![int("axis", 0)])
    }

    fn affine(&mut self, node: &Node, requantization: &Requantization, input: &str) -> String {
        let exponent = self.exponents[node.input(0)];
        let (mut factors, mut offsets) = (Vec::new(), Vec::new());
        for (multiplier, bias) in channel::affine(requantization) {
            factors.push(channel::scale_f32(multiplier * power(node.exponent - exponent)));
            offsets.push((bias * power(node.exponent)) as f32);
        }
        let shape = [1, factors.len(), 1, 1];
        let factors = self.builder.constant(&part(node, "factors"), &shape, Values::F32(factors));
        let offsets = self.builder.constant(&part(node, "offsets"), &shape, Values::F32(offsets));
        let scaled = self.builder.node("Mul", &part(node, "scaled"), &[input, &factors], vec![]);
        let moved = self.builder.node("Add", &part(node, "affine"), &[&scaled, &offsets], vec![]);
        self.rectified(node, moved)
    }

    fn max_pool(&mut self, node: &Node, input: &str, kernel: [usize; 2], stride: [usize; 2], pad: [usize; 2]) -> String {
        let (from, to) = (self.shapes[node.input(0)], self.output());
        // As much padding behind as the last window takes says what ceil_mode would, without its variants.
        let behind = |axis: usize, size: usize, out: usize| {
            ((out - 1) * stride[axis] + kernel[axis]).saturating_sub(size + pad[axis])
        };
        let pads = [pad[0], pad[1], behind(0, from.h, to.h), behind(1, from.w, to.w)];
        let attributes = vec![ints("kernel_shape", kernel), ints("pads", pads), ints("strides", stride)];
        self.builder.node("MaxPool", &part(node, "max_pool"), &[input], attributes)
    }

    fn resize(&mut self, node: &Node, input: &str) -> String {
        let (from, to) = (self.shapes[node.input(0)], self.output());
        if from == to {
            return input.to_owned();
        }
        let name = part(node, "resize");
        let resize = Bilinear {
            input,
            name: &name,
            from,
            to: [to.h, to.w],
            exponent: node.exponent,
            largest: largest(node.element),
            align_corners: self.align_corners,
        };
        if resize.is_exact_in_f32() {
            let resized = resize.operator(self.builder);
            return self.quantized(node, &resized, false);
        }
        let rounded = resize.rounded(self.builder);
        match node.element {
            Element::I16 => rounded,
            _ => self.quantized(node, &rounded, false),
        }
    }

    /// ReLU, where the node's clamp is one: what quantisation does anyway, said for those who fuse it.
    fn rectified(&mut self, node: &Node, value: String) -> String {
        match node.element {
            Element::U8 => self.builder.node("Relu", &part(node, "relu"), &[&value], vec![]),
            _ => value,
        }
    }

    /// A value rounded to the node's type, and clamped if it can leave the node's range, as floats again.
    fn quantized(&mut self, node: &Node, value: &str, clamp: bool) -> String {
        let scale = scale(self.builder, node.exponent);
        let [low, high] = node.clamp;
        let name = part(node, "quantized");
        let (quantized, zero) = match node.element {
            Element::I16 => {
                let zero = self.builder.scalar("zero_i16", Values::I16(vec![0]));
                let value = if clamp { self.clipped(node, value) } else { value.to_owned() };
                (self.builder.node("QuantizeLinear", &name, &[&value, &scale, &zero], vec![]), zero)
            }
            _ => {
                let zero = self.builder.scalar("zero_u8", Values::U8(vec![0]));
                let quantized = self.builder.node("QuantizeLinear", &name, &[value, &scale, &zero], vec![]);
                let narrower = clamp && node.clamp != [0, 255];
                let clipped = |layers: &mut Self| {
                    let [low, high] = [low, high].map(|bound| {
                        layers.builder.scalar(&format!("bound_{bound}"), Values::U8(vec![bound.clamp(0, 255) as u8]))
                    });
                    layers.builder.node("Clip", &part(node, "clipped"), &[&quantized, &low, &high], vec![])
                };
                (if narrower { clipped(self) } else { quantized }, zero)
            }
        };
        self.builder.node("DequantizeLinear", node.name, &[&quantized, &scale, &zero], vec![])
    }

    /// A value held within the node's clamp, whose bounds are whole units: rounding does not leave them.
    fn clipped(&mut self, node: &Node, value: &str) -> String {
        let bounds = node.clamp.map(|bound| {
            let real = f64::from(bound) * power(node.exponent);
            self.builder.scalar(&format!("bound_{bound}_2^{}", node.exponent), Values::F32(vec![real as f32]))
        });
        self.builder.node("Clip", &part(node, "clipped"), &[value, &bounds[0], &bounds[1]], vec![])
    }
}

/// The largest magnitude of a filter's sums.
fn largest_sum(filter: &[i8]) -> i64 {
    filter.iter().map(|&w| i64::from(w.unsigned_abs())).sum::<i64>() * 255
}

fn part(node: &Node, part: &str) -> String {
    format!("{}/{part}", node.name)
}

/// The last part of an operator's name.
fn operator(op: &Op) -> &'static str {
    match op {
        Op::Image => "image",
        Op::Conv(_) => "conv",
        Op::Affine(_) => "affine",
        Op::Add => "add",
        Op::MaxPool { .. } => "max_pool",
        Op::GlobalAveragePool => "mean",
        Op::ResizeLike => "resize",
        Op::Concat => "concat",
    }
}
