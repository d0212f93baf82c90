//! Biases that take up what quantisation changes in the mean.
//!
//! Layer by layer, the float network and one with quantised weights and activations run side by side on some images;
//! where a channel's mean before the clamp differs, the bias takes the difference, and the layers behind see it
//! (Nagel et al. 2019, *Data-Free Quantization*, section 4.2, with means measured on images).

use super::QuantizeError;
use super::prepare::Prepared;
use super::weights::QuantizedWeights;
use crate::float::{FloatError, compute, normalized};
use crate::graph::FloatOp;
use intseg::data::image::Rgb;
use intseg_reference::Map;
use intseg_runtime::Element;
use rayon::prelude::*;

/// An image's maps in both networks; those that no later node reads are gone.
struct Run {
    float: Vec<Map>,
    quantized: Vec<Map>,
}

/// What to add to each convolution's biases: for each node, one value a channel or none. `observe` hears how many nodes are
/// done.
///
/// # Errors
/// When the network cannot run on an image.
pub fn bias_corrections(
    scaled: &Prepared,
    weights: &[Option<QuantizedWeights>],
    (exponents, zeros): (&[i32], &[f64]),
    images: &[&Rgb],
    observe: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<f64>>, QuantizeError> {
    let nodes = &scaled.graph.nodes;
    let mut last_reader: Vec<usize> = (0..nodes.len()).collect();
    for (index, node) in nodes.iter().enumerate() {
        node.inputs.iter().for_each(|&input| last_reader[input] = index);
    }
    let mut runs: Vec<Run> = images.iter().map(|_| Run { float: Vec::new(), quantized: Vec::new() }).collect();
    let mut corrections = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        let rounded = weights[index].as_ref().map(|weights| weights.in_float(node));
        let failed = |problem: &str| FloatError { layer: node.name.clone(), problem: problem.to_owned() };
        runs.par_iter_mut().zip(images).try_for_each(|(run, image)| {
            let output = |maps: &[Map], node| {
                let inputs: Vec<&Map> = node_inputs(node, maps);
                match node.op {
                    FloatOp::Image => Ok(normalized(&scaled.graph, image)),
                    _ => compute(node, &inputs).map_err(failed),
                }
            };
            run.float.push(output(&run.float, node)?);
            run.quantized.push(output(&run.quantized, rounded.as_ref().unwrap_or(node))?);
            Ok::<_, FloatError>(())
        })?;
        if rounded.is_some() {
            corrections[index] = mean_difference(&runs, index);
        }
        let clamped = scaled.clamp(index).is_some();
        runs.par_iter_mut().for_each(|run| {
            let map = &mut run.quantized[index];
            let channels = map.shape.c;
            if !corrections[index].is_empty() {
                map.data.chunks_exact_mut(channels).for_each(|pixel| {
                    pixel.iter_mut().zip(&corrections[index]).for_each(|(v, c)| *v += *c as f32);
                });
            }
            if !clamped {
                round(map, scaled.elements[index], exponents[index], zeros[index]);
            }
            for &input in node.inputs.iter().filter(|&&input| last_reader[input] == index) {
                run.float[input].data = Vec::new();
                run.quantized[input].data = Vec::new();
            }
        });
        observe(index + 1);
    }
    Ok(corrections)
}

fn node_inputs<'m>(node: &crate::graph::FloatNode, maps: &'m [Map]) -> Vec<&'m Map> {
    node.inputs.iter().map(|&input| &maps[input]).collect()
}

/// How much larger each channel's mean is in the float network.
fn mean_difference(runs: &[Run], index: usize) -> Vec<f64> {
    let channels = runs.first().map_or(0, |run| run.float[index].shape.c);
    let (mut sums, mut count) = (vec![0f64; channels], 0);
    for run in runs {
        let (float, quantized) = (&run.float[index].data, &run.quantized[index].data);
        for (a, b) in float.chunks_exact(channels).zip(quantized.chunks_exact(channels)) {
            sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (&a, &b))| *sum += f64::from(a) - f64::from(b));
        }
        count += float.len() / channels;
    }
    sums.iter().map(|sum| sum / count.max(1) as f64).collect()
}

/// The values that a type holds, where `zero` of its steps stands for 0.
fn round(map: &mut Map, element: Element, exponent: i32, zero: f64) {
    let [low, high] = element.range().map(|v| v as f32);
    let (step, zero) = (2f32.powi(exponent), zero as f32);
    map.data.iter_mut().for_each(|v| {
        *v = ((*v / step + zero).round_ties_even().max(low).min(high) - zero) * step;
    });
}
