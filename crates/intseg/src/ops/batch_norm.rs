//! Batch normalisation with the mean absolute deviation: no square, no root (DESIGN §3.4; L1 batch normalisation of
//! Wu et al., arXiv 1802.09769).
//!
//! Forward, per channel: `d = y − μ`, `σ = c · mean|d|` with `c = √(π/2)`, `x̂ = d / σ`, output `γ·x̂ + β`.
//! Backward, with `s = sign(d)`:
//! `∂y = γ/σ · [e − mean(e) − c·(s − mean(s))·mean(e·x̂)]`, `∂β = Σe`, `∂γ = Σ e·x̂`.

use super::{Operator, Step};
use crate::parameter::Parameter;
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::batch_norm::{self as kernels, Backward, Channel, Gradient, Rounding, Wide};
use intseg_kernels::round::{bit_length, half_even_i64, stochastic_i64};
use intseg_kernels::{Role, requantize};

/// √(π/2) in units of 2^-14: under it σ is the standard deviation of normally distributed values.
const C_Q14: i64 = 20_534;
/// Fractional bits of x̂.
const X_HAT_BITS: i32 = 11;
/// Fractional bits of γ·x̂ + β.
const Z_BITS: i32 = 23;
/// Fractional bits of running statistics.
pub const RUNNING_BITS: i32 = 24;
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
    saved: Option<Saved>,
}

