//! Softmax cross-entropy in integers (DESIGN §3.5).
//!
//! For logits `z` of a pixel, `u = (max − z)·log2 e` in units of 2^-8; `2^−u` comes from a table and a shift;
//! probabilities have 15 fractional bits.

use crate::Isa;
use crate::vector::{LANES, Lanes, Loop, Vector, first_lanes, store};

/// 2^(−i/256) in units of 2^-15.
const EXP2: [u16; 256] = exp2_table();
/// log2(1 + i/256) in units of 2^-16.
const LOG2: [u16; 256] = log2_table();
/// log2 e in units of 2^-16.
const LOG2_E_Q16: u64 = 94_548;

const fn exp2_table() -> [u16; 256] {
    // 2^(−1/256) in units of 2^-62, by eight square roots of a half.
    let mut root: u128 = 1 << 61;
    let mut k = 0;
    while k < 8 {
        root = (root << 62).isqrt();
        k += 1;
    }
    let mut table = [0; 256];
    let mut value: u128 = 1 << 62;
    let mut i = 0;
    while i < 256 {
        table[i] = ((value + (1 << 46)) >> 47) as u16;
        value = (value * root) >> 62;
        i += 1;
    }
    table
}

const fn log2_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        // Squaring doubles the logarithm: its bits come out one by one.
        let mut mantissa: u128 = ((256 + i) as u128) << 54;
        let mut result = 0u32;
        let mut bit = 0;
        while bit < 17 {
            mantissa = (mantissa * mantissa) >> 62;
            let one = (mantissa >> 63) as u32;
            mantissa >>= one;
            result = result << 1 | one;
            bit += 1;
        }
        table[i] = ((result + 1) >> 1) as u16;
        i += 1;
    }
    table
}

/// log2 of a positive integer in units of 2^-16, to about 2^-8.
pub fn log2_q16(value: u64) -> i64 {
    let whole = value.max(1).ilog2();
    let mantissa = if whole >= 8 { value >> (whole - 8) } else { value << (8 - whole) };
    (i64::from(whole) << 16) + i64::from(LOG2[(mantissa & 255) as usize])
}

/// Turns differences of logits into `u`: `u_q8 = difference · multiplier >> shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitScale {
    multiplier: i64,
    shift: i32,
}

impl LogitScale {
    /// For logits of value `mantissa · 2^exponent / denominator`.
    pub fn new(exponent: i32, denominator: i64) -> Self {
        // log2 e · 2^8 / denominator as a mantissa of 16 bits.
        let quotient = (u128::from(LOG2_E_Q16) << 64) / denominator as u128;
        let spare = 128 - quotient.leading_zeros() as i32 - 16;
        LogitScale { multiplier: (quotient >> spare) as i64, shift: 64 + 16 - 8 - spare - exponent }
    }

    /// `u` of the differences to the largest logit, unsigned, at most [`LIMIT`]: beyond 2^-31 nothing is left of a
    /// probability.
    #[inline(always)]
    fn u_q8<V: Vector>(self, differences: V) -> V {
        // The multiplier has 16 bits: without a shift every difference but 0 is beyond the limit.
        differences.scaled(self.multiplier as u32, 0, self.shift.clamp(0, 63) as u32, LIMIT)
    }
}

/// The largest `u`, in units of 2^-8.
const LIMIT: u32 = 32 << 8;

/// The most classes.
const MAX_CLASSES: usize = 256;

/// Softmax cross-entropy.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a> {
    /// K, 1..=256.
    pub classes: usize,
    /// The unit of the logits.
    pub scale: LogitScale,
    /// K weights in 256ths, or none for all alike.
    pub class_weights: &'a [u16],
    /// Errors are in units of 2^-(15 − coarse): 0 where no weight is above 1.
    pub coarse: u32,
    /// The label of pixels that do not count.
    pub ignored: u8,
}

/// What some pixels add to a batch's loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sum of −log2(p) over the valid pixels, weighted by class, in units of 2^-16.
    pub loss_q16: i64,
    /// Sum of the valid pixels' class weights, in units of 2^-8.
    pub weight_q8: u64,
    /// Pixels that are not ignored.
    pub valid: u64,
    /// Valid pixels whose largest logit is their label's; of several the first counts.
    pub correct: u64,
}

impl Counts {
    /// Adds another's.
    pub fn add(&mut self, other: &Counts) {
        self.loss_q16 += other.loss_q16;
        self.weight_q8 += other.weight_q8;
        self.valid += other.valid;
        self.correct += other.correct;
    }
}

impl CrossEntropy<'_> {
    /// Writes the error of each pixel, `(p − onehot) · weight` in 16 bits, `[P, K]`, 0 where the label is ignored. Behind
    /// the logits, `[P, K]`, come [`LANES`] more of any value.
    ///
    /// # Panics
    /// When lengths differ, or a label is neither a class nor ignored.
    pub fn errors(&self, isa: Isa, error: &mut [i16], logits: &[i32], labels: &[u8]) -> Counts {
        assert!((1..=MAX_CLASSES).contains(&self.classes), "classes");
        assert_eq!(error.len(), labels.len() * self.classes, "errors");
        assert_eq!(logits.len(), error.len() + LANES, "logits");
        isa.run_loop(Pixels { loss: self, error, logits, labels })
    }
}

