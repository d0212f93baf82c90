//! Batch normalisation with the mean absolute deviation: no square, no root (DESIGN §3.4; L1 batch normalisation of
//! Wu et al., arXiv 1802.09769).
//!
//! Forward, per channel: `d = y − μ`, `σ = c · mean|d|` with `c = √(π/2)`, `x̂ = d / σ`, output `γ·x̂ + β`.
//! Backward, with `s = sign(d)`:
//! `∂y = γ/σ · [e − mean(e) − c·(s − mean(s))·mean(e·x̂)]`, `∂β = Σe`, `∂γ = Σ e·x̂`.

use super::adoption::Adoption;
use super::{Operator, Step};
use crate::buffers::Buffer;
use crate::masters::Masters;
use crate::parameter::Parameter;
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::batch_norm::{
    self as kernels, Channel, ChannelGroup, ErrorStatistics, GradientGroup, Gradients, Rounding, wide,
};
use intseg_kernels::pool::for_each_piece;
use intseg_kernels::round::{bit_length, stochastic_i64};
use intseg_kernels::vector::LANES;
use intseg_kernels::{Context, Dither, Role, requantize};

/// √(π/2) in units of 2^-14: under it σ is the standard deviation of normally distributed values.
const C_Q14: i64 = 20_534;
/// Fractional bits of x̂.
const X_HAT_BITS: i32 = 11;
/// Fractional bits of γ·x̂ + β.
const Z_BITS: i32 = 23;
/// Fractional bits of running statistics.
pub const RUNNING_BITS: i32 = 24;
/// The largest magnitude of running statistics, in units of 2^-24.
const LARGEST_STATISTIC: i128 = 1 << 46;
/// Running statistics move by 1/16 of the difference a step.
const RUNNING_DECAY: u32 = 4;

/// A batch normalisation of a training graph.
pub struct BatchNorm {
    relu: bool,
    /// `[C]`.
    pub gamma: Parameter,
    /// `[C]`.
    pub beta: Parameter,
    /// μ, then mean|d|, of each channel over past batches, in units of 2^-24; empty before the first step.
    running: Vec<i64>,
    /// Set until statistics for a deployed map are found.
    adoption: Option<Adoption>,
    saved: Option<Saved>,
}

/// σ of a mean absolute deviation in units of 2^-24, which is at least 2^-10.
pub fn sigma(deviation_q24: i64) -> i64 {
    (deviation_q24.max(1 << (RUNNING_BITS - 10)) * C_Q14) >> 14
}

/// What backward needs of forward.
struct Saved {
    x_hat: Buffer<i16>,
    constants: Vec<ChannelGroup>,
    /// γ as used, in units of 2^-12.
    gamma: Vec<i32>,
    /// σ of each channel in units of `2^(exponent − 8)`.
    sigma_q8: Vec<i64>,
    /// The input's exponent.
    exponent: i32,
}

/// One channel at inference: `value = y · scale + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelAffine {
    /// Scale in units of 2^-28.
    pub scale_q28: i64,
    /// Offset in units of 2^-24.
    pub offset_q24: i64,
}

/// Statistics of one forward pass.
struct Statistics {
    channels: Vec<Channel>,
    gamma: Vec<i32>,
    sigma_q8: Vec<i64>,
    /// Smallest and largest γ·x̂ + β that occur, in units of 2^-23.
    ends: (i32, i32),
}

impl BatchNorm {
    /// γ = 1, β = 0.
    pub fn new(name: &str, channels: usize, relu: bool) -> Self {
        BatchNorm {
            relu,
            gamma: Parameter::affine(&format!("{name}.gamma"), channels, 1 << 12),
            beta: Parameter::affine(&format!("{name}.beta"), channels, 0),
            running: Vec::new(),
            adoption: None,
            saved: None,
        }
    }

    /// μ, then mean|d|, of each channel over past batches, in units of 2^-24; empty before the first step.
    pub fn running(&self) -> &[i64] {
        &self.running
    }

