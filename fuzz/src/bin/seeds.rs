//! Writes the corpora that the targets start from: the fixtures of the readers' tests, small models, and small images.

use intseg::data::image::{Label, Rgb, write_label, write_rgb};
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

// The models of the runtime's tests.
#[path = "../../../crates/intseg-runtime/tests/common/mod.rs"]
mod common;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = |target: &str, name: &str, bytes: &[u8]| -> std::io::Result<()> {
        let dir = here.join("corpus").join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), bytes)
    };
    for entry in fs::read_dir(here.join("../crates/intseg-import/tests/fixtures"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (bytes, kind) = (fs::read(&path)?, path.extension().unwrap_or_default().to_string_lossy().into_owned());
        match kind.as_str() {
            "safetensors" => corpus("safetensors", &name, &bytes)?,
            "npz" => {
                corpus("npz_archive", &name, &bytes)?;
                for (entry, bytes) in entries(&bytes, ".npy")? {
                    corpus("npz_array", &entry, &bytes)?;
                }
            }
            "pth" | "pt" => {
                corpus("torch_archive", &name, &bytes)?;
                if let Some(rest) = bytes.strip_prefix(intseg_fuzz::TORCH_MAGIC) {
                    corpus("torch_legacy", &name, rest)?;
                }
                for (_, bytes) in entries(&bytes, "data.pkl").unwrap_or_default() {
                    corpus("torch_pickle", &name, &bytes)?;
                }
            }
            "onnx" => {
                corpus("onnx_weights", &name, &bytes)?;
                corpus("onnx_graph", &name, &bytes)?;
                corpus("import", &name, &bytes)?;
            }
            _ => {}
        }
    }
    for (name, spec) in [
        ("tiny", common::tiny()),
        ("residual", common::residual(false)),
        ("wide", common::residual(true)),
        ("pyramid", common::pyramid(false)),
        ("aligned", common::pyramid(true)),
        ("decoder", common::decoder()),
    ] {
        corpus("model", name, &spec.to_bytes())?;
    }
    let dir = here.join("corpus/images");
    fs::create_dir_all(&dir)?;
    let (width, height) = (7, 5);
    write_rgb(&dir.join("image.png"), &Rgb { width, height, data: (0..105).collect() })?;
    let label = Label { width, height, values: (0..35).map(|v| v % 3).collect() };
    write_label(&dir.join("label.png"), &label, &[[0; 3], [1; 3], [2; 3]])?;
    fs::copy(here.join("../crates/intseg-cli/tests/files/gradient.jpg"), dir.join("gradient.jpg"))?;
    Ok(())
}

/// The files of an archive whose names end so, each under its last name.
fn entries(archive: &[u8], end: &str) -> Result<Vec<(String, Vec<u8>)>, zip::result::ZipError> {
    let mut zip = zip::ZipArchive::new(Cursor::new(archive))?;
    let names: Vec<String> = (0..zip.len())
        .map(|i| zip.by_index(i).map(|e| e.name().unwrap_or_default().into_owned()))
        .collect::<Result<_, _>>()?;
    let mut found = Vec::new();
    for name in names.into_iter().filter(|name| name.ends_with(end)) {
        let mut bytes = Vec::new();
        zip.by_name(&name)?.read_to_end(&mut bytes)?;
        found.push((name.rsplit('/').next().unwrap_or_default().to_owned(), bytes));
    }
    Ok(found)
}