struct Pixels<'a> {
    loss: &'a CrossEntropy<'a>,
    error: &'a mut [i16],
    logits: &'a [i32],
    labels: &'a [u8],
}

impl Loop for Pixels<'_> {
    type Output = Counts;

    #[inline(always)]
    fn run<V: Vector>(self) -> Counts {
        let Pixels { loss: &CrossEntropy { classes, scale, class_weights, coarse, ignored }, error, logits, labels } =
            self;
        let groups = classes.div_ceil(LANES);
        // The classes of the last group.
        let last = first_lanes::<V>(classes - (groups - 1) * LANES);
        let half = 1 << (7 + coarse);
        let table = V::table(&EXP2);
        // Some pixels at a time, and each step for all of them: a pixel's steps wait for each other.
        // 2^−u of each class, in units of 2^-23, and their sums.
        let mut powers = [[Lanes::default(); MAX_CLASSES / LANES]; BATCH];
        let (mut largest, mut sums, mut reciprocals) = ([0; BATCH], [0u64; BATCH], [0; BATCH]);
        let mut counts = Counts::default();
        for begin in (0..labels.len()).step_by(BATCH) {
            let labels = &labels[begin..labels.len().min(begin + BATCH)];
            let logits = &logits[begin * classes..];
            for (pixel, largest) in largest[..labels.len()].iter_mut().enumerate() {
                let logits = &logits[pixel * classes..];
                let mut max: V = of_group(logits, 0, groups, last);
                for group in 1..groups {
                    max = max.max(of_group(logits, group, groups, last));
                }
                *largest = max.largest();
            }
            for (pixel, powers) in powers[..labels.len()].iter_mut().enumerate() {
                let logits = &logits[pixel * classes..];
                let mut sum = V::splat(0);
                for (group, powers) in powers[..groups].iter_mut().enumerate() {
                    let u = scale.u_q8(V::splat(largest[pixel]).sub(of_group(logits, group, groups, last)));
                    let power = u.and(V::splat(255)).look_up(&table).shl(8).shr_each(u.shr(8).min(V::splat(31)));
                    let power = if group + 1 < groups { power } else { power.keep(last) };
                    sum = sum.add(power);
                    powers.set(power);
                }
                // At most 2^31.
                sums[pixel] = u64::from(sum.total() as u32);
            }
            // A pixel's one division.
            for (reciprocal, &sum) in reciprocals[..labels.len()].iter_mut().zip(&sums) {
                *reciprocal = ((1u64 << 46) / sum) as u32;
            }
            for (pixel, &label) in labels.iter().enumerate() {
                let first = (begin + pixel) * classes;
                if label == ignored {
                    error[first..first + classes].fill(0);
                    continue;
                }
                let class = usize::from(label);
                assert!(class < classes, "a label is a class");
                let weight = class_weights.get(class).copied().unwrap_or(256);
                for (group, powers) in powers[pixel][..groups].iter().enumerate() {
                    let p = powers.get::<V>().scaled(reciprocals[pixel], 1 << 30, 31, u32::MAX);
                    let scaled = p.mul(V::splat(weight.into())).add(V::splat(half)).shr(8 + coarse);
                    let at = first + group * LANES;
                    // What is written behind the last class is the next pixel's, which follows.
                    let len = LANES.min(error.len() - at);
                    store(scaled.min(V::splat(32_767)), error, at, len);
                }
                let power = powers[pixel][class / LANES].0[class % LANES] as u32;
                let p = ((u64::from(power) * u64::from(reciprocals[pixel]) + (1 << 30)) >> 31) as i32;
                let scaled = (p - (1 << 15)).wrapping_mul(weight.into()).wrapping_add(half) >> (8 + coarse);
                error[first + class] = scaled.max(-32_767) as i16;

                counts.loss_q16 += ((log2_q16(sums[pixel]) - log2_q16(power.max(1).into())) * i64::from(weight)) >> 8;
                counts.weight_q8 += u64::from(weight);
                counts.valid += 1;
                // The first of the largest.
                let mut best = 0;
                for group in 0..groups {
                    let smaller =
                        V::splat(largest[pixel]).greater(of_group(&logits[pixel * classes..], group, groups, last));
                    let bits = !V::bits(smaller) & 0xFFFF;
                    if bits != 0 {
                        best = group * LANES + bits.trailing_zeros() as usize;
                        break;
                    }
                }
                counts.correct += u64::from(best == class);
            }
        }
        counts
    }
}

/// Pixels that are computed together.
const BATCH: usize = 8;

