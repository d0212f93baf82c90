//! A channel's multiplier, bias and shift as real numbers.

use super::power;
use intseg_runtime::{Conv, Depthwise, Requantization};
use std::cmp::Ordering;

/// The least scale, in units of outputs a unit of sums: with it a bias that matters fits 32 bits.
const LEAST_SCALE: i32 = -21;

/// How much finer units may be: sums stay far from 24 bits.
const MOST_TIMES: u32 = 16;

/// Which neighbours of a float32 are tried as a scale, the nearest first.
const NEAR: [i32; 5] = [0, 1, -1, 2, -2];

/// What becomes of a sum: `sum · scale + bias` in units of the output, once `weights` have been rescaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Channel {
    /// Output units a unit of sums; positive.
    pub scale: f64,
    /// What weights are multiplied by: 1, −1 where the multiplier was negative, or less where it was tiny.
    pub weights: f64,
    /// The bias in output units.
    pub bias: f64,
}

impl Channel {
    /// Each channel of a requantisation, with positive scales that a bias of 32 bits can be in units of.
    pub fn all(requantization: &Requantization) -> Vec<Channel> {
        let least = power(LEAST_SCALE);
        affine(requantization)
            .map(|(multiplier, bias)| match multiplier.abs() >= least {
                true => Channel { scale: multiplier.abs(), weights: multiplier.signum(), bias },
                false => Channel { scale: least, weights: multiplier / least, bias },
            })
            .collect()
    }

    /// The channel with units and a float32 as scale with which a runtime that adds a whole number of units to sums and
    /// multiplies by the scale rounds as few of them otherwise as can be; and how many. Units may be as many times finer as
    /// the largest weight leaves room for. `range` is the output's, `largest_sum` the largest magnitude of sums.
    pub fn fused(self, range: [i32; 2], largest_weight: u32, largest_sum: i64) -> (Channel, usize) {
        let most = match self.weights.abs() == 1.0 {
            true => (127 / largest_weight.max(1)).clamp(1, MOST_TIMES),
            false => 1,
        };
        let ties = Ties::new(&self, range, largest_sum);
        let mut best = (self, usize::MAX);
        for times in (1..=most).map(f64::from) {
            for near in NEAR {
                let scale =
                    f64::from(f32::from_bits(((self.scale / times) as f32).to_bits().wrapping_add_signed(near)));
                let channel = Channel { scale, weights: self.weights * times, bias: self.bias };
                let wrong = ties.wrong(&channel, times);
                if wrong < best.1 {
                    best = (channel, wrong);
                }
                if wrong == 0 {
                    return best;
                }
            }
        }
        best
    }

    /// Whether a sum and a whole number of units, times the scale, round the same as 32-bit floats.
    pub fn rounds_the_same(&self, range: [i32; 2]) -> bool {
        f64::from(self.scale as f32) == self.scale && Ties::new(self, range, i64::MAX).wrong(self, 1.0) == 0
    }

    /// A weight in the channel's units.
    pub fn weight(&self, weight: i8) -> i8 {
        (f64::from(weight) * self.weights).round_ties_even() as i8
    }

    /// The bias in units of sums, held where adding any of the channel's sums cannot wrap: outputs are
    /// saturated there.
    pub fn integer_bias(&self, largest_sum: i64) -> i32 {
        let room = (i64::from(i32::MAX) - largest_sum).max(0) as f64;
        (self.bias / self.scale).round_ties_even().clamp(-room, room) as i32
    }
}

/// The sums beside a channel's ties between two outputs, which are all that can round otherwise, and what becomes of them.
struct Ties {
    range: [f64; 2],
    outputs: Vec<(f64, f64)>,
}

