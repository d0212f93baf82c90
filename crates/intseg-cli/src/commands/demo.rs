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
    /// Number of scenes to train on
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u32).range(16..=100_000))]
    scenes: u32,
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
/// Scenes to evaluate on while training.
const VALIDATION: usize = 40;
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
        self.clear()?;
        let scenes = [self.scenes as usize, VALIDATION];
        eprintln!("drawing {} scenes into {}", scenes[0] + scenes[1], data.display());
        scenes::write(&data, scenes, SIZE, self.seed)?;
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
    fn clear(&self) -> anyhow::Result<()> {
        let out = self.out.display();
        // What a demo writes, and for what is deleted a file that tells it from somebody's own folder.
        let known = ["scenes", "run", "masks", "scenes.png", "curve.svg"];
        let files = std::fs::read_dir(&self.out).into_iter().flatten().flatten();
        if let Some(other) = files.map(|file| file.file_name()).find(|name| !known.iter().any(|known| name == known)) {
            let message = format!("{out} holds {other:?}, which no demo wrote; choose another folder with --out");
            return Err(Usage(message).into());
        }
        for (name, mark) in [("scenes", "classes.txt"), ("run", "config.toml")] {
            let folder = self.out.join(name);
            if folder.exists() && !folder.join(mark).exists() {
                let folder = folder.display();
                let message =
                    format!("{folder} is no earlier demo's ({mark} is missing); choose another folder with --out");
                return Err(Usage(message).into());
            }
        }
        for folder in ["scenes", "run"].map(|name| self.out.join(name)).iter().filter(|folder| folder.exists()) {
            std::fs::remove_dir_all(folder).with_context(|| format!("cannot delete {}", folder.display()))?;
        }
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot create {out}"))
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
            Event::Started { .. } | Event::Saved { .. } | Event::Initialized(_) | Event::Diagnosed { .. } => {}
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
