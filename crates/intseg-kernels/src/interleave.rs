//! Four rows of bytes as groups of four: what the dot-product instructions read.

/// `out[4·i + lane] = rows[lane][i] ^ flip`. Flipping with 0x80 adds 128 to signed bytes.
///
/// # Panics
/// When a row is shorter than a quarter of `out`.
#[inline(always)]
pub(crate) fn interleave(out: &mut [u8], rows: [&[u8]; 4], flip: u8) {
    let len = out.len() / 4;
    let [a, b, c, d] = rows;
    let (a, b, c, d) = (&a[..len], &b[..len], &c[..len], &d[..len]);
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    {
        let out = out.as_chunks_mut::<64>().0.iter_mut();
        let ([a, b], [c, d]) = ([chunks(a), chunks(b)], [chunks(c), chunks(d)]);
        for ((((out, a), b), c), d) in out.zip(a).zip(b).zip(c).zip(d) {
            interleave_16(out, [a, b, c, d], flip);
            done += 16;
        }
    }
    for (i, out) in out[4 * done..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let i = done + i;
        *out = [a[i] ^ flip, b[i] ^ flip, c[i] ^ flip, d[i] ^ flip];
    }
}

/// Interleaves a row of four lanes: `used` channels of pixels `stride` apart, written `pitch` groups apart. A lane that
/// does not exist counts as 0.
#[inline(always)]
pub(crate) fn interleave_row(
    out: &mut [u8],
    from: &[u8],
    lanes: [Option<usize>; 4],
    used: usize,
    stride: usize,
    pitch: usize,
    flip: u8,
) {
    let pixels = out.len() / (4 * pitch);
    if let [Some(a), Some(b), Some(c), Some(d)] = lanes {
        let lanes = [a, b, c, d];
        if used == stride && used == pitch {
            return interleave(out, lanes.map(|at| &from[at..][..pixels * used]), flip);
        }
        for (pixel, out) in out.chunks_exact_mut(4 * pitch).enumerate() {
            interleave(&mut out[..4 * used], lanes.map(|at| &from[at + pixel * stride..][..used]), flip);
        }
        return;
    }
    if lanes == [None; 4] {
        return out.fill(flip);
    }
    for (pixel, out) in out.chunks_exact_mut(4 * pitch).enumerate() {
        for (channel, out) in out[..4 * used].as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *out = lanes.map(|lane| lane.map_or(0, |at| from[at + pixel * stride + channel]) ^ flip);
        }
    }
}

/// `out[pitch·i + lane] = rows[lane][4·i..4·i + 4]`, with bits flipped: whole words alone. Behind the last there may be fewer
/// than `pitch` words.
///
/// # Panics
/// When `out` is too short, a row shorter than the first, or `pitch` below 4.
#[inline(always)]
pub(crate) fn transpose_words(out: &mut [[u8; 4]], pitch: usize, rows: [&[u8]; 4], flip: u32) {
    let [a, b, c, d] = rows;
    let words = a.len() / 4;
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    {
        let ([a, b], [c, d]) = ([chunks(a), chunks(b)], [chunks(c), chunks(d)]);
        for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
            transpose_16(&mut out[done * pitch..][..3 * pitch + 4], pitch, [a, b, c, d], flip);
            done += 4;
        }
    }
    for i in done..words {
        for (out, row) in out[i * pitch..][..4].iter_mut().zip(rows) {
            let word = row[4 * i..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
            *out = (word ^ flip).to_ne_bytes();
        }
    }
}

/// Four words of four rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_16(out: &mut [[u8; 4]], pitch: usize, rows: [&[u8; 16]; 4], flip: u32) {
    use core::arch::x86_64::{
        _mm_loadu_si128, _mm_set1_epi32, _mm_storeu_si128, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32,
        _mm_unpacklo_epi64, _mm_xor_si128,
    };
    // SAFETY: SSE2 is part of every x86-64; rows and what is written are 16 bytes.
    unsafe {
        let [a, b, c, d] = rows;
        let (a, b) = (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast()));
        let (c, d) = (_mm_loadu_si128(c.as_ptr().cast()), _mm_loadu_si128(d.as_ptr().cast()));
        let flip = _mm_set1_epi32(flip as i32);
        let (ab, cd) = (
            [_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b)],
            [_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d)],
        );
        let words = [
            _mm_unpacklo_epi64(ab[0], cd[0]),
            _mm_unpackhi_epi64(ab[0], cd[0]),
            _mm_unpacklo_epi64(ab[1], cd[1]),
            _mm_unpackhi_epi64(ab[1], cd[1]),
        ];
        for (out, four) in out.chunks_mut(pitch).zip(words) {
            let out: &mut [[u8; 4]; 4] = out.first_chunk_mut().expect("rows of words are four apart");
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_xor_si128(four, flip));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn chunks(row: &[u8]) -> &[[u8; 16]] {
    row.as_chunks().0
}