impl Ties {
    fn new(channel: &Channel, range: [i32; 2], largest_sum: i64) -> Self {
        let range = range.map(f64::from);
        let output = |sum: f64| (sum * channel.scale + channel.bias).round_ties_even().clamp(range[0], range[1]);
        let ties = (0..(range[1] - range[0]) as i32).map(|output| range[0] + f64::from(output) + 0.5);
        let beside = |tie: f64| {
            let below = ((tie - channel.bias) / channel.scale).floor();
            [-1.0, 0.0, 1.0, 2.0].map(|away| below + away)
        };
        let sums = ties.flat_map(beside).filter(|sum| sum.abs() <= largest_sum as f64);
        Ties { range, outputs: sums.map(|sum| (sum, output(sum))).collect() }
    }

    /// How many of the sums, in units that are some times finer, a float32 gives another output.
    fn wrong(&self, channel: &Channel, times: f64) -> usize {
        let whole = (channel.bias / channel.scale).round_ties_even();
        let output = |sum: f64| f64::from(((sum * times + whole) as f32 * channel.scale as f32).round_ties_even());
        let [low, high] = self.range;
        self.outputs.iter().filter(|(sum, wanted)| output(*sum).clamp(low, high) != *wanted).count()
    }
}

/// A scale as a 32-bit float. The nearest one is often a rounder number than the scale, at which many products lie
/// halfway between two integers: then its neighbour on the scale's side is taken, so that they round as they should.
pub fn scale_f32(scale: f64) -> f32 {
    let nearest = scale as f32;
    match f64::from(nearest).abs().total_cmp(&scale.abs()) {
        Ordering::Less if is_near_round(scale) => f32::from_bits(nearest.to_bits() + 1),
        Ordering::Greater if is_near_round(scale) => f32::from_bits(nearest.to_bits() - 1),
        _ => nearest,
    }
}

/// Whether a scale is no 32-bit float, but close to one with few bits: then sums have to be exact before they are
/// multiplied, or ties round either way.
fn is_near_round(scale: f64) -> bool {
    const ROUND_BITS: u32 = 8;
    let nearest = scale as f32;
    nearest.is_normal() && f64::from(nearest) != scale && nearest.to_bits().trailing_zeros() >= ROUND_BITS
}

/// Each channel's multiplier and bias in units of the output.
pub fn affine(requantization: &Requantization) -> impl Iterator<Item = (f64, f64)> {
    let shifts = requantization.shifts().iter().map(|&shift| power(-i32::from(shift)));
    let channels = requantization.multipliers().zip(requantization.biases()).zip(shifts);
    channels.map(|((multiplier, bias), unit)| (f64::from(multiplier) * unit, bias as f64 * unit))
}

/// The weights as `[C_out, C_in, KH, KW]`, in their channels' units.
pub fn weights(conv: &Conv, channels: &[Channel]) -> Vec<i8> {
    let taps = conv.kernel[0] * conv.kernel[1];
    let mut out = Vec::with_capacity(conv.weights.len());
    for (k, channel) in channels.iter().enumerate() {
        for input in 0..conv.c_in {
            out.extend((0..taps).map(|tap| channel.weight(weight(conv, tap, input, k))));
        }
    }
    out
}

/// A depthwise convolution's weights as `[C, 1, KH, KW]`.
pub fn depthwise_weights(depthwise: &Depthwise) -> Vec<i8> {
    let taps = depthwise.weights.len() / depthwise.channels;
    let filter = |channel: usize| (0..taps).map(move |tap| depthwise.weights[tap * depthwise.channels + channel]);
    (0..depthwise.channels).flat_map(filter).collect()
}

/// A transposed convolution's weights as `[C_in, C_out, KH, KW]`, in their channels' units.
pub fn transposed_weights(conv: &Conv, channels: &[Channel]) -> Vec<i8> {
    let taps = conv.kernel[0] * conv.kernel[1];
    let mut out = Vec::with_capacity(conv.weights.len());
    for input in 0..conv.c_in {
        for (k, channel) in channels.iter().enumerate() {
            out.extend((0..taps).map(|tap| channel.weight(weight(conv, tap, input, k))));
        }
    }
    out
}

