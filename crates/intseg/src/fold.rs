//! From a network in training to a deployable model.
//!
//! Batch normalisation, bias and change of exponent become one multiplier, bias and shift a channel; ReLU becomes the
//! clamp; statistics and exponents are frozen (`frozen.rs`); dropout and the auxiliary head disappear.

use crate::frozen::Frozen;
use crate::graph::{ConvOutput, ConvSpec, Graph, GraphError, OpSpec};
use crate::network::{IMAGE_EXPONENT, Layer, Network};
use crate::ops::Bits;
use crate::ops::batch_norm::ChannelAffine;
use crate::ops::conv::Conv;
use intseg_kernels::round::{bit_length, divide_half_even, half_even_i64};
use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec as Deployed, RequantizationSpec};
use intseg_runtime::{Element, Interpolation};
use serde::{Deserialize, Serialize};

/// Exponents of outputs that no step has been through: activations up to 8, streams up to 8.
const UNTRAINED: [i32; 2] = [-5, -12];

/// What a model file says to people and programs on hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The architecture.
    pub arch: String,
    /// Class names.
    pub classes: Vec<String>,
    /// One colour a class.
    pub palette: Vec<[u8; 3]>,
    /// What masks add to a class to store it (ADE20K counts from 1).
    #[serde(default)]
    pub first_value: u8,
    /// Training steps.
    #[serde(default)]
    pub steps: u64,
    /// The configuration that it was trained with, TOML.
    #[serde(default)]
    pub config: String,
}

/// Folds a network with what `frozen` says of it.
pub fn fold(network: &Network, frozen: &Frozen, bits: Bits, metadata: &Metadata) -> ModelSpec {
    let graph = &network.graph;
    let exponents = exponents(graph, frozen);
    let deployed = graph.deployed();
    // Where each graph node's output is in the model.
    let mut places = vec![usize::MAX; graph.nodes.len()];
    let mut nodes: Vec<NodeSpec> = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(index, _)| deployed[*index]) {
        let source = node.inputs.first().map(|id| id.0);
        let fold = Folding { network, frozen, bits, exponents: &exponents, out: exponents[index] };
        let op = match (&node.op, source) {
            (OpSpec::Dropout { .. }, Some(source)) => {
                places[index] = places[source];
                continue;
            }
            // Its batch normalisation takes it along.
            (OpSpec::Conv(ConvSpec { output: ConvOutput::Accumulators, .. }), _) => continue,
            (OpSpec::Conv(spec), Some(source)) => fold.biased(index, spec, source),
            (OpSpec::BatchNorm { .. }, Some(source)) => fold.normalized(index, source),
            (OpSpec::MaxPool(pool), _) => {
                Deployed::MaxPool { geometry: [pool.kernel, pool.stride, pool.padding], ceil: pool.ceil }
            }
            (OpSpec::GlobalAveragePool, _) => Deployed::GlobalAveragePool,
            (OpSpec::ResizeLike, _) => {
                Deployed::Resize { factor: None, interpolation: Interpolation::linear(graph.align_corners) }
            }
            (OpSpec::Add { .. }, _) => Deployed::Add,
            (OpSpec::Concat, _) => Deployed::Concat,
            (OpSpec::Image, _) => Deployed::Image,
            (_, None) => unreachable!("the graph's shapes were checked: only the image has no input"),
        };
        // A folded convolution reads what the convolution read.
        let inputs: Vec<usize> = match (&node.op, source.map(|s| &graph.nodes[s])) {
            (OpSpec::BatchNorm { .. }, Some(before)) if matches!(before.op, OpSpec::Conv(_)) => {
                vec![places[before.inputs[0].0]]
            }
            _ => node.inputs.iter().map(|id| places[id.0]).collect(),
        };
        let element = element(graph, index);
        let clamp = match element {
            Element::U8 => [0, (1 << bits.a) - 1],
            Element::I8 => [-128, 127],
            Element::I16 => [1 - (1 << (bits.residual - 1)), (1 << (bits.residual - 1)) - 1],
        };
        places[index] = nodes.len();
        nodes.push(NodeSpec { name: node.name.clone(), op, inputs, element, exponent: exponents[index], clamp });
    }
    let metadata = serde_json::to_string(metadata).expect("metadata holds strings and numbers");
    ModelSpec { metadata, align_corners: graph.align_corners, nodes }
}

