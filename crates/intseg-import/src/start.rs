//! Float weights as the start of integer training.

use crate::graph::Normalization;
use crate::names::{Layers, convolution_shape};
use crate::tensor::{FloatTensor, Weights};
use intseg::init::{Given, Start};

/// √(π/2): the deviation of normally distributed values over their mean absolute deviation.
const DEVIATION: f64 = 1.253_314_137_315_5;

/// What training can start from.
pub fn start(weights: Weights) -> Start {
    let mut layers = Layers::new(weights);
    if let (true, Some(first)) = (layers.torchvision, layers.first_convolution()) {
        layers.normalize(first);
    }
    layers.start()
}

impl Layers {
    fn data(&mut self, name: &str) -> Option<&mut Vec<f32>> {
        self.tensors.get_mut(name).map(|tensor| &mut tensor.data)
    }

    /// Rescales the first layer, made for ImageNet's normalisation, for `(v − 128) / 128`.
    fn normalize(&mut self, first: &str) {
        let Normalization { mean, deviation } = Normalization::IMAGENET;
        let Some(weight) = self.tensors.get_mut(&format!("{first}.weight")) else { return };
        let [c_out, 3, h, w] = weight.shape[..] else { return };
        let mut offsets = vec![0f64; c_out];
        for (index, value) in weight.data.iter_mut().enumerate() {
            let (k, c) = (index / (3 * h * w), index / (h * w) % 3);
            // What grey 128 is after ImageNet's normalisation.
            let grey = (128.0 / 255.0 - f64::from(mean[c])) / f64::from(deviation[c]);
            offsets[k] += f64::from(*value) * grey;
            *value *= 128.0 / 255.0 / deviation[c];
        }
        let shift = |values: &mut Vec<f32>, sign: f64| {
            values.iter_mut().zip(&offsets).for_each(|(value, offset)| *value += (sign * offset) as f32);
        };
        match self.data(&format!("{first}.bn.running_mean")) {
            Some(mean) => shift(mean, -1.0),
            None => {
                if let Some(bias) = self.data(&format!("{first}.bias")) {
                    shift(bias, 1.0);
                }
            }
        }
    }

    fn start(mut self) -> Start {
        let mut start = Start::default();
        let norms: Vec<String> =
            self.tensors.keys().filter_map(|name| name.strip_suffix(".running_mean")).map(str::to_owned).collect();
        for norm in norms {
            let mut take = |name: String| self.tensors.remove(&name);
            let (mean, var) = (take(format!("{norm}.running_mean")), take(format!("{norm}.running_var")));
            // What is normalised includes the convolution's bias, which intseg's network does not have there.
            let bias = norm.strip_suffix(".bn").and_then(|conv| take(format!("{conv}.bias")));
            for (theirs, ours) in [("weight", "gamma"), ("bias", "beta")] {
                if let Some(tensor) = take(format!("{norm}.{theirs}")) {
                    start.parameters.insert(format!("{norm}.{ours}"), affine(&tensor));
                }
            }
            if let (Some(mean), Some(var)) = (mean, var) {
                let bias = |k: usize| bias.as_ref().and_then(|bias| bias.data.get(k)).copied().unwrap_or(0.0);
                let means = mean.data.iter().enumerate().map(|(k, m)| f64::from(*m) - f64::from(bias(k)));
                let deviations = var.data.iter().map(|v| f64::from(v.max(0.0)).sqrt() / DEVIATION);
                start.statistics.insert(norm, means.chain(deviations).map(|v| fixed(v, 24, 1 << 46)).collect());
            }
        }
        for (name, tensor) in self.tensors {
            let given = match convolution_shape(&name, &tensor.shape) {
                Some(shape) => weight(&FloatTensor { shape: shape.to_vec(), ..tensor }),
                None => affine(&tensor),
            };
            start.parameters.insert(name, given);
        }
        start.parameters.extend(self.unknown.into_iter().map(|(name, tensor)| (name, affine(&tensor))));
        start
    }
}

