//! What the commands print and write.

mod common;

use common::{JPEG, Ran, intseg, program, root, scenes, trained};
use std::path::Path;

#[test]
fn every_command_has_help_with_an_example() {
    for command in ["train", "eval", "predict", "export", "inspect", "bench", "demo", "data"] {
        let help = intseg([command, "--help"]).ok();
        assert!(help.contains("Example") && help.contains(&format!("intseg {command}")), "{help}");
    }
    assert!(intseg(["--version"]).ok().starts_with("intseg "));
}

#[test]
fn the_shipped_model_runs_on_a_picture_and_knows_its_classes() {
    let model = root().join("models/camvid-small.iseg");
    let picture = root().join("docs/pictures/camvid-fcn8s.png");
    let out = tempfile::tempdir().unwrap();
    let [model, picture] = [&model, &picture].map(|path| path.to_str().unwrap());
    intseg(["predict", "--model", model, "--input", picture, "--output", out.path().to_str().unwrap()]).ok();
    assert!(out.path().join("camvid-fcn8s.png").is_file());
    let time = intseg(["bench", "--model", model, "--size", "64x96", "--runs", "1", "--layers", "--json"]).json();
    assert_eq!(time["arch"], "fcn-tiny");
    assert!(time["layers"].as_array().unwrap().iter().any(|layer| layer["share_of_peak"].as_f64().unwrap() > 0.0));
}

#[test]
fn eval_prints_the_scores_and_the_matrix_they_come_from() {
    let (model, data) = trained();
    let [model, data] = [model, data].map(|path| path.to_str().unwrap());
    let one = intseg(["eval", "--model", model, "--data", data, "--json", "--threads", "1"]).json();
    for key in ["miou", "pixel_accuracy", "mean_accuracy", "fw_iou"] {
        assert!((0.0..=1.0).contains(&one[key].as_f64().unwrap()), "{key}: {one}");
    }
    assert_eq!((one["images"].as_u64(), one["classes"].as_array().unwrap().len()), (Some(3), 6));
    assert_eq!(one["classes"][1]["name"], "disc");
    assert!(one["classes"][0]["iou"].is_f64() && one["seconds"].is_f64());
    let pixels: u64 = one["confusion"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert!((1..=3 * 32 * 48).contains(&pixels));
    let two = intseg(["eval", "--model", model, "--data", data, "--json", "--threads", "2"]).json();
    assert_eq!(one["confusion"], two["confusion"]);
    let strict = intseg(["eval", "--model", model, "--data", data, "--json", "--absent", "zero"]).json();
    assert!(strict["miou"].as_f64() <= one["miou"].as_f64());
    let text = intseg(["eval", "--model", model, "--data", data]).ok();
    assert!(text.contains("mIoU") && text.contains("triangle"), "{text}");
}

#[test]
fn predict_writes_indexed_masks_and_overlays_under_the_images_names() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("photo.jpg"), JPEG).unwrap();
    let masks = dir.path().join("masks");
    let mut command = program();
    command.arg("predict").arg("--model").arg(&trained().0).arg("--input").arg(dir.path().join("photo.jpg"));
    let answer = Ran::from(command.arg("--output").arg(&masks).args(["--overlay", "--json"]).output().unwrap()).json();
    assert_eq!(answer["masks"][0], masks.join("photo.png").to_str().unwrap());
    let read = |name: &str| {
        let file = std::io::BufReader::new(std::fs::File::open(masks.join(name)).unwrap());
        png::Decoder::new(file).read_info().unwrap()
    };
    let mask = read("photo.png");
    assert_eq!((mask.info().color_type, mask.info().size()), (png::ColorType::Indexed, (24, 16)));
    assert_eq!(mask.info().palette.as_ref().unwrap()[3..6], [128, 0, 0]);
    assert_eq!(read("photo_overlay.png").info().color_type, png::ColorType::Rgb);
}

