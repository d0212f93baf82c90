//! Shapes and memory of a run, before anything runs.

mod fuse;

use crate::model::{Conv, Depthwise, Element, Model, Node, Op, Pad, Product};
use core::fmt;
use intseg_kernels::requantize::Contribution;
use intseg_kernels::resize::Tap;
use intseg_kernels::{Context, Conv2d, Convolution, Direction, Isa, Line};

/// The most rows or columns of an image or of any node's output: interpolation between 16-bit values then fits its
/// integers.
const MAX_SIDE: usize = 1 << 15;
/// The most channels of a node's output.
const MAX_CHANNELS: usize = 1 << 16;
/// The most elements of a node's output. Those of many nodes together are added without wrapping.
const MAX_ELEMENTS: u64 = if usize::BITS >= 64 { 1 << 40 } else { 1 << 26 };
/// The farthest apart that the exponents of a mean and of its input may be.
const MAX_MEAN_SHIFT: u32 = 24;

/// Rows, columns and channels of a node's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// Number of elements.
    pub fn len(self) -> usize {
        self.h * self.w * self.c
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// What becomes of a node's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// It lies whole in a place of its own.
    #[default]
    Own,
    /// It never exists: a convolution whose one reader is the next node, a sum, which adds the other input tile by tile.
    Sum,
    /// So many of its rows at a time lie in a place of their own: a convolution whose one reader is the next node, a max
    /// pooling, which takes them strip by strip.
    Strips(usize),
    /// Its one reader is a concatenation, in whose place it is written straight to its channels.
    Concat {
        /// The concatenation.
        node: usize,
        /// Its first channel there.
        first: usize,
    },
}

/// Where a node's output lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its shape.
    pub shape: Shape,
    /// The type of its elements.
    pub element: Element,
    /// Its first element there.
    pub offset: usize,
    /// The last node that reads it.
    pub last_reader: usize,
    /// The exponent of its values.
    pub exponent: i32,
    /// What becomes of it.
    pub destination: Destination,
}

impl Slot {
    /// Whether it lies among the 16-bit values rather than the bytes.
    pub fn wide(&self) -> bool {
        self.element == Element::I16
    }

    /// Its elements, as many as have a place of their own.
    pub fn range(&self) -> core::ops::Range<usize> {
        let len = match self.destination {
            Destination::Own => self.shape.len(),
            Destination::Strips(rows) => rows.saturating_mul(self.shape.w * self.shape.c),
            Destination::Sum | Destination::Concat { .. } => 0,
        };
        self.offset..self.offset.saturating_add(len)
    }

    /// Bytes that it takes.
    fn bytes(&self) -> usize {
        self.range().len().saturating_mul(if self.wide() { 2 } else { 1 })
    }
}

/// How much memory a run takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of activations.
    pub bytes: usize,
    /// 16-bit values of residual streams and logits.
    pub words: usize,
    /// i32 of scratch.
    pub scratch: usize,
    /// i64 sums of average pooling.
    pub sums: usize,
    /// Taps of resizing.
    pub taps: usize,
    /// Lines of packed weights.
    pub packed: usize,
    /// i32 multipliers.
    pub multipliers: usize,
    /// i64 biases.
    pub biases: usize,
    /// The bytes that live at the same time at the worst moment: no plan can do with less for activations.
    pub lower_bound: usize,
}

impl Sizes {
    /// Bytes of activations, residual streams and logits.
    pub fn activation_bytes(&self) -> usize {
        self.bytes + 2 * self.words
    }

    /// Bytes of one arena that holds all of it, wherever the arena begins ([`crate::Memory::in_arena`]).
    pub fn arena_bytes(&self) -> usize {
        let parts = [
            (self.packed, size_of::<Line>()),
            (self.sums, 8),
            (self.biases, 8),
            (self.scratch, 4),
            (self.taps, size_of::<Tap>()),
            (self.multipliers, 4),
            (self.words, 2),
            (self.bytes, 1),
        ];
        let alignment = if self.packed > 0 { align_of::<Line>() } else { align_of::<i64>() };
        parts.iter().fold(alignment - 1, |sum, &(count, size)| sum.saturating_add(count.saturating_mul(size)))
    }
}

