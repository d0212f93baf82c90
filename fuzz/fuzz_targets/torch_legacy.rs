#![no_main]
//! A checkpoint of PyTorch before 1.6, behind its magic number.

use intseg_import::read::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    intseg_fuzz::read_weights(Format::Torch, &[intseg_fuzz::TORCH_MAGIC, bytes].concat());
});
