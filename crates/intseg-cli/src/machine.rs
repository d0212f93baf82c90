//! The flags that say what to compute on, and what the process used.

use clap::Args;
use intseg::predictor::WEIGHTS_LIMIT;
use intseg::threads::{Threads, isa_from_env};
use intseg_kernels::Isa;

/// The flags of every command that computes.
#[derive(Args, Clone, Copy, Debug)]
pub struct Machine {
    /// Number of threads; 0 for one a core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

impl Machine {
    /// The instruction set and the threads.
    pub fn start(self) -> anyhow::Result<(Isa, Threads)> {
        // More threads than this are a slip of the finger; starting them would exhaust the system.
        if self.threads > 1024 {
            return Err(crate::failure::Usage(format!("--threads {}: at most 1024", self.threads)).into());
        }
        Ok((isa_from_env()?, Threads::new(self.threads)?))
    }
}

/// The flag that says how much of a model's weights memory holds.
#[derive(Args, Clone, Copy, Debug)]
pub struct HeldWeights {
    /// Of a layer's weights in a model file, keep so many MiB in memory and read the others for every image: 0 for the
    /// least memory, more than any layer has (FCN-8s: 99) for the least time
    #[arg(long, value_name = "MIB", default_value_t = (WEIGHTS_LIMIT >> 20) as u32)]
    held_weights: u32,
}

impl HeldWeights {
    /// Bytes of a layer.
    pub fn limit(self) -> usize {
        (self.held_weights as usize).saturating_mul(1 << 20)
    }
}

/// Rows and columns, as in `513x513`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub [usize; 2]);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size: write rows x columns, such as 513x513, each 1 to 32768");
        let (rows, columns) = text.split_once(['x', 'X', '×']).ok_or_else(wrong)?;
        let side = |t: &str| t.trim().parse().ok().filter(|side| (1..=32768).contains(side)).ok_or_else(wrong);
        Ok(Size([side(rows)?, side(columns)?]))
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}x{}", self.0[0], self.0[1])
    }
}

/// The largest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Lets [`peak_memory`] count from now on, where the system can.
pub fn reset_peak_memory() {
    // Elsewhere than on Linux the peak is not known either.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rows_by_columns() {
        assert_eq!("33x65".parse(), Ok(Size([33, 65])));
        for wrong in ["", "33", "0x5", "x", "5x40000", "-1x5"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_peak_of_memory_is_known_here() {
        assert!(peak_memory() > 1 << 20);
    }
}
