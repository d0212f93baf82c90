//! Files that PyTorch and torchvision write, and PyTorch's own results.
//!
//! `INTSEG_PEERS_TORCH` names a Python with `tests/peers/torch.txt`; without it these tests are skipped.
//! `scripts/peer-tests.sh` makes one and runs them.

mod common;

use common::{Ran, intseg, program, read_png, root};
use intseg::config::Config;
use intseg::data::Dataset;
use intseg::data::image::Rgb;
use intseg::data::loader::{Loader, Source};
use intseg::graph::OpSpec;
use intseg::network::{Network, Recipe};
use intseg_import::graph::Normalization;
use intseg_import::onnx::read_graph;
use intseg_import::read::read_weights;
use intseg_import::{arch, float};
use intseg_kernels::Context;
use intseg_reference::Reference;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python with PyTorch, or `None` with a message.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("INTSEG_PEERS_TORCH").map(PathBuf::from);
    if python.is_none() {
        eprintln!("skipped: INTSEG_PEERS_TORCH is not set, see scripts/peer-tests.sh");
    }
    python
}

/// Runs a script of `tests/peers` and hands back what it printed.
fn script(python: &Path, name: &str, arguments: &[&Path]) -> String {
    let ran = Command::new(python).arg(root().join("tests/peers").join(name)).args(arguments).output().unwrap();
    Ran::from(ran).ok()
}

fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// How far values are from those wanted, as a share of the largest of those.
fn distance(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0f32, |a, v| a.max(v.abs()));
    got.iter().zip(wanted).fold(0f32, |a, (g, w)| a.max((g - w).abs())) / largest
}

#[test]
fn what_pytorch_writes_is_read_and_computes_what_pytorch_computes() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let listed = script(&python, "torch_files.py", &[dir.path()]);
    let image = Rgb { width: 96, height: 64, data: std::fs::read(dir.path().join("image.rgb")).unwrap() };
    // Through one output after the other of fifty layers, sums in another order differ by so much.
    const TOLERANCE: f32 = 2e-4;
    let mut files = 0;
    for line in listed.lines().filter(|line| line.starts_with('{')) {
        let case: Value = serde_json::from_str(line).unwrap();
        let [file, scores] = ["file", "scores"].map(|key| case[key].as_str().unwrap());
        let path = dir.path().join(file);
        let graph = match case["arch"].as_str() {
            None => read_graph(&path, Normalization::IMAGENET).unwrap(),
            Some(arch) => {
                let imported = arch::network(arch, read_weights(&path).unwrap(), Normalization::IMAGENET).unwrap();
                assert!(imported.ignored.iter().all(|name| name.contains("aux") || name.ends_with("tracked")));
                imported.graph
            }
        };
        let got = float::run(&graph, &image, |_, _| {}).unwrap();
        let shape: Vec<usize> = serde_json::from_value(case["shape"].clone()).unwrap();
        assert_eq!([got.shape.n, got.shape.h, got.shape.w, got.shape.c], shape[..], "{file}");
        let distance = distance(&got.data, &floats(&dir.path().join(scores)));
        println!("{file}: {distance:.1e} of the largest score");
        assert!(distance < TOLERANCE, "{file}: {distance}");
        files += 1;
    }
    assert_eq!(files, 10, "{listed}");
    imports_and_starts(dir.path());
}

/// What the commands make of the files.
fn imports_and_starts(files: &Path) {
    let data = common::scenes();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (photos, model) = (text(&data.path().join("JPEGImages")), text(&data.path().join("model.iseg")));
    for (file, arch) in [("fcn8s_legacy.pth", Some("fcn8s-vgg16-bn")), ("unet_dynamo.onnx", None)] {
        let weights = text(&files.join(file));
        let mut arguments = vec!["import", "--weights", &weights, "--calibrate", &photos, "-o", &model, "--json"];
        arguments.extend(arch.iter().flat_map(|arch| ["--arch", arch]));
        let answer = intseg(arguments).json();
        assert!(answer["report"]["agreement"].as_f64() > Some(0.9), "{file}: {answer}");
    }
    for file in ["vgg16_bn_zip.pth", "vgg16_bn_legacy.pth"] {
        let mut command = common::train(data.path(), &data.path().join(file));
        command.args(["--set", "network.arch=fcn8s-vgg16-bn", "--set", "network.width=0.125"]);
        let ran = Ran::from(command.args(["--set", "train.steps=1", "--init"]).arg(files.join(file)).output().unwrap());
        // Thirteen convolutions and their normalisations; the head is the network's own.
        assert!(ran.stderr.contains("39 tensors loaded"), "{}", ran.stderr);
        ran.ok();
    }
}

