//! Trained parameters: the integers in use, their masters and their momentum.

use crate::buffers::{Buffer, with_room};
use crate::masters::Masters;
use crate::ops::Step;
use intseg_kernels::conv::Sum;
use intseg_kernels::masters::{FRACTION_BITS, WeightMasters, coarse_weights};
use intseg_kernels::round::{bit_length, half_even_i32, half_even_i64};
use intseg_kernels::sgd::{self, Update};
use intseg_kernels::{Context, Dither, Input, Role, WeightGradient};
use std::ops::Range;

/// How a parameter is stored and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolution weights: i8 in use, masters with 16 fractional bits below the i8 step; the grid may grow; decays.
    Weight,
    /// Biases, and γ and β of batch normalisation: 12 fractional bits in use (exponent −12) and masters with 8 more;
    /// no decay.
    Affine,
}

impl Kind {
    /// Fractional bits of a master below the step of the integers in use.
    pub fn fraction_bits(self) -> u32 {
        match self {
            Kind::Weight => FRACTION_BITS,
            Kind::Affine => 8,
        }
    }
}

/// A trained tensor.
///
/// `value = master · 2^(exponent − fraction_bits)`: the master holds fractional bits below the step `2^exponent` of
/// the integers in use, and the momentum holds 8 more (DESIGN §3.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Unique in its network, such as `conv1_1.weight`.
    pub name: String,
    /// `[KH, KW, C_in, C_out]` for weights, `[C]` else.
    pub shape: Vec<usize>,
    /// How it is stored and used.
    pub kind: Kind,
    /// Exponent of the step of the integers in use.
    pub exponent: i32,
    /// Masters.
    pub master: Masters,
    /// Momentum.
    pub momentum: Vec<i32>,
    /// Mean of the masters after some steps, on their grid; empty before the first of these steps.
    pub mean: Masters,
    /// Exact gradient sums of this step; empty once they are used.
    pub gradient: Buffer<i64>,
    /// `gradient` is in units of `2^gradient_exponent`.
    pub gradient_exponent: i32,
    /// Masters that the last update left outside the grid.
    pub saturated: usize,
}

/// The learning rate of one step over its number of pixels, as integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// `lr / n = mantissa · 2^exponent`, the mantissa below 2^16.
    pub mantissa: u32,
    /// See `mantissa`.
    pub exponent: i32,
    /// Learning rate times weight decay, Q40.
    pub decay_q40: u64,
    /// Momentum, Q15.
    pub momentum_q15: u32,
}

impl Rate {
    /// From a learning rate and a weight decay in units of 2^-32 and the sum of the pixels' weights in units of 2^-8.
    pub fn new(lr_q32: u64, weight_q8: u64, decay_q32: u64, momentum_q15: u32) -> Self {
        // lr · 2^32 / (n · 2^8) = (lr / n) · 2^24, here with 40 more bits.
        let quotient = (u128::from(lr_q32) << 40) / u128::from(weight_q8.max(1));
        let spare = (128 - quotient.leading_zeros()).saturating_sub(16);
        let decay_q40 = ((u128::from(lr_q32) * u128::from(decay_q32)) >> 24) as u64;
        Rate { mantissa: (quotient >> spare) as u32, exponent: spare as i32 - 64, decay_q40, momentum_q15 }
    }
}

impl Parameter {
    fn new(name: &str, shape: &[usize], kind: Kind, exponent: i32, master: Masters) -> Self {
        let mut momentum = with_room(master.len());
        momentum.resize(master.len(), 0);
        Parameter {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind,
            exponent,
            momentum,
            mean: Masters::none(kind),
            master,
            gradient: Buffer::default(),
            gradient_exponent: 0,
            saturated: 0,
        }
    }

