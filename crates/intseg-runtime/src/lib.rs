//! The intseg model file and its integer-only executor.
//!
//! A model is one file: a graph of folded integer operators, its tensors, and a checksum ([`Model`]). [`Plan`] says
//! for an image's size how much memory a run takes, and [`execute`] runs it in memory that the caller owns: no
//! allocation, no float, no operating system. On a host, `Engine` does all of that behind one call.
//!
//! ```text
//! bytes ─ Model::parse ─► Model ─ Plan::new(h, w) ─► sizes ─► Memory ─ load, execute ─► class map
//! ```
//!
//! ```no_run
//! use intseg_kernels::{Context, Inline, Isa};
//! use intseg_runtime::Engine;
//!
//! # fn main() -> Result<(), Box<dyn core::error::Error>> {
//! let ctx = Context { isa: Isa::detect(), pool: &Inline };
//! let file = std::fs::File::open("best.iseg")?;
//! let len = file.metadata()?.len();
//! let mut engine = Engine::open(file, len, ctx)?;
//! let (image, mut classes) = (vec![128; 3 * 360 * 480], vec![0; 360 * 480]);
//! engine.run(ctx, [360, 480], &image, &mut classes)?;
//! # Ok(())
//! # }
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::float_arithmetic)]

#[cfg(any(test, feature = "std"))]
extern crate std;

#[cfg(feature = "std")]
mod engine;
mod error;
mod execute;
mod model;
#[cfg(feature = "std")]
mod open;
mod plan;
#[cfg(feature = "std")]
pub mod writer;

#[cfg(feature = "std")]
pub use engine::{Engine, EngineError, ReadAt};
pub use error::ModelError;
pub use execute::{Memory, ReadWeights, execute, load};
pub use intseg_kernels::resize::Interpolation;
pub use model::{Conv, Depthwise, Element, Model, Node, Op, Pad, Product, Requantization, Table};
#[cfg(feature = "std")]
pub use open::OpenError;
pub use plan::{Alignment, Destination, Plan, PlanError, Shape, Sizes, Slot};

/// The newest version of the model file that this crate reads; it writes the lowest that a model's nodes need.
pub const VERSION: u32 = 4;
/// What a model file begins with.
pub const MAGIC: [u8; 8] = *b"INTSEG\0\0";
/// The rounding of every requantisation, kept in the file so that a reader can refuse what it does not implement.
pub const ROUNDING: &str = "half_even";
