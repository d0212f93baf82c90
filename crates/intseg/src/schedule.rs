//! Learning-rate schedules in integers.

use crate::config::{Config, Decay};

/// How the learning rate falls over a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    lr_q32: u64,
    steps: u64,
    warmup: u64,
    decay: Decay,
}

impl Schedule {
    /// A schedule of `steps` steps from a learning rate in units of 2^-32, reached after `warmup` steps.
    pub fn new(lr_q32: u64, steps: u64, warmup: u64, decay: Decay) -> Self {
        Schedule { lr_q32, steps, warmup, decay }
    }

    /// A configuration's.
    pub fn of(config: &Config) -> Self {
        Schedule::new(config.lr_q32(), config.train.steps, config.train.warmup, config.train.decay.clone())
    }

    /// The learning rate of a step, in units of 2^-32.
    pub fn rate_q32(&self, step: u64) -> u64 {
        let full = u128::from(self.lr_q32);
        let rate = match &self.decay {
            Decay::Constant => full,
            Decay::Poly => (full * u128::from(poly_q30(step, self.steps))) >> 30,
            Decay::Halve(at) => full >> at.iter().filter(|&&at| step >= at).count().min(64),
        };
        match step < self.warmup {
            true => (rate * u128::from(step + 1) / u128::from(self.warmup)) as u64,
            false => rate as u64,
        }
    }
}

/// `(1 − step/steps)^0.9` in units of 2^-30.
fn poly_q30(step: u64, steps: u64) -> u64 {
    let left = steps.saturating_sub(step);
    if left == 0 || steps == 0 {
        return 0;
    }
    // −log2 of the rest, times 9/10.
    let exponent_q30 = (log2_q30(steps) - log2_q30(left)) * 9 / 10;
    exp2_minus_q30(exponent_q30)
}

/// log2 of a positive integer in units of 2^-30, bit by bit: squaring doubles the logarithm.
fn log2_q30(value: u64) -> u64 {
    let whole = value.ilog2();
    let mut mantissa_q62 = u128::from(value) << 62 >> whole;
    let mut result = u64::from(whole);
    for _ in 0..30 {
        mantissa_q62 = (mantissa_q62 * mantissa_q62) >> 62;
        let bit = mantissa_q62 >> 63;
        mantissa_q62 >>= bit;
        result = result << 1 | bit as u64;
    }
    result
}

/// 2^−x in units of 2^-30 for x in units of 2^-30: the product of 2^(−2^−k) over the set bits, each factor the square
/// root of the one before.
fn exp2_minus_q30(x: u64) -> u64 {
    let mut factor_q62: u128 = 1 << 61;
    let mut result_q62: u128 = 1 << 62;
    for k in 1..=30 {
        factor_q62 = (factor_q62 << 62).isqrt();
        if x >> (30 - k) & 1 == 1 {
            result_q62 = (result_q62 * factor_q62) >> 62;
        }
    }
    (result_q62 >> 32 >> (x >> 30).min(64)) as u64
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued rule")]
mod tests {
    use super::*;

    #[test]
    fn poly_is_the_real_power_to_six_digits() {
        for steps in [1u64, 7, 1000, 30_000, 150_000] {
            for step in (0..steps).step_by((steps / 50).max(1) as usize) {
                let want = (1.0 - step as f64 / steps as f64).powf(0.9);
                let got = poly_q30(step, steps) as f64 / 2f64.powi(30);
                assert!((got - want).abs() < 1e-6 * want.max(1e-3), "{step}/{steps}: {got} {want}");
            }
            assert_eq!(poly_q30(steps, steps), 0);
        }
    }

    #[test]
    fn halving_and_warm_up_happen_at_their_steps() {
        let schedule = Schedule::new(1 << 28, 100, 4, Decay::Halve(vec![10, 20]));
        let rates = [0, 1, 3, 4, 9, 10, 19, 20].map(|s| schedule.rate_q32(s) * 4 / (1 << 28));
        assert_eq!(rates, [1, 2, 4, 4, 4, 2, 2, 1]);
        assert_eq!(Schedule::new(5, 100, 0, Decay::Constant).rate_q32(99), 5);
    }
}
