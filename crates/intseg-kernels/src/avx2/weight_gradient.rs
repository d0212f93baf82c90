//! The micro-kernel of the weight gradient that shares its packing between taps: that of the convolution, a row of
//! pixels at a time.

use super::convolution::{Kernel, MR, NR};
use crate::conv::Line;
use crate::conv::gather::{MAX_MR, MicroKernel, Reads, Start, Tap};
use crate::conv::shared_taps::{Place, RowKernel};
use crate::isa::Avx2;

/// The micro-kernel.
pub(crate) fn kernels(_: Avx2) -> &'static [RowKernel] {
    &[RowKernel { mr: MR, nr: NR, accumulate }]
}

/// # Safety
/// As [`crate::conv::shared_taps::Accumulate`].
unsafe fn accumulate(tile: &mut [i32], error: &[Line], input: &[u8], places: &[Place], groups: usize, step: usize) {
    // SAFETY: the caller promises the instruction set.
    let kernel = Kernel::new(unsafe { Avx2::promised() }, false);
    for place in places {
        let mut sources = [input.as_ptr(); MAX_MR];
        for (m, source) in sources[..MR].iter_mut().enumerate() {
            *source = input[place.input + 4 * m..].as_ptr();
        }
        let (taps, sources) = (&[Tap { index: 0, sources: 0, offset: 0 }], &[sources]);
        let reads = Reads { taps, sources, along: Some(4) };
        // SAFETY: each row of each group has four bytes, as the caller promises.
        unsafe { kernel.accumulate(tile, Start::Tile, &error[place.error..], reads, groups, step) };
    }
}
