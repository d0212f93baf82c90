//! The micro-kernels of the gathering convolution: 14 pixels by 32 channels, and 28 by 16 for thin outputs. Both keep
//! 28 accumulators in registers.

use crate::Context;
use crate::conv::gather::{self, MicroKernel, Reads};
use crate::conv::rows;
use crate::conv::{Convolution, Input, Line, Store};
use crate::isa::Avx512Vnni;
use core::arch::asm;
use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_storeu_si512,
};
use core::ops::Range;

/// Channels of a panel: 16 where 32 would leave half of the work unused.
pub(crate) fn panel_width(plan: &Convolution) -> usize {
    let [.., target] = plan.target();
    if target <= 16 { 16 } else { 32 }
}

/// Runs a convolution of few channels with the kernel that fits its width.
pub(crate) fn run_rows<S: Store>(
    isa: Avx512Vnni,
    plan: &Convolution,
    ctx: Context,
    store: &S,
    input: Input,
    packed: &[Line],
    scratch: &mut [i32],
) {
    match panel_width(plan) {
        16 => rows::run(Kernel::<28, 1, false>(isa), plan, ctx, store, input, packed, scratch),
        _ => rows::run(Kernel::<14, 2, false>(isa), plan, ctx, store, input, packed, scratch),
    }
}

/// Gathers those taps of a convolution whose weights `packed` has, with the kernel that fits its width.
#[allow(clippy::too_many_arguments, reason = "those of `gather::run`")]
pub(crate) fn gather<S: Store>(
    isa: Avx512Vnni,
    plan: &Convolution,
    taps: Range<usize>,
    ctx: Context,
    store: &S,
    input: Input,
    packed: &[Line],
    scratch: &mut [i32],
) {
    match (panel_width(plan), plan.signed) {
        (16, false) => gather::run(Kernel::<28, 1, false>(isa), plan, taps, ctx, store, input, packed, scratch),
        (16, true) => gather::run(Kernel::<28, 1, true>(isa), plan, taps, ctx, store, input, packed, scratch),
        (_, false) => gather::run(Kernel::<14, 2, false>(isa), plan, taps, ctx, store, input, packed, scratch),
        (_, true) => gather::run(Kernel::<14, 2, true>(isa), plan, taps, ctx, store, input, packed, scratch),
    }
}

/// `PIXELS` by `16 · VECTORS` accumulators. Unsigned input is the unsigned operand of the dot product; signed input is
/// the signed one, against weights that packing has biased by 128.
#[derive(Clone, Copy)]
pub(crate) struct Kernel<const PIXELS: usize, const VECTORS: usize, const SIGNED: bool>(pub(crate) Avx512Vnni);

impl<const PIXELS: usize, const VECTORS: usize, const SIGNED: bool> MicroKernel for Kernel<PIXELS, VECTORS, SIGNED> {
    const MR: usize = PIXELS;
    const NR: usize = 16 * VECTORS;
    const BIASED: bool = SIGNED;

    unsafe fn accumulate(self, tile: &mut [i32], add: bool, panel: &[Line], reads: Reads, c4: usize, step: usize) {
        assert_eq!(tile.len(), PIXELS * VECTORS * 16);
        // SAFETY: `self` proves the features; the pointers are as the caller promises.
        unsafe { accumulate::<PIXELS, VECTORS, SIGNED>(tile, add, panel, reads, c4, step) }
    }
}

/// # Safety
/// As [`MicroKernel::accumulate`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn accumulate<const PIXELS: usize, const VECTORS: usize, const SIGNED: bool>(
    tile: &mut [i32],
    add: bool,
    panel: &[Line],
    reads: Reads,
    c4: usize,
    step: usize,
) {
    let mut sums = [[_mm512_setzero_si512(); VECTORS]; PIXELS];
    for tap in reads.taps {
        let sources: &[*const u8; PIXELS] = reads.sources[tap.sources].first_chunk().expect("a table is wide enough");
        let mut weights = panel[tap.index * c4 * VECTORS..][..c4 * VECTORS].as_ptr().cast::<__m512i>();
        let mut at = tap.offset;
        for _ in 0..c4 {
            let mut four = [_mm512_setzero_si512(); VECTORS];
            for (v, four) in four.iter_mut().enumerate() {
                // SAFETY: the slice above has `c4 · VECTORS` lines.
                *four = unsafe { _mm512_loadu_si512(weights.add(v)) };
            }
            // SAFETY: at most one past the slice's end.
            weights = unsafe { weights.add(VECTORS) };
            #[allow(clippy::needless_range_loop, reason = "an index unrolls into registers")]
            for m in 0..PIXELS {
                let input: __m512i;
                // In assembly, since the compiler would rather step 14 pointers than one index, and then keeps most of
                // them in memory: with a load for each, loads take longer than products.
                // SAFETY: each source has four bytes at every step, as the caller promises.
                unsafe {
                    asm!(
                        "vpbroadcastd {input}, dword ptr [{source} + {at}]",
                        input = lateout(zmm_reg) input,
                        source = in(reg) sources[m],
                        at = in(reg) at,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                for v in 0..VECTORS {
                    sums[m][v] = match SIGNED {
                        false => _mm512_dpbusd_epi32(sums[m][v], input, four[v]),
                        true => _mm512_dpbusd_epi32(sums[m][v], four[v], input),
                    };
                }
            }
            at += step as isize;
        }
    }
    for (out, sum) in tile.as_chunks_mut::<16>().0.iter_mut().zip(sums.as_flattened()) {
        let sum = match add {
            // SAFETY: `out` is 64 bytes.
            true => _mm512_add_epi32(unsafe { _mm512_loadu_si512(out.as_ptr().cast()) }, *sum),
            false => *sum,
        };
        // SAFETY: `out` is 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
    }
}
