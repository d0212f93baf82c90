//! Putting an ONNX graph together, node by node.

use crate::onnx::proto::{Attribute, Dimension, Graph, Node, Shape, Tensor, TensorType, Type, ValueInfo};
use crate::onnx::tensor as element;
use std::collections::{HashMap, HashSet};

/// Values of a tensor, of one of the types in use.
pub enum Values {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// 16-bit integers.
    I16(Vec<i16>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

impl Values {
    fn encode(&self) -> (i32, Vec<u8>) {
        match self {
            Values::F32(v) => (element::FLOAT, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Values::F64(v) => (element::DOUBLE, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Values::U8(v) => (element::UINT8, v.clone()),
            Values::I8(v) => (element::INT8, v.iter().map(|&v| v as u8).collect()),
            Values::I16(v) => (element::INT16, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Values::I32(v) => (element::INT32, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Values::I64(v) => (element::INT64, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        }
    }
}

/// A graph in the making. Every value's name is unique; an operator has its output's.
#[derive(Default)]
pub struct Builder {
    graph: Graph,
    names: HashSet<String>,
    /// Constants that many operators share.
    shared: HashMap<String, String>,
}

impl Builder {
    /// A name that nothing has yet: the one that is wished for, or that with a number.
    fn fresh(&mut self, wish: &str) -> String {
        let wish = if wish.is_empty() { "layer" } else { wish };
        let numbered = (2..).map(|number| format!("{wish}_{number}"));
        let name = std::iter::once(wish.to_owned()).chain(numbered).find(|name| !self.names.contains(name));
        let name = name.unwrap_or_default();
        self.names.insert(name.clone());
        name
    }

    /// Adds an operator and returns its output's name; an empty input is one that is left out.
    pub fn node(&mut self, operator: &str, name: &str, inputs: &[&str], attribute: Vec<Attribute>) -> String {
        let name = self.fresh(name);
        self.graph.node.push(Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: operator.into(),
            attribute,
            domain: String::new(),
        });
        name
    }

    /// Adds a constant and returns its name.
    pub fn constant(&mut self, name: &str, shape: &[usize], values: Values) -> String {
        let name = self.fresh(name);
        let (data_type, raw) = values.encode();
        let dims = shape.iter().map(|&size| size as i64).collect();
        self.graph.initializer.push(Tensor {
            dims,
            data_type,
            name: name.clone(),
            raw_data: raw.into(),
            ..Tensor::default()
        });
        name
    }

    /// A scalar that is added once and shared by all who ask for the name.
    pub fn scalar(&mut self, name: &str, value: Values) -> String {
        if let Some(name) = self.shared.get(name) {
            return name.clone();
        }
        let added = self.constant(name, &[], value);
        self.shared.insert(name.into(), added.clone());
        added
    }

    /// Adds an input of the graph.
    pub fn input(&mut self, name: &str, data_type: i32, shape: &[usize]) -> String {
        let name = self.fresh(name);
        self.graph.input.push(value(&name, data_type, shape));
        name
    }

    /// Keeps a name for the graph's output, before anything else can take it.
    pub fn reserve(&mut self, name: &str) {
        self.names.insert(name.into());
    }

    /// Adds the operator whose output is the graph's, under a name that was reserved, and hands out the graph.
    pub fn finish(mut self, mut last: Node, data_type: i32, shape: &[usize], name: &str) -> Graph {
        self.graph.output.push(value(&last.name, data_type, shape));
        last.output = vec![last.name.clone()];
        self.graph.node.push(last);
        self.graph.name = name.into();
        self.graph
    }
}

fn value(name: &str, elem_type: i32, shape: &[usize]) -> ValueInfo {
    let dim = shape.iter().map(|&size| Dimension { dim_value: Some(size as i64) }).collect();
    let tensor_type = Some(TensorType { elem_type, shape: Some(Shape { dim }) });
    ValueInfo { name: name.into(), r#type: Some(Type { tensor_type }) }
}

/// An integer setting.
pub fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: name.into(), i, r#type: 2, ..Attribute::default() }
}

/// A setting of several integers.
pub fn ints(name: &str, values: impl IntoIterator<Item = usize>) -> Attribute {
    let ints = values.into_iter().map(|v| v as i64).collect();
    Attribute { name: name.into(), ints, r#type: 7, ..Attribute::default() }
}

/// A text setting.
pub fn text(name: &str, value: &str) -> Attribute {
    Attribute { name: name.into(), s: value.as_bytes().to_vec().into(), r#type: 3, ..Attribute::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_scalars_shared() {
        let mut builder = Builder::default();
        assert_eq!(
            ["a", "a", "", "a"].map(|name| builder.node("Relu", name, &[], vec![])),
            ["a", "a_2", "layer", "a_3"]
        );
        let scalar = |builder: &mut Builder| builder.scalar("a", Values::F32(vec![2.0]));
        assert_eq!([scalar(&mut builder), scalar(&mut builder)], ["a_4", "a_4"]);
        assert_eq!(builder.graph.initializer.len(), 1);
    }
}
