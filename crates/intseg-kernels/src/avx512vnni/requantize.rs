//! Requantisation, 32 channels at a time where [`crate::conv::floor`] finds fewer steps, 16 otherwise: exactly [`crate::conv::requantize`] in vector
//! registers.

use crate::conv::floor::{Floor, Shift};
use crate::conv::{Addend, Line, Requantizer};
use crate::requantize::Contribution;
use crate::vector::{Element, LANES, Vector512, WORD_LANES};
use core::arch::x86_64::{
    __m128i, __m512i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_loadu_si256, _mm256_permutexvar_epi32,
    _mm256_setr_epi32, _mm256_storeu_si256, _mm512_add_epi16, _mm512_add_epi32, _mm512_add_epi64, _mm512_adds_epi16,
    _mm512_and_si512, _mm512_castsi512_si256, _mm512_cmpeq_epi64_mask, _mm512_cvtepu8_epi16, _mm512_cvtepu8_epi32,
    _mm512_extracti64x4_epi64, _mm512_loadu_si512, _mm512_mask_and_epi64, _mm512_mask_set1_epi64,
    _mm512_mask_shuffle_epi32, _mm512_max_epi16, _mm512_max_epi64, _mm512_min_epi16, _mm512_min_epi64,
    _mm512_mul_epi32, _mm512_packs_epi16, _mm512_packs_epi32, _mm512_packus_epi16, _mm512_permutex2var_epi64,
    _mm512_permutexvar_epi32, _mm512_permutexvar_epi64, _mm512_set1_epi16, _mm512_set1_epi64, _mm512_setr_epi32,
    _mm512_setr_epi64, _mm512_setzero_si512, _mm512_sll_epi16, _mm512_sllv_epi64, _mm512_sra_epi16, _mm512_srav_epi32,
    _mm512_srav_epi64, _mm512_srli_epi64, _mm512_storeu_si512, _mm512_sub_epi64, _mm512_testn_epi64_mask,
};

/// Lines of a group's prepared constants: its kind, and four of that.
const PREPARED: usize = 5;

/// How a group of 16 channels is requantised, in its first line.
const ANY: i32 = 0;
const FLOORS: i32 = 1;
const SHIFTS: i32 = 2;

type Prepared = [Line; PREPARED];

/// Lines that [`prepare`] fills for so many channels.
pub(crate) const fn prepared_lines(channels: usize) -> usize {
    channels / WORD_LANES * 2 * PREPARED
}

/// Finds how whole pairs of groups of 16 channels can be requantised, for sums of magnitude up to `bound`.
pub(crate) fn prepare(r: &Requantizer, bound: i64, prepared: &mut [Line]) {
    for (group, lines) in prepared.chunks_exact_mut(PREPARED).enumerate() {
        let (kind, words) = Line::sums_mut(lines).split_at_mut(LANES);
        let channels = || {
            let all = r.multiplier.iter().zip(r.bias).zip(r.shift).skip(group * LANES).take(LANES);
            all.map(|((&multiplier, &bias), &shift)| (multiplier, bias, shift)).enumerate()
        };
        kind[0] = SHIFTS;
        for (k, (multiplier, bias, shift)) in channels() {
            let Some(Shift { bias, shift }) = Shift::new(multiplier, bias, shift, bound) else {
                kind[0] = FLOORS;
                break;
            };
            let below_half = if shift > 0 { (1 << (shift - 1)) - 1 } else { 0 };
            words[k] = bias;
            words[LANES + k] = below_half;
            words[2 * LANES + k] = shift as i32;
            words[3 * LANES + k] = (shift > 0).into();
        }
        if kind[0] == SHIFTS {
            continue;
        }
        for (k, (multiplier, bias, shift)) in channels() {
            let Some(Floor { multiplier, bias, shift }) = Floor::new(multiplier, bias, shift, bound) else {
                kind[0] = ANY;
                break;
            };
            words[k] = multiplier;
            words[LANES + k] = shift as i32 - 32;
            // Even ones in the third line, odd ones in the fourth.
            let to = (2 + k % 2) * LANES + k / 2 * 2;
            [words[to], words[to + 1]] = [bias as i32, (bias >> 32) as i32];
        }
    }
}

