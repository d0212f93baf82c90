//! Real training processes: killed, stopped, resumed, and on other machines' terms.
#![cfg(unix)]

mod common;

use common::{Ran, intseg, program, root, scenes, train};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The files that two equal runs have byte for byte.
fn models(out: &Path) -> [Vec<u8>; 2] {
    ["best.iseg", "last.iseg"].map(|name| std::fs::read(out.join(name)).unwrap())
}

/// A run long enough to be killed in its middle.
fn long(data: &Path, out: &Path) -> Command {
    let mut command = train(data, out);
    command.args(["--set", "train.steps=300", "--set", "train.eval_every=60", "--set", "train.save_every=7"]);
    command.args(["--set", "train.batch=4", "--set", "deploy.average=0.5"]);
    command
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until the log tells of a step, or the process has ended.
fn wait_for_steps(child: &mut Child, out: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let logged = || std::fs::read_to_string(out.join("log.jsonl")).is_ok_and(|log| log.lines().count() > 2);
    while !logged() && child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn threads_and_instruction_set_do_not_change_a_single_byte() {
    let data = scenes();
    let run = |name: &str, threads: &str, isa: Option<&str>| {
        let out = data.path().join(name);
        let mut command = train(data.path(), &out);
        command.args(["--threads", threads]).envs(isa.map(|isa| ("INTSEG_ISA", isa)));
        Ran::from(command.output().unwrap()).ok();
        models(&out)
    };
    let one = run("one", "1", None);
    assert!(one == run("two", "2", None), "two threads");
    assert!(one == run("five", "5", None), "five threads");
    assert!(one == run("scalar", "2", Some("scalar")), "portable code");
    let other = data.path().join("other");
    Ran::from(train(data.path(), &other).args(["--seed", "1"]).output().unwrap()).ok();
    assert!(one != models(&other), "another seed is another model");
}

#[test]
fn a_run_killed_again_and_again_ends_in_the_same_model() {
    let data = scenes();
    let (whole, killed) = (data.path().join("whole"), data.path().join("killed"));
    let start_time = Instant::now();
    Ran::from(long(data.path(), &whole).output().unwrap()).ok();
    let duration = start_time.elapsed();
    let mut kills = 0;
    for share in [3, 11, 5, 7, 23] {
        let mut command = long(data.path(), &killed);
        if killed.join("checkpoint.safetensors").exists() {
            command.arg("--resume");
        } else if killed.exists() {
            command.arg("--overwrite");
        }
        let mut child = start(&mut command);
        std::thread::sleep(duration / share);
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills >= 2, "only {kills} kills hit a running process");
    Ran::from(long(data.path(), &killed).arg("--resume").output().unwrap()).ok();
    assert!(models(&whole) == models(&killed));
    let steps = |out: &Path| std::fs::read_to_string(out.join("log.jsonl")).unwrap().lines().count();
    assert_eq!(steps(&whole), steps(&killed), "the log has every line once");
}

#[test]
fn ctrl_c_saves_and_exits_and_the_run_goes_on_where_it_stopped() {
    let data = scenes();
    let (whole, stopped) = (data.path().join("whole"), data.path().join("stopped"));
    let mut child = start(&mut long(data.path(), &stopped));
    wait_for_steps(&mut child, &stopped);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    intseg(["inspect", stopped.join("last.iseg").to_str().unwrap()]).ok();
    Ran::from(long(data.path(), &stopped).arg("--resume").output().unwrap()).ok();
    Ran::from(long(data.path(), &whole).output().unwrap()).ok();
    assert!(models(&whole) == models(&stopped));
}

#[test]
fn every_line_of_the_log_is_an_object_with_what_a_plot_needs() {
    let data = scenes();
    let out = data.path().join("run");
    let answer = Ran::from(train(data.path(), &out).arg("--json").output().unwrap()).json();
    assert_eq!((answer["finished"].as_bool(), answer["step"].as_u64()), (Some(true), Some(12)));
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["event"] == kind).collect::<Vec<_>>();
    assert_eq!((of("step").len(), of("eval").len()), (6, 2));
    assert!(of("step").iter().all(|line| line["loss"].is_f64() && line["lr"].is_f64()));
    assert!(of("step").iter().all(|line| !line["layers"].as_array().unwrap().is_empty()));
    assert!(of("eval").iter().all(|line| line["miou"].is_f64()));
}

/// Rearranges generated scenes as another layout.
fn laid_out(layout: &str) -> tempfile::TempDir {
    let data = scenes();
    let at = |path: &str| data.path().join(path);
    // Class names would have to be those of the real data sets.
    std::fs::remove_file(at("classes.txt")).unwrap();
    if layout == "voc" {
        std::fs::rename(at("ImageSets/Segmentation/train.txt"), at("ImageSets/Segmentation/trainaug.txt")).unwrap();
        std::fs::rename(at("SegmentationClass"), at("SegmentationClassAug")).unwrap();
        std::fs::create_dir(at("SegmentationClass")).unwrap();
        for file in std::fs::read_dir(at("SegmentationClassAug")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), at("SegmentationClass").join(file.file_name())).unwrap();
        }
        return data;
    }
    let mut sets = std::fs::read_to_string(at("ImageSets/Segmentation/val.txt")).unwrap();
    sets.push('\n');
    for kind in ["images", "annotations"] {
        for split in ["training", "validation"] {
            std::fs::create_dir_all(at(kind).join(split)).unwrap();
        }
    }
    for (from, to) in [("JPEGImages", "images"), ("SegmentationClass", "annotations")] {
        for file in std::fs::read_dir(at(from)).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let stem = name.trim_end_matches(".png");
            let split = if sets.lines().any(|line| line == stem) { "validation" } else { "training" };
            std::fs::rename(at(from).join(&name), at(to).join(split).join(&name)).unwrap();
        }
        std::fs::remove_dir_all(at(from)).unwrap();
    }
    data
}

