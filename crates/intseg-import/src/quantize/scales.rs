//! The steps of activations: which channels share a scale, what each is scaled by, and each tensor's exponent.
//!
//! ReLU, sums, pooling, resizing and concatenation commute with a positive factor a channel; so a convolution's output
//! channels can be multiplied by any factors if the weights that read them are divided by the same (cross-layer
//! equalisation: Nagel et al. 2019, *Data-Free Quantization*). intseg needs that twice: a tensor's step is a power of
//! two, and the factor puts its range at the end of the eight bits; and channels of small range use more of them.

use super::prepare::{Prepared, channels, passes, scale_input, scale_output};
use super::statistics::{Channels, Histogram};
use super::{Options, Ranges};
use crate::graph::{FloatNode, FloatOp};
use intseg_runtime::Element;
use std::collections::BTreeMap;

/// Sets that can be united.
struct Sets(Vec<usize>);

impl Sets {
    fn new(len: usize) -> Self {
        Sets((0..len).collect())
    }

    fn find(&self, mut at: usize) -> usize {
        while self.0[at] != at {
            at = self.0[at];
        }
        at
    }

    /// The smaller number stays the set's.
    fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b)] = a.min(b);
    }
}

/// How many steps a type has on one side of zero.
pub fn levels(element: Element) -> f64 {
    element.range()[1].into()
}

/// The factors by which the channels of each node's output are multiplied.
#[derive(Clone, Debug)]
pub struct Factors {
    /// The first channel of each node among all.
    first: Vec<usize>,
    /// Each channel's class: all of a class have one factor.
    class: Vec<usize>,
    /// Each channel's group: the tensors whose ranges are weighed against each other. `None`: its factor must stay 1.
    group: Vec<Option<usize>>,
    factor: Vec<f64>,
}

impl Factors {
    /// Which channels go together; all factors are 1.
    pub fn new(prepared: &Prepared) -> Self {
        let nodes = &prepared.graph.nodes;
        let counts = channels(nodes);
        let first: Vec<usize> = counts.iter().scan(0, |at, &count| Some(std::mem::replace(at, *at + count))).collect();
        let total = counts.iter().sum();
        let (mut class, mut tensors, mut fixed) = (Sets::new(total), Sets::new(nodes.len()), vec![false; total]);
        for (index, node) in nodes.iter().enumerate() {
            let all = first[index]..first[index] + counts[index];
            let linked: &[usize] = match node.op {
                FloatOp::Add => &node.inputs,
                FloatOp::GlobalAveragePool => &node.inputs,
                _ if passes(&node.op) => &node.inputs[..1],
                _ => &[],
            };
            for &input in linked {
                tensors.unite(index, input);
                (0..counts[index]).for_each(|k| class.unite(first[index] + k, first[input] + k));
            }
            match node.op {
                FloatOp::Concat => {
                    let inputs = node.inputs.iter().flat_map(|&input| first[input]..first[input] + counts[input]);
                    all.zip(inputs).for_each(|(a, b)| class.unite(a, b));
                }
                FloatOp::Image => fixed[all].fill(true),
                // One factor for all channels, at both ends.
                FloatOp::Function { .. } => {
                    let input = first[node.inputs[0]];
                    (1..counts[index]).for_each(|k| {
                        class.unite(first[index], first[index] + k);
                        class.unite(input, input + k);
                    });
                }
                FloatOp::Clip { .. } if reads_whole(nodes, index) => {}
                FloatOp::Clip { low, high } if low != 0.0 || high != f32::INFINITY => fixed[all].fill(true),
                _ if index + 1 == nodes.len() => fixed[all].fill(true),
                _ => {}
            }
        }
        let class: Vec<usize> = (0..total).map(|at| class.find(at)).collect();
        // A class belongs to the group of the first tensor that it occurs in; one fixed class fixes its group.
        let mut group_of: BTreeMap<usize, usize> = BTreeMap::new();
        let node_of = |at: usize| first.partition_point(|&first| first <= at) - 1;
        (0..total).for_each(|at| {
            let group = tensors.find(node_of(at));
            let known = group_of.entry(class[at]).or_insert(group);
            *known = group.min(*known);
        });
        let still: std::collections::BTreeSet<usize> =
            (0..total).filter(|&at| fixed[at]).map(|at| group_of[&class[at]]).collect();
        let group = class.iter().map(|class| Some(group_of[class]).filter(|group| !still.contains(group))).collect();
        Factors { first, class, group, factor: vec![1.0; total] }
    }

    /// The factor of a node's channel.
    pub fn of(&self, node: usize, k: usize) -> f64 {
        self.factor[self.first[node] + k]
    }

