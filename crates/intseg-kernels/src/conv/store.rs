//! What becomes of a finished tile of accumulators while it is in cache.

use super::gather::{MAX_TILE, Sums};
use super::{Addend, Line, Output, OutputData, Requantizer};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::avx512vnni::requantize::{self, Narrow as Narrowed};
use crate::pool::{Disjoint, fetch_all};
use crate::requantize::Contribution;
use crate::round::{half_even_i32, half_even_i64, within};
#[cfg(not(target_arch = "x86_64"))]
use crate::vector::Element as Narrowed;
use crate::vector::{LANES, Vector};

/// Takes finished sums. Implementations write to the pixels and channels that they are given and to no others.
pub(crate) trait Store: Sync {
    /// Is told what [`Store::store`] will take next, so that it can fetch what it reads itself while the sums are computed.
    #[inline(always)]
    fn prepare(&self, _pixels: &[usize], _first: usize, _channels: usize) {}

    /// Takes `sums`, one row of `channels` values a pixel at distance `row`, for the output pixels `pixels` and the
    /// channels from `first` on.
    ///
    /// # Safety
    /// No two calls that overlap in time may name the same pixel and channel.
    unsafe fn store(&self, sums: &[i32], row: usize, pixels: &[usize], first: usize, channels: usize);
}

/// Keeps the sums as they are.
pub(crate) struct Accumulators<'a> {
    out: Disjoint<'a, i32>,
    channels: usize,
}

impl<'a> Accumulators<'a> {
    pub fn new(out: &'a mut [i32], channels: usize) -> Self {
        Accumulators { out: Disjoint::new(out), channels }
    }
}

impl Store for Accumulators<'_> {
    #[inline(always)]
    unsafe fn store(&self, sums: &[i32], row: usize, pixels: &[usize], first: usize, channels: usize) {
        for (values, pixel) in sums.chunks(row).zip(pixels) {
            let at = pixel * self.channels + first;
            // SAFETY: no other call names this pixel and these channels, as the caller promises.
            let out = unsafe { self.out.piece(at, at + channels) };
            // Whole vectors as such: a call that copies so few bytes takes longer than the copy.
            let ((out, out_rest), (values, rest)) = (out.as_chunks_mut::<16>(), values[..channels].as_chunks::<16>());
            out.iter_mut().zip(values).for_each(|(out, values)| *out = *values);
            if !rest.is_empty() {
                out_rest.copy_from_slice(rest);
            }
        }
    }
}

/// Adds the sums to those that are there.
pub(crate) struct Partial<'a>(pub Accumulators<'a>);

impl Store for Partial<'_> {
    #[inline(always)]
    unsafe fn store(&self, sums: &[i32], row: usize, pixels: &[usize], first: usize, channels: usize) {
        for (values, pixel) in sums.chunks(row).zip(pixels) {
            let at = pixel * self.0.channels + first;
            // SAFETY: no other call names this pixel and these channels, as the caller promises.
            let out = unsafe { self.0.out.piece(at, at + channels) };
            out.iter_mut().zip(&values[..channels]).for_each(|(out, value)| *out = out.wrapping_add(*value));
        }
    }
}

/// Adds those that are there to the sums, and hands them on.
pub(crate) struct Last<'a, S> {
    pub sums: &'a [i32],
    pub channels: usize,
    pub store: &'a S,
}

impl<S: Store> Store for Last<'_, S> {
    #[inline(always)]
    fn prepare(&self, pixels: &[usize], first: usize, channels: usize) {
        self.store.prepare(pixels, first, channels);
    }

    #[inline(always)]
    unsafe fn store(&self, sums: &[i32], row: usize, pixels: &[usize], first: usize, channels: usize) {
        let mut all = Sums([0; MAX_TILE]);
        for ((all, values), pixel) in all.0.chunks_mut(row).zip(sums.chunks(row)).zip(pixels) {
            let others = &self.sums[pixel * self.channels + first..][..channels];
            let values = values[..channels].iter().zip(others);
            all.iter_mut().zip(values).for_each(|(all, (value, other))| *all = value.wrapping_add(*other));
        }
        // SAFETY: the caller's promise is handed on.
        unsafe { self.store.store(&all.0[..sums.len()], row, pixels, first, channels) };
    }
}