    /// Weights `[KH, KW, C_in, C_out]` drawn from a normal distribution of variance `2 / (KH·KW·C_in)` (He et al.
    /// 2015), as a sum of twelve uniform numbers.
    pub fn he_normal(name: &str, shape: [usize; 4], draw: Dither) -> Self {
        let fan_in = (shape[0] * shape[1] * shape[2]) as u64;
        let deviation_q30 = ((2u64 << 60) / fan_in).isqrt() as i64;
        // Sums first, then scaled: 64-bit values of a large layer would be the largest tensor of a run.
        let len = shape.iter().product();
        let sums = (0..len).map(|i| {
            let parts = (0..6).map(|k| draw.at(i * 6 + k)).map(|r| (r & 0xFFFF) as i32 + (r >> 16) as i32);
            parts.sum::<i32>() - 6 * 65_536
        });
        let mut drawn = with_room(len);
        drawn.extend(sums);
        let largest = drawn.iter().fold(0, |max: u64, v: &i32| max.max(v.unsigned_abs().into()));
        let exponent = bit_length((largest * deviation_q30 as u64).max(1)) as i32 - 46 - 7;
        let drop = (exponent - 16 + 46) as u32;
        let values = drawn.into_iter().map(|v| half_even_i64(i64::from(v) * deviation_q30, drop) as i32);
        Self::new(name, &shape, Kind::Weight, exponent, Masters::new(Kind::Weight, values))
    }

    /// `len` biases, scales or offsets of one value in units of 2^-12.
    pub fn affine(name: &str, len: usize, value_q12: i32) -> Self {
        let master = vec![value_q12 << Kind::Affine.fraction_bits(); len];
        Self::new(name, &[len], Kind::Affine, -12, Masters::Affine(master))
    }

    /// The masters' values, for a float framework or a person.
    #[allow(clippy::float_arithmetic, reason = "the edge where a weight is handed to floats")]
    pub fn real(&self) -> Vec<f32> {
        let unit = 2f64.powi(self.exponent - self.kind.fraction_bits() as i32);
        self.master.iter().map(|master| (f64::from(master) * unit) as f32).collect()
    }

    /// The weights that convolutions use: masters to nearest, on a grid of `bits` bits over ±127 steps. With 8 they are
    /// there already; with fewer `coarse` is filled with them, and must have room for as many.
    ///
    /// # Panics
    /// When this is no weight, or `coarse` has another length.
    pub fn in_use<'a>(&'a self, ctx: Context, bits: u32, coarse: &'a mut [i8]) -> &'a [i8] {
        let Masters::Weight { steps, fractions } = &self.master else { panic!("{} is no weight", self.name) };
        if bits == 8 {
            return steps;
        }
        coarse_weights(ctx, coarse, steps, fractions, 8 - bits);
        coarse
    }

    /// γ or β as used, in units of 2^-12: all 12 fractional bits, or with fewer than 14 bits a grid over [−2, 2).
    pub fn in_use_affine(&self, index: usize, bits: u32) -> i32 {
        if bits >= 14 {
            return half_even_i32(self.master.at(index), 8).clamp(-32_767, 32_767);
        }
        let coarse = 14 - bits;
        let limit = 1 << (bits - 1);
        half_even_i32(self.master.at(index), 8 + coarse).clamp(-limit, limit - 1) << coarse
    }

    /// A bias as used, in units of 2^-12.
    pub fn in_use_bias(&self, index: usize) -> i32 {
        half_even_i32(self.master.at(index), 8)
    }

    /// One step of gradient descent with momentum from the gradient, whose buffer is given back. Does nothing when
    /// there is no gradient. `part` tells an operator's parameters apart.
    pub fn update(&mut self, step: &Step, part: u32, rate: &Rate) {
        if self.gradient.is_empty() {
            return;
        }
        let gradient = std::mem::take(&mut self.gradient);
        let saturated = self.descend(step, part, rate, 0, &gradient, self.gradient_exponent);
        step.buffers.give_i64(gradient);
        self.regrid(step, part, saturated);
    }

