//! The operators without parameters, forward and backward.

use crate::Map;
use intseg::graph::{PoolSpec, pooled};
use intseg::tensor::Shape;
use intseg_kernels::resize::{Tap, axis};

/// `max(0, v)` in place.
pub fn relu(map: &mut Map) {
    map.data.iter_mut().for_each(|v| *v = v.max(0.0));
}

/// Zeroes the error where ReLU put out 0.
pub fn mask(error: &mut Map, output: &Map) {
    error.data.iter_mut().zip(&output.data).filter(|(_, out)| **out <= 0.0).for_each(|(e, _)| *e = 0.0);
}

/// The maxima, and the index in the input that each came from: the first where several are equal.
pub fn max_pool(spec: &PoolSpec, input: &Map) -> (Map, Vec<usize>) {
    let shape = pooled(spec, input.shape).expect("the graph's shapes were checked");
    let (mut out, mut winners) = (Map::zeros(shape), vec![0; shape.len()]);
    let Shape { h, w, c, .. } = input.shape;
    for (index, (out, winner)) in out.data.iter_mut().zip(&mut winners).enumerate() {
        let (k, x, y, n) =
            (index % c, index / c % shape.w, index / c / shape.w % shape.h, index / c / shape.w / shape.h);
        let mut best = f32::NEG_INFINITY;
        for i in 0..spec.kernel[0] {
            let Some(in_y) = (y * spec.stride[0] + i).checked_sub(spec.padding[0]).filter(|&v| v < h) else { continue };
            for j in 0..spec.kernel[1] {
                let Some(in_x) = (x * spec.stride[1] + j).checked_sub(spec.padding[1]).filter(|&v| v < w) else {
                    continue;
                };
                let at = ((n * h + in_y) * w + in_x) * c + k;
                if input.data[at] > best {
                    (best, *winner) = (input.data[at], at);
                }
            }
        }
        *out = best;
    }
    (out, winners)
}

/// Hands each error to its winner.
pub fn max_pool_backward(input: Shape, winners: &[usize], error: &Map) -> Map {
    let mut out = Map::zeros(input);
    winners.iter().zip(&error.data).for_each(|(&at, e)| out.data[at] += e);
    out
}

/// Mean over all positions of each image.
pub fn average_pool(input: &Map) -> Map {
    let Shape { n, h, w, c } = input.shape;
    let mut out = Map::zeros(Shape::new(n, 1, 1, c));
    for (index, v) in input.data.iter().enumerate() {
        out.data[index / (h * w * c) * c + index % c] += v / (h * w) as f32;
    }
    out
}

/// Hands each position its share.
pub fn average_pool_backward(input: Shape, error: &Map) -> Map {
    let Shape { h, w, c, .. } = input;
    let share = |index: usize| error.data[index / (h * w * c) * c + index % c] / (h * w) as f32;
    Map { shape: input, data: (0..input.len()).map(share).collect() }
}

/// A bilinear resize: from which two positions and with which weight of the second each output position comes.
pub struct Resize {
    rows: Vec<(usize, usize, f32)>,
    columns: Vec<(usize, usize, f32)>,
    from: Shape,
    to: Shape,
}

impl Resize {
    /// From one shape to the rows and columns of another.
    pub fn new(from: Shape, [h, w]: [usize; 2], align_corners: bool) -> Self {
        let along = |size: usize, out: usize| {
            let mut taps = vec![Tap::default(); out];
            let denominator = axis(&mut taps, size, align_corners) as f32;
            taps.iter().map(|tap| (tap.first as usize, tap.second as usize, tap.weight as f32 / denominator)).collect()
        };
        Resize { rows: along(from.h, h), columns: along(from.w, w), from, to: Shape { h, w, ..from } }
    }

    /// Calls `visit(output offset, input offset, weight)` for every contribution, `C` values each.
    fn for_each(&self, mut visit: impl FnMut(usize, usize, f32)) {
        let (from, to) = (self.from, self.to);
        for n in 0..to.n {
            for (y, &(y0, y1, v)) in self.rows.iter().enumerate() {
                for (x, &(x0, x1, u)) in self.columns.iter().enumerate() {
                    let out = ((n * to.h + y) * to.w + x) * to.c;
                    for (in_y, in_x, weight) in [
                        (y0, x0, (1.0 - v) * (1.0 - u)),
                        (y0, x1, (1.0 - v) * u),
                        (y1, x0, v * (1.0 - u)),
                        (y1, x1, v * u),
                    ] {
                        visit(out, ((n * from.h + in_y) * from.w + in_x) * from.c, weight);
                    }
                }
            }
        }
    }

    /// The resized map.
    pub fn forward(&self, input: &Map) -> Map {
        let mut out = Map::zeros(self.to);
        let c = self.to.c;
        self.for_each(|to, from, weight| {
            let input = &input.data[from..from + c];
            out.data[to..to + c].iter_mut().zip(input).for_each(|(sum, v)| *sum += weight * v);
        });
        out
    }

    /// The adjoint.
    pub fn backward(&self, error: &Map) -> Map {
        let mut out = Map::zeros(self.from);
        let c = self.from.c;
        self.for_each(|from, to, weight| {
            let error = &error.data[from..from + c];
            out.data[to..to + c].iter_mut().zip(error).for_each(|(sum, v)| *sum += weight * v);
        });
        out
    }
}

/// Channels side by side.
pub fn concat(inputs: &[&Map]) -> Map {
    let channels = inputs.iter().map(|input| input.shape.c).sum();
    let shape = inputs[0].shape.with_channels(channels);
    let mut data = Vec::with_capacity(shape.len());
    for position in 0..shape.positions() {
        for input in inputs {
            let c = input.shape.c;
            data.extend_from_slice(&input.data[position * c..(position + 1) * c]);
        }
    }
    Map { shape, data }
}

/// The part of an error that belongs to the channels from `first` on of a concatenation.
pub fn slice(error: &Map, first: usize, channels: usize) -> Map {
    let pixels = error.data.chunks_exact(error.shape.c);
    let data = pixels.flat_map(|pixel| &pixel[first..first + channels]).copied().collect();
    Map { shape: error.shape.with_channels(channels), data }
}
