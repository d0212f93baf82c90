//! Products of two maps, value by value or with one value a channel: gates.

use crate::Context;
use crate::conv::store::Requantized;
use crate::conv::{Input, Output, Requantizer, Store};
use crate::vector::{Element, LANES, Loop, Vector, covering, load};

/// Pixels that one task takes, about so many values.
const PIECE: usize = 1 << 14;
/// Pixels whose products are requantised together.
const PIXELS: usize = 8;

/// The product `(a − zero) · b`, requantised a channel. `a` is `[pixels, channels]`; `b` is the same, or `[1, channels]`:
/// one value for all positions.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Positions.
    pub pixels: usize,
    /// Channels.
    pub channels: usize,
    /// The value of `a` that stands for zero, −128..=255.
    pub zero: i32,
}

impl Product {
    /// Writes the requantised products, which themselves fit 18 bits.
    ///
    /// # Panics
    /// When a slice has another length than the shapes say.
    pub fn run(&self, ctx: Context, out: Output, a: Input, b: Input, requantizer: Requantizer) {
        let store = Requantized::new(ctx.isa, out, requantizer, self.pixels, self.channels);
        match (a, b) {
            (Input::U8(a), Input::U8(b)) => self.pieces(ctx, &store, a, b),
            (Input::U8(a), Input::I8(b)) => self.pieces(ctx, &store, a, b),
            (Input::I8(a), Input::U8(b)) => self.pieces(ctx, &store, a, b),
            (Input::I8(a), Input::I8(b)) => self.pieces(ctx, &store, a, b),
        }
    }

    fn pieces<A: Element, B: Element>(&self, ctx: Context, store: &Requantized, a: &[A], b: &[B]) {
        let Product { pixels, channels, .. } = *self;
        assert_eq!(a.len(), pixels * channels, "first factor");
        assert!(b.len() == a.len() || b.len() == channels, "second factor");
        let each = if b.len() == a.len() { channels } else { 0 };
        let piece = (PIECE / channels.max(1)).max(PIXELS);
        ctx.pool.run(pixels.div_ceil(piece), &|index, _| {
            let pixels = index * piece..pixels.min((index + 1) * piece);
            ctx.isa.run_loop(Piece { store, a, b, each, channels, zero: self.zero, pixels });
        });
    }
}

struct Piece<'a, A, B> {
    store: &'a Requantized<'a>,
    a: &'a [A],
    b: &'a [B],
    /// Values from one pixel of `b` to the next.
    each: usize,
    channels: usize,
    zero: i32,
    pixels: core::ops::Range<usize>,
}

impl<A: Element, B: Element> Loop for Piece<'_, A, B> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let zero = V::splat(self.zero);
        for from in self.pixels.clone().step_by(PIXELS) {
            let count = PIXELS.min(self.pixels.end - from);
            let pixels: [usize; PIXELS] = core::array::from_fn(|p| from + p);
            for (first, len) in covering(self.channels, LANES) {
                let mut products = [0; PIXELS * LANES];
                for (out, &pixel) in products.as_chunks_mut().0.iter_mut().zip(&pixels[..count]) {
                    let a: V = load(self.a, pixel * self.channels + first, len);
                    let b: V = load(self.b, pixel * self.each + first, len);
                    a.sub(zero).mul(b).store_i32(out);
                }
                // SAFETY: nobody else stores these pixels.
                unsafe { self.store.store(&products[..count * LANES], LANES, &pixels[..count], first, len) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::bytes::as_i8;
    use crate::conv::{OutputData, requantize};
    use crate::testing::{Threads, random};
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn products_are_rounded_once_on_every_instruction_set() {
        for (pixels, channels, gate) in [(1, 1, true), (37, 16, true), (53, 41, true), (700, 33, false), (9, 7, false)]
        {
            let bytes = |tensor, len| random(len, tensor, 8).into_iter().map(|v| v as u8).collect::<Vec<_>>();
            let (a, b) = (bytes(1, pixels * channels), bytes(2, if gate { channels } else { pixels * channels }));
            let multiplier = random(channels, 3, 31);
            let bias: Vec<i64> = random(channels, 4, 32).into_iter().map(|v| i64::from(v) << 10).collect();
            let shift: Vec<u8> = (0..channels).map(|k| 38 + (k % 3) as u8).collect();
            let (low, high) = (-90, 100);
            let requantizer = Requantizer { multiplier: &multiplier, bias: &bias, shift: &shift, low, high };
            for (signed, zero) in [([false, false], 17), ([false, true], 255), ([true, false], 0), ([true, true], -128)]
            {
                let plan = Product { pixels, channels, zero };
                let read = |k: usize, v: u8| if signed[k] { i32::from(v as i8) } else { i32::from(v) };
                let input = |k: usize, v| if signed[k] { Input::I8(as_i8(v)) } else { Input::U8(v) };
                for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                    let mut out = vec![0i8; a.len()];
                    let output = Output { data: OutputData::I8(&mut out), stride: channels, offset: 0, addend: None };
                    let ctx = Context { isa, pool: &Threads(threads) };
                    plan.run(ctx, output, input(0, &a), input(1, &b), requantizer);
                    for (i, &got) in out.iter().enumerate() {
                        let k = i % channels;
                        let product = (read(0, a[i]) - zero) * read(1, b[if gate { k } else { i }]);
                        let want = requantize(product, multiplier[k], bias[k], shift[k], low, high);
                        assert_eq!(i32::from(got), want, "{} {signed:?} {i}", isa.name());
                    }
                }
            }
        }
    }
}
