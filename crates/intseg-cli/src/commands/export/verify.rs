//! An exported ONNX model run by ONNX Runtime, held against intseg's own prediction.
//!
//! ONNX Runtime is reached through Python: images go to a small program's stdin, class maps come from its stdout.

use anyhow::{Context, anyhow};
use intseg::data::image::read_rgb;
use intseg::export::c::resized;
use intseg::predict::images;
use intseg::predictor::Predictor;
use intseg::threads::Threads;
use serde::Serialize;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// The program that Python runs.
const PROGRAM: &str = include_str!("ort.py");
/// Its exit status when a module is missing.
const NO_MODULE: i32 = 3;

/// What the comparison found.
#[derive(Serialize)]
pub struct Agreement {
    onnxruntime: String,
    images: usize,
    pixels: u64,
    equal_pixels: u64,
    agreement: f64,
    least_agreement: f64,
    least_image: PathBuf,
    identical_images: usize,
    /// The median time of a run.
    onnxruntime_ms: f64,
}

impl Agreement {
    /// The share of pixels with the same class.
    pub fn share(&self) -> f64 {
        self.agreement
    }

    /// Text for people.
    pub fn describe(&self) -> String {
        format!(
            "ONNX Runtime {}: {:.4} % of the pixels of {} images equal, {} images in all; least {:.4} % in {}; {:.1} ms an image",
            self.onnxruntime,
            100.0 * self.agreement,
            self.images,
            self.identical_images,
            100.0 * self.least_agreement,
            self.least_image.display(),
            self.onnxruntime_ms
        )
    }
}

/// Runs both over an image or a folder of them, at the model's size.
///
/// # Errors
/// When there are no images, Python or ONNX Runtime is missing, or either fails.
pub fn verify(
    python: &Path,
    model: &Path,
    predictor: &mut Predictor,
    threads: &Threads,
    size: [usize; 2],
    input: &Path,
) -> anyhow::Result<Agreement> {
    let images = images(&[input.to_owned()])?;
    let mut runtime = Runtime::start(python, model)?;
    let mut times = Vec::with_capacity(images.len());
    let mut found = Agreement {
        onnxruntime: runtime.version.clone(),
        images: images.len(),
        pixels: 0,
        equal_pixels: 0,
        agreement: 1.0,
        least_agreement: f64::INFINITY,
        least_image: PathBuf::new(),
        identical_images: 0,
        onnxruntime_ms: 0.0,
    };
    for path in images {
        let image = resized(&read_rgb(&path)?, size);
        let ours = predictor.predict(threads, &image)?.values;
        let (theirs, microseconds) = runtime.run(&image.data, ours.len())?;
        times.push(microseconds);
        let equal = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
        found.pixels += ours.len() as u64;
        found.equal_pixels += equal as u64;
        found.identical_images += usize::from(equal == ours.len());
        let share = equal as f64 / ours.len() as f64;
        if share < found.least_agreement {
            (found.least_agreement, found.least_image) = (share, path);
        }
    }
    times.sort_unstable();
    found.agreement = found.equal_pixels as f64 / found.pixels as f64;
    found.onnxruntime_ms = times[times.len() / 2] as f64 / 1000.0;
    Ok(found)
}

/// ONNX Runtime in a process of its own, with a model.
struct Runtime {
    process: Child,
    answers: BufReader<ChildStdout>,
    version: String,
    python: PathBuf,
}

impl Runtime {
    fn start(python: &Path, model: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.arg("-c").arg(PROGRAM).arg(model);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = || format!("cannot run {}: name a Python 3 with --python PATH", python.display());
        let mut process = command.spawn().with_context(failed)?;
        let answers = BufReader::new(process.stdout.take().ok_or_else(|| anyhow!(failed()))?);
        let mut runtime = Runtime { process, answers, version: String::new(), python: python.to_owned() };
        let mut version = String::new();
        match runtime.answers.read_line(&mut version) {
            Ok(length) if length > 0 => runtime.version = version.trim().to_owned(),
            _ => return Err(runtime.failure()),
        }
        Ok(runtime)
    }

    /// The class map of an image, and the microseconds that it took.
    fn run(&mut self, image: &[u8], pixels: usize) -> anyhow::Result<(Vec<u8>, u64)> {
        let (mut classes, mut time) = (vec![0; pixels], [0; 8]);
        let mut exchange = || -> std::io::Result<()> {
            let stdin = self.process.stdin.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
            stdin.write_all(image)?;
            stdin.flush()?;
            self.answers.read_exact(&mut classes)?;
            self.answers.read_exact(&mut time)
        };
        match exchange() {
            Ok(()) => Ok((classes, u64::from_le_bytes(time))),
            Err(_) => Err(self.failure()),
        }
    }

    /// Why the process ended.
    fn failure(&mut self) -> anyhow::Error {
        drop(self.process.stdin.take());
        let mut message = String::new();
        if let Some(stderr) = &mut self.process.stderr {
            // What cannot be read is not needed: the exit status says enough.
            let _ = stderr.read_to_string(&mut message);
        }
        let status = self.process.wait().ok().and_then(|status| status.code());
        let python = self.python.display();
        let last = message.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        if status == Some(NO_MODULE) {
            return anyhow!(
                "{python} has no ONNX Runtime ({last}): run `{python} -m pip install onnxruntime numpy`, \
                 or name another Python with --python PATH"
            );
        }
        anyhow!("ONNX Runtime failed: {last}")
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // At the end of its input it ends.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
