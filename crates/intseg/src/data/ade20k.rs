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

/// The names in `objectInfo150.txt`, which comes with the images: a table whose last column names the class, with
/// synonyms after commas. Empty where the file is absent or another table.
pub fn class_names(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("objectInfo150.txt")).unwrap_or_default();
    let rows = text.lines().skip(1).filter(|line| !line.trim().is_empty());
    let name = |row: &str| {
        row.rsplit('\t').next().and_then(|names| names.split([',', ';']).next()).map(str::trim).map(str::to_owned)
    };
    rows.filter_map(name).collect()
}
