//! What a network consists of, layer by layer: for people who inspect it and for counting work.

use crate::graph::{Graph, GraphError, OpSpec, accumulator_bound};
use crate::tensor::Shape;
use serde::Serialize;

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerSummary {
    /// Its name.
    pub name: String,
    /// What it computes.
    pub op: String,
    /// `[H, W, C]` of its output.
    pub shape: [usize; 3],
    /// Multiply-accumulates, padding included.
    pub macs: u64,
    /// Bytes of weights.
    pub weight_bytes: usize,
    /// The output's exponent, where it is frozen.
    pub exponent: Option<i32>,
    /// The largest magnitude that an accumulator can reach, proven from the shapes.
    pub accumulator_bound: Option<u64>,
}

impl LayerSummary {
    /// Bits of a signed accumulator that holds the bound.
    pub fn accumulator_bits(&self) -> Option<u32> {
        self.accumulator_bound.map(|bound| u64::BITS - bound.leading_zeros() + 1)
    }
}

/// The layers of a graph that are deployed, for one image of `[rows, columns]`.
///
/// # Errors
/// When a layer does not fit its input, or an accumulator could overflow.
pub fn layers(graph: &Graph, size: [usize; 2]) -> Result<Vec<LayerSummary>, GraphError> {
    let shapes = graph.shapes(Shape::new(1, size[0], size[1], 3))?;
    let deployed = graph.deployed();
    let nodes = graph.nodes.iter().enumerate().filter(|(index, _)| deployed[*index]);
    Ok(nodes
        .map(|(index, node)| {
            let geometry = match &node.op {
                OpSpec::Conv(spec) => Some(spec.geometry(shapes[node.inputs[0].0])),
                _ => None,
            };
            let Shape { h, w, c, .. } = shapes[index];
            LayerSummary {
                name: node.name.clone(),
                op: describe(&node.op),
                shape: [h, w, c],
                macs: geometry.as_ref().map_or(0, |g| g.macs()),
                weight_bytes: geometry.as_ref().map_or(0, |g| g.weights_len()),
                exponent: None,
                accumulator_bound: geometry.as_ref().map(accumulator_bound),
            }
        })
        .collect())
}

/// Multiply-accumulates of a training step for one image: forward, the weights' gradient, and the error of every
/// convolution's input except the image.
///
/// # Errors
/// As [`layers`].
pub fn training_macs(graph: &Graph, size: [usize; 2]) -> Result<u64, GraphError> {
    let shapes = graph.shapes(Shape::new(1, size[0], size[1], 3))?;
    let convolutions = graph.nodes.iter().filter_map(|node| match &node.op {
        OpSpec::Conv(spec) => Some((node.inputs[0].0, spec)),
        _ => None,
    });
    Ok(convolutions
        .map(|(input, spec)| {
            let passes = if matches!(graph.nodes[input].op, OpSpec::Image) { 2 } else { 3 };
            passes * spec.geometry(shapes[input]).macs()
        })
        .sum())
}

fn describe(op: &OpSpec) -> String {
    let by = |[a, b]: [usize; 2]| if a == b { a.to_string() } else { format!("{a}×{b}") };
    match op {
        OpSpec::Image => "image".into(),
        OpSpec::Conv(spec) => {
            let mut text = format!("conv {}×{}", spec.kernel[0], spec.kernel[1]);
            if spec.stride != [1; 2] {
                text += &format!(" /{}", by(spec.stride));
            }
            if spec.dilation != [1; 2] {
                text += &format!(" rate {}", by(spec.dilation));
            }
            text
        }
        OpSpec::BatchNorm { relu: true } => "batch norm, relu".into(),
        OpSpec::BatchNorm { relu: false } => "batch norm".into(),
        OpSpec::MaxPool(spec) => format!("max pool {} /{}", by(spec.kernel), by(spec.stride)),
        OpSpec::GlobalAveragePool => "global average pool".into(),
        OpSpec::ResizeLike => "bilinear resize".into(),
        OpSpec::Add { relu: true } => "add, relu".into(),
        OpSpec::Add { relu: false } => "add".into(),
        OpSpec::Concat => "concat".into(),
        OpSpec::Dropout { .. } => "dropout".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::{Settings, build};

    #[test]
    fn the_work_of_deeplab_is_that_of_torchvisions_definition() {
        let graph = build("deeplabv3-resnet50", &Settings::new(21)).unwrap();
        let layers = layers(&graph, [513, 513]).unwrap();
        let macs: u64 = layers.iter().map(|layer| layer.macs).sum();
        assert_eq!((macs + 500_000) / 1_000_000, 168_653);
        let first = layers.iter().find(|layer| layer.macs > 0).unwrap().macs;
        assert_eq!(training_macs(&graph, [513, 513]).unwrap(), 3 * macs - first);
        assert!(layers.iter().filter_map(LayerSummary::accumulator_bits).all(|bits| (2..=32).contains(&bits)));
    }
}