/// The model file of a network with random weights: what speed can be measured with.
///
/// # Errors
/// When a layer's accumulator could overflow.
pub fn random_model(graph: &Graph, seed: u64) -> Result<Vec<u8>, GraphError> {
    let network = Network::new(graph.clone(), seed)?;
    let metadata = Metadata {
        arch: graph.name.clone(),
        classes: (0..graph.classes()).map(|class| format!("class {class}")).collect(),
        palette: crate::data::palette::voc(graph.classes()),
        ..Metadata::default()
    };
    Ok(fold(&network, &Frozen::running(&network), Bits::default(), &metadata).to_bytes())
}

/// The type of a node's output.
fn element(graph: &Graph, index: usize) -> Element {
    let node = &graph.nodes[index];
    match &node.op {
        OpSpec::Image => Element::I8,
        OpSpec::Conv(spec) if spec.output == ConvOutput::Linear => Element::I16,
        OpSpec::BatchNorm { relu } | OpSpec::Add { relu } if !relu => Element::I16,
        OpSpec::MaxPool(_) | OpSpec::ResizeLike => element(graph, node.inputs[0].0),
        _ => Element::U8,
    }
}

/// Each node's exponent at inference. Branches of a concatenation share one, so that joining them moves bytes alone.
fn exponents(graph: &Graph, frozen: &Frozen) -> Vec<i32> {
    let mut exponents: Vec<i32> = (0..graph.nodes.len())
        .map(|index| {
            let untrained = UNTRAINED[usize::from(element(graph, index) == Element::I16)];
            frozen.exponents[index].unwrap_or(untrained)
        })
        .collect();
    exponents[0] = IMAGE_EXPONENT;
    let producer = |mut index: usize| {
        while passes_exponent(&graph.nodes[index].op) {
            index = graph.nodes[index].inputs[0].0;
        }
        index
    };
    for node in graph.nodes.iter().filter(|node| matches!(node.op, OpSpec::Concat)) {
        let producers: Vec<usize> = node.inputs.iter().map(|id| producer(id.0)).collect();
        let shared = producers.iter().map(|&p| exponents[p]).max().unwrap_or(0);
        producers.iter().for_each(|&p| exponents[p] = shared);
    }
    for (index, node) in graph.nodes.iter().enumerate() {
        if passes_exponent(&node.op) || matches!(node.op, OpSpec::Concat) {
            exponents[index] = exponents[node.inputs[0].0];
        }
    }
    exponents
}

/// Whether an operator's output has its input's exponent.
fn passes_exponent(op: &OpSpec) -> bool {
    matches!(op, OpSpec::MaxPool(_) | OpSpec::ResizeLike | OpSpec::Dropout { .. })
}

/// What folding one node needs.
struct Folding<'a> {
    network: &'a Network,
    frozen: &'a Frozen,
    bits: Bits,
    exponents: &'a [i32],
    /// The node's exponent.
    out: i32,
}

impl Folding<'_> {
    /// A convolution with a bias of its own.
    fn biased(&self, index: usize, spec: &ConvSpec, source: usize) -> Deployed {
        let Layer::Conv(conv) = &self.network.layers[index] else { unreachable!("a convolution's layer is one") };
        let channels: Vec<ChannelAffine> = (0..spec.channels)
            .map(|k| {
                let bias = conv.bias.as_ref().map_or(0, |bias| bias.in_use_bias(k));
                ChannelAffine { scale_q28: 1 << 28, offset_q24: i64::from(bias) << 12 }
            })
            .collect();
        self.conv(conv, spec, source, &channels)
    }

    /// A batch normalisation: with the convolution before it, or of a residual stream.
    fn normalized(&self, index: usize, source: usize) -> Deployed {
        let Layer::BatchNorm(norm) = &self.network.layers[index] else {
            unreachable!("a normalisation's layer is one")
        };
        let channels = norm.folded(&self.frozen.statistics[index], self.bits.gamma, self.bits.beta);
        match (&self.network.graph.nodes[source].op, &self.network.layers[source]) {
            (OpSpec::Conv(spec), Layer::Conv(conv)) if spec.output == ConvOutput::Accumulators => {
                self.conv(conv, spec, self.network.graph.nodes[source].inputs[0].0, &channels)
            }
            _ => Deployed::Affine(requantization(&channels, self.exponents[source], self.out)),
        }
    }

    fn conv(&self, conv: &Conv, spec: &ConvSpec, source: usize, channels: &[ChannelAffine]) -> Deployed {
        let exponent = self.exponents[source] + conv.weight.exponent;
        Deployed::Conv {
            geometry: [spec.kernel, spec.stride, spec.dilation, spec.padding],
            channels: [conv.weight.shape[2], spec.channels],
            weight_exponent: conv.weight.exponent,
            transposed: None,
            weights: conv.weights_in_use(self.bits.w),
            requantization: requantization(channels, exponent, self.out),
        }
    }
}

