//! From a scaled float network to a model of integers.

use super::functions::table;
use super::prepare::Prepared;
use super::weights::{QuantizedWeights, short_multiplier};
use super::{Options, QuantizeError, Scales};
use crate::float::swapped;
use crate::graph::{FloatOp, Interpolation, ResizeTarget, Window};
use intseg_runtime::Element;
use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec, RequantizationSpec};

/// The model, and for each of its nodes the node of the network whose output it computes.
pub struct Emitted {
    /// The model.
    pub spec: ModelSpec,
    /// Numbers of the float network's nodes.
    pub origin: Vec<usize>,
}

/// The bits of an affine map's multiplier, at least: no value of eight bits is off by more than half a step for them.
const LEAST_BITS: i32 = 9;

/// What the nodes of a model are made from.
pub struct Source<'a> {
    /// The network, its channels scaled.
    pub scaled: &'a Prepared,
    /// The weights of its convolutions.
    pub weights: &'a [Option<QuantizedWeights>],
    /// What to add to their biases, if anything.
    pub corrections: &'a [Vec<f64>],
    /// Each node's exponent.
    pub exponents: &'a [i32],
    /// What stands for 0 in each node's output, in its steps.
    pub zeros: &'a [f64],
    /// How to quantise.
    pub options: &'a Options,
}

