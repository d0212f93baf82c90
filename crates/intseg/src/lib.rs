//! Training of semantic-segmentation networks with integers only.
#![forbid(unsafe_code)]

pub mod buffers;
pub mod graph;
pub mod networks;
pub mod ops;
pub mod parameter;
pub mod tensor;
