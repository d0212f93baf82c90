//! A model file, ready to run on images of any size.

use crate::data::image::{Label, Rgb};
use crate::data::{Dataset, palette};
use crate::fold::Metadata;
use crate::summary::LayerSummary;
use crate::threads::Threads;
use intseg_kernels::{Context, Inline, Isa};
use intseg_runtime::{
    Engine, EngineError, Interpolation, Model, ModelError, Node, Op, OpenError, Plan, ReadAt, Shape, Sizes, Slot,
};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of a layer's weights that [`Predictor::load`] keeps. Of common networks, VGG's first fully connected layer alone has
/// more: 103 MB, which a prediction uses once. Reading a third of them from the system's cache costs it 1 to 12 % of its time.
pub const WEIGHTS_LIMIT: usize = 64 << 20;

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PredictorError {
    /// The file cannot be read.
    #[error("cannot read the model {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no model, or damaged, or newer than this program.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ModelError,
    },
    /// What the file says about its classes does not fit its graph.
    #[error("{}: the model's metadata does not fit its graph: {problem}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The model cannot run on an image of this size.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The model cannot run on an image of this size.
    #[error("the model cannot run on an image of {}×{}: {problem}", size[1], size[0])]
    Size {
        /// Rows and columns.
        size: [usize; 2],
        /// Why.
        problem: String,
    },
    /// The data set has other classes than the model.
    #[error("the model has {model} classes, but {} has {data}; use the data set that the model was trained for", dir.display())]
    Classes {
        /// Classes of the model.
        model: usize,
        /// Classes of the data set.
        data: usize,
        /// The data set.
        dir: PathBuf,
    },
}

/// A model with its packed weights and its memory.
pub struct Predictor {
    engine: Engine,
    metadata: Metadata,
    isa: Isa,
}

impl Predictor {
    /// Reads a model file, and keeps at most [`WEIGHTS_LIMIT`] bytes of a layer's weights.
    ///
    /// # Errors
    /// When the file cannot be read or is no model that this program can run.
    pub fn load(path: &Path, isa: Isa) -> Result<Self, PredictorError> {
        Self::load_with_limit(path, isa, WEIGHTS_LIMIT)
    }

    /// Reads a model file, and keeps at most `limit` bytes of a layer's weights: what goes beyond is read from the file for
    /// every image, where the layer can do that. The file must stay as it is.
    ///
    /// # Errors
    /// As [`Predictor::load`].
    pub fn load_with_limit(path: &Path, isa: Isa, limit: usize) -> Result<Self, PredictorError> {
        let failed = |source| PredictorError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() {
            let read_at = reader_at(file.try_clone().map_err(failed)?).map_err(failed)?;
            let engine = Engine::open_streaming(file, metadata.len(), Context { isa, pool: &Inline }, limit, read_at);
            return Self::new(engine.map_err(|error| unusable(error, path))?, path, isa);
        }
        // A pipe does not tell its length.
        let bytes = std::fs::read(path).map_err(failed)?;
        Self::open(&bytes[..], bytes.len() as u64, path, isa)
    }

    /// Reads a model file of `len` bytes; `path` is for messages.
    ///
    /// # Errors
    /// As [`Predictor::load`].
    pub fn open(read: impl Read, len: u64, path: &Path, isa: Isa) -> Result<Self, PredictorError> {
        let engine = Engine::open(read, len, Context { isa, pool: &Inline });
        Self::new(engine.map_err(|error| unusable(error, path))?, path, isa)
    }