/// Why a model cannot run at a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError<'a> {
    /// An image without pixels, or one beyond 32 768 a side.
    ImageSize {
        /// Rows.
        h: usize,
        /// Columns.
        w: usize,
    },
    /// Fewer slots than nodes.
    Slots {
        /// Nodes.
        needed: usize,
    },
    /// A layer that does not fit its input.
    Layer {
        /// Its name.
        name: &'a str,
        /// What is wrong.
        problem: &'static str,
    },
}

impl fmt::Display for PlanError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::ImageSize { h, w } => {
                write!(f, "an image of {h}×{w} pixels cannot be used: 1 to 32768 a side can")
            }
            PlanError::Slots { needed } => write!(f, "the plan needs {needed} slots"),
            PlanError::Layer { name, problem } => write!(f, "layer {name}: {problem}"),
        }
    }
}

impl core::error::Error for PlanError<'_> {}

/// A model at an image size.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'s> {
    /// One slot a node.
    pub slots: &'s [Slot],
    /// How much memory a run takes.
    pub sizes: Sizes,
    /// Bytes of a convolution's packed weights that memory holds; what goes beyond is read while it runs
    /// ([`crate::Memory::read`]). `usize::MAX`: all of them.
    pub weights_limit: usize,
}

/// The geometry of a convolution from `from`, or of that whose adjoint a transposed one is.
pub(crate) fn geometry(conv: &Conv, from: Shape) -> Conv2d {
    let [c_in, c_out] = match conv.transposed {
        None => [conv.c_in, conv.c_out],
        Some(_) => [conv.c_out, conv.c_in],
    };
    let Conv { kernel, stride, dilation, padding, .. } = *conv;
    Conv2d { batch: 1, in_h: from.h, in_w: from.w, c_in, c_out, kernel, stride, dilation, padding }
}

/// Rows and columns of a convolution's output; `None` where its window does not fit.
fn conv_size(conv: &Conv, input: Shape) -> Option<[usize; 2]> {
    let geometry = geometry(conv, input);
    match conv.transposed {
        None => geometry.output_size(),
        Some(extra) => geometry.transposed_size([input.h, input.w], extra),
    }
}

/// The geometry of a depthwise convolution of `input`.
pub(crate) fn depthwise_geometry(depthwise: &Depthwise, input: Shape) -> Conv2d {
    let Depthwise { kernel, stride, dilation, padding, channels, .. } = *depthwise;
    Conv2d {
        batch: 1,
        in_h: input.h,
        in_w: input.w,
        c_in: channels,
        c_out: channels,
        kernel,
        stride,
        dilation,
        padding,
    }
}

/// The convolution of a node that reads `input` and writes `output`.
pub(crate) fn convolution(conv: &Conv, input: &Slot, output: Shape) -> Convolution {
    let (direction, from) = match conv.transposed {
        None => (Direction::Forward, input.shape),
        Some(_) => (Direction::Transposed, output),
    };
    Convolution { geometry: geometry(conv, from), direction, signed: input.element == Element::I8 }
}

/// What memory holds of a convolution's weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// So many taps.
    pub taps: usize,
    /// Whether those are not all.
    pub streams: bool,
    /// What packs them.
    pub part: Convolution,
    /// Lines that they take.
    pub lines: usize,
}

impl Held {
    pub fn new(convolution: &Convolution, isa: Isa, limit: usize) -> Self {
        let [kh, kw] = convolution.geometry.kernel;
        let taps = convolution.held_taps(isa, limit);
        let streams = taps < kh * kw;
        let part = if streams { convolution.part(taps) } else { *convolution };
        Held { taps, streams, part, lines: part.packed_len(isa) }
    }
}

/// A convolution as packing weights knows it: the image's size does not matter.
#[cfg(feature = "std")]
pub(crate) fn packing(conv: &Conv, input: Element) -> Convolution {
    let shape = Shape { h: 1, w: 1, c: conv.c_in };
    convolution(conv, &Slot { shape, element: input, ..Slot::default() }, Shape { c: conv.c_out, ..shape })
}

