//! Running a model in memory that the caller owns.

mod fused;
mod mobile;

use crate::model::{Element, Model, Node, Op, Requantization};
use crate::plan::{Alignment, Destination, Held, Plan, Shape, Sizes, Slot, convolution};
use core::ops::Range;
use intseg_kernels::pool::for_each_piece_with;
use intseg_kernels::requantize::Contribution;
use intseg_kernels::resize::{Interpolation, Resize, Tap};
use intseg_kernels::round::divide_half_even;
use intseg_kernels::{Context, Line, Requantizer, average_pool, bytes, deploy, max_pool};

/// The memory of a run, at least as large as [`crate::Sizes`] says.
pub struct Memory<'m> {
    /// Activations.
    pub bytes: &'m mut [u8],
    /// Residual streams and logits.
    pub words: &'m mut [i16],
    /// Scratch.
    pub scratch: &'m mut [i32],
    /// Sums of average pooling.
    pub sums: &'m mut [i64],
    /// Taps of resizing.
    pub taps: &'m mut [Tap],
    /// Packed weights, which [`load`] fills.
    pub packed: &'m mut [Line],
    /// Multipliers, which [`load`] fills.
    pub multipliers: &'m mut [i32],
    /// Biases, which [`load`] fills.
    pub biases: &'m mut [i64],
    /// Weights that a plan's limit leaves in the model file ([`Plan::weights_limit`]).
    pub read: Option<ReadWeights<'m>>,
}

/// Fills a slice with weights from the model file, beginning with this byte of it.
pub type ReadWeights<'m> = &'m (dyn Fn(u64, &mut [i8]) + Sync);

impl<'m> Memory<'m> {
    /// Cuts an arena of at least [`Sizes::arena_bytes`]; `None` when it is smaller.
    pub fn in_arena(sizes: &Sizes, mut arena: &'m mut [u8]) -> Option<Self> {
        let arena = &mut arena;
        // The largest alignment first, so that nothing is lost between the parts.
        let packed = if sizes.packed > 0 { bytes::take(arena, sizes.packed)? } else { &mut [] };
        Some(Memory {
            packed,
            sums: bytes::take(arena, sizes.sums)?,
            biases: bytes::take(arena, sizes.biases)?,
            scratch: bytes::take(arena, sizes.scratch)?,
            taps: bytes::take(arena, sizes.taps)?,
            multipliers: bytes::take(arena, sizes.multipliers)?,
            words: bytes::take(arena, sizes.words)?,
            bytes: bytes::take(arena, sizes.bytes)?,
            read: None,
        })
    }
}

/// Packs the weights and unpacks the constants. Once a model and instruction set: they do not depend on the image.
///
/// # Panics
/// When the memory is smaller than the plan says.
pub fn load(model: &Model, plan: &Plan, ctx: Context, memory: &mut Memory) {
    let mut packed = 0;
    for (index, node) in model.nodes().enumerate() {
        if let Op::Conv(conv) = node.op {
            let convolution = convolution(&conv, &plan.slots[node.input(0)], plan.slots[index].shape);
            let held = Held::new(&convolution, ctx.isa, plan.weights_limit);
            let weights = &conv.weights[..held.part.geometry.weights_len()];
            held.part.pack(ctx, &mut memory.packed[packed..packed + held.lines], weights);
            packed += held.lines;
        }
    }
    load_constants(model, memory);
}

/// Unpacks the constants.
pub(crate) fn load_constants(model: &Model, memory: &mut Memory) {
    let all = || model.nodes().filter_map(|node| node.requantization());
    memory.multipliers.iter_mut().zip(all().flat_map(|r| r.multipliers())).for_each(|(out, v)| *out = v);
    memory.biases.iter_mut().zip(all().flat_map(|r| r.biases())).for_each(|(out, v)| *out = v);
}

/// Where the constants of the next nodes lie.
#[derive(Clone, Copy, Default)]
struct Constants {
    packed: usize,
    channels: usize,
}

