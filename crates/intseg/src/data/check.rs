//! Looks through a data set and says what training would meet.

use super::image::{read_label, read_rgb};
use super::{DataError, Dataset, Entry, IGNORE, Layout};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// The pixels of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassPixels {
    /// The class.
    pub class: usize,
    /// Its name.
    pub name: String,
    /// Pixels labelled with it.
    pub pixels: u64,
    /// Images in which it occurs.
    pub images: usize,
}

/// A split and its number of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitCount {
    /// The split's name.
    pub split: String,
    /// Images that it lists.
    pub images: usize,
    /// Those of them that can be trained on or evaluated.
    pub usable: usize,
}

/// What a data set holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The folder.
    pub dir: String,
    /// Its layout.
    pub layout: Layout,
    /// Its splits.
    pub splits: Vec<SplitCount>,
    /// Distinct images over all splits.
    pub images: usize,
    /// Distinct sizes, width and height, with their number of images.
    pub sizes: Vec<([usize; 2], usize)>,
    /// Number of classes: as given, as `classes.txt` lists, or as found.
    pub class_count: usize,
    /// Classes that occur.
    pub classes: Vec<ClassPixels>,
    /// Pixels that neither train nor count.
    pub ignored_pixels: u64,
    /// Names listed whose image is missing.
    pub missing_images: Vec<String>,
    /// Names listed whose label map is missing.
    pub images_without_label: Vec<String>,
    /// Label maps to which there is no image.
    pub labels_without_image: Vec<String>,
    /// Files that cannot be read or decoded, sizes that differ, labels out of range: one message each.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether training on every split would meet no error.
    pub fn is_clean(&self) -> bool {
        self.missing_images.is_empty() && self.images_without_label.is_empty() && self.problems.is_empty()
    }
}

/// What was found in one entry.
enum Found {
    Usable { size: [usize; 2], histogram: Box<[u64; 256]> },
    MissingImage,
    MissingLabel,
    Problem(String),
}

/// Reads every image and label map of every split, going on after bad ones.
///
/// `classes` is the number of classes to hold the labels against; without it that of `classes.txt`, the layout's own,
/// or the largest class found.
///
/// # Errors
/// When the folder does not exist, has no known layout, or no split.
pub fn check(dir: &Path, layout: Option<Layout>, classes: Option<usize>) -> Result<Report, DataError> {
    let dataset = Dataset::open(dir, layout)?;
    let mut splits = Vec::new();
    let mut distinct: BTreeMap<String, Entry> = BTreeMap::new();
    for split in dataset.splits()? {
        let entries = dataset.listed(&split)?;
        distinct.extend(entries.iter().map(|entry| (entry.label.display().to_string(), entry.clone())));
        splits.push((split, entries));
    }
    let expected = classes.or_else(|| dataset.listed_class_count());
    let entries: Vec<(String, Entry)> = distinct.into_iter().collect();
    let found: Vec<Found> = entries.par_iter().map(|(_, entry)| look(&dataset, entry, expected)).collect();
    let usable: BTreeSet<&str> = (entries.iter().zip(&found))
        .filter(|(_, found)| matches!(found, Found::Usable { .. }))
        .map(|((key, _), _)| key.as_str())
        .collect();
    let counts = splits.iter().map(|(split, entries)| SplitCount {
        split: split.clone(),
        images: entries.len(),
        usable: entries.iter().filter(|e| usable.contains(e.label.display().to_string().as_str())).count(),
    });
    let mut report = Report {
        dir: dir.display().to_string(),
        layout: dataset.layout,
        splits: counts.collect(),
        images: entries.len(),
        sizes: Vec::new(),
        class_count: 0,
        classes: Vec::new(),
        ignored_pixels: 0,
        missing_images: Vec::new(),
        images_without_label: Vec::new(),
        labels_without_image: dataset.labels_without_image(&entries)?,
        problems: Vec::new(),
    };
    gather(&mut report, &dataset, expected, entries.iter().map(|(_, entry)| entry).zip(found));
    Ok(report)
}

fn look(dataset: &Dataset, entry: &Entry, classes: Option<usize>) -> Found {
    if !entry.image.is_file() {
        return Found::MissingImage;
    }
    if !entry.label.is_file() {
        return Found::MissingLabel;
    }
    // With 255 classes every label passes: what is found then decides the number.
    let sample = match classes {
        Some(classes) => dataset.read(entry, classes).map(|sample| (sample.image, sample.label)),
        None => read_rgb(&entry.image).and_then(|image| Ok((image, read_label(&entry.label)?))),
    };
    let (image, label) = match sample {
        Ok(sample) => sample,
        Err(error) => return Found::Problem(error.to_string()),
    };
    let (image_size, label_size) = ([image.width, image.height], [label.width, label.height]);
    if image_size != label_size {
        let (image, label) = (entry.image.clone(), entry.label.clone());
        return Found::Problem(DataError::SizeMismatch { image, image_size, label, label_size }.to_string());
    }
    let mut histogram = Box::new([0; 256]);
    // With a number of classes the values have become classes already.
    let class = |value: u8| if classes.is_some() { value } else { dataset.layout.class_of(value) };
    label.values.iter().for_each(|&value| histogram[usize::from(class(value))] += 1);
    Found::Usable { size: image_size, histogram }
}

