//! A float reference of an integer training step, for diagnostics.
//!
//! [`Reference::of`] computes a step of a network's graph in float32 from the network's own master weights and batch;
//! [`diagnose`] runs the integer step beside it and says, layer by layer, how far the two agree. It shows which layer
//! suffers from its bits, and computes nothing that training uses. [`conv`] also serves the import of float networks.
#![forbid(unsafe_code)]

pub mod conv;
mod diagnose;
mod loss;
mod maps;
mod norm;
mod step;

pub use diagnose::{Diagnosis, LayerDiagnosis, diagnose};
pub use step::Reference;

use intseg::tensor::Shape;

/// A float tensor, NHWC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map {
    /// `[N, H, W, C]`.
    pub shape: Shape,
    /// `shape.len()` values.
    pub data: Vec<f32>,
}

impl Map {
    /// All zeros.
    pub fn zeros(shape: Shape) -> Self {
        Map { shape, data: vec![0.0; shape.len()] }
    }
}
