//! Post-training quantisation: a float network and some images in, a model of integers out.
//!
//! ```text
//! FloatGraph ─ prepare ─► foldable nodes with types ─ statistics ─► ranges of channels
//!   ─ scales ─► factors a channel, exponents a tensor ─ emit ─► model ─ report ─► how far the two agree
//! ```
//!
//! Weights get a step for each output channel, which goes into the multiplier of its requantisation; activations a
//! power of two for each tensor, at whose end their range is brought by factors that the layers before and behind take
//! up.

mod branches;
mod correct;
mod emit;
mod functions;
mod prepare;
mod report;
mod rounding;
mod scales;
mod statistics;
mod weights;

pub use report::{LayerReport, Report};

use crate::float::{self, FloatError};
use crate::graph::{FloatGraph, FloatOp};
use intseg::data::image::Rgb;
use intseg_runtime::Element;
use intseg_runtime::writer::ModelSpec;
use prepare::Prepared;
use rayon::prelude::*;
use scales::Factors;
use weights::{QuantizedWeights, Steps};

/// Images whose means biases are corrected by: their maps are in memory together.
const CORRECTED: usize = 8;

/// How the range of an activation tensor is found on calibration images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ranges {
    /// The largest magnitude.
    Maximum,
    /// The magnitude that this share of all values does not exceed.
    Percentile(f64),
    /// The range of the least squared error.
    SquaredError,
}

/// What multipliers a model may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Any, one an output channel.
    Channel,
    /// Powers of two, and biases in whole sums: what other runtimes compute without rounding twice.
    PowerOfTwo,
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Each to the nearest step.
    Nearest,
    /// Such that what their layer puts out changes little.
    Output,
}

/// How to quantise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Activation ranges.
    pub ranges: Ranges,
    /// Multipliers.
    pub scales: Scales,
    /// Weights.
    pub rounding: Rounding,
    /// Whether a bias takes up what rounding its weights changes in the mean.
    pub bias_correction: bool,
    /// Cross-layer equalisation: from 0, none, to 1, all channels of a tensor to one range.
    pub equalization: f64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ranges: Ranges::Maximum,
            scales: Scales::Channel,
            rounding: Rounding::Output,
            bias_correction: true,
            equalization: 0.5,
        }
    }
}

/// Why a network cannot be quantised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantizeError {
    /// No images to calibrate with.
    #[error("there is no image to calibrate with")]
    NoImages,
    /// The network cannot run.
    #[error("the float network cannot run on a calibration image: {0}")]
    Float(#[from] FloatError),
    /// What a layer computes is not finite.
    #[error("layer {layer}: what it computes of the calibration images is not finite; check its weights")]
    NotFinite {
        /// Its name.
        layer: String,
    },
    /// A layer's sums could overflow.
    #[error("layer {layer}: its sums could reach {bound}, beyond 32 bits; it has too many inputs")]
    Accumulator {
        /// Its name.
        layer: String,
        /// The largest magnitude.
        bound: u64,
    },
    /// More classes than a class map can name.
    #[error("the network puts out {classes} channels; a class map can name 1 to 256")]
    Classes {
        /// Its channels.
        classes: usize,
    },
    /// The model cannot run.
    #[error("the quantised model cannot run: {0}")]
    Model(String),
}

/// A quantised network.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The model, without metadata.
    pub spec: ModelSpec,
    /// The float network that its nodes stand for, channels scaled as theirs.
    scaled: FloatGraph,
    /// What stands for 0 in the outputs of its nodes, in their steps.
    zeros: Vec<f64>,
    /// For each node of the model, the float node whose output it computes.
    origin: Vec<usize>,
}

/// The number of classes of a network: the channels of its last node.
pub fn classes(graph: &FloatGraph) -> usize {
    prepare::channels(&graph.nodes).last().copied().unwrap_or(0)
}

/// Quantises a network with what calibration images show of its activations.
///
/// # Errors
/// When there are no images, the network cannot run on them, or a layer does not fit the runtime's integers.
pub fn quantize(graph: &FloatGraph, images: &[Rgb], options: &Options) -> Result<Quantized, QuantizeError> {
    quantize_with(graph, images, options, &mut |_, _| {})
}

