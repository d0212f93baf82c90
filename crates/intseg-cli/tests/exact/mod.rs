//! A model of every operator whose multipliers are powers of two and whose biases are whole units of sums: what ONNX
//! says exactly.

use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec, RequantizationSpec};
use intseg_runtime::{Element, Interpolation};

/// A generator of numbers that look random.
struct Numbers(u64);

impl Numbers {
    /// A number from −`limit` to `limit`.
    fn next(&mut self, limit: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as i64 % (2 * limit + 1) - limit
    }
}

struct Builder {
    nodes: Vec<NodeSpec>,
    channels: Vec<usize>,
    numbers: Numbers,
}

/// Kernel, stride, dilation and padding of a square convolution.
fn square(kernel: usize, stride: usize, dilation: usize, padding: usize) -> [[usize; 2]; 4] {
    [kernel, stride, dilation, padding].map(|size| [size; 2])
}

impl Builder {
    fn add(&mut self, op: OpSpec, inputs: &[usize], element: Element, exponent: i32, channels: usize) -> usize {
        let clamp = match element {
            Element::U8 => [0, 255],
            Element::I8 => [-127, 127],
            Element::I16 => [-32_767, 32_767],
        };
        let name = format!("node{}", self.nodes.len());
        self.nodes.push(NodeSpec { name, op, inputs: inputs.to_vec(), element, exponent, clamp });
        self.channels.push(channels);
        self.nodes.len() - 1
    }

    /// Multipliers of ±2^`multiplier` over a shift, and biases of whole units up to `bias`.
    fn requantization(&mut self, channels: usize, shift: u8, bias: i64) -> RequantizationSpec {
        let mut spec = RequantizationSpec::default();
        for k in 0..channels {
            let multiplier = if k % 5 == 4 { -(1 << 10) } else { 1 << (10 - k % 2) };
            spec.multiplier.push(multiplier);
            spec.bias.push(self.numbers.next(bias) * i64::from(multiplier));
            spec.shift.push(shift + 10);
        }
        spec
    }

    fn conv(
        &mut self,
        input: usize,
        geometry: [[usize; 2]; 4],
        channels: usize,
        element: Element,
        exponent: i32,
    ) -> usize {
        self.any_conv(input, geometry, None, channels, element, exponent)
    }

    fn any_conv(
        &mut self,
        input: usize,
        geometry: [[usize; 2]; 4],
        transposed: Option<[usize; 2]>,
        channels: usize,
        element: Element,
        exponent: i32,
    ) -> usize {
        let (taps, c_in) = (geometry[0][0] * geometry[0][1], self.channels[input]);
        let weights = (0..taps * c_in * channels).map(|_| self.numbers.next(127) as i8).collect();
        // Sums of `n` products of about 2^12 have half as many bits more as `n` has.
        let bits = 12 + (taps * c_in).ilog2() / 2;
        let shift = bits - if element == Element::I16 { 12 } else { 6 };
        let requantization = self.requantization(channels, shift as u8, 1 << (bits - 1));
        let channels_of = [c_in, channels];
        let op =
            OpSpec::Conv { geometry, channels: channels_of, weight_exponent: -7, transposed, weights, requantization };
        self.add(op, &[input], element, exponent, channels)
    }

    fn depthwise(&mut self, input: usize, geometry: [[usize; 2]; 4], zero: i32, element: Element) -> usize {
        let (taps, channels) = (geometry[0][0] * geometry[0][1], self.channels[input]);
        let weights = (0..taps * channels).map(|_| self.numbers.next(127) as i8).collect();
        let requantization = self.requantization(channels, 7, 1 << 11);
        let op = OpSpec::Depthwise { geometry, zero, weight_exponent: -7, weights, requantization };
        self.add(op, &[input], element, -5, channels)
    }

    fn table(&mut self, input: usize, element: Element) -> usize {
        // Not −128, which is beyond the clamp.
        let table = Box::new(core::array::from_fn(|_| self.numbers.next(127) as i8 as u8));
        self.add(OpSpec::Table(table), &[input], element, -6, self.channels[input])
    }

    fn product(&mut self, inputs: [usize; 2], zero: i32, element: Element) -> usize {
        let channels = self.channels[inputs[0]];
        let requantization = self.requantization(channels, 8, 1 << 8);
        self.add(OpSpec::Product { zero, requantization }, &inputs, element, -5, channels)
    }

