//! A model's nodes as ONNX operators.

use super::graph::{Builder, Values, int, ints};
use super::resize::{Bilinear, nearest};
use super::{Precision, largest, scale};
use crate::export::power;
use crate::onnx::tensor as element;
use intseg_runtime::{Element, Interpolation, Node, Op, Shape};

/// The nodes so far: each has a value of 32-bit floats, `[1, C, H, W]`, that holds its mantissas times `2^exponent`
/// exactly.
pub struct Layers<'a> {
    pub(super) builder: &'a mut Builder,
    pub(super) precision: Precision,
    shapes: &'a [Shape],
    values: Vec<String>,
    elements: Vec<Element>,
    exponents: Vec<i32>,
}

impl<'a> Layers<'a> {
    /// None yet, of a model with outputs of these shapes.
    pub fn new(builder: &'a mut Builder, precision: Precision, shapes: &'a [Shape]) -> Self {
        Layers { builder, precision, shapes, values: Vec::new(), elements: Vec::new(), exponents: Vec::new() }
    }

    /// The names of the nodes' values.
    pub fn into_values(self) -> Vec<String> {
        self.values
    }

    /// Adds the next node.
    pub fn add(&mut self, node: &Node) {
        let inputs: Vec<String> = node.inputs().map(|input| self.values[input].clone()).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let value = match &node.op {
            Op::Image => self.image(node),
            Op::Conv(conv) => {
                let sums = self.conv(node, conv, inputs[0]);
                self.quantized(node, &sums, true)
            }
            Op::Affine(requantization) => {
                let result = self.affine(node, requantization, inputs[0]);
                self.quantized(node, &result, true)
            }
            Op::Add => {
                let sum = self.builder.node("Add", &part(node, "add"), &inputs, vec![]);
                let sum = self.rectified(node, sum);
                self.quantized(node, &sum, true)
            }
            Op::Depthwise(depthwise) => {
                let sums = self.depthwise(node, depthwise, inputs[0]);
                self.quantized(node, &sums, true)
            }
            Op::Table(table) => self.table(node, table.values, inputs[0]),
            Op::Product(product) => {
                let products = self.product(node, product, [inputs[0], inputs[1]]);
                self.quantized(node, &products, true)
            }
            Op::MaxPool { kernel, stride, padding, .. } => {
                let attributes = self.window(node, *kernel, *stride, *padding);
                let largest = self.builder.node("MaxPool", &part(node, "max_pool"), &inputs, attributes);
                self.narrowed(node, largest)
            }
            Op::AveragePool { kernel, stride, padding, count_padding, .. } => {
                let mut attributes = self.window(node, *kernel, *stride, *padding);
                attributes.push(int("count_include_pad", i64::from(*count_padding)));
                let mean = self.builder.node("AveragePool", &part(node, "mean"), &inputs, attributes);
                self.quantized(node, &mean, false)
            }
            Op::Pad(pad) => {
                let padded = self.padded(node, pad, inputs[0]);
                self.quantized(node, &padded, false)
            }
            Op::GlobalAveragePool => {
                let mean = self.builder.node("GlobalAveragePool", &part(node, "mean"), &inputs, vec![]);
                self.quantized(node, &mean, true)
            }
            Op::Resize { interpolation, .. } => self.resize(node, *interpolation, inputs[0]),
            Op::Concat => {
                let all = self.builder.node("Concat", &part(node, "concat"), &inputs, vec![int("axis", 1)]);
                self.quantized(node, &all, false)
            }
        };
        self.values.push(value);
        self.elements.push(node.element);
        self.exponents.push(node.exponent);
    }

    /// The shape of the next node's output.
    fn output(&self) -> Shape {
        self.shapes[self.values.len()]
    }

    /// The shape of an earlier node's output.
    pub(super) fn shape(&self, node: usize) -> Shape {
        self.shapes[node]
    }

    /// The type of an earlier node's output.
    pub(super) fn element(&self, node: usize) -> Element {
        self.elements[node]
    }

    /// The exponent of an earlier node's output.
    pub(super) fn exponent(&self, node: usize) -> i32 {
        self.exponents[node]
    }

    fn image(&mut self, node: &Node) -> String {
        let Shape { h, w, c } = self.output();
        let image = self.builder.input("image", element::UINT8, &[1, h, w, c]);
        let planes = self.builder.node("Transpose", "image/planes", &[&image], vec![ints("perm", [0, 3, 1, 2])]);
        let zero = self.builder.scalar("zero_image", Values::U8(vec![128]));
        let scale = scale(self.builder, node.exponent);
        self.builder.node("DequantizeLinear", "image/real", &[&planes, &scale, &zero], vec![])
    }