impl<'s> Plan<'s> {
    /// Plans a run on an image of `h` rows and `w` columns, in which outputs that one node alone reads need not exist
    /// ([`Destination`]). `slots` holds the plan; it must have one element a node.
    ///
    /// # Errors
    /// When the image has no pixels or too many, or a layer does not fit its input.
    pub fn new<'a>(
        model: &Model<'a>,
        size: [usize; 2],
        ctx: Context,
        slots: &'s mut [Slot],
    ) -> Result<Self, PlanError<'a>> {
        Self::with_limit(model, size, ctx, slots, usize::MAX)
    }

    /// As [`Plan::new`], with a limit of the weights that memory holds ([`Plan::weights_limit`]).
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn with_limit<'a>(
        model: &Model<'a>,
        size: [usize; 2],
        ctx: Context,
        slots: &'s mut [Slot],
        weights_limit: usize,
    ) -> Result<Self, PlanError<'a>> {
        Self::with(model, size, ctx, slots, weights_limit, fuse::fuse)
    }

    /// As [`Plan::with_limit`]; every node's output exists until the next node has run.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn with_every_output<'a>(
        model: &Model<'a>,
        size: [usize; 2],
        ctx: Context,
        slots: &'s mut [Slot],
        weights_limit: usize,
    ) -> Result<Self, PlanError<'a>> {
        Self::with(model, size, ctx, slots, weights_limit, |_, _| {})
    }

    fn with<'a>(
        model: &Model<'a>,
        [h, w]: [usize; 2],
        ctx: Context,
        slots: &'s mut [Slot],
        weights_limit: usize,
        fuse: impl Fn(&Model, &mut [Slot]),
    ) -> Result<Self, PlanError<'a>> {
        if ![h, w].iter().all(|side| (1..=MAX_SIDE).contains(side)) {
            return Err(PlanError::ImageSize { h, w });
        }
        let slots = slots.get_mut(..model.len()).ok_or(PlanError::Slots { needed: model.len() })?;
        for (index, node) in model.nodes().enumerate() {
            let layer = |problem| PlanError::Layer { name: node.name, problem };
            let shape = shape_of(&node, slots, [h, w]).and_then(check_shape).map_err(layer)?;
            check_elements(&node, slots).and_then(|()| check_exponents(&node, slots)).map_err(layer)?;
            let (element, exponent) = (node.element, node.exponent);
            let destination = Destination::Own;
            slots[index] = Slot { shape, element, offset: 0, last_reader: index, exponent, destination };
            // What a resize takes its size from need not live for it.
            let read = if matches!(node.op, Op::Resize { .. }) { 1 } else { node.inputs().len() };
            node.inputs().take(read).for_each(|input| slots[input].last_reader = index);
            if index + 1 == model.len() && shape.c > 256 {
                return Err(layer("it puts out more than the 256 classes that a class map can name"));
            }
        }
        // The class map is made from the logits after the last node.
        slots[model.len() - 1].last_reader = model.len();
        fuse(model, slots);
        let mut sizes = place(slots);
        for (index, node) in model.nodes().enumerate() {
            measure(&mut sizes, &node, index, slots, ctx, weights_limit);
        }
        let logits = slots[model.len() - 1].shape;
        sizes.scratch = sizes.scratch.max(ctx.pool.threads() * logits.w * logits.c);
        sizes.taps = sizes.taps.max(h + w);
        Ok(Plan { slots, sizes, weights_limit })
    }
}

fn check_shape(shape: Shape) -> Result<Shape, &'static str> {
    let Shape { h, w, c } = shape;
    let elements = h as u64 * w as u64 * c as u64;
    match h <= MAX_SIDE && w <= MAX_SIDE && c <= MAX_CHANNELS && elements <= MAX_ELEMENTS {
        true => Ok(shape),
        false => Err("its output is too large; use a smaller image"),
    }
}

/// How two inputs of a sum are aligned: the left shift of each (right, to nearest, if negative) that brings it to a
/// common unit, and the right shift of the sum. The unit is the finest exponent, inputs' or output's, unless the
/// coarsest input would have to be shifted too far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// The left shifts of the inputs.
    pub inputs: [i32; 2],
    /// The right shift of their sum.
    pub sum: u32,
}

