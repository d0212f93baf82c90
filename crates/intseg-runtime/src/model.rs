//! Reading a model file.
//!
//! All numbers are little-endian. The file is
//!
//! | part | bytes |
//! |---|---|
//! | magic `INTSEG\0\0`, version (u32), rounding (u32, 0: half to even), total length (u64) | 24 |
//! | length of the metadata (u32), length of the graph (u32) | 8 |
//! | metadata, UTF-8 JSON: name, classes, palette, training | as said |
//! | graph: number of nodes (u32), flags (u32, bit 0: aligned corners), nodes | as said |
//! | tensors, each at a multiple of 64 from the file's start; weights behind all others | as the nodes say |
//! | BLAKE3-256 of everything before | 32 |
//!
//! A host that packs the weights reads them piece by piece and holds no more of the file than what comes before them
//! (`Engine::open`). Files with another order of tensors are read too; more of such a file is held.
//!
//! A file says the lowest version that its nodes need: 3 where there is a depthwise convolution, a table or a product, 4 where a
//! map is padded.
//!
//! Nothing is trusted: every length is checked before it is used, and nothing is allocated.

mod mobile;
mod pad;

use crate::error::ModelError;
use crate::{MAGIC, VERSION};
use intseg_kernels::bytes::as_i8;
use intseg_kernels::resize::Interpolation;
pub use mobile::{Depthwise, Product, Table};
pub use pad::Pad;

/// Bytes of the fixed part at the start.
pub(crate) const HEADER: usize = 32;
/// Bytes of the checksum at the end.
pub(crate) const CHECKSUM: usize = 32;
/// What is wrong with a weight whose product with an input could leave the bounds that sums are held to.
pub(crate) const WEIGHT_RANGE: &str = "a weight is -128";
/// The largest size along one axis that a geometry may name.
const MAX_EXTENT: u32 = 1 << 15;

/// The type of a node's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Element {
    /// Activations after ReLU, 0..=255.
    #[default]
    U8 = 0,
    /// The image and activations of both signs, −128..=127.
    I8 = 1,
    /// Residual streams and logits, ±32767.
    I16 = 2,
}

impl Element {
    /// The smallest and the largest value of a node.
    pub fn range(self) -> [i32; 2] {
        match self {
            Element::U8 => [0, 255],
            Element::I8 => [-128, 127],
            Element::I16 => [-32_767, 32_767],
        }
    }
}

/// One multiplier, bias and shift a channel, as bytes of the file.
#[derive(Clone, Copy, Debug)]
pub struct Requantization<'a> {
    multiplier: &'a [u8],
    bias: &'a [u8],
    shift: &'a [u8],
    /// Where the last of them ends in the file.
    pub(crate) end: usize,
}

impl<'a> Requantization<'a> {
    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.shift.len()
    }

    /// The multipliers.
    pub fn multipliers(&self) -> impl Iterator<Item = i32> + use<'a> {
        self.multiplier.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b))
    }

    /// The biases, in units of the product of sum and multiplier.
    pub fn biases(&self) -> impl Iterator<Item = i64> + use<'a> {
        self.bias.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b))
    }

    /// The right shifts.
    pub fn shifts(&self) -> &'a [u8] {
        self.shift
    }
}

/// A convolution, or a transposed one, with its folded requantisation.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// Kernel rows and columns.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Dilation.
    pub dilation: [usize; 2],
    /// Padding.
    pub padding: [usize; 2],
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// `None`: a convolution. Otherwise its adjoint, with so many rows and columns more at the end of the output, fewer
    /// than the stride: of the output sizes that lead to one input size, the one that is meant.
    pub transposed: Option<[usize; 2]>,
    /// `[KH, KW, C_in, C_out]`; `[KH, KW, C_out, C_in]` of a transposed convolution. Empty where an engine that was opened
    /// for one instruction set holds them packed alone.
    pub weights: &'a [i8],
    /// Where they begin in the file.
    pub(crate) weights_at: usize,
    /// Exponent of the weights' step, for people to read.
    pub weight_exponent: i32,
    /// From sums to output.
    pub requantization: Requantization<'a>,
}

