#![no_main]
//! A model file behind its checksum: one that is accepted runs, on an image of two sizes, and is read or refused as the
//! start of a training.

use intseg::init::Start;
use intseg_kernels::{Context, Inline, Isa};
use intseg_runtime::{Engine, Model, Plan, Slot};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

/// Bytes that a run may take: a model that needs more is right to, and tells nothing.
const MEMORY: usize = 1 << 24;

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    intseg_fuzz::seal(&mut file);
    let Ok(model) = Model::parse(&file) else { return };
    let _ = Start::from_model(&file, Path::new("fuzz"));
    let ctx = Context { isa: Isa::Scalar, pool: &Inline };
    let mut slots = vec![Slot::default(); model.len()];
    let sizes = [[9, 14], [32, 32]];
    let fits = sizes.map(|size| match Plan::new(&model, size, ctx, &mut slots) {
        Ok(plan) => plan.sizes.arena_bytes() < MEMORY,
        Err(_) => false,
    });
    let mut engine = Engine::new(file).expect("it was accepted");
    for ([rows, columns], _) in sizes.into_iter().zip(fits).filter(|(_, fits)| *fits) {
        let image: Vec<u8> = (0..rows * columns * 3).map(|i| (i * 37) as u8).collect();
        let mut classes = vec![0; rows * columns];
        let _ = engine.run(ctx, [rows, columns], &image, &mut classes);
    }
});
