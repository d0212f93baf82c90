//! Exported C gives the executor's class map, bit for bit, whole and in strips.

use intseg::config::Config;
use intseg::export::c::{Strips, export};
use intseg::fold::{Metadata, fold};
use intseg::frozen::Frozen;
use intseg::networks::NETWORKS;
use intseg::predictor::Predictor;
use intseg::threads::Threads;
use intseg_kernels::{Context, Isa};
use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec};
use std::path::Path;
use std::process::Command;

mod common;
use common::{CLASSES, random_bytes, trained};

const STRICT: [&str; 12] = [
    "-std=c99",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
    "-fsanitize=undefined",
    "-fsanitize=address",
    "-fno-sanitize-recover=all",
    "-DINTSEG_PLAIN",
];

fn have_compiler() -> bool {
    let found = Command::new("gcc").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: gcc is not installed");
    }
    found
}

fn class_maps(predictor: &mut Predictor, images: &[u8], [h, w]: [usize; 2]) -> Vec<u8> {
    let threads = Threads::new(1).unwrap();
    let mut maps = vec![0; images.len() / 3];
    for (image, map) in images.chunks(3 * h * w).zip(maps.chunks_mut(h * w)) {
        predictor.run(&threads, [h, w], image, map).unwrap();
    }
    maps
}

/// Compiles an exported model without a warning and runs it under the sanitizers.
fn run_exported(predictor: &Predictor, size: [usize; 2], strips: Strips, images: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let exported = export(&predictor.model(), predictor.metadata(), size, strips).unwrap();
    exported.write(dir.path()).unwrap();
    std::fs::write(dir.path().join("input.rgb"), images).unwrap();
    let sources = ["main.c", "model.c", "intseg_nn.c", "-o", "example"];
    let compiled = Command::new("gcc").args(STRICT).args(sources).current_dir(dir.path()).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new("./example").current_dir(dir.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    std::fs::read(dir.path().join("classes.raw")).unwrap()
}

/// A network after a few steps, so that its ranges are those of real activations.
fn predictor(name: &str) -> Predictor {
    of(&spec(name))
}

fn spec(name: &str) -> ModelSpec {
    let threads = Threads::new(2).unwrap();
    let network = trained(name, Context { isa: Isa::detect(), pool: &threads });
    let classes = (0..CLASSES).map(|class| format!("class \"{class}\"??/")).collect();
    let metadata = Metadata { arch: name.into(), classes, ..Metadata::default() };
    fold(&network, &Frozen::running(&network), Config::default().bits, &metadata)
}

fn of(spec: &ModelSpec) -> Predictor {
    Predictor::from_bytes(spec.to_bytes(), Path::new("trained.iseg"), Isa::detect()).unwrap()
}

#[test]
fn every_network_gives_the_executors_class_map_as_strict_c() {
    if !have_compiler() {
        return;
    }
    for (k, (name, ..)) in NETWORKS.iter().enumerate() {
        let mut predictor = predictor(name);
        let size = [[33, 65], [40, 56]][k % 2];
        let images = random_bytes(2 * 3 * size[0] * size[1], 100);
        let want = class_maps(&mut predictor, &images, size);
        assert!(want.iter().any(|&class| class != want[0]), "{name} predicts one class alone: too easy a test");
        assert!(run_exported(&predictor, size, Strips::Whole, &images) == want, "{name} at {size:?}");
    }
}

#[test]
fn an_image_with_other_pixels_than_grey_around_it_gives_the_same_as_c() {
    if !have_compiler() {
        return;
    }
    let mut spec = spec("fcn-tiny");
    let OpSpec::Conv { geometry: [.., padding], .. } = &mut spec.nodes[1].op else { panic!("the image's convolution") };
    let op = OpSpec::Pad { padding: std::mem::take(padding), pixel: vec![130, 90, 255] };
    spec.nodes.iter_mut().skip(2).flat_map(|node| &mut node.inputs).for_each(|input| *input += 1);
    spec.nodes[1].inputs = vec![1];
    spec.nodes.insert(1, NodeSpec { name: "pad".into(), op, inputs: vec![0], ..spec.nodes[0].clone() });
    let (mut predictor, size) = (of(&spec), [41, 45]);
    let images = random_bytes(2 * 3 * size[0] * size[1], 100);
    let want = class_maps(&mut predictor, &images, size);
    for strips in [Strips::Whole, Strips::Rows(1), Strips::Rows(9)] {
        assert!(run_exported(&predictor, size, strips, &images) == want);
    }
}

#[test]
fn strips_give_the_whole_images_class_map() {
    if !have_compiler() {
        return;
    }
    for (name, size) in [("fcn-tiny", [67, 45]), ("fcn8s-vgg16-bn", [70, 33]), ("fcn16s-vgg16", [65, 40])] {
        let mut predictor = predictor(name);
        let images = random_bytes(2 * 3 * size[0] * size[1], 100);
        let want = class_maps(&mut predictor, &images, size);
        for rows in [1, 7, 16, 40] {
            let got = run_exported(&predictor, size, Strips::Rows(rows), &images);
            assert!(got == want, "{name} in strips of {rows}");
        }
    }
}
