//! A model as a folder of C99 that depends on nothing.
//!
//! ```text
//! Model ─ Layout::new(size, strips) ─► rows and places ─ model.rs ─► model.h, model.c
//!                                                      └ operators.rs ─► intseg_nn.h, intseg_nn.c
//! ```
//!
//! The operators are the C files in `templates/`, of which only those are written that the model needs. All give the
//! bits that the executor gives, whole or in strips.

mod layout;
mod model;
mod operators;

pub use layout::{Layout, Strips};

use crate::data::image::Rgb;
use crate::fold::Metadata;
use intseg_kernels::Context;
use intseg_kernels::resize::{Resize, Tap, axis};
use intseg_runtime::Model;
use std::path::{Path, PathBuf};

/// Why a model cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The model cannot run at the size.
    #[error("the model cannot run on an image of {}×{}: {problem}", size[1], size[0])]
    Size {
        /// Rows and columns.
        size: [usize; 2],
        /// Why.
        problem: String,
    },
    /// Strips without rows.
    #[error("strips need at least one row")]
    NoRows,
    /// Nothing is small enough.
    #[error("no number of strips fits into {bytes} bytes: {least} are the least; use a smaller image or model")]
    Memory {
        /// What there is.
        bytes: usize,
        /// What is needed.
        least: usize,
    },
    /// A layer cannot be written as asked.
    #[error("layer {name}: {problem}")]
    Layer {
        /// Its name.
        name: String,
        /// Why.
        problem: &'static str,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The files of an exported model.
#[derive(Clone, Debug)]
pub struct Export {
    /// Names and contents.
    pub files: Vec<(&'static str, String)>,
    /// Where everything lies in the arena.
    pub layout: Layout,
    /// Bytes of weights and constants.
    pub constant_bytes: usize,
    /// Products of a run.
    pub macs: u64,
}

/// Writes a model for images of `size` as C.
///
/// # Errors
/// When the model cannot run at that size or be cut as asked, or a layer's constants leave 64 bits.
pub fn export(model: &Model, metadata: &Metadata, size: [usize; 2], strips: Strips) -> Result<Export, ExportError> {
    let layout = Layout::new(model, size, strips)?;
    let mut operators = operators::Operators::default();
    let (source, constant_bytes) = model::source(model, metadata, &layout, &mut operators)?;
    let files = vec![
        ("model.h", model::header(metadata, &layout)),
        ("model.c", source),
        ("intseg_nn.h", operators.header()),
        ("intseg_nn.c", operators.source()),
        ("main.c", include_str!("templates/main.c").to_owned()),
        ("Makefile", include_str!("templates/Makefile.txt").to_owned()),
    ];
    Ok(Export { files, constant_bytes, macs: layout.macs(model), layout })
}

/// An image at another size, as exact bilinear interpolation gives it.
pub fn resized(image: &Rgb, [height, width]: [usize; 2]) -> Rgb {
    let mut taps = vec![Tap::default(); height + width];
    let (rows, columns) = taps.split_at_mut(height);
    let denominators = [axis(rows, image.height, false), axis(columns, image.width, false)];
    let resize = Resize { input: [image.height, image.width], channels: 3, rows, columns, denominators };
    let mut data = vec![0; 3 * height * width];
    resize.forward(Context::reference(), &mut data, &image.data);
    Rgb { width, height, data }
}

impl Export {
    /// Writes the files into a folder, which is made if it is missing.
    ///
    /// # Errors
    /// [`ExportError::Write`].
    pub fn write(&self, dir: &Path) -> Result<(), ExportError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ExportError::Write { path, source }
        };
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
        for (name, content) in &self.files {
            let path = dir.join(name);
            std::fs::write(&path, content).map_err(failed(&path))?;
        }
        Ok(())
    }
}
