//! Integer models as files of float frameworks: ONNX with quantised operators, and dequantised weights.
//!
//! ```text
//! Model ─┬─ onnx: DequantizeLinear, operator, QuantizeLinear ─► what ONNX Runtime and its kin run in integers
//!        └─ safetensors: weights · scale ────────────────────► what PyTorch loads
//! ```

mod channel;
pub mod onnx;
pub mod safetensors;

/// The largest magnitude of an exponent: products of scales stay normal 32-bit floats.
const MAX_EXPONENT: u32 = 40;

/// Why a model cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The model cannot run at the size.
    #[error("the model cannot run on an image of {}×{}: {problem}", size[1], size[0])]
    Size {
        /// Rows and columns.
        size: [usize; 2],
        /// Why.
        problem: String,
    },
    /// A layer cannot be written as asked.
    #[error("layer {name}: {problem}")]
    Layer {
        /// Its name.
        name: String,
        /// Why.
        problem: &'static str,
    },
    /// The file would be larger than its format allows.
    #[error("the model takes {bytes} bytes, and an ONNX file holds 2 GB; use a narrower model")]
    TooLarge {
        /// What it takes.
        bytes: usize,
    },
    /// The format's own library refused.
    #[error("the weights cannot be written: {0}")]
    Safetensors(#[from] ::safetensors::SafeTensorError),
}

/// `2^exponent`, exact where a 64-bit float has it.
fn power(exponent: i32) -> f64 {
    2f64.powi(exponent)
}