    /// Takes a model file's bytes and holds them beside the packed weights; `path` is for messages.
    ///
    /// # Errors
    /// When the bytes are no model that this program can run.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path, isa: Isa) -> Result<Self, PredictorError> {
        let engine = Engine::new(bytes).map_err(|source| PredictorError::Model { path: path.to_owned(), source })?;
        Self::new(engine, path, isa)
    }

    fn new(engine: Engine, path: &Path, isa: Isa) -> Result<Self, PredictorError> {
        let misfit = |problem: String| PredictorError::Metadata { path: path.to_owned(), problem };
        let mut metadata: Metadata =
            serde_json::from_str(engine.model().metadata()).map_err(|e| misfit(e.to_string()))?;
        let channels = layers_of(&engine.model(), [64, 64], isa).map_err(misfit)?.last().map_or(0, |l| l.shape[2]);
        if metadata.classes.len() != channels {
            return Err(misfit(format!("{} class names for {channels} classes", metadata.classes.len())));
        }
        if metadata.palette.len() != channels {
            metadata.palette = palette::voc(channels);
        }
        Ok(Predictor { engine, metadata, isa })
    }

    /// The architecture, the classes and the training of the model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The model. Its weights are there if it came from bytes, or was loaded for [`Isa::Scalar`], which does not pack them.
    pub fn model(&self) -> Model<'_> {
        self.engine.model()
    }

    /// The memory that the last run took.
    pub fn sizes(&self) -> Sizes {
        self.engine.sizes()
    }

    /// The engine and what it computes on.
    pub fn engine<'a>(&'a mut self, threads: &'a Threads) -> (&'a mut Engine, Context<'a>) {
        (&mut self.engine, Context { isa: self.isa, pool: threads })
    }

    /// Checks that a data set has as many classes as the model, as far as the data set says.
    ///
    /// # Errors
    /// [`PredictorError::Classes`].
    pub fn check_classes(&self, dataset: &Dataset) -> Result<(), PredictorError> {
        let model = self.metadata.classes.len();
        match dataset.listed_class_count().filter(|&data| data != model) {
            Some(data) => Err(PredictorError::Classes { model, data, dir: dataset.dir.clone() }),
            None => Ok(()),
        }
    }

    /// The layers for an image of `[rows, columns]`.
    ///
    /// # Errors
    /// When the model cannot run on an image of this size.
    pub fn layers(&self, size: [usize; 2]) -> Result<Vec<LayerSummary>, PredictorError> {
        layers_of(&self.engine.model(), size, self.isa).map_err(|problem| PredictorError::Size { size, problem })
    }

    /// Classifies an image, `[H, W, 3]` RGB, into `classes`, `[H, W]`.
    ///
    /// # Errors
    /// When the model cannot run on an image of this size.
    ///
    /// # Panics
    /// When a slice has another length than the size says.
    pub fn run(
        &mut self,
        threads: &Threads,
        size: [usize; 2],
        image: &[u8],
        classes: &mut [u8],
    ) -> Result<(), PredictorError> {
        let ctx = Context { isa: self.isa, pool: threads };
        Ok(self.engine.run(ctx, size, image, classes)?)
    }

    /// As [`Predictor::run`], and returns the time of each layer; the classification comes last.
    ///
    /// # Errors
    /// As [`Predictor::run`].
    ///
    /// # Panics
    /// As [`Predictor::run`].
    pub fn run_timed(
        &mut self,
        threads: &Threads,
        size: [usize; 2],
        image: &[u8],
        classes: &mut [u8],
    ) -> Result<Vec<Duration>, PredictorError> {
        let ctx = Context { isa: self.isa, pool: threads };
        let mut times = Vec::new();
        let mut last = Instant::now();
        self.engine.run_watched(ctx, size, image, classes, |_| {
            let now = Instant::now();
            times.push(now - last);
            last = now;
        })?;
        times.push(last.elapsed());
        Ok(times)
    }

    /// The class of every pixel of an image.
    ///
    /// # Errors
    /// When the model cannot run on an image of this size.
    pub fn predict(&mut self, threads: &Threads, image: &Rgb) -> Result<Label, PredictorError> {
        let mut values = vec![0; image.width * image.height];
        self.run(threads, [image.height, image.width], &image.data, &mut values)?;
        Ok(Label { width: image.width, height: image.height, values })
    }
}

fn unusable(error: OpenError, path: &Path) -> PredictorError {
    match error {
        OpenError::Read(source) => PredictorError::Read { path: path.to_owned(), source },
        OpenError::Model(source) => PredictorError::Model { path: path.to_owned(), source },
    }
}

/// Reads parts of a file as long as it is what it is now.
fn reader_at(file: File) -> io::Result<ReadAt> {
    let state = |file: &File| file.metadata().map(|now| (now.len(), now.modified().ok()));
    let opened = state(&file)?;
    Ok(Box::new(move |out, offset| {
        if state(&file)? != opened {
            return Err(io::Error::other("the file was changed after it was opened"));
        }
        read_exact_at(&file, out, offset)
    }))
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, out, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (out, offset) = (&mut out[read..], offset + read as u64);
    }
    Ok(())
}

fn layers_of(model: &Model, size: [usize; 2], isa: Isa) -> Result<Vec<LayerSummary>, String> {
    let mut slots = vec![Slot::default(); model.len()];
    let ctx = Context { isa, pool: &Inline };
    let plan = Plan::new(model, size, ctx, &mut slots).map_err(|e| e.to_string())?;
    Ok(model.nodes().enumerate().map(|(index, node)| summarize(&node, index, plan.slots)).collect())
}

fn summarize(node: &Node, index: usize, slots: &[Slot]) -> LayerSummary {
    let Shape { h, w, c } = slots[index].shape;
    let (macs, weight_bytes, accumulator_bound) = match &node.op {
        Op::Conv(conv) => {
            // Each weight is used once for every pixel of the smaller side.
            let smaller = if conv.transposed.is_some() { slots[node.input(0)].shape } else { slots[index].shape };
            let macs = (smaller.h * smaller.w * conv.weights_len()) as u64;
            (macs, conv.weights_len(), Some(conv.accumulator_bound()))
        }
        Op::Depthwise(depthwise) => {
            let macs = (h * w * depthwise.weights.len()) as u64;
            (macs, depthwise.weights.len(), Some(depthwise.accumulator_bound()))
        }
        _ => (0, 0, None),
    };
    LayerSummary {
        name: node.name.to_owned(),
        op: describe(&node.op),
        shape: [h, w, c],
        macs,
        weight_bytes,
        exponent: Some(node.exponent),
        accumulator_bound,
    }
}

