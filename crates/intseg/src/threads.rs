//! The threads and the instruction set of a process.
//!
//! A training step or a prediction is some hundreds of short parallel runs one after another, so what counts is how fast
//! a run begins and ends. Threads therefore wait for the next run awake for a while before they sleep. And each has its
//! share of a run's tasks, the same part of every tensor in one run as in the next: cores that share no cache then find
//! in their own what they wrote before. Who is done with its share helps the others with theirs.

use intseg_kernels::pool::{Loan, Task};
use intseg_kernels::{Inline, Isa, Pool};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

/// How often a thread looks for the next run before it sleeps: for about a tenth of a millisecond.
const PATIENCE: u32 = 8192;

/// A pool of threads, created once.
pub enum Threads {
    /// The calling thread alone.
    One,
    /// Several.
    Many(Crew),
}

/// Threads cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {count} threads: {source}")]
pub struct ThreadsError {
    count: usize,
    source: std::io::Error,
}

impl Threads {
    /// `count` threads; 0 means one for each core.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn new(count: usize) -> Result<Self, ThreadsError> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        if count == 1 {
            return Ok(Threads::One);
        }
        Crew::new(count).map(Threads::Many).map_err(|source| ThreadsError { count, source })
    }
}

impl Pool for Threads {
    fn threads(&self) -> usize {
        match self {
            Threads::One => 1,
            Threads::Many(crew) => crew.shared.shares.len(),
        }
    }

    fn run(&self, tasks: usize, task: Task) {
        match self {
            Threads::Many(crew) if tasks > 1 => crew.run(tasks, task),
            _ => Inline.run(tasks, task),
        }
    }
}

/// Threads that help the one that calls.
pub struct Crew {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held during a run.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Shared {
    round: Round,
    /// The caller's, then each helper's.
    shares: Vec<Share>,
    ended: AtomicBool,
    /// What a helper's task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What helpers look at between runs, in a line of cache of its own.
#[derive(Default)]
#[repr(align(128))]
struct Round {
    /// Counts runs.
    number: AtomicUsize,
    loan: Loan,
}

/// Tasks of a thread that nobody has begun: the first in the low half, one past the last in the high half.
#[derive(Default)]
#[repr(align(128))]
struct Share {
    left: AtomicU64,
    asleep: AtomicBool,
}

impl Share {
    fn set(&self, first: usize, end: usize) {
        self.left.store((end as u64) << 32 | first as u64, Ordering::Relaxed);
    }

    /// The next task: the first for the thread itself, the last for another.
    fn next(&self, own: bool) -> Option<usize> {
        let taken = |left: u64| {
            let (first, end) = (left & 0xFFFF_FFFF, left >> 32);
            (first < end).then(|| if own { left + 1 } else { left - (1 << 32) })
        };
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok()?;
        Some(if own { left & 0xFFFF_FFFF } else { (left >> 32) - 1 } as usize)
    }
}

impl Crew {
    fn new(count: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { shares: (0..count).map(|_| Share::default()).collect(), ..Shared::default() });
        let mut crew = Crew { shared, helpers: Vec::with_capacity(count - 1), turn: Mutex::new(()) };
        for worker in 1..count {
            let shared = crew.shared.clone();
            let helper = std::thread::Builder::new().name(format!("intseg {worker}"));
            crew.helpers.push(helper.spawn(move || shared.help(worker))?);
        }
        Ok(crew)
    }

    fn run(&self, tasks: usize, task: Task) {
        let Shared { round, shares, panic, .. } = &*self.shared;
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            // A run within a run, or of another thread.
            Err(TryLockError::WouldBlock) => None,
        };
        if turn.is_none() || u32::try_from(tasks).is_err() {
            return Inline.run(tasks, task);
        }
        // One that is left from a run in which the caller's task panicked too.
        drop(locked(panic).take());
        for (worker, share) in shares.iter().enumerate() {
            share.set(tasks * worker / shares.len(), tasks * (worker + 1) / shares.len());
        }
        let mut waited = 0;
        let begin = || {
            round.number.fetch_add(1, Ordering::SeqCst);
            self.wake();
            self.shared.work(task, 0);
        };
        let pause = || {
            waited += 1;
            // Whoever has a task may be waiting for this core.
            if waited < PATIENCE { std::hint::spin_loop() } else { std::thread::yield_now() }
        };
        round.loan.lend(task, begin, pause);
        if let Some(payload) = locked(panic).take() {
            drop(turn);
            resume_unwind(payload);
        }
    }

