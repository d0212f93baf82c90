//! Weights of classes in the loss.

use crate::config::{ClassWeights, Config, fixed};
use crate::data::image::read_label;
use crate::data::{DataError, Dataset, Entry, IGNORE, Layout};

/// The class weights of the main and of the auxiliary loss, in 256ths; empty for all alike.
pub(crate) fn class_weights(config: &Config, dataset: &Dataset, entries: &[Entry]) -> Result<[Vec<u16>; 2], DataError> {
    let classes = config.network.classes;
    let weights = match &config.train.class_weights {
        ClassWeights::Uniform => vec![256; classes],
        ClassWeights::List(list) => list.iter().map(|&w| fixed(w, 256).min(65_535) as u16).collect(),
        ClassWeights::Balanced => balanced(&pixel_counts(dataset.layout, entries, classes)?),
    };
    let auxiliary = u64::from(config.auxiliary_q8());
    let second = weights.iter().map(|&w| (u64::from(w) * auxiliary / 256).min(65_535) as u16).collect();
    Ok([weights, second])
}

fn pixel_counts(layout: Layout, entries: &[Entry], classes: usize) -> Result<Vec<u64>, DataError> {
    let mut counts = vec![0u64; classes];
    for entry in entries {
        for value in read_label(&entry.label)?.values {
            let class = layout.class_of(value);
            if class != IGNORE && usize::from(class) < classes {
                counts[usize::from(class)] += 1;
            }
        }
    }
    Ok(counts)
}

/// `(median frequency / frequency)^½` in 256ths, at most 8; classes without pixels count as the median.
fn balanced(counts: &[u64]) -> Vec<u16> {
    let mut present: Vec<u64> = counts.iter().copied().filter(|&count| count > 0).collect();
    present.sort_unstable();
    let median = present.get(present.len() / 2).copied().unwrap_or(1);
    counts
        .iter()
        .map(|&count| {
            let ratio_q16 = (u128::from(median) << 16) / u128::from(if count == 0 { median } else { count });
            ratio_q16.isqrt().clamp(32, 8 * 256) as u16
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_weights_are_the_root_of_the_median_over_the_frequency() {
        assert_eq!(balanced(&[400, 100, 0, 25]), [128, 256, 256, 512]);
        assert_eq!(balanced(&[1, 1_000_000, 1_000_000]), [2048, 256, 256]);
    }
}