/// Sixteen groups.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn interleave_16(out: &mut [u8; 64], rows: [&[u8; 16]; 4], flip: u8) {
    use core::arch::x86_64::{
        _mm_loadu_si128, _mm_set1_epi8, _mm_storeu_si128, _mm_unpackhi_epi8, _mm_unpackhi_epi16, _mm_unpacklo_epi8,
        _mm_unpacklo_epi16, _mm_xor_si128,
    };
    // SAFETY: SSE2 is part of every x86-64; rows are 16 bytes, the output 64.
    unsafe {
        let [a, b, c, d] = rows;
        let (a, b) = (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast()));
        let (c, d) = (_mm_loadu_si128(c.as_ptr().cast()), _mm_loadu_si128(d.as_ptr().cast()));
        let flip = _mm_set1_epi8(flip as i8);
        let (ab, cd) =
            ([_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)], [_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d)]);
        let groups = [
            _mm_unpacklo_epi16(ab[0], cd[0]),
            _mm_unpackhi_epi16(ab[0], cd[0]),
            _mm_unpacklo_epi16(ab[1], cd[1]),
            _mm_unpackhi_epi16(ab[1], cd[1]),
        ];
        for (k, four) in groups.into_iter().enumerate() {
            _mm_storeu_si128(out.as_mut_ptr().add(16 * k).cast(), _mm_xor_si128(four, flip));
        }
    }
}

/// Thirty-two groups.
///
/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn interleave_32(out: &mut [u8; 128], rows: [&[u8; 32]; 4], flip: u8) {
    use core::arch::x86_64::{
        _mm256_loadu_si256, _mm256_permute2x128_si256, _mm256_set1_epi8, _mm256_storeu_si256, _mm256_unpackhi_epi8,
        _mm256_unpackhi_epi16, _mm256_unpacklo_epi8, _mm256_unpacklo_epi16, _mm256_xor_si256,
    };
    let flip = _mm256_set1_epi8(flip as i8);
    // SAFETY: rows are 32 bytes.
    let [a, b, c, d] = rows.map(|row| unsafe { _mm256_loadu_si256(row.as_ptr().cast()) });
    let [ab, cd] = [(a, b), (c, d)].map(|(a, b)| [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)]);
    // Four groups of the first sixteen, and four of the others.
    let words = [0, 1].map(|k| [_mm256_unpacklo_epi16(ab[k], cd[k]), _mm256_unpackhi_epi16(ab[k], cd[k])]);
    for (k, [low, high]) in words.into_iter().enumerate() {
        let eight = [_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high)];
        for (half, eight) in eight.into_iter().enumerate() {
            // SAFETY: four times 32 of 128 bytes.
            unsafe {
                let out = out.as_mut_ptr().add(64 * half + 32 * k);
                _mm256_storeu_si256(out.cast(), _mm256_xor_si256(eight, flip));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn groups_hold_one_byte_of_every_row() {
        for len in [0, 1, 15, 16, 17, 40, 64] {
            let rows: Vec<Vec<u8>> = (0..4).map(|lane| (0..len).map(|i| (i * 7 + lane * 61) as u8).collect()).collect();
            let mut out = vec![0; 4 * len];
            interleave(&mut out, [&rows[0], &rows[1], &rows[2], &rows[3]], 0x80);
            assert!(out.iter().enumerate().all(|(i, &byte)| byte == rows[i % 4][i / 4] ^ 0x80), "{len}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn thirty_two_groups_are_the_same_at_once() {
        if !crate::Isa::available().any(|isa| matches!(isa, crate::Isa::Avx2(_))) {
            std::eprintln!("skipped: this machine has no AVX2");
            return;
        }
        let rows: [[u8; 32]; 4] = [0, 1, 2, 3].map(|lane| core::array::from_fn(|i| (i * 7 + lane * 61) as u8));
        let [a, b, c, d] = &rows;
        let (mut want, mut got) = ([0; 128], [1; 128]);
        interleave(&mut want, [a, b, c, d], 0x80);
        // SAFETY: AVX2 was found.
        unsafe { interleave_32(&mut got, [a, b, c, d], 0x80) };
        assert_eq!(got, want);
    }
}
