//! Post-training quantisation of networks that PyTorch's exporters wrote, and of one built of everything else.

use intseg::data::image::Rgb;
use intseg_import::graph::{FloatGraph, FloatNode, FloatOp, Interpolation, Normalization, ResizeTarget, Window};
use intseg_import::onnx::read_graph;
use intseg_import::quantize::{Options, QuantizeError, Ranges, Report, Scales, quantize};
use intseg_kernels::{Context, Dither, Role};
use intseg_runtime::writer::{ModelSpec, OpSpec};
use intseg_runtime::{Element, Model};
use std::path::Path;

/// Images of smooth colours with some noise on them.
fn images(count: u64, [height, width]: [usize; 2]) -> Vec<Rgb> {
    let image = |seed| {
        let bits = Dither::new(seed, 0, 0, Role::Scene);
        let value = |i: usize| {
            let (y, x, c) = (i / 3 / width, i / 3 % width, i % 3);
            let wave = (y * (5 + seed as usize) + x * (3 + c)) % 200;
            (wave + bits.below(i, 56) as usize) as u8
        };
        Rgb { width, height, data: (0..3 * height * width).map(value).collect() }
    };
    (0..count).map(image).collect()
}

fn fixture(name: &str) -> FloatGraph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let input = if name.starts_with("normalized") { Normalization::BYTES } else { Normalization::IMAGENET };
    read_graph(&path, input).unwrap()
}

fn quantized(graph: &FloatGraph, options: &Options) -> (ModelSpec, Report) {
    let images = images(3, [48, 64]);
    let quantized = quantize(graph, &images, options).unwrap();
    let report = quantized.report(graph, &images, Context::reference()).unwrap();
    (quantized.spec, report)
}

/// The signal-to-noise ratio of the logits.
fn logits(report: &Report) -> f64 {
    report.layers.last().unwrap().snr_db
}

const FIXTURES: [&str; 5] = [
    "lraspp_dynamic_dynamo.onnx",
    "fcn_dynamic_dynamo.onnx",
    "deeplab_dynamic_dynamo.onnx",
    "unet_dynamic_dynamo.onnx",
    "normalized_dynamic_dynamo.onnx",
];

#[test]
fn networks_keep_what_they_say_and_the_report_shows_where_it_is_lost() {
    for name in FIXTURES {
        let (spec, report) = quantized(&fixture(name), &Options::default());
        assert!(logits(&report) > 22.0 && report.agreement > 0.9, "{name}: {} {}", logits(&report), report.agreement);
        assert_eq!(report.layers.len(), spec.nodes.len());
        assert!(report.layers[0].snr_db > 100.0, "{name}: the image is exact");
        // Noise comes in little by little: no layer is far below the rest.
        assert!(report.layers.iter().all(|layer| layer.snr_db > 15.0), "{name}: {:?}", report.layers);
    }
}

/// With the image's middle grey outside, as the runtime has it, half of these pixels would be off.
#[test]
fn a_convolution_of_the_image_still_sees_the_mean_outside_it() {
    let mut builder = Builder(Vec::new());
    builder.push(FloatOp::Image, &[]);
    builder.conv(0, [3, 6], 7);
    let graph = FloatGraph { normalization: Normalization::IMAGENET, ..builder.finish(Interpolation::Linear) };
    let images = images(3, [11, 13]);
    let quantized = quantize(&graph, &images, &Options::default()).unwrap();
    let pads: Vec<&OpSpec> = quantized.spec.nodes[1..].iter().map(|node| &node.op).take(1).collect();
    // Bytes 124, 116 and 104 less 128.
    assert_eq!(pads, [&OpSpec::Pad { padding: [3, 3], pixel: [-4i8, -12, -24].map(|v| v as u8).into() }]);
    let report = quantized.report(&graph, &images, Context::reference()).unwrap();
    assert!(report.agreement > 0.98 && logits(&report) > 30.0, "{report:?}");
    let unit = FloatGraph { normalization: Normalization { mean: [0.502; 3], ..graph.normalization }, ..graph };
    let spec = quantize(&unit, &images, &Options::default()).unwrap().spec;
    assert!(spec.nodes.iter().all(|node| !matches!(node.op, OpSpec::Pad { .. })), "less than half a byte");
}

