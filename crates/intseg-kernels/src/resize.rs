//! Bilinear resizing with exact rational coordinates, and its exact adjoint.
//!
//! Along each axis an output index reads two input indices with integer weights that sum to a common denominator
//! (DESIGN §3.6). The sums over both axes are exact; whoever uses them rounds once.

use crate::Context;
use crate::pool::for_each_piece;
use crate::round::divide_half_even;

/// What one output index reads along an axis: `(denominator − weight) · first + weight · second`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// An input index.
    pub first: u32,
    /// The same or the next.
    pub second: u32,
    /// Weight of the second.
    pub weight: u32,
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Where an axis's outputs lie among its inputs: output `o` at `(start + step · o) / denominator`, in lowest terms, held
/// inside the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coordinates {
    /// From one output to the next.
    pub step: i64,
    /// Of the first output; may be negative.
    pub start: i64,
    /// The unit of both.
    pub denominator: i64,
}

impl Coordinates {
    /// From `size` inputs to `out` outputs.
    ///
    /// Half-pixel centres: output `o` lies at `((2o + 1)·size − out) / (2·out)`. Aligned corners: at
    /// `o·(size − 1) / (out − 1)`.
    pub fn new(size: usize, out: usize, align_corners: bool) -> Self {
        let (size, out) = (size as i64, out as i64);
        let (step, start, denominator) = match align_corners {
            true if out <= 1 => (0, 0, 1),
            true => (size - 1, 0, out - 1),
            false => (2 * size, size - out, (2 * out).max(1)),
        };
        let common = gcd(gcd(denominator as u64, step.unsigned_abs()), start.unsigned_abs()) as i64;
        Coordinates { step: step / common, start: start / common, denominator: denominator / common }
    }
}

/// How a resize finds its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Bilinear, half-pixel centres.
    Linear,
    /// Bilinear, the corner pixels' centres aligned.
    LinearAligned,
    /// Output `o` is input `⌊o · in / out⌋`.
    Nearest,
}

impl Interpolation {
    /// Bilinear, with aligned corners or half-pixel centres.
    pub fn linear(align_corners: bool) -> Self {
        if align_corners { Interpolation::LinearAligned } else { Interpolation::Linear }
    }

    /// Fills the taps of an axis from `size` inputs to `taps.len()` outputs; returns the denominator.
    ///
    /// # Panics
    /// When `size` is 0.
    pub fn axis(self, taps: &mut [Tap], size: usize) -> u32 {
        match self {
            Interpolation::Linear => axis(taps, size, false),
            Interpolation::LinearAligned => axis(taps, size, true),
            Interpolation::Nearest => nearest_axis(taps, size),
        }
    }
}

/// Fills the taps of an axis from `size` inputs to `taps.len()` outputs, at [`Coordinates`]; returns the denominator.
///
/// # Panics
/// When `size` is 0.
pub fn axis(taps: &mut [Tap], size: usize, align_corners: bool) -> u32 {
    assert!(size > 0, "an axis needs an input");
    let Coordinates { step, start, denominator } = Coordinates::new(size, taps.len(), align_corners);
    let (size, denominator) = (size as u64, denominator as u64);
    for (o, tap) in taps.iter_mut().enumerate() {
        let position = (start + step * o as i64).max(0) as u64;
        let first = (position / denominator).min(size - 1);
        let inside = first + 1 < size;
        *tap = Tap {
            first: first as u32,
            second: if inside { first as u32 + 1 } else { first as u32 },
            weight: if inside { (position % denominator) as u32 } else { 0 },
        };
    }
    denominator as u32
}

/// Fills the taps of an axis from `size` inputs to `taps.len()` outputs, each of which reads the one input
/// `⌊o · size / outputs⌋`; returns the denominator, 1.
///
/// # Panics
/// When `size` is 0.
fn nearest_axis(taps: &mut [Tap], size: usize) -> u32 {
    assert!(size > 0, "an axis needs an input");
    let outputs = taps.len() as u64;
    for (o, tap) in (0u64..).zip(taps.iter_mut()) {
        let at = (o * size as u64 / outputs) as u32;
        *tap = Tap { first: at, second: at, weight: 0 };
    }
    1
}

