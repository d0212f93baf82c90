//! `intseg data check`, `intseg data scenes` and `intseg data batches`.

use super::train::weights;
use crate::failure::{Reported, Usage};
use crate::machine::Size;
use crate::output;
use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use intseg::config::Config;
use intseg::data::{Layout, check, scenes};
use intseg::record;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

/// Arguments of `intseg data`.
#[derive(Args)]
#[command(after_help = "Example: intseg data check VOCdevkit/VOC2012")]
pub struct Data {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Read every image and label map, and say what training would meet
    Check(Check),
    /// Write generated scenes in VOC's layout
    Scenes(Scenes),
    /// Write what a training run would see, for another framework
    Batches(Batches),
}

/// A layout as the command line names it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LayoutName {
    /// JPEGImages, SegmentationClass, ImageSets/Segmentation
    Voc,
    /// images/training, annotations/training, and the same for validation
    Ade20k,
    /// images, masks
    Plain,
}

impl From<LayoutName> for Layout {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Voc => Layout::Voc,
            LayoutName::Ade20k => Layout::Ade20k,
            LayoutName::Plain => Layout::Plain,
        }
    }
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  intseg data check VOCdevkit/VOC2012\n  intseg data check photos --classes 5 --json"
)]
struct Check {
    /// The data set's folder
    dir: PathBuf,
    /// Its layout; found out when not given
    #[arg(long, value_enum)]
    layout: Option<LayoutName>,
    /// Number of classes; else that of classes.txt, or what is found
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=255))]
    classes: Option<u16>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Example: intseg data scenes scenes --train 400 --val 40 --size 96x128 --seed 1")]
struct Scenes {
    /// The folder to write to; it must be empty or absent
    out: PathBuf,
    /// Number of scenes to train on
    #[arg(long, value_name = "N", default_value_t = 400)]
    train: usize,
    /// Number of scenes to evaluate on
    #[arg(long, value_name = "N", default_value_t = 40)]
    val: usize,
    /// Rows x columns, 16x16 or more
    #[arg(long, value_name = "HxW", default_value = "96x128")]
    size: Size,
    /// Seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Args)]
#[command(after_help = "Example: intseg data batches --config run.toml --data camvid --initial initial.safetensors | \
python twin.py

The output is one line of JSON (network, schedule, class weights, validation files), then for each step the images,
value - 128 as int8 [N, H, W, 3], and the labels, uint8 [N, H, W], 255 where ignored; then, in the same way, the
batches over which a model that is scored is measured (deploy.batches).")]
struct Batches {
    /// The run's description, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The data set's folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Also write the initial weights there, float32 safetensors
    #[arg(long, value_name = "FILE")]
    initial: Option<PathBuf>,
    /// What train --init would start from: a checkpoint or float weights
    #[arg(long, value_name = "FILE", requires = "initial")]
    init: Option<PathBuf>,
    /// Number of steps; else all of the run's
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Override a key of the configuration, such as train.seed=1 (may be repeated)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The file to write; the standard output when not given
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Data {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::Check(check) => check.run(),
            Action::Scenes(scenes) => scenes.run(),
            Action::Batches(batches) => batches.run(),
        }
    }
}

impl Check {
    fn run(self) -> anyhow::Result<()> {
        let report = check::check(&self.dir, self.layout.map(Layout::from), self.classes.map(usize::from))?;
        match self.json {
            true => output::json(&report)?,
            false => output::text(report.to_string().trim_end())?,
        }
        match report.is_clean() {
            true => Ok(()),
            false => Err(Reported.into()),
        }
    }
}

impl Batches {
    fn run(self) -> anyhow::Result<()> {
        let config = Config::load(&self.config, &self.set)?;
        if let Some(path) = &self.initial {
            let start = self.init.as_deref().map(weights).transpose()?;
            record::initial_weights(&config, &self.data, start, path)?;
        }
        let mut out: Box<dyn Write> = match &self.output {
            None => Box::new(std::io::stdout().lock()),
            Some(path) => Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?),
        };
        let name = self.output.unwrap_or_else(|| "the standard output".into());
        Ok(record::batches(&config, &self.data, self.steps, &mut BufWriter::new(&mut out), &name)?)
    }
}

impl Scenes {
    fn run(self) -> anyhow::Result<()> {
        if self.size.0.iter().any(|&side| !(16..=4096).contains(&side)) {
            return Err(Usage(format!("--size {}: each side must be 16 to 4096", self.size)).into());
        }
        if std::fs::read_dir(&self.out).is_ok_and(|mut files| files.next().is_some()) {
            return Err(Usage(format!("{} is not empty; choose another folder", self.out.display())).into());
        }
        scenes::write(&self.out, [self.train, self.val], self.size.0, self.seed)?;
        let dir = self.out.display();
        output::text(format_args!("{} scenes to train on and {} to evaluate on in {dir}", self.train, self.val))?;
        output::text(format_args!("next: intseg data check {dir}"))
    }
}
