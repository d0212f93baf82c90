//! From a deployable model back to what training starts from: the inverse of [`crate::fold`].
//!
//! Weights are the model's own. What folding made of a batch normalisation, a multiplier and a bias a channel, says what
//! γ, β and the statistics are together but not one by one; training finds the statistics on its own images and γ and
//! β from them (`ops/adoption.rs`). Where a convolution has no normalisation behind it, its channels' multipliers go into
//! its weights.

use crate::config::Config;
use crate::fold::Metadata;
use crate::graph::{ConvOutput, ConvSpec, Graph, Node, OpSpec};
use crate::init::{Given, InitError, Start};
use crate::networks::{NETWORKS, Settings, build, width_1000};
use crate::ops::adoption;
use crate::ops::batch_norm::ChannelAffine;
use crate::tensor::Shape;
use intseg_kernels::round::half_even_i64;
use intseg_runtime::{Conv, Interpolation, Model, Node as Deployed, Op, Requantization};
use std::path::Path;

/// The largest magnitude of a scale or an offset.
const LIMIT: i64 = 1 << 46;
/// Exponents of weights and outputs: far beyond those of networks that have been trained.
const EXPONENTS: std::ops::RangeInclusive<i32> = -40..=40;

impl Start {
    /// The weights of a deployable model whose network is one of intseg's; `path` is for messages.
    ///
    /// # Errors
    /// When the bytes are no model, or its network is none that can be trained.
    pub fn from_model(bytes: &[u8], path: &Path) -> Result<Self, InitError> {
        let unusable = |message: String| InitError::Model { path: path.to_owned(), message };
        let model = Model::parse(bytes).map_err(|e| unusable(e.to_string()))?;
        unfold(&model, path).map_err(unusable)
    }
}

fn unfold(model: &Model, path: &Path) -> Result<Start, String> {
    let metadata: Metadata =
        serde_json::from_str(model.metadata()).map_err(|e| format!("its metadata cannot be read ({e})"))?;
    let graph = graph_of(model, &metadata, path)?;
    // Channels do not depend on the image's size.
    let shapes = graph.shapes(Shape::new(1, 64, 64, 3)).map_err(|e| e.to_string())?;
    let deployed = graph.deployed();
    let (mut start, mut taken): (Start, Vec<Deployed>) = Default::default();
    let mut places = vec![usize::MAX; graph.nodes.len()];
    let mut pad = None;
    let mut nodes = model.nodes();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(index, _)| deployed[*index]) {
        match node.op {
            OpSpec::Dropout { .. } => places[index] = places[node.inputs[0].0],
            // Its normalisation is the model's convolution.
            OpSpec::Conv(ConvSpec { output: ConvOutput::Accumulators, .. }) => {}
            _ => {
                let mut next =
                    || nodes.next().ok_or_else(|| format!("it ends before {} has {}", graph.name, node.name));
                let mut found = next()?;
                if let Op::Pad(op) = found.op {
                    pad = Some((taken.len(), found.input(0), op.padding));
                    taken.push(found);
                    found = next()?;
                }
                let layer = Layer { graph: &graph, shapes: &shapes, node, places: &places, taken: &taken, pad };
                layer.take(&found, &mut start)?;
                places[index] = taken.len();
                taken.push(found);
            }
        }
    }
    if let Some(more) = nodes.next() {
        return Err(format!("its layer {} is none of {}", more.name, graph.name));
    }
    match start.parameters.iter().find(|(_, given)| !EXPONENTS.contains(&given.exponent)) {
        None => Ok(start),
        Some((name, given)) => Err(format!("the exponent of {name}, {}, is out of range", given.exponent)),
    }
}

/// The network that a model was folded or imported as.
fn graph_of(model: &Model, metadata: &Metadata, path: &Path) -> Result<Graph, String> {
    let mut settings = Settings { align_corners: model.align_corners, ..Settings::new(metadata.classes.len()) };
    if !metadata.config.is_empty() {
        let config = Config::parse(&metadata.config, path, &[]).map_err(|e| e.to_string())?;
        return config.graph().map_err(|e| e.to_string());
    }
    let arch = &metadata.arch;
    if !NETWORKS.iter().any(|(known, ..)| known == arch) {
        return Err(format!(
            "its network {arch:?} is none that intseg trains ({}); import float weights of one of those with --arch",
            NETWORKS.map(|(name, ..)| name).join(", ")
        ));
    }
    let stem = model.nodes().find_map(|node| match node.op {
        Op::Conv(conv) => Some(conv.c_out),
        _ => None,
    });
    settings.width_1000 = width_1000(arch, stem.unwrap_or(0)).map_err(|e| e.to_string())?;
    build(arch, &settings).map_err(|e| e.to_string())
}