impl Alignment {
    /// For exponents of inputs and output; `None` when the output is too much finer than an input.
    pub fn new(inputs: [i32; 2], output: i32) -> Option<Self> {
        let [finest, coarsest] = [inputs[0].min(inputs[1]), inputs[0].max(inputs[1])];
        let unit = finest.min(output).max(coarsest - Contribution::MAX_SHIFT);
        let sum = u32::try_from(output - unit).ok()?.min(62);
        Some(Alignment { inputs: inputs.map(|exponent| exponent - unit), sum })
    }
}

/// Checks that a node can bring its inputs' exponents to its own.
fn check_exponents(node: &Node, slots: &[Slot]) -> Result<(), &'static str> {
    let input = |k: usize| slots[node.input(k)].exponent;
    let fits = match node.op {
        Op::Image | Op::Conv(_) | Op::Affine(_) | Op::Depthwise(_) | Op::Table(_) | Op::Product(_) => true,
        Op::Add => Alignment::new([input(0), input(1)], node.exponent).is_some(),
        Op::MaxPool { .. } | Op::AveragePool { .. } | Op::Resize { .. } | Op::Pad(_) => input(0) == node.exponent,
        Op::GlobalAveragePool => input(0).abs_diff(node.exponent) <= MAX_MEAN_SHIFT,
        Op::Concat => (0..node.inputs().len()).all(|k| input(k) == node.exponent),
    };
    if fits { Ok(()) } else { Err("its exponent does not fit its inputs'") }
}

/// Checks that a node's inputs have the types that it reads.
fn check_elements(node: &Node, slots: &[Slot]) -> Result<(), &'static str> {
    let input = |k: usize| slots[node.input(k)].element;
    let fits = match node.op {
        Op::Image => node.element == Element::I8,
        Op::Conv(_) | Op::Depthwise(_) => input(0) != Element::I16,
        Op::Table(_) => input(0) != Element::I16 && node.element != Element::I16,
        Op::Product(_) => input(0) != Element::I16 && input(1) != Element::I16,
        Op::Affine(_) | Op::Add => true,
        Op::MaxPool { .. } | Op::AveragePool { .. } | Op::Resize { .. } => input(0) == node.element,
        Op::GlobalAveragePool | Op::Pad(_) => input(0) == node.element && node.element != Element::I16,
        Op::Concat => (0..node.inputs().len()).all(|k| input(k) == node.element) && node.element != Element::I16,
    };
    if fits { Ok(()) } else { Err("its inputs have the wrong type") }
}

fn shape_of(node: &Node, slots: &[Slot], [h, w]: [usize; 2]) -> Result<Shape, &'static str> {
    let input = |k: usize| slots[node.input(k)].shape;
    match node.op {
        Op::Image => Ok(Shape { h, w, c: 3 }),
        Op::Conv(conv) => {
            if conv.c_in != input(0).c {
                return Err("its weights have another number of channels than its input");
            }
            let [h, w] = conv_size(&conv, input(0)).ok_or("the image is too small for its window")?;
            Ok(Shape { h, w, c: conv.c_out })
        }
        Op::Depthwise(depthwise) => {
            if depthwise.channels != input(0).c {
                return Err("its weights have another number of channels than its input");
            }
            let [h, w] = depthwise_geometry(&depthwise, input(0))
                .output_size()
                .ok_or("the image is too small for its window")?;
            Ok(Shape { h, w, ..input(0) })
        }
        Op::Table(_) => Ok(input(0)),
        Op::Pad(pad) if pad.channels != input(0).c => Err("its padding has another number of channels than its input"),
        Op::Pad(Pad { padding: [y, x], .. }) => Ok(Shape { h: input(0).h + 2 * y, w: input(0).w + 2 * x, ..input(0) }),
        Op::Product(product) => {
            let gate = Shape { h: 1, w: 1, ..input(0) };
            match product.requantization.channels() == input(0).c && [input(0), gate].contains(&input(1)) {
                true => Ok(input(0)),
                false => Err("its inputs have shapes whose product is not known"),
            }
        }
        Op::Affine(r) if r.channels() == input(0).c => Ok(input(0)),
        Op::Affine(_) => Err("it has another number of channels than its input"),
        Op::Add if input(0) == input(1) => Ok(input(0)),
        Op::Add => Err("its inputs have different shapes"),
        Op::MaxPool { kernel, stride, padding, ceil } | Op::AveragePool { kernel, stride, padding, ceil, .. } => {
            let [h, w] = intseg_kernels::max_pool::output_size([input(0).h, input(0).w], kernel, stride, padding, ceil)
                .ok_or("the image is too small for its window")?;
            Ok(Shape { h, w, ..input(0) })
        }
        Op::GlobalAveragePool => Ok(Shape { h: 1, w: 1, ..input(0) }),
        Op::Resize { factor: Some([y, x]), .. } => {
            let size = input(0).h.checked_mul(y).zip(input(0).w.checked_mul(x));
            size.map(|(h, w)| Shape { h, w, c: input(0).c }).ok_or("its output is too large; use a smaller image")
        }
        Op::Resize { factor: None, .. } => Ok(Shape { c: input(0).c, ..input(1) }),
        Op::Concat => {
            let same = |k: usize| (input(k).h, input(k).w) == (input(0).h, input(0).w);
            if !(0..node.inputs().len()).all(same) {
                return Err(
                    "its inputs have different sizes; use an image whose sides the network's strides divide, such as multiples of 32",
                );
            }
            Ok(Shape { c: (0..node.inputs().len()).map(|k| input(k).c).sum(), ..input(0) })
        }
    }
}

