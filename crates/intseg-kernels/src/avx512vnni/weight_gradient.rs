//! The micro-kernels of the weight gradient that shares its packing between taps.

use crate::conv::Line;
use crate::conv::shared_taps::{Accumulate, Place, RowKernel};
use crate::isa::Avx512Vnni;
use core::arch::x86_64::{
    _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};

const fn kernel<const ROWS: usize, const VECTORS: usize>() -> RowKernel {
    let accumulate: Accumulate = accumulate::<ROWS, VECTORS>;
    RowKernel { mr: ROWS, nr: 16 * VECTORS, accumulate }
}

/// For outputs of up to 16 channels and for more, as many rows as registers hold and fewer for what they would waste.
const NARROW: [RowKernel; 4] = [kernel::<28, 1>(), kernel::<24, 1>(), kernel::<16, 1>(), kernel::<9, 1>()];
const WIDE: [RowKernel; 3] = [kernel::<14, 2>(), kernel::<12, 2>(), kernel::<9, 2>()];

/// The micro-kernels for an output of so many channels.
pub(crate) fn kernels(_: Avx512Vnni, c_out: usize) -> &'static [RowKernel] {
    if c_out <= 16 { &NARROW } else { &WIDE }
}

/// # Safety
/// As [`Accumulate`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn accumulate<const ROWS: usize, const VECTORS: usize>(
    tile: &mut [i32],
    error: &[Line],
    input: &[u8],
    places: &[Place],
    groups: usize,
    step: usize,
) {
    assert_eq!(tile.len(), ROWS * VECTORS * 16);
    let mut sums = [[_mm512_setzero_si512(); VECTORS]; ROWS];
    for (sum, from) in sums.as_flattened_mut().iter_mut().zip(tile.as_chunks::<16>().0) {
        // SAFETY: `from` is 64 bytes.
        *sum = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
    }
    for place in places {
        let errors = &error[place.error..][..groups * VECTORS];
        // A pointer that may step behind the input's end: it is not read there.
        let mut source = input[place.input..].as_ptr();
        for errors in errors.as_chunks::<VECTORS>().0 {
            let mut four = [_mm512_setzero_si512(); VECTORS];
            for (four, line) in four.iter_mut().zip(errors) {
                // SAFETY: a line is 64 bytes.
                *four = unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) };
            }
            #[allow(clippy::needless_range_loop, reason = "an index unrolls into registers")]
            for m in 0..ROWS {
                // SAFETY: each row of each group has four bytes, as the caller promises.
                let input = _mm512_set1_epi32(unsafe { source.add(4 * m).cast::<i32>().read_unaligned() });
                for v in 0..VECTORS {
                    sums[m][v] = _mm512_dpbusd_epi32(sums[m][v], input, four[v]);
                }
            }
            source = source.wrapping_add(step);
        }
    }
    for (out, sum) in tile.as_chunks_mut::<16>().0.iter_mut().zip(sums.as_flattened()) {
        // SAFETY: `out` is 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *sum) };
    }
}
