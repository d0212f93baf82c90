//! A small dilated FCN: two strided convolutions, three dilated ones, and a skip from half resolution.

use super::{Builder, Settings};
use crate::graph::{ConvOutput, ConvSpec, Graph, OpSpec};

/// About 60 kB of weights, a receptive field of 79 pixels.
pub fn fcn_tiny(settings: &Settings) -> Graph {
    let (mut b, image) = Builder::new(settings);
    let [c1, c2, c3] = [16, 32, 48].map(|c| b.scaled(c));
    let spec = |channels, dilation| ConvSpec::same(channels, 3, dilation, ConvOutput::Accumulators);
    let half = b.conv_bn("conv1", image, spec(c1, 1).with_stride(2), true);
    let quarter = b.conv_bn("conv2", half, spec(c2, 1).with_stride(2), true);
    let mut x = quarter;
    for (name, dilation) in [("conv3", 1), ("conv4", 2), ("conv5", 4)] {
        x = b.conv_bn(name, x, spec(c3, dilation), true);
    }
    let score = b.score("score", x, settings.classes);
    let skip = b.score("score_half", half, settings.classes);
    let up = b.add("up", OpSpec::ResizeLike, &[score, skip]);
    let logits = b.add("fuse", OpSpec::Add { relu: false }, &[up, skip]);
    b.finish("fcn-tiny", logits, None, settings)
}
