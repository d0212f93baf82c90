//! An ONNX model that is read is quantised, or refused with a reason, and a model that comes out runs.
#![no_main]

use intseg::data::image::Rgb;
use intseg_import::graph::{FloatOp, Normalization, ResizeTarget};
use intseg_import::onnx::parse_graph;
use intseg_import::quantize::{Options, quantize};
use intseg_kernels::Context;
use libfuzzer_sys::fuzz_target;

/// Weights of a network that is run here: more take long and tell nothing.
const WEIGHTS: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Ok(graph) = parse_graph("fuzz", data.to_vec(), Normalization::IMAGENET) else { return };
    let large = |op: &FloatOp| match op {
        FloatOp::Conv { weights, .. } | FloatOp::ConvTranspose { weights, .. } => weights.len() > WEIGHTS,
        FloatOp::Resize { target: ResizeTarget::Factor([y, x]), .. } => y.saturating_mul(*x) > 64,
        _ => false,
    };
    let strides = |op: &FloatOp| match op {
        FloatOp::ConvTranspose { window, .. } => window.stride[0].saturating_mul(window.stride[1]) > 64,
        _ => false,
    };
    if graph.nodes.iter().any(|node| large(&node.op) || strides(&node.op)) || graph.nodes.len() > 100 {
        return;
    }
    let image = Rgb { width: 16, height: 24, data: (0..3 * 16 * 24).map(|i| (i * 37) as u8).collect() };
    let images = [image];
    if let Ok(quantized) = quantize(&graph, &images, &Options::default()) {
        let _ = quantized.report(&graph, &images, Context::reference());
    }
});
