//! A model run as its definition says: one value at a time, in wide integers, rounding by exact fractions.

use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec, RequantizationSpec};
use intseg_runtime::{Element, Interpolation};

/// Rows, columns, channels and values of a node's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub data: Vec<i128>,
}

impl Values {
    fn build([h, w]: [usize; 2], c: usize, mut value: impl FnMut(usize, usize, usize) -> i128) -> Self {
        let mut data = Vec::with_capacity(h * w * c);
        for i in 0..h * w * c {
            data.push(value(i / c / w, i / c % w, i % c));
        }
        Values { h, w, c, data }
    }

    fn at(&self, y: usize, x: usize, k: usize) -> i128 {
        self.data[(y * self.w + x) * self.c + k]
    }

    /// The value there, or `None` outside.
    fn get(&self, y: i64, x: i64, k: usize) -> Option<i128> {
        let inside = (0..self.h as i64).contains(&y) && (0..self.w as i64).contains(&x);
        inside.then(|| self.at(y as usize, x as usize, k))
    }
}

/// `a / b` to nearest, ties to even.
fn divide(a: i128, b: i128) -> i128 {
    let floor = a.div_euclid(b);
    let twice = 2 * a.rem_euclid(b);
    if twice > b || twice == b && floor % 2 != 0 { floor + 1 } else { floor }
}

/// Every node's output and the class map, or `None` when a window does not fit.
pub fn run(spec: &ModelSpec, image: &[u8], size: [usize; 2]) -> Option<(Vec<Values>, Vec<u8>)> {
    let mut outputs: Vec<Values> = Vec::new();
    for node in &spec.nodes {
        let values = {
            let input = |k: usize| &outputs[node.inputs[k]];
            match &node.op {
                OpSpec::Image => Values::build(size, 3, |y, x, k| i128::from(image[(y * size[1] + x) * 3 + k]) - 128),
                OpSpec::Conv { geometry, channels, transposed: None, weights, requantization, .. } => {
                    conv(node, geometry, channels[1], weights, requantization, input(0))?
                }
                OpSpec::Conv { geometry, channels, transposed: Some(extra), weights, requantization, .. } => {
                    transposed(node, geometry, *extra, channels[1], weights, requantization, input(0))?
                }
                OpSpec::Affine(r) => {
                    let input = input(0);
                    Values::build([input.h, input.w], input.c, |y, x, k| scale(node, r, k, input.at(y, x, k)))
                }
                OpSpec::Add => add(spec, node, input(0), input(1)),
                OpSpec::MaxPool { geometry, ceil } => pooled(geometry, *ceil, input(0), |taps, _| {
                    taps.flatten().max().expect("every window covers a pixel")
                })?,
                OpSpec::AveragePool { geometry, ceil, count_padding } => {
                    pooled(geometry, *ceil, input(0), |taps, len| {
                        let taps: Vec<i128> = taps.flatten().collect();
                        divide(taps.iter().sum(), if *count_padding { len } else { taps.len() } as i128)
                    })?
                }
                OpSpec::GlobalAveragePool => average(spec, node, input(0)),
                OpSpec::Resize { factor, interpolation } => {
                    let size = match factor {
                        Some([y, x]) => [input(0).h * y, input(0).w * x],
                        None => [input(1).h, input(1).w],
                    };
                    resize(input(0), size, *interpolation)
                }
                OpSpec::Depthwise { geometry, zero, weights, requantization, .. } => {
                    depthwise(node, geometry, *zero, weights, requantization, input(0))?
                }
                OpSpec::Table(table) => {
                    let input = input(0);
                    Values::build([input.h, input.w], input.c, |y, x, k| {
                        let bits = table[input.at(y, x, k).rem_euclid(256) as usize];
                        if node.element == Element::I8 { i128::from(bits as i8) } else { i128::from(bits) }
                    })
                }
                OpSpec::Product { zero, requantization } => {
                    let (a, b) = (input(0), input(1));
                    Values::build([a.h, a.w], a.c, |y, x, k| {
                        let b = if (b.h, b.w) == (1, 1) { b.at(0, 0, k) } else { b.at(y, x, k) };
                        scale(node, requantization, k, (a.at(y, x, k) - i128::from(*zero)) * b)
                    })
                }
                OpSpec::Pad { padding: [top, left], pixel } => {
                    let input = input(0);
                    Values::build([input.h + 2 * top, input.w + 2 * left], input.c, |y, x, k| {
                        let bits = pixel[k];
                        let outside = if node.element == Element::I8 { i128::from(bits as i8) } else { bits.into() };
                        input.get(y as i64 - *top as i64, x as i64 - *left as i64, k).unwrap_or(outside)
                    })
                }
                OpSpec::Concat => concat(&node.inputs.iter().map(|&k| &outputs[k]).collect::<Vec<_>>()),
            }
        };
        outputs.push(values);
    }
    let classes = classify(outputs.last()?, size, Interpolation::linear(spec.align_corners));
    Some((outputs, classes))
}

