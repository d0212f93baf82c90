//! The micro-kernel of the gathering convolution: tiles of 4 pixels by 16 channels, computed two pixels at a time.

use crate::conv::Line;
use crate::conv::gather::{MicroKernel, Reads, Start};
use crate::isa::Avx2;
use core::arch::x86_64::{
    __m128i, __m256i, _mm_cvtepi8_epi16, _mm_cvtepu8_epi16, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_add_epi32,
    _mm256_broadcastq_epi64, _mm256_cvtepi8_epi16, _mm256_hadd_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_permute4x64_epi64, _mm256_setzero_si256, _mm256_storeu_si256,
};

/// Channels of a panel.
pub(crate) const NR: usize = 16;
/// Pixels of a tile.
pub(crate) const MR: usize = 4;

/// Proof of AVX2, and whether the input is signed.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    _isa: Avx2,
    signed: bool,
}

impl Kernel {
    pub fn new(isa: Avx2, signed: bool) -> Self {
        Kernel { _isa: isa, signed }
    }
}

impl MicroKernel for Kernel {
    const MR: usize = MR;
    const NR: usize = NR;
    const BIASED: bool = false;

    unsafe fn accumulate(self, tile: &mut [i32], start: Start, panel: &[Line], reads: Reads, c4: usize, step: usize) {
        for (pair, tile) in tile.as_chunks_mut::<{ 2 * NR }>().0.iter_mut().enumerate() {
            match start {
                Start::Zero => tile.fill(0),
                Start::Tile => {}
                Start::Row(row) => tile.chunks_exact_mut(NR).for_each(|sums| sums.copy_from_slice(row)),
            }
            // SAFETY: `self` proves AVX2; the pointers are as the caller promises.
            unsafe {
                match self.signed {
                    false => accumulate_two::<false>(tile, panel, reads, 2 * pair, [c4, step]),
                    true => accumulate_two::<true>(tile, panel, reads, 2 * pair, [c4, step]),
                }
            }
        }
    }
}

/// Two pixels, `m` and `m + 1`. An accumulator holds four channels, two partial sums each.
///
/// # Safety
/// As [`MicroKernel::accumulate`].
#[target_feature(enable = "avx2")]
unsafe fn accumulate_two<const SIGNED: bool>(
    tile: &mut [i32; 2 * NR],
    panel: &[Line],
    reads: Reads,
    m: usize,
    [c4, step]: [usize; 2],
) {
    let mut sums = [[_mm256_setzero_si256(); 4]; 2];
    for tap in reads.taps {
        let sources = &reads.sources[tap.sources];
        for (group, line) in panel[tap.index * c4..][..c4].iter().enumerate() {
            // SAFETY: each source has four bytes at every step, as the caller promises.
            let words = [0, 1].map(|p| unsafe {
                let at = tap.offset + (group * step) as isize;
                sources[m + p].offset(at).cast::<i32>().read_unaligned()
            });
            let inputs = words.map(|word| widen::<SIGNED>(_mm_cvtsi32_si128(word)));
            for (four, channels) in line.0.as_chunks::<16>().0.iter().enumerate() {
                // SAFETY: `channels` is 16 bytes.
                let weights = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(channels.as_ptr().cast()) });
                for p in 0..2 {
                    sums[p][four] = _mm256_add_epi32(sums[p][four], _mm256_madd_epi16(inputs[p], weights));
                }
            }
        }
    }
    for p in 0..2 {
        for half in 0..2 {
            let out = &mut tile[p * NR + half * 8..][..8];
            // Adding neighbours of two vectors interleaves their halves; the permutation puts channels in order.
            let pairs = _mm256_hadd_epi32(sums[p][2 * half], sums[p][2 * half + 1]);
            let sum = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            // SAFETY: `out` is 32 bytes.
            let before: __m256i = unsafe { _mm256_loadu_si256(out.as_ptr().cast()) };
            // SAFETY: `out` is 32 bytes.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_add_epi32(before, sum)) };
        }
    }
}

/// Four bytes as 16-bit integers, four times over.
#[target_feature(enable = "avx2")]
fn widen<const SIGNED: bool>(four: __m128i) -> __m256i {
    _mm256_broadcastq_epi64(match SIGNED {
        false => _mm_cvtepu8_epi16(four),
        true => _mm_cvtepi8_epi16(four),
    })
}