/// `value · 2^bits` to nearest, within ±`limit`.
fn fixed(value: f64, bits: i32, limit: i64) -> i64 {
    ((value * 2f64.powi(bits)).round_ties_even() as i64).clamp(-limit, limit)
}

/// Biases, scales and offsets: 20 fractional bits.
fn affine(tensor: &FloatTensor) -> Given {
    let master = tensor.data.iter().map(|&v| fixed(v.into(), 20, i32::MAX.into()) as i32).collect();
    Given { shape: tensor.shape.clone(), exponent: -12, master }
}

/// `[C_out, C_in, KH, KW]` to `[KH, KW, C_in, C_out]`, at the smallest exponent that holds the largest magnitude in 127 steps.
fn weight(tensor: &FloatTensor) -> Given {
    let largest = tensor.data.iter().fold(0f64, |a, v| a.max(f64::from(v.abs())));
    let exponent = if largest > 0.0 { (largest / 127.0).log2().ceil() as i32 } else { -14 };
    let order = [2, 3, 1, 0];
    let values = tensor.permuted(order).into_iter();
    let master = values.map(|value| fixed(value.into(), 16 - exponent, 127 << 16) as i32).collect();
    Given { shape: order.map(|axis| tensor.shape[axis]).to_vec(), exponent, master }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], value: impl Fn(usize) -> f32) -> FloatTensor {
        FloatTensor { shape: shape.to_vec(), data: (0..shape.iter().product()).map(value).collect() }
    }

    #[test]
    fn weights_are_laid_out_anew_and_keep_their_values() {
        let source = tensor(&[2, 3, 1, 2], |i| i as f32 / 8.0 - 0.7);
        let given = weight(&source);
        assert_eq!(given.shape, [1, 2, 3, 2]);
        for (k, c, x) in [(0, 0, 0), (1, 2, 1), (0, 1, 1), (1, 0, 0)] {
            let want = source.data[(k * 3 + c) * 2 + x];
            let got = f64::from(given.master[(x * 3 + c) * 2 + k]) * 2f64.powi(given.exponent - 16);
            assert!((got - f64::from(want)).abs() < 1e-6, "{got} {want}");
        }
        assert!(given.master.iter().all(|m| m.unsigned_abs() <= 127 << 16));
    }

    #[test]
    fn a_pixel_gives_the_same_after_the_first_layer_is_rescaled() {
        let mut weights = Weights::new();
        weights.insert("conv1.weight".into(), tensor(&[2, 3, 1, 1], |i| 0.1 + i as f32 / 10.0));
        weights.insert("layer1.0.conv1.weight".into(), tensor(&[1, 2, 1, 1], |_| 1.0));
        weights.insert("bn1.running_mean".into(), tensor(&[2], |k| k as f32));
        weights.insert("bn1.running_var".into(), tensor(&[2], |_| 4.0));
        weights.insert("bn1.weight".into(), tensor(&[2], |_| 1.5));
        let theirs = weights.clone();
        let start = start(weights);
        let Normalization { mean, deviation } = Normalization::IMAGENET;
        for k in 0..2 {
            let pixel = [10.0, 128.0, 250.0];
            let at = |c: usize| (pixel[c] / 255.0 - f64::from(mean[c])) / f64::from(deviation[c]);
            let want: f64 =
                (0..3).map(|c| f64::from(theirs["conv1.weight"].data[k * 3 + c]) * at(c)).sum::<f64>() - k as f64;
            let given = &start.parameters["conv1.weight"];
            let weight = |c: usize| f64::from(given.master[c * 2 + k]) * 2f64.powi(given.exponent - 16);
            let statistics = &start.statistics["conv1.bn"];
            let got: f64 = (0..3).map(|c| weight(c) * (pixel[c] - 128.0) / 128.0).sum::<f64>()
                - statistics[k] as f64 / 2f64.powi(24);
            assert!((got - want).abs() < 1e-4, "{got} {want}");
            assert!((statistics[2 + k] as f64 / 2f64.powi(24) - 2.0 / DEVIATION).abs() < 1e-6);
        }
        assert_eq!(start.parameters["conv1.bn.gamma"].master[0], 3 << 19);
    }
}