/// A node of the network that is to be found in the model.
struct Layer<'a, 'm> {
    graph: &'a Graph,
    shapes: &'a [Shape],
    node: &'a Node,
    /// Where the outputs of the graph's nodes are in the model.
    places: &'a [usize],
    /// The model's nodes so far.
    taken: &'a [Deployed<'m>],
    /// A padding among them, what it pads and by how much: the network has it in the convolution that reads it.
    pad: Option<(usize, usize, [usize; 2])>,
}

impl Layer<'_, '_> {
    /// Takes what training needs of the model's node, once it has been seen to be this one.
    fn take(&self, found: &Deployed, start: &mut Start) -> Result<(), String> {
        let (node, graph) = (self.node, self.graph);
        let other =
            |what: &str| Err(format!("its layer {} is not {} of {}: {what}", found.name, node.name, graph.name));
        if !EXPONENTS.contains(&found.exponent) {
            return other("its exponent is out of range");
        }
        let source = node.inputs.first().map(|id| id.0);
        let before = source.map(|source| &graph.nodes[source]);
        let folded = match (&node.op, before.map(|before| &before.op)) {
            (OpSpec::BatchNorm { .. }, Some(OpSpec::Conv(spec))) => before.map(|before| (before, spec)),
            _ => None,
        };
        let inputs = folded.map_or(node, |(conv, _)| conv).inputs.iter().map(|id| self.places[id.0]);
        let padded = self.pad.filter(|&(place, ..)| found.inputs().any(|input| input == place));
        let behind_padding = |input| {
            if let Some((place, from, _)) = padded
                && input == place
            {
                from
            } else {
                input
            }
        };
        if !inputs.eq(found.inputs().map(behind_padding)) {
            return other("it has other inputs");
        }
        let outside = padded.map_or([0; 2], |(.., padding)| padding);
        let input = found.inputs().next().map_or(0, |place| self.taken[place].exponent);
        let channels = source.map_or(3, |source| self.shapes[source].c);
        match (&node.op, &found.op) {
            (OpSpec::BatchNorm { .. }, Op::Conv(conv)) if let Some((before, spec)) = folded => {
                let c_in = self.shapes[before.inputs[0].0].c;
                if !is_convolution(conv, spec, c_in, outside) {
                    return other("the convolution has another shape");
                }
                let map = map(&conv.requantization, input + conv.weight_exponent, found.exponent);
                let weights = conv.weights.iter().map(|&w| i32::from(w) << 16).collect();
                start.insert(&before.name, "weight", weight(conv, conv.weight_exponent, weights));
                normalization(start, &node.name, map);
            }
            (OpSpec::BatchNorm { .. }, Op::Affine(affine)) if folded.is_none() && affine.channels() == channels => {
                normalization(start, &node.name, map(affine, input, found.exponent));
            }
            (OpSpec::Conv(spec), Op::Conv(conv)) if is_convolution(conv, spec, channels, outside) => {
                let map = map(&conv.requantization, input + conv.weight_exponent, found.exponent);
                let bias = map.iter().map(|channel| half_even_i64(channel.offset_q24, 4));
                let bias = bias.map(|bias| bias.clamp(-(1 << 30), 1 << 30) as i32).collect();
                start.insert(&node.name, "weight", scaled(conv, &map));
                start.insert(&node.name, "bias", Given { shape: vec![map.len()], exponent: -12, master: bias });
            }
            (op, found) if alike(op, found, graph.align_corners) => {}
            _ => return other("it is another operator, or has another shape"),
        }
        start.exponents.insert(node.name.clone(), found.exponent);
        Ok(())
    }
}

impl Start {
    fn insert(&mut self, node: &str, kind: &str, given: Given) {
        self.parameters.insert(format!("{node}.{kind}"), given);
    }
}

