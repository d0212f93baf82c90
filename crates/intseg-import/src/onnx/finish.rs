//! From the nodes of the file to those of a [`FloatGraph`]: what the output does not need is left out, resizes find
//! what they go to, the last one becomes the graph's upsampling, and a normalisation of the image becomes the graph's.

use super::builder::{Builder, Draft};
use crate::graph::{FloatGraph, FloatNode, FloatOp, Interpolation, Normalization, ResizeTarget};
use crate::read::Problem;

/// The graph that ends in the node `output`, for an image that is fed in as `input` says.
///
/// # Errors
/// When a resize goes to what is neither a multiple of its input nor another tensor's size, or nothing is computed.
pub fn finish(builder: Builder, output: usize, name: &str, input: Normalization) -> Result<FloatGraph, Problem> {
    let probes: Vec<usize> = builder.probes().collect();
    if probes.is_empty() {
        return Err(Problem::Model("no image size goes through the model".into()));
    }
    let mut drafts = builder.drafts;
    let (mut output, mut upsampling) = (output, Interpolation::Linear);
    if let FloatOp::Resize { interpolation, .. } = drafts[output].node.op {
        // A constant factor gives the image's size where that is a multiple of the stride, as the first probe is; for
        // another the model's output is no class map of the image, and the graph's is.
        let decisive = if drafts[output].constant_factor { &probes[..1] } else { &probes[..] };
        if decisive.iter().all(|&probe| drafts[output].sizes[probe] == drafts[0].sizes[probe]) {
            upsampling = interpolation;
            output = drafts[output].node.inputs[0];
        }
    }
    drop_identities(&mut drafts, &mut output, &probes);
    let needed = needed(&drafts, output);
    for node in 0..=output {
        if needed[node] && matches!(drafts[node].node.op, FloatOp::Resize { .. }) {
            find_target(&mut drafts, node, &needed, &probes)?;
        }
    }
    let mut nodes: Vec<FloatNode> = drafts.into_iter().map(|draft| draft.node).collect();
    let normalization = fold_normalization(&mut nodes, &mut output, input);
    let needed = needed_nodes(&nodes, output);
    if output == 0 {
        return Err(Problem::Model("the model computes nothing from the image".into()));
    }
    Ok(FloatGraph { name: name.to_owned(), nodes: renumbered(nodes, &needed), upsampling, normalization })
}

/// Lets readers of a resize that changes nothing read its input.
fn drop_identities(drafts: &mut [Draft], output: &mut usize, probes: &[usize]) {
    let mut origin: Vec<usize> = (0..drafts.len()).collect();
    for node in 0..drafts.len() {
        drafts[node].node.inputs.iter_mut().for_each(|input| *input = origin[*input]);
        if !matches!(drafts[node].node.op, FloatOp::Resize { .. }) {
            continue;
        }
        let input = drafts[node].node.inputs[0];
        if probes.iter().all(|&probe| drafts[node].sizes[probe] == drafts[input].sizes[probe]) {
            origin[node] = input;
        }
    }
    *output = origin[*output];
}

fn needed(drafts: &[Draft], output: usize) -> Vec<bool> {
    marked(output, |node| &drafts[node].node.inputs)
}

fn needed_nodes(nodes: &[FloatNode], output: usize) -> Vec<bool> {
    marked(output, |node| &nodes[node].inputs)
}

/// Which nodes up to `output` it depends on; the image always stays.
fn marked<'a>(output: usize, inputs: impl Fn(usize) -> &'a Vec<usize>) -> Vec<bool> {
    let mut needed = vec![false; output + 1];
    (needed[0], needed[output]) = (true, true);
    for node in (0..=output).rev() {
        if needed[node] {
            inputs(node).iter().for_each(|&input| needed[input] = true);
        }
    }
    needed
}

