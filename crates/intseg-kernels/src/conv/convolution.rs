//! Forward and backward-data convolution.

use super::store::{Accumulators, Requantized, Store, prepared_lines};
use super::{Conv2d, Direction, Input, Line, Output, Requantizer, Weights, pack};
#[cfg(target_arch = "x86_64")]
use super::{gather, rows, winograd};
use crate::vector::LANES;
use crate::{Context, Isa, scalar};
#[cfg(target_arch = "x86_64")]
use crate::{avx2, avx512vnni};
use core::ops::Range;

/// A convolution in one direction, ready to run.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// The geometry, in forward terms.
    pub geometry: Conv2d,
    /// Which way it runs.
    pub direction: Direction,
    /// Whether the input is [`Input::I8`].
    pub signed: bool,
}

impl Convolution {
    /// Rows, columns and channels of what is read.
    pub(crate) fn source(&self) -> [usize; 3] {
        let g = &self.geometry;
        match self.direction {
            Direction::Forward => [g.in_h, g.in_w, g.c_in],
            Direction::Transposed => [g.out_h(), g.out_w(), g.c_out],
        }
    }

    /// Rows, columns and channels of what is written.
    pub(crate) fn target(&self) -> [usize; 3] {
        let g = &self.geometry;
        match self.direction {
            Direction::Forward => [g.out_h(), g.out_w(), g.c_out],
            Direction::Transposed => [g.in_h, g.in_w, g.c_in],
        }
    }

