//! Data sets: finding images and labels, decoding them, varying them, and handing out batches.

mod ade20k;
pub mod augment;
pub mod check;
pub mod image;
pub mod loader;
pub mod palette;
mod plain;
pub mod scenes;
mod voc;

use crate::tensor::Shape;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The label of pixels that neither train nor count.
pub const IGNORE: u8 = 255;

/// How a folder is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `JPEGImages`, `SegmentationClass`, `ImageSets/Segmentation/*.txt`; 255 is ignored.
    Voc,
    /// `images/{training,validation}`, `annotations/{training,validation}`; 0 is ignored and classes count from 1.
    Ade20k,
    /// `images` and `masks` with equal names, and optional `train.txt` and `val.txt`; 255 is ignored.
    Plain,
}

impl Layout {
    /// Every layout with its marks: folders that exist where it is used.
    const ALL: [(Layout, [&'static str; 2]); 3] = [
        (Layout::Voc, ["JPEGImages", "SegmentationClass"]),
        (Layout::Ade20k, ["images/training", "annotations/training"]),
        (Layout::Plain, ["images", "masks"]),
    ];

    /// Turns a stored label value into a class: [`IGNORE`] stays what it is.
    pub fn class_of(self, value: u8) -> u8 {
        match self {
            Layout::Ade20k => value.wrapping_sub(1),
            Layout::Voc | Layout::Plain => value,
        }
    }

    /// The value under which a class is stored in this layout's masks.
    pub fn value_of(self, class: u8) -> u8 {
        match self {
            Layout::Ade20k => class.wrapping_add(1),
            Layout::Voc | Layout::Plain => class,
        }
    }
}

/// An image and its label map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The image's name without its ending.
    pub name: String,
    /// JPEG or PNG.
    pub image: PathBuf,
    /// Indexed or grey PNG.
    pub label: PathBuf,
}

/// What is wrong with data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The folder is not there.
    #[error("there is no folder {}", .0.display())]
    NoFolder(PathBuf),
    /// The folder has none of the known layouts.
    #[error(
        "{} has no known layout: expected JPEGImages/ with SegmentationClass/ (VOC), images/training/ with annotations/training/ (ADE20K), or images/ with masks/",
        .0.display()
    )]
    UnknownLayout(PathBuf),
    /// The split has no list.
    #[error("there is no split {split:?} in {}: {} is missing", dir.display(), missing.display())]
    NoSplit {
        /// The data set.
        dir: PathBuf,
        /// The split.
        split: String,
        /// What was looked for.
        missing: PathBuf,
    },
    /// The split is empty.
    #[error("the split {split:?} of {} has no images", dir.display())]
    Empty {
        /// The data set.
        dir: PathBuf,
        /// The split.
        split: String,
    },
    /// A listed file is not there.
    #[error("{} is missing; add it, or take {name} out of the split's list", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An image cannot be decoded.
    #[error("{}: not a readable image: {message}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        message: String,
    },
    /// A label map is not 8 bits of class index.
    #[error("{}: a label map must be a PNG with one 8-bit class index a pixel (indexed or grey), this one is {found}", path.display())]
    LabelFormat {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A label value that is no class.
    #[error("{}: label value {value} at column {x}, row {y} is out of range for {classes} classes; correct it, mark it as ignored, or raise network.classes", path.display())]
    LabelRange {
        /// The file.
        path: PathBuf,
        /// The value as stored.
        value: u8,
        /// Column.
        x: usize,
        /// Row.
        y: usize,
        /// Number of classes.
        classes: usize,
    },
    /// Image and label map differ in size.
    #[error("{} is {}×{} but its label map {} is {}×{}", image.display(), image_size[0], image_size[1], label.display(), label_size[0], label_size[1])]
    SizeMismatch {
        /// The image.
        image: PathBuf,
        /// Its width and height.
        image_size: [usize; 2],
        /// The label map.
        label: PathBuf,
        /// Its width and height.
        label_size: [usize; 2],
    },
}

/// A folder of images and labels.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The folder.
    pub dir: PathBuf,
    /// How it is laid out.
    pub layout: Layout,
}