    /// One step for the values from `first` on, as many as the gradient has; returns how many masters it left outside
    /// the grid. The gradient is in units of `2^exponent`. With fewer than 32 bits of G it must be that of all values.
    pub fn descend<G: Sum>(
        &mut self,
        step: &Step,
        part: u32,
        rate: &Rate,
        first: usize,
        gradient: &[G],
        exponent: i32,
    ) -> usize {
        let ctx = step.kernels;
        let gradient_shift = match step.bits.g {
            32 => 0,
            bits => sgd::gradient_shift(sgd::max_magnitude(ctx, gradient), bits),
        };
        let update = self.rule(step, rate, first, exponent, gradient_shift);
        let range = first..first + gradient.len();
        let (momentum, dithers) = (&mut self.momentum[range.clone()], dithers(step, part));
        match &mut self.master {
            Masters::Weight { steps, fractions } => {
                let masters = WeightMasters { steps: &mut steps[range.clone()], fractions: &mut fractions[range] };
                sgd::update(ctx, masters, momentum, gradient, &update, dithers)
            }
            Masters::Affine(values) => {
                sgd::update_affine(ctx, &mut values[range], momentum, gradient, &update, dithers)
            }
        }
    }

    /// As [`Parameter::descend`] with the weight gradient that `pass` computes for some taps, which is never in memory. G
    /// must have 32 bits, and the pass be one that learns.
    ///
    /// # Panics
    /// When this is no weight.
    #[allow(clippy::too_many_arguments, reason = "the operands of a gradient and of an update")]
    pub fn descend_by(
        &mut self,
        step: &Step,
        rate: &Rate,
        pass: WeightGradient,
        taps: Range<usize>,
        input: Input,
        error: &[i8],
        exponent: i32,
        scratch: &mut [i32],
    ) -> usize {
        let per_tap = self.shape[2] * self.shape[3];
        let update = self.rule(step, rate, taps.start * per_tap, exponent, 0);
        let range = taps.start * per_tap..taps.end * per_tap;
        let momentum = &mut self.momentum[range.clone()];
        let Masters::Weight { steps, fractions } = &mut self.master else { panic!("{} is no weight", self.name) };
        let masters = WeightMasters { steps: &mut steps[range.clone()], fractions: &mut fractions[range] };
        pass.learn(step.kernels, masters, momentum, taps, input, error, &update, dithers(step, 0), scratch)
    }

    /// The update of the values from `first` on by a gradient in units of `2^exponent`.
    fn rule(&self, step: &Step, rate: &Rate, first: usize, exponent: i32, gradient_shift: u32) -> Update {
        let momentum_exponent = self.exponent - self.kind.fraction_bits() as i32 - 8;
        let weight = self.kind == Kind::Weight;
        Update {
            first,
            gradient_shift,
            rate: rate.mantissa,
            rate_shift: momentum_exponent - (exponent + gradient_shift as i32 + rate.exponent),
            decay_q40: if weight { rate.decay_q40 } else { 0 },
            momentum_q15: rate.momentum_q15,
            coarse: if weight { 24 - step.bits.update } else { 0 },
            limit: if weight { 127 << 16 } else { i32::MAX },
        }
    }

    /// Takes the masters into their mean, of which they are the `count`-th from 1 on.
    pub fn average(&mut self, ctx: Context, count: u32) {
        match count {
            0 | 1 => self.mean.clone_from(&self.master),
            _ => self.mean.average(ctx, &self.master, count),
        }
    }

    /// Ends a step that left `saturated` masters outside the grid: it grows when they are many.
    pub fn regrid(&mut self, step: &Step, part: u32, saturated: usize) {
        self.saturated = saturated;
        if saturated * 2000 > self.master.len() {
            self.exponent += 1;
            let dithers = [0, 1].map(|which| step.dither(Role::Regrid, 2 * part + which));
            self.master.halve(step.kernels, &mut self.momentum, dithers);
            for index in 0..self.mean.len() {
                self.mean.set(index, half_even_i32(self.mean.at(index), 1));
            }
        }
    }
}