/// The four lines of a group's constants.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn constants(prepared: &Prepared) -> [__m512i; 4] {
    // SAFETY: each is a line.
    [1, 2, 3, 4].map(|k| unsafe { _mm512_loadu_si512(prepared[k].0.as_ptr().cast()) })
}

/// Requantises 16 sums of channels that have a [`Floor`]; they are not held to the results' range.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn floors([multiplier, shift, even, odd]: [__m512i; 4], sums: __m512i) -> __m512i {
    let upper = |lanes| _mm512_srli_epi64::<32>(lanes);
    let even = _mm512_add_epi64(_mm512_mul_epi32(sums, multiplier), even);
    let odd = _mm512_add_epi64(_mm512_mul_epi32(upper(sums), upper(multiplier)), odd);
    // The upper halves of the even ones' lanes move down, between those of the others.
    _mm512_srav_epi32(_mm512_mask_shuffle_epi32::<0b11_11_01_01>(odd, 0x5555, even), shift)
}

/// The same of channels that have a [`Shift`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn shifts([bias, below_half, shift, one]: [__m512i; 4], sums: __m512i) -> __m512i {
    let sums = _mm512_add_epi32(sums, bias);
    let odd = _mm512_and_si512(_mm512_srav_epi32(sums, shift), one);
    _mm512_srav_epi32(_mm512_add_epi32(_mm512_add_epi32(sums, below_half), odd), shift)
}

/// What words of 32 channels can be written as. Words are in the order in which packing leaves those of two groups: four
/// of each in turn.
pub(crate) trait Narrow: Element {
    /// Smallest and largest; writing holds words within them.
    const RANGE: [i32; 2];

    /// Writes the words of two pixels to 32 places each.
    ///
    /// # Safety
    /// The instructions must be there, and both places writable.
    unsafe fn write(pixels: [__m512i; 2], to: [*mut Self; 2]);
}

impl Narrow for i16 {
    const RANGE: [i32; 2] = [i16::MIN as i32, i16::MAX as i32];

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn write(pixels: [__m512i; 2], to: [*mut Self; 2]) {
        for (words, to) in pixels.into_iter().zip(to) {
            let words = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), words);
            // SAFETY: as the caller promises.
            unsafe { _mm512_storeu_si512(to.cast(), words) };
        }
    }
}

impl Narrow for u8 {
    const RANGE: [i32; 2] = [0, 255];

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn write([a, b]: [__m512i; 2], to: [*mut Self; 2]) {
        // SAFETY: as the caller promises.
        unsafe { write_bytes(_mm512_packus_epi16(a, b), to.map(|to| to.cast())) }
    }
}

impl Narrow for i8 {
    const RANGE: [i32; 2] = [i8::MIN as i32, i8::MAX as i32];

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn write([a, b]: [__m512i; 2], to: [*mut Self; 2]) {
        // SAFETY: as the caller promises.
        unsafe { write_bytes(_mm512_packs_epi16(a, b), to.map(|to| to.cast())) }
    }
}

/// Writes two pixels' bytes, of which every 128 bits hold four of each group of both.
///
/// # Safety
/// The instructions must be there, and both places writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn write_bytes(packed: __m512i, [first, second]: [*mut u8; 2]) {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let apart = _mm512_permutexvar_epi32(order, packed);
    // SAFETY: as the caller promises.
    unsafe {
        _mm256_storeu_si256(first.cast(), _mm512_castsi512_si256(apart));
        _mm256_storeu_si256(second.cast(), _mm512_extracti64x4_epi64::<1>(apart));
    }
}

/// An addend whose sums can be made in 16 bits with saturation: what saturates lies beyond the sums' range anyway.
struct NarrowSum<'a> {
    values: Contribution<'a>,
    left: __m128i,
    shift: __m128i,
    /// Half a unit less one, and the bit above what is dropped; 0 where nothing is.
    below_half: __m512i,
    one: __m512i,
    low: __m512i,
    high: __m512i,
}

