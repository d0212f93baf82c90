//! The networks, one file each, and the builder that they share.

mod deeplab;
mod fcn;
mod resnet;
mod tiny;

use crate::graph::{ConvOutput, ConvSpec, Graph, Node, NodeId, OpSpec, PoolSpec};

/// What a network is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Number of classes.
    pub classes: usize,
    /// Width multiplier in thousandths: 1000 is the network as published.
    pub width_1000: usize,
    /// Whether to add the auxiliary head, where the network has one.
    pub auxiliary: bool,
    /// Dropout, in 256ths, where the network has it; 0 leaves it out.
    pub drop_256: u32,
    /// Whether resizing aligns the corner pixels' centres.
    pub align_corners: bool,
}

impl Settings {
    /// The network as published, with dropout ½ and half-pixel centres.
    pub fn new(classes: usize) -> Self {
        Settings { classes, width_1000: 1000, auxiliary: false, drop_256: 128, align_corners: false }
    }
}

/// A network's constructor.
type Build = fn(&Settings) -> Graph;

/// Every network: its name, one line about it, and its constructor.
pub const NETWORKS: [(&str, &str, Build); 10] = [
    ("fcn32s-vgg16", "FCN-32s on VGG-16 (Long et al. 2015)", |s| fcn::fcn_vgg16(s, 32, false)),
    ("fcn16s-vgg16", "FCN-16s on VGG-16", |s| fcn::fcn_vgg16(s, 16, false)),
    ("fcn8s-vgg16", "FCN-8s on VGG-16: the paper's first network", |s| fcn::fcn_vgg16(s, 8, false)),
    ("fcn32s-vgg16-bn", "FCN-32s on VGG-16 with batch normalisation", |s| fcn::fcn_vgg16(s, 32, true)),
    ("fcn16s-vgg16-bn", "FCN-16s on VGG-16 with batch normalisation", |s| fcn::fcn_vgg16(s, 16, true)),
    ("fcn8s-vgg16-bn", "FCN-8s on VGG-16 with batch normalisation, for training from scratch", |s| {
        fcn::fcn_vgg16(s, 8, true)
    }),
    (
        "deeplabv3-resnet50v2",
        "DeepLabv3 on pre-activation ResNet-50, output stride 16: the paper's second network",
        deeplab::resnet50v2,
    ),
    ("deeplabv3-resnet50", "DeepLabv3 on ResNet-50 as torchvision defines it, output stride 8", deeplab::resnet50),
    ("fcn-resnet50", "FCN on ResNet-50 as torchvision defines it, output stride 8", resnet::fcn_resnet50),
    ("fcn-tiny", "a small dilated FCN for the demo and for devices, under 100 kB of weights", tiny::fcn_tiny),
];

/// Builds the network of that name.
///
/// # Errors
/// [`UnknownNetwork`] when there is none.
pub fn build(name: &str, settings: &Settings) -> Result<Graph, UnknownNetwork> {
    NETWORKS
        .iter()
        .find(|(known, ..)| *known == name)
        .map(|(.., build)| build(settings))
        .ok_or_else(|| UnknownNetwork { name: name.to_owned() })
}

/// The width multiplier, in thousandths, of the network of that name whose first convolution has `stem` channels.
///
/// # Errors
/// [`UnknownNetwork`] when there is none.
pub fn width_1000(name: &str, stem: usize) -> Result<usize, UnknownNetwork> {
    let graph = build(name, &Settings::new(1))?;
    let first = graph.nodes.iter().find_map(|node| match &node.op {
        OpSpec::Conv(spec) => Some(spec.channels),
        _ => None,
    });
    Ok(stem * 1000 / first.unwrap_or(64))
}

/// There is no network of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no network {name:?}; known are {}", NETWORKS.map(|(name, ..)| name).join(", "))]
pub struct UnknownNetwork {
    /// The name asked for.
    pub name: String,
}

/// Adds nodes to a graph.
struct Builder {
    nodes: Vec<Node>,
    width_1000: usize,
}

impl Builder {
    /// A graph that holds the image alone.
    fn new(settings: &Settings) -> (Self, NodeId) {
        let mut builder = Builder { nodes: Vec::new(), width_1000: settings.width_1000 };
        let image = builder.add("image", OpSpec::Image, &[]);
        (builder, image)
    }

    /// `channels` times the width multiplier, to the nearest multiple of 8, at least 8.
    fn scaled(&self, channels: usize) -> usize {
        ((channels * self.width_1000 + 4000) / 8000 * 8).max(8)
    }

