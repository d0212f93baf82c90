//! How a kernel spreads its work over threads.
//!
//! The crate owns no threads. A host hands in a pool that was created once; a device hands in [`Inline`].

use core::marker::PhantomData;
use core::ptr::{from_ref, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// A fixed set of worker threads.
pub trait Pool: Sync {
    /// The number of workers, at least 1.
    fn threads(&self) -> usize;

    /// Calls `task(index, worker)` once for every `index` in `0..tasks`, in any order, and returns when all are done.
    /// `worker` is below [`Pool::threads`], and no two calls that overlap in time have the same one, so it can select
    /// a piece of scratch memory.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync));
}

/// The pool of the calling thread alone.
pub struct Inline;

impl Pool for Inline {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        (0..tasks).for_each(|index| task(index, 0));
    }
}

/// What [`Pool::run`] is called with.
pub type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Lends a task to other threads for the time of a call: the one thing that a host which owns threads could not do
/// safely by itself.
#[derive(Default)]
pub struct Loan {
    /// Where the lender keeps the task, null when none is lent.
    task: AtomicPtr<()>,
    borrowers: AtomicUsize,
}

impl Loan {
    /// Lends `task` while `work` runs, then takes it back: waits, calling `pause` over and over, until nobody has it.
    ///
    /// # Panics
    /// When another task is lent.
    pub fn lend(&self, task: Task, work: impl FnOnce(), pause: impl FnMut()) {
        let place = from_ref(&task).cast_mut().cast();
        let lent = self.task.compare_exchange(null_mut(), place, Ordering::SeqCst, Ordering::SeqCst);
        assert!(lent.is_ok(), "one task is lent at a time");
        // Also when `work` panics: borrowers would be left with a task that is gone.
        let _back = TakeBack(self, pause);
        work();
    }

    /// Calls `work` with the task that is lent, if one is.
    pub fn borrow(&self, work: impl FnOnce(Task)) {
        // Announced before looking, as a lender takes away before it looks for borrowers: one sees the other.
        self.borrowers.fetch_add(1, Ordering::SeqCst);
        let _back = GiveBack(self);
        let task = self.task.load(Ordering::SeqCst).cast::<Task>();
        if !task.is_null() {
            // SAFETY: `lend` returns, and what it points to goes, only once there is no borrower; this is one.
            work(unsafe { *task });
        }
    }
}

struct TakeBack<'a, F: FnMut()>(&'a Loan, F);

impl<F: FnMut()> Drop for TakeBack<'_, F> {
    fn drop(&mut self) {
        self.0.task.store(null_mut(), Ordering::SeqCst);
        while self.0.borrowers.load(Ordering::SeqCst) > 0 {
            (self.1)();
        }
    }
}

struct GiveBack<'a>(&'a Loan);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.0.borrowers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A mutable slice that the tasks of one [`Pool::run`] write to in disjoint pieces.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the pieces handed out are disjoint (the contract of `piece`), so sharing the whole is sharing none of them.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Wraps `slice` for the time of one parallel run.
    pub fn new(slice: &'a mut [T]) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Where the slice begins.
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// As [`fetch_all`] for the elements `at..at + len`.
    #[inline(always)]
    pub(crate) fn fetch(&self, at: usize, len: usize) {
        fetch_lines(self.start.wrapping_add(at), len);
    }

    /// The elements `from..to`.
    ///
    /// # Safety
    /// No two pieces that live at the same time may overlap.
    ///
    /// # Panics
    /// When the range is not inside the slice.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn piece(&self, from: usize, to: usize) -> &mut [T] {
        if from > to || to > self.len {
            outside(from, to, self.len);
        }
        // SAFETY: inside the slice as just asserted, and disjoint from other pieces as the caller promises.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(from), to - from) }
    }
}

/// Has the cache line of an element fetched, where there is one and the processor can be asked to.
#[inline(always)]
pub(crate) fn fetch<T>(slice: &[T], at: usize) {
    fetch_address(slice.as_ptr().wrapping_add(at));
}

/// As [`fetch`] for a slice, 64 bytes after 64.
#[inline(always)]
pub(crate) fn fetch_all<T>(slice: &[T]) {
    fetch_lines(slice.as_ptr(), slice.len());
}

#[inline(always)]
fn fetch_lines<T>(start: *const T, len: usize) {
    (0..len).step_by((64 / size_of::<T>()).max(1)).for_each(|at| fetch_address(start.wrapping_add(at)));
}

#[inline(always)]
fn fetch_address<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of every x86-64, and an address that is only fetched may lie anywhere.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Apart from its caller, which would otherwise keep the numbers in memory for the message.
#[cold]
#[inline(never)]
fn outside(from: usize, to: usize, len: usize) -> ! {
    panic!("piece {from}..{to} of {len}");
}

/// Splits `out` into pieces of `piece_len` elements (the last may be shorter) and calls `task(index, piece, worker)`
/// for each, spread over the pool.
///
/// # Panics
/// When `piece_len` is 0.
pub fn for_each_piece<T: Send>(
    pool: &dyn Pool,
    out: &mut [T],
    piece_len: usize,
    task: impl Fn(usize, &mut [T], usize) + Sync,
) {
    let len = out.len();
    let shared = Disjoint::new(out);
    pool.run(len.div_ceil(piece_len), &|index, worker| {
        let from = index * piece_len;
        // SAFETY: pieces of different indices do not overlap, and each index runs once.
        task(index, unsafe { shared.piece(from, (from + piece_len).min(len)) }, worker);
    });
}

/// As [`for_each_piece`], with `scratch_len` elements of `scratch` for each call: `task(index, piece, scratch)`.
///
/// # Panics
/// When `piece_len` is 0, or `scratch` has fewer than `scratch_len` elements for each thread.
pub fn for_each_piece_with<T: Send, S: Send>(
    pool: &dyn Pool,
    out: &mut [T],
    piece_len: usize,
    scratch: &mut [S],
    scratch_len: usize,
    task: impl Fn(usize, &mut [T], &mut [S]) + Sync,
) {
    let scratch = Disjoint::new(scratch);
    for_each_piece(pool, out, piece_len, |index, piece, worker| {
        // SAFETY: each worker has its own part, and runs one task at a time.
        task(index, piece, unsafe { scratch.piece(worker * scratch_len, (worker + 1) * scratch_len) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn a_task_is_borrowed_only_while_it_is_lent() {
        let (loan, stop) = (Loan::default(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while stop.load(Ordering::Relaxed) == 0 {
                        loan.borrow(|task| task(1, 0));
                        // Out of it for a while, as the lender waits for.
                        std::thread::yield_now();
                    }
                });
            }
            for round in 0..200 {
                let (alive, calls) = (AtomicUsize::new(round), AtomicUsize::new(0));
                let task = |add: usize, _: usize| {
                    assert_eq!(alive.load(Ordering::Relaxed), round);
                    calls.fetch_add(add, Ordering::Relaxed);
                };
                let borrowed = || {
                    while calls.load(Ordering::Relaxed) == 0 {
                        std::thread::yield_now();
                    }
                };
                loan.lend(&task, borrowed, std::thread::yield_now);
                alive.store(usize::MAX, Ordering::Relaxed);
            }
            stop.store(1, Ordering::Relaxed);
        });
        loan.borrow(|_| panic!("nothing is lent"));
    }

    #[test]
    fn every_piece_is_visited_once() {
        let mut out = vec![0u32; 103];
        for_each_piece(&Inline, &mut out, 10, |index, piece, _| piece.iter_mut().for_each(|v| *v += index as u32 + 1));
        assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32 / 10 + 1));
    }
}