impl<'a> NarrowSum<'a> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn new(addend: &Addend<'a>) -> Option<Self> {
        let Addend { values, scale, shift, low, high } = *addend;
        let left = match values {
            Contribution::U8(_, left) if left <= 7 => left,
            Contribution::I16(_, left) if left == 0 => left,
            _ => return None,
        };
        if scale > 0 || shift > 14 || high > 32_767 >> shift || low < -32_768 >> shift {
            return None;
        }
        let below_half = if shift > 0 { (1 << (shift - 1)) - 1 } else { 0 };
        Some(NarrowSum {
            values,
            left: _mm_cvtsi32_si128(left),
            shift: _mm_cvtsi32_si128(shift as i32),
            below_half: _mm512_set1_epi16(below_half),
            one: _mm512_set1_epi16((shift > 0).into()),
            low: _mm512_set1_epi16(low as i16),
            high: _mm512_set1_epi16(high as i16),
        })
    }

    /// Adds the elements from `at` on to the words of 32 results.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn add(&self, results: __m512i, at: usize) -> __m512i {
        let values = match self.values {
            Contribution::U8(values, _) => {
                let values: &[u8; WORD_LANES] = values[at..].first_chunk().expect("32 elements");
                // SAFETY: 32 bytes.
                let bytes = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
                let bytes = _mm256_permutexvar_epi32(_mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), bytes);
                _mm512_sll_epi16(_mm512_cvtepu8_epi16(bytes), self.left)
            }
            Contribution::I16(values, _) => {
                let values: &[i16; WORD_LANES] = values[at..].first_chunk().expect("32 elements");
                // SAFETY: 64 bytes.
                let words = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
                _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), words)
            }
            _ => return results,
        };
        let sum = _mm512_adds_epi16(results, values);
        let odd = _mm512_and_si512(_mm512_sra_epi16(sum, self.shift), self.one);
        let up = _mm512_add_epi16(self.below_half, odd);
        within(_mm512_sra_epi16(_mm512_adds_epi16(sum, up), self.shift), self.low, self.high)
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn within(words: __m512i, low: __m512i, high: __m512i) -> __m512i {
    _mm512_min_epi16(_mm512_max_epi16(words, low), high)
}

/// The constants of 16 neighbouring channels: of those with even numbers, and of the others, in lanes of 64 bits.
#[derive(Clone, Copy)]
struct Channels {
    halves: [Half; 2],
    low: __m512i,
    high: __m512i,
}
#[derive(Clone, Copy)]
struct Half {
    /// In the low 32 bits of each lane.
    multiplier: __m512i,
    /// The bias and half a unit.
    bias: __m512i,
    shift: __m512i,
    /// The bits that are dropped; all bits where none are.
    dropped: __m512i,
}

impl Channels {
    /// Channels `first..first + 16`.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn new(r: &Requantizer, first: usize) -> Self {
        let multiplier: &[i32; 16] = r.multiplier[first..].first_chunk().expect("16 channels");
        let bias: &[i64; 16] = r.bias[first..].first_chunk().expect("16 channels");
        let shift: &[u8; 16] = r.shift[first..].first_chunk().expect("16 channels");
        // SAFETY: 64 bytes.
        let multiplier = unsafe { _mm512_loadu_si512(multiplier.as_ptr().cast()) };
        // SAFETY: 128 bytes.
        let [a, b] = [0, 8].map(|at| unsafe { _mm512_loadu_si512(bias.as_ptr().add(at).cast()) });
        // SAFETY: 16 bytes.
        let shift = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(shift.as_ptr().cast()) });
        let even = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), b);
        let odd = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), b);
        let upper = |lanes| _mm512_srli_epi64::<32>(lanes);
        let lower = _mm512_mask_shuffle_epi32::<0>(shift, 0xAAAA, _mm512_setzero_si512());
        Channels {
            halves: [Half::new(multiplier, even, lower), Half::new(upper(multiplier), odd, upper(shift))],
            low: _mm512_set1_epi64(r.low.into()),
            high: _mm512_set1_epi64(r.high.into()),
        }
    }

    /// Requantises 16 sums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn apply(&self, sums: __m512i) -> Vector512 {
        let [even, odd] = &self.halves;
        let within = |values| _mm512_max_epi64(_mm512_min_epi64(values, self.high), self.low);
        let (even, odd) = (within(even.apply(sums)), within(odd.apply(_mm512_srli_epi64::<32>(sums))));
        // The low halves of the odd ones' lanes move up, between the others.
        Vector512(_mm512_mask_shuffle_epi32::<0b10_10_00_00>(even, 0xAAAA, odd))
    }
}