/// Each output channel's largest weight.
pub fn largest_weights(conv: &Conv) -> Vec<u32> {
    let taps = conv.kernel[0] * conv.kernel[1];
    let each = |k| (0..taps).flat_map(move |tap| (0..conv.c_in).map(move |input| weight(conv, tap, input, k)));
    (0..conv.c_out).map(|k| each(k).map(|w| w.unsigned_abs().into()).max().unwrap_or(0)).collect()
}

/// The largest magnitude of a filter's sums.
pub fn largest_sum(filter: &[i8]) -> i64 {
    filter.iter().map(|&w| i64::from(w.unsigned_abs())).sum::<i64>() * 255
}

fn weight(conv: &Conv, tap: usize, input: usize, output: usize) -> i8 {
    match conv.transposed {
        None => conv.weights[(tap * conv.c_in + input) * conv.c_out + output],
        Some(_) => conv.weights[(tap * conv.c_out + output) * conv.c_in + input],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_never_lets_a_sum_wrap() {
        let channel = Channel { scale: power(LEAST_SCALE), weights: 1.0, bias: 1e9 };
        assert_eq!(channel.integer_bias(1000), i32::MAX - 1000);
        let channel = Channel { bias: -3.5, scale: 0.25, weights: 1.0 };
        assert_eq!(channel.integer_bias(1000), -14);
    }

    #[test]
    fn a_scale_beside_a_power_of_two_stays_on_its_side() {
        let (below, above) = (0.25 * (1.0 - power(-30)), 0.25 * (1.0 + power(-30)));
        assert!(f64::from(scale_f32(below)) < 0.25 && f64::from(scale_f32(above)) > 0.25);
        assert_eq!([0.25, -0.75].map(scale_f32), [0.25, -0.75]);
        assert_eq!(scale_f32(-below), -scale_f32(below));
        assert_eq!(scale_f32(0.1), 0.1);
    }

    const BYTES: [i32; 2] = [0, 255];

    #[test]
    fn a_bias_between_two_units_gets_finer_ones_where_weights_leave_room_and_a_whole_one_stays() {
        let whole = Channel { scale: 0.5, weights: 1.0, bias: 2.0 };
        assert_eq!(whole.fused(BYTES, 20, 1 << 20), (whole, 0));
        let between = Channel { scale: 0.013, weights: 1.0, bias: 2.5 * 0.013 };
        let [finer, coarse] = [20, 100].map(|largest_weight| between.fused(BYTES, largest_weight, 1 << 20));
        assert!(finer.0.weights > 1.0 && finer.1 < 5, "{finer:?}");
        assert!(coarse.0.weights == 1.0 && coarse.1 > 60, "{coarse:?}");
    }

    #[test]
    fn a_scale_that_rounds_a_sum_otherwise_gives_way_to_a_neighbour_or_is_counted() {
        let (mut before, mut after) = (0, 0);
        for k in 0..200u32 {
            let scale = f64::from(8_400_000 + 41_777 * k) * power(-32);
            let channel = Channel { scale, weights: 1.0, bias: scale * f64::from(k) };
            let (found, wrong) = channel.fused(BYTES, 30, 1 << 20);
            let times = found.weights;
            let differs = |&sum: &f64| {
                let whole = found.integer_bias(0);
                let theirs = ((sum * times) as i32 + whole) as f32 * scale_f32(found.scale);
                let ours = (sum * scale + channel.bias).round_ties_even();
                f64::from(theirs.round_ties_even()).clamp(0.0, 255.0) != ours.clamp(0.0, 255.0)
            };
            assert_eq!((0..140_000).map(f64::from).filter(differs).count(), wrong, "{k}");
            before += usize::from(!channel.rounds_the_same(BYTES));
            after += usize::from(wrong > 0);
        }
        assert!(after > 0 && before > 2 * after, "{before} {after}");
    }

    #[test]
    fn a_weight_follows_its_channels_sign_and_size() {
        let channel = |weights| Channel { scale: 1.0, weights, bias: 0.0 };
        assert_eq!([1.0, -1.0, 0.1, 0.0].map(|w| channel(w).weight(-127)), [-127, 127, -13, 0]);
    }
}
