//! Giving a batch normalisation the γ and β under which it is a map that was deployed.
//!
//! A deployed map is `scale · y + offset`. Training normalises by a batch's statistics, so γ and β are `scale · σ` and
//! `offset + scale · μ` with the μ and σ that the layer has on the images that are trained on.

use super::batch_norm::{ChannelAffine, sigma};
use intseg_kernels::round::half_even_i64;

/// A map that γ and β are being found for.
pub struct Adoption {
    /// One a channel.
    map: Vec<ChannelAffine>,
    /// μ, then mean|d|, of each channel, summed over batches, in units of 2^-24.
    sums: Vec<i64>,
    batches: i64,
}

impl Adoption {
    /// Of a layer that no batch has been through yet.
    pub fn new(map: Vec<ChannelAffine>) -> Self {
        Adoption { sums: vec![0; 2 * map.len()], map, batches: 0 }
    }

    /// Adds a batch's statistics, in units of 2^-24, and returns their means over all batches.
    pub fn see(&mut self, batch: impl Iterator<Item = i64>) -> Vec<i64> {
        self.batches += 1;
        self.sums.iter_mut().zip(batch).for_each(|(sum, value)| *sum = sum.saturating_add(value));
        self.sums.iter().map(|sum| sum / self.batches).collect()
    }

    /// The masters of γ and β for these statistics.
    pub fn parameters(&self, statistics: &[i64]) -> (Vec<i32>, Vec<i32>) {
        let (means, deviations) = statistics.split_at(self.map.len());
        let each = self.map.iter().zip(means.iter().zip(deviations));
        each.map(|(channel, (&mean, &deviation))| parameters(channel, mean, sigma(deviation))).unzip()
    }
}

/// The masters of γ and β (units of 2^-20) of a channel with mean μ and deviation σ, in units of 2^-24.
pub fn parameters(channel: &ChannelAffine, mean: i64, sigma: i64) -> (i32, i32) {
    let product = |statistic: i64| i128::from(channel.scale_q28) * i128::from(statistic);
    // Of 2^-52 to 2^-20, and to 2^-24.
    let limit = 1i128 << 30;
    let gamma = ((product(sigma) + (1 << 31)) >> 32).clamp(-limit, limit);
    let beta = i128::from(channel.offset_q24) + (product(mean) >> 28);
    let beta = half_even_i64(beta.clamp(-(1 << 40), 1 << 40) as i64, 4);
    (gamma as i32, beta.clamp(-(1 << 30), 1 << 30) as i32)
}