impl Half {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn new(multiplier: __m512i, bias: __m512i, shift: __m512i) -> Self {
        let unit = _mm512_sllv_epi64(_mm512_set1_epi64(1), shift);
        let bias = _mm512_add_epi64(bias, _mm512_srli_epi64::<1>(unit));
        let dropped = _mm512_sub_epi64(unit, _mm512_set1_epi64(1));
        let none = _mm512_cmpeq_epi64_mask(dropped, _mm512_setzero_si512());
        Half { multiplier, bias, shift, dropped: _mm512_mask_set1_epi64(dropped, none, -1) }
    }

    /// The low 32 bits of each lane, requantised.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn apply(&self, sums: __m512i) -> __m512i {
        let x = _mm512_add_epi64(_mm512_mul_epi32(sums, self.multiplier), self.bias);
        let up = _mm512_srav_epi64(x, self.shift);
        // Half a unit was added, so nothing is left below the unit in a tie: then the even neighbour is meant.
        // Where no bit is dropped, the mask finds a tie in 0 alone, which is even.
        let tie = _mm512_testn_epi64_mask(x, self.dropped);
        _mm512_mask_and_epi64(up, tie, up, _mm512_set1_epi64(-2))
    }
}

/// A tile's sums, and where their results go.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a, T> {
    /// A row of `row` values a pixel.
    pub sums: &'a [i32],
    pub row: usize,
    pub pixels: &'a [usize],
    /// Its first channel, and how many groups of 16.
    pub first: usize,
    pub groups: usize,
    /// Pixel `p` is written to `out + p · stride`.
    pub out: *mut T,
    pub stride: usize,
    /// What is added, and how many channels that has.
    pub addend: Option<&'a Addend<'a>>,
    pub channels: usize,
}

/// Requantises a tile's whole groups of channels. `prepared` are the lines that [`prepare`] filled.
///
/// # Safety
/// The instructions must be there, `out` writable at each pixel for all groups, and nobody else may use those places.
///
/// # Panics
/// When there are fewer channels, sums or added values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn tile<T: Narrow>(r: &Requantizer, prepared: &[Line], tile: &Tile<T>) {
    let Some(last) = tile.pixels.len().checked_sub(1) else { return };
    assert!(last * tile.row + tile.groups * LANES <= tile.sums.len(), "sums");
    let narrow_sum = tile.addend.map(|addend| NarrowSum::new(addend));
    // What packing holds them to.
    let [low, high] = if tile.addend.is_some() { i16::RANGE } else { T::RANGE };
    let held = r.low <= low && r.high >= high;
    // Packing saturates, where other ranges than the type's have their bits cut off.
    let ends = tile.addend.map_or([r.low, r.high], |addend| [addend.low, addend.high]);
    let packs = T::RANGE[0] <= ends[0] && ends[1] <= T::RANGE[1];
    let mut group = 0;
    while group < tile.groups {
        let at = (tile.first / LANES + group) * PREPARED;
        let pair = prepared.get(at..at + 2 * PREPARED).filter(|_| packs && group + 2 <= tile.groups);
        let pair = pair.and_then(|lines| lines.as_chunks().0.first_chunk::<2>());
        let kind = pair.map_or(ANY, |[a, b]| if kind(a) == kind(b) { kind(a) } else { ANY });
        // SAFETY: the caller's promise is handed on.
        unsafe {
            match (pair, &narrow_sum, kind) {
                (Some(pair), None, FLOORS) => {
                    two_groups(r, pair, |c, s| floors(c, s), held, tile, group, |words, _| words)
                }
                (Some(pair), None, SHIFTS) => {
                    two_groups(r, pair, |c, s| shifts(c, s), held, tile, group, |words, _| words)
                }
                (Some(pair), Some(Some(sum)), FLOORS) => {
                    two_groups(r, pair, |c, s| floors(c, s), held, tile, group, |words, at| sum.add(words, at));
                }
                (Some(pair), Some(Some(sum)), SHIFTS) => {
                    two_groups(r, pair, |c, s| shifts(c, s), held, tile, group, |words, at| sum.add(words, at));
                }
                _ => {
                    one_group(r, tile, group);
                    group += 1;
                    continue;
                }
            }
        }
        group += 2;
    }
}

