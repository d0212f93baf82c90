//! Training of semantic-segmentation networks with integers only.
//!
//! ```text
//! images, labels ─ data ─► Batch ─► Network::train_step ─► masters ─ fold ─► model file ─► intseg_runtime::Engine
//!                                   forward, loss, backward, update
//! ```
//!
//! ```
//! use intseg::{config::Config, data::scenes, run};
//! use intseg_kernels::Isa;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! scenes::write(&folder.path().join("scenes"), [8, 2], [48, 64], 1)?;
//! let set = ["network.arch=fcn-tiny", "network.classes=6", "augment.crop=[32, 32]", "train.steps=2"];
//! let config = Config::parse("", "run.toml".as_ref(), &set.map(String::from))?;
//! let options = run::RunOptions {
//!     data: folder.path().join("scenes"),
//!     out: folder.path().join("run"),
//!     resume: false,
//!     threads: 0,
//!     isa: Isa::detect(),
//!     stop: Default::default(),
//! };
//! let summary = run::train(&config, &options, &mut |_| {})?;
//! assert!(summary.finished && summary.best.is_file());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![deny(clippy::float_arithmetic)]

pub mod bench;
pub mod buffers;
pub mod checkpoint;
mod class_weights;
pub mod config;
pub mod data;
mod errors;
pub mod evaluate;
pub mod export;
pub mod fold;
pub mod frozen;
pub mod graph;
pub mod infer;
pub mod init;
pub mod loss;
pub mod masters;
pub mod metrics;
pub mod network;
pub mod networks;
pub mod ops;
pub mod parameter;
pub mod predict;
pub mod predictor;
pub mod record;
pub mod run;
pub mod schedule;
pub mod summary;
pub mod tensor;
pub mod threads;
pub mod unfold;
