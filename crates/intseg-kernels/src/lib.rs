//! Integer kernels for convolutional networks.
//!
//! Every kernel exists once as a portable reference. Where time is spent there are AVX2 and AVX-512 VNNI versions,
//! chosen through [`Isa`] at run time and held bit-equal to the reference by property tests. No floating-point type
//! appears here, and this is the only crate of the workspace that contains `unsafe`.
//!
//! Tensors are plain slices in `[N, H, W, C]` order; weights are `[KH, KW, C_in, C_out]`. The caller owns all memory,
//! scratch included, and can ask beforehand how much a kernel needs. Work is split over a [`Pool`]; because integer
//! sums do not depend on their order, results never depend on the number of threads.
//!
//! ```text
//! u8 activations ─┐
//!                 ├─ conv ─► i32 sums ─ batch_norm | requantize ─► u8 activations ─► …
//! i8 weights ─────┘
//! ```
//!
//! ```
//! use intseg_kernels::{Context, Conv2d, Convolution, Direction, Input, Weights};
//!
//! // A 3 × 3 box filter of one channel over a 2 × 2 image, with a border of zeros.
//! let [one, three] = [[1; 2], [3; 2]];
//! let (stride, dilation, padding, kernel) = (one, one, one, three);
//! let geometry = Conv2d { batch: 1, in_h: 2, in_w: 2, c_in: 1, c_out: 1, kernel, stride, dilation, padding };
//! let plan = Convolution { geometry, direction: Direction::Forward, signed: false };
//! let ctx = Context::reference();
//! let (mut sums, mut scratch) = ([0; 4], vec![0; plan.scratch_len(ctx)]);
//! let weights = Weights { raw: &[1; 9], packed: &[] };
//! plan.run(ctx, &mut sums, Input::U8(&[1, 2, 3, 4]), weights, &mut scratch);
//! assert_eq!(sums, [10; 4]);
//! ```
#![no_std]
#![deny(clippy::float_arithmetic)]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod accumulate;
pub mod average_pool;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_has_atomic = "64")]
pub mod batch_norm;
pub mod bytes;
pub mod conv;
pub mod deploy;
pub mod dither;
mod interleave;
pub mod isa;
pub mod large_pages;
pub mod masters;
pub mod max_pool;
pub mod peak;
pub mod pool;
pub mod requantize;
pub mod resize;
pub mod round;
mod scalar;
pub mod sgd;
pub mod softmax;
#[cfg(test)]
mod testing;
pub mod vector;

pub use conv::{
    Addend, Conv2d, Convolution, Depthwise, Direction, Input, Line, Output, OutputData, Requantizer, Streamed,
    WeightGradient, Weights,
};
pub use dither::{Dither, Role};
pub use isa::Isa;
pub use pool::{Inline, Pool};

/// What every kernel needs to know about the machine: the instruction set to use and the threads to spread over.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The instruction set whose kernels run.
    pub isa: Isa,
    /// The threads that share the work.
    pub pool: &'a dyn Pool,
}

impl Context<'static> {
    /// One thread, portable code: what a device has, and what tests compare against.
    pub fn reference() -> Self {
        Context { isa: Isa::Scalar, pool: &Inline }
    }
}
