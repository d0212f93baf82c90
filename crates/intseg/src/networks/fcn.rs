//! FCN-32s, FCN-16s and FCN-8s on VGG-16 (Long, Shelhamer, Darrell 2015).
//!
//! Convolutions keep the size and pools round up, so any input size works without the original's padding of 100; the
//! score maps are upsampled by exact bilinear interpolation to the size of the map that they are added to.

use super::{Builder, Settings};
use crate::graph::{ConvOutput, ConvSpec, Graph, NodeId, OpSpec, PoolSpec};

/// Channels and number of convolutions of VGG-16's five blocks.
const BLOCKS: [(usize, usize); 5] = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)];

/// FCN with its finest skip at `stride` 32, 16 or 8.
pub fn fcn_vgg16(settings: &Settings, stride: usize, bn: bool) -> Graph {
    let (mut b, image) = Builder::new(settings);
    let mut x = image;
    let mut pools = Vec::new();
    for (block, (channels, convs)) in BLOCKS.into_iter().enumerate() {
        for conv in 1..=convs {
            let channels = b.scaled(channels);
            x = layer(&mut b, &format!("conv{}_{conv}", block + 1), x, channels, 3, bn);
        }
        let pool = PoolSpec { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil: true };
        x = b.add(format!("pool{}", block + 1), OpSpec::MaxPool(pool), &[x]);
        pools.push(x);
    }
    let hidden = b.scaled(4096);
    x = layer(&mut b, "fc6", x, hidden, 7, bn);
    x = b.dropout("drop6", x, settings.drop_256);
    x = layer(&mut b, "fc7", x, hidden, 1, bn);
    x = b.dropout("drop7", x, settings.drop_256);
    let mut score = b.score("score_fr", x, settings.classes);
    let skips = [(16, "pool4", pools[3]), (8, "pool3", pools[2])];
    for (_, name, pool) in skips.into_iter().filter(|(at, ..)| *at >= stride) {
        let skip = b.score(&format!("score_{name}"), pool, settings.classes);
        let up = b.add(format!("up_{name}"), OpSpec::ResizeLike, &[score, skip]);
        score = b.add(format!("fuse_{name}"), OpSpec::Add { relu: false }, &[up, skip]);
    }
    let suffix = if bn { "-bn" } else { "" };
    b.finish(&format!("fcn{stride}s-vgg16{suffix}"), score, None, settings)
}

fn layer(b: &mut Builder, name: &str, input: NodeId, channels: usize, kernel: usize, bn: bool) -> NodeId {
    let spec = ConvSpec::same(channels, kernel, 1, ConvOutput::Relu);
    match bn {
        true => b.conv_bn(name, input, spec, true),
        false => b.conv(name, input, spec),
    }
}
