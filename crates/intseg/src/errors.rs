//! The error at a node's output, from what its readers sent.

use crate::ops::Step;
use crate::ops::add::{aligned, aligned_to};
use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::{Role, accumulate, requantize};

/// What a node's readers have sent of its error.
#[derive(Default)]
pub(crate) struct Pending {
    /// Each reader's.
    pub parts: Vec<Tensor>,
    /// What several convolutions sent, added up: where among the parts, the largest magnitude that it can have, and the
    /// coarsest of their exponents.
    sum: Option<(usize, u64, i32)>,
}

impl Pending {
    /// Takes accumulators of magnitudes up to `bound`, and adds them to those that are there already if that is exact: of
    /// many readers' accumulators as many tensors would be held.
    pub fn add(&mut self, step: &Step, part: Tensor, bound: u64) {
        let Mantissas::I32(others) = &part.mantissas else { return self.parts.push(part) };
        if let Some((at, largest, coarsest)) = &mut self.sum {
            let there = &mut self.parts[*at];
            let unit = there.exponent.min(part.exponent);
            let [own, left] = [there.exponent, part.exponent].map(|exponent| (exponent - unit) as u32);
            let both = (own.max(left) < 31).then(|| (*largest << own) + (bound << left));
            if let (Mantissas::I32(sums), Some(both @ 0..=0x7FFF_FFFF)) = (&mut there.mantissas, both) {
                accumulate::add_shifted(step.kernels, sums, own, others, left);
                (there.exponent, *largest, *coarsest) = (unit, both, part.exponent.max(*coarsest));
                return step.buffers.give(part);
            }
            return self.parts.push(part);
        }
        self.sum = Some((self.parts.len(), bound, part.exponent));
        self.parts.push(part);
    }
}

/// Sums the parts of an error that a node's readers sent, and brings the sum to the bits that the node's output
/// wants: 16 for a residual stream or logits, E1 for an activation. A single part that fits passes as it is.
///
/// A stream's error is rounded once a block on its way to the image, so that 8 bits would leave little of it after many
/// blocks: `stream` says so of a sum that became an activation of 8 bits.
pub(crate) fn collect(step: &Step, output: &Tensor, stream: bool, Pending { mut parts, sum }: Pending) -> Tensor {
    let wide = stream || matches!(output.mantissas, Mantissas::I16(_));
    let bits = if wide { step.bits.residual } else { step.bits.e1 };
    let fits = |part: &Tensor| match part.mantissas {
        Mantissas::I8(_) => true,
        Mantissas::I16(_) => bits > 8 || matches!(output.mantissas, Mantissas::I32(_)),
        _ => false,
    };
    if parts.len() == 1 && fits(&parts[0]) {
        return parts.remove(0);
    }
    let views: Vec<&Tensor> = parts.iter().collect();
    // The unit is that of the parts before some were added up.
    let (contributions, finest) = match sum {
        Some((.., coarsest)) => aligned_to(&views, coarsest),
        None => aligned(&views),
    };
    let dither = step.dither(Role::ErrorAtActivation, 0);
    let len = output.shape.len();
    let error = if bits > 8 {
        let mut out = step.buffers.take_i16(len);
        let shift = requantize::collect_i16(step.kernels, &mut out, &contributions, bits, dither);
        Tensor::i16(output.shape, finest + shift as i32, out)
    } else {
        let mut out = step.buffers.take_i8(len);
        let shift = requantize::collect_i8(step.kernels, &mut out, &contributions, bits, dither);
        Tensor::i8(output.shape, finest + shift as i32, out)
    };
    parts.into_iter().for_each(|part| step.buffers.give(part));
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::ops::Bits;
    use crate::tensor::Shape;
    use intseg_kernels::{Context, Dither};

    #[test]
    fn accumulators_that_are_added_up_give_the_same_error() {
        let buffers = Buffers::default();
        let shape = Shape::new(1, 5, 40, 3);
        let bits = Dither::new(3, 0, 0, Role::Initial);
        for (exponents, wide, merged) in [
            ([-20, -20, -20, -20], false, 1),
            ([-18, -21, -20, -17], false, 1),
            ([-18, -21, -20, -17], true, 1),
            // Too far apart to be added in 32 bits; then so far that the finest loses bits.
            ([-12, -30, -13, -30], false, 3),
            ([0, -14, -40, -1], false, 3),
        ] {
            let part = |k: usize| {
                let values = (0..shape.len()).map(|i| bits.at(k * shape.len() + i) as i32 >> 13);
                Tensor::i32(shape, exponents[k], values.collect())
            };
            let step = Step {
                kernels: Context::reference(),
                bits: Bits::default(),
                buffers: &buffers,
                seed: 1,
                number: 2,
                node: 3,
            };
            let output = match wide {
                true => Tensor::i16(shape, 0, vec![0; shape.len()].into()),
                false => Tensor::u8(shape, 0, vec![0; shape.len()].into()),
            };
            let (mut apart, mut together) = (Pending::default(), Pending::default());
            // Something else is among them.
            for pending in [&mut apart, &mut together] {
                pending.parts.push(Tensor::i8(shape, -9, vec![-100; shape.len()].into()));
            }
            for k in 0..4 {
                apart.parts.push(part(k));
                together.add(&step, part(k), 1 << 18);
            }
            assert_eq!(together.parts.len(), 1 + merged, "{exponents:?}");
            assert_eq!(
                collect(&step, &output, false, together),
                collect(&step, &output, false, apart),
                "{exponents:?}"
            );
        }
    }
}
