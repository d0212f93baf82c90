//! What exported files hold.

use intseg::data::image::Rgb;
use intseg::fold::{Metadata, random_model};
use intseg::networks::{Settings, build};
use intseg_import::export::onnx::{OPSET, Precision};
use intseg_import::export::{ExportError, onnx, safetensors};
use intseg_import::graph::Normalization;
use intseg_import::onnx::{proto, read_graph};
use intseg_import::quantize::{Options, quantize};
use intseg_import::read::read_weights;
use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec};
use intseg_runtime::{Element, Interpolation, Model, Op};
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::path::Path;

fn random(arch: &str) -> Vec<u8> {
    let graph = build(arch, &Settings { width_1000: 125, ..Settings::new(5) }).unwrap();
    random_model(&graph, 1).unwrap()
}

/// A small LR-ASPP, quantised on one image of stripes.
fn lraspp() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lraspp_dynamic_dynamo.onnx");
    let graph = read_graph(&path, Normalization::IMAGENET).unwrap();
    let data = (0..3 * 65 * 97).map(|i| (i * 7 % 256) as u8).collect();
    let mut spec = quantize(&graph, &[Rgb { width: 97, height: 65, data }], &Options::default()).unwrap().spec;
    spec.metadata = serde_json::to_string(&Metadata::default()).unwrap();
    spec.to_bytes()
}

fn exported(model: &[u8], size: [usize; 2], precision: Precision) -> proto::Model {
    let model = Model::parse(model).unwrap();
    let metadata = serde_json::from_str::<Metadata>(model.metadata()).unwrap();
    proto::Model::decode(&onnx::export(&model, &metadata, size, precision).unwrap()[..]).unwrap()
}

fn sizes(value: &proto::ValueInfo) -> Vec<i64> {
    let tensor = value.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).unwrap();
    tensor.shape.as_ref().unwrap().dim.iter().map(|dim| dim.dim_value.unwrap()).collect()
}

