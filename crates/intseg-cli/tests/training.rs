//! Real training processes: killed, stopped, resumed, and on other machines' terms.
#![cfg(unix)]

mod common;

use common::{Ran, intseg, program, root, scenes, train};
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
    command.args(["--set", "train.batch=4"]);
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
