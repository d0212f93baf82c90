//! Rounding weights by what their layer puts out.
//!
//! Rounded one by one, weights are off by independent errors, and a patch of a map, whose values go together, adds them up.
//! Here each weight takes over what those before it in its output channel were rounded by, as the patches' covariance
//! says (Frantar et al. 2023, *GPTQ*). Covariance and not power, because the bias takes up what changes in the mean. A weight
//! stays between the two steps beside it: some covariances are known from few images alone, such as those of a pooled
//! branch, and what is unlike them must not be far off.

use super::QuantizeError;
use super::weights::QuantizedWeights;
use crate::float;
use crate::graph::{FloatGraph, FloatNode, FloatOp, Window};
use intseg::data::image::Rgb;
use intseg_reference::Map;
use rayon::prelude::*;

/// The most inputs of an output that are weighed against each other; of more, those of one tap are.
const LARGEST: usize = 1280;
/// Outputs of an image whose patches are looked at.
const POSITIONS: usize = 1024;
/// Patches for each input that are enough to know its covariances.
const ENOUGH: usize = 3;
/// What is added to every variance, as a share of their mean: no error is compensated by what was never seen to vary.
const DAMPING: f64 = 0.01;

/// The covariance of a convolution's patches, as blocks of rows that are weighed against each other.
pub struct Covariance {
    window: Window,
    c_in: usize,
    /// Rows of a block.
    size: usize,
    /// The first image's mean, which values are taken from: far from zero, products have no digits for what varies.
    origin: Vec<f32>,
    /// Sums of products, the upper triangles of `[size, size]`.
    products: Vec<Vec<f32>>,
    sums: Vec<f64>,
    count: usize,
}

/// Those of every convolution that is not too large, over some images.
///
/// # Errors
/// When the network cannot run on one of them.
pub fn covariances(
    graph: &FloatGraph,
    images: &[&Rgb],
    observe: &mut dyn FnMut(usize),
) -> Result<Vec<Option<Covariance>>, QuantizeError> {
    let mut all: Vec<Option<Covariance>> = graph.nodes.iter().map(Covariance::of).collect();
    for (done, image) in images.iter().enumerate() {
        float::run(graph, image, |index, map| {
            for (node, covariance) in graph.nodes.iter().zip(&mut all) {
                if let Some(covariance) = covariance.as_mut().filter(|_| node.inputs == [index]) {
                    covariance.add(map);
                }
            }
        })?;
        observe(done + 1);
    }
    Ok(all)
}

impl Covariance {
    fn of(node: &FloatNode) -> Option<Self> {
        let FloatOp::Conv { window, channels: [c_in, _], .. } = &node.op else { return None };
        let taps = window.kernel[0] * window.kernel[1];
        let (size, blocks) = if taps * c_in <= LARGEST { (taps * c_in, 1) } else { (*c_in, taps) };
        (size <= LARGEST).then(|| Covariance {
            window: *window,
            c_in: *c_in,
            size,
            origin: Vec::new(),
            products: vec![vec![0.0; size * size]; blocks],
            sums: vec![0.0; taps * c_in],
            count: 0,
        })
    }

    /// Adds patches of a map, evenly spread.
    fn add(&mut self, map: &Map) {
        let Window { kernel, stride, dilation, padding } = self.window;
        let extent = |axis: usize, len: usize| {
            let reach = dilation[axis] * (kernel[axis] - 1) + 1;
            (len + 2 * padding[axis]).checked_sub(reach).map_or(0, |left| left / stride[axis] + 1)
        };
        let [rows, columns] = [extent(0, map.shape.h), extent(1, map.shape.w)];
        let (len, step) = (self.sums.len(), (rows * columns).div_ceil(POSITIONS).max(1));
        let mut patches = Vec::new();
        for position in (0..rows * columns).step_by(step) {
            let at = [position / columns, position % columns];
            for tap in 0..kernel[0] * kernel[1] {
                let offset = [tap / kernel[1], tap % kernel[1]];
                let [y, x] = [0, 1].map(|i| (at[i] * stride[i] + offset[i] * dilation[i]).wrapping_sub(padding[i]));
                match y < map.shape.h && x < map.shape.w {
                    true => patches.extend_from_slice(&map.data[(y * map.shape.w + x) * self.c_in..][..self.c_in]),
                    false => patches.resize(patches.len() + self.c_in, 0.0),
                }
            }
        }
        if self.count == 0 {
            let count = (patches.len() / len).max(1) as f64;
            let mean = |i: usize| patches.iter().skip(i).step_by(len).map(|&v| f64::from(v)).sum::<f64>() / count;
            self.origin = (0..len).map(|i| mean(i) as f32).collect();
        }
        for patch in patches.chunks_exact_mut(len) {
            patch.iter_mut().zip(&self.origin).for_each(|(v, origin)| *v -= origin);
            self.sums.iter_mut().zip(&*patch).for_each(|(sum, v)| *sum += f64::from(*v));
            self.count += 1;
        }
        let size = self.size;
        for (block, products) in self.products.iter_mut().enumerate() {
            products.par_chunks_exact_mut(size).enumerate().for_each(|(i, row)| {
                for patch in patches.chunks_exact(len) {
                    let values = &patch[block * size..][..size];
                    row[i..].iter_mut().zip(&values[i..]).for_each(|(sum, v)| *sum += values[i] * v);
                }
            });
        }
    }

