//! Bringing a float network to the form that quantises node by node: batch normalisations folded into convolutions, the
//! image as the runtime has it, every clamp behind an operator that clamps, and types that fit their readers.

use super::branches::separate;
use super::functions;
use crate::graph::{FloatGraph, FloatNode, FloatOp, Interpolation, Normalization, ResizeTarget};
use intseg_runtime::Element;

/// What the runtime's image is in floats: `(v − 128) / 128`.
const CENTRED: Normalization = Normalization { mean: [128.0 / 255.0; 3], deviation: [128.0 / 255.0; 3] };

/// Half of what a byte of the image is then.
const HALF_A_STEP: f32 = 1.0 / 256.0;

/// A network ready to be quantised.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The network.
    pub graph: FloatGraph,
    /// The type of each node's output. A clamp has that of what it clamps.
    pub elements: Vec<Element>,
    /// Whether something is added to each node's output that makes it unsigned, since all that read it can take it back.
    pub shifted: Vec<bool>,
}

impl Prepared {
    /// Prepares a network.
    pub fn new(graph: &FloatGraph) -> Self {
        let mut graph = graph.clone();
        functions::clamp_inputs(&mut graph);
        fold_affines(&mut graph);
        centre_image(&mut graph);
        separate(&mut graph);
        isolate_clamps(&mut graph);
        if graph.upsampling == Interpolation::Nearest {
            // The runtime resizes logits bilinearly; at the image's size already, nothing changes.
            let op = FloatOp::Resize { target: ResizeTarget::Like, interpolation: Interpolation::Nearest };
            let inputs = vec![graph.nodes.len() - 1, 0];
            graph.nodes.push(FloatNode { name: "upsampling".into(), op, inputs });
            graph.upsampling = Interpolation::Linear;
        }
        typed(graph)
    }

    /// The clamp of a node's output: the node that clamps it and the bounds.
    pub fn clamp(&self, node: usize) -> Option<(usize, [f32; 2])> {
        clamp_of(&self.graph.nodes, node)
    }
}

/// The only reader of a node, if it is a clamp.
pub fn clamp_of(nodes: &[FloatNode], node: usize) -> Option<(usize, [f32; 2])> {
    let next = nodes.get(node + 1)?;
    match next.op {
        FloatOp::Clip { low, high } if next.inputs == [node] => Some((node + 1, [low, high])),
        _ => None,
    }
}

/// Whether an operator of the runtime can clamp what it puts out.
fn clamps(op: &FloatOp) -> bool {
    is_linear(op) || matches!(op, FloatOp::Add | FloatOp::Product { .. })
}

/// Whether an operator multiplies and adds constants, a channel of its output each.
pub fn is_linear(op: &FloatOp) -> bool {
    use FloatOp::{Affine, Conv, ConvTranspose, Depthwise};
    matches!(op, Conv { .. } | ConvTranspose { .. } | Depthwise { .. } | Affine { .. })
}

/// Copies a graph's nodes, changing some on the way.
pub struct Rebuild {
    /// The new nodes.
    pub nodes: Vec<FloatNode>,
    /// Where each old node's output is among the new ones.
    pub place: Vec<usize>,
}

impl Rebuild {
    /// Nothing yet.
    pub fn new() -> Self {
        Rebuild { nodes: Vec::new(), place: Vec::new() }
    }

    /// Adds a node and returns its place.
    pub fn push(&mut self, name: String, op: FloatOp, inputs: Vec<usize>) -> usize {
        self.nodes.push(FloatNode { name, op, inputs });
        self.nodes.len() - 1
    }

    /// Where an old node's inputs are now.
    pub fn inputs(&self, node: &FloatNode) -> Vec<usize> {
        node.inputs.iter().map(|&input| self.place[input]).collect()
    }

    /// A map of `channels` values by factor 1: a change of type, or a place for a clamp.
    pub fn identity(&mut self, name: String, input: usize, channels: usize) -> usize {
        self.push(name, FloatOp::Affine { scale: vec![1.0; channels], offset: vec![0.0; channels] }, vec![input])
    }
}

/// How many inputs each node is.
pub fn readers(nodes: &[FloatNode]) -> Vec<usize> {
    let mut readers = vec![0; nodes.len()];
    nodes.iter().flat_map(|node| &node.inputs).for_each(|&input| readers[input] += 1);
    readers
}

