//! `intseg demo`: from nothing to a picture in two minutes.

use crate::failure::{Interrupted, Usage};
use crate::machine::Machine;
use crate::output;
use crate::pictures::{curve, mosaic, smooth};
use crate::progress::{Progress, time};
use anyhow::Context;
use clap::Args;
use intseg::config::Config;
use intseg::data::image::{colourize, write_rgb};
use intseg::data::{Sample, palette, scenes};
use intseg::metrics::{Absent, ConfusionMatrix};
use intseg::predictor::Predictor;
use intseg::run::{Event, RunOptions, Summary, train};
use intseg::threads::Threads;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `intseg demo`.
#[derive(Args)]
#[command(after_help = "Example: intseg demo --out demo")]
pub struct Demo {
    /// The folder for scenes, model and pictures; what a demo wrote there before is replaced
    #[arg(long, value_name = "DIR", default_value = "demo")]
    out: PathBuf,
    /// Override a key of the configuration, such as train.steps=100 (may be repeated)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of scenes and training
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    machine: Machine,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

/// The demo's configuration.
const CONFIG: &str = include_str!("../../../../configs/demo.toml");
/// Scenes to train on, and to evaluate on while training.
const SCENES: [usize; 2] = [600, 40];
/// Rows and columns of a scene.
const SIZE: [usize; 2] = [96, 128];
/// Scenes that nothing before the last evaluation has seen.
const UNSEEN: u64 = 60;
/// Rows of the picture.
const SHOWN: usize = 6;

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    miou: f64,
    pixel_accuracy: f64,
    seconds: f64,
    picture: &'a Path,
    curve: &'a Path,
    model: &'a Path,
}

/// What a run tells for its curves.
#[derive(Default)]
struct History {
    loss: Vec<(u64, f64)>,
    miou: Vec<(u64, f64)>,
}

impl Demo {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut set = self.set.clone();
        set.push(format!("train.seed={}", self.seed));
        let config = Config::parse(CONFIG, Path::new("configs/demo.toml"), &set)?;
        let (isa, threads) = self.machine.start()?;
        let (data, out) = (self.out.join("scenes"), self.out.join("run"));
        self.clear(&[&data, &out])?;
        eprintln!("drawing {} scenes into {}", SCENES[0] + SCENES[1], data.display());
        scenes::write(&data, SCENES, SIZE, self.seed)?;
        let stop = crate::interrupt::flag()?;
        let options = RunOptions { data, out, resume: false, threads: self.machine.threads, isa, stop };
        let mut history = History::default();
        let summary = fit(&config, &options, &mut history)?;
        let mut predictor = Predictor::load(&summary.best, isa)?;
        let report = self.evaluate(&mut predictor, &threads)?.report(Absent::Skip);
        let (picture, chart) = (self.out.join("scenes.png"), self.out.join("curve.svg"));
        self.draw(&mut predictor, &threads, &picture)?;
        curve(&chart, &smooth(&history.loss, 10), &history.miou)?;
        if self.json {
            return output::json(&Answer {
                miou: report.miou,
                pixel_accuracy: report.pixel_accuracy,
                seconds: start.elapsed().as_secs_f64(),
                picture: &picture,
                curve: &chart,
                model: &summary.best,
            });
        }
        output::text(format_args!(
            "mIoU {:.4}, pixel accuracy {:.4} on {UNSEEN} scenes it never saw, after {} in all\n\
             input | truth | prediction: {}\nloss and mIoU: {}\n\
             next: intseg predict --model {} --input {} --output {} --overlay",
            report.miou,
            report.pixel_accuracy,
            time(start.elapsed()),
            picture.display(),
            chart.display(),
            summary.best.display(),
            options.data.join("JPEGImages").display(),
            self.out.join("masks").display()
        ))
    }

    /// Takes an earlier demo away; a folder with something else in it is refused.
    fn clear(&self, folders: &[&Path]) -> anyhow::Result<()> {
        let known = ["scenes", "run", "masks", "scenes.png", "curve.svg"];
        if let Ok(files) = std::fs::read_dir(&self.out) {
            for file in files.flatten() {
                if !known.iter().any(|name| file.file_name() == *name) {
                    let (out, name) = (self.out.display(), file.file_name());
                    let message =
                        format!("{out} holds {name:?}, which no demo wrote; choose another folder with --out");
                    return Err(Usage(message).into());
                }
            }
        }
        for folder in folders.iter().filter(|folder| folder.exists()) {
            std::fs::remove_dir_all(folder).with_context(|| format!("cannot delete {}", folder.display()))?;
        }
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot create {}", self.out.display()))
    }

    /// The scene of a number, from a seed that training does not use.
    fn unseen(&self, number: u64) -> Sample {
        scenes::scene(SIZE, self.seed.wrapping_add(1), number)
    }

    fn evaluate(&self, predictor: &mut Predictor, threads: &Threads) -> anyhow::Result<ConfusionMatrix> {
        let mut matrix = ConfusionMatrix::new(scenes::CLASSES.len());
        for number in 0..UNSEEN {
            let Sample { image, label } = self.unseen(number);
            matrix.add(&predictor.predict(threads, &image)?.values, &label.values)?;
        }
        Ok(matrix)
    }

    fn draw(&self, predictor: &mut Predictor, threads: &Threads, path: &Path) -> anyhow::Result<()> {
        let colours = palette::voc(scenes::CLASSES.len());
        let mut rows = Vec::with_capacity(SHOWN);
        for number in 0..SHOWN as u64 {
            let Sample { image, label } = self.unseen(number);
            let prediction = predictor.predict(threads, &image)?;
            rows.push(vec![image, colourize(&label, &colours), colourize(&prediction, &colours)]);
        }
        Ok(write_rgb(path, &mosaic(&rows, 2))?)
    }
}

fn fit(config: &Config, options: &RunOptions, history: &mut History) -> anyhow::Result<Summary> {
    let mut progress = Progress::new(config.train.steps);
    let trained = train(config, options, &mut |event| {
        progress.training(event);
        match event {
            Event::Step { step, loss, .. } => history.loss.push((*step, *loss)),
            Event::Evaluated { step, report } => history.miou.push((*step, report.miou)),
            Event::Started { .. } | Event::Saved { .. } => {}
        }
    });
    progress.finish();
    let summary = trained?;
    if !summary.finished {
        eprintln!("stopped at step {}", summary.step);
        return Err(Interrupted.into());
    }
    Ok(summary)
}
