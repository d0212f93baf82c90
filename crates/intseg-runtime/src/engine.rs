//! A model with memory of its own, for hosts.

use crate::error::ModelError;
use crate::execute::{Memory, execute, load};
use crate::model::Model;
use crate::plan::{Plan, Sizes, Slot};
use core::fmt;
use intseg_kernels::resize::Tap;
use intseg_kernels::{Context, Isa, Line};
use std::collections::TryReserveError;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

/// A loaded model that runs on images of any size. It plans anew when the size changes.
pub struct Engine {
    file: Vec<u8>,
    isa: Isa,
    threads: usize,
    slots: Vec<Slot>,
    /// The size that `slots` and the buffers are for.
    size: Option<[usize; 2]>,
    sizes: Sizes,
    loaded: bool,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    words: Vec<i16>,
    scratch: Vec<i32>,
    sums: Vec<i64>,
    taps: Vec<Tap>,
    packed: Vec<Line>,
    multipliers: Vec<i32>,
    biases: Vec<i64>,
}

/// Why an image cannot be classified: the plan's reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError(String);

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for EngineError {}

impl Engine {
    /// Takes a model file's bytes and checks them.
    ///
    /// # Errors
    /// When the bytes are no usable model.
    pub fn new(file: Vec<u8>) -> Result<Self, ModelError> {
        let nodes = Model::parse(&file)?.len();
        Ok(Engine {
            file,
            isa: Isa::Scalar,
            threads: 0,
            slots: std::vec![Slot::default(); nodes],
            size: None,
            sizes: Sizes::default(),
            loaded: false,
            buffers: Buffers::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> Model<'_> {
        Model::parse_again(&self.file).expect("the bytes were accepted before")
    }

    /// The memory that the last run took.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Classifies each pixel of an image, `[h, w, 3]` RGB, into `class_map`, `[h, w]`.
    ///
    /// # Errors
    /// When the image's size cannot be used.
    ///
    /// # Panics
    /// When a slice has another length than the size says.
    pub fn run(
        &mut self,
        ctx: Context,
        size: [usize; 2],
        image: &[u8],
        class_map: &mut [u8],
    ) -> Result<(), EngineError> {
        self.run_with(ctx, size, image, class_map, |_, _, _| {})
    }

    /// As [`Engine::run`]; `tap` sees each node's output when it is done.
    ///
    /// # Errors
    /// As [`Engine::run`].
    ///
    /// # Panics
    /// As [`Engine::run`].
    pub fn run_with(
        &mut self,
        ctx: Context,
        size: [usize; 2],
        image: &[u8],
        class_map: &mut [u8],
        tap: impl FnMut(usize, &Slot, &Memory),
    ) -> Result<(), EngineError> {
        let model = Model::parse_again(&self.file).expect("the bytes were accepted before");
        if self.isa != ctx.isa || self.threads != ctx.pool.threads() {
            (self.isa, self.threads, self.size, self.loaded) = (ctx.isa, ctx.pool.threads(), None, false);
        }
        if self.size != Some(size) {
            self.size = None;
            let plan = Plan::new(&model, size, ctx, &mut self.slots).map_err(|e| EngineError(e.to_string()))?;
            self.sizes = plan.sizes;
            self.buffers
                .grow(&plan.sizes)
                .map_err(|e| EngineError(format!("an image of {}×{}: {e}", size[0], size[1])))?;
            self.size = Some(size);
        }
        let plan = Plan { slots: &self.slots, sizes: self.sizes };
        let mut memory = self.buffers.memory();
        if !self.loaded {
            load(&model, &plan, ctx, &mut memory);
            self.loaded = true;
        }
        execute(&model, &plan, ctx, &mut memory, image, class_map, tap);
        Ok(())
    }
}

impl Buffers {
    /// Makes room. Packed weights and constants keep their content: their sizes do not depend on the image.
    fn grow(&mut self, sizes: &Sizes) -> Result<(), TryReserveError> {
        fn resize<T: Clone>(values: &mut Vec<T>, len: usize, value: T) -> Result<(), TryReserveError> {
            values.try_reserve_exact(len.saturating_sub(values.len()))?;
            values.resize(len, value);
            Ok(())
        }
        resize(&mut self.bytes, sizes.bytes, 0)?;
        resize(&mut self.words, sizes.words, 0)?;
        resize(&mut self.scratch, sizes.scratch, 0)?;
        resize(&mut self.sums, sizes.sums, 0)?;
        resize(&mut self.taps, sizes.taps, Tap::default())?;
        resize(&mut self.packed, sizes.packed, Line::ZERO)?;
        resize(&mut self.multipliers, sizes.multipliers, 0)?;
        resize(&mut self.biases, sizes.biases, 0)
    }

    fn memory(&mut self) -> Memory<'_> {
        let Buffers { bytes, words, scratch, sums, taps, packed, multipliers, biases } = self;
        Memory { bytes, words, scratch, sums, taps, packed, multipliers, biases }
    }
}