    /// Each channel's map at inference, from statistics as [`BatchNorm::running`] has them; without any, a mean of 0 and
    /// a deviation of 1.
    pub fn folded(&self, statistics: &[i64], gamma_bits: u32, beta_bits: u32) -> Vec<ChannelAffine> {
        let count = self.gamma.master.len();
        (0..count)
            .map(|k| {
                let (mean, deviation) = match statistics {
                    [] => (0, (1 << (RUNNING_BITS + 14)) / C_Q14),
                    _ => (statistics[k], statistics[count + k]),
                };
                let sigma_q24 = sigma(deviation);
                let scale = (i128::from(self.gamma.in_use_affine(k, gamma_bits)) << 40) / i128::from(sigma_q24);
                let shift = (i128::from(mean) * scale) >> 28;
                let beta_q24 = i128::from(self.beta.in_use_affine(k, beta_bits)) << 12;
                ChannelAffine { scale_q28: scale as i64, offset_q24: (beta_q24 - shift) as i64 }
            })
            .collect()
    }

    /// Makes the layer a deployed map, one entry a channel: until [`BatchNorm::end_adoption`], every forward pass sets γ
    /// and β such that the layer is that map on what the passes have seen.
    pub fn adopt(&mut self, map: Vec<ChannelAffine>) {
        debug_assert_eq!(map.len(), self.gamma.master.len());
        self.adoption = Some(Adoption::new(map));
    }

    /// Whether the layer waits for statistics.
    pub fn is_adopting(&self) -> bool {
        self.adoption.is_some()
    }

    /// Keeps γ, β and the statistics as they are now.
    pub fn end_adoption(&mut self) {
        self.adoption = None;
    }

    fn statistics<T: kernels::Source>(&mut self, step: &Step, y: &[T], exponent: i32) -> Statistics {
        let (ctx, count) = (step.kernels, self.gamma.master.len());
        let n = (y.len() / count) as i64;
        let mut scratch = step.buffers.take_i64(kernels::Statistics::scratch_len(ctx, count));
        let statistics = kernels::statistics(ctx, &mut scratch, y, count);
        let ends: Vec<(i32, i32)> = (0..count).map(|k| statistics.ends(k)).collect();
        let means: Vec<i64> = (0..count).map(|k| divide(statistics.sum(k) << 8, n)).collect();
        let deviations = kernels::absolute_deviations(ctx, &mut scratch, y, &means);
        let deviations: Vec<i64> = deviations.iter().map(|&sum| divide(sum, n)).collect();
        step.buffers.give_i64(scratch);
        self.track(step, &means, &deviations, exponent);

        // A deviation below 2^-10 is taken as 2^-10.
        let guard = 1i64 << (-10 - exponent + 8).clamp(0, 40);
        let sigma_q8: Vec<i64> = deviations.iter().map(|&s| ((s.max(guard) * C_Q14) >> 14).max(1)).collect();
        let gamma: Vec<i32> = (0..count).map(|k| self.gamma.in_use_affine(k, step.bits.gamma)).collect();
        let coarse = 16 - step.bits.bn_x;
        let (beta, beta_bits) = (&self.beta, step.bits.beta);
        let channels: Vec<Channel> = for_each_channel(ctx, count, |k| {
            let beta_q23 = beta.in_use_affine(k, beta_bits) << (Z_BITS - 12);
            Channel::new(means[k], sigma_q8[k], gamma[k], beta_q23, coarse)
        });
        // γ·x̂ + β is monotone in y, so its extremes are those of y's.
        let z = |channel: &Channel, y: i32| channel.scale(channel.normalize(y, coarse));
        let ends = channels.iter().zip(&ends).flat_map(|(c, &(a, b))| [z(c, a), z(c, b)]);
        let ends = ends.fold((i32::MAX, i32::MIN), |(low, high), z| (low.min(z), high.max(z)));
        Statistics { channels, gamma, sigma_q8, ends }
    }

