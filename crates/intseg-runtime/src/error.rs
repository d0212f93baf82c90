//! What is wrong with a model file.

use crate::VERSION;
use core::fmt;

/// Why a file is no usable model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelError {
    /// It does not begin as a model file does.
    NotAModel,
    /// It was written by a newer version.
    Newer {
        /// The file's version.
        version: u32,
    },
    /// It uses a rounding that this reader does not implement.
    Rounding {
        /// The rounding's number.
        rounding: u32,
    },
    /// It ends too early or too late.
    Length {
        /// What its header says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// Its content is not what was written.
    Checksum,
    /// A node cannot be.
    Node {
        /// The node's number.
        index: u32,
        /// What is wrong.
        problem: &'static str,
    },
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelError::NotAModel => write!(f, "this is no intseg model file"),
            ModelError::Newer { version } => {
                write!(f, "the model file has version {version}, this program reads up to {VERSION}: update intseg")
            }
            ModelError::Rounding { rounding } => {
                write!(
                    f,
                    "the model file uses rounding {rounding}, which this program does not implement: update intseg"
                )
            }
            ModelError::Length { expected, found } => {
                write!(f, "the model file should have {expected} bytes and has {found}: it is truncated, copy it again")
            }
            ModelError::Checksum => write!(f, "the model file's checksum is wrong: it is damaged, copy it again"),
            ModelError::Node { index, problem } => write!(f, "the model file's node {index} is invalid: {problem}"),
        }
    }
}

impl core::error::Error for ModelError {}