/// Requantises each channel and writes 8 or 16 bits.
pub(crate) struct Requantized<'a> {
    isa: Isa,
    out: Narrow<'a>,
    stride: usize,
    offset: usize,
    requantizer: Requantizer<'a>,
    addend: Option<Addend<'a>>,
    channels: usize,
    /// What [`Requantized::with_bound`] found.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    prepared: &'a [Line],
}

/// How many lines [`Requantized::with_bound`] takes for the constants of so many channels.
pub(crate) fn prepared_lines(isa: Isa, channels: usize) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(_) => requantize::prepared_lines(channels),
        _ => 0,
    }
}

enum Narrow<'a> {
    U8(Disjoint<'a, u8>),
    I8(Disjoint<'a, i8>),
    I16(Disjoint<'a, i16>),
}

impl<'a> Requantized<'a> {
    /// # Panics
    /// When the output or the addend has another length, or the requantizer another number of channels, than given.
    pub fn new(isa: Isa, out: Output<'a>, requantizer: Requantizer<'a>, pixels: usize, channels: usize) -> Self {
        let Output { data, stride, offset, addend } = out;
        let (len, out) = match data {
            OutputData::U8(data) => (data.len(), Narrow::U8(Disjoint::new(data))),
            OutputData::I8(data) => (data.len(), Narrow::I8(Disjoint::new(data))),
            OutputData::I16(data) => (data.len(), Narrow::I16(Disjoint::new(data))),
        };
        assert!(len == pixels * stride && offset + channels <= stride, "output");
        let Requantizer { multiplier, bias, shift, .. } = requantizer;
        assert!(multiplier.len() == channels && bias.len() == channels && shift.len() == channels, "requantizer");
        if let Some(Addend { values, scale, shift, .. }) = addend {
            let (len, left) = match values {
                Contribution::U8(values, left) => (values.len(), left),
                Contribution::I16(values, left) => (values.len(), left),
                _ => panic!("an addend has bytes without a sign or 16 bits"),
            };
            assert!(len == pixels * channels && (0..=14).contains(&left) && scale <= 14 && shift <= 31, "addend");
        }
        Requantized { isa, out, stride, offset, requantizer, addend, channels, prepared: &[] }
    }

    /// Prepares for sums of magnitude up to `bound`, which then take less time; `lines` are as many as
    /// [`prepared_lines`] says.
    pub fn with_bound(self, bound: i64, lines: &'a mut [Line]) -> Self {
        #[cfg(target_arch = "x86_64")]
        requantize::prepare(&self.requantizer, bound, lines);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = bound;
        Requantized { prepared: lines, ..self }
    }

    /// Requantises a tile's channels `first..first + channels` into `out`.
    ///
    /// # Safety
    /// As [`Store::store`].
    #[inline(always)]
    unsafe fn write<T: Narrowed>(&self, out: &Disjoint<T>, tile: &Tile, narrow: impl Fn(i32) -> T) {
        let Tile { sums, row, pixels, first, channels } = *tile;
        let place = |pixel: usize| pixel * self.stride + self.offset + first;
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if let Isa::Avx512Vnni(_) = self.isa {
            let groups = channels / LANES;
            done = groups * LANES;
            if let Some(&last) = pixels.iter().max() {
                assert!(place(last) + done <= out.len(), "a pixel outside");
            }
            // SAFETY: an `Avx512Vnni` value exists only where the features were found; all pixels lie in the output, and
            // no other call names them and these channels, as the caller promises.
            unsafe {
                requantize::tile(
                    &self.requantizer,
                    self.prepared,
                    &requantize::Tile {
                        sums,
                        row,
                        pixels,
                        first,
                        groups,
                        out: out.start().wrapping_add(place(0)),
                        stride: self.stride,
                        addend: self.addend.as_ref(),
                        channels: self.channels,
                    },
                );
            }
        }
        if done == channels {
            return;
        }
        let Requantizer { multiplier, bias, shift, low, high } = self.requantizer;
        let rest = first + done..first + channels;
        for (values, &pixel) in sums.chunks(row).zip(pixels) {
            let at = place(pixel);
            // SAFETY: no other call names this pixel and these channels, as the caller promises.
            let out = unsafe { out.piece(at + done, at + channels) };
            let constants = multiplier[rest.clone()].iter().zip(&bias[rest.clone()]).zip(&shift[rest.clone()]);
            let results = values[done..].iter().zip(constants);
            let results = results.map(|(&sum, ((&m, &bias), &shift))| requantize(sum, m, bias, shift, low, high));
            match &self.addend {
                None => out.iter_mut().zip(results).for_each(|(out, result)| *out = narrow(result)),
                Some(addend) => {
                    let first = pixel * self.channels + rest.start;
                    for (at, (out, result)) in out.iter_mut().zip(results).enumerate() {
                        *out = narrow(addend.add_one(result, first + at));
                    }
                }
            }
        }
    }
}

impl Addend<'_> {
    /// Adds the elements from `at` on to 16 results.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "instruction sets with vectors alone"))]
    #[inline(always)]
    pub(crate) fn add<V: Vector>(&self, results: V, at: usize) -> V {
        let (values, left) = match self.values {
            Contribution::U8(values, left) => (V::load_u8(values[at..].first_chunk().expect("16 elements")), left),
            Contribution::I16(values, left) => (V::load_i16(values[at..].first_chunk().expect("16 elements")), left),
            _ => return results,
        };
        let sum = results.shl(self.scale).add(values.shl(left as u32));
        sum.half_even(self.shift).within(V::splat(self.low), V::splat(self.high))
    }

    /// Begins to load elements `at..at + len`: tiles read them in short pieces far apart, which no hardware foresees.
    #[inline(always)]
    fn prefetch(&self, at: usize, len: usize) {
        match self.values {
            Contribution::U8(values, _) => fetch_all(&values[at..at + len]),
            Contribution::I16(values, _) => fetch_all(&values[at..at + len]),
            _ => {}
        }
    }

    /// Adds the element at `at` to a result.
    #[inline(always)]
    fn add_one(&self, result: i32, at: usize) -> i32 {
        let (value, left) = match self.values {
            Contribution::U8(values, left) => (values[at].into(), left),
            Contribution::I16(values, left) => (i32::from(values[at]), left),
            _ => return result,
        };
        // Two parts of at most 15 bits and sign, shifted left by at most 14, add up to at most 2^30.
        half_even_i32((result << self.scale) + (value << left), self.shift).max(self.low).min(self.high)
    }
}

/// The arguments of [`Store::store`].
struct Tile<'a> {
    sums: &'a [i32],
    row: usize,
    pixels: &'a [usize],
    first: usize,
    channels: usize,
}

