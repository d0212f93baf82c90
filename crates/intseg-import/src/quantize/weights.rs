//! Weights in eight bits.

use super::Scales;
use crate::graph::{FloatNode, FloatOp};
use intseg_runtime::Element;

/// Fractions of the largest weight that a channel's steps are tried to end at.
const SHRINKS: [f64; 9] = [1.0, 0.98, 0.96, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8];

/// The multiplier closest to one at which a whole number times it fits the 24 bits of a float32 while it fits the output:
/// so what other runtimes compute in floats has nothing to round, and what lies halfway between two integers is found to.
/// It keeps at least `least_bits` bits.
pub fn short_multiplier(multiplier: f64, output: Element, least_bits: i32) -> f64 {
    let bits = if output == Element::I16 { 15 } else { 8 };
    let size = multiplier.abs().log2().floor().clamp(-200.0, 200.0) as i32 + 1;
    let grid = 2f64.powi((f32::MANTISSA_DIGITS as i32 - bits).max(least_bits - size));
    (multiplier * grid).round_ties_even() / grid
}

/// The bits of a multiplier that a step is held to, at least.
const LEAST_BITS: i32 = 6;

/// What the steps of a convolution's weights may be.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// Whether only powers of two may.
    pub scales: Scales,
    /// The multiplier is the step times two to this power: the input's exponent less the output's.
    pub exponent: i32,
    /// The output's type.
    pub element: Element,
}

impl Steps {
    /// The step closest to one with a short multiplier. Weights are rounded to it as well as to any other. Where exponents
    /// are so far apart that floats do not hold the multiplier, the step itself.
    fn nearest(self, step: f64) -> f64 {
        let unit = 2f64.powi(self.exponent);
        let nearest = short_multiplier(step * unit, self.element, LEAST_BITS) / unit;
        if nearest.is_finite() && nearest > 0.0 { nearest } else { step }
    }
}

/// A convolution's weights, quantised.
#[derive(Clone, Debug)]
pub struct QuantizedWeights {
    /// As the float weights are laid out, −127..=127.
    pub values: Vec<i8>,
    /// The size of each output channel's steps.
    pub steps: Vec<f64>,
}

impl QuantizedWeights {
    /// The weights of a convolution; `None` of anything else.
    pub fn new(node: &FloatNode, allowed: Steps) -> Option<Self> {
        let (FloatOp::Conv { weights, bias, .. }
        | FloatOp::ConvTranspose { weights, bias, .. }
        | FloatOp::Depthwise { weights, bias, .. }) = &node.op
        else {
            return None;
        };
        let c_out = bias.len();
        let steps: Vec<f64> =
            (0..c_out).map(|o| step(weights.iter().skip(o).step_by(c_out).copied(), allowed)).collect();
        let quantize =
            |(at, &w): (usize, &f32)| (f64::from(w) / steps[at % c_out]).round_ties_even().clamp(-127.0, 127.0) as i8;
        Some(QuantizedWeights { values: weights.iter().enumerate().map(quantize).collect(), steps })
    }

    /// The convolution with these weights in place of its own.
    pub fn in_float(&self, node: &FloatNode) -> FloatNode {
        let mut node = node.clone();
        if let FloatOp::Conv { weights, .. }
        | FloatOp::ConvTranspose { weights, .. }
        | FloatOp::Depthwise { weights, .. } = &mut node.op
        {
            let steps = self.steps.iter().cycle();
            weights.iter_mut().zip(&self.values).zip(steps).for_each(|((w, &q), step)| {
                *w = (f64::from(q) * step) as f32;
            });
        }
        node
    }
}

/// The size of the steps of an output channel's weights: that of the least squared error.
fn step(weights: impl Iterator<Item = f32> + Clone, allowed: Steps) -> f64 {
    let largest = weights.clone().fold(0f64, |a, w| a.max(f64::from(w.abs()))).max(1e-30);
    let exact = largest / 127.0;
    if allowed.scales == Scales::PowerOfTwo {
        return 2f64.powi(exact.log2().ceil() as i32);
    }
    let error = |step: f64| -> f64 {
        let rounded = |w: f64| (w / step).round_ties_even().clamp(-127.0, 127.0) * step;
        weights.clone().map(|w| (f64::from(w) - rounded(w.into())).powi(2)).sum()
    };
    let candidates = SHRINKS.iter().map(|shrink| allowed.nearest(exact * shrink)).map(|step| (error(step), step));
    candidates.fold((f64::INFINITY, allowed.nearest(exact)), |a, b| if b.0 < a.0 { b } else { a }).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(scales: Scales) -> Steps {
        Steps { scales, exponent: 0, element: Element::U8 }
    }

    #[test]
    fn steps_end_at_the_largest_weight_unless_one_outlier_costs_the_others() {
        let even = [64.0, -127.0, 127.0, 31.0].map(|v: f32| v / 127.0);
        let found = step(even.into_iter(), any(Scales::Channel));
        assert!((found - 1.0 / 127.0).abs() < 0.01 / 127.0, "{found}");
        assert_eq!(step(even.into_iter(), any(Scales::PowerOfTwo)), 1.0 / 64.0);
        // Many small weights gain more from finer steps than one large one loses.
        let outlier = (0..40_000).map(|i| (i % 1000) as f32 / 1000.0 * 0.9).chain([1.0]);
        assert!(step(outlier, any(Scales::Channel)) < 0.95 / 127.0);
    }

    #[test]
    fn steps_are_sizes_whatever_the_exponents() {
        for exponent in [-3000, -1000, -200, 200, 1000, 3000] {
            for weights in [[0.0, 0.0], [f32::MAX, -1.0], [1e-38, 0.0]] {
                let found = step(weights.into_iter(), Steps { exponent, ..any(Scales::Channel) });
                assert!(found.is_finite() && found > 0.0, "{exponent} {weights:?}: {found}");
            }
        }
    }

    #[test]
    fn sums_that_fit_the_output_times_a_short_multiplier_are_float32s() {
        for (element, largest) in [(Element::U8, 256.0), (Element::I16, 32_768.0)] {
            // At 2^-11 of 8 bits and 2^-4 of 16, six bits are left.
            for wanted in [5e-4 * largest / 256.0, 3.3e-3 * largest / 256.0, 0.71, -0.071 * largest / 256.0] {
                let multiplier = short_multiplier(wanted, element, LEAST_BITS);
                assert!((multiplier / wanted - 1.0).abs() <= 1.0 / 64.0, "{multiplier} {wanted}");
                let most = (largest / multiplier).trunc();
                for sum in [most, (most / 3.0).trunc(), (most * 0.77).trunc()] {
                    assert_eq!(f64::from((sum * multiplier) as f32), sum * multiplier, "{element:?} {wanted}");
                }
            }
        }
        // Smaller ones keep their bits.
        assert!((short_multiplier(1.2345e-5, Element::U8, LEAST_BITS) / 1.2345e-5 - 1.0).abs() <= 1.0 / 64.0);
        assert_eq!(short_multiplier(0.0, Element::U8, LEAST_BITS), 0.0);
    }
}
