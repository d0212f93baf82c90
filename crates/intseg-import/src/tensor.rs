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

impl FloatTensor {
    /// The values of a tensor of four dimensions with its dimensions in another order: weights as `[KH, KW, C_in, C_out]`,
    /// where `order` says which of the file's dimensions each is.
    ///
    /// # Panics
    /// When the tensor does not have four dimensions.
    pub fn permuted(&self, order: [usize; 4]) -> Vec<f32> {
        let mut strides = [1; 4];
        for axis in (0..3).rev() {
            strides[axis] = strides[axis + 1] * self.shape[axis + 1];
        }
        let (sizes, strides) = (order.map(|axis| self.shape[axis]), order.map(|axis| strides[axis]));
        let mut data = Vec::with_capacity(self.data.len());
        for y in 0..sizes[0] {
            for x in 0..sizes[1] {
                for input in 0..sizes[2] {
                    let start = y * strides[0] + x * strides[1] + input * strides[2];
                    data.extend((0..sizes[3]).map(|output| self.data[start + output * strides[3]]));
                }
            }
        }
        data
    }
}

/// A checkpoint's tensors by name.
pub type Weights = BTreeMap<String, FloatTensor>;
