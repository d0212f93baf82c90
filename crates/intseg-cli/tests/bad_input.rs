//! Whatever a user hands over, the answer is one clear line and an exit status, and nothing written before is lost.

mod common;

use common::{JPEG, Ran, config, intseg, program, scenes, train, trained, write_png};
use png::{BitDepth, ColorType};
use std::path::Path;

const LABEL: &str = "SegmentationClass/scene_00000.png";
const IMAGE: &str = "JPEGImages/scene_00000.png";

/// Damages a fresh data set and asserts that training on it fails with a message that holds `parts`.
fn training_fails(damage: impl FnOnce(&Path), parts: &[&str]) {
    let data = scenes();
    damage(data.path());
    let out = data.path().join("run");
    Ran::from(train(data.path(), &out).output().unwrap()).fails(1, parts);
}

#[test]
fn a_missing_folder_is_named() {
    let out = tempfile::tempdir().unwrap();
    let missing = Path::new("/no/such/folder");
    Ran::from(train(missing, out.path()).output().unwrap()).fails(1, &["there is no folder /no/such/folder"]);
    intseg(["data", "check", "/no/such/folder"]).fails(1, &["/no/such/folder"]);
    let model = trained().0.to_str().unwrap();
    intseg(["eval", "--model", model, "--data", "/no/such/folder"]).fails(1, &["/no/such/folder"]);
    intseg(["eval", "--model", model, "--data", out.path().to_str().unwrap()]).fails(1, &["no known layout", "masks/"]);
}

#[test]
fn an_image_without_its_label_is_named_with_the_mend() {
    let damage = |dir: &Path| std::fs::remove_file(dir.join(LABEL)).unwrap();
    training_fails(damage, &[LABEL, "is missing", "take scene_00000 out of the split's list"]);
}

#[test]
fn a_truncated_jpeg_is_named() {
    let damage = |dir: &Path| {
        std::fs::remove_file(dir.join(IMAGE)).unwrap();
        std::fs::write(dir.join("JPEGImages/scene_00000.jpg"), &JPEG[..JPEG.len() / 2]).unwrap();
    };
    training_fails(damage, &["scene_00000.jpg", "truncated"]);
}

#[test]
fn rgb_and_16_bit_labels_are_refused_by_name() {
    let rgb = |dir: &Path| write_png(&dir.join(LABEL), [48, 32], ColorType::Rgb, BitDepth::Eight, &[0; 48 * 32 * 3]);
    training_fails(rgb, &[LABEL, "one 8-bit class index a pixel", "Rgb"]);
    let wide =
        |dir: &Path| write_png(&dir.join(LABEL), [48, 32], ColorType::Grayscale, BitDepth::Sixteen, &[0; 48 * 32 * 2]);
    training_fails(wide, &[LABEL, "one 8-bit class index a pixel", "16 bits"]);
}

#[test]
fn a_label_out_of_range_is_named_with_its_place() {
    let damage =
        |dir: &Path| write_png(&dir.join(LABEL), [48, 32], ColorType::Grayscale, BitDepth::Eight, &[77; 48 * 32]);
    training_fails(damage, &[LABEL, "label value 77 at column 0, row 0", "6 classes"]);
    let data = scenes();
    std::fs::remove_file(data.path().join("classes.txt")).unwrap();
    let label = data.path().join("SegmentationClass/scene_00009.png");
    write_png(&label, [48, 32], ColorType::Grayscale, BitDepth::Eight, &[9; 48 * 32]);
    let (model, dir) = (trained().0.to_str().unwrap(), data.path().to_str().unwrap());
    intseg(["eval", "--model", model, "--data", dir]).fails(1, &["scene_00009.png", "label value 9", "6 classes"]);
}

#[test]
fn sizes_that_differ_are_both_named() {
    let damage = |dir: &Path| write_png(&dir.join(LABEL), [5, 7], ColorType::Grayscale, BitDepth::Eight, &[0; 35]);
    training_fails(damage, &[IMAGE, "48×32", LABEL, "5×7"]);
}

