//! ONNX: the initialisers, which are a graph's weights.

use super::error::{Problem, TensorFault};
use super::limits::Budget;
use super::{Weights, insert};
use crate::onnx::{decode, tensor};

/// Float initialisers; those of integers are left out.
///
/// # Errors
/// When the file is damaged, or a tensor cannot be used.
pub fn read(bytes: Vec<u8>) -> Result<Weights, Problem> {
    let (mut weights, mut budget) = (Weights::new(), Budget::default());
    let graph = decode(bytes)?.graph.ok_or_else(|| Problem::damaged("the ONNX model", "it has no graph"))?;
    for initializer in graph.initializer {
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