/// What backward needs of forward.
struct Saved {
    x_hat: Vec<i16>,
    channels: Vec<Channel>,
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
            saved: None,
        }
    }

    /// Each channel's map at inference, from running statistics; before the first step, those of a mean of 0 and a
    /// deviation of 1.
    pub fn folded(&self, gamma_bits: u32, beta_bits: u32) -> Vec<ChannelAffine> {
        let count = self.gamma.master.len();
        (0..count)
            .map(|k| {
                let (mean, deviation) = match self.running[..] {
                    [] => (0, (1 << (RUNNING_BITS + 14)) / C_Q14),
                    _ => (self.running[k], self.running[count + k]),
                };
                let sigma_q24 = (deviation.max(1 << (RUNNING_BITS - 10)) * C_Q14) >> 14;
                let scale = (i128::from(self.gamma.in_use_affine(k, gamma_bits)) << 40) / i128::from(sigma_q24);
                let shift = (i128::from(mean) * scale) >> 28;
                let beta_q24 = i128::from(self.beta.in_use_affine(k, beta_bits)) << 12;
                ChannelAffine { scale_q28: scale as i64, offset_q24: (beta_q24 - shift) as i64 }
            })
            .collect()
    }

    fn statistics<T: Copy + Into<i32> + Sync>(&mut self, step: &Step, y: &[T], exponent: i32) -> Statistics {
        let (ctx, count) = (step.kernels, self.gamma.master.len());
        let n = (y.len() / count) as i64;
        let mut partial = step.buffers.take_i64(3 * count * ctx.pool.threads());
        kernels::statistics(ctx, &mut partial, y, count);
        let ends: Vec<(i32, i32)> =
            (0..count).map(|k| (partial[count + k] as i32, partial[2 * count + k] as i32)).collect();
        let means: Vec<i64> = partial[..count].iter().map(|&sum| divide(sum << 8, n)).collect();
        step.buffers.give_i64(partial);

        let narrow = ends.iter().all(|&(min, max)| min > -(1 << 22) && max < 1 << 22);
        let mut partial = step.buffers.take_i64(count * ctx.pool.threads());
        kernels::absolute_deviations(ctx, &mut partial, y, &means, narrow);
        let deviations: Vec<i64> = partial[..count].iter().map(|&sum| divide(sum, n)).collect();
        step.buffers.give_i64(partial);
        self.track(step, &means, &deviations, exponent);

        // A deviation below 2^-10 is taken as 2^-10.
        let guard = 1i64 << (-10 - exponent + 8).clamp(0, 40);
        let sigma_q8: Vec<i64> = deviations.iter().map(|&s| ((s.max(guard) * C_Q14) >> 14).max(1)).collect();
        let channels: Vec<Channel> = (0..count)
            .map(|k| {
                let (reciprocal, shift) = reciprocal(sigma_q8[k]);
                Channel {
                    mean_q8: means[k],
                    reciprocal,
                    shift,
                    gamma: self.gamma.in_use_affine(k, step.bits.gamma),
                    beta_q23: self.beta.in_use_affine(k, step.bits.beta) << (Z_BITS - 12),
                }
            })
            .collect();
        // γ·x̂ + β is monotone in y, so its extremes are those of y's.
        let coarse = 16 - step.bits.bn_x;
        let z = |channel: &Channel, y: i32| channel.scale(channel.normalize(y, coarse));
        let ends = channels.iter().zip(&ends).flat_map(|(c, &(a, b))| [z(c, a), z(c, b)]);
        let ends = ends.fold((i32::MAX, i32::MIN), |(low, high), z| (low.min(z), high.max(z)));
        Statistics { channels, sigma_q8, ends }
    }

    /// Moves the running statistics towards a batch's.
    fn track(&mut self, step: &Step, means: &[i64], deviations: &[i64], exponent: i32) {
        let dither = step.dither(Role::RunningStatistics, 0);
        let shift = exponent - 8 + RUNNING_BITS;
        let batch = means.iter().chain(deviations).enumerate().map(|(k, &value)| match shift {
            0.. => value << shift.min(30),
            _ => stochastic_i64(value, shift.unsigned_abs().min(62), dither.at(2 * k)),
        });
        if self.running.is_empty() {
            self.running = batch.collect();
            return;
        }
        for (k, (running, batch)) in self.running.iter_mut().zip(batch).enumerate() {
            *running += stochastic_i64(batch - *running, RUNNING_DECAY, dither.at(2 * k + 1));
        }
    }

    fn forward_typed<T: Copy + Into<i32> + Sync>(
        &mut self,
        step: &Step,
        y: &[T],
        shape: Shape,
        exponent: i32,
    ) -> Tensor {
        let Statistics { channels, sigma_q8, ends } = self.statistics(step, y, exponent);
        let mut x_hat = step.buffers.take_i16(y.len());
        let coarse = 16 - step.bits.bn_x;
        let ctx = step.kernels;
        let out = if self.relu {
            let shift = requantize::shift_for(ends.1.max(0) as u64, step.bits.a);
            let rounding = Rounding { coarse, shift, low: 0, high: (1 << step.bits.a) - 1 };
            let mut out = step.buffers.take_u8(y.len());
            kernels::normalize(ctx, &mut out, &mut x_hat, y, &channels, rounding, |v| v as u8);
            Tensor::u8(shape, shift as i32 - Z_BITS, out)
        } else {
            let largest = ends.0.unsigned_abs().max(ends.1.unsigned_abs());
            let shift = requantize::shift_for(largest.into(), step.bits.residual - 1);
            let limit = (1 << (step.bits.residual - 1)) - 1;
            let rounding = Rounding { coarse, shift, low: -limit, high: limit };
            let mut out = step.buffers.take_i16(y.len());
            kernels::normalize(ctx, &mut out, &mut x_hat, y, &channels, rounding, |v| v as i16);
            Tensor::i16(shape, shift as i32 - Z_BITS, out)
        };
        if let Some(old) = self.saved.replace(Saved { x_hat, channels, sigma_q8, exponent }) {
            step.buffers.give_i16(old.x_hat);
        }
        out
    }

    fn backward_typed<E: Copy + Into<i32> + Into<i16> + Sync, W: Wide + TryFrom<i64>>(
        &mut self,
        step: &Step,
        error: &[E],
        shape: Shape,
        exponent: i32,
    ) -> Tensor {
        let saved = self.saved.take().expect("forward runs before backward");
        let (ctx, count) = (step.kernels, saved.channels.len());
        let mut partial = step.buffers.take_i64(3 * count * ctx.pool.threads());
        kernels::error_statistics(ctx, &mut partial, error, &saved.x_hat, &saved.channels, self.relu);
        for (parameter, sums, fraction) in
            [(&mut self.beta, &partial[..count], 0), (&mut self.gamma, &partial[count..2 * count], X_HAT_BITS)]
        {
            parameter.gradient = step.buffers.take_i64(count);
            parameter.gradient.copy_from_slice(sums);
            parameter.gradient_exponent = exponent - fraction;
        }
        let (gradients, scale_exponent) = coefficients::<W>(&saved, &partial, error.len() / count);
        step.buffers.give_i64(partial);
        let pass =
            Backward { error, x_hat: &saved.x_hat, channels: &saved.channels, gradients: &gradients, relu: self.relu };
        let bits = step.bits.e2;
        let shift = requantize::shift_for(pass.max_magnitude(ctx), bits - 1);
        let exponent = exponent + scale_exponent + shift as i32;
        let dither = step.dither(Role::ErrorAtConvolution, 0);
        let limit = (1 << (bits - 1)) - 1;
        let out = if bits > 8 {
            let mut out = step.buffers.take_i16(error.len());
            pass.write(ctx, &mut out, shift, limit, dither, |v| v as i16);
            Tensor::i16(shape, exponent, out)
        } else {
            let mut out = step.buffers.take_i8(error.len());
            pass.write(ctx, &mut out, shift, limit, dither, |v| v as i8);
            Tensor::i8(shape, exponent, out)
        };
        step.buffers.give_i16(saved.x_hat);
        out
    }
}

