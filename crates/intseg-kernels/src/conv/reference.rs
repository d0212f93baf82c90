//! Convolution as its definition says, for tests.

use super::Conv2d;
use std::vec;
use std::vec::Vec;

/// Calls `visit(output pixel, input pixel, tap)` for every product that is not on padding.
fn pairs(g: &Conv2d, mut visit: impl FnMut(usize, usize, usize)) {
    for n in 0..g.batch {
        for y in 0..g.out_h() {
            for x in 0..g.out_w() {
                for tap in 0..g.kernel[0] * g.kernel[1] {
                    let (ky, kx) = (tap / g.kernel[1], tap % g.kernel[1]);
                    let sy = (y * g.stride[0] + ky * g.dilation[0]) as isize - g.padding[0] as isize;
                    let sx = (x * g.stride[1] + kx * g.dilation[1]) as isize - g.padding[1] as isize;
                    if (0..g.in_h as isize).contains(&sy) && (0..g.in_w as isize).contains(&sx) {
                        let source = (n * g.in_h + sy as usize) * g.in_w + sx as usize;
                        visit((n * g.out_h() + y) * g.out_w() + x, source, tap);
                    }
                }
            }
        }
    }
}

/// Forward: `[N, H, W, C_in]` → `[N, OH, OW, C_out]`.
pub fn forward(g: &Conv2d, input: &[i64], weights: &[i8]) -> Vec<i64> {
    let mut out = vec![0; g.output_len()];
    pairs(g, |to, from, tap| {
        for ci in 0..g.c_in {
            for co in 0..g.c_out {
                out[to * g.c_out + co] +=
                    input[from * g.c_in + ci] * i64::from(weights[(tap * g.c_in + ci) * g.c_out + co]);
            }
        }
    });
    out
}

/// Adjoint: `[N, OH, OW, C_out]` → `[N, H, W, C_in]`.
pub fn transposed(g: &Conv2d, error: &[i64], weights: &[i8]) -> Vec<i64> {
    let mut out = vec![0; g.input_len()];
    pairs(g, |from, to, tap| {
        for ci in 0..g.c_in {
            for co in 0..g.c_out {
                out[to * g.c_in + ci] +=
                    error[from * g.c_out + co] * i64::from(weights[(tap * g.c_in + ci) * g.c_out + co]);
            }
        }
    });
    out
}

/// Weight gradient.
pub fn weight_gradient(g: &Conv2d, input: &[i64], error: &[i8]) -> Vec<i64> {
    let mut out = vec![0; g.weights_len()];
    pairs(g, |at, from, tap| {
        for ci in 0..g.c_in {
            for co in 0..g.c_out {
                out[(tap * g.c_in + ci) * g.c_out + co] +=
                    input[from * g.c_in + ci] * i64::from(error[at * g.c_out + co]);
            }
        }
    });
    out
}
