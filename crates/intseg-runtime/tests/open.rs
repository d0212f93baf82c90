//! An engine opened from a reader computes what one with the whole file computes, and refuses what that refuses.

mod common;

use common::{Threads, decoder, image, mobile, padded, pyramid, residual, tiny};
use intseg_kernels::{Context, Isa};
use intseg_runtime::{Engine, Model, ModelError, Op, OpenError, ReadAt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn open(file: &[u8], isa: Isa) -> Result<Engine, OpenError> {
    Engine::open(file, file.len() as u64, Context { isa, pool: &Threads(2) })
}

#[test]
fn an_opened_model_computes_what_the_whole_file_computes() {
    for spec in [tiny(), residual(true), pyramid(false), decoder(), mobile(), padded()] {
        let file = spec.to_bytes();
        for (isa, size) in Isa::available().flat_map(|isa| [(isa, [33, 65]), (isa, [40, 24])]) {
            let ctx = Context { isa, pool: &Threads(3) };
            let pixels = image(size, 5);
            let (mut want, mut got) = (vec![0; size[0] * size[1]], vec![9; size[0] * size[1]]);
            Engine::new(file.clone()).unwrap().run(ctx, size, &pixels, &mut want).unwrap();
            open(&file, isa).unwrap().run(ctx, size, &pixels, &mut got).unwrap();
            assert!(got == want, "{size:?} on {}", isa.name());
        }
    }
}

/// Opens a model of whose weights no more than `limit` bytes a layer are held.
fn open_streaming(file: &[u8], isa: Isa, limit: usize, read_at: ReadAt) -> Engine {
    let ctx = Context { isa, pool: &Threads(2) };
    Engine::open_streaming(file, file.len() as u64, ctx, limit, read_at).unwrap()
}

#[test]
fn weights_that_stay_in_the_file_give_the_same_classes_in_less_memory() {
    for spec in [tiny(), residual(true), pyramid(false), decoder(), mobile(), padded()] {
        let (file, size) = (spec.to_bytes(), [33, 65]);
        for (isa, limit) in Isa::available().flat_map(|isa| [(isa, 0), (isa, 300)]) {
            let ctx = Context { isa, pool: &Threads(3) };
            let pixels = image(size, 5);
            let [mut want, mut got, mut seen] = [0, 9, 9].map(|value| vec![value; size[0] * size[1]]);
            let mut held = open(&file, isa).unwrap();
            held.run(ctx, size, &pixels, &mut want).unwrap();
            let (bytes, reads) = (file.clone(), Arc::new(AtomicUsize::new(0)));
            let count = reads.clone();
            let read_at = move |out: &mut [u8], at: u64| {
                count.fetch_add(1, Ordering::Relaxed);
                out.copy_from_slice(&bytes[at as usize..][..out.len()]);
                Ok(())
            };
            let mut engine = open_streaming(&file, isa, limit, Box::new(read_at));
            engine.run(ctx, size, &pixels, &mut got).unwrap();
            assert!(got == want, "{size:?} on {}, {limit} bytes", isa.name());
            engine.run_with(ctx, size, &pixels, &mut seen, |_, _, _| {}).unwrap();
            assert!(seen == want, "every output, {size:?} on {}, {limit} bytes", isa.name());
            let less = engine.sizes().packed < held.sizes().packed;
            assert_eq!(less, reads.load(Ordering::Relaxed) > 0, "{}, {limit} bytes", isa.name());
            assert!(if isa == Isa::Scalar { !less } else { less || limit > 0 }, "{}, {limit} bytes", isa.name());
        }
    }
}

#[test]
fn weights_that_cannot_be_read_are_an_error_of_that_run() {
    let (file, size) = (tiny().to_bytes(), [8, 8]);
    for isa in Isa::available().filter(|&isa| isa != Isa::Scalar) {
        let ctx = Context { isa, pool: &Threads(2) };
        let lost = Arc::new(AtomicBool::new(true));
        let (bytes, gone) = (file.clone(), lost.clone());
        let read_at = move |out: &mut [u8], at: u64| {
            if gone.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("the disk is gone"));
            }
            out.copy_from_slice(&bytes[at as usize..][..out.len()]);
            Ok(())
        };
        let mut engine = open_streaming(&file, isa, 0, Box::new(read_at));
        let error = engine.run(ctx, size, &image(size, 1), &mut [0; 64]).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the model's weights: the disk is gone");
        lost.store(false, Ordering::Relaxed);
        let [mut want, mut got] = [[0; 64], [9; 64]];
        open(&file, isa).unwrap().run(ctx, size, &image(size, 1), &mut want).unwrap();
        engine.run(ctx, size, &image(size, 1), &mut got).unwrap();
        assert_eq!(got, want);
    }
}