    fn add(&mut self, name: impl Into<String>, op: OpSpec, inputs: &[NodeId]) -> NodeId {
        self.nodes.push(Node { name: name.into(), op, inputs: inputs.to_vec() });
        NodeId(self.nodes.len() - 1)
    }

    fn conv(&mut self, name: impl Into<String>, input: NodeId, spec: ConvSpec) -> NodeId {
        self.add(name, OpSpec::Conv(spec), &[input])
    }

    /// Convolution, batch normalisation, and ReLU if set.
    fn conv_bn(&mut self, name: &str, input: NodeId, spec: ConvSpec, relu: bool) -> NodeId {
        let conv = self.conv(name, input, ConvSpec { output: ConvOutput::Accumulators, ..spec });
        self.add(format!("{name}.bn"), OpSpec::BatchNorm { relu }, &[conv])
    }

    /// A 1×1 convolution to one logit a class.
    fn score(&mut self, name: &str, input: NodeId, classes: usize) -> NodeId {
        self.conv(name, input, ConvSpec::same(classes, 1, 1, ConvOutput::Linear))
    }

    /// The input itself where the settings ask for no dropout.
    fn dropout(&mut self, name: &str, input: NodeId, drop_256: u32) -> NodeId {
        match drop_256 {
            0 => input,
            _ => self.add(name, OpSpec::Dropout { drop_256 }, &[input]),
        }
    }

    /// A 3×3 max pooling at stride 2, padded by 1 (ResNet's stem).
    fn stem_pool(&mut self, input: NodeId) -> NodeId {
        let pool = PoolSpec { kernel: [3; 2], stride: [2; 2], padding: [1; 2], ceil: false };
        self.add("pool1", OpSpec::MaxPool(pool), &[input])
    }

    fn finish(self, name: &str, logits: NodeId, auxiliary: Option<NodeId>, settings: &Settings) -> Graph {
        Graph { name: name.to_owned(), nodes: self.nodes, logits, auxiliary, align_corners: settings.align_corners }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    fn macs(graph: &Graph, h: usize, w: usize) -> u64 {
        let shapes = graph.shapes(Shape::new(1, h, w, 3)).unwrap();
        let deployed = graph.deployed();
        (0..graph.nodes.len())
            .filter(|&i| deployed[i])
            .map(|i| match &graph.nodes[i].op {
                OpSpec::Conv(spec) => spec.geometry(shapes[graph.nodes[i].inputs[0].0]).macs(),
                _ => 0,
            })
            .sum()
    }

    #[test]
    fn every_network_builds_at_odd_sizes_and_widths() {
        for (name, ..) in NETWORKS {
            for width_1000 in [125, 250, 1000] {
                for (h, w) in [(1, 1), (1, 37), (33, 65), (97, 64)] {
                    let settings = Settings { width_1000, auxiliary: true, ..Settings::new(21) };
                    let graph = build(name, &settings).unwrap();
                    assert_eq!((graph.name.as_str(), graph.classes()), (name, 21));
                    let shapes = graph.shapes(Shape::new(2, h, w, 3)).unwrap_or_else(|e| panic!("{name} {h}x{w}: {e}"));
                    assert_eq!(shapes[graph.logits.0].c, 21);
                }
            }
        }
        assert!(build("vgg19", &Settings::new(2)).is_err());
    }

    #[test]
    fn multiply_accumulates_are_those_of_the_published_networks() {
        // torchvision's DeepLabv3-ResNet50 and FCN-8s at 513 × 513 with 21 classes, counted from their definitions.
        let deeplab = macs(&build("deeplabv3-resnet50", &Settings::new(21)).unwrap(), 513, 513);
        assert_eq!((deeplab + 500_000) / 1_000_000, 168_653);
        let fcn = macs(&build("fcn8s-vgg16", &Settings::new(21)).unwrap(), 513, 513);
        assert!((116_500..117_100).contains(&(fcn / 1_000_000)), "{fcn}");
    }

    #[test]
    fn the_tiny_network_has_under_100_kb_of_weights() {
        let graph = build("fcn-tiny", &Settings::new(12)).unwrap();
        let shapes = graph.shapes(Shape::new(1, 64, 64, 3)).unwrap();
        let weights: usize = graph
            .nodes
            .iter()
            .map(|node| match &node.op {
                OpSpec::Conv(spec) => spec.geometry(shapes[node.inputs[0].0]).weights_len(),
                _ => 0,
            })
            .sum();
        assert!(weights < 100_000, "{weights}");
    }
}
