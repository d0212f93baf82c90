//! Instruction sets: which ones this machine has, and how to run code compiled for one.

/// An instruction set that kernels are written for.
///
/// A value other than [`Isa::Scalar`] is a proof that the machine has it: [`Isa::detect`] and [`Isa::available`] are
/// the only ways to get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Portable Rust.
    Scalar,
    /// 256-bit integer SIMD; products are widened before they are added, so nothing saturates.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 512-bit integer SIMD with `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
}

/// Proof that AVX2 is present.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// The proof, where it cannot be handed on.
    ///
    /// # Safety
    /// The caller must have had it.
    pub(crate) unsafe fn promised() -> Self {
        Avx2(())
    }
}

/// Proof that AVX-512 F, BW, DQ, VL and VNNI are present.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Vnni(());

#[cfg(all(target_arch = "x86_64", feature = "std"))]
macro_rules! has {
    ($($feature:tt),+) => { $(std::is_x86_feature_detected!($feature))&&+ };
}
// Without the standard library the target's compile-time features decide.
#[cfg(all(target_arch = "x86_64", not(feature = "std")))]
macro_rules! has {
    ($($feature:tt),+) => { $(cfg!(target_feature = $feature))&&+ };
}

impl Isa {
    /// The names that [`Isa::by_name`] knows, best first.
    pub const NAMES: [&'static str; 3] = ["avx512vnni", "avx2", "scalar"];

    /// The best instruction set of this machine.
    pub fn detect() -> Self {
        Self::NAMES.iter().find_map(|name| Self::by_name(name)).unwrap_or(Isa::Scalar)
    }

    /// Every instruction set of this machine, best first; [`Isa::Scalar`] is always the last.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::NAMES.iter().filter_map(|name| Self::by_name(name))
    }

    /// The instruction set of that name, or `None` when the name is unknown or the machine does not have it.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "scalar" => Some(Isa::Scalar),
            #[cfg(target_arch = "x86_64")]
            "avx2" if has!("avx2") => Some(Isa::Avx2(Avx2(()))),
            #[cfg(target_arch = "x86_64")]
            "avx512vnni" if has!("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni") => {
                Some(Isa::Avx512Vnni(Avx512Vnni(())))
            }
            _ => None,
        }
    }

    /// The name, as [`Isa::by_name`] and the `INTSEG_ISA` variable spell it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => "avx512vnni",
        }
    }

    /// Runs `work` compiled for this instruction set.
    ///
    /// A loop written once in portable Rust becomes SIMD code of each instruction set this way, and is bit-equal by
    /// construction. The closure must be inlinable: mark it `#[inline(always)]`, and every function it calls.
    #[inline(always)]
    pub fn vectorize<R>(self, work: impl FnOnce() -> R) -> R {
        match self {
            Isa::Scalar => work(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx2` value exists only where the feature was found.
            Isa::Avx2(_) => unsafe { with_avx2(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx512Vnni` value exists only where the features were found.
            Isa::Avx512Vnni(_) => unsafe { with_avx512(work) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_scalar_is_always_there() {
        for isa in Isa::available() {
            assert_eq!(Isa::by_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::available().last(), Some(Isa::Scalar));
        assert_eq!(Isa::by_name("sse9"), None);
    }

    #[test]
    fn vectorized_work_returns_its_value() {
        for isa in Isa::available() {
            assert_eq!(
                isa.vectorize(
                    #[inline(always)]
                    || (0..100).sum::<i32>()
                ),
                4950
            );
        }
    }
}