/// A resize of `[in_h, in_w, channels]` images to `[rows.len(), columns.len(), channels]`.
#[derive(Clone, Copy, Debug)]
pub struct Resize<'a> {
    /// Input rows and columns.
    pub input: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// One tap an output row.
    pub rows: &'a [Tap],
    /// One tap an output column.
    pub columns: &'a [Tap],
    /// The denominators of rows and columns.
    pub denominators: [u32; 2],
}

impl Resize<'_> {
    /// What exact sums are to be divided by.
    pub fn denominator(&self) -> i64 {
        i64::from(self.denominators[0]) * i64::from(self.denominators[1])
    }

    /// The right shift after which sums of magnitudes up to `largest` fit 31 bits.
    pub fn shift_to_i32(&self, largest: u32) -> u32 {
        let bound = u128::from(largest) * self.denominator() as u128;
        (128 - bound.leading_zeros()).saturating_sub(30)
    }

    /// The exact sums of the input rows that an output row reads.
    #[inline(always)]
    fn blend<T: Copy + Into<i32>>(&self, blend: &mut [i32], image: &[T], y: usize) {
        let len = self.input[1] * self.channels;
        let tap = self.rows[y];
        let [above, below] = [tap.first, tap.second].map(|row| &image[row as usize * len..][..len]);
        let (w, rest) = (tap.weight as i32, (self.denominators[0] - tap.weight) as i32);
        for ((blend, &a), &b) in blend.iter_mut().zip(above).zip(below) {
            *blend = a.into() * rest + b.into() * w;
        }
    }

    /// One output row of an image, `[columns, channels]`: exact sums, shifted right by `shift` (floor). `blend` is
    /// scratch of `in_w · channels`.
    #[inline(always)]
    pub fn row<T: Copy + Into<i32>>(&self, out: &mut [i32], blend: &mut [i32], image: &[T], y: usize, shift: u32) {
        self.blend(blend, image, y);
        let c = self.channels;
        for (out, tap) in out.chunks_exact_mut(c).zip(self.columns) {
            let [a, b] = [tap.first, tap.second].map(|column| &blend[column as usize * c..][..c]);
            let (w, rest) = (i64::from(tap.weight), i64::from(self.denominators[1] - tap.weight));
            match shift {
                // Then every sum fits 32 bits.
                0 => {
                    let (w, rest) = (w as i32, rest as i32);
                    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = a * rest + b * w);
                }
                _ => out
                    .iter_mut()
                    .zip(a.iter().zip(b))
                    .for_each(|(out, (&a, &b))| *out = ((i64::from(a) * rest + i64::from(b) * w) >> shift) as i32),
            }
        }
    }

    /// For each pixel of an output row the channel whose value, as [`Resize::row`] has it, is the largest, the first of
    /// several. `blend` is scratch of `in_w · channels`; there are at most 256 channels.
    ///
    /// Between two neighbouring inputs a value lies between its two ends. So a channel that is below another one's smaller
    /// end at both of its own is the largest nowhere between: few are left to be compared pixel by pixel.
    ///
    /// # Panics
    /// When there are more channels, or a slice is too short.
    #[inline(always)]
    pub fn row_of_largest<T: Copy + Into<i32>>(
        &self,
        out: &mut [u8],
        blend: &mut [i32],
        image: &[T],
        y: usize,
        shift: u32,
    ) {
        self.blend(blend, image, y);
        let (c, denominator) = (self.channels, i64::from(self.denominators[1]));
        // What is so much smaller at both ends is smaller in between even after the shift.
        let margin = ((1i64 << shift) + denominator - 1) / denominator;
        let (mut columns, mut out) = (self.columns, out);
        let mut candidates = [0u8; 256];
        while let Some(Tap { first, second, .. }) = columns.first().copied() {
            let len = columns.iter().take_while(|tap| tap.first == first && tap.second == second).count();
            let (taps, pixels);
            (taps, columns) = columns.split_at(len);
            (pixels, out) = core::mem::take(&mut out).split_at_mut(len);
            let [a, b] = [first, second].map(|column| &blend[column as usize * c..][..c]);
            let largest = a.iter().zip(b).fold(i32::MIN, |largest, (&a, &b)| largest.max(a.min(b)));
            let below = i64::from(largest) - margin;
            let below = i32::try_from(below).unwrap_or(i32::MIN);
            let mut count = 0;
            for (k, (&a, &b)) in a.iter().zip(b).enumerate() {
                candidates[count] = k as u8;
                // The margin may reach below all values: then all are compared.
                count += usize::from(a.max(b) > below || below == i32::MIN);
            }
            match &candidates[..count] {
                [only] => pixels.fill(*only),
                several => {
                    for (pixel, tap) in pixels.iter_mut().zip(taps) {
                        let (w, rest) = (i64::from(tap.weight), i64::from(self.denominators[1] - tap.weight));
                        let mut best = i64::MIN;
                        for &k in several {
                            let at = usize::from(k);
                            let value = (i64::from(a[at]) * rest + i64::from(b[at]) * w) >> shift;
                            if value > best {
                                (best, *pixel) = (value, k);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Resizes a batch, each value rounded to nearest. `T` must hold what its values interpolate to, which lies
    /// between them.
    ///
    /// # Panics
    /// When a slice has another length than the shapes say.
    pub fn forward<T>(&self, ctx: Context, out: &mut [T], input: &[T])
    where
        T: Copy + Send + Sync + Into<i64> + TryFrom<i64>,
    {
        let image_len = self.input[0] * self.input[1] * self.channels;
        let (h, w, c) = (self.rows.len(), self.columns.len(), self.channels);
        assert!(image_len > 0 && input.len().is_multiple_of(image_len), "input");
        assert_eq!(out.len(), input.len() / image_len * h * w * c, "output");
        let divisor = self.denominator();
        for_each_piece(ctx.pool, out, w * c, |row, out, _| {
            let image = &input[row / h * image_len..][..image_len];
            let tap = self.rows[row % h];
            let [above, below] = [tap.first, tap.second].map(|y| &image[y as usize * self.input[1] * c..]);
            let (wy, ry) = (i64::from(tap.weight), i64::from(self.denominators[0] - tap.weight));
            for (out, tap) in out.chunks_exact_mut(c).zip(self.columns) {
                let [left, right] = [tap.first as usize * c, tap.second as usize * c];
                let (wx, rx) = (i64::from(tap.weight), i64::from(self.denominators[1] - tap.weight));
                for (k, out) in out.iter_mut().enumerate() {
                    let at = |row: &[T], from: usize| -> i64 { row[from + k].into() };
                    let sum = ry * (rx * at(above, left) + wx * at(above, right))
                        + wy * (rx * at(below, left) + wx * at(below, right));
                    let value = T::try_from(divide_half_even(sum, divisor));
                    *out = value.unwrap_or_else(|_| unreachable!("lies between the input's values"));
                }
            }
        });
    }

    /// The output rows or columns that read input index `at`: a contiguous range, since taps rise.
    fn readers(taps: &[Tap], at: usize) -> core::ops::Range<usize> {
        let at = at as u32;
        taps.partition_point(|tap| tap.second < at)..taps.partition_point(|tap| tap.first <= at)
    }

    fn weight(tap: &Tap, at: usize, denominator: u32) -> i64 {
        let first = if tap.first as usize == at { denominator - tap.weight } else { 0 };
        let second = if tap.second as usize == at { tap.weight } else { 0 };
        i64::from(first + second)
    }

    /// How many i64 of scratch [`Resize::adjoint`] takes.
    pub fn adjoint_scratch_len(&self, ctx: Context) -> usize {
        ctx.pool.threads() * self.columns.len() * self.channels
    }

    /// The exact adjoint of the sums: each input pixel gets the errors of the output pixels that read it, times their
    /// integer weights.
    ///
    /// # Panics
    /// When a slice has another length than the shapes say.
    pub fn adjoint<E>(&self, ctx: Context, out: &mut [i64], error: &[E], scratch: &mut [i64])
    where
        E: Copy + Into<i64> + Sync,
    {
        let ([in_h, in_w], c) = (self.input, self.channels);
        let (h, len) = (self.rows.len(), self.columns.len() * c);
        assert!(error.len().is_multiple_of(h * len), "error");
        assert_eq!(out.len(), error.len() / (h * len) * in_h * in_w * c, "output");
        assert!(scratch.len() >= self.adjoint_scratch_len(ctx), "scratch");
        let scratch = crate::pool::Disjoint::new(scratch);
        for_each_piece(ctx.pool, out, in_w * c, |row, out, worker| {
            // SAFETY: each worker has its own part, and runs one task at a time.
            let blend = unsafe { scratch.piece(worker * len, (worker + 1) * len) };
            let (n, y) = (row / in_h, row % in_h);
            ctx.isa.vectorize(
                #[inline(always)]
                || {
                    blend.fill(0);
                    for reader in Self::readers(self.rows, y) {
                        let weight = Self::weight(&self.rows[reader], y, self.denominators[0]);
                        let error = &error[(n * h + reader) * len..][..len];
                        blend.iter_mut().zip(error).for_each(|(sum, &e)| *sum += e.into() * weight);
                    }
                    for (x, out) in out.chunks_exact_mut(c).enumerate() {
                        out.fill(0);
                        for reader in Self::readers(self.columns, x) {
                            let weight = Self::weight(&self.columns[reader], x, self.denominators[1]);
                            let blend = &blend[reader * c..][..c];
                            out.iter_mut().zip(blend).for_each(|(sum, &v)| *sum += v * weight);
                        }
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::testing::{Threads, random};
    use std::vec;
    use std::vec::Vec;

    const SIZES: [([usize; 2], [usize; 2]); 8] = [
        ([5, 7], [10, 14]),
        ([5, 7], [40, 56]),
        ([1, 1], [6, 9]),
        ([9, 6], [1, 1]),
        ([23, 30], [37, 101]),
        ([33, 65], [17, 129]),
        ([4, 4], [4, 4]),
        ([2, 40], [3, 13]),
    ];

    fn tables(input: [usize; 2], output: [usize; 2], align: bool) -> ([Vec<Tap>; 2], [u32; 2]) {
        let mut taps = output.map(|size| vec![Tap::default(); size]);
        let denominators = [0, 1].map(|i| axis(&mut taps[i], input[i], align));
        (taps, denominators)
    }

    #[test]
    fn taps_are_the_rational_coordinates() {
        for (input, output) in SIZES {
            for align in [false, true] {
                let (taps, denominators) = tables(input, output, align);
                for i in 0..2 {
                    let (size, out) = (input[i] as i64, output[i] as i64);
                    for (o, tap) in taps[i].iter().enumerate() {
                        let o = o as i64;
                        // The coordinate as a fraction, held inside the input.
                        let (num, den) = match align {
                            true => (o * (size - 1), (out - 1).max(1)),
                            false => ((2 * o + 1) * size - out, 2 * out),
                        };
                        let num = num.clamp(0, (size - 1) * den);
                        let d = i64::from(denominators[i]);
                        assert_eq!(
                            (i64::from(tap.first) * d + i64::from(tap.weight)) * den,
                            num * d,
                            "{input:?} {output:?}"
                        );
                    }
                }
            }
        }
        assert_eq!(tables([3, 3], [6, 24], false).1, [4, 16]);
    }

    #[test]
    fn forward_rows_and_adjoint_agree_on_every_instruction_set() {
        for (input, output) in SIZES {
            for align in [false, true] {
                let c = 11;
                let ([rows, columns], denominators) = tables(input, output, align);
                let resize = Resize { input, channels: c, rows: &rows, columns: &columns, denominators };
                let x: Vec<i16> = random(2 * input[0] * input[1] * c, 1, 16).iter().map(|&v| v as i16).collect();
                let e: Vec<i16> = random(2 * output[0] * output[1] * c, 2, 16).iter().map(|&v| v as i16).collect();
                for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                    let ctx = Context { isa, pool: &Threads(threads) };
                    let mut back = vec![0; x.len()];
                    let mut scratch = vec![5; resize.adjoint_scratch_len(ctx)];
                    resize.adjoint(ctx, &mut back, &e, &mut scratch);
                    let mut out = vec![0i16; e.len()];
                    resize.forward(ctx, &mut out, &x);
                    let mut dot = 0i128;
                    let len = output[1] * c;
                    for (row, (e, out)) in e.chunks(len).zip(out.chunks(len)).enumerate() {
                        let (n, y) = (row / output[0], row % output[0]);
                        let image = &x[n * input[0] * input[1] * c..][..input[0] * input[1] * c];
                        let shift = resize.shift_to_i32(32_768);
                        let mut blend = vec![0; input[1] * c];
                        let mut sums = vec![0; len];
                        isa.vectorize(|| resize.row(&mut sums, &mut blend, image, y, shift));
                        for (k, ((&sum, &e), &out)) in sums.iter().zip(e).zip(out).enumerate() {
                            let exact = exact(&resize, image, y, k / c, k % c);
                            assert_eq!(i64::from(sum), exact >> shift);
                            assert_eq!(i64::from(out), divide_half_even(exact, resize.denominator()));
                            dot += i128::from(exact) * i128::from(e);
                        }
                    }
                    let adjoint: i128 = x.iter().zip(&back).map(|(&x, &b)| i128::from(x) * i128::from(b)).sum();
                    assert_eq!(dot, adjoint, "{input:?} {output:?} {align}");
                }
            }
        }
    }

    #[test]
    fn the_largest_of_a_row_are_those_of_its_values() {
        for (input, output) in SIZES {
            for (align, channels, bits) in
                [(false, 21, 3), (true, 21, 16), (true, 5, 2), (false, 1, 9), (false, 256, 6)]
            {
                let ([rows, columns], denominators) = tables(input, output, align);
                let resize = Resize { input, channels, rows: &rows, columns: &columns, denominators };
                // Few bits make many ties.
                let x = random(input[0] * input[1] * channels, 3, bits);
                let x: Vec<i16> = x.iter().map(|&v| v as i16).collect();
                let mut blend = vec![0; input[1] * channels];
                let mut sums = vec![0; output[1] * channels];
                for (isa, shift) in Isa::available().flat_map(|isa| [0, 1, 9].map(|more| (isa, more))) {
                    let shift = resize.shift_to_i32(32_768) + shift;
                    for y in 0..output[0] {
                        let mut classes = vec![77; output[1]];
                        isa.vectorize(|| resize.row(&mut sums, &mut blend, &x, y, shift));
                        isa.vectorize(|| resize.row_of_largest(&mut classes, &mut blend, &x, y, shift));
                        for (values, &class) in sums.chunks(channels).zip(&classes) {
                            let largest = values.iter().max().unwrap();
                            let want = values.iter().position(|value| value == largest).unwrap();
                            assert_eq!(usize::from(class), want, "{input:?} {output:?} {align} {shift}");
                        }
                    }
                }
            }
        }
    }

    fn exact(r: &Resize, image: &[i16], y: usize, x: usize, k: usize) -> i64 {
        let mut sum = 0;
        for sy in 0..r.input[0] {
            for sx in 0..r.input[1] {
                let weight = Resize::weight(&r.rows[y], sy, r.denominators[0])
                    * Resize::weight(&r.columns[x], sx, r.denominators[1]);
                sum += weight * i64::from(image[(sy * r.input[1] + sx) * r.channels + k]);
            }
        }
        sum
    }
}
