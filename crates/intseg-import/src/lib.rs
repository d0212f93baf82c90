//! Float checkpoints and ONNX models made integer.
//!
//! ```text
//! .pth .safetensors .npz ─ read ─► Weights ─┐
//!                                           ├─► FloatGraph ─ quantise, calibrated on images ─► model file
//! .onnx ─────────────────── read ───────────┘
//! ```
//!
//! This is the edge where the world hands floats over, and the one library crate that computes with them; the crates
//! that train and run networks stay without.
#![forbid(unsafe_code)]

pub mod graph;
pub mod onnx;
pub mod read;
pub mod tensor;
