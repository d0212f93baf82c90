#![no_main]
//! An array of an `.npz` archive, behind the archive's checksum.

use intseg_import::read::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    intseg_fuzz::read_weights(Format::Npz, &intseg_fuzz::archive(&[("w.npy", bytes)]));
});