    /// Rounds a convolution's weights anew, with the steps that they have, unless there were too few patches to tell what
    /// goes together.
    pub fn round(&self, node: &FloatNode, quantized: &mut QuantizedWeights) {
        let FloatOp::Conv { weights, channels: [_, c_out], .. } = &node.op else { return };
        if self.count < ENOUGH * self.size {
            return;
        }
        for block in 0..self.products.len() {
            let first = block * self.size * c_out;
            let rows = first..first + self.size * c_out;
            let mut wanted: Vec<f64> = weights[rows.clone()].iter().map(|&w| w.into()).collect();
            let taken_over = self.compensation(block);
            for (i, values) in quantized.values[rows].chunks_exact_mut(*c_out).enumerate() {
                let (now, later) = wanted[i * c_out..].split_at_mut(*c_out);
                for (o, ((w, value), step)) in now.iter_mut().zip(values).zip(&quantized.steps).enumerate() {
                    let own = (f64::from(weights[first + i * c_out + o]) / step).clamp(-127.0, 127.0).floor();
                    if own.is_nan() {
                        // Floats did not hold the weight after scaling: it stays 0.
                        continue;
                    }
                    *value = (*w / step).round_ties_even().clamp(own, (own + 1.0).min(127.0)) as i8;
                    *w -= f64::from(*value) * step;
                }
                let factors = &taken_over[i * self.size..][i..self.size];
                for (later, factor) in later.chunks_exact_mut(*c_out).zip(&factors[1..]) {
                    let share = factor / factors[0];
                    later.iter_mut().zip(&*now).for_each(|(w, error)| *w -= error * share);
                }
            }
        }
    }