/// A convolution over a map after ReLU beside one of both signs: as one layer its input would have one exponent and 7 bits
/// for each part.
#[test]
fn maps_after_relu_keep_eight_bits_beside_maps_of_both_signs() {
    let mut builder = Builder(Vec::new());
    builder.push(FloatOp::Image, &[]);
    let skip = builder.conv(0, [3, 8], 3);
    let skip = builder.clip(skip, 0.0, f32::INFINITY);
    let signed = builder.conv(skip, [8, 8], 3);
    let both = builder.push(FloatOp::Concat, &[signed, skip]);
    let merged = builder.conv(both, [16, 8], 3);
    let merged = builder.clip(merged, 0.0, f32::INFINITY);
    builder.conv(merged, [8, 4], 1);
    let graph = builder.finish(Interpolation::Linear);
    let (spec, report) = quantized(&graph, &Options::default());
    assert!(spec.nodes.iter().all(|node| !matches!(node.op, OpSpec::Concat)), "no map waits for another's type");
    let elements: Vec<Element> = spec.nodes.iter().map(|node| node.element).collect();
    let (unsigned, sixteen) = (Element::U8, Element::I16);
    // The image, and what lies around it.
    assert_eq!(elements[..2], [Element::I8; 2]);
    assert_eq!(elements[2..], [unsigned, Element::I8, sixteen, sixteen, unsigned, sixteen]);
    assert!(logits(&report) > 30.0, "{}", logits(&report));
}

#[test]
fn every_way_to_find_ranges_works_and_clipping_shows_as_saturation() {
    let graph = fixture("fcn_dynamic_dynamo.onnx");
    let saturated = |ranges| {
        let (_, report) = quantized(&graph, &Options { ranges, ..Options::default() });
        assert!(logits(&report) > 10.0, "{ranges:?}");
        report.layers.iter().skip(1).map(|layer| layer.saturated).sum::<f64>()
    };
    assert!(saturated(Ranges::Percentile(0.97)) > saturated(Ranges::Maximum) + 0.02);
    assert!(saturated(Ranges::SquaredError) >= 0.0);
}

#[test]
fn bias_correction_and_equalization_can_be_left_out() {
    let graph = fixture("deeplab_dynamic_dynamo.onnx");
    let plain = Options { bias_correction: false, equalization: 0.0, ..Options::default() };
    let ((spec, report), (other, _)) = (quantized(&graph, &plain), quantized(&graph, &Options::default()));
    assert!(logits(&report) > 20.0);
    assert_ne!(spec, other);
}

#[test]
fn powers_of_two_and_whole_biases_are_just_that() {
    for name in FIXTURES {
        let (spec, report) = quantized(&fixture(name), &Options { scales: Scales::PowerOfTwo, ..Options::default() });
        assert!(logits(&report) > 15.0, "{name}: {}", logits(&report));
        for node in &spec.nodes {
            let (OpSpec::Conv { requantization, .. } | OpSpec::Affine(requantization)) = &node.op else { continue };
            for (&multiplier, &bias) in requantization.multiplier.iter().zip(&requantization.bias) {
                assert!(multiplier.unsigned_abs().is_power_of_two(), "{}: {multiplier}", node.name);
                assert_eq!(bias % i64::from(multiplier), 0, "{}", node.name);
            }
        }
    }
}

/// Builds a graph node by node.
struct Builder(Vec<FloatNode>);

impl Builder {
    fn push(&mut self, op: FloatOp, inputs: &[usize]) -> usize {
        self.0.push(FloatNode { name: format!("node{}", self.0.len()), op, inputs: inputs.to_vec() });
        self.0.len() - 1
    }

    fn weights(&self, len: usize, scale: f32) -> Vec<f32> {
        let bits = Dither::new(self.0.len() as u64, 1, 0, Role::Initial);
        (0..len).map(|i| (bits.below(i, 2001) as f32 / 1000.0 - 1.0) * scale).collect()
    }

    fn conv(&mut self, input: usize, [c_in, c_out]: [usize; 2], kernel: usize) -> usize {
        let window = Window { kernel: [kernel; 2], stride: [1; 2], dilation: [1; 2], padding: [kernel / 2; 2] };
        let weights = self.weights(kernel * kernel * c_in * c_out, (3.0 / (kernel * kernel * c_in) as f32).sqrt());
        let bias = self.weights(c_out, 0.2);
        self.push(FloatOp::Conv { window, weights, channels: [c_in, c_out], bias }, &[input])
    }

    fn clip(&mut self, input: usize, low: f32, high: f32) -> usize {
        self.push(FloatOp::Clip { low, high }, &[input])
    }

    fn finish(self, upsampling: Interpolation) -> FloatGraph {
        FloatGraph { name: "built".into(), nodes: self.0, upsampling, normalization: Normalization::UNIT }
    }
}

fn square(kernel: usize, stride: usize) -> Window {
    Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1; 2], padding: [0; 2] }
}

