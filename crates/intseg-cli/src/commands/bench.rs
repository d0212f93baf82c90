//! `intseg bench`: how fast this machine runs or trains a network.

use super::inspect::width;
use crate::machine::{HeldWeights, Machine, Size, peak_memory, reset_peak_memory};
use crate::output::{json, si, table, text};
use clap::Args;
use intseg::bench::{StepSpec, training_steps};
use intseg::fold::random_model;
use intseg::graph::Graph;
use intseg::networks::{Settings, build};
use intseg::ops::Bits;
use intseg::predictor::Predictor;
use intseg::summary::training_macs;
use intseg::threads::Threads;
use intseg_kernels::{Isa, Pool, peak, pool::for_each_piece};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Arguments of `intseg bench`.
#[derive(Args)]
#[command(after_help = "Examples:
  intseg bench --arch deeplabv3-resnet50 --size 513x513 --threads 2
  intseg bench --arch fcn8s-vgg16 --size 320x320 --train --batch 2 --json
  intseg bench --model run/best.iseg --size 360x480 --layers
  intseg bench --peak")]
pub struct Bench {
    /// The architecture, with random weights
    #[arg(long, value_name = "NAME", required_unless_present_any = ["peak", "model"])]
    arch: Option<String>,
    /// A model file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["arch", "train", "peak"])]
    model: Option<PathBuf>,
    /// Write the architecture's random model to a file and stop: timed with --model, no more memory is counted than a
    /// prediction takes
    #[arg(long, value_name = "FILE", requires = "arch", conflicts_with_all = ["train", "peak"])]
    save: Option<PathBuf>,
    /// Rows x columns of the images
    #[arg(long, value_name = "HxW", default_value = "513x513")]
    size: Size,
    /// Images a run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Width multiplier
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = width)]
    width: f64,
    /// Number of classes
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = clap::value_parser!(u16).range(2..=255))]
    classes: u16,
    /// Time a training step instead of a prediction
    #[arg(long)]
    train: bool,
    /// Runs to time, after one that is not
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Seed of weights and images
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Also show the time of every layer
    #[arg(long, conflicts_with_all = ["train", "peak"])]
    layers: bool,
    /// Measure this machine's ceilings instead: byte multiply-accumulates and memory copies
    #[arg(long, conflicts_with_all = ["arch", "train"])]
    peak: bool,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    weights: HeldWeights,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer {
    arch: String,
    input: String,
    threads: usize,
    batch: usize,
    train: bool,
    isa: &'static str,
    median_ms: f64,
    min_ms: f64,
    macs: u64,
    gmacs_per_s: f64,
    peak_rss_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<LayerTime>,
}

/// The time of a layer.
#[derive(Serialize)]
struct LayerTime {
    name: String,
    median_ms: f64,
    macs: u64,
    gmacs_per_s: f64,
    /// Of what this machine's multiply-accumulate instructions can do; above 1 where taps on padding are skipped.
    share_of_peak: f64,
}

