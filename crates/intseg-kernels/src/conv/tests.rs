//! Every instruction set and number of threads against the definition.

use super::reference;
use super::{
    Addend, Conv2d, Convolution, Direction, Input, Line, Output, OutputData, Requantizer, WeightGradient, Weights,
};
use crate::masters::{WeightMasters, parted};
use crate::requantize::Contribution;
use crate::sgd::{self, Update};
use crate::testing::{self, Threads, random};
use crate::{Context, Dither, Isa, Role};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// How test tensors are filled.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Random,
    Extreme,
}

fn bytes(len: usize, fill: Fill, tensor: u32, low: i64, high: i64) -> Vec<i64> {
    let bits = Dither::new(11, 0, tensor, Role::Initial);
    (0..len)
        .map(|i| match fill {
            Fill::Random => low + i64::from(bits.below(i, (high - low + 1) as u32)),
            Fill::Extreme => high,
        })
        .collect()
}

fn geometry() -> impl Strategy<Value = Conv2d> {
    testing::geometry(1..6, 1..18, (1..70usize, 1..70usize), [5, 3, 4, 6])
}

fn contexts() -> impl Iterator<Item = (Isa, Threads)> {
    Isa::available().flat_map(|isa| [1, 3].map(|threads| (isa, Threads(threads))))
}

fn narrow<T: TryFrom<i64>>(values: &[i64]) -> Vec<T> {
    values.iter().map(|&v| T::try_from(v).ok().expect("fits")).collect()
}

