//! A network in training: the operators of a graph, run forward and backward.

use crate::buffers::Buffers;
use crate::data::Batch;
use crate::errors::{Pending, collect};
use crate::graph::{Graph, GraphError, OpSpec};
use crate::loss::segmentation_loss;
use crate::ops::batch_norm::BatchNorm;
use crate::ops::conv::Conv;
use crate::ops::{Bits, Operator, Step};
use crate::ops::{
    add::Add, average_pool::GlobalAveragePool, concat::Concat, dropout::Dropout, max_pool::MaxPool, resize::ResizeLike,
};
use crate::parameter::{Parameter, Rate};
use crate::tensor::{Mantissas, Shape, Tensor};
use intseg_kernels::{Context, Dither, Role};

/// Exponent of the image: value − 128 in units of 1/128.
pub const IMAGE_EXPONENT: i32 = -7;

/// Steps after which a range of exponents is forgotten, at the earliest.
const RANGE_WINDOW: u64 = 64;

/// The operator of a node. The four kinds that folding and checkpoints look into are named, the rest need no name.
pub enum Layer {
    /// The image has no operator.
    Image,
    /// A convolution.
    Conv(Box<Conv>),
    /// A batch normalisation.
    BatchNorm(Box<BatchNorm>),
    /// An operator without parameters.
    Other(Box<dyn Operator>),
}

impl Layer {
    fn operator(&mut self) -> Option<&mut dyn Operator> {
        match self {
            Layer::Image => None,
            Layer::Conv(conv) => Some(conv.as_mut()),
            Layer::BatchNorm(norm) => Some(norm.as_mut()),
            Layer::Other(operator) => Some(operator.as_mut()),
        }
    }
}

/// The largest exponent that a node's output had in the last 64 to 128 steps: deployment freezes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExponentRange {
    /// Largest of the window that is being filled.
    pub current: i32,
    /// Largest of the window before it.
    pub previous: i32,
}

impl ExponentRange {
    const NONE: i32 = i32::MIN;

    fn observe(&mut self, exponent: i32) {
        self.current = self.current.max(exponent);
    }

    fn rotate(&mut self) {
        self.previous = self.current;
        self.current = Self::NONE;
    }

    /// The exponent to freeze.
    pub fn frozen(self) -> Option<i32> {
        Some(self.current.max(self.previous)).filter(|&e| e != Self::NONE)
    }
}

/// What one step did: loss and pixels of the main head.
pub use intseg_kernels::softmax::Counts as StepOutcome;

/// What the log says of a layer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LayerState {
    /// Its name.
    pub name: String,
    /// The largest exponent that its output had in the current window.
    pub exponent: i32,
    /// Exponent of its weights, if it has any.
    pub weight_exponent: Option<i32>,
    /// Weights outside their grid after the last update, in millionths.
    pub saturated_ppm: Option<u64>,
}

/// What the loss and the update need besides the data.
pub struct Recipe<'a> {
    /// Instruction set and threads.
    pub kernels: Context<'a>,
    /// Bit widths.
    pub bits: Bits,
    /// Seed of all random bits.
    pub seed: u64,
    /// The step's number.
    pub step: u64,
    /// Class weights in 256ths, for the main and the auxiliary loss.
    pub class_weights: [&'a [u16]; 2],
    /// The learning rate in units of 2^-32.
    pub lr_q32: u64,
    /// The weight decay in units of 2^-32.
    pub decay_q32: u64,
    /// The momentum in units of 2^-15.
    pub momentum_q15: u32,
}

impl<'a> Recipe<'a> {
    /// For a forward pass from which nothing is learnt.
    pub(crate) fn forward_alone(kernels: Context<'a>, bits: Bits, seed: u64, step: u64) -> Self {
        Recipe { kernels, bits, seed, step, class_weights: [&[]; 2], lr_q32: 0, decay_q32: 0, momentum_q15: 0 }
    }
}

/// What a probed step shows, in the order in which it is computed.
pub enum Probe<'a> {
    /// A node's output.
    Output {
        /// The node.
        node: usize,
        /// Its output.
        output: &'a Tensor,
    },
    /// The error at a node's output, collected from its readers.
    Error {
        /// The node.
        node: usize,
        /// The error.
        error: &'a Tensor,
    },
    /// What a convolution's weight gradient is the exact sum over.
    Convolved {
        /// The convolution's node.
        node: usize,
        /// Its input.
        input: &'a Tensor,
        /// The error that its backward pass reads (E2).
        error: Tensor,
    },
}