    fn group_of(&self, node: usize, k: usize) -> Option<usize> {
        self.group[self.first[node] + k]
    }

    /// The one group of all of a node's channels.
    fn whole(&self, node: usize, channels: usize) -> Option<usize> {
        let group = self.group_of(node, 0)?;
        (1..channels).all(|k| self.group_of(node, k) == Some(group)).then_some(group)
    }

    /// Chooses factors such that the largest range in each group becomes 1, and the others' as much as `strength` says:
    /// from 0, as they were beside it, to 1, the same. Channels read by larger weights get more.
    pub fn equalize(&mut self, prepared: &Prepared, statistics: &[Channels], strength: f64) {
        let nodes = &prepared.graph.nodes;
        let counts = channels(nodes);
        let (mut range, mut weight) = (vec![0f64; self.class.len()], vec![0f64; self.class.len()]);
        for (index, node) in nodes.iter().enumerate() {
            if prepared.elements[index] != Element::I16 && prepared.clamp(index).is_none() {
                for k in 0..counts[index] {
                    let class = self.class[self.first[index] + k];
                    range[class] = range[class].max(statistics[index].magnitude(k));
                }
            }
            let columns = match &node.op {
                FloatOp::Conv { weights, channels, .. } | FloatOp::ConvTranspose { weights, channels, .. } => {
                    relative_columns(weights, *channels)
                }
                // What reads every channel with a scale of its own finds no channel too small.
                FloatOp::Depthwise { .. } | FloatOp::Product { .. } => vec![1.0; counts[index]],
                _ => continue,
            };
            let inputs = if matches!(node.op, FloatOp::Product { .. }) { &node.inputs[..] } else { &node.inputs[..1] };
            for (&input, (k, &column)) in inputs.iter().flat_map(|i| columns.iter().enumerate().map(move |c| (i, c))) {
                let class = self.class[self.first[input] + k];
                weight[class] = weight[class].max(column);
            }
        }
        // What share of its group's range a channel fills.
        let fill = |class: usize| range[class].powf(1.0 - strength) * weight[class].max(1e-6).powf(strength);
        let mut largest: BTreeMap<usize, f64> = BTreeMap::new();
        for at in 0..self.class.len() {
            if let Some(group) = self.group[at] {
                let entry = largest.entry(group).or_default();
                *entry = entry.max(fill(self.class[at]));
            }
        }
        for at in 0..self.class.len() {
            let (class, Some(group)) = (self.class[at], self.group[at]) else { continue };
            let usable = range[class] > 1e-12 && largest[&group] > 1e-12;
            // A channel that is never anything takes part in nothing.
            self.factor[at] =
                if usable { (fill(class) / largest[&group] / range[class]).clamp(1e-9, 1e9) } else { 1.0 };
        }
    }

    /// Multiplies a group's factors.
    fn multiply(&mut self, group: usize, factor: f64) {
        let members = self.factor.iter_mut().zip(&self.group).filter(|(_, of)| **of == Some(group));
        members.for_each(|(value, _)| *value *= factor);
    }

    /// The network with its channels multiplied: the same function.
    pub fn apply(&self, prepared: &Prepared) -> Prepared {
        let mut scaled = prepared.clone();
        for (index, node) in scaled.graph.nodes.iter_mut().enumerate() {
            let multiplied = if matches!(node.op, FloatOp::Product { .. }) { 2 } else { 1 };
            for input in node.inputs.clone().into_iter().take(multiplied) {
                scale_input(&mut node.op, |k| 1.0 / self.of(input, k));
            }
            scale_output(&mut node.op, |k| self.of(index, k), |_| 0.0);
        }
        scaled
    }
}

/// Whether nothing but functions reads a node: then its channels have one factor, and a bound can be multiplied by it.
fn reads_whole(nodes: &[FloatNode], node: usize) -> bool {
    let mut readers = nodes.iter().filter(|reader| reader.inputs.contains(&node)).peekable();
    readers.peek().is_some() && readers.all(|reader| matches!(reader.op, FloatOp::Function { .. }))
}

/// For each input channel, the largest of its weights over the largest of all that their output channel has.
fn relative_columns(weights: &[f32], [c_in, c_out]: [usize; 2]) -> Vec<f64> {
    let mut largest = vec![1e-12f32; c_out];
    for row in weights.chunks_exact(c_out) {
        largest.iter_mut().zip(row).for_each(|(largest, w)| *largest = largest.max(w.abs()));
    }
    let mut columns = vec![0f32; c_in];
    for (index, row) in weights.chunks_exact(c_out).enumerate() {
        let column = &mut columns[index % c_in];
        row.iter().zip(&largest).for_each(|(w, largest)| *column = column.max(w.abs() / largest));
    }
    columns.into_iter().map(f64::from).collect()
}

