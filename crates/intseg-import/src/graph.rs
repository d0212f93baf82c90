//! A float network as post-training quantisation sees it: every operator that it knows, in NHWC.

pub use crate::function::Function;
pub use intseg_kernels::resize::Interpolation;

/// What a window operator's geometry is, each vertical then horizontal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Window rows and columns.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Dilation.
    pub dilation: [usize; 2],
    /// Padding, the same on both sides.
    pub padding: [usize; 2],
}

/// What a resize makes of its rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeTarget {
    /// As many as the second input has.
    Like,
    /// This many times as many.
    Factor([usize; 2]),
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
pub enum FloatOp {
    /// The image `[1, H, W, 3]`: `(v / 255 − mean) / deviation` of the graph's [`Normalization`].
    Image,
    /// A convolution.
    Conv {
        /// Geometry.
        window: Window,
        /// `[KH, KW, C_in, C_out]`.
        weights: Vec<f32>,
        /// Input and output channels.
        channels: [usize; 2],
        /// One a output channel.
        bias: Vec<f32>,
    },
    /// A transposed convolution: the adjoint of a convolution with this geometry.
    ConvTranspose {
        /// Geometry.
        window: Window,
        /// Rows and columns added at the end of the output.
        output_padding: [usize; 2],
        /// `[KH, KW, C_in, C_out]`: input `(y, x)` adds its product with tap `(i, j)` to output
        /// `(y·stride + i·dilation − padding, …)`.
        weights: Vec<f32>,
        /// Input and output channels.
        channels: [usize; 2],
        /// One a output channel.
        bias: Vec<f32>,
    },
    /// `scale · x + offset` a channel: batch normalisation at inference.
    Affine {
        /// One a channel.
        scale: Vec<f32>,
        /// One a channel.
        offset: Vec<f32>,
    },
    /// Clamp to `[low, high]`: ReLU is `[0, ∞]`.
    Clip {
        /// Smallest output.
        low: f32,
        /// Largest output, may be infinite.
        high: f32,
    },
    /// The image with other pixels than 0 around it.
    Pad {
        /// Rows above and as many below, columns on the left and as many on the right.
        padding: [usize; 2],
        /// The pixel, a value a channel.
        pixel: Vec<f32>,
    },
    /// Maximum over a window; padding never wins.
    MaxPool {
        /// Geometry.
        window: Window,
        /// Whether a last window may reach over the border.
        ceil: bool,
    },
    /// Mean over a window.
    AveragePool {
        /// Geometry.
        window: Window,
        /// Whether a last window may reach over the border.
        ceil: bool,
        /// Whether padding counts in the divisor.
        count_padding: bool,
    },
    /// Mean over all positions, `[1, 1, 1, C]`.
    GlobalAveragePool,
    /// Sum of two tensors of one shape.
    Add,
    /// Concatenation along channels.
    Concat,
    /// A convolution with one filter a channel.
    Depthwise {
        /// Geometry.
        window: Window,
        /// `[KH, KW, C]`.
        weights: Vec<f32>,
        /// One a channel.
        bias: Vec<f32>,
    },
    /// `output · function(input · x)`.
    Function {
        /// The function.
        function: Function,
        /// What its argument is multiplied by.
        input: f32,
        /// What its value is multiplied by.
        output: f32,
    },
    /// `scale · a · b`: two tensors of one shape, or the second `[1, 1, 1, C]`, the same everywhere.
    Product {
        /// One a channel.
        scale: Vec<f32>,
    },
    /// Resize of the first input.
    Resize {
        /// To which size.
        target: ResizeTarget,
        /// How.
        interpolation: Interpolation,
    },
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatNode {
    /// Its name, for messages and reports.
    pub name: String,
    /// What it computes.
    pub op: FloatOp,
    /// Numbers of earlier nodes.
    pub inputs: Vec<usize>,
}

/// What the network expects of an image's channels, red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Means of values in 0..=1.
    pub mean: [f32; 3],
    /// Deviations of values in 0..=1.
    pub deviation: [f32; 3],
}

impl Normalization {
    /// torchvision's, from ImageNet.
    pub const IMAGENET: Normalization = Normalization { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
    /// Values in 0..=1 as they are.
    pub const UNIT: Normalization = Normalization { mean: [0.0; 3], deviation: [1.0; 3] };
    /// Values in 0..=255 less the means of ImageNet, as Caffe's networks have them (which also read blue first).
    pub const CAFFE: Normalization =
        Normalization { mean: [122.679 / 255.0, 116.669 / 255.0, 104.007 / 255.0], deviation: [1.0 / 255.0; 3] };
    /// Values in 0..=255.
    pub const BYTES: Normalization = Normalization { mean: [0.0; 3], deviation: [1.0 / 255.0; 3] };
}

/// A network: node 0 is the image, the last node's output the logits, which are upsampled to the image bilinearly.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatGraph {
    /// The architecture or the file.
    pub name: String,
    /// Nodes, inputs before their readers.
    pub nodes: Vec<FloatNode>,
    /// How the logits are upsampled to the image's size.
    pub upsampling: Interpolation,
    /// What the image is normalised by.
    pub normalization: Normalization,
}

impl FloatGraph {
    /// Lets a network that reads blue, green, red read red, green, blue.
    ///
    /// # Errors
    /// When something other than a convolution reads the image.
    pub fn swap_red_and_blue(&mut self) -> Result<(), SwapError> {
        for node in self.nodes.iter_mut().filter(|node| node.inputs.contains(&0)) {
            let FloatOp::Conv { weights, channels: [3, c_out], .. } = &mut node.op else {
                return Err(SwapError { layer: node.name.clone() });
            };
            for tap in weights.chunks_exact_mut(3 * *c_out) {
                let (red, rest) = tap.split_at_mut(*c_out);
                red.swap_with_slice(&mut rest[*c_out..]);
            }
        }
        Ok(())
    }
}

/// The order of an image's channels cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "layer {layer} reads the image and is no convolution, so that red and blue cannot change places in its weights"
)]
pub struct SwapError {
    /// The layer's name.
    pub layer: String,
}
