//! ONNX models as [`FloatGraph`](crate::graph::FloatGraph)s.

pub mod proto;
pub(crate) mod tensor;
