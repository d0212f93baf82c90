//! The compiled runtime holds no floating-point arithmetic: its machine code is disassembled and searched.

use intseg_kernels::{Context, Inline, Isa};
use intseg_runtime::writer::{ModelSpec, NodeSpec, OpSpec, RequantizationSpec};
use intseg_runtime::{Element, Engine, Interpolation};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::Command;

/// A function that the search must find: it shows that the search can.
#[allow(clippy::disallowed_types, clippy::float_arithmetic, reason = "the control")]
#[inline(never)]
fn control(a: f64, b: f64) -> f64 {
    black_box(a) * black_box(b) + 1.0
}

/// Whether a mnemonic computes with, or converts to or from, floating-point numbers. Moves and logic do not count:
/// integer code uses them on the same registers.
fn computes_with_floats(mnemonic: &str) -> bool {
    let name = mnemonic.strip_prefix('v').unwrap_or(mnemonic);
    let operations = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "comi", "ucomi", "rcp", "rsqrt", "hadd", "hsub",
        "addsub", "dp", "round", "rndscale", "range", "reduce", "scalef", "getexp", "getmant", "fixupimm",
    ];
    let typed = ["ss", "sd", "ps", "pd"].iter().find_map(|kind| name.strip_suffix(kind));
    let x87 = name.starts_with('f') && !name.starts_with("fxsave") && !name.starts_with("fxrstor");
    typed.is_some_and(|operation| operations.contains(&operation)) || name.starts_with("cvt") || x87
}

/// For each function of this program whose name holds one of `crates`, its floating-point instructions.
fn float_instructions(disassembly: &str, crates: &[&str]) -> BTreeMap<String, Vec<String>> {
    let mut functions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in disassembly.lines() {
        if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")).map(|(_, name)| name) {
            current = crates.iter().any(|part| name.contains(part)).then(|| name.to_owned());
            if let Some(name) = &current {
                functions.entry(name.clone()).or_default();
            }
            continue;
        }
        // An instruction's line is address, tab, mnemonic and operands.
        let (Some(name), Some((_, text))) = (&current, line.split_once('\t')) else { continue };
        let words = text.split_whitespace();
        let mnemonic = words.clone().find(|word| !["lock", "rep", "repz", "repnz", "data16", "notrack"].contains(word));
        if mnemonic.is_some_and(computes_with_floats) {
            functions.entry(name.clone()).or_default().push(text.trim().to_owned());
        }
    }
    functions
}

/// A model that reaches the operators, so that their code is part of this program.
fn model() -> Vec<u8> {
    let requantization = RequantizationSpec { multiplier: vec![1 << 20; 4], bias: vec![0; 4], shift: vec![26; 4] };
    let node = |name: &str, op, inputs: &[usize], element, clamp| NodeSpec {
        name: name.into(),
        op,
        inputs: inputs.to_vec(),
        element,
        exponent: -7,
        clamp,
    };
    let conv = |c_in: usize| OpSpec::Conv {
        geometry: [[3, 3], [1, 1], [1, 1], [1, 1]],
        channels: [c_in, 4],
        weight_exponent: -7,
        transposed: None,
        weights: vec![3; 9 * c_in * 4],
        requantization: requantization.clone(),
    };
    let pool = OpSpec::MaxPool { geometry: [[2, 2], [2, 2], [0, 0]], ceil: true };
    let (u8s, i16s) = ([0, 255], [-32_767, 32_767]);
    let nodes = vec![
        node("image", OpSpec::Image, &[], Element::I8, [-128, 127]),
        node("conv", conv(3), &[0], Element::U8, u8s),
        node("pool", pool, &[1], Element::U8, u8s),
        node("mean", OpSpec::GlobalAveragePool, &[2], Element::U8, u8s),
        node("up", OpSpec::Resize { factor: None, interpolation: Interpolation::Linear }, &[3, 2], Element::U8, u8s),
        node("sum", OpSpec::Add, &[4, 2], Element::I16, i16s),
        node("affine", OpSpec::Affine(requantization.clone()), &[5], Element::U8, u8s),
        node("concat", OpSpec::Concat, &[6, 4], Element::U8, u8s),
        node("logits", conv(8), &[7], Element::I16, i16s),
    ];
    ModelSpec { metadata: "{}".into(), align_corners: false, nodes }.to_bytes()
}

#[test]
fn no_function_of_the_runtime_computes_with_floating_point_numbers() {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the search knows x86-64 instructions alone");
        return;
    }
    let mut engine = Engine::new(model()).unwrap();
    let (image, mut classes) = (vec![100; 3 * 9 * 11], vec![0; 99]);
    for isa in Isa::available() {
        engine.run(Context { isa, pool: &Inline }, [9, 11], &image, &mut classes).unwrap();
    }
    black_box(control(1.5, 2.5));
    let program = std::env::current_exe().unwrap();
    let output = Command::new("objdump").args(["-d", "-C", "--no-show-raw-insn"]).arg(&program).output();
    let Ok(output) = output else {
        println!("skipped: objdump is not installed (binutils)");
        return;
    };
    assert!(output.status.success(), "objdump failed");
    let disassembly = String::from_utf8_lossy(&output.stdout);

    let control = float_instructions(&disassembly, &["no_float::control"]);
    assert!(control.values().any(|found| found.len() >= 2), "the search does not find the control: {control:?}");

    let found = float_instructions(&disassembly, &["intseg_runtime", "intseg_kernels"]);
    for part in ["avx512vnni::convolution::accumulate", "avx2::convolution", "model::Model", "resize", "execute"] {
        assert!(found.keys().any(|name| name.contains(part)), "no function of {part} among {} searched", found.len());
    }
    let guilty: Vec<_> = found.iter().filter(|(_, instructions)| !instructions.is_empty()).collect();
    assert!(guilty.is_empty(), "{guilty:#?}");
    println!("searched {} functions", found.len());
}