fn clamp(node: &NodeSpec, value: i128) -> i128 {
    value.clamp(node.clamp[0].into(), node.clamp[1].into())
}

fn scale(node: &NodeSpec, r: &RequantizationSpec, k: usize, value: i128) -> i128 {
    clamp(node, divide(value * i128::from(r.multiplier[k]) + i128::from(r.bias[k]), 1 << r.shift[k]))
}

/// Rows and columns of what a window of kernel, stride, dilation and padding makes; `None` where it does not fit.
fn window_size([kernel, stride, dilation, padding]: &[[usize; 2]; 4], input: &Values) -> Option<[usize; 2]> {
    let along = |size: usize, a: usize| {
        let room = (size + 2 * padding[a]).checked_sub(dilation[a] * (kernel[a] - 1) + 1)?;
        Some(room / stride[a] + 1)
    };
    Some([along(input.h, 0)?, along(input.w, 1)?])
}

fn conv(
    node: &NodeSpec,
    window: &[[usize; 2]; 4],
    c_out: usize,
    weights: &[i8],
    r: &RequantizationSpec,
    input: &Values,
) -> Option<Values> {
    let size = window_size(window, input)?;
    let [kernel, stride, dilation, padding] = window;
    Some(Values::build(size, c_out, |y, x, k| {
        let mut sum = 0;
        for tap in 0..kernel[0] * kernel[1] {
            let sy = (y * stride[0] + tap / kernel[1] * dilation[0]) as i64 - padding[0] as i64;
            let sx = (x * stride[1] + tap % kernel[1] * dilation[1]) as i64 - padding[1] as i64;
            for c in 0..input.c {
                let weight = i128::from(weights[(tap * input.c + c) * c_out + k]);
                sum += input.get(sy, sx, c).unwrap_or(0) * weight;
            }
        }
        scale(node, r, k, sum)
    }))
}

fn depthwise(
    node: &NodeSpec,
    window: &[[usize; 2]; 4],
    zero: i32,
    weights: &[i8],
    r: &RequantizationSpec,
    input: &Values,
) -> Option<Values> {
    let size = window_size(window, input)?;
    let [kernel, stride, dilation, padding] = window;
    Some(Values::build(size, input.c, |y, x, k| {
        let tap = |tap: usize| {
            let sy = (y * stride[0] + tap / kernel[1] * dilation[0]) as i64 - padding[0] as i64;
            let sx = (x * stride[1] + tap % kernel[1] * dilation[1]) as i64 - padding[1] as i64;
            input.get(sy, sx, k).unwrap_or(zero.into()) * i128::from(weights[tap * input.c + k])
        };
        scale(node, r, k, (0..kernel[0] * kernel[1]).map(tap).sum())
    }))
}