#[test]
fn a_data_set_of_other_classes_than_the_models_is_refused() {
    let data = scenes();
    std::fs::write(data.path().join("classes.txt"), "a\nb\n").unwrap();
    let (model, dir) = (trained().0.to_str().unwrap(), data.path().to_str().unwrap());
    intseg(["eval", "--model", model, "--data", dir]).fails(1, &["the model has 6 classes", "has 2"]);
}

#[test]
fn images_of_one_pixel_and_of_12000_columns_are_segmented() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_png(&path("dot.png"), [1, 1], ColorType::Rgb, BitDepth::Eight, &[9; 3]);
    write_png(&path("wide.png"), [12_000, 5], ColorType::Rgb, BitDepth::Eight, &vec![99; 3 * 12_000 * 5]);
    let mut command = program();
    command.arg("predict").arg("--model").arg(&trained().0).arg("--input").arg(dir.path());
    Ran::from(command.arg("--output").arg(path("masks")).output().unwrap()).ok();
    for (name, size) in [("dot.png", (1, 1)), ("wide.png", (12_000, 5))] {
        let file = std::io::BufReader::new(std::fs::File::open(path("masks").join(name)).unwrap());
        assert_eq!(png::Decoder::new(file).read_info().unwrap().info().size(), size);
    }
}

#[test]
fn a_bad_image_is_reported_and_the_others_are_segmented() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("a.jpg"), JPEG).unwrap();
    std::fs::write(path("b.jpg"), &JPEG[..JPEG.len() - 40]).unwrap();
    std::fs::write(path("c.jpg"), b"no image at all").unwrap();
    std::fs::write(path("d.jpg"), JPEG).unwrap();
    let mut command = program();
    command.arg("predict").arg("--model").arg(&trained().0).arg("--input").arg(dir.path());
    let ran = Ran::from(command.arg("--output").arg(path("masks")).output().unwrap());
    assert_eq!(ran.status, 1);
    let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error:")).collect();
    assert!(errors.len() == 2 && errors[0].contains("b.jpg") && errors[1].contains("c.jpg"), "{}", ran.stderr);
    assert!(path("masks").join("a.png").is_file() && path("masks").join("d.png").is_file());
    assert!(!path("masks").join("b.png").exists());
}

#[test]
fn a_mask_never_replaces_a_photograph() {
    let dir = tempfile::tempdir().unwrap();
    let photo = dir.path().join("a.png");
    write_png(&photo, [2, 2], ColorType::Rgb, BitDepth::Eight, &[50; 12]);
    let before = std::fs::read(&photo).unwrap();
    let mut command = program();
    command.arg("predict").arg("--model").arg(&trained().0).arg("--input").arg(&photo);
    Ran::from(command.arg("--output").arg(dir.path()).output().unwrap()).fails(1, &["would replace the image"]);
    assert_eq!(std::fs::read(&photo).unwrap(), before);
}

#[test]
fn corrupt_truncated_and_future_models_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let model = std::fs::read(&trained().0).unwrap();
    let path = dir.path().join("bad.iseg");
    let fails = |bytes: &[u8], part: &str| {
        std::fs::write(&path, bytes).unwrap();
        let name = path.to_str().unwrap();
        let data = trained().1.to_str().unwrap();
        intseg(["inspect", name]).fails(1, &["bad.iseg", part]);
        intseg(["eval", "--model", name, "--data", data]).fails(1, &["bad.iseg", part]);
        intseg(["predict", "--model", name, "--input", data, "--output", data]).fails(1, &["bad.iseg", part]);
    };
    let mut corrupt = model.clone();
    corrupt[model.len() / 2] ^= 1;
    fails(&corrupt, "damaged");
    fails(&model[..model.len() / 2], "truncated");
    fails(b"", "no intseg model");
    fails(JPEG, "no intseg model");
    let mut future = model.clone();
    future[8..12].copy_from_slice(&99u32.to_le_bytes());
    fails(&future, "version 99");
    std::fs::remove_file(&path).unwrap();
    intseg(["inspect", path.to_str().unwrap()]).fails(1, &["bad.iseg", "No such file"]);
}