/// γ and β as for a mean of 0 and a deviation of 1, until statistics are known.
fn normalization(start: &mut Start, norm: &str, map: Vec<ChannelAffine>) {
    let one = 1 << 24;
    let parameters = map.iter().map(|channel| adoption::parameters(channel, 0, one));
    let (gamma, beta): (Vec<i32>, Vec<i32>) = parameters.unzip();
    for (kind, master) in [("gamma", gamma), ("beta", beta)] {
        start.insert(norm, kind, Given { shape: vec![master.len()], exponent: -12, master });
    }
    start.maps.insert(norm.to_owned(), map);
}

/// Whether a convolution is the network's, with padding before it that the network has in it.
fn is_convolution(conv: &Conv, spec: &ConvSpec, c_in: usize, outside: [usize; 2]) -> bool {
    let ConvSpec { channels, kernel, stride, dilation, padding, .. } = *spec;
    let all = [0, 1].map(|axis| conv.padding[axis] + outside[axis]);
    let same = [conv.kernel, conv.stride, conv.dilation, all] == [kernel, stride, dilation, padding];
    same && conv.transposed.is_none() && [conv.c_in, conv.c_out] == [c_in, channels]
}

/// Whether an operator without parameters is the model's.
fn alike(op: &OpSpec, found: &Op, align_corners: bool) -> bool {
    match (op, found) {
        (OpSpec::Image, Op::Image) | (OpSpec::GlobalAveragePool, Op::GlobalAveragePool) => true,
        (OpSpec::Add { .. }, Op::Add) | (OpSpec::Concat, Op::Concat) => true,
        (OpSpec::MaxPool(spec), Op::MaxPool { kernel, stride, padding, ceil }) => {
            [spec.kernel, spec.stride, spec.padding] == [*kernel, *stride, *padding] && spec.ceil == *ceil
        }
        (OpSpec::ResizeLike, Op::Resize { factor: None, interpolation }) => {
            *interpolation == Interpolation::linear(align_corners)
        }
        _ => false,
    }
}

/// What a model's multipliers, biases and shifts do to real values, for sums in units of `2^exponent` and outputs in
/// units of `2^out`.
fn map(requantization: &Requantization, exponent: i32, out: i32) -> Vec<ChannelAffine> {
    let constants = requantization.multipliers().zip(requantization.biases()).zip(requantization.shifts());
    let map = constants.map(|((multiplier, bias), &shift)| {
        let unit = out.saturating_sub(shift.into());
        ChannelAffine {
            scale_q28: shifted(multiplier.into(), unit.saturating_sub(exponent).saturating_add(28)),
            offset_q24: shifted(bias, unit.saturating_add(24)),
        }
    });
    map.collect()
}

/// `value · 2^up` to nearest, within [`LIMIT`].
fn shifted(value: i64, up: i32) -> i64 {
    let limit = i128::from(LIMIT);
    match up {
        0.. => (i128::from(value) << up.min(64)).clamp(-limit, limit) as i64,
        _ => half_even_i64(value, up.unsigned_abs().min(62)).clamp(-LIMIT, LIMIT),
    }
}

fn weight(conv: &Conv, exponent: i32, master: Vec<i32>) -> Given {
    Given { shape: vec![conv.kernel[0], conv.kernel[1], conv.c_in, conv.c_out], exponent, master }
}

/// Weights times their channels' scales, at the smallest exponent that holds the largest in 127 steps; as they are where
/// all scales are 1.
fn scaled(conv: &Conv, map: &[ChannelAffine]) -> Given {
    let products = || conv.weights.iter().zip(map.iter().cycle()).map(|(&w, c)| i64::from(w) * c.scale_q28);
    let largest = products().map(i64::unsigned_abs).max().unwrap_or(0);
    let plain = map.iter().all(|channel| channel.scale_q28 == 1 << 28);
    let steps = (-12..=20).find(|steps| largest <= 127 << (28 + steps));
    let steps = if plain { 0 } else { steps.unwrap_or(20) };
    let master = products().map(|product| half_even_i64(product, (12 + steps) as u32).clamp(-(127 << 16), 127 << 16));
    weight(conv, conv.weight_exponent.saturating_add(steps), master.map(|v| v as i32).collect())
}