/// What the exporters' networks do not have: values of both signs that sums, convolutions and concatenations read, a
/// clamp at 6 and one that nothing can take along, means over windows, a transposed convolution, the image read twice,
/// a normalisation of its own, and nearest upsampling.
fn everything() -> FloatGraph {
    let mut b = Builder(Vec::new());
    let image = b.push(FloatOp::Image, &[]);
    let x = b.conv(image, [3, 8], 3);
    let six = b.clip(x, 0.0, 6.0);
    let linear = b.conv(six, [8, 8], 3);
    let sum = b.push(FloatOp::Add, &[linear, six]);
    let again = b.conv(sum, [8, 8], 3);
    let sum = b.push(FloatOp::Add, &[again, sum]);
    let pooled = b.push(FloatOp::MaxPool { window: square(2, 2), ceil: true }, &[sum]);
    let clamped = b.clip(pooled, -0.5, 0.75);
    let mean = b.push(FloatOp::AveragePool { window: square(2, 1), ceil: false, count_padding: false }, &[clamped]);
    let scale = b.weights(8, 1.5);
    let offset = b.weights(8, 0.5);
    let norm = b.push(FloatOp::Affine { scale, offset }, &[mean]);
    let relu = b.clip(norm, 0.0, f32::INFINITY);
    let (weights, bias) = (b.weights(9 * 8 * 6, 0.3), b.weights(6, 0.1));
    let window = Window { kernel: [3; 2], stride: [2; 2], dilation: [1; 2], padding: [1; 2] };
    let up = FloatOp::ConvTranspose { window, output_padding: [1; 2], weights, channels: [8, 6], bias };
    let up = b.push(up, &[relu]);
    let like = FloatOp::Resize { target: ResizeTarget::Like, interpolation: Interpolation::LinearAligned };
    let up = b.push(like, &[up, six]);
    let global = b.push(FloatOp::GlobalAveragePool, &[up]);
    let global =
        b.push(FloatOp::Resize { target: ResizeTarget::Like, interpolation: Interpolation::Linear }, &[global, six]);
    let joined = b.push(FloatOp::Concat, &[up, six, global, image]);
    let x = b.conv(joined, [23, 12], 3);
    let x = b.clip(x, 0.0, f32::INFINITY);
    let half = b.push(FloatOp::AveragePool { window: square(2, 2), ceil: false, count_padding: true }, &[x]);
    b.conv(half, [12, 5], 1);
    b.finish(Interpolation::Nearest)
}

#[test]
fn everything_that_a_float_graph_can_hold_runs_in_integers() {
    let (spec, report) = quantized(&everything(), &Options::default());
    assert!(logits(&report) > 20.0 && report.agreement > 0.9, "{report:?}");
    let bytes = spec.to_bytes();
    let model = Model::parse(&bytes).unwrap();
    let count = |element| model.nodes().filter(|node| node.element == element).count();
    assert!(count(Element::I8) > 4 && count(Element::U8) >= 4 && count(Element::I16) > 2, "{:?}", report.layers);
}

#[test]
fn the_same_network_and_images_give_the_same_bytes() {
    let graph = fixture("unet_static_torchscript.onnx");
    let bytes = || quantize(&graph, &images(5, [32, 32]), &Options::default()).unwrap().spec.to_bytes();
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(bytes);
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(bytes);
    assert!(one == three);
}

#[test]
fn what_cannot_be_quantised_is_said() {
    let graph = fixture("fcn_dynamic_dynamo.onnx");
    assert_eq!(quantize(&graph, &[], &Options::default()).unwrap_err(), QuantizeError::NoImages);
    let mut broken = everything();
    let FloatOp::Conv { bias, .. } = &mut broken.nodes[1].op else { panic!("a convolution") };
    bias[0] = f32::MAX;
    let FloatOp::Conv { weights, .. } = &mut broken.nodes[3].op else { panic!("a convolution") };
    weights.fill(1e30);
    broken.nodes[2].op = FloatOp::Clip { low: 0.0, high: f32::INFINITY };
    let error = quantize(&broken, &images(1, [16, 16]), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
    let error = quantize(&everything(), &images(1, [1, 1]), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("node9: the image is too small"), "{error}");
    let mut padded = everything();
    let FloatOp::ConvTranspose { output_padding, .. } = &mut padded.nodes[12].op else { panic!("a transposed one") };
    *output_padding = [2, 0];
    let error = quantize(&padded, &images(1, [16, 16]), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("node12: its output padding"), "{error}");
    let mut b = Builder(Vec::new());
    let image = b.push(FloatOp::Image, &[]);
    b.conv(image, [3, 300], 1);
    let error = quantize(&b.finish(Interpolation::Linear), &images(1, [8, 8]), &Options::default()).unwrap_err();
    assert_eq!(error, QuantizeError::Classes { classes: 300 });
}