    /// Moves the running statistics towards a batch's.
    fn track(&mut self, step: &Step, means: &[i64], deviations: &[i64], exponent: i32) {
        let dither = step.dither(Role::RunningStatistics, 0);
        let shift = exponent - 8 + RUNNING_BITS;
        let batch = means.iter().chain(deviations).enumerate().map(|(k, &value)| match shift {
            0.. => (i128::from(value) << shift.min(60)).clamp(-LARGEST_STATISTIC, LARGEST_STATISTIC) as i64,
            _ => stochastic_i64(value, shift.unsigned_abs().min(62), dither.at(2 * k)),
        });
        if let Some(adoption) = &mut self.adoption {
            self.running = adoption.see(batch);
            let (gamma, beta) = adoption.parameters(&self.running);
            (self.gamma.master, self.beta.master) = (Masters::Affine(gamma), Masters::Affine(beta));
            return;
        }
        if self.running.is_empty() {
            self.running = batch.collect();
            return;
        }
        for (k, (running, batch)) in self.running.iter_mut().zip(batch).enumerate() {
            *running += stochastic_i64(batch - *running, RUNNING_DECAY, dither.at(2 * k + 1));
        }
    }

    fn forward_typed<T: kernels::Source>(&mut self, step: &Step, y: &[T], shape: Shape, exponent: i32) -> Tensor {
        let Statistics { channels, gamma, sigma_q8, ends } = self.statistics(step, y, exponent);
        let constants: Vec<ChannelGroup> = channels.chunks(LANES).map(ChannelGroup::new).collect();
        let mut x_hat = step.buffers.take_i16(y.len());
        let (ctx, coarse) = (step.kernels, 16 - step.bits.bn_x);
        let out = if self.relu {
            let shift = requantize::shift_for(ends.1.max(0) as u64, step.bits.a);
            let rounding = Rounding { coarse, shift, low: 0, high: (1 << step.bits.a) - 1 };
            let mut out = step.buffers.take_u8(y.len());
            kernels::normalize(ctx, &mut out, &mut x_hat, y, shape.c, &constants, rounding);
            Tensor::u8(shape, shift as i32 - Z_BITS, out)
        } else {
            let largest = ends.0.unsigned_abs().max(ends.1.unsigned_abs());
            let shift = requantize::shift_for(largest.into(), step.bits.residual - 1);
            let limit = (1 << (step.bits.residual - 1)) - 1;
            let rounding = Rounding { coarse, shift, low: -limit, high: limit };
            let mut out = step.buffers.take_i16(y.len());
            kernels::normalize(ctx, &mut out, &mut x_hat, y, shape.c, &constants, rounding);
            Tensor::i16(shape, shift as i32 - Z_BITS, out)
        };
        if let Some(old) = self.saved.replace(Saved { x_hat, constants, gamma, sigma_q8, exponent }) {
            step.buffers.give_i16(old.x_hat);
        }
        out
    }

    /// Leaves the gradients of γ and β, and returns the coefficients of the gradient with respect to y.
    fn differentiate(
        &mut self,
        step: &Step,
        saved: &Saved,
        statistics: ErrorStatistics,
        positions: usize,
        exponent: i32,
        bits: [i32; 2],
    ) -> Coefficients {
        let count = saved.gamma.len();
        let [mut beta, mut gamma] = [(); 2].map(|()| step.buffers.take_i64(count));
        for k in 0..count {
            (beta[k], gamma[k]) = (statistics.sum(k), statistics.product(k));
        }
        (self.beta.gradient, self.beta.gradient_exponent) = (beta, exponent);
        (self.gamma.gradient, self.gamma.gradient_exponent) = (gamma, exponent - X_HAT_BITS);
        Coefficients::new(step.kernels, saved, &statistics, positions, bits)
    }