#[test]
fn exported_weights_give_pytorch_the_same_class_map() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (model, picture) = (root().join("models/camvid-small.iseg"), root().join("docs/pictures/camvid-fcn8s.png"));
    let [weights, classes, masks] = ["w.safetensors", "classes.raw", "masks"].map(|name| dir.path().join(name));
    let [model, image] = [&model, &picture].map(|path| path.to_str().unwrap());
    intseg(["export", "--format", "safetensors", "-o", weights.to_str().unwrap(), model]).ok();
    script(&python, "torch_safetensors.py", &[&weights, &picture, &classes]);
    intseg(["predict", "--model", model, "--input", image, "--output", masks.to_str().unwrap()]).ok();
    let (theirs, ours) = (std::fs::read(classes).unwrap(), read_png(&masks.join("camvid-fcn8s.png")));
    assert_eq!(theirs.len(), ours.len());
    let same = theirs.iter().zip(&ours).filter(|(a, b)| a == b).count() as f64 / ours.len() as f64;
    println!("camvid-small: {:.2} % of the pixels have PyTorch's class", 100.0 * same);
    // Activations of 8 bits are what is between the two.
    assert!(same > 0.97, "{same}");
}

#[test]
fn the_float_reference_has_autograds_gradients() {
    let Some(python) = python() else { return };
    let data = common::scenes();
    let [record, initial, gradients] = ["record", "initial.safetensors", "g.safetensors"].map(|n| data.path().join(n));
    for network in ["fcn-tiny", "fcn8s-vgg16"] {
        let set = [
            format!("network.arch={network}"),
            "network.width=0.125".into(),
            "network.dropout=0.0".into(),
            "network.classes=6".into(),
            "augment.crop=[64,96]".into(),
            "train.batch=2".into(),
        ];
        let mut command = program();
        command.args(["data", "batches", "--steps", "1", "--config"]).arg(common::config());
        command.args(set.iter().flat_map(|set| ["--set", set])).arg("--data").arg(data.path());
        Ran::from(command.arg("--initial").arg(&initial).arg("-o").arg(&record).output().unwrap()).ok();
        script(&python, "torch_gradients.py", &[&record, &initial, &gradients]);
        let theirs = std::fs::read(&gradients).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&theirs).unwrap();

        let config = Config::load(&common::config(), &set).unwrap();
        let network = Network::new(config.graph().unwrap(), config.train.seed).unwrap();
        let dataset = Dataset::open(data.path(), config.data.layout).unwrap();
        let train = dataset.split(&config.data.train).unwrap();
        let batch = Loader::start(Source::new(&config, dataset, train), 0, 1).next().unwrap();
        let weights = vec![256; 6];
        let recipe = Recipe {
            kernels: Context::reference(),
            bits: config.bits,
            seed: config.train.seed,
            step: 0,
            class_weights: [&weights, &weights],
            lr_q32: 0,
            decay_q32: 0,
            momentum_q15: 0,
        };
        let reference = Reference::of(&network, &batch, &recipe);
        let mut scales = Vec::new();
        for (node, ours) in network.graph.nodes.iter().zip(&reference.gradients) {
            let OpSpec::Conv(_) = node.op else { continue };
            let bytes = theirs.tensor(&node.name).unwrap().data();
            let theirs: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let (norms, product) = ((dot(ours, ours) * dot(&theirs, &theirs)).sqrt(), dot(ours, &theirs));
            let cosine = product / norms;
            scales.push(product / dot(&theirs, &theirs));
            println!("{} {}: cosine {cosine:.6}, ratio {:.5}", network.graph.name, node.name, scales[scales.len() - 1]);
            assert!(cosine > 0.9999, "{}: {cosine}", node.name);
        }
        // PyTorch divides the loss by the weights of its pixels, intseg the learning rate: one factor for all layers.
        let first = scales[0];
        assert!(scales.iter().all(|scale| (scale / first - 1.0).abs() < 0.01), "{scales:?}");
    }
}
