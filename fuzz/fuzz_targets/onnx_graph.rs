#![no_main]
//! An ONNX model as a network.

use intseg_import::graph::Normalization;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(graph) = intseg_import::onnx::parse_graph("fuzzed", bytes.to_vec(), Normalization::UNIT) {
        assert!(graph.nodes.len() > 1);
        for (index, node) in graph.nodes.iter().enumerate() {
            assert!(node.inputs.iter().all(|&input| input < index));
        }
    }
});
