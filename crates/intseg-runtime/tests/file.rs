//! Model files: what is written is read back, anything else is refused, and nothing panics.

mod common;

use common::{decoder, image, mobile, padded, pyramid, residual, tiny};
use intseg_kernels::{Context, Dither, Role};
use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec, RequantizationSpec};
use intseg_runtime::{Element, Engine, Model, ModelError, Op, Plan, Slot, VERSION};

/// Bytes of the checksum at a file's end.
const CHECKSUM: usize = 32;

/// Puts the right checksum and length on a file's content.
fn seal(file: &mut [u8]) {
    let total = (file.len() as u64).to_le_bytes();
    file[16..24].copy_from_slice(&total);
    let (content, checksum) = file.split_at_mut(file.len() - CHECKSUM);
    checksum.copy_from_slice(blake3::hash(content).as_bytes());
}

#[test]
fn what_was_written_is_read_back() {
    for spec in [tiny(), residual(true), pyramid(false), decoder(), mobile(), padded()] {
        let file = spec.to_bytes();
        let model = Model::parse(&file).unwrap();
        assert_eq!((model.metadata(), model.align_corners), (spec.metadata.as_str(), spec.align_corners));
        assert_eq!(model.len(), spec.nodes.len());
        for (node, spec) in model.nodes().zip(&spec.nodes) {
            assert_eq!((node.name, node.element, node.exponent), (spec.name.as_str(), spec.element, spec.exponent));
            assert_eq!((node.inputs().collect::<Vec<_>>(), node.clamp), (spec.inputs.clone(), spec.clamp));
            match (node.op, &spec.op) {
                (Op::Depthwise(op), OpSpec::Depthwise { geometry, zero, weights, requantization, .. }) => {
                    assert_eq!([op.kernel, op.stride, op.dilation, op.padding], *geometry);
                    assert_eq!((op.zero, op.weights), (*zero, &weights[..]));
                    assert!(op.requantization.multipliers().eq(requantization.multiplier.iter().copied()));
                }
                (Op::Table(op), OpSpec::Table(table)) => assert_eq!(op.values, &**table),
                (Op::Product(op), OpSpec::Product { zero, requantization }) => {
                    assert_eq!((op.zero, op.requantization.shifts()), (*zero, &requantization.shift[..]));
                }
                (Op::Pad(op), OpSpec::Pad { padding, pixel }) => {
                    assert_eq!((op.padding, op.pixel, op.channels), (*padding, &pixel[..], pixel.len()));
                }
                _ => {}
            }
            if let (Op::Conv(conv), OpSpec::Conv { weights, requantization, .. }) = (node.op, &spec.op) {
                assert_eq!(conv.weights, weights);
                assert!(conv.requantization.multipliers().eq(requantization.multiplier.iter().copied()));
                assert!(conv.requantization.biases().eq(requantization.bias.iter().copied()));
                assert_eq!(conv.requantization.shifts(), requantization.shift);
                assert_eq!(conv.weights.as_ptr().addr().wrapping_sub(file.as_ptr().addr()) % 64, 0);
            }
        }
        assert_eq!(file, spec.to_bytes());
    }
}

#[test]
fn a_file_says_the_lowest_version_that_its_nodes_need() {
    let version = |spec: ModelSpec| u32::from_le_bytes(*spec.to_bytes()[8..].first_chunk().unwrap());
    assert_eq!([decoder(), mobile(), padded()].map(version), [2, 3, 4]);
}

#[test]
fn a_model_cut_at_any_length_is_refused() {
    let file = tiny().to_bytes();
    for len in 0..file.len() {
        match Model::parse(&file[..len]).unwrap_err() {
            ModelError::NotAModel => assert!(len < 8),
            ModelError::Length { found, .. } => assert_eq!(found, len as u64),
            other => panic!("{len} bytes: {other}"),
        }
    }
    assert!(matches!(Model::parse(&[&file[..], &[0]].concat()), Err(ModelError::Length { .. })));
}

#[test]
fn a_model_with_any_byte_changed_is_refused() {
    let mut file = tiny().to_bytes();
    for at in 0..file.len() {
        for flip in [1, 0x80, 0xFF] {
            file[at] ^= flip;
            assert!(Model::parse(&file).is_err(), "byte {at}");
            file[at] ^= flip;
        }
    }
}