/// What `--peak --json` prints.
#[derive(Serialize)]
struct Peak {
    threads: usize,
    isa: &'static str,
    int8_gmacs_per_s: f64,
    copy_gb_per_s: f64,
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let (isa, threads) = self.machine.start()?;
        if self.peak {
            return self.measure_peak(isa, &threads);
        }
        if let Some(path) = &self.model {
            return self.print(&self.time_prediction(
                Predictor::load_with_limit(path, isa, self.weights.limit())?,
                isa,
                &threads,
            )?);
        }
        let arch = self.arch.as_deref().unwrap_or_default();
        let width_1000 = intseg::config::fixed(self.width, 1000) as usize;
        let settings = Settings { width_1000, ..Settings::new(usize::from(self.classes)) };
        let graph = build(arch, &settings)?;
        if self.train {
            return self.print(&self.time_training(graph, isa, &threads)?);
        }
        let model = random_model(&graph, self.seed)?;
        if let Some(path) = &self.save {
            return Ok(intseg::data::image::write_atomically(path, &model)?);
        }
        let predictor = Predictor::open(&model[..], model.len() as u64, Path::new(arch), isa)?;
        drop(model);
        self.print(&self.time_prediction(predictor, isa, &threads)?)
    }

    fn print(&self, answer: &Answer) -> anyhow::Result<()> {
        match self.json {
            true => json(answer),
            false => text(answer.describe()),
        }
    }

    fn answer(&self, arch: String, isa: Isa, threads: &Threads, mut times: Vec<Duration>, macs: u64) -> Answer {
        let (median_ms, min_ms) = (median_ms(&mut times), times[0].as_secs_f64() * 1e3);
        Answer {
            arch,
            input: self.size.to_string(),
            threads: threads.threads(),
            batch: self.batch.into(),
            train: self.train,
            isa: isa.name(),
            median_ms,
            min_ms,
            macs,
            gmacs_per_s: macs as f64 / median_ms / 1e6,
            peak_rss_bytes: peak_memory(),
            layers: Vec::new(),
        }
    }

    fn time_training(&self, graph: Graph, isa: Isa, threads: &Threads) -> anyhow::Result<Answer> {
        let macs = training_macs(&graph, self.size.0)? * u64::from(self.batch);
        let spec = StepSpec {
            size: self.size.0,
            batch: self.batch.into(),
            steps: self.runs as usize,
            bits: Bits::default(),
            seed: self.seed,
        };
        let arch = graph.name.clone();
        let times = training_steps(graph, &spec, isa, threads)?;
        Ok(self.answer(arch, isa, threads, times, macs))
    }

    fn time_prediction(&self, mut predictor: Predictor, isa: Isa, threads: &Threads) -> anyhow::Result<Answer> {
        let [rows, columns] = self.size.0;
        let macs: u64 = predictor.layers(self.size.0)?.iter().map(|layer| layer.macs).sum();
        let bits = intseg_kernels::Dither::new(self.seed, 0, 0, intseg_kernels::Role::Scene);
        let image: Vec<u8> = (0..3 * rows * columns).map(|i| bits.below(i, 256) as u8).collect();
        let mut classes = vec![0; rows * columns];
        let mut times = Vec::new();
        for run in 0..=self.runs {
            if run == 1 {
                // What loading took is over.
                reset_peak_memory();
            }
            let start = Instant::now();
            for _ in 0..self.batch {
                predictor.run(threads, [rows, columns], &image, &mut classes)?;
            }
            times.push(start.elapsed());
        }
        times.remove(0);
        let arch = predictor.metadata().arch.clone();
        let mut answer = self.answer(arch, isa, threads, times, macs * u64::from(self.batch));
        if self.layers {
            let peak = multiply_rate(isa, threads);
            answer.layers = self.time_layers(&mut predictor, threads, &image, &mut classes, peak)?;
        }
        Ok(answer)
    }

    fn time_layers(
        &self,
        predictor: &mut Predictor,
        threads: &Threads,
        image: &[u8],
        classes: &mut [u8],
        peak: f64,
    ) -> anyhow::Result<Vec<LayerTime>> {
        let mut times: Vec<Vec<Duration>> = Vec::new();
        for _ in 0..self.runs {
            for (layer, time) in predictor.run_timed(threads, self.size.0, image, classes)?.into_iter().enumerate() {
                if times.len() <= layer {
                    times.push(Vec::new());
                }
                times[layer].push(time);
            }
        }
        // The resize to the image's size and the choice of the largest logit are no layer of the file.
        let layers = predictor.layers(self.size.0)?.into_iter().map(|layer| (layer.name, layer.macs));
        Ok(layers
            .chain([("(classify)".to_owned(), 0)])
            .zip(&mut times)
            .map(|((name, macs), times)| {
                let median_ms = median_ms(times);
                let gmacs_per_s = macs as f64 / median_ms.max(1e-6) / 1e6;
                LayerTime { name, median_ms, macs, gmacs_per_s, share_of_peak: gmacs_per_s / peak }
            })
            .collect())
    }

    fn measure_peak(&self, isa: Isa, threads: &Threads) -> anyhow::Result<()> {
        let peak = Peak {
            threads: threads.threads(),
            isa: isa.name(),
            int8_gmacs_per_s: multiply_rate(isa, threads),
            copy_gb_per_s: copy_rate(threads),
        };
        match self.json {
            true => json(&peak),
            false => text(format_args!(
                "{} on {} threads: {:.0} G byte multiply-accumulates/s, copies {:.1} GB/s",
                peak.isa, peak.threads, peak.int8_gmacs_per_s, peak.copy_gb_per_s
            )),
        }
    }
}

/// The median in milliseconds; the times are sorted by it.
fn median_ms(times: &mut [Duration]) -> f64 {
    times.sort();
    let middle = times.len() / 2;
    let median = if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2 };
    median.as_secs_f64() * 1e3
}

/// The best of several tries, in units of 10^9 a second.
fn best_rate(mut work: impl FnMut() -> u64) -> f64 {
    let once = |_| {
        let start = Instant::now();
        let amount = work();
        amount as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..7).map(once).fold(0.0, f64::max)
}

fn multiply_rate(isa: Isa, threads: &Threads) -> f64 {
    const ROUNDS: usize = 200_000;
    let tasks = 8 * threads.threads();
    let once = peak::multiply_accumulate(isa, 1) * (ROUNDS * tasks) as u64;
    best_rate(|| {
        threads.run(tasks, &|_, _| {
            peak::multiply_accumulate(isa, ROUNDS);
        });
        once
    })
}

fn copy_rate(threads: &Threads) -> f64 {
    const BYTES: usize = 128 << 20;
    const PIECE: usize = 1 << 20;
    let from = vec![1u8; BYTES];
    let mut to = vec![0u8; BYTES];
    best_rate(|| {
        for_each_piece(threads, &mut to, PIECE, |index, piece, _| {
            piece.copy_from_slice(&from[index * PIECE..][..PIECE])
        });
        BYTES as u64
    })
}

impl Answer {
    fn describe(&self) -> String {
        let work = if self.train { "training step" } else { "prediction" };
        let mut lines = format!(
            "{} {work}, batch {} of {}, {} threads, {}\nmedian {:.2} ms, min {:.2} ms, {}MAC, {:.1} GMAC/s, peak memory {:.0} MB",
            self.arch,
            self.batch,
            self.input,
            self.threads,
            self.isa,
            self.median_ms,
            self.min_ms,
            si(self.macs),
            self.gmacs_per_s,
            self.peak_rss_bytes as f64 / 1e6
        );
        if !self.layers.is_empty() {
            let row = |layer: &LayerTime| {
                let (ms, rate) = (format!("{:.3}", layer.median_ms), format!("{:.1}", layer.gmacs_per_s));
                let share = format!("{:.0} %", 100.0 * layer.share_of_peak);
                vec![layer.name.clone(), ms, si(layer.macs), rate, share]
            };
            let rows: Vec<Vec<String>> = self.layers.iter().map(row).collect();
            lines = format!("{lines}\n\n{}", table(&["layer", "ms", "MACs", "GMAC/s", "of peak"], &rows));
        }
        lines
    }
}
