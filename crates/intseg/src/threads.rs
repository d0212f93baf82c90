//! The threads and the instruction set of a process.

use intseg_kernels::{Inline, Isa, Pool};
use rayon::prelude::*;

/// A pool of threads, created once.
pub enum Threads {
    /// The calling thread alone.
    One,
    /// Several.
    Many(rayon::ThreadPool),
}

/// Threads cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {count} threads: {source}")]
pub struct ThreadsError {
    count: usize,
    source: rayon::ThreadPoolBuildError,
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
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build();
        pool.map(Threads::Many).map_err(|source| ThreadsError { count, source })
    }

    /// Runs `work` on a thread of the pool, from which handing out tasks is cheapest.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Threads::One => work(),
            Threads::Many(pool) => pool.install(work),
        }
    }
}

impl Pool for Threads {
    fn threads(&self) -> usize {
        match self {
            Threads::One => 1,
            Threads::Many(pool) => pool.current_num_threads(),
        }
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        match self {
            Threads::Many(pool) if tasks > 1 => pool.install(|| {
                (0..tasks).into_par_iter().with_max_len(1).for_each(|index| {
                    task(index, rayon::current_thread_index().expect("a task runs on a thread of the pool"));
                });
            }),
            _ => Inline.run(tasks, task),
        }
    }
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
