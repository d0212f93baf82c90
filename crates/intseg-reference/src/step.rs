//! A training step of a graph in float, from the integer network's master weights.

use crate::{Map, conv, loss, maps, norm};
use intseg::data::Batch;
use intseg::graph::{ConvOutput, OpSpec};
use intseg::network::{IMAGE_EXPONENT, Layer, Network, Recipe};
use intseg_kernels::{Dither, Role};

/// What one step computes in float.
pub struct Reference {
    /// Each node's output.
    pub values: Vec<Map>,
    /// The error at each node's output, summed over its readers; empty where none arrives.
    pub errors: Vec<Map>,
    /// Each convolution's weight gradient, `[KH, KW, C_in, C_out]`; empty for other nodes.
    pub gradients: Vec<Vec<f32>>,
}

/// What backward needs of forward besides inputs and outputs.
enum Saved {
    Nothing,
    Norm(norm::Saved),
    Winners(Vec<usize>),
}

impl Reference {
    /// The step that `network` would do with this batch, without its update.
    pub fn of(network: &Network, batch: &Batch, recipe: &Recipe) -> Self {
        let graph = &network.graph;
        let (mut values, mut saved): (Vec<Map>, Vec<Saved>) = Default::default();
        for (index, layer) in network.layers.iter().enumerate() {
            let (value, kept) = forward(network, index, layer, &values, batch, recipe);
            values.push(value);
            saved.push(kept);
        }
        let mut errors: Vec<Map> = vec![Map::default(); values.len()];
        let heads = std::iter::once(graph.logits).chain(graph.auxiliary);
        for (head, weights) in heads.zip(recipe.class_weights) {
            add(&mut errors[head.0], loss::error(&values[head.0], batch, graph.align_corners, weights));
        }
        let mut gradients = vec![Vec::new(); values.len()];
        for index in (0..values.len()).rev() {
            if errors[index].data.is_empty() {
                continue;
            }
            let (gradient, parts) = backward(network, index, &values, &saved[index], &errors[index], recipe);
            gradients[index] = gradient;
            for (input, part) in graph.nodes[index].inputs.iter().zip(parts) {
                if let Some(part) = part {
                    add(&mut errors[input.0], part);
                }
            }
        }
        Reference { values, errors, gradients }
    }
}

fn add(sum: &mut Map, part: Map) {
    match sum.data.is_empty() {
        true => *sum = part,
        false => sum.data.iter_mut().zip(part.data).for_each(|(sum, v)| *sum += v),
    }
}

fn forward(
    network: &Network,
    index: usize,
    layer: &Layer,
    values: &[Map],
    batch: &Batch,
    recipe: &Recipe,
) -> (Map, Saved) {
    let node = &network.graph.nodes[index];
    let input = |k: usize| &values[node.inputs[k].0];
    let plain = |map| (map, Saved::Nothing);
    match (&node.op, layer) {
        (OpSpec::Conv(spec), Layer::Conv(layer)) => {
            let bias = layer.bias.as_ref().map(|bias| bias.real());
            let geometry = spec.geometry(input(0).shape);
            let mut out = conv::forward(&geometry, input(0), &layer.weight.real(), bias.as_deref());
            if spec.output == ConvOutput::Relu {
                maps::relu(&mut out);
            }
            plain(out)
        }
        (OpSpec::BatchNorm { relu }, Layer::BatchNorm(layer)) => {
            let (mut out, saved) = norm::forward(input(0), &layer.gamma.real(), &layer.beta.real());
            if *relu {
                maps::relu(&mut out);
            }
            (out, Saved::Norm(saved))
        }
        (OpSpec::MaxPool(spec), _) => {
            let (out, winners) = maps::max_pool(spec, input(0));
            (out, Saved::Winners(winners))
        }
        (OpSpec::GlobalAveragePool, _) => plain(maps::average_pool(input(0))),
        (OpSpec::ResizeLike, _) => plain(resize(network, input(0), input(1)).forward(input(0))),
        (OpSpec::Add { relu }, _) => {
            let mut out = input(0).clone();
            out.data.iter_mut().zip(&input(1).data).for_each(|(sum, v)| *sum += v);
            if *relu {
                maps::relu(&mut out);
            }
            plain(out)
        }
        (OpSpec::Concat, _) => {
            let inputs: Vec<&Map> = node.inputs.iter().map(|id| &values[id.0]).collect();
            plain(maps::concat(&inputs))
        }
        (OpSpec::Dropout { drop_256 }, _) => plain(dropped(input(0), index, *drop_256, recipe)),
        (OpSpec::Image, _) => {
            let unit = 2f32.powi(IMAGE_EXPONENT);
            let data = batch.images.iter().map(|&v| f32::from(v) * unit).collect();
            plain(Map { shape: batch.shape(), data })
        }
        (OpSpec::Conv(_) | OpSpec::BatchNorm { .. }, _) => unreachable!("a node's layer is of its kind"),
    }
}

