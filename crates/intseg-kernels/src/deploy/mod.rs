//! What deployed models alone need, in the narrowest lanes that are exact: folded batch normalisation of a residual
//! stream, and sums of two tensors.
//!
//! Loops here end in `max` and `min` rather than `clamp`: the panic that `clamp` holds for crossed bounds keeps the
//! compiler from vectorising, which costs a factor of four to nine.

mod add;
mod affine;

pub use add::add;
pub use affine::affine;
