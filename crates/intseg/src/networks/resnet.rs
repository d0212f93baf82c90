//! ResNet-50 (He et al. 2016) at output stride 8 as torchvision's segmentation networks have it, and FCN on it.

use super::{Builder, Settings};
use crate::graph::{ConvOutput, ConvSpec, Graph, NodeId, OpSpec};

/// Inner channels and number of units of ResNet-50's four blocks; a unit's output has four times its inner channels.
pub const BLOCKS: [(usize, usize); 4] = [(64, 3), (128, 4), (256, 6), (512, 3)];

/// torchvision's FCN: a 3×3 with a quarter of the backbone's channels, and the logits, upsampled eight times.
pub fn fcn_resnet50(settings: &Settings) -> Graph {
    let (mut b, image) = Builder::new(settings);
    let [third, x] = backbone(&mut b, image);
    let auxiliary = settings.auxiliary.then(|| auxiliary_head(&mut b, third, settings));
    let channels = b.scaled(512);
    let x = b.conv_bn("head", x, ConvSpec::same(channels, 3, 1, ConvOutput::Accumulators), true);
    let x = b.dropout("head.drop", x, settings.drop_256.min(26));
    let logits = b.score("logits", x, settings.classes);
    b.finish("fcn-resnet50", logits, auxiliary, settings)
}

/// Bottlenecks with ReLU after the sum and the stride on the 3×3, output stride 8 by dilation: what the third and the
/// last block put out.
pub fn backbone(b: &mut Builder, image: NodeId) -> [NodeId; 2] {
    let stem = b.scaled(64);
    let x = b.conv_bn("conv1", image, ConvSpec::same(stem, 7, 1, ConvOutput::Accumulators).with_stride(2), true);
    let mut x = b.stem_pool(x);
    let mut third = x;
    for (block, (inner, units)) in BLOCKS.into_iter().enumerate() {
        let inner = b.scaled(inner);
        for unit in 0..units {
            let stride = if unit == 0 && block == 1 { 2 } else { 1 };
            // The first unit of a dilated block still has the dilation of the block before it.
            let dilation = [1, 1, 2, 4][block] / if unit == 0 && block >= 2 { 2 } else { 1 };
            let name = format!("layer{}.{unit}", block + 1);
            x = bottleneck(b, &name, x, inner, stride, dilation, unit == 0);
        }
        if block == 2 {
            third = x;
        }
    }
    [third, x]
}

/// The head on the third block that training alone has.
pub fn auxiliary_head(b: &mut Builder, third: NodeId, settings: &Settings) -> NodeId {
    let channels = b.scaled(256);
    let y = b.conv_bn("aux.conv", third, ConvSpec::same(channels, 3, 1, ConvOutput::Accumulators), true);
    let y = b.dropout("aux.drop", y, settings.drop_256.min(26));
    b.score("aux.logits", y, settings.classes)
}

fn bottleneck(
    b: &mut Builder,
    name: &str,
    x: NodeId,
    inner: usize,
    stride: usize,
    dilation: usize,
    widen: bool,
) -> NodeId {
    let spec = |channels, kernel, dilation| ConvSpec::same(channels, kernel, dilation, ConvOutput::Accumulators);
    let shortcut = match widen {
        true => b.conv_bn(&format!("{name}.shortcut"), x, spec(4 * inner, 1, 1).with_stride(stride), false),
        false => x,
    };
    let y = b.conv_bn(&format!("{name}.conv1"), x, spec(inner, 1, 1), true);
    let y = b.conv_bn(&format!("{name}.conv2"), y, spec(inner, 3, dilation).with_stride(stride), true);
    let y = b.conv_bn(&format!("{name}.conv3"), y, spec(4 * inner, 1, 1), false);
    b.add(format!("{name}.add"), OpSpec::Add { relu: true }, &[y, shortcut])
}