/// The weight gradient of a convolution, and each input's part of the error.
fn backward(
    network: &Network,
    index: usize,
    values: &[Map],
    saved: &Saved,
    error: &Map,
    recipe: &Recipe,
) -> (Vec<f32>, Vec<Option<Map>>) {
    let node = &network.graph.nodes[index];
    let input = |k: usize| &values[node.inputs[k].0];
    let masked = |relu: bool| {
        let mut error = error.clone();
        if relu {
            maps::mask(&mut error, &values[index]);
        }
        error
    };
    let parts = match (&node.op, &network.layers[index], saved) {
        (OpSpec::Conv(spec), Layer::Conv(layer), _) => {
            let error = masked(spec.output == ConvOutput::Relu);
            let data = !matches!(network.graph.nodes[node.inputs[0].0].op, OpSpec::Image);
            let geometry = spec.geometry(input(0).shape);
            let (gradient, part) = conv::backward(&geometry, input(0), &layer.weight.real(), &error, data);
            return (gradient, vec![part]);
        }
        (OpSpec::BatchNorm { relu }, Layer::BatchNorm(layer), Saved::Norm(saved)) => {
            let part = norm::backward(saved, &layer.gamma.real(), &masked(*relu));
            vec![Some(part)]
        }
        (OpSpec::MaxPool(_), _, Saved::Winners(winners)) => {
            vec![Some(maps::max_pool_backward(input(0).shape, winners, error))]
        }
        (OpSpec::GlobalAveragePool, ..) => vec![Some(maps::average_pool_backward(input(0).shape, error))],
        (OpSpec::ResizeLike, ..) => vec![Some(resize(network, input(0), input(1)).backward(error)), None],
        (OpSpec::Add { relu }, ..) => {
            let error = masked(*relu);
            vec![Some(error.clone()), Some(error)]
        }
        (OpSpec::Concat, ..) => {
            let mut first = 0;
            let mut part = |k: usize| {
                let channels = input(k).shape.c;
                first += channels;
                Some(maps::slice(error, first - channels, channels))
            };
            (0..node.inputs.len()).map(&mut part).collect()
        }
        (OpSpec::Dropout { drop_256 }, ..) => vec![Some(dropped(error, index, *drop_256, recipe))],
        _ => Vec::new(),
    };
    (Vec::new(), parts)
}

fn resize(network: &Network, input: &Map, like: &Map) -> maps::Resize {
    maps::Resize::new(input.shape, [like.shape.h, like.shape.w], network.graph.align_corners)
}

/// The elements that the integer network keeps, scaled.
fn dropped(map: &Map, index: usize, drop_256: u32, recipe: &Recipe) -> Map {
    let bits = Dither::new(recipe.seed, recipe.step, (index as u32) << 4, Role::Dropout);
    let scale = 256.0 / (256 - drop_256) as f32;
    let kept = |(i, v): (usize, &f32)| if bits.at(i) >> 24 >= drop_256 { v * scale } else { 0.0 };
    Map { shape: map.shape, data: map.data.iter().enumerate().map(kept).collect() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use intseg::tensor::Shape;

    pub fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// Values in −1..1.
    pub fn random(shape: Shape, seed: u64) -> Map {
        let bits = Dither::new(seed, 0, 0, Role::Initial);
        let data = (0..shape.len()).map(|i| bits.at(i) as f32 / 2f32.powi(31) - 1.0).collect();
        Map { shape, data }
    }

    #[test]
    fn every_backward_pass_is_the_slope_of_its_forward_pass() {
        let input = random(Shape::new(2, 5, 6, 3), 5);
        let gamma = [1.5, 0.5, -1.0];
        let beta = [0.0, 0.2, -0.1];
        let pool = intseg::graph::PoolSpec { kernel: [3; 2], stride: [2; 2], padding: [1; 2], ceil: true };
        let up = maps::Resize::new(input.shape, [11, 9], false);
        type Pass<'a> = (&'a str, Box<dyn Fn(&Map) -> Map + 'a>, Box<dyn Fn(&Map) -> Map + 'a>);
        let passes: [Pass; 4] = [
            (
                "normalisation",
                Box::new(|x| norm::forward(x, &gamma, &beta).0),
                Box::new(|e| norm::backward(&norm::forward(&input, &gamma, &beta).1, &gamma, e)),
            ),
            (
                "max pooling",
                Box::new(|x| maps::max_pool(&pool, x).0),
                Box::new(|e| maps::max_pool_backward(input.shape, &maps::max_pool(&pool, &input).1, e)),
            ),
            ("mean", Box::new(maps::average_pool), Box::new(|e| maps::average_pool_backward(input.shape, e))),
            ("resize", Box::new(|x| up.forward(x)), Box::new(|e| up.backward(e))),
        ];
        for (name, forward, backward) in passes {
            let error = random(forward(&input).shape, 6);
            let gradient = backward(&error);
            for direction in 7..10 {
                let direction = random(input.shape, direction);
                let moved = |by: f32| {
                    let data = input.data.iter().zip(&direction.data).map(|(v, d)| v + by * d).collect();
                    dot(&forward(&Map { shape: input.shape, data }).data, &error.data)
                };
                let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                let got = dot(&gradient.data, &direction.data);
                assert!((slope - got).abs() < 0.02 * slope.abs().max(1.0), "{name}: {got} against a slope of {slope}");
            }
        }
    }
}