/// The random bits that round the gradient, and momentum and master.
fn dithers(step: &Step, part: u32) -> [Dither; 2] {
    [step.rounded(Role::Update, part, step.bits.rounding.g), step.dither(Role::Update, part)]
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued rule")]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use intseg_kernels::Context;

    fn step(buffers: &Buffers, number: u64) -> Step<'_> {
        Step { kernels: Context::reference(), bits: Bits::default(), buffers, seed: 1, number, node: 3 }
    }

    #[test]
    fn initial_weights_have_the_deviation_of_he() {
        let p = Parameter::he_normal("w", [3, 3, 64, 64], Dither::new(0, 0, 0, Role::Initial));
        let unit = 2f64.powi(p.exponent - 16);
        let n = p.master.len() as f64;
        let mean = p.master.iter().map(|m| f64::from(m) * unit).sum::<f64>() / n;
        let deviation = (p.master.iter().map(|m| (f64::from(m) * unit).powi(2)).sum::<f64>() / n).sqrt();
        let want = (2.0f64 / (9.0 * 64.0)).sqrt();
        assert!(mean.abs() < 0.02 * want && (deviation / want - 1.0).abs() < 0.02, "{mean} {deviation} {want}");
        let largest = p.master.iter().map(|m| m.unsigned_abs()).max().unwrap();
        assert!((1 << 22..=1 << 23).contains(&largest), "{largest}");
    }

    #[test]
    fn many_small_updates_follow_the_real_valued_rule() {
        let buffers = Buffers::default();
        let mut p = Parameter::affine("b", 400, 4096);
        let start = p.clone();
        let rate = Rate::new(1 << 26, 1 << 8, 0, 29_491);
        for number in 0..200 {
            p.gradient = vec![3; 400].into();
            p.gradient_exponent = -15;
            p.update(&step(&buffers, number), 0, &rate);
        }
        let (mut w, mut v) = (1.0, 0.0);
        for _ in 0..200 {
            v = v * (29_491.0 / 32_768.0) + 3.0 / 32_768.0 / 64.0;
            w -= v;
        }
        let mean = p.master.iter().map(|m| f64::from(m) / 2f64.powi(20)).sum::<f64>() / 400.0;
        assert!((mean - w).abs() < 1e-6 * 20.0, "{mean} against {w}");
        assert_ne!(p.master, start.master);
    }

    #[test]
    fn momentum_decays_to_nothing_and_weights_decay() {
        let buffers = Buffers::default();
        let mut p = Parameter::he_normal("w", [1, 1, 8, 8], Dither::new(0, 0, 0, Role::Initial));
        p.momentum.fill(1000);
        let rate = Rate::new(1 << 30, 1 << 8, 1 << 25, 29_491);
        let before: i64 = p.master.iter().map(|m| i64::from(m.unsigned_abs())).sum();
        for number in 0..400 {
            p.gradient = vec![0; 64].into();
            p.update(
                &step(&buffers, number),
                0,
                &Rate { decay_q40: if number < 200 { rate.decay_q40 } else { 0 }, ..rate },
            );
        }
        let after: i64 = p.master.iter().map(|m| i64::from(m.unsigned_abs())).sum();
        assert!(after < before / 2, "{after} of {before}");
        for number in 400..2000 {
            p.gradient = vec![0; 64].into();
            p.update(&step(&buffers, number), 0, &Rate { decay_q40: 0, ..rate });
        }
        assert!(p.momentum.iter().all(|v| v.abs() <= 1), "{:?}", p.momentum);
    }

    #[test]
    fn a_grid_that_many_masters_leave_grows_and_keeps_their_values() {
        let buffers = Buffers::default();
        let mut p = Parameter::he_normal("w", [1, 1, 8, 8], Dither::new(0, 0, 0, Role::Initial));
        p.master.set(0, (127 << 16) + 9000);
        let (exponent, masters) = (p.exponent, p.master.clone());
        p.gradient = vec![0; 64].into();
        p.update(&step(&buffers, 0), 0, &Rate::new(1, 1 << 8, 0, 0));
        assert_eq!(p.exponent, exponent + 1);
        assert!(p.master.iter().zip(masters.iter()).all(|(now, then)| (2 * now - then).abs() <= 1));
    }

    #[test]
    fn the_rate_is_the_learning_rate_over_the_pixels() {
        let rate = Rate::new(1 << 28, 1000 << 8, 1 << 20, 0);
        let value = f64::from(rate.mantissa) * 2f64.powi(rate.exponent);
        assert!((value * 1000.0 * 16.0 - 1.0).abs() < 1e-4, "{value}");
        assert_eq!(rate.decay_q40, 1 << 24);
    }
}
