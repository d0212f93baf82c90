//! Building a model file.

use crate::model::{CHECKSUM, Element, HEADER};
use crate::{MAGIC, VERSION};
use intseg_kernels::resize::Interpolation;
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

/// One multiplier, bias and shift a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequantizationSpec {
    /// Multipliers.
    pub multiplier: Vec<i32>,
    /// Biases in units of the product, below 2^61.
    pub bias: Vec<i64>,
    /// Right shifts, at most 62.
    pub shift: Vec<u8>,
}

/// What a node computes; see [`crate::Op`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpSpec {
    /// The image.
    Image,
    /// A convolution.
    Conv {
        /// Kernel, stride, dilation and padding, each vertical then horizontal.
        geometry: [[usize; 2]; 4],
        /// Input and output channels.
        channels: [usize; 2],
        /// Exponent of the weights' step.
        weight_exponent: i32,
        /// `None`: a convolution. Otherwise its adjoint, with this output padding.
        transposed: Option<[usize; 2]>,
        /// `[KH, KW, C_in, C_out]`; `[KH, KW, C_out, C_in]` of a transposed convolution.
        weights: Vec<i8>,
        /// From sums to output.
        requantization: RequantizationSpec,
    },
    /// Per-channel multiplier, bias and shift.
    Affine(RequantizationSpec),
    /// Sum of two tensors.
    Add,
    /// Max pooling.
    MaxPool {
        /// Window, stride and padding, each vertical then horizontal.
        geometry: [[usize; 2]; 3],
        /// Whether a last window may reach over the border.
        ceil: bool,
    },
    /// Mean over all positions.
    GlobalAveragePool,
    /// Mean over a window.
    AveragePool {
        /// Window, stride and padding, each vertical then horizontal.
        geometry: [[usize; 2]; 3],
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
    /// Convolution with one filter a channel.
    Depthwise {
        /// Kernel, stride, dilation and padding, each vertical then horizontal.
        geometry: [[usize; 2]; 4],
        /// The input's integer that stands for zero, which padding is made of.
        zero: i32,
        /// Exponent of the weights' step.
        weight_exponent: i32,
        /// `[KH, KW, C]`.
        weights: Vec<i8>,
        /// From sums to output.
        requantization: RequantizationSpec,
    },
    /// A function of 8 bits: the output's bits for each of the input's.
    Table(Box<[u8; 256]>),
    /// Product of two maps, `(a − zero) · b`.
    Product {
        /// The first input's integer that stands for zero.
        zero: i32,
        /// From products to output.
        requantization: RequantizationSpec,
    },
    /// A map of 8 bits with pixels around it that are all the same.
    Pad {
        /// Rows above and as many below, columns on the left and as many on the right.
        padding: [usize; 2],
        /// The pixel's channels: their bits, whatever their sign.
        pixel: Vec<u8>,
    },
}

impl OpSpec {
    /// The number that stands for the operator in the file.
    fn code(&self) -> u8 {
        match self {
            OpSpec::Image => 0,
            OpSpec::Conv { transposed: None, .. } => 1,
            OpSpec::Affine(_) => 2,
            OpSpec::Add => 3,
            OpSpec::MaxPool { .. } => 4,
            OpSpec::GlobalAveragePool => 5,
            OpSpec::Concat => 7,
            OpSpec::Conv { transposed: Some(_), .. } => 8,
            OpSpec::AveragePool { .. } => 9,
            OpSpec::Resize { .. } => 10,
            OpSpec::Depthwise { .. } => 11,
            OpSpec::Table(_) => 12,
            OpSpec::Product { .. } => 13,
            OpSpec::Pad { .. } => 14,
        }
    }

    /// The version of the file that first had the operator, from 2 on.
    fn version(&self) -> u32 {
        match self.code() {
            0..=10 => 2,
            11..=13 => 3,
            _ => 4,
        }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name, at most 255 bytes.
    pub name: String,
    /// What it computes.
    pub op: OpSpec,
    /// Numbers of earlier nodes.
    pub inputs: Vec<usize>,
    /// The type of its output.
    pub element: Element,
    /// The exponent of its output.
    pub exponent: i32,
    /// Smallest and largest output.
    pub clamp: [i32; 2],
}

/// A model: its last node's output is the logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// JSON for people and programs on hosts.
    pub metadata: String,
    /// Whether resizing aligns the corner pixels' centres.
    pub align_corners: bool,
    /// Nodes, inputs before their readers.
    pub nodes: Vec<NodeSpec>,
}

/// The graph's bytes and, behind it, the tensors'.
#[derive(Default)]
struct Writer {
    graph: Vec<u8>,
    constants: Tensors,
    weights: Tensors,
}

/// Tensors that lie one behind the other.
#[derive(Default)]
struct Tensors {
    bytes: Vec<u8>,
    /// Where in the graph a tensor's offset is to be completed.
    offsets: Vec<usize>,
}

impl Tensors {
    /// Adds a tensor, and names it in the graph.
    fn push(&mut self, graph: &mut Vec<u8>, bytes: impl IntoIterator<Item = u8>) {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        self.offsets.push(graph.len());
        let from = self.bytes.len();
        self.bytes.extend(bytes);
        graph.extend((from as u64).to_le_bytes());
        graph.extend(((self.bytes.len() - from) as u64).to_le_bytes());
    }