/// Sixteen of a pixel's logits. Lanes behind the last class hold other pixels', and become the smallest.
#[inline(always)]
fn of_group<V: Vector>(pixel: &[i32], group: usize, groups: usize, last: V::Mask) -> V {
    let logits = V::load_i32(pixel[group * LANES..].first_chunk().expect("lanes follow"));
    if group + 1 < groups { logits } else { logits.or_else(last, V::splat(i32::MIN)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dither, Role};
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn tables_end_where_they_must() {
        assert_eq!((EXP2[0], EXP2[128], EXP2[255]), (32_768, 23_170, 16_428));
        assert_eq!((LOG2[0], LOG2[106]), (0, 32_758));
        assert_eq!(log2_q16(1 << 40), 40 << 16);
    }

    /// One pixel's errors, loss and whether its class is the first of the largest logits, by the definition.
    fn naive(loss: &CrossEntropy, logits: &[i32], class: usize) -> (Vec<i16>, i64, bool) {
        let max = logits.iter().max().unwrap();
        let LogitScale { multiplier, shift } = loss.scale;
        let power = |&z: &i32| {
            let product = i128::from(i64::from(*max) - i64::from(z)) * i128::from(multiplier);
            let u = if shift < 0 { product << -shift.max(-40) } else { product >> shift.min(100) };
            let u = u.min(32 << 8) as u32;
            (u32::from(EXP2[(u & 255) as usize]) << 8).checked_shr(u >> 8).unwrap_or(0)
        };
        let powers: Vec<u64> = logits.iter().map(power).map(u64::from).collect();
        let sum = powers.iter().sum::<u64>();
        let weight = i64::from(loss.class_weights.get(class).copied().unwrap_or(256));
        let error = |(k, power): (usize, &u64)| {
            let p = ((power * ((1 << 46) / sum) + (1 << 30)) >> 31) as i64 - if k == class { 1 << 15 } else { 0 };
            ((p * weight + (1 << (7 + loss.coarse))) >> (8 + loss.coarse)).clamp(-32_767, 32_767) as i16
        };
        let loss = ((log2_q16(sum) - log2_q16(powers[class].max(1))) * weight) >> 8;
        (powers.iter().enumerate().map(error).collect(), loss, logits.iter().position(|z| z == max) == Some(class))
    }

    #[test]
    fn every_instruction_set_computes_the_definition() {
        const IGNORED: u8 = 255;
        for (classes, exponent) in [(1, -8), (2, -8), (11, -12), (16, 3), (21, -18), (33, -20), (150, -16), (255, -60)]
        {
            let draw = |tensor| Dither::new(6, 0, tensor, Role::Initial);
            // Few values, so that some are equal; a few of any size.
            let logits: Vec<i32> = (0..40 * classes + LANES)
                .map(|i| draw(0).at(i) as i32 >> if i % 50 == 7 { 1 } else { 28 - (exponent.max(-20) + 20) / 2 })
                .collect();
            let labels: Vec<u8> =
                (0..40).map(|i| if i % 9 == 4 { IGNORED } else { draw(1).below(i, classes as u32) as u8 }).collect();
            let weights: Vec<u16> = (0..classes).map(|k| (k * 977 % 1500) as u16).collect();
            for (class_weights, coarse) in [(&[][..], 0), (&weights[..], 3)] {
                let scale = LogitScale::new(exponent, 36);
                let loss = CrossEntropy { classes, scale, class_weights, coarse, ignored: IGNORED };
                let (mut error, mut counts) = (Vec::new(), Counts::default());
                for (logits, &label) in logits.chunks(classes).zip(&labels) {
                    if label == IGNORED {
                        error.extend(vec![0; classes]);
                        continue;
                    }
                    let (errors, loss_q16, correct) = naive(&loss, logits, label.into());
                    error.extend(errors);
                    let weight_q8 = class_weights.get(usize::from(label)).map_or(256, |&weight| u64::from(weight));
                    counts.loss_q16 += loss_q16;
                    counts.weight_q8 += weight_q8;
                    counts.valid += 1;
                    counts.correct += u64::from(correct);
                }
                for isa in Isa::available() {
                    let mut out = vec![7; error.len()];
                    let got = loss.errors(isa, &mut out, &logits, &labels);
                    assert_eq!((got, &out), (counts, &error), "{} with {classes} classes", isa.name());
                }
            }
        }
    }

    #[test]
    fn equal_logits_share_the_probability_and_one_large_takes_it_all() {
        let of = |logits: [i32; 4], class: u8, exponent: i32| {
            let scale = LogitScale::new(exponent, 1);
            let loss = CrossEntropy { classes: 4, scale, class_weights: &[], coarse: 0, ignored: 255 };
            let (mut out, mut padded) = ([0; 4], [0; 4 + LANES]);
            padded[..4].copy_from_slice(&logits);
            let counts = loss.errors(Isa::detect(), &mut out, &padded, &[class]);
            (out, counts)
        };
        assert_eq!(of([5; 4], 1, -8).0, [8192, 8192 - 32_768, 8192, 8192].map(|v: i32| v.max(-32_767) as i16));
        let (out, counts) = of([0, 100 << 8, 0, 0], 1, -8);
        assert_eq!((out, counts.correct, counts.loss_q16), ([0; 4], 1, 0));
        assert_eq!(of([i32::MIN, i32::MAX, 0, -1], 0, 20).0[0], -32_767);
    }
}
