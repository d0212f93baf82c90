//! What becomes of a finished tile of accumulators while it is in cache.

use super::{Output, OutputData, Requantizer};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::avx512vnni::requantize::Channels;
use crate::pool::Disjoint;
use crate::round::{half_even_i64, within};
use crate::vector::Element;

/// Takes finished sums. Implementations write to the pixels and channels that they are given and to no others.
pub(crate) trait Store: Sync {
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
            out_rest.copy_from_slice(rest);
        }
    }
}

/// Requantises each channel and writes 8 or 16 bits.
pub(crate) struct Requantized<'a> {
    isa: Isa,
    out: Narrow<'a>,
    stride: usize,
    offset: usize,
    requantizer: Requantizer<'a>,
}

enum Narrow<'a> {
    U8(Disjoint<'a, u8>),
    I8(Disjoint<'a, i8>),
    I16(Disjoint<'a, i16>),
}

impl<'a> Requantized<'a> {
    /// # Panics
    /// When the output has another length, or the requantizer another number of channels, than given.
    pub fn new(isa: Isa, out: Output<'a>, requantizer: Requantizer<'a>, pixels: usize, channels: usize) -> Self {
        let Output { data, stride, offset } = out;
        let (len, out) = match data {
            OutputData::U8(data) => (data.len(), Narrow::U8(Disjoint::new(data))),
            OutputData::I8(data) => (data.len(), Narrow::I8(Disjoint::new(data))),
            OutputData::I16(data) => (data.len(), Narrow::I16(Disjoint::new(data))),
        };
        assert!(len == pixels * stride && offset + channels <= stride, "output");
        let Requantizer { multiplier, bias, shift, .. } = requantizer;
        assert!(multiplier.len() == channels && bias.len() == channels && shift.len() == channels, "requantizer");
        Requantized { isa, out, stride, offset, requantizer }
    }

    /// Requantises a tile's channels `first..first + channels` into `out`.
    ///
    /// # Safety
    /// As [`Store::store`].
    #[inline(always)]
    unsafe fn write<T: Element>(&self, out: &Disjoint<T>, tile: &Tile, narrow: impl Fn(i32) -> T) {
        let Tile { sums, row, pixels, first, channels } = *tile;
        let place = |pixel: usize| pixel * self.stride + self.offset + first;
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if let Isa::Avx512Vnni(_) = self.isa {
            while done + 16 <= channels {
                // SAFETY: an `Avx512Vnni` value exists only where the features were found.
                let constants = unsafe { Channels::new(&self.requantizer, first + done) };
                for (values, &pixel) in sums.chunks(row).zip(pixels) {
                    let at = place(pixel) + done;
                    // SAFETY: no other call names this pixel and these channels, as the caller promises.
                    let out: &mut [T; 16] = unsafe { out.piece(at, at + 16) }.try_into().expect("16 results");
                    let values = values[done..].first_chunk().expect("a row holds its channels");
                    // SAFETY: as for the constants.
                    T::store(unsafe { constants.apply(values) }, out);
                }
                done += 16;
            }
        }
        let Requantizer { multiplier, bias, shift, low, high } = self.requantizer;
        let rest = first + done..first + channels;
        for (values, &pixel) in sums.chunks(row).zip(pixels) {
            let at = place(pixel);
            // SAFETY: no other call names this pixel and these channels, as the caller promises.
            let out = unsafe { out.piece(at + done, at + channels) };
            let constants = multiplier[rest.clone()].iter().zip(&bias[rest.clone()]).zip(&shift[rest.clone()]);
            for ((out, &sum), ((&multiplier, &bias), &shift)) in out.iter_mut().zip(&values[done..]).zip(constants) {
                *out = narrow(requantize(sum, multiplier, bias, shift, low, high));
            }
        }
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
