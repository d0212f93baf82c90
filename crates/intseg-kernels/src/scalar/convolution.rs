//! Convolution in portable Rust, straight from the stored weights: what a device runs.

use crate::Context;
use crate::conv::phase::phases;
use crate::conv::{Conv2d, Convolution, Direction, Input, Store};

/// One pixel's sums for each worker.
pub(crate) fn scratch_len(plan: &Convolution, threads: usize) -> usize {
    let [.., target] = plan.target();
    target * threads
}

/// Runs a convolution.
pub(crate) fn run<S: Store>(
    plan: &Convolution,
    ctx: Context,
    store: &S,
    input: Input,
    weights: &[i8],
    scratch: &mut [i32],
) {
    match input {
        Input::U8(data) => run_typed(plan, ctx, store, data, weights, scratch),
        Input::I8(data) => run_typed(plan, ctx, store, data, weights, scratch),
    }
}

fn run_typed<S: Store, T: Copy + Into<i32> + Sync>(
    plan: &Convolution,
    ctx: Context,
    store: &S,
    input: &[T],
    weights: &[i8],
    scratch: &mut [i32],
) {
    let [h, w, c] = plan.source();
    let [out_h, out_w, target] = plan.target();
    let [kernel_h, kernel_w] = plan.geometry.kernel;
    let sums = crate::pool::Disjoint::new(scratch);
    for phase in phases(&plan.geometry, plan.direction) {
        let [rows, columns] = phase.count;
        ctx.pool.run(plan.geometry.batch * rows, &|task, worker| {
            let (image, row) = (task / rows, task % rows);
            // SAFETY: each worker has its own part, and runs one task at a time.
            let sums = unsafe { sums.piece(worker * target, (worker + 1) * target) };
            for column in 0..columns {
                sums.fill(0);
                for tap in 0..kernel_h * kernel_w {
                    let (Some(dy), Some(dx)) = (phase.source(0, tap / kernel_w), phase.source(1, tap % kernel_w))
                    else {
                        continue;
                    };
                    let y = (row * phase.source_step[0]) as isize + dy;
                    let x = (column * phase.source_step[1]) as isize + dx;
                    if y < 0 || y as usize >= h || x < 0 || x as usize >= w {
                        continue;
                    }
                    let pixel = &input[((image * h + y as usize) * w + x as usize) * c..][..c];
                    add_tap(&plan.geometry, plan.direction, sums, pixel, &weights[tap * c * target..][..c * target]);
                }
                let y = phase.first[0] + row * phase.step[0];
                let x = phase.first[1] + column * phase.step[1];
                // SAFETY: every pixel of every phase is visited once.
                unsafe { store.store(sums, target, &[(image * out_h + y) * out_w + x], 0, target) };
            }
        });
    }
}

/// Adds one tap's products; `weights` are `[c_in, c_out]`.
fn add_tap<T: Copy + Into<i32>>(g: &Conv2d, direction: Direction, sums: &mut [i32], pixel: &[T], weights: &[i8]) {
    match direction {
        Direction::Forward => {
            for (&value, row) in pixel.iter().zip(weights.chunks_exact(g.c_out)) {
                let value: i32 = value.into();
                sums.iter_mut().zip(row).for_each(|(sum, &weight)| *sum += value * i32::from(weight));
            }
        }
        Direction::Transposed => {
            for (sum, row) in sums.iter_mut().zip(weights.chunks_exact(g.c_out)) {
                *sum += pixel.iter().zip(row).map(|(&value, &weight)| value.into() * i32::from(weight)).sum::<i32>();
            }
        }
    }
}