/// `clamp(half_even((sum · multiplier + bias) / 2^shift))`: the one requantisation of deployed models.
#[inline(always)]
pub fn requantize(sum: i32, multiplier: i32, bias: i64, shift: u8, low: i32, high: i32) -> i32 {
    let product = i64::from(sum) * i64::from(multiplier) + bias;
    within(half_even_i64(product, shift.into()), low.into(), high.into()) as i32
}

impl Store for Requantized<'_> {
    #[inline(always)]
    fn prepare(&self, pixels: &[usize], first: usize, channels: usize) {
        let Some(addend) = &self.addend else { return };
        for pixel in pixels {
            addend.prefetch(pixel * self.channels + first, channels);
        }
    }

    unsafe fn store(&self, sums: &[i32], row: usize, pixels: &[usize], first: usize, channels: usize) {
        let tile = Tile { sums, row, pixels, first, channels };
        self.isa.vectorize(
            #[inline(always)]
            || match &self.out {
                // SAFETY: the caller's promise is handed on.
                Narrow::U8(out) => unsafe { self.write(out, &tile, |v| v as u8) },
                // SAFETY: the caller's promise is handed on.
                Narrow::I8(out) => unsafe { self.write(out, &tile, |v| v as i8) },
                // SAFETY: the caller's promise is handed on.
                Narrow::I16(out) => unsafe { self.write(out, &tile, |v| v as i16) },
            },
        );
    }
}
