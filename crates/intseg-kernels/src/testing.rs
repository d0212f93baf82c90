//! What the crate's tests share.

use crate::Pool;
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
