//! `intseg train`.

use crate::failure::{Interrupted, Usage};
use crate::machine::{Machine, peak_memory};
use crate::output;
use crate::progress::{Progress, time};
use anyhow::Context;
use clap::Args;
use intseg::checkpoint::Checkpoint;
use intseg::config::Config;
use intseg::data::{Batch, Dataset};
use intseg::init::Start;
use intseg::network::{Network, Recipe};
use intseg::run::{CHECKPOINT, Diagnosed, Diagnostics, Extras, LOG, RunOptions, Summary, train_with};
use intseg_import::read::{Format, read_weights};
use intseg_import::start::start;
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of `intseg train`.
#[derive(Args)]
#[command(after_help = "Examples:
  intseg train --config configs/voc-fcn8s.toml --data VOCdevkit/VOC2012 --out runs/voc
  intseg train --config configs/voc-fcn8s.toml --data VOCdevkit/VOC2012 --out runs/voc --resume
  intseg train --config configs/camvid-fcn8s.toml --data camvid --out runs/a --set train.lr=0.05 --set train.batch=4
  intseg train --config run.toml --data camvid --out runs/b --diagnose 200
  intseg train --config fine.toml --data camvid --out runs/fine --init runs/coarse/checkpoint.safetensors
  intseg train --config voc.toml --data VOCdevkit/VOC2012 --out runs/vgg --init vgg16_bn.pth
  intseg train --config fine.toml --data camvid --out runs/tuned --init imported.iseg")]
pub struct Train {
    /// The run's description, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The data set's folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The folder for best.iseg, last.iseg, the checkpoint and the log
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Continue the run in --out
    #[arg(long)]
    resume: bool,
    /// Start again in --out although it holds a run, which is deleted
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Start from trained weights: another run's checkpoint.safetensors, a model (.iseg) that was trained or imported with
    /// --arch, or float weights (.pth, .pt, .safetensors, .npz, .onnx) under torchvision's or the network's own names;
    /// tensors are taken where they fit, the rest is reported
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    init: Option<PathBuf>,
    /// Every STEPS steps, compare the step with a float reference, layer by layer, in the log and on the screen; slow, and
    /// changes nothing
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    diagnose: Option<u64>,
    /// Override a key of the configuration, such as train.lr=0.01 (may be repeated)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed; the same as --set train.seed=N
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    machine: Machine,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    finished: bool,
    step: u64,
    best_miou: Option<f64>,
    best: &'a Path,
    last: &'a Path,
    seconds: f64,
    peak_rss_bytes: u64,
}

/// The files that a run leaves in its folder.
const RUN_FILES: [&str; 5] = ["best.iseg", "last.iseg", CHECKPOINT, LOG, "config.toml"];

/// What a run can start from, whatever wrote the file.
pub fn weights(path: &Path) -> anyhow::Result<Start> {
    let checkpoint = match Format::of(path) {
        None if is_model(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok(Start::from_model(&bytes, path)?);
        }
        None => Checkpoint::open(path)?,
        // Other programs write safetensors files too.
        Some(Format::Safetensors) if let Ok(checkpoint) = Checkpoint::open(path) => checkpoint,
        Some(_) => return Ok(start(read_weights(path)?)),
    };
    Ok(Start::from_checkpoint(checkpoint)?)
}

/// Whether a file begins as a deployable model does.
fn is_model(path: &Path) -> bool {
    let mut magic = [0; intseg_runtime::MAGIC.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == intseg_runtime::MAGIC
}

impl Train {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let mut set = self.set.clone();
        set.extend(self.seed.map(|seed| format!("train.seed={seed}")));
        let config = Config::load(&self.config, &set)?;
        let (isa, threads) = self.machine.start()?;
        drop(threads);
        // A mistake in the data is found before an old run is touched.
        let dataset = Dataset::open(&self.data, config.data.layout)?;
        dataset.split(&config.data.train)?;
        let init = self.init.as_deref().map(weights).transpose()?;
        self.prepare_out()?;
        let options = RunOptions {
            data: self.data.clone(),
            out: self.out.clone(),
            resume: self.resume,
            threads: self.machine.threads,
            isa,
            stop: crate::interrupt::flag()?,
        };
        let mut progress = Progress::new(config.train.steps);
        let mut step = |network: &mut Network, batch: &Batch, recipe: &Recipe| {
            let (outcome, diagnosis) = intseg_reference::diagnose(network, batch, recipe);
            let details = serde_json::to_value(&diagnosis).unwrap_or_default();
            Diagnosed { outcome, summary: diagnosis.to_string(), details }
        };
        let diagnostics = self.diagnose.map(|every| Diagnostics { every, step: &mut step });
        let extras = Extras { init, diagnostics };
        let trained = train_with(&config, &options, extras, &mut |event| progress.training(event));
        progress.finish();
        let summary = trained.with_context(|| format!("training into {} failed", self.out.display()))?;
        self.tell(&summary)?;
        if summary.finished { Ok(()) } else { Err(Interrupted.into()) }
    }

    /// Refuses a folder with a run in it, unless told what to do with it.
    fn prepare_out(&self) -> anyhow::Result<()> {
        let found: Vec<PathBuf> = RUN_FILES.iter().map(|name| self.out.join(name)).filter(|p| p.exists()).collect();
        if self.resume || found.is_empty() {
            return Ok(());
        }
        if !self.overwrite {
            let out = self.out.display();
            let message = format!(
                "{out} already holds a run; continue it with --resume, delete it with --overwrite, or choose another --out"
            );
            return Err(Usage(message).into());
        }
        found.iter().try_for_each(|path| {
            std::fs::remove_file(path).with_context(|| format!("cannot delete {}", path.display()))
        })
    }

    fn tell(&self, summary: &Summary) -> anyhow::Result<()> {
        let Summary { finished, step, best_miou, best, last, seconds } = summary;
        if self.json {
            return output::json(&Answer {
                finished: *finished,
                step: *step,
                best_miou: *best_miou,
                best,
                last,
                seconds: *seconds,
                peak_rss_bytes: peak_memory(),
            });
        }
        let took = time(Duration::from_secs_f64(*seconds));
        if !finished {
            return output::text(format_args!(
                "stopped at step {step} after {took}; continue with the same command and --resume"
            ));
        }
        let score = best_miou.map_or(String::new(), |miou| format!(", best mIoU {miou:.4}"));
        output::text(format_args!("trained {step} steps in {took}{score}"))?;
        output::text(format_args!("next: intseg eval --model {} --data {}", best.display(), self.data.display()))
    }
}