/// Multiplier, bias and shift of each channel for sums in units of `2^exponent` and outputs in units of `2^out`.
fn requantization(channels: &[ChannelAffine], exponent: i32, out: i32) -> RequantizationSpec {
    let mut spec = RequantizationSpec::default();
    for channel in channels {
        let (multiplier, bias, shift) = folded(channel, exponent, out);
        spec.multiplier.push(multiplier);
        spec.bias.push(bias);
        spec.shift.push(shift);
    }
    spec
}

/// `(m, b, s)` with `(sum · m + b) / 2^s = (sum · 2^exponent · scale + offset) / 2^out`.
///
/// The multiplier has 24 bits, as many as a float32's, and [`agreeing`] ones; the bias is a whole number of sums where a sum
/// is a small part of an output's step: so a runtime whose scales are float32 and whose biases are added to the sums
/// computes the same.
fn folded(channel: &ChannelAffine, exponent: i32, out: i32) -> (i32, i64, u8) {
    // A mantissa of 24 bits, and the shift that belongs to it.
    let length = bit_length(channel.scale_q28.unsigned_abs()) as i32;
    let up = 24 - length;
    let mut multiplier =
        if up >= 0 { channel.scale_q28 << up } else { half_even_i64(channel.scale_q28, up.unsigned_abs()) };
    let mut shift = out - exponent + 28 + up;
    // The bias in units of the product; 61 bits must hold it.
    let bias_up = |shift: i32| shift - 24 - out;
    let offset_length = bit_length(channel.offset_q24.unsigned_abs()) as i32;
    let drop = (shift - 62).max(offset_length + bias_up(shift) - 60).max(0);
    multiplier = half_even_i64(multiplier, drop.min(62) as u32);
    shift -= drop;
    if shift < 0 {
        // So large a scale saturates every output but 0's anyway.
        multiplier = multiplier.saturating_mul(1 << (-shift).min(31)).clamp(-i64::from(i32::MAX), i32::MAX.into());
        shift = 0;
    }
    multiplier = agreeing(multiplier, shift as u32);
    let bias = match bias_up(shift) {
        up @ 0.. => channel.offset_q24 << up.min(62),
        down => half_even_i64(channel.offset_q24, down.unsigned_abs().min(62)),
    };
    (multiplier as i32, whole(bias.clamp(-(1 << 61), 1 << 61), multiplier, shift as u32), shift as u8)
}

/// The multiplier closest to one with which every sum times it rounds to the same byte whether the product is exact or
/// first a float32's 24 bits: those round some products to exactly half a step, which then go to the even side. Of the
/// multipliers of trained networks a third have such a sum, and one a few units of the last place away has none.
fn agreeing(multiplier: i64, shift: u32) -> i64 {
    let away = (0..=MOST_AWAY).flat_map(|units| [units, -units]);
    let mut near = away.map(|units| multiplier + units).filter(|near| near.unsigned_abs() <= 1 << 24);
    near.find(|&near| agrees(near, shift)).unwrap_or(multiplier)
}

/// How far [`agreeing`] looks, in units of the last of 24 bits: beyond, what is multiplied by less than a twenty-thousandth
/// has no such multiplier.
const MOST_AWAY: i64 = 64;

/// Whether products of a multiplier of 24 bits, divided by `2^shift`, round to the same byte as their 24 leading bits do.
fn agrees(multiplier: i64, shift: u32) -> bool {
    let multiplier = multiplier.unsigned_abs() as i64;
    if multiplier == 0 || !(1..=48).contains(&shift) {
        return true;
    }
    // The sums on both sides of each tie between two bytes; signs change nothing.
    let beside = (0..255).map(|byte| ((2 * byte + 1) << (shift - 1)) / multiplier).flat_map(|sum| [sum, sum + 1]);
    beside.map(|sum| sum * multiplier).all(|product| {
        let dropped = bit_length(product.unsigned_abs()).saturating_sub(24);
        half_even_i64(half_even_i64(product, dropped) << dropped, shift) == half_even_i64(product, shift)
    })
}

