//! The network under construction: values by name, nodes, and their sizes for a few images.
//!
//! Exporters compute the size that a resize goes to by arithmetic on the shapes of other tensors, or of the image. That
//! arithmetic is not translated but carried out, for several image sizes at once ([`PROBES`]); what a resize goes to is
//! then what has its size in all of them (`finish.rs`).

use super::call::Call;
use super::numbers::Numbers;
use super::proto::Tensor;
use super::tensor;
use crate::graph::{FloatNode, FloatOp};
use crate::read::Problem;
use crate::read::limits::Budget;
use crate::tensor::FloatTensor;
use std::collections::HashMap;

/// Image sizes that a network of no fixed size is tried on. Networks whose skips take multiples of a stride fail on the
/// odd ones, which are then left out.
const PROBES: [[usize; 2]; MOST_PROBES] =
    [[128, 192], [256, 128], [192, 320], [97, 150], [161, 129], [225, 83], [62, 200]];
/// Sizes that a network is tried on at most.
pub const MOST_PROBES: usize = 7;
/// Rows or columns that a tensor may have.
const LARGEST_SIDE: usize = 1 << 16;
/// Channels that a tensor may have.
const MOST_CHANNELS: usize = 1 << 20;

/// What a name of the graph stands for.
#[derive(Clone)]
pub enum Value<'m> {
    /// A tensor of the file.
    Constant(&'m Tensor),
    /// Sizes, for each probe.
    Numbers(Vec<Numbers>),
    /// The output of a node.
    Feature(usize),
    /// The output of a node after softmax or the choice of a class, which only the network's end may read.
    Ended(usize),
}

/// A node, with what is known of its output.
pub struct Draft {
    /// The node.
    pub node: FloatNode,
    /// Channels of its output.
    pub channels: usize,
    /// Rows and columns of its output, for each probe; meaningless where the probe has failed.
    pub sizes: Vec<[usize; 2]>,
    /// Whether a resize goes by a constant factor.
    pub constant_factor: bool,
}

/// The network under construction.
pub struct Builder<'m> {
    /// What names stand for.
    pub values: HashMap<&'m str, Value<'m>>,
    /// Nodes so far.
    pub drafts: Vec<Draft>,
    /// What memory is left.
    pub budget: Budget,
    /// Why a probe's size does not go through the network.
    failures: Vec<Option<Problem>>,
}

impl<'m> Builder<'m> {
    /// A network of nothing but an image, of one size or of any.
    pub fn new(fixed: Option<[usize; 2]>) -> Self {
        let sizes = fixed.map_or_else(|| PROBES.to_vec(), |size| vec![size]);
        let failures = sizes.iter().map(|_| None).collect();
        let node = FloatNode { name: "image".into(), op: FloatOp::Image, inputs: vec![] };
        let image = Draft { node, channels: 3, sizes, constant_factor: false };
        Builder { values: HashMap::new(), drafts: vec![image], budget: Budget::default(), failures }
    }

