//! What the tests of the runtime share: threads, and small models with random weights.

#![allow(dead_code, reason = "each test uses a part")]

pub mod naive;

use intseg_kernels::{Dither, Pool, Role};
use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec, RequantizationSpec};
use intseg_runtime::{Element, Interpolation};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A pool of that many threads, made anew for each run.
pub struct Threads(pub usize);

impl Pool for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for worker in 0..self.0 {
                let next = &next;
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= tasks {
                            return;
                        }
                        task(index, worker);
                    }
                });
            }
        });
    }
}

/// Random pixels, `[h, w, 3]`.
pub fn image([h, w]: [usize; 2], seed: u64) -> Vec<u8> {
    let bits = Dither::new(seed, 0, 0, Role::Scene);
    (0..3 * h * w).map(|i| bits.at(i) as u8).collect()
}

/// A convolution's geometry: kernel, stride, dilation, padding.
pub type Geometry = [[usize; 2]; 4];

/// A square kernel at stride 1 that keeps the size.
pub fn same(kernel: usize, dilation: usize) -> Geometry {
    [[kernel; 2], [1; 2], [dilation; 2], [dilation * (kernel - 1) / 2; 2]]
}

/// Builds a model node by node; each method returns the new node's number.
pub struct Builder {
    nodes: Vec<NodeSpec>,
    channels: Vec<usize>,
    seed: u64,
}

impl Builder {
    pub fn new(seed: u64) -> Self {
        let mut builder = Builder { nodes: Vec::new(), channels: Vec::new(), seed };
        builder.node(OpSpec::Image, &[], Element::I8, -7, 3);
        builder
    }

    fn bits(&self, role: Role) -> Dither {
        Dither::new(self.seed, 0, self.nodes.len() as u32, role)
    }

    fn node(&mut self, op: OpSpec, inputs: &[usize], element: Element, exponent: i32, channels: usize) -> usize {
        let clamp = match element {
            Element::U8 => [0, 255],
            Element::I8 => [-128, 127],
            Element::I16 => [-32_767, 32_767],
        };
        let name = format!("node{}", self.nodes.len());
        self.nodes.push(NodeSpec { name, op, inputs: inputs.to_vec(), element, exponent, clamp });
        self.channels.push(channels);
        self.nodes.len() - 1
    }

    /// Constants that bring values of about `bits` bits to the range of `element`.
    fn requantization(&self, channels: usize, bits: u32, element: Element) -> RequantizationSpec {
        let (m, b) = (self.bits(Role::Initial), self.bits(Role::Update));
        let wanted = if element == Element::I16 { 14 } else { 7 };
        let mut spec = RequantizationSpec::default();
        for k in 0..channels {
            let shift = (29 + bits - wanted).min(62);
            let sign = if m.at(k + channels) % 8 == 0 { -1 } else { 1 };
            spec.multiplier.push(sign * ((1 << 28) + m.below(k, 1 << 29) as i32));
            spec.bias.push((i64::from(b.at(k) as i32) << (shift - 16)) >> (16 - wanted));
            spec.shift.push(shift as u8);
        }
        spec
    }

    pub fn conv(
        &mut self,
        input: usize,
        geometry: Geometry,
        channels: usize,
        element: Element,
        exponent: i32,
    ) -> usize {
        let (taps, c_in) = (geometry[0][0] * geometry[0][1], self.channels[input]);
        let bits = self.bits(Role::Shuffle);
        let weights = (0..taps * c_in * channels).map(|i| (bits.below(i, 255) as i32 - 127) as i8).collect();
        let requantization = self.requantization(channels, 14 + (taps * c_in).ilog2() / 2, element);
        let channels_of = [c_in, channels];
        let op = OpSpec::Conv {
            geometry,
            channels: channels_of,
            weight_exponent: -7,
            transposed: None,
            weights,
            requantization,
        };
        self.node(op, &[input], element, exponent, channels)
    }

    pub fn depthwise(&mut self, input: usize, geometry: Geometry, zero: i32, element: Element, exponent: i32) -> usize {
        let (taps, channels) = (geometry[0][0] * geometry[0][1], self.channels[input]);
        let bits = self.bits(Role::Shuffle);
        let weights = (0..taps * channels).map(|i| (bits.below(i, 255) as i32 - 127) as i8).collect();
        let requantization = self.requantization(channels, 14 + taps.ilog2() / 2, element);
        let op = OpSpec::Depthwise { geometry, zero, weight_exponent: -7, weights, requantization };
        self.node(op, &[input], element, exponent, channels)
    }