    fn wake(&self) {
        for (helper, share) in self.helpers.iter().zip(&self.shared.shares[1..]) {
            if share.asleep.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.helpers.iter().for_each(|helper| helper.thread().unpark());
        // A helper's panics were handed on as they came.
        self.helpers.drain(..).for_each(|helper| drop(helper.join()));
    }
}

impl Shared {
    /// A helper's life.
    fn help(&self, worker: usize) {
        let mut seen = 0;
        while let Some(number) = self.next_round(worker, seen) {
            seen = number;
            self.round.loan.borrow(|task| {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.work(task, worker))) {
                    locked(&self.panic).get_or_insert(payload);
                }
            });
        }
    }

    /// Waits for a run other than the one of that number; `None` at the end.
    fn next_round(&self, worker: usize, seen: usize) -> Option<usize> {
        let asleep = &self.shares[worker].asleep;
        let mut waited = 0;
        loop {
            let number = self.round.number.load(Ordering::SeqCst);
            if number != seen {
                asleep.store(false, Ordering::Relaxed);
                return Some(number);
            }
            if self.ended.load(Ordering::SeqCst) {
                return None;
            }
            waited += 1;
            match waited {
                ..PATIENCE => std::hint::spin_loop(),
                // Looks once more: a run that began before this was seen does not wake it.
                PATIENCE => asleep.store(true, Ordering::SeqCst),
                _ => std::thread::park(),
            }
        }
    }

    /// Runs tasks until none is left to begin.
    fn work(&self, task: Task, worker: usize) {
        let count = self.shares.len();
        for other in (worker..count).chain(0..worker) {
            while let Some(index) = self.shares[other].next(other == worker) {
                task(index, worker);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The variable that forces an instruction set.
pub const ISA_VARIABLE: &str = "INTSEG_ISA";

/// The forced instruction set is unknown or missing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ISA_VARIABLE}={name}: this machine has {available}; known are {}", Isa::NAMES.join(", "))]
pub struct IsaError {
    name: String,
    available: String,
}

/// The instruction set that `INTSEG_ISA` names, else the machine's best.
///
/// # Errors
/// When the named one is unknown, or the machine does not have it.
pub fn isa_from_env() -> Result<Isa, IsaError> {
    let Ok(name) = std::env::var(ISA_VARIABLE) else { return Ok(Isa::detect()) };
    let available = || Isa::available().map(Isa::name).collect::<Vec<_>>().join(", ");
    Isa::by_name(&name).ok_or_else(|| IsaError { available: available(), name })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each task ran, and whether two ran at the same time as the same worker.
    fn counts(threads: &Threads, tasks: usize, within: impl Fn(usize) + Sync) -> (Vec<usize>, bool) {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        let busy: Vec<AtomicBool> = (0..threads.threads()).map(|_| AtomicBool::new(false)).collect();
        let clash = AtomicBool::new(false);
        threads.run(tasks, &|index, worker| {
            clash.fetch_or(busy[worker].swap(true, Ordering::SeqCst), Ordering::SeqCst);
            counts[index].fetch_add(1, Ordering::SeqCst);
            within(index);
            busy[worker].store(false, Ordering::SeqCst);
        });
        (counts.into_iter().map(AtomicUsize::into_inner).collect(), clash.into_inner())
    }

    #[test]
    fn every_task_runs_once_and_no_worker_has_two() {
        for count in [1, 2, 3, 7] {
            let threads = Threads::new(count).unwrap();
            for tasks in (0..40).chain([1000]) {
                assert_eq!(counts(&threads, tasks, |_| ()), (vec![1; tasks], false), "{count} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn threads_that_fell_asleep_wake_for_the_next_run() {
        let threads = Threads::new(2).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            // Each waits for the other.
            let met = AtomicUsize::new(0);
            threads.run(2, &|_, _| {
                met.fetch_add(1, Ordering::SeqCst);
                while met.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_run_within_a_run_and_runs_of_several_threads_finish() {
        let threads = Threads::new(3).unwrap();
        let inner = |_| assert_eq!(counts(&threads, 5, |_| ()).0, vec![1; 5]);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..50).for_each(|_| assert_eq!(counts(&threads, 20, inner), (vec![1; 20], false))));
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        let threads = Threads::new(2).unwrap();
        for bad in 0..8 {
            let run = || counts(&threads, 8, |index| assert_ne!(index, bad));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert_eq!(counts(&threads, 8, |_| ()), (vec![1; 8], false));
        }
    }
}
