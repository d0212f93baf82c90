//! The training loss: softmax cross-entropy at the labels' resolution.
//!
//! Logits are upsampled a row at a time and never stored at full size; the error is, in 16 bits, and goes back to the
//! logits' resolution through the exact adjoint.

use crate::data::IGNORE;
use crate::ops::Step;
use crate::ops::resize::{Taps, adjoint_sums, narrowed};
use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::pool::for_each_piece_with;
use intseg_kernels::softmax::{Counts, CrossEntropy, LogitScale};
use intseg_kernels::vector::LANES;
use std::sync::Mutex;

/// What the loss says of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOutput {
    /// Loss and pixels.
    pub counts: Counts,
    /// The error at the logits, 16 bits. It is not divided by the number of pixels: the update is.
    pub error: Tensor,
}

/// The loss of logits (`[N, h, w, K]`, 16 bits) against labels (`[N, H, W]`) with class weights in 256ths (K of them,
/// or none for all alike).
pub fn segmentation_loss(
    step: &Step,
    logits: &Tensor,
    labels: &[u8],
    size: [usize; 2],
    align_corners: bool,
    class_weights: &[u16],
) -> LossOutput {
    let Mantissas::I16(values) = &logits.mantissas else { unreachable!("logits have 16 bits") };
    let classes = logits.shape.c;
    let taps = Taps::new([logits.shape.h, logits.shape.w], size, align_corners);
    let resize = taps.kernel(classes);
    let shift = resize.shift_to_i32(1 << 15);
    // Weights above 1 need room in the error's 16 bits.
    let largest = class_weights.iter().copied().max().unwrap_or(256).max(256);
    let coarse = (largest - 1).ilog2() - 7;
    let scale = LogitScale::new(logits.exponent + shift as i32, resize.denominator());
    let loss = CrossEntropy { classes, scale, class_weights, coarse, ignored: IGNORE };

    let row_len = size[1] * classes;
    let ctx = step.kernels;
    let blend_len = logits.shape.w * classes;
    let scratch_len = row_len + LANES + blend_len;
    let mut scratch = step.buffers.take_i32(ctx.pool.threads() * scratch_len);
    let mut error = step.buffers.take_i16(size[0] * row_len);
    let mut sums = step.buffers.take_i64(logits.shape.len());
    let total = Mutex::new(Counts::default());
    // Image by image: the error of all of them at full size would be among the largest tensors of a step.
    let image_len = logits.shape.h * blend_len;
    let images = values.chunks_exact(image_len).zip(labels.chunks_exact(size[0] * size[1]));
    for ((image, labels), sums) in images.zip(sums.chunks_exact_mut(image_len)) {
        for_each_piece_with(ctx.pool, &mut error, row_len, &mut scratch, scratch_len, |row, error, scratch| {
            let labels = &labels[row * size[1]..][..size[1]];
            let (logits, blend) = scratch.split_at_mut(row_len + LANES);
            ctx.isa.vectorize(
                #[inline(always)]
                || resize.row(&mut logits[..row_len], blend, image, row, shift),
            );
            let counts = loss.errors(ctx.isa, error, logits, labels);
            total.lock().expect("no task panics").add(&counts);
        });
        adjoint_sums(step, &resize, &error, sums);
    }
    step.buffers.give_i32(scratch);
    step.buffers.give_i16(error);
    let reduced = narrowed(step, &resize, sums, coarse as i32 - 15, logits.shape);
    LossOutput { counts: total.into_inner().expect("no task panics"), error: reduced }
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued rule")]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use crate::tensor::Shape;
    use intseg_kernels::{Context, Dither, Inline, Isa, Role};

    fn step<'a>(buffers: &'a Buffers, isa: Isa) -> Step<'a> {
        Step { kernels: Context { isa, pool: &Inline }, bits: Bits::default(), buffers, seed: 0, number: 0, node: 0 }
    }

    fn logits(shape: Shape, exponent: i32) -> Tensor {
        let bits = Dither::new(4, 0, 0, Role::Initial);
        Tensor::i16(shape, exponent, (0..shape.len()).map(|i| (bits.at(i) as i32 >> 17) as i16).collect())
    }

    #[test]
    fn the_error_at_full_resolution_is_the_softmax_of_reals() {
        let buffers = Buffers::default();
        let shape = Shape::new(2, 6, 9, 21);
        let logits = logits(shape, -12);
        let labels: Vec<u8> = (0..108).map(|i| if i % 10 == 9 { IGNORE } else { (i * 7 % 21) as u8 }).collect();
        let loss = segmentation_loss(&step(&buffers, Isa::Scalar), &logits, &labels, [6, 9], false, &[]);
        let unit = 2f64.powi(loss.error.exponent);
        let (mut off, mut size, mut total) = (0.0, 0.0, 0.0);
        for (p, (z, e)) in logits.to_i64().chunks(21).zip(loss.error.to_i64().chunks(21)).enumerate() {
            let z: Vec<f64> = z.iter().map(|&z| z as f64 * 2f64.powi(-12)).collect();
            let max = z.iter().fold(f64::MIN, |a, &b| a.max(b));
            let sum: f64 = z.iter().map(|z| (z - max).exp()).sum();
            for (k, &e) in e.iter().enumerate() {
                let onehot = f64::from(u8::from(usize::from(labels[p]) == k));
                let want = if labels[p] == IGNORE { 0.0 } else { (z[k] - max).exp() / sum - onehot };
                off += (e as f64 * unit - want).powi(2);
                size += want * want;
            }
            if labels[p] != IGNORE {
                total -= ((z[usize::from(labels[p])] - max).exp() / sum).log2();
            }
        }
        assert!((off / size).sqrt() < 1e-3, "{}", (off / size).sqrt());
        assert!(
            (loss.counts.loss_q16 as f64 / 65_536.0 - total).abs() < 2e-3 * total,
            "{} {total}",
            loss.counts.loss_q16
        );
        assert_eq!((loss.counts.valid, loss.counts.weight_q8), (98, 98 * 256));
    }

    #[test]
    fn the_error_is_the_derivative_of_the_upsampled_loss() {
        let buffers = Buffers::default();
        for (size, align) in [([24, 32], false), ([19, 27], false), ([19, 27], true)] {
            let shape = Shape::new(1, 6, 8, 4);
            let logits = logits(shape, -12);
            let labels: Vec<u8> =
                (0..size[0] * size[1]).map(|i| (i * i % 5) as u8).map(|l| if l == 4 { IGNORE } else { l }).collect();
            let weights = [256, 128, 512, 256];
            let step = step(&buffers, Isa::Scalar);
            let loss = |t: &Tensor| segmentation_loss(&step, t, &labels, size, align, &weights);
            let error = loss(&logits).error;
            let value = |t: &Tensor| loss(t).counts.loss_q16 as f64 / 65_536.0 * std::f64::consts::LN_2;
            for index in [0, 17, 50, 101, 191] {
                let moved = |by: i16| {
                    let mut t = logits.clone();
                    let Mantissas::I16(m) = &mut t.mantissas else { unreachable!() };
                    m[index] = m[index].saturating_add(by);
                    t
                };
                let slope = (value(&moved(2000)) - value(&moved(-2000))) / (4000.0 * 2f64.powi(-12));
                let got = error.to_i64()[index] as f64 * 2f64.powi(error.exponent);
                assert!((got - slope).abs() < 0.05 * slope.abs().max(1.0), "{size:?} {index}: {got} {slope}");
            }
        }
    }

    #[test]
    fn every_instruction_set_agrees() {
        let logits = logits(Shape::new(2, 5, 7, 11), -9);
        let labels: Vec<u8> =
            (0..2 * 40 * 51).map(|i| (i % 12) as u8).map(|l| if l == 11 { IGNORE } else { l }).collect();
        let all: Vec<LossOutput> = Isa::available()
            .map(|isa| segmentation_loss(&step(&Buffers::default(), isa), &logits, &labels, [40, 51], false, &[]))
            .collect();
        assert!(all.iter().all(|l| *l == all[0]));
    }
}
