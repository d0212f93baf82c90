//! What a run trains on, for another program: the network, its initial weights, the schedule and every batch, so that a
//! float twin can be trained from the same start on the same pixels (`bench/parity`).

use crate::checkpoint::{self, NamedTensor};
use crate::class_weights::class_weights;
use crate::config::Config;
use crate::data::loader::{Loader, Source};
use crate::data::{DataError, Dataset};
use crate::graph::Graph;
use crate::init::{Start, settle};
use crate::network::Network;
use crate::run::RunError;
use crate::schedule::Schedule;
use crate::tensor::Shape;
use intseg_kernels::{Context, Inline, Isa};
use safetensors::tensor::Dtype;
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
    /// Batches after those, over which deployed models' statistics are measured.
    pub measured: u64,
    /// The steps whose weights deployed models average, from 1 on.
    pub averaged: Vec<u64>,
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
/// each step the batch's images, value − 128 as i8, `[N, H, W, 3]`, and its labels, u8, `[N, H, W]`, 255 where ignored. The
/// batches over which deployed models are measured follow in the same way.
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
    let graph = config.graph()?;
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
        measured: config.deploy.batches,
        averaged: (1..=steps).filter(|&step| config.deploy.averages(step, config.train.steps)).collect(),
        lr_q32: (0..steps).map(|step| schedule.rate_q32(step)).collect(),
        momentum_q15: config.momentum_q15(),
        decay_q32: config.decay_q32(),
        class_weights_q8: class_weights(config, &dataset, &train)?,
        val: val.into_iter().map(|entry| [entry.image, entry.label]).collect(),
    };
    let io = |source| DataError::Io { path: name.to_owned(), source };
    let line = serde_json::to_string(&header).expect("a header holds numbers, names and paths");
    writeln!(out, "{line}").map_err(io)?;
    let source = Source::new(config, dataset, train);
    let unvaried = source.clone().unvaried();
    for (source, first, count) in [(source, 0, steps), (unvaried, config.train.steps, config.deploy.batches)] {
        let mut loader = Loader::start(source, first, 2);
        for _ in 0..count {
            let batch = loader.next()?;
            let images: Vec<u8> = batch.images.iter().map(|&v| v.cast_unsigned()).collect();
            out.write_all(&images).and_then(|()| out.write_all(&batch.labels)).map_err(io)?;
        }
    }
    Ok(out.flush().map_err(io)?)
}

/// Writes the weights that a configuration's run begins with, where `start` is what `train --init` would take, as float32
/// safetensors, named as in a checkpoint, convolution weights laid out as float frameworks have them,
/// `[C_out, C_in, KH, KW]`.
///
/// # Errors
/// When the network cannot be built, nothing of `start` fits it, the images in `data` cannot be read, or the file cannot
/// be written.
pub fn initial_weights(config: &Config, data: &Path, start: Option<Start>, path: &Path) -> Result<(), RunError> {
    let graph = config.graph()?;
    let mut network = Network::new(graph, config.train.seed)?;
    if let Some(start) = start {
        start.apply(&mut network)?;
        let dataset = Dataset::open(data, config.data.layout)?;
        let train = dataset.split(&config.data.train)?;
        let ctx = Context { isa: Isa::detect(), pool: &Inline };
        settle(&mut network, config, Source::new(config, dataset, train), ctx)?;
    }
    let tensors: Vec<NamedTensor> = network
        .parameters()
        .map(|parameter| {
            let values = parameter.real();
            let (shape, places): (_, Vec<usize>) = match parameter.shape[..] {
                [h, w, c_in, c_out] => {
                    let place = |i: usize| {
                        let (k, c, tap) = (i / (c_in * h * w), i / (h * w) % c_in, i % (h * w));
                        (tap * c_in + c) * c_out + k
                    };
                    (vec![c_out, c_in, h, w], (0..values.len()).map(place).collect())
                }
                _ => (parameter.shape.clone(), (0..values.len()).collect()),
            };
            let bytes = places.into_iter().flat_map(|place| values[place].to_le_bytes()).collect();
            (parameter.name.clone(), Dtype::F32, shape, bytes)
        })
        .collect();
    Ok(checkpoint::write(path, &tensors, None)?)
}
