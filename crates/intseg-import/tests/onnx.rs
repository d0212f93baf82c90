//! ONNX models that PyTorch's exporters write: the network that is read computes what ONNX Runtime computes.

use intseg::data::image::Rgb;
use intseg_import::float;
use intseg_import::graph::{FloatGraph, FloatNode, FloatOp, Function, Interpolation, Normalization, ResizeTarget};
use intseg_import::onnx::{parse_graph, read_graph};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[derive(serde::Deserialize)]
struct Recorded {
    size: [usize; 2],
    shape: [usize; 3],
    sample: Vec<f32>,
}

/// What the script recorded of ONNX Runtime.
fn recorded() -> BTreeMap<String, Recorded> {
    serde_json::from_str(include_str!("fixtures/models.json")).unwrap()
}

fn read(name: &str) -> FloatGraph {
    let input = if name.starts_with("normalized") { Normalization::BYTES } else { Normalization::IMAGENET };
    read_graph(&fixtures().join(name), input).unwrap()
}

/// The logits at the image's size, of an image of stripes.
fn logits(graph: &FloatGraph, [height, width]: [usize; 2]) -> intseg_reference::Map {
    let stripes = (0..3 * height * width).map(|i| (i / 3 / width, i / 3 % width, i % 3));
    let data = stripes.map(|(y, x, c)| (y * 37 + x * 11 + c * 91 + y * x) as u8).collect();
    let logits = float::run(graph, &Rgb { width, height, data }, |_, _| {}).unwrap();
    float::resize(&logits, [height, width], graph.upsampling)
}

#[test]
fn networks_compute_what_onnx_runtime_computes() {
    let all = recorded();
    assert_eq!(all.len(), 17);
    for (name, recorded) in all {
        let graph = read(&name);
        let logits = logits(&graph, recorded.size);
        assert_eq!([logits.shape.h, logits.shape.w, logits.shape.c], recorded.shape, "{name}");
        let largest = recorded.sample.iter().fold(0f32, |a, b| a.max(b.abs()));
        let sample: Vec<f32> = logits.data.iter().copied().step_by(97).collect();
        assert_eq!(sample.len(), recorded.sample.len());
        for (index, (found, wanted)) in sample.iter().zip(&recorded.sample).enumerate() {
            let error = (found - wanted).abs() / largest;
            assert!(error < 1e-5, "{name}: logit {} is {found}, ONNX Runtime's {wanted}", index * 97);
        }
    }
}

fn operators(graph: &FloatGraph) -> Vec<&FloatOp> {
    graph.nodes.iter().map(|node| &node.op).collect()
}

fn resizes(graph: &FloatGraph) -> Vec<(ResizeTarget, Interpolation)> {
    let resize = |node: &FloatNode| match node.op {
        FloatOp::Resize { target, interpolation } => Some((target, interpolation)),
        _ => None,
    };
    graph.nodes.iter().filter_map(resize).collect()
}

#[test]
fn both_exporters_with_fixed_and_varying_sizes_give_the_same_network() {
    for network in ["fcn", "deeplab", "lraspp"] {
        let first = read(&format!("{network}_dynamic_dynamo.onnx"));
        for kind in ["dynamic_torchscript", "static_dynamo", "static_torchscript"] {
            let other = read(&format!("{network}_{kind}.onnx"));
            let kinds =
                |graph: &FloatGraph| operators(graph).into_iter().map(std::mem::discriminant).collect::<Vec<_>>();
            assert_eq!((first.nodes.len(), resizes(&first)), (other.nodes.len(), resizes(&other)), "{network}_{kind}");
            // The exporters order independent branches differently.
            let count = |graph: &FloatGraph, op| kinds(graph).into_iter().filter(|&kind| kind == op).count();
            kinds(&first).into_iter().for_each(|op| assert_eq!(count(&first, op), count(&other, op)));
        }
    }
}

