//! Two-dimensional convolution in its four directions.
//!
//! Forward convolution and its adjoint (backward-data, which is also transposed convolution forward) are one kernel,
//! [`Convolution`], that gathers input pixels tap by tap; [`WeightGradient`] is the third pass. All are exact: they
//! return i32 or i64 sums, or requantise such sums once.

mod convolution;
mod depthwise;
pub(crate) mod floor;
pub(crate) mod gather;
mod pack;
pub(crate) mod phase;
mod receive;
#[cfg(test)]
pub(crate) mod reference;
pub(crate) mod rows;
pub(crate) mod shared_taps;
pub(crate) mod store;
mod streamed;
#[cfg(test)]
mod tests;
mod weight_gradient;
pub(crate) mod winograd;

pub use convolution::Convolution;
pub use depthwise::Depthwise;
pub use receive::Sum;
pub(crate) use store::Store;
pub use store::requantize;
pub use streamed::Streamed;
pub use weight_gradient::WeightGradient;

use crate::requantize::Contribution;

/// The geometry of a convolution, always described in its forward direction.
///
/// The input is `[batch, in_h, in_w, c_in]`, the output `[batch, out_h, out_w, c_out]`, the weights
/// `[kernel_h, kernel_w, c_in, c_out]`. Pairs are `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    /// Images in the batch (N).
    pub batch: usize,
    /// Input rows.
    pub in_h: usize,
    /// Input columns.
    pub in_w: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Kernel rows and columns.
    pub kernel: [usize; 2],
    /// Step between neighbouring output pixels, in input pixels.
    pub stride: [usize; 2],
    /// Step between neighbouring taps, in input pixels.
    pub dilation: [usize; 2],
    /// Zero pixels assumed before the first and after the last row and column.
    pub padding: [usize; 2],
}

impl Conv2d {
    /// Output rows and columns, or `None` when the padded input is smaller than the dilated kernel or a parameter
    /// is 0.
    pub fn output_size(&self) -> Option<[usize; 2]> {
        let along = |size: usize, axis: usize| {
            let reach = self.dilation[axis].checked_mul(self.kernel[axis].checked_sub(1)?)? + 1;
            let room = (size + 2 * self.padding[axis]).checked_sub(reach)?;
            (self.dilation[axis] > 0).then_some(room.checked_div(self.stride[axis])? + 1)
        };
        Some([along(self.in_h, 0)?, along(self.in_w, 1)?])
    }

    /// Rows and columns that the adjoint makes of an output of `size`, with `extra` of them at the end: of the inputs that
    /// lead to one output, the one that is meant. `None` when there is none. `in_h` and `in_w` do not matter.
    pub fn transposed_size(&self, size: [usize; 2], extra: [usize; 2]) -> Option<[usize; 2]> {
        let along = |axis: usize| {
            let reach = self.dilation[axis].checked_mul(self.kernel[axis].checked_sub(1)?)?.checked_add(1)?;
            let steps = size[axis].checked_sub(1)?.checked_mul(self.stride[axis])?;
            let full = steps.checked_add(reach)?.checked_add(extra[axis])?;
            full.checked_sub(self.padding[axis].checked_mul(2)?).filter(|&size| size > 0)
        };
        Some([along(0)?, along(1)?])
    }

    /// Output rows; 0 when there is no output.
    pub fn out_h(&self) -> usize {
        self.output_size().map_or(0, |[h, _]| h)
    }

    /// Output columns; 0 when there is no output.
    pub fn out_w(&self) -> usize {
        self.output_size().map_or(0, |[_, w]| w)
    }

    /// Number of input elements.
    pub fn input_len(&self) -> usize {
        self.batch * self.in_h * self.in_w * self.c_in
    }

    /// Number of output elements.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_h() * self.out_w() * self.c_out
    }

    /// Number of weights.
    pub fn weights_len(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.c_in * self.c_out
    }

    /// Multiply-accumulates of the whole convolution, taps on padding included.
    pub fn macs(&self) -> u64 {
        (self.output_len() * self.kernel[0] * self.kernel[1] * self.c_in) as u64
    }
}

/// Which way a [`Convolution`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// `[N, in_h, in_w, c_in]` → `[N, out_h, out_w, c_out]`.
    Forward,
    /// The adjoint, `[N, out_h, out_w, c_out]` → `[N, in_h, in_w, c_in]`: backward-data, and transposed convolution.
    Transposed,
}

/// 64 bytes of packed weights, aligned to a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [i8; 64]);

impl Default for Line {
    fn default() -> Self {
        Line::ZERO
    }
}