/// Multiplies a convolution's or an affine map's output channels and then adds to them.
pub fn scale_output(op: &mut FloatOp, scale: impl Fn(usize) -> f64, offset: impl Fn(usize) -> f64) {
    let scaled = |values: &mut [f32], add: bool| {
        for (k, value) in values.iter_mut().enumerate() {
            *value = (f64::from(*value) * scale(k) + if add { offset(k) } else { 0.0 }) as f32;
        }
    };
    match op {
        FloatOp::Conv { weights, channels, bias, .. } | FloatOp::ConvTranspose { weights, channels, bias, .. } => {
            weights.chunks_exact_mut(channels[1]).for_each(|row| scaled(row, false));
            scaled(bias, true);
        }
        FloatOp::Affine { scale: factors, offset: offsets } => {
            scaled(factors, false);
            scaled(offsets, true);
        }
        FloatOp::Depthwise { weights, bias, .. } => {
            weights.chunks_exact_mut(bias.len()).for_each(|row| scaled(row, false));
            scaled(bias, true);
        }
        FloatOp::Product { scale: factors } => scaled(factors, false),
        // All channels of what a function reads and makes have one factor, and so have those of a clamp not at 0.
        FloatOp::Function { output, .. } => *output = (f64::from(*output) * scale(0)) as f32,
        FloatOp::Clip { low, high } => {
            [low, high].into_iter().for_each(|bound| *bound = (f64::from(*bound) * scale(0)) as f32);
        }
        _ => {}
    }
}

/// Multiplies what a convolution or an affine map reads, channel by channel.
pub fn scale_input(op: &mut FloatOp, scale: impl Fn(usize) -> f64) {
    match op {
        FloatOp::Conv { weights, channels, .. } | FloatOp::ConvTranspose { weights, channels, .. } => {
            for (row, weights) in weights.chunks_exact_mut(channels[1]).enumerate() {
                let scale = scale(row % channels[0]);
                weights.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
            }
        }
        FloatOp::Affine { scale: factors, .. } => {
            factors.iter_mut().enumerate().for_each(|(k, factor)| *factor = (f64::from(*factor) * scale(k)) as f32);
        }
        FloatOp::Depthwise { weights, bias, .. } => {
            let channels = bias.len();
            let each = |(at, w): (usize, &mut f32)| *w = (f64::from(*w) * scale(at % channels)) as f32;
            weights.iter_mut().enumerate().for_each(each);
        }
        FloatOp::Product { scale: factors } => {
            factors.iter_mut().enumerate().for_each(|(k, factor)| *factor = (f64::from(*factor) * scale(k)) as f32);
        }
        FloatOp::Function { input, .. } => *input = (f64::from(*input) * scale(0)) as f32,
        _ => {}
    }
}

/// Takes affine maps into the convolution or affine map before them that nothing else reads.
fn fold_affines(graph: &mut FloatGraph) {
    let readers = readers(&graph.nodes);
    let mut rebuild = Rebuild::new();
    for node in &graph.nodes {
        let inputs = rebuild.inputs(node);
        if let (FloatOp::Affine { scale, offset }, &[from]) = (&node.op, &node.inputs[..]) {
            let before = &mut rebuild.nodes[inputs[0]].op;
            if is_linear(before) && readers[from] == 1 {
                scale_output(before, |k| scale[k].into(), |k| offset[k].into());
                rebuild.place.push(inputs[0]);
                continue;
            }
        }
        let place = rebuild.push(node.name.clone(), node.op.clone(), inputs);
        rebuild.place.push(place);
    }
    graph.nodes = rebuild.nodes;
}