#[test]
fn masks_do_not_depend_on_how_much_of_the_weights_memory_holds() {
    let dir = tempfile::tempdir().unwrap();
    let [photo, model] = ["photo.jpg", "vgg.iseg"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    std::fs::write(&photo, JPEG).unwrap();
    let arch = ["bench", "--arch", "fcn8s-vgg16", "--width", "0.1", "--classes", "6", "--save", &model];
    intseg(arch).ok();
    let masks = ["0", "1", "64"].map(|held| {
        let out = dir.path().join(held);
        let command = ["predict", "--model", &model, "--input", &photo, "--output", out.to_str().unwrap()];
        intseg(command.into_iter().chain(["--held-weights", held])).ok();
        std::fs::read(out.join("photo.png")).unwrap()
    });
    assert!(masks[0] == masks[1] && masks[1] == masks[2]);
}

#[test]
fn inspect_counts_what_architecture_and_model_do() {
    let arch = intseg(["inspect", "--arch", "deeplabv3-resnet50", "--size", "513x513", "--json"]).json();
    assert_eq!((arch["macs"].as_u64().unwrap() + 500_000) / 1_000_000, 168_653);
    let model = trained().0.to_str().unwrap();
    let model = intseg(["inspect", model, "--size", "32x48", "--json"]).json();
    let layers = model["layers"].as_array().unwrap();
    assert!(layers.iter().all(|layer| layer["exponent"].is_i64()));
    let bounds: Vec<u64> = layers.iter().filter_map(|layer| layer["accumulator_bound"].as_u64()).collect();
    assert!(bounds.len() == 7 && bounds.iter().all(|&bound| bound < 1 << 31));
    assert!(model["weight_bytes"].as_u64().unwrap() < 100_000);
    assert_eq!(model["classes"][5], "cross");
    let text = intseg(["inspect", "--arch", "fcn-tiny", "--size", "96x128"]).ok();
    assert!(text.contains("conv5") && text.contains("bits"), "{text}");
}

#[test]
fn bench_needs_no_data_and_prints_what_a_script_reads() {
    let common = ["bench", "--arch", "fcn-tiny", "--size", "32x48", "--runs", "3", "--json", "--threads", "1"];
    for more in [&["--layers"][..], &["--train", "--batch", "2"]] {
        let answer = intseg(common.iter().chain(more)).json();
        for key in ["median_ms", "min_ms", "gmacs_per_s"] {
            assert!(answer[key].as_f64().unwrap() > 0.0, "{key}: {answer}");
        }
        assert!(answer["macs"].as_u64().unwrap() > 0 && answer["peak_rss_bytes"].as_u64().is_some());
        assert_eq!((answer["arch"].as_str(), answer["input"].as_str()), (Some("fcn-tiny"), Some("32x48")));
        assert_eq!((answer["threads"].as_u64(), answer["batch"].is_u64()), (Some(1), true));
        assert!(answer["isa"].is_string());
    }
    let forced = program().args(common).env("INTSEG_ISA", "scalar").output().unwrap();
    assert_eq!(Ran::from(forced).json()["isa"], "scalar");
}

#[test]
fn data_check_tells_clean_from_broken() {
    let data = scenes();
    let check =
        |more: &[&str]| Ran::from(program().args(["data", "check"]).arg(data.path()).args(more).output().unwrap());
    let report = check(&["--json"]).json();
    assert_eq!((report["images"].as_u64(), report["layout"].as_str()), (Some(11), Some("voc")));
    assert!(check(&[]).ok().contains("ready to train with network.classes = 6"));
    std::fs::remove_file(data.path().join("SegmentationClass/scene_00002.png")).unwrap();
    let broken = check(&["--json"]);
    assert_eq!(broken.status, 1);
    let report: serde_json::Value = serde_json::from_str(&broken.stdout).unwrap();
    assert_eq!(report["images_without_label"][0], "scene_00002");
}

#[test]
fn the_demo_leaves_a_model_and_pictures_and_spares_what_it_did_not_write() {
    let dir = tempfile::tempdir().unwrap();
    let demo = |out: &Path| {
        let steps = ["--set", "train.steps=3", "--set", "train.eval_every=2", "--set", "train.batch=2", "--json"];
        Ran::from(program().args(["demo", "--scenes", "20"]).arg("--out").arg(out).args(steps).output().unwrap())
    };
    let out = dir.path().join("demo");
    for _ in 0..2 {
        let answer = demo(&out).json();
        assert!((0.0..=1.0).contains(&answer["miou"].as_f64().unwrap()));
        for key in ["picture", "curve", "model"] {
            assert!(Path::new(answer[key].as_str().unwrap()).is_file(), "{key}");
        }
    }
    let [other, thesis] = ["other", "other/thesis.txt"].map(|name| dir.path().join(name));
    std::fs::create_dir(&other).unwrap();
    std::fs::write(&thesis, "years of work").unwrap();
    demo(&other).fails(2, &["thesis.txt", "--out"]);
    let mine = dir.path().join("mine/run");
    std::fs::create_dir_all(&mine).unwrap();
    std::fs::write(mine.join("thesis.txt"), "years of work").unwrap();
    demo(mine.parent().unwrap()).fails(2, &["run", "--out"]);
    assert!(thesis.is_file() && mine.join("thesis.txt").is_file());
}

#[test]
#[ignore = "takes a minute; continuous integration runs it"]
fn the_demo_reaches_0_85_miou_in_two_minutes_on_scenes_it_never_saw() {
    let dir = tempfile::tempdir().unwrap();
    let answer = Ran::from(program().args(["demo", "--json", "--out"]).arg(dir.path()).output().unwrap()).json();
    assert!(answer["miou"].as_f64().unwrap() >= 0.85, "{answer}");
    assert!(answer["seconds"].as_f64().unwrap() < 120.0, "{answer}");
}

/// The shipped model's path and a JPEG's, in a folder of its own.
fn model_and_photo() -> (String, tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let photo = dir.path().join("photo.jpg");
    std::fs::write(&photo, JPEG).unwrap();
    let photo = photo.to_str().unwrap().to_owned();
    (root().join("models/camvid-small.iseg").to_str().unwrap().to_owned(), dir, photo)
}

#[test]
fn export_writes_the_same_onnx_and_safetensors_files_every_time() {
    let (model, dir, _) = model_and_photo();
    let written = |format: &[&str], name: &str| {
        let path = dir.path().join(name);
        let mut arguments = vec!["export", "-o", path.to_str().unwrap(), &model, "--json", "--format"];
        arguments.extend(format);
        let answer = intseg(arguments).json();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(answer["bytes"].as_u64(), Some(bytes.len() as u64));
        bytes
    };
    for format in [&["onnx", "--size", "64x96"][..], &["onnx", "--size", "64x96", "--exact"], &["safetensors"]] {
        assert!(written(format, "a") == written(format, "b"), "{format:?}");
    }
    let bytes = written(&["safetensors"], "c");
    let weights = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(weights.tensor("conv1.bn.weight").unwrap().shape()[1..], [3, 3, 3]);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let metadata: serde_json::Value = serde_json::from_str(&metadata["intseg"]).unwrap();
    assert_eq!(metadata["exponents"]["image"], -7);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "temporary files are left");
}

