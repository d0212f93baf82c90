//! A float network computed as its operators are defined, a value at a time.

use intseg_import::graph::{FloatGraph, FloatOp, Interpolation, ResizeTarget, Window};

/// A feature map `[H, W, C]`.
#[derive(Clone)]
pub struct Map {
    pub size: [usize; 2],
    pub channels: usize,
    pub values: Vec<f32>,
}

impl Map {
    fn of(size: [usize; 2], channels: usize, value: impl Fn(usize, usize, usize) -> f32) -> Map {
        let places = (0..size[0]).flat_map(|y| (0..size[1]).map(move |x| (y, x)));
        let values = places.flat_map(|(y, x)| (0..channels).map(move |c| (y, x, c)));
        Map { size, channels, values: values.map(|(y, x, c)| value(y, x, c)).collect() }
    }

    fn at(&self, y: usize, x: usize, c: usize) -> f32 {
        self.values[(y * self.size[1] + x) * self.channels + c]
    }
}

/// The logits at the image's size, for an image of stripes.
pub fn run(graph: &FloatGraph, size: [usize; 2]) -> Map {
    let mut maps: Vec<Map> = Vec::new();
    for node in &graph.nodes {
        let inputs: Vec<&Map> = node.inputs.iter().map(|&input| &maps[input]).collect();
        let map = match &node.op {
            FloatOp::Image => image(graph, size),
            op => compute(op, &inputs),
        };
        maps.push(map);
    }
    resize(maps.last().unwrap(), size, graph.upsampling)
}

fn image(graph: &FloatGraph, size: [usize; 2]) -> Map {
    let normalization = graph.normalization;
    Map::of(size, 3, |y, x, c| {
        let byte = (y * 37 + x * 11 + c * 91 + y * x) % 256;
        (byte as f32 / 255.0 - normalization.mean[c]) / normalization.deviation[c]
    })
}

fn compute(op: &FloatOp, inputs: &[&Map]) -> Map {
    let input = inputs[0];
    let pointwise =
        |f: &dyn Fn(f32, usize) -> f32| Map::of(input.size, input.channels, |y, x, c| f(input.at(y, x, c), c));
    match op {
        FloatOp::Image => unreachable!(),
        FloatOp::Conv { window, weights, channels: [ci, co], bias } => {
            let size = places(*window, input.size, false);
            Map::of(size, *co, |y, x, c| {
                let taps = taps(*window, input.size, [y, x]);
                let products = taps.flat_map(|(tap, [iy, ix])| {
                    (0..*ci).map(move |i| input.at(iy, ix, i) * weights[(tap * ci + i) * co + c])
                });
                bias[c] + products.sum::<f32>()
            })
        }
        FloatOp::ConvTranspose { window, output_padding, weights, channels, bias } => {
            conv_transpose(input, *window, *output_padding, weights, *channels, bias)
        }
        FloatOp::Affine { scale, offset } => pointwise(&|v, c| v * scale[c] + offset[c]),
        FloatOp::Clip { low, high } => pointwise(&|v, _| v.clamp(*low, *high)),
        FloatOp::MaxPool { window, ceil } => Map::of(places(*window, input.size, *ceil), input.channels, |y, x, c| {
            taps(*window, input.size, [y, x]).fold(f32::NEG_INFINITY, |max, (_, [iy, ix])| max.max(input.at(iy, ix, c)))
        }),
        FloatOp::AveragePool { window, ceil, count_padding } => {
            Map::of(places(*window, input.size, *ceil), input.channels, |y, x, c| {
                let sum: f32 = taps(*window, input.size, [y, x]).map(|(_, [iy, ix])| input.at(iy, ix, c)).sum();
                let count = taps(*window, input.size, [y, x]).count();
                sum / if *count_padding { window.kernel[0] * window.kernel[1] } else { count } as f32
            })
        }
        FloatOp::GlobalAveragePool => Map::of([1, 1], input.channels, |_, _, c| {
            let sum: f32 = input.values.iter().skip(c).step_by(input.channels).sum();
            sum / (input.size[0] * input.size[1]) as f32
        }),
        FloatOp::Add => {
            assert_eq!((input.size, input.channels), (inputs[1].size, inputs[1].channels));
            Map::of(input.size, input.channels, |y, x, c| input.at(y, x, c) + inputs[1].at(y, x, c))
        }
        FloatOp::Concat => {
            let joined = |y, x| inputs.iter().flat_map(move |map| (0..map.channels).map(move |c| map.at(y, x, c)));
            let channels = inputs.iter().map(|map| map.channels).sum();
            assert!(inputs.iter().all(|map| map.size == input.size));
            Map::of(input.size, channels, |y, x, c| joined(y, x).nth(c).unwrap())
        }
        FloatOp::Resize { target, interpolation } => {
            let size = match target {
                ResizeTarget::Like => inputs[1].size,
                ResizeTarget::Factor(factor) => [input.size[0] * factor[0], input.size[1] * factor[1]],
            };
            resize(input, size, *interpolation)
        }
    }
}