/// Gives each output the lowest place that is free for as long as it lives.
fn place(slots: &mut [Slot]) -> Sizes {
    const NOWHERE: usize = usize::MAX;
    let mut sizes = Sizes::default();
    slots.iter_mut().for_each(|slot| slot.offset = NOWHERE);
    for index in 0..slots.len() {
        // A concatenation lives from its first part on.
        let placed = match slots[index].destination {
            Destination::Concat { node, .. } => node,
            _ => index,
        };
        if slots[placed].offset == NOWHERE {
            let slot = Slot { offset: 0, ..slots[placed] };
            let live = || {
                let placed = slots.iter().filter(|other| other.offset != NOWHERE);
                placed.filter(|other| other.wide() == slot.wide() && other.last_reader >= index)
            };
            let free = |offset: usize| {
                let end = offset.saturating_add(slot.range().len());
                live().all(|other| other.offset >= end || other.range().end <= offset)
            };
            let ends = live().map(|other| other.range().end);
            let offset = core::iter::once(0).chain(ends).filter(|&offset| free(offset)).min();
            slots[placed].offset = offset.expect("behind the last live one there is room");
            let end = slots[placed].range().end;
            let total = if slot.wide() { &mut sizes.words } else { &mut sizes.bytes };
            *total = end.max(*total);
        }
        let live = slots.iter().filter(|slot| slot.offset != NOWHERE && slot.last_reader >= index);
        sizes.lower_bound = sizes.lower_bound.max(live.map(Slot::bytes).fold(0, usize::saturating_add));
    }
    slots.iter_mut().filter(|slot| slot.offset == NOWHERE).for_each(|slot| slot.offset = 0);
    sizes
}

/// Adds a node's scratch and constants.
fn measure(sizes: &mut Sizes, node: &Node, index: usize, slots: &[Slot], ctx: Context, weights_limit: usize) {
    match node.op {
        Op::Conv(conv) => {
            let convolution = convolution(&conv, &slots[node.input(0)], slots[index].shape);
            let held = Held::new(&convolution, ctx.isa, weights_limit);
            sizes.scratch = sizes.scratch.max(match held.streams {
                true => convolution.streamed_scratch_len(ctx),
                false => convolution.scratch_len(ctx),
            });
            sizes.packed += held.lines;
            sizes.multipliers += conv.c_out;
            sizes.biases += conv.c_out;
        }
        Op::Affine(r)
        | Op::Depthwise(Depthwise { requantization: r, .. })
        | Op::Product(Product { requantization: r, .. }) => {
            sizes.multipliers += r.channels();
            sizes.biases += r.channels();
        }
        Op::GlobalAveragePool => sizes.sums = sizes.sums.max(slots[node.input(0)].shape.c),
        Op::Resize { .. } => {
            let output = slots[index].shape;
            sizes.taps = sizes.taps.max(output.h + output.w);
        }
        _ => {}
    }
}
