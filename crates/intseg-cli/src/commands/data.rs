//! `intseg data check` and `intseg data scenes`.

use crate::failure::{Reported, Usage};
use crate::machine::Size;
use crate::output;
use clap::{Args, Subcommand, ValueEnum};
use intseg::data::{Layout, check, scenes};
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

impl Data {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::Check(check) => check.run(),
            Action::Scenes(scenes) => scenes.run(),
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