/// Sees what a step computes.
type Observer<'a> = &'a mut dyn FnMut(Probe);

/// A network in training.
pub struct Network {
    /// Its definition.
    pub graph: Graph,
    /// One layer a node.
    pub layers: Vec<Layer>,
    /// One range a node.
    pub ranges: Vec<ExponentRange>,
    /// Steps whose masters are in the parameters' means.
    pub averaged: u32,
    buffers: Buffers,
    last_reader: Vec<usize>,
    /// How many convolutions read a node.
    convolutions: Vec<usize>,
    /// Whether a node is read by sums and batch normalisations alone, and by no loss.
    passing: Vec<bool>,
}

impl Network {
    /// Instantiates a graph with initial weights drawn from `seed`.
    ///
    /// # Errors
    /// When a layer's accumulator could overflow.
    pub fn new(graph: Graph, seed: u64) -> Result<Self, GraphError> {
        // Channels do not depend on the image's size.
        let shapes = graph.shapes(Shape::new(1, 64, 64, 3))?;
        let layers = (0..graph.nodes.len()).map(|i| instantiate(&graph, &shapes, i, seed)).collect();
        let mut last_reader = vec![0; graph.nodes.len()];
        for (index, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|id| last_reader[id.0] = index);
        }
        let mut convolutions = vec![0; graph.nodes.len()];
        for node in graph.nodes.iter().filter(|node| matches!(node.op, OpSpec::Conv(_))) {
            node.inputs.iter().for_each(|id| convolutions[id.0] += 1);
        }
        let mut passing = vec![true; graph.nodes.len()];
        for node in &graph.nodes {
            if !matches!(node.op, OpSpec::Add { .. } | OpSpec::BatchNorm { .. }) {
                node.inputs.iter().for_each(|id| passing[id.0] = false);
            }
        }
        std::iter::once(graph.logits).chain(graph.auxiliary).for_each(|id| passing[id.0] = false);
        let none = ExponentRange { current: ExponentRange::NONE, previous: ExponentRange::NONE };
        Ok(Network {
            layers,
            ranges: vec![none; graph.nodes.len()],
            averaged: 0,
            buffers: Buffers::default(),
            last_reader,
            convolutions,
            passing,
            graph,
        })
    }

    /// Every parameter, in the graph's order.
    pub fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.layers.iter_mut().filter_map(Layer::operator).flat_map(|operator| operator.parameters())
    }

    /// Takes every parameter's masters into their means.
    pub fn average(&mut self, kernels: Context) {
        self.averaged += 1;
        let count = self.averaged;
        self.parameters().for_each(|parameter| parameter.average(kernels, count));
    }

    /// Exchanges masters and means, where there are any: what is deployed, until it is called again.
    pub fn swap_averages(&mut self) {
        if self.averaged > 0 {
            self.parameters().for_each(|p| std::mem::swap(&mut p.master, &mut p.mean));
        }
    }

    /// State besides the parameters: running statistics, in the graph's order.
    pub fn state(&mut self) -> impl Iterator<Item = &mut Vec<i64>> {
        self.layers.iter_mut().filter_map(Layer::operator).flat_map(|operator| operator.state())
    }

    /// Each node's running statistics: μ, then mean|d|, of a normalisation's channels, in units of 2^-24; empty elsewhere
    /// and before the first step.
    pub fn statistics(&self) -> impl Iterator<Item = &[i64]> {
        self.layers.iter().map(|layer| match layer {
            Layer::BatchNorm(norm) => norm.running(),
            _ => &[],
        })
    }

    /// The name of every normalisation in the graph's order, and its channels: those of [`Network::state`].
    pub fn normalizations(&mut self) -> Vec<(String, usize)> {
        let scales = self
            .parameters()
            .filter_map(|p| p.name.strip_suffix(".gamma").map(|node| (node.to_owned(), p.master.len())));
        scales.collect()
    }

    /// Every layer's exponents and saturation.
    pub fn layer_states(&self) -> Vec<LayerState> {
        let state = |((node, layer), range): ((&crate::graph::Node, &Layer), &ExponentRange)| {
            let weight = match layer {
                Layer::Conv(conv) => Some(&conv.weight),
                _ => None,
            };
            LayerState {
                name: node.name.clone(),
                exponent: range.frozen().unwrap_or_default(),
                weight_exponent: weight.map(|w| w.exponent),
                saturated_ppm: weight.map(|w| w.saturated as u64 * 1_000_000 / w.master.len() as u64),
            }
        };
        self.graph.nodes.iter().zip(&self.layers).zip(&self.ranges).map(state).collect()
    }

    /// Number of trained values.
    pub fn parameter_count(&mut self) -> usize {
        self.parameters().map(|p| p.master.len()).sum()
    }

    /// One step: forward, loss, backward, update.
    pub fn train_step(&mut self, batch: &Batch, recipe: &Recipe) -> StepOutcome {
        self.observed_step(batch, recipe, None)
    }

    /// The same step, shown to `observe` as it is computed.
    pub fn probed_step(&mut self, batch: &Batch, recipe: &Recipe, observe: &mut dyn FnMut(Probe)) -> StepOutcome {
        self.observed_step(batch, recipe, Some(observe))
    }

    fn observed_step(&mut self, batch: &Batch, recipe: &Recipe, mut observe: Option<Observer>) -> StepOutcome {
        if recipe.step.is_multiple_of(RANGE_WINDOW) {
            self.ranges.iter_mut().for_each(ExponentRange::rotate);
        }
        let mut values = self.forward(batch, recipe, true, &mut observe);
        for (range, value) in self.ranges.iter_mut().zip(&values) {
            range.observe(value.exponent);
        }
        let mut errors: Vec<Pending> = values.iter().map(|_| Pending::default()).collect();
        let heads = std::iter::once(self.graph.logits).chain(self.graph.auxiliary);
        let mut outcome = StepOutcome::default();
        for (head, (node, weights)) in heads.zip(recipe.class_weights).enumerate() {
            let step = self.step(recipe, node.0);
            let loss =
                segmentation_loss(&step, &values[node.0], &batch.labels, batch.size, self.graph.align_corners, weights);
            errors[node.0].parts.push(loss.error);
            if head == 0 {
                outcome = loss.counts;
            }
        }
        let rate = Rate::new(recipe.lr_q32, outcome.weight_q8, recipe.decay_q32, recipe.momentum_q15);
        self.backward(&mut values, errors, recipe, &rate, &mut observe);
        values.into_iter().for_each(|value| self.buffers.give(value));
        outcome
    }

    /// Shows `observe` every node's output for a batch, normalised by the batch's own statistics, without dropout. Running
    /// statistics move as in a training step; nothing else that a later step depends on does.
    pub fn survey(&mut self, batch: &Batch, kernels: Context, bits: Bits, observe: &mut dyn FnMut(usize, &Tensor)) {
        let mut outputs = |probe: Probe| {
            if let Probe::Output { node, output } = probe {
                observe(node, output);
            }
        };
        self.show(batch, &Recipe::forward_alone(kernels, bits, 0, 0), &mut Some(&mut outputs));
    }

    /// Whether normalisations wait for the statistics of the batches that `show` shows them.
    pub fn is_adopting(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer, Layer::BatchNorm(norm) if norm.is_adopting()))
    }

    /// Runs forward alone, without dropout, for what normalisations and `observe` see.
    pub(crate) fn show(&mut self, batch: &Batch, recipe: &Recipe, observe: &mut Option<Observer>) {
        let values = self.forward(batch, recipe, false, observe);
        values.into_iter().for_each(|value| self.buffers.give(value));
    }

    /// Ends the search for statistics: training may begin.
    pub fn end_adoption(&mut self) {
        for layer in &mut self.layers {
            if let Layer::BatchNorm(norm) = layer {
                norm.end_adoption();
            }
        }
    }

    fn step<'a>(&'a self, recipe: &'a Recipe, node: usize) -> Step<'a> {
        step_of(&self.buffers, recipe, node)
    }

    /// Every node's output. What no backward pass reads is given back once its last reader has run, and leaves an empty
    /// tensor: accumulators, and 16-bit streams whose readers keep what they need of them.
    fn forward(&mut self, batch: &Batch, recipe: &Recipe, drops: bool, observe: &mut Option<Observer>) -> Vec<Tensor> {
        let mut values: Vec<Tensor> = Vec::with_capacity(self.graph.nodes.len());
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let step = step_of(&self.buffers, recipe, index);
            let value = match self.layers[index].operator() {
                None => {
                    let mut image = self.buffers.take_i8(batch.images.len());
                    image.copy_from_slice(&batch.images);
                    Tensor::i8(batch.shape(), IMAGE_EXPONENT, image)
                }
                Some(_) if !drops && matches!(node.op, OpSpec::Dropout { .. }) => {
                    self.buffers.copy(recipe.kernels.pool, &values[node.inputs[0].0])
                }
                Some(operator) => {
                    let inputs: Vec<&Tensor> = node.inputs.iter().map(|id| &values[id.0]).collect();
                    operator.forward(&step, &inputs)
                }
            };
            if let Some(observe) = observe {
                observe(Probe::Output { node: index, output: &value });
            }
            values.push(value);
            for id in &node.inputs {
                if self.last_reader[id.0] != index {
                    continue;
                }
                match &mut values[id.0].mantissas {
                    Mantissas::I32(sums) => self.buffers.give_i32(std::mem::take(sums)),
                    Mantissas::I16(stream) if self.passing[id.0] => self.buffers.give_i16(std::mem::take(stream)),
                    _ => {}
                }
            }
        }
        values
    }

    /// Hands errors from the heads to the image, and updates each layer's parameters as soon as its error has been
    /// handed on: no two layers' gradients exist at the same time.
    fn backward(
        &mut self,
        values: &mut [Tensor],
        mut errors: Vec<Pending>,
        recipe: &Recipe,
        rate: &Rate,
        observe: &mut Option<Observer>,
    ) {
        for index in (0..self.graph.nodes.len()).rev() {
            let pending = std::mem::take(&mut errors[index]);
            let step = step_of(&self.buffers, recipe, index);
            let Some(operator) = self.layers[index].operator() else {
                pending.parts.into_iter().for_each(|part| self.buffers.give(part));
                continue;
            };
            if pending.parts.is_empty() {
                continue;
            }
            let stream = matches!(self.graph.nodes[index].op, OpSpec::Add { .. });
            let error = collect(&step, &values[index], stream, pending);
            if let Some(observe) = observe {
                observe(Probe::Error { node: index, error: &error });
            }
            let node = &self.graph.nodes[index];
            let inputs: Vec<&Tensor> = node.inputs.iter().map(|id| &values[id.0]).collect();
            let wanted: Vec<bool> =
                node.inputs.iter().map(|id| !matches!(self.graph.nodes[id.0].op, OpSpec::Image)).collect();
            let parts = operator.backward(&step, &inputs, &values[index], error, &wanted);
            let bound = match &self.layers[index] {
                Layer::Conv(conv) if step.bits.e2 <= 8 => Some(conv.backward_bound()),
                _ => None,
            };
            for (id, part) in node.inputs.iter().zip(parts) {
                let Some(part) = part else { continue };
                match bound.filter(|_| self.convolutions[id.0] > 2) {
                    Some(bound) => errors[id.0].add(&step, part, bound),
                    None => errors[id.0].parts.push(part),
                }
            }
            if let (Some(observe), Layer::Conv(conv)) = (&mut *observe, &self.layers[index]) {
                let error = conv.error_in_use(values[index].shape);
                observe(Probe::Convolved { node: index, input: inputs[0], error });
            }
            if let Some(operator) = self.layers[index].operator() {
                operator.learn(&step, &inputs, rate);
            }
        }
    }
}