    /// Completes the offsets for tensors that begin at `start` of the file.
    fn begin_at(&self, graph: &mut [u8], start: usize) {
        for at in &self.offsets {
            let field: &mut [u8; 8] = graph[*at..].first_chunk_mut().expect("an offset has 8 bytes");
            *field = (u64::from_le_bytes(*field) + start as u64).to_le_bytes();
        }
    }
}

impl Writer {
    fn u32s(&mut self, values: impl IntoIterator<Item = usize>) {
        values.into_iter().for_each(|v| self.graph.extend((v as u32).to_le_bytes()));
    }

    fn requantization(&mut self, r: &RequantizationSpec) {
        self.constants.push(&mut self.graph, r.multiplier.iter().flat_map(|v| v.to_le_bytes()));
        self.constants.push(&mut self.graph, r.bias.iter().flat_map(|v| v.to_le_bytes()));
        self.constants.push(&mut self.graph, r.shift.iter().copied());
    }

    fn node(&mut self, node: &NodeSpec) {
        let code = node.op.code();
        let name = &node.name.as_bytes()[..node.name.floor_char_boundary(255)];
        self.graph.extend([code, node.element as u8, node.inputs.len() as u8, name.len() as u8]);
        [node.exponent, node.clamp[0], node.clamp[1]].iter().for_each(|v| self.graph.extend(v.to_le_bytes()));
        self.graph.extend(name);
        self.u32s(node.inputs.iter().copied());
        match &node.op {
            OpSpec::Conv { geometry, channels, weight_exponent, transposed, weights, requantization } => {
                self.u32s(transposed.iter().flatten().copied());
                self.u32s(geometry.iter().flatten().chain(channels).copied());
                self.graph.extend(weight_exponent.to_le_bytes());
                self.weights.push(&mut self.graph, weights.iter().map(|&w| w as u8));
                self.requantization(requantization);
            }
            OpSpec::Affine(requantization) => {
                self.u32s([requantization.shift.len(), 1]);
                self.requantization(requantization);
            }
            OpSpec::MaxPool { geometry, ceil } => {
                self.u32s(geometry.iter().flatten().copied().chain([usize::from(*ceil)]));
            }
            OpSpec::AveragePool { geometry, ceil, count_padding } => {
                let flags = usize::from(*ceil) | usize::from(*count_padding) << 1;
                self.u32s(geometry.iter().flatten().copied().chain([flags]));
            }
            OpSpec::Resize { factor, interpolation } => {
                let code = match interpolation {
                    Interpolation::Linear => 0,
                    Interpolation::LinearAligned => 1,
                    Interpolation::Nearest => 2,
                };
                self.u32s(factor.unwrap_or([0; 2]).into_iter().chain([code]));
            }
            OpSpec::Depthwise { geometry, zero, weight_exponent, weights, requantization } => {
                let channels = requantization.shift.len();
                self.u32s(geometry.iter().flatten().copied().chain([channels, channels]));
                [zero, weight_exponent].iter().for_each(|v| self.graph.extend(v.to_le_bytes()));
                // Not packed, and so with what is held.
                self.constants.push(&mut self.graph, weights.iter().map(|&w| w as u8));
                self.requantization(requantization);
            }
            OpSpec::Table(table) => self.constants.push(&mut self.graph, table.iter().copied()),
            OpSpec::Product { zero, requantization } => {
                self.u32s([requantization.shift.len(), 1]);
                self.graph.extend(zero.to_le_bytes());
                self.requantization(requantization);
            }
            OpSpec::Pad { padding, pixel } => {
                self.u32s(padding.iter().copied().chain([pixel.len(), 1]));
                self.constants.push(&mut self.graph, pixel.iter().copied());
            }
            OpSpec::Image | OpSpec::Add | OpSpec::GlobalAveragePool | OpSpec::Concat => {}
        }
    }
}

impl ModelSpec {
    /// The model file's bytes: the same for the same model, always.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u32s([self.nodes.len(), usize::from(self.align_corners)]);
        self.nodes.iter().for_each(|node| w.node(node));
        let constants_at = (HEADER + self.metadata.len() + w.graph.len()).next_multiple_of(64);
        let weights_at = (constants_at + w.constants.bytes.len()).next_multiple_of(64);
        w.constants.begin_at(&mut w.graph, constants_at);
        w.weights.begin_at(&mut w.graph, weights_at);
        let version = self.nodes.iter().map(|node| node.op.version()).max().unwrap_or(VERSION);
        let total = weights_at + w.weights.bytes.len() + CHECKSUM;
        let mut bytes = Vec::with_capacity(total);
        bytes.extend(MAGIC);
        bytes.extend(version.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend((total as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u32).to_le_bytes());
        bytes.extend((w.graph.len() as u32).to_le_bytes());
        bytes.extend(self.metadata.as_bytes());
        bytes.extend(&w.graph);
        bytes.resize(constants_at, 0);
        bytes.extend(&w.constants.bytes);
        bytes.resize(weights_at, 0);
        bytes.extend(&w.weights.bytes);
        let checksum = blake3::hash(&bytes);
        bytes.extend(checksum.as_bytes());
        bytes
    }
}