#[test]
fn a_resize_to_a_computed_size_goes_to_what_has_it() {
    let like = (ResizeTarget::Like, Interpolation::Linear);
    for kind in ["dynamic_dynamo", "dynamic_torchscript", "static_dynamo", "static_torchscript"] {
        let fcn = read(&format!("fcn_{kind}.onnx"));
        assert_eq!((resizes(&fcn), fcn.upsampling), (vec![like, like], Interpolation::Linear), "{kind}");
        assert!(matches!(fcn.nodes.last().unwrap().op, FloatOp::Add));
        // A network that was exported for one size works at another.
        logits(&fcn, [41, 30]);
        let deeplab = read(&format!("deeplab_{kind}.onnx"));
        assert_eq!(resizes(&deeplab), [like], "{kind}");
        logits(&deeplab, [41, 30]);
    }
    let unet = read("unet_dynamic_dynamo.onnx");
    assert_eq!(resizes(&unet), [(ResizeTarget::Factor([2, 2]), Interpolation::Nearest)]);
}

#[test]
fn functions_that_an_old_version_writes_as_products_are_functions() {
    let count = |graph: &FloatGraph, wanted: fn(&FloatOp) -> bool| {
        operators(graph).into_iter().filter(|&op| wanted(op)).count()
    };
    for name in ["lraspp_dynamic_dynamo.onnx", "lraspp_dynamic_torchscript.onnx", "lraspp_version13.onnx"] {
        let graph = read(name);
        let function = |wanted: Function| {
            let is = |op: &FloatOp| matches!(op, FloatOp::Function { function, .. } if *function == wanted);
            operators(&graph).into_iter().filter(|&op| is(op)).count()
        };
        let found = [Function::HardSwish, Function::HARD_SIGMOID, Function::Sigmoid, Function::Silu].map(function);
        assert_eq!(found, [6, 2, 1, 1], "{name}");
        assert_eq!(count(&graph, |op| matches!(op, FloatOp::Depthwise { .. })), 4, "{name}");
        assert_eq!(count(&graph, |op| matches!(op, FloatOp::Product { .. })), 3, "{name}");
        // Two groups are a dense convolution with zeros.
        assert_eq!(
            count(
                &graph,
                |op| matches!(op, FloatOp::Conv { channels: [12, 12], window, .. } if window.kernel == [3, 3])
            ),
            1
        );
    }
}

#[test]
fn a_normalisation_in_the_model_becomes_the_graph_s() {
    for kind in ["dynamic_dynamo", "static_torchscript"] {
        let graph = read(&format!("normalized_{kind}.onnx"));
        let close = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let (found, wanted) = (graph.normalization, Normalization::IMAGENET);
        assert!(close(found.mean, wanted.mean) && close(found.deviation, wanted.deviation), "{found:?}");
        assert!(!operators(&graph).iter().any(|op| matches!(op, FloatOp::Affine { .. })));
        assert_eq!(graph.upsampling, Interpolation::LinearAligned);
    }
}

#[test]
fn softmax_and_argmax_at_the_end_are_left_out() {
    let (classes, logits) = (read("unet_classes.onnx"), read("unet_static_torchscript.onnx"));
    let kinds = |graph: &FloatGraph| operators(graph).into_iter().map(std::mem::discriminant).collect::<Vec<_>>();
    assert_eq!(kinds(&classes), kinds(&logits));
    assert!(matches!(&classes.nodes.last().unwrap().op, FloatOp::Conv { channels: [4, 5], .. }));
}

// ---- models built here

mod build;

use build::{conv, floats, ints, model, node};

fn refused(nodes: Vec<build::Node>, parts: &[&str]) {
    let message = parse_graph("m", model(nodes), Normalization::UNIT).expect_err("should be refused").to_string();
    parts.iter().for_each(|part| assert!(message.contains(part), "{message:?} does not say {part:?}"));
}

