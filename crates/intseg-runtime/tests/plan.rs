//! Plans: nothing that lives at the same time overlaps, and little is wasted.

mod common;

use common::{Threads, bottlenecks, decoder, mobile, padded, pooled, pyramid, residual, same, tiny};
use intseg_kernels::{Context, Isa};
use intseg_runtime::writer::ModelSpec;
use intseg_runtime::{Destination, Engine, Memory, Model, Plan, PlanError, Slot, execute, load};

fn check(spec: &ModelSpec, size: [usize; 2]) {
    let file = spec.to_bytes();
    let model = Model::parse(&file).unwrap();
    let mut slots = vec![Slot::default(); model.len()];
    let ctx = Context { isa: Isa::detect(), pool: &Threads(2) };
    let plan = Plan::new(&model, size, ctx, &mut slots).unwrap();
    // A concatenation lives from the first of its branches that is written to it.
    let born = |index: usize| {
        let into = |slot: &Slot| matches!(slot.destination, Destination::Concat { node, .. } if node == index);
        plan.slots.iter().position(into).unwrap_or(index)
    };
    for (index, slot) in plan.slots.iter().enumerate() {
        let total = if slot.wide() { plan.sizes.words } else { plan.sizes.bytes };
        assert!(slot.range().end <= total);
        let lives = |&other: &usize| {
            let now = born(index).max(born(other));
            other != index && plan.slots[other].last_reader >= now && slot.last_reader >= now
        };
        let living = (0..plan.slots.len()).filter(lives).map(|other| &plan.slots[other]);
        for other in living.filter(|other| other.wide() == slot.wide()) {
            let apart = other.range().end <= slot.offset || slot.range().end <= other.offset;
            assert!(apart, "{size:?}: node {index} lies over one that is still read");
        }
    }
    let (used, bound) = (plan.sizes.activation_bytes(), plan.sizes.lower_bound);
    assert!(bound <= used && used <= 2 * bound, "{size:?}: {used} bytes where {bound} live at once");
}

#[test]
fn outputs_that_live_at_the_same_time_do_not_overlap() {
    let strips = pooled(same(3, 1), 30, [[2; 2], [2; 2], [0; 2]], true);
    for spec in [tiny(), residual(false), pyramid(false), decoder(), bottlenecks(), mobile(), padded(), strips] {
        for size in [[1, 1], [1, 37], [33, 65], [97, 64], [513, 513]] {
            check(&spec, size);
        }
    }
}

#[test]
fn one_arena_of_the_planned_size_runs_a_model_and_a_smaller_one_is_refused() {
    let file = pyramid(false).to_bytes();
    let model = Model::parse(&file).unwrap();
    let mut slots = vec![Slot::default(); model.len()];
    let size = [33, 47];
    let image: Vec<u8> = (0..3 * 33 * 47).map(|i| (i * 7 % 251) as u8).collect();
    let (mut got, mut want) = (vec![0; 33 * 47], vec![0; 33 * 47]);
    Engine::new(file.clone()).unwrap().run(Context::reference(), size, &image, &mut want).unwrap();
    for isa in Isa::available() {
        let ctx = Context { isa, pool: &Threads(2) };
        let plan = Plan::new(&model, size, ctx, &mut slots).unwrap();
        let mut arena = vec![0xA5; plan.sizes.arena_bytes() + 1];
        // Wherever it begins.
        let arena = &mut arena[1..];
        assert!(Memory::in_arena(&plan.sizes, &mut arena[..plan.sizes.arena_bytes() / 2]).is_none());
        let mut memory = Memory::in_arena(&plan.sizes, arena).unwrap();
        load(&model, &plan, ctx, &mut memory);
        execute(&model, &plan, ctx, &mut memory, &image, &mut got, |_, _, _| {});
        assert!(got == want, "{}", isa.name());
    }
}

#[test]
fn a_plan_says_how_many_slots_it_needs() {
    let file = tiny().to_bytes();
    let model = Model::parse(&file).unwrap();
    let error = Plan::new(&model, [4, 4], Context::reference(), &mut [Slot::default(); 2]).unwrap_err();
    assert_eq!(error, PlanError::Slots { needed: 4 });
}

#[test]
fn what_a_layer_cannot_do_is_said_with_its_name() {
    let mut spec = tiny();
    if let intseg_runtime::writer::OpSpec::Conv { geometry, .. } = &mut spec.nodes[1].op {
        geometry[3] = [0; 2];
    }
    let file = spec.to_bytes();
    let model = Model::parse(&file).unwrap();
    let mut slots = [Slot::default(); 4];
    let error = Plan::new(&model, [2, 2], Context::reference(), &mut slots).unwrap_err();
    assert_eq!(error.to_string(), "layer node1: the image is too small for its window");
}
