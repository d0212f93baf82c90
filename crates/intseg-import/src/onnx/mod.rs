//! ONNX models as [`FloatGraph`]s.
//!
//! ```text
//! bytes ─ proto ─► nodes ─ window, pointwise, resize ─► drafts ─ finish ─► FloatGraph
//!                    └──── numbers: shapes, for a few image sizes ──┘
//! ```
//!
//! | operator | what of it |
//! |---|---|
//! | Conv | one group, one a channel, or up to 8; the same padding on both sides |
//! | ConvTranspose | one group; the same padding on both sides |
//! | MaxPool, AveragePool | ceil_mode, count_include_pad; the same padding on both sides |
//! | GlobalAveragePool, ReduceMean | over rows and columns |
//! | BatchNormalization, and Add, Sub, Mul, Div with constants | one value a channel; first of all they are the image's normalisation |
//! | Relu, Clip, Add, Concat | Add of maps of one shape, Concat of channels |
//! | HardSwish, HardSigmoid, Sigmoid, Swish, LeakyRelu | |
//! | Mul of two maps | of one shape, or one with a single position; with HardSigmoid or Sigmoid of the same map: HardSwish, Swish |
//! | Resize, Upsample | linear with half-pixel centres or aligned corners, nearest at an integer factor |
//! | Dropout, Identity, Constant | as in inference |
//! | Softmax, LogSoftmax, ArgMax | at the end, left out |
//! | Shape, Gather, Slice, Concat, Cast, Squeeze, Unsqueeze, Reshape, ConstantOfShape, Add, Sub, Mul, Div, Floor, Ceil | of shapes |
//!
//! What is not understood, an operator or one of its settings, is refused with the name of its node: a network that is
//! translated in part would give wrong results.

mod builder;
mod call;
mod finish;
mod functions;
mod numbers;
mod pointwise;
pub mod proto;
mod resize;
pub(crate) mod tensor;
mod window;
mod wire;

use crate::graph::{FloatGraph, Normalization};
use crate::read::limits;
use crate::read::{Problem, ReadError, TensorFault};
use builder::{Builder, Value};
use call::Call;
use numbers::Numbers;
use prost::Message;
use std::collections::HashSet;
use std::path::Path;

/// Versions of ONNX's operators that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=26;

/// Reads an ONNX model as a network. `input` says what the model takes: [`Normalization::IMAGENET`] where images are
/// normalised before they are handed over, [`Normalization::UNIT`] or [`Normalization::BYTES`] where the model does it.
/// The network ends in the first output, before softmax and the choice of a class.
///
/// # Errors
/// When the file cannot be read, is damaged, or has what is not understood.
pub fn read_graph(path: &Path, input: Normalization) -> Result<FloatGraph, ReadError> {
    let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let graph = limits::read_file(path).and_then(|bytes| parse_graph(&name, bytes, input));
    graph.map_err(|problem| ReadError { path: path.to_owned(), problem })
}

/// Reads an ONNX model that is in memory; see [`read_graph`].
///
/// # Errors
/// When it is damaged, or has what is not understood.
pub fn parse_graph(name: &str, bytes: Vec<u8>, input: Normalization) -> Result<FloatGraph, Problem> {
    let model = decode(bytes)?;
    let opset = opset(&model)?;
    let graph = model.graph.as_ref().ok_or_else(|| Problem::damaged("the ONNX model", "it has no graph"))?;
    if graph.node.len() > limits::TENSORS {
        let (claimed, limit) = (graph.node.len() as u128, limits::TENSORS as u64);
        return Err(Problem::Limit { what: "nodes of the ONNX model".into(), claimed, limit });
    }
    let (image, size) = image(graph)?;
    let mut builder = Builder::new(size);
    for tensor in &graph.initializer {
        if builder.values.insert(&tensor.name, Value::Constant(tensor)).is_some() {
            return Err(Problem::tensor(&tensor.name, TensorFault::Repeated));
        }
    }
    builder.values.insert(image, Value::Feature(0));
    let output = graph.output.first().ok_or_else(|| Problem::Model("the model has no output".into()))?;
    let wanted = wanted(graph, &output.name);
    for (node, _) in graph.node.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
        let call = Call { node, opset };
        let value = translate(call, &mut builder)?;
        let result = node.output.first().ok_or_else(|| call.refuse("it has no output"))?;
        if builder.values.insert(result, value).is_some() {
            return Err(call.refuse(format!("its output {result} is computed twice")));
        }
    }
    match builder.values.get(output.name.as_str()) {
        Some(&(Value::Feature(node) | Value::Ended(node))) => finish::finish(builder, node, name, input),
        _ => Err(Problem::Model(format!("the model's output {} is not computed from the image", output.name))),
    }
}

