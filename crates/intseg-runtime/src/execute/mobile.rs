//! Running depthwise convolutions, functions of a byte, products of maps and padding.

use super::{Constants, Memory, Run, parts};
use crate::model::{Depthwise, Element, Pad, Product, Table};
use crate::plan::{Slot, depthwise_geometry};
use intseg_kernels::{Input, Output, OutputData, bytes, deploy};

/// The bytes of a slot as the type that they have.
fn typed<'v>(slot: &Slot, values: &'v [u8]) -> Input<'v> {
    if slot.element == Element::I8 { Input::I8(bytes::as_i8(values)) } else { Input::U8(values) }
}

impl Run<'_> {
    /// Inputs of 8 bits, and an output of any type.
    fn narrow_inputs<'v, const N: usize>(
        &self,
        activations: &'v mut [u8],
        words: &'v mut [i16],
    ) -> ([Input<'v>; N], Output<'v>) {
        let slots: [&Slot; N] = core::array::from_fn(|k| self.input(k));
        let reads = slots.map(Slot::range);
        let (inputs, data) = match self.slot.wide() {
            false => {
                let (inputs, out) = parts(activations, reads, self.slot.range());
                // The clamp holds the results to the type: as bytes they are the same bits, whatever the sign.
                (inputs, OutputData::U8(out))
            }
            true => {
                let activations = &*activations;
                (reads.map(|range| &activations[range]), OutputData::I16(&mut words[self.slot.range()]))
            }
        };
        let inputs = core::array::from_fn(|k| typed(slots[k], inputs[k]));
        (inputs, Output { data, stride: self.slot.shape.c, offset: 0, addend: None })
    }

    pub(super) fn depthwise(&self, depthwise: &Depthwise, memory: &mut Memory, at: &mut Constants) {
        let Memory { bytes: activations, words, multipliers, biases, .. } = memory;
        let requantizer = self.requantizer(&depthwise.requantization, multipliers, biases, at.channels);
        at.channels += depthwise.channels;
        let geometry = depthwise_geometry(depthwise, self.input(0).shape);
        let ([input], out) = self.narrow_inputs(activations, words);
        let kernel = intseg_kernels::Depthwise { geometry, outside: depthwise.zero };
        kernel.run_requantized(self.ctx, out, input, depthwise.weights, requantizer);
    }

    pub(super) fn table(&self, table: &Table, memory: &mut Memory) {
        let ([input], out) = parts(memory.bytes, [self.input(0).range()], self.slot.range());
        deploy::look_up(self.ctx, out, input, table.values);
    }

    pub(super) fn pad(&self, pad: &Pad, memory: &mut Memory) {
        let (from, to, [top, left]) = (self.input(0).shape, self.slot.shape, pad.padding);
        let ([input], out) = parts(memory.bytes, [self.input(0).range()], self.slot.range());
        let fill = |part: &mut [u8]| part.chunks_exact_mut(to.c).for_each(|pixel| pixel.copy_from_slice(pad.pixel));
        for (y, row) in out.chunks_exact_mut(to.w * to.c).enumerate() {
            match y.checked_sub(top).and_then(|y| input.chunks_exact(from.w * from.c).nth(y)) {
                None => fill(row),
                Some(inside) => {
                    let (before, rest) = row.split_at_mut(left * to.c);
                    let (middle, after) = rest.split_at_mut(inside.len());
                    middle.copy_from_slice(inside);
                    fill(before);
                    fill(after);
                }
            }
        }
    }

    pub(super) fn product(&self, product: &Product, memory: &mut Memory, at: &mut Constants) {
        let Memory { bytes: activations, words, multipliers, biases, .. } = memory;
        let requantizer = self.requantizer(&product.requantization, multipliers, biases, at.channels);
        let shape = self.slot.shape;
        at.channels += shape.c;
        let ([a, b], out) = self.narrow_inputs(activations, words);
        let kernel = deploy::Product { pixels: shape.h * shape.w, channels: shape.c, zero: product.zero };
        kernel.run(self.ctx, out, a, b, requantizer);
    }
}
