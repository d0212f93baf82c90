//! intseg-kernels