fn describe(op: &Op) -> String {
    match op {
        Op::Image => "image".into(),
        Op::Conv(conv) => {
            let kind = if conv.transposed.is_some() { "transposed conv" } else { "conv" };
            describe_window(kind, conv.kernel, conv.stride, conv.dilation)
        }
        Op::Depthwise(conv) => describe_window("depthwise conv", conv.kernel, conv.stride, conv.dilation),
        Op::Table(_) => "table".into(),
        Op::Product(_) => "product".into(),
        Op::Pad(_) => "pad".into(),
        Op::Affine(_) => "affine".into(),
        Op::Add => "add".into(),
        Op::MaxPool { kernel, stride, .. } => format!("max pool {} /{}", kernel[0], stride[0]),
        Op::GlobalAveragePool => "global average pool".into(),
        Op::AveragePool { kernel, stride, .. } => format!("average pool {} /{}", kernel[0], stride[0]),
        Op::Resize { interpolation: Interpolation::Nearest, .. } => "nearest resize".into(),
        Op::Resize { .. } => "bilinear resize".into(),
        Op::Concat => "concat".into(),
    }
}

fn describe_window(kind: &str, kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2]) -> String {
    let mut text = format!("{kind} {}×{}", kernel[0], kernel[1]);
    if stride != [1; 2] {
        text += &format!(" /{}", stride[0]);
    }
    if dilation != [1; 2] {
        text += &format!(" rate {}", dilation[0]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::random_model;
    use crate::networks::{Settings, build};
    use crate::summary;

    fn random(name: &str) -> Predictor {
        let graph = build(name, &Settings { width_1000: 125, ..Settings::new(5) }).unwrap();
        let bytes = random_model(&graph, 1).unwrap();
        Predictor::from_bytes(bytes, Path::new("random.iseg"), Isa::detect()).unwrap()
    }

    #[test]
    fn a_model_does_the_work_that_its_definition_counts() {
        for name in ["fcn-tiny", "fcn8s-vgg16-bn", "deeplabv3-resnet50v2"] {
            let graph = build(name, &Settings { width_1000: 125, ..Settings::new(5) }).unwrap();
            let count = |layers: Vec<LayerSummary>| layers.iter().map(|l| l.macs).sum::<u64>();
            let expected = count(summary::layers(&graph, [65, 97]).unwrap());
            assert_eq!(count(random(name).layers([65, 97]).unwrap()), expected, "{name}");
        }
    }

    #[test]
    fn predictions_do_not_depend_on_threads_and_every_layer_is_timed() {
        let mut predictor = random("fcn-tiny");
        let image = Rgb { width: 37, height: 23, data: (0..37 * 23 * 3).map(|i| (i * 7 % 256) as u8).collect() };
        let (one, two) = (Threads::new(1).unwrap(), Threads::new(2).unwrap());
        let alone = predictor.predict(&one, &image).unwrap();
        assert_eq!(predictor.predict(&two, &image).unwrap(), alone);
        let mut classes = vec![0; 37 * 23];
        let times = predictor.run_timed(&two, [23, 37], &image.data, &mut classes).unwrap();
        assert_eq!(times.len(), predictor.layers([23, 37]).unwrap().len() + 1);
        assert_eq!(classes, alone.values);
    }

    #[test]
    fn a_layer_whose_weights_stay_in_the_file_needs_that_file_as_it_was() {
        if Isa::detect() == Isa::Scalar {
            eprintln!("skipped: portable code holds all weights");
            return;
        }
        let graph = build("fcn8s-vgg16", &Settings { width_1000: 30, ..Settings::new(5) }).unwrap();
        let bytes = random_model(&graph, 1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.iseg");
        std::fs::write(&path, &bytes).unwrap();
        let image = Rgb { width: 64, height: 64, data: (0..64 * 64 * 3).map(|i| (i * 7 % 256) as u8).collect() };
        let threads = Threads::new(2).unwrap();
        let want = Predictor::load(&path, Isa::detect()).unwrap().predict(&threads, &image).unwrap();
        let mut predictor = Predictor::load_with_limit(&path, Isa::detect(), 0).unwrap();
        assert_eq!(predictor.predict(&threads, &image).unwrap(), want);
        // Another file of that name is no harm.
        std::fs::rename(&path, dir.path().join("old.iseg")).unwrap();
        std::fs::write(&path, b"new").unwrap();
        assert_eq!(predictor.predict(&threads, &image).unwrap(), want);
        std::fs::write(dir.path().join("old.iseg"), &bytes[..bytes.len() / 2]).unwrap();
        let error = predictor.predict(&threads, &image).unwrap_err().to_string();
        assert_eq!(error, "cannot read the model's weights: the file was changed after it was opened");
    }
}
