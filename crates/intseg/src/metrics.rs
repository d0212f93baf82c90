//! Scores from one confusion matrix of integers.
//!
//! Floats appear in [`Report`] alone, which a person reads.

use crate::data::IGNORE;
use serde::{Deserialize, Serialize};

/// How classes that occur neither in truth nor in prediction enter a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Absent {
    /// They are left out.
    #[default]
    Skip,
    /// They count as 0.
    Zero,
}

/// Counts of pixels by true and predicted class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfusionMatrix {
    /// Number of classes.
    pub classes: usize,
    /// `counts[truth · classes + prediction]`.
    pub counts: Vec<u64>,
}

/// A prediction that is no class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("predicted class {prediction} or labelled class {label} is not below {classes}")]
pub struct OutOfRange {
    /// The predicted class.
    pub prediction: u8,
    /// The label.
    pub label: u8,
    /// The number of classes.
    pub classes: usize,
}

/// Scores, each 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Mean intersection over union.
    pub miou: f64,
    /// Share of pixels that are right.
    pub pixel_accuracy: f64,
    /// Mean over the classes of the share of a class's pixels that are right.
    pub mean_accuracy: f64,
    /// Mean intersection over union, weighted by the classes' pixels.
    pub fw_iou: f64,
    /// Intersection over union of each class; absent where the class occurs nowhere.
    pub iou: Vec<Option<f64>>,
}

impl ConfusionMatrix {
    /// No pixels yet.
    pub fn new(classes: usize) -> Self {
        ConfusionMatrix { classes, counts: vec![0; classes * classes] }
    }

    /// Counts an image; pixels labelled [`IGNORE`] are dropped.
    ///
    /// # Errors
    /// When a prediction or a label is no class.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add(&mut self, predictions: &[u8], labels: &[u8]) -> Result<(), OutOfRange> {
        assert_eq!(predictions.len(), labels.len(), "one prediction a label");
        for (&prediction, &label) in predictions.iter().zip(labels) {
            if label == IGNORE {
                continue;
            }
            if usize::from(prediction.max(label)) >= self.classes {
                return Err(OutOfRange { prediction, label, classes: self.classes });
            }
            self.counts[usize::from(label) * self.classes + usize::from(prediction)] += 1;
        }
        Ok(())
    }

    /// Adds another matrix of the same classes.
    pub fn merge(&mut self, other: &ConfusionMatrix) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
    }

    /// Right pixels, labelled pixels and predicted pixels of a class.
    fn class(&self, class: usize) -> [u64; 3] {
        let n = self.classes;
        let row = self.counts[class * n..][..n].iter().sum();
        let column = self.counts.iter().skip(class).step_by(n).sum();
        [self.counts[class * n + class], row, column]
    }

    /// The scores. With no pixels at all they are 0.
    #[allow(clippy::float_arithmetic, reason = "ratios for a person to read")]
    pub fn report(&self, absent: Absent) -> Report {
        let ratio = |a: u64, b: u64| (b > 0).then(|| a as f64 / b as f64);
        let classes: Vec<[u64; 3]> = (0..self.classes).map(|class| self.class(class)).collect();
        let iou: Vec<Option<f64>> = classes.iter().map(|[hit, row, column]| ratio(*hit, row + column - hit)).collect();
        let accuracy = classes.iter().map(|[hit, row, _]| ratio(*hit, *row));
        let mean = |values: &mut dyn Iterator<Item = Option<f64>>| {
            let present: Vec<f64> = match absent {
                Absent::Skip => values.flatten().collect(),
                Absent::Zero => values.map(|v| v.unwrap_or(0.0)).collect(),
            };
            if present.is_empty() { 0.0 } else { present.iter().sum::<f64>() / present.len() as f64 }
        };
        let total: u64 = self.counts.iter().sum();
        let hits: u64 = classes.iter().map(|[hit, ..]| hit).sum();
        let weighted = classes.iter().zip(&iou).map(|([_, row, _], iou)| *row as f64 * iou.unwrap_or(0.0)).sum::<f64>();
        Report {
            miou: mean(&mut iou.iter().copied()),
            pixel_accuracy: ratio(hits, total).unwrap_or(0.0),
            mean_accuracy: mean(&mut accuracy.into_iter()),
            fw_iou: if total > 0 { weighted / total as f64 } else { 0.0 },
            iou,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_a_matrix_counted_by_hand() {
        let mut matrix = ConfusionMatrix::new(4);
        matrix.add(&[0, 0, 1, 1, 2, 0, 3], &[0, 0, 1, 0, 1, 255, 255]).unwrap();
        let report = matrix.report(Absent::Skip);
        // Class 0: 2 of 3, class 1: 1 of 3, class 2: 0 of 1, class 3 nowhere.
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(report.miou, (2.0 / 3.0 + 1.0 / 3.0) / 3.0);
        close(matrix.report(Absent::Zero).miou, 0.25);
        close(report.pixel_accuracy, 0.6);
        close(report.mean_accuracy, (2.0 / 3.0 + 0.5) / 2.0);
        close(report.fw_iou, (3.0 * 2.0 / 3.0 + 2.0 / 3.0) / 5.0);
        assert_eq!(report.iou[3], None);
    }

    #[test]
    fn matrices_of_parts_merge_to_that_of_the_whole_and_survive_json_as_integers() {
        let (predictions, labels) = ([0, 1, 2, 2, 1, 0, 0], [0, 1, 1, 2, 255, 2, 0]);
        let counted = |range: std::ops::Range<usize>| {
            let mut matrix = ConfusionMatrix::new(3);
            matrix.add(&predictions[range.clone()], &labels[range]).unwrap();
            matrix
        };
        let (whole, mut merged) = (counted(0..7), counted(0..3));
        merged.merge(&counted(3..7));
        assert_eq!(merged, whole);
        let json = serde_json::to_string(&whole).unwrap();
        assert_eq!(json, r#"{"classes":3,"counts":[2,0,0,0,1,1,1,0,1]}"#);
        assert_eq!(serde_json::from_str::<ConfusionMatrix>(&json).unwrap(), whole);
    }

    #[test]
    fn a_prediction_that_is_no_class_is_an_error() {
        assert!(ConfusionMatrix::new(3).add(&[3], &[0]).is_err());
        assert_eq!(ConfusionMatrix::new(3).report(Absent::Skip).miou, 0.0);
    }
}