    /// Taps of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.geometry.kernel[0] * self.geometry.kernel[1]
    }

    /// How many [`Line`]s the packed weights take.
    pub fn packed_len(&self, isa: Isa) -> usize {
        match isa {
            Isa::Scalar => 0,
            #[cfg(target_arch = "x86_64")]
            _ if rows::fits(self) => rows::packed_lines(self, self.panel_width(isa)),
            #[cfg(target_arch = "x86_64")]
            _ => pack::packed_lines(self, self.panel_width(isa)),
        }
    }

    /// Channels of a panel of packed weights.
    pub(super) fn panel_width(&self, isa: Isa) -> usize {
        match isa {
            Isa::Scalar => LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => avx2::convolution::NR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => avx512vnni::convolution::panel_width(self),
        }
    }

    /// Packs `weights` (`[KH, KW, C_in, C_out]`) for the context's instruction set.
    ///
    /// # Panics
    /// When a slice has another length than asked for.
    pub fn pack(&self, ctx: Context, packed: &mut [Line], weights: &[i8]) {
        self.pack_taps(ctx, packed, 0..self.taps(), weights);
    }

    /// Packs the weights of some taps, `[taps, C_in, C_out]` with the taps of the kernel row by row; the others stay as
    /// they are.
    ///
    /// # Panics
    /// When a slice has another length than asked for.
    pub fn pack_taps(&self, ctx: Context, packed: &mut [Line], taps: Range<usize>, weights: &[i8]) {
        assert_eq!(weights.len(), taps.len() * self.geometry.c_in * self.geometry.c_out, "weights");
        assert_eq!(packed.len(), self.packed_len(ctx.isa), "packed weights");
        assert!(taps.end <= self.taps(), "taps");
        match ctx.isa {
            Isa::Scalar => {}
            #[cfg(target_arch = "x86_64")]
            isa if rows::fits(self) => rows::pack(self, self.panel_width(isa), packed, taps, weights),
            #[cfg(target_arch = "x86_64")]
            isa => pack::pack(ctx, self, self.panel_width(isa), self.flip(isa), packed, taps, weights),
        }
    }

    /// The bits of each weight that packing flips.
    pub(super) fn flip(&self, isa: Isa) -> u8 {
        match isa {
            // Signed × signed: the weights become the unsigned operand of the dot product.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) if self.signed => 0x80,
            _ => 0,
        }
    }

    /// How many i32 of scratch a run takes.
    pub fn scratch_len(&self, ctx: Context) -> usize {
        self.prepared_len(ctx) + self.sums_scratch_len(ctx)
    }

    /// How many of them the sums take.
    pub(super) fn sums_scratch_len(&self, ctx: Context) -> usize {
        let threads = ctx.pool.threads();
        match ctx.isa {
            Isa::Scalar => scalar::convolution::scratch_len(self, threads),
            #[cfg(target_arch = "x86_64")]
            isa if rows::fits(self) => rows::scratch_len(self, self.panel_width(isa)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) if winograd::pays::<avx2::winograd::Kernel>(self) => {
                winograd::scratch_len::<avx2::winograd::Kernel>(self, threads)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) if winograd::pays::<avx512vnni::winograd::Kernel>(self) => {
                winograd::scratch_len::<avx512vnni::winograd::Kernel>(self, threads)
            }
            #[cfg(target_arch = "x86_64")]
            _ => gather::scratch_len(self),
        }
    }

    /// Writes the exact sums, `[N, H', W', C']` of the direction's output. They fit i32 when
    /// `taps · channels · 255 · 127 < 2^31`, which whoever builds a network checks.
    ///
    /// # Panics
    /// When a slice has another length than the geometry says, or the input another sign than the plan.
    pub fn run(&self, ctx: Context, out: &mut [i32], input: Input, weights: Weights, scratch: &mut [i32]) {
        let [h, w, c] = self.target();
        assert_eq!(out.len(), self.geometry.batch * h * w * c, "output");
        self.dispatch(ctx, &Accumulators::new(out, c), input, weights, scratch);
    }

    /// Writes requantised sums.
    ///
    /// # Panics
    /// As [`Convolution::run`].
    pub fn run_requantized(
        &self,
        ctx: Context,
        out: Output,
        input: Input,
        weights: Weights,
        requantizer: Requantizer,
        scratch: &mut [i32],
    ) {
        assert!(scratch.len() >= self.scratch_len(ctx), "scratch");
        let (prepared, scratch) = scratch.split_at_mut(self.prepared_len(ctx));
        let store = self.requantized(ctx, out, requantizer, prepared);
        self.dispatch(ctx, &store, input, weights, scratch);
    }

    /// How many i32 of scratch prepared constants of a requantisation take.
    pub(super) fn prepared_len(&self, ctx: Context) -> usize {
        Line::words(prepared_lines(ctx.isa, self.target()[2]))
    }

    /// What requantises the sums into `out`.
    pub(super) fn requantized<'a>(
        &self,
        ctx: Context,
        out: Output<'a>,
        requantizer: Requantizer<'a>,
        prepared: &'a mut [i32],
    ) -> Requantized<'a> {
        let [h, w, c] = self.target();
        // No product of bytes is larger, whatever their signs.
        let bound = (self.taps() * self.source()[2]) as i64 * (255 * 128);
        let store = Requantized::new(ctx.isa, out, requantizer, self.geometry.batch * h * w, c);
        store.with_bound(bound, &mut Line::in_words(prepared)[..prepared_lines(ctx.isa, c)])
    }

    fn dispatch<S: Store>(&self, ctx: Context, store: &S, input: Input, weights: Weights, scratch: &mut [i32]) {
        let [h, w, c] = self.source();
        let (len, signed) = match input {
            Input::U8(data) => (data.len(), false),
            Input::I8(data) => (data.len(), true),
        };
        assert_eq!(len, self.geometry.batch * h * w * c, "input");
        assert_eq!(signed, self.signed, "the input's sign");
        if ctx.isa == Isa::Scalar {
            assert_eq!(weights.raw.len(), self.geometry.weights_len(), "weights");
        }
        assert_eq!(weights.packed.len(), self.packed_len(ctx.isa), "packed weights");
        assert!(scratch.len() >= self.sums_scratch_len(ctx), "scratch");
        match ctx.isa {
            Isa::Scalar => scalar::convolution::run(self, ctx, store, input, weights.raw, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(isa) if rows::fits(self) => {
                let kernel = avx2::convolution::Kernel::new(isa, false);
                rows::run(kernel, self, ctx, store, input, weights.packed, scratch);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(isa) if winograd::pays::<avx2::winograd::Kernel>(self) => {
                winograd::run(avx2::winograd::Kernel(isa), self, ctx, store, input, weights.packed, scratch);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(isa) if winograd::pays::<avx512vnni::winograd::Kernel>(self) => {
                winograd::run(avx512vnni::winograd::Kernel(isa), self, ctx, store, input, weights.packed, scratch);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(isa) if rows::fits(self) => {
                avx512vnni::convolution::run_rows(isa, self, ctx, store, input, weights.packed, scratch);
            }
            #[cfg(target_arch = "x86_64")]
            _ => self.gather(ctx, 0..self.taps(), store, input, weights.packed, scratch),
        }
    }

    /// Gathers some taps, whose weights alone `packed` has.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn gather<S: Store>(
        &self,
        ctx: Context,
        taps: Range<usize>,
        store: &S,
        input: Input,
        packed: &[Line],
        scratch: &mut [i32],
    ) {
        match ctx.isa {
            Isa::Scalar => unreachable!("portable code packs no weights"),
            Isa::Avx2(isa) => {
                let kernel = avx2::convolution::Kernel::new(isa, self.signed);
                gather::run(kernel, self, taps, ctx, store, input, packed, scratch);
            }
            Isa::Avx512Vnni(isa) => {
                avx512vnni::convolution::gather(isa, self, taps, ctx, store, input, packed, scratch);
            }
        }
    }

    /// Runs by Winograd tiles whether that pays or not; `false` where an instruction set has none.
    #[cfg(test)]
    pub(crate) fn run_winograd(&self, ctx: Context, out: &mut [i32], input: Input, weights: Weights) -> bool {
        fn run<K: winograd::Multiply>(
            kernel: K,
            plan: &Convolution,
            ctx: Context,
            out: &mut [i32],
            input: Input,
            packed: &[Line],
        ) {
            let mut scratch = std::vec![-1; winograd::scratch_len::<K>(plan, ctx.pool.threads())];
            let store = Accumulators::new(out, plan.target()[2]);
            winograd::run(kernel, plan, ctx, &store, input, packed, &mut scratch);
        }
        match ctx.isa {
            Isa::Scalar => return false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(isa) => run(avx2::winograd::Kernel(isa), self, ctx, out, input, weights.packed),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(isa) => run(avx512vnni::winograd::Kernel(isa), self, ctx, out, input, weights.packed),
        }
        true
    }
}