    /// A pooling's window, with as much padding behind as the last one takes: that says what `ceil_mode` would, without
    /// its variants.
    fn window(
        &self,
        node: &Node,
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Vec<crate::onnx::proto::Attribute> {
        let (from, to) = (self.shapes[node.input(0)], self.output());
        let behind = |axis: usize, size: usize, out: usize| {
            ((out - 1) * stride[axis] + kernel[axis]).saturating_sub(size + padding[axis])
        };
        let pads = [padding[0], padding[1], behind(0, from.h, to.h), behind(1, from.w, to.w)];
        vec![ints("kernel_shape", kernel), ints("pads", pads), ints("strides", stride)]
    }

    fn resize(&mut self, node: &Node, interpolation: Interpolation, input: &str) -> String {
        let (from, to) = (self.shapes[node.input(0)], self.output());
        if from == to {
            return input.to_owned();
        }
        let name = part(node, "resize");
        if interpolation == Interpolation::Nearest {
            let resized = nearest(self.builder, input, &name, from, to);
            return self.narrowed(node, resized);
        }
        let resize = Bilinear {
            input,
            name: &name,
            from,
            to: [to.h, to.w],
            exponent: node.exponent,
            largest: largest(node.element),
            align_corners: interpolation == Interpolation::LinearAligned,
        };
        if resize.is_exact_in_f32() {
            let resized = resize.operator(self.builder);
            return self.quantized(node, &resized, false);
        }
        let rounded = resize.rounded(self.builder);
        self.narrowed(node, rounded)
    }

    /// ReLU, where the node's clamp is one: what quantisation does anyway, said for those who fuse it.
    pub(super) fn rectified(&mut self, node: &Node, value: String) -> String {
        match node.element {
            Element::U8 => self.builder.node("Relu", &part(node, "relu"), &[&value], vec![]),
            _ => value,
        }
    }

    /// A value that is rounded and in range already: 16 bits stay floats, 8 bits are said to be.
    fn narrowed(&mut self, node: &Node, value: String) -> String {
        match node.element {
            Element::I16 => value,
            _ => self.quantized(node, &value, false),
        }
    }

    /// A value rounded to the node's type, and clamped if it can leave the node's range, as floats again.
    fn quantized(&mut self, node: &Node, value: &str, clamp: bool) -> String {
        let scale = scale(self.builder, node.exponent);
        let zero = self.zero(node.element);
        let range = match node.element {
            Element::U8 => [0, 255],
            Element::I8 => [-128, 127],
            Element::I16 => [-32_768, 32_767],
        };
        let narrower = clamp && node.clamp != range;
        // 16 bits are clamped as floats, which have the operator everywhere, and 8 bits behind the operator that a
        // convolution is fused with.
        let before = narrower && node.element == Element::I16;
        let value = if before { self.clipped(node, value) } else { value.to_owned() };
        let quantized = self.builder.node("QuantizeLinear", &part(node, "quantized"), &[&value, &scale, &zero], vec![]);
        let quantized = if narrower && !before { self.clipped(node, &quantized) } else { quantized };
        self.builder.node("DequantizeLinear", node.name, &[&quantized, &scale, &zero], vec![])
    }

    /// The zero point of a type: always 0.
    pub(super) fn zero(&mut self, element: Element) -> String {
        match element {
            Element::U8 => self.builder.scalar("zero_u8", Values::U8(vec![0])),
            Element::I8 => self.builder.scalar("zero_i8", Values::I8(vec![0])),
            Element::I16 => self.builder.scalar("zero_i16", Values::I16(vec![0])),
        }
    }

    /// A value held within the node's clamp, whose bounds are whole units: rounding does not leave them.
    fn clipped(&mut self, node: &Node, value: &str) -> String {
        let bounds = node.clamp.map(|bound| match node.element {
            Element::U8 => self.builder.scalar(&format!("bound_u8_{bound}"), Values::U8(vec![bound as u8])),
            Element::I8 => self.builder.scalar(&format!("bound_i8_{bound}"), Values::I8(vec![bound as i8])),
            Element::I16 => {
                let real = f64::from(bound) * power(node.exponent);
                self.builder.scalar(&format!("bound_{bound}_2^{}", node.exponent), Values::F32(vec![real as f32]))
            }
        });
        self.builder.node("Clip", &part(node, "clipped"), &[value, &bounds[0], &bounds[1]], vec![])
    }
}

/// The name of a part of a node.
pub fn part(node: &Node, part: &str) -> String {
    format!("{}/{part}", node.name)
}
