#![no_main]
//! The pickle of a PyTorch checkpoint, behind the archive's checksum, with storages that it may refer to.

use intseg_import::read::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pickle: &[u8]| {
    let values: Vec<u8> = (0..144).collect();
    let mut entries = vec![("a/data.pkl", pickle)];
    let names: Vec<String> = (0..10).map(|key| format!("a/data/{key}")).collect();
    // Of the sizes that the seeds' storages have.
    for (name, length) in names.iter().zip([144, 8, 8, 10, 8, 24, 96, 96, 4, 0]) {
        entries.push((name, &values[..length]));
    }
    intseg_fuzz::read_weights(Format::Torch, &intseg_fuzz::archive(&entries));
});
