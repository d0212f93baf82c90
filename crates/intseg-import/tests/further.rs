//! Models trained further: an imported network becomes a training network that says the same.

use intseg::config::Config;
use intseg::data::image::Rgb;
use intseg::data::loader::Source;
use intseg::data::{Dataset, image::read_rgb, scenes};
use intseg::fold::{Metadata, fold};
use intseg::frozen::Frozen;
use intseg::graph::OpSpec;
use intseg::init::{Report, Start, settle};
use intseg::network::Network;
use intseg::ops::Bits;
use intseg::tensor::Shape;
use intseg_import::graph::Normalization;
use intseg_import::quantize::{Options, quantize};
use intseg_import::tensor::{FloatTensor, Weights};
use intseg_kernels::{Context, Dither, Inline, Isa, Role};
use intseg_runtime::Engine;
use std::path::Path;

fn ctx() -> Context<'static> {
    Context { isa: Isa::detect(), pool: &Inline }
}

fn config(arch: &str, classes: usize) -> Config {
    let set = [
        format!("network.arch={arch}"),
        format!("network.classes={classes}"),
        // Its layers have 8 channels at least, and the width is read off the first one.
        format!("network.width={}", if arch == "fcn-tiny" { "1.0" } else { "0.125" }),
        "network.dropout=0.0".into(),
        "augment.crop=[64,96]".into(),
        "train.batch=4".into(),
    ];
    Config::parse("", "run.toml".as_ref(), &set).unwrap()
}

/// Float weights of a network, drawn, with normalisations that change what they see.
fn weights(config: &Config) -> Weights {
    let graph = config.graph().unwrap();
    let shapes = graph.shapes(Shape::new(1, 64, 96, 3)).unwrap();
    let mut weights = Weights::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let draw = Dither::new(5, 0, index as u32, Role::Initial);
        let uniform = |i: usize| draw.at(i) as f32 / u32::MAX as f32 - 0.5;
        let mut insert = |kind: &str, shape: &[usize], first: usize, value: &dyn Fn(f32) -> f32| {
            let data = (0..shape.iter().product()).map(|i| value(uniform(first + i))).collect();
            weights.insert(format!("{}.{kind}", node.name), FloatTensor { shape: shape.to_vec(), data });
        };
        match &node.op {
            OpSpec::Conv(spec) => {
                let c_in = shapes[node.inputs[0].0].c;
                let fan_in = (c_in * spec.kernel[0] * spec.kernel[1]) as f32;
                let shape = [spec.channels, c_in, spec.kernel[0], spec.kernel[1]];
                insert("weight", &shape, 0, &|u| u * (24.0 / fan_in).sqrt());
                insert("bias", &[spec.channels], 1 << 20, &|u| 0.3 * u);
            }
            OpSpec::BatchNorm { .. } => {
                let shape = [shapes[index].c];
                insert("weight", &shape, 0, &|u| 1.0 + u);
                insert("bias", &shape, 1 << 10, &|u| 0.4 * u);
                insert("running_mean", &shape, 2 << 10, &|u| 0.4 * u);
                insert("running_var", &shape, 3 << 10, &|u| 2.0 + u);
            }
            _ => {}
        }
    }
    weights
}

/// A network as import makes it, and its file.
fn imported(config: &Config, images: &[Rgb]) -> Vec<u8> {
    let arch = &config.network.arch;
    let float = intseg_import::arch::network(arch, weights(config), Normalization::IMAGENET).unwrap().graph;
    let mut spec = quantize(&float, images, &Options::default()).unwrap().spec;
    let classes = (0..config.network.classes).map(|class| format!("class {class}")).collect();
    let metadata = Metadata { arch: arch.clone(), classes, ..Metadata::default() };
    spec.metadata = serde_json::to_string(&metadata).unwrap();
    spec.to_bytes()
}

fn started(bytes: &[u8], config: &Config, data: &Path) -> (Network, Report) {
    let mut network = Network::new(config.graph().unwrap(), 1).unwrap();
    let start = Start::from_model(bytes, "model.iseg".as_ref()).unwrap();
    let report = start.apply(&mut network).unwrap();
    let dataset = Dataset::open(data, None).unwrap();
    let train = dataset.split("train").unwrap();
    settle(&mut network, config, Source::new(config, dataset, train), ctx()).unwrap();
    (network, report)
}

/// The share of pixels to which two models give the same class.
fn agreement(a: &[u8], b: &[u8], images: &[Rgb]) -> f64 {
    let mut engines = [a, b].map(|bytes| Engine::new(bytes.to_vec()).unwrap());
    let (mut same, mut count) = (0, 0);
    for image in images {
        let maps = engines.each_mut().map(|engine| {
            let mut classes = vec![0; image.width * image.height];
            engine.run(ctx(), [image.height, image.width], &image.data, &mut classes).unwrap();
            classes
        });
        same += maps[0].iter().zip(&maps[1]).filter(|(a, b)| a == b).count();
        count += maps[0].len();
    }
    same as f64 / count as f64
}

