//! Exported models in other programs give what `intseg predict` gives.
//!
//! `INTSEG_PEERS_PYTHON` names a Python with `tests/peers/requirements.txt`; without it these tests are skipped.
//! `scripts/peer-tests.sh` makes one and runs them.

mod common;
mod exact;

use common::{intseg, read_png, root};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The Python with the peers, or `None` with a message.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("INTSEG_PEERS_PYTHON").map(PathBuf::from);
    if python.is_none() {
        eprintln!("skipped: INTSEG_PEERS_PYTHON is not set, see scripts/peer-tests.sh");
    }
    python
}

/// A folder with a few generated scenes.
fn scenes() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    intseg(["data", "scenes", "--train", "4", "--val", "1", "--size", "96x128", path]).ok();
    dir
}

/// Exports a model, has it verified, and hands back what was found.
fn verified(python: &Path, model: &Path, size: &str, images: &Path, more: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("model.onnx");
    let [output, model, images] = [&output, model, images].map(|path| path.to_str().unwrap());
    let python_path = python.to_str().unwrap();
    let mut arguments = vec!["export", "--format", "onnx", "--size", size, "-o", output, model, "--json"];
    arguments.extend(["--verify", images, "--python", python_path]);
    arguments.extend(more);
    let answer = intseg(arguments).json();
    let checked = Command::new(python).arg(root().join("tests/peers/check.py")).arg(output).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    println!("{model} {size} {more:?}: {}", answer["verified"]);
    answer["verified"].clone()
}

/// How many classes a model finds in an image.
fn classes(model: &Path, image: &Path) -> usize {
    let out = tempfile::tempdir().unwrap();
    let paths = [model, image, out.path()].map(|path| path.to_str().unwrap());
    intseg(["predict", "--model", paths[0], "--input", paths[1], "--output", paths[2]]).ok();
    let mut found = read_png(&out.path().join("scene_00000.png"));
    found.sort_unstable();
    found.dedup();
    found.len()
}

fn identical(found: &Value) -> bool {
    found["images"].as_u64() > Some(0) && found["images"] == found["identical_images"]
}

#[test]
fn a_model_of_powers_of_two_gives_onnx_runtimes_class_maps_in_every_pixel() {
    let Some(python) = python() else { return };
    let (images, dir) = (scenes(), tempfile::tempdir().unwrap());
    let images = images.path().join("JPEGImages");
    for align_corners in [false, true] {
        let model = dir.path().join("all.iseg");
        std::fs::write(&model, exact::model(align_corners)).unwrap();
        assert!(classes(&model, &images.join("scene_00000.png")) > 2, "too easy a test");
        for (size, more) in [("96x128", &[][..]), ("45x71", &[]), ("64x64", &["--exact"])] {
            let found = verified(&python, &model, size, &images, more);
            assert!(identical(&found), "{align_corners} {size}: {found}");
        }
    }
}

#[test]
fn random_networks_give_onnx_runtimes_class_maps_in_every_pixel() {
    let Some(python) = python() else { return };
    let (images, dir) = (scenes(), tempfile::tempdir().unwrap());
    let images = images.path().join("JPEGImages");
    for arch in ["fcn-tiny", "fcn32s-vgg16", "fcn8s-vgg16-bn", "deeplabv3-resnet50v2", "deeplabv3-resnet50"] {
        let model = dir.path().join("random.iseg");
        let path = model.to_str().unwrap();
        intseg(["bench", "--arch", arch, "--width", "0.125", "--classes", "6", "--save", path]).ok();
        let found = verified(&python, &model, "97x131", &images, &[]);
        assert!(identical(&found), "{arch}: {found}");
    }
}

#[test]
fn the_shipped_model_agrees_with_onnx_runtime() {
    let Some(python) = python() else { return };
    let (model, picture) = (root().join("models/camvid-small.iseg"), root().join("docs/pictures/camvid-fcn8s.png"));
    let found = verified(&python, &model, "360x480", &picture, &[]);
    assert!(found["agreement"].as_f64() >= Some(0.9999), "{found}");
    let found = verified(&python, &model, "360x480", &picture, &["--exact"]);
    assert!(found["agreement"].as_f64() >= Some(0.9999), "{found}");
}
