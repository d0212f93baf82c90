//! What can be wrong with a file of weights or a model.

use std::path::PathBuf;

/// A file that was refused, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The operating system refused.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// Neither name nor content is of a known format.
    #[error("is no .safetensors, .npz, .pth, .pt or .onnx file; save the weights as one of those")]
    Format,
    /// A part does not hold what its format promises.
    #[error("{part} is damaged: {message}; fetch or save the file again")]
    Damaged {
        /// Which part of the file.
        part: String,
        /// What is wrong with it.
        message: String,
    },
    /// The file asks for more than any network here needs.
    #[error("{what}: {claimed}, where at most {limit} are read")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much the file claims.
        claimed: u128,
        /// How much is read.
        limit: u64,
    },
    /// A tensor cannot be used.
    #[error("tensor {name} {fault}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        fault: TensorFault,
    },
    /// A pickle names a function or class that no state dict needs. Nothing was called.
    #[error(
        "its pickle asks for {name} (byte {offset}), which no state dict needs and which is not called; \
         if you trust the file, load it with PyTorch and torch.save(model.state_dict(), …) or write .safetensors"
    )]
    Global {
        /// Module and name.
        name: String,
        /// Where in the pickle.
        offset: usize,
    },
    /// A pickle uses an instruction that no state dict needs.
    #[error(
        "its pickle uses the instruction {opcode:#04x} (byte {offset}), which no state dict needs; \
         load it with PyTorch and torch.save(model.state_dict(), …) or write .safetensors"
    )]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Where in the pickle.
        offset: usize,
    },
    /// A pickle that `torch.save` did not write, or a very old version of it.
    #[error(
        "is a pickle of another kind than torch.save's, which is not read; \
         load it with the program that wrote it and torch.save(model.state_dict(), …)"
    )]
    Legacy,
    /// A checkpoint without a state dict.
    #[error("holds no state dict ({found}); torch.save(model.state_dict(), …) writes one")]
    NoStateDict {
        /// What is there instead.
        found: String,
    },
    /// A file without float tensors.
    #[error("holds no float tensor")]
    NoTensors,
    /// A model's operator that is not understood.
    #[error("{operator} {node}: {reason}")]
    Operator {
        /// The operator.
        operator: String,
        /// The node's name.
        node: String,
        /// What about it is not understood.
        reason: String,
    },
    /// A model whose inputs, outputs or version are not understood.
    #[error("{0}")]
    Model(String),
}

/// Why a tensor was refused.
#[derive(Debug, thiserror::Error)]
pub enum TensorFault {
    /// Its sizes multiply beyond what a computer addresses, or are too many.
    #[error("has an impossible shape {0:?}")]
    Shape(Vec<u64>),
    /// Its values do not fill its shape.
    #[error("has {found} bytes of values where its shape {shape:?} takes {wanted}")]
    Length {
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes that the shape takes.
        wanted: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// A view that leaves its storage, or is larger than it.
    #[error("is a view of {wanted} values in a storage of {found}")]
    View {
        /// The values that it reaches over.
        wanted: u64,
        /// Values in the storage.
        found: u64,
    },
    /// Elements that are no floats of a known kind.
    #[error("has elements of type {0}, which are not read; save it as 32-bit floats")]
    Elements(String),
    /// A value that is not a number, or infinite in 32 bits.
    #[error("holds {value} at index {index}; no network computes with that")]
    NotFinite {
        /// The first such value's index, rows first.
        index: usize,
        /// The value.
        value: f64,
    },
    /// Two tensors have the name.
    #[error("occurs twice")]
    Repeated,
    /// The values are in another file.
    #[error("keeps its values in another file; save the model as one file (external_data=False)")]
    External,
    /// Something else has the name.
    #[error("is no tensor")]
    NoTensor,
}

impl Problem {
    /// A damaged part.
    pub(crate) fn damaged(part: impl Into<String>, message: impl ToString) -> Problem {
        Problem::Damaged { part: part.into(), message: message.to_string() }
    }

    /// A tensor that cannot be used.
    pub(crate) fn tensor(name: impl Into<String>, fault: TensorFault) -> Problem {
        Problem::Tensor { name: name.into(), fault }
    }
}