/// Factors tried between one power of two and the next.
const TRIES: usize = 32;

/// Chooses each node's exponent, and for each group of channels the factor between 1 and 2 at which the powers of two
/// fit best. `histograms` are those of the scaled network's nodes.
pub fn choose(
    prepared: &Prepared,
    histograms: &[Option<Histogram>],
    statistics: &[Channels],
    factors: &mut Factors,
    options: &Options,
) -> Vec<i32> {
    let nodes = &prepared.graph.nodes;
    let counts = channels(nodes);
    // Nodes that must have one exponent.
    let mut tied = Sets::new(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let inputs: &[usize] = match node.op {
            FloatOp::Concat => &node.inputs,
            _ if passes(&node.op) => &node.inputs[..1],
            _ => &[],
        };
        inputs.iter().for_each(|&input| tied.unite(index, input));
    }
    let noise = |node: usize, step: f64| {
        let (Some(histogram), levels) = (&histograms[node], levels(prepared.elements[node])) else { return 0.0 };
        let rounding = histogram.noise(step, f64::INFINITY);
        let holds = |largest: f64| if step * levels * 1.000_001 >= largest { rounding } else { f64::INFINITY };
        match options.ranges {
            // How many others would be cut off is not known.
            _ if statistics[node].are_few() => holds(histogram.largest),
            Ranges::Maximum => holds(histogram.largest),
            Ranges::Percentile(share) => holds(histogram.percentile(share)),
            Ranges::SquaredError => histogram.noise(step, levels),
        }
    };
    // Tensors whose rounding counts, by tie.
    let mut ties: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    (0..nodes.len()).filter(|&node| histograms[node].is_some()).for_each(|node| {
        ties.entry(tied.find(node)).or_default().push(node);
    });
    let groups: Vec<Option<usize>> = (0..nodes.len()).map(|node| factors.whole(node, counts[node])).collect();
    let mut chosen: BTreeMap<usize, f64> = groups.iter().flatten().map(|&group| (group, 1.0)).collect();
    let best = |members: &[usize], chosen: &BTreeMap<usize, f64>| {
        let error = |exponent: i32| -> f64 {
            let step = |node: usize| 2f64.powi(exponent) / groups[node].map_or(1.0, |group| chosen[&group]);
            members.iter().map(|&node| noise(node, step(node))).sum()
        };
        let largest = members.iter().filter_map(|&node| histograms[node].as_ref()).fold(0f64, |a, h| a.max(h.largest));
        let top = (largest.max(1e-9) * 2.0 / 127.0).log2().ceil() as i32;
        // From no clipping at all downwards.
        (top - 9..=top)
            .rev()
            .map(|exponent| (error(exponent), exponent))
            .fold((f64::INFINITY, top), |a, b| if b.0 < a.0 { b } else { a })
    };
    for _ in 0..2 {
        for group in chosen.keys().copied().collect::<Vec<_>>() {
            let touched: Vec<&Vec<usize>> =
                ties.values().filter(|members| members.iter().any(|&node| groups[node] == Some(group))).collect();
            let mut winner = (f64::INFINITY, 1.0);
            for k in 0..TRIES {
                let factor = 2f64.powf(k as f64 / TRIES as f64);
                chosen.insert(group, factor);
                let error: f64 = touched.iter().map(|members| best(members, &chosen).0).sum();
                if error < winner.0 {
                    winner = (error, factor);
                }
            }
            chosen.insert(group, winner.1);
        }
    }
    chosen.iter().for_each(|(&group, &factor)| factors.multiply(group, factor));
    let factors = &*factors;
    let exponents: BTreeMap<usize, i32> = ties.iter().map(|(&tie, members)| (tie, best(members, &chosen).1)).collect();
    (0..nodes.len())
        .map(|node| match (exponents.get(&tied.find(node)), &nodes[node].op) {
            (_, FloatOp::Image | FloatOp::Pad { .. }) => -7,
            (Some(&exponent), _) => exponent,
            // 16 bits hold what was seen, a quarter more, and still have steps enough.
            (None, _) => {
                let members = (0..nodes.len()).filter(|&other| tied.find(other) == tied.find(node));
                let seen = |member: usize| {
                    let magnitudes =
                        (0..counts[member]).map(|k| statistics[member].magnitude(k) * factors.of(member, k));
                    magnitudes.fold(1e-9, f64::max)
                };
                let largest = members.map(seen).fold(1e-9, f64::max) * 1.25;
                (largest / levels(Element::I16)).log2().ceil() as i32
            }
        })
        .collect()
}