/// As ADE20K has it, 255 is no label.
fn without_borders(dir: &Path) {
    for split in ["training", "validation"] {
        for file in std::fs::read_dir(dir.join("annotations").join(split)).unwrap() {
            let size = [48, 32];
            common::write_png(
                &file.unwrap().path(),
                size,
                png::ColorType::Grayscale,
                png::BitDepth::Eight,
                &(0..48 * 32).map(|i| (i % 151) as u8).collect::<Vec<_>>(),
            );
        }
    }
}

#[test]
fn the_papers_configurations_train_in_their_layouts() {
    for layout in ["voc", "ade20k"] {
        let data = laid_out(layout);
        if layout == "ade20k" {
            without_borders(data.path());
        }
        for network in ["fcn8s", "deeplab"] {
            let out = data.path().join(network);
            let mut command = program();
            command.arg("train").arg("--data").arg(data.path()).arg("--out").arg(&out);
            command.arg("--config").arg(root().join(format!("configs/{layout}-{network}.toml")));
            for set in ["train.steps=3", "train.batch=2", "augment.crop=[40,48]", "network.width=0.05"] {
                command.args(["--set", set]);
            }
            Ran::from(command.output().unwrap()).ok();
            let mut predict = program();
            predict.arg("predict").arg("--model").arg(out.join("last.iseg")).arg("--output").arg(out.join("masks"));
            let images = if layout == "voc" { "JPEGImages" } else { "images/validation" };
            Ran::from(predict.arg("--input").arg(data.path().join(images)).output().unwrap()).ok();
            let least = if layout == "ade20k" { 1 } else { 0 };
            for mask in std::fs::read_dir(out.join("masks")).unwrap() {
                let values = common::read_png(&mask.unwrap().path());
                assert!(values.iter().all(|&value| value >= least), "masks count as the layout's label maps do");
            }
            let (model, dir) = (out.join("last.iseg"), data.path());
            intseg(["eval", "--model", model.to_str().unwrap(), "--data", dir.to_str().unwrap(), "--json"]).json();
        }
    }
}

