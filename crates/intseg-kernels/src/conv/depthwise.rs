//! Depthwise convolution: every channel has a filter of its own.
//!
//! A tile of output pixels and channels is summed in registers, one vector of channels a pixel, and requantised while it
//! is there. Sums need no scratch, and weights no packing.

use super::store::Requantized;
use super::{Conv2d, Input, Output, Requantizer, Store};
use crate::Context;
use crate::vector::{Element, LANES, Loop, Vector, covering, load};

/// Output pixels of a tile: with AVX2, their sums just fit the registers.
const PIXELS: usize = 6;

/// A convolution of `[N, H, W, C]` with one filter a channel, weights `[KH, KW, C]`.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise {
    /// The geometry; `c_in` and `c_out` are the same.
    pub geometry: Conv2d,
    /// What the input is taken to be outside: the integer that stands for zero.
    pub outside: i32,
}

impl Depthwise {
    /// Writes requantised sums. They are exact: `taps · 255 · 127` must be less than 2^31, which whoever builds a network
    /// checks.
    ///
    /// # Panics
    /// When a slice has another length than the geometry says, or the geometry other channels at its output than at its
    /// input.
    pub fn run_requantized(&self, ctx: Context, out: Output, input: Input, weights: &[i8], requantizer: Requantizer) {
        let g = &self.geometry;
        let taps = g.kernel[0] * g.kernel[1];
        assert_eq!(g.c_in, g.c_out, "channels");
        assert_eq!(weights.len(), taps * g.c_in, "weights");
        let store = Requantized::new(ctx.isa, out, requantizer, g.batch * g.out_h() * g.out_w(), g.c_out);
        match input {
            Input::U8(input) => self.rows(ctx, &store, input, weights),
            Input::I8(input) => self.rows(ctx, &store, input, weights),
        }
    }

    /// Every output row is a task.
    fn rows<T: Element>(&self, ctx: Context, store: &Requantized, input: &[T], weights: &[i8]) {
        let g = &self.geometry;
        assert_eq!(input.len(), g.input_len(), "input");
        let Some([out_h, out_w]) = g.output_size() else { return };
        ctx.pool.run(g.batch * out_h, &|row, _| {
            let image = g.in_h * g.in_w * g.c_in;
            let input = &input[row / out_h * image..][..image];
            ctx.isa.run_loop(Row { plan: self, store, input, weights, row, y: row % out_h, out_w });
        });
    }
}

/// One row of output.
struct Row<'a, T> {
    plan: &'a Depthwise,
    store: &'a Requantized<'a>,
    /// The image that it is of.
    input: &'a [T],
    weights: &'a [i8],
    /// Its number among the rows of all images.
    row: usize,
    /// Its number in its image.
    y: usize,
    out_w: usize,
}

impl<T: Element> Loop for Row<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let channels = self.plan.geometry.c_in;
        for (x, count) in covering(self.out_w, PIXELS) {
            let pixels: [usize; PIXELS] = core::array::from_fn(|p| self.row * self.out_w + x + p);
            for (first, len) in covering(channels, LANES) {
                let mut sums = [0; PIXELS * LANES];
                let tile = self.tile::<V>(x, count, first, len);
                sums.as_chunks_mut().0.iter_mut().zip(tile).for_each(|(sums, vector)| vector.store_i32(sums));
                // SAFETY: nobody else stores this row.
                unsafe { self.store.store(&sums[..count * LANES], LANES, &pixels[..count], first, len) };
            }
        }
    }
}

