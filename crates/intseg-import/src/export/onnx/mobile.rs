//! Depthwise convolutions, functions of a byte and products of maps.

use super::conv::window_of;
use super::graph::{Values, int};
use super::layers::{Layers, part};
use super::scale;
use crate::export::channel::{affine, depthwise_weights};
use crate::export::power;
use crate::onnx::tensor as element;
use intseg_runtime::{Depthwise, Element, Node, Pad, Product};

impl Layers<'_> {
    /// A depthwise convolution: exact sums as floats, and then scale and bias.
    pub(super) fn depthwise(&mut self, node: &Node, depthwise: &Depthwise, input: &str) -> String {
        let Depthwise { kernel, stride, dilation, channels, .. } = *depthwise;
        let exponent = self.exponent(node.input(0));
        let (input, padding) = match depthwise.zero {
            0 => (input.to_owned(), depthwise.padding),
            zero => (self.surrounded(node, depthwise.padding, f64::from(zero) * power(exponent), input), [0; 2]),
        };
        let weights = Values::I8(depthwise_weights(depthwise));
        let units = vec![power(-exponent); channels];
        let name = part(node, "weight");
        let weights = self.dequantized(&name, [&[channels], &[1, kernel[0], kernel[1]]], weights, &units);
        let mut attributes = window_of([kernel, stride, dilation, padding]);
        attributes.push(int("group", channels as i64));
        let sums = self.builder.node("Conv", &part(node, "conv"), &[&input, &weights], attributes);
        self.scaled(node, affine(&depthwise.requantization).collect(), 0, &sums)
    }

    /// A map with a pixel around it: operators of ONNX pad with one value for all channels.
    pub(super) fn padded(&mut self, node: &Node, pad: &Pad, input: &str) -> String {
        let (from, exponent, [y, x]) = (self.shape(node.input(0)), node.exponent, pad.padding);
        let value = |bits: &u8| if node.element == Element::I8 { f32::from(*bits as i8) } else { f32::from(*bits) };
        let planes = |len: usize| {
            let plane = |bits: &u8| vec![value(bits) * power(exponent) as f32; len];
            Values::F32(pad.pixel.iter().flat_map(plane).collect())
        };
        let mut padded = input.to_owned();
        for (axis, name, [rows, columns]) in [(3, "sides", [from.h, x]), (2, "ends", [y, from.w + 2 * x])] {
            if rows * columns > 0 {
                let outside =
                    self.builder.constant(&part(node, name), &[1, pad.channels, rows, columns], planes(rows * columns));
                let parts = [outside.as_str(), &padded, &outside];
                padded =
                    self.builder.node("Concat", &part(node, &format!("with_{name}")), &parts, vec![int("axis", axis)]);
            }
        }
        padded
    }

    /// A map with `value` around it.
    fn surrounded(&mut self, node: &Node, [y, x]: [usize; 2], value: f64, input: &str) -> String {
        let pads = [0, 0, y, x, 0, 0, y, x].map(|size| size as i64).to_vec();
        let pads = self.builder.constant(&part(node, "pads"), &[8], Values::I64(pads));
        let value = self.builder.constant(&part(node, "outside"), &[], Values::F32(vec![value as f32]));
        self.builder.node("Pad", &part(node, "padded"), &[input, &pads, &value], vec![])
    }

    /// A function of a byte: its table, indexed with the input's integers.
    pub(super) fn table(&mut self, node: &Node, table: &[u8; 256], input: &str) -> String {
        let from = node.input(0);
        let (element, exponent) = (self.element(from), self.exponent(from));
        // The lowest integer's value comes first.
        let lowest = if element == Element::I8 { 128 } else { 0 };
        let in_order = (0..256usize).map(|place| table[(place + lowest) % 256]);
        let values = match node.element {
            Element::I8 => Values::I8(in_order.map(|bits| bits as i8).collect()),
            _ => Values::U8(in_order.collect()),
        };
        let values = self.builder.constant(&part(node, "table"), &[256], values);
        let (step, zero) = (scale(self.builder, exponent), self.zero(element));
        let integers = self.builder.node("QuantizeLinear", &part(node, "input"), &[input, &step, &zero], vec![]);
        let wide = vec![int("to", element::INT32.into())];
        let mut places = self.builder.node("Cast", &part(node, "argument"), &[&integers], wide);
        if lowest > 0 {
            let first = self.builder.scalar("lowest_i8", Values::I32(vec![lowest as i32]));
            places = self.builder.node("Add", &part(node, "place"), &[&places, &first], vec![]);
        }
        let found = self.builder.node("Gather", &part(node, "value"), &[&values, &places], vec![]);
        let (step, zero) = (scale(self.builder, node.exponent), self.zero(node.element));
        self.builder.node("DequantizeLinear", node.name, &[&found, &step, &zero], vec![])
    }

    /// A product of two maps: exact as floats, and then its scale.
    pub(super) fn product(&mut self, node: &Node, product: &Product, [a, b]: [&str; 2]) -> String {
        let exponents = [0, 1].map(|k| self.exponent(node.input(k)));
        let a = match product.zero {
            0 => a.to_owned(),
            zero => {
                let zero = f64::from(zero) * power(exponents[0]);
                let zero = self.builder.constant(&part(node, "zero"), &[], Values::F32(vec![zero as f32]));
                self.builder.node("Sub", &part(node, "difference"), &[a, &zero], vec![])
            }
        };
        let products = self.builder.node("Mul", &part(node, "product"), &[&a, b], vec![]);
        let exponent = exponents[0] + exponents[1];
        self.scaled(node, affine(&product.requantization).collect(), exponent, &products)
    }
}
