//! Weights in eight bits.

use super::Scales;
use crate::graph::{FloatNode, FloatOp};

/// Fractions of the largest weight that a channel's steps are tried to end at.
const SHRINKS: [f64; 9] = [1.0, 0.98, 0.96, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8];

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
    pub fn new(node: &FloatNode, scales: Scales) -> Option<Self> {
        let (FloatOp::Conv { weights, bias, .. }
        | FloatOp::ConvTranspose { weights, bias, .. }
        | FloatOp::Depthwise { weights, bias, .. }) = &node.op
        else {
            return None;
        };
        let c_out = bias.len();
        let steps: Vec<f64> =
            (0..c_out).map(|o| step(weights.iter().skip(o).step_by(c_out).copied(), scales)).collect();
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
fn step(weights: impl Iterator<Item = f32> + Clone, scales: Scales) -> f64 {
    let largest = weights.clone().fold(0f64, |a, w| a.max(f64::from(w.abs()))).max(1e-30);
    let exact = largest / 127.0;
    if scales == Scales::PowerOfTwo {
        return 2f64.powi(exact.log2().ceil() as i32);
    }
    let error = |step: f64| -> f64 {
        let rounded = |w: f64| (w / step).round_ties_even().clamp(-127.0, 127.0) * step;
        weights.clone().map(|w| (f64::from(w) - rounded(w.into())).powi(2)).sum()
    };
    let candidates = SHRINKS.iter().map(|shrink| exact * shrink).map(|step| (error(step), step));
    candidates.fold((f64::INFINITY, exact), |a, b| if b.0 < a.0 { b } else { a }).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_at_the_largest_weight_unless_one_outlier_costs_the_others() {
        let even = [64.0, -127.0, 127.0, 31.0].map(|v: f32| v / 127.0);
        assert!((step(even.into_iter(), Scales::Channel) - 1.0 / 127.0).abs() < 1e-9);
        assert_eq!(step(even.into_iter(), Scales::PowerOfTwo), 1.0 / 64.0);
        // Many small weights gain more from finer steps than one large one loses.
        let outlier = (0..40_000).map(|i| (i % 1000) as f32 / 1000.0 * 0.9).chain([1.0]);
        assert!(step(outlier, Scales::Channel) < 0.95 / 127.0);
    }
}
