//! A model as an ONNX graph of float operators between `DequantizeLinear` and `QuantizeLinear`, which ONNX Runtime and
//! compilers for accelerators run in integers.
//!
//! Input: `image`, u8 `[1, H, W, 3]`, RGB as decoders give it. Output: `class_map`, u8 `[1, H, W]`. Only ONNX's own
//! operators, version 21 of them, which brought 16-bit integers.
//!
//! Activations are u8 with zero point 0 and a power of two as scale; the image has zero point 128. Weights are i8 with
//! one scale a channel, which carries the channel's multiplier; biases are i32 in units of sums. Residual streams and
//! logits are i16.
//!
//! Depthwise convolutions are `Conv` of as many groups as channels, whose padding is made explicit where another integer
//! than 0 stands for zero. Functions of one value are looked up in their table, which is exact; as float functions they are
//! not, because those round what the table does not.
//!
//! What differs from the executor: with [`Precision::Fused`] multipliers have 24 bits, products are rounded to 24, and biases
//! are whole units of sums. Where that would change more than few sums, scale and bias follow in 64-bit floats. Where
//! multipliers are short, powers of two or chosen to agree, and biases whole units, every operator's result is exact.

mod conv;
mod graph;
mod layers;
mod mobile;
mod resize;

use super::{ExportError, MAX_EXPONENT, power};
use crate::onnx::proto;
use crate::onnx::tensor as element;
use graph::{Builder, Values, int};
use intseg::fold::Metadata;
use intseg_kernels::{Context, Inline, Isa};
use intseg_runtime::{Element, Model, Plan, Shape, Slot};
use layers::Layers;
use prost::Message;
use resize::Bilinear;

/// The version of ONNX's operators that is written.
pub const OPSET: i64 = 21;
/// The version of the container that belongs to it.
const IR_VERSION: i64 = 10;
/// What protobuf can hold.
const MAX_BYTES: usize = i32::MAX as usize;

/// How convolutions are written whose results have 8 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// So that a runtime can fuse them into integer operators, whose biases are whole units of sums, unless it would round
    /// more than few sums otherwise.
    #[default]
    Fused,
    /// With scale and bias behind the exact sums, as the executor has them: in floats, at a half or third of the speed.
    Exact,
}

/// Writes a model for images of `[rows, columns]` as ONNX. The same bytes for the same model, always.
///
/// # Errors
/// When the model cannot run at that size, or has what ONNX cannot say.
pub fn export(
    model: &Model,
    metadata: &Metadata,
    size: [usize; 2],
    precision: Precision,
) -> Result<Vec<u8>, ExportError> {
    let mut slots = vec![Slot::default(); model.len()];
    let ctx = Context { isa: Isa::Scalar, pool: &Inline };
    let refused = |e: intseg_runtime::PlanError| ExportError::Size { size, problem: e.to_string() };
    let plan = Plan::new(model, size, ctx, &mut slots).map_err(refused)?;
    let shapes: Vec<Shape> = plan.slots.iter().map(|slot| slot.shape).collect();
    let mut builder = Builder::default();
    builder.reserve(CLASS_MAP);
    let mut layers = Layers::new(&mut builder, precision, &shapes);
    for node in model.nodes() {
        if node.exponent.unsigned_abs() > MAX_EXPONENT {
            let problem = "its exponent is beyond ±40, where scales leave 32-bit floats";
            return Err(ExportError::Layer { name: node.name.into(), problem });
        }
        layers.add(&node);
    }
    let graph = classify(model, layers.into_values(), &shapes, builder);
    let file = file(graph, metadata);
    match file.encoded_len() {
        0..=MAX_BYTES => Ok(file.encode_to_vec()),
        bytes => Err(ExportError::TooLarge { bytes }),
    }
}

const CLASS_MAP: &str = "class_map";

/// Resizes the logits to the image's size and takes each pixel's largest: the first of several.
fn classify(model: &Model, values: Vec<String>, shapes: &[Shape], mut builder: Builder) -> proto::Graph {
    let (Some(logits), Some(&from), Some(node)) = (values.last(), shapes.last(), model.nodes().last()) else {
        return proto::Graph::default();
    };
    let Shape { h, w, .. } = shapes[0];
    let resize = Bilinear {
        input: logits,
        name: "scores",
        from,
        to: [h, w],
        exponent: node.exponent,
        largest: 1 << 15,
        align_corners: model.align_corners,
    };
    let scores = match (from.h, from.w) == (h, w) {
        true => logits.clone(),
        false if resize.is_exact_in_f32() => resize.operator(&mut builder),
        false => resize.scores(&mut builder),
    };
    let classes = builder.node("ArgMax", "classes", &[&scores], vec![int("axis", 1), int("keepdims", 0)]);
    let last = proto::Node {
        input: vec![classes],
        name: CLASS_MAP.into(),
        op_type: "Cast".into(),
        attribute: vec![int("to", element::UINT8.into())],
        ..proto::Node::default()
    };
    builder.finish(last, element::UINT8, &[1, h, w], "intseg")
}

fn file(graph: proto::Graph, metadata: &Metadata) -> proto::Model {
    let entry = |key: &str, value: String| proto::Entry { key: key.into(), value };
    proto::Model {
        ir_version: IR_VERSION,
        producer_name: "intseg".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![proto::OperatorSet { domain: String::new(), version: OPSET }],
        metadata_props: vec![
            entry("arch", metadata.arch.clone()),
            entry("classes", json(&metadata.classes)),
            entry("palette", json(&metadata.palette)),
            entry("first_value", metadata.first_value.to_string()),
        ],
        functions: vec![],
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The constant `2^exponent`.
fn scale(builder: &mut Builder, exponent: i32) -> String {
    builder.scalar(&format!("scale_2^{exponent}"), Values::F32(vec![power(exponent) as f32]))
}

/// The largest magnitude that a type holds.
fn largest(element: Element) -> u32 {
    let [low, high] = element.range();
    low.unsigned_abs().max(high.unsigned_abs())
}