/// Runs `test(ctx, plan, input, weights, scratch)` for every context.
fn for_each_context(
    plan: Convolution,
    input: &[i64],
    weights: &[i8],
    mut test: impl FnMut(Context, Input, Weights, &mut [i32]),
) {
    let (unsigned, signed): (Vec<u8>, Vec<i8>) =
        if plan.signed { (vec![], narrow(input)) } else { (narrow(input), vec![]) };
    let input = if plan.signed { Input::I8(&signed) } else { Input::U8(&unsigned) };
    for (isa, pool) in contexts() {
        let ctx = Context { isa, pool: &pool };
        let mut packed = vec![Line::ZERO; plan.packed_len(isa)];
        plan.pack(ctx, &mut packed, weights);
        let mut scratch = vec![-1; plan.scratch_len(ctx)];
        test(ctx, input, Weights { raw: weights, packed: &packed }, &mut scratch);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn both_directions_are_the_definition_on_every_instruction_set(
        g in geometry(), forward: bool, signed: bool, extreme: bool,
    ) {
        let fill = if extreme { Fill::Extreme } else { Fill::Random };
        let (low, high) = if signed { (-128, if extreme { -128 } else { 127 }) } else { (0, 255) };
        let weights: Vec<i8> = narrow(&bytes(g.weights_len(), fill, 1, -127, if extreme { -127 } else { 127 }));
        let (direction, len) = match forward {
            true => (Direction::Forward, g.input_len()),
            false => (Direction::Transposed, g.output_len()),
        };
        let input = bytes(len, fill, 2, low, high);
        let want = match forward {
            true => reference::forward(&g, &input, &weights),
            false => reference::transposed(&g, &input, &weights),
        };
        let plan = Convolution { geometry: g, direction, signed };
        for_each_context(plan, &input, &weights, |ctx, input, weights, scratch| {
            let mut out = vec![-7; want.len()];
            plan.run(ctx, &mut out, input, weights, scratch);
            let out: Vec<i64> = out.into_iter().map(i64::from).collect();
            assert!(out == want, "{} x{}", ctx.isa.name(), ctx.pool.threads());
        });
    }

    #[test]
    fn requantised_sums_are_the_requantised_definition(
        g in geometry(), signed: bool, kind in 0..4usize, offset in 0..5usize,
        (added, left, scale, down) in (0..3usize, 0..15i32, 0..15u32, 0..32u32),
        (multipliers, narrow_sum) in (0..3usize, any::<bool>()),
    ) {
        // What a sum of 16 bits does for, and anything else.
        let (left, scale, down) = match narrow_sum {
            true => (if added == 1 { left / 2 } else { 0 }, 0, down / 2),
            false => (left, scale, down),
        };
        let (low, high) = if signed { (-128, 127) } else { (0, 255) };
        let weights: Vec<i8> = narrow(&bytes(g.weights_len(), Fill::Random, 1, -127, 127));
        let input = bytes(g.input_len(), Fill::Random, 2, low, high);
        // Any numbers; those of models, whose biases are multiples; powers of two.
        let (multiplier, bias, shift): (Vec<i32>, Vec<i64>, Vec<u8>) = match multipliers {
            0 => (
                narrow(&bytes(g.c_out, Fill::Random, 3, -(1 << 30), (1 << 30) - 1)),
                bytes(g.c_out, Fill::Random, 4, -(1 << 30), 1 << 30).iter().map(|b| b << 12).collect(),
                narrow(&bytes(g.c_out, Fill::Random, 5, 36, 42)),
            ),
            kind => {
                let ends = if kind == 1 { (1 << 23, (1 << 24) - 1) } else { (1 << 23, 1 << 23) };
                let multiplier: Vec<i32> = narrow(&bytes(g.c_out, Fill::Random, 3, ends.0, ends.1));
                let bias = bytes(g.c_out, Fill::Random, 4, -2000, 2000);
                let bias = bias.iter().zip(&multiplier).map(|(b, &m)| b * i64::from(m)).collect();
                (multiplier, bias, narrow(&bytes(g.c_out, Fill::Random, 5, 28, 36)))
            }
        };
        // The last: bytes with a sign, written as such without.
        let (low, high) = [(0, 255), (-127, 127), (-32767, 32767), (-127, 127)][kind];
        let requantizer = Requantizer { multiplier: &multiplier, bias: &bias, shift: &shift, low, high };
        let stride = g.c_out + offset + 2;
        let mut want = vec![-3i64; g.output_len() / g.c_out * stride];
        if kind % 3 == 0 {
            want.fill(3);
        }
        let untouched = want[0];
        // What is added: nothing, bytes or 16-bit values.
        let others = bytes(g.output_len(), Fill::Random, 6, if added == 2 { -32767 } else { 0 }, [0, 255, 32767][added]);
        let (u8s, i16s): (Vec<u8>, Vec<i16>) =
            if added == 1 { (narrow(&others), vec![]) } else { (vec![], narrow(&others)) };
        let values = if added == 1 { Contribution::U8(&u8s, left) } else { Contribution::I16(&i16s, left) };
        let sum_range = [(0, 255), (-100, 127), (-30000, 32767), (-100, 120)][kind];
        let addend = Addend { values, scale, shift: down, low: sum_range.0, high: sum_range.1 };
        let addend = (added > 0).then_some(addend);
        let half_even = |exact: i128, shift: u32| {
            let (unit, floor) = (1i128 << shift, exact >> shift);
            let twice = 2 * (exact - floor * unit);
            floor + i128::from(twice > unit || (twice == unit && floor % 2 != 0))
        };
        for (pixel, sums) in reference::forward(&g, &input, &weights).chunks(g.c_out).enumerate() {
            for (k, &sum) in sums.iter().enumerate() {
                let exact = i128::from(sum) * i128::from(multiplier[k]) + i128::from(bias[k]);
                let mut result = half_even(exact, shift[k].into()).clamp(low.into(), high.into());
                if added > 0 {
                    let sum = (result << scale) + (i128::from(others[pixel * g.c_out + k]) << left);
                    result = half_even(sum, down).clamp(sum_range.0.into(), sum_range.1.into());
                }
                want[pixel * stride + offset + k] = if kind == 3 { i64::from(result as u8) } else { result as i64 };
            }
        }
        let plan = Convolution { geometry: g, direction: Direction::Forward, signed };
        for_each_context(plan, &input, &weights, |ctx, input, weights, scratch| {
            let len = want.len();
            let (mut a, mut b, mut c) = (vec![untouched as u8; len], vec![untouched as i8; len], vec![untouched as i16; len]);
            let data = match kind {
                0 | 3 => OutputData::U8(&mut a),
                1 => OutputData::I8(&mut b),
                _ => OutputData::I16(&mut c),
            };
            plan.run_requantized(ctx, Output { data, stride, offset, addend }, input, weights, requantizer, scratch);
            let got: Vec<i64> = match kind {
                0 | 3 => a.into_iter().map(i64::from).collect(),
                1 => b.into_iter().map(i64::from).collect(),
                _ => c.into_iter().map(i64::from).collect(),
            };
            assert!(got == want, "{} x{}", ctx.isa.name(), ctx.pool.threads());
        });
    }

    #[test]
    fn winograd_tiles_are_the_definition_on_every_instruction_set(
        (batch, in_h, in_w, c_in, c_out) in (1..3usize, 1..22usize, 1..22usize, 4..70usize, 17..70usize),
        (dilation, padding) in ((1..=4usize, 1..=4usize), (0..=6usize, 0..=6usize)),
        forward: bool, signed: bool, extreme: bool,
    ) {
        let (dilation, padding) = ([dilation.0, dilation.1], [padding.0, padding.1]);
        let g = Conv2d { batch, in_h, in_w, c_in, c_out, kernel: [3; 2], stride: [1; 2], dilation, padding };
        prop_assume!(g.output_size().is_some());
        let g = if forward { g } else { Conv2d { c_in: c_out, c_out: c_in, ..g } };
        let direction = if forward { Direction::Forward } else { Direction::Transposed };
        prop_assume!(super::winograd::fits(&Convolution { geometry: g, direction, signed }));
        winograd(g, direction, signed, extreme);
    }

    #[test]
    fn the_weight_gradient_is_the_definition_on_every_instruction_set(
        g in geometry(), signed: bool, extreme: bool, shift in prop::sample::select(vec![0u32, 8]),
    ) {
        let fill = if extreme { Fill::Extreme } else { Fill::Random };
        let (low, high) = if signed { (-128, if extreme { -128 } else { 127 }) } else { (0, 255) };
        let input = bytes(g.input_len(), fill, 2, low, high);
        let error: Vec<i8> = narrow(&bytes(g.output_len(), fill, 3, -128, if extreme { -128 } else { 127 }));
        let want: Vec<i64> = reference::weight_gradient(&g, &input, &error).iter().map(|v| (v << shift) + 5).collect();
        gradients(&g, &input, signed, &error, shift, &want);
    }

    #[test]
    fn the_three_passes_are_adjoint(g in geometry()) {
        let x = bytes(g.input_len(), Fill::Random, 1, 0, 255);
        let w: Vec<i8> = narrow(&bytes(g.weights_len(), Fill::Random, 2, -127, 127));
        let e = bytes(g.output_len(), Fill::Random, 3, -128, 127);
        let dot = |a: &[i64], b: &[i64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<i64>();
        let w64: Vec<i64> = w.iter().map(|&v| v.into()).collect();
        let y = reference::forward(&g, &x, &w);
        prop_assert_eq!(dot(&y, &e), dot(&x, &reference::transposed(&g, &e, &w)));
        prop_assert_eq!(dot(&y, &e), dot(&w64, &reference::weight_gradient(&g, &x, &narrow::<i8>(&e))));
    }
}

/// Runs a convolution by Winograd tiles, whether that pays or not, and compares.
fn winograd(g: Conv2d, direction: Direction, signed: bool, extreme: bool) {
    let fill = if extreme { Fill::Extreme } else { Fill::Random };
    let (low, high) = if signed { (-128, if extreme { -128 } else { 127 }) } else { (0, 255) };
    let weights: Vec<i8> = narrow(&bytes(g.weights_len(), fill, 1, -127, if extreme { -127 } else { 127 }));
    let (len, out_len) = match direction {
        Direction::Forward => (g.input_len(), g.output_len()),
        Direction::Transposed => (g.output_len(), g.input_len()),
    };
    let input = bytes(len, fill, 2, low, high);
    let want = match direction {
        Direction::Forward => reference::forward(&g, &input, &weights),
        Direction::Transposed => reference::transposed(&g, &input, &weights),
    };
    let plan = Convolution { geometry: g, direction, signed };
    assert!(super::winograd::fits(&plan));
    for_each_context(plan, &input, &weights, |ctx, input, weights, _| {
        let mut out = vec![-7; out_len];
        if !plan.run_winograd(ctx, &mut out, input, weights) {
            return;
        }
        assert!(out.iter().zip(&want).all(|(&a, &b)| i64::from(a) == b), "{} x{}", ctx.isa.name(), ctx.pool.threads());
    });
}

#[test]
fn winograd_tiles_work_in_groups_of_channels_and_of_tiles() {
    let [stride, dilation, padding] = [[1; 2]; 3];
    let g = Conv2d { batch: 1, in_h: 6, in_w: 7, c_in: 530, c_out: 330, kernel: [3; 2], stride, dilation, padding };
    winograd(g, Direction::Forward, false, false);
    winograd(g, Direction::Transposed, true, false);
    winograd(Conv2d { in_h: 152, in_w: 171, c_in: 34, c_out: 20, ..g }, Direction::Forward, false, false);
}

#[test]
fn winograd_sums_are_exact_to_the_last_of_their_channels() {
    let [stride, dilation, padding] = [[1; 2]; 3];
    let g = Conv2d { batch: 1, in_h: 3, in_w: 4, c_in: 1800, c_out: 17, kernel: [3; 2], stride, dilation, padding };
    for signed in [false, true] {
        winograd(g, Direction::Forward, signed, true);
    }
    let plan = Convolution { geometry: Conv2d { c_in: 1801, ..g }, direction: Direction::Forward, signed: false };
    assert!(!super::winograd::fits(&plan));
}

fn gradients(g: &Conv2d, input: &[i64], signed: bool, error: &[i8], shift: u32, want: &[i64]) {
    let (u, s): (Vec<u8>, Vec<i8>) = if signed { (vec![], narrow(input)) } else { (narrow(input), vec![]) };
    for (isa, pool) in contexts() {
        let ctx = Context { isa, pool: &pool };
        let plan = WeightGradient { geometry: *g, signed };
        let (taps, per_tap) = (g.kernel[0] * g.kernel[1], g.c_in * g.c_out);
        let scratch_len = [0..taps - 1, taps - 1..taps, 0..taps].map(|taps| plan.scratch_len(ctx, taps));
        let mut scratch = vec![-1; scratch_len.into_iter().max().unwrap_or(0)];
        let mut out = vec![5; want.len()];
        let input = if signed { Input::I8(&s) } else { Input::U8(&u) };
        // The last tap in a run of its own.
        let (most, last) = out.split_at_mut((taps - 1) * per_tap);
        plan.run(ctx, most, 0..taps - 1, input, error, shift, &mut scratch);
        plan.run(ctx, last, taps - 1..taps, input, error, shift, &mut scratch);
        assert!(out == want, "{} x{}", isa.name(), pool.0);
        if plan.is_narrow() && shift == 0 {
            let mut out = vec![5i32; want.len()];
            plan.run(ctx, &mut out, 0..taps, input, error, shift, &mut scratch);
            assert!(out.iter().zip(want).all(|(&a, &b)| i64::from(a) == b), "{} x{}", isa.name(), pool.0);
        }
        if plan.learns(ctx) && shift == 0 {
            let gradient: Vec<i64> = want.iter().map(|sum| sum - 5).collect();
            learnt(ctx, plan, input, error, &gradient, &mut scratch);
        }
    }
}

/// Masters and momenta become what the gradient and the update make of them one after the other.
fn learnt(ctx: Context, plan: WeightGradient, input: Input, error: &[i8], gradient: &[i64], scratch: &mut [i32]) {
    let per_tap = plan.geometry.c_in * plan.geometry.c_out;
    let taps = gradient.len() / per_tap;
    let update = |first: usize| Update {
        first,
        gradient_shift: 0,
        rate: 50_000,
        rate_shift: 14,
        decay_q40: 1 << 20,
        momentum_q15: 29_491,
        coarse: 0,
        limit: 1 << 22,
    };
    let draw = |tensor| Dither::new(1, 2, tensor, Role::Update);
    let (steps, fractions) = random(gradient.len(), 3, 24).into_iter().map(parted).unzip();
    let start: (Vec<i8>, Vec<i16>, Vec<i32>) = (steps, fractions, random(gradient.len(), 4, 26));
    let mut want = start.clone();
    let (steps, fractions, momenta) = &mut want;
    let masters = WeightMasters { steps, fractions };
    let outside = sgd::update(Context::reference(), masters, momenta, gradient, &update(0), [draw(5), draw(6)]);
    for split in [taps, taps - 1] {
        let mut out = start.clone();
        let mut found = 0;
        for range in [0..split, split..taps] {
            let weights = range.start * per_tap..range.end * per_tap;
            let masters = WeightMasters { steps: &mut out.0[weights.clone()], fractions: &mut out.1[weights.clone()] };
            let (momenta, update) = (&mut out.2[weights.clone()], update(weights.start));
            found += plan.learn(ctx, masters, momenta, range, input, error, &update, [draw(5), draw(6)], scratch);
        }
        assert!(out == want && found == outside, "{} {:?}", ctx.isa.name(), plan.geometry);
    }
}

#[test]
fn a_weight_gradient_of_few_pixels_and_taps_on_padding_alone_is_the_definition() {
    for (c_out, [in_h, in_w], reach) in [(300, [4, 5], 3), (20, [2, 3], 3), (260, [1, 1], 2), (17, [3, 9], 5)] {
        let g = Conv2d {
            batch: 3,
            in_h,
            in_w,
            c_in: 18,
            c_out,
            kernel: [2 * reach + 1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            padding: [reach; 2],
        };
        let input = bytes(g.input_len(), Fill::Random, 1, 0, 255);
        let error: Vec<i8> = narrow(&bytes(g.output_len(), Fill::Random, 2, -128, 127));
        let want: Vec<i64> = reference::weight_gradient(&g, &input, &error).iter().map(|v| v + 5).collect();
        gradients(&g, &input, false, &error, 0, &want);
    }
}

#[test]
fn a_weight_gradient_over_more_pixels_than_32_bits_hold_does_not_wrap() {
    for taps in [1, 2] {
        let g = Conv2d {
            batch: 1,
            in_h: 500,
            in_w: 299 + taps,
            c_in: 1,
            c_out: 1,
            kernel: [1, taps],
            stride: [1; 2],
            dilation: [1; 2],
            padding: [0; 2],
        };
        let want = 150_000 * 255 * -128 + 5;
        gradients(&g, &vec![255; g.input_len()], false, &vec![-128; 150_000], 0, &vec![want; taps]);
        let want = 150_000 * -128 * -128 + 5;
        gradients(&g, &vec![-128; g.input_len()], true, &vec![-128; 150_000], 0, &vec![want; taps]);
    }
}

#[test]
fn a_weight_gradient_is_cut_into_blocks_of_channels_and_of_pixels() {
    for (batch, [c_in, c_out], kernel) in [(4, [150, 40], 3), (2, [37, 300], 3), (8, [90, 70], 5), (3, [3, 8], 3)] {
        let [stride, dilation] = [[1, 2], [1; 2]];
        let padding = [kernel / 2; 2];
        let g = Conv2d { batch, in_h: 23, in_w: 61, c_in, c_out, kernel: [kernel; 2], stride, dilation, padding };
        let input = bytes(g.input_len(), Fill::Random, 1, 0, 255);
        let error: Vec<i8> = narrow(&bytes(g.output_len(), Fill::Random, 2, -128, 127));
        let want: Vec<i64> = reference::weight_gradient(&g, &input, &error).iter().map(|v| v + 5).collect();
        gradients(&g, &input, false, &error, 0, &want);
    }
}

#[test]
fn few_channels_are_convolved_by_whole_rows_of_the_kernel() {
    let images = [(3, [7, 7], [2, 2], [3, 3], 64), (3, [3, 3], [1, 1], [1, 1], 37), (1, [5, 2], [1, 3], [0, 4], 16)];
    for (c_in, kernel, stride, padding, c_out) in images {
        by_rows(Direction::Forward, [c_in, c_out], kernel, stride, [2, 1], padding);
    }
    let maps = [(16, [3, 3], [1, 1], 16), (32, [3, 3], [1, 1], 40), (21, [2, 3], [1, 0], 5), (6, [1, 2], [0, 1], 33)];
    for (c, kernel, padding, others) in maps {
        by_rows(Direction::Forward, [c, others], kernel, [1; 2], [1; 2], padding);
        by_rows(Direction::Transposed, [others, c], kernel, [1; 2], [1; 2], padding);
    }
}

/// Runs some images of such a convolution, which is to fit.
fn by_rows(
    direction: Direction,
    [c_in, c_out]: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    padding: [usize; 2],
) {
    for (batch, in_h, in_w) in [(1, 33, 67), (3, 9, 31), (2, 2, 4)] {
        let g = Conv2d { batch, in_h, in_w, c_in, c_out, kernel, stride, dilation, padding };
        if g.output_size().is_none() {
            continue;
        }
        for signed in [false, true] {
            let (low, high) = if signed { (-128, 127) } else { (0, 255) };
            let len = match direction {
                Direction::Forward => g.input_len(),
                Direction::Transposed => g.output_len(),
            };
            let input = bytes(len, Fill::Random, 1, low, high);
            let weights: Vec<i8> = narrow(&bytes(g.weights_len(), Fill::Random, 2, -127, 127));
            let want = match direction {
                Direction::Forward => reference::forward(&g, &input, &weights),
                Direction::Transposed => reference::transposed(&g, &input, &weights),
            };
            let plan = Convolution { geometry: g, direction, signed };
            assert!(super::rows::fits(&plan));
            for_each_context(plan, &input, &weights, |ctx, input, weights, scratch| {
                // Packed a few taps at a time, over what was there.
                let mut packed = vec![Line([-1; 64]); weights.packed.len()];
                let per_tap = c_in * c_out;
                for first in (0..kernel[0] * kernel[1]).step_by(5) {
                    let taps = first..(first + 5).min(kernel[0] * kernel[1]);
                    let some = &weights.raw[taps.start * per_tap..taps.end * per_tap];
                    plan.pack_taps(ctx, &mut packed, taps, some);
                }
                let mut out = vec![0; want.len()];
                plan.run(ctx, &mut out, input, Weights { packed: &packed, ..weights }, scratch);
                assert!(out.iter().zip(&want).all(|(&a, &b)| i64::from(a) == b), "{} {g:?}", ctx.isa.name());
            });
        }
    }
}

#[test]
fn kernels_with_more_taps_than_one_round_holds_work() {
    let g = Conv2d {
        batch: 1,
        in_h: 20,
        in_w: 21,
        c_in: 5,
        c_out: 33,
        kernel: [16, 11],
        stride: [2, 1],
        dilation: [1; 2],
        padding: [7, 5],
    };
    let input = bytes(g.input_len(), Fill::Random, 1, -128, 127);
    let weights: Vec<i8> = narrow(&bytes(g.weights_len(), Fill::Random, 2, -127, 127));
    let want = reference::forward(&g, &input, &weights);
    let plan = Convolution { geometry: g, direction: Direction::Forward, signed: true };
    for_each_context(plan, &input, &weights, |ctx, input, weights, scratch| {
        let mut out = vec![0; want.len()];
        plan.run(ctx, &mut out, input, weights, scratch);
        assert!(out.iter().zip(&want).all(|(&a, &b)| i64::from(a) == b), "{}", ctx.isa.name());
    });
}
