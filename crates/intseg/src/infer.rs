//! The training graph's inference mode: every operator on its own, accumulators and all, with the constants that
//! folding makes.
//!
//! It is slow and keeps every output. It is what the deployed executor is held to, bit for bit.

use crate::buffers::Buffers;
use crate::fold::{Metadata, fold};
use crate::frozen::Frozen;
use crate::graph::{Graph, OpSpec, pooled};
use crate::network::{IMAGE_EXPONENT, Network};
use crate::ops::add::aligned_to;
use crate::ops::average_pool::GlobalAveragePool;
use crate::ops::concat::Concat;
use crate::ops::max_pool::MaxPool;
use crate::ops::resize::{ResizeLike, Taps};
use crate::ops::{Bits, Operator, Step};
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::conv::requantize;
use intseg_kernels::round::{divide_half_even, half_even_i64};
use intseg_kernels::{Context, Convolution, Direction, Input, Line, Weights};
use intseg_runtime::Element;
use intseg_runtime::writer::{NodeSpec, OpSpec as Folded, RequantizationSpec};

/// The class of each pixel of an image (`[H, W, 3]`, RGB).
///
/// # Panics
/// When the image does not have `3 · h · w` values, or is too small for the network.
pub fn class_map(
    network: &Network,
    frozen: &Frozen,
    bits: Bits,
    ctx: Context,
    image: &[u8],
    [h, w]: [usize; 2],
) -> Vec<u8> {
    let graph = &network.graph;
    let folded = fold(network, frozen, bits, &Metadata::default());
    let buffers = Buffers::default();
    let step = Step { kernels: ctx, bits, buffers: &buffers, seed: 0, number: 0, node: 0 };
    let image = image.iter().map(|&v| (i16::from(v) - 128) as i8).collect();
    let mut values: Vec<Option<Tensor>> = vec![None; graph.nodes.len()];
    values[0] = Some(Tensor::i8(Shape::new(1, h, w, 3), IMAGE_EXPONENT, image));
    for (index, node) in graph.nodes.iter().enumerate().skip(1) {
        let Some(folded) = folded.nodes.iter().find(|f| f.name == node.name) else {
            // Dropout passes; a convolution whose normalisation follows, and the auxiliary head, have no node.
            values[index] = match node.op {
                OpSpec::Dropout { .. } => values[node.inputs[0].0].clone(),
                _ => None,
            };
            continue;
        };
        let output = infer(&step, graph, index, folded, &values);
        values[index] = Some(output);
    }
    let logits = values[graph.logits.0].as_ref().expect("the logits are deployed");
    classify(logits, [h, w], graph.align_corners)
}

/// One node's output.
fn infer(step: &Step, graph: &Graph, index: usize, folded: &NodeSpec, values: &[Option<Tensor>]) -> Tensor {
    let node = &graph.nodes[index];
    let value = |index: usize| values[index].as_ref().expect("inputs come before their readers");
    let inputs: Vec<&Tensor> = node.inputs.iter().filter_map(|id| values[id.0].as_ref()).collect();
    match &folded.op {
        Folded::Conv { requantization, weights, .. } => {
            // A folded normalisation reads what its convolution reads.
            let (spec, input) = match &node.op {
                OpSpec::Conv(spec) => (spec, value(node.inputs[0].0)),
                _ => {
                    let before = &graph.nodes[node.inputs[0].0];
                    let OpSpec::Conv(spec) = &before.op else { unreachable!("only convolutions fold into one") };
                    (spec, value(before.inputs[0].0))
                }
            };
            let geometry = spec.geometry(input.shape);
            let sums = accumulators(step, geometry, input, weights);
            let shape = Shape::new(1, geometry.out_h(), geometry.out_w(), spec.channels);
            requantized(shape, &sums, requantization, folded)
        }
        Folded::Affine(requantization) => {
            let sums: Vec<i32> = inputs[0].to_i64().iter().map(|&v| v as i32).collect();
            requantized(inputs[0].shape, &sums, requantization, folded)
        }
        Folded::Add => {
            let (parts, unit) = aligned_to(&inputs, folded.exponent);
            let mut sums = vec![0i64; inputs[0].shape.len()];
            intseg_kernels::requantize::sum_to_nearest(step.kernels, &mut sums, &parts, 0, [i64::MIN, i64::MAX], |v| v);
            let shift = (folded.exponent - unit) as u32;
            let out = sums.iter().map(|&v| half_even_i64(v, shift)).collect::<Vec<_>>();
            narrowed(inputs[0].shape, out, folded)
        }
        Folded::MaxPool { .. } => {
            let OpSpec::MaxPool(spec) = &node.op else { unreachable!("a pooling stays one") };
            debug_assert!(pooled(spec, inputs[0].shape).is_some());
            MaxPool::new(*spec).forward(step, &inputs)
        }
        Folded::GlobalAveragePool => {
            let shape = inputs[0].shape;
            let sums = GlobalAveragePool::sums(step, inputs[0]);
            let shift = folded.exponent - inputs[0].exponent;
            let (up, down) = ((-shift).max(0) as u32, shift.max(0) as u32);
            let pixels = (shape.h * shape.w) as i64;
            let means = sums.iter().map(|&sum| divide_half_even(sum << up, pixels << down)).collect();
            narrowed(Shape::new(1, 1, 1, shape.c), means, folded)
        }
        Folded::Resize { .. } => ResizeLike::new(graph.align_corners).forward(step, &inputs),
        Folded::Concat => Concat.forward(step, &inputs),
        Folded::Image => unreachable!("the image is the first node"),
        Folded::AveragePool { .. } | Folded::Depthwise { .. } | Folded::Table(_) | Folded::Product { .. } => {
            unreachable!("no network has one")
        }
        Folded::Pad { .. } => {
            unreachable!("a trained network's padding is 0")
        }
    }
}