/// Classifies each pixel of `image` (`[H, W, 3]`, RGB) into `class_map` (`[H, W]`). `tap` sees each node's output when
/// it is done: its number, and where in the memory it lies, if it exists ([`Slot::destination`]).
///
/// # Panics
/// When a slice has another length than the plan's image, the memory is smaller than the plan says, or the plan leaves
/// weights in the file and the memory cannot read them.
pub fn execute(
    model: &Model,
    plan: &Plan,
    ctx: Context,
    memory: &mut Memory,
    image: &[u8],
    class_map: &mut [u8],
    mut tap: impl FnMut(usize, &Slot, &Memory),
) {
    let Shape { h, w, .. } = plan.slots[0].shape;
    assert_eq!(image.len(), 3 * h * w, "image");
    assert_eq!(class_map.len(), h * w, "class map");
    let mut constants = Constants::default();
    let mut waiting = None;
    for (index, node) in model.nodes().enumerate() {
        let run = Run { plan, ctx, node, slot: &plan.slots[index] };
        match node.op {
            Op::Image => {
                for (out, &value) in memory.bytes[run.slot.range()].iter_mut().zip(image) {
                    // The same bits as value − 128 as a signed byte.
                    *out = value ^ 0x80;
                }
            }
            Op::Conv(conv) => {
                let step = run.step(conv, &mut constants);
                match run.slot.destination {
                    Destination::Sum | Destination::Strips(_) => waiting = Some(step),
                    Destination::Own => step.run(memory, run.slot, 0, None),
                    Destination::Concat { node, first } => step.run(memory, &plan.slots[node], first, None),
                }
            }
            Op::Affine(requantization) => run.affine(&requantization, memory, &mut constants),
            Op::Add => match waiting.take() {
                Some(conv) => run.convolve_and_add(&conv, memory),
                None => run.add(memory),
            },
            Op::MaxPool { .. } => match waiting.take() {
                Some(conv) => run.convolve_and_pool(&conv, memory),
                None => run.max_pool(memory),
            },
            Op::GlobalAveragePool => run.mean(memory),
            Op::AveragePool { .. } => run.average_pool(memory),
            Op::Resize { interpolation, .. } => match run.slot.destination {
                Destination::Concat { node, first } => run.spread(&plan.slots[node], first, memory),
                _ => run.resize(interpolation, memory),
            },
            Op::Concat => run.concat(memory),
            Op::Depthwise(depthwise) => run.depthwise(&depthwise, memory, &mut constants),
            Op::Table(table) => run.table(&table, memory),
            Op::Product(product) => run.product(&product, memory, &mut constants),
            Op::Pad(pad) => run.pad(&pad, memory),
        }
        tap(index, run.slot, memory);
    }
    classify(model, plan, ctx, memory, class_map);
}

/// One node's run.
#[derive(Clone, Copy)]
struct Run<'a> {
    plan: &'a Plan<'a>,
    ctx: Context<'a>,
    node: Node<'a>,
    slot: &'a Slot,
}

/// Some parts of a slice to read and one to write, which must not overlap those.
fn parts<T, const N: usize>(values: &mut [T], reads: [Range<usize>; N], write: Range<usize>) -> ([&[T]; N], &mut [T]) {
    let (before, rest) = values.split_at_mut(write.start);
    let (out, after) = rest.split_at_mut(write.len());
    let (before, after): (&[T], &[T]) = (before, after);
    let read = |range: Range<usize>| match range.end <= write.start {
        true => &before[range],
        false => &after[range.start - write.end..range.end - write.end],
    };
    (reads.map(read), out)
}

