//! Tensors of a float checkpoint.

use std::collections::BTreeMap;

/// A dense tensor, rows first, as the file's framework lays it out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FloatTensor {
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` values, all finite.
    pub data: Vec<f32>,
}

/// A checkpoint's tensors by name.
pub type Weights = BTreeMap<String, FloatTensor>;