    fn backward_typed<E: kernels::Error>(
        &mut self,
        step: &Step,
        error: &[E],
        shape: Shape,
        exponent: i32,
        write: impl Fn(&Gradients<E>, &[wide::Coefficients], Narrowing) -> Mantissas,
    ) -> Tensor {
        let saved = self.saved.take().expect("forward runs before backward");
        let ctx = step.kernels;
        let (x_hat, constants) = (&saved.x_hat, &saved.constants);
        let operands = Gradients { error, x_hat, channels: shape.c, constants, relu: self.relu };
        let mut scratch = step.buffers.take_i64(ErrorStatistics::scratch_len(ctx, shape.c));
        let statistics = kernels::error_statistics(ctx, &mut scratch, &operands);
        let bits = match (size_of::<E>(), step.bits.e2) {
            (1, _) => 20,
            (_, 0..=8) => 14,
            _ => 40,
        };
        let error_bits = 8 * size_of::<E>() as i32 - 1;
        let coefficients =
            self.differentiate(step, &saved, statistics, shape.positions(), exponent, [bits, error_bits]);
        step.buffers.give_i64(scratch);
        let shift = requantize::shift_for(coefficients.largest, step.bits.e2 - 1);
        let limit = (1 << (step.bits.e2 - 1)) - 1;
        let dither = step.dither(Role::ErrorAtConvolution, 0);
        let mantissas = write(&operands, &coefficients.channels, Narrowing { shift, limit, dither });
        step.buffers.give_i16(saved.x_hat);
        Tensor { shape, exponent: exponent + coefficients.exponent + shift as i32, mantissas }
    }
}

/// How a gradient is brought to the bits of E2.
struct Narrowing {
    shift: u32,
    limit: i32,
    dither: Dither,
}

impl Narrowing {
    /// Writes a gradient that 32-bit arithmetic holds.
    fn write<E: kernels::Error>(
        &self,
        step: &Step,
        operands: &Gradients<E>,
        coefficients: &[wide::Coefficients],
    ) -> Mantissas {
        let Narrowing { shift, limit, dither } = *self;
        let groups: Vec<GradientGroup> = coefficients.chunks(LANES).map(group).collect();
        if step.bits.e2 > 8 {
            let mut out = step.buffers.take_i16(operands.error.len());
            kernels::gradient(step.kernels, &mut out, operands, &groups, shift, limit, dither);
            return Mantissas::I16(out);
        }
        let mut out = step.buffers.take_i8(operands.error.len());
        kernels::gradient(step.kernels, &mut out, operands, &groups, shift, limit, dither);
        Mantissas::I8(out)
    }

    /// Writes a 16-bit gradient of a 16-bit error, or a narrower one.
    fn write_wide(&self, step: &Step, operands: &Gradients<i16>, coefficients: &[wide::Coefficients]) -> Mantissas {
        if step.bits.e2 <= 8 {
            return self.write(step, operands, coefficients);
        }
        let Narrowing { shift, limit, dither } = *self;
        let mut out = step.buffers.take_i16(operands.error.len());
        wide::gradient(step.kernels, &mut out, operands, coefficients, shift, limit, dither);
        Mantissas::I16(out)
    }
}

/// The gradient with respect to y.
struct Coefficients {
    /// One a channel.
    channels: Vec<wide::Coefficients>,
    /// The exponent that multiplying by them adds.
    exponent: i32,
    /// The largest magnitude of the gradient.
    largest: u64,
}

