//! Convolutions, and what runs together with them: sums, poolings, and writing into a concatenation.

use super::{Constants, Memory, Run, parts};
use crate::model::{Conv, Element, Op};
use crate::plan::{Alignment, Destination, Held, Shape, Slot, convolution};
use core::ops::Range;
use intseg_kernels::requantize::Contribution;
use intseg_kernels::{Addend, Convolution, Input, Output, OutputData, Streamed, Weights, bytes, max_pool};

/// A convolution that is to run.
pub(super) struct Step<'a> {
    run: Run<'a>,
    conv: Conv<'a>,
    convolution: Convolution,
    at: Constants,
    held: Held,
}

/// What a convolution reads and writes.
struct Operands<'a> {
    convolution: Convolution,
    input: Range<usize>,
    out: Range<usize>,
    element: Element,
    /// Channels of what is written, and the first.
    stride: usize,
    offset: usize,
    addend: Option<(&'a Slot, Addend<'static>)>,
}

impl<'a> Run<'a> {
    /// A convolution's step; its constants are those at `at`, which moves on.
    pub fn step(self, conv: Conv<'a>, at: &mut Constants) -> Step<'a> {
        let convolution = convolution(&conv, self.input(0), self.slot.shape);
        let held = Held::new(&convolution, self.ctx.isa, self.plan.weights_limit);
        let step = Step { run: self, conv, convolution, at: *at, held };
        at.packed += held.lines;
        at.channels += conv.c_out;
        step
    }

    /// This sum, one of whose inputs is the convolution's output.
    pub fn convolve_and_add(&self, conv: &Step, memory: &mut Memory) {
        let inputs = [self.input(0), self.input(1)];
        let alignment = Alignment::new(inputs.map(|slot| slot.exponent), self.node.exponent);
        let Alignment { inputs: shifts, sum } = alignment.expect("the plan has checked it");
        let own = usize::from(inputs[1].destination == Destination::Sum);
        let (scale, left) = (shifts[own] as u32, shifts[1 - own]);
        let values = match inputs[1 - own].element {
            Element::I16 => Contribution::I16(&[], left),
            _ => Contribution::U8(&[], left),
        };
        let [low, high] = self.node.clamp;
        conv.run(memory, self.slot, 0, Some((inputs[1 - own], Addend { values, scale, shift: sum, low, high })));
    }

    /// This max pooling of the convolution's output, a strip at a time.
    pub fn convolve_and_pool(&self, conv: &Step, memory: &mut Memory) {
        let Op::MaxPool { kernel, stride, padding, .. } = self.node.op else { return };
        let (full, strip) = (conv.convolution.geometry, conv.run.slot);
        let (Shape { h, w, c }, out, input) = (strip.shape, self.slot.shape, conv.run.input(0));
        let Destination::Strips(rows) = strip.destination else { return };
        let [top, step] = [full.padding[0], full.stride[0]];
        let reach = full.dilation[0] * (full.kernel[0] - 1) + 1;
        let pooled = ((rows - 2 * (top / step)) / stride[0]).max(1);
        for y in (0..out.h).step_by(pooled) {
            let end = out.h.min(y + pooled);
            // The rows that these windows cover, and what those read, of the padded input.
            let first = (y * stride[0]).saturating_sub(padding[0]);
            let last = ((end - 1) * stride[0] + kernel[0]).saturating_sub(padding[0]).min(h);
            let read = first * step..(last - 1) * step + reach;
            let padded = read.start < top || read.end > full.in_h + top;
            let (from, to) = (read.start.saturating_sub(top), full.in_h.min(read.end - top));
            let mut geometry = full;
            geometry.in_h = to - from;
            // Padding is on both sides or on none: rows that it adds on the other side are not taken.
            geometry.padding[0] = if padded { top } else { 0 };
            let skipped = if padded { (first * step - from) / step } else { 0 };
            let row_in = input.shape.w * input.shape.c;
            let start = strip.offset;
            conv.run_on(
                memory,
                Operands {
                    convolution: Convolution { geometry, ..conv.convolution },
                    input: input.offset + from * row_in..input.offset + to * row_in,
                    out: start..start + geometry.out_h() * w * c,
                    element: strip.element,
                    stride: c,
                    offset: 0,
                    addend: None,
                },
            );
            let pool = max_pool::MaxPool {
                batch: 1,
                input: [last - first, w],
                output: [end - y, out.w],
                channels: c,
                kernel,
                stride,
                padding: [padding[0].saturating_sub(y * stride[0]), padding[1]],
            };
            let taken = start + skipped * w * c..start + (skipped + last - first) * w * c;
            let written = self.slot.offset + y * out.w * c..self.slot.offset + end * out.w * c;
            let ([values], out) = parts(memory.bytes, [taken], written);
            match self.slot.element {
                Element::I8 => pool.forward(self.ctx, bytes::as_i8_mut(out), &mut [], bytes::as_i8(values)),
                _ => pool.forward(self.ctx, out, &mut [], values),
            }
        }
    }

    /// This resize of one pixel, into the channels from `first` on of a concatenation.
    pub fn spread(&self, concat: &Slot, first: usize, memory: &mut Memory) {
        let ([pixel], out) = parts(memory.bytes, [self.input(0).range()], concat.range());
        for out in out.chunks_exact_mut(concat.shape.c) {
            out[first..first + pixel.len()].copy_from_slice(pixel);
        }
    }
}

impl Step<'_> {
    /// Runs the whole convolution; it writes to `slot`'s channels from `offset` on.
    pub fn run(&self, memory: &mut Memory, slot: &Slot, offset: usize, addend: Option<(&Slot, Addend<'static>)>) {
        let operands = Operands {
            convolution: self.convolution,
            input: self.run.input(0).range(),
            out: slot.range(),
            element: slot.element,
            stride: slot.shape.c,
            offset,
            addend,
        };
        self.run_on(memory, operands);
    }

    fn run_on(&self, memory: &mut Memory, operands: Operands) {
        let Operands { convolution, input, out, element, stride, offset, addend } = operands;
        let Memory { bytes: activations, words, scratch, packed, multipliers, biases, read, .. } = memory;
        let packed = &packed[self.at.packed..self.at.packed + self.held.lines];
        let requantizer = self.run.requantizer(&self.conv.requantization, multipliers, biases, self.at.channels);
        // What lies in the other memory is not read through these.
        let added = |wide: bool| match addend {
            Some((slot, _)) if slot.wide() == wide => slot.range(),
            _ => 0..0,
        };
        let ((input, added_bytes), words, data) = match element {
            Element::U8 | Element::I8 => {
                let ([input, added_bytes], out) = parts(activations, [input, added(false)], out);
                let data = match element {
                    Element::I8 => OutputData::I8(bytes::as_i8_mut(out)),
                    _ => OutputData::U8(out),
                };
                ((input, added_bytes), &words[added(true)], data)
            }
            Element::I16 => {
                let ([words], out) = parts(words, [added(true)], out);
                ((&activations[input], &activations[added(false)]), words, OutputData::I16(out))
            }
        };
        let addend = addend.map(|(_, addend)| {
            let values = match addend.values {
                Contribution::I16(_, left) => Contribution::I16(words, left),
                Contribution::U8(_, left) => Contribution::U8(added_bytes, left),
                other => other,
            };
            Addend { values, ..addend }
        });
        let input = if convolution.signed { Input::I8(bytes::as_i8(input)) } else { Input::U8(input) };
        let out = Output { data, stride, offset, addend };
        if !self.held.streams {
            let weights = Weights { raw: self.conv.weights, packed };
            return convolution.run_requantized(self.run.ctx, out, input, weights, requantizer, scratch);
        }
        let read = read.expect("who limits the weights that memory holds reads the others");
        let at = self.conv.weights_at as u64;
        let read = &|first: usize, out: &mut [i8]| read(at + first as u64, out);
        let weights = Streamed { held: self.held.taps, packed, read };
        convolution.run_streamed(self.run.ctx, out, input, weights, requantizer, scratch);
    }
}
