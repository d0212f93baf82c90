//! A model with memory of its own, for hosts.

use crate::error::ModelError;
use crate::execute::{Memory, execute, load, load_constants};
use crate::model::{CHECKSUM, Model};
use crate::open::{OpenError, open};
use crate::plan::{Plan, Sizes, Slot};
use core::fmt;
use intseg_kernels::large_pages::prefer_large_pages;
use intseg_kernels::resize::Tap;
use intseg_kernels::{Context, Isa, Line, bytes};
use std::boxed::Box;
use std::collections::TryReserveError;
use std::format;
use std::io::{self, Read};
use std::string::{String, ToString};
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

/// A loaded model that runs on images of any size. It plans anew when the size changes.
pub struct Engine {
    /// The model file, or the beginning that holds all but its weights.
    file: Vec<u8>,
    /// Bytes of the whole file.
    len: u64,
    /// The instruction set that `buffers` are for, if any yet.
    isa: Option<Isa>,
    threads: usize,
    slots: Vec<Slot>,
    /// The size that `slots` and the buffers are for, and whether every output exists.
    size: Option<([usize; 2], bool)>,
    sizes: Sizes,
    buffers: Buffers,
    /// Bytes of a convolution's packed weights that `buffers` hold, and what reads the others.
    weights_limit: usize,
    read_at: Option<ReadAt>,
}

/// Fills a slice from a file, beginning with this byte of it.
pub type ReadAt = Box<dyn Fn(&mut [u8], u64) -> io::Result<()> + Send + Sync>;

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

/// Why an image cannot be classified: the plan's reason, an instruction set that the weights are not packed for, or weights
/// that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError(String);

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for EngineError {}

impl Engine {
    /// Takes a model file's bytes and checks them. It holds them and the packed weights, and runs on any instruction set;
    /// [`Engine::open`] takes half the memory.
    ///
    /// # Errors
    /// When the bytes are no usable model.
    pub fn new(file: Vec<u8>) -> Result<Self, ModelError> {
        let nodes = Model::parse(&file)?.len();
        let len = file.len() as u64;
        Ok(Self::with(file, len, nodes))
    }

    /// Reads a model file of `len` bytes for the instruction set of `ctx`, which is the only one that it then runs on.
    /// Weights are packed while they are read and kept in that form alone, wherever the instruction set packs them.
    ///
    /// # Errors
    /// When the file cannot be read or is no usable model.
    pub fn open(read: impl Read, len: u64, ctx: Context) -> Result<Self, OpenError> {
        Self::open_with(read, len, ctx, usize::MAX, None)
    }