    fn affine(&mut self, input: usize, shift: u8, element: Element, exponent: i32) -> usize {
        let channels = self.channels[input];
        let op = OpSpec::Affine(self.requantization(channels, shift, 1 << 5));
        self.add(op, &[input], element, exponent, channels)
    }

    /// An operator that keeps its first input's type and exponent.
    fn moving(&mut self, op: OpSpec, inputs: &[usize]) -> usize {
        let (element, exponent) = (self.nodes[inputs[0]].element, self.nodes[inputs[0]].exponent);
        let channels = match op {
            OpSpec::Concat => inputs.iter().map(|&input| self.channels[input]).sum(),
            _ => self.channels[inputs[0]],
        };
        self.add(op, inputs, element, exponent, channels)
    }

    fn resize(&mut self, inputs: &[usize], factor: Option<[usize; 2]>, interpolation: Interpolation) -> usize {
        self.moving(OpSpec::Resize { factor, interpolation }, inputs)
    }
}

/// The model file's bytes.
pub fn model(align_corners: bool) -> Vec<u8> {
    use Element::{I8, I16, U8};
    let numbers = Numbers(1);
    let mut b = Builder { nodes: Vec::new(), channels: Vec::new(), numbers };
    let image = b.add(OpSpec::Image, &[], I8, -7, 3);
    b.nodes[image].clamp = [-128, 127];
    // Padding that is not 0, and of which the window takes no more than it took of its own.
    let padded = b.moving(OpSpec::Pad { padding: [1, 1], pixel: vec![252, 20, 127] }, &[image]);
    let stem = b.conv(padded, square(3, 2, 1, 0), 16, U8, -5);
    let max = b.moving(OpSpec::MaxPool { geometry: [[3; 2], [2; 2], [1; 2]], ceil: true }, &[stem]);
    let signed = b.conv(max, square(3, 1, 2, 2), 24, I8, -4);
    let stream = b.affine(signed, 0, I16, -9);
    let branch = b.conv(max, square(1, 1, 1, 0), 24, I16, -11);
    let sum = b.add(OpSpec::Add, &[stream, branch], I16, -10, 24);
    let active = b.affine(sum, 3, U8, -6);
    let mean = b.add(OpSpec::GlobalAveragePool, &[active], U8, -6, 24);
    let spread = b.resize(&[mean, active], None, Interpolation::linear(align_corners));
    let geometry = [[3; 2], [1; 2], [1; 2]];
    let local = b.moving(OpSpec::AveragePool { geometry, ceil: false, count_padding: false }, &[active]);
    let all = b.moving(OpSpec::Concat, &[active, spread, local]);
    let joined = b.conv(all, square(1, 1, 1, 0), 24, U8, -5);
    b.nodes[joined].clamp = [0, 127];
    let up = b.any_conv(joined, square(3, 2, 1, 1), Some([1, 0]), 16, U8, -5);
    let rectified = b.add(OpSpec::Add, &[joined, active], U8, -5, 24);
    let scores = b.conv(up, square(1, 1, 1, 0), 7, I16, -10);
    let twice = b.resize(&[scores], Some([2, 1]), Interpolation::Nearest);
    let like = b.resize(&[twice, stem], None, Interpolation::linear(align_corners));
    let function = b.table(rectified, U8);
    let filtered = b.depthwise(function, square(3, 1, 2, 2), 21, I8);
    let bent = b.table(filtered, I8);
    let again = b.depthwise(bent, square(5, 1, 1, 2), 0, U8);
    let gate = b.table(mean, U8);
    let gated = b.product([again, gate], 30, I8);
    let squared = b.product([gated, function], -4, U8);
    let picked = b.conv(squared, square(1, 1, 1, 0), 7, I16, -10);
    let nearest = b.resize(&[picked, stem], None, Interpolation::Nearest);
    b.add(OpSpec::Add, &[like, nearest], I16, -9, 7);
    let classes: Vec<String> = (0..7).map(|class| format!("class {class}")).collect();
    let metadata = serde_json::json!({"arch": "all", "classes": classes, "palette": []}).to_string();
    ModelSpec { metadata, align_corners, nodes: b.nodes }.to_bytes()
}