/// How a group is requantised.
fn kind(prepared: &Prepared) -> i32 {
    let [line, ..] = prepared;
    line.0.first_chunk::<4>().map_or(ANY, |bytes| i32::from_ne_bytes(bytes.map(|byte| byte as u8)))
}

/// Requantises 32 channels of one kind by `apply`; `finish` gets each pixel's words and the number of their first element.
/// `held`: words need not be held to the results' range before.
///
/// # Safety
/// As [`tile`], which has also checked the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn two_groups<T: Narrow>(
    r: &Requantizer,
    prepared: &[Prepared; 2],
    apply: impl Fn([__m512i; 4], __m512i) -> __m512i,
    held: bool,
    tile: &Tile<T>,
    group: usize,
    finish: impl Fn(__m512i, usize) -> __m512i,
) {
    let [a, b] = [constants(&prepared[0]), constants(&prepared[1])];
    let [low, high] = [r.low, r.high].map(|end| _mm512_set1_epi16(end as i16));
    for m in (0..tile.pixels.len()).step_by(2) {
        // The last of an odd number is written twice.
        let both = [m, (m + 1).min(tile.pixels.len() - 1)];
        let mut words = [_mm512_setzero_si512(); 2];
        for (words, m) in words.iter_mut().zip(both) {
            let at = m * tile.row + group * LANES;
            // SAFETY: the sums of each pixel's groups are there.
            let [x, y] = [at, at + LANES].map(|at| unsafe { _mm512_loadu_si512(tile.sums.as_ptr().add(at).cast()) });
            let packed = _mm512_packs_epi32(apply(a, x), apply(b, y));
            let packed = if held { packed } else { within(packed, low, high) };
            *words = finish(packed, tile.pixels[m] * tile.channels + tile.first + group * LANES);
        }
        // SAFETY: as the caller promises.
        let to = both.map(|m| unsafe { tile.out.add(tile.pixels[m] * tile.stride + group * LANES) });
        // SAFETY: as the caller promises.
        unsafe { T::write(words, to) };
    }
}

/// Requantises 16 channels of any kind.
///
/// # Safety
/// As [`tile`], which has also checked the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn one_group<T: Element>(r: &Requantizer, tile: &Tile<T>, group: usize) {
    let first = tile.first + group * LANES;
    let constants = Channels::new(r, first);
    for (m, &pixel) in tile.pixels.iter().enumerate() {
        // SAFETY: the sums of each pixel's groups are there.
        let sums = unsafe { _mm512_loadu_si512(tile.sums.as_ptr().add(m * tile.row + group * LANES).cast()) };
        let mut results = constants.apply(sums);
        if let Some(addend) = tile.addend {
            results = addend.add(results, pixel * tile.channels + first);
        }
        // SAFETY: as the caller promises.
        let out = unsafe { &mut *tile.out.add(pixel * tile.stride + group * LANES).cast::<[T; LANES]>() };
        T::store(results, out);
    }
}
