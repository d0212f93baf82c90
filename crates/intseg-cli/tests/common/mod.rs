//! What the tests of the command share: a data set, a model, and how to run the program.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A valid JPEG of 24×16.
pub const JPEG: &[u8] = include_bytes!("../files/gradient.jpg");

/// Settings that make training a matter of a second.
pub const QUICK: [&str; 6] = [
    "train.steps=12",
    "train.batch=2",
    "augment.crop=[32,48]",
    "train.eval_every=6",
    "train.save_every=4",
    "train.log_every=2",
];

/// What a run of the program came to.
pub struct Ran {
    /// Exit status, −1 for a signal.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Asserts success and hands back stdout.
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Asserts success and parses stdout as one JSON object.
    pub fn json(self) -> serde_json::Value {
        let text = self.ok();
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Asserts a failure of that exit status with exactly one error line, that holds all `parts`, and no panic.
    pub fn fails(self, status: i32, parts: &[&str]) {
        let Ran { stderr, .. } = &self;
        assert_eq!(self.status, status, "{stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("internal fault"), "{stderr}");
        for part in parts {
            assert!(errors[0].contains(part), "{part:?} is not in {:?}", errors[0]);
        }
    }
}

/// The program, ready to get arguments.
pub fn program() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("intseg"));
    command.env_remove("INTSEG_ISA");
    command
}

/// Runs the program.
pub fn intseg<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    program().args(arguments).output().unwrap().into()
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The demo's configuration.
pub fn config() -> PathBuf {
    root().join("configs/demo.toml")
}

/// A fresh data set of small scenes: 8 to train on, 3 to evaluate on.
pub fn scenes() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["data", "scenes", "--train", "8", "--val", "3", "--size", "32x48"];
    program().args(arguments).arg(dir.path()).output().map(Ran::from).unwrap().ok();
    dir
}

/// The program, ready to train quickly on `data` into `out`.
pub fn train(data: &Path, out: &Path) -> Command {
    let mut command = program();
    command.arg("train").arg("--config").arg(config()).arg("--data").arg(data).arg("--out").arg(out);
    QUICK.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command
}

/// A model and the scenes that it was trained on, made once for a test file.
pub fn trained() -> &'static (PathBuf, PathBuf) {
    static TRAINED: OnceLock<(TempDir, PathBuf, PathBuf)> = OnceLock::new();
    static PATHS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    let (_, model, data) = TRAINED.get_or_init(|| {
        let dir = scenes();
        let out = dir.path().join("run");
        Ran::from(train(dir.path(), &out).output().unwrap()).ok();
        let data = dir.path().to_owned();
        (dir, out.join("best.iseg"), data)
    });
    PATHS.get_or_init(|| (model.clone(), data.clone()))
}

/// Writes a PNG.
pub fn write_png(path: &Path, size: [u32; 2], colour: png::ColorType, depth: png::BitDepth, data: &[u8]) {
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), size[0], size[1]);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    encoder.write_header().unwrap().write_image_data(data).unwrap();
}

/// The stored values of a PNG with 8 bits a pixel.
pub fn read_png(path: &Path) -> Vec<u8> {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut values = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut values).unwrap();
    values
}
