//! The micro-kernels of the gathering convolution: 14 pixels by 32 channels, and 28 by 16 for thin outputs. Both keep
//! 28 accumulators in registers.

use crate::Context;
use crate::conv::gather::{self, MicroKernel, Reads, Start};
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

    unsafe fn accumulate(self, tile: &mut [i32], start: Start, panel: &[Line], reads: Reads, c4: usize, step: usize) {
        assert_eq!(tile.len(), PIXELS * VECTORS * 16);
        // SAFETY: `self` proves the features; the pointers are as the caller promises.
        unsafe { accumulate::<PIXELS, VECTORS, SIGNED>(tile, start, panel, reads, c4, step) }
    }
}

/// # Safety
/// As [`MicroKernel::accumulate`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn accumulate<const PIXELS: usize, const VECTORS: usize, const SIGNED: bool>(
    tile: &mut [i32],
    start: Start,
    panel: &[Line],
    reads: Reads,
    c4: usize,
    step: usize,
) {
    let mut row = [_mm512_setzero_si512(); VECTORS];
    if let Start::Row(starts) = start {
        for (vector, starts) in row.iter_mut().zip(starts.as_chunks::<16>().0) {
            // SAFETY: `starts` is 64 bytes.
            *vector = unsafe { _mm512_loadu_si512(starts.as_ptr().cast()) };
        }
    }
    let mut sums = [row; PIXELS];
    for tap in reads.taps {
        let sources: &[*const u8; PIXELS] = reads.sources[tap.sources].first_chunk().expect("a table is wide enough");
        let weights = &panel[tap.index * c4 * VECTORS..][..c4 * VECTORS];
        match reads.along.filter(|_| VECTORS == 1 && tap.sources == 0) {
            // SAFETY: the caller's promise is handed on: each of these pixels is as far from the one before.
            Some(along) => unsafe {
                add_row::<PIXELS, VECTORS, SIGNED>(
                    &mut sums,
                    weights,
                    sources[0].wrapping_offset(tap.offset),
                    along,
                    step,
                )
            },
            // SAFETY: the caller's promise is handed on.
            None => unsafe { add_pixels::<PIXELS, VECTORS, SIGNED>(&mut sums, weights, sources, tap.offset, step) },
        }
    }
    for (out, sum) in tile.as_chunks_mut::<16>().0.iter_mut().zip(sums.as_flattened()) {
        let sum = match start {
            // SAFETY: `out` is 64 bytes.
            Start::Tile => _mm512_add_epi32(unsafe { _mm512_loadu_si512(out.as_ptr().cast()) }, *sum),
            Start::Zero | Start::Row(_) => *sum,
        };
        // SAFETY: `out` is 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
    }
}

/// Adds a tap's products for pixels that lie anywhere.
///
/// # Safety
/// The instructions must be there, and every source must have four readable bytes at `at + 0, step, …`, once for each
/// `VECTORS` lines of weights.
#[inline(always)]
unsafe fn add_pixels<const PIXELS: usize, const VECTORS: usize, const SIGNED: bool>(
    sums: &mut [[__m512i; VECTORS]; PIXELS],
    weights: &[Line],
    sources: &[*const u8; PIXELS],
    mut at: isize,
    step: usize,
) {
    for weights in weights.as_chunks::<VECTORS>().0 {
        // SAFETY: the caller's promise is handed on.
        unsafe {
            let four = load(weights);
            #[allow(clippy::needless_range_loop, reason = "an index unrolls into registers")]
            for m in 0..PIXELS {
                add_products::<VECTORS, SIGNED>(&mut sums[m], broadcast(sources[m], at), &four);
            }
        }
        at += step as isize;
    }
}

/// Adds a tap's products for up to 36 pixels `along` bytes apart and one vector of channels: one pointer and four multiples
/// of that address nine of them, so that all addresses fit registers. With a load for each, loads take longer than products.
///
/// # Safety
/// The instructions must be there, and every pixel must have four readable bytes at `0, step, …`, once for each line of
/// weights.
#[inline(always)]
unsafe fn add_row<const PIXELS: usize, const VECTORS: usize, const SIGNED: bool>(
    sums: &mut [[__m512i; VECTORS]; PIXELS],
    weights: &[Line],
    source: *const u8,
    along: usize,
    step: usize,
) {
    let along = [1, 3, 5, 7].map(|times| (times * along) as isize);
    let mut nines: [*const u8; 4] = [0, 1, 2, 3].map(|nine| source.wrapping_offset(9 * nine * along[0]));
    for weights in weights {
        // SAFETY: the caller's promise is handed on.
        unsafe {
            let [four] = load(&[*weights]);
            add_nine::<PIXELS, VECTORS, SIGNED>(sums, 0, nines[0], along, four);
            add_nine::<PIXELS, VECTORS, SIGNED>(sums, 9, nines[1], along, four);
            add_nine::<PIXELS, VECTORS, SIGNED>(sums, 18, nines[2], along, four);
            add_nine::<PIXELS, VECTORS, SIGNED>(sums, 27, nines[3], along, four);
        }
        nines = nines.map(|nine| nine.wrapping_add(step));
    }
}

