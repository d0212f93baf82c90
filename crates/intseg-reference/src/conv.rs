//! Convolution and its adjoints as matrix products over gathered columns.

use crate::Map;
use intseg::tensor::Shape;
use intseg_kernels::Conv2d;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;
use std::ops::Range;

/// Floats that gathered columns may take.
const COLUMNS: usize = 1 << 22;

/// `out = a · b`, or `out += a · b`, rows first.
fn product(out: &mut [f32], keep: f32, a: ArrayView2<f32>, b: ArrayView2<f32>) {
    let shape = (a.nrows(), b.ncols());
    let mut out = ArrayViewMut2::from_shape(shape, out).expect("the output has the product's size");
    general_mat_mul(1.0, &a, &b, keep, &mut out);
}

fn view(data: &[f32], columns: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((data.len() / columns, columns), data).expect("whole rows")
}

/// One image's output rows in blocks whose columns fit.
fn blocks(conv: &Conv2d) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, depth) = (conv.out_h(), conv.out_w() * taps(conv) * conv.c_in);
    let step = (COLUMNS / depth.max(1)).max(1);
    (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
}

fn taps(conv: &Conv2d) -> usize {
    conv.kernel[0] * conv.kernel[1]
}

/// Calls `visit(column offset, input offset)` for every tap that lies on the image, `c_in` values each.
fn for_each_tap(conv: &Conv2d, rows: &Range<usize>, mut visit: impl FnMut(usize, usize)) {
    let along = |axis: usize, at: usize, tap: usize, size: usize| {
        let position = at * conv.stride[axis] + tap * conv.dilation[axis];
        position.checked_sub(conv.padding[axis]).filter(|&position| position < size)
    };
    for (line, y) in rows.clone().enumerate() {
        for x in 0..conv.out_w() {
            let column = (line * conv.out_w() + x) * taps(conv);
            for i in 0..conv.kernel[0] {
                let Some(in_y) = along(0, y, i, conv.in_h) else { continue };
                for j in 0..conv.kernel[1] {
                    let Some(in_x) = along(1, x, j, conv.in_w) else { continue };
                    visit((column + i * conv.kernel[1] + j) * conv.c_in, (in_y * conv.in_w + in_x) * conv.c_in);
                }
            }
        }
    }
}

fn gathered(conv: &Conv2d, image: &[f32], rows: &Range<usize>) -> Vec<f32> {
    let mut columns = vec![0.0; rows.len() * conv.out_w() * taps(conv) * conv.c_in];
    for_each_tap(conv, rows, |to, from| {
        columns[to..to + conv.c_in].copy_from_slice(&image[from..from + conv.c_in]);
    });
    columns
}

/// The convolution of a batch with weights `[KH, KW, C_in, C_out]`.
pub fn forward(conv: &Conv2d, input: &Map, weights: &[f32], bias: Option<&[f32]>) -> Map {
    let mut out = Map::zeros(Shape::new(conv.batch, conv.out_h(), conv.out_w(), conv.c_out));
    let image_len = conv.in_h * conv.in_w * conv.c_in;
    let row = conv.out_w() * conv.c_out;
    out.data.par_chunks_mut(conv.out_h() * row).zip(input.data.par_chunks(image_len)).for_each(|(out, image)| {
        for rows in blocks(conv) {
            let columns = gathered(conv, image, &rows);
            let out = &mut out[rows.start * row..rows.end * row];
            product(out, 0.0, view(&columns, taps(conv) * conv.c_in), view(weights, conv.c_out));
        }
        if let Some(bias) = bias {
            out.chunks_exact_mut(conv.c_out).for_each(|out| out.iter_mut().zip(bias).for_each(|(out, b)| *out += b));
        }
    });
    out
}

/// The adjoint with respect to the input: what a transposed convolution computes of a batch `[N, out_h, out_w, c_out]`.
pub fn adjoint(conv: &Conv2d, error: &Map, weights: &[f32]) -> Map {
    let mut out = Map::zeros(Shape::new(conv.batch, conv.in_h, conv.in_w, conv.c_in));
    let row = conv.out_w() * conv.c_out;
    let image_len = conv.in_h * conv.in_w * conv.c_in;
    out.data.par_chunks_mut(image_len).zip(error.data.par_chunks(conv.out_h() * row)).for_each(|(out, error)| {
        for rows in blocks(conv) {
            let mut columns = vec![0.0; rows.len() * conv.out_w() * taps(conv) * conv.c_in];
            let error = view(&error[rows.start * row..rows.end * row], conv.c_out);
            product(&mut columns, 0.0, error, view(weights, conv.c_out).t());
            add_columns(conv, &rows, &columns, out);
        }
    });
    out
}