/// Every input pixel adds its products to the output pixels that its taps fall on.
fn transposed(
    node: &NodeSpec,
    [kernel, stride, dilation, padding]: &[[usize; 2]; 4],
    extra: [usize; 2],
    c_out: usize,
    weights: &[i8],
    r: &RequantizationSpec,
    input: &Values,
) -> Option<Values> {
    let along = |size: usize, a: usize| {
        let full = (size - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1 + extra[a];
        full.checked_sub(2 * padding[a]).filter(|&size| size > 0)
    };
    let size = [along(input.h, 0)?, along(input.w, 1)?];
    let mut sums = Values::build(size, c_out, |_, _, _| 0);
    for (y, x) in (0..input.h).flat_map(|y| (0..input.w).map(move |x| (y, x))) {
        for tap in 0..kernel[0] * kernel[1] {
            let to = [(y, tap / kernel[1]), (x, tap % kernel[1])];
            let place = |a: usize| (to[a].0 * stride[a] + to[a].1 * dilation[a]).checked_sub(padding[a]);
            let (Some(oy), Some(ox)) = (place(0), place(1)) else { continue };
            if oy >= size[0] || ox >= size[1] {
                continue;
            }
            for (c, k) in (0..input.c).flat_map(|c| (0..c_out).map(move |k| (c, k))) {
                let weight = i128::from(weights[(tap * c_out + k) * input.c + c]);
                sums.data[(oy * size[1] + ox) * c_out + k] += input.at(y, x, c) * weight;
            }
        }
    }
    Some(Values::build(size, c_out, |y, x, k| scale(node, r, k, sums.at(y, x, k))))
}

/// The sum as an exact fraction over the finest exponent, rounded once.
fn add(spec: &ModelSpec, node: &NodeSpec, a: &Values, b: &Values) -> Values {
    let [ea, eb] = [0, 1].map(|k| spec.nodes[node.inputs[k]].exponent);
    let finest = ea.min(eb).min(node.exponent);
    Values::build([a.h, a.w], a.c, |y, x, k| {
        let sum = (a.at(y, x, k) << (ea - finest)) + (b.at(y, x, k) << (eb - finest));
        clamp(node, divide(sum, 1 << (node.exponent - finest)))
    })
}

fn average(spec: &ModelSpec, node: &NodeSpec, input: &Values) -> Values {
    let up = spec.nodes[node.inputs[0]].exponent - node.exponent;
    Values::build([1, 1], input.c, |_, _, k| {
        let sum: i128 = (0..input.h * input.w).map(|p| input.data[p * input.c + k]).sum();
        let pixels = (input.h * input.w) as i128;
        clamp(node, divide(sum << up.max(0), pixels << (-up).max(0)))
    })
}

/// What `pool` makes of each window: of its taps, `None` outside, and of their number.
fn pooled(
    [kernel, stride, padding]: &[[usize; 2]; 3],
    ceil: bool,
    input: &Values,
    pool: impl Fn(&mut dyn Iterator<Item = Option<i128>>, usize) -> i128,
) -> Option<Values> {
    // All positions whose window starts on the input or its leading padding, and without `ceil` also ends there.
    let along = |size: usize, a: usize| {
        let starts = (0..).map(|o| o * stride[a]).take_while(|&start| match ceil {
            true => start < size + padding[a] && (start == 0 || start < size + 2 * padding[a] - kernel[a] + stride[a]),
            false => start + kernel[a] <= size + 2 * padding[a],
        });
        Some(starts.count()).filter(|&count| count > 0)
    };
    let size = [along(input.h, 0)?, along(input.w, 1)?];
    Some(Values::build(size, input.c, |y, x, k| {
        let mut taps = (0..kernel[0] * kernel[1]).map(|tap| {
            let sy = (y * stride[0] + tap / kernel[1]) as i64 - padding[0] as i64;
            let sx = (x * stride[1] + tap % kernel[1]) as i64 - padding[1] as i64;
            input.get(sy, sx, k)
        });
        pool(&mut taps, kernel[0] * kernel[1])
    }))
}

/// Where an output index lies between two input indices: the first, the second, and numerator and denominator of the
/// second's weight.
fn position(o: usize, size: usize, out: usize, interpolation: Interpolation) -> (usize, usize, i128, i128) {
    let (o, size, out) = (o as i128, size as i128, out as i128);
    let (at, denominator) = match interpolation {
        Interpolation::LinearAligned if out == 1 => (0, 1),
        Interpolation::LinearAligned => (o * (size - 1), out - 1),
        Interpolation::Linear => ((2 * o + 1) * size - out, 2 * out),
        Interpolation::Nearest => (o * size / out, 1),
    };
    let at = at.clamp(0, (size - 1) * denominator);
    let first = at / denominator;
    (first as usize, (first + 1).min(size - 1) as usize, at % denominator, denominator)
}

/// Exact sums at one output pixel, and what they are to be divided by.
fn interpolate(input: &Values, [h, w]: [usize; 2], y: usize, x: usize, k: usize, how: Interpolation) -> (i128, i128) {
    let (top, bottom, wy, dy) = position(y, input.h, h, how);
    let (left, right, wx, dx) = position(x, input.w, w, how);
    let row = |y: usize| (dx - wx) * input.at(y, left, k) + wx * input.at(y, right, k);
    ((dy - wy) * row(top) + wy * row(bottom), dy * dx)
}

fn resize(input: &Values, size: [usize; 2], how: Interpolation) -> Values {
    Values::build(size, input.c, |y, x, k| {
        let (sum, divisor) = interpolate(input, size, y, x, k, how);
        divide(sum, divisor)
    })
}

fn concat(inputs: &[&Values]) -> Values {
    let channels: usize = inputs.iter().map(|input| input.c).sum();
    Values::build([inputs[0].h, inputs[0].w], channels, |y, x, mut k| {
        for input in inputs {
            match k.checked_sub(input.c) {
                Some(rest) => k = rest,
                None => return input.at(y, x, k),
            }
        }
        unreachable!("the channels add up")
    })
}

fn classify(logits: &Values, size: [usize; 2], how: Interpolation) -> Vec<u8> {
    (0..size[0] * size[1])
        .map(|p| {
            let score = |k: usize| interpolate(logits, size, p / size[1], p % size[1], k, how).0;
            (1..logits.c).fold(0, |best, k| if score(k) > score(best) { k } else { best }) as u8
        })
        .collect()
}

/// The range that an element type holds.
pub fn range(element: Element) -> std::ops::RangeInclusive<i128> {
    match element {
        Element::U8 => 0..=255,
        Element::I8 => -128..=127,
        Element::I16 => -32_767..=32_767,
    }
}
