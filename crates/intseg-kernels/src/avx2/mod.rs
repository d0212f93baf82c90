//! AVX2: bytes are widened to 16 bits and multiplied with `vpmaddwd`, which is exact. `vpmaddubsw` would saturate.

pub mod convolution;
pub mod peak;
pub(crate) mod weight_gradient;
pub(crate) mod winograd;