impl Dataset {
    /// Opens a folder, finding out its layout unless told.
    ///
    /// # Errors
    /// When the folder does not exist or has no known layout.
    pub fn open(dir: &Path, layout: Option<Layout>) -> Result<Self, DataError> {
        if !dir.is_dir() {
            return Err(DataError::NoFolder(dir.to_owned()));
        }
        let marked = |marks: [&str; 2]| marks.iter().all(|mark| dir.join(mark).is_dir());
        let found = Layout::ALL.iter().find(|(known, marks)| layout.is_none_or(|l| l == *known) && marked(*marks));
        let (layout, _) = found.ok_or_else(|| DataError::UnknownLayout(dir.to_owned()))?;
        Ok(Dataset { dir: dir.to_owned(), layout: *layout })
    }

    /// The entries of a split, sorted as its list is. Their files exist.
    ///
    /// # Errors
    /// When the split does not exist or is empty, or a file of it is missing.
    pub fn split(&self, split: &str) -> Result<Vec<Entry>, DataError> {
        let entries = self.listed(split)?;
        if entries.is_empty() {
            return Err(DataError::Empty { dir: self.dir.clone(), split: split.to_owned() });
        }
        for entry in &entries {
            if let Some(path) = [&entry.image, &entry.label].into_iter().find(|path| !path.is_file()) {
                return Err(DataError::Missing { path: path.clone(), name: entry.name.clone() });
            }
        }
        Ok(entries)
    }

    /// The entries of a split as its list says, whether their files exist or not.
    ///
    /// # Errors
    /// When the split does not exist.
    pub fn listed(&self, split: &str) -> Result<Vec<Entry>, DataError> {
        match self.layout {
            Layout::Voc => voc::split(&self.dir, split),
            Layout::Ade20k => ade20k::split(&self.dir, split),
            Layout::Plain => plain::split(&self.dir, split),
        }
    }

    /// The names of the splits: the lists that there are, else `train` and `val`.
    ///
    /// # Errors
    /// When the folder of lists cannot be read.
    pub fn splits(&self) -> Result<Vec<String>, DataError> {
        let lists = match self.layout {
            Layout::Voc => file_stems(&self.dir.join("ImageSets/Segmentation"), &["txt"])?,
            Layout::Ade20k => Vec::new(),
            Layout::Plain => {
                let lists = file_stems(&self.dir, &["txt"])?;
                lists.into_iter().filter(|name| name != "classes").collect()
            }
        };
        Ok(if lists.is_empty() { vec!["train".into(), "val".into()] } else { lists })
    }

    /// Names of the label maps that lie in the folders of `entries` but have no image.
    ///
    /// # Errors
    /// When a folder cannot be read.
    fn labels_without_image(&self, entries: &[(String, Entry)]) -> Result<Vec<String>, DataError> {
        let parent = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
        let folders: std::collections::BTreeSet<(PathBuf, PathBuf)> =
            entries.iter().map(|(_, entry)| (parent(&entry.image), parent(&entry.label))).collect();
        let mut alone = Vec::new();
        for (images, labels) in folders.into_iter().filter(|(_, labels)| labels.is_dir()) {
            let names = file_stems(&labels, &["png"])?.into_iter();
            alone.extend(names.filter(|name| !named(name, &images, &labels).image.is_file()));
        }
        Ok(alone)
    }

    /// The number of names in `classes.txt`, or ADE20K's 150.
    pub fn listed_class_count(&self) -> Option<usize> {
        let listed = self.listed_classes().len();
        match self.layout {
            _ if listed > 0 => Some(listed),
            Layout::Ade20k => Some(150),
            Layout::Voc | Layout::Plain => None,
        }
    }

    /// What `classes.txt` lists, else the list that comes with ADE20K; empty without either.
    fn listed_classes(&self) -> Vec<palette::Class> {
        let text = std::fs::read_to_string(self.dir.join("classes.txt")).unwrap_or_default();
        let listed = palette::parse_classes(&text);
        if !listed.is_empty() || self.layout != Layout::Ade20k {
            return listed;
        }
        let names = ade20k::class_names(&self.dir).into_iter();
        names.map(|name| palette::Class { name, colour: None }).collect()
    }

    /// Class names: from `classes.txt` in the folder (one a line) or ADE20K's `objectInfo150.txt`, else VOC's where
    /// there are 21 classes in VOC's layout, else `class 0` and so on.
    pub fn class_names(&self, classes: usize) -> Vec<String> {
        let listed = self.listed_classes();
        if listed.len() == classes {
            return listed.into_iter().map(|class| class.name).collect();
        }
        match (self.layout, classes) {
            (Layout::Voc, 21) => voc::CLASSES.map(str::to_owned).to_vec(),
            _ => (0..classes).map(|class| format!("class {class}")).collect(),
        }
    }

