//! ONNX: the initialisers, which are a graph's weights.

use super::error::{Problem, TensorFault};
use super::limits::Budget;
use super::{Weights, insert};
use crate::onnx::{proto, tensor};
use prost::Message;

/// Float initialisers; those of integers are left out.
///
/// # Errors
/// When the file is damaged, or a tensor cannot be used.
pub fn read(bytes: Vec<u8>) -> Result<Weights, Problem> {
    let (mut weights, mut budget) = (Weights::new(), Budget::default());
    for initializer in decode(bytes)?.initializer {
        let name = initializer.name.as_str();
        if tensor::is_integer(initializer.data_type) {
            continue;
        }
        if weights.contains_key(name) {
            return Err(Problem::tensor(name, TensorFault::Repeated));
        }
        insert(&mut weights, name, tensor::floats(name, &initializer, &mut budget)?)?;
    }
    Ok(weights)
}

/// The graph of an ONNX file. Tensors share the file's bytes.
///
/// # Errors
/// When the file is damaged.
pub fn decode(bytes: Vec<u8>) -> Result<proto::Graph, Problem> {
    let model = proto::Model::decode(prost::bytes::Bytes::from(bytes));
    let model = model.map_err(|e| Problem::damaged("the ONNX model", e))?;
    model.graph.ok_or_else(|| Problem::damaged("the ONNX model", "it has no graph"))
}
