//! Network definitions: a graph of operators as plain data.
//!
//! One [`Graph`] serves everything: training instantiates its operators, folding turns it into a deployable model,
//! counting walks its shapes. It holds no weights.

use crate::tensor::Shape;
use intseg_kernels::{Conv2d, max_pool};
use serde::Serialize;

/// Index of a node in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NodeId(pub usize);

/// What becomes of a convolution's accumulators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvOutput {
    /// They go as they are to the batch normalisation that follows.
    Accumulators,
    /// Bias and ReLU, then 8 unsigned bits.
    Relu,
    /// Bias, then the 16 bits of a residual stream or of logits.
    Linear,
}

/// A convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConvSpec {
    /// Output channels.
    pub channels: usize,
    /// Kernel rows and columns.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Vertical and horizontal dilation.
    pub dilation: [usize; 2],
    /// Zero rows and columns on each side.
    pub padding: [usize; 2],
    /// What becomes of the accumulators.
    pub output: ConvOutput,
}

impl ConvSpec {
    /// A square kernel at stride 1 that keeps the size.
    pub fn same(channels: usize, kernel: usize, dilation: usize, output: ConvOutput) -> Self {
        let padding = dilation * (kernel - 1) / 2;
        ConvSpec {
            channels,
            kernel: [kernel; 2],
            stride: [1; 2],
            dilation: [dilation; 2],
            padding: [padding; 2],
            output,
        }
    }

    /// The same with another stride.
    pub fn with_stride(self, stride: usize) -> Self {
        ConvSpec { stride: [stride; 2], ..self }
    }

    /// The geometry for an input shape.
    pub fn geometry(&self, input: Shape) -> Conv2d {
        Conv2d {
            batch: input.n,
            in_h: input.h,
            in_w: input.w,
            c_in: input.c,
            c_out: self.channels,
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            padding: self.padding,
        }
    }
}

/// A max-pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PoolSpec {
    /// Rows and columns of the window.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Rows and columns on each side that never win.
    pub padding: [usize; 2],
    /// Whether a last window may reach over the border.
    pub ceil: bool,
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OpSpec {
    /// The image, `[N, H, W, 3]`, value − 128 at exponent −7.
    Image,
    /// Convolution.
    Conv(ConvSpec),
    /// Batch normalisation with the mean absolute deviation, and ReLU if set.
    BatchNorm {
        /// Whether ReLU follows.
        relu: bool,
    },
    /// Max pooling.
    MaxPool(PoolSpec),
    /// Mean over all positions, `[N, H, W, C]` → `[N, 1, 1, C]`.
    GlobalAveragePool,
    /// Bilinear resize of the first input to the rows and columns of the second.
    ResizeLike,
    /// Sum of two inputs, and ReLU if set.
    Add {
        /// Whether ReLU follows.
        relu: bool,
    },
    /// Concatenation along channels.
    Concat,
    /// Zeroes a share of the elements in training; nothing in deployment.
    Dropout {
        /// The share, in 256ths.
        drop_256: u32,
    },
}

/// A named operator and where its inputs come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Unique in the graph; parameters are named after it.
    pub name: String,
    /// What it computes.
    pub op: OpSpec,
    /// Earlier nodes.
    pub inputs: Vec<NodeId>,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// The architecture's name.
    pub name: String,
    /// Nodes in an order in which inputs come before their readers.
    pub nodes: Vec<Node>,
    /// The node whose output, resized to the image's size, classifies each pixel.
    pub logits: NodeId,
    /// Logits of an auxiliary head that exists in training alone.
    pub auxiliary: Option<NodeId>,
    /// Whether resizing aligns the corner pixels' centres.
    pub align_corners: bool,
}

/// Why a graph cannot run at an input shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A convolution or pooling window does not fit.
    #[error("layer {layer}: input {input} is too small for its window; use a larger image or crop")]
    TooSmall {
        /// The layer's name.
        layer: String,
        /// Its input.
        input: Shape,
    },
    /// Inputs that must agree do not.
    #[error("layer {layer}: inputs {left} and {right} do not fit together")]
    Mismatch {
        /// The layer's name.
        layer: String,
        /// The first input.
        left: Shape,
        /// The other.
        right: Shape,
    },
    /// An accumulator could wrap.
    #[error(
        "layer {layer}: the accumulator's bound {bound} exceeds the 2147483647 of 32 bits; use fewer channels or a smaller kernel"
    )]
    Overflow {
        /// The layer's name.
        layer: String,
        /// Largest possible magnitude.
        bound: u64,
    },
}

