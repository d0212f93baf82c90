//! What the engine computes is what the model's definition says, bit for bit.

mod common;

use common::naive::{self, Values};
use common::{Threads, bottlenecks, decoder, image, mobile, padded, pooled, pyramid, residual, tiny};
use intseg_kernels::{Context, Isa, bytes::as_i8};
use intseg_runtime::writer::ModelSpec;
use intseg_runtime::{Destination, Element, Engine, Memory, Model, Plan, Slot, execute, load};

const SIZES: [[usize; 2]; 5] = [[1, 1], [1, 37], [33, 65], [97, 64], [40, 7]];

fn values(slot: &Slot, memory: &Memory, element: Element) -> Values {
    let data = match element {
        Element::U8 => memory.bytes[slot.range()].iter().map(|&v| v.into()).collect(),
        Element::I8 => as_i8(&memory.bytes[slot.range()]).iter().map(|&v| v.into()).collect(),
        Element::I16 => memory.words[slot.range()].iter().map(|&v| v.into()).collect(),
    };
    Values { h: slot.shape.h, w: slot.shape.w, c: slot.shape.c, data }
}

/// Runs a model at every size, in every way, and compares every node's output.
fn check(spec: &ModelSpec) {
    let file = spec.to_bytes();
    let ways: Vec<(Isa, usize)> = Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]).collect();
    let mut engines: Vec<Engine> = ways.iter().map(|_| Engine::new(file.clone()).unwrap()).collect();
    for size in SIZES {
        let pixels = image(size, 5);
        let wanted = naive::run(spec, &pixels, size);
        for (engine, &(isa, threads)) in engines.iter_mut().zip(&ways) {
            let ctx = Context { isa, pool: &Threads(threads) };
            let mut classes = vec![9; size[0] * size[1]];
            let mut visited = 0;
            let way = format!("{size:?} {} {threads}", isa.name());
            let done = engine.run_with(ctx, size, &pixels, &mut classes, |index, slot, memory| {
                let node = &spec.nodes[index];
                let (wanted, _) = wanted.as_ref().expect("the windows fit");
                assert!(values(slot, memory, node.element) == wanted[index], "{} {way}", node.name);
                visited += 1;
            });
            match &wanted {
                Some((outputs, wanted)) => {
                    done.unwrap_or_else(|e| panic!("{way}: {e}"));
                    assert_eq!((visited, &classes), (spec.nodes.len(), wanted), "{way}");
                    classes.fill(9);
                    engine.run(ctx, size, &pixels, &mut classes).unwrap();
                    assert_eq!(&classes, wanted, "{way}, fused");
                    check_fused(spec, &file, ctx, size, &pixels, outputs);
                }
                None => assert!(done.is_err(), "{way}"),
            }
        }
    }
}

/// Runs a model whose nodes run together where they can, and compares the outputs that exist.
fn check_fused(spec: &ModelSpec, file: &[u8], ctx: Context, size: [usize; 2], pixels: &[u8], wanted: &[Values]) {
    let model = Model::parse(file).unwrap();
    let mut slots = vec![Slot::default(); model.len()];
    let plan = Plan::new(&model, size, ctx, &mut slots).unwrap();
    let mut arena = vec![0xA5; plan.sizes.arena_bytes()];
    let mut memory = Memory::in_arena(&plan.sizes, &mut arena).unwrap();
    load(&model, &plan, ctx, &mut memory);
    execute(&model, &plan, ctx, &mut memory, pixels, &mut vec![0; size[0] * size[1]], |index, slot, memory| {
        let node = &spec.nodes[index];
        let exists = slot.destination == Destination::Own;
        // A concatenation is whole when it has run itself.
        assert!(!exists || values(slot, memory, node.element) == wanted[index], "{} {size:?}", node.name);
    });
}

/// What becomes of each node's output.
fn destinations(spec: &ModelSpec, size: [usize; 2]) -> Vec<Destination> {
    let file = spec.to_bytes();
    let model = Model::parse(&file).unwrap();
    let mut slots = vec![Slot::default(); model.len()];
    let plan = Plan::new(&model, size, Context::reference(), &mut slots).unwrap();
    plan.slots.iter().map(|slot| slot.destination).collect()
}

#[test]
fn sums_behind_a_convolution_are_exact_at_every_size_on_every_instruction_set() {
    check(&bottlenecks());
    let added = destinations(&bottlenecks(), [33, 65]).iter().filter(|&&d| d == Destination::Sum).count();
    assert_eq!(added, 5, "one exponent is too far, and one sum takes a convolution twice");
}

#[test]
fn branches_of_a_concatenation_are_written_to_their_channels() {
    let concat = |destination: &Destination| matches!(destination, Destination::Concat { .. });
    // Three dilated branches and the pooled one; the first occurs twice.
    assert_eq!(destinations(&pyramid(false), [33, 65]).iter().filter(|d| concat(d)).count(), 4);
}

