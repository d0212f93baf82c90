//! AVX-512 with the `vpdpbusd` dot product: four products of an unsigned and a signed byte, added to 32 bits without
//! saturation.

pub mod convolution;
pub mod peak;
pub(crate) mod requantize;
pub(crate) mod weight_gradient;
pub(crate) mod winograd;