/// Writes the model's nodes, without metadata.
///
/// # Errors
/// When a layer's sums could leave 32 bits.
pub fn emit(source: &Source) -> Result<Emitted, QuantizeError> {
    let Source { scaled, exponents, .. } = source;
    let nodes = &scaled.graph.nodes;
    let (mut specs, mut origin): (Vec<NodeSpec>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut place = vec![0; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        if let FloatOp::Clip { .. } = node.op {
            // The operator before clamps.
            place[index] = place[node.inputs[0]];
            origin[place[index]] = index;
            continue;
        }
        let (element, out) = (scaled.elements[index], exponents[index]);
        let pair = |window: &Window| [window.kernel, window.stride, window.padding];
        let op = match &node.op {
            FloatOp::Image => OpSpec::Image,
            FloatOp::Conv { window, channels, bias, .. } => source.conv(index, window, None, *channels, bias)?,
            FloatOp::ConvTranspose { window, output_padding, channels, bias, .. } => {
                source.conv(index, window, Some(*output_padding), *channels, bias)?
            }
            FloatOp::Affine { scale, offset } => {
                let (input, zero) = (exponents[node.inputs[0]], source.zeros[index] * 2f64.powi(out));
                let unit = 2f64.powi(input - out);
                let short = |scale: f32| short_multiplier(f64::from(scale) * unit, element, LEAST_BITS) / unit;
                let constants = scale.iter().zip(offset).map(|(&s, &b)| (short(s), f64::from(b) + zero));
                OpSpec::Affine(source.requantization(constants, input, index))
            }
            FloatOp::Depthwise { window, bias, .. } => source.depthwise(index, window, bias)?,
            FloatOp::Function { .. } => OpSpec::Table(table(scaled, index, exponents, source.zeros)),
            FloatOp::Product { scale } => {
                let [a, b] = [node.inputs[0], node.inputs[1]];
                let unit = 2f64.powi(exponents[a] + exponents[b] - out);
                let mut requantization = RequantizationSpec::default();
                scale.iter().for_each(|&scale| {
                    push(&mut requantization, fixed(f64::from(scale) * unit, source.zeros[index], element))
                });
                OpSpec::Product { zero: source.zeros[a] as i32, requantization }
            }
            FloatOp::MaxPool { window, ceil } => OpSpec::MaxPool { geometry: pair(window), ceil: *ceil },
            FloatOp::AveragePool { window, ceil, count_padding } => {
                OpSpec::AveragePool { geometry: pair(window), ceil: *ceil, count_padding: *count_padding }
            }
            FloatOp::GlobalAveragePool => OpSpec::GlobalAveragePool,
            FloatOp::Add => OpSpec::Add,
            FloatOp::Pad { padding, pixel } => {
                let bits = |&value: &f32| (f64::from(value) / 2f64.powi(out)).round_ties_even() as i8 as u8;
                OpSpec::Pad { padding: *padding, pixel: pixel.iter().map(bits).collect() }
            }
            FloatOp::Concat => OpSpec::Concat,
            FloatOp::Resize { target, interpolation } => OpSpec::Resize {
                factor: match target {
                    ResizeTarget::Factor(factor) => Some(*factor),
                    ResizeTarget::Like => None,
                },
                interpolation: *interpolation,
            },
            FloatOp::Clip { .. } => unreachable!("left out above"),
        };
        let bounds = scaled.clamp(index).map(|(_, bounds)| bounds);
        place[index] = specs.len();
        specs.push(NodeSpec {
            name: node.name.clone(),
            op,
            inputs: node.inputs.iter().map(|&input| place[input]).collect(),
            element,
            exponent: out,
            clamp: clamp(element, out, bounds, source.zeros[index]),
        });
        origin.push(index);
    }
    let align_corners = scaled.graph.upsampling == Interpolation::LinearAligned;
    Ok(Emitted { spec: ModelSpec { metadata: String::new(), align_corners, nodes: specs }, origin })
}

/// The range of a type, within a clamp's bounds, where `zero` steps stand for 0.
fn clamp(element: Element, exponent: i32, bounds: Option<[f32; 2]>, zero: f64) -> [i32; 2] {
    let [low, high] = element.range();
    let Some([least, most]) = bounds else { return [low, high] };
    let steps = |bound: f32| {
        let steps = (f64::from(bound) / 2f64.powi(exponent)).round_ties_even() + zero;
        steps.clamp(low.into(), high.into()) as i32
    };
    [steps(least), steps(most).max(steps(least))]
}

impl Source<'_> {
    fn conv(
        &self,
        index: usize,
        window: &Window,
        transposed: Option<[usize; 2]>,
        [c_in, c_out]: [usize; 2],
        bias: &[f32],
    ) -> Result<OpSpec, QuantizeError> {
        let Window { kernel, stride, dilation, padding } = *window;
        self.check_sums(index, kernel[0] * kernel[1] * c_in)?;
        let QuantizedWeights { values, steps } = self.weights(index);
        Ok(OpSpec::Conv {
            geometry: [kernel, stride, dilation, padding],
            channels: [c_in, c_out],
            weight_exponent: exponent_of(steps),
            transposed,
            weights: match transposed {
                None => values.clone(),
                Some(_) => swapped(values, c_in, c_out),
            },
            requantization: self.of_sums(index, bias),
        })
    }

    fn depthwise(&self, index: usize, window: &Window, bias: &[f32]) -> Result<OpSpec, QuantizeError> {
        let Window { kernel, stride, dilation, padding } = *window;
        self.check_sums(index, kernel[0] * kernel[1])?;
        let QuantizedWeights { values, steps } = self.weights(index);
        Ok(OpSpec::Depthwise {
            geometry: [kernel, stride, dilation, padding],
            zero: self.zeros[self.scaled.graph.nodes[index].inputs[0]] as i32,
            weight_exponent: exponent_of(steps),
            weights: values.clone(),
            requantization: self.of_sums(index, bias),
        })
    }

    fn weights(&self, index: usize) -> &QuantizedWeights {
        self.weights[index].as_ref().expect("every convolution has weights")
    }

    /// Refuses a convolution of so many products whose sum could leave 32 bits.
    fn check_sums(&self, index: usize, products: usize) -> Result<(), QuantizeError> {
        match products as u64 * 255 * 127 {
            bound if bound > i32::MAX as u64 => {
                let layer = self.scaled.graph.nodes[index].name.clone();
                Err(QuantizeError::Accumulator { layer, bound })
            }
            _ => Ok(()),
        }
    }

    /// From a convolution's sums to its output: with its bias, what corrects it, and what stands for 0 in both.
    fn of_sums(&self, index: usize, bias: &[f32]) -> RequantizationSpec {
        let input = self.scaled.graph.nodes[index].inputs[0];
        let (from, to) = (self.exponents[input], self.exponents[index]);
        let QuantizedWeights { values, steps } = self.weights(index);
        let constants = bias.iter().zip(steps).enumerate().map(|(o, (&bias, &step))| {
            let correction = self.corrections[index].get(o).copied().unwrap_or(0.0);
            let weights: i64 = values.iter().skip(o).step_by(steps.len()).map(|&w| i64::from(w)).sum();
            let taken_back = self.zeros[input] * weights as f64 * step * 2f64.powi(from);
            let added = self.zeros[index] * 2f64.powi(to);
            (step, f64::from(bias) + correction + added - taken_back)
        });
        self.requantization(constants, from, index)
    }

    /// The constants that turn sums in units of `step · 2^from`, and a bias, into units of a node's output.
    fn requantization(
        &self,
        constants: impl Iterator<Item = (f64, f64)>,
        from: i32,
        index: usize,
    ) -> RequantizationSpec {
        let (to, element) = (self.exponents[index], self.scaled.elements[index]);
        let mut spec = RequantizationSpec::default();
        for (step, bias) in constants {
            let constants = match self.options.scales {
                Scales::Channel => fixed(step * 2f64.powi(from - to), bias / 2f64.powi(to), element),
                Scales::PowerOfTwo => power_of_two(step * 2f64.powi(from - to), bias / 2f64.powi(to)),
            };
            push(&mut spec, constants);
        }
        spec
    }
}

