//! intseg's own networks with float weights.

use crate::graph::{FloatGraph, FloatNode, FloatOp, Interpolation, Normalization, ResizeTarget, Window};
use crate::names::{Layers, Norm, convolution_shape};
use crate::tensor::{FloatTensor, Weights};
use intseg::graph::{ConvOutput, Graph, GraphError, OpSpec};
use intseg::networks::{Settings, UnknownNetwork, build, width_1000};
use intseg::tensor::Shape;
use std::collections::BTreeSet;

/// Why weights do not make a network.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// There is no such network.
    #[error(transparent)]
    Unknown(#[from] UnknownNetwork),
    /// The network cannot be built.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The file says nothing of the network's first or last layer.
    #[error(
        "the weights have no {what} of {arch}; they are those of another network, or of a backbone without a head (train --init takes such)"
    )]
    Ends {
        /// The network.
        arch: String,
        /// What is missing.
        what: &'static str,
    },
    /// A tensor is missing.
    #[error("the weights have no tensor {name} that {arch} needs{}", hint(.known))]
    Missing {
        /// The network.
        arch: String,
        /// Its name in intseg's networks.
        name: String,
        /// The file's names that no layer took.
        known: Vec<String>,
    },
    /// A tensor has another shape.
    #[error("the tensor {name} is {found:?} in the file and {wanted:?} in {arch}")]
    Shape {
        /// The network.
        arch: String,
        /// The tensor.
        name: String,
        /// What the file has.
        found: Vec<usize>,
        /// What the network has.
        wanted: Vec<usize>,
    },
}

fn hint(known: &[String]) -> String {
    match known.len() {
        0 => String::new(),
        count => format!("; {count} of its own were not taken, such as {}", known[0]),
    }
}

/// A network with its weights, and what of the file had no place in it.
#[derive(Debug)]
pub struct Imported {
    /// The network.
    pub graph: FloatGraph,
    /// Whether the file's names are torchvision's.
    pub torchvision: bool,
    /// Tensors that were used.
    pub loaded: usize,
    /// Tensors that were not: of auxiliary heads, of other layers.
    pub ignored: Vec<String>,
}

/// The network `arch` with float weights under torchvision's, the original FCN's or its own names. Its width and its
/// number of classes are the file's.
///
/// # Errors
/// When there is no such network, or its tensors are missing or have other shapes.
pub fn network(arch: &str, weights: Weights, normalization: Normalization) -> Result<Imported, ArchError> {
    let layers = Layers::new(weights);
    let outputs = |name: &str| layers.tensors.get(&format!("{name}.weight")).and_then(|tensor| tensor.shape.first());
    let ends = |what| ArchError::Ends { arch: arch.to_owned(), what };
    let classes = ["logits", "score_fr", "score"].into_iter().find_map(outputs).ok_or_else(|| ends("logits"))?;
    let stem = layers.first_convolution().and_then(outputs).copied();
    let width_1000 = width_1000(arch, stem.ok_or_else(|| ends("first convolution"))?)?;
    let settings = Settings { width_1000, drop_256: 0, ..Settings::new(*classes) };
    let graph = build(arch, &settings)?;
    let torchvision = layers.torchvision;
    Assembly { arch, layers, used: BTreeSet::new(), nodes: Vec::new(), place: Vec::new() }
        .assemble(&graph, normalization)
        .map(|(graph, loaded, ignored)| Imported { graph, torchvision, loaded, ignored })
}

struct Assembly<'a> {
    arch: &'a str,
    layers: Layers,
    used: BTreeSet<String>,
    nodes: Vec<FloatNode>,
    place: Vec<usize>,
}

