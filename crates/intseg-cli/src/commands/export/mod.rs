//! `intseg export`: a model for another runtime.

mod verify;

use crate::failure::Usage;
use crate::machine::Size;
use crate::output::{json, si, text};
use clap::{Args, ValueEnum};
use intseg::data::image::{read_rgb, write_atomically};
use intseg::export::c::{self, Strips};
use intseg::predictor::Predictor;
use intseg::threads::{Threads, isa_from_env};
use intseg_import::export::onnx::Precision;
use intseg_import::export::{onnx, safetensors};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments of `intseg export`.
#[derive(Args)]
#[command(after_help = "Examples:
  intseg export --format c --size 96x128 -o device best.iseg
  intseg export --format c --size 360x480 --ram 256K -o device best.iseg
  intseg export --format onnx --size 360x480 -o best.onnx --verify photos best.iseg
  intseg export --format safetensors -o best.safetensors best.iseg

ONNX models take `image`, u8 [1, H, W, 3] RGB, and give `class_map`, u8 [1, H, W].")]
pub struct Export {
    /// A model file
    model: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// Rows x columns of the images, for c and onnx
    #[arg(long, value_name = "HxW", required_if_eq_any([("format", "c"), ("format", "onnx")]))]
    size: Option<Size>,
    /// The folder or file to write
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// onnx: also run ONNX Runtime over this image or folder of images and compare with intseg's own class maps
    #[arg(long, value_name = "FILE|DIR")]
    verify: Option<PathBuf>,
    /// onnx: compute scales and biases as intseg does, in floats, for the same class maps at half to a third of the speed
    #[arg(long)]
    exact: bool,
    /// With --verify: the Python that has onnxruntime and numpy
    #[arg(long, value_name = "PATH", default_value = "python3", requires = "verify")]
    python: PathBuf,
    /// With --verify: the percentage of equal pixels below which the exit status is 1
    #[arg(long, value_name = "PERCENT", requires = "verify", value_parser = percentage, default_value_t = 99.9)]
    agreement: f64,
    /// c: run in horizontal strips of so many rows, with the same result
    #[arg(long, value_name = "ROWS", conflicts_with = "ram")]
    strip: Option<usize>,
    /// c: run in as few strips as fit into so much memory, such as 64K: arena and the strip of image and class map
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    ram: Option<usize>,
    /// c: also write input.rgb, this image at the models' size, and expected.raw, its class map (may be repeated)
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What to write.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A folder of C99 for devices without floating point, heap or operating system
    C,
    /// An ONNX file with quantised operators, for ONNX Runtime and compilers for accelerators
    Onnx,
    /// Dequantised weights, for PyTorch
    Safetensors,
}

/// A percentage.
fn percentage(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or_else(|| "it must be 0 to 100".into())
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

/// What is printed of a file.
#[derive(Serialize)]
struct Written<'a> {
    output: &'a Path,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<verify::Agreement>,
}

impl Written<'_> {
    fn print(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            return json(self);
        }
        text(format_args!("{}: {} bytes", self.output.display(), self.bytes))?;
        self.verified.as_ref().map_or(Ok(()), |found| text(found.describe()))
    }
}

impl Export {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        self.check()?;
        match self.format {
            Format::C => self.c(),
            Format::Onnx => self.onnx(),
            Format::Safetensors => self.safetensors(),
        }
    }

    /// Refuses flags that mean nothing for the format.
    fn check(&self) -> anyhow::Result<()> {
        let c = matches!(self.format, Format::C);
        let onnx = matches!(self.format, Format::Onnx);
        let flags = [
            ("--strip", self.strip.is_some() && !c, "c"),
            ("--ram", self.ram.is_some() && !c, "c"),
            ("--image", !self.image.is_empty() && !c, "c"),
            ("--verify", self.verify.is_some() && !onnx, "onnx"),
            ("--exact", self.exact && !onnx, "onnx"),
        ];
        if let Some((flag, _, format)) = flags.iter().find(|(_, wrong, _)| *wrong) {
            return Err(Usage(format!("{flag} is for --format {format}")).into());
        }
        match self.verify.as_ref().filter(|images| !images.exists()) {
            Some(images) => {
                Err(Usage(format!("--verify {}: there is no such file or folder", images.display())).into())
            }
            None => Ok(()),
        }
    }

    fn size(&self) -> anyhow::Result<[usize; 2]> {
        Ok(self.size.ok_or_else(|| Usage("--size HxW is missing".into()))?.0)
    }

    fn onnx(&self) -> anyhow::Result<()> {
        let size = self.size()?;
        let precision = if self.exact { Precision::Exact } else { Precision::Fused };
        let isa = isa_from_env()?;
        let predictor = Predictor::load(&self.model, intseg_kernels::Isa::Scalar)?;
        let file = onnx::export(&predictor.model(), predictor.metadata(), size, precision)?;
        write_atomically(&self.output, &file)?;
        let threads = Threads::new(0)?;
        let verified = match &self.verify {
            Some(images) => {
                let mut predictor = Predictor::load(&self.model, isa)?;
                Some(verify::verify(&self.python, &self.output, &mut predictor, &threads, size, images)?)
            }
            None => None,
        };
        let written = Written { output: &self.output, bytes: file.len(), verified };
        written.print(self.json)?;
        match written.verified.map(|found| found.share()) {
            Some(share) if 100.0 * share < self.agreement => Err(anyhow::anyhow!(
                "{:.4} % of the pixels are equal, less than {} %: {}",
                100.0 * share,
                self.agreement,
                if self.exact { "this ONNX Runtime computes something else" } else { "export with --exact" }
            )),
            _ => Ok(()),
        }
    }

    fn safetensors(&self) -> anyhow::Result<()> {
        let predictor = Predictor::load(&self.model, intseg_kernels::Isa::Scalar)?;
        let file = safetensors::export(&predictor.model(), predictor.metadata())?;
        write_atomically(&self.output, &file)?;
        Written { output: &self.output, bytes: file.len(), verified: None }.print(self.json)
    }

    fn c(&self) -> anyhow::Result<()> {
        let size = self.size()?;
        let mut predictor = Predictor::load(&self.model, intseg_kernels::Isa::Scalar)?;
        let strips = match (self.strip, self.ram) {
            (Some(rows), _) => Strips::Rows(rows),
            (None, Some(bytes)) => Strips::Memory(bytes),
            (None, None) => Strips::Whole,
        };
        let export = c::export(&predictor.model(), predictor.metadata(), size, strips)?;
        export.write(&self.output)?;
        self.samples(&mut predictor, size)?;
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
    fn samples(&self, predictor: &mut Predictor, size: [usize; 2]) -> anyhow::Result<()> {
        let threads = Threads::new(1)?;
        let (mut input, mut expected) = (Vec::new(), Vec::new());
        for path in &self.image {
            let image = c::resized(&read_rgb(path)?, size);
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
