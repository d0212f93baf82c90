//! The layout of PASCAL VOC 2012.

use super::{DataError, Entry, listed};
use std::path::Path;

/// The 21 classes of PASCAL VOC 2012.
pub const CLASSES: [&str; 21] = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

/// The names in `ImageSets/Segmentation/<split>.txt`. The augmented list `trainaug` has its labels in
/// `SegmentationClassAug` where that folder exists.
pub fn split(dir: &Path, split: &str) -> Result<Vec<Entry>, DataError> {
    let list = dir.join("ImageSets/Segmentation").join(format!("{split}.txt"));
    let augmented = dir.join("SegmentationClassAug");
    let labels = match split.contains("aug") && augmented.is_dir() {
        true => augmented,
        false => dir.join("SegmentationClass"),
    };
    listed(&list, &dir.join("JPEGImages"), &labels, dir, split)
}