/// A file's messages, whose tensors share its bytes.
///
/// # Errors
/// When the file is damaged, or has more than any network.
pub(crate) fn decode(bytes: Vec<u8>) -> Result<proto::Model, Problem> {
    wire::check(&bytes)?;
    let model = proto::Model::decode(prost::bytes::Bytes::from(bytes));
    model.map_err(|e| Problem::damaged("the ONNX model", e))
}

/// The version of ONNX's operators, and nobody else's.
fn opset(model: &proto::Model) -> Result<i64, Problem> {
    if let Some(function) = model.functions.first() {
        let reason = format!("the model defines an operator of its own, {}, which is not understood", function.name);
        return Err(Problem::Model(reason));
    }
    let ours = model.opset_import.iter().find(|set| matches!(set.domain.as_str(), "" | "ai.onnx"));
    match ours.map(|set| set.version) {
        Some(version) if OPSETS.contains(&version) => Ok(version),
        Some(version) => {
            let (first, last) = (OPSETS.start(), OPSETS.end());
            let message = format!("the model has version {version} of ONNX's operators; {first} to {last} are read");
            Err(Problem::Model(format!("{message}, so export it with opset_version=20")))
        }
        None => Err(Problem::Model("the model does not say which version of ONNX's operators it has".into())),
    }
}

/// The name of the image, and its rows and columns where they are fixed.
fn image(graph: &proto::Graph) -> Result<(&str, Option<[usize; 2]>), Problem> {
    let refused = |reason: String| Err(Problem::Model(reason));
    if !graph.sparse_initializer.is_empty() {
        return refused("the model has sparse weights, which are not understood".into());
    }
    let weights: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut inputs = graph.input.iter().filter(|input| !weights.contains(input.name.as_str()));
    let (Some(input), None) = (inputs.next(), inputs.next()) else {
        return refused("the model has not one input, the image".into());
    };
    let shape = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).and_then(|t| t.shape.as_ref());
    let sizes: Vec<i64> = shape.into_iter().flat_map(|s| &s.dim).map(|d| d.dim_value.unwrap_or(0)).collect();
    match sizes[..] {
        // A size that varies has a name, or is written as 0 or −1.
        [..=1, 3, rows @ 1..=65535, columns @ 1..=65535] => Ok((&input.name, Some([rows as usize, columns as usize]))),
        [..=1, 3, ..=0, ..=0] => Ok((&input.name, None)),
        _ => refused(format!(
            "the model's input {} has sizes {sizes:?} where one image of [1, 3, rows, columns] is understood",
            input.name
        )),
    }
}

/// Which nodes the output depends on; inputs come before their readers.
fn wanted(graph: &proto::Graph, output: &str) -> Vec<bool> {
    let mut names = HashSet::from([output]);
    let mut wanted = vec![false; graph.node.len()];
    for (node, wanted) in graph.node.iter().zip(&mut wanted).rev() {
        *wanted = node.output.iter().any(|name| names.contains(name.as_str()));
        if *wanted {
            names.extend(node.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
        }
    }
    wanted
}

/// What a node computes.
fn translate<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    if !matches!(call.node.domain.as_str(), "" | "ai.onnx") {
        return Err(call.refuse(format!("operators of {} are not understood", call.node.domain)));
    }
    let inputs = (0..call.node.input.len()).filter_map(|index| builder.value(call, index).ok());
    let (mut of_features, mut ended) = (false, false);
    inputs.for_each(|value| match value {
        Value::Feature(_) => of_features = true,
        Value::Ended(_) => ended = true,
        _ => {}
    });
    match call.operator() {
        "Constant" => constant(call),
        "Identity" => Ok(builder.value(call, 0)?.clone()),
        "Dropout" => dropout(call, builder),
        "Softmax" | "LogSoftmax" | "ArgMax" => ending(call, builder),
        "Cast" | "Squeeze" if ended => Ok(builder.value(call, 0)?.clone()),
        "Shape" if of_features => shape(call, builder),
        operator if numbers::is_arithmetic(operator) && !of_features && !ended => arithmetic(call, builder),
        "Conv" => window::conv(call, builder),
        "ConvTranspose" => window::conv_transpose(call, builder),
        "MaxPool" => window::max_pool(call, builder),
        "AveragePool" => window::average_pool(call, builder),
        "BatchNormalization" => pointwise::batch_normalization(call, builder),
        "Relu" => pointwise::relu(call, builder),
        "Clip" => pointwise::clip(call, builder),
        "Add" | "Sub" | "Mul" | "Div" => pointwise::arithmetic(call, builder),
        "HardSwish" | "HardSigmoid" | "Sigmoid" | "Swish" | "LeakyRelu" => functions::function(call, builder),
        "Concat" => pointwise::concat(call, builder),
        "GlobalAveragePool" | "ReduceMean" => pointwise::global_average_pool(call, builder),
        "Resize" | "Upsample" => resize::resize(call, builder),
        _ => Err(call.refuse("the operator is not understood")),
    }
}

