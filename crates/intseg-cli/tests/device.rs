//! Exported models on emulated boards give the bytes of `intseg predict`, without a floating-point instruction.
//!
//! A board whose compiler or emulator is missing is skipped and counted; with `INTSEG_REQUIRE_DEVICES` set it fails.

mod common;

use common::{Ran, intseg, read_png, root, train};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

/// Board and kernel.
const RUNS: [[&str; 2]; 8] = [
    ["m3", "plain"],
    ["m4", "plain"],
    ["m4", "dsp"],
    ["m7", "dsp"],
    ["m55", "plain"],
    ["m55", "dsp"],
    ["m55", "mve"],
    ["rv32", "plain"],
];

/// A trained model, 20 images of 48 × 64, and their class maps as `intseg predict` writes them.
struct Fixture {
    dir: TempDir,
    model: PathBuf,
    images: Vec<PathBuf>,
    predicted: Vec<u8>,
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (data, run, masks) = (dir.path().join("data"), dir.path().join("run"), dir.path().join("masks"));
        let path = data.to_str().unwrap();
        intseg(["data", "scenes", "--train", "32", "--val", "20", "--size", "48x64", path]).ok();
        let mut training = train(&data, &run);
        for set in ["train.steps=60", "train.batch=8", "augment.crop=[48,64]", "train.eval_every=60"] {
            training.args(["--set", set]);
        }
        Ran::from(training.output().unwrap()).ok();
        let list = std::fs::read_to_string(data.join("ImageSets/Segmentation/val.txt")).unwrap();
        let names: Vec<&str> = list.lines().collect();
        assert_eq!(names.len(), 20);
        let images: Vec<_> = names.iter().map(|name| data.join("JPEGImages").join(format!("{name}.png"))).collect();
        let model = run.join("best.iseg");
        let mut arguments: Vec<&Path> = vec![Path::new("predict"), Path::new("--model"), model.as_path()];
        arguments.extend([Path::new("--output"), masks.as_path()]);
        images.iter().for_each(|image| arguments.extend([Path::new("--input"), image.as_path()]));
        intseg(arguments).ok();
        let predicted: Vec<u8> = names.iter().flat_map(|name| read_png(&masks.join(format!("{name}.png")))).collect();
        assert!(predicted.iter().any(|&class| class != predicted[0]), "one class alone: too easy a test");
        Fixture { dir, model, images, predicted }
    })
}

/// Exports the model with its images.
fn export(name: &str, more: &[&str]) -> PathBuf {
    let fixture = fixture();
    let dir = fixture.dir.path().join(name);
    let mut arguments: Vec<&Path> = ["export", "--format", "c", "--size", "48x64", "-o"].map(Path::new).to_vec();
    arguments.extend([dir.as_path(), fixture.model.as_path()]);
    arguments.extend(more.iter().map(Path::new));
    fixture.images.iter().for_each(|image| arguments.extend([Path::new("--image"), image.as_path()]));
    intseg(arguments).ok();
    dir
}

/// Runs an exported folder on a board: the class maps, or nothing where a tool is missing.
fn run(board: &str, kernel: &str, dir: &Path) -> Option<Vec<u8>> {
    let output =
        Command::new(root().join("examples/device/board.sh")).arg(board).arg(dir).arg(kernel).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        assert!(std::env::var_os("INTSEG_REQUIRE_DEVICES").is_none(), "{stderr}");
        println!("skipped: {board} {kernel}: {}", stderr.trim());
        return None;
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{board} {kernel}: {stdout}{stderr}");
    println!("{board} {kernel}: {}", stdout.replace('\n', ", "));
    Some(std::fs::read(dir.join("classes.raw")).unwrap())
}

