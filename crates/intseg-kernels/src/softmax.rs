//! Softmax cross-entropy in integers (DESIGN §3.5).
//!
//! For logits `z` of a pixel, `u = (max − z)·log2 e` in units of 2^-8; `2^−u` comes from a table and a shift;
//! probabilities have 15 fractional bits.

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

    #[inline(always)]
    fn u_q8(self, difference: i32) -> u32 {
        let product = i64::from(difference) * self.multiplier;
        // Beyond 2^-31 nothing is left of a probability.
        let limit = 32 << 8;
        let u = match self.shift {
            0..=62 => product >> self.shift,
            63.. => 0,
            _ => product.min(limit) << (-self.shift).min(31),
        };
        u.min(limit) as u32
    }
}

/// One pixel's probabilities.
pub struct Softmax<'a> {
    /// One 2^−u a class, in units of 2^-23.
    powers: &'a mut [u32],
    /// Their sum.
    sum: u64,
    /// The class of the largest logit, the first of several.
    pub best: usize,
}

impl<'a> Softmax<'a> {
    /// Of the logits of one pixel; `powers` is scratch of the same length.
    ///
    /// # Panics
    /// When there are no logits.
    #[inline]
    pub fn new(logits: &[i32], scale: LogitScale, powers: &'a mut [u32]) -> Self {
        let (mut best, mut max) = (0, logits[0]);
        for (k, &z) in logits.iter().enumerate() {
            if z > max {
                (best, max) = (k, z);
            }
        }
        let mut sum = 0;
        for (power, &z) in powers.iter_mut().zip(logits) {
            let u = scale.u_q8(max.wrapping_sub(z));
            *power = (u32::from(EXP2[(u & 255) as usize]) << 8).checked_shr(u >> 8).unwrap_or(0);
            sum += u64::from(*power);
        }
        Softmax { powers, sum, best }
    }

    /// `(p − onehot) · weight`, in units of 2^-(15 − coarse): 15 fractional bits where the weight, in 256ths, is at
    /// most 1.
    #[inline]
    pub fn error(&self, out: &mut [i16], label: usize, weight_q8: u16, coarse: u32) {
        // The pixel's one division.
        let reciprocal = (1u64 << 46) / self.sum;
        let half = 1 << (7 + coarse);
        for (k, (out, &power)) in out.iter_mut().zip(&*self.powers).enumerate() {
            let p = ((u64::from(power) * reciprocal + (1 << 30)) >> 31) as i32;
            let error = p - if k == label { 1 << 15 } else { 0 };
            let scaled = (error * i32::from(weight_q8) + half) >> (8 + coarse);
            *out = scaled.clamp(-32_767, 32_767) as i16;
        }
    }

    /// −log2 of a class's probability in units of 2^-16.
    #[inline]
    pub fn loss_q16(&self, label: usize) -> i64 {
        log2_q16(self.sum) - log2_q16(self.powers[label].max(1).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_end_where_they_must() {
        assert_eq!((EXP2[0], EXP2[128], EXP2[255]), (32_768, 23_170, 16_428));
        assert_eq!((LOG2[0], LOG2[106]), (0, 32_758));
        assert_eq!(log2_q16(1 << 40), 40 << 16);
    }

    #[test]
    fn equal_logits_share_the_probability_and_one_large_takes_it_all() {
        let scale = LogitScale::new(-8, 1);
        let (mut powers, mut out) = ([0; 4], [0; 4]);
        Softmax::new(&[5; 4], scale, &mut powers).error(&mut out, 1, 256, 0);
        assert_eq!(out, [8192, 8192 - 32_768, 8192, 8192].map(|v: i32| v.max(-32_767) as i16));
        let softmax = Softmax::new(&[0, 100 << 8, 0, 0], scale, &mut powers);
        softmax.error(&mut out, 1, 256, 0);
        assert_eq!((out, softmax.best, softmax.loss_q16(1)), ([0; 4], 1, 0));
        let softmax = Softmax::new(&[i32::MIN, i32::MAX, 0, -1], LogitScale::new(20, 1), &mut powers);
        softmax.error(&mut out, 0, 256, 0);
        assert_eq!(out[0], -32_767);
    }
}
