//! What a deployed model freezes besides its weights: the statistics of batch normalisation, and the exponents of
//! activations.
//!
//! Training knows both from its last steps: running averages, and the largest exponents. [`Frozen::measure`] measures them
//! for the weights as they are instead, over batches of their own, which changes nothing that training goes on from.

use crate::data::Batch;
use crate::network::Network;
use crate::ops::Bits;
use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::Context;
use intseg_kernels::round::divide_half_even;
use std::collections::BTreeMap;

/// Statistics and exponents, one of each a node of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// μ, then mean|d|, of a normalisation's channels, in units of 2^-24; empty elsewhere, and before the first step.
    pub statistics: Vec<Vec<i64>>,
    /// The exponent of a node's output; `None` where no step has been through.
    pub exponents: Vec<Option<i32>>,
}

impl Frozen {
    /// What training's last steps say: running statistics, and the largest exponents.
    pub fn running(network: &Network) -> Self {
        Frozen {
            statistics: network.statistics().map(<[i64]>::to_vec).collect(),
            exponents: network.ranges.iter().map(|range| range.frozen()).collect(),
        }
    }

    /// What batches say of the weights as they are: statistics are the means of the batches', 8-bit activations' exponents
    /// those of the smallest squared error, 16-bit ones' the largest. The network is left as it was.
    ///
    /// # Errors
    /// The first batch's that cannot be had.
    pub fn measure<E>(
        network: &mut Network,
        kernels: Context,
        bits: Bits,
        batches: impl Iterator<Item = Result<Batch, E>>,
    ) -> Result<Self, E> {
        let kept: Vec<Vec<i64>> = network.state().map(std::mem::take).collect();
        let measured = Survey::over(network, kernels, bits, batches);
        network.state().zip(kept).for_each(|(state, kept)| *state = kept);
        let Survey { batches, sums, outputs } = measured?;
        let mean = |sum: i64| divide_half_even(sum, batches.max(1));
        Ok(Frozen {
            statistics: sums.into_iter().map(|sums| sums.into_iter().map(mean).collect()).collect(),
            exponents: outputs.iter().map(|values| values.exponent(bits.a)).collect(),
        })
    }
}

/// Sums over batches.
struct Survey {
    batches: i64,
    /// Statistics of each node.
    sums: Vec<Vec<i64>>,
    outputs: Vec<Values>,
}

impl Survey {
    fn over<E>(
        network: &mut Network,
        kernels: Context,
        bits: Bits,
        batches: impl Iterator<Item = Result<Batch, E>>,
    ) -> Result<Self, E> {
        let nodes = network.graph.nodes.len();
        let mut survey = Survey { batches: 0, sums: vec![Vec::new(); nodes], outputs: vec![Values::default(); nodes] };
        for batch in batches {
            // Without running statistics, a batch's are taken as they are.
            network.state().for_each(Vec::clear);
            network.survey(&batch?, kernels, bits, &mut |node, output| survey.outputs[node].count(output));
            for (sums, statistics) in survey.sums.iter_mut().zip(network.statistics()) {
                sums.resize(statistics.len(), 0);
                sums.iter_mut().zip(statistics).for_each(|(sum, value)| *sum += value);
            }
            survey.batches += 1;
        }
        Ok(survey)
    }
}

/// How often a node's output had which values.
#[derive(Clone, Default)]
struct Values {
    /// The largest exponent of any batch.
    largest: Option<i32>,
    /// Counts of 8-bit mantissas, for each exponent that occurred.
    counts: BTreeMap<i32, Vec<u64>>,
}

impl Values {
    /// Exponents below the largest that are considered.
    const FINER: i32 = 4;

    fn count(&mut self, output: &Tensor) {
        self.largest = self.largest.max(Some(output.exponent));
        let Mantissas::U8(values) = &output.mantissas else { return };
        let counts = self.counts.entry(output.exponent).or_insert_with(|| vec![0; 256]);
        values.iter().for_each(|&value| counts[usize::from(value)] += 1);
    }

    /// The exponent with the smallest squared error: of what lies beyond the largest mantissa of `bits` bits, and of
    /// rounding to its steps. Where there are no 8-bit mantissas, the largest.
    fn exponent(&self, bits: u32) -> Option<i32> {
        let largest = self.largest?;
        let finest = largest - Self::FINER;
        match self.counts.is_empty() {
            true => Some(largest),
            false => (finest..=largest).rev().min_by_key(|&exponent| self.squared_error(exponent, finest, bits)),
        }
    }

    /// Twelve times the squared error, in units of `2^(2·finest)`.
    fn squared_error(&self, exponent: i32, finest: i32, bits: u32) -> u128 {
        let end = ((1u128 << bits) - 1) << (exponent - finest);
        // Where a batch is finer still, none of its values is beyond the end.
        let errors = self.counts.iter().filter(|(at, _)| **at >= finest).flat_map(|(&at, counts)| {
            let values = counts.iter().zip(0u128..).map(move |(&count, mantissa)| (count, mantissa << (at - finest)));
            values.map(|(count, value)| u128::from(count) * value.saturating_sub(end).pow(2))
        });
        let rounded =
            self.counts.values().flat_map(|counts| &counts[1..]).map(|&count| u128::from(count)).sum::<u128>();
        12 * errors.sum::<u128>() + (rounded << (2 * (exponent - finest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    fn exponent(values: Vec<u8>) -> Option<i32> {
        let mut counted = Values::default();
        counted.count(&Tensor::u8(Shape::new(1, 1, 1, values.len()), -5, values.into()));
        counted.exponent(8)
    }

    #[test]
    fn one_outlier_among_many_values_does_not_decide_the_exponent() {
        // 100 000 values gain (4^0 − 4^-1)/12 each, one loses (255 − 127.5)².
        let many: Vec<u8> = (0..300_000).map(|i| 1 + (i % 100) as u8).collect();
        assert_eq!(exponent(many.iter().copied().chain([255]).collect()), Some(-6));
        assert_eq!(exponent(many[..10_000].iter().copied().chain([255]).collect()), Some(-5));
    }

    #[test]
    fn zeros_need_no_finer_steps() {
        assert_eq!(exponent([vec![0; 1_000_000], vec![200; 10]].concat()), Some(-5));
    }
}
