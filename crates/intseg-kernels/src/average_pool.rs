//! Sums for average pooling.

use crate::Context;
use crate::pool::{Disjoint, for_each_piece};
use crate::round::divide_half_even;

/// Channels that a task adds up.
const CHANNELS: usize = 256;

/// The sum over all positions of each image's channels: `[N, pixels, C]` to `[N, C]`.
///
/// # Panics
/// When a slice has another length than the shapes say.
pub fn channel_sums<T>(ctx: Context, sums: &mut [i64], input: &[T], pixels: usize, channels: usize)
where
    T: Copy + Sync + Into<i64>,
{
    assert_eq!(input.len(), sums.len() * pixels, "input");
    let (images, blocks) = (sums.len() / channels, channels.div_ceil(CHANNELS));
    let sums = Disjoint::new(sums);
    ctx.pool.run(images * blocks, &|task, _| {
        let (image, first) = (task / blocks, task % blocks * CHANNELS);
        let end = channels.min(first + CHANNELS);
        // SAFETY: tasks have disjoint images or channels.
        let sums = unsafe { sums.piece(image * channels + first, image * channels + end) };
        let input = &input[image * pixels * channels..][..pixels * channels];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                sums.fill(0);
                for pixel in input.chunks_exact(channels) {
                    sums.iter_mut().zip(&pixel[first..end]).for_each(|(sum, &v)| *sum += v.into());
                }
            },
        );
    });
}

/// A windowed average pooling of `[batch, in_h, in_w, channels]` to `[batch, out_h, out_w, channels]`.
#[derive(Clone, Copy, Debug)]
pub struct AveragePool {
    /// Images.
    pub batch: usize,
    /// Input rows and columns.
    pub input: [usize; 2],
    /// Output rows and columns.
    pub output: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// Rows and columns of the window.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Zero rows and columns before the first input pixel.
    pub padding: [usize; 2],
    /// Whether padding counts in the divisor.
    pub count_padding: bool,
}

impl AveragePool {
    fn window(&self, axis: usize, at: usize) -> core::ops::Range<usize> {
        let start = at * self.stride[axis];
        let clip = |v: usize| v.saturating_sub(self.padding[axis]).min(self.input[axis]);
        clip(start)..clip(start + self.kernel[axis])
    }

    /// What the sum at an output position is divided by.
    fn divisor(&self, y: usize, x: usize) -> i64 {
        let [h, w] = match self.count_padding {
            true => self.kernel,
            false => [self.window(0, y).len(), self.window(1, x).len()],
        };
        (h * w).max(1) as i64
    }

    /// Writes the means, to nearest. `T` must hold the mean of its values, which lies between them.
    ///
    /// # Panics
    /// When a slice has another length than the shapes say.
    pub fn forward<T>(&self, ctx: Context, out: &mut [T], input: &[T])
    where
        T: Copy + Send + Sync + Into<i64> + TryFrom<i64>,
    {
        let ([in_h, in_w], [out_h, out_w], c) = (self.input, self.output, self.channels);
        assert_eq!(input.len(), self.batch * in_h * in_w * c, "input");
        assert_eq!(out.len(), self.batch * out_h * out_w * c, "output");
        for_each_piece(ctx.pool, out, out_w * c, |row, out, _| {
            let (n, y) = (row / out_h, row % out_h);
            for (x, out) in out.chunks_exact_mut(c).enumerate() {
                for (k, out) in out.iter_mut().enumerate() {
                    let rows = self.window(0, y).map(|sy| (n * in_h + sy) * in_w);
                    let pixels = rows.flat_map(|row| self.window(1, x).map(move |sx| row + sx));
                    let sum: i64 = pixels.map(|pixel| input[pixel * c + k].into()).sum();
                    let value = T::try_from(divide_half_even(sum, self.divisor(y, x)));
                    *out = value.unwrap_or_else(|_| unreachable!("a mean lies between its values"));
                }
            }
        });
    }

    /// The adjoint of the means with `fraction` fractional bits: each input pixel gets the errors of its windows, each
    /// divided by its window's divisor and rounded to nearest.
    ///
    /// # Panics
    /// When a slice has another length than the shapes say.
    pub fn backward(&self, ctx: Context, out: &mut [i64], error: &[i16], fraction: u32) {
        let ([in_h, in_w], [out_h, out_w], c) = (self.input, self.output, self.channels);
        assert_eq!(out.len(), self.batch * in_h * in_w * c, "output");
        assert_eq!(error.len(), self.batch * out_h * out_w * c, "error");
        for_each_piece(ctx.pool, out, in_h * in_w * c, |n, out, _| {
            out.fill(0);
            for (y, x) in (0..out_h).flat_map(|y| (0..out_w).map(move |x| (y, x))) {
                let divisor = self.divisor(y, x);
                let errors = &error[((n * out_h + y) * out_w + x) * c..][..c];
                for pixel in self.window(0, y).flat_map(|sy| self.window(1, x).map(move |sx| sy * in_w + sx)) {
                    for (out, &e) in out[pixel * c..][..c].iter_mut().zip(errors) {
                        *out += divide_half_even(i64::from(e) << fraction, divisor);
                    }
                }
            }
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

    fn pool(kernel: usize, stride: usize, padding: usize, output: [usize; 2], count_padding: bool) -> AveragePool {
        AveragePool {
            batch: 2,
            input: [8, 6],
            output,
            channels: 5,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [padding; 2],
            count_padding,
        }
    }

    #[test]
    fn global_sums_are_exact_on_every_instruction_set() {
        let input: Vec<u8> = random(3 * 50 * 17, 1, 9).iter().map(|&v| v as u8).collect();
        for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let mut sums = vec![9; 3 * 17];
            channel_sums(Context { isa, pool: &Threads(threads) }, &mut sums, &input, 50, 17);
            for (i, &sum) in sums.iter().enumerate() {
                let want: i64 = (0..50).map(|p| i64::from(input[(i / 17 * 50 + p) * 17 + i % 17])).sum();
                assert_eq!(sum, want);
            }
        }
    }

    #[test]
    fn means_of_windows_count_padding_as_told() {
        let input = vec![100u8; 2 * 8 * 6 * 5];
        let mut out = vec![0; 2 * 4 * 3 * 5];
        pool(3, 2, 1, [4, 3], false).forward(Context::reference(), &mut out, &input);
        assert!(out.iter().all(|&v| v == 100));
        pool(3, 2, 1, [4, 3], true).forward(Context::reference(), &mut out, &input);
        // The first window has 4 of its 9 pixels on the image.
        assert_eq!(out[0], 44);
    }

    #[test]
    fn backward_is_the_adjoint_where_division_is_exact() {
        let pool = pool(2, 2, 0, [4, 3], true);
        let input: Vec<u8> = random(2 * 8 * 6 * 5, 1, 6).iter().map(|&v| (v & 31) as u8 * 4).collect();
        let error: Vec<i16> = random(2 * 4 * 3 * 5, 2, 10).iter().map(|&v| v as i16).collect();
        let (mut out, mut back) = (vec![0; error.len()], vec![0; input.len()]);
        pool.forward(Context::reference(), &mut out, &input);
        pool.backward(Context::reference(), &mut back, &error, 2);
        let forward: i64 = out.iter().zip(&error).map(|(&o, &e)| 4 * i64::from(o) * i64::from(e)).sum();
        let adjoint: i64 = input.iter().zip(&back).map(|(&i, &b)| i64::from(i) * b).sum();
        assert_eq!(forward, adjoint);
    }
}