impl Coefficients {
    /// The largest scale gets `bits` bits, chosen so that a gradient fits the integers that it is computed in: with the
    /// bits of the errors fewer than 30 for 32-bit arithmetic, 56 for 64.
    fn new(
        ctx: Context,
        saved: &Saved,
        statistics: &ErrorStatistics,
        positions: usize,
        [bits, error_bits]: [i32; 2],
    ) -> Self {
        let largest_sigma = saved.sigma_q8.iter().fold(1, |max: i64, &s| max.max(s));
        // γ · 2^l / σ: 30 bits remain even of the largest σ's reciprocal.
        let l = 30 + bit_length(largest_sigma as u64) as i32;
        let count = saved.gamma.len();
        let scales =
            for_each_channel(ctx, count, |k| (i128::from(saved.gamma[k]) << l) / i128::from(saved.sigma_q8[k]));
        let largest = scales.iter().fold(0, |max: u128, s| max.max(s.unsigned_abs()));
        let drop = (128 - largest.leading_zeros() as i32 - bits).max(0);
        let n = positions as i128;
        let limit = 1i128 << (bits + error_bits + 1);
        let channels = for_each_channel(ctx, count, |k| {
            let scale = scales[k] >> drop;
            let [e, product] = [statistics.sum(k), statistics.product(k)].map(i128::from);
            let signs = i128::from(2 * statistics.positive(k)) - n;
            // c · mean(e·x̂), and mean(e) − mean(s) times that, over common denominators.
            let slope = scale * product * i128::from(C_Q14) / (n << (14 + X_HAT_BITS));
            let offset = scale * e / n - slope * signs / n;
            let narrow = |v: i128| v.clamp(-limit, limit) as i64;
            wide::Coefficients { scale: narrow(scale), offsets: [slope, -slope].map(|s| narrow(offset + s)) }
        });
        let largest = channels.iter().enumerate().flat_map(|(k, c)| {
            let sides = [c.offsets[0], c.offsets[0], c.offsets[1], c.offsets[1]];
            let ends = statistics.extremes(k).into_iter().zip(sides);
            ends.map(|(e, offset)| (c.scale * e - offset).unsigned_abs())
        });
        let largest = largest.max().unwrap_or(0);
        // γ has 12 fractional bits, σ 8 below the input's exponent.
        Coefficients { channels, exponent: drop - l - 12 + 8 - saved.exponent, largest }
    }
}

/// A value for each channel, of which a task computes some: they take divisions of 128 bits, and can be thousands.
fn for_each_channel<T: Clone + Default + Send>(
    ctx: Context,
    count: usize,
    value: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    const CHANNELS: usize = 128;
    let mut values = vec![T::default(); count];
    for_each_piece(ctx.pool, &mut values, CHANNELS, |piece, values, _| {
        for (k, out) in values.iter_mut().enumerate() {
            *out = value(piece * CHANNELS + k);
        }
    });
    values
}

/// The coefficients of up to 16 channels, which fit 32 bits.
fn group(channels: &[wide::Coefficients]) -> GradientGroup {
    let mut group = GradientGroup::default();
    for (k, c) in channels.iter().enumerate() {
        group.scale.0[k] = c.scale as i32;
        group.offset_positive.0[k] = c.offsets[0] as i32;
        group.offset_negative.0[k] = c.offsets[1] as i32;
    }
    group
}

/// `a / b` to nearest.
fn divide(a: i64, b: i64) -> i64 {
    intseg_kernels::round::divide_half_even(a, b)
}

impl Operator for BatchNorm {
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor {
        let Tensor { shape, exponent, mantissas } = inputs[0];
        match mantissas {
            Mantissas::I32(y) => self.forward_typed(step, y, *shape, *exponent),
            Mantissas::I16(y) => self.forward_typed(step, y, *shape, *exponent),
            other => unreachable!("batch normalisation reads accumulators or a residual stream, not {other:?}"),
        }
    }

    fn backward(&mut self, step: &Step, _: &[&Tensor], _: &Tensor, error: Tensor, _: &[bool]) -> Vec<Option<Tensor>> {
        let gradient = match &error.mantissas {
            Mantissas::I8(e) => {
                self.backward_typed(step, e, error.shape, error.exponent, |o, c, n| n.write(step, o, c))
            }
            Mantissas::I16(e) => {
                self.backward_typed(step, e, error.shape, error.exponent, |o, c, n| n.write_wide(step, o, c))
            }
            other => unreachable!("errors have 8 or 16 bits, not {other:?}"),
        };
        step.buffers.give(error);
        vec![Some(gradient)]
    }

