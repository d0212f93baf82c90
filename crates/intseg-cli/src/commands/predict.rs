//! `intseg predict`.

use crate::failure::Reported;
use crate::machine::{HeldWeights, Machine};
use crate::output;
use crate::progress::Progress;
use clap::Args;
use intseg::predict::{Request, predict};
use intseg::predictor::Predictor;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `intseg predict`.
#[derive(Args)]
#[command(after_help = "Examples:
  intseg predict --model runs/voc/best.iseg --input photo.jpg --output masks --overlay
  intseg predict --model best.iseg --input photos/ --output masks --json")]
pub struct Predict {
    /// A model file
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// An image, or a folder of JPEG and PNG images (may be repeated)
    #[arg(long, value_name = "FILE|DIR", required = true)]
    input: Vec<PathBuf>,
    /// The folder for the masks: one indexed PNG of the image's name each
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Also write NAME_overlay.png: the image with the classes' colours over it
    #[arg(long)]
    overlay: bool,
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
    masks: Vec<PathBuf>,
    failed: Vec<String>,
}

impl Predict {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let (isa, threads) = self.machine.start()?;
        let mut predictor = Predictor::load_with_limit(&self.model, isa, self.weights.limit())?;
        let request = Request { inputs: &self.input, output: &self.output, overlay: self.overlay };
        let mut progress = None;
        let mut answer = Answer { masks: Vec::new(), failed: Vec::new() };
        let result = predict(&mut predictor, &threads, &request, &mut |done, total, outcome| {
            let progress = progress.get_or_insert_with(|| Progress::new(total as u64));
            match outcome {
                Ok(mask) => answer.masks.push(mask),
                Err(error) => {
                    progress.line(&format!("error: {error}"));
                    answer.failed.push(error.to_string());
                }
            }
            progress.at(done as u64, &|| "images".to_owned());
        });
        if let Some(progress) = progress {
            progress.finish();
        }
        result?;
        let (written, failed) = (answer.masks.len(), answer.failed.len());
        match self.json {
            true => output::json(&answer)?,
            false => {
                output::text(format_args!("{written} masks written to {}, {failed} failed", self.output.display()))?
            }
        }
        if failed == 0 { Ok(()) } else { Err(Reported.into()) }
    }
}
