//! What a run trains on, for another program: the network, its initial weights, the schedule and every batch, so that a
//! float twin can be trained from the same start on the same pixels (`bench/parity`).

use crate::checkpoint::CheckpointError;
use crate::config::Config;
use crate::data::image::write_atomically;
use crate::data::loader::{Loader, Source};
use crate::data::{DataError, Dataset};
use crate::graph::Graph;
use crate::network::Network;
use crate::networks;
use crate::run::{RunError, class_weights};
use crate::schedule::Schedule;
use crate::tensor::Shape;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// The first line of a record, JSON.
#[derive(Debug, Serialize)]
pub struct Header {
    /// The network.
    pub graph: Graph,
    /// Number of classes.
    pub classes: usize,
    /// `[N, H, W, 3]` of each batch.
    pub batch: Shape,
    /// Batches that follow.
    pub steps: u64,
    /// The learning rate of each step, in units of 2^-32.
    pub lr_q32: Vec<u64>,
    /// Momentum in units of 2^-15.
    pub momentum_q15: u32,
    /// Weight decay of convolution weights, in units of 2^-32.
    pub decay_q32: u64,
    /// Weights of the classes in the loss, in 256ths: the main head's and the auxiliary head's.
    pub class_weights_q8: [Vec<u16>; 2],
    /// Images and label maps of the validation split.
    pub val: Vec<[std::path::PathBuf; 2]>,
}

/// Writes a record of a configuration's first `steps` steps (all where `None`): the header as a line of JSON, then for
/// each step the batch's images, value − 128 as i8, `[N, H, W, 3]`, and its labels, u8, `[N, H, W]`, 255 where ignored.
///
/// # Errors
/// When the configuration or the data cannot be used, or `out` cannot be written to; `name` is `out`'s for messages.
pub fn batches(
    config: &Config,
    data: &Path,
    steps: Option<u64>,
    out: &mut dyn Write,
    name: &Path,
) -> Result<(), RunError> {
    let graph = networks::build(&config.network.arch, &config.settings())?;
    let [h, w] = config.augment.crop;
    let shape = Shape::new(config.train.batch, h, w, 3);
    graph.shapes(shape)?;
    let dataset = Dataset::open(data, config.data.layout)?;
    let (train, val) = (dataset.split(&config.data.train)?, dataset.split(&config.data.val)?);
    let steps = steps.unwrap_or(config.train.steps).min(config.train.steps);
    let schedule = Schedule::of(config);
    let header = Header {
        graph,
        classes: config.network.classes,
        batch: shape,
        steps,
        lr_q32: (0..steps).map(|step| schedule.rate_q32(step)).collect(),
        momentum_q15: config.momentum_q15(),
        decay_q32: config.decay_q32(),
        class_weights_q8: class_weights(config, &dataset, &train)?,
        val: val.into_iter().map(|entry| [entry.image, entry.label]).collect(),
    };
    let io = |source| DataError::Io { path: name.to_owned(), source };
    let line = serde_json::to_string(&header).expect("a header holds numbers, names and paths");
    writeln!(out, "{line}").map_err(io)?;
    let mut loader = Loader::start(Source::new(config, dataset, train), 0, 2);
    for _ in 0..steps {
        let batch = loader.next()?;
        let images: Vec<u8> = batch.images.iter().map(|&v| v.cast_unsigned()).collect();
        out.write_all(&images).and_then(|()| out.write_all(&batch.labels)).map_err(io)?;
    }
    Ok(out.flush().map_err(io)?)
}

/// Writes a configuration's initial weights as float32 safetensors, named as in a checkpoint, convolution weights laid
/// out as float frameworks have them, `[C_out, C_in, KH, KW]`.
///
/// # Errors
/// When the network cannot be built or the file not be written.
pub fn initial_weights(config: &Config, path: &Path) -> Result<(), RunError> {
    let graph = networks::build(&config.network.arch, &config.settings())?;
    let mut network = Network::new(graph, config.train.seed)?;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = network
        .parameters()
        .map(|parameter| {
            let exponent = parameter.exponent - parameter.kind.fraction_bits() as i32;
            let value = |index: usize| real(parameter.master[index], exponent).to_le_bytes();
            let (shape, bytes) = match parameter.shape[..] {
                [h, w, c_in, c_out] => {
                    let places = (0..parameter.master.len()).map(|i| {
                        let (k, c, tap) = (i / (c_in * h * w), i / (h * w) % c_in, i % (h * w));
                        (tap * c_in + c) * c_out + k
                    });
                    (vec![c_out, c_in, h, w], places.flat_map(value).collect())
                }
                _ => (parameter.shape.clone(), (0..parameter.master.len()).flat_map(value).collect()),
            };
            (parameter.name.clone(), shape, bytes)
        })
        .collect();
    let unusable = |e: &dyn std::fmt::Display| CheckpointError::Unusable { path: path.into(), message: e.to_string() };
    let views = tensors.iter().map(|(name, shape, bytes)| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view)).map_err(|e| unusable(&e))
    });
    let bytes = serialize(views.collect::<Result<Vec<_>, _>>()?, None).map_err(|e| unusable(&e))?;
    Ok(write_atomically(path, &bytes)?)
}

/// `mantissa · 2^exponent` for a float framework.
#[allow(clippy::float_arithmetic, reason = "the edge where a weight is handed to a float framework")]
fn real(mantissa: i32, exponent: i32) -> f32 {
    (f64::from(mantissa) * 2f64.powi(exponent)) as f32
}