#[test]
fn keys_values_and_names_that_do_not_exist_are_usage_errors_that_say_what_does() {
    let (data, out) = (trained().1.clone(), tempfile::tempdir().unwrap());
    let with = |set: &str| Ran::from(train(&data, out.path()).args(["--set", set]).output().unwrap());
    with("train.learning_rate=1").fails(2, &["train.learning_rate", "unknown field", "weight_decay"]);
    with("train.batch=0").fails(2, &["train.batch = 0", "1 to 1024"]);
    with("network.arch=vgg19").fails(2, &["vgg19", "fcn-tiny"]);
    with("nonsense").fails(2, &["key=value"]);
    let file = out.path().join("bad.toml");
    std::fs::write(&file, "[train]\nstep = 3\n").unwrap();
    let mut command = program();
    command.arg("train").arg("--data").arg(&data).arg("--out").arg(out.path()).arg("--config").arg(&file);
    Ran::from(command.output().unwrap()).fails(2, &["bad.toml", "step", "steps"]);
    intseg(["bench", "--arch", "vgg19"]).fails(2, &["vgg19", "deeplabv3-resnet50"]);
    let isa = program().args(["bench", "--peak"]).env("INTSEG_ISA", "mmx").output().unwrap();
    Ran::from(isa).fails(2, &["INTSEG_ISA=mmx", "scalar"]);
    assert_eq!(intseg(["train"]).status, 2);
    assert_eq!(intseg(["bench", "--arch", "fcn-tiny", "--size", "5"]).status, 2);
    let missing = program().args(["train", "--config", "/no.toml", "--data", "x", "--out", "y"]).output().unwrap();
    Ran::from(missing).fails(2, &["/no.toml"]);
}

#[test]
fn a_run_is_not_overwritten_unless_asked_for() {
    let (model, data) = trained();
    let out = model.parent().unwrap();
    let before = std::fs::read(model).unwrap();
    Ran::from(train(data, out).output().unwrap()).fails(2, &["already holds a run", "--resume", "--overwrite"]);
    assert_eq!(std::fs::read(model).unwrap(), before);
    let fresh = tempfile::tempdir().unwrap();
    Ran::from(train(data, fresh.path()).arg("--resume").output().unwrap()).fails(2, &["no checkpoint", "--resume"]);
    let out = fresh.path().join("run");
    Ran::from(train(data, &out).output().unwrap()).ok();
    Ran::from(train(data, &out).arg("--overwrite").output().unwrap()).ok();
    assert_eq!(std::fs::read(out.join("best.iseg")).unwrap(), before, "the same run again gives the same model");
}

/// A limit on the size of files stands for a full disk: writing fails in the middle of a file.
#[cfg(unix)]
fn with_full_disk(command: &std::process::Command, blocks: usize) -> Ran {
    let mut limited = std::process::Command::new("bash");
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"")).arg("bash");
    limited.arg(command.get_program()).args(command.get_args());
    limited.output().unwrap().into()
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_one_message_and_what_was_written_stays_whole() {
    let data = scenes();
    let out = data.path().join("run");
    Ran::from(train(data.path(), &out).output().unwrap()).ok();
    let before = std::fs::read(out.join("last.iseg")).unwrap();
    let mut resume = train(data.path(), &out);
    // More steps than the run had is another configuration, so a new folder meets the full disk.
    let full = data.path().join("full");
    with_full_disk(&train(data.path(), &full), 40).fails(1, &["full", "free some space"]);
    assert!(std::fs::read_dir(&full).unwrap().flatten().all(|f| f.path().extension().is_some_and(|e| e != "partial")));
    with_full_disk(resume.arg("--resume"), 0);
    assert_eq!(std::fs::read(out.join("last.iseg")).unwrap(), before);
    assert_eq!(intseg(["inspect", out.join("last.iseg").to_str().unwrap()]).status, 0);

    let mut predict = program();
    predict.arg("predict").arg("--model").arg(out.join("best.iseg")).arg("--input").arg(data.path().join("JPEGImages"));
    predict.arg("--output").arg(data.path().join("masks"));
    let ran = with_full_disk(&predict, 0);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("scene_00000.png"), "{}", ran.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_standard_output_that_is_full_is_an_error_and_not_a_panic() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program().args(["inspect", "--arch", "fcn-tiny", "--json"]).stdout(full).output().unwrap();
    Ran::from(output).fails(1, &["standard output", "No space left"]);
    assert!(config().is_file());
}