/// Adds each column's values to the input values that it was gathered from.
fn add_columns(conv: &Conv2d, rows: &Range<usize>, columns: &[f32], out: &mut [f32]) {
    for_each_tap(conv, rows, |from, to| {
        let columns = &columns[from..from + conv.c_in];
        out[to..to + conv.c_in].iter_mut().zip(columns).for_each(|(sum, v)| *sum += v);
    });
}

/// The gradients with respect to the weights and, if asked for, the input.
pub fn backward(conv: &Conv2d, input: &Map, weights: &[f32], error: &Map, data: bool) -> (Vec<f32>, Option<Map>) {
    let depth = taps(conv) * conv.c_in;
    let image_len = conv.in_h * conv.in_w * conv.c_in;
    let row = conv.out_w() * conv.c_out;
    let parts: Vec<(Vec<f32>, Vec<f32>)> = error
        .data
        .par_chunks(conv.out_h() * row)
        .zip(input.data.par_chunks(image_len))
        .map(|(error, image)| {
            let mut gradient = vec![0.0; depth * conv.c_out];
            let mut handed = vec![0.0; if data { image_len } else { 0 }];
            for rows in blocks(conv) {
                let mut columns = gathered(conv, image, &rows);
                let error = view(&error[rows.start * row..rows.end * row], conv.c_out);
                product(&mut gradient, 1.0, view(&columns, depth).t(), error);
                if data {
                    product(&mut columns, 0.0, error, view(weights, conv.c_out).t());
                    add_columns(conv, &rows, &columns, &mut handed);
                }
            }
            (gradient, handed)
        })
        .collect();
    let mut gradient = vec![0.0; depth * conv.c_out];
    for (part, _) in &parts {
        gradient.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
    }
    let handed = data.then(|| Map { shape: input.shape, data: parts.into_iter().flat_map(|(_, part)| part).collect() });
    (gradient, handed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::tests::{dot, random};

    #[test]
    fn the_three_passes_are_adjoint_and_one_tap_is_what_it_should_be() {
        for (kernel, stride, dilation, padding) in
            [(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2), (1, 1, 1, 0), (7, 2, 1, 3)]
        {
            let conv = Conv2d {
                batch: 2,
                in_h: 9,
                in_w: 7,
                c_in: 3,
                c_out: 4,
                kernel: [kernel; 2],
                stride: [stride; 2],
                dilation: [dilation; 2],
                padding: [padding; 2],
            };
            let input = random(Shape::new(2, 9, 7, 3), 1);
            let weights = random(Shape::new(kernel, kernel, 3, 4), 2).data;
            let out = forward(&conv, &input, &weights, None);
            let error = random(out.shape, 3);
            let (gradient, handed) = backward(&conv, &input, &weights, &error, true);
            // ⟨conv(x, w), e⟩ is linear in x and in w.
            let want = dot(&out.data, &error.data);
            assert!((dot(&gradient, &weights) - want).abs() < 1e-3 * want.abs().max(1.0));
            assert_eq!(adjoint(&conv, &error, &weights), *handed.as_ref().unwrap());
            assert!((dot(&handed.unwrap().data, &input.data) - want).abs() < 1e-3 * want.abs().max(1.0));
            let mut centre = 0.0;
            for i in 0..kernel {
                for j in 0..kernel {
                    let (y, x) = (
                        (stride + i * dilation) as isize - padding as isize,
                        (stride + j * dilation) as isize - padding as isize,
                    );
                    if (0..9).contains(&y) && (0..7).contains(&x) {
                        for k in 0..3 {
                            centre += input.data[(y as usize * 7 + x as usize) * 3 + k]
                                * weights[((i * kernel + j) * 3 + k) * 4];
                        }
                    }
                }
            }
            assert!((out.data[(out.shape.w + 1) * 4] - centre).abs() < 1e-4);
        }
    }
}