/// Something that stands in for Python: a shell script.
#[cfg(unix)]
fn python(dir: &Path, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("python");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[cfg(unix)]
#[test]
fn verification_says_what_is_missing_or_differs() {
    let (model, dir, photo) = model_and_photo();
    let output = dir.path().join("model.onnx");
    let run = |python: &str, more: &[&str]| {
        let mut arguments = vec!["export", "--format", "onnx", "--size", "16x24", "-o", output.to_str().unwrap()];
        arguments.extend([model.as_str(), "--verify", &photo, "--python", python]);
        arguments.extend(more);
        intseg(arguments)
    };
    run("/no/such/python", &[]).fails(1, &["/no/such/python", "--python PATH"]);
    let bare = python(dir.path(), "echo \"No module named 'onnxruntime'\" >&2; exit 3");
    run(&bare, &[]).fails(1, &["pip install onnxruntime numpy", "No module named"]);
    let broken = python(dir.path(), "echo 1.0; echo 'out of luck' >&2; exit 1");
    run(&broken, &[]).fails(1, &["ONNX Runtime failed: out of luck"]);
    // A class that the model does not have, everywhere, in 5 microseconds.
    let wrong =
        "echo 1.0; head -c 384 /dev/zero | tr '\\0' '\\377'; printf '\\005\\0\\0\\0\\0\\0\\0\\0'; cat >/dev/null";
    let wrong = python(dir.path(), wrong);
    run(&wrong, &[]).fails(1, &["0.0000 % of the pixels are equal", "--exact"]);
    let tolerated = run(&wrong, &["--agreement", "0", "--json"]).json();
    assert_eq!(tolerated["verified"]["pixels"], 384);
    assert_eq!(tolerated["verified"]["onnxruntime_ms"], 0.005);
}

#[test]
fn export_refuses_what_its_format_does_not_have() {
    let (model, dir, photo) = model_and_photo();
    let output = dir.path().join("out").to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| intseg([&["export", "-o", &output, &model, "--format"], arguments].concat());
    run(&["onnx"]).fails(2, &["required arguments"]);
    run(&["onnx", "--size", "16x24", "--strip", "8"]).fails(2, &["--strip is for --format c"]);
    run(&["safetensors", "--exact"]).fails(2, &["--exact is for --format onnx"]);
    run(&["c", "--size", "16x24", "--verify", &photo]).fails(2, &["--verify is for --format onnx"]);
    run(&["onnx", "--size", "16x24", "--verify", "/no/such/photos"]).fails(2, &["/no/such/photos"]);
    assert!(!Path::new(&output).exists(), "nothing is written before the arguments are known to be good");
}