/// As [`quantize`]; `observe` hears how many runs of the network are done, and of how many.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_with(
    graph: &FloatGraph,
    images: &[Rgb],
    options: &Options,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<Quantized, QuantizeError> {
    if images.is_empty() {
        return Err(QuantizeError::NoImages);
    }
    let classes = classes(graph);
    if !(1..=256).contains(&classes) {
        return Err(QuantizeError::Classes { classes });
    }
    // What runs has shapes that fit each other, which everything below relies on.
    float::run(graph, &images[0], |_, _| {})?;
    let prepared = Prepared::new(graph);
    let counts = prepare::channels(&prepared.graph.nodes);
    // Neighbours in a list are often neighbours in time.
    let some: Vec<&Rgb> = images.iter().step_by(images.len().div_ceil(CORRECTED)).collect();
    let (passes, corrected) = (2 * images.len(), if options.bias_correction { 2 * some.len() } else { 0 });
    let looked_at = if options.rounding == Rounding::Output { some.len() } else { 0 };
    let total = passes + looked_at + corrected;
    let statistics = statistics::channels(&prepared.graph, images, &counts, &mut |done| observe(done, total))?;
    let mut factors = Factors::new(&prepared);
    factors.equalize(&prepared, &statistics, options.equalization);
    let equalized = factors.apply(&prepared);
    let offsets = functions::offsets(&prepared, &statistics, &factors);
    // Tensors of 8 bits whose values are new: neither moved, selected nor still to be clamped.
    let largest = (0..counts.len()).map(|node| {
        let op = &equalized.graph.nodes[node].op;
        let moved = matches!(op, FloatOp::Image | FloatOp::Concat)
            || prepare::passes(op) && !matches!(op, FloatOp::Clip { .. });
        let counts_here = equalized.elements[node] != Element::I16 && !moved && equalized.clamp(node).is_none();
        let seen = (0..counts[node]).map(|k| statistics[node].magnitude(k) * factors.of(node, k));
        counts_here.then(|| seen.fold(1e-9, f64::max) + offsets[node])
    });
    let largest: Vec<Option<f64>> = largest.collect();
    let histograms = statistics::histograms(&equalized.graph, images, (&largest, &offsets), &mut |done| {
        observe(images.len() + done, total);
    })?;
    let exponents = scales::choose(&equalized, &histograms, &statistics, &mut factors, options);
    let scaled = factors.apply(&prepared);
    let zeros = functions::zeros(&scaled, &functions::offsets(&prepared, &statistics, &factors), &exponents);
    let covariances = match options.rounding {
        Rounding::Output => rounding::covariances(&scaled.graph, &some, &mut |done| observe(passes + done, total))?,
        Rounding::Nearest => scaled.graph.nodes.iter().map(|_| None).collect(),
    };
    let weights: Vec<Option<QuantizedWeights>> = (scaled.graph.nodes.par_iter().zip(&covariances).enumerate())
        .map(|(index, (node, covariance))| {
            let from = node.inputs.first().map_or(0, |&input| exponents[input]);
            let element = scaled.elements[index];
            let steps = Steps { scales: options.scales, exponent: from - exponents[index], element };
            let mut weights = QuantizedWeights::new(node, steps)?;
            if let Some(covariance) = covariance {
                covariance.round(node, &mut weights);
            }
            Some(weights)
        })
        .collect();
    let passes = passes + looked_at;
    let corrections = match options.bias_correction {
        true => {
            let nodes = scaled.graph.nodes.len();
            correct::bias_corrections(&scaled, &weights, (&exponents, &zeros), &some, &mut |node| {
                observe(passes + corrected * node / nodes, total);
            })?
        }
        false => vec![Vec::new(); scaled.graph.nodes.len()],
    };
    let (weights, corrections) = (&weights[..], &corrections[..]);
    let source = emit::Source { scaled: &scaled, weights, corrections, exponents: &exponents, zeros: &zeros, options };
    let emitted = emit::emit(&source)?;
    Ok(Quantized { spec: emitted.spec, scaled: scaled.graph, zeros, origin: emitted.origin })
}