#[test]
fn convolutions_that_are_pooled_strip_by_strip_are_exact() {
    let (square, size) = ([[2; 2], [2; 2], [0; 2]], [201, 190]);
    for (geometry, channels, pool, ceil, strips) in [
        (common::same(3, 1), 120, square, true, true),
        (common::same(3, 3), 117, [[2; 2], [3, 2], [1, 0]], false, true),
        ([[5, 3], [2, 1], [2, 1], [4, 0]], 250, [[2, 3], [2; 2], [1; 2]], true, true),
        ([[7, 3], [3, 1], [1; 2], [3, 0]], 400, square, false, true),
        ([[3; 2], [1; 2], [1; 2], [0; 2]], 120, square, false, true),
        // Windows that overlap; padding that is no whole number of rows; an output too small.
        (common::same(3, 1), 120, [[3; 2], [2; 2], [1; 2]], false, false),
        ([[3; 2], [2, 1], [1; 2], [1; 2]], 250, square, false, false),
        (common::same(3, 1), 20, square, false, false),
    ] {
        let spec = pooled(geometry, channels, pool, ceil);
        let is_strip = matches!(destinations(&spec, size)[1], Destination::Strips(_));
        assert_eq!(is_strip, strips, "{geometry:?} {pool:?}");
        if !strips {
            continue;
        }
        let (file, pixels) = (spec.to_bytes(), image(size, 3));
        let (wanted, _) = naive::run(&spec, &pixels, size).unwrap();
        for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            check_fused(&spec, &file, Context { isa, pool: &Threads(threads) }, size, &pixels, &wanted);
        }
    }
}

#[test]
fn a_small_network_is_exact_at_every_size_on_every_instruction_set() {
    check(&tiny());
}

#[test]
fn residual_units_are_exact_at_every_size_on_every_instruction_set() {
    check(&residual(false));
    check(&residual(true));
}

#[test]
fn pyramids_are_exact_at_every_size_on_every_instruction_set() {
    check(&pyramid(false));
    check(&pyramid(true));
}

#[test]
fn decoders_are_exact_at_every_size_on_every_instruction_set() {
    check(&decoder());
}

#[test]
fn depthwise_convolutions_tables_and_products_are_exact_at_every_size_on_every_instruction_set() {
    check(&mobile());
}

#[test]
fn other_pixels_than_0_around_a_map_are_exact_at_every_size_on_every_instruction_set() {
    check(&padded());
}

#[test]
fn the_test_models_use_the_range_of_their_types() {
    for spec in [tiny(), residual(false), pyramid(false), mobile()] {
        let (outputs, classes) = naive::run(&spec, &image([33, 65], 5), [33, 65]).unwrap();
        for (node, output) in spec.nodes.iter().zip(&outputs) {
            let range = naive::range(node.element);
            let distinct: std::collections::BTreeSet<_> = output.data.iter().collect();
            assert!(output.data.iter().all(|v| range.contains(v)), "{}", node.name);
            assert!(distinct.len() > 4, "{} has only {} values", node.name, distinct.len());
        }
        assert!(classes.iter().any(|class| *class != classes[0]));
    }
}

#[test]
fn an_engine_goes_from_one_size_and_instruction_set_to_another() {
    let spec = pyramid(false);
    let mut engine = Engine::new(spec.to_bytes()).unwrap();
    for isa in Isa::available().chain(Isa::available()) {
        for size in [[33, 65], [5, 9], [33, 65], [12, 3]] {
            let pixels = image(size, 7);
            let mut classes = vec![0; size[0] * size[1]];
            engine.run(Context { isa, pool: &Threads(2) }, size, &pixels, &mut classes).unwrap();
            assert_eq!(classes, naive::run(&spec, &pixels, size).unwrap().1);
        }
    }
}

#[test]
fn an_image_without_pixels_or_with_too_many_is_an_error() {
    let mut engine = Engine::new(tiny().to_bytes()).unwrap();
    for size in [[0, 5], [5, 0], [1, 40_000]] {
        let pixels = vec![0; 3 * size[0] * size[1]];
        let error = engine.run(Context::reference(), size, &pixels, &mut vec![0; size[0] * size[1]]).unwrap_err();
        assert!(error.to_string().contains("cannot be used"), "{error}");
    }
}

#[test]
fn a_very_wide_image_runs() {
    let spec = tiny();
    let mut engine = Engine::new(spec.to_bytes()).unwrap();
    let size = [2, 12_000];
    let pixels = image(size, 1);
    let mut classes = vec![0; size[0] * size[1]];
    engine.run(Context { isa: Isa::detect(), pool: &Threads(2) }, size, &pixels, &mut classes).unwrap();
    assert_eq!(classes, naive::run(&spec, &pixels, size).unwrap().1);
}
