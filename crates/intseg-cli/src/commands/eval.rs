//! `intseg eval`.

use super::data::LayoutName;
use crate::machine::{HeldWeights, Machine};
use crate::output;
use crate::progress::Progress;
use anyhow::anyhow;
use clap::{Args, ValueEnum};
use intseg::data::{DataError, Dataset, Layout};
use intseg::evaluate::{EvaluateError, evaluate};
use intseg::metrics::{Absent, ConfusionMatrix, Report};
use intseg::predictor::Predictor;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `intseg eval`.
#[derive(Args)]
#[command(after_help = "Examples:
  intseg eval --model runs/voc/best.iseg --data VOCdevkit/VOC2012
  intseg eval --model best.iseg --data photos --split test --json")]
pub struct Eval {
    /// A model file
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// The data set's folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The split to measure on
    #[arg(long, value_name = "NAME", default_value = "val")]
    split: String,
    /// The folder's layout; found out when not given
    #[arg(long, value_enum)]
    layout: Option<LayoutName>,
    /// How classes that occur neither in truth nor in prediction enter a mean
    #[arg(long, value_enum, default_value = "skip")]
    absent: AbsentName,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    weights: HeldWeights,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// [`Absent`] as the command line names it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum AbsentName {
    /// They are left out
    Skip,
    /// They count as 0
    Zero,
}

/// The score of a class.
#[derive(Serialize)]
struct ClassScore {
    name: String,
    iou: Option<f64>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer {
    miou: f64,
    pixel_accuracy: f64,
    mean_accuracy: f64,
    fw_iou: f64,
    classes: Vec<ClassScore>,
    images: usize,
    seconds: f64,
    /// `confusion[truth][prediction]`, in pixels.
    confusion: Vec<Vec<u64>>,
}

impl Eval {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let (isa, threads) = self.machine.start()?;
        let mut predictor = Predictor::load_with_limit(&self.model, isa, self.weights.limit())?;
        let dataset = Dataset::open(&self.data, self.layout.map(Layout::from))?;
        let entries = dataset.split(&self.split)?;
        let mut progress = Progress::new(entries.len() as u64);
        let start = Instant::now();
        predictor.check_classes(&dataset)?;
        let classes = predictor.metadata().classes.len();
        let (engine, ctx) = predictor.engine(&threads);
        let matrix = evaluate(engine, ctx, &dataset, &entries, classes, |done| {
            progress
                .at(done as u64, &|| format!("images, {:.1} a second", done as f64 / start.elapsed().as_secs_f64()));
        });
        progress.finish();
        let seconds = start.elapsed().as_secs_f64();
        let absent = match self.absent {
            AbsentName::Skip => Absent::Skip,
            AbsentName::Zero => Absent::Zero,
        };
        let matrix = matrix.map_err(explain)?;
        let answer = answer(&matrix, matrix.report(absent), &predictor.metadata().classes, entries.len(), seconds);
        match self.json {
            true => output::json(&answer),
            false => output::text(answer.describe()),
        }
    }
}

/// A label out of range has another mend here than in training.
fn explain(error: EvaluateError) -> anyhow::Error {
    match error {
        EvaluateError::Data(DataError::LabelRange { path, value, classes, .. }) => anyhow!(
            "{}: label value {value} is none of the model's {classes} classes; use the data set that the model was trained for, or mark the pixel as ignored",
            path.display()
        ),
        other => other.into(),
    }
}

fn answer(matrix: &ConfusionMatrix, report: Report, names: &[String], images: usize, seconds: f64) -> Answer {
    let classes = names.iter().zip(&report.iou).map(|(name, iou)| ClassScore { name: name.clone(), iou: *iou });
    Answer {
        miou: report.miou,
        pixel_accuracy: report.pixel_accuracy,
        mean_accuracy: report.mean_accuracy,
        fw_iou: report.fw_iou,
        classes: classes.collect(),
        images,
        seconds,
        confusion: matrix.counts.chunks(matrix.classes).map(<[u64]>::to_vec).collect(),
    }
}

impl Answer {
    fn describe(&self) -> String {
        let iou = |class: &ClassScore| class.iou.map_or("absent".to_owned(), |iou| format!("{iou:.4}"));
        let rows: Vec<Vec<String>> = self.classes.iter().map(|class| vec![class.name.clone(), iou(class)]).collect();
        format!(
            "{}\n\nmIoU {:.4}, pixel accuracy {:.4}, mean accuracy {:.4}, frequency-weighted IoU {:.4}\n{} images in {:.1} s",
            output::table(&["class", "IoU"], &rows),
            self.miou,
            self.pixel_accuracy,
            self.mean_accuracy,
            self.fw_iou,
            self.images,
            self.seconds
        )
    }
}