fn tool(board: &str, name: &str, arguments: &[&str], file: &Path) -> String {
    let prefix = if board == "rv32" { "riscv64-unknown-elf" } else { "arm-none-eabi" };
    let output = Command::new(format!("{prefix}-{name}")).args(arguments).arg(file).output().unwrap();
    assert!(output.status.success(), "{name} {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Symbols of the compilers' floating-point libraries.
fn float_symbols(board: &str, file: &Path) -> Vec<String> {
    let soft = |name: &str| {
        let rest = name.strip_prefix("__aeabi_").unwrap_or_default();
        let converts = ["i2f", "i2d", "ui2f", "ui2d", "l2f", "l2d", "ul2f", "ul2d"].contains(&rest);
        let gcc = ["sf2", "df2", "sf3", "df3", "sfsi", "dfsi", "sisf", "sidf", "disf", "didf", "sfdi", "dfdi"];
        // Also the comparisons, such as __aeabi_fcmplt and __aeabi_dcmpeq.
        let arm = rest.starts_with(['f', 'd']) && rest != "div0";
        arm || converts || (name.starts_with("__") && gcc.iter().any(|part| name.ends_with(part)))
    };
    let symbols = tool(board, "nm", &[], file);
    let names = symbols.lines().filter_map(|line| line.split_whitespace().last());
    names.filter(|name| soft(name)).map(str::to_owned).collect()
}

/// Without the architecture's name, objdump does not know Helium's instructions.
fn disassembly(board: &str, file: &Path) -> String {
    let architecture: &[&str] = if board == "m55" { &["-m", "armv8.1-m.main"] } else { &[] };
    tool(board, "objdump", &[&["-d", "--no-show-raw-insn"], architecture].concat(), file)
}

/// Instructions that compute with floats or move them.
fn float_instructions(board: &str, file: &Path) -> Vec<String> {
    let listing = disassembly(board, file);
    let mnemonic = |line: &str| line.split_once('\t')?.1.split_whitespace().next().map(str::to_owned);
    let float = |m: &String| match board {
        "rv32" => ["flw", "fsw", "fld", "fsd"].contains(&m.as_str()) || m.ends_with(".s") || m.ends_with(".d"),
        "m55" => m.contains(".f16") || m.contains(".f32") || m.contains(".f64"),
        _ => m.starts_with('v'),
    };
    listing.lines().filter_map(mnemonic).filter(float).collect()
}

#[test]
fn exported_models_give_the_bytes_of_predict_on_every_board_without_floats() {
    let dir = export("whole", &[]);
    let (mut passed, mut skipped) = (0, 0);
    for [board, kernel] in RUNS {
        let Some(classes) = run(board, kernel, &dir) else {
            skipped += 1;
            continue;
        };
        assert!(classes == fixture().predicted, "{board} {kernel}");
        let program = dir.join(format!("{board}.elf"));
        assert_eq!(float_symbols(board, &program), [""; 0], "{board} {kernel}");
        for part in ["model", "intseg_nn"] {
            let object = dir.join(format!("{part}.{board}.o"));
            assert_eq!(float_instructions(board, &object), [""; 0], "{board} {kernel}");
        }
        let listing = disassembly(board, &dir.join(format!("intseg_nn.{board}.o")));
        assert_eq!(listing.contains("vmlav") || listing.contains("vmladav"), kernel == "mve", "{board} {kernel}");
        assert_eq!(listing.contains("smlad"), kernel == "dsp", "{board} {kernel}");
        passed += 1;
    }
    println!("boards: {passed} passed, {skipped} skipped");
}

#[test]
fn strips_on_a_board_give_the_bytes_of_predict() {
    let dir = export("strips", &["--strip", "16"]);
    match run("m3", "plain", &dir) {
        Some(classes) => assert!(classes == fixture().predicted),
        None => println!("boards: 0 passed, 1 skipped"),
    }
}

#[test]
fn the_runtime_itself_gives_the_bytes_of_predict_on_a_board() {
    let dir = export("runtime", &[]);
    let script = root().join("examples/device/runtime.sh");
    let output = Command::new(script).arg(&fixture().model).arg("48x64").arg(&dir).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        assert!(std::env::var_os("INTSEG_REQUIRE_DEVICES").is_none(), "{stderr}");
        println!("boards: 0 passed, 1 skipped: {}", stderr.trim());
        return;
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{stderr}");
    println!("{}", stdout.replace('\n', ", "));
    assert!(std::fs::read(dir.join("classes.raw")).unwrap() == fixture().predicted);
    assert_eq!(float_symbols("m3", &dir.join("runtime.elf")), [""; 0]);
}

#[test]
fn the_searches_for_floats_find_them() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("control.c");
    let object = dir.path().join("control.o");
    std::fs::write(&source, "float control(float a, int b) { return a * 1.5f + b; }\n").unwrap();
    let soft = ["-mfloat-abi=soft", "-mcpu=cortex-m3", "-mthumb"].as_slice();
    let hard = ["-mfloat-abi=hard", "-mcpu=cortex-m7", "-mthumb"].as_slice();
    let vector = ["-mfloat-abi=hard", "-mcpu=cortex-m55", "-mthumb"].as_slice();
    let riscv = ["-march=rv32imafc", "-mabi=ilp32f"].as_slice();
    for (board, flags, symbols) in
        [("m3", soft, true), ("m7", hard, false), ("m55", vector, false), ("rv32", riscv, false)]
    {
        let prefix = if board == "rv32" { "riscv64-unknown-elf" } else { "arm-none-eabi" };
        let compiler = Command::new(format!("{prefix}-gcc"))
            .args(flags)
            .args(["-O2", "-c", "-o"])
            .arg(&object)
            .arg(&source)
            .output();
        let Ok(compiled) = compiler else {
            assert!(std::env::var_os("INTSEG_REQUIRE_DEVICES").is_none(), "{prefix}-gcc is missing");
            println!("skipped: {prefix}-gcc is not installed");
            continue;
        };
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let found = if symbols { float_symbols(board, &object) } else { float_instructions(board, &object) };
        assert!(!found.is_empty(), "{board}");
    }
}