fn push(spec: &mut RequantizationSpec, (multiplier, bias, shift): (i32, i64, u8)) {
    spec.multiplier.push(multiplier);
    spec.bias.push(bias);
    spec.shift.push(shift);
}

/// The exponent of the least power of two that no step exceeds.
fn exponent_of(steps: &[f64]) -> i32 {
    steps.iter().fold(1e-30f64, |a, &b| a.max(b)).log2().ceil() as i32
}

/// `(m, b, s)` with `(sum · m + b) / 2^s ≈ sum · scale + offset`.
///
/// The multiplier has 24 bits, as many as a float32's, and the bias is a whole number of sums where a sum is a small
/// part of an output's step: so a runtime whose scales are float32 and whose biases are added to the sums computes the
/// same.
fn fixed(scale: f64, offset: f64, element: Element) -> (i32, i64, u8) {
    let bits = |v: f64| v.abs().log2().floor().clamp(-1000.0, 1000.0) as i32 + 1;
    let shift = (24 - bits(scale)).min(60 - bits(offset)).clamp(0, 62);
    let unit = 2f64.powi(shift);
    let multiplier = (scale * unit).round_ties_even().clamp(-f64::from(i32::MAX), f64::from(i32::MAX));
    let limit = 2f64.powi(61);
    let bias = (offset * unit).round_ties_even().clamp(-limit, limit);
    let whole = (offset * unit / multiplier).round_ties_even();
    let bias = if scale.abs() < small(element) && whole.abs() < LARGEST_BIAS { whole * multiplier } else { bias };
    (multiplier as i32, bias as i64, shift as u8)
}

/// The share of an output's step that a sum may be for biases to be rounded to sums: a sixteenth of one of eight bits,
/// and as much in the steps of 16 bits, which are finer.
fn small(element: Element) -> f64 {
    if element == Element::I16 { 8.0 } else { 1.0 / 16.0 }
}

/// The largest bias in sums, which other runtimes hold in 32 bits.
const LARGEST_BIAS: f64 = (1u64 << 30) as f64;

/// The same for a scale that is a power of two: the bias is a whole number of sums, so that a float runtime, whose
/// biases are, rounds as integers do.
fn power_of_two(scale: f64, offset: f64) -> (i32, i64, u8) {
    let exponent = scale.abs().log2().round().clamp(-1000.0, 1000.0) as i32;
    let shift = (-exponent).clamp(0, 62);
    let multiplier = 2f64.powi(exponent + shift).min(2f64.powi(30)) * scale.signum();
    let bias = (offset / scale).round_ties_even().clamp(-1e9, 1e9);
    (multiplier as i32, (bias * multiplier) as i64, shift as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_the_real_map_within_their_bits() {
        for scale in [1.0, 3e-9, -0.37, 1234.5, 0.0] {
            for offset in [0.0, 1.0, -77.25, 3e4, 1e-7] {
                let (m, b, s) = fixed(scale, offset, Element::U8);
                for sum in [-70_000.0, -1.0, 0.0, 9.0, 123_456.0] {
                    let got = (sum * f64::from(m) + b as f64) / 2f64.powi(s.into());
                    let want = sum * scale + offset;
                    // Half a sum of the bias, and 24 bits of the multiplier.
                    let allowed = if scale.abs() < small(Element::U8) { 0.5001 * scale.abs() } else { 0.0 };
                    assert!(
                        (got - want).abs() < 1e-6 * want.abs().max(1.0) + allowed,
                        "{scale} {offset}: {got} {want}"
                    );
                }
            }
        }
        for (scale, offset) in
            [(1e300, 0.0), (0.0, 1e300), (f64::INFINITY, f64::INFINITY), (f64::NAN, 1.0), (1e-300, -1e300)]
        {
            for (_, b, s) in [fixed(scale, offset, Element::I16), power_of_two(scale, offset)] {
                assert!(s <= 62 && b.unsigned_abs() <= 1 << 61, "{scale} {offset}");
            }
        }
        assert_eq!(power_of_two(0.25, 1.6), (1, 6, 2));
        assert_eq!(power_of_two(8.0, -20.0), (8, -16, 0));
    }

    #[test]
    fn clamps_are_in_steps_and_within_the_type() {
        assert_eq!(clamp(Element::U8, -5, Some([0.0, 6.0]), 0.0), [0, 192]);
        assert_eq!(clamp(Element::U8, -6, Some([0.0, 6.0]), 0.0), [0, 255]);
        assert_eq!(clamp(Element::I8, -5, Some([-1.0, f32::INFINITY]), 0.0), [-32, 127]);
        assert_eq!(clamp(Element::U8, -5, Some([-3.0, 2.0]), 96.0), [0, 160]);
        assert_eq!(clamp(Element::I16, -5, None, 0.0), [-32_767, 32_767]);
    }
}