    /// As [`Engine::open`], but of each convolution's weights no more than `limit` bytes are kept: a run reads the others
    /// with `read_at`, some taps at a time, where the convolution can do that. For weights that are used once an image
    /// this costs the time that the system takes to copy them.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_streaming(
        read: impl Read,
        len: u64,
        ctx: Context,
        limit: usize,
        read_at: ReadAt,
    ) -> Result<Self, OpenError> {
        Self::open_with(read, len, ctx, limit, Some(read_at))
    }

    fn open_with(
        read: impl Read,
        len: u64,
        ctx: Context,
        weights_limit: usize,
        read_at: Option<ReadAt>,
    ) -> Result<Self, OpenError> {
        let (file, packed) = open(read, len, ctx, weights_limit)?;
        let nodes = Model::parse_beginning(&file, len, false)?.len();
        let mut engine = Self::with(file, len, nodes);
        engine.buffers.packed = packed;
        (engine.weights_limit, engine.read_at) = (weights_limit, read_at);
        let Engine { file, buffers, .. } = &mut engine;
        let model = Model::parse_beginning(file, len, false)?;
        let channels = model.nodes().map(|node| node.requantization().map_or(0, |r| r.channels())).sum();
        buffers.multipliers.resize(channels, 0);
        buffers.biases.resize(channels, 0);
        load_constants(&model, &mut buffers.memory());
        engine.isa = Some(ctx.isa);
        Ok(engine)
    }

    fn with(file: Vec<u8>, len: u64, nodes: usize) -> Self {
        Engine {
            file,
            len,
            isa: None,
            threads: 0,
            slots: std::vec![Slot::default(); nodes],
            size: None,
            sizes: Sizes::default(),
            buffers: Buffers::default(),
            weights_limit: usize::MAX,
            read_at: None,
        }
    }

    /// The model. Of an engine that was opened for an instruction set that packs weights they are empty.
    pub fn model(&self) -> Model<'_> {
        Model::parse_beginning(&self.file, self.len, false).expect("the bytes were accepted before")
    }

    /// The memory that the last run took.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Classifies each pixel of an image, `[h, w, 3]` RGB, into `class_map`, `[h, w]`.
    ///
    /// # Errors
    /// When the image's size cannot be used, the engine was opened for another instruction set, or weights that it does not
    /// hold cannot be read.
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
        self.run_watched(ctx, size, image, class_map, |_| {})
    }

    /// As [`Engine::run`]; `done` is called with each node's number when it has run. A convolution that runs together with
    /// the node behind it is done at once.
    ///
    /// # Errors
    /// As [`Engine::run`].
    ///
    /// # Panics
    /// As [`Engine::run`].
    pub fn run_watched(
        &mut self,
        ctx: Context,
        size: [usize; 2],
        image: &[u8],
        class_map: &mut [u8],
        mut done: impl FnMut(usize),
    ) -> Result<(), EngineError> {
        self.run_planned(ctx, (size, false), image, class_map, |index, _, _| done(index))
    }

    /// As [`Engine::run`]; `tap` sees each node's output when it is done. No node then runs together with another, and more
    /// memory is needed.
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
        self.run_planned(ctx, (size, true), image, class_map, tap)
    }

    fn run_planned(
        &mut self,
        ctx: Context,
        (size, every_output): ([usize; 2], bool),
        image: &[u8],
        class_map: &mut [u8],
        tap: impl FnMut(usize, &Slot, &Memory),
    ) -> Result<(), EngineError> {
        let model = Model::parse_beginning(&self.file, self.len, false).expect("the bytes were accepted before");
        let loaded = self.isa == Some(ctx.isa);
        if !loaded {
            let whole = self.file.len() as u64 + CHECKSUM as u64 >= self.len;
            if let Some(isa) = self.isa.filter(|_| !whole) {
                let names = [isa.name(), ctx.isa.name()];
                return Err(EngineError(format!(
                    "the model was opened for {} and cannot run on {}",
                    names[0], names[1]
                )));
            }
            self.isa = None;
        }
        if !loaded || self.threads != ctx.pool.threads() {
            (self.threads, self.size) = (ctx.pool.threads(), None);
        }
        if self.size != Some((size, every_output)) {
            self.size = None;
            let plan = match every_output {
                false => Plan::with_limit(&model, size, ctx, &mut self.slots, self.weights_limit),
                true => Plan::with_every_output(&model, size, ctx, &mut self.slots, self.weights_limit),
            };
            let plan = plan.map_err(|e| EngineError(e.to_string()))?;
            self.sizes = plan.sizes;
            self.buffers
                .grow(&plan.sizes)
                .map_err(|e| EngineError(format!("an image of {}×{}: {e}", size[0], size[1])))?;
            self.size = Some((size, every_output));
        }
        let plan = Plan { slots: &self.slots, sizes: self.sizes, weights_limit: self.weights_limit };
        let failure = Mutex::new(None);
        let read = |at: u64, weights: &mut [i8]| {
            let Some(read_at) = &self.read_at else { return };
            if let Err(error) = read_at(bytes::as_u8_mut(weights), at) {
                // The run goes on with what there is; its result is not handed out.
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        };
        let mut memory = Memory { read: Some(&read), ..self.buffers.memory() };
        if !loaded {
            load(&model, &plan, ctx, &mut memory);
            self.isa = Some(ctx.isa);
        }
        execute(&model, &plan, ctx, &mut memory, image, class_map, tap);
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(EngineError(format!("cannot read the model's weights: {error}"))),
            None => Ok(()),
        }
    }
}

/// Makes room for `len` values, in large pages where the system has them.
pub(crate) fn resize<T: Clone>(values: &mut Vec<T>, len: usize, value: T) -> Result<(), TryReserveError> {
    values.try_reserve_exact(len.saturating_sub(values.len()))?;
    prefer_large_pages(values.spare_capacity_mut());
    values.resize(len, value);
    Ok(())
}

impl Buffers {
    /// Makes room. Packed weights and constants keep their content: their sizes do not depend on the image.
    fn grow(&mut self, sizes: &Sizes) -> Result<(), TryReserveError> {
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
        Memory { bytes, words, scratch, sums, taps, packed, multipliers, biases, read: None }
    }
}
