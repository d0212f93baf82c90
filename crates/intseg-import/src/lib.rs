//! Float checkpoints and ONNX models made integer.
//!
//! ```text
//! .pth .safetensors .npz ─ read ─► Weights ─┐
//!                                           ├─► FloatGraph ─ quantise, calibrated on images ─► model file
//! .onnx ─────────────────── read ───────────┘
//! ```
//!
//! ```no_run
//! use intseg_import::{graph::Normalization, onnx::read_graph, read::read_weights};
//! use std::path::Path;
//!
//! # fn main() -> Result<(), intseg_import::read::ReadError> {
//! let weights = read_weights(Path::new("fcn.pth"))?;
//! println!("{} tensors", weights.len());
//! let graph = read_graph(Path::new("deeplab.onnx"), Normalization::IMAGENET)?;
//! println!("{} nodes, upsampled by {:?}", graph.nodes.len(), graph.upsampling);
//! # Ok(())
//! # }
//! ```
//!
//! This is the edge where the world hands floats over, and the one library crate that computes with them; the crates
//! that train and run networks stay without.
#![forbid(unsafe_code)]

pub mod arch;
pub mod export;
pub mod float;
pub mod function;
pub mod graph;
mod names;
pub mod onnx;
pub mod quantize;
pub mod read;
pub mod start;
pub mod tensor;
