//! Small ONNX models, built node by node: one input `x` of `[1, 3, rows, columns]`, each node's output has its name, and
//! the last node's is the model's.

use intseg_import::onnx::proto;
use prost::Message;

#[derive(Clone)]
pub struct Node {
    node: proto::Node,
    constants: Vec<proto::Tensor>,
}

pub fn node(operator: &str, name: &str, inputs: &[&str]) -> Node {
    let input = inputs.iter().map(|&input| input.to_owned()).collect();
    let (op_type, name) = (operator.to_owned(), name.to_owned());
    let node = proto::Node { op_type, name: name.clone(), input, output: vec![name], ..Default::default() };
    Node { node, constants: vec![] }
}

/// A 3×3 convolution of the image.
pub fn conv(name: &str, channels: usize) -> Node {
    let weights = format!("{name}.weight");
    node("Conv", name, &["x", &weights]).constant(floats(&weights, &[channels, 3, 3, 3], &vec![0.5; channels * 27]))
}

pub fn floats(name: &str, shape: &[usize], values: &[f32]) -> proto::Tensor {
    let dims = shape.iter().map(|&size| size as i64).collect();
    proto::Tensor { name: name.into(), data_type: 1, dims, float_data: values.to_vec(), ..Default::default() }
}

pub fn ints(name: &str, shape: &[usize], values: &[i64]) -> proto::Tensor {
    let dims = shape.iter().map(|&size| size as i64).collect();
    proto::Tensor { name: name.into(), data_type: 7, dims, int64_data: values.to_vec(), ..Default::default() }
}

impl Node {
    pub fn constant(mut self, tensor: proto::Tensor) -> Node {
        self.constants.push(tensor);
        self
    }

    fn attribute(mut self, attribute: proto::Attribute) -> Node {
        self.node.attribute.push(attribute);
        self
    }

    pub fn int(self, name: &str, i: i64) -> Node {
        self.attribute(proto::Attribute { name: name.into(), i, ..Default::default() })
    }

    pub fn float(self, name: &str, f: f32) -> Node {
        self.attribute(proto::Attribute { name: name.into(), f, ..Default::default() })
    }

    pub fn ints(self, name: &str, ints: &[i64]) -> Node {
        self.attribute(proto::Attribute { name: name.into(), ints: ints.to_vec(), ..Default::default() })
    }

    pub fn text(self, name: &str, text: &str) -> Node {
        self.attribute(proto::Attribute { name: name.into(), s: text.to_owned().into(), ..Default::default() })
    }

    pub fn domain(mut self, domain: &str) -> Node {
        self.node.domain = domain.into();
        self
    }

    pub fn reading(mut self, input: &str) -> Node {
        self.node.input[0] = input.into();
        self
    }
}

pub fn model(nodes: Vec<Node>) -> Vec<u8> {
    changed(nodes, |_| {})
}

pub fn changed(nodes: Vec<Node>, change: impl FnOnce(&mut proto::Model)) -> Vec<u8> {
    let name = nodes.last().map_or("nothing", |last| &last.node.name).to_owned();
    let graph = proto::Graph {
        initializer: nodes.iter().flat_map(|node| node.constants.clone()).collect(),
        node: nodes.into_iter().map(|node| node.node).collect(),
        input: vec![proto::ValueInfo { name: "x".into(), ..Default::default() }],
        output: vec![proto::ValueInfo { name, ..Default::default() }],
        ..Default::default()
    };
    let opset_import = vec![proto::OperatorSet { domain: String::new(), version: 17 }];
    let mut model = proto::Model { graph: Some(graph), opset_import, ..Default::default() };
    input_sizes(&mut model, &[1, 3, 0, 0]);
    change(&mut model);
    model.encode_to_vec()
}

/// Sets the sizes of the input, 0 where they vary.
pub fn input_sizes(model: &mut proto::Model, sizes: &[i64]) {
    let dim = |&size: &i64| proto::Dimension { dim_value: (size != 0).then_some(size) };
    let shape = Some(proto::Shape { dim: sizes.iter().map(dim).collect() });
    let tensor_type = Some(proto::TensorType { elem_type: 1, shape });
    if let Some(input) = model.graph.as_mut().and_then(|graph| graph.input.first_mut()) {
        input.r#type = Some(proto::Type { tensor_type });
    }
}
