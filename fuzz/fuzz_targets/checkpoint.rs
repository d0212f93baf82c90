//! A run's checkpoint, read as `train --resume` and `train --init` read one.
#![no_main]

use intseg::checkpoint::Checkpoint;
use intseg::init::Start;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let _ = Checkpoint::from_bytes(data.to_vec(), Path::new("fuzz")).map(Start::from_checkpoint);
});
