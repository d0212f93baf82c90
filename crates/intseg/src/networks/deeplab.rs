//! DeepLabv3 (Chen et al. 2017) on ResNet-50, in the paper's pre-activation form and in torchvision's.
//!
//! The image-pooling branch carries bias and ReLU in both: batch normalisation over the N values that one image each
//! leaves there is unusable in training from scratch (DESIGN §3.6).

use super::resnet::{self, BLOCKS};
use super::{Builder, Settings};
use crate::graph::{ConvOutput, ConvSpec, Graph, NodeId, OpSpec, PoolSpec};

/// The paper's network: pre-activation bottlenecks, output stride 16 with the strides of the last two blocks left
/// out, atrous rates 6, 12, 18. The residual stream has 16 bits.
pub fn resnet50v2(settings: &Settings) -> Graph {
    let (mut b, image) = Builder::new(settings);
    let stem = b.scaled(64);
    let x = b.conv("conv1", image, ConvSpec::same(stem, 7, 1, ConvOutput::Linear).with_stride(2));
    let mut x = b.stem_pool(x);
    for (block, (inner, units)) in BLOCKS.into_iter().enumerate() {
        let inner = b.scaled(inner);
        for unit in 0..units {
            // Strides stand in the last unit of the first two blocks, as in the authors' code.
            let stride = if unit + 1 == units && block < 2 { 2 } else { 1 };
            x = preactivation_unit(&mut b, &format!("block{}.{unit}", block + 1), x, inner, stride, unit == 0);
        }
    }
    let x = b.add("postnorm", OpSpec::BatchNorm { relu: true }, &[x]);
    let x = pyramid(&mut b, x, [6, 12, 18]);
    let logits = b.score("logits", x, settings.classes);
    b.finish("deeplabv3-resnet50v2", logits, None, settings)
}

fn preactivation_unit(b: &mut Builder, name: &str, x: NodeId, inner: usize, stride: usize, widen: bool) -> NodeId {
    let spec = |channels, kernel| ConvSpec::same(channels, kernel, 1, ConvOutput::Linear);
    let pre = b.add(format!("{name}.preact"), OpSpec::BatchNorm { relu: true }, &[x]);
    let shortcut = match (widen, stride) {
        (true, _) => b.conv(format!("{name}.shortcut"), pre, spec(4 * inner, 1).with_stride(stride)),
        (false, 1) => x,
        (false, _) => {
            let subsample = PoolSpec { kernel: [1; 2], stride: [stride; 2], padding: [0; 2], ceil: false };
            b.add(format!("{name}.shortcut"), OpSpec::MaxPool(subsample), &[x])
        }
    };
    let y = b.conv_bn(&format!("{name}.conv1"), pre, spec(inner, 1), true);
    let y = b.conv_bn(&format!("{name}.conv2"), y, spec(inner, 3).with_stride(stride), true);
    let y = b.conv(format!("{name}.conv3"), y, spec(4 * inner, 1));
    b.add(format!("{name}.add"), OpSpec::Add { relu: false }, &[y, shortcut])
}

/// torchvision's network: its ResNet-50 at output stride 8, atrous rates 12, 24, 36, a 3×3 before the logits, and an
/// auxiliary head on the third block.
pub fn resnet50(settings: &Settings) -> Graph {
    let (mut b, image) = Builder::new(settings);
    let [third, x] = resnet::backbone(&mut b, image);
    let auxiliary = settings.auxiliary.then(|| resnet::auxiliary_head(&mut b, third, settings));
    let x = pyramid(&mut b, x, [12, 24, 36]);
    let x = b.dropout("aspp.drop", x, settings.drop_256);
    let channels = b.scaled(256);
    let x = b.conv_bn("head", x, ConvSpec::same(channels, 3, 1, ConvOutput::Accumulators), true);
    let logits = b.score("logits", x, settings.classes);
    b.finish("deeplabv3-resnet50", logits, auxiliary, settings)
}

/// Atrous spatial pyramid pooling: a 1×1 branch, three dilated 3×3 branches, image pooling, and their projection.
fn pyramid(b: &mut Builder, x: NodeId, rates: [usize; 3]) -> NodeId {
    let channels = b.scaled(256);
    let spec = |kernel, rate| ConvSpec::same(channels, kernel, rate, ConvOutput::Relu);
    let mut branches = vec![b.conv_bn("aspp.conv0", x, spec(1, 1), true)];
    for (i, rate) in rates.into_iter().enumerate() {
        branches.push(b.conv_bn(&format!("aspp.conv{}", i + 1), x, spec(3, rate), true));
    }
    let pooled = b.add("aspp.pool", OpSpec::GlobalAveragePool, &[x]);
    let pooled = b.conv("aspp.pool_conv", pooled, spec(1, 1));
    branches.push(b.add("aspp.pool_up", OpSpec::ResizeLike, &[pooled, x]));
    let joined = b.add("aspp.concat", OpSpec::Concat, &branches);
    b.conv_bn("aspp.project", joined, spec(1, 1), true)
}