    /// `R⁻¹` of the covariance `R·Rᵀ` with an upper triangle `R`: its row `i` over its diagonal is what rows behind `i` have to
    /// take over of an error in row `i`.
    fn compensation(&self, block: usize) -> Vec<f64> {
        let (size, count) = (self.size, self.count.max(1) as f64);
        let mean = |i: usize| self.sums[block * size + i] / count;
        let covariance = |i: usize, j: usize| f64::from(self.products[block][i * size + j]) / count - mean(i) * mean(j);
        let variance = (0..size).map(|i| covariance(i, i).max(0.0)).sum::<f64>() / size as f64;
        let damping = (DAMPING * variance).max(1e-12);
        let mut root = vec![0f64; size * size];
        for j in (0..size).rev() {
            let (above, below) = root.split_at_mut(j * size);
            let last = &mut below[..size];
            let rest: f64 = last[j + 1..].iter().map(|v| v * v).sum();
            // What is left of a variance is not less than what was added to it, but for rounding.
            let diagonal = (covariance(j, j) + damping - rest).max(damping).sqrt();
            last[j] = diagonal;
            for (i, row) in above.chunks_exact_mut(size).enumerate() {
                let dot: f64 = row[j + 1..].iter().zip(&last[j + 1..]).map(|(a, b)| a * b).sum();
                row[j] = (covariance(i, j) - dot) / diagonal;
            }
        }
        let mut inverse = vec![0f64; size * size];
        for i in (0..size).rev() {
            let (above, below) = inverse.split_at_mut((i + 1) * size);
            let (row, diagonal) = (&mut above[i * size..], root[i * size + i]);
            for (k, later) in (i + 1..size).zip(below.chunks_exact(size)) {
                let factor = -root[i * size + k] / diagonal;
                row[k..].iter_mut().zip(&later[k..]).for_each(|(sum, v)| *sum += factor * v);
            }
            row[i] = 1.0 / diagonal;
        }
        inverse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::Scales;
    use crate::quantize::weights::Steps;
    use intseg::tensor::Shape;
    use intseg_kernels::{Dither, Role};
    use intseg_runtime::Element;

    const STEPS: Steps = Steps { scales: Scales::Channel, exponent: 0, element: Element::U8 };

    /// A 3×3 convolution and a smooth map for it.
    fn case() -> (FloatNode, Map) {
        let bits = Dither::new(1, 0, 0, Role::Initial);
        let weights = (0..9 * 4 * 6).map(|i| bits.below(i, 2001) as f32 / 1000.0 - 1.0).collect();
        let window = Window { kernel: [3; 2], stride: [1; 2], dilation: [1; 2], padding: [1; 2] };
        let op = FloatOp::Conv { window, weights, channels: [4, 6], bias: vec![0.0; 6] };
        let node = FloatNode { name: "conv".into(), op, inputs: vec![0] };
        let shape = Shape::new(1, 24, 30, 4);
        let value = |i: usize| {
            let (y, x, c) = (i / 120, i / 4 % 30, i % 4);
            ((y * (c + 2) + x) as f32 / 9.0).sin()
                + ((x * 2 + c) as f32 / 11.0).cos()
                + bits.below(i, 100) as f32 / 400.0
        };
        (node, Map { shape, data: (0..shape.len()).map(value).collect() })
    }

    /// The power of what differs in a convolution's output, about its mean.
    fn error(node: &FloatNode, quantized: &QuantizedWeights, map: &Map) -> f64 {
        let outputs = [node.clone(), quantized.in_float(node)].map(|node| float::compute(&node, &[map]).unwrap());
        let difference = |k: usize| {
            let [a, b] = outputs.each_ref().map(|map| map.data.iter().skip(k).step_by(6));
            a.zip(b).map(|(a, b)| f64::from(a - b)).collect::<Vec<_>>()
        };
        let power = |values: Vec<f64>| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            values.iter().map(|v| (v - mean).powi(2)).sum::<f64>()
        };
        (0..6).map(|k| power(difference(k))).sum()
    }

    #[test]
    fn weights_rounded_together_change_their_layers_output_less() {
        let (node, map) = case();
        let plain = QuantizedWeights::new(&node, STEPS).unwrap();
        let mut covariance = Covariance::of(&node).unwrap();
        covariance.add(&map);
        let mut together = plain.clone();
        covariance.round(&node, &mut together);
        assert_eq!(plain.steps, together.steps);
        let [before, after] = [&plain, &together].map(|weights| error(&node, weights, &map));
        assert!(after < 0.5 * before, "{after} of {before}");
    }

    /// As behind global pooling: channels far from zero that differ between images alone, by little.
    #[test]
    fn channels_that_hardly_vary_spoil_nothing() {
        let (node, map) = case();
        let plain = QuantizedWeights::new(&node, STEPS).unwrap();
        let (mut covariance, mut maps) = (Covariance::of(&node).unwrap(), Vec::new());
        for image in 0..3 {
            let mut map = map.clone();
            map.data
                .chunks_exact_mut(4)
                .for_each(|v| (v[2], v[3]) = (900.0 + image as f32 * 1e-3, 300.0 - image as f32));
            covariance.add(&map);
            maps.push(map);
        }
        let mut together = plain.clone();
        covariance.round(&node, &mut together);
        assert!(plain.values.iter().zip(&together.values).all(|(a, b)| a.abs_diff(*b) <= 1));
        for map in &maps {
            let [before, after] = [&plain, &together].map(|weights| error(&node, weights, map));
            assert!(after < before, "{after} of {before}");
        }
    }

    #[test]
    fn inputs_that_do_not_vary_are_rounded_one_by_one() {
        let (node, mut map) = case();
        map.data.fill(0.0);
        let plain = QuantizedWeights::new(&node, STEPS).unwrap();
        let mut covariance = Covariance::of(&node).unwrap();
        covariance.add(&map);
        let mut together = plain.clone();
        covariance.round(&node, &mut together);
        assert_eq!(plain.values, together.values);
    }
}
