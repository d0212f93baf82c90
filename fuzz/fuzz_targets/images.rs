#![no_main]
//! Images and label maps, which are read from files.

use intseg::data::image::{read_label, read_rgb};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a temporary folder"));
static PATH: LazyLock<PathBuf> = LazyLock::new(|| DIR.path().join("image"));

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&*PATH, bytes).expect("a temporary file");
    if let Ok(image) = read_rgb(&PATH) {
        assert_eq!(image.data.len(), image.width * image.height * 3);
    }
    if let Ok(label) = read_label(&PATH) {
        assert_eq!(label.values.len(), label.width * label.height);
    }
});
