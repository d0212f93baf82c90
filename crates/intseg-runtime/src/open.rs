//! Reading a model file for one instruction set: weights go from the file into their packed form piece by piece, so that
//! the two never exist whole at the same time.

use crate::engine::resize;
use crate::error::ModelError;
use crate::model::{CHECKSUM, Conv, HEADER, Header, Model, Op, WEIGHT_RANGE};
use crate::plan::{Held, packing};
use core::fmt;
use intseg_kernels::bytes::as_i8;
use intseg_kernels::{Context, Convolution, Isa, Line};
use std::io::{self, Read};
use std::vec::Vec;

/// Bytes of weights that are read at once, at least one tap.
const PIECE: usize = 1 << 20;

/// Why a model cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// It cannot be read, or there is no memory for it.
    Read(io::Error),
    /// It is no usable model.
    Model(ModelError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Read(error) => error.fmt(f),
            OpenError::Model(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for OpenError {}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        OpenError::Read(error)
    }
}

impl From<ModelError> for OpenError {
    fn from(error: ModelError) -> Self {
        OpenError::Model(error)
    }
}

/// Reads a model file of `len` bytes, checks all of it, and packs its weights, of each convolution at most `limit` bytes.
/// Returns what of the file is still needed, its beginning or all of it, and the packed weights of its convolutions one
/// behind the other.
pub(crate) fn open(read: impl Read, len: u64, ctx: Context, limit: usize) -> Result<(Vec<u8>, Vec<Line>), OpenError> {
    let mut source = Source { read, hasher: blake3::Hasher::new(), at: 0 };
    let mut file = Vec::new();
    source.append(&mut file, usize::try_from(len).unwrap_or(HEADER).min(HEADER))?;
    let content = Header::parse(&file, len)?.content;
    let packed = load(&mut source, &mut file, len, ctx, limit);
    if let Err(OpenError::Read(_)) = packed {
        return packed.map(|packed| (file, packed));
    }
    // Before what else is wrong: a damaged file's errors say nothing.
    source.finish(content)?;
    Ok((file, packed?))
}

fn load(
    source: &mut Source<impl Read>,
    file: &mut Vec<u8>,
    len: u64,
    ctx: Context,
    limit: usize,
) -> Result<Vec<Line>, OpenError> {
    let Header { content, metadata, graph } = Header::parse(file, len)?;
    let graph_end = HEADER.saturating_add(metadata).saturating_add(graph);
    source.append(file, graph_end.min(content))?;
    let held = held(&Model::parse_beginning(file, len, false)?, graph_end, ctx.isa).unwrap_or(content);
    source.append(file, held)?;
    let model = Model::parse_beginning(file, len, true)?;
    let total = convolutions(&model).map(|(.., convolution)| Held::new(&convolution, ctx.isa, limit).lines).sum();
    let mut packed = Vec::new();
    resize(&mut packed, total, Line::ZERO).map_err(io::Error::other)?;
    let mut rest = &mut packed[..];
    for (index, conv, convolution) in convolutions(&model) {
        let held = Held::new(&convolution, ctx.isa, limit);
        let lines;
        (lines, rest) = rest.split_at_mut(held.lines);
        match conv.weights {
            [] => source.pack(ctx, lines, &conv, index, &held.part)?,
            weights => held.part.pack(ctx, lines, &weights[..held.part.geometry.weights_len()]),
        }
    }
    Ok(packed)
}

/// The convolutions, each with its node's number.
fn convolutions<'a>(model: &Model<'a>) -> impl Iterator<Item = (usize, Conv<'a>, Convolution)> + use<'a> {
    let elements: Vec<_> = model.nodes().map(|node| node.element).collect();
    model.nodes().enumerate().filter_map(move |(index, node)| match node.op {
        Op::Conv(conv) => Some((index, conv, packing(&conv, elements[node.input(0)]))),
        _ => None,
    })
}

/// How many bytes of the file must be held so that all weights behind them can be read in the order of the nodes and
/// packed: as far as other tensors go. `None`: all, since weights are used as they are or lie in another order.
fn held(model: &Model, graph_end: usize, isa: Isa) -> Option<usize> {
    let ends = model.nodes().filter_map(|node| node.constants_end());
    let held = ends.max().unwrap_or(0).max(graph_end);
    let mut at = held;
    for (_, conv, convolution) in convolutions(model) {
        let end = conv.weights_at + conv.weights_len();
        if convolution.packed_len(isa) == 0 || (end > held && conv.weights_at < at) {
            return None;
        }
        at = at.max(end);
    }
    Some(held)
}

/// A file that is read once, from its start.
struct Source<R> {
    read: R,
    hasher: blake3::Hasher,
    /// Bytes that were read.
    at: usize,
}

impl<R: Read> Source<R> {
    /// Reads up to byte `to` of the file.
    fn append(&mut self, file: &mut Vec<u8>, to: usize) -> io::Result<()> {
        let (from, wanted) = (file.len(), to.saturating_sub(self.at));
        file.try_reserve_exact(wanted).map_err(io::Error::other)?;
        self.read.by_ref().take(wanted as u64).read_to_end(file)?;
        self.hasher.update(&file[from..]);
        self.at += file.len() - from;
        if file.len() - from < wanted { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Leaves out what comes before byte `to`.
    fn skip(&mut self, to: usize) -> io::Result<()> {
        let mut piece = Vec::new();
        while self.at < to {
            piece.clear();
            self.append(&mut piece, to.min(self.at + PIECE))?;
        }
        Ok(())
    }

    /// Reads the weights of the convolution that is node `index`, some taps at a time, and packs those that `convolution`
    /// has: all, or the first.
    fn pack(
        &mut self,
        ctx: Context,
        packed: &mut [Line],
        conv: &Conv,
        index: usize,
        convolution: &Convolution,
    ) -> Result<(), OpenError> {
        self.skip(conv.weights_at)?;
        let (taps, tap) = (conv.kernel[0] * conv.kernel[1], conv.c_in * conv.c_out);
        let held = convolution.geometry.weights_len() / tap;
        let mut weights = Vec::new();
        let step = (PIECE / tap).max(1);
        for first in (0..taps).step_by(step) {
            let some = first..taps.min(first + step);
            weights.clear();
            self.append(&mut weights, self.at + some.len() * tap)?;
            let weights = as_i8(&weights);
            if weights.contains(&i8::MIN) {
                return Err(ModelError::Node { index: index as u32, problem: WEIGHT_RANGE }.into());
            }
            let some = some.start.min(held)..some.end.min(held);
            convolution.pack_taps(ctx, packed, some.clone(), &weights[..some.len() * tap]);
        }
        Ok(())
    }

    /// Reads what is left and compares the checksum.
    fn finish(mut self, content: usize) -> Result<(), OpenError> {
        self.skip(content)?;
        let hash = self.hasher.finalize();
        let mut checksum = [0; CHECKSUM];
        self.read.read_exact(&mut checksum)?;
        if hash.as_bytes() == &checksum { Ok(()) } else { Err(ModelError::Checksum.into()) }
    }
}