/// Says what a resize goes to: a constant factor, or the size of the last earlier tensor that has it for every probe.
fn find_target(drafts: &mut [Draft], node: usize, needed: &[bool], probes: &[usize]) -> Result<(), Problem> {
    let (draft, input) = (&drafts[node], drafts[node].node.inputs[0]);
    let FloatOp::Resize { interpolation, .. } = draft.node.op else { return Ok(()) };
    let size = |node: usize, probe: &usize| drafts[node].sizes[*probe];
    // A single pixel is everywhere the same, however it is resized.
    let constant = probes.iter().all(|probe| size(input, probe) == [1, 1]);
    let interpolation = if constant { Interpolation::Linear } else { interpolation };
    let factor_at = |probe: &usize| {
        let factor = [0, 1].map(|axis| size(node, probe)[axis] / size(input, probe)[axis]);
        let is_whole = [0, 1].map(|axis| size(input, probe)[axis] * factor[axis]) == size(node, probe);
        is_whole.then_some(factor)
    };
    let some_factor = probes.iter().find_map(factor_at);
    let factor = some_factor.filter(|_| probes.iter().all(|probe| factor_at(probe) == some_factor));
    let has_size = |&other: &usize| needed[other] && probes.iter().all(|probe| size(other, probe) == size(node, probe));
    let like = (0..node).rev().find(has_size);
    let nearest = interpolation == Interpolation::Nearest;
    let (target, like) = match (factor, like) {
        (Some(factor), _) if draft.constant_factor || nearest => (ResizeTarget::Factor(factor), None),
        // The nearest value is understood at whole factors, which some image sizes must have.
        (_, Some(like)) if !nearest || some_factor.is_some() => (ResizeTarget::Like, Some(like)),
        (Some(factor), None) => (ResizeTarget::Factor(factor), None),
        _ => {
            let reason =
                "its size is no multiple of its input's that is the same for every image, and no other tensor's".into();
            return Err(Problem::Operator { operator: "Resize".into(), node: draft.node.name.clone(), reason });
        }
    };
    drafts[node].node.op = FloatOp::Resize { target, interpolation };
    drafts[node].node.inputs.extend(like);
    Ok(())
}

/// Takes what follows the image and nothing else does, a factor and an offset for each channel, into the normalisation.
fn fold_normalization(nodes: &mut [FloatNode], output: &mut usize, input: Normalization) -> Normalization {
    let mut normalization = input;
    loop {
        let needed = needed_nodes(nodes, *output);
        let mut readers = (1..=*output).filter(|&node| needed[node] && nodes[node].inputs.contains(&0));
        let (Some(reader), None) = (readers.next(), readers.next()) else { return normalization };
        let FloatOp::Affine { scale, offset } = &nodes[reader].op else { return normalization };
        let Some(folded) = folded(normalization, scale, offset) else { return normalization };
        normalization = folded;
        nodes.iter_mut().flat_map(|node| &mut node.inputs).for_each(|from| {
            if *from == reader {
                *from = 0;
            }
        });
        if *output == reader {
            *output = 0;
        }
    }
}

/// `scale · (v − mean) / deviation + offset` as `(v − mean') / deviation'`.
fn folded(from: Normalization, scale: &[f32], offset: &[f32]) -> Option<Normalization> {
    let mut to = from;
    for channel in 0..3 {
        let (scale, offset) = (f64::from(*scale.get(channel)?), f64::from(*offset.get(channel)?));
        let (mean, deviation) = (f64::from(from.mean[channel]), f64::from(from.deviation[channel]));
        to.mean[channel] = (mean - offset * deviation / scale) as f32;
        to.deviation[channel] = (deviation / scale) as f32;
        if !(to.mean[channel].is_finite() && to.deviation[channel].is_normal() && to.deviation[channel] > 0.0) {
            return None;
        }
    }
    Some(to)
}

/// The needed nodes, with their new numbers.
fn renumbered(nodes: Vec<FloatNode>, needed: &[bool]) -> Vec<FloatNode> {
    let mut numbers = vec![0; needed.len()];
    let mut kept = Vec::new();
    for (node, mut draft) in nodes.into_iter().enumerate().take(needed.len()) {
        if needed[node] {
            draft.inputs.iter_mut().for_each(|input| *input = numbers[*input]);
            numbers[node] = kept.len();
            kept.push(draft);
        }
    }
    kept
}