/// Makes the image [`CENTRED`]. Convolutions that read it take the change along; for other readers a map makes it what
/// it was. What such a convolution pads with was the image's mean, which is not 0 any more: it goes around the image first.
fn centre_image(graph: &mut FloatGraph) {
    let Normalization { mean, deviation } = graph.normalization;
    let (mean, deviation) = (mean.map(f64::from), deviation.map(f64::from));
    let half = 128.0 / 255.0;
    // What was x is now `scale · x' + offset`.
    let scale = [0, 1, 2].map(|c| half / deviation[c]);
    let offset = [0, 1, 2].map(|c| (half - mean[c]) / deviation[c]);
    let mut rebuild = Rebuild::new();
    let mut image = None;
    for node in &graph.nodes {
        let (mut op, mut inputs) = (node.op.clone(), rebuild.inputs(node));
        if inputs.contains(&0) {
            if let FloatOp::Conv { window, weights, channels, bias } = &mut op {
                let pixel = [0, 1, 2].map(|c| (-offset[c] / scale[c]) as f32);
                if window.padding != [0; 2] && pixel.iter().any(|value| value.abs() > HALF_A_STEP) {
                    let op = FloatOp::Pad { padding: std::mem::take(&mut window.padding), pixel: pixel.into() };
                    inputs = vec![rebuild.push(format!("{}.padding", node.name), op, inputs)];
                }
                for (row, weights) in weights.chunks_exact(channels[1]).enumerate() {
                    bias.iter_mut().zip(weights).for_each(|(b, &w)| *b += (f64::from(w) * offset[row % 3]) as f32);
                }
                scale_input(&mut op, |c| scale[c]);
            } else if !matches!(op, FloatOp::Resize { .. } if inputs[0] != 0) {
                let original = *image.get_or_insert_with(|| {
                    let op = FloatOp::Affine {
                        scale: scale.map(|v| v as f32).into(),
                        offset: offset.map(|v| v as f32).into(),
                    };
                    rebuild.push("image.normalized".into(), op, vec![0])
                });
                inputs.iter_mut().filter(|input| **input == 0).for_each(|input| *input = original);
            }
        }
        let place = rebuild.push(node.name.clone(), op, inputs);
        rebuild.place.push(place);
    }
    graph.nodes = rebuild.nodes;
    graph.normalization = CENTRED;
}

/// Channels of every node's output.
pub fn channels(nodes: &[FloatNode]) -> Vec<usize> {
    let mut channels: Vec<usize> = Vec::new();
    for node in nodes {
        let input = |k: usize| node.inputs.get(k).map_or(3, |&input| channels[input]);
        channels.push(match &node.op {
            FloatOp::Image => 3,
            FloatOp::Conv { channels: [_, out], .. } | FloatOp::ConvTranspose { channels: [_, out], .. } => *out,
            FloatOp::Concat => (0..node.inputs.len()).map(input).sum(),
            _ => input(0),
        });
    }
    channels
}

/// Whether each node's output is never negative.
pub fn non_negative(nodes: &[FloatNode]) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::new();
    for node in nodes {
        let inputs = |count: usize| node.inputs.iter().take(count).all(|&input| flags[input]);
        flags.push(match node.op {
            FloatOp::Clip { low, .. } => low >= 0.0 || inputs(1),
            FloatOp::Pad { .. } => false,
            FloatOp::Concat | FloatOp::Add => inputs(usize::MAX),
            FloatOp::MaxPool { .. } | FloatOp::AveragePool { .. } => inputs(1),
            FloatOp::GlobalAveragePool | FloatOp::Resize { .. } => inputs(1),
            FloatOp::Image | FloatOp::Conv { .. } | FloatOp::ConvTranspose { .. } | FloatOp::Affine { .. } => false,
            FloatOp::Depthwise { .. } => false,
            FloatOp::Function { function, .. } => function.lowest() == Some(0.0),
            FloatOp::Product { .. } => inputs(2),
        });
    }
    flags
}

/// Puts every clamp directly behind an operator that clamps and that nothing else reads, and drops those that change
/// nothing.
fn isolate_clamps(graph: &mut FloatGraph) {
    let (counts, channels, positive) = (readers(&graph.nodes), channels(&graph.nodes), non_negative(&graph.nodes));
    let mut rebuild = Rebuild::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut inputs = rebuild.inputs(node);
        if let FloatOp::Clip { low, high } = node.op {
            let from = node.inputs[0];
            if low <= 0.0 && high == f32::INFINITY && positive[from] {
                rebuild.place.push(inputs[0]);
                continue;
            }
            let directly = inputs[0] + 1 == rebuild.nodes.len() && counts[from] == 1;
            if !directly || !clamps(&rebuild.nodes[inputs[0]].op) {
                inputs[0] = rebuild.identity(format!("{}.input", node.name), inputs[0], channels[index]);
            }
        }
        let place = rebuild.push(node.name.clone(), node.op.clone(), inputs);
        rebuild.place.push(place);
    }
    graph.nodes = rebuild.nodes;
}

/// What the readers of a node need of its type.
#[derive(Clone, Copy, Default)]
struct Demand {
    /// A reader that takes 8 bits only.
    bytes: bool,
    /// A reader that takes any type.
    any: bool,
    /// It ends up as the logits.
    logits: bool,
}

/// Whether an operator hands its first input's type and exponent on.
pub fn passes(op: &FloatOp) -> bool {
    use FloatOp::{AveragePool, Clip, MaxPool, Pad, Resize};
    matches!(op, MaxPool { .. } | AveragePool { .. } | Resize { .. } | Clip { .. } | Pad { .. })
}