#[test]
fn weights_are_held_packed_alone_where_they_are_packed() {
    let file = pyramid(false).to_bytes();
    for isa in Isa::available() {
        let engine = open(&file, isa).unwrap();
        assert_eq!(engine.model().len(), Model::parse(&file).unwrap().len());
        for node in engine.model().nodes() {
            let Op::Conv(conv) = node.op else { continue };
            let held = if isa == Isa::Scalar { conv.weights_len() } else { 0 };
            assert_eq!(conv.weights.len(), held, "{} on {}", node.name, isa.name());
            assert_eq!(conv.requantization.channels(), conv.c_out);
        }
    }
}

#[test]
fn an_opened_model_runs_on_no_other_instruction_set_than_it_was_packed_for() {
    let (file, size) = (tiny().to_bytes(), [8, 8]);
    for (isa, other) in Isa::available().flat_map(|isa| Isa::available().map(move |other| (isa, other))) {
        let mut engine = open(&file, isa).unwrap();
        let run = engine.run(Context { isa: other, pool: &Threads(1) }, size, &image(size, 1), &mut [0; 64]);
        assert_eq!(run.is_ok(), isa == other || isa == Isa::Scalar, "{} on {}", isa.name(), other.name());
    }
}

#[test]
fn a_damaged_file_is_refused_as_the_whole_file_is() {
    let file = tiny().to_bytes();
    for isa in Isa::available() {
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x55;
            let want = Model::parse(&damaged).unwrap_err();
            let Err(OpenError::Model(got)) = open(&damaged, isa) else { panic!("byte {at} on {}", isa.name()) };
            assert_eq!(got, want, "byte {at}");
        }
        for len in 0..file.len() {
            let Err(OpenError::Model(got)) = open(&file[..len], isa) else { panic!("{len} bytes") };
            assert_eq!(got, Model::parse(&file[..len]).unwrap_err(), "{len} bytes");
        }
    }
}

#[test]
fn a_file_that_becomes_shorter_while_it_is_read_is_refused() {
    let file = tiny().to_bytes();
    for (isa, len) in Isa::available().flat_map(|isa| (0..file.len()).map(move |len| (isa, len))) {
        let ctx = Context { isa, pool: &Threads(1) };
        let opened = Engine::open(&file[..len], file.len() as u64, ctx);
        assert!(matches!(opened, Err(OpenError::Read(_))), "{len} bytes");
    }
}

#[test]
fn a_weight_out_of_range_is_refused_wherever_it_is_read() {
    let mut file = tiny().to_bytes();
    let model = Model::parse(&file).unwrap();
    let weights = model.nodes().find_map(|node| match node.op {
        Op::Conv(conv) => Some(conv.weights.as_ptr().addr() - file.as_ptr().addr()),
        _ => None,
    });
    let content = file.len() - 32;
    file[weights.unwrap()] = 0x80;
    let checksum = blake3::hash(&file[..content]);
    file[content..].copy_from_slice(checksum.as_bytes());
    for isa in Isa::available() {
        let Err(OpenError::Model(ModelError::Node { index, problem })) = open(&file, isa) else { panic!("accepted") };
        assert_eq!((index, problem), (1, "a weight is -128"));
    }
}
