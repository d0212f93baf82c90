//! Segmenting image files into mask files.

use crate::data::DataError;
use crate::data::image::{Rgb, overlay, read_rgb, write_label, write_rgb};
use crate::predictor::{Predictor, PredictorError};
use crate::threads::Threads;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;

/// Images that are decoded ahead of the computation.
const AHEAD: usize = 2;

/// What to segment and where to put it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Image files and folders of them.
    pub inputs: &'a [PathBuf],
    /// The folder for `<image name>.png`; it is created.
    pub output: &'a Path,
    /// Whether to write `<image name>_overlay.png` too.
    pub overlay: bool,
}

/// Why an image has no mask, or none has.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// An image cannot be read or a mask cannot be written.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot run on the image.
    #[error("{}: {source}", path.display())]
    Model {
        /// The image.
        path: PathBuf,
        /// Why.
        source: PredictorError,
    },
    /// An input that does not exist.
    #[error("there is no file or folder {}", .0.display())]
    NoInput(PathBuf),
    /// A folder without images.
    #[error("there is no JPEG or PNG image in {}", .0.display())]
    NoImages(PathBuf),
    /// Two images would have the same mask.
    #[error("{}: its mask would replace that of {}; rename one of them or use another output folder", path.display(), other.display())]
    SameName {
        /// The image.
        path: PathBuf,
        /// The image before it.
        other: PathBuf,
    },
    /// A mask would replace an input.
    #[error("{}: its mask would replace the image {}; use another output folder", path.display(), target.display())]
    ReplacesInput {
        /// The image.
        path: PathBuf,
        /// What would be written.
        target: PathBuf,
    },
}

/// Segments every image of a request in order. `observe` hears the number done, the number of all, and the mask's
/// path or why there is none: a bad image does not stop the others.
///
/// # Errors
/// When the output folder cannot be created or a folder has no images. Masks that were written stay.
pub fn predict(
    predictor: &mut Predictor,
    threads: &Threads,
    request: &Request,
    observe: &mut dyn FnMut(usize, usize, Result<PathBuf, PredictError>),
) -> Result<(), PredictError> {
    let images = images(request.inputs)?;
    let io = |source| DataError::Io { path: request.output.to_owned(), source };
    std::fs::create_dir_all(request.output).map_err(io)?;
    let mut targets = Targets::new(request, &images);
    let total = images.len();
    thread::scope(|scope| {
        let (send, receive) = sync_channel(AHEAD);
        scope.spawn(move || {
            for path in images {
                let image = if path.exists() {
                    read_rgb(&path).map_err(Into::into)
                } else {
                    Err(PredictError::NoInput(path.clone()))
                };
                if send.send((path, image)).is_err() {
                    return;
                }
            }
        });
        for (done, (path, image)) in receive.into_iter().enumerate() {
            let outcome = image.and_then(|image| {
                let target = targets.claim(&path)?;
                segment(predictor, threads, request, &path, &image, &target)?;
                Ok(target)
            });
            observe(done + 1, total, outcome);
        }
    });
    Ok(())
}

fn segment(
    predictor: &mut Predictor,
    threads: &Threads,
    request: &Request,
    path: &Path,
    image: &Rgb,
    target: &Path,
) -> Result<(), PredictError> {
    let model = |source| PredictError::Model { path: path.to_owned(), source };
    let mut label = predictor.predict(threads, image).map_err(model)?;
    if request.overlay {
        write_rgb(&overlay_path(request, path), &overlay(image, &label, &predictor.metadata().palette))?;
    }
    let offset = predictor.metadata().first_value;
    let mut palette = vec![[0; 3]; usize::from(offset)];
    palette.extend(&predictor.metadata().palette);
    label.values.iter_mut().for_each(|value| *value += offset);
    Ok(write_label(target, &label, &palette)?)
}

fn overlay_path(request: &Request, path: &Path) -> PathBuf {
    let mut name = stem(path);
    name.push("_overlay.png");
    request.output.join(name)
}

fn stem(path: &Path) -> OsString {
    path.file_stem().map_or_else(|| "image".into(), Into::into)
}

/// The files to write, each at most once and none of them an input.
struct Targets<'a> {
    request: &'a Request<'a>,
    inputs: Vec<PathBuf>,
    claimed: HashMap<PathBuf, PathBuf>,
}

impl<'a> Targets<'a> {
    fn new(request: &'a Request<'a>, images: &[PathBuf]) -> Self {
        let inputs = images.iter().filter_map(|path| path.canonicalize().ok()).collect();
        Targets { request, inputs, claimed: HashMap::new() }
    }

    /// The mask's path of an image.
    fn claim(&mut self, path: &Path) -> Result<PathBuf, PredictError> {
        let mut name = stem(path);
        name.push(".png");
        let mut targets = vec![self.request.output.join(name)];
        if self.request.overlay {
            targets.push(overlay_path(self.request, path));
        }
        for target in &targets {
            if target.canonicalize().is_ok_and(|target| self.inputs.contains(&target)) {
                return Err(PredictError::ReplacesInput { path: path.to_owned(), target: target.clone() });
            }
            if let Some(other) = self.claimed.insert(target.clone(), path.to_owned()) {
                return Err(PredictError::SameName { path: path.to_owned(), other });
            }
        }
        Ok(targets.swap_remove(0))
    }
}

/// The image files that inputs stand for: files as they are, folders' JPEG and PNG files sorted by name.
///
/// # Errors
/// When a folder cannot be read or has no images.
pub fn images(inputs: &[PathBuf]) -> Result<Vec<PathBuf>, PredictError> {
    let mut images = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            images.push(input.clone());
            continue;
        }
        let io = |source| DataError::Io { path: input.clone(), source };
        let mut found = Vec::new();
        for file in std::fs::read_dir(input).map_err(io)? {
            let path = file.map_err(io)?.path();
            let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
            if ["jpg", "jpeg", "png"].contains(&ending.as_str()) && path.is_file() {
                found.push(path);
            }
        }
        if found.is_empty() {
            return Err(PredictError::NoImages(input.clone()));
        }
        found.sort();
        images.extend(found);
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mask_replaces_an_image_or_another_mask() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a.png", "b.jpg", "c.txt"] {
            std::fs::write(path(name), b"x").unwrap();
        }
        let inputs = [dir.path().to_owned()];
        let found = images(&inputs).unwrap();
        assert_eq!(found, [path("a.png"), path("b.jpg")]);
        let request = Request { inputs: &inputs, output: dir.path(), overlay: false };
        let mut targets = Targets::new(&request, &found);
        assert!(matches!(targets.claim(&path("a.png")), Err(PredictError::ReplacesInput { .. })));
        assert_eq!(targets.claim(&path("b.jpg")).unwrap(), path("b.png"));
        assert!(matches!(targets.claim(Path::new("other/b.jpeg")), Err(PredictError::SameName { .. })));
    }

    #[test]
    fn a_folder_without_images_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(images(&[dir.path().to_owned()]), Err(PredictError::NoImages(_))));
    }
}