#[test]
fn what_is_not_understood_is_refused_with_its_node_s_name() {
    refused(vec![node("Gelu", "act", &["x"])], &["Gelu act: the operator is not understood"]);
    refused(vec![conv("c", 2).int("group", 3)], &["Conv c: its weights take 9 channels and its input has 3"]);
    refused(vec![conv("c", 2).int("group", -1)], &["Conv c: group -1 is out of range"]);
    refused(vec![conv("c", 2).int("group", 0)], &["Conv c: its weights take 0 channels and its input has 3"]);
    refused(vec![node("HardSigmoid", "h", &["x"]).float("alpha", -1.0)], &["HardSigmoid h: alpha -1 and beta 0.5"]);
    refused(vec![node("LeakyRelu", "l", &["x"]).float("alpha", f32::NAN)], &["LeakyRelu l: alpha NaN"]);
    refused(vec![conv("c", 2).ints("pads", &[0, 0, 1, 1])], &["Conv c: pads [0, 0, 1, 1] are not the same"]);
    refused(vec![conv("c", 2).ints("strides", &[2, 2]).text("auto_pad", "SAME_UPPER")], &["Conv c: auto_pad SAME"]);
    refused(vec![conv("c", 2).ints("strides", &[0, 2])], &["Conv c: its kernel, stride or dilation is 0"]);
    refused(vec![conv("c", 2).ints("strides", &[2])], &["Conv c: strides [2] is not of two dimensions"]);
    refused(vec![conv("c", 2).ints("dilations", &[1, -1])], &["Conv c: dilations -1 is out of range"]);
    refused(vec![conv("c", 2).ints("dilations", &[1000, 1])], &["Conv c: its window of 2001 does not fit into 128"]);
    refused(vec![conv("c", 2).int("alpha", 1)], &["Conv c: its attribute alpha is not understood"]);
    refused(vec![conv("c", 2).domain("com.acme")], &["Conv c: operators of com.acme are not understood"]);
    refused(vec![node("Conv", "c", &["x", "nowhere"])], &["Conv c: nothing computes its input nowhere"]);
    refused(vec![node("Conv", "c", &["x"])], &["Conv c: its input 1 is missing"]);
    refused(vec![node("Conv", "c", &["x", "x"])], &["Conv c: its input 1 is not constant"]);
    refused(vec![node("Sub", "s", &["x", "x"])], &["Sub s: Sub of two feature maps is not understood"]);
    refused(vec![node("Concat", "j", &["x", "x"]).int("axis", 2)], &["Concat j: axis 2"]);
    refused(vec![node("ReduceMean", "r", &["x"]).ints("axes", &[1])], &["ReduceMean r: axes [1]"]);
    refused(
        vec![node("MaxPool", "p", &["x"]).ints("kernel_shape", &[2, 2]).ints("pads", &[2; 4])],
        &["more than half"],
    );
    refused(
        vec![node("Softmax", "s", &["x"]).int("axis", 1), node("Relu", "r", &["s"])],
        &["Relu r: it follows softmax"],
    );
    refused(vec![node("Softmax", "s", &["x"]).int("axis", 2)], &["Softmax s: axis 2"]);
    refused(vec![node("ArgMax", "a", &["x"]).int("axis", 1).int("select_last_index", 1)], &["select_last_index 1"]);
    refused(vec![conv("c", 2), node("Add", "a", &["x", "c"])], &["Add a: its inputs have 3 and 2 channels"]);
    refused(vec![], &["the model's output"]);
    refused(vec![node("Identity", "i", &["x"])], &["the model computes nothing from the image"]);
}

#[test]
fn resizes_whose_coordinates_nobody_else_has_are_refused() {
    let scales = || floats("scales", &[4], &[1.0, 1.0, 2.0, 2.0]);
    let resize = |mode: &str, coordinates: &str| {
        let resize = node("Resize", "r", &["x", "", "scales"]).text("mode", mode);
        vec![resize.text("coordinate_transformation_mode", coordinates).constant(scales())]
    };
    refused(resize("cubic", "half_pixel"), &["Resize r: mode cubic"]);
    refused(resize("linear", "asymmetric"), &["Resize r: mode linear with coordinates asymmetric"]);
    refused(resize("nearest", "asymmetric"), &["nearest_mode round_prefer_floor"]);
    refused(resize("linear", "tf_crop_and_resize"), &["tf_crop_and_resize"]);
    let fraction = node("Resize", "r", &["x", "", "s"]).text("mode", "linear");
    let fraction = fraction.constant(floats("s", &[4], &[1.0, 1.0, 1.3, 1.0]));
    refused(vec![fraction], &["Resize r: factors [1.2999", "do not divide"]);
    let half = node("Resize", "r", &["x", "", "s"]).text("mode", "linear");
    let half = half.constant(floats("s", &[4], &[1.0, 1.0, 0.5, 0.5]));
    refused(vec![half, node("Relu", "e", &["r"])], &["Resize r: its size is no multiple"]);
    let batch = node("Resize", "r", &["x", "", "", "s"]).text("mode", "linear");
    refused(vec![batch.constant(ints("s", &[4], &[2, 3, 9, 9]))], &["Resize r: sizes [2.0, 3.0, 9.0, 9.0]"]);
    refused(vec![node("Resize", "r", &["x"])], &["Resize r: it has neither factors nor sizes"]);
}

