//! Portable versions, for machines without the instruction sets and as what the others are compared to.

pub mod convolution;
pub mod weight_gradient;