    fn parameters(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.gamma, &mut self.beta]
    }

    fn state(&mut self) -> Vec<&mut Vec<i64>> {
        vec![&mut self.running]
    }
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "tests compare with the real-valued rule")]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use intseg_kernels::{Context, Dither, Isa};

    const POSITIONS: usize = 700;
    const CHANNELS: usize = 5;

    fn step<'a>(buffers: &'a Buffers, bits: Bits, isa: Isa) -> Step<'a> {
        Step { kernels: Context { isa, pool: &intseg_kernels::Inline }, bits, buffers, seed: 1, number: 0, node: 2 }
    }

    fn random(len: usize, tensor: u32, bits: u32) -> Vec<i32> {
        let d = Dither::new(5, 0, tensor, Role::Initial);
        // A sum of uniform numbers, so that a few values are large.
        (0..len).map(|i| (0..4).map(|k| (d.at(4 * i + k) as i32) >> (34 - bits)).sum()).collect()
    }

    fn input() -> Tensor {
        let y = random(POSITIONS * CHANNELS, 1, 19);
        let y = y.iter().enumerate().map(|(i, &v)| (v >> (i % CHANNELS)) + 1000 * (i % CHANNELS) as i32).collect();
        Tensor::i32(Shape::new(1, 7, 100, CHANNELS), -16, y)
    }

    fn error() -> Tensor {
        let e = random(POSITIONS * CHANNELS, 2, 7).iter().map(|&v| v as i8).collect();
        Tensor::i8(Shape::new(1, 7, 100, CHANNELS), -9, e)
    }

    fn norm() -> BatchNorm {
        let mut norm = BatchNorm::new("bn", CHANNELS, true);
        for k in 0..CHANNELS {
            norm.gamma.master.set(k, (1 << 20) + (k as i32) * 100_000 - 150_000);
            norm.beta.master.set(k, (k as i32 - 2) * 200_000);
        }
        norm
    }

    fn real(norm: &BatchNorm, y: &[f64]) -> Vec<f64> {
        let c = (std::f64::consts::PI / 2.0).sqrt();
        let n = (y.len() / CHANNELS) as f64;
        let mut out = vec![0.0; y.len()];
        for k in 0..CHANNELS {
            let column: Vec<f64> = y.iter().skip(k).step_by(CHANNELS).copied().collect();
            let mean = column.iter().sum::<f64>() / n;
            let sigma = c * column.iter().map(|v| (v - mean).abs()).sum::<f64>() / n;
            let [gamma, beta] = [&norm.gamma, &norm.beta].map(|p| f64::from(p.in_use_affine(k, 16)) / 4096.0);
            for (p, v) in column.iter().enumerate() {
                out[p * CHANNELS + k] = (gamma * (v - mean) / sigma + beta).max(0.0);
            }
        }
        out
    }

    fn values(t: &Tensor) -> Vec<f64> {
        t.to_i64().iter().map(|&m| m as f64 * 2f64.powi(t.exponent)).collect()
    }

    fn cosine(a: &[f64], b: &[f64]) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn forward_is_the_real_formula_to_half_a_step() {
        let buffers = Buffers::default();
        let mut norm = norm();
        let y = input();
        let out = norm.forward(&step(&buffers, Bits::default(), Isa::Scalar), &[&y]);
        let unit = 2f64.powi(out.exponent);
        for (got, want) in values(&out).iter().zip(real(&norm, &values(&y))) {
            assert!((got - want).abs() < 0.51 * unit + 2e-3, "{got} {want}");
        }
    }

    #[test]
    fn backward_is_the_gradient_of_the_real_formula() {
        let buffers = Buffers::default();
        let bits = Bits { e2: 16, ..Bits::default() };
        let step = step(&buffers, bits, Isa::Scalar);
        let mut norm = norm();
        let (y, e) = (input(), error());
        let out = norm.forward(&step, &[&y]);
        let got = norm.backward(&step, &[&y], &out, e.clone(), &[true]).remove(0).unwrap();
        let (y, e, got) = (values(&y), values(&e), values(&got));
        // Finite differences of Σ e · f(y).
        let loss = |y: &[f64]| real(&norm, y).iter().zip(&e).map(|(f, e)| f * e).sum::<f64>();
        let want: Vec<f64> = (0..200)
            .map(|i| {
                let (mut up, mut down) = (y.clone(), y.clone());
                up[i] += 1e-6;
                down[i] -= 1e-6;
                (loss(&up) - loss(&down)) / 2e-6
            })
            .collect();
        assert!(cosine(&got[..200], &want) > 0.9995, "{}", cosine(&got[..200], &want));
        let scale =
            got[..200].iter().zip(&want).map(|(g, w)| g * w).sum::<f64>() / want.iter().map(|w| w * w).sum::<f64>();
        assert!((scale - 1.0).abs() < 0.01, "{scale}");
        let real = real(&norm, &y);
        let dbeta: f64 = e.iter().zip(&real).step_by(CHANNELS).map(|(e, f)| if *f > 0.0 { *e } else { 0.0 }).sum();
        let got_dbeta = norm.beta.gradient[0] as f64 * 2f64.powi(norm.beta.gradient_exponent);
        assert!((dbeta - got_dbeta).abs() < 0.02 * dbeta.abs().max(1.0), "{dbeta} {got_dbeta}");
    }

    #[test]
    fn every_instruction_set_and_error_width_agrees() {
        let results: Vec<_> = Isa::available()
            .map(|isa| {
                [8, 16].map(|e2| {
                    let buffers = Buffers::default();
                    let step = step(&buffers, Bits { e2, ..Bits::default() }, isa);
                    let mut norm = norm();
                    let y = input();
                    let out = norm.forward(&step, &[&y]);
                    let back = norm.backward(&step, &[&y], &out, error(), &[true]);
                    (out, back, norm.gamma.gradient, norm.running)
                })
            })
            .collect();
        assert!(results.iter().all(|r| *r == results[0]));
    }

    #[test]
    fn constant_channels_huge_accumulators_and_single_positions_are_survived() {
        let buffers = Buffers::default();
        let step = step(&buffers, Bits::default(), Isa::Scalar);
        for y in [vec![7; 40], vec![1 << 30, -(1 << 30), i32::MAX, i32::MIN, 0], vec![0; 5]] {
            let shape = Shape::new(1, 1, y.len() / CHANNELS, CHANNELS);
            let mut norm = BatchNorm::new("bn", CHANNELS, true);
            let y = Tensor::i32(shape, -20, y.into());
            let out = norm.forward(&step, &[&y]);
            let e = Tensor::i8(shape, -7, vec![127; shape.len()].into());
            norm.backward(&step, &[&y], &out, e, &[true]);
            norm.folded(norm.running(), 16, 16);
        }
    }

    #[test]
    fn the_folded_map_is_the_normalisation_by_running_statistics() {
        let buffers = Buffers::default();
        let mut norm = norm();
        let y = input();
        norm.forward(&step(&buffers, Bits::default(), Isa::Scalar), &[&y]);
        let folded = norm.folded(norm.running(), 16, 16);
        let (y, want) = (values(&y), real(&norm, &values(&y)));
        for (i, want) in want.iter().enumerate() {
            let ChannelAffine { scale_q28, offset_q24 } = folded[i % CHANNELS];
            let got = y[i] * scale_q28 as f64 / 2f64.powi(28) + offset_q24 as f64 / 2f64.powi(24);
            assert!((got.max(0.0) - want).abs() < 1e-3 * want.abs().max(1.0), "{got} {want}");
        }
    }
}
