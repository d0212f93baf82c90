//! Which rows of which map a strip of the image needs, and where in the arena they lie.

use super::ExportError;
use intseg_kernels::Context;
use intseg_kernels::resize::{Tap, axis};
use intseg_runtime::{Interpolation, Model, Node, Op, Plan, Shape, Slot};
use std::ops::Range;

/// How an image is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strips {
    /// Not at all.
    #[default]
    Whole,
    /// Into strips of so many rows of the class map; the last one may have fewer.
    Rows(usize),
    /// Into the fewest strips with which the arena, a strip of the image and one of the class map fit into so many bytes.
    Memory(usize),
}

/// A model at an image size, cut into strips.
#[derive(Clone, Debug)]
pub struct Layout {
    /// One a node.
    pub slots: Vec<Slot>,
    /// The rows of each node's output that a strip needs: `rows[strip][node]`. The first node is the image.
    pub rows: Vec<Vec<Range<usize>>>,
    /// The rows of the class map that a strip gives.
    pub classes: Vec<Range<usize>>,
    /// The first byte of each node's output, even.
    pub offsets: Vec<usize>,
    /// Bytes of all maps, even.
    pub map_bytes: usize,
    /// The longest row of weights, a multiple of 4.
    pub taps: usize,
    /// i32 of one row of logits.
    pub logits_row: usize,
    /// The bytes of maps that live at the same time at the worst moment: no plan does with less.
    pub lower_bound: usize,
}

/// Input channels times window, up to a multiple of 4.
pub(super) fn padded_taps(weights: usize, c_out: usize) -> usize {
    (weights / c_out).next_multiple_of(4)
}

impl Layout {
    /// Plans a run on images of `size`.
    ///
    /// # Errors
    /// When the model cannot run at that size, or cannot be cut as asked.
    pub fn new(model: &Model, size: [usize; 2], strips: Strips) -> Result<Self, ExportError> {
        let mut slots = vec![Slot::default(); model.len()];
        Plan::new(model, size, Context::reference(), &mut slots)
            .map_err(|e| ExportError::Size { size, problem: e.to_string() })?;
        match strips {
            Strips::Whole => Self::cut(model, slots, size[0]),
            Strips::Rows(0) => Err(ExportError::NoRows),
            Strips::Rows(rows) => Self::cut(model, slots, rows.min(size[0])),
            Strips::Memory(bytes) => {
                let mut least = usize::MAX;
                for count in 1..=size[0] {
                    let layout = Self::cut(model, slots.clone(), size[0].div_ceil(count))?;
                    least = least.min(layout.memory());
                    if layout.memory() <= bytes {
                        return Ok(layout);
                    }
                }
                Err(ExportError::Memory { bytes, least })
            }
        }
    }

    fn cut(model: &Model, slots: Vec<Slot>, rows: usize) -> Result<Self, ExportError> {
        let height = slots[0].shape.h;
        let classes: Vec<_> = (0..height).step_by(rows).map(|first| first..height.min(first + rows)).collect();
        let rows =
            (classes.iter().map(|classes| needed_rows(model, &slots, classes))).collect::<Result<Vec<_>, _>>()?;
        let logits = slots[slots.len() - 1].shape;
        let taps = model.nodes().filter_map(|node| match node.op {
            Op::Conv(conv) => Some(padded_taps(conv.weights.len(), conv.c_out)),
            _ => None,
        });
        let mut layout = Layout {
            taps: taps.max().unwrap_or(0),
            logits_row: logits.w * logits.c,
            offsets: vec![0; slots.len()],
            slots,
            rows,
            classes,
            map_bytes: 0,
            lower_bound: 0,
        };
        layout.place();
        Ok(layout)
    }

    /// The most rows of a node's output that a strip needs.
    pub fn most_rows(&self, node: usize) -> usize {
        self.rows.iter().map(|rows| rows[node].len()).max().unwrap_or(0)
    }

    /// The most rows of the class map that a strip gives.
    pub fn most_class_rows(&self) -> usize {
        self.classes[0].len()
    }

    /// Bytes that a node's output takes, even.
    fn len(&self, node: usize) -> usize {
        let Shape { w, c, .. } = self.slots[node].shape;
        let elements = self.most_rows(node) * w * c;
        if self.slots[node].wide() { 2 * elements } else { elements.next_multiple_of(2) }
    }

    /// Bytes of the arena with plain convolutions.
    pub fn arena(&self) -> usize {
        4 * self.logits_row + (self.map_bytes + 2 * self.taps).next_multiple_of(4)
    }

    /// Bytes of the arena, a strip of the image and one of the class map.
    pub fn memory(&self) -> usize {
        let width = self.slots[0].shape.w;
        self.arena() + (3 * self.most_rows(0) + self.most_class_rows()) * width
    }

    /// Products that a run computes, those of overlapping rows as often as they are computed.
    pub fn macs(&self, model: &Model) -> u64 {
        let convolutions = model.nodes().enumerate().filter_map(|(index, node)| match node.op {
            Op::Conv(conv) => Some((index, conv.weights.len())),
            _ => None,
        });
        let rows = |index: usize| self.rows.iter().map(|rows| rows[index].len()).sum::<usize>();
        convolutions.map(|(index, weights)| (rows(index) * self.slots[index].shape.w * weights) as u64).sum()
    }

