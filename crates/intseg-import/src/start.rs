//! Float weights as the start of integer training.
//!
//! Names are those of torchvision's `vgg16`, `vgg16_bn`, `resnet50`, `fcn_resnet50` and `deeplabv3_resnet50`, of the
//! original FCN (`conv1_1`, `fc6`, `score_fr`), or of the network's own nodes; convolutions are laid out
//! `[C_out, C_in, KH, KW]`.

use crate::graph::Normalization;
use crate::tensor::{FloatTensor, Weights};
use intseg::init::{Given, Start};
use std::collections::BTreeMap;

/// Convolutions of VGG-16's five blocks.
const VGG16: [usize; 5] = [2, 2, 3, 3, 3];
/// √(π/2): the deviation of normally distributed values over their mean absolute deviation.
const DEVIATION: f64 = 1.253_314_137_315_5;

/// A layer's tensors under the layer's name in intseg's networks.
#[derive(Default)]
struct Layers {
    tensors: BTreeMap<String, FloatTensor>,
    /// Names in the file of what has no place in any network.
    unknown: BTreeMap<String, FloatTensor>,
}

/// What training can start from.
pub fn start(weights: Weights) -> Start {
    let torchvision = weights.keys().any(|name| name.starts_with("features.") || name.contains("layer1.0."));
    let features = features(&weights);
    let mut layers = Layers::default();
    for (name, tensor) in weights {
        match renamed(&name, &features) {
            Some(renamed) => layers.tensors.insert(renamed, tensor),
            None => layers.unknown.insert(name, tensor),
        };
    }
    let first = ["conv1_1", "conv1"].into_iter().find(|name| layers.tensors.contains_key(&format!("{name}.weight")));
    if let (true, Some(first)) = (torchvision, first) {
        layers.normalize(first);
    }
    layers.start()
}

/// The convolution (`conv1_1`) or normalisation (`conv1_1.bn`) at each index of torchvision's `features`.
fn features(weights: &Weights) -> BTreeMap<usize, String> {
    let index = |name: &String| name.strip_prefix("features.")?.strip_suffix(".weight")?.parse::<usize>().ok();
    let mut found: Vec<(usize, bool)> =
        weights.iter().filter_map(|(name, tensor)| Some((index(name)?, tensor.shape.len() == 4))).collect();
    found.sort_unstable();
    let mut names =
        (1..).zip(VGG16).flat_map(|(block, count)| (1..=count).map(move |conv| format!("conv{block}_{conv}")));
    let mut last = String::new();
    let mut place = |(index, conv): (usize, bool)| {
        if conv {
            last = names.next().unwrap_or_else(|| format!("features.{index}"));
            return (index, last.clone());
        }
        (index, format!("{last}.bn"))
    };
    found.into_iter().map(&mut place).collect()
}

/// A tensor's name in intseg's networks; `None` for what none of them has.
fn renamed(name: &str, features: &BTreeMap<usize, String>) -> Option<String> {
    let name = name.strip_prefix("backbone.").unwrap_or(name);
    let (layer, kind) = name.rsplit_once('.')?;
    let parts: Vec<&str> = layer.split('.').collect();
    let place = match parts[..] {
        ["features", index] => features.get(&index.parse().ok()?)?.clone(),
        ["bn1"] => "conv1.bn".into(),
        ["classifier", "0", "convs", branch @ ("0" | "1" | "2" | "3"), "0"] => format!("aspp.conv{branch}"),
        ["classifier", "0", "convs", branch @ ("0" | "1" | "2" | "3"), "1"] => format!("aspp.conv{branch}.bn"),
        ["classifier", "0", "convs", "4", "1"] => "aspp.pool_conv".into(),
        ["classifier", "0", "project", "0"] => "aspp.project".into(),
        ["classifier", "0", "project", "1"] => "aspp.project.bn".into(),
        ["classifier", "0", "convs", ..] => return None,
        // VGG's first two linear layers are FCN's fc6 and fc7; DeepLabv3's classifier follows its pyramid.
        ["classifier", "0"] => "fc6".into(),
        ["classifier", "3"] => "fc7".into(),
        ["classifier", "1"] => "head".into(),
        ["classifier", "2"] => "head.bn".into(),
        ["classifier", "4"] => "logits".into(),
        ["aux_classifier", "0"] => "aux.conv".into(),
        ["aux_classifier", "1"] => "aux.conv.bn".into(),
        ["aux_classifier", "4"] => "aux.logits".into(),
        [stage, unit, "downsample", "0"] => format!("{stage}.{unit}.shortcut"),
        [stage, unit, "downsample", "1"] => format!("{stage}.{unit}.shortcut.bn"),
        [stage, unit, part] if stage.starts_with("layer") && part.starts_with("bn") => {
            format!("{stage}.{unit}.conv{}.bn", &part[2..])
        }
        _ => layer.to_owned(),
    };
    Some(format!("{place}.{kind}"))
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
            let convolution = match (name.ends_with(".weight"), &tensor.shape[..]) {
                (true, &[c_out, c_in, h, w]) => Some([c_out, c_in, h, w]),
                // A linear layer is a convolution over all that it sees: 7×7 pixels of 512 channels for fc6.
                (true, &[c_out, len]) if name == "fc6.weight" && len % 49 == 0 => Some([c_out, len / 49, 7, 7]),
                (true, &[c_out, c_in]) => Some([c_out, c_in, 1, 1]),
                _ => None,
            };
            let given = match convolution {
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
    fn torchvisions_names_find_their_layers() {
        let mut weights = Weights::new();
        for index in [0, 2, 5, 7, 10] {
            weights.insert(format!("features.{index}.weight"), tensor(&[2, 2, 3, 3], |_| 0.5));
        }
        let plain = features(&weights);
        assert_eq!(plain[&2], "conv1_2");
        assert_eq!(plain[&10], "conv3_1");
        for (theirs, ours) in [
            ("features.7.weight", Some("conv2_2.weight")),
            ("backbone.layer3.0.downsample.1.running_mean", Some("layer3.0.shortcut.bn.running_mean")),
            ("backbone.layer1.2.bn3.weight", Some("layer1.2.conv3.bn.weight")),
            ("conv1.weight", Some("conv1.weight")),
            ("bn1.bias", Some("conv1.bn.bias")),
            ("classifier.0.convs.2.0.weight", Some("aspp.conv2.weight")),
            ("classifier.0.convs.4.2.weight", None),
            ("classifier.4.bias", Some("logits.bias")),
            ("classifier.3.weight", Some("fc7.weight")),
            ("score_fr.weight", Some("score_fr.weight")),
        ] {
            assert_eq!(renamed(theirs, &plain).as_deref(), ours, "{theirs}");
        }
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