#[test]
fn models_that_are_not_of_one_image_are_refused() {
    let parse = |bytes| parse_graph("m", bytes, Normalization::UNIT).unwrap_err().to_string();
    let with = |change: fn(&mut intseg_import::onnx::proto::Model)| parse(build::changed(vec![conv("c", 2)], change));
    assert!(with(|m| m.opset_import[0].version = 6).contains("version 6 of ONNX's operators"));
    assert!(with(|m| m.opset_import.clear()).contains("does not say which version"));
    assert!(with(|m| m.functions.push(Default::default())).contains("an operator of its own"));
    assert!(with(|m| m.graph.as_mut().unwrap().sparse_initializer.push(Default::default())).contains("sparse"));
    assert!(with(|m| m.graph.as_mut().unwrap().input.clear()).contains("not one input"));
    assert!(with(|m| m.graph.as_mut().unwrap().output.clear()).contains("has no output"));
    assert!(with(|m| build::input_sizes(m, &[1, 4, 32, 32])).contains("[1, 4, 32, 32]"));
    assert!(with(|m| build::input_sizes(m, &[2, 3, 32, 32])).contains("[2, 3, 32, 32]"));
    assert!(with(|m| build::input_sizes(m, &[1, 3, 1 << 40, 32])).contains("where one image"));
    assert!(with(|m| m.graph.as_mut().unwrap().initializer[0].data_location = 1).contains("external_data=False"));
    assert!(with(|m| m.graph.as_mut().unwrap().initializer[0].dims[0] = 99).contains("takes"));
    assert!(parse(b"not a model".to_vec()).contains("the ONNX model is damaged"));
}

#[test]
fn folded_batch_normalisation_is_that_of_the_definition() {
    let bn = node("BatchNormalization", "bn", &["x", "g", "b", "m", "v"]).float("epsilon", 0.25);
    let bn = bn.constant(floats("g", &[3], &[1.0, 2.0, -3.0])).constant(floats("b", &[3], &[0.0, 1.0, 2.0]));
    let bn = bn.constant(floats("m", &[3], &[0.0, 4.0, 5.0])).constant(floats("v", &[3], &[0.75, 2.0, 6.0]));
    // Between two convolutions, so that it is no normalisation of the image.
    let graph = parse_graph("m", model(vec![node("Relu", "r", &["x"]), bn.reading("r")]), Normalization::UNIT).unwrap();
    let wanted = FloatOp::Affine { scale: vec![1.0, 2.0 / 1.5, -3.0 / 2.5], offset: vec![0.0, 1.0 - 8.0 / 1.5, 8.0] };
    assert_eq!(graph.nodes.last().unwrap().op, wanted);
    let negative = node("BatchNormalization", "bn", &["x", "g", "g", "g", "v"]);
    let negative = negative.constant(floats("g", &[3], &[1.0; 3])).constant(floats("v", &[3], &[1.0, -1.0, 1.0]));
    refused(vec![negative], &["BatchNormalization bn: channel 1 is not finite"]);
}

