//! The commands, one file each.

mod bench;
mod data;
mod demo;
mod eval;
mod export;
mod import;
mod inspect;
mod predict;
mod train;

use clap::Subcommand;

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Train a network on a folder of images and label maps
    Train(train::Train),
    /// Measure a model on a folder of images and label maps
    Eval(eval::Eval),
    /// Segment images
    Predict(predict::Predict),
    /// Write a model for another runtime: C for devices, ONNX, or weights for PyTorch
    Export(export::Export),
    /// Make a float network integer: weights or an ONNX model, and some images
    Import(import::Import),
    /// Show the layers of a model or an architecture
    Inspect(inspect::Inspect),
    /// Time a network on this machine, without data
    Bench(bench::Bench),
    /// Train a tiny network on generated scenes: two minutes from nothing to a picture
    Demo(demo::Demo),
    /// Check a data set, or generate one
    Data(data::Data),
}

impl Command {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Train(train) => train.run(),
            Command::Eval(eval) => eval.run(),
            Command::Predict(predict) => predict.run(),
            Command::Export(export) => export.run(),
            Command::Import(import) => import.run(),
            Command::Inspect(inspect) => inspect.run(),
            Command::Bench(bench) => bench.run(),
            Command::Demo(demo) => demo.run(),
            Command::Data(data) => data.run(),
        }
    }
}