/// The coefficients of each channel's gradient, and the exponent that multiplying by them adds.
///
/// Their size is chosen so that a gradient fits the integers that it is computed in: 20 bits for the largest scale in
/// 32 bits, 40 in 64.
fn coefficients<W: Wide + TryFrom<i64>>(saved: &Saved, sums: &[i64], n: usize) -> (Vec<Gradient<W>>, i32) {
    let count = saved.channels.len();
    let bits = if size_of::<W>() == 4 { 20 } else { 40 };
    let largest_sigma = saved.sigma_q8.iter().fold(1, |max: i64, &s| max.max(s));
    // γ · 2^l / σ: 30 bits remain even of the largest σ's reciprocal.
    let l = 30 + bit_length(largest_sigma as u64) as i32;
    let scales: Vec<i128> = saved
        .channels
        .iter()
        .zip(&saved.sigma_q8)
        .map(|(channel, &sigma)| (i128::from(channel.gamma) << l) / i128::from(sigma))
        .collect();
    let largest = scales.iter().fold(0, |max: u128, s| max.max(s.unsigned_abs()));
    let drop = (128 - largest.leading_zeros() as i32 - bits).max(0);
    let n = n as i128;
    let limit = 1i128 << (bits + 9 + if bits == 40 { 9 } else { 0 });
    let gradients = (0..count)
        .map(|k| {
            let scale = scales[k] >> drop;
            let [e, product, sign] = [0, 1, 2].map(|part| i128::from(sums[part * count + k]));
            // c · mean(e·x̂), and mean(e) − mean(s) times that, over common denominators.
            let slope = scale * product * i128::from(C_Q14) / (n << (14 + X_HAT_BITS));
            let offset = scale * e / n - slope * sign / n;
            let narrow =
                |v: i128| W::try_from(v.clamp(-limit, limit) as i64).unwrap_or_else(|_| unreachable!("clamped to fit"));
            Gradient { scale: narrow(scale), offset: narrow(offset), slope: narrow(slope) }
        })
        .collect();
    // γ has 12 fractional bits, σ 8 below the input's exponent.
    (gradients, drop - l - 12 + 8 - saved.exponent)
}

/// `a / b` to nearest.
fn divide(a: i64, b: i64) -> i64 {
    intseg_kernels::round::divide_half_even(a, b)
}

/// `(2^31 / m, shift)` for `sigma = m · 2^k` with a 16-bit `m`, such that `d · reciprocal >> shift` is `d / sigma`
/// with 11 fractional bits.
fn reciprocal(sigma: i64) -> (i64, u32) {
    let k = bit_length(sigma as u64) as i32 - 16;
    let mantissa = if k >= 0 { half_even_i64(sigma, k as u32) } else { sigma << -k };
    ((1 << 31) / mantissa, (31 + k - X_HAT_BITS).clamp(0, 46) as u32)
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
            Mantissas::I8(e) => self.backward_typed::<i8, i32>(step, e, error.shape, error.exponent),
            Mantissas::I16(e) => self.backward_typed::<i16, i64>(step, e, error.shape, error.exponent),
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
            norm.gamma.master[k] = (1 << 20) + (k as i32) * 100_000 - 150_000;
            norm.beta.master[k] = (k as i32 - 2) * 200_000;
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
            let y = Tensor::i32(shape, -20, y);
            let out = norm.forward(&step, &[&y]);
            let e = Tensor::i8(shape, -7, vec![127; shape.len()]);
            norm.backward(&step, &[&y], &out, e, &[true]);
            norm.folded(16, 16);
        }
    }

    #[test]
    fn the_folded_map_is_the_normalisation_by_running_statistics() {
        let buffers = Buffers::default();
        let mut norm = norm();
        let y = input();
        norm.forward(&step(&buffers, Bits::default(), Isa::Scalar), &[&y]);
        let folded = norm.folded(16, 16);
        let (y, want) = (values(&y), real(&norm, &values(&y)));
        for (i, want) in want.iter().enumerate() {
            let ChannelAffine { scale_q28, offset_q24 } = folded[i % CHANNELS];
            let got = y[i] * scale_q28 as f64 / 2f64.powi(28) + offset_q24 as f64 / 2f64.powi(24);
            assert!((got.max(0.0) - want).abs() < 1e-3 * want.abs().max(1.0), "{got} {want}");
        }
    }
}
