//! `intseg import`: a float network made integer.

use crate::failure::Usage;
use crate::machine::Machine;
use crate::output::{json, table, text};
use crate::progress::Progress;
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use intseg::data::image::{Rgb, read_rgb, write_atomically};
use intseg::data::{Dataset, palette};
use intseg::fold::Metadata;
use intseg::predict::images;
use intseg_import::arch;
use intseg_import::graph::{FloatGraph, Normalization};
use intseg_import::onnx::read_graph;
use intseg_import::quantize::{Options, Ranges, Report, Rounding, Scales, classes, quantize_with};
use intseg_import::read::{Format, read_weights};
use intseg_kernels::{Context, Pool};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Images on which the model is compared with the float network without being asked.
const COMPARED: usize = 4;

/// Arguments of `intseg import`.
#[derive(Args)]
#[command(after_help = "Examples:
  intseg import --weights unet.onnx --calibrate photos -o unet.iseg
  intseg import --arch deeplabv3-resnet50 --weights deeplab.pth --calibrate data/voc -o deeplab.iseg --report")]
pub struct Import {
    /// The network whose weights the file holds; not for an ONNX model, which brings its own
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Float weights: .pth, .pt, .safetensors or .npz under torchvision's or the network's own names, or an ONNX model
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Images like those that the model will see: a folder of them, or a data set, of whose training split some are taken
    #[arg(long, value_name = "DIR")]
    calibrate: PathBuf,
    /// The model file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// How many of the images to take, evenly spread
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    images: u32,
    /// How the network expects images
    #[arg(long, value_enum, default_value_t = Normalize::Imagenet)]
    normalize: Normalize,
    /// The range of activations: max, mse, or a percentile such as 99.99
    #[arg(long, value_name = "max|mse|PERCENT", default_value = "max", value_parser = ranges)]
    ranges: Ranges,
    /// Multipliers of the model
    #[arg(long, value_enum, default_value_t = Multipliers::Channel)]
    scales: Multipliers,
    /// How weights are rounded
    #[arg(long, value_enum, default_value_t = Round::Output)]
    rounding: Round,
    /// Cross-layer equalisation, from 0 (none) to 1 (all channels of a tensor to one range)
    #[arg(long, value_name = "STRENGTH", default_value_t = Options::default().equalization, value_parser = share)]
    equalize: f64,
    /// Leave biases as they are instead of correcting them for the rounding of weights
    #[arg(long)]
    no_bias_correction: bool,
    /// Class names, one a line; without it the data set's, or numbers
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Print how far each layer's output is from float's
    #[arg(long)]
    report: bool,
    #[command(flatten)]
    machine: Machine,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How a network expects images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Normalize {
    /// ImageNet's mean and deviation, as torchvision's networks
    Imagenet,
    /// Values from 0 to 1
    Unit,
    /// Values from 0 to 255
    Bytes,
    /// Blue, green, red from 0 to 255 less their means, as Caffe's networks
    Caffe,
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Round {
    /// Such that what their layer puts out changes little
    Output,
    /// Each to the nearest step
    Nearest,
}

impl From<Round> for Rounding {
    fn from(round: Round) -> Self {
        match round {
            Round::Output => Rounding::Output,
            Round::Nearest => Rounding::Nearest,
        }
    }
}

/// What multipliers a model may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Multipliers {
    /// One an output channel, any
    Channel,
    /// Powers of two: exact in other runtimes too, and less accurate
    PowerOfTwo,
}

fn ranges(text: &str) -> Result<Ranges, String> {
    match text {
        "mse" => Ok(Ranges::SquaredError),
        "max" => Ok(Ranges::Maximum),
        _ => {
            let percent = text.trim_end_matches('%').parse::<f64>().ok().filter(|p| (50.0..=100.0).contains(p));
            let percent = percent
                .ok_or_else(|| format!("{text:?} is no range: write mse, max, or a percentile from 50 to 100"))?;
            Ok(Ranges::Percentile(percent / 100.0))
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is not between 0 and 1"))
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    output: &'a Path,
    classes: usize,
    bytes: usize,
    calibration_images: usize,
    loaded: Option<usize>,
    ignored: &'a [String],
    report: &'a Report,
}

/// A float network, and what of the file it took where it was not the whole.
struct Float {
    graph: FloatGraph,
    loaded: Option<usize>,
    ignored: Vec<String>,
}

impl Import {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let (isa, threads) = self.machine.start()?;
        let float = self.float()?;
        let (paths, dataset) = self.calibration()?;
        let metadata = self.metadata(&float.graph, dataset.as_ref())?;
        let images = paths.iter().map(|path| read_rgb(path)).collect::<Result<Vec<Rgb>, _>>()?;
        let options = Options {
            ranges: self.ranges,
            scales: match self.scales {
                Multipliers::Channel => Scales::Channel,
                Multipliers::PowerOfTwo => Scales::PowerOfTwo,
            },
            rounding: self.rounding.into(),
            bias_correction: !self.no_bias_correction,
            equalization: self.equalize,
        };
        let compared = if self.report { &images[..] } else { &images[..images.len().min(COMPARED)] };
        let floats = rayon::ThreadPoolBuilder::new().num_threads(threads.threads()).build()?;
        let (bytes, report) = floats.install(|| {
            let mut progress = None;
            let mut quantized = quantize_with(&float.graph, &images, &options, &mut |done, total| {
                let progress = progress.get_or_insert_with(|| Progress::new(total as u64));
                progress.at(done as u64, &|| "runs of the float network".into());
            })?;
            if let Some(progress) = progress {
                progress.finish();
            }
            let report = quantized.report(&float.graph, compared, Context { isa, pool: &threads })?;
            quantized.spec.metadata = serde_json::to_string(&metadata)?;
            anyhow::Ok((quantized.spec.to_bytes(), report))
        })?;
        write_atomically(&self.output, &bytes)?;
        if self.json {
            return json(&Answer {
                output: &self.output,
                classes: metadata.classes.len(),
                bytes: bytes.len(),
                calibration_images: images.len(),
                loaded: float.loaded,
                ignored: &float.ignored,
                report: &report,
            });
        }
        if self.report {
            text(layers(&report))?;
        }
        if let Some(loaded) = float.loaded {
            let ignored = match &float.ignored[..] {
                [] => String::new(),
                [first, ..] => format!(", {} not used, such as {first}", float.ignored.len()),
            };
            text(format_args!("{loaded} tensors of {}{ignored}", self.weights.display()))?;
        }
        text(format_args!(
            "{}: {} classes, {} bytes, calibrated with {} images; the same class as float at {:.2} % of the pixels of {} of them",
            self.output.display(),
            metadata.classes.len(),
            bytes.len(),
            images.len(),
            100.0 * report.agreement,
            report.images
        ))
    }

    /// The network that the file and the flags describe.
    fn float(&self) -> anyhow::Result<Float> {
        let normalization = match self.normalize {
            Normalize::Imagenet => Normalization::IMAGENET,
            Normalize::Unit => Normalization::UNIT,
            Normalize::Bytes => Normalization::BYTES,
            Normalize::Caffe => Normalization::CAFFE,
        };
        let mut float = match (&self.arch, Format::of(&self.weights)) {
            (None, Some(Format::Onnx)) => {
                Float { graph: read_graph(&self.weights, normalization)?, loaded: None, ignored: Vec::new() }
            }
            (None, _) => {
                let message = "weights without their network need --arch NAME; see intseg bench --help for the names";
                return Err(Usage(message.into()).into());
            }
            (Some(arch), _) => {
                let imported = arch::network(arch, read_weights(&self.weights)?, normalization)
                    .with_context(|| self.weights.display().to_string())?;
                Float { graph: imported.graph, loaded: Some(imported.loaded), ignored: imported.ignored }
            }
        };
        if self.normalize == Normalize::Caffe {
            float.graph.swap_red_and_blue()?;
        }
        Ok(float)
    }

    /// The images to calibrate with, and the data set that they are of.
    fn calibration(&self) -> anyhow::Result<(Vec<PathBuf>, Option<Dataset>)> {
        let dataset = Dataset::open(&self.calibrate, None).ok();
        let mut all = match &dataset {
            Some(dataset) => {
                let splits = dataset.splits()?;
                let split = ["train", "training"].into_iter().find(|name| splits.iter().any(|split| split == name));
                let split = split.or(splits.first().map(String::as_str)).unwrap_or("train");
                dataset.split(split)?.into_iter().map(|entry| entry.image).collect()
            }
            None => images(std::slice::from_ref(&self.calibrate))?,
        };
        let (count, wanted) = (all.len(), self.images as usize);
        if count > wanted {
            all = (0..wanted).map(|k| all[k * count / wanted].clone()).collect();
        }
        Ok((all, dataset))
    }

    fn metadata(&self, graph: &FloatGraph, dataset: Option<&Dataset>) -> anyhow::Result<Metadata> {
        let count = classes(graph);
        let listed = match (&self.classes, dataset) {
            (Some(path), _) => {
                let lines = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Some(palette::parse_classes(&lines))
            }
            (None, _) => None,
        };
        if let Some(listed) = listed.as_ref().filter(|listed| listed.len() != count) {
            return Err(Usage(format!("--classes names {} classes, the network has {count}", listed.len())).into());
        }
        let dataset = dataset.filter(|dataset| dataset.listed_class_count().is_none_or(|listed| listed == count));
        let names = match (&listed, dataset) {
            (Some(listed), _) => listed.iter().map(|class| class.name.clone()).collect(),
            (None, Some(dataset)) => dataset.class_names(count),
            (None, None) => (0..count).map(|class| format!("class {class}")).collect(),
        };
        let colours = dataset.map_or_else(|| palette::voc(count), |dataset| dataset.palette(count));
        Ok(Metadata { arch: graph.name.clone(), classes: names, palette: colours, ..Metadata::default() })
    }
}

/// The layers of a report as a table.
fn layers(report: &Report) -> String {
    let rows: Vec<Vec<String>> = (report.layers.iter())
        .map(|layer| {
            vec![
                layer.name.clone(),
                layer.element.to_owned(),
                layer.exponent.to_string(),
                format!("{:.1}", layer.snr_db),
                format!("{:.3}", 100.0 * layer.saturated),
            ]
        })
        .collect();
    table(&["layer", "type", "exponent", "SNR dB", "saturated %"], &rows)
}
