//! Training of semantic-segmentation networks with integers only.
#![forbid(unsafe_code)]
#![deny(clippy::float_arithmetic)]

pub mod bench;
pub mod buffers;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod evaluate;
pub mod fold;
pub mod graph;
pub mod infer;
pub mod loss;
pub mod metrics;
pub mod network;
pub mod networks;
pub mod ops;
pub mod parameter;
pub mod predict;
pub mod predictor;
pub mod run;
pub mod schedule;
pub mod summary;
pub mod tensor;
pub mod threads;