fn folder() -> (tempfile::TempDir, Vec<Rgb>) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("scenes");
    scenes::write(&data, [8, 2], [64, 96], 3).unwrap();
    let dataset = Dataset::open(&data, None).unwrap();
    let images = dataset.split("train").unwrap().iter().map(|entry| read_rgb(&entry.image).unwrap()).collect();
    (dir, images)
}

#[test]
fn an_imported_network_in_training_says_what_its_model_says() {
    let (dir, images) = folder();
    // Without a normalisation that takes its scales, all channels of a convolution share one step. The networks are drawn:
    // their classes are closer to each other than those of trained ones. Training pads with middle grey where the model has
    // the mean, which in images as small as these much of a ResNet sees.
    for (arch, least) in [
        ("fcn-tiny", 0.97),
        ("fcn8s-vgg16", 0.8),
        ("fcn8s-vgg16-bn", 0.96),
        ("deeplabv3-resnet50", 0.92),
        ("deeplabv3-resnet50v2", 0.92),
        ("fcn-resnet50", 0.92),
    ] {
        let config = config(arch, 6);
        let bytes = imported(&config, &images);
        let (network, report) = started(&bytes, &config, &dir.path().join("scenes"));
        assert!(report.initial.is_empty() && report.ignored.is_empty(), "{arch}: {report}");
        let folded = fold(&network, &Frozen::running(&network), Bits::default(), &Metadata::default()).to_bytes();
        let same = agreement(&bytes, &folded, &images);
        assert!(same > least, "{arch}: {same}");
    }
}

#[test]
fn the_same_model_gives_the_same_weights_and_other_classes_keep_their_own_head() {
    let (dir, images) = folder();
    let config = config("fcn8s-vgg16-bn", 6);
    let (bytes, data) = (imported(&config, &images), dir.path().join("scenes"));
    let [first, second] = [(); 2].map(|()| {
        let (network, _) = started(&bytes, &config, &data);
        fold(&network, &Frozen::running(&network), Bits::default(), &Metadata::default()).to_bytes()
    });
    assert!(first == second);
    let other = self::config("fcn8s-vgg16-bn", 9);
    let mut network = Network::new(other.graph().unwrap(), 1).unwrap();
    let report = Start::from_model(&bytes, "model.iseg".as_ref()).unwrap().apply(&mut network).unwrap();
    assert!(report.initial.len() == 6 && report.initial.iter().all(|(name, _)| name.starts_with("score_")), "{report}");
}

#[test]
fn models_that_cannot_be_trained_are_refused_by_name() {
    let refused = |bytes: &[u8]| Start::from_model(bytes, "some.iseg".as_ref()).unwrap_err().to_string();
    let (_dir, images) = folder();
    let bytes = imported(&config("fcn-tiny", 6), &images);
    assert!(refused(&bytes[..bytes.len() - 7]).contains("some.iseg"));
    let changed = |change: &dyn Fn(&mut intseg_runtime::writer::ModelSpec)| {
        let float = intseg_import::arch::network("fcn-tiny", weights(&config("fcn-tiny", 6)), Normalization::IMAGENET);
        let mut spec = quantize(&float.unwrap().graph, &images, &Options::default()).unwrap().spec;
        let classes = vec![String::new(); 6];
        spec.metadata =
            serde_json::to_string(&Metadata { arch: "fcn-tiny".into(), classes, ..Metadata::default() }).unwrap();
        change(&mut spec);
        refused(&spec.to_bytes())
    };
    let renamed = |arch: &str| {
        let metadata = Metadata { arch: arch.into(), classes: vec![String::new(); 6], ..Metadata::default() };
        let text = serde_json::to_string(&metadata).unwrap();
        changed(&move |spec| spec.metadata.clone_from(&text))
    };
    for (problem, parts) in [
        (renamed("unet.onnx"), ["\"unet.onnx\" is none that intseg trains", "--arch"]),
        (renamed("fcn8s-vgg16"), ["its layer conv1", "of fcn8s-vgg16"]),
        (changed(&|spec| spec.metadata = "{".into()), ["some.iseg", "metadata"]),
        (changed(&|spec| spec.nodes[3].exponent = 150), ["its layer conv2", "exponent"]),
        (changed(&|spec| spec.nodes[3].inputs = vec![0]), ["its layer conv2", "other inputs"]),
    ] {
        assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
    }
}
