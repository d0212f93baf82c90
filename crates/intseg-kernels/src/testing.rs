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