/// Adds four channels' products for nine pixels from number `first` on, as far as there are so many.
///
/// # Safety
/// As [`add_row`].
#[inline(always)]
unsafe fn add_nine<const PIXELS: usize, const VECTORS: usize, const SIGNED: bool>(
    sums: &mut [[__m512i; VECTORS]; PIXELS],
    first: usize,
    from: *const u8,
    [one, three, five, seven]: [isize; 4],
    weights: __m512i,
) {
    // SAFETY: the caller's promise is handed on; what is beyond the last pixel is not read.
    unsafe {
        // Nine lines, since the compiler would not unroll a loop over them.
        add_one::<1, PIXELS, VECTORS, SIGNED>(sums, first, from, 0, weights);
        add_one::<1, PIXELS, VECTORS, SIGNED>(sums, first + 1, from, one, weights);
        add_one::<2, PIXELS, VECTORS, SIGNED>(sums, first + 2, from, one, weights);
        add_one::<1, PIXELS, VECTORS, SIGNED>(sums, first + 3, from, three, weights);
        add_one::<4, PIXELS, VECTORS, SIGNED>(sums, first + 4, from, one, weights);
        add_one::<1, PIXELS, VECTORS, SIGNED>(sums, first + 5, from, five, weights);
        add_one::<2, PIXELS, VECTORS, SIGNED>(sums, first + 6, from, three, weights);
        add_one::<1, PIXELS, VECTORS, SIGNED>(sums, first + 7, from, seven, weights);
        add_one::<8, PIXELS, VECTORS, SIGNED>(sums, first + 8, from, one, weights);
    }
}

/// Adds four channels' products for a pixel whose bytes are at `from + SCALE · index`, if there is one of that number.
///
/// # Safety
/// The instructions must be there, and a pixel's bytes be readable.
#[inline(always)]
unsafe fn add_one<const SCALE: usize, const PIXELS: usize, const VECTORS: usize, const SIGNED: bool>(
    sums: &mut [[__m512i; VECTORS]; PIXELS],
    pixel: usize,
    from: *const u8,
    index: isize,
    weights: __m512i,
) {
    if pixel < PIXELS {
        // SAFETY: the caller's promise is handed on.
        sums[pixel][0] = unsafe { plus_product::<SCALE, SIGNED>(sums[pixel][0], from, index, weights) };
    }
}

/// `sum` and the products of the four bytes at `from + SCALE · index` with each lane of the weights. In assembly, since the
/// compiler would load the bytes of all pixels before it multiplies, for which there are no registers.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn plus_product<const SCALE: usize, const SIGNED: bool>(
    mut sum: __m512i,
    from: *const u8,
    index: isize,
    weights: __m512i,
) -> __m512i {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        if SIGNED {
            asm!(
                "vpdpbusd {sum}, {weights}, dword ptr [{from} + {scale}*{index}]{{1to16}}",
                sum = inlateout(zmm_reg) sum,
                weights = in(zmm_reg) weights,
                from = in(reg) from,
                index = in(reg) index,
                scale = const SCALE,
                options(pure, readonly, nostack, preserves_flags),
            );
        } else {
            asm!(
                "vpbroadcastd {input}, dword ptr [{from} + {scale}*{index}]",
                "vpdpbusd {sum}, {input}, {weights}",
                input = out(zmm_reg) _,
                sum = inout(zmm_reg) sum,
                weights = in(zmm_reg) weights,
                from = in(reg) from,
                index = in(reg) index,
                scale = const SCALE,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }
    sum
}

/// The four bytes at `from + at` in every lane. In assembly, since the compiler would rather step a pointer for each pixel
/// than one index, and then keeps most of them in memory: with a load for each, loads take longer than products.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn broadcast(from: *const u8, at: isize) -> __m512i {
    let lanes: __m512i;
    // SAFETY: the caller's promise is handed on.
    unsafe {
        asm!(
            "vpbroadcastd {lanes}, dword ptr [{from} + {at}]",
            lanes = lateout(zmm_reg) lanes,
            from = in(reg) from,
            at = in(reg) at,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    lanes
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load<const VECTORS: usize>(lines: &[Line; VECTORS]) -> [__m512i; VECTORS] {
    let mut vectors = [_mm512_setzero_si512(); VECTORS];
    for (vector, line) in vectors.iter_mut().zip(lines) {
        // SAFETY: a line is 64 bytes.
        *vector = unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) };
    }
    vectors
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_products<const VECTORS: usize, const SIGNED: bool>(
    sums: &mut [__m512i; VECTORS],
    input: __m512i,
    weights: &[__m512i; VECTORS],
) {
    for (sum, four) in sums.iter_mut().zip(weights) {
        *sum = match SIGNED {
            false => _mm512_dpbusd_epi32(*sum, input, *four),
            true => _mm512_dpbusd_epi32(*sum, *four, input),
        };
    }
}