    pub fn table(&mut self, input: usize, element: Element, exponent: i32) -> usize {
        let bits = self.bits(Role::Shuffle);
        let table = Box::new(core::array::from_fn(|v| bits.at(v) as u8));
        self.node(OpSpec::Table(table), &[input], element, exponent, self.channels[input])
    }

    pub fn product(&mut self, inputs: [usize; 2], zero: i32, element: Element, exponent: i32) -> usize {
        let channels = self.channels[inputs[0]];
        let op = OpSpec::Product { zero, requantization: self.requantization(channels, 14, element) };
        self.node(op, &inputs, element, exponent, channels)
    }

    pub fn affine(&mut self, input: usize, element: Element, exponent: i32) -> usize {
        let channels = self.channels[input];
        let op = OpSpec::Affine(self.requantization(channels, 14, element));
        self.node(op, &[input], element, exponent, channels)
    }

    pub fn add(&mut self, inputs: [usize; 2], element: Element, exponent: i32) -> usize {
        self.node(OpSpec::Add, &inputs, element, exponent, self.channels[inputs[0]])
    }

    /// An operator that only moves or selects values.
    fn moving(&mut self, op: OpSpec, inputs: &[usize]) -> usize {
        let (first, channels) = (&self.nodes[inputs[0]], self.channels[inputs[0]]);
        let (element, exponent) = (first.element, first.exponent);
        self.node(op, inputs, element, exponent, channels)
    }

    pub fn max_pool(&mut self, input: usize, geometry: [[usize; 2]; 3], ceil: bool) -> usize {
        self.moving(OpSpec::MaxPool { geometry, ceil }, &[input])
    }

    pub fn pad(&mut self, input: usize, padding: [usize; 2]) -> usize {
        let bits = self.bits(Role::Shuffle);
        let pixel = (0..self.channels[input]).map(|k| bits.at(k) as u8).collect();
        self.moving(OpSpec::Pad { padding, pixel }, &[input])
    }

    pub fn resize_like(&mut self, input: usize, like: usize, interpolation: Interpolation) -> usize {
        self.moving(OpSpec::Resize { factor: None, interpolation }, &[input, like])
    }

    pub fn resize(&mut self, input: usize, factor: [usize; 2], interpolation: Interpolation) -> usize {
        self.moving(OpSpec::Resize { factor: Some(factor), interpolation }, &[input])
    }

    pub fn average_pool(&mut self, input: usize, geometry: [[usize; 2]; 3], ceil: bool, count_padding: bool) -> usize {
        self.moving(OpSpec::AveragePool { geometry, ceil, count_padding }, &[input])
    }

    /// Makes the last node, a convolution, a transposed one.
    pub fn transpose(&mut self, output_padding: [usize; 2]) -> usize {
        let node = self.nodes.len() - 1;
        if let OpSpec::Conv { transposed, .. } = &mut self.nodes[node].op {
            *transposed = Some(output_padding);
        }
        node
    }

    pub fn concat(&mut self, inputs: &[usize]) -> usize {
        let channels = inputs.iter().map(|&input| self.channels[input]).sum();
        let node = self.moving(OpSpec::Concat, inputs);
        self.channels[node] = channels;
        node
    }

    pub fn average(&mut self, input: usize, exponent: i32) -> usize {
        let element = self.nodes[input].element;
        self.node(OpSpec::GlobalAveragePool, &[input], element, exponent, self.channels[input])
    }