impl Conv<'_> {
    /// Number of weights.
    pub fn weights_len(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.c_in * self.c_out
    }

    /// The largest magnitude that a sum can reach.
    pub fn accumulator_bound(&self) -> u64 {
        (self.kernel[0] * self.kernel[1]) as u64 * self.c_in as u64 * 255 * 127
    }
}

/// What a node computes.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// The image, `[1, H, W, 3]`, value − 128.
    Image,
    /// Convolution, requantisation, clamp.
    Conv(Conv<'a>),
    /// Per-channel multiplier, bias and shift, from any type to any.
    Affine(Requantization<'a>),
    /// Sum of two tensors at the output's exponent.
    Add,
    /// Max pooling.
    MaxPool {
        /// Window.
        kernel: [usize; 2],
        /// Stride.
        stride: [usize; 2],
        /// Padding.
        padding: [usize; 2],
        /// Whether a last window may reach over the border.
        ceil: bool,
    },
    /// Mean over all positions.
    GlobalAveragePool,
    /// Mean over a window.
    AveragePool {
        /// Window.
        kernel: [usize; 2],
        /// Stride.
        stride: [usize; 2],
        /// Padding.
        padding: [usize; 2],
        /// Whether a last window may reach over the border.
        ceil: bool,
        /// Whether padding counts in the divisor.
        count_padding: bool,
    },
    /// Resize of the first input.
    Resize {
        /// How many times as many rows and columns; without it, to the second input's.
        factor: Option<[usize; 2]>,
        /// How.
        interpolation: Interpolation,
    },
    /// Concatenation along channels.
    Concat,
    /// Convolution with one filter a channel, requantisation, clamp.
    Depthwise(Depthwise<'a>),
    /// A function of 8 bits.
    Table(Table<'a>),
    /// Product of two maps of 8 bits, requantisation, clamp.
    Product(Product<'a>),
    /// A map of 8 bits with pixels around it that are all the same.
    Pad(Pad<'a>),
}

/// A node of the graph.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it computes.
    pub op: Op<'a>,
    inputs: &'a [u8],
    /// The type of its output.
    pub element: Element,
    /// The exponent of its output.
    pub exponent: i32,
    /// Smallest and largest output.
    pub clamp: [i32; 2],
}

impl<'a> Node<'a> {
    /// The numbers of the nodes that it reads, each smaller than its own.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = usize> + use<'a> {
        self.inputs.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize)
    }

    /// The constants of an operator that requantises.
    pub(crate) fn requantization(&self) -> Option<Requantization<'a>> {
        match self.op {
            Op::Conv(conv) => Some(conv.requantization),
            Op::Affine(requantization) => Some(requantization),
            Op::Depthwise(depthwise) => Some(depthwise.requantization),
            Op::Product(product) => Some(product.requantization),
            _ => None,
        }
    }

    /// Where in the file those of its tensors end that are used as they are.
    pub(crate) fn constants_end(&self) -> Option<usize> {
        match self.op {
            Op::Depthwise(depthwise) => Some(depthwise.end),
            Op::Table(table) => Some(table.end),
            Op::Pad(pad) => Some(pad.end),
            _ => self.requantization().map(|requantization| requantization.end),
        }
    }

    /// Checks what the node's tensors hold: the ranges under which no sum and no product can overflow.
    fn check_values(&self) -> Result<(), &'static str> {
        match &self.op {
            Op::Conv(conv) if conv.weights.contains(&i8::MIN) => return Err(WEIGHT_RANGE),
            Op::Depthwise(depthwise) => depthwise.check_weights()?,
            Op::Table(table) => mobile::check_table(table, self.element, self.clamp)?,
            Op::Pad(pad) => pad.check(self.element, self.clamp)?,
            _ => {}
        }
        let Some(requantization) = self.requantization() else { return Ok(()) };
        if requantization.shift.iter().any(|&shift| shift > 62) {
            return Err("a shift exceeds 62");
        }
        if requantization.biases().any(|bias| bias.unsigned_abs() > 1 << 61) {
            return Err("a bias exceeds 2^61");
        }
        Ok(())
    }

    /// Input `k`.
    ///
    /// # Panics
    /// When there are fewer inputs; [`Model::parse`] has checked that an operator has those it needs.
    pub fn input(&self, k: usize) -> usize {
        self.inputs().nth(k).expect("the number of inputs was checked")
    }
}