#[test]
fn a_later_version_another_rounding_and_another_file_are_named() {
    let file = tiny().to_bytes();
    let change = |at: usize, value: u8| {
        let mut file = file.clone();
        file[at] = value;
        Model::parse(&file).unwrap_err()
    };
    let newer = change(8, VERSION as u8 + 1);
    assert_eq!(newer, ModelError::Newer { version: VERSION + 1 });
    assert!(newer.to_string().contains("update intseg"));
    assert_eq!(change(12, 1), ModelError::Rounding { rounding: 1 });
    assert_eq!(Model::parse(b"\x89PNG\r\n\x1a\n and so on").unwrap_err(), ModelError::NotAModel);
}

/// Parses, plans and, where that takes little memory, runs a file that may hold anything.
fn exercise(file: &[u8]) -> bool {
    let Ok(model) = Model::parse(file) else { return false };
    let mut slots = vec![Slot::default(); model.len()];
    let mut ran = false;
    for size in [[1, 1], [9, 14]] {
        let Ok(plan) = Plan::new(&model, size, Context::reference(), &mut slots) else { continue };
        let sizes = plan.sizes;
        let work = sizes.activation_bytes() + sizes.scratch + sizes.taps + sizes.sums;
        if work < 200_000 {
            let mut engine = Engine::new(file.to_vec()).unwrap();
            let mut classes = vec![0; size[0] * size[1]];
            engine.run(Context::reference(), size, &image(size, 3), &mut classes).unwrap();
            ran = true;
        }
    }
    ran
}

#[test]
fn files_with_changed_bytes_and_a_right_checksum_never_panic() {
    let (mut refused, mut ran) = (0, 0);
    for (seed, spec) in [tiny(), residual(false), pyramid(true), decoder(), mobile(), padded()].iter().enumerate() {
        let file = spec.to_bytes();
        let bits = Dither::new(seed as u64, 0, 0, Role::Shuffle);
        // The graph lies at the front: most changes go there.
        let graph = u32::from_le_bytes(*file[28..].first_chunk().unwrap()) as usize;
        let front = 32 + spec.metadata.len() + graph;
        for round in 0..700 {
            let mut changed = file.clone();
            for k in 0..1 + bits.below(round * 16, 3) as usize {
                let draw = round * 16 + 4 * k;
                let within = if bits.below(draw + 1, 10) < 9 { front } else { file.len() - CHECKSUM };
                let at = bits.below(draw + 2, within as u32) as usize;
                changed[at] = match bits.below(draw + 3, 4) {
                    0 => bits.at(draw + 4) as u8,
                    1 => 0xFF,
                    2 => changed[at].wrapping_add(1),
                    _ => 0,
                };
            }
            seal(&mut changed);
            if exercise(&changed) { ran += 1 } else { refused += 1 }
        }
    }
    assert!(refused > 100 && ran > 100, "{refused} refused, {ran} ran: the changes miss what matters");
}

#[test]
fn files_with_any_changed_byte_of_the_graph_and_a_right_checksum_never_panic() {
    let file = tiny().to_bytes();
    let graph = u32::from_le_bytes(*file[28..].first_chunk().unwrap()) as usize;
    for at in 24..32 + tiny().metadata.len() + graph {
        for value in [0, 1, 0x7F, 0x80, 0xFF] {
            let mut changed = file.clone();
            changed[at] = value;
            seal(&mut changed);
            exercise(&changed);
        }
    }
}

fn problem(spec: &ModelSpec) -> String {
    match Engine::new(spec.to_bytes()) {
        Err(error) => error.to_string(),
        Ok(mut engine) => match engine.run(Context::reference(), [33, 65], &image([33, 65], 1), &mut [0; 33 * 65]) {
            Err(error) => error.to_string(),
            Ok(()) => String::new(),
        },
    }
}

