//! Plans: nothing that lives at the same time overlaps, and little is wasted.

mod common;

use common::{Threads, pyramid, residual, tiny};
use intseg_kernels::{Context, Isa};
use intseg_runtime::writer::ModelSpec;
use intseg_runtime::{Model, Plan, PlanError, Slot};

fn check(spec: &ModelSpec, size: [usize; 2]) {
    let file = spec.to_bytes();
    let model = Model::parse(&file).unwrap();
    let mut slots = vec![Slot::default(); model.len()];
    let ctx = Context { isa: Isa::detect(), pool: &Threads(2) };
    let plan = Plan::new(&model, size, ctx, &mut slots).unwrap();
    for (index, slot) in plan.slots.iter().enumerate() {
        let total = if slot.wide { plan.sizes.words } else { plan.sizes.bytes };
        assert!(slot.range().end <= total);
        let living = plan.slots[..index].iter().filter(|other| other.last_reader >= index);
        for other in living.filter(|other| other.wide == slot.wide) {
            let apart = other.range().end <= slot.offset || slot.range().end <= other.offset;
            assert!(apart, "{size:?}: node {index} lies over one that is still read");
        }
    }
    let (used, bound) = (plan.sizes.activation_bytes(), plan.sizes.lower_bound);
    assert!(bound <= used && used <= 2 * bound, "{size:?}: {used} bytes where {bound} live at once");
}

#[test]
fn outputs_that_live_at_the_same_time_do_not_overlap() {
    for spec in [tiny(), residual(false), pyramid(false)] {
        for size in [[1, 1], [1, 37], [33, 65], [97, 64], [513, 513]] {
            check(&spec, size);
        }
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
