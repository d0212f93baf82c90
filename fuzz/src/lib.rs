//! What fuzz targets share.

use intseg_import::read::{Format, parse_weights};
use std::io::{Cursor, Write};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// What a file of PyTorch before 1.6 begins with.
pub const TORCH_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Reads weights, and holds those that are read to their promise.
pub fn read_weights(format: Format, bytes: &[u8]) {
    for tensor in parse_weights(format, bytes).unwrap_or_default().values() {
        assert_eq!(tensor.data.len(), tensor.shape.iter().product::<usize>());
        assert!(tensor.data.iter().all(|v| v.is_finite()));
    }
}

/// A zip archive of these entries. Checksums are right, so that what is behind them is reached.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(*name, options).expect("memory is written to");
        zip.write_all(bytes).expect("memory is written to");
    }
    zip.finish().expect("memory is written to").into_inner()
}

/// Puts the right length and checksum on a model file's content.
pub fn seal(file: &mut [u8]) {
    const CHECKSUM: usize = 32;
    if file.len() < 24 + CHECKSUM {
        return;
    }
    let total = (file.len() as u64).to_le_bytes();
    file[16..24].copy_from_slice(&total);
    let (content, checksum) = file.split_at_mut(file.len() - CHECKSUM);
    checksum.copy_from_slice(blake3::hash(content).as_bytes());
}
