//! `intseg export`: a model for another runtime.

use crate::machine::Size;
use crate::output::{json, si, text};
use clap::{Args, ValueEnum};
use intseg::data::image::{read_rgb, write_atomically};
use intseg::export::c::{self, Strips};
use intseg::predictor::Predictor;
use intseg::threads::Threads;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments of `intseg export`.
#[derive(Args)]
#[command(after_help = "Examples:
  intseg export --format c --size 96x128 -o device best.iseg
  intseg export --format c --size 360x480 --ram 256K -o device best.iseg")]
pub struct Export {
    /// A model file
    model: PathBuf,
    /// What to write: c, a folder of C99 for devices without floating point, heap or operating system
    #[arg(long, value_enum)]
    format: Format,
    /// Rows x columns of the images
    #[arg(long, value_name = "HxW")]
    size: Size,
    /// The folder to write
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Run in horizontal strips of so many rows, with the same result
    #[arg(long, value_name = "ROWS", conflicts_with = "ram")]
    strip: Option<usize>,
    /// Run in as few strips as fit into so much memory, such as 64K: arena and the strip of image and class map
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    ram: Option<usize>,
    /// Also write input.rgb, this image at the models' size, and expected.raw, its class map (may be repeated)
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What to write.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A self-contained folder of C99
    C,
}

/// A number of bytes with an optional K or M.
fn bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix(['M', 'm']).map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    let bytes = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| format!("{text:?} is no number of bytes: write 65536 or 64K"))
}

/// What is printed.
#[derive(Serialize)]
struct Summary<'a> {
    output: &'a Path,
    constant_bytes: usize,
    arena_bytes: usize,
    map_bytes: usize,
    map_bytes_lower_bound: usize,
    strips: usize,
    strip_image_rows: usize,
    strip_class_rows: usize,
    macs: u64,
}

impl Export {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        match self.format {
            Format::C => self.c(),
        }
    }

    fn c(&self) -> anyhow::Result<()> {
        let mut predictor = Predictor::load(&self.model, intseg_kernels::Isa::Scalar)?;
        let strips = match (self.strip, self.ram) {
            (Some(rows), _) => Strips::Rows(rows),
            (None, Some(bytes)) => Strips::Memory(bytes),
            (None, None) => Strips::Whole,
        };
        let export = c::export(&predictor.model(), predictor.metadata(), self.size.0, strips)?;
        export.write(&self.output)?;
        self.samples(&mut predictor)?;
        let layout = &export.layout;
        let summary = Summary {
            output: &self.output,
            constant_bytes: export.constant_bytes,
            arena_bytes: layout.arena(),
            map_bytes: layout.map_bytes,
            map_bytes_lower_bound: layout.lower_bound,
            strips: layout.classes.len(),
            strip_image_rows: layout.most_rows(0),
            strip_class_rows: layout.most_class_rows(),
            macs: export.macs,
        };
        if self.json { json(&summary) } else { text(summary.describe()) }
    }
}

impl Export {
    /// Writes images as the example reads them, and their class maps for comparison.
    fn samples(&self, predictor: &mut Predictor) -> anyhow::Result<()> {
        let threads = Threads::new(1)?;
        let (mut input, mut expected) = (Vec::new(), Vec::new());
        for path in &self.image {
            let image = c::resized(&read_rgb(path)?, self.size.0);
            expected.extend(predictor.predict(&threads, &image)?.values);
            input.extend(image.data);
        }
        if !self.image.is_empty() {
            write_atomically(&self.output.join("input.rgb"), &input)?;
            write_atomically(&self.output.join("expected.raw"), &expected)?;
        }
        Ok(())
    }
}

impl Summary<'_> {
    fn describe(&self) -> String {
        let strips = match self.strips {
            1 => "the whole image at once".to_owned(),
            count => format!(
                "{count} strips of {} rows, each from up to {} rows of the image",
                self.strip_class_rows, self.strip_image_rows
            ),
        };
        format!(
            "{}: {} bytes of constants, {} bytes of arena, {}MAC an image\n\
             maps take {} bytes, and at least {} live at once; {strips}",
            self.output.display(),
            self.constant_bytes,
            self.arena_bytes,
            si(self.macs),
            self.map_bytes,
            self.map_bytes_lower_bound
        )
    }
}