/// A model file's content, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// The file, or its beginning.
    file: &'a [u8],
    /// Bytes of the whole file before its checksum.
    content: usize,
    metadata: &'a str,
    nodes: &'a [u8],
    count: usize,
    /// Whether resizing aligns the corner pixels' centres.
    pub align_corners: bool,
}

/// Reads numbers from the front of a slice.
#[derive(Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Two sizes of at least `least`.
    fn pair(&mut self, least: u32) -> Option<[usize; 2]> {
        let pair = [self.u32()?, self.u32()?];
        pair.iter().all(|v| (least..=MAX_EXTENT).contains(v)).then(|| pair.map(|v| v as usize))
    }
}

/// What the fixed part at the start says.
pub(crate) struct Header {
    /// Bytes of the file before its checksum.
    pub content: usize,
    /// Bytes of the metadata.
    pub metadata: usize,
    /// Bytes of the graph.
    pub graph: usize,
}

impl Header {
    /// Reads the fixed part of a file of `len` bytes.
    pub fn parse(file: &[u8], len: u64) -> Result<Self, ModelError> {
        let mut header = Cursor(file);
        if header.array() != Some(MAGIC) {
            return Err(ModelError::NotAModel);
        }
        let short = ModelError::Length { expected: (HEADER + CHECKSUM) as u64, found: len };
        let version = header.u32().ok_or(short)?;
        if version > VERSION {
            return Err(ModelError::Newer { version });
        }
        let rounding = header.u32().ok_or(short)?;
        if rounding != 0 {
            return Err(ModelError::Rounding { rounding });
        }
        let expected = header.u64().ok_or(short)?;
        let content = usize::try_from(len).ok().and_then(|len| len.checked_sub(CHECKSUM));
        let content = content.filter(|&content| expected == len && content >= HEADER);
        let content = content.ok_or(ModelError::Length { expected, found: len })?;
        let (metadata, graph) = (header.u32().ok_or(short)? as usize, header.u32().ok_or(short)? as usize);
        Ok(Header { content, metadata, graph })
    }
}

impl<'a> Model<'a> {
    /// Reads a model file's bytes and checks all of it.
    ///
    /// # Errors
    /// When the bytes are no model, are damaged, or hold a node that cannot be.
    pub fn parse(file: &'a [u8]) -> Result<Self, ModelError> {
        let (content, checksum) = file.split_at(Header::parse(file, file.len() as u64)?.content);
        if blake3::hash(content).as_bytes() != checksum {
            return Err(ModelError::Checksum);
        }
        let model = Self::parse_graph(file, file.len() as u64)?;
        model.check_nodes(true)?;
        Ok(model)
    }

    /// Reads bytes that [`Model::parse`] has accepted before, without looking at their tensors again.
    ///
    /// # Errors
    /// As [`Model::parse`].
    pub fn parse_again(file: &'a [u8]) -> Result<Self, ModelError> {
        let model = Self::parse_graph(file, file.len() as u64)?;
        model.check_nodes(false)?;
        Ok(model)
    }

    /// Reads the beginning of a file of `len` bytes, at least its graph; what tensors it does not reach are empty.
    /// `values`: whether those that it reaches are checked.
    #[cfg(feature = "std")]
    pub(crate) fn parse_beginning(file: &'a [u8], len: u64, values: bool) -> Result<Self, ModelError> {
        let model = Self::parse_graph(file, len)?;
        model.check_nodes(values)?;
        Ok(model)
    }

    /// `file` may be the beginning alone of a file of `len` bytes.
    fn parse_graph(file: &'a [u8], len: u64) -> Result<Self, ModelError> {
        let Header { content, metadata, graph } = Header::parse(file, len)?;
        let problem = |problem| ModelError::Node { index: 0, problem };
        let mut body = Cursor(&file[HEADER..content.min(file.len())]);
        let metadata = body.take(metadata).ok_or(problem("the metadata is longer than the file"))?;
        let metadata = core::str::from_utf8(metadata).map_err(|_| problem("the metadata is not UTF-8"))?;
        let mut graph = Cursor(body.take(graph).ok_or(problem("the graph is longer than the file"))?);
        let count = graph.u32().ok_or(problem("the graph is empty"))? as usize;
        let flags = graph.u32().ok_or(problem("the graph is empty"))?;
        // A node has at least 20 bytes.
        if count == 0 || count > graph.0.len() / 20 {
            return Err(problem("the number of nodes does not fit the graph's length"));
        }
        Ok(Model { file, content, metadata, nodes: graph.0, count, align_corners: flags & 1 == 1 })
    }