fn constant<'m>(call: Call<'m>) -> Result<Value<'m>, Problem> {
    let [setting] = &call.node.attribute[..] else { return Err(call.refuse("it has not one value")) };
    let numbers = |shape: &[usize], values: Vec<f64>, integer| {
        // The same for every probe; there are fewer of those than this.
        Ok(Value::Numbers(vec![Numbers { shape: shape.to_vec(), values, integer }; builder::MOST_PROBES]))
    };
    match (setting.name.as_str(), &setting.t) {
        ("value", Some(tensor)) => Ok(Value::Constant(tensor)),
        ("value_int", _) => numbers(&[], vec![setting.i as f64], true),
        ("value_float", _) => numbers(&[], vec![setting.f.into()], false),
        ("value_ints", _) if setting.ints.len() <= limits::DIMENSIONS => {
            numbers(&[setting.ints.len()], setting.ints.iter().map(|&v| v as f64).collect(), true)
        }
        ("value_floats", _) if setting.floats.len() <= limits::DIMENSIONS => {
            numbers(&[setting.floats.len()], setting.floats.iter().map(|&v| v.into()).collect(), false)
        }
        (name, _) => Err(call.refuse(format!("a constant's {name} is not understood"))),
    }
}

/// Dropout, which does nothing outside training.
fn dropout<'m>(call: Call<'m>, builder: &Builder<'m>) -> Result<Value<'m>, Problem> {
    call.understands(&["ratio", "seed", "is_test"])?;
    if call.input(2).is_some() && builder.constant_numbers(call, 2)?.values != [0.0] {
        return Err(call.refuse("the model is exported for training; export it after model.eval()"));
    }
    Ok(builder.value(call, 0)?.clone())
}

/// Softmax and the choice of a class, after which only the same may follow: the largest logit wins either way.
fn ending<'m>(call: Call<'m>, builder: &Builder<'m>) -> Result<Value<'m>, Problem> {
    call.understands(&["axis", "keepdims", "select_last_index"])?;
    call.only_int("select_last_index", 0, 0)?;
    let default = match call.operator() {
        "ArgMax" => 0,
        _ if call.opset < 13 => 1,
        _ => -1,
    };
    match (call.int("axis", default), builder.value(call, 0)?) {
        (1 | -3, &(Value::Feature(node) | Value::Ended(node))) => Ok(Value::Ended(node)),
        (1 | -3, _) => Err(call.refuse("its input is no feature map")),
        (axis, _) => Err(call.refuse(format!("axis {axis} is not understood, only that of channels, 1"))),
    }
}

/// The shape of a feature map, `[1, C, H, W]`.
fn shape<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    let node = builder.feature(call, 0)?;
    let shapes = builder.for_probes(|builder, probe| {
        let (channels, [rows, columns]) = (builder.drafts[node].channels, builder.drafts[node].sizes[probe]);
        numbers::shape_of(call, &[1, channels, rows, columns])
    });
    Ok(Value::Numbers(shapes?))
}

fn arithmetic<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    let results = builder.for_probes(|builder, probe| {
        let inputs = (0..call.node.input.len()).map(|index| builder.numbers(call, index, probe));
        numbers::evaluate(call, &inputs.collect::<Result<Vec<_>, _>>()?)
    });
    Ok(Value::Numbers(results?))
}
