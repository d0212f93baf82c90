//! Training of semantic-segmentation networks with integers only.
#![forbid(unsafe_code)]

pub mod buffers;
pub mod config;
pub mod data;
pub mod graph;
pub mod metrics;
pub mod networks;
pub mod ops;
pub mod parameter;
pub mod schedule;
pub mod tensor;
