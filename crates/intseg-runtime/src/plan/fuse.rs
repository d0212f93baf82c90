//! Outputs that need not exist, or not whole: what a plan spares.

use super::{Alignment, Destination, Slot};
use crate::model::{Conv, Element, Model, Node, Op};

/// Bytes of an output's strip; outputs of less than four strips are kept whole.
const STRIP: usize = 1 << 20;

/// Decides what becomes of each output, from the shapes and the last readers, which it extends where a node runs later.
pub(super) fn fuse(model: &Model, slots: &mut [Slot]) {
    let mut previous: Option<Node> = None;
    for (index, node) in model.nodes().enumerate() {
        if let Some(Node { op: Op::Conv(conv), .. }) = previous
            && slots[index - 1].last_reader == index
        {
            let destination = match node.op {
                Op::Add => sum(&node, index, slots),
                Op::MaxPool { kernel, stride, .. } => strips(&conv, [kernel[0], stride[0]], &slots[index - 1]),
                _ => None,
            };
            if let (Some(destination), Some(conv)) = (destination, previous) {
                slots[index - 1].destination = destination;
                // The convolution runs when this node does.
                slots[conv.input(0)].last_reader = slots[conv.input(0)].last_reader.max(index);
            }
        }
        if let Op::Concat = node.op {
            concatenate(model, &node, index, slots);
        }
        previous = Some(node);
    }
}

/// Whether the convolution before the sum `node` can add the other input to its results.
fn sum(node: &Node, index: usize, slots: &[Slot]) -> Option<Destination> {
    let inputs = [node.input(0), node.input(1)];
    let other = inputs.into_iter().find(|&input| input != index - 1)?;
    let Alignment { inputs: shifts, sum } = Alignment::new(inputs.map(|input| slots[input].exponent), node.exponent)?;
    let fits = slots[other].element != Element::I8 && shifts.iter().all(|shift| (0..=14).contains(shift)) && sum <= 31;
    fits.then_some(Destination::Sum)
}

/// How many rows of a convolution's output a strip has for a pooling with this vertical kernel and stride, whose windows must
/// not overlap.
fn strips(conv: &Conv, [kernel, stride]: [usize; 2], slot: &Slot) -> Option<Destination> {
    let row = slot.shape.w * slot.shape.c;
    let rows = (STRIP / row / stride).max(1) * stride;
    // Of a padded strip whole rows alone can be left out.
    let whole = conv.transposed.is_none() && conv.padding[0].is_multiple_of(conv.stride[0]);
    let small = slot.bytes() < 4 * STRIP;
    let pads = conv.padding[0] / conv.stride[0];
    (whole && kernel <= stride && !small && !slot.wide()).then_some(Destination::Strips(rows + 2 * pads))
}

/// Lets the inputs of a concatenation write to their channels of it, where nothing else reads them.
fn concatenate(model: &Model, node: &Node, index: usize, slots: &mut [Slot]) {
    let mut first = 0;
    for input in node.inputs() {
        let once = || {
            let all = model.nodes().take(index + 1).skip(input + 1).flat_map(|reader| reader.inputs());
            all.filter(|&read| read == input).count() == 1
        };
        let writes = || match model.nodes().nth(input) {
            Some(Node { op: Op::Conv(_), .. }) => true,
            Some(node) if matches!(node.op, Op::Resize { .. }) => {
                let from = slots[node.input(0)].shape;
                (from.h, from.w) == (1, 1)
            }
            _ => false,
        };
        let c = slots[input].shape.c;
        if slots[input].last_reader == index && slots[input].destination == Destination::Own && once() && writes() {
            slots[input].destination = Destination::Concat { node: index, first };
        }
        first += c;
    }
}
