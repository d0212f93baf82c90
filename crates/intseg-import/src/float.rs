//! Running a float network: what calibration sees, and what the integer network is compared with.

use crate::graph::{FloatGraph, FloatNode, FloatOp, Interpolation, ResizeTarget, Window};
use intseg::data::image::Rgb;
use intseg::tensor::Shape;
use intseg_kernels::resize::Tap;
use intseg_kernels::{Conv2d, max_pool};
use intseg_reference::{Map, conv};

/// Why a network cannot run on an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer {layer}: {problem}")]
pub struct FloatError {
    /// The node's name.
    pub layer: String,
    /// What is wrong.
    pub problem: String,
}

/// Computes every node's output for an image and shows it to `visit` with the node's number; returns the logits, at
/// their own size. An output lives until its last reader has run.
///
/// # Errors
/// When the image is too small for a window, or tensors that meet have different shapes.
pub fn run(graph: &FloatGraph, image: &Rgb, mut visit: impl FnMut(usize, &Map)) -> Result<Map, FloatError> {
    let last = graph.nodes.len() - 1;
    let mut last_reader: Vec<usize> = (0..graph.nodes.len()).collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|&input| last_reader[input] = index);
    }
    let mut maps: Vec<Map> = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let inputs: Vec<&Map> = node.inputs.iter().map(|&input| &maps[input]).collect();
        let map = match node.op {
            FloatOp::Image => normalized(graph, image),
            _ => compute(node, &inputs)
                .map_err(|problem| FloatError { layer: node.name.clone(), problem: problem.to_owned() })?,
        };
        visit(index, &map);
        maps.push(map);
        let done =
            (node.inputs.iter().copied().chain([index])).filter(|&node| node != last && last_reader[node] <= index);
        done.for_each(|node| maps[node].data = Vec::new());
    }
    Ok(maps.swap_remove(last))
}

/// The class of every pixel of an image: the logits resized to its size, the first of the largest.
///
/// # Errors
/// As [`run`].
pub fn class_map(graph: &FloatGraph, image: &Rgb) -> Result<Vec<u8>, FloatError> {
    let logits = run(graph, image, |_, _| {})?;
    Ok(classes(&logits, [image.height, image.width], graph.upsampling))
}

/// The largest of the logits at every pixel of an image of `size`.
pub fn classes(logits: &Map, size: [usize; 2], upsampling: Interpolation) -> Vec<u8> {
    let scores = resize(logits, size, upsampling);
    let best = |pixel: &[f32]| (1..pixel.len()).fold(0, |best, k| if pixel[k] > pixel[best] { k } else { best }) as u8;
    scores.data.chunks_exact(scores.shape.c).map(best).collect()
}

/// An image as the network takes it.
pub(crate) fn normalized(graph: &FloatGraph, image: &Rgb) -> Map {
    let normalization = &graph.normalization;
    let mut map = Map::zeros(Shape::new(1, image.height, image.width, 3));
    for (i, (out, &byte)) in map.data.iter_mut().zip(&image.data).enumerate() {
        *out = (f32::from(byte) / 255.0 - normalization.mean[i % 3]) / normalization.deviation[i % 3];
    }
    map
}

