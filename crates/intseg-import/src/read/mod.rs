//! Reading weights: one file for each format, and everything in it doubted.
//!
//! Whatever a file claims, memory grows only with what it really holds ([`limits`]); a pickle is read and never
//! executed (`torch.rs`); values must be finite. A file that does not hold to its format is refused with what is wrong
//! where, and nothing of it is used.

mod archive;
mod error;
mod legacy;
pub mod limits;
mod npy;
mod onnx;
mod pickle;
mod safetensors;
mod torch;
pub(crate) mod values;

pub use error::{Problem, ReadError, TensorFault};

use crate::tensor::{FloatTensor, Weights};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

/// A format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.safetensors`
    Safetensors,
    /// `.npz`, NumPy's archive of arrays
    Npz,
    /// `.pth` or `.pt`, what `torch.save` writes
    Torch,
    /// `.onnx`, of which the initialisers are taken
    Onnx,
}

/// What a pickle begins with, and so a file of PyTorch before 1.6.
const PICKLE: &[u8] = b"\x80";

impl Format {
    /// The format that a file's name says.
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "safetensors" => Some(Format::Safetensors),
            "npz" => Some(Format::Npz),
            "pth" | "pt" => Some(Format::Torch),
            "onnx" => Some(Format::Onnx),
            _ => None,
        }
    }
}

/// Reads a checkpoint's float tensors by name. The prefix `module.` that data-parallel training puts before every
/// name is removed, and tensors of integers, such as a count of batches, are left out.
///
/// # Errors
/// When the file cannot be read, does not hold to its format, or has a tensor that cannot be used.
pub fn read_weights(path: &Path) -> Result<Weights, ReadError> {
    read_path(path).map_err(|problem| ReadError { path: path.to_owned(), problem })
}

/// Reads a checkpoint that is in memory; see [`read_weights`].
///
/// # Errors
/// When it does not hold to its format, or has a tensor that cannot be used.
pub fn parse_weights(format: Format, bytes: &[u8]) -> Result<Weights, Problem> {
    let weights = match format {
        Format::Safetensors => safetensors::read(bytes),
        Format::Onnx => onnx::read(bytes.to_vec()),
        Format::Torch if bytes.starts_with(PICKLE) => legacy::read(bytes),
        Format::Npz | Format::Torch => read_archive(format, Cursor::new(bytes), bytes.len() as u64),
    };
    finish(weights?)
}

fn read_path(path: &Path) -> Result<Weights, Problem> {
    let format = Format::of(path).ok_or(Problem::Format)?;
    let weights = match format {
        Format::Safetensors => safetensors::read(&limits::read_file(path)?),
        Format::Onnx => onnx::read(limits::read_file(path)?),
        Format::Npz | Format::Torch => {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            let mut reader = BufReader::new(file);
            match format == Format::Torch && reader.fill_buf()?.starts_with(PICKLE) {
                true => legacy::read(&limits::read_file(path)?),
                false => read_archive(format, reader, length),
            }
        }
    };
    finish(weights?)
}

fn read_archive(format: Format, reader: impl Read + Seek, length: u64) -> Result<Weights, Problem> {
    let archive = archive::Archive::open(reader, length)?;
    if format == Format::Torch { torch::read(archive) } else { npy::read(archive) }
}

/// Removes the prefix of data-parallel training, which is on all names or on none.
fn finish(weights: Weights) -> Result<Weights, Problem> {
    const PREFIX: &str = "module.";
    if weights.is_empty() {
        return Err(Problem::NoTensors);
    }
    if !weights.keys().all(|name| name.starts_with(PREFIX)) {
        return Ok(weights);
    }
    Ok(weights.into_iter().map(|(name, tensor)| (name[PREFIX.len()..].to_owned(), tensor)).collect())
}

/// Adds a tensor whose name must be new.
fn insert(weights: &mut Weights, name: &str, tensor: FloatTensor) -> Result<(), Problem> {
    match weights.insert(name.to_owned(), tensor) {
        None => Ok(()),
        Some(_) => Err(Problem::tensor(name, TensorFault::Repeated)),
    }
}