impl<'a> Run<'a> {
    fn input(&self, k: usize) -> &'a Slot {
        &self.plan.slots[self.node.input(k)]
    }

    fn requantizer<'m>(
        &self,
        requantization: &Requantization<'m>,
        multipliers: &'m [i32],
        biases: &'m [i64],
        first: usize,
    ) -> Requantizer<'m> {
        let range = first..first + requantization.channels();
        let [low, high] = self.node.clamp;
        Requantizer {
            multiplier: &multipliers[range.clone()],
            bias: &biases[range],
            shift: requantization.shifts(),
            low,
            high,
        }
    }

    fn affine(&self, requantization: &Requantization, memory: &mut Memory, at: &mut Constants) {
        let Memory { bytes: activations, words, multipliers, biases, .. } = memory;
        let requantizer = self.requantizer(requantization, multipliers, biases, at.channels);
        at.channels += requantization.channels();
        let (ctx, input) = (self.ctx, self.input(0));
        match (input.element, self.slot.wide()) {
            (Element::I16, false) => {
                let (input, out) = (&words[input.range()], &mut activations[self.slot.range()]);
                deploy::affine(ctx, out, input, requantizer, |v| v as u8);
            }
            (Element::I16, true) => {
                let ([input], out) = parts(words, [input.range()], self.slot.range());
                deploy::affine(ctx, out, input, requantizer, |v| v as i16);
            }
            (Element::U8, false) => {
                let ([input], out) = parts(activations, [input.range()], self.slot.range());
                deploy::affine(ctx, out, input, requantizer, |v| v as u8);
            }
            (Element::I8, false) => {
                let ([input], out) = parts(activations, [input.range()], self.slot.range());
                deploy::affine(ctx, out, bytes::as_i8(input), requantizer, |v| v as u8);
            }
            (Element::U8, true) => {
                let (input, out) = (&activations[input.range()], &mut words[self.slot.range()]);
                deploy::affine(ctx, out, input, requantizer, |v| v as i16);
            }
            (Element::I8, true) => {
                let (input, out) = (bytes::as_i8(&activations[input.range()]), &mut words[self.slot.range()]);
                deploy::affine(ctx, out, input, requantizer, |v| v as i16);
            }
        }
    }

    fn add(&self, memory: &mut Memory) {
        let Memory { bytes: activations, words, .. } = memory;
        let inputs = [self.input(0), self.input(1)];
        let alignment = Alignment::new(inputs.map(|slot| slot.exponent), self.node.exponent);
        let Alignment { inputs: shifts, sum: shift } = alignment.expect("the plan has checked it");
        // What lies in the other memory is not read through these.
        let ranges = |wide: bool| inputs.map(|slot| if slot.wide() == wide { slot.range() } else { 0..0 });
        if self.slot.wide() {
            let (wide, out) = parts(words, ranges(true), self.slot.range());
            let narrow = ranges(false).map(|range| &activations[range]);
            let parts = [0, 1].map(|k| contribution(inputs[k].element, wide[k], narrow[k], shifts[k]));
            deploy::add(self.ctx, out, &parts, shift, self.node.clamp, |v| v as i16);
        } else {
            let (narrow, out) = parts(activations, ranges(false), self.slot.range());
            let wide = ranges(true).map(|range| &words[range]);
            let parts = [0, 1].map(|k| contribution(inputs[k].element, wide[k], narrow[k], shifts[k]));
            deploy::add(self.ctx, out, &parts, shift, self.node.clamp, |v| v as u8);
        }
    }

    fn max_pool(&self, memory: &mut Memory) {
        let Op::MaxPool { kernel, stride, padding, .. } = self.node.op else { return };
        let (input, output) = (self.input(0), self.slot);
        let pool = max_pool::MaxPool {
            batch: 1,
            input: [input.shape.h, input.shape.w],
            output: [output.shape.h, output.shape.w],
            channels: input.shape.c,
            kernel,
            stride,
            padding,
        };
        match self.unary(memory) {
            Unary::U8(input, out) => pool.forward(self.ctx, out, &mut [], input),
            Unary::I8(input, out) => pool.forward(self.ctx, out, &mut [], input),
            Unary::I16(input, out) => pool.forward(self.ctx, out, &mut [], input),
        }
    }

    fn average_pool(&self, memory: &mut Memory) {
        let Op::AveragePool { kernel, stride, padding, count_padding, .. } = self.node.op else { return };
        let (input, output) = (self.input(0), self.slot);
        let pool = average_pool::AveragePool {
            batch: 1,
            input: [input.shape.h, input.shape.w],
            output: [output.shape.h, output.shape.w],
            channels: input.shape.c,
            kernel,
            stride,
            padding,
            count_padding,
        };
        match self.unary(memory) {
            Unary::U8(input, out) => pool.forward(self.ctx, out, input),
            Unary::I8(input, out) => pool.forward(self.ctx, out, input),
            Unary::I16(input, out) => pool.forward(self.ctx, out, input),
        }
    }

    /// The mean over all positions.
    fn mean(&self, memory: &mut Memory) {
        let input = self.input(0);
        let (pixels, c) = (input.shape.h * input.shape.w, input.shape.c);
        let Memory { bytes: activations, sums, .. } = memory;
        let sums = &mut sums[..c];
        let ([values], out) = parts(activations, [input.range()], self.slot.range());
        match input.element {
            Element::I8 => average_pool::channel_sums(self.ctx, sums, bytes::as_i8(values), pixels, c),
            _ => average_pool::channel_sums(self.ctx, sums, values, pixels, c),
        }
        let shift = self.node.exponent - input.exponent;
        let (up, down) = ((-shift).max(0), shift.max(0));
        let [low, high] = self.node.clamp.map(i64::from);
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            *out = divide_half_even(sum << up, (pixels as i64) << down).clamp(low, high) as u8;
        }
    }

    fn resize(&self, interpolation: Interpolation, memory: &mut Memory) {
        let (input, output) = (self.input(0).shape, self.slot.shape);
        // The taps lie apart from the tensors.
        let taps = core::mem::take(&mut memory.taps);
        let resize = taps_of(taps, input, [output.h, output.w], interpolation);
        match self.unary(memory) {
            Unary::U8(input, out) => resize.forward(self.ctx, out, input),
            Unary::I8(input, out) => resize.forward(self.ctx, out, input),
            Unary::I16(input, out) => resize.forward(self.ctx, out, input),
        }
        memory.taps = taps;
    }

    /// The first input and the output of a node whose input and output have one type.
    fn unary<'v>(&self, memory: &'v mut Memory) -> Unary<'v> {
        let (input, output) = (self.input(0).range(), self.slot.range());
        match self.slot.element {
            Element::U8 => {
                let ([input], out) = parts(memory.bytes, [input], output);
                Unary::U8(input, out)
            }
            Element::I8 => {
                let ([input], out) = parts(memory.bytes, [input], output);
                Unary::I8(bytes::as_i8(input), bytes::as_i8_mut(out))
            }
            Element::I16 => {
                let ([input], out) = parts(memory.words, [input], output);
                Unary::I16(input, out)
            }
        }
    }

    fn concat(&self, memory: &mut Memory) {
        let channels = self.slot.shape.c;
        let mut first = 0;
        for input in self.node.inputs() {
            let input = &self.plan.slots[input];
            let c = input.shape.c;
            if let Destination::Concat { .. } = input.destination {
                first += c;
                continue;
            }
            let ([values], out) = parts(memory.bytes, [input.range()], self.slot.range());
            for (out, values) in out.chunks_exact_mut(channels).zip(values.chunks_exact(c)) {
                out[first..first + c].copy_from_slice(values);
            }
            first += c;
        }
    }
}

