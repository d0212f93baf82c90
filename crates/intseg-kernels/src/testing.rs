//! What the crate's tests share.

use crate::{Conv2d, Pool};
use core::ops::Range;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A pool of that many threads, made anew for each run.
pub struct Threads(pub usize);

impl Pool for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for worker in 0..self.0 {
                let next = &next;
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= tasks {
                            return;
                        }
                        task(index, worker);
                    }
                });
            }
        });
    }
}

/// `len` random integers of `bits` bits, sign included.
pub fn random(len: usize, tensor: u32, bits: u32) -> std::vec::Vec<i32> {
    let d = crate::Dither::new(9, 0, tensor, crate::Role::Initial);
    (0..len).map(|i| (d.at(i) as i32) >> (32 - bits)).collect()
}

/// Convolutions that have an output: ranges of their batch, of their sides and of their channels, `(c_in, c_out)`, and the
/// largest kernel, stride, dilation and padding along an axis.
pub fn geometry(
    batch: Range<usize>,
    sides: Range<usize>,
    channels: impl Strategy<Value = (usize, usize)>,
    [kernel, stride, dilation, padding]: [usize; 4],
) -> impl Strategy<Value = Conv2d> {
    let pair = |least: usize, most: usize| (least..=most, least..=most).prop_map(|(a, b)| [a, b]);
    let sizes = (batch, sides.clone(), sides, channels);
    (sizes, pair(1, kernel), pair(1, stride), pair(1, dilation), pair(0, padding))
        .prop_map(|((batch, in_h, in_w, (c_in, c_out)), kernel, stride, dilation, padding)| Conv2d {
            batch,
            in_h,
            in_w,
            c_in,
            c_out,
            kernel,
            stride,
            dilation,
            padding,
        })
        .prop_filter("has an output", |g| g.output_size().is_some())
}
