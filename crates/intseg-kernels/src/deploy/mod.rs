//! What deployed models alone need, in the narrowest lanes that are exact: folded batch normalisation of a residual
//! stream, sums and products of two tensors, and functions of one byte.
//!
//! Loops here end in `max` and `min` rather than `clamp`: the panic that `clamp` holds for crossed bounds keeps the
//! compiler from vectorising, which costs a factor of four to nine.

mod add;
mod affine;
mod product;
mod table;

pub use add::add;
pub use affine::affine;
pub use product::Product;
pub use table::look_up;