/// What a node reads and what it writes, of one type.
enum Unary<'v> {
    U8(&'v [u8], &'v mut [u8]),
    I8(&'v [i8], &'v mut [i8]),
    I16(&'v [i16], &'v mut [i16]),
}

/// A part of a sum: of `words` or of `bytes`, as its type says.
fn contribution<'v>(element: Element, words: &'v [i16], bytes: &'v [u8], shift: i32) -> Contribution<'v> {
    match element {
        Element::U8 => Contribution::U8(bytes, shift),
        Element::I8 => Contribution::I8(bytes::as_i8(bytes), shift),
        Element::I16 => Contribution::I16(words, shift),
    }
}

/// A resize whose taps are written to the front of `taps`.
fn taps_of(taps: &mut [Tap], input: Shape, [h, w]: [usize; 2], interpolation: Interpolation) -> Resize<'_> {
    let (rows, columns) = taps[..h + w].split_at_mut(h);
    let denominators = [interpolation.axis(rows, input.h), interpolation.axis(columns, input.w)];
    Resize { input: [input.h, input.w], channels: input.c, rows, columns, denominators }
}

/// Resizes the logits to the image's size and takes each pixel's largest, a row at a time: the first of several.
fn classify(model: &Model, plan: &Plan, ctx: Context, memory: &mut Memory, class_map: &mut [u8]) {
    let (image, logits) = (plan.slots[0].shape, &plan.slots[plan.slots.len() - 1]);
    let Memory { words, taps, scratch, .. } = memory;
    let upsampling = Interpolation::linear(model.align_corners);
    let resize = taps_of(taps, logits.shape, [image.h, image.w], upsampling);
    let shift = resize.shift_to_i32(1 << 15);
    let blend_len = logits.shape.w * logits.shape.c;
    for_each_piece_with(ctx.pool, class_map, image.w, scratch, blend_len, |y, out, blend| {
        ctx.isa.vectorize(
            #[inline(always)]
            || resize.row_of_largest(out, blend, &words[logits.range()], y, shift),
        );
    });
}
