//! Functions of one value in eight bits: their arguments clamped to where they change, and what is seldom negative made
//! unsigned.
//!
//! HardSwish is constant up to −3 and never below −0.375. As a signed byte its value would leave half of the steps unused;
//! so a whole number of steps is added to it, and to its argument, and what reads them takes the addition back: a table
//! by its entries, a convolution without padding by its biases, one with a filter a channel also by what it pads with.

use super::prepare::{Prepared, Rebuild, channels, clamp_of, is_linear};
use super::scales::Factors;
use super::statistics::Channels;
use crate::graph::{FloatGraph, FloatNode, FloatOp};
use intseg_runtime::Element;

/// Clamps the argument of every function that is constant up to somewhere to where it changes.
pub fn clamp_inputs(graph: &mut FloatGraph) {
    let channels = channels(&graph.nodes);
    let mut rebuild = Rebuild::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut inputs = rebuild.inputs(node);
        if let FloatOp::Function { function, .. } = node.op
            && let Some([low, high]) = function.domain()
        {
            let argument = rebuild.identity(format!("{}.argument", node.name), inputs[0], channels[index]);
            let clip = FloatOp::Clip { low, high };
            inputs = vec![rebuild.push(format!("{}.domain", node.name), clip, vec![argument])];
        }
        let place = rebuild.push(node.name.clone(), node.op.clone(), inputs);
        rebuild.place.push(place);
    }
    graph.nodes = rebuild.nodes;
}

/// Whether a convolution reads nothing but its input, so that its biases can take back what was added to that.
fn by_bias(node: &FloatNode) -> bool {
    matches!(&node.op, FloatOp::Conv { window, .. } if window.padding == [0; 2])
}

/// Which nodes' outputs may have something added: those of both signs whose readers can all take it back.
pub fn shiftable(nodes: &[FloatNode], positive: &[bool]) -> Vec<bool> {
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        // What a resize takes its size from may be anything.
        let values = if matches!(node.op, FloatOp::Resize { .. }) { 1 } else { node.inputs.len() };
        node.inputs[..values].iter().for_each(|&input| readers[input].push(index));
    }
    let takes = |reader: usize, input: usize| match nodes[reader].op {
        FloatOp::Function { .. } | FloatOp::Depthwise { .. } => true,
        FloatOp::Product { .. } => nodes[reader].inputs[1] != input,
        // What has 16 bits for a sum otherwise, better keeps them.
        FloatOp::Add if !matches!(nodes[input].op, FloatOp::Function { .. }) => false,
        // They hand it on.
        FloatOp::GlobalAveragePool | FloatOp::Add => {
            !readers[reader].is_empty() && readers[reader].iter().all(|&next| by_bias(&nodes[next]))
        }
        _ => by_bias(&nodes[reader]),
    };
    let mut shiftable = vec![false; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        let taken = !readers[index].is_empty() && readers[index].iter().all(|&reader| takes(reader, index));
        shiftable[index] = match node.op {
            FloatOp::GlobalAveragePool => shiftable[node.inputs[0]],
            // The operator before it clamps.
            FloatOp::Clip { .. } => taken && !positive[index] && clamp_of(nodes, node.inputs[0]).is_some(),
            FloatOp::Function { .. } | FloatOp::Product { .. } => taken && !positive[index],
            ref op if is_linear(op) => taken && clamp_of(nodes, index).is_none(),
            _ => false,
        };
        if let (FloatOp::Clip { .. }, true) = (&node.op, shiftable[index]) {
            shiftable[node.inputs[0]] = true;
        }
    }
    shiftable
}

/// What is added to each node's output, its channels multiplied by their factors: what makes the smallest value that
/// was seen 0.
pub fn offsets(prepared: &Prepared, statistics: &[Channels], factors: &Factors) -> Vec<f64> {
    let nodes = &prepared.graph.nodes;
    let counts = channels(nodes);
    let mut offsets = vec![0.0; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        let seen = clamp_of(nodes, index).map_or(index, |(clamp, _)| clamp);
        let below = (0..counts[index]).map(|k| statistics[seen].below_zero(k) * factors.of(seen, k));
        offsets[index] = match node.op {
            FloatOp::GlobalAveragePool => offsets[node.inputs[0]],
            FloatOp::Add => node.inputs.iter().map(|&input| offsets[input]).sum(),
            _ if prepared.shifted[index] => below.fold(0.0, f64::max),
            _ => 0.0,
        };
    }
    offsets
}

/// What stands for 0 in each node's output, in its steps: whole numbers but for means and sums.
pub fn zeros(prepared: &Prepared, offsets: &[f64], exponents: &[i32]) -> Vec<f64> {
    let mut zeros: Vec<f64> = Vec::new();
    for (index, node) in prepared.graph.nodes.iter().enumerate() {
        let step = |node: usize| 2f64.powi(exponents[node]);
        zeros.push(match node.op {
            FloatOp::GlobalAveragePool | FloatOp::Add => {
                node.inputs.iter().map(|&input| zeros[input] * step(input) / step(index)).sum()
            }
            _ => (offsets[index] / step(index)).round_ties_even().min(255.0),
        });
    }
    zeros
}

/// A function's value for each of the 256 values of its input.
pub fn table(scaled: &Prepared, index: usize, exponents: &[i32], zeros: &[f64]) -> Box<[u8; 256]> {
    let node = &scaled.graph.nodes[index];
    let FloatOp::Function { function, input, output } = node.op else { return Box::new([0; 256]) };
    let from = node.inputs[0];
    let [low, high] = scaled.elements[index].range().map(f64::from);
    Box::new(core::array::from_fn(|bits| {
        let value = match scaled.elements[from] {
            Element::I8 => f64::from(bits as u8 as i8),
            _ => bits as f64,
        };
        let real = (value - zeros[from]) * 2f64.powi(exponents[from]);
        let result = function.at(real * f64::from(input)) * f64::from(output);
        let steps = (result / 2f64.powi(exponents[index])).round_ties_even() + zeros[index];
        // A signed value has the same bits as this.
        steps.clamp(low, high) as i16 as u8
    }))
}
