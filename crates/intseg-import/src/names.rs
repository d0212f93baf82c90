//! Names of a checkpoint's tensors in intseg's networks.
//!
//! Known are those of torchvision's `vgg16`, `vgg16_bn`, `resnet50`, `fcn_resnet50` and `deeplabv3_resnet50`, of the
//! original FCN (`conv1_1`, `fc6`, `score_fr`), and the networks' own.

use crate::tensor::{FloatTensor, Weights};
use std::collections::BTreeMap;

/// Convolutions of VGG-16's five blocks.
const VGG16: [usize; 5] = [2, 2, 3, 3, 3];
/// What PyTorch adds to a variance before its root, unless told otherwise.
const EPSILON: f64 = 1e-5;

/// A checkpoint's tensors under the names of the layers of intseg's networks.
#[derive(Default)]
pub struct Layers {
    /// By layer and kind, as in `conv1.bn.running_mean`. Convolutions are laid out `[C_out, C_in, KH, KW]`.
    pub tensors: BTreeMap<String, FloatTensor>,
    /// What has no place in any network, under the names in the file.
    pub unknown: BTreeMap<String, FloatTensor>,
    /// Whether the names are torchvision's, whose networks expect ImageNet's normalisation.
    pub torchvision: bool,
}

/// What batch normalisation does at inference: a factor and an offset a channel.
pub struct Norm {
    /// One a channel.
    pub scale: Vec<f64>,
    /// One a channel.
    pub offset: Vec<f64>,
}

impl Layers {
    /// Renames a checkpoint's tensors.
    pub fn new(weights: Weights) -> Self {
        let torchvision = weights.keys().any(|name| name.starts_with("features.") || name.contains("layer1.0."));
        // FCN's head normalises its first convolution; DeepLabv3's begins with the pyramid.
        let plain_head = weights.contains_key("classifier.1.running_mean");
        let features = features(&weights);
        let mut layers = Layers { torchvision, ..Layers::default() };
        for (name, tensor) in weights {
            match renamed(&name, &features, plain_head) {
                Some(renamed) => layers.tensors.insert(renamed, tensor),
                None => layers.unknown.insert(name, tensor),
            };
        }
        layers.fold_norm("aspp.pool_conv");
        layers
    }

    /// The convolution that reads the image.
    pub fn first_convolution(&self) -> Option<&'static str> {
        ["conv1_1", "conv1"].into_iter().find(|name| self.tensors.contains_key(&format!("{name}.weight")))
    }

    /// The batch normalisation of that name, if the file has its statistics.
    pub fn norm(&self, name: &str) -> Option<Norm> {
        let values = |kind: &str| self.tensors.get(&format!("{name}.{kind}")).map(|tensor| &tensor.data);
        let (mean, variance) = (values("running_mean")?, values("running_var")?);
        let or = |kind: &str, k: usize, default: f64| {
            values(kind).and_then(|values| values.get(k)).map_or(default, |&v| v.into())
        };
        let mut norm = Norm { scale: Vec::new(), offset: Vec::new() };
        for (k, (&mean, &variance)) in mean.iter().zip(variance).enumerate() {
            let scale = or("weight", k, 1.0) / (f64::from(variance.max(0.0)) + EPSILON).sqrt();
            norm.scale.push(scale);
            norm.offset.push(or("bias", k, 0.0) - f64::from(mean) * scale);
        }
        Some(norm)
    }

    /// Takes a normalisation that intseg's networks do not have into the convolution before it: over one value an
    /// image, as behind image pooling, it cannot be trained.
    fn fold_norm(&mut self, conv: &str) {
        let Some(norm) = self.norm(&format!("{conv}.bn")) else { return };
        let Some(weight) = self.tensors.get_mut(&format!("{conv}.weight")) else { return };
        let channels = norm.scale.len();
        if weight.shape.first() != Some(&channels) || channels == 0 {
            return;
        }
        let row = weight.data.len() / channels;
        for (at, value) in weight.data.iter_mut().enumerate() {
            *value = (f64::from(*value) * norm.scale[at / row]) as f32;
        }
        let bias = self.tensors.remove(&format!("{conv}.bias"));
        let bias = |k: usize| bias.as_ref().and_then(|bias| bias.data.get(k)).map_or(0.0, |&v| f64::from(v));
        let data = (0..channels).map(|k| (bias(k) * norm.scale[k] + norm.offset[k]) as f32).collect();
        self.tensors.insert(format!("{conv}.bias"), FloatTensor { shape: vec![channels], data });
        let folded = format!("{conv}.bn.");
        self.tensors.retain(|name, _| !name.starts_with(&folded));
    }
}

/// The shape `[C_out, C_in, KH, KW]` of a tensor that is a convolution's weights; a linear layer is a convolution over all
/// that it sees, 7×7 pixels of 512 channels for VGG's first.
pub fn convolution_shape(name: &str, shape: &[usize]) -> Option<[usize; 4]> {
    match (name.ends_with(".weight"), shape) {
        (true, &[c_out, c_in, h, w]) => Some([c_out, c_in, h, w]),
        (true, &[c_out, len]) if name == "fc6.weight" && len % 49 == 0 => Some([c_out, len / 49, 7, 7]),
        (true, &[c_out, c_in]) => Some([c_out, c_in, 1, 1]),
        _ => None,
    }
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
fn renamed(name: &str, features: &BTreeMap<usize, String>, plain_head: bool) -> Option<String> {
    let name = name.strip_prefix("backbone.").unwrap_or(name);
    let (layer, kind) = name.rsplit_once('.')?;
    let parts: Vec<&str> = layer.split('.').collect();
    let place = match parts[..] {
        ["features", index] => features.get(&index.parse().ok()?)?.clone(),
        ["bn1"] => "conv1.bn".into(),
        ["classifier", "0", "convs", branch @ ("0" | "1" | "2" | "3"), "0"] => format!("aspp.conv{branch}"),
        ["classifier", "0", "convs", branch @ ("0" | "1" | "2" | "3"), "1"] => format!("aspp.conv{branch}.bn"),
        ["classifier", "0", "convs", "4", "1"] => "aspp.pool_conv".into(),
        ["classifier", "0", "convs", "4", "2"] => "aspp.pool_conv.bn".into(),
        ["classifier", "0", "project", "0"] => "aspp.project".into(),
        ["classifier", "0", "project", "1"] => "aspp.project.bn".into(),
        ["classifier", "0", "convs", ..] => return None,
        ["classifier", "0"] if plain_head => "head".into(),
        ["classifier", "1"] if plain_head => "head.bn".into(),
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
            ("classifier.0.convs.4.2.weight", Some("aspp.pool_conv.bn.weight")),
            ("classifier.0.convs.4.3.weight", None),
            ("classifier.4.bias", Some("logits.bias")),
            ("classifier.3.weight", Some("fc7.weight")),
            ("score_fr.weight", Some("score_fr.weight")),
        ] {
            assert_eq!(renamed(theirs, &plain, false).as_deref(), ours, "{theirs}");
        }
        assert_eq!(renamed("classifier.1.running_var", &plain, true).as_deref(), Some("head.bn.running_var"));
    }
}