    /// Gives each output a place that is free for as long as it lives: the better of the order of execution and the
    /// order of size.
    fn place(&mut self) {
        // The image is the caller's.
        let nodes: Vec<usize> = (1..self.slots.len()).collect();
        let mut by_size = nodes.clone();
        by_size.sort_by_key(|&node| std::cmp::Reverse(self.len(node)));
        let (in_order, sorted) = (self.fit(&nodes), self.fit(&by_size));
        let (total, places) = if sorted.0 < in_order.0 { sorted } else { in_order };
        places.into_iter().for_each(|(node, offset)| self.offsets[node] = offset);
        self.map_bytes = total.max(2);
        let alive =
            |now: usize| (1..=now).filter(|&node| self.slots[node].last_reader >= now).map(|node| self.len(node)).sum();
        self.lower_bound = nodes.iter().map(|&now| alive(now)).max().unwrap_or(0);
    }

    /// Places nodes one after the other, each as low as those before it allow: the end, and each node's offset.
    fn fit(&self, nodes: &[usize]) -> (usize, Vec<(usize, usize)>) {
        let mut placed: Vec<(usize, usize)> = Vec::new();
        let mut total = 0;
        for &node in nodes {
            let meets = |other: usize| other <= self.slots[node].last_reader && node <= self.slots[other].last_reader;
            let mut taken: Vec<_> = (placed.iter())
                .filter(|(other, _)| meets(*other))
                .map(|&(other, offset)| offset..offset + self.len(other))
                .collect();
            taken.sort_by_key(|range| range.start);
            let mut offset = 0;
            for range in taken {
                if range.start >= offset + self.len(node) {
                    break;
                }
                offset = offset.max(range.end);
            }
            total = total.max(offset + self.len(node));
            placed.push((node, offset));
        }
        (total, placed)
    }
}

/// The rows of every node that some rows of the class map depend on.
fn needed_rows(model: &Model, slots: &[Slot], classes: &Range<usize>) -> Result<Vec<Range<usize>>, ExportError> {
    let nodes: Vec<Node> = model.nodes().collect();
    let image = slots[0].shape;
    let mut needed: Vec<Range<usize>> = vec![0..0; nodes.len()];
    let last = nodes.len() - 1;
    needed[last] = read_by_resize(classes, slots[last].shape.h, image.h, model.align_corners);
    for (index, node) in nodes.iter().enumerate().skip(1).rev() {
        let (rows, out) = (needed[index].clone(), slots[index].shape);
        if rows.end == rows.start {
            continue;
        }
        let mut need = |k: usize, rows: Range<usize>| {
            let input = &mut needed[node.input(k)];
            *input = if input.end == input.start { rows } else { input.start.min(rows.start)..input.end.max(rows.end) };
        };
        let height = |k: usize| slots[node.input(k)].shape.h;
        match node.op {
            Op::Image => {}
            Op::Conv(conv) => {
                let window = (conv.kernel[0] - 1) * conv.dilation[0] + 1;
                need(0, read_by_window(&rows, window, conv.stride[0], conv.padding[0], height(0)));
            }
            Op::MaxPool { kernel, stride, padding, .. } | Op::AveragePool { kernel, stride, padding, .. } => {
                need(0, read_by_window(&rows, kernel[0], stride[0], padding[0], height(0)));
            }
            Op::Pad(pad) => need(0, read_by_window(&rows, 1, 1, pad.padding[0], height(0))),
            Op::Affine(_) => need(0, rows),
            Op::Depthwise(_) | Op::Table(_) | Op::Product(_) => {
                return Err(ExportError::Layer { name: node.name.to_owned(), problem: NOT_AS_C });
            }
            Op::Add | Op::Concat => (0..node.inputs().len()).for_each(|k| need(k, rows.clone())),
            Op::Resize { interpolation, .. } => {
                let aligned = interpolation == Interpolation::LinearAligned;
                need(0, read_by_resize(&rows, height(0), out.h, aligned));
            }
            Op::GlobalAveragePool if classes.len() < image.h => {
                return Err(ExportError::Layer {
                    name: node.name.to_owned(),
                    problem: "it averages over the whole image, so that the image cannot be cut into strips",
                });
            }
            Op::GlobalAveragePool => need(0, 0..height(0)),
        }
    }
    // A node that no strip needs a row of still has a place.
    Ok(needed)
}

/// Why layers of networks for phones are refused.
pub const NOT_AS_C: &str = "depthwise convolutions, tables and products of maps are not written as C";

/// The input rows that windows reach, at least one.
fn read_by_window(rows: &Range<usize>, window: usize, stride: usize, padding: usize, height: usize) -> Range<usize> {
    let first = (rows.start * stride).saturating_sub(padding).min(height - 1);
    let end = ((rows.end - 1) * stride + window).saturating_sub(padding).min(height);
    first..end.max(first + 1)
}

/// The input rows that a resize from `height` to `out` rows reads.
fn read_by_resize(rows: &Range<usize>, height: usize, out: usize, align_corners: bool) -> Range<usize> {
    let mut taps = vec![Tap::default(); out];
    axis(&mut taps, height, align_corners);
    taps[rows.start].first as usize..taps[rows.end - 1].second as usize + 1
}