/// A node's output.
pub(crate) fn compute(node: &FloatNode, inputs: &[&Map]) -> Result<Map, &'static str> {
    let input = *inputs.first().ok_or("it has no input")?;
    let channels_fit = |c_in: usize| {
        if input.shape.c == c_in { Ok(()) } else { Err("its weights have another number of channels than its input") }
    };
    match &node.op {
        FloatOp::Image => Err("it is a second image"),
        FloatOp::Conv { window, weights, channels, bias } => {
            channels_fit(channels[0])?;
            let geometry = geometry(window, [input.shape.h, input.shape.w], *channels);
            let size = geometry.output_size().ok_or("the image is too small for its window")?;
            check_len(size, channels[1])?;
            Ok(conv::forward(&geometry, input, weights, Some(bias)))
        }
        FloatOp::ConvTranspose { window, output_padding, weights, channels: [c_in, c_out], bias } => {
            channels_fit(*c_in)?;
            let channels = [*c_out, *c_in];
            let size = [input.shape.h, input.shape.w];
            let size = geometry(window, [0; 2], channels).transposed_size(size, *output_padding);
            let size = size.ok_or("the image is too small for its window")?;
            check_len(size, *c_out)?;
            let geometry = geometry(window, size, channels);
            // With more output padding than stride, the convolution back would have other sizes.
            if geometry.output_size() != Some([input.shape.h, input.shape.w]) {
                return Err("its output padding is not smaller than its stride");
            }
            let mut map = conv::adjoint(&geometry, input, &swapped(weights, *c_in, *c_out));
            map.data.chunks_exact_mut(*c_out).for_each(|pixel| pixel.iter_mut().zip(bias).for_each(|(v, b)| *v += b));
            Ok(map)
        }
        FloatOp::Affine { scale, offset } => {
            channels_fit(scale.len())?;
            let mut map = input.clone();
            let constants = scale.iter().zip(offset).cycle();
            map.data.iter_mut().zip(constants).for_each(|(v, (scale, offset))| *v = *v * scale + offset);
            Ok(map)
        }
        FloatOp::Clip { low, high } => {
            let mut map = input.clone();
            map.data.iter_mut().for_each(|v| *v = v.max(*low).min(*high));
            Ok(map)
        }
        FloatOp::Pad { padding: [top, left], pixel } => {
            channels_fit(pixel.len())?;
            let Shape { h, w, c, .. } = input.shape;
            let size = [h + 2 * top, w + 2 * left];
            check_len(size, c)?;
            let mut map = Map { shape: Shape::new(1, size[0], size[1], c), data: pixel.repeat(size[0] * size[1]) };
            for (row, inside) in map.data.chunks_exact_mut(size[1] * c).skip(*top).zip(input.data.chunks_exact(w * c)) {
                row[left * c..][..w * c].copy_from_slice(inside);
            }
            Ok(map)
        }
        FloatOp::MaxPool { window, ceil } => {
            pool(input, window, *ceil, |taps, _| taps.fold(f32::NEG_INFINITY, f32::max))
        }
        FloatOp::AveragePool { window, ceil, count_padding } => pool(input, window, *ceil, |taps, len| {
            let (sum, count) = taps.fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
            sum / if *count_padding { len } else { count } as f32
        }),
        FloatOp::GlobalAveragePool => {
            let Shape { h, w, c, .. } = input.shape;
            let mut sums = vec![0f64; c];
            for pixel in input.data.chunks_exact(c) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += f64::from(v));
            }
            let data = sums.iter().map(|sum| (sum / (h * w) as f64) as f32).collect();
            Ok(Map { shape: Shape::new(1, 1, 1, c), data })
        }
        FloatOp::Add => {
            let other = *inputs.get(1).ok_or("it has one input")?;
            if other.shape != input.shape {
                return Err("its inputs have different shapes");
            }
            let data = input.data.iter().zip(&other.data).map(|(a, b)| a + b).collect();
            Ok(Map { shape: input.shape, data })
        }
        FloatOp::Concat => concat(inputs),
        FloatOp::Depthwise { window, weights, bias } => {
            channels_fit(bias.len())?;
            let geometry = geometry(window, [input.shape.h, input.shape.w], [bias.len(); 2]);
            let size = geometry.output_size().ok_or("the image is too small for its window")?;
            check_len(size, bias.len())?;
            Ok(depthwise(input, window, size, weights, bias))
        }
        FloatOp::Function { function, input: factor, output } => {
            let mut map = input.clone();
            let value = |v: f32| function.at(f64::from(v) * f64::from(*factor)) * f64::from(*output);
            map.data.iter_mut().for_each(|v| *v = value(*v) as f32);
            Ok(map)
        }
        FloatOp::Product { scale } => {
            channels_fit(scale.len())?;
            let other = *inputs.get(1).ok_or("it has one input")?;
            let gate = Shape::new(1, 1, 1, input.shape.c);
            if ![input.shape, gate].contains(&other.shape) {
                return Err("its inputs have shapes whose product is not known");
            }
            let mut map = input.clone();
            let factors = other.data.iter().cycle().zip(scale.iter().cycle());
            map.data.iter_mut().zip(factors).for_each(|(v, (other, scale))| *v *= other * scale);
            Ok(map)
        }
        FloatOp::Resize { target, interpolation } => {
            let Shape { h, w, .. } = input.shape;
            let size = match target {
                ResizeTarget::Factor([y, x]) => [h.saturating_mul(*y), w.saturating_mul(*x)],
                ResizeTarget::Like => {
                    inputs.get(1).map(|like| [like.shape.h, like.shape.w]).ok_or("it has one input")?
                }
            };
            check_len(size, input.shape.c)?;
            Ok(resize(input, size, *interpolation))
        }
    }
}

fn geometry(window: &Window, [in_h, in_w]: [usize; 2], [c_in, c_out]: [usize; 2]) -> Conv2d {
    let Window { kernel, stride, dilation, padding } = *window;
    Conv2d { batch: 1, in_h, in_w, c_in, c_out, kernel, stride, dilation, padding }
}

/// The most values of a map: 2 GiB.
const MOST_VALUES: usize = 1 << 29;

/// Refuses a map that no memory was meant for: sizes may come from a file.
fn check_len([h, w]: [usize; 2], channels: usize) -> Result<(), &'static str> {
    match h.checked_mul(w).and_then(|pixels| pixels.checked_mul(channels)) {
        Some(len) if len <= MOST_VALUES => Ok(()),
        _ => Err("its output is too large; use smaller images"),
    }
}