/// A bias to the nearest multiple of a multiplier, which is a sum's share of it: where sums are less than a sixteenth of
/// an output's step, and 32 bits hold their number.
fn whole(bias: i64, multiplier: i64, shift: u32) -> i64 {
    let unit = multiplier.unsigned_abs() as i64;
    if unit == 0 || unit << 4 >= 1i64 << shift.min(62) {
        return bias;
    }
    let sums = divide_half_even(bias, unit);
    if sums.unsigned_abs() < 1 << 30 { sums * unit } else { bias }
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued map")]
mod tests {
    use super::*;

    #[test]
    fn folding_keeps_the_real_valued_map() {
        for scale_q28 in [1 << 28, 3, -(5 << 20), 1 << 40, (1 << 33) + 12_345] {
            for offset_q24 in [0, 1 << 24, -(77 << 20), 1 << 34] {
                for (exponent, out) in [(-18, -5), (-25, -12), (-14, -7), (-7, -14)] {
                    let (m, b, s) = folded(&ChannelAffine { scale_q28, offset_q24 }, exponent, out);
                    for sum in [-70_000i64, -1, 0, 9, 123_456] {
                        let want = sum as f64 * 2f64.powi(exponent - 28) * scale_q28 as f64
                            + offset_q24 as f64 / 2f64.powi(24);
                        let got = (i128::from(sum) * i128::from(m) + i128::from(b)) as f64 / 2f64.powi(s.into());
                        let want = want / 2f64.powi(out);
                        if want.abs() < 1e6 {
                            // 24 bits of the multiplier, and half a sum of the bias.
                            let sum = 2f64.powi(exponent - 28 - out) * scale_q28 as f64;
                            let allowed = if sum.abs() < 0.0626 { 0.5001 * sum.abs() } else { 0.0 };
                            assert!((got - want).abs() < 1e-6 * want.abs().max(10.0) + allowed, "{got} {want}");
                        }
                    }
                }
            }
        }
    }

    /// What runtimes that requantise in floats compute.
    fn in_f32(sum: i64, multiplier: i64, shift: u32) -> i64 {
        (sum as f32 * (multiplier as f32 * 2f32.powi(-(shift as i32)))).round_ties_even() as i64
    }

    #[test]
    fn a_sum_times_an_agreeing_multiplier_rounds_the_same_in_32_bit_floats() {
        let (mut mended, mut before) = (0, 0);
        for k in 0..60 {
            let multiplier = (1 << 23) + 139_813 * k;
            let shift = 31 + (k % 4) as u32;
            let wrong = |multiplier: i64| {
                let differs = |&sum: &i64| in_f32(sum, multiplier, shift) != half_even_i64(sum * multiplier, shift);
                (0..255 * (1 << shift) / multiplier).filter(differs).count()
            };
            let near = agreeing(multiplier, shift);
            assert_eq!(wrong(near), 0, "{multiplier} {shift}");
            assert!(near.abs_diff(multiplier) <= MOST_AWAY as u64);
            assert_eq!(agrees(multiplier, shift), wrong(multiplier) == 0);
            before += wrong(multiplier);
            mended += usize::from(near != multiplier);
        }
        assert!(before > 20 && mended > 10, "{before} {mended}");
        // Few bits, and signs.
        assert_eq!([1 << 23, 3 << 21, 0].map(|multiplier| agreeing(multiplier, 30)), [1 << 23, 3 << 21, 0]);
        assert!(agrees(agreeing(-8_400_001, 33), 33));
    }

    #[test]
    fn every_network_folds_to_a_model_that_reads() {
        for (name, ..) in crate::networks::NETWORKS {
            let settings =
                crate::networks::Settings { width_1000: 125, auxiliary: true, ..crate::networks::Settings::new(5) };
            let graph = crate::networks::build(name, &settings).unwrap();
            let bytes = random_model(&graph, 1).unwrap();
            let model = intseg_runtime::Model::parse(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(model.nodes().all(|node| !node.name.starts_with("aux")));
            let metadata: Metadata = serde_json::from_str(model.metadata()).unwrap();
            assert_eq!((metadata.arch.as_str(), metadata.classes.len()), (name, 5));
        }
    }
}
