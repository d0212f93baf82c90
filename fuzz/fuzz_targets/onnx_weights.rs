#![no_main]
//! A file of weights.

use intseg_import::read::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| intseg_fuzz::read_weights(Format::Onnx, bytes));
