//! A model's weights as 32-bit floats, for PyTorch.
//!
//! `NAME.weight`, `[C_out, C_in, KH, KW]` (`[C_in, C_out, KH, KW]` of a transposed convolution), and `NAME.bias` are those of a convolution whose input and output are in real
//! values: batch normalisation is folded into them. A folded batch normalisation of a residual stream has `NAME.weight`
//! and `NAME.bias` of `[C]`. The image in real values is `(v − 128) / 128`. The metadata has each node's exponent:
//! a real value is an integer times `2^exponent`.

use super::channel::{affine, depthwise_weights, transposed_weights, weights};
use super::{ExportError, MAX_EXPONENT, channel::Channel, power};
use intseg::fold::Metadata;
use intseg_runtime::{Model, Node, Op};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::{BTreeMap, HashMap};

/// Writes a model's weights. The same bytes for the same model, always.
///
/// # Errors
/// When two layers have one name, or an exponent is out of range.
pub fn export(model: &Model, metadata: &Metadata) -> Result<Vec<u8>, ExportError> {
    let (mut tensors, mut exponents, mut nodes) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for node in model.nodes() {
        let refuse = |problem| Err(ExportError::Layer { name: node.name.into(), problem });
        if node.exponent.unsigned_abs() > MAX_EXPONENT {
            return refuse("its exponent is beyond ±40, where scales leave 32-bit floats");
        }
        let input = node.inputs().next().map(|input| nodes[input]);
        nodes.push(node.exponent);
        exponents.insert(node.name.to_owned(), node.exponent);
        let Some((shape, weight, bias)) = parameters(&node, input.unwrap_or(0)) else { continue };
        let bias = (format!("{}.bias", node.name), (vec![bias.len()], bias));
        for (name, tensor) in [(format!("{}.weight", node.name), (shape, weight)), bias] {
            if tensors.insert(name, tensor).is_some() {
                return refuse("another layer has its name");
            }
        }
    }
    let encoded: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, data))| (name, shape, data.iter().flat_map(|v: &f32| v.to_le_bytes()).collect()))
        .collect();
    let views = encoded
        .iter()
        .map(|(name, shape, data)| TensorView::new(Dtype::F32, shape.clone(), data).map(|view| (name.as_str(), view)));
    let views = views.collect::<Result<Vec<_>, _>>()?;
    Ok(serialize(views, Some(described(metadata, &exponents)))?)
}

/// One entry, since the order of several is not fixed.
fn described(metadata: &Metadata, exponents: &BTreeMap<String, i32>) -> HashMap<String, String> {
    let intseg = serde_json::json!({
        "arch": metadata.arch,
        "classes": metadata.classes,
        "exponents": exponents,
    });
    HashMap::from([("intseg".to_owned(), intseg.to_string())])
}

/// Shape and values of a node's weight, and its bias.
type Parameters = (Vec<usize>, Vec<f32>, Vec<f32>);

fn parameters(node: &Node, input: i32) -> Option<Parameters> {
    let ratio = power(node.exponent - input);
    match &node.op {
        Op::Conv(conv) => {
            let plain = vec![Channel { scale: 1.0, weights: 1.0, bias: 0.0 }; conv.c_out];
            let channels: Vec<(f64, f64)> = affine(&conv.requantization).collect();
            let taps = conv.kernel[0] * conv.kernel[1];
            let (weights, first, filter) = match conv.transposed {
                None => (weights(conv, &plain), [conv.c_out, conv.c_in], taps * conv.c_in),
                Some(_) => (transposed_weights(conv, &plain), [conv.c_in, conv.c_out], taps),
            };
            let real =
                weights.chunks_exact(filter).zip(channels.iter().cycle()).flat_map(|(weights, &(multiplier, _))| {
                    weights.iter().map(move |&w| (f64::from(w) * multiplier * ratio) as f32)
                });
            let bias = channels.iter().map(|&(_, bias)| (bias * power(node.exponent)) as f32).collect();
            Some((vec![first[0], first[1], conv.kernel[0], conv.kernel[1]], real.collect(), bias))
        }
        Op::Depthwise(depthwise) => {
            let weights = depthwise_weights(depthwise);
            let channels = || affine(&depthwise.requantization);
            let filters = weights.chunks_exact(depthwise.kernel[0] * depthwise.kernel[1]).zip(channels());
            let real = filters.flat_map(|(filter, (multiplier, _))| {
                filter.iter().map(move |&w| (f64::from(w) * multiplier * ratio) as f32)
            });
            let bias = channels().map(|(_, bias)| (bias * power(node.exponent)) as f32).collect();
            Some((vec![depthwise.channels, 1, depthwise.kernel[0], depthwise.kernel[1]], real.collect(), bias))
        }
        Op::Affine(requantization) => {
            let scale = |(multiplier, bias)| ((multiplier * ratio) as f32, (bias * power(node.exponent)) as f32);
            let (weight, bias): (Vec<f32>, Vec<f32>) = affine(requantization).map(scale).unzip();
            Some((vec![weight.len()], weight, bias))
        }
        _ => None,
    }
}