    /// Probes that have not failed.
    pub fn probes(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.failures.len()).filter(|&probe| self.failures[probe].is_none())
    }

    /// Something for each probe. A probe for which there is an error has failed.
    ///
    /// # Errors
    /// The first probe's error, when none is left.
    pub fn for_probes<T: Default>(
        &mut self,
        value: impl Fn(&Self, usize) -> Result<T, Problem>,
    ) -> Result<Vec<T>, Problem> {
        let mut all = Vec::with_capacity(self.failures.len());
        for probe in 0..self.failures.len() {
            let found = if self.failures[probe].is_none() { value(self, probe) } else { Ok(T::default()) };
            all.push(found.unwrap_or_else(|problem| {
                self.failures[probe] = Some(problem);
                T::default()
            }));
        }
        if self.probes().next().is_some() {
            return Ok(all);
        }
        Err(self.failures.iter_mut().find_map(Option::take).unwrap_or(Problem::NoTensors))
    }

    /// What an input stands for.
    ///
    /// # Errors
    /// When it is left out or nothing has its name.
    pub fn value(&self, call: Call<'m>, index: usize) -> Result<&Value<'m>, Problem> {
        let name = call.required_input(index)?;
        self.values.get(name).ok_or_else(|| call.refuse(format!("nothing computes its input {name}")))
    }

    /// The node that computes an input.
    ///
    /// # Errors
    /// When the input is no feature map.
    pub fn feature(&self, call: Call<'m>, index: usize) -> Result<usize, Problem> {
        match self.value(call, index)? {
            Value::Feature(node) => Ok(*node),
            Value::Ended(_) => Err(call.refuse("it follows softmax or argmax, which are understood at the end only")),
            _ => Err(call.refuse(format!("its input {index} is a constant where a feature map is understood"))),
        }
    }

    /// A constant input of floats.
    ///
    /// # Errors
    /// When it is computed from the image, or is no tensor of floats.
    pub fn floats(&mut self, call: Call<'m>, index: usize) -> Result<FloatTensor, Problem> {
        match self.value(call, index)? {
            Value::Constant(tensor) => {
                let (tensor, name) = (*tensor, call.required_input(index)?);
                tensor::floats(name, tensor, &mut self.budget)
            }
            Value::Numbers(_) => {
                let numbers = self.constant_numbers(call, index)?;
                Ok(FloatTensor { shape: numbers.shape, data: numbers.values.iter().map(|&v| v as f32).collect() })
            }
            _ => Err(call.refuse(format!("its input {index} is not constant"))),
        }
    }

    /// A few numbers, for a probe.
    ///
    /// # Errors
    /// When the input is no constant and no arithmetic on shapes, or more than a few.
    pub fn numbers(&self, call: Call<'m>, index: usize, probe: usize) -> Result<Numbers, Problem> {
        match self.value(call, index)? {
            Value::Constant(tensor) => Numbers::of_tensor(call.required_input(index)?, tensor),
            Value::Numbers(numbers) => Ok(numbers[probe].clone()),
            _ => Err(call.refuse(format!("its input {index} is computed from the image's values"))),
        }
    }

    /// A few numbers that do not depend on the image's size.
    ///
    /// # Errors
    /// When they do, or cannot be had.
    pub fn constant_numbers(&self, call: Call<'m>, index: usize) -> Result<Numbers, Problem> {
        let mut found = None;
        for probe in self.probes() {
            let numbers = self.numbers(call, index, probe)?;
            if *found.get_or_insert_with(|| numbers.clone()) != numbers {
                return Err(call.refuse(format!("its input {index} depends on the image's size")));
            }
        }
        found.ok_or_else(|| call.refuse("no image size goes through the network"))
    }

    /// Adds a node whose output has these channels, and for each probe the size that `size` says.
    ///
    /// # Errors
    /// When there are too many channels, or no probe has a size.
    pub fn emit(
        &mut self,
        call: Call<'m>,
        op: FloatOp,
        inputs: Vec<usize>,
        channels: usize,
        size: impl Fn(&Self, usize) -> Result<[usize; 2], Problem>,
    ) -> Result<Value<'m>, Problem> {
        if !(1..=MOST_CHANNELS).contains(&channels) {
            return Err(call.refuse(format!("its output has {channels} channels")));
        }
        let sizes = self.for_probes(|builder, probe| {
            let size = size(builder, probe)?;
            match size.iter().all(|side| (1..=LARGEST_SIDE).contains(side)) {
                true => Ok(size),
                false => Err(call.refuse(format!("its output has {} rows and {} columns", size[0], size[1]))),
            }
        })?;
        let node = FloatNode { name: call.name().to_owned(), op, inputs };
        self.drafts.push(Draft { node, channels, sizes, constant_factor: false });
        Ok(Value::Feature(self.drafts.len() - 1))
    }

    /// Adds a node whose output is of the size and channels of its input.
    ///
    /// # Errors
    /// As for [`Builder::emit`].
    pub fn emit_pointwise(&mut self, call: Call<'m>, op: FloatOp, input: usize) -> Result<Value<'m>, Problem> {
        let channels = self.drafts[input].channels;
        self.emit(call, op, vec![input], channels, |builder, probe| Ok(builder.drafts[input].sizes[probe]))
    }
}