#[test]
fn every_value_is_made_once_and_before_it_is_read() {
    let networks = ["fcn-tiny", "fcn8s-vgg16-bn", "deeplabv3-resnet50v2", "deeplabv3-resnet50"].map(random);
    for file in networks.into_iter().chain([lraspp()]) {
        for precision in [Precision::Fused, Precision::Exact] {
            let model = exported(&file, [65, 97], precision);
            assert_eq!((model.ir_version, model.opset_import[0].version), (10, OPSET));
            let graph = model.graph.unwrap();
            assert_eq!((sizes(&graph.input[0]), sizes(&graph.output[0])), (vec![1, 65, 97, 3], vec![1, 65, 97]));
            let mut known: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
            assert_eq!(known.len(), graph.initializer.len());
            known.insert(&graph.input[0].name);
            for node in &graph.node {
                assert!(node.input.iter().all(|name| name.is_empty() || known.contains(name.as_str())), "{node:?}");
                assert!(known.insert(&node.output[0]), "{node:?}");
                assert!(node.domain.is_empty() && node.attribute.iter().all(|a| a.r#type != 0), "{node:?}");
            }
            assert!(known.contains("class_map"));
        }
    }
}

#[test]
fn convolutions_stand_where_a_runtime_fuses_them_into_integer_ones() {
    let graph = exported(&random("fcn8s-vgg16-bn"), [64, 64], Precision::Fused).graph.unwrap();
    let reader = |name: &str| graph.node.iter().find(|node| node.input.iter().any(|input| input == name)).unwrap();
    let maker: HashMap<&str, &proto::Node> = graph.node.iter().map(|node| (node.output[0].as_str(), node)).collect();
    let mut fused = 0;
    for conv in graph.node.iter().filter(|node| node.op_type == "Conv") {
        assert!(conv.input[..2].iter().all(|input| maker[input.as_str()].op_type == "DequantizeLinear"));
        let next = reader(&conv.output[0]);
        if next.op_type == "Relu" {
            assert_eq!(maker[conv.input[2].as_str()].op_type, "DequantizeLinear");
            assert_eq!(reader(&next.output[0]).op_type, "QuantizeLinear");
            fused += 1;
        }
    }
    assert_eq!(fused, 15);
}

#[test]
fn safetensors_hold_the_weights_times_their_scales() {
    let file = random("fcn-tiny");
    let model = Model::parse(&file).unwrap();
    let bytes = safetensors::export(&model, &Metadata::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let weights = read_weights(&path).unwrap();
    let nodes: Vec<_> = model.nodes().collect();
    let mut compared = 0;
    for node in &nodes {
        let Op::Conv(conv) = &node.op else { continue };
        let tensor = &weights[&format!("{}.weight", node.name)];
        assert_eq!(tensor.shape, [conv.c_out, conv.c_in, conv.kernel[0], conv.kernel[1]]);
        assert_eq!(weights[&format!("{}.bias", node.name)].shape, [conv.c_out]);
        let channels: Vec<_> = conv.requantization.multipliers().zip(conv.requantization.shifts()).collect();
        let exponent = node.exponent - nodes[node.input(0)].exponent;
        for (i, &value) in tensor.permuted([2, 3, 1, 0]).iter().enumerate() {
            let (multiplier, &shift) = channels[i % conv.c_out];
            let scale = f64::from(multiplier) * 2f64.powi(exponent - i32::from(shift));
            assert_eq!(value, (f64::from(conv.weights[i]) * scale) as f32);
            compared += 1;
        }
    }
    assert!(compared > 500);
}

#[test]
fn safetensors_hold_depthwise_filters_as_pytorch_has_them() {
    let file = lraspp();
    let model = Model::parse(&file).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    std::fs::write(&path, safetensors::export(&model, &Metadata::default()).unwrap()).unwrap();
    let weights = read_weights(&path).unwrap();
    let exponents: Vec<i32> = model.nodes().map(|node| node.exponent).collect();
    let mut compared = 0;
    for node in model.nodes() {
        let Op::Depthwise(conv) = &node.op else { continue };
        let tensor = &weights[&format!("{}.weight", node.name)];
        assert_eq!(tensor.shape, [conv.channels, 1, conv.kernel[0], conv.kernel[1]]);
        let channels: Vec<_> = conv.requantization.multipliers().zip(conv.requantization.shifts()).collect();
        for (i, &value) in tensor.permuted([2, 3, 1, 0]).iter().enumerate() {
            let (multiplier, &shift) = channels[i % conv.channels];
            let exponent = node.exponent - exponents[node.input(0)] - i32::from(shift);
            assert_eq!(value, (f64::from(conv.weights[i]) * f64::from(multiplier) * 2f64.powi(exponent)) as f32);
            compared += 1;
        }
    }
    assert_eq!(compared, 8 * 9 + 20 * 25 + 24 * 9 + 24 * 25);
}

/// The image and its values resized, as logits of three classes.
fn resized(exponent: i32, interpolation: Interpolation) -> Vec<u8> {
    let node = |op, inputs: &[usize], element, exponent, clamp| NodeSpec {
        name: "same name".into(),
        op,
        inputs: inputs.to_vec(),
        element,
        exponent,
        clamp,
    };
    let requantization =
        intseg_runtime::writer::RequantizationSpec { multiplier: vec![1; 3], bias: vec![0; 3], shift: vec![0; 3] };
    let nodes = vec![
        node(OpSpec::Image, &[], Element::I8, -7, [-128, 127]),
        node(OpSpec::Affine(requantization), &[0], Element::I16, exponent, [-32_767, 32_767]),
        node(OpSpec::Resize { factor: Some([2, 3]), interpolation }, &[1], Element::I16, exponent, [-32_767, 32_767]),
    ];
    let metadata = serde_json::to_string(&Metadata::default()).unwrap();
    ModelSpec { metadata, align_corners: false, nodes }.to_bytes()
}

#[test]
fn what_onnx_cannot_say_is_refused_with_the_layers_name() {
    let export = |file: &[u8], size| {
        let model = Model::parse(file).unwrap();
        onnx::export(&model, &Metadata::default(), size, Precision::Fused)
    };
    let error = export(&resized(-60, Interpolation::Linear), [8, 8]).unwrap_err();
    assert!(matches!(&error, ExportError::Layer { name, .. } if name == "same name"), "{error}");
    let error = export(&resized(-7, Interpolation::Linear), [0, 8]).unwrap_err();
    assert!(matches!(error, ExportError::Size { .. }), "{error}");
    assert!(export(&resized(-7, Interpolation::Nearest), [8, 8]).is_ok());
    let file = resized(-7, Interpolation::Linear);
    let error = safetensors::export(&Model::parse(&resized(-60, Interpolation::Linear)).unwrap(), &Metadata::default());
    assert!(matches!(error, Err(ExportError::Layer { .. })));
    assert!(safetensors::export(&Model::parse(&file).unwrap(), &Metadata::default()).is_ok());
}

#[test]
fn a_resize_is_one_operator_only_where_that_is_exact() {
    let operators = |interpolation| {
        let graph = exported(&resized(-7, interpolation), [8, 8], Precision::Fused).graph.unwrap();
        graph.node.iter().map(|node| node.op_type.clone()).collect::<Vec<_>>()
    };
    // Three times as many columns: no power of two.
    assert!(operators(Interpolation::Linear).iter().any(|op| op == "MatMul"));
    assert!(operators(Interpolation::Nearest).iter().any(|op| op == "Resize"));
}