#[test]
fn operators_of_older_versions_are_read() {
    let scales = || floats("scales", &[4], &[1.0, 1.0, 2.0, 2.0]);
    let relu = || node("Relu", "r", &["x"]);
    let old = |nodes: Vec<build::Node>, version| {
        let change = move |m: &mut intseg_import::onnx::proto::Model| m.opset_import[0].version = version;
        parse_graph("m", build::changed(nodes, change), Normalization::UNIT)
    };
    let nearest = Ok(vec![(ResizeTarget::Factor([2, 2]), Interpolation::Nearest)]);
    let end = || node("MaxPool", "p", &["u"]).ints("kernel_shape", &[2, 2]).ints("strides", &[2, 2]);
    for (operator, version) in [("Upsample", 9), ("Resize", 10)] {
        let up = |mode: &str| node(operator, "u", &["r", "scales"]).text("mode", mode).constant(scales());
        let read = old(vec![relu(), up("nearest"), end()], version);
        assert_eq!(read.map(|graph| resizes(&graph)).map_err(|e| e.to_string()), nearest);
        let message = old(vec![relu(), up("linear"), end()], version).unwrap_err().to_string();
        assert!(message.contains(&format!("{operator} u: mode linear with coordinates asymmetric")), "{message}");
    }
    let clip = node("Clip", "c", &["x"]).float("min", -1.0).float("max", 6.0);
    let graph = old(vec![clip], 9).unwrap();
    assert_eq!(graph.nodes[1].op, FloatOp::Clip { low: -1.0, high: 6.0 });
    refused(vec![node("Clip", "c", &["x"]).float("min", 2.0).float("max", 1.0)], &["Clip c: its bounds 2 and 1"]);
}

#[test]
fn nearest_to_another_tensor_s_size_is_understood_where_that_is_a_multiple() {
    let half = |name: &str, input: &str| {
        node("MaxPool", name, &[input]).ints("kernel_shape", &[2, 2]).ints("strides", &[2, 2]).int("ceil_mode", 1)
    };
    let up = node("Resize", "up", &["deep", "", "", "size"]).text("coordinate_transformation_mode", "asymmetric");
    let nodes = vec![
        half("skip", "x"),
        half("deep", "skip"),
        node("Shape", "size", &["skip"]),
        up.text("mode", "nearest").text("nearest_mode", "floor"),
        node("Add", "sum", &["skip", "up"]),
    ];
    // At odd sizes the skip has no multiple of rows, so that a factor would be another network.
    let graph = parse_graph("m", model(nodes.clone()), Normalization::UNIT).unwrap();
    assert_eq!(resizes(&graph), [(ResizeTarget::Like, Interpolation::Nearest)]);
    let fixed = build::changed(nodes, |m| build::input_sizes(m, &[1, 3, 32, 48]));
    let graph = parse_graph("m", fixed, Normalization::UNIT).unwrap();
    assert_eq!(resizes(&graph), [(ResizeTarget::Factor([2, 2]), Interpolation::Nearest)]);
}

#[test]
fn constants_reach_operators_in_every_way_that_a_file_has() {
    let value = |name: &str, setting: &str, v: f32| node("Constant", name, &[]).float(setting, v);
    let tensor = node("Identity", "low_again", &["low"]).constant(floats("low", &[], &[-2.0]));
    let nodes = vec![tensor, value("high", "value_float", 2.5), node("Clip", "c", &["x", "low_again", "high"])];
    let graph = parse_graph("m", model(nodes), Normalization::UNIT).unwrap();
    assert_eq!(graph.nodes[1].op, FloatOp::Clip { low: -2.0, high: 2.5 });
    // A constant for each channel, from either side; what is left out of a sum is its neutral element.
    let each = floats("k", &[3, 1, 1], &[1.0, 2.0, 4.0]);
    let affine = |operator: &str, inputs: [&str; 2]| {
        let nodes = vec![node("Relu", "r", &["x"]), node(operator, "a", &inputs).constant(each.clone())];
        parse_graph("m", model(nodes), Normalization::UNIT).unwrap().nodes.pop().unwrap().op
    };
    let wanted = |scale: [f32; 3], offset: [f32; 3]| FloatOp::Affine { scale: scale.into(), offset: offset.into() };
    assert_eq!(affine("Add", ["r", "k"]), wanted([1.0; 3], [1.0, 2.0, 4.0]));
    assert_eq!(affine("Add", ["k", "r"]), wanted([1.0; 3], [1.0, 2.0, 4.0]));
    assert_eq!(affine("Sub", ["r", "k"]), wanted([1.0; 3], [-1.0, -2.0, -4.0]));
    assert_eq!(affine("Sub", ["k", "r"]), wanted([-1.0; 3], [1.0, 2.0, 4.0]));
    assert_eq!(affine("Mul", ["k", "r"]), wanted([1.0, 2.0, 4.0], [0.0; 3]));
    assert_eq!(affine("Div", ["r", "k"]), wanted([1.0, 0.5, 0.25], [0.0; 3]));
    let row = node("Mul", "m", &["x", "w"]).constant(floats("w", &[1, 1, 1, 3], &[1.0, 2.0, 3.0]));
    refused(vec![row], &["Mul m: a constant of shape [1, 1, 1, 3] for 3 channels"]);
}