impl Graph {
    /// The shape of every node for an image shape.
    ///
    /// # Errors
    /// When a layer does not fit its input, or an accumulator could overflow.
    pub fn shapes(&self, image: Shape) -> Result<Vec<Shape>, GraphError> {
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let input = |k: usize| shapes[node.inputs[k].0];
            let too_small = |input| GraphError::TooSmall { layer: node.name.clone(), input };
            let shape = match &node.op {
                OpSpec::Image => image,
                OpSpec::Conv(spec) => {
                    let geometry = spec.geometry(input(0));
                    let bound = accumulator_bound(&geometry);
                    if bound > i32::MAX as u64 {
                        return Err(GraphError::Overflow { layer: node.name.clone(), bound });
                    }
                    let [h, w] = geometry.output_size().ok_or_else(|| too_small(input(0)))?;
                    Shape::new(image.n, h, w, spec.channels)
                }
                OpSpec::BatchNorm { .. } | OpSpec::Dropout { .. } => input(0),
                OpSpec::MaxPool(spec) => pooled(spec, input(0)).ok_or_else(|| too_small(input(0)))?,
                OpSpec::GlobalAveragePool => Shape::new(image.n, 1, 1, input(0).c),
                OpSpec::ResizeLike => Shape { c: input(0).c, ..input(1) },
                OpSpec::Add { .. } if input(0) == input(1) => input(0),
                OpSpec::Add { .. } => {
                    return Err(GraphError::Mismatch { layer: node.name.clone(), left: input(0), right: input(1) });
                }
                OpSpec::Concat => {
                    let channels = node.inputs.iter().map(|id| shapes[id.0].c).sum();
                    if let Some(odd) =
                        node.inputs.iter().find(|id| shapes[id.0].with_channels(0) != input(0).with_channels(0))
                    {
                        return Err(GraphError::Mismatch {
                            layer: node.name.clone(),
                            left: input(0),
                            right: shapes[odd.0],
                        });
                    }
                    input(0).with_channels(channels)
                }
            };
            shapes.push(shape);
        }
        Ok(shapes)
    }

    /// How many nodes read each node; the logits and the auxiliary logits count as read once more.
    pub fn reader_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.nodes.len()];
        let outputs = std::iter::once(self.logits).chain(self.auxiliary);
        self.nodes.iter().flat_map(|n| n.inputs.iter().copied()).chain(outputs).for_each(|id| counts[id.0] += 1);
        counts
    }

    /// The nodes that the logits depend on, the auxiliary head left out.
    pub fn deployed(&self) -> Vec<bool> {
        let mut used = vec![false; self.nodes.len()];
        used[self.logits.0] = true;
        for (index, node) in self.nodes.iter().enumerate().rev() {
            if used[index] {
                node.inputs.iter().for_each(|id| used[id.0] = true);
            }
        }
        used
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        match &self.nodes[self.logits.0].op {
            OpSpec::Conv(spec) => spec.channels,
            // The last operator of an FCN adds score maps, which all have one channel a class.
            _ => self.nodes[..=self.logits.0]
                .iter()
                .rev()
                .find_map(|node| match &node.op {
                    OpSpec::Conv(spec) => Some(spec.channels),
                    _ => None,
                })
                .unwrap_or(0),
        }
    }
}

/// The largest magnitude that a convolution's accumulator can reach: every tap 255 times ±127.
pub fn accumulator_bound(geometry: &Conv2d) -> u64 {
    (geometry.kernel[0] * geometry.kernel[1] * geometry.c_in) as u64 * 255 * 127
}

/// The shape after a pooling window, or `None` when it does not fit.
pub fn pooled(spec: &PoolSpec, input: Shape) -> Option<Shape> {
    let PoolSpec { kernel, stride, padding, ceil } = *spec;
    let [h, w] = max_pool::output_size([input.h, input.w], kernel, stride, padding, ceil)?;
    Some(Shape { h, w, ..input })
}
