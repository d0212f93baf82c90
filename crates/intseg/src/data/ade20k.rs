//! The layout of the ADE20K scene-parsing benchmark.

use super::{DataError, Entry, image_names, named};
use std::path::Path;

/// All images of `images/training` or `images/validation`; `train` and `val` name them too.
pub fn split(dir: &Path, split: &str) -> Result<Vec<Entry>, DataError> {
    let folder = match split {
        "train" => "training",
        "val" => "validation",
        other => other,
    };
    let (images, labels) = (dir.join("images").join(folder), dir.join("annotations").join(folder));
    if !images.is_dir() {
        return Err(DataError::NoSplit { dir: dir.to_owned(), split: split.to_owned(), missing: images });
    }
    Ok(image_names(&images)?.iter().map(|name| named(name, &images, &labels)).collect())
}