#[test]
fn padding_that_keeps_the_size_is_understood_where_it_is_symmetric() {
    let graph =
        parse_graph("m", model(vec![conv("c", 2).text("auto_pad", "SAME_UPPER")]), Normalization::UNIT).unwrap();
    let FloatOp::Conv { window, .. } = &graph.nodes[1].op else { panic!() };
    assert_eq!(window.padding, [1, 1]);
}

#[test]
fn only_what_the_first_output_takes_is_read() {
    let unknown = node("Gelu", "aux", &["c"]);
    let graph = parse_graph("m", model(vec![conv("c", 2), unknown, node("Relu", "out", &["c"])]), Normalization::UNIT);
    let names: Vec<_> = graph.unwrap().nodes.into_iter().map(|node| node.name).collect();
    assert_eq!(names, ["image", "c", "out"]);
}

#[test]
fn a_model_in_training_is_refused() {
    let training = ints("t", &[], &[1]);
    let dropout = node("Dropout", "d", &["x", "", "t"]).constant(training);
    refused(vec![dropout], &["Dropout d: the model is exported for training"]);
    let bn = node("BatchNormalization", "bn", &["x", "g", "g", "g", "g"]).constant(floats("g", &[3], &[1.0; 3]));
    refused(vec![bn.int("training_mode", 1)], &["BatchNormalization bn: training_mode 1"]);
}

#[test]
fn a_chain_that_doubles_is_stopped() {
    let mut nodes = vec![node("Concat", "j0", &["x", "x"]).int("axis", 1)];
    nodes.extend((1..64).map(|i| {
        let input = format!("j{}", i - 1);
        node("Concat", &format!("j{i}"), &[&input, &input]).int("axis", 1)
    }));
    refused(nodes, &["Concat j", "channels"]);
    let grow = |i: usize| {
        let input = if i == 0 { "x".into() } else { format!("r{}", i - 1) };
        node("Resize", &format!("r{i}"), &[&input, "", "s"]).text("mode", "linear")
    };
    let mut nodes: Vec<_> = (0..64).map(grow).collect();
    nodes[0] = nodes[0].clone().constant(floats("s", &[4], &[1.0, 1.0, 8.0, 8.0]));
    refused(nodes, &["Resize r", "rows and"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A damaged model is read into a graph whose nodes read earlier ones, or refused.
    #[test]
    fn damaged_models_are_read_or_refused_and_nothing_panics(
        which in 0..MODELS.len(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = MODELS[which].to_vec();
        flips.iter().for_each(|(at, flip)| bytes[at.index(MODELS[which].len())] ^= flip);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(graph) = parse_graph("damaged", bytes, Normalization::UNIT) {
            for (index, node) in graph.nodes.iter().enumerate() {
                prop_assert!(node.inputs.iter().all(|&input| input < index));
            }
        }
    }
}

const MODELS: [&[u8]; 4] = [
    include_bytes!("fixtures/deeplab_dynamic_torchscript.onnx"),
    include_bytes!("fixtures/fcn_static_dynamo.onnx"),
    include_bytes!("fixtures/normalized_dynamic_dynamo.onnx"),
    include_bytes!("fixtures/unet_classes.onnx"),
];