impl Line {
    /// All zeros.
    pub const ZERO: Line = Line([0; 64]);

    /// With some bits of each byte flipped.
    #[inline(always)]
    pub(crate) fn flipped(&self, bits: i8) -> [i8; 64] {
        let mut bytes = self.0;
        bytes.iter_mut().for_each(|byte| *byte ^= bits);
        bytes
    }

    /// As 16-bit integers.
    #[inline(always)]
    pub(crate) fn words_mut(&mut self) -> &mut [i16; 32] {
        // SAFETY: 64 bytes, aligned to their number, and any bits are valid for both.
        unsafe { &mut *core::ptr::from_mut(self).cast() }
    }

    /// Some lines as 32-bit integers.
    pub(crate) fn sums_mut(lines: &mut [Line]) -> &mut [i32] {
        // SAFETY: a line is 64 bytes without padding, and any bits are valid for both.
        let (_, sums, _) = unsafe { lines.align_to_mut::<i32>() };
        sums
    }

    /// How many 32-bit words hold `lines` lines, wherever they begin.
    pub const fn words(lines: usize) -> usize {
        if lines == 0 { 0 } else { 16 * lines + 15 }
    }

    /// The lines that lie in some words, of which there are at least as many as [`Line::words`] is asked for.
    pub fn in_words(words: &mut [i32]) -> &mut [Line] {
        // SAFETY: a line is 64 bytes of integers without padding, and any bits are valid for both.
        unsafe { words.align_to_mut::<Line>() }.1
    }

    /// The bytes of some lines.
    pub(crate) fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
        // SAFETY: a line is 64 bytes without padding, and any bits are valid for both.
        let (_, bytes, _) = unsafe { lines.align_to_mut::<i8>() };
        crate::bytes::as_u8_mut(bytes)
    }
}

/// Activations or errors that a kernel reads, NHWC.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Activations after ReLU, 0..=255.
    U8(&'a [u8]),
    /// Signed activations or errors, −127..=127.
    I8(&'a [i8]),
}

/// Weights in both forms: as stored, `[KH, KW, C_in, C_out]` and −127..=127, and as [`Convolution::pack`] left them
/// (empty where [`Convolution::packed_len`] is 0).
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// As stored; portable code alone reads them.
    pub raw: &'a [i8],
    /// As packed for one instruction set.
    pub packed: &'a [Line],
}

/// Per-channel requantisation of accumulators: `q = clamp(half_even((acc · multiplier + bias) / 2^shift))`.
///
/// Batch normalisation, bias and change of exponent are folded into it; the clamp to the output's range is ReLU when
/// `low` is 0. All slices have one element per output channel. `|multiplier| < 2^31`, `|bias| < 2^61`,
/// `shift <= 62`.
#[derive(Clone, Copy, Debug)]
pub struct Requantizer<'a> {
    /// Multipliers.
    pub multiplier: &'a [i32],
    /// Biases in units of the product.
    pub bias: &'a [i64],
    /// Right shifts.
    pub shift: &'a [u8],
    /// Smallest result.
    pub low: i32,
    /// Largest result.
    pub high: i32,
}

/// Where requantised results go. Pixel `p`, channel `k` is written to `data[p · stride + offset + k]`, so that a
/// branch can write straight into its part of a concatenation.
#[derive(Debug)]
pub struct Output<'a> {
    /// The whole destination tensor.
    pub data: OutputData<'a>,
    /// Channels of the destination.
    pub stride: usize,
    /// First channel to write.
    pub offset: usize,
    /// What is added to the results before they are written.
    pub addend: Option<Addend<'a>>,
}

/// A tensor that a convolution adds to its requantised results while the tile is in cache:
/// `clamp(half_even((result · 2^scale + addend) / 2^shift))`, as [`crate::deploy::add`] computes of the two.
#[derive(Clone, Copy, Debug)]
pub struct Addend<'a> {
    /// One element for each result, with its left shift, 0..=14: [`Contribution::U8`] or [`Contribution::I16`].
    pub values: Contribution<'a>,
    /// Left shift of the results, 0..=14. They have at most 16 bits.
    pub scale: u32,
    /// Right shift of the sum, 0..=31.
    pub shift: u32,
    /// Smallest sum.
    pub low: i32,
    /// Largest sum.
    pub high: i32,
}

/// The element type of an [`Output`].
#[derive(Debug)]
pub enum OutputData<'a> {
    /// Unsigned bytes.
    U8(&'a mut [u8]),
    /// Signed bytes.
    I8(&'a mut [i8]),
    /// 16-bit integers.
    I16(&'a mut [i16]),
}