#[test]
fn a_run_starts_from_another_runs_weights_and_says_what_it_took() {
    let data = scenes();
    let (first, second) = (data.path().join("first"), data.path().join("second"));
    Ran::from(train(data.path(), &first).output().unwrap()).ok();
    let checkpoint = first.join("checkpoint.safetensors");
    let mut command = train(data.path(), &second);
    // So small a rate changes nothing: what comes out is what was taken over.
    command.args(["--set", "train.steps=1", "--set", "train.lr=1e-9", "--set", "train.weight_decay=0.0"]);
    let ran = Ran::from(command.arg("--init").arg(&checkpoint).output().unwrap());
    assert!(ran.stderr.contains("tensors loaded, 0 left at their initial values, 0 ignored"), "{}", ran.stderr);
    ran.ok();
    let weights = |out: &Path| {
        let bytes = std::fs::read(out.join("checkpoint.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let names = file.names().into_iter().filter(|name| name.ends_with("weight.master"));
        names.map(|name| (name.to_owned(), file.tensor(name).unwrap().data().to_vec())).collect::<BTreeMap<_, _>>()
    };
    assert!(!weights(&first).is_empty() && weights(&first) == weights(&second));

    let mut other = train(data.path(), &data.path().join("third"));
    other.args(["--set", "network.classes=9", "--set", "train.steps=1"]).arg("--init").arg(&checkpoint);
    let stderr = Ran::from(other.output().unwrap()).stderr;
    assert!(stderr.contains("6] in the file, ") && stderr.contains("9] in the network"), "{stderr}");

    // Float weights, here the initial ones of another seed, give the network of that seed.
    let initial = data.path().join("initial.safetensors");
    let mut record = program();
    record.args(["data", "batches", "--steps", "1", "--set", "train.seed=5", "--config"]).arg(common::config());
    record.args(common::QUICK.iter().flat_map(|set| ["--set", set])).arg("--data").arg(data.path());
    assert!(record.arg("--initial").arg(&initial).output().unwrap().status.success());
    let started = |name: &str, extra: [&std::ffi::OsStr; 2]| {
        let mut command = train(data.path(), &data.path().join(name));
        command.args(["--set", "train.steps=1", "--set", "train.lr=1e-9", "--set", "train.weight_decay=0.0"]);
        Ran::from(command.args(extra).output().unwrap()).ok();
        weights(&data.path().join(name))
    };
    let own = started("seed", ["--seed".as_ref(), "5".as_ref()]);
    assert!(own == started("float", ["--init".as_ref(), initial.as_ref()]), "float weights keep every bit");

    let mut wrong = train(data.path(), &data.path().join("fourth"));
    let damaged = data.path().join("damaged.iseg");
    std::fs::write(&damaged, &std::fs::read(first.join("best.iseg")).unwrap()[..999]).unwrap();
    Ran::from(wrong.arg("--init").arg(&damaged).output().unwrap()).fails(1, &["damaged.iseg"]);
    assert!(!data.path().join("fourth").exists(), "nothing is written before the weights were read");
}

#[test]
fn a_model_trained_further_starts_at_its_score_and_improves() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_str().unwrap();
    intseg(["data", "scenes", "--train", "24", "--val", "8", "--size", "64x96", path]).ok();
    let run = |name: &str, set: &[&str], init: Option<&Path>| {
        let out = data.path().join(name);
        let mut command = program();
        command
            .arg("train")
            .arg("--config")
            .arg(common::config())
            .arg("--data")
            .arg(data.path())
            .arg("--out")
            .arg(&out);
        let common = ["train.batch=8", "augment.crop=[64,96]", "train.eval_every=0", "train.warmup=2"];
        common.iter().chain(set).for_each(|set| {
            command.args(["--set", set]);
        });
        init.iter().for_each(|init| {
            command.arg("--init").arg(init);
        });
        let ran = Ran::from(command.output().unwrap());
        let told = ran.stderr.clone();
        ran.ok();
        let model = out.join("last.iseg");
        let eval = intseg(["eval", "--model", model.to_str().unwrap(), "--data", path, "--json"]).json();
        (model, eval["miou"].as_f64().unwrap(), told)
    };
    let (model, score, _) = run("first", &["train.steps=80"], None);
    let still = ["train.steps=1", "train.lr=1e-9", "train.weight_decay=0.0"];
    let (_, start, told) = run("still", &still, Some(&model));
    assert!(told.contains("tensors loaded, 0 left at their initial values, 0 ignored"), "{told}");
    assert!((start - score).abs() < 0.01, "{start} {score}");
    let (_, tuned, _) = run("tuned", &["train.steps=80", "train.lr=0.05"], Some(&model));
    assert!(tuned > score + 0.02, "{score} {tuned}");
}

#[test]
fn recorded_batches_are_those_of_a_run() {
    let data = scenes();
    let initial = data.path().join("initial.safetensors");
    let record = |set: &str| {
        let mut command = program();
        command.args(["data", "batches", "--steps", "3", "--config"]).arg(common::config());
        command.args(common::QUICK.iter().chain([&set]).flat_map(|set| ["--set", set]));
        let out = command.arg("--data").arg(data.path()).arg("--initial").arg(&initial).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    let bytes = record("train.seed=0");
    let end = bytes.iter().position(|&b| b == b'\n').unwrap();
    let header: serde_json::Value = serde_json::from_slice(&bytes[..end]).unwrap();
    assert_eq!((header["steps"].as_u64(), header["lr_q32"].as_array().unwrap().len()), (Some(3), 3));
    let frames = &bytes[end + 1..];
    assert_eq!(header["measured"].as_u64(), Some(16));
    assert_eq!(
        frames.len(),
        (3 + 16) * 2 * 32 * 48 * 4,
        "two crops a step: three bytes of image and one of label a pixel"
    );
    let labels = &frames[2 * 32 * 48 * 3..2 * 32 * 48 * 4];
    assert!(labels.iter().all(|&label| label < 6 || label == 255) && labels.iter().any(|&label| label > 0));
    assert!(bytes == record("train.seed=0") && bytes != record("train.seed=1"));

    let weights = std::fs::read(&initial).unwrap();
    let file = safetensors::SafeTensors::deserialize(&weights).unwrap();
    for node in header["graph"]["nodes"].as_array().unwrap() {
        if let Some(conv) = node["op"].get("conv") {
            let tensor = file.tensor(&format!("{}.weight", node["name"].as_str().unwrap())).unwrap();
            assert_eq!(tensor.shape()[0] as u64, conv["channels"].as_u64().unwrap());
            let values = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            assert!(values.clone().all(|v| v.abs() < 8.0) && values.into_iter().any(|v| v != 0.0));
        }
    }
}

#[test]
fn a_diagnosed_run_says_which_layer_suffers_and_ends_in_the_same_model() {
    let data = scenes();
    let (plain, diagnosed) = (data.path().join("plain"), data.path().join("diagnosed"));
    Ran::from(train(data.path(), &plain).output().unwrap()).ok();
    let ran = Ran::from(train(data.path(), &diagnosed).args(["--diagnose", "5"]).output().unwrap());
    assert!(ran.stderr.contains("step 6: weight gradients against float: mean cosine 0."), "{}", ran.stderr);
    ran.ok();
    assert!(models(&plain) == models(&diagnosed), "looking changes nothing");
    let log = std::fs::read_to_string(diagnosed.join("log.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> = rows.iter().filter(|row| row["event"] == "diagnosis").collect();
    assert_eq!(found.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 6, 11]);
    for layer in found[0]["diagnosis"]["layers"].as_array().unwrap() {
        assert!(layer["output_cosine"].as_f64().unwrap() > 0.9, "{layer}");
        assert!((0.0..=1.0).contains(&layer["zeros"].as_f64().unwrap()), "{layer}");
    }
}
