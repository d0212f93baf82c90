//! The operators of training networks, one file each: shape rule, forward, backward and tests side by side.

pub mod add;
pub mod adoption;
pub mod average_pool;
pub mod batch_norm;
pub mod concat;
pub mod conv;
pub mod dropout;
pub mod max_pool;
pub mod resize;

use crate::buffers::Buffers;
use crate::parameter::{Parameter, Rate};
use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::{Context, Dither, Role, requantize};

/// The bit widths of the method (Yang et al. 2021; `[bits]` of a configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bits {
    /// Weights as convolutions use them, 2..=8.
    pub w: u32,
    /// Activations after ReLU, 2..=8.
    pub a: u32,
    /// Weight gradients, 2..=8, or 32 to hand the exact sums to the optimiser.
    pub g: u32,
    /// Errors at activations (E1), 2..=16.
    pub e1: u32,
    /// Errors that enter convolution backward (E2), 2..=16; above 8 they run as two exact 8-bit passes.
    pub e2: u32,
    /// Normalised activations x̂ of batch normalisation, 8..=16.
    pub bn_x: u32,
    /// The scale γ of batch normalisation as used, 4..=16.
    pub gamma: u32,
    /// The offset β of batch normalisation as used, 4..=16.
    pub beta: u32,
    /// Master weights, 9..=24: the 8 bits in use plus fractional bits.
    pub update: u32,
    /// Residual streams and logits, 8..=16.
    pub residual: u32,
    /// Whether E2 is 8 bits and a flag that says which 8 of 15 they are (WAGEUBN, arXiv 1909.02384, §III): below 2^7 a
    /// magnitude is kept exactly, above in multiples of 2^7. Needs `e2 = 15`.
    pub e2_flag: bool,
    /// How the bits that are dropped in the backward pass are rounded.
    pub rounding: Rounding,
}

/// How dropped bits are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Up with a probability equal to the dropped fraction: the mean is exact.
    #[default]
    Stochastic,
    /// To nearest, halves up: for comparison; small errors and updates are lost.
    Nearest,
}

/// The rounding of each role; stochastic unless an experiment asks otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rounding {
    /// Errors at activations.
    pub e1: Mode,
    /// Errors that enter convolution backward.
    pub e2: Mode,
    /// Weight gradients, where `bits.g` drops any.
    pub g: Mode,
    /// Momenta and masters.
    pub update: Mode,
}

impl Default for Bits {
    fn default() -> Self {
        Bits {
            w: 8,
            a: 8,
            g: 32,
            e1: 8,
            e2: 8,
            bn_x: 16,
            gamma: 16,
            beta: 16,
            update: 24,
            residual: 16,
            e2_flag: false,
            rounding: Rounding::default(),
        }
    }
}

/// What an operator needs to know of the training step that it is part of.
pub struct Step<'a> {
    /// Instruction set and threads.
    pub kernels: Context<'a>,
    /// Bit widths.
    pub bits: Bits,
    /// Free buffers.
    pub buffers: &'a Buffers,
    /// The run's seed.
    pub seed: u64,
    /// The step's number, from 0.
    pub number: u64,
    /// Index of the operator's node in the graph.
    pub node: u32,
}

impl Step<'_> {
    /// The random bits of this operator in this step for one role. An operator with several tensors of the same role
    /// tells them apart by `part`, below 16.
    pub fn dither(&self, role: Role, part: u32) -> Dither {
        let Rounding { e1, e2, update, .. } = self.bits.rounding;
        let mode = match role {
            Role::ErrorAtActivation => e1,
            Role::ErrorAtConvolution => e2,
            Role::Update => update,
            _ => Mode::Stochastic,
        };
        self.rounded(role, part, mode)
    }

    /// As [`Step::dither`], with a rounding of its own.
    pub fn rounded(&self, role: Role, part: u32, mode: Mode) -> Dither {
        let dither = Dither::new(self.seed, self.number, self.node << 4 | part, role);
        match mode {
            Mode::Stochastic => dither,
            Mode::Nearest => dither.to_nearest(),
        }
    }
}

/// An operator of a training graph. It owns its parameters and what it saves between forward and backward.
pub trait Operator: Send {
    /// Computes the output from the inputs and keeps what `backward` will need beyond inputs and output.
    fn forward(&mut self, step: &Step, inputs: &[&Tensor]) -> Tensor;

    /// Takes the error at the output (8 or 16 bits, already summed over all consumers), keeps what [`Operator::learn`]
    /// will need of it, and returns for each input its part of the error, or `None` where that input needs none
    /// (`wanted[i]` is false) or gets none. Parts may be accumulators: whoever collects them requantises.
    /// The error's buffer goes back to [`Step::buffers`].
    fn backward(
        &mut self,
        step: &Step,
        inputs: &[&Tensor],
        output: &Tensor,
        error: Tensor,
        wanted: &[bool],
    ) -> Vec<Option<Tensor>>;

    /// Updates the parameters from what `backward` left.
    fn learn(&mut self, step: &Step, _inputs: &[&Tensor], rate: &Rate) {
        for (part, parameter) in self.parameters().into_iter().enumerate() {
            parameter.update(step, part as u32, rate);
        }
    }

    /// The parameters, in a fixed order.
    fn parameters(&mut self) -> Vec<&mut Parameter> {
        Vec::new()
    }

    /// State besides the parameters that a checkpoint must hold (running statistics), in a fixed order.
    fn state(&mut self) -> Vec<&mut Vec<i64>> {
        Vec::new()
    }
}

/// Zeroes the error where ReLU put out 0; passes it as it is where there was no ReLU.
fn mask_by_relu(step: &Step, relu: bool, output: &Tensor, mut error: Tensor) -> Tensor {
    if relu && let Mantissas::U8(out) = &output.mantissas {
        match &mut error.mantissas {
            Mantissas::I8(e) => requantize::mask(step.kernels, e, out),
            Mantissas::I16(e) => requantize::mask(step.kernels, e, out),
            other => unreachable!("errors have 8 or 16 bits, not {other:?}"),
        }
    }
    error
}