    /// Colours of the classes: those in `classes.txt` (`name r g b`), and [`palette::voc`]'s for the others.
    pub fn palette(&self, classes: usize) -> Vec<[u8; 3]> {
        let listed = self.listed_classes();
        let mut colours = palette::voc(classes);
        if listed.len() == classes {
            colours.iter_mut().zip(listed).for_each(|(colour, class)| *colour = class.colour.unwrap_or(*colour));
        }
        colours
    }

    /// Reads an entry's image and label map, labels as classes.
    ///
    /// # Errors
    /// When a file cannot be read, the sizes differ, or a label is out of range.
    pub fn read(&self, entry: &Entry, classes: usize) -> Result<Sample, DataError> {
        let image = image::read_rgb(&entry.image)?;
        let mut label = image::read_label(&entry.label)?;
        let (image_size, label_size) = ([image.width, image.height], [label.width, label.height]);
        if image_size != label_size {
            let (image, label) = (entry.image.clone(), entry.label.clone());
            return Err(DataError::SizeMismatch { image, image_size, label, label_size });
        }
        for (index, value) in label.values.iter_mut().enumerate() {
            let class = self.layout.class_of(*value);
            if class != IGNORE && usize::from(class) >= classes {
                let (x, y) = (index % label.width, index / label.width);
                return Err(DataError::LabelRange { path: entry.label.clone(), value: *value, x, y, classes });
            }
            *value = class;
        }
        Ok(Sample { image, label })
    }
}

/// A decoded image with its classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The image.
    pub image: image::Rgb,
    /// One class a pixel, or [`IGNORE`].
    pub label: image::Label,
}

/// The images of a training step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `[N, H, W, 3]`, value − 128.
    pub images: Vec<i8>,
    /// `[N, H, W]`, a class or [`IGNORE`].
    pub labels: Vec<u8>,
    /// Images.
    pub count: usize,
    /// Rows and columns.
    pub size: [usize; 2],
}

impl Batch {
    /// `[N, H, W, 3]`.
    pub fn shape(&self) -> Shape {
        Shape::new(self.count, self.size[0], self.size[1], 3)
    }
}

/// The entries that a list of names stands for; the first ending that exists is the image's.
fn listed(list: &Path, images: &Path, labels: &Path, dir: &Path, split: &str) -> Result<Vec<Entry>, DataError> {
    let text = std::fs::read_to_string(list).map_err(|_| DataError::NoSplit {
        dir: dir.to_owned(),
        split: split.to_owned(),
        missing: list.to_owned(),
    })?;
    // Some lists have a second column.
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.map(|name| named(bare(name), images, labels)).collect())
}

/// The name in a list's first column: lists of VOC's augmented set go around with `/JPEGImages/NAME.jpg` there.
fn bare(name: &str) -> &str {
    let Some(path) = name.strip_prefix('/') else { return name };
    let file = path.rsplit('/').next().unwrap_or(path);
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

fn named(name: &str, images: &Path, labels: &Path) -> Entry {
    let endings = ["jpg", "jpeg", "png", "JPG", "PNG"];
    let with = |ending: &str| images.join(format!("{name}.{ending}"));
    let image = endings.iter().map(|ending| with(ending)).find(|path| path.is_file()).unwrap_or_else(|| with("jpg"));
    Entry { name: name.to_owned(), image, label: labels.join(format!("{name}.png")) }
}

/// The images of a folder by name, sorted.
fn image_names(dir: &Path) -> Result<Vec<String>, DataError> {
    file_stems(dir, &["jpg", "jpeg", "png"])
}

/// The names, without ending, of a folder's files with one of these endings, sorted.
fn file_stems(dir: &Path, endings: &[&str]) -> Result<Vec<String>, DataError> {
    let io = |source| DataError::Io { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for file in std::fs::read_dir(dir).map_err(io)? {
        let path = file.map_err(io)?.path();
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        if let (true, Some(stem)) = (endings.contains(&ending.as_str()), path.file_stem().and_then(|s| s.to_str())) {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}
