//! The weight gradient in portable Rust.

use crate::Context;
use crate::conv::{Conv2d, Input, Sum};
use crate::pool::for_each_piece;
use core::ops::Range;

/// Adds the gradient's sums, `2^shift` times, to `out`; one task an input channel of a tap.
pub(crate) fn run<S: Sum>(
    g: &Conv2d,
    ctx: Context,
    out: &mut [S],
    taps: Range<usize>,
    input: Input,
    error: &[i8],
    shift: u32,
) {
    match input {
        Input::U8(data) => run_typed(g, ctx, out, taps, data, error, shift),
        Input::I8(data) => run_typed(g, ctx, out, taps, data, error, shift),
    }
}

fn run_typed<T: Copy + Into<i64> + Sync, S: Sum>(
    g: &Conv2d,
    ctx: Context,
    out: &mut [S],
    taps: Range<usize>,
    input: &[T],
    error: &[i8],
    shift: u32,
) {
    let (out_h, out_w) = (g.out_h(), g.out_w());
    for_each_piece(ctx.pool, out, g.c_out, |index, sums, _| {
        let (tap, channel) = (taps.start + index / g.c_in, index % g.c_in);
        let [dy, dx] = [tap / g.kernel[1] * g.dilation[0], tap % g.kernel[1] * g.dilation[1]];
        for (pixel, errors) in error.chunks_exact(g.c_out).enumerate() {
            let (n, y, x) = (pixel / (out_h * out_w), pixel / out_w % out_h, pixel % out_w);
            let source = |at: usize, reach: usize, axis: usize, size: usize| {
                (at * g.stride[axis] + reach).checked_sub(g.padding[axis]).filter(|&at| at < size)
            };
            let (Some(y), Some(x)) = (source(y, dy, 0, g.in_h), source(x, dx, 1, g.in_w)) else { continue };
            let value: i64 = input[((n * g.in_h + y) * g.in_w + x) * g.c_in + channel].into();
            if value != 0 {
                sums.iter_mut().zip(errors).for_each(|(sum, &e)| *sum = sum.plus((value * i64::from(e)) << shift));
            }
        }
    });
}