impl Assembly<'_> {
    fn assemble(
        mut self,
        graph: &Graph,
        normalization: Normalization,
    ) -> Result<(FloatGraph, usize, Vec<String>), ArchError> {
        let shapes = graph.shapes(Shape::new(1, 512, 512, 3))?;
        for (index, node) in graph.nodes.iter().enumerate() {
            let inputs: Vec<usize> = node.inputs.iter().map(|input| self.place[input.0]).collect();
            let channels_in = node.inputs.first().map_or(3, |input| shapes[input.0].c);
            let name = node.name.as_str();
            let window = |kernel, stride, dilation, padding| Window { kernel, stride, dilation, padding };
            let place = match &node.op {
                OpSpec::Image => self.push(name, FloatOp::Image, inputs),
                OpSpec::Conv(spec) => {
                    let [kh, kw] = spec.kernel;
                    let weights = self.weights(name, [spec.channels, channels_in, kh, kw])?;
                    let norm = self.norm(&format!("{name}.bn"), spec.channels)?;
                    let normalized = spec.output == ConvOutput::Accumulators;
                    let bias = self.optional(&format!("{name}.bias"), &[spec.channels])?;
                    // A network whose normalisations were folded before has biases in their place.
                    if bias.is_none() && norm.is_none() {
                        let kind = if normalized { "bn.running_mean" } else { "bias" };
                        return Err(self.missing(format!("{name}.{kind}")));
                    }
                    let bias = bias.unwrap_or_else(|| vec![0.0; spec.channels]);
                    let window = window(spec.kernel, spec.stride, spec.dilation, spec.padding);
                    let channels = [channels_in, spec.channels];
                    let conv = self.push(name, FloatOp::Conv { window, weights, channels, bias }, inputs);
                    let conv = self.normalized(name, norm, conv);
                    self.relu(name, spec.output == ConvOutput::Relu, conv)
                }
                OpSpec::BatchNorm { relu } => {
                    let conv = matches!(graph.nodes[node.inputs[0].0].op, OpSpec::Conv(_));
                    let norm = if conv { None } else { self.norm(name, channels_in)? };
                    if !conv && norm.is_none() {
                        return Err(self.missing(format!("{name}.running_mean")));
                    }
                    let place = self.normalized(name, norm, inputs[0]);
                    self.relu(name, *relu, place)
                }
                OpSpec::MaxPool(pool) => {
                    let window = window(pool.kernel, pool.stride, [1; 2], pool.padding);
                    self.push(name, FloatOp::MaxPool { window, ceil: pool.ceil }, inputs)
                }
                OpSpec::GlobalAveragePool => self.push(name, FloatOp::GlobalAveragePool, inputs),
                OpSpec::ResizeLike => {
                    let op = FloatOp::Resize { target: ResizeTarget::Like, interpolation: Interpolation::Linear };
                    self.push(name, op, inputs)
                }
                OpSpec::Add { relu } => {
                    let sum = self.push(name, FloatOp::Add, inputs);
                    self.relu(name, *relu, sum)
                }
                OpSpec::Concat => self.push(name, FloatOp::Concat, inputs),
                OpSpec::Dropout { .. } => inputs[0],
            };
            debug_assert_eq!(index, self.place.len());
            self.place.push(place);
        }
        let ignored = self.unused();
        let Assembly { arch, used, mut nodes, place, .. } = self;
        nodes.truncate(place[graph.logits.0] + 1);
        let upsampling = Interpolation::Linear;
        Ok((FloatGraph { name: arch.to_owned(), nodes, upsampling, normalization }, used.len(), ignored))
    }

    fn push(&mut self, name: &str, op: FloatOp, inputs: Vec<usize>) -> usize {
        self.nodes.push(FloatNode { name: name.to_owned(), op, inputs });
        self.nodes.len() - 1
    }

    fn normalized(&mut self, name: &str, norm: Option<Norm>, input: usize) -> usize {
        let Some(Norm { scale, offset }) = norm else { return input };
        let [scale, offset] = [scale, offset].map(|values| values.into_iter().map(|v| v as f32).collect());
        self.push(name, FloatOp::Affine { scale, offset }, vec![input])
    }

    fn relu(&mut self, name: &str, relu: bool, input: usize) -> usize {
        if !relu {
            return input;
        }
        let name = format!("{}.relu", name.trim_end_matches(".bn"));
        self.push(&name, FloatOp::Clip { low: 0.0, high: f32::INFINITY }, vec![input])
    }

    /// The file's tensors that no layer has taken.
    fn unused(&self) -> Vec<String> {
        let known = self.layers.tensors.keys().filter(|name| !self.used.contains(*name));
        known.chain(self.layers.unknown.keys()).cloned().collect()
    }

    fn missing(&self, name: String) -> ArchError {
        ArchError::Missing { arch: self.arch.to_owned(), name, known: self.unused() }
    }

    fn shape(&self, name: &str, found: &[usize], wanted: &[usize]) -> ArchError {
        let (arch, name) = (self.arch.to_owned(), name.to_owned());
        ArchError::Shape { arch, name, found: found.to_vec(), wanted: wanted.to_vec() }
    }

    /// A convolution's weights as `[KH, KW, C_in, C_out]`.
    fn weights(&mut self, layer: &str, wanted: [usize; 4]) -> Result<Vec<f32>, ArchError> {
        let name = format!("{layer}.weight");
        let Some(tensor) = self.layers.tensors.get(&name) else { return Err(self.missing(name)) };
        let shape = convolution_shape(&name, &tensor.shape).filter(|shape| *shape == wanted);
        let Some(shape) = shape else { return Err(self.shape(&name, &tensor.shape, &wanted)) };
        let weights = FloatTensor { shape: shape.to_vec(), data: tensor.data.clone() }.permuted([2, 3, 1, 0]);
        self.used.insert(name);
        Ok(weights)
    }

    fn optional(&mut self, name: &str, wanted: &[usize]) -> Result<Option<Vec<f32>>, ArchError> {
        let Some(tensor) = self.layers.tensors.get(name) else { return Ok(None) };
        if tensor.shape != wanted {
            return Err(self.shape(name, &tensor.shape, wanted));
        }
        self.used.insert(name.to_owned());
        Ok(Some(tensor.data.clone()))
    }

    fn norm(&mut self, name: &str, channels: usize) -> Result<Option<Norm>, ArchError> {
        for kind in ["running_mean", "running_var", "weight", "bias"] {
            self.optional(&format!("{name}.{kind}"), &[channels])?;
        }
        Ok(self.layers.norm(name))
    }
}
