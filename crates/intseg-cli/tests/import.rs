//! `intseg import`: float models in, models that predict out, and nothing where a file cannot be used.

mod common;

use common::{intseg, root, scenes};
use std::path::PathBuf;

fn fixture(name: &str) -> String {
    root().join("crates/intseg-import/tests/fixtures").join(name).to_str().unwrap().to_owned()
}

/// Runs `intseg import` on the scenes; the model's path and what the program said.
fn import(weights: &str, more: &[&str]) -> (tempfile::TempDir, PathBuf, common::Ran) {
    let data = scenes();
    let model = data.path().join("model.iseg");
    let (calibrate, output) = (data.path().to_str().unwrap().to_owned(), model.to_str().unwrap().to_owned());
    let arguments = ["import", "--weights", weights, "--calibrate", &calibrate, "-o", &output, "--images", "4"];
    let ran = intseg(arguments.iter().chain(more));
    (data, model, ran)
}

#[test]
fn an_onnx_model_becomes_one_that_predicts() {
    let (data, model, ran) = import(&fixture("unet_dynamic_dynamo.onnx"), &["--report"]);
    let text = ran.ok();
    assert!(
        text.contains("SNR dB") && text.contains("5 classes") && text.contains("calibrated with 4 images"),
        "{text}"
    );
    let (images, masks) = (data.path().join("JPEGImages"), data.path().join("masks"));
    let [model, images, masks] = [&model, &images, &masks].map(|path| path.to_str().unwrap());
    let answer = intseg(["predict", "--model", model, "--input", images, "--output", masks, "--json"]).json();
    assert_eq!(answer["failed"].as_array().unwrap().len(), 0);
    assert!(intseg(["inspect", model, "--size", "32x48"]).ok().contains("transposed conv"));
}

#[test]
fn a_network_for_phones_becomes_one_that_predicts_however_it_was_exported() {
    for kind in ["dynamic_dynamo", "dynamic_torchscript", "static_dynamo", "static_torchscript", "version13"] {
        let (data, model, ran) = import(&fixture(&format!("lraspp_{kind}.onnx")), &["--json"]);
        let report = ran.json()["report"].clone();
        assert!(report["agreement"].as_f64().unwrap() > 0.97, "{kind}: {report}");
        let (images, masks) = (data.path().join("JPEGImages"), data.path().join("masks"));
        let [model, images, masks] = [&model, &images, &masks].map(|path| path.to_str().unwrap());
        let answer = intseg(["predict", "--model", model, "--input", images, "--output", masks, "--json"]).json();
        assert_eq!(answer["failed"].as_array().unwrap().len(), 0);
        let layers = intseg(["inspect", model, "--size", "32x48"]).ok();
        for kind in ["depthwise conv 5×5", "table", "product"] {
            assert!(layers.contains(kind), "{layers}");
        }
        let output = data.path().join("c");
        intseg(["export", "--format", "c", "--size", "32x48", "-o", output.to_str().unwrap(), model])
            .fails(1, &["layer ", "tables and products of maps are not written as C"]);
    }
}

#[test]
fn the_answer_in_json_has_the_agreement_and_the_layers() {
    let (_data, _model, ran) =
        import(&fixture("fcn_dynamic_dynamo.onnx"), &["--json", "--ranges", "99.9", "--equalize", "0"]);
    let answer = ran.json();
    assert!(answer["report"]["agreement"].as_f64().unwrap() > 0.8, "{answer}");
    assert!(answer["report"]["layers"].as_array().unwrap().len() > 5);
    assert_eq!(answer["loaded"], serde_json::Value::Null);
}

#[test]
fn what_cannot_be_imported_is_said_and_nothing_is_written() {
    let cases: [(&str, &[&str], i32, &[&str]); 6] = [
        ("plain.pth", &[], 2, &["need --arch NAME"]),
        ("plain.pth", &["--arch", "vgg19"], 1, &["plain.pth", "no logits of vgg19"]),
        ("weights.onnx", &[], 1, &["weights.onnx"]),
        ("no_such_file.onnx", &[], 1, &["no_such_file.onnx"]),
        ("fcn_dynamic_dynamo.onnx", &["--ranges", "3"], 2, &["\"3\" is no range", "percentile from 50 to 100"]),
        ("fcn_dynamic_dynamo.onnx", &["--classes", "/no/such/file"], 1, &["/no/such/file"]),
    ];
    for (weights, more, status, parts) in cases {
        let (_data, model, ran) = import(&fixture(weights), more);
        ran.fails(status, parts);
        assert!(!model.exists(), "{weights}");
    }
    let empty = tempfile::tempdir().unwrap();
    let calibrate = empty.path().to_str().unwrap();
    let output = empty.path().join("model.iseg");
    let output = output.to_str().unwrap();
    let weights = fixture("fcn_dynamic_dynamo.onnx");
    intseg(["import", "--weights", &weights, "--calibrate", calibrate, "-o", output])
        .fails(1, &["no JPEG or PNG image"]);
}