fn demands(nodes: &[FloatNode]) -> Vec<Demand> {
    let mut demands = vec![Demand::default(); nodes.len()];
    demands[nodes.len() - 1].logits = true;
    for (index, node) in nodes.iter().enumerate().rev() {
        let own = demands[index];
        // What a resize takes its size from may have any type.
        let values = if matches!(node.op, FloatOp::Resize { .. }) { 1 } else { node.inputs.len() };
        for &input in &node.inputs[..values] {
            let demand = &mut demands[input];
            match node.op {
                FloatOp::Conv { .. } | FloatOp::ConvTranspose { .. } => demand.bytes = true,
                FloatOp::Depthwise { .. } | FloatOp::Function { .. } | FloatOp::Product { .. } => demand.bytes = true,
                FloatOp::Concat | FloatOp::GlobalAveragePool => demand.bytes = true,
                FloatOp::Add | FloatOp::Affine { .. } => demand.any = true,
                _ => {
                    demand.bytes |= own.bytes;
                    demand.any |= own.any;
                    demand.logits |= own.logits;
                }
            }
        }
    }
    demands
}

/// Gives every node a type, and inserts maps from one type to another where readers differ.
fn typed(graph: FloatGraph) -> Prepared {
    let (demands, positive, channels) = (demands(&graph.nodes), non_negative(&graph.nodes), channels(&graph.nodes));
    let shiftable = functions::shiftable(&graph.nodes, &positive);
    let mut shifted = Vec::new();
    let mut rebuild = Rebuild::new();
    let mut elements: Vec<Element> = Vec::new();
    // (node, type) → the map that makes it.
    let mut converted: Vec<((usize, Element), usize)> = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut inputs = rebuild.inputs(node);
        let positive_concat = node.inputs.iter().all(|&input| positive[input]);
        let concat = if positive_concat { Element::U8 } else { Element::I8 };
        for (k, input) in inputs.iter_mut().enumerate() {
            let from = node.inputs[k];
            let narrow = if positive[from] { Element::U8 } else { Element::I8 };
            let needed = match node.op {
                FloatOp::Conv { .. }
                | FloatOp::ConvTranspose { .. }
                | FloatOp::GlobalAveragePool
                | FloatOp::Depthwise { .. }
                | FloatOp::Function { .. }
                | FloatOp::Product { .. } => (elements[*input] == Element::I16).then_some(narrow),
                FloatOp::Concat => Some(concat),
                _ => None,
            };
            let Some(needed) = needed.filter(|&needed| needed != elements[*input]) else { continue };
            let key = (*input, needed);
            let known = converted.iter().find(|(known, _)| *known == key).map(|(_, place)| *place);
            *input = known.unwrap_or_else(|| {
                let suffix = if needed == Element::U8 { "u8" } else { "i8" };
                let name = format!("{}.{suffix}", graph.nodes[from].name);
                let place = rebuild.identity(name, key.0, channels[from]);
                elements.push(needed);
                shifted.push(false);
                converted.push((key, place));
                place
            });
        }
        let demand = demands[index];
        let own = match node.op {
            FloatOp::Image => Element::I8,
            FloatOp::Concat => concat,
            FloatOp::GlobalAveragePool => elements[inputs[0]],
            FloatOp::Function { .. } if !positive[index] && !shiftable[index] => Element::I8,
            FloatOp::Function { .. } => Element::U8,
            _ if passes(&node.op) => elements[inputs[0]],
            _ if demand.logits => Element::I16,
            _ => {
                // A clamp directly behind decides the sign.
                let positive = clamp_of(&graph.nodes, index).map_or(positive[index], |(clamp, _)| positive[clamp]);
                match (positive || shiftable[index], demand.bytes && !demand.any) {
                    (true, _) => Element::U8,
                    (false, true) => Element::I8,
                    (false, false) => Element::I16,
                }
            }
        };
        let place = rebuild.push(node.name.clone(), node.op.clone(), inputs);
        elements.push(own);
        shifted.push(shiftable[index]);
        rebuild.place.push(place);
    }
    if elements.last() != Some(&Element::I16) {
        // Logits have 16 bits, and what reads 8 of a concatenation or a mean becomes them.
        let last = rebuild.nodes.len() - 1;
        let count = channels.last().copied().unwrap_or(0);
        rebuild.identity("logits.i16".into(), last, count);
        elements.push(Element::I16);
        shifted.push(false);
    }
    Prepared { graph: FloatGraph { nodes: rebuild.nodes, ..graph }, elements, shifted }
}