    /// Checks every node, and if asked the values of its tensors.
    fn check_nodes(&self, values: bool) -> Result<(), ModelError> {
        let mut cursor = Cursor(self.nodes);
        for index in 0..self.count {
            let node = self.node(&mut cursor, index);
            node.and_then(|node| {
                if index + 1 == self.count && node.element != Element::I16 {
                    return Err("it is the last, the logits, and does not have 16 bits");
                }
                if values { node.check_values() } else { Ok(()) }
            })
            .map_err(|problem| ModelError::Node { index: index as u32, problem })?;
        }
        Ok(())
    }

    /// Number of nodes. The last one's output is the logits.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: [`Model::parse`] refuses a graph without nodes.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The metadata, JSON.
    pub fn metadata(&self) -> &'a str {
        self.metadata
    }

    /// The nodes in their order.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let model = *self;
        let mut cursor = Cursor(model.nodes);
        (0..model.count).map_while(move |index| model.node(&mut cursor, index).ok())
    }

    /// A tensor's offset from the file's start, and its bytes: none where not so much of the file is held.
    fn tensor(&self, cursor: &mut Cursor<'a>, unit: usize, count: usize) -> Option<(usize, &'a [u8])> {
        let (offset, len) = (cursor.u64()?, cursor.u64()?);
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        let end = offset.checked_add(len).filter(|&end| end <= self.content)?;
        (len == unit.checked_mul(count)?).then(|| (offset, self.file.get(offset..end).unwrap_or_default()))
    }

    fn requantization(&self, cursor: &mut Cursor<'a>, channels: usize) -> Result<Requantization<'a>, &'static str> {
        let mut end = 0;
        let mut tensor = |unit| {
            let (offset, bytes) =
                self.tensor(cursor, unit, channels).ok_or("its requantisation lies outside the file")?;
            end = end.max(offset + unit * channels);
            Ok(bytes)
        };
        let (multiplier, bias, shift) = (tensor(4)?, tensor(8)?, tensor(1)?);
        Ok(Requantization { multiplier, bias, shift, end })
    }

    /// Reads one node from the cursor and checks it.
    fn node(&self, cursor: &mut Cursor<'a>, index: usize) -> Result<Node<'a>, &'static str> {
        let end = "it is longer than the graph";
        let code = cursor.u8().ok_or(end)?;
        let element = match cursor.u8().ok_or(end)? {
            0 => Element::U8,
            1 => Element::I8,
            2 => Element::I16,
            _ => return Err("its element type is unknown"),
        };
        let [input_count, name_len] = [cursor.u8().ok_or(end)?, cursor.u8().ok_or(end)?].map(usize::from);
        let exponent = cursor.i32().ok_or(end)?;
        let clamp = [cursor.i32().ok_or(end)?, cursor.i32().ok_or(end)?];
        let name = core::str::from_utf8(cursor.take(name_len).ok_or(end)?).map_err(|_| "its name is not UTF-8")?;
        let inputs = cursor.take(4 * input_count).ok_or(end)?;
        let [low, high] = element.range();
        if clamp[0] > clamp[1] || clamp[0] < low || clamp[1] > high || exponent.unsigned_abs() > 200 {
            return Err("its exponent or clamp is out of range");
        }
        let op = self.op(cursor, code)?;
        let node = Node { name, op, inputs, element, exponent, clamp };
        let wanted = match op {
            Op::Image => 0..=0,
            Op::Conv(_) | Op::Affine(_) | Op::MaxPool { .. } | Op::GlobalAveragePool | Op::AveragePool { .. } => 1..=1,
            Op::Resize { factor: Some(_), .. } | Op::Depthwise(_) | Op::Table(_) | Op::Pad(_) => 1..=1,
            Op::Add | Op::Resize { factor: None, .. } | Op::Product(_) => 2..=2,
            Op::Concat => 1..=64,
        };
        if !wanted.contains(&input_count) {
            return Err("it has the wrong number of inputs");
        }
        if node.inputs().any(|input| input >= index) {
            return Err("it reads a node that comes later");
        }
        if matches!(op, Op::Image) != (index == 0) {
            return Err("the image must be the first node and no other");
        }
        Ok(node)
    }

    fn op(&self, cursor: &mut Cursor<'a>, code: u8) -> Result<Op<'a>, &'static str> {
        let size = "a size is out of range";
        Ok(match code {
            0 => Op::Image,
            1 => Op::Conv(self.conv(cursor, None)?),
            2 => {
                let [channels, _] = cursor.pair(1).ok_or(size)?;
                Op::Affine(self.requantization(cursor, channels)?)
            }
            3 => Op::Add,
            4 => {
                let ([kernel, stride, padding], flags) = pooling(cursor)?;
                Op::MaxPool { kernel, stride, padding, ceil: flags & 1 == 1 }
            }
            5 => Op::GlobalAveragePool,
            6 => Op::Resize { factor: None, interpolation: Interpolation::linear(self.align_corners) },
            7 => Op::Concat,
            8 => {
                let output_padding = cursor.pair(0).ok_or(size)?;
                Op::Conv(self.conv(cursor, Some(output_padding))?)
            }
            9 => {
                let ([kernel, stride, padding], flags) = pooling(cursor)?;
                Op::AveragePool { kernel, stride, padding, ceil: flags & 1 == 1, count_padding: flags & 2 == 2 }
            }
            10 => {
                let factor = cursor.pair(0).ok_or(size)?;
                let interpolation = match cursor.u32().ok_or(size)? {
                    0 => Interpolation::Linear,
                    1 => Interpolation::LinearAligned,
                    2 => Interpolation::Nearest,
                    _ => return Err("its interpolation is unknown"),
                };
                if factor.contains(&0) && factor != [0, 0] {
                    return Err(size);
                }
                Op::Resize { factor: (factor != [0, 0]).then_some(factor), interpolation }
            }
            11 => Op::Depthwise(self.depthwise(cursor)?),
            12 => Op::Table(self.table(cursor)?),
            13 => Op::Product(self.product(cursor)?),
            14 => Op::Pad(self.pad(cursor)?),
            _ => return Err("its operator is unknown"),
        })
    }

    fn conv(&self, cursor: &mut Cursor<'a>, transposed: Option<[usize; 2]>) -> Result<Conv<'a>, &'static str> {
        let size = "a size is out of range";
        let kernel = cursor.pair(1).ok_or(size)?;
        let stride = cursor.pair(1).ok_or(size)?;
        let dilation = cursor.pair(1).ok_or(size)?;
        let padding = cursor.pair(0).ok_or(size)?;
        let [c_in, c_out] = cursor.pair(1).ok_or(size)?;
        let weight_exponent = cursor.i32().ok_or(size)?;
        let factors = [kernel[1], c_in, c_out];
        let count = factors.into_iter().try_fold(kernel[0], usize::checked_mul).ok_or(size)?;
        let (weights_at, weights) = self.tensor(cursor, 1, count).ok_or("its weights lie outside the file")?;
        let weights = as_i8(weights);
        let requantization = self.requantization(cursor, c_out)?;
        if transposed.is_some_and(|padding| (0..2).any(|axis| padding[axis] >= stride[axis])) {
            return Err("its output padding is not smaller than its stride");
        }
        let conv = Conv {
            kernel,
            stride,
            dilation,
            padding,
            c_in,
            c_out,
            transposed,
            weights,
            weights_at,
            weight_exponent,
            requantization,
        };
        if conv.accumulator_bound() > i32::MAX as u64 {
            return Err("its accumulator could overflow 32 bits");
        }
        Ok(conv)
    }
}

/// Window, stride and padding of a pooling, and its flags.
fn pooling(cursor: &mut Cursor) -> Result<([[usize; 2]; 3], u32), &'static str> {
    let size = "a size is out of range";
    let (kernel, stride) = (cursor.pair(1).ok_or(size)?, cursor.pair(1).ok_or(size)?);
    let (padding, flags) = (cursor.pair(0).ok_or(size)?, cursor.u32().ok_or(size)?);
    if (0..2).any(|axis| padding[axis] >= kernel[axis]) {
        return Err("its padding reaches beyond its window");
    }
    Ok(([kernel, stride, padding], flags))
}