impl<T: Element> Row<'_, T> {
    /// The sums of the output pixels from `x` on, of some channels; those beyond `count` are of no use.
    #[inline(always)]
    fn tile<V: Vector>(&self, x: usize, count: usize, first: usize, len: usize) -> [V; PIXELS] {
        let Depthwise { geometry: g, outside } = self.plan;
        let mut sums = [V::splat(0); PIXELS];
        for tap_y in 0..g.kernel[0] {
            // An index before the first row or column wraps to beyond the last.
            let sy = (self.y * g.stride[0] + tap_y * g.dilation[0]).wrapping_sub(g.padding[0]);
            if sy >= g.in_h && *outside == 0 {
                continue;
            }
            for tap_x in 0..g.kernel[1] {
                let column = |p: usize| ((x + p) * g.stride[1] + tap_x * g.dilation[1]).wrapping_sub(g.padding[1]);
                let weight: V = load(self.weights, (tap_y * g.kernel[1] + tap_x) * g.c_in + first, len);
                let place = |sx: usize| (sy * g.in_w + sx) * g.c_in + first;
                let whole = count == PIXELS && len == LANES;
                if whole && sy < g.in_h && column(0) < g.in_w && column(PIXELS - 1) < g.in_w {
                    let step = g.stride[1] * g.c_in;
                    let values = &self.input[place(column(0))..][..(PIXELS - 1) * step + LANES];
                    for (p, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: the slice holds as many values behind each of its multiples of the step, up to this one.
                        let values = unsafe { &*values.as_ptr().add(p * step).cast::<[T; LANES]>() };
                        *sum = T::add_product(*sum, T::load(values), weight);
                    }
                    continue;
                }
                for (p, sum) in sums.iter_mut().enumerate().take(count) {
                    *sum = match sy < g.in_h && column(p) < g.in_w {
                        true => T::add_product(*sum, load(self.input, place(column(p)), len), weight),
                        false => sum.add(V::splat(*outside).mul(weight)),
                    };
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::conv::{OutputData, requantize};
    use crate::testing::{Threads, geometry, random};
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// The sum at an output position, by the definition.
    fn sum(plan: &Depthwise, input: &[i32], weights: &[i8], [n, y, x, k]: [usize; 4]) -> i32 {
        let g = &plan.geometry;
        let taps = (0..g.kernel[0]).flat_map(|i| (0..g.kernel[1]).map(move |j| [i, j]));
        taps.map(|tap| {
            let place = |axis: usize, at: usize| {
                (at * g.stride[axis] + tap[axis] * g.dilation[axis]) as i64 - g.padding[axis] as i64
            };
            let (sy, sx) = (place(0, y), place(1, x));
            let inside = (0..g.in_h as i64).contains(&sy) && (0..g.in_w as i64).contains(&sx);
            let value = match inside {
                true => input[((n * g.in_h + sy as usize) * g.in_w + sx as usize) * g.c_in + k],
                false => plan.outside,
            };
            value * i32::from(weights[(tap[0] * g.kernel[1] + tap[1]) * g.c_in + k])
        })
        .sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn a_depthwise_convolution_is_the_definition_on_every_instruction_set(
            g in geometry(1..3, 1..20, (1..70usize).prop_map(|c| (c, c)), [5, 3, 3, 5]), signed: bool, extreme: bool, outside in -128..256i32,
        ) {
            let plan = Depthwise { geometry: g, outside: if signed { outside % 128 } else { outside.abs() % 256 } };
            let value = |v: i32| match (extreme, signed) {
                (true, true) => -128,
                (true, false) => 255,
                (false, true) => v,
                (false, false) => v & 255,
            };
            let input: Vec<i32> = random(g.input_len(), 1, 8).into_iter().map(value).collect();
            let weight = |v: i32| if extreme { 127 } else { v.max(-127) as i8 };
            let weights: Vec<i8> = random(g.kernel[0] * g.kernel[1] * g.c_in, 2, 8).into_iter().map(weight).collect();
            let multiplier: Vec<i32> = random(g.c_in, 3, 31);
            let bias: Vec<i64> = random(g.c_in, 4, 32).into_iter().map(|v| i64::from(v) << 8).collect();
            let shift: Vec<u8> = (0..g.c_in).map(|k| 36 + (k % 3) as u8).collect();
            let (low, high) = (-100, 3000);
            let requantizer = Requantizer { multiplier: &multiplier, bias: &bias, shift: &shift, low, high };
            let unsigned: Vec<u8> = input.iter().map(|&v| v as u8).collect();
            for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                let mut out = vec![0i16; g.output_len()];
                let bytes = if signed { Input::I8(crate::bytes::as_i8(&unsigned)) } else { Input::U8(&unsigned) };
                let ctx = Context { isa, pool: &Threads(threads) };
                let output = Output { data: OutputData::I16(&mut out), stride: g.c_out, offset: 0, addend: None };
                plan.run_requantized(ctx, output, bytes, &weights, requantizer);
                for (i, &got) in out.iter().enumerate() {
                    let (pixel, k) = (i / g.c_in, i % g.c_in);
                    let at = [pixel / g.out_w() / g.out_h(), pixel / g.out_w() % g.out_h(), pixel % g.out_w(), k];
                    let sum = sum(&plan, &input, &weights, at);
                    let want = requantize(sum, multiplier[k], bias[k], shift[k], low, high);
                    prop_assert_eq!(i32::from(got), want, "{} {:?} at {:?}", isa.name(), g, at);
                }
            }
        }
    }
}