fn gather<'a>(
    report: &mut Report,
    dataset: &Dataset,
    expected: Option<usize>,
    found: impl Iterator<Item = (&'a Entry, Found)>,
) {
    let (mut sizes, mut pixels, mut images) = (BTreeMap::new(), [0u64; 256], [0usize; 256]);
    for (entry, found) in found {
        match found {
            Found::MissingImage => report.missing_images.push(entry.name.clone()),
            Found::MissingLabel => report.images_without_label.push(entry.name.clone()),
            Found::Problem(message) => report.problems.push(message),
            Found::Usable { size, histogram } => {
                *sizes.entry(size).or_insert(0) += 1;
                for (class, &count) in histogram.iter().enumerate() {
                    pixels[class] += count;
                    images[class] += usize::from(count > 0);
                }
            }
        }
    }
    let ignore = usize::from(IGNORE);
    let largest = (0..ignore).rev().find(|&class| pixels[class] > 0).map_or(0, |class| class + 1);
    report.class_count = expected.unwrap_or(largest);
    let names = dataset.class_names(report.class_count);
    let present = (0..ignore).filter(|&class| pixels[class] > 0);
    let named = present.map(|class| ClassPixels {
        class,
        name: names.get(class).cloned().unwrap_or_else(|| format!("class {class}")),
        pixels: pixels[class],
        images: images[class],
    });
    report.classes = named.collect();
    report.ignored_pixels = pixels[ignore];
    report.sizes = sizes.into_iter().collect();
}

/// At most this many names or messages are shown to a person; the JSON has all.
const SHOWN: usize = 10;

fn list(f: &mut fmt::Formatter, title: &str, lines: &[String]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "{title}: {}", lines.len())?;
    lines.iter().take(SHOWN).try_for_each(|line| writeln!(f, "  {line}"))?;
    match lines.len() > SHOWN {
        true => writeln!(f, "  … and {} more (--json lists all)", lines.len() - SHOWN),
        false => Ok(()),
    }
}

impl fmt::Display for Report {
    #[allow(clippy::float_arithmetic, reason = "shares for a person to read")]
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}: layout {:?}, {} images", self.dir, self.layout, self.images)?;
        for SplitCount { split, images, usable } in &self.splits {
            writeln!(f, "  split {split}: {images} images, {usable} usable")?;
        }
        let (smallest, largest) = (self.sizes.iter().min_by_key(area), self.sizes.iter().max_by_key(area));
        if let (Some(([w0, h0], _)), Some(([w1, h1], _))) = (smallest, largest) {
            writeln!(f, "sizes: {} distinct, from {w0}×{h0} to {w1}×{h1}", self.sizes.len())?;
        }
        let total = self.classes.iter().map(|class| class.pixels).sum::<u64>() + self.ignored_pixels;
        let percent = |pixels: u64| 100.0 * pixels as f64 / total.max(1) as f64;
        writeln!(f, "classes: {} of {} occur", self.classes.len(), self.class_count)?;
        for ClassPixels { class, name, pixels, images } in &self.classes {
            writeln!(f, "  {class:>3} {name:<20} {:>6.2} % of the pixels, in {images} images", percent(*pixels))?;
        }
        writeln!(f, "  ignored                  {:>6.2} %", percent(self.ignored_pixels))?;
        list(f, "images missing", &self.missing_images)?;
        list(f, "images without a label map", &self.images_without_label)?;
        list(f, "label maps without an image", &self.labels_without_image)?;
        list(f, "problems", &self.problems)?;
        match self.is_clean() {
            true => writeln!(f, "ready to train with network.classes = {}", self.class_count),
            false => writeln!(f, "not ready: correct the files above, or take their names out of the splits' lists"),
        }
    }
}

fn area(entry: &&([usize; 2], usize)) -> usize {
    entry.0[0] * entry.0[1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::{Label, Rgb, write_label, write_rgb};
    use crate::data::scenes;

    #[test]
    fn generated_scenes_are_clean_and_every_fault_is_found() {
        let dir = tempfile::tempdir().unwrap();
        scenes::write(dir.path(), [6, 3], [32, 48], 1).unwrap();
        let report = check(dir.path(), None, None).unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.images, report.class_count, report.sizes.clone()), (9, 6, vec![([48, 32], 9)]));
        assert_eq!(report.splits.iter().map(|s| s.usable).sum::<usize>(), 9);

        let image = |name: &str| dir.path().join("JPEGImages").join(format!("scene_0000{name}.png"));
        let label = |name: &str| dir.path().join("SegmentationClass").join(format!("scene_0000{name}.png"));
        std::fs::remove_file(label("0")).unwrap();
        std::fs::remove_file(image("1")).unwrap();
        std::fs::write(image("2"), b"no image").unwrap();
        write_rgb(&label("3"), &Rgb { width: 1, height: 1, data: vec![0; 3] }).unwrap();
        write_label(&label("4"), &Label { width: 48, height: 32, values: vec![9; 48 * 32] }, &[]).unwrap();
        write_label(&label("5"), &Label { width: 8, height: 8, values: vec![0; 64] }, &[]).unwrap();
        let report = check(dir.path(), None, None).unwrap();
        assert_eq!(report.images_without_label, ["scene_00000"]);
        assert_eq!(report.missing_images, ["scene_00001"]);
        assert_eq!(report.labels_without_image, ["scene_00001"]);
        assert_eq!(report.problems.len(), 4, "{report}");
        assert!(report.problems.iter().any(|p| p.contains("label value 9")), "{report}");
        assert!(report.to_string().contains("not ready"));
    }
}