fn places(window: Window, input: [usize; 2], ceil: bool) -> [usize; 2] {
    [0, 1].map(|axis| {
        let room = input[axis] + 2 * window.padding[axis] - window.dilation[axis] * (window.kernel[axis] - 1) - 1;
        let last = if ceil { room.div_ceil(window.stride[axis]) } else { room / window.stride[axis] };
        // PyTorch's rule: the last window begins in the input or the padding before it.
        if ceil && last * window.stride[axis] >= input[axis] + window.padding[axis] { last } else { last + 1 }
    })
}

/// The numbers of a window's taps that fall on the input, and where.
fn taps(window: Window, input: [usize; 2], at: [usize; 2]) -> impl Iterator<Item = (usize, [usize; 2])> {
    let place = move |axis: usize, tap: usize| {
        let place = (at[axis] * window.stride[axis] + tap * window.dilation[axis]).checked_sub(window.padding[axis])?;
        (place < input[axis]).then_some(place)
    };
    (0..window.kernel[0] * window.kernel[1])
        .filter_map(move |tap| Some((tap, [place(0, tap / window.kernel[1])?, place(1, tap % window.kernel[1])?])))
}

fn conv_transpose(
    input: &Map,
    window: Window,
    output_padding: [usize; 2],
    weights: &[f32],
    [ci, co]: [usize; 2],
    bias: &[f32],
) -> Map {
    let size = [0, 1].map(|axis| {
        let reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
        (input.size[axis] - 1) * window.stride[axis] + reach + output_padding[axis] - 2 * window.padding[axis]
    });
    let mut output = Map::of(size, co, |_, _, c| bias[c]);
    for y in 0..input.size[0] {
        for x in 0..input.size[1] {
            for (tap, [oy, ox]) in taps(window, size, [y, x]) {
                for i in 0..ci {
                    for c in 0..co {
                        let product = input.at(y, x, i) * weights[(tap * ci + i) * co + c];
                        output.values[(oy * size[1] + ox) * co + c] += product;
                    }
                }
            }
        }
    }
    output
}

fn resize(input: &Map, size: [usize; 2], interpolation: Interpolation) -> Map {
    // The coordinate between whose floor and ceiling a value lies.
    let source = |axis: usize, at: usize| {
        let (from, to, at) = (input.size[axis] as f32, size[axis] as f32, at as f32);
        let source = match interpolation {
            Interpolation::Linear => (at + 0.5) * from / to - 0.5,
            Interpolation::LinearAligned if to == 1.0 => 0.0,
            Interpolation::LinearAligned => at * (from - 1.0) / (to - 1.0),
            Interpolation::Nearest => (at * from / to).floor(),
        };
        source.clamp(0.0, from - 1.0)
    };
    Map::of(size, input.channels, |y, x, c| {
        let (y, x) = (source(0, y), source(1, x));
        let row = |y: f32| {
            let at = |x: f32| input.at(y as usize, x as usize, c);
            at(x.floor()) + (at(x.ceil()) - at(x.floor())) * x.fract()
        };
        row(y.floor()) + (row(y.ceil()) - row(y.floor())) * y.fract()
    })
}
