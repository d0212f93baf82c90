//! Concatenations of maps after ReLU with maps of both signs.
//!
//! All parts of a concatenation have one type and one exponent: beside a map of both signs, one after ReLU would have 7
//! bits. A convolution that reads them is the sum of two, of one kind of part each, and sums have 16 bits.

use super::prepare::{Rebuild, channels, non_negative, readers};
use crate::graph::{FloatGraph, FloatNode, FloatOp, Window};

/// Takes such convolutions apart where nothing else reads their concatenation.
pub fn separate(graph: &mut FloatGraph) {
    let (positive, channels, readers) = (non_negative(&graph.nodes), channels(&graph.nodes), readers(&graph.nodes));
    let nodes = &graph.nodes;
    let mixed = |node: &FloatNode| {
        let positive = || node.inputs.iter().map(|&input| positive[input]);
        matches!(node.op, FloatOp::Concat) && positive().any(|p| p) && positive().any(|p| !p)
    };
    // The mixed concatenation that a convolution is the only reader of.
    let apart = |node: &FloatNode| match node.op {
        FloatOp::Conv { .. } => node.inputs.first().copied().filter(|&from| mixed(&nodes[from]) && readers[from] == 1),
        _ => None,
    };
    let separated: Vec<usize> = nodes.iter().filter_map(apart).collect();
    let mut rebuild = Rebuild::new();
    for (index, node) in nodes.iter().enumerate() {
        let inputs = rebuild.inputs(node);
        let place = match (apart(node), &node.op) {
            // Never read: its readers are taken apart.
            _ if separated.contains(&index) => inputs[0],
            (Some(from), FloatOp::Conv { window, weights, channels: [_, c_out], bias }) => {
                let parts = [true, false].map(|sign| {
                    let mut part = Part { inputs: Vec::new(), rows: Vec::new() };
                    let mut first = 0;
                    for &input in &nodes[from].inputs {
                        if positive[input] == sign {
                            part.inputs.push(rebuild.place[input]);
                            part.rows.extend(first..first + channels[input]);
                        }
                        first += channels[input];
                    }
                    let name = format!("{}.{}", node.name, if sign { "unsigned" } else { "signed" });
                    let bias = if sign { bias.clone() } else { vec![0.0; *c_out] };
                    part.convolution(&mut rebuild, name, *window, weights, channels[from], bias)
                });
                rebuild.push(node.name.clone(), FloatOp::Add, parts.to_vec())
            }
            _ => rebuild.push(node.name.clone(), node.op.clone(), inputs),
        };
        rebuild.place.push(place);
    }
    graph.nodes = rebuild.nodes;
}

/// Some of a concatenation's inputs.
struct Part {
    inputs: Vec<usize>,
    /// Their channels in the concatenation.
    rows: Vec<usize>,
}

impl Part {
    /// The convolution over this part alone of one with `weights` over all `c_in` channels.
    fn convolution(
        self,
        rebuild: &mut Rebuild,
        name: String,
        window: Window,
        weights: &[f32],
        c_in: usize,
        bias: Vec<f32>,
    ) -> usize {
        let input = match self.inputs[..] {
            [input] => input,
            _ => rebuild.push(format!("{name}.input"), FloatOp::Concat, self.inputs),
        };
        let c_out = bias.len();
        let taps = weights.chunks_exact(c_in * c_out);
        let weights = taps.flat_map(|tap| self.rows.iter().flat_map(|row| &tap[row * c_out..][..c_out])).copied();
        let op = FloatOp::Conv { window, weights: weights.collect(), channels: [self.rows.len(), c_out], bias };
        rebuild.push(name, op, vec![input])
    }
}