#[test]
fn nodes_that_could_overflow_or_do_not_fit_are_refused_with_the_reason() {
    type Change = fn(&mut ModelSpec);
    let conv = |change: fn(&mut Vec<i8>, &mut intseg_runtime::writer::RequantizationSpec)| {
        let mut spec = tiny();
        let OpSpec::Conv { weights, requantization, .. } = &mut spec.nodes[1].op else { panic!("a convolution") };
        change(weights, requantization);
        problem(&spec)
    };
    assert!(conv(|w, _| w[0] = -128).contains("a weight is -128"));
    assert!(conv(|_, r| r.shift[0] = 63).contains("a shift exceeds 62"));
    assert!(conv(|_, r| r.bias[0] = i64::MIN).contains("a bias exceeds"));
    assert!(conv(|w, _| w.truncate(7)).contains("weights lie outside"));
    let changes: [(Change, &str); 9] = [
        (|s| s.nodes[2].exponent = 3, "exponent does not fit"),
        (|s| s.nodes[2].inputs = vec![5], "comes later"),
        (|s| s.nodes[2].inputs = vec![], "wrong number of inputs"),
        (|s| s.nodes[2].inputs = vec![0], "wrong type"),
        (|s| s.nodes[2].element = Element::I16, "wrong type"),
        (|s| s.nodes[1].clamp = [-1, 255], "clamp is out of range"),
        (|s| s.nodes[1].exponent = 1000, "exponent or clamp"),
        (|s| s.nodes[0].op = OpSpec::Add, "wrong number of inputs"),
        (|s| drop(s.nodes.pop()), "does not have 16 bits"),
    ];
    for (change, wanted) in changes {
        let mut spec = tiny();
        change(&mut spec);
        let found = problem(&spec);
        assert!(found.contains(wanted), "{found:?} does not say {wanted:?}");
    }
    let mut spec = residual(false);
    let sum = spec.nodes.iter().position(|node| node.op == OpSpec::Add).unwrap();
    spec.nodes[sum].exponent = -60;
    assert!(problem(&spec).contains("exponent does not fit"));
}

/// The first node with an operator.
fn first(spec: &mut ModelSpec, wanted: fn(&OpSpec) -> bool) -> &mut NodeSpec {
    spec.nodes.iter_mut().find(|node| wanted(&node.op)).unwrap()
}

fn depthwise(spec: &mut ModelSpec) -> &mut NodeSpec {
    first(spec, |op| matches!(op, OpSpec::Depthwise { .. }))
}

fn table(spec: &mut ModelSpec) -> &mut NodeSpec {
    first(spec, |op| matches!(op, OpSpec::Table(_)))
}

fn product(spec: &mut ModelSpec) -> &mut NodeSpec {
    first(spec, |op| matches!(op, OpSpec::Product { .. }))
}

/// Changes the first depthwise convolution's kernel, zero and weights.
fn change_depthwise(spec: &mut ModelSpec, change: fn(&mut [usize; 2], &mut i32, &mut Vec<i8>)) {
    let OpSpec::Depthwise { geometry, zero, weights, .. } = &mut depthwise(spec).op else { unreachable!() };
    change(&mut geometry[0], zero, weights);
}

/// Changes the first product's zero and requantisation.
fn change_product(spec: &mut ModelSpec, change: fn(&mut i32, &mut RequantizationSpec)) {
    let OpSpec::Product { zero, requantization } = &mut product(spec).op else { unreachable!() };
    change(zero, requantization);
}

#[test]
fn depthwise_convolutions_tables_and_products_that_do_not_fit_are_refused_with_the_reason() {
    type Change = fn(&mut ModelSpec);
    let changes: [(Change, &str); 12] = [
        (|s| change_depthwise(s, |_, _, weights| weights[3] = -128), "a weight is -128"),
        (|s| change_depthwise(s, |_, _, weights| weights.truncate(7)), "weights lie outside"),
        (|s| change_depthwise(s, |_, zero, _| *zero = 256), "zero is out of range"),
        (|s| change_depthwise(s, |kernel, _, _| *kernel = [300, 300]), "accumulator could overflow"),
        (|s| depthwise(s).inputs[0] = 0, "another number of channels"),
        (|s| change_product(s, |_, requantization| requantization.shift[0] = 63), "a shift exceeds 62"),
        (|s| change_product(s, |zero, _| *zero = -129), "zero is out of range"),
        (|s| product(s).inputs[1] = 0, "whose product is not known"),
        (|s| product(s).inputs.truncate(1), "wrong number of inputs"),
        (|s| table(s).clamp = [10, 20], "table lies outside its clamp"),
        (|s| table(s).element = Element::I16, "wrong type"),
        (|s| table(s).inputs.clear(), "wrong number of inputs"),
    ];
    for (change, wanted) in changes {
        let mut spec = mobile();
        change(&mut spec);
        let found = problem(&spec);
        assert!(found.contains(wanted), "{found:?} does not say {wanted:?}");
    }
}

#[test]
fn an_accumulator_that_could_overflow_is_refused() {
    let mut spec = tiny();
    let OpSpec::Conv { geometry, weights, channels, .. } = &mut spec.nodes[1].op else { panic!("a convolution") };
    geometry[0] = [255, 255];
    *weights = vec![1; 255 * 255 * channels[0] * channels[1]];
    assert!(problem(&spec).contains("accumulator could overflow"));
}