fn accumulators(step: &Step, geometry: intseg_kernels::Conv2d, input: &Tensor, weights: &[i8]) -> Vec<i32> {
    let (input, signed) = match &input.mantissas {
        Mantissas::U8(m) => (Input::U8(m), false),
        Mantissas::I8(m) => (Input::I8(m), true),
        other => unreachable!("a convolution reads 8-bit activations, not {other:?}"),
    };
    let pass = Convolution { geometry, direction: Direction::Forward, signed };
    let mut packed = vec![Line::ZERO; pass.packed_len(step.kernels.isa)];
    pass.pack(step.kernels, &mut packed, weights);
    let mut scratch = vec![0; pass.scratch_len(step.kernels)];
    let mut sums = vec![0; geometry.output_len()];
    pass.run(step.kernels, &mut sums, input, Weights { raw: weights, packed: &packed }, &mut scratch);
    sums
}

fn requantized(shape: Shape, sums: &[i32], r: &RequantizationSpec, folded: &NodeSpec) -> Tensor {
    let [low, high] = folded.clamp;
    let constants = r.multiplier.iter().zip(&r.bias).zip(&r.shift).cycle();
    let values = sums.iter().zip(constants);
    let values = values.map(|(&sum, ((&m, &b), &s))| i64::from(requantize(sum, m, b, s, low, high)));
    narrowed(shape, values.collect(), folded)
}

fn narrowed(shape: Shape, values: Vec<i64>, folded: &NodeSpec) -> Tensor {
    let [low, high] = folded.clamp.map(i64::from);
    let values = values.into_iter().map(|v| v.clamp(low, high));
    match folded.element {
        Element::I16 => Tensor::i16(shape, folded.exponent, values.map(|v| v as i16).collect()),
        _ => Tensor::u8(shape, folded.exponent, values.map(|v| v as u8).collect()),
    }
}

/// Resizes logits exactly, in wide integers, and takes the first of the largest.
fn classify(logits: &Tensor, size: [usize; 2], align_corners: bool) -> Vec<u8> {
    let Shape { h, w, c, .. } = logits.shape;
    let taps = Taps::new([h, w], size, align_corners);
    let resize = taps.kernel(c);
    let shift = resize.shift_to_i32(1 << 15);
    let values = logits.to_i64();
    let mut classes = Vec::with_capacity(size[0] * size[1]);
    let at = |y: u32, x: u32, k: usize| values[(y as usize * w + x as usize) * c + k];
    for row in resize.rows {
        for column in resize.columns {
            let [dy, dx] = resize.denominators.map(i64::from);
            let [wy, wx] = [row.weight, column.weight].map(i64::from);
            let sum = |k: usize| {
                let above = (dx - wx) * at(row.first, column.first, k) + wx * at(row.first, column.second, k);
                let below = (dx - wx) * at(row.second, column.first, k) + wx * at(row.second, column.second, k);
                ((dy - wy) * above + wy * below) >> shift
            };
            let best = (0..c).max_by_key(|&k| (sum(k), std::cmp::Reverse(k))).unwrap_or(0);
            classes.push(best as u8);
        }
    }
    classes
}