/// `[KH, KW, C_in, C_out]` as `[KH, KW, C_out, C_in]`: a transposed convolution's weights as those of the convolution
/// that it is the adjoint of.
pub(crate) fn swapped<T: Copy>(weights: &[T], c_in: usize, c_out: usize) -> Vec<T> {
    let taps = weights.chunks_exact(c_in * c_out);
    taps.flat_map(|tap| (0..c_out).flat_map(move |o| (0..c_in).map(move |i| tap[i * c_out + o]))).collect()
}

/// A convolution with one filter a channel.
fn depthwise(input: &Map, window: &Window, [out_h, out_w]: [usize; 2], weights: &[f32], bias: &[f32]) -> Map {
    let (Shape { h, w, c, .. }, Window { kernel, stride, dilation, padding }) = (input.shape, *window);
    let mut map = Map::zeros(Shape::new(1, out_h, out_w, c));
    for (index, out) in map.data.chunks_exact_mut(c).enumerate() {
        out.copy_from_slice(bias);
        for (tap, weights) in weights.chunks_exact(c).enumerate() {
            // An index before the first row or column wraps to beyond the last.
            let y = (index / out_w * stride[0] + tap / kernel[1] * dilation[0]).wrapping_sub(padding[0]);
            let x = (index % out_w * stride[1] + tap % kernel[1] * dilation[1]).wrapping_sub(padding[1]);
            if y < h && x < w {
                let pixel = &input.data[(y * w + x) * c..][..c];
                out.iter_mut().zip(pixel.iter().zip(weights)).for_each(|(out, (v, weight))| *out += v * weight);
            }
        }
    }
    map
}

/// What `pool` makes of the values of each window that lie on the input, and of the number of its taps.
fn pool(
    input: &Map,
    window: &Window,
    ceil: bool,
    pool: impl Fn(&mut dyn Iterator<Item = f32>, usize) -> f32,
) -> Result<Map, &'static str> {
    let Shape { h, w, c, .. } = input.shape;
    if window.dilation != [1; 2] {
        return Err("its window is dilated, which pooling does not know");
    }
    let size = max_pool::output_size([h, w], window.kernel, window.stride, window.padding, ceil);
    let [out_h, out_w] = size.ok_or("the image is too small for its window")?;
    let mut map = Map::zeros(Shape::new(1, out_h, out_w, c));
    let along = |axis: usize, at: usize, size: usize| {
        let start = at * window.stride[axis];
        let clip = |v: usize| v.saturating_sub(window.padding[axis]).min(size);
        clip(start)..clip(start + window.kernel[axis])
    };
    let len = window.kernel[0] * window.kernel[1];
    for (index, out) in map.data.chunks_exact_mut(c).enumerate() {
        let (rows, columns) = (along(0, index / out_w, h), along(1, index % out_w, w));
        for (k, out) in out.iter_mut().enumerate() {
            let pixels = rows.clone().flat_map(|y| columns.clone().map(move |x| (y * w + x) * c + k));
            *out = pool(&mut pixels.map(|at| input.data[at]), len);
        }
    }
    Ok(map)
}

fn concat(inputs: &[&Map]) -> Result<Map, &'static str> {
    let Shape { h, w, .. } = inputs[0].shape;
    if inputs.iter().any(|map| (map.shape.h, map.shape.w) != (h, w)) {
        return Err("its inputs have different sizes");
    }
    let channels = inputs.iter().map(|map| map.shape.c).sum();
    let mut data = Vec::with_capacity(h * w * channels);
    for pixel in 0..h * w {
        inputs.iter().for_each(|map| data.extend(&map.data[pixel * map.shape.c..][..map.shape.c]));
    }
    Ok(Map { shape: Shape::new(1, h, w, channels), data })
}

/// A map at another size.
pub fn resize(input: &Map, [h, w]: [usize; 2], interpolation: Interpolation) -> Map {
    let c = input.shape.c;
    let along = |size: usize, out: usize| {
        let mut taps = vec![Tap::default(); out];
        let denominator = interpolation.axis(&mut taps, size);
        let place = move |tap: Tap| ([tap.first as usize, tap.second as usize], tap.weight as f32 / denominator as f32);
        taps.into_iter().map(place).collect::<Vec<_>>()
    };
    let (rows, columns) = (along(input.shape.h, h), along(input.shape.w, w));
    let mut map = Map::zeros(Shape::new(1, h, w, c));
    for (out, (y, below)) in map.data.chunks_exact_mut(w * c).zip(rows) {
        for (out, (x, right)) in out.chunks_exact_mut(c).zip(&columns) {
            let pixel = |y: usize, x: usize| &input.data[(y * input.shape.w + x) * c..][..c];
            let corners = [pixel(y[0], x[0]), pixel(y[0], x[1]), pixel(y[1], x[0]), pixel(y[1], x[1])];
            for (k, out) in out.iter_mut().enumerate() {
                let along = |row: usize| corners[row][k] + (corners[row + 1][k] - corners[row][k]) * right;
                *out = along(0) + (along(2) - along(0)) * below;
            }
        }
    }
    map
}