fn step_of<'a>(buffers: &'a Buffers, recipe: &Recipe<'a>, node: usize) -> Step<'a> {
    Step {
        kernels: recipe.kernels,
        bits: recipe.bits,
        buffers,
        seed: recipe.seed,
        number: recipe.step,
        node: node as u32,
    }
}

fn instantiate(graph: &Graph, shapes: &[Shape], index: usize, seed: u64) -> Layer {
    let node = &graph.nodes[index];
    let input = |k: usize| shapes[node.inputs[k].0];
    match &node.op {
        OpSpec::Image => Layer::Image,
        OpSpec::Conv(spec) => {
            let signed = matches!(graph.nodes[node.inputs[0].0].op, OpSpec::Image);
            let draw = Dither::new(seed, 0, index as u32, Role::Initial);
            Layer::Conv(Box::new(Conv::new(&node.name, *spec, input(0).c, signed, draw)))
        }
        OpSpec::BatchNorm { relu } => Layer::BatchNorm(Box::new(BatchNorm::new(&node.name, input(0).c, *relu))),
        OpSpec::MaxPool(spec) => Layer::Other(Box::new(MaxPool::new(*spec))),
        OpSpec::GlobalAveragePool => Layer::Other(Box::new(GlobalAveragePool)),
        OpSpec::ResizeLike => Layer::Other(Box::new(ResizeLike::new(graph.align_corners))),
        OpSpec::Add { relu } => Layer::Other(Box::new(Add::new(*relu))),
        OpSpec::Concat => Layer::Other(Box::new(Concat)),
        OpSpec::Dropout { drop_256 } => Layer::Other(Box::new(Dropout::new(*drop_256))),
    }
}