    pub fn finish(self, align_corners: bool) -> ModelSpec {
        ModelSpec { metadata: r#"{"arch":"test"}"#.to_owned(), align_corners, nodes: self.nodes }
    }
}

/// An image and activations of either sign with other pixels than 0 around them, on both axes or on one.
pub fn padded() -> ModelSpec {
    let mut b = Builder::new(6);
    let x = b.pad(0, [3, 2]);
    let x = b.conv(x, [[7, 5], [2; 2], [1; 2], [0; 2]], 6, Element::U8, -4);
    let x = b.pad(x, [0, 1]);
    let x = b.conv(x, same(1, 1), 5, Element::I8, -4);
    let x = b.pad(x, [1, 0]);
    b.conv(x, same(3, 1), 3, Element::I16, -8);
    b.finish(false)
}

/// Two convolutions and a pooling between them.
pub fn tiny() -> ModelSpec {
    let mut b = Builder::new(1);
    let x = b.conv(0, same(3, 1), 5, Element::U8, -4);
    let x = b.max_pool(x, [[2; 2], [2; 2], [0; 2]], true);
    b.conv(x, same(1, 1), 3, Element::I16, -8);
    b.finish(false)
}

/// A pre-activation unit between two strides, with a subsampled shortcut, and two sums of mixed types.
pub fn residual(align_corners: bool) -> ModelSpec {
    let mut b = Builder::new(2);
    let linear = Interpolation::linear(align_corners);
    let stem = b.conv(0, [[7; 2], [2; 2], [1; 2], [3; 2]], 20, Element::I16, -9);
    let x = b.max_pool(stem, [[3; 2], [2; 2], [1; 2]], false);
    let pre = b.affine(x, Element::U8, -5);
    let y = b.conv(pre, same(1, 1), 12, Element::U8, -5);
    let y = b.conv(y, [[3; 2], [2; 2], [1; 2], [1; 2]], 12, Element::U8, -4);
    let y = b.conv(y, same(1, 1), 20, Element::I16, -10);
    let shortcut = b.max_pool(x, [[1; 2], [2; 2], [0; 2]], false);
    let sum = b.add([y, shortcut], Element::I16, -8);
    let post = b.affine(sum, Element::U8, -5);
    let wide = b.affine(sum, Element::I16, -7);
    let relu = b.add([wide, post], Element::U8, -1);
    let again = b.add([post, relu], Element::U8, -2);
    let mixed = b.add([again, sum], Element::I16, -9);
    let up = b.resize_like(mixed, stem, linear);
    let joined = b.add([up, stem], Element::I16, -8);
    let pre = b.affine(joined, Element::U8, -5);
    b.conv(pre, same(1, 1), 11, Element::I16, -8);
    b.finish(align_corners)
}

/// Post-activation units: sums right behind a convolution of every type, in either order, with exponents that allow the
/// convolution to add and one that does not.
pub fn bottlenecks() -> ModelSpec {
    let mut b = Builder::new(5);
    let x = b.conv(0, [[3; 2], [2; 2], [1; 2], [1; 2]], 20, Element::U8, -4);
    let shortcut = b.conv(x, same(1, 1), 37, Element::I16, -10);
    let y = b.conv(x, same(3, 1), 12, Element::U8, -4);
    let y = b.conv(y, same(1, 1), 37, Element::I16, -9);
    let x = b.add([y, shortcut], Element::U8, -3);
    let y = b.conv(x, same(1, 1), 12, Element::U8, -4);
    let y = b.conv(y, same(1, 1), 37, Element::I16, -10);
    let x = b.add([x, y], Element::U8, -3);
    let y = b.conv(x, same(3, 2), 37, Element::I8, -5);
    let x = b.add([y, x], Element::I16, -9);
    let pre = b.affine(x, Element::U8, -4);
    let y = b.conv(pre, same(1, 1), 37, Element::U8, -26);
    let far = b.add([x, y], Element::I16, -8);
    let pre = b.affine(far, Element::I8, -4);
    let y = b.conv(pre, same(1, 1), 37, Element::I16, -9);
    let twice = b.add([y, y], Element::I16, -8);
    let pre = b.affine(twice, Element::U8, -4);
    let y = b.conv(pre, same(1, 1), 37, Element::I16, -9);
    let sum = b.add([y, twice], Element::I16, -8);
    let pre = b.affine(sum, Element::U8, -4);
    let z = b.conv(pre, same(3, 1), 37, Element::U8, -4);
    let sum = b.add([z, pre], Element::U8, -4);
    b.conv(sum, same(1, 1), 6, Element::I16, -8);
    b.finish(false)
}

/// A convolution so wide that its pooling takes it strip by strip, and others that a strip cannot hold.
pub fn pooled(geometry: Geometry, channels: usize, pool: [[usize; 2]; 3], ceil: bool) -> ModelSpec {
    let mut b = Builder::new(6);
    let x = b.conv(0, geometry, channels, Element::U8, -4);
    let x = b.max_pool(x, pool, ceil);
    b.conv(x, same(1, 1), 3, Element::I16, -8);
    b.finish(false)
}

/// Dilated branches, image pooling, their concatenation, and a skip from a finer scale.
pub fn pyramid(align_corners: bool) -> ModelSpec {
    let mut b = Builder::new(3);
    let linear = Interpolation::linear(align_corners);
    let half = b.conv(0, [[3, 5], [2, 1], [1, 2], [1, 4]], 18, Element::U8, -4);
    let x = b.max_pool(half, [[2, 3], [2, 2], [0, 1]], true);
    let mut branches = vec![b.conv(x, same(1, 1), 9, Element::U8, -4)];
    for (rate, channels) in [(2, 9), (6, 33), (18, 4)] {
        branches.push(b.conv(x, same(3, rate), channels, Element::U8, -4));
    }
    let pooled = b.average(x, -5);
    let pooled = b.conv(pooled, same(1, 1), 7, Element::U8, -4);
    branches.push(b.resize_like(pooled, x, linear));
    // A branch that others read too, and one that occurs twice.
    branches.extend([x, branches[0]]);
    let joined = b.concat(&branches);
    let project = b.conv(joined, same(1, 1), 16, Element::U8, -4);
    let score = b.conv(project, same(1, 1), 40, Element::I16, -8);
    let skip = b.conv(half, same(1, 1), 40, Element::I16, -7);
    let up = b.resize_like(score, skip, linear);
    b.add([up, skip], Element::I16, -6);
    b.finish(align_corners)
}

/// A decoder: transposed convolutions, activations of both signs, and every way to pool and to resize them.
pub fn decoder() -> ModelSpec {
    let mut b = Builder::new(4);
    let skip = b.conv(0, same(3, 1), 18, Element::I8, -5);
    let x = b.max_pool(skip, [[2; 2], [2; 2], [0; 2]], true);
    let x = b.conv(x, same(3, 1), 24, Element::U8, -4);
    let x = b.average_pool(x, [[3, 2], [2, 1], [1, 0]], true, false);
    b.conv(x, [[2; 2], [2; 2], [1; 2], [0; 2]], 20, Element::I8, -5);
    let up = b.transpose([0; 2]);
    let up = b.average_pool(up, [[3; 2], [1; 2], [1; 2]], false, true);
    let pooled = b.average(up, -5);
    let pooled = b.resize_like(pooled, up, Interpolation::Linear);
    let nearest = b.resize(up, [2, 3], Interpolation::Nearest);
    let nearest = b.resize_like(nearest, up, Interpolation::Nearest);
    let joined = b.concat(&[up, pooled, nearest]);
    b.conv(joined, [[4, 3], [2, 3], [1, 2], [1, 2]], 18, Element::I8, -5);
    let fine = b.transpose([1, 2]);
    let skip = b.resize_like(skip, fine, Interpolation::LinearAligned);
    let sum = b.add([fine, skip], Element::I8, -4);
    let wide = b.affine(sum, Element::I16, -9);
    let mixed = b.add([sum, wide], Element::U8, -4);
    let again = b.affine(mixed, Element::I8, -5);
    let bytes = b.affine(mixed, Element::U8, -3);
    let words = b.affine(bytes, Element::I16, -9);
    let joined = b.add([again, words], Element::I8, -4);
    let signed = b.affine(joined, Element::U8, -4);
    let logits = b.conv(signed, same(1, 1), 7, Element::I16, -8);
    b.resize(logits, [2, 2], Interpolation::Linear);
    b.finish(false)
}

/// Inverted residuals with a gate, and a head with one, as networks for phones have them, in every combination of types.
pub fn mobile() -> ModelSpec {
    let mut b = Builder::new(5);
    let stem = b.conv(0, [[3; 2], [2; 2], [1; 2], [1; 2]], 18, Element::U8, -5);
    let stem = b.table(stem, Element::U8, -4);
    let x = b.depthwise(stem, [[3; 2], [2, 1], [1; 2], [1; 2]], 21, Element::U8, -4);
    let x = b.table(x, Element::I8, -5);
    let gate = b.average(x, -6);
    let gate = b.conv(gate, same(1, 1), 18, Element::I8, -5);
    let gate = b.table(gate, Element::U8, -8);
    let gated = b.product([x, gate], -7, Element::I8, -5);
    let project = b.conv(gated, same(1, 1), 40, Element::I16, -9);
    let narrow = b.affine(project, Element::I8, -4);
    let wide = b.depthwise(narrow, [[5, 4], [1, 2], [2, 3], [4, 5]], -3, Element::I16, -8);
    let narrow = b.affine(wide, Element::U8, -4);
    let square = b.product([narrow, narrow], 3, Element::U8, -4);
    let signed = b.depthwise(square, same(3, 2), 0, Element::I8, -4);
    let mixed = b.product([narrow, signed], 255, Element::I16, -8);
    let mixed = b.affine(mixed, Element::I8, -4);
    let both = b.product([signed, mixed], 0, Element::U8, -4);
    b.conv(both, same(1, 1), 7, Element::I16, -8);
    b.finish(false)
}
